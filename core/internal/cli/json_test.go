package cli

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestJSON proves that with --json a command whose result is not an object of the API prints JSON all the same, which says what it is.
func TestJSON(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "node.js"), []byte("export default () => 1;\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"KEYFIRE_DATA=" + s.data}
	setup := exec.Command("sh", "-e", "-c", `echo a-value-of-it | keyfire secrets set TOKEN
echo a long password of hers | keyfire users create ada --role viewer
keyfire accounts create acme && keyfire accounts disable acme`)
	setup.Env = cleanEnv(env...)
	if out, err := setup.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	public := ""
	for _, c := range []struct {
		object string
		code   int
		args   []string
	}{
		{"secret", 0, []string{"secrets", "rm", "TOKEN"}},
		{"user", 0, []string{"users", "delete", "ada"}},
		{"account", 0, []string{"accounts", "delete", "acme"}},
		{"workflow", 0, []string{"workflows", "delete", "echo"}},
		{"list", 0, []string{"node", "new", "--lang", "javascript", "hello"}},
		{"engine", 0, []string{"engine", "show"}},
		{"engine", 0, []string{"engine", "install", scriptEngine(t)}},
		{"config_check", 0, []string{"config", "check"}},
		{"module_key", 0, []string{"module", "keygen", "ours"}},
		{"list", 0, []string{"module", "sign", "--key", "ours.key", "node.js"}},
		{"list", 0, []string{"module", "verify", "node.js", "--key"}},
		{"list", exitInvalid, []string{"module", "verify", "hello/node.js", "--key"}},
	} {
		if c.args[len(c.args)-1] == "--key" {
			c.args = append(c.args, public)
		}
		out, errs, code := runKeyfire(t, dir, env, append(c.args, "--json")...)
		var got struct {
			Object string `json:"object"`
			Public string `json:"public"`
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil || got.Object != c.object || code != c.code {
			t.Errorf("keyfire %v --json: exit %d, %v\n%s%s", c.args, code, err, out, errs)
		}
		if got.Public != "" {
			public = got.Public
		}
	}
}
