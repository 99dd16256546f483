package scaffold

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestStrangersPlugin does what a stranger does with the files: go mod tidy and go test, in a module of its own. Only the version of
// Keyfire is this one.
func TestStrangersPlugin(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "legacy")
	written, err := Write(dir, Options{Name: "legacy", Version: "v0.0.0", Replace: root})
	if err != nil {
		t.Fatal(err)
	}
	if len(written) != 3 {
		t.Errorf("wrote %v, want three files", written)
	}
	main, err := os.ReadFile(filepath.Join(dir, "main.go"))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(main), "\n"); lines > 40 {
		t.Errorf("main.go has %d lines; a plugin is promised to take 40", lines)
	}
	// The sums of the server's module cover the plugin's, which imports less.
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go.sum"), sums, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"test", "-mod=mod", "./..."}, {"vet", "-mod=mod", "./..."}} {
		cmd := exec.Command("go", args...) // #nosec G204 -- the arguments are above
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS=", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	if out, err := exec.Command("gofmt", "-l", dir).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("gofmt: %s %v", out, err)
	}
}

func TestWriteOverwritesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(dir, Options{Name: "x", Version: "v1.0.0"}); err == nil {
		t.Error("wrote into a folder that has files")
	}
	for _, name := range []string{"", "X", "../x", "a b"} {
		if _, err := Write(filepath.Join(dir, "new"), Options{Name: name, Version: "v1.0.0"}); err == nil {
			t.Errorf("name %q was taken", name)
		}
	}
}
