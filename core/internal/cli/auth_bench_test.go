package cli

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/plugins"
)

// BenchmarkTriggerAuth starts the same workflow with a built-in key and with a credential that a plugin judges. The difference is the price of
// the process line.
func BenchmarkTriggerAuth(b *testing.B) {
	data := filepath.Join(b.TempDir(), "data")
	if err := copyDir(data, filepath.Join(sharedDir(b), "data")); err != nil {
		b.Fatal(err)
	}
	plugin, err := exec.LookPath("keyfire-auth-test")
	if err != nil {
		b.Fatal(err)
	}
	digest, err := plugins.Digest(plugin)
	if err != nil {
		b.Fatal(err)
	}
	config := writeFile(b, "keyfire.yaml", fmt.Sprintf(`auth:
  - key: {}
  - plugin: {name: legacy, path: %q, sha256: %q, required: true, prefixes: [legacy_], accounts: [acct_default], scopes: ["run:workflow/echo"], timeout: 5s}
`, plugin, digest))
	var log bytes.Buffer
	s, err := launch(data, &log, "--config", config, "--log-level", "error")
	if err != nil {
		b.Fatalf("%v\n%s", err, log.String())
	}
	defer func() { _ = s.stop() }()
	create := exec.Command("keyfire", "keys", "create", "--name", "bench", "--workflow", "echo")
	create.Env = cleanEnv("KEYFIRE_DATA=" + data)
	key, err := create.Output()
	if err != nil {
		b.Fatal(err)
	}
	for _, tc := range []struct{ name, credential string }{{"key", strings.TrimSpace(string(key))}, {"plugin", "legacy_alice"}} {
		b.Run(tc.name, func(b *testing.B) {
			for b.Loop() {
				req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, s.url+"/v1/workflows/echo/runs", strings.NewReader(`{"input":{"n":1}}`))
				if err != nil {
					b.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer "+tc.credential)
				req.Header.Set("Content-Type", "application/json")
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					b.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if err != nil || res.StatusCode != http.StatusOK {
					b.Fatalf("%d %s %v", res.StatusCode, body, err)
				}
			}
		})
	}
}
