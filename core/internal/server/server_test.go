package server

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestMainPath(t *testing.T) {
	t.Parallel()
	b := setup(t)
	boss := b.adminKey()

	ct, body := publication(t, [3]string{"workflow", "workflow.yaml", workflowFile("greet", "")}, [3]string{"module", "./only.wasm", wasm})
	w := b.call("PUT", "/v1/workflows/greet", boss, body, "Content-Type", ct).want(http.StatusCreated).object()
	if w["version"] != 1.0 || w["name"] != "greet" || w["enabled"] != true {
		t.Errorf("workflow %v", w)
	}
	b.call("PUT", "/v1/workflows/greet", boss, body, "Content-Type", ct).want(http.StatusOK)

	made := b.call("POST", "/v1/keys", boss, `{"name":"ci","workflow":"greet","max_runs":2}`).want(http.StatusCreated)
	if made.header.Get("Cache-Control") != "no-store" {
		t.Error("a secret may be stored by caches")
	}
	k := made.object()
	secret, _ := k["secret"].(string)
	if k["object"] != "key" || k["runs_remaining"] != 2.0 || len(secret) != 54 {
		t.Errorf("key %v", k)
	}
	expires, err := time.Parse(time.RFC3339, k["expires_at"].(string))
	if err != nil || time.Until(expires) < 89*24*time.Hour || time.Until(expires) > 91*24*time.Hour {
		t.Errorf("expires_at %v", k["expires_at"])
	}

	r := b.call("POST", "/v1/workflows/greet/runs", secret, `{"input":{"name":"Ada"},"metadata":{"crm_id":"42"}}`).want(http.StatusOK)
	run := r.object()
	if run["status"] != "succeeded" || run["output"].(map[string]any)["name"] != "Ada" || r.header.Get("Keyfire-Run-Id") != run["id"] || r.header.Get("Keyfire-Run-Status") != "succeeded" {
		t.Errorf("run %s %v", r.body, r.header)
	}
	b.call("POST", "/v1/trigger", secret, `{"input":{"name":"Bob"}}`).want(http.StatusOK)
	p := b.call("POST", "/v1/trigger", secret, `{}`).problem(http.StatusTooManyRequests, "quota_exhausted")
	if p.Retryable {
		t.Error("quota_exhausted is not retryable")
	}

	id := run["id"].(string)
	b.call("GET", "/v1/runs/"+id, secret, "").want(http.StatusOK)
	b.call("GET", "/v1/runs/"+id+"/steps/only", secret, "").want(http.StatusOK)
	logs := b.call("GET", "/v1/runs/"+id+"/logs?level=error", secret, "").want(http.StatusOK).object()
	if lines := logs["data"].([]any); len(lines) != 1 || lines[0].(map[string]any)["message"] != "oh" {
		t.Errorf("logs %v", logs)
	}
	if p := b.call("GET", "/v1/runs/"+id+"/logs?step=olny", secret, "").problem(http.StatusBadRequest, "invalid_request"); !strings.Contains(p.Detail+fmt.Sprint(p.Errors), "has only") {
		t.Errorf("the log of a step that the run does not have: %+v", p)
	}
	if p := b.call("POST", "/v1/workflows/greet/runs/", boss, `{}`).problem(http.StatusNotFound, "not_found"); !strings.Contains(p.Detail, "slash") {
		t.Errorf("a slash at the end: %+v", p)
	}
	b.call("GET", "/v1/runs", secret, "").problem(http.StatusForbidden, "insufficient_scope")
	list := b.call("GET", "/v1/runs?metadata.crm_id=42&workflow=greet", boss, "").want(http.StatusOK).object()
	if data := list["data"].([]any); len(data) != 1 || data[0].(map[string]any)["id"] != id || data[0].(map[string]any)["input"] != nil {
		t.Errorf("list %v", list)
	}
	b.call("GET", "/v1/keys", boss, "").want(http.StatusOK)
	b.call("DELETE", "/v1/keys/"+k["id"].(string)+"?reason=leaked", boss, "").want(http.StatusNoContent)
	b.call("POST", "/v1/trigger", secret, `{}`).problem(http.StatusUnauthorized, "key_revoked")
	audit := b.call("GET", "/v1/audit", boss, "").want(http.StatusOK).object()
	if len(audit["data"].([]any)) < 6 {
		t.Errorf("audit %v", audit)
	}
	b.call("GET", "/v1/workflows/greet@1", boss, "").want(http.StatusOK)
	b.call("GET", "/v1/workflows/greet/versions", boss, "").want(http.StatusOK)
	b.call("POST", "/v1/workflows/greet/disable", boss, "").want(http.StatusOK)
	b.call("GET", "/healthz", "", "").want(http.StatusOK)
	b.call("GET", "/readyz", "", "").want(http.StatusOK)
	b.call("GET", "/openapi.json", "", "").want(http.StatusOK)
}
