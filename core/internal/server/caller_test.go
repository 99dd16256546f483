package server

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// A caller who goes away is no failure of the server: neither in the log nor in the span, whatever it was waiting for.
func TestCallerGoesAway(t *testing.T) {
	t.Parallel()
	b := setupForeign(t)
	compiling, left := make(chan struct{}), make(chan struct{})
	b.compile = func(ctx context.Context) error {
		close(compiling)
		<-ctx.Done()
		return fmt.Errorf("compile: %w", context.Cause(ctx))
	}
	running := make(chan struct{})
	b.executor.set("flow", func(context.Context, *core.Run) {
		running <- struct{}{}
		<-left
	})
	boss := b.adminKey()
	contentType, body := publication(t, [3]string{"workflow", "workflow.yaml", workflowFile("new", "")}, [3]string{"module", "./only.wasm", wasm + "\x00\x01x"})
	leave := func(during <-chan struct{}, method, target, key, body string, header ...string) {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		req := httptest.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		go func() {
			<-during
			cancel()
		}()
		w := httptest.NewRecorder()
		b.handler.ServeHTTP(w, req)
		if w.Code != statusGone {
			t.Errorf("%s %s: %d %s", method, target, w.Code, w.Body)
		}
	}
	leave(compiling, "PUT", "/v1/workflows/new", boss, body, "Content-Type", contentType)
	leave(running, "POST", "/v1/workflows/flow/runs", b.global, `{}`)
	leave(running, "POST", "/api/v1/process/flow", b.global, `{"inputs":{}}`)
	close(left)
	if logs := b.logs.String(); strings.Contains(logs, `"level":"ERROR"`) || strings.Contains(logs, `"status":500`) || strings.Count(logs, `"status":499`) != 3 {
		t.Error(logs)
	}
	if spans := b.spanText(); strings.Contains(spans, "internal") {
		t.Error(spans)
	}
}

// U1: whoever hangs up before the answer is in the audit log all the same.
func TestU1RefusalOfOneWhoHangsUp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	k, text := b.key(admin.NewKey{Scopes: []string{"run:workflow/open"}})
	ctx, cancel := context.WithCancel(context.Background())
	p, err := b.trigger.Authenticate(ctx, auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret(text)}, core.Origin{RequestID: "req_x"})
	b.must(err)
	cancel()
	_ = b.trigger.RefuseKnown(ctx, p, core.Origin{RequestID: "req_x"}, core.Errorf(core.CodeInsufficientScope, "not this one"))
	events, err := b.store.AuditEvents(context.Background(), core.DefaultAccount, core.AuditFilter{Action: core.ActionAuthRefuse}, core.Page{})
	b.must(err)
	if len(events.Items) != 1 || events.Items[0].KeyID != k.ID {
		t.Errorf("%+v", events.Items)
	}
}
