package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestStrangersPlugin does what sdk/authplugin's README says, command by command, in an empty directory outside of the repository: a new plugin passes the
// conformance kit, is built, named in a configuration, checked, and serves a trigger.
func TestStrangersPlugin(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"curl", "sha256sum", "go"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed", tool)
			}
			t.Skipf("SKIPPED: %s is not installed", tool)
		}
	}
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "sdk/authplugin/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	readme, _, _ := strings.Cut(string(text), "## The contract")
	commands := regexp.MustCompile(`(?m)^\$ (.*)$`).FindAllStringSubmatch(readme, -1)
	config := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindStringSubmatch(readme)
	if len(commands) != 10 || config == nil {
		t.Fatalf("the README has %d commands before its contract; is it written as this test reads it?", len(commands))
	}
	data := filepath.Join(t.TempDir(), "data")
	copyData(t, data)
	dir := t.TempDir()
	env := cleanEnv("KEYFIRE_DATA="+data, "GOFLAGS=-trimpath", "GOWORK=off", "CGO_ENABLED=0", "GOSUMDB=off")
	var server *testServer
	var digests []string // that sha256sum printed
	for _, c := range commands {
		command, _, _ := strings.Cut(c[1], "   #")
		command = strings.TrimSpace(command)
		switch {
		case strings.HasPrefix(command, "cd "):
			dir = filepath.Join(dir, strings.TrimPrefix(command, "cd "))
			continue
		case strings.HasPrefix(command, "keyfire plugin check"):
			file := strings.NewReplacer("/home/you/legacy", dir, "<sha256 of the plugin>", digests[0], "<sha256 of the token>", digests[1]).Replace(config[1])
			if err := os.WriteFile(filepath.Join(dir, "keyfire.yaml"), []byte(file), 0o600); err != nil {
				t.Fatal(err)
			}
		case strings.HasPrefix(command, "keyfire serve"):
			server = startServerOn(t, data, "--config", filepath.Join(dir, "keyfire.yaml"))
			continue
		}
		command = strings.ReplaceAll(command, "~/keyfire", root)
		if server != nil {
			command = strings.NewReplacer("http://127.0.0.1:8080", server.url, "/greet/", "/echo/").Replace(command)
		}
		sh := exec.Command("sh", "-euc", command) // #nosec G204 -- the README's own
		sh.Dir, sh.Env = dir, env
		out, err := sh.CombinedOutput()
		if err != nil {
			if strings.HasPrefix(command, "go mod tidy") && os.Getenv("CI") != "true" {
				t.Skipf("SKIPPED: go mod tidy needs the network: %s", out)
			}
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		switch {
		case strings.Contains(command, "sha256sum"):
			digests = append(digests, strings.Fields(string(out))[0])
		case strings.HasPrefix(command, "keyfire plugin check") && !regexp.MustCompile(`(?m)^legacy +ok `).Match(out):
			t.Errorf("%s: %s", command, out)
		case strings.HasPrefix(command, "curl"):
			for _, want := range []string{`"status":"succeeded"`, `"principal":"legacy:alice"`, `"output":{"name":"Ada"}`} {
				if !strings.Contains(string(out), want) {
					t.Errorf("%s: want %s in %s", command, want, out)
				}
			}
		}
	}
	if server == nil {
		t.Error("the README starts no server")
	}
}
