package cli

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

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
