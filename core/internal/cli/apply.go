package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/workflow"
	"github.com/keyfire/keyfire/sdk/client"
)

// workflowFiles are the names under which apply finds workflows in a directory.
var workflowFiles = []string{"workflow.yaml", "workflow.yml", "workflow.json"}

func (a *app) applyCommand() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "apply FILE|DIRECTORY...",
		Short: "Publish workflow files with the modules they use",
		Long: `Publish a workflow file, or every workflow.yaml below a directory, with the modules that it names by path. A file
and its modules land together or not at all; publishing the same content again changes nothing. With --dry-run nothing
is published: the server checks everything as it would, and says what would change.`,
		Example: "  keyfire apply examples/workflows\n  keyfire apply --dry-run examples/workflows/greet",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			files, whole, err := findWorkflows(args)
			if err != nil {
				return usageError{err}
			}
			if err := distinctNames(files); err != nil {
				return usageError{err}
			}
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			published := []json.RawMessage{}
			var first error
			failed := 0
			for _, file := range files {
				w, err := a.publish(cmd.Context(), s, file, dry)
				if err != nil {
					// The other files are independent of this one; each success stands.
					failed++
					if err = unreachable(err); first == nil {
						first = err
					}
					if errors.Is(err, errUnreachable) {
						return err
					}
					if len(files) > 1 {
						a.note("%s was not published:", file)
						a.printError(err)
					}
					continue
				}
				published = append(published, w.Raw())
				if !a.json {
					a.printPublished(w, dry)
				}
			}
			if a.json && whole && len(published) == 1 {
				if err := a.printBody(published[0]); err != nil {
					return err
				}
			} else if a.json && !whole {
				list, err := json.Marshal(publishedList{Object: "list", Data: published})
				if err != nil {
					return err
				}
				if err := a.printBody(list); err != nil {
					return err
				}
			}
			if failed > 0 && len(files) > 1 {
				return &reported{summary: fmt.Sprintf("%d of %d workflows were not published", failed, len(files)), first: first}
			}
			return first
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "check everything and say what would change, and publish nothing")
	return cmd
}

// printPublished says what came of publishing, or would come of it, and what differs then.
func (a *app) printPublished(w *client.Workflow, dry bool) {
	name := fmt.Sprintf("%s@%d", w.Name, w.Version)
	switch {
	case w.Outcome == "unchanged":
		fmt.Fprintf(a.Stdout, "unchanged %s\n", name)
	case !dry:
		fmt.Fprintf(a.Stdout, "published %s\n", name)
	case w.Outcome == "created":
		fmt.Fprintf(a.Stdout, "would publish %s, a new workflow\n", name)
	default:
		fmt.Fprintf(a.Stdout, "would publish %s\n", name)
		for _, d := range w.Differences {
			a.printDifference(d)
		}
	}
	a.printStarts(w)
}

// printDifference shows lists of texts, such as grants, by what came and went.
func (a *app) printDifference(d client.Difference) {
	path := printable(strings.TrimPrefix(d.Path, "#/"))
	line := func(sign string, value []byte) {
		fmt.Fprintf(a.Stdout, "  %s %s %s\n", sign, path, printableJSON(string(value)))
	}
	var before, after []string
	if json.Unmarshal(d.Before, &before) == nil && json.Unmarshal(d.After, &after) == nil {
		gone, come := without(before, after), without(after, before)
		for _, text := range gone {
			line("-", text)
		}
		for _, text := range come {
			line("+", text)
		}
		if len(gone)+len(come) > 0 {
			return
		}
	}
	if d.Before != nil {
		line("-", d.Before)
	}
	if d.After != nil {
		line("+", d.After)
	}
}

// without returns those texts of a list, as JSON, that another one does not have.
func without(list, other []string) (texts []json.RawMessage) {
	for _, text := range list {
		if !slices.Contains(other, text) {
			encoded, _ := json.Marshal(text) // no text fails
			texts = append(texts, encoded)
		}
	}
	return texts
}

// printStarts tells of nodes whose module could start faster if it were written in another way.
func (a *app) printStarts(w *client.Workflow) {
	for _, n := range w.Starts {
		if n.Why != "" {
			fmt.Fprintf(a.Stderr, "node %s: its module is started for each invocation (class %s): %s\n", n.Node, n.Class, n.Why)
		}
	}
}

// publishedList has the form of the API's lists.
type publishedList struct {
	Object     string            `json:"object"`
	Data       []json.RawMessage `json:"data"`
	HasMore    bool              `json:"has_more"`
	NextCursor *string           `json:"next_cursor"`
}

// findWorkflows returns the files to publish, sorted within each directory. single is true when the command line named one file.
func findWorkflows(args []string) (files []string, single bool, err error) {
	for _, arg := range args {
		info, err := os.Stat(arg)
		if err != nil {
			return nil, false, err
		}
		if !info.IsDir() {
			files = append(files, arg)
			continue
		}
		before := len(files)
		err = filepath.WalkDir(arg, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && slices.Contains(workflowFiles, d.Name()) {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			return nil, false, err
		}
		if len(files) == before {
			return nil, false, fmt.Errorf("%s holds no workflow.yaml, workflow.yml or workflow.json; a file of another name is published when you name the file itself", arg)
		}
	}
	return files, len(args) == 1 && files[0] == args[0], nil
}

// distinctNames refuses files of one command that are the same workflow: each would replace what the one before it had published. A file that
// cannot be read is left to publish, which says why.
func distinctNames(files []string) error {
	first := make(map[string]string, len(files))
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		name, _, err := outline(source, file)
		if err != nil {
			continue
		}
		if other, ok := first[name]; ok {
			return fmt.Errorf("%s and %s are both called %s, so one would replace the other; nothing was published", other, file, name)
		}
		first[name] = file
	}
	return nil
}

// publish sends one file with its modules. The server names the file in its errors as it is given here.
func (a *app) publish(ctx context.Context, s *remote, path string, dry bool) (*client.Workflow, error) {
	source, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	name, uses, err := outline(source, path)
	if err != nil {
		return nil, err
	}
	modules, unread := map[string][]byte{}, map[string]error{}
	for _, use := range uses {
		module, err := os.ReadFile(filepath.Join(filepath.Dir(path), use))
		if err == nil {
			err = checkModuleFile(use, module)
		}
		if err != nil {
			unread[use] = err
			continue
		}
		modules[use] = module
	}
	if len(unread) > 0 {
		return nil, unreadModules(source, path, unread)
	}
	doing := "publishing"
	if dry {
		doing = "checking"
	}
	defer a.afterwhile(fmt.Sprintf("%s %s; the server compiles the modules that it does not know, which can take some seconds each", doing, name))()
	w, err := a.insist(ctx, func() (*client.Workflow, error) {
		return s.PublishWorkflow(ctx, name, client.Publication{Filename: path, Source: source, Modules: modules, DryRun: dry})
	})
	if err == nil {
		a.noteSecrets(ctx, s, source, path)
	}
	return w, err
}

// noteSecrets says which secrets a workflow needs that are not set, as on a server that it has just come to: it may be published before they are, and
// fails until then. Who may not list secrets is told nothing.
func (a *app) noteSecrets(ctx context.Context, s *remote, source []byte, path string) {
	file, err := workflow.Decode(source, path)
	if err != nil {
		return // of a newer server
	}
	type need struct{ name, who string }
	var needs []need
	for i := range file.Definition.Nodes {
		n := &file.Definition.Nodes[i]
		for _, name := range n.Grants.Secrets {
			needs = append(needs, need{name, "node " + n.ID + " is granted"})
		}
	}
	if w := file.Definition.Trigger.Webhook; w != nil {
		needs = append(needs, need{w.Secret, "its webhook is checked with"})
	}
	if len(needs) == 0 {
		return
	}
	set, err := s.Secrets(ctx)
	if err != nil {
		return
	}
	for _, n := range needs {
		if !slices.ContainsFunc(set.Data, func(s client.Secret) bool { return s.Name == n.name }) {
			a.note("%s: %s the secret %s, which is not set yet; set it with: keyfire secrets set %s", file.Definition.Name, n.who, n.name, n.name)
		}
	}
}

// checkModuleFile refuses a file that is no module and does not say that it is a script. A server takes any text for a script, so that its answer
// to the source of a module, or to what stands for a large file in a repository, would be about JavaScript.
func checkModuleFile(path string, content []byte) error {
	if bytes.HasPrefix(content, []byte("\x00asm")) || slices.Contains([]string{".js", ".mjs"}, filepath.Ext(path)) {
		return nil
	}
	return fmt.Errorf("%s is neither WebAssembly, which begins with the bytes 00 61 73 6d, nor a script, whose name ends in .js", path)
}

const (
	mostAttempts = 3
	longestPause = 30 * time.Second
)

// insist publishes again what a server had no time for, when the server says so. Publishing twice is publishing once.
func (a *app) insist(ctx context.Context, publish func() (*client.Workflow, error)) (*client.Workflow, error) {
	for attempt := 1; ; attempt++ {
		w, err := publish()
		var answer *client.Error
		if err == nil || attempt == mostAttempts || !errors.As(err, &answer) || answer.Status != http.StatusServiceUnavailable || !answer.Retryable {
			return w, err
		}
		pause := min(answer.RetryAfter, longestPause)
		a.note("%s: trying again in %s", answer.Detail, pause)
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// patience is how long a command is silent.
const patience = 2 * time.Second

// afterwhile says what a command waits for, once it has waited for a while. The caller must call stop when the wait is over.
func (a *app) afterwhile(text string) (stop func()) {
	over, silent := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(silent)
		select {
		case <-over:
		case <-time.After(patience):
			a.note("%s", text)
		}
	}()
	return func() { close(over); <-silent }
}

// unreadModules places the modules that could not be read at the nodes that use them.
func unreadModules(source []byte, path string, unread map[string]error) error {
	file, err := workflow.Decode(source, path)
	if err != nil {
		return err // what is wrong with the file itself comes first
	}
	var fields []core.Field
	for i, node := range file.Definition.Nodes {
		if err := unread[node.Uses]; err != nil {
			fields = append(fields, core.Field{Pointer: fmt.Sprintf("#/nodes/%d/uses", i), Detail: fmt.Sprintf("%v; compile the module first", err)})
		}
	}
	e := core.Errorf(core.CodeInvalidWorkflow, "%s uses modules that cannot be read", path)
	e.Fields = file.Locate(fields)
	return e
}

// outline finds what must be known of a file to send it: its name and the modules that it names by path. The server checks the
// rest, so that an older program can publish for a newer server.
func outline(source []byte, path string) (name string, uses []string, err error) {
	doc, err := yaml.Parser().Unmarshal(source)
	name, _ = doc["name"].(string)
	if err != nil || name == "" {
		// The decoder says where and why; or it reads what this reader does not, such as a \/ of JSON.
		file, err := workflow.Decode(source, path)
		if err != nil {
			return "", nil, err
		}
		for _, n := range file.Definition.Nodes {
			if !strings.Contains(n.Uses, ":") && !slices.Contains(uses, n.Uses) {
				uses = append(uses, n.Uses)
			}
		}
		return file.Definition.Name, uses, nil
	}
	nodes, _ := doc["nodes"].([]any)
	for _, n := range nodes {
		node, _ := n.(map[string]any)
		use, _ := node["uses"].(string)
		if use != "" && !slices.Contains(uses, use) && !strings.Contains(use, ":") {
			uses = append(uses, use)
		}
	}
	return name, uses, nil
}
