package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// wholeKey is the body of the API's documentation.
const wholeKey = `{"name":"CI pipeline trigger","description":"…","scopes":["run:workflow/invoice-sync"],"expires_at":"2127-03-01T00:00:00Z",
 "max_runs":500,"refill":{"every":"month","amount":500,"day":1},"rate_limits":[{"name":"burst","limit":10,"per":"1s"}],
 "max_concurrent_runs":5,"allowed_ips":["203.0.113.0/24"],"allowed_origins":[],"allow_query":false,"metadata":{}}`

func TestWholeKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.publish("invoice-sync", "")
	boss := b.adminKey()
	made := b.call("POST", "/v1/keys", boss, wholeKey).want(201)
	if made.header.Get("Cache-Control") != "no-store" {
		t.Error("an answer with a secret may be kept")
	}
	k := made.object()
	id, secret := k["id"].(string), k["secret"].(string)
	for name, want := range map[string]string{
		"max_runs": "500", "runs_remaining": "500", "max_concurrent_runs": "5", "allowed_ips": "[203.0.113.0/24]", "allowed_origins": "[]",
		"rate_limits": "[map[limit:10 name:burst per:1s]]", "state": "active", "metadata": "map[]", "scopes": "[run:workflow/" + w.ID + "]", "workflows": "[invoice-sync]",
	} {
		if got := fmt.Sprint(k[name]); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	refill := k["refill"].(map[string]any)
	if next, err := time.Parse(time.RFC3339, refill["next_at"].(string)); err != nil || next.Day() != 1 || !next.After(time.Now()) {
		t.Errorf("%v", refill)
	}

	run := b.call("POST", "/v1/workflows/invoice-sync/runs", secret, `{}`).want(200)
	if got := run.header.Get("RateLimit-Policy"); got != `"burst";q=10;w=1, "concurrency";q=5;qu="concurrent-requests", "quota";q=500` {
		t.Errorf("RateLimit-Policy: %s", got)
	}
	if got := run.header.Get("RateLimit"); !strings.HasPrefix(got, `"burst";r=9;t=1, "concurrency";r=4, "quota";r=499;t=`) {
		t.Errorf("RateLimit: %s", got)
	}

	// What is not said stays; null takes away.
	changed := b.call("PATCH", "/v1/keys/"+id, boss, `{"name":"renamed","rate_limits":[{"limit":3,"per":"1h"}],"refill":null,"max_runs":2,"metadata":{"team":"billing"},"allowed_ips":[]}`).want(200).object()
	for name, want := range map[string]string{
		"name": "renamed", "description": "…", "rate_limits": "[map[limit:3 name:default per:1h]]", "refill": "<nil>", "max_runs": "2", "runs_used": "1", "runs_remaining": "1",
		"metadata": "map[team:billing]", "allowed_ips": "[]", "max_concurrent_runs": "5", "expires_at": "2127-03-01T00:00:00Z",
	} {
		if got := fmt.Sprint(changed[name]); got != want {
			t.Errorf("after the change %s is %s, want %s", name, got, want)
		}
	}
	if changed["secret"] != nil {
		t.Error("a change shows a secret")
	}
	b.call("POST", "/v1/trigger", secret, `{}`).want(200)
	spent := b.call("POST", "/v1/trigger", secret, `{}`)
	if p := spent.problem(429, core.CodeQuotaExhausted); p.Retryable || spent.header.Get("Retry-After") != "" {
		t.Errorf("a quota that nothing refills: %+v, Retry-After %q", p, spent.header.Get("Retry-After"))
	}
	for body, pointer := range map[string]string{
		`{"rate_limits":[{"limit":0,"per":"1s"}]}`: "#/rate_limits/0/limit", `{"rate_limits":[{"limit":1,"per":"soon"}]}`: "#/rate_limits/0/per",
		`{"rate_limits":[{"name":"a","limit":1,"per":"1s"},{"name":"a","limit":1,"per":"1s"}]}`: "#/rate_limits/1/name",
		`{"metadata":{"team":"ops","cost/centre":7}}`:                                           "#/metadata/cost~1centre", `{"rate_limits":[{"limit":1,"per":"1s"},{"limit":"x","per":"1s"}]}`: "#/rate_limits/1/limit",
		`{"allowed_ips":["10.0.0.1",7]}`: "#/allowed_ips/1", `{"scopes":"run:*"}`: "#/scopes", `{"refill":{"every":"day","amount":"x"}}`: "#/refill/amount", `{"refill":7}`: "#/refill",
		`{"max_runs":0}`: "#/max_runs", `{"max_runs":"many"}`: "#/max_runs", `{"max_concurrent_runs":1001}`: "#/max_concurrent_runs", `{"allowed_ips":["everywhere"]}`: "#/allowed_ips/0",
		`{"allowed_origins":["https://app.example.com/"]}`: "#/allowed_origins/0", `{"refill":{"every":"hour"}}`: "#/refill/every", `{"refill":{"every":"day","day":3}}`: "#/refill/day",
		`{"scopes":["run:workflow/nope"]}`: "#/scopes", `{"scopes":["run:workflow/Bad/*"]}`: "#/scopes", `{"expires_at":"2020-01-01T00:00:00Z"}`: "#/expires_at", `{"name":""}`: "#/name",
	} {
		p := b.call("PATCH", "/v1/keys/"+id, boss, body).problem(422, core.CodeInvalidInput)
		if len(p.Errors) == 0 || p.Errors[0].Pointer != pointer {
			t.Errorf("%s: %+v", body, p.Errors)
		}
	}
	if p := b.call("PATCH", "/v1/keys/"+id, boss, `{"max_runs":9007199254740993}`).problem(422, core.CodeInvalidInput); !strings.Contains(p.Detail, "max_runs must be from 1 to 1125899906842624") {
		t.Errorf("too large a quota: %+v", p)
	}
	b.call("PATCH", "/v1/keys/"+id, boss, `{"max_run":1}`).problem(400, core.CodeUnknownField)
	b.call("PATCH", "/v1/keys/key_none", boss, `{"name":"x"}`).problem(404, core.CodeNotFound)
	b.call("PATCH", "/v1/keys/"+id, secret, `{"name":"x"}`).problem(403, core.CodeInsufficientScope)
}

// waits returns the Retry-After of an answer, which is what is left of so many seconds since the first trigger: a machine may take some of them to get here.
func (r *reply) waits(seconds int) string {
	r.t.Helper()
	text := r.header.Get("Retry-After")
	if n, err := strconv.Atoi(text); err != nil || n > seconds || n < seconds-60 {
		r.t.Errorf("Retry-After is %q, want %d or a little less", text, seconds)
	}
	return text
}

// Q2 over HTTP: the refusal says when to come again, and a flood is answered without the store.
func TestRateLimitAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	_, text := b.key(admin.NewKey{Scopes: []string{"run:workflow/open"}, KeyLimits: admin.KeyLimits{RateLimits: []core.RateLimit{{Name: "hourly", Limit: 2, Per: core.Duration(time.Hour)}}}})
	run := func(header ...string) *reply { return b.call("POST", "/v1/trigger", text, `{}`, header...) }
	first := run("Idempotency-Key", "a").want(200)
	run().want(200)
	for range 3 {
		r := run()
		if p := r.problem(429, core.CodeRateLimited); !p.Retryable {
			t.Errorf("%+v", p)
		}
		if r.header.Get("RateLimit") != `"hourly";r=0;t=`+r.waits(1800) || r.header.Get("RateLimit-Policy") != `"hourly";q=2;w=3600` {
			t.Errorf("%v", r.header)
		}
	}
	// A repeated request costs nothing, so it is answered.
	if again := run("Idempotency-Key", "a").want(200); again.header.Get("Keyfire-Run-Id") != first.header.Get("Keyfire-Run-Id") {
		t.Error("another run for the same Idempotency-Key")
	}
}

// Whatever starts a run says what it leaves.
func TestEveryAnswerThatStartsARunTellsLimits(t *testing.T) {
	t.Parallel()
	b := setupForeign(t)
	_, text := b.key(admin.NewKey{Scopes: []string{"run:workflow/flow"}, KeyLimits: admin.KeyLimits{RateLimits: []core.RateLimit{{Name: "hourly", Limit: 9, Per: core.Duration(time.Hour)}}}})
	run := b.call("POST", "/v1/trigger", text, `{}`).want(200).header.Get("Keyfire-Run-Id")
	left := 8
	for _, path := range []string{"/v1/hooks/flow", "/v1/runs/" + run + "/replay", "/v1/workflows/flow/runs", "/api/trigger", "/api/endpoints/flow", "/api/v1/process/flow", "/api/v1/webhook/flow"} {
		r := b.call("POST", path, text, `{}`)
		if left--; r.code/100 != 2 || !strings.HasPrefix(r.header.Get("RateLimit"), `"hourly";r=`+strconv.Itoa(left)+`;t=`) || r.header.Get("RateLimit-Policy") != `"hourly";q=9;w=3600` {
			t.Errorf("%s: %d %s, %v", path, r.code, r.body, r.header)
		}
	}
}

// A refusal takes nothing of the other limits, and says so: also one that is repeated from memory, in which they come back.
func TestRateLimitAnswersTellWhatIsLeft(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	_, text := b.key(admin.NewKey{Scopes: []string{"run:workflow/open"}, MaxRuns: 10, KeyLimits: admin.KeyLimits{RateLimits: []core.RateLimit{
		{Name: "daily", Limit: 2, Per: core.Duration(24 * time.Hour)}, {Name: "hourly", Limit: 5, Per: core.Duration(time.Hour)},
	}}})
	for range 2 {
		b.call("POST", "/v1/trigger", text, `{}`).want(200)
	}
	for range 3 {
		r := b.call("POST", "/v1/trigger", text, `{}`)
		r.problem(429, core.CodeRateLimited)
		if got, policy := r.header.Get("RateLimit"), r.header.Get("RateLimit-Policy"); !strings.HasPrefix(got, `"daily";r=0;t=`+r.waits(43200)+`, "hourly";r=3;t=14`) ||
			!strings.HasSuffix(got, `, "quota";r=8`) || policy != `"daily";q=2;w=86400, "hourly";q=5;w=3600, "quota";q=10` {
			t.Errorf("RateLimit %s, policy %s", got, policy)
		}
	}
}

// Q2 over HTTP for an account: every caller of it is refused alike, whatever its credential, and is told which limit it was. What a superuser changes holds at once.
func TestAccountLimitAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	b.publish("anyone", "  public: true\n")
	boss := b.adminKey()
	_, super, err := b.admin.CreateKey(context.Background(), b.boss, admin.NewKey{Type: auth.AdminKey, Name: "super", Scopes: []string{"accounts:read", "accounts:write", "runs:read", "run:*", "audit:read"}})
	b.must(err)
	chief := super.Reveal()
	for body, field := range map[string]string{
		`{"rate_limits":[{"limit":0,"per":"1s"}]}`:                                     "#/rate_limits/0/limit",
		`{"rate_limits":[{"limit":1,"per":"1s"},{"limit":2,"per":"1s"}]}`:              "#/rate_limits/0/name",
		`{"rate_limits":[{"limit":1,"per":"soon"}]}`:                                   "#/rate_limits/0/per",
		`{"max_concurrent_runs":0}`:                                                    "#/max_concurrent_runs",
		`{"max_concurrent_runs":1001}`:                                                 "#/max_concurrent_runs",
		`{"title":"` + strings.Repeat("x", 201) + `"}`:                                 "#/title",
		`{"rate_limits":[{"name":"quota","limit":1,"per":"1s","burst":2}],"title":""}`: "#/rate_limits/0/name",
	} {
		p := b.call("PATCH", "/v1/accounts/default", chief, body).problem(422, core.CodeInvalidInput)
		if len(p.Errors) == 0 || p.Errors[0].Pointer != field || strings.Contains(p.Detail, "the key") {
			t.Errorf("%s: %+v", body, p)
		}
	}
	b.call("PATCH", "/v1/accounts/default", chief, `{"limits":[]}`).problem(400, core.CodeUnknownField)
	if p := b.call("PATCH", "/v1/accounts/default", chief, `{"rate_limits":[{"limit":1,"per":"1s"},{"limit":1,"per":"1s","brust":5}]}`).problem(400, core.CodeUnknownField); p.Errors[0].Pointer != "#/rate_limits/1/brust" ||
		!strings.Contains(p.Detail, "did you mean burst?") {
		t.Errorf("%+v", p)
	}
	b.call("PATCH", "/v1/accounts/default", chief, `{"rate_limits":[{"Limit":1,"per":"1s"}]}`).problem(400, core.CodeUnknownField)
	b.call("PATCH", "/v1/accounts/none", chief, `{"title":"x"}`).problem(404, core.CodeNotFound)
	b.call("PATCH", "/v1/accounts/default", boss, `{"title":"x"}`).problem(403, core.CodeInsufficientScope)

	limits := `{"rate_limits":[{"name":"hourly","limit":4,"per":"1h"}],"max_concurrent_runs":9,"title":"Ours"}`
	for _, shown := range []*reply{b.call("PATCH", "/v1/accounts/default", chief, limits).want(200), b.call("GET", "/v1/accounts/default", chief, "").want(200)} {
		got := shown.object()
		if fmt.Sprint(got["rate_limits"], got["max_concurrent_runs"], " ", got["title"]) != "[map[limit:4 name:hourly per:1h]] 9 Ours" {
			t.Errorf("%s", shown.body)
		}
	}
	_, one := b.key(admin.NewKey{Scopes: []string{"run:workflow/open"}})
	_, two := b.key(admin.NewKey{Scopes: []string{"run:*"}, KeyLimits: admin.KeyLimits{RateLimits: []core.RateLimit{{Name: "own", Limit: 100, Per: core.Duration(time.Hour)}}}})
	callers := map[string]func() *reply{
		"a key":             func() *reply { return b.call("POST", "/v1/trigger", one, `{}`) },
		"a key with limits": func() *reply { return b.call("POST", "/v1/workflows/open/runs", two, `{}`) },
		"no credential":     func() *reply { return b.call("POST", "/v1/workflows/anyone/runs", "", `{}`) },
		"an administrator":  func() *reply { return b.call("POST", "/v1/workflows/open/runs", chief, `{}`) },
	}
	for caller, run := range callers {
		if r := run().want(200); !strings.Contains(r.header.Get("RateLimit-Policy"), `"account:hourly";q=4;w=3600, `) {
			t.Errorf("%s: %v", caller, r.header)
		}
	}
	for range 2 { // the second time it is known
		for caller, run := range callers {
			r := run()
			p := r.problem(429, core.CodeRateLimited)
			if wait := r.waits(900); !p.Retryable || !strings.Contains(r.header.Get("RateLimit"), `"account:hourly";r=0;t=`+wait) ||
				!strings.Contains(p.Detail, `account's rate limit "hourly"`) {
				t.Errorf("%s: %+v %v", caller, p, r.header)
			}
			if v := b.call("GET", "/v1/auth/explain/"+r.header.Get("Keyfire-Request-Id"), chief, "").want(200).object(); checked(t, v)["rate"] != "fail" || !strings.Contains(fmt.Sprint(v), "account:hourly") {
				t.Errorf("%s: %v", caller, v)
			}
		}
	}
	for _, secret := range []string{one, two, chief} {
		if v := b.call("POST", "/v1/auth/check", secret, `{"workflow":"open"}`).want(200).object(); v["code"] != "RATE_LIMITED" || !strings.Contains(fmt.Sprint(v), "account:hourly") {
			t.Errorf("%v", v)
		}
	}
	b.call("PATCH", "/v1/accounts/default", chief, `{"rate_limits":null,"max_concurrent_runs":null}`).want(200)
	callers["no credential"]().want(200)
	for caller, run := range callers {
		r := run()
		for begin := time.Now(); r.code == 429 && time.Since(begin) < 5*time.Second; r = run() { // a refusal by an account's limit is remembered for a second
			time.Sleep(10 * time.Millisecond)
		}
		if r.want(200); strings.Contains(r.header.Get("RateLimit-Policy"), "account") {
			t.Errorf("%s: %v", caller, r.header)
		}
	}
	events := b.call("GET", "/v1/audit?action=account.update", chief, "").want(200).object()["data"].([]any)
	if len(events) != 2 || events[0].(map[string]any)["object_id"] == "" {
		t.Errorf("%v", events)
	}
}

// The audit log says what of a key was changed, without the values: a key that was switched off, or let in from everywhere, is not one that was renamed.
func TestChangesInTheAuditLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	boss := b.adminKey()
	id := b.call("POST", "/v1/keys", boss, `{"workflow":"open"}`).want(201).object()["id"].(string)
	changes := map[string]string{
		`{"disabled":true}`: "switched off", `{"disabled":false,"name":"n"}`: "name, switched on", `{"allowed_ips":null,"max_runs":7}`: "max_runs, allowed_ips",
		`{"description":"d","scopes":["run:*"],"expires_at":null,"refill":null}`:                                            "description, scopes, expires_at, refill",
		`{"rate_limits":[],"max_concurrent_runs":2,"allowed_origins":[],"allow_query":true,"metadata":{"secret":"canary"}}`: "rate_limits, max_concurrent_runs, allowed_origins, allow_query, metadata",
	}
	for body, want := range changes {
		b.call("PATCH", "/v1/keys/"+id, boss, body).want(200)
		if e := b.call("GET", "/v1/audit?action=key.update&limit=1", boss, "").want(200).object()["data"].([]any)[0].(map[string]any); e["reason"] != want {
			t.Errorf("%s: the reason is %v, want %s", body, e["reason"], want)
		}
	}
}

// An object is the same when it is read again, to the last digit of its times: tools that compare would find a change otherwise.
func TestWhatIsAnsweredIsWhatIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	boss := b.adminKey()
	same := func(what string, r *reply, path string) {
		t.Helper()
		answered, kept := r.object(), b.call("GET", path, boss, "").want(200).object()
		delete(answered, "secret")
		if diff := cmp.Diff(kept, answered); diff != "" {
			t.Errorf("%s (-read again +answered):\n%s", what, diff)
		}
	}
	made := b.call("POST", "/v1/keys", boss, `{"workflow":"open","expires_at":"2127-01-01T00:00:00.123456789Z"}`).want(201)
	path := "/v1/keys/" + made.object()["id"].(string)
	same("a new key", made, path)
	same("a changed key", b.call("PATCH", path, boss, `{"expires_at":"2128-01-01T00:00:00.987654321+01:00"}`).want(200), path)
	same("a rotated key", b.call("POST", path+"/rotate", boss, `{}`).want(201), path)
	same("a disabled key", b.call("POST", path+"/disable", boss, `{}`).want(200), path)
	user := b.call("POST", "/v1/users", boss, `{"name":"ada","role":"viewer","password":"a long enough password"}`).want(201)
	same("a user", user, "/v1/users/"+user.object()["id"].(string))
}

// What would mean more than was said is refused: none is not all, and null is not what was there before.
func TestKeyFieldsThatSayNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	boss := b.adminKey()
	_, super, err := b.admin.CreateKey(t.Context(), b.boss, admin.NewKey{Type: auth.AdminKey, Name: "chief", Scopes: []string{auth.ScopeAccountsWrite}})
	b.must(err)
	chief := super.Reveal()
	made := func(member string) *reply {
		return b.call("POST", "/v1/keys", boss, `{"workflow":"open","max_runs":7,`+member+`}`)
	}
	k := made(`"refill":{"every":"week","amount":2},"rate_limits":[{"limit":9,"per":"1m","burst":3}],"allow_query":true,"allowed_ips":["::/0","0.0.0.0/0"]`).want(201).object()
	path := "/v1/keys/" + k["id"].(string)
	change := func(body string) *reply { return b.call("PATCH", path, boss, body) }
	account := func(body string) *reply { return b.call("PATCH", "/v1/accounts/default", chief, body) }
	for _, c := range []struct {
		answer  *reply
		pointer string
	}{
		{made(`"refill":{"every":"day","amount":0}`), "#/refill/amount"},
		{made(`"refill":{"every":"day","amount":-1}`), "#/refill/amount"},
		{made(`"rate_limits":[{"limit":9,"per":"1m","burst":0}]`), "#/rate_limits/0/burst"},
		{change(`{"refill":{"every":"day","amount":0}}`), "#/refill/amount"},
		{change(`{"rate_limits":[{"limit":9,"per":"1m","burst":0}]}`), "#/rate_limits/0/burst"},
		{change(`{"allow_query":null}`), "#/allow_query"},
		{change(`{"disabled":null}`), "#/disabled"},
		{change(`{"scopes":null}`), "#/scopes"},
		{change(`{"global":null}`), "#/global"},
		{change(`{"workflow":null}`), "#/workflow"},
		{change(`{"max_runs":3,"name":null}`), "#/name"},
		{account(`{"title":null}`), "#/title"},
		{account(`{"rate_limits":[{"limit":9,"per":"1m","burst":0}]}`), "#/rate_limits/0/burst"},
	} {
		if p := c.answer.problem(422, core.CodeInvalidInput); len(p.Errors) != 1 || p.Errors[0].Pointer != c.pointer || !strings.Contains(p.Errors[0].Detail, "leave it out") {
			t.Errorf("%s: %+v", c.pointer, p)
		}
	}
	// The zero time is one that a program has not set.
	const unset = `{"workflow":"open","sha256":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08","expires_at":"0001-01-01T00:00:00Z"}`
	for _, answer := range []*reply{made(`"expires_at":"0001-01-01T01:00:00+01:00"`), change(`{"expires_at":"0001-01-01T00:00:00Z"}`), b.call("POST", "/v1/keys/import", boss, unset)} {
		if p := answer.problem(422, core.CodeInvalidInput); len(p.Errors) != 1 || p.Errors[0].Pointer != "#/expires_at" || !strings.Contains(p.Errors[0].Detail, "null makes a key that never expires") {
			t.Errorf("%+v", p)
		}
	}
	if p := b.call("POST", path+"/rotate", boss, `{"overlap":""}`).problem(422, core.CodeInvalidInput); len(p.Errors) != 1 || p.Errors[0].Pointer != "#/overlap" {
		t.Errorf("%+v", p)
	}
	kept := b.call("GET", path, boss, "").want(200).object()
	for _, name := range []string{"name", "max_runs", "refill", "rate_limits", "allow_query", "scopes", "state", "expires_at", "masked"} {
		if fmt.Sprint(kept[name]) != fmt.Sprint(k[name]) {
			t.Errorf("%s is %v now, and was %v", name, kept[name], k[name])
		}
	}
	taken := change(`{"refill":null,"rate_limits":null,"allowed_ips":null,"metadata":null,"max_runs":null,"max_concurrent_runs":null,"expires_at":null}`).want(200).object()
	if got := fmt.Sprint(taken["refill"], taken["rate_limits"], taken["allowed_ips"], taken["max_runs"], taken["expires_at"]); got != "<nil> [] [] <nil> <nil>" {
		t.Errorf("what null takes away: %s", got)
	}
}

func TestConcurrencyAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("slow", "")
	_, text := b.key(admin.NewKey{Scopes: []string{"run:*"}, KeyLimits: admin.KeyLimits{MaxConcurrent: 2}})
	release, started := make(chan struct{}), make(chan struct{}, 2)
	b.executor.set("slow", func(context.Context, *core.Run) {
		started <- struct{}{}
		<-release
	})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { b.call("POST", "/v1/workflows/slow/runs", text, `{}`).want(200) })
		<-started
	}
	r := b.call("POST", "/v1/workflows/slow/runs", text, `{}`)
	if p := r.problem(429, core.CodeConcurrencyLimited); !p.Retryable || r.header.Get("Retry-After") != "1" {
		t.Errorf("%+v %v", p, r.header)
	}
	close(release)
	wg.Wait()
	b.call("POST", "/v1/workflows/slow/runs", text, `{}`).want(200)
}

func TestSourceNotAllowed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	_, inside := b.key(admin.NewKey{Scopes: []string{"run:*"}, KeyLimits: admin.KeyLimits{AllowedIPs: []string{"203.0.113.7", "::ffff:198.51.100.0/120"}}})
	_, outside := b.key(admin.NewKey{Type: auth.AdminKey, KeyLimits: admin.KeyLimits{AllowedIPs: []string{"198.51.100.0/24", "2001:db8::/32"}}})
	b.call("POST", "/v1/workflows/open/runs", inside, `{}`).want(200)
	b.call("POST", "/v1/workflows/open/runs", outside, `{}`).problem(403, core.CodeSourceNotAllowed)
	b.call("GET", "/v1/keys", outside, "").problem(403, core.CodeSourceNotAllowed)
}

func TestPrefixScope(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("billing/invoice", "")
	b.publish("billing/eu/refund", "")
	b.publish("billing/shy", "  global_keys: false\n")
	b.publish("other", "")
	_, text := b.key(admin.NewKey{Scopes: []string{"run:workflow/billing/*"}})
	for path, want := range map[string]int{
		"billing/invoice": 200, "billing%2Feu%2Frefund": 200, "other": 403, "billing/shy": 403, "billing/nope": 404, "nope": 403, "wf_01": 403,
	} {
		b.call("POST", "/v1/workflows/"+path+"/runs", text, `{}`).want(want)
	}
	b.call("POST", "/v1/trigger", text, `{}`).problem(400, core.CodeWorkflowRequired)
	// Nobody gives away more than they have.
	maker := admin.Actor{Principal: auth.Principal{Account: core.DefaultAccount, Subject: "key:x", Scopes: []string{auth.ScopeKeysWrite, "run:workflow/billing/*"}}}
	for scope, ok := range map[string]bool{"run:workflow/billing/eu/*": true, "run:workflow/billing/invoice": true, "run:workflow/other": false, "run:*": false, "run:workflow/*": false} {
		if _, _, err := b.admin.CreateKey(context.Background(), maker, admin.NewKey{Name: "x", Scopes: []string{scope}}); (err == nil) != ok {
			t.Errorf("%s: %v", scope, err)
		}
	}
}

func TestDisableKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	boss := b.adminKey()
	k, text := b.key(admin.NewKey{Scopes: []string{"run:*"}})
	at := "/v1/keys/" + k.ID
	off := b.call("POST", at+"/disable", boss, `{"reason":"on holiday"}`).want(200).object()
	if off["state"] != "disabled" || off["disabled_reason"] != "on holiday" || off["disabled_at"] == nil {
		t.Errorf("%v", off)
	}
	b.call("POST", "/v1/workflows/open/runs", text, `{}`).problem(401, core.CodeKeyDisabled)
	b.call("POST", at+"/disable", boss, `{"reason":"again"}`).want(200)
	b.call("POST", at+"/enable", boss, "").want(200)
	b.call("POST", "/v1/workflows/open/runs", text, `{}`).want(200)
	b.call("PATCH", at, boss, `{"disabled":true}`).want(200)
	b.call("POST", "/v1/workflows/open/runs", text, `{}`).problem(401, core.CodeKeyDisabled)
	var actions []string
	for _, e := range b.call("GET", "/v1/audit?action=key.disable", boss, "").want(200).object()["data"].([]any) {
		actions = append(actions, e.(map[string]any)["reason"].(string))
	}
	if !slices.Equal(actions, []string{"on holiday"}) {
		t.Errorf("audited: %v", actions)
	}
	b.call("DELETE", at+"?reason=gone", boss, "").want(204)
	for _, path := range []string{"/enable", "/rotate"} {
		b.call("POST", at+path, boss, "").problem(409, core.CodeConflict)
	}
	b.call("PATCH", at, boss, `{"name":"x"}`).problem(409, core.CodeConflict)
}

// K3: both texts work for the overlap and share the one counter.
func TestRotateKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	boss := b.adminKey()
	k, old := b.key(admin.NewKey{Scopes: []string{"run:workflow/open"}, MaxRuns: 3, ExpiresAt: time.Now().Add(time.Hour)})
	at := "/v1/keys/" + k.ID
	rotated := b.call("POST", at+"/rotate", boss, `{"overlap":"7d"}`).want(201)
	fresh := rotated.object()
	text := fresh["secret"].(string)
	if fresh["id"] != k.ID || text == old || rotated.header.Get("Cache-Control") != "no-store" || fresh["expires_at"] != k.ExpiresAt.Truncate(time.Microsecond).Format(time.RFC3339Nano) {
		t.Errorf("%v", fresh)
	}
	for _, secret := range []string{old, text, old} {
		b.call("POST", "/v1/trigger", secret, `{}`).want(200)
	}
	for _, secret := range []string{old, text} {
		b.call("POST", "/v1/trigger", secret, `{}`).problem(429, core.CodeQuotaExhausted)
	}
	if got := b.call("GET", at, boss, "").want(200).object(); got["runs_used"] != 3.0 {
		t.Errorf("%v", got)
	}
	// An overlap of nothing ends every older text at once, also those that had longer.
	b.call("PATCH", at, boss, `{"max_runs":10}`).want(200)
	last := b.call("POST", at+"/rotate", boss, `{"overlap":"0s"}`).want(201).object()["secret"].(string)
	for _, secret := range []string{old, text} {
		b.call("POST", "/v1/trigger", secret, `{}`).problem(401, core.CodeKeyExpired)
	}
	b.call("POST", "/v1/trigger", last, `{}`).want(200)
	for _, body := range []string{`{"overlap":"31d"}`, `{"overlap":"-1s"}`, `{"overlap":"soon"}`} {
		b.call("POST", at+"/rotate", boss, body).problem(422, core.CodeInvalidInput)
	}
	// Nobody takes over a key that may do more than themselves.
	chief, _ := b.key(admin.NewKey{Type: auth.AdminKey})
	_, clerk := b.key(admin.NewKey{Type: auth.AdminKey, Scopes: []string{auth.ScopeKeysWrite, auth.ScopeKeysRead}})
	b.call("POST", "/v1/keys/"+chief.ID+"/rotate", clerk, "").problem(403, core.CodeInsufficientScope)

	usage := b.call("GET", at+"/usage?days=1", boss, "").want(200).object()
	secrets := usage["secrets"].([]any)
	if len(secrets) != 3 || secrets[0].(map[string]any)["expires_at"] != nil || secrets[1].(map[string]any)["expires_at"] == nil || secrets[1].(map[string]any)["last_used_at"] == nil {
		t.Errorf("%v", secrets)
	}
}

func TestImportKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.publish("open", "")
	boss := b.adminKey()
	for i, text := range []string{"bk_live_4eC39HqLyjWDarjtT1zdp7dc", "sk-ant.with:odd/characters==", strings.Repeat("long", 100), "kft_looks_like_ours"} {
		sum := sha256.Sum256([]byte(text))
		body := fmt.Sprintf(`{"name":"old %d","workflow":"open","sha256":%q,"last4":%q,"allow_query":true,"expires_at":null}`, i, hex.EncodeToString(sum[:]), text[len(text)-4:])
		k := b.call("POST", "/v1/keys/import", boss, body).want(201).object()
		if k["imported"] != true || k["masked"] != "..."+text[len(text)-4:] || k["secret"] != nil {
			t.Errorf("%v", k)
		}
		if p := b.call("POST", "/v1/keys/import", boss, body).problem(409, core.CodeConflict); p.Detail != "a key with this secret exists already" {
			t.Errorf("a second import: %q", p.Detail)
		}
		b.call("POST", "/v1/trigger", text, `{}`).want(200)
		for _, header := range []string{"X-API-Key", "x-bifrost-key"} {
			b.call("POST", "/v1/trigger", "", `{}`, header, text).want(200)
		}
		b.call("POST", "/v1/trigger?x-api-key="+strings.NewReplacer(":", "%3A", "/", "%2F", "=", "%3D").Replace(text), "", `{}`).want(200)
		b.call("POST", "/v1/workflows/"+w.ID+"/runs", text+"x", `{}`).problem(401, core.CodeInvalidKey)
		b.call("POST", "/v1/keys/"+k["id"].(string)+"/rotate", boss, "").want(201)
		b.call("POST", "/v1/trigger", text, `{}`).want(200)
		b.call("DELETE", "/v1/keys/"+k["id"].(string), boss, "").want(204)
		b.call("POST", "/v1/trigger", text, `{}`).problem(401, core.CodeKeyRevoked)
	}
	for _, body := range []string{
		`{"name":"x","workflow":"open","sha256":"short"}`, `{"name":"x","workflow":"open"}`, `{"name":"x","type":"admin","sha256":"` + strings.Repeat("0", 64) + `"}`,
		`{"name":"x","workflow":"open","sha256":"` + strings.Repeat("0", 64) + `","last4":"too long"}`,
	} {
		b.call("POST", "/v1/keys/import", boss, body).problem(422, core.CodeInvalidInput)
	}
}

func TestKeyUsage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.publish("open", "")
	b.publish("other", "")
	boss := b.adminKey()
	k, text := b.key(admin.NewKey{Scopes: []string{"run:*"}})
	b.call("POST", "/v1/workflows/open/runs", text, `{}`, "User-Agent", "curl/8.5.0").want(200)
	b.call("POST", "/v1/workflows/open/runs", text, `{}`, "User-Agent", "curl/8.5.0", "Idempotency-Key", "x").want(200)
	b.call("POST", "/v1/workflows/open/runs", text, `{}`, "User-Agent", "curl/8.5.0", "Idempotency-Key", "x").want(200) // a replay is no run
	b.call("POST", "/v1/workflows/other/runs", text, `{}`, "User-Agent", "key "+text).want(200)
	usage := b.call("GET", "/v1/keys/"+k.ID+"/usage", boss, "").want(200).object()
	today := time.Now().UTC().Format(time.DateOnly)
	day := usage["days"].([]any)[0].(map[string]any)
	if usage["runs"] != 3.0 || usage["to"] != today || day["date"] != today || day["runs"] != 3.0 {
		t.Errorf("%v", usage)
	}
	first := func(list string) map[string]any { return usage[list].([]any)[0].(map[string]any) }
	if v := first("workflows"); v["value"] != w.ID || v["name"] != "open" || v["runs"] != 2.0 {
		t.Errorf("%v", v)
	}
	if v := first("sources"); v["value"] != "203.0.113.7" || v["runs"] != 3.0 {
		t.Errorf("%v", v)
	}
	if v := first("user_agents"); v["value"] != "curl/8.5.0" || v["runs"] != 2.0 {
		t.Errorf("%v", v)
	}
	if s := fmt.Sprint(usage); strings.Contains(s, text[16:48]) {
		t.Error("the usage shows a secret that was sent as a user agent")
	}
	b.call("GET", "/v1/keys/key_none/usage", boss, "").problem(404, core.CodeNotFound)
	b.call("GET", "/v1/keys/"+k.ID+"/usage?days=0", boss, "").problem(400, core.CodeInvalidRequest)
	b.call("GET", "/v1/keys/"+k.ID+"/usage", text, "").problem(403, core.CodeInsufficientScope)
}
