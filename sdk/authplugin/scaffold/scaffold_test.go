package scaffold

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestWrite looks at the files. That they make a plugin that serves a trigger is TestStrangersPlugin of package cli.
func TestWrite(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "legacy")
	written, err := Write(dir, Options{Name: "legacy", Version: "v1.2.3"})
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
