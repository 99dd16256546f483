package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/examples/nodes/internal/door"
)

func write(t *testing.T, event json.RawMessage, maxCommits int) output {
	t.Helper()
	in := input{Push: event}
	in.Config.MaxCommits = maxCommits
	got, err := message(in)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func event(t *testing.T, file string) json.RawMessage {
	t.Helper()
	b, err := os.ReadFile("../../../workflows/github-push/events/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMessageText(t *testing.T) {
	t.Parallel()
	tests := map[string]string{
		"branch-push.json":   "keyfire-examples/dispatch: iokafor-dev pushed 3 commits to branch main",
		"force-push.json":    "keyfire-examples/dispatch: mbaskar-ops force-pushed branch release/2.4 (was 345e86e)",
		"branch-delete.json": "keyfire-examples/dispatch: tlindqvist deleted branch release/2.3 (was e793052)",
		"tag-push.json":      "keyfire-examples/dispatch: tlindqvist created tag v2.4.0",
	}
	for file, want := range tests {
		if got := write(t, event(t, file), 5).Text; got != want {
			t.Errorf("%s: got %q, want %q", file, got, want)
		}
	}
}

func TestMessageBlocks(t *testing.T) {
	t.Parallel()
	got, err := json.Marshal(write(t, event(t, "branch-push.json"), 2).Blocks)
	if err != nil {
		t.Fatal(err)
	}
	const repository = "https://github.com/keyfire-examples/dispatch"
	want, err := json.Marshal([]block{
		section("*<" + repository + "|keyfire-examples/dispatch>*: <https://github.com/iokafor-dev|iokafor-dev> pushed 3 commits to branch `main`"),
		section("• <" + repository + "/commit/35e6bc84f0977d812cde2129d7e2d98397afc7ec|35e6bc8> Merge pull request #418 from keyfire-examples/capacity _Ines Okafor_\n" +
			"• <" + repository + "/commit/65aa8a1255b002e6421367a788a0d8b197c3d791|65aa8a1> Read vehicle capacity &amp; axle load from the fleet file _Ines Okafor_\n" +
			"_and 1 earlier commit_"),
		{Type: "context", Elements: []text{{Type: "mrkdwn", Text: "<" + repository + "/compare/f4982f445280...35e6bc84f097|Compare>"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A deleted branch has nothing to compare with.
func TestDeletedBranchHasOneBlock(t *testing.T) {
	t.Parallel()
	if got := write(t, event(t, "branch-delete.json"), 5).Blocks; len(got) != 1 {
		t.Errorf("%d blocks, want the headline only: %+v", len(got), got)
	}
}

// Whoever can push chooses branch names, commit messages, author names and addresses. None of them may become markup.
func TestHostilePush(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("a", 40)
	var commits []any
	for range 50 {
		commits = append(commits, map[string]any{
			"id": id, "url": "https://x.example/|<!here>", "message": "<!channel> " + strings.Repeat("&", 5000) + "\nmore",
			"author": map[string]any{"name": strings.Repeat("<!everyone>", 500)},
		})
	}
	hostile, err := json.Marshal(map[string]any{
		"ref": "refs/heads/`<!channel>`" + strings.Repeat("<", 5000), "before": id, "after": id, "commits": commits, "compare": "javascript:alert(1)",
		"repository": map[string]any{"full_name": "<!channel>/r", "html_url": "https://x.example/" + strings.Repeat("u", 5000)},
		"sender":     map[string]any{"login": "<@U1>", "html_url": "http://plain.example/"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := write(t, hostile, 100000)
	texts := []string{got.Text}
	for _, b := range got.Blocks {
		if b.Text != nil {
			texts = append(texts, b.Text.Text)
		}
		for _, e := range b.Elements {
			texts = append(texts, e.Text)
		}
	}
	for i, s := range texts {
		if strings.ContainsAny(s, "<>") {
			t.Errorf("text %d holds markup: %.200q", i, s)
		}
		if len(s) > maxSection {
			t.Errorf("text %d has %d bytes, more than %d", i, len(s), maxSection)
		}
		if strings.Count(s, "`")%2 != 0 || strings.Count(s, "`") > 2 {
			t.Errorf("text %d leaves its code span: %.200q", i, s)
		}
	}
	if last := texts[2]; !strings.HasSuffix(last, " earlier commits_") {
		t.Errorf("the list does not say that it was cut: ...%s", last[len(last)-80:])
	}
}

func TestMessageRefuses(t *testing.T) {
	t.Parallel()
	if _, err := message(input{Push: event(t, "tag-push.json")}); err == nil || !strings.Contains(err.Error(), "config.max_commits") {
		t.Errorf("without max_commits: %v", err)
	}
	in := input{Push: json.RawMessage(`{"action":"opened"}`)}
	in.Config.MaxCommits = 1
	_, err := message(in)
	var fail *door.Fail
	if !errors.As(err, &fail) || fail.Code != "not_a_push" {
		t.Errorf("another event: %v", err)
	}
}

func TestAction(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("b", 40)
	tests := []struct{ ref, flags, want string }{
		{"refs/heads/x", `"created":true`, "created branch x"},
		{"refs/heads/x", `"forced":true`, "force-pushed branch x (was bbbbbbb)"},
		{"refs/heads/x", `"forced":false`, "pushed 0 commits to branch x"},
		{"refs/tags/v1", `"forced":true`, "moved tag v1 (was bbbbbbb)"},
		{"refs/tags/v1", `"deleted":true`, "deleted tag v1 (was bbbbbbb)"},
		{"refs/notes/commits", `"created":true`, "updated notes/commits"},
	}
	for _, tt := range tests {
		e := fmt.Sprintf(`{"ref":%q,"before":%q,"after":%q,%s,"repository":{"full_name":"o/r"},"sender":{"login":"me"}}`, tt.ref, id, id, tt.flags)
		if got := write(t, json.RawMessage(e), 1).Text; got != "o/r: me "+tt.want {
			t.Errorf("%s %s: got %q, want %q", tt.ref, tt.flags, got, "o/r: me "+tt.want)
		}
	}
}
