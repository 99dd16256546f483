package server

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// K2: a stream of events does not outlive the right to read it, whichever way that is taken away.
func TestFollowersAreJudgedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, sc *Config) { sc.Heartbeat = 20 * time.Millisecond })
	b.publish("later", "")
	starter := b.globalKey()
	run := b.call("POST", "/v1/workflows/later/runs", starter, `{"run_after":"`+time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+`"}`, "Prefer", "respond-async").want(202).header.Get("Keyfire-Run-Id")
	addr, _, _ := b.serve()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	follow := func(key string) *bufio.Scanner {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/v1/runs/"+run+"/events", http.NoBody)
		b.must(err)
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := http.DefaultTransport.RoundTrip(req)
		b.must(err)
		t.Cleanup(func() { _ = resp.Body.Close() })
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("status %d", resp.StatusCode)
		}
		return bufio.NewScanner(resp.Body)
	}
	alive := func(who string, lines *bufio.Scanner) {
		t.Helper()
		for lines.Scan() {
			if strings.Contains(lines.Text(), "still here") {
				return
			}
		}
		t.Fatalf("the stream of %s ended: %v", who, lines.Err())
	}
	admitted := follow(starter)

	reader := func() (*auth.Key, string) { return b.key(admin.NewKey{Scopes: []string{auth.ScopeRunsRead}}) }
	revoked, revokedText := reader()
	narrowed, narrowedText := reader()
	b.user(core.DefaultAccount, "ada", auth.Viewer)
	access, _ := b.login("", "ada")
	for _, c := range []struct{ who, key, method, path, by, body string }{
		{"a revoked key", revokedText, "DELETE", "/v1/keys/" + revoked.ID, b.adminKey(), ""},
		{"a key that may read no more", narrowedText, "PATCH", "/v1/keys/" + narrowed.ID, b.adminKey(), `{"scopes":["run:workflow/later"]}`},
		{"a session that was ended", access, "POST", "/v1/auth/logout", access, ""},
	} {
		lines := follow(c.key)
		alive(c.who, lines)
		if r := b.call(c.method, c.path, c.by, c.body); r.code >= 300 {
			t.Fatalf("%s: %d %s", c.who, r.code, r.body)
		}
		for lines.Scan() {
		}
		if err := lines.Err(); err != nil {
			t.Errorf("%s still reads: %v", c.who, err)
		}
	}
	alive("a good key", admitted)
}

// A probe may close its side of the connection as soon as it has sent its request.
func TestHalfClosedProbe(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, sc *Config) {
		sc.Ready = func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(300 * time.Millisecond): // long enough for net/http to notice
				return nil
			}
		}
	})
	addr, _, _ := b.serve()
	c, err := net.Dial("tcp", addr)
	b.must(err)
	defer c.Close()
	_, err = c.Write([]byte("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"))
	b.must(err)
	b.must(c.(*net.TCPConn).CloseWrite())
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil || !strings.Contains(line, " 200 ") {
		t.Fatalf("%q, %v", line, err)
	}
}

// A browser's EventSource comes back after every end of a stream, with the id of the last event, until it is answered 204.
func TestNothingLeftToFollow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("greet", "")
	key := b.globalKey()
	for _, prefer := range []string{"", "wait=20"} {
		run := b.call("POST", "/v1/workflows/greet/runs", key, `{}`, "Prefer", prefer).want(200).header.Get("Keyfire-Run-Id")
		events := "/v1/runs/" + run + "/events"
		last := ""
		for line := range strings.Lines(string(b.call("GET", events, key, "").want(200).body)) {
			if id, ok := strings.CutPrefix(line, "id: "); ok {
				last = strings.TrimSpace(id)
			}
		}
		n, err := strconv.Atoi(last)
		b.must(err)
		if body := string(b.call("GET", events, key, "", "Last-Event-ID", strconv.Itoa(n-1)).want(200).body); !strings.Contains(body, "event: run.finished") {
			t.Errorf("the last event is not told: %q", body)
		}
		for _, method := range []string{"GET", "HEAD"} {
			r := b.call(method, events, key, "", "Last-Event-ID", last).want(204)
			if len(r.body) > 0 || r.header.Get("Content-Type") != "" || r.header.Get("Keyfire-Run-Status") != "succeeded" {
				t.Errorf("%s after the last event: %v %q", method, r.header, r.body)
			}
		}
	}
}

// A request that starts a run and follows it can be sent again when its connection broke, and goes on after the event that it names. What it names says nothing about another run.
func TestTriggerAndFollowAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("greet", "")
	key := b.globalKey()
	call := func(idempotency, last string) string {
		return string(b.call("POST", "/v1/workflows/greet/runs", key, `{}`, "Accept", typeEvents, "Idempotency-Key", idempotency, "Last-Event-ID", last).want(200).body)
	}
	for _, c := range []struct {
		idempotency, last string
		whole             bool
	}{{"a", "", true}, {"a", "1", false}, {"b", "1", true}, {"", "1", true}} {
		body := call(c.idempotency, c.last)
		if !strings.Contains(body, "event: run.finished") || strings.Contains(body, "event: run.started") != c.whole {
			t.Errorf("%+v: %s", c, body)
		}
	}
	b.call("POST", "/v1/workflows/greet/runs", key, `{}`, "Accept", typeEvents, "Last-Event-ID", "x").problem(400, core.CodeInvalidRequest)
}

// Whoever may read all runs may not stop those of others by it: that takes a right to run the workflow, or to change it. What is refused leaves the run as it is, and an audit event.
func TestReadingIsNoRightToCancel(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.publish("billing/later", "")
	shy := b.publish("shy", "  global_keys: false\n")
	boss := b.adminKey()
	keyWith := func(kind, scopes string) string {
		return b.call("POST", "/v1/keys", boss, `{"type":"`+kind+`","scopes":[`+scopes+`]}`).want(201).object()["secret"].(string)
	}
	starter, shyStarter := keyWith("trigger", `"run:workflow/`+w.ID+`"`), keyWith("trigger", `"run:workflow/`+shy.ID+`"`)
	b.user(core.DefaultAccount, "vera", auth.Viewer)
	b.user(core.DefaultAccount, "otto", auth.Operator)
	viewer, _ := b.login("", "vera")
	operator, _ := b.login("", "otto")
	start := func(workflow, key string) string {
		body := `{"run_after":"` + time.Now().Add(time.Hour).UTC().Format(time.RFC3339) + `"}`
		return "/v1/runs/" + b.call("POST", "/v1/workflows/"+workflow+"/runs", key, body).want(202).header.Get("Keyfire-Run-Id")
	}
	run := start("billing%2Flater", starter)
	refused := map[string]string{
		"a viewer": viewer, "a key that reads": keyWith("trigger", `"run:workflow/`+shy.ID+`","runs:read"`), "an admin key that reads": keyWith("admin", `"runs:read","keys:write"`),
		"a key for another prefix": keyWith("trigger", `"run:workflow/other/*","runs:read"`),
	}
	for who, credential := range refused {
		b.call("GET", run, credential, "").want(200)
		for _, path := range []string{run + "/cancel", run + "/callbacks/cb_none/redeliver"} {
			if p := b.call("POST", path, credential, "").problem(403, core.CodeInsufficientScope); !strings.Contains(p.Detail, "another credential started this run") {
				t.Errorf("%s: %+v", who, p)
			}
		}
	}
	if events := b.call("GET", "/v1/audit?action=auth.refuse", boss, "").want(200).object()["data"].([]any); len(events) != 2*len(refused) {
		t.Errorf("%d refusals are in the audit log: %v", len(events), events)
	}
	if got := b.call("GET", run, starter, "").want(200).object()["status"]; got != "scheduled" {
		t.Errorf("the run is %v", got)
	}
	none := b.call("POST", "/v1/runs/run_00000000000000000000000000/cancel", refused["a viewer"], "").problem(404, core.CodeNotFound)
	if hidden := b.call("POST", run+"/cancel", shyStarter, "").problem(404, core.CodeNotFound); hidden.Detail != none.Detail {
		t.Errorf("a run that the caller may not read: %+v", hidden)
	}

	b.call("POST", run+"/cancel", starter, "").want(202)
	for who, credential := range map[string]string{
		"an operator": operator, "an admin key": boss, "an author": keyWith("admin", `"runs:read","workflows:write"`), "another key of the workflow": keyWith("trigger", `"run:workflow/`+w.ID+`","runs:read"`),
		"a key for its prefix": keyWith("trigger", `"run:workflow/billing/*","runs:read"`),
	} {
		if got := b.call("POST", start("billing%2Flater", starter)+"/cancel", credential, ""); got.code != 202 {
			t.Errorf("%s: %d %s", who, got.code, got.body)
		}
	}
	// Who may stop a run need not be let in by its workflow.
	b.call("POST", start("shy", shyStarter)+"/cancel", operator, "").want(202)
}

// timed is a recorder that counts what is sent without a deadline.
type timed struct {
	*httptest.ResponseRecorder
	until  time.Time
	untold int
}

func (w *timed) SetWriteDeadline(t time.Time) error {
	w.until = t
	return nil
}

func (w *timed) Write(b []byte) (int, error) {
	if left := time.Until(w.until); left <= 0 || left > time.Minute {
		w.untold++
	}
	return w.ResponseRecorder.Write(b)
}

// Whoever does not take what is streamed to them holds a connection no longer than the reader of any other answer.
func TestStreamsHaveDeadlines(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	run := f.call("POST", "/v1/workflows/open/runs", f.global, `{}`).want(200).header.Get("Keyfire-Run-Id")
	for _, c := range []struct{ method, target, body string }{
		{"GET", "/v1/runs/" + run + "/events", ""},
		{"POST", "/api/v1/run/text?stream=true", `{"input_value":"why"}`},
	} {
		req := httptest.NewRequest(c.method, c.target, strings.NewReader(c.body))
		req.Header.Set("X-API-Key", f.global)
		w := &timed{ResponseRecorder: httptest.NewRecorder()}
		f.handler.ServeHTTP(w, req)
		if w.Code != 200 || w.Body.Len() == 0 || !w.Flushed || w.untold > 0 {
			t.Errorf("%s: %d, %d writes without a deadline: %s", c.target, w.Code, w.untold, w.Body)
		}
	}
}
