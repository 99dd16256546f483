package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// output is standard output, and remembers what could not be written to it. Commands print without looking, so without this a full disk would
// swallow a result, or the only copy of a secret, and the exit status would be that of success. It is safe for concurrent use.
type output struct {
	to io.Writer

	mu  sync.Mutex
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.to.Write(p)
	if err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.err == nil {
			o.err = err
		}
	}
	return n, err
}

// failure returns the first error, without the name of the file, which is ours and tells nobody anything.
func (o *output) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var path *os.PathError
	if errors.As(o.err, &path) {
		return path.Err
	}
	return o.err
}

// isTerminal reports whether what is written to w is shown to a person.
func isTerminal(w io.Writer) bool {
	if o, ok := w.(*output); ok {
		w = o.to
	}
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// misused says what is wrong with the command line of cmd and what would be right, where the libraries' own words are for programmers.
func misused(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var value *pflag.InvalidValueError
	var missing *pflag.ValueRequiredError
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "":
		name := unknown.GetSpecifiedName()
		return fmt.Errorf("%s has no flag --%s%s", cmd.CommandPath(), name, suggestFlag(cmd, name))
	case errors.As(err, &value):
		want := value.Unwrap().Error()
		if known := wanted(value.GetFlag().Value.Type()); known != "" {
			want = "want " + known
		}
		return fmt.Errorf("--%s %s: %s", value.GetFlag().Name, value.GetValue(), want)
	case errors.As(err, &missing):
		return fmt.Errorf("--%s needs a value", missing.GetFlag().Name)
	case cmd.Args != nil && cmd.HasParent():
		args := cmd.Flags().Args()
		switch {
		case cmd.Args(cmd, args) == nil: // something else is wrong
		case len(args) == 0:
			return fmt.Errorf("an argument is missing; write: %s", cmd.UseLine())
		case cmd.Args(cmd, nil) == nil:
			return fmt.Errorf("argument %q is one too many; write: %s", args[len(args)-1], cmd.UseLine())
		default:
			return fmt.Errorf("the arguments do not fit; write: %s", cmd.UseLine())
		}
	}
	return err
}

// suggestFlag names the flag of cmd that name is most likely meant to be: a misspelt one, or one whose last word it is.
func suggestFlag(cmd *cobra.Command, name string) string {
	var names []string
	var ending string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		names = append(names, "--"+f.Name)
		if strings.HasSuffix(f.Name, "-"+name) {
			ending = "--" + f.Name
		}
	})
	if near := suggest("--"+name, names); near != "" || ending == "" {
		return near
	}
	return "; did you mean " + ending + "?"
}

// wanted is what a flag of a type takes, "" where the error of its parser says so.
func wanted(kind string) string {
	switch kind {
	case "int", "int64", "uint", "uint64":
		return "a whole number"
	case "duration":
		return "a time with its unit, such as 30s, 5m or 1h30m"
	case "bool":
		return "true or false"
	case "stringToString":
		return "name=value"
	}
	return ""
}
