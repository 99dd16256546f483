package cli

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/keyfire/keyfire/core/internal/telemetry"
	"github.com/keyfire/keyfire/plugins"
)

// A trace goes on behind the process line: the service that a plugin asks is given the context of the server's span for that call, which is in the trace of
// the trigger, below the span of the backend.
func TestTraceThroughAPlugin(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 1)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Header.Get("Traceparent")
		w.Header().Set("X-Auth-Subject", "alice")
	}))
	defer service.Close()
	plugin := builtPlugin(t, "forwardauth")
	digest, err := plugins.Digest(plugin)
	if err != nil {
		t.Fatal(err)
	}
	config := writeFile(t, "keyfire.yaml", fmt.Sprintf(`auth:
  - key: {}
  - plugin: {name: sso, path: %q, sha256: %s, required: true, prefixes: [sso_], accounts: [acct_default], scopes: ["run:workflow/echo"], timeout: 5s,
      config: {url: %q, subject_header: X-Auth-Subject, scopes: ["run:workflow/echo"]}}
`, plugin, digest, service.URL))
	data := filepath.Join(t.TempDir(), "data")
	copyData(t, data)
	exported := &keptSpans{}
	url, stop := serveInProcess(t, data, telemetry.Config{SpanExporter: exported}, "KEYFIRE_CONFIG="+config)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v1/workflows/echo/runs", strings.NewReader(`{"input":1}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer sso_of-alice")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), `"principal":"sso:alice"`) {
		t.Fatalf("%d %s %v", resp.StatusCode, body, err)
	}
	if code := stop(); code != exitOK {
		t.Fatalf("the server ended with status %d", code)
	}
	spans := map[string]tracetest.SpanStub{}
	for _, s := range exported.take() {
		spans[s.Name] = s
	}
	for name, parent := range map[string]string{"auth sso": "trigger", "plugin sso": "auth sso"} {
		if s, ok := spans[name]; !ok || s.Parent.SpanID() != spans[parent].SpanContext.SpanID() {
			t.Errorf("span %q is not below %q: %+v", name, parent, s)
		}
	}
	call := spans["plugin sso"].SpanContext
	if got, want := <-asked, fmt.Sprintf("00-%s-%s-01", call.TraceID(), call.SpanID()); got != want {
		t.Errorf("the service was given the context %q, want %q", got, want)
	}
	if text := attributesText(spans["plugin sso"]); !strings.Contains(text, telemetry.AttrPluginVerdict+"=allow;") || strings.Contains(text, "of-alice") {
		t.Errorf("attributes of the call: %s", text)
	}
}
