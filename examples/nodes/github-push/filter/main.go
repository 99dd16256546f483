// Filter decides whether a push is worth a message, and says why.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"path"
	"slices"
	"strings"

	"github.com/keyfire/keyfire/examples/nodes/internal/door"
	"github.com/keyfire/keyfire/examples/nodes/internal/github"
)

type input struct {
	Push   json.RawMessage `json:"push"`
	Config config          `json:"config"`
}

// config is the rules. A pattern is a name in which * stands for any text without a slash: "release/*" is release/1.4 but not
// release/1.4/fix. An empty list matches nothing.
type config struct {
	Branches      []string `json:"branches"`
	Tags          []string `json:"tags"`
	IgnoreSenders []string `json:"ignore_senders"` // logins, exact
}

type output struct {
	Notify bool        `json:"notify"`
	Reason string      `json:"reason"` // one sentence, for the log and for whoever asks why there was no message
	Kind   github.Kind `json:"kind"`
	Ref    string      `json:"ref"` // short name
}

func main() {
	log.SetFlags(0) // Keyfire gives each line of the log its time
	door.Main(func(in input) (output, error) {
		out, err := filter(in)
		if err == nil {
			log.Printf("notify: %t, because %s", out.Notify, out.Reason)
		}
		return out, err
	})
}

func filter(in input) (output, error) {
	if err := in.Config.check(); err != nil {
		return output{}, err
	}
	push, err := github.ParsePush(in.Push)
	if err != nil {
		return output{}, &door.Fail{Status: 422, Code: "not_a_push", Message: err.Error()}
	}
	out := output{Kind: push.Kind(), Ref: push.Ref}
	var noun string
	var patterns []string
	if branch, ok := push.Branch(); ok {
		noun, patterns, out.Ref = "branch", in.Config.Branches, branch
	} else if tag, ok := push.Tag(); ok {
		noun, patterns, out.Ref = "tag", in.Config.Tags, tag
	} else {
		out.Reason = fmt.Sprintf("%s is neither a branch nor a tag", push.Ref)
		return out, nil
	}
	if login := push.Sender.Login; slices.Contains(in.Config.IgnoreSenders, login) {
		out.Reason = fmt.Sprintf("pushes of %s are ignored", login)
		return out, nil
	}
	for _, pattern := range patterns {
		if ok, _ := path.Match(pattern, out.Ref); ok { // check has compiled every pattern
			out.Notify = true
			out.Reason = fmt.Sprintf("%s %s matches %s", noun, out.Ref, pattern)
			return out, nil
		}
	}
	out.Reason = fmt.Sprintf("%s %s matches none of %s", noun, out.Ref, list(patterns))
	return out, nil
}

func list(patterns []string) string {
	if len(patterns) == 0 {
		return "no patterns"
	}
	return strings.Join(patterns, ", ")
}

// check refuses a rule that could never be right, instead of letting it match nothing.
func (c config) check() error {
	for name, patterns := range map[string][]string{"branches": c.Branches, "tags": c.Tags} {
		for _, p := range patterns {
			if _, err := path.Match(p, ""); err != nil || p == "" {
				return fmt.Errorf("config.%s: %q is not a pattern; write for example main or release/*", name, p)
			}
		}
	}
	return nil
}
