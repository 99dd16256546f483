package server

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// TestTape: a tape is read by those who may also publish, and a module with it.
func TestTape(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.publish("taped", "")
	b.executor.set("taped", func(_ context.Context, run *core.Run) {
		failed := &core.StepError{Class: core.ClassFailed, Message: "no"}
		run.Status, run.Error = core.RunFailed, &core.RunError{Code: core.CodeRunFailed, Message: "no", Step: "only"}
		run.Steps = []core.Step{
			{ID: "only", Status: core.StepFailed, Attempts: []core.Attempt{
				{Number: 1, StartedAt: time.Now(), Error: failed, Tape: core.TapeKept, Recording: []byte(`{"keyfire_tape":1,"n":"first"}`)},
				{Number: 2, StartedAt: time.Now(), Error: failed, Tape: core.TapeKept, Recording: []byte(`{"keyfire_tape":1,"n":"second \u003c"}`)},
				{Number: 3, StartedAt: time.Now(), Error: failed, Tape: core.TapeTooLarge},
			}},
			{ID: "large", Status: core.StepFailed, Attempts: []core.Attempt{{Number: 1, StartedAt: time.Now(), Tape: core.TapeTooLarge}}},
			{ID: "plain", Status: core.StepFailed, Attempts: []core.Attempt{{Number: 1, StartedAt: time.Now()}}},
		}
	})
	_, trigger := b.key(admin.NewKey{Scopes: []string{"run:workflow/taped"}})
	_, reader := b.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll, auth.ScopeRunsRead}})
	_, viewer := b.key(admin.NewKey{Type: auth.AdminKey, Scopes: []string{auth.ScopeRunsRead, auth.ScopeWorkflowsRead}})
	_, publisher := b.key(admin.NewKey{Type: auth.AdminKey, Scopes: []string{auth.ScopeWorkflowsWrite}})
	run := b.call("POST", "/v1/workflows/taped/runs", trigger, `{}`).header.Get("Keyfire-Run-Id")
	path := "/v1/runs/" + run + "/steps/"
	for name, key := range map[string]string{"the key that started the run": trigger, "a trigger key that reads runs": reader, "who reads workflows": viewer} {
		if r := b.call("GET", path+"only/tape", key, "").want(http.StatusForbidden); strings.Contains(string(r.body), "keyfire_tape") {
			t.Errorf("%s got %s", name, r.body)
		}
		b.call("GET", "/v1/modules/"+digestOf(t, b, w), key, "").want(http.StatusForbidden)
	}
	b.call("GET", path+"only/tape", publisher, "").want(http.StatusNotFound) // for it there is no such run
	b.call("GET", path+"only/tape", "", "").want(http.StatusUnauthorized)

	boss := b.adminKey()
	for query, want := range map[string]string{"": `"second \u003c"`, "?attempt=1": `"first"`, "?attempt=2": `"second \u003c"`} {
		r := b.call("GET", path+"only/tape"+query, boss, "").want(http.StatusOK)
		if got := strings.TrimSpace(string(r.body)); got != `{"keyfire_tape":1,"n":`+want+`}` || r.header.Get("Keyfire-Run-Id") != run {
			t.Errorf("%s: %s", query, got)
		}
	}
	for target, says := range map[string]string{
		"only/tape?attempt=3": "too large", "only/tape?attempt=4": "record: failures", "large/tape": "too large", "plain/tape": "record: failures", "other/tape": "no such step",
	} {
		if r := b.call("GET", path+target, boss, "").want(http.StatusNotFound); !strings.Contains(string(r.body), says) {
			t.Errorf("%s: %s", target, r.body)
		}
	}
	b.call("GET", path+"only/tape?attempt=0", boss, "").want(http.StatusBadRequest)
	steps := b.call("GET", "/v1/runs/"+run, boss, "").want(http.StatusOK).object()["steps"].([]any)
	for i, want := range []bool{true, false, false} {
		if got := steps[i].(map[string]any)["tape"]; got != want {
			t.Errorf("step %d of the run says %v", i+1, got)
		}
	}
	attempts := b.call("GET", path+"only", boss, "").want(http.StatusOK).object()["attempts"].([]any)
	for i, want := range []any{"kept", "kept", "too_large"} {
		if got := attempts[i].(map[string]any)["tape"]; got != want {
			t.Errorf("attempt %d says %v", i+1, got)
		}
	}

	if r := b.call("GET", "/v1/modules/"+digestOf(t, b, w), boss, "").want(http.StatusOK); string(r.body) != wasm || r.header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("the module is %q, %s", r.body, r.header.Get("Content-Type"))
	}
	b.call("GET", "/v1/modules/sha256:"+strings.Repeat("0", 64), boss, "").want(http.StatusNotFound)
	b.call("GET", "/v1/modules/else", boss, "").want(http.StatusNotFound)
}

func digestOf(t *testing.T, b *bundle, w core.Workflow) string {
	t.Helper()
	_, v, err := b.admin.Workflow(t.Context(), b.boss, w.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	return v.Definition.Nodes[0].Module
}
