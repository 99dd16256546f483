package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/keyfire/keyfire/sdk/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// seen is what a server got.
type seen struct {
	Method, Path, Query, Auth, ContentType, Idempotency, Body string
}

// answer is what it sends.
type answer struct {
	status int
	header http.Header
	body   string
}

// newClient returns a client of a server that remembers the last request and answers with a.
func newClient(t *testing.T, a answer) (*client.Client, *seen) {
	t.Helper()
	got := &seen{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		*got = seen{
			r.Method, r.URL.EscapedPath(), r.URL.RawQuery, r.Header.Get("Authorization"), r.Header.Get("Content-Type"),
			r.Header.Get("Idempotency-Key"), string(body),
		}
		maps.Copy(w.Header(), a.header)
		w.WriteHeader(a.status)
		io.WriteString(w, a.body)
	}))
	hc := srv.Client()
	t.Cleanup(func() { hc.CloseIdleConnections(); srv.Close() })
	c, err := client.New(client.Config{URL: srv.URL + "/base/", Key: "kfa_secret", HTTPClient: hc})
	if err != nil {
		t.Fatal(err)
	}
	return c, got
}

func TestRequests(t *testing.T) {
	t.Parallel()
	const object, list = `{"id":"x_1"}`, `{"object":"list","data":[{"id":"x_1"}],"has_more":true,"next_cursor":"c2"}`
	at := time.Date(2027, 1, 31, 18, 0, 0, 0, time.FixedZone("", 7200))
	for _, tc := range []struct {
		name string
		body string // of the answer
		call func(ctx context.Context, c *client.Client) error
		want seen
	}{
		{"trigger", object, func(ctx context.Context, c *client.Client) error {
			_, err := c.Trigger(ctx, "billing/sync@3", client.TriggerRequest{
				Input: json.RawMessage(`{"n":12345678901234567890}`), Metadata: map[string]string{"crm": "42"}, IdempotencyKey: "k1",
			})
			return err
		}, seen{"POST", "/base/v1/workflows/billing%2Fsync@3/runs", "", "", "application/json", "k1", `{"input":{"n":12345678901234567890},"metadata":{"crm":"42"}}`}},
		{"trigger by key", object, func(ctx context.Context, c *client.Client) error {
			_, err := c.Trigger(ctx, "", client.TriggerRequest{})
			return err
		}, seen{"POST", "/base/v1/trigger", "", "", "application/json", "", `{}`}},
		{"publish again", object, func(ctx context.Context, c *client.Client) error {
			_, err := c.RepublishVersion(ctx, "billing/sync", 3, true)
			return err
		}, seen{Method: "POST", Path: "/base/v1/workflows/billing%2Fsync/versions/3/publish", Query: "dry_run=true"}},
		{"run", object, func(ctx context.Context, c *client.Client) error {
			_, err := c.Run(ctx, "run_1")
			return err
		}, seen{Method: "GET", Path: "/base/v1/runs/run_1"}},
		{"runs", list, func(ctx context.Context, c *client.Client) error {
			l, err := c.Runs(ctx, client.RunQuery{Workflow: "w", Metadata: map[string]string{"a b": "c&d"}, CreatedAfter: at, Page: client.Page{Limit: 5, Cursor: "c1"}})
			if err == nil && (len(l.Data) != 1 || !l.HasMore || l.NextCursor != "c2") {
				t.Errorf("list = %+v", l)
			}
			return err
		}, seen{Method: "GET", Path: "/base/v1/runs", Query: "created_after=2027-01-31T16%3A00%3A00Z&cursor=c1&limit=5&metadata.a+b=c%26d&workflow=w"}},
		{"logs", list, func(ctx context.Context, c *client.Client) error {
			_, err := c.RunLogs(ctx, "run_1", client.LogQuery{Step: "s"})
			return err
		}, seen{Method: "GET", Path: "/base/v1/runs/run_1/logs", Query: "step=s"}},
		{"key with the default expiry", object, func(ctx context.Context, c *client.Client) error {
			_, err := c.CreateKey(ctx, client.NewKey{Name: "ci", Workflow: "greet", MaxRuns: 5, AllowQuery: true})
			return err
		}, seen{"POST", "/base/v1/keys", "", "", "application/json", "", `{"allow_query":true,"max_runs":5,"name":"ci","workflow":"greet"}`}},
		{"key that never expires", object, func(ctx context.Context, c *client.Client) error {
			_, err := c.CreateKey(ctx, client.NewKey{Name: "ci", Global: true, NeverExpire: true})
			return err
		}, seen{"POST", "/base/v1/keys", "", "", "application/json", "", `{"expires_at":null,"global":true,"name":"ci"}`}},
		{"key that expires", object, func(ctx context.Context, c *client.Client) error {
			_, err := c.CreateKey(ctx, client.NewKey{Name: "ops", Type: "admin", Scopes: []string{"runs:read"}, ExpiresAt: at})
			return err
		}, seen{"POST", "/base/v1/keys", "", "", "application/json", "", `{"expires_at":"2027-01-31T16:00:00Z","name":"ops","scopes":["runs:read"],"type":"admin"}`}},
		{"keys", list, func(ctx context.Context, c *client.Client) error {
			_, err := c.Keys(ctx, client.Page{})
			return err
		}, seen{Method: "GET", Path: "/base/v1/keys"}},
		{"revoke", "", func(ctx context.Context, c *client.Client) error {
			_, err := c.RevokeKey(ctx, "key_1", "left")
			return err
		}, seen{Method: "DELETE", Path: "/base/v1/keys/key_1", Query: "reason=left"}},
		{"workflow", object, func(ctx context.Context, c *client.Client) error {
			_, err := c.Workflow(ctx, "greet@2")
			return err
		}, seen{Method: "GET", Path: "/base/v1/workflows/greet@2"}},
		{"disable", object, func(ctx context.Context, c *client.Client) error {
			_, err := c.DisableWorkflow(ctx, "greet")
			return err
		}, seen{Method: "POST", Path: "/base/v1/workflows/greet/disable"}},
		{"versions", list, func(ctx context.Context, c *client.Client) error {
			_, err := c.Versions(ctx, "greet", client.Page{})
			return err
		}, seen{Method: "GET", Path: "/base/v1/workflows/greet/versions"}},
		{"audit", list, func(ctx context.Context, c *client.Client) error {
			_, err := c.AuditEvents(ctx, client.AuditQuery{Action: "key.create"})
			return err
		}, seen{Method: "GET", Path: "/base/v1/audit", Query: "action=key.create"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, got := newClient(t, answer{status: 200, body: tc.body})
			if err := tc.call(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			tc.want.Auth = "Bearer kfa_secret"
			if diff := cmp.Diff(tc.want, *got); diff != "" {
				t.Errorf("request (-want +got)\n%s", diff)
			}
		})
	}
}

func TestPublishWorkflow(t *testing.T) {
	t.Parallel()
	for status, created := range map[int]bool{http.StatusCreated: true, http.StatusOK: false} {
		type part struct{ field, disposition, content string }
		var parts []part
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			reader, err := r.MultipartReader()
			if err != nil {
				t.Error(err)
				return
			}
			for {
				p, err := reader.NextPart()
				if err != nil {
					break
				}
				content, _ := io.ReadAll(p)
				parts = append(parts, part{p.FormName(), p.Header.Get("Content-Disposition"), string(content)})
			}
			w.WriteHeader(status)
			io.WriteString(w, `{"id":"wf_1","name":"greet","version":2}`)
		}))
		c, err := client.New(client.Config{URL: srv.URL, HTTPClient: srv.Client()})
		if err != nil {
			t.Fatal(err)
		}
		w, err := c.PublishWorkflow(t.Context(), "greet", client.Publication{
			Filename: `a "b".yaml`, Source: []byte("name: greet"), Modules: map[string][]byte{"./b.wasm": []byte("B"), "./a.wasm": []byte("A")},
		})
		if err != nil {
			t.Fatal(err)
		}
		srv.Client().CloseIdleConnections()
		srv.Close()
		if w.Created != created || w.Version != 2 {
			t.Errorf("status %d: created %v, version %d", status, w.Created, w.Version)
		}
		want := []part{
			{"workflow", `form-data; name="workflow"; filename="a \"b\".yaml"`, "name: greet"},
			{"module", `form-data; name="module"; filename="./a.wasm"`, "A"},
			{"module", `form-data; name="module"; filename="./b.wasm"`, "B"},
		}
		if diff := cmp.Diff(want, parts, cmp.AllowUnexported(part{})); diff != "" {
			t.Errorf("parts (-want +got)\n%s", diff)
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	problem := http.Header{"Content-Type": {"application/problem+json"}, "Retry-After": {"7"}, "Keyfire-Request-Id": {"req_h"}}
	for _, tc := range []struct {
		name   string
		answer answer
		want   client.Error
		text   string
	}{
		{
			"problem",
			answer{422, problem, `{"status":422,"code":"invalid_input","title":"t","detail":"2 fields are invalid",
				"errors":[{"pointer":"#/input/a","detail":"required"}],"request_id":"req_1","trace_id":"t1","retryable":false,"run_id":null}`},
			client.Error{
				Status: 422, Code: "invalid_input", Title: "t", Detail: "2 fields are invalid", RequestID: "req_1", TraceID: "t1",
				Errors: []client.FieldError{{Pointer: "#/input/a", Detail: "required"}}, RetryAfter: 7 * time.Second,
			},
			"invalid_input: 2 fields are invalid; #/input/a required (req_1)",
		},
		{
			"failed run",
			answer{500, problem, `{"code":"run_failed","detail":"d","run_id":"run_1","failed_step":"s","error":{"code":"run_failed","message":"m"}}`},
			client.Error{
				Status: 500, Code: "run_failed", Title: "Internal Server Error", Detail: "d", RequestID: "req_h", RunID: "run_1", FailedStep: "s",
				Run: &client.RunError{Code: "run_failed", Message: "m"}, RetryAfter: 7 * time.Second,
			},
			"run_failed: d (req_h)",
		},
		{"a proxy's page", answer{502, http.Header{"Content-Type": {"text/html"}}, "<html>"}, client.Error{Status: 502, Title: "Bad Gateway"}, "Bad Gateway"},
		{"broken problem", answer{500, problem, `{"code":`}, client.Error{Status: 500, Title: "Internal Server Error", RequestID: "req_h", RetryAfter: 7 * time.Second}, "Internal Server Error (req_h)"},
		{"redirect", answer{302, http.Header{"Location": {"http://elsewhere.invalid/"}}, ""}, client.Error{Status: 302, Title: "Found"}, "Found"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, _ := newClient(t, tc.answer)
			_, err := c.Run(t.Context(), "run_1")
			var got *client.Error
			if !errors.As(err, &got) {
				t.Fatalf("error %v, want a *client.Error", err)
			}
			if string(got.Response.Body) != tc.answer.body {
				t.Errorf("body %q, want the answer's", got.Response.Body)
			}
			got.Response = client.Response{}
			if diff := cmp.Diff(tc.want, *got); diff != "" {
				t.Errorf("error (-want +got)\n%s", diff)
			}
			if err.Error() != tc.text {
				t.Errorf("text %q, want %q", err, tc.text)
			}
		})
	}
}

func TestAnswersThatAreNotTheAPIs(t *testing.T) {
	t.Parallel()
	c, _ := newClient(t, answer{status: 200, body: "<html>"})
	if _, err := c.Run(t.Context(), "run_1"); err == nil || !strings.Contains(err.Error(), "a Keyfire server?") {
		t.Errorf("a web page: %v", err)
	}
	c, got := newClient(t, answer{status: 200, body: "{}"})
	for _, id := range []string{"", ".", ".."} {
		if _, err := c.Run(t.Context(), id); err == nil || got.Method != "" {
			t.Errorf("id %q: %v, request %+v; want no request", id, err, got)
		}
	}
	if w, err := c.Workflow(t.Context(), "a?b#c/../d%2e"); err != nil || got.Path != "/base/v1/workflows/a%3Fb%23c%2F..%2Fd%252e" {
		t.Errorf("path %s, %v, %v", got.Path, w, err)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "localhost:8080", "ftp://x", "http://", "http://u:p@x", "http://x?q", "http://x#f", "http://[::1"} {
		if _, err := client.New(client.Config{URL: url}); err == nil {
			t.Errorf("URL %q is accepted", url)
		}
	}
}

// TestKeyIsNotShown checks that neither what a client is made of nor the client shows the key to a log.
func TestKeyIsNotShown(t *testing.T) {
	const key = "kft_0123456789abcdef"
	cfg := client.Config{URL: "https://keyfire.example.com", Key: key, Account: "acme"}
	c, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(handler).Info("started", "config", cfg, "client", c)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		fmt.Fprintf(&log, verb+verb+verb+verb, cfg, &cfg, c, *c)
	}
	if text := log.String(); strings.Contains(text, key) || strings.Contains(text, fmt.Sprintf("%x", key)) || !strings.Contains(text, "Key:[redacted] Account:acme") {
		t.Error(text)
	}
}

func TestReadyAndCancel(t *testing.T) {
	t.Parallel()
	c, got := newClient(t, answer{status: 200, body: "{}"})
	if err := c.Ready(t.Context()); err != nil || got.Path != "/base/readyz" {
		t.Errorf("Ready: %v, path %s", err, got.Path)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Ready(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
}
