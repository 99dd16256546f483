package server

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The programs of the products' documents, with the damage in their text undone and nothing changed but base URL and key, as the programs they are: curl, Python and
// Node. testdata/clients/requests.py stands in for the library of that name.
func TestForeignPrograms(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	srv := httptest.NewServer(f.handler)
	t.Cleanup(srv.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	want := map[string]string{
		"keyflow.sh":         `"status":"succeeded"`,
		"keyflow.py":         "succeeded ['Reference Document', 'Role Context', 'undefined']",
		"keyflow.mjs":        `"status":"succeeded"`,
		"miiflow.sh":         `"output":{"input_parameter_1":1}`,
		"miiflow.py":         "Status Code: 200\nResponse Body: ",
		"langflow_header.sh": `"result":{"text":""}`,
		"langflow_query.sh":  `"outputs":[`,
		"langflow.py":        "{'text': ''}\n{'text': ''}\nAn API key must be passed as query or header",
		"bifrost.sh":         `"status":"Success"`,
	}
	files, err := filepath.Glob("testdata/clients/*")
	if err != nil || len(files) != len(want)+1 {
		t.Fatalf("%d programs, %v", len(files), err)
	}
	for name, says := range want {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if filepath.Ext(name) == ".sh" {
				program(t, "curl")
			}
			interpreter := program(t, map[string]string{".sh": "sh", ".py": "python3", ".mjs": "node"}[filepath.Ext(name)])
			cmd := exec.CommandContext(t.Context(), interpreter, filepath.Join("testdata", "clients", name))
			cmd.Env = append(os.Environ(), "BASE="+srv.URL, "GLOBAL="+f.global, "BOUND="+f.bound, "FLOW_ID="+flowID, "no_proxy=*", "PYTHONDONTWRITEBYTECODE=1")
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), says) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
