package server

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// hooks admits webhooks whose signature is the length of their body, as auth/hookauth does for those that are signed.
type hooks struct{ b *bundle }

func (*hooks) Name() string { return "webhook" }

func (h *hooks) Authenticate(ctx context.Context, c auth.Credential) (auth.Principal, error) {
	if !c.Hook || c.Place != auth.PlaceHeader {
		return auth.Principal{}, auth.ErrNotApplicable
	}
	w, spec, err := h.b.trigger.Webhook(ctx, c.Workflow)
	if err != nil {
		return auth.Principal{}, core.Errorf(core.CodeInvalidKey, "no")
	}
	body, err := c.Body()
	if err != nil {
		return auth.Principal{}, err
	}
	if got := c.Header["Webhook-Signature"]; len(got) != 1 || got[0] != strconv.Itoa(len(body)) || len(c.Header["Webhook-Timestamp"]) != 1 {
		return auth.Principal{}, core.Errorf(core.CodeInvalidKey, "no")
	}
	return auth.Principal{Account: w.Account, Subject: "webhook:" + spec.Secret, Backend: "webhook", Scopes: []string{auth.ScopeRunWorkflow + w.ID}}, nil
}

func setupHooks(t *testing.T) *bundle {
	t.Helper()
	h := &hooks{}
	h.b = setup(t, func(tc *trigger.Config, _ *Config) {
		keys := tc.Chain
		tc.Chain = auth.NewChain(noop.NewTracerProvider().Tracer(""), h, &chained{keys})
	})
	return h.b
}

// chained is a chain as the last link of another one.
type chained struct{ *auth.Chain }

func (*chained) Name() string { return "apikey" }

// signed sends a webhook that is signed as hooks wants it.
func (b *bundle) signed(method, target, contentType, id, body string) *reply {
	b.t.Helper()
	return b.call(method, target, "", body, "Content-Type", contentType, "Webhook-Signature", strconv.Itoa(len(body)), "Webhook-Id", id, "Webhook-Timestamp", "1")
}

// inputOf waits for the run of an accepted webhook and returns its input.
func (b *bundle) inputOf(r *reply) (input string, run *core.Run) {
	b.t.Helper()
	var accepted HookAccepted
	b.must(json.Unmarshal(r.want(202).body, &accepted))
	if accepted.RunID != r.header.Get("Keyfire-Run-Id") || accepted.Status != "queued" || accepted.Duplicate || r.header.Get("Location") != "/v1/runs/"+accepted.RunID {
		b.t.Errorf("%s %v", r.body, r.header)
	}
	run, err := b.store.Run(context.Background(), core.DefaultAccount, accepted.RunID)
	b.must(err)
	return string(run.Input), run
}

func TestHookTakesAnyBody(t *testing.T) {
	t.Parallel()
	b := setupHooks(t)
	w := b.publish("crm/push", "  webhook: {verify: standard-webhooks, secret: CRM_SECRET}\n")
	for _, tc := range []struct{ contentType, body, input string }{
		{"application/json", ` {"b": 1.0, "a": [1e2]} `, ` {"b": 1.0, "a": [1e2]} `},
		{"application/cloudevents+json; charset=utf-8", `{"id":"1"}`, `{"id":"1"}`},
		{"text/plain", "<a> & \"b\"\n\u00e9", `"<a> & \"b\"\né"`},
		{"text/plain; charset=latin1", "\xe9", `"6Q=="`},
		{"text/plain", "\xe9", `"6Q=="`},
		{"application/x-www-form-urlencoded", "text=hello+world&user=1", `"text=hello+world&user=1"`},
		{"application/soap+xml", "<x/>", `"<x/>"`},
		{"application/octet-stream", "{}", `"e30="`},
		{"image/png", "\x89PNG", `"iVBORw=="`},
		{"", `{"n":1}`, `{"n":1}`},
		{"", `{"n":1`, `"{\"n\":1"`},
		{"", "\xff\x00", `"/wA="`},
		{"application/json", "", `{}`},
	} {
		if input, run := b.inputOf(b.signed("POST", "/v1/hooks/crm/push", tc.contentType, "", tc.body)); input != tc.input || run.Trigger.Type != "webhook" || run.Trigger.Principal != "webhook:CRM_SECRET" {
			t.Errorf("%s %q: input %s, want %s; %+v", tc.contentType, tc.body, input, tc.input, run.Trigger)
		}
	}
	if input, _ := b.inputOf(b.signed("PUT", "/v1/hooks/crm%2Fpush@1", "application/json", "", `1`)); input != "1" {
		t.Errorf("PUT, pinned to a version: %s", input)
	}
	_, key := b.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}})
	if input, _ := b.inputOf(b.call("GET", "/v1/hooks/"+w.ID+"?a=1&b=2&b=3&c", key, "")); input != `{"a":"1","b":["2","3"],"c":""}` {
		t.Errorf("GET: %s", input)
	}
	// Whoever has seen the signature of an empty body could put anything into the query.
	b.signed("GET", "/v1/hooks/"+w.ID+"?a=1", "", "", "").problem(400, core.CodeInvalidRequest)
	if input, _ := b.inputOf(b.signed("POST", "/v1/hooks/"+w.ID+"?a=1", "", "", `{"a":2}`)); input != `{"a":2}` {
		t.Errorf("a query beside a body: %s", input)
	}
}

func TestHookTakesAMessageOnce(t *testing.T) {
	t.Parallel()
	b := setupHooks(t)
	b.publish("once", "  webhook: {verify: standard-webhooks, secret: CRM_SECRET}\n")
	b.publish("twice", "  webhook: {verify: standard-webhooks, secret: CRM_SECRET}\n")
	first := b.signed("POST", "/v1/hooks/once", "application/json", "msg_1", `{"n":1}`)
	_, run := b.inputOf(first)
	for _, body := range []string{`{"n":1}`, `{"n":1,"attempt":2}`} {
		again := b.signed("POST", "/v1/hooks/once", "application/json", "msg_1", body).want(200)
		if string(again.body) != `{"run_id":"`+run.ID+`","duplicate":true}`+"\n" && string(again.body) != `{"run_id":"`+run.ID+`","duplicate":true}` || again.header.Get("Keyfire-Run-Id") != run.ID {
			t.Errorf("a duplicate: %s", again.body)
		}
	}
	for _, r := range []*reply{
		b.signed("POST", "/v1/hooks/once", "application/json", "msg_2", `{"n":1}`), b.signed("POST", "/v1/hooks/twice", "application/json", "msg_1", `{"n":1}`),
	} {
		if _, other := b.inputOf(r); other.ID == run.ID {
			t.Error("another message found the same run")
		}
	}

	key := b.globalKey()
	_, byKey := b.inputOf(b.call("POST", "/v1/hooks/once", key, `{"n":1}`, "Webhook-Id", "msg_1"))
	if byKey.ID == run.ID {
		t.Error("another sender's message found the run")
	}
	b.call("POST", "/v1/hooks/once", key, `{"n":2}`, "Webhook-Id", "msg_1").want(200)
	b.inputOf(b.call("POST", "/v1/hooks/once", key, `{"n":1}`, "Idempotency-Key", "webhook-id:msg_1x"))
	b.call("POST", "/v1/hooks/once", key, `{"n":2}`, "Idempotency-Key", "webhook-id:msg_1x").problem(422, core.CodeIdempotencyKeyReused)
	if r := b.call("POST", "/v1/hooks/once", key, `{"n":1}`, "Idempotency-Key", "webhook-id:msg_1x").want(200); r.header.Get("Idempotency-Replayed") != "true" {
		t.Error("a repeated Idempotency-Key is not told")
	}
}

func TestHookRefuses(t *testing.T) {
	t.Parallel()
	b := setupHooks(t)
	b.publish("push", "  webhook: {verify: standard-webhooks, secret: CRM_SECRET}\n")
	b.publish("plain", "")
	key := b.globalKey()
	const path = "/v1/hooks/push"
	for _, tc := range []struct {
		name   string
		reply  *reply
		status int
		code   core.Code
	}{
		{"no credential", b.call("POST", path, "", `{}`), 401, core.CodeUnauthenticated},
		{"no credential, no workflow", b.call("POST", "/v1/hooks/none", "", `{}`), 401, core.CodeUnauthenticated},
		{"signed wrongly", b.call("POST", path, "", `{}`, "Webhook-Signature", "1", "Webhook-Timestamp", "1"), 401, core.CodeInvalidKey},
		{"signed, no workflow", b.signed("POST", "/v1/hooks/none", "application/json", "1", `{}`), 401, core.CodeInvalidKey},
		{"signed, a workflow that takes none", b.signed("POST", "/v1/hooks/plain", "application/json", "1", `{}`), 401, core.CodeInvalidKey},
		{"signed, on another route", b.call("POST", "/v1/workflows/push/runs", "", `{}`, "Webhook-Signature", "2", "Webhook-Timestamp", "1"), 401, core.CodeUnauthenticated},
		{"signed, and a key", b.call("POST", path, key, `{}`, "Webhook-Signature", "2", "Webhook-Timestamp", "1"), 400, core.CodeAmbiguousCredential},
		{"a bad id", b.call("POST", path, key, `{}`, "Webhook-Id", "a b"), 400, core.CodeInvalidRequest},
		{"bad JSON", b.call("POST", path, key, `{"a":1,"a":2}`), 400, core.CodeInvalidJSON},
		{"a form with files", b.call("POST", path, key, `--x--`, "Content-Type", "multipart/form-data; boundary=x"), 415, core.CodeUnsupportedMediaType},
		{"a type that is none", b.call("POST", path, key, `x`, "Content-Type", "x/y/z;;"), 415, core.CodeUnsupportedMediaType},
		{"compressed", b.call("POST", path, key, `x`, "Content-Encoding", "gzip"), 415, core.CodeUnsupportedMediaType},
		{"too large", b.call("POST", path, key, strings.Repeat("x", 1<<20+1)), 413, core.CodeBodyTooLarge},
		{"signed, too large", b.signed("POST", path, "text/plain", "1", strings.Repeat("x", 1<<20+1)), 413, core.CodeBodyTooLarge},
		{"another method", b.call("DELETE", path, key, ""), 405, core.CodeMethodNotAllowed},
		{"a query that is none", b.call("GET", path+"?%zz", key, ""), 400, core.CodeInvalidRequest},
	} {
		if tc.reply.code != tc.status {
			t.Errorf("%s: %d %s, want %d", tc.name, tc.reply.code, tc.reply.body, tc.status)
			continue
		}
		tc.reply.problem(tc.status, tc.code)
	}
	if runs, err := b.store.Runs(t.Context(), core.DefaultAccount, core.RunFilter{}, core.Page{}); err != nil || len(runs.Items) != 0 {
		t.Errorf("%d runs were started, %v", len(runs.Items), err)
	}
}
