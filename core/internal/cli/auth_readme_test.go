package cli

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The commands about keys work in the order in which they stand in the README, in one shell, with a workflow of the tests in the place of greet.
func TestKeysReadme(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../../auth/README.md")
	if err != nil {
		t.Fatal(err)
	}
	section, _, _ := strings.Cut(string(readme), "\n## Accounts and people\n")
	s := startServer(t)
	script, commands := "OLD_KEY=bk_live_0123456789abcdef01234567\n", 0
	for line := range strings.Lines(section) {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			script += command
			commands++
		}
	}
	if commands < 16 {
		t.Fatalf("the page has only %d commands about keys; is it written as this test reads it?", commands)
	}
	cmd := exec.Command("sh", "-eux", "-c", strings.ReplaceAll(script, "greet", "echo"))
	cmd.Env = cleanEnv("HOME="+t.TempDir(), "XDG_CONFIG_HOME=", "KEYFIRE_DATA="+s.data)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"updated key_", "urllib.request", "500 every month", "team=billing", "VALID", "imported key_", "disabled key_", "enabled key_", "revoked key_", "0 runs from"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in what was printed:\n%s", want, out)
		}
	}
}

// The commands of "Accounts and people" work in the order in which they stand there, with a password on standard input.
func TestAccountsAndPeopleReadme(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../../auth/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(readme), "\n## Accounts and people\n")
	section, _, _ = strings.Cut(section, "\n## ")
	s := startServer(t)
	home := t.TempDir()
	var printed strings.Builder
	commands := 0
	for line := range strings.Lines(section) {
		command, ok := strings.CutPrefix(line, "$ ")
		if !ok {
			continue
		}
		commands++
		cmd := exec.Command("sh", "-euc", strings.ReplaceAll(command, "http://127.0.0.1:8080", s.url))
		cmd.Env = cleanEnv("HOME="+home, "XDG_CONFIG_HOME=", "KEYFIRE_DATA="+s.data)
		cmd.Stdin = strings.NewReader("lamp-orchid-9-violet\nlamp-orchid-9-violet\n")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s%v\n%s", command, err, out)
		}
		printed.Write(out)
	}
	if commands < 18 {
		t.Fatalf("the section has only %d commands; is it written as this test reads it?", commands)
	}
	for _, want := range []string{"made the superuser root", "as root (superuser)", "role           superuser", "bob@example.com is operator", "as ada@example.com (owner)", "logged out of " + s.url, "disabled acme", "deleted acme"} {
		if !strings.Contains(printed.String(), want) {
			t.Errorf("%q is not in what was printed:\n%s", want, printed.String())
		}
	}
}

// The commands of the operator's page work in the order in which they stand there, in one directory.
func TestOperatingPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../../core/OPERATING.md")
	if err != nil {
		t.Fatal(err)
	}
	s := startServer(t)
	script, commands := "", 0
	for line := range strings.Lines(string(page)) {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			script += strings.ReplaceAll(command, "http://127.0.0.1:8080", s.url)
			commands++
		}
	}
	if commands < 9 {
		t.Fatalf("the page has only %d commands; is it written as this test reads it?", commands)
	}
	cmd := exec.Command("sh", "-euxc", script)
	cmd.Dir = t.TempDir()
	cmd.Env = cleanEnv("HOME="+t.TempDir(), "XDG_CONFIG_HOME=", "KEYFIRE_DATA="+s.data)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"# default", "keyfire.yaml", "keyfire.bak: ", "everything.json: ", "pepper.json and secrets.json are not in it", `{"status":"ok"}`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in what was printed:\n%s", want, out)
		}
	}
}
