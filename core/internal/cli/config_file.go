package cli

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
)

// configFile reads the text of a config file for koanf. It refuses what YAML allows and a reader of the file would not see: the one of
// several documents that counts, and the one of two spellings of a key that does.
type configFile struct {
	*yaml.YAML
	table []setting
}

func (f configFile) Unmarshal(text []byte) (map[string]any, error) {
	if documents(text) > 1 {
		return nil, errors.New("there are several documents in it (a line begins with ---); want one")
	}
	values, err := f.YAML.Unmarshal(text)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var problems []error
	f.walk("", values, seen, &problems)
	return values, errors.Join(problems...)
}

// walk notes every key below prefix, and complains about those that were seen: log.level may also be written as level below log. A group that has
// nothing in it, as when all its lines are comments, is taken out.
func (f configFile) walk(prefix string, values map[string]any, seen map[string]bool, problems *[]error) {
	for name, v := range values {
		key := prefix + name
		below, isGroup := v.(map[string]any)
		switch {
		case key == authKey:
		case (v == nil || isGroup && len(below) == 0) && len(keysBelow(f.table, key)) > 0:
			delete(values, name)
		case isGroup:
			f.walk(key+".", below, seen, problems)
		case seen[key]:
			*problems = append(*problems, fmt.Errorf("%s stands there twice: with a dot, and below its group", key))
		default:
			seen[key] = true
		}
	}
}

// keysBelow returns the keys of the settings in a group, none when there is no such group.
func keysBelow(table []setting, group string) []string {
	return slices.DeleteFunc(keysOf(table), func(key string) bool { return !strings.HasPrefix(key, group+".") })
}

// documents counts the documents of a YAML text. A line that begins with three hyphens or dots ends one wherever it stands, inside a block of text too.
func documents(text []byte) (n int) {
	open := false
	for line := range bytes.Lines(bytes.TrimPrefix(text, []byte("\ufeff"))) {
		line = bytes.TrimRight(line, " \t\r\n")
		mark := len(line) >= 3 && (len(line) == 3 || line[3] == ' ' || line[3] == '\t')
		switch {
		case mark && string(line[:3]) == "---":
			n, open = n+1, true
		case mark && string(line[:3]) == "...":
			open = false
		case !open && len(line) > 0 && !bytes.HasPrefix(bytes.TrimLeft(line, " \t"), []byte("#")) && line[0] != '%':
			n, open = n+1, true
		}
	}
	return n
}

// listFlag is the flag of a setting that is a list: each time it is given, the list grows. The text is what a variable would hold.
type listFlag struct {
	text  string
	given bool
}

func (l *listFlag) String() string { return l.text }
func (l *listFlag) Type() string   { return "list" }

func (l *listFlag) Set(text string) error {
	if l.given {
		text = l.text + "," + text
	}
	l.text, l.given = text, true
	return nil
}
