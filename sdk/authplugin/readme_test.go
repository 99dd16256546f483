package authplugin

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadmePlugin makes a module of the README's two files, in an empty directory outside of the repository, and runs its conformance test.
func TestReadmePlugin(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	blocks := regexp.MustCompile("(?ms)^```go\n(.*?)^```$").FindAllStringSubmatch(string(readme), -1)
	if len(blocks) != 2 {
		t.Fatalf("the README has %d blocks of Go, want main.go and main_test.go", len(blocks))
	}
	for i, name := range []string{"main.go", "main_test.go"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(blocks[i][1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(blocks[0][1], "\n"); n > 40 {
		t.Errorf("main.go has %d lines, 40 are promised", n)
	}
	// The sums of the server's module cover the plugin's, which imports less.
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	module := "module keyfire-auth-legacy\n\ngo 1.26.0\n\nrequire github.com/keyfire/keyfire v0.0.0\n\nreplace github.com/keyfire/keyfire => " + root + "\n"
	for name, content := range map[string][]byte{"go.mod": []byte(module), "go.sum": sums} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "test", "-mod=mod", "-v", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS=-trimpath", "GOWORK=off", "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestConformance/ends_with_the_server") {
		t.Errorf("go test: %v\n%s", err, out)
	}
}
