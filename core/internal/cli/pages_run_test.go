package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// command is one command of a page, with what the page says that it prints, if it does.
type command struct{ text, prints string }

// commandsOf reads the commands of a page: the lines of a block of sh behind "$ ". A block without a language, or of json, right behind a block of
// one command is what that prints.
func commandsOf(t *testing.T, page string) []command {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../..", page))
	if err != nil {
		t.Fatal(err)
	}
	var commands []command
	inBlock, language, alone := false, "", false
	for line := range strings.Lines(string(text)) {
		switch {
		case strings.HasPrefix(line, "```"):
			inBlock = !inBlock
			if inBlock {
				language = strings.TrimSpace(line[3:])
				alone = alone && language != "sh"
			} else {
				alone = language == "sh"
			}
		case !inBlock:
			alone = alone && strings.TrimSpace(line) == ""
		case language == "sh":
			if begin, ok := strings.CutPrefix(line, "$ "); ok {
				commands = append(commands, command{text: begin})
			} else if len(commands) > 0 {
				commands[len(commands)-1].text += line
			}
		case alone:
			commands[len(commands)-1].prints += line
		}
	}
	if len(commands) == 0 {
		t.Fatalf("%s has no commands; is it written as this test reads it?", page)
	}
	return commands
}

// The commands of the examples print what their pages say, on the server of make run, and those of the pages for callers and for authors of workflows work there, in the order in which they stand.
func TestPagesForCallersAndAuthors(t *testing.T) {
	t.Parallel()
	r := makeRun(t, true)

	for _, example := range []string{"greet", "csv-report", "github-push"} {
		for _, c := range commandsOf(t, "examples/workflows/"+example+"/README.md") {
			if strings.HasPrefix(c.text, "cd examples/nodes ") {
				inNodes(t, c.text)
				continue
			}
			got := r.shell(t, strings.TrimSpace(c.text)+" 2>&1 || echo FAILED")
			if failed := strings.HasSuffix(got, "FAILED\n"); failed != strings.HasPrefix(c.prints, "keyfire: ") {
				t.Errorf("%s: %sprints\n%s", example, c.text, got)
			}
			shown, _, _ := strings.Cut(c.prints, "\n...")
			if shown == "" || !strings.Contains(got, shown) {
				t.Errorf("%s: %sprints\n%s\nand not, as its page says,\n%s", example, c.text, got, c.prints)
			}
		}
	}

	script := "KEY=$(bin/keyfire keys create --name caller --workflow greet)\n"
	for _, c := range commandsOf(t, "core/README.md") {
		script += c.text
	}
	got := r.shell(t, strings.ReplaceAll(script, "http://127.0.0.1:8080", r.url))
	for _, want := range []string{`"output":{"greeting":"Hello, Ada"}`, `"status":"queued"`, `"step":"greet"`, "event: run.finished"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not in what the commands for callers print:\n%s", want, tail(got, 6000))
		}
	}

	script = ""
	for _, c := range commandsOf(t, "runtime/README.md") {
		if strings.HasPrefix(c.text, "cd examples/nodes ") {
			inNodes(t, c.text)
			continue
		}
		script += c.text
	}
	got = r.shell(t, script)
	for _, want := range []string{"unchanged csv-report@1", "succeeded", "validate: 1225 orders accepted, 15 lines rejected", "replayed  identical", "greet.tape\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not in what the commands for authors print:\n%s", want, tail(got, 6000))
		}
	}
}

// inNodes runs a command that compiles or runs something of examples/nodes, with what it writes in a directory of the test.
func inNodes(t *testing.T, text string) {
	t.Helper()
	out := t.TempDir()
	for _, dir := range []string{"../workflows/csv-report/nodes", "../workflows/greet/nodes", "../workflows/csv-report"} {
		text = strings.ReplaceAll(text, dir, out)
	}
	cmd := exec.Command("sh", "-euc", text)
	cmd.Dir = "../../.."
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s%v\n%s", text, err, said)
	}
}
