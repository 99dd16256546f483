// Message writes a push down as a chat message in the blocks of Slack, with a plain text for notifications.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/keyfire/keyfire/examples/nodes/internal/door"
	"github.com/keyfire/keyfire/examples/nodes/internal/github"
)

type input struct {
	Push   json.RawMessage `json:"push"`
	Config struct {
		MaxCommits int `json:"max_commits"` // how many commits to list
	} `json:"config"`
}

// output is the body of Slack's chat.postMessage and of its incoming webhooks.
type output struct {
	Text   string  `json:"text"`
	Blocks []block `json:"blocks"`
}

type block struct {
	Type     string `json:"type"`
	Text     *text  `json:"text,omitempty"`
	Elements []text `json:"elements,omitempty"`
}

type text struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

func section(mrkdwn string) block {
	return block{Type: "section", Text: &text{Type: "mrkdwn", Text: mrkdwn}}
}

// Whoever can push chooses most of these texts. With these bounds a headline and each line of commits fit into a section.
const (
	maxSection = 3000 // characters Slack takes in one section
	maxRef     = 200  // characters of the name of a branch or tag
	maxTitle   = 72   // characters of a commit's first line
	maxName    = 40   // characters of an author's name
	maxURL     = 500  // bytes of a link
)

func main() { door.Main(message) }

func message(in input) (output, error) {
	if in.Config.MaxCommits < 1 {
		return output{}, errors.New("config.max_commits is missing or below 1; say how many commits to list")
	}
	push, err := github.ParsePush(in.Push)
	if err != nil {
		return output{}, &door.Fail{Status: 422, Code: "not_a_push", Message: err.Error()}
	}
	out := headline(push)
	if len(push.Commits) > 0 {
		out.Blocks = append(out.Blocks, section(commits(push.Commits, in.Config.MaxCommits)))
	}
	if push.Compare != "" && !push.Deleted {
		out.Blocks = append(out.Blocks, block{Type: "context", Elements: []text{{Type: "mrkdwn", Text: link(push.Compare, "Compare")}}})
	}
	return out, nil
}

// headline starts the message with one sentence: who did what to which ref.
func headline(p github.Push) output {
	name := strings.TrimPrefix(p.Ref, "refs/")
	if short, ok := p.Branch(); ok {
		name = short
	} else if short, ok := p.Tag(); ok {
		name = short
	}
	name = cut(name, maxRef)
	did, detail := action(p)
	return output{
		Text: escape(fmt.Sprintf("%s: %s %s %s%s", p.Repository.FullName, p.Sender.Login, did, name, detail)),
		Blocks: []block{section(fmt.Sprintf("*%s*: %s %s `%s`%s", link(p.Repository.HTMLURL, p.Repository.FullName),
			link(p.Sender.HTMLURL, p.Sender.Login), did, escape(strings.ReplaceAll(name, "`", "'")), detail))},
	}
}

// action returns what stands before and behind the name of the ref. Replaced and deleted history is named by the commit that
// was lost, because that is what somebody who wants it back needs.
func action(p github.Push) (did, detail string) {
	was := fmt.Sprintf(" (was %s)", abbreviate(p.Before))
	switch p.Kind() {
	case github.BranchPushed:
		return "pushed " + count(len(p.Commits)) + " to branch", ""
	case github.BranchForced:
		return "force-pushed branch", was
	case github.BranchCreated:
		return "created branch", ""
	case github.BranchDeleted:
		return "deleted branch", was
	case github.TagCreated:
		return "created tag", ""
	case github.TagMoved:
		return "moved tag", was
	case github.TagDeleted:
		return "deleted tag", was
	}
	return "updated", ""
}

func count(commits int) string {
	if commits == 1 {
		return "1 commit"
	}
	return fmt.Sprintf("%d commits", commits)
}

// commits lists the newest commits, as many as most and the size of a section allow.
func commits(list []github.Commit, most int) string {
	const room = maxSection - len("\n_and 2147483647 earlier commits_")
	var b strings.Builder
	shown := 0
	for ; shown < min(len(list), most); shown++ {
		c := list[len(list)-1-shown]
		title, _, _ := strings.Cut(strings.TrimSpace(c.Message), "\n")
		line := fmt.Sprintf("• %s %s _%s_", link(c.URL, abbreviate(c.ID)), escape(cut(title, maxTitle)), escape(cut(c.Author.Name, maxName)))
		if b.Len()+len("\n")+len(line) > room {
			break
		}
		if shown > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(line)
	}
	if rest := len(list) - shown; rest > 0 {
		fmt.Fprintf(&b, "\n_and %s_", strings.Replace(count(rest), " ", " earlier ", 1))
	}
	return b.String()
}

func abbreviate(commit string) string { return commit[:min(len(commit), 7)] }

func cut(s string, most int) string {
	if r := []rune(strings.TrimSpace(s)); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return strings.TrimSpace(s)
}

// link makes a link of Slack's, or plain text when address is not one: the event comes from outside, and a crafted address
// could otherwise close the link and go on with markup of its own.
func link(address, label string) string {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" || len(address) > maxURL || strings.ContainsAny(address, "<>|\"` \n") {
		return escape(label)
	}
	return "<" + address + "|" + escape(label) + ">"
}

// escape takes the meaning from what Slack would read as markup, so that a commit message cannot ring everybody with <!channel>.
var escape = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace
