package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// user makes a user of an account and returns the id.
func (b *bundle) user(account, name string, role auth.Role) string {
	b.t.Helper()
	boss := b.boss
	boss.Principal.Account = account
	u, err := b.admin.CreateUser(context.Background(), boss, admin.NewUser{Name: name, Role: role, Password: auth.NewSecret(sweepPassword)})
	b.must(err)
	return u.ID
}

func (b *bundle) newAccount(name string) core.Account {
	b.t.Helper()
	a, err := b.admin.CreateAccount(context.Background(), b.boss, name, "")
	b.must(err)
	return a
}

func loginBody(account, user, password string) string {
	raw, _ := json.Marshal(map[string]string{"account": account, "user": user, "password": password})
	return string(raw)
}

// login returns the tokens of a new session.
func (b *bundle) login(account, user string) (access, refresh string) {
	b.t.Helper()
	s := b.call("POST", "/v1/auth/login", "", loginBody(account, user, sweepPassword)).want(200)
	if s.header.Get("Cache-Control") != "no-store" {
		b.t.Error("tokens may be stored by caches")
	}
	o := s.object()
	return o["access_token"].(string), o["refresh_token"].(string)
}

// A session is as good as its user, now: whatever ends it holds for the next request, and for the refresh token.
func TestSessionsEndAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	acme := b.newAccount("acme")
	ada := b.user(acme.ID, "ada", auth.Owner)
	boss := b.boss
	boss.Principal.Account = acme.ID
	ctx := context.Background()
	for name, c := range map[string]struct {
		end  func(access string)
		code core.Code
	}{
		"logout":     {func(access string) { b.call("POST", "/v1/auth/logout", access, "").want(204) }, core.CodeSessionEnded},
		"logout all": {func(access string) { b.call("POST", "/v1/auth/logout", access, `{"all":true}`).want(204) }, core.CodeSessionEnded},
		"password": {func(access string) {
			b.call("PUT", "/v1/users/ada/password", access, `{"password":"`+sweepPassword+`"}`).problem(422, core.CodeInvalidInput)
			b.call("PUT", "/v1/users/ada/password", access, `{"password":"`+sweepPassword+`","current_password":"wrong"}`).problem(401, core.CodeInvalidLogin)
			b.call("PUT", "/v1/users/ada/password", access, `{"password":"langflow123","current_password":"`+sweepPassword+`"}`).problem(422, core.CodeInvalidInput)
			b.call("GET", "/v1/auth/whoami", access, "").want(200)
			b.call("PUT", "/v1/users/"+ada+"/password", access, `{"password":"`+sweepPassword+`","current_password":"`+sweepPassword+`"}`).want(200)
		}, core.CodeSessionEnded},
		"role": {func(string) {
			_, err := b.admin.SetUserRole(ctx, boss, "ada", auth.Viewer)
			b.must(err)
			_, err = b.admin.SetUserRole(ctx, boss, "ada", auth.Owner)
			b.must(err)
		}, core.CodeSessionEnded},
		"disabled": {func(string) {
			_, err := b.admin.SetUserEnabled(ctx, boss, ada, false, "")
			b.must(err)
		}, core.CodeSessionEnded},
		"account": {func(string) {
			_, err := b.admin.SetAccountEnabled(ctx, b.boss, "acme", false, "")
			b.must(err)
		}, core.CodeAccountDisabled},
	} {
		_, err := b.admin.SetUserEnabled(ctx, boss, ada, true, "")
		b.must(err)
		_, err = b.admin.SetAccountEnabled(ctx, b.boss, acme.ID, true, "")
		b.must(err)
		access, refresh := b.login("acme", "ada")
		b.call("GET", "/v1/auth/whoami", access, "").want(200)
		c.end(access)
		if p := b.call("GET", "/v1/auth/whoami", access, "").problem(401, c.code); p.Retryable {
			t.Errorf("%s: retryable", name)
		}
		b.call("POST", "/v1/auth/refresh", "", `{"refresh_token":"`+refresh+`"}`).problem(401, c.code)
	}
	// Disabled: told only to whoever has the password.
	_, err := b.admin.SetUserEnabled(ctx, boss, ada, false, "")
	b.must(err)
	_, err = b.admin.SetAccountEnabled(ctx, b.boss, acme.ID, true, "")
	b.must(err)
	b.call("POST", "/v1/auth/login", "", loginBody("acme", "ada", sweepPassword)).problem(401, core.CodeUserDisabled)
	b.call("POST", "/v1/auth/login", "", loginBody("acme", "ada", "wrong")).problem(401, core.CodeInvalidLogin)
	_, err = b.admin.SetAccountEnabled(ctx, b.boss, acme.ID, false, "")
	b.must(err)
	b.call("POST", "/v1/auth/login", "", loginBody("acme", "ada", sweepPassword)).problem(401, core.CodeAccountDisabled)
	b.call("POST", "/v1/auth/login", "", loginBody("acme", "ada", "wrong")).problem(401, core.CodeInvalidLogin)
}

// A refresh token works once; its reuse ends the session for both who have it, and is in the audit log. Malformed, unknown and wrong ones are one answer.
func TestRefresh(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ada := b.user(core.DefaultAccount, "ada", auth.Viewer)
	access, refresh := b.login("", "ada")
	next := b.call("POST", "/v1/auth/refresh", "", `{"refresh_token":"`+refresh+`"}`).want(200).object()
	b.call("GET", "/v1/auth/whoami", next["access_token"].(string), "").want(200)
	b.call("GET", "/v1/auth/whoami", access, "").want(200) // until it expires, minutes later
	answers := map[string]bool{}
	other, err := auth.GenerateToken(auth.RefreshKind, strings.NewReader(strings.Repeat("0123456789", 100)))
	b.must(err)
	forged := refresh[:16] + other.Secret().Reveal()[16:48]
	for _, bad := range []string{"", "x", "kfr_", refresh[:53], flip(refresh), forged + checkOf(forged), other.Secret().Reveal(), access} {
		r := b.call("POST", "/v1/auth/refresh", "", `{"refresh_token":"`+bad+`"}`)
		answers[normal(r, r.problem(401, core.CodeInvalidKey))] = true
	}
	if len(answers) != 1 {
		t.Errorf("%d answers: %v", len(answers), answers)
	}
	b.call("GET", "/v1/auth/whoami", access, "").want(200) // a forged token ends nothing
	b.call("POST", "/v1/auth/refresh", "", `{"refresh_token":"`+refresh+`"}`).problem(401, core.CodeSessionEnded)
	for _, token := range []string{access, next["access_token"].(string)} {
		b.call("GET", "/v1/auth/whoami", token, "").problem(401, core.CodeSessionEnded)
	}
	b.call("POST", "/v1/auth/refresh", "", `{"refresh_token":"`+next["refresh_token"].(string)+`"}`).problem(401, core.CodeSessionEnded)
	l, err := b.store.AuditEvents(context.Background(), core.DefaultAccount, core.AuditFilter{Action: core.ActionSessionReuse}, core.Page{})
	b.must(err)
	if len(l.Items) != 1 || l.Items[0].Actor != "user:"+ada || l.Items[0].Outcome != core.OutcomeRefused || l.Items[0].SourceIP != "203.0.113.7" || l.Items[0].RequestID == "" {
		t.Errorf("audit %+v", l.Items)
	}
	b.call("POST", "/v1/auth/refresh", b.adminKey(), `{"refresh_token":"x"}`).problem(400, core.CodeAmbiguousCredential)
	b.call("POST", "/v1/auth/login?password=x", "", `{}`).problem(400, core.CodeInvalidRequest)
}

// Unknown accounts and users, and wrong passwords, are one answer after the same work, each with a row in the audit log.
func TestLoginIsNoOracle(t *testing.T) {
	t.Parallel()
	b := setup(t)
	cfg := b.admin.Config
	cfg.Logins = admin.LoginLimits{PerUser: 1 << 20, PerSource: 1 << 20}
	var err error
	cfg.Passwords, err = auth.NewPasswords(auth.PasswordConfig{Pepper: b.pepper, Random: rand.Reader, Memory: 4 << 10, Passes: 2}) // so that the hash is most of the work
	b.must(err)
	fresh, err := admin.New(cfg)
	b.must(err)
	*b.admin = *fresh
	b.newAccount("acme")
	b.user(core.DefaultAccount, "ada", auth.Viewer)
	ask := func(account, user, password string) (*reply, time.Duration) {
		start := time.Now()
		r := b.call("POST", "/v1/auth/login", "", loginBody(account, user, password))
		return r, time.Since(start)
	}
	classes := [][3]string{{"", "ada", "lamp-orchid-9-purple"}, {"", "nobody", "lamp-orchid-9-purple"}, {"acme", "ada", sweepPassword}, {"none", "ada", sweepPassword}, {"acct_x", "", ""}}
	answers := map[string]bool{}
	// Not a proof of equal time, which needs a quiet machine, but of equal work: a class that skips the hash is several times faster however long one looks. What else the machine does only
	// makes a login take longer, so that it is the quickest of each class that tell.
	quickest := []time.Duration{time.Hour, time.Hour, time.Hour, time.Hour, time.Hour}
	alike := func() bool { return slices.Max(quickest[:4]) <= 3*slices.Min(quickest[:4]) }
	for round := 0; round < 9 || round < 90 && !alike(); round++ {
		for i, c := range classes {
			r, took := ask(c[0], c[1], c[2])
			answers[normal(r, r.problem(401, core.CodeInvalidLogin))] = true
			quickest[i] = min(quickest[i], took)
		}
	}
	if len(answers) != 1 {
		t.Errorf("%d answers: %v", len(answers), answers)
	}
	if !alike() {
		t.Errorf("the quickest logins that are refused took %v: of %v", quickest[:4], classes[:4])
	}
	l, err := b.store.AuditEvents(context.Background(), core.DefaultAccount, core.AuditFilter{Action: core.ActionSessionCreate}, core.Page{Limit: 5})
	b.must(err)
	for _, e := range l.Items {
		if e.Outcome != core.OutcomeRefused || e.Reason != string(core.CodeInvalidLogin) {
			t.Errorf("audit %+v", e)
		}
	}
}

// Guessing is bounded by where it comes from, before any work, and locks nobody else out.
func TestLoginGate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.user(core.DefaultAccount, "ada", auth.Viewer)
	from := func(address, user, password string) *reply {
		req := httptest.NewRequest("POST", "/v1/auth/login", strings.NewReader(loginBody("", user, password)))
		req.RemoteAddr = address
		req.Header.Set("Content-Type", typeJSON)
		return b.do(req)
	}
	const guesser, other = "203.0.113.9:1", "198.51.100.1:1"
	// Many at once do not get past.
	var wrong, limited atomic.Int64
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() {
			switch r := from(guesser, "ada", "wrong-wrong-wrong"); r.code {
			case http.StatusUnauthorized:
				wrong.Add(1)
			case http.StatusTooManyRequests:
				limited.Add(1)
				if r.header.Get("Retry-After") == "" {
					t.Error("no Retry-After")
				}
			default:
				t.Errorf("status %d", r.code)
			}
		})
	}
	all.Wait()
	if wrong.Load() > 10 || limited.Load() < 20 {
		t.Errorf("%d guesses were checked, %d refused", wrong.Load(), limited.Load())
	}
	from(guesser, "ada", sweepPassword).problem(429, core.CodeRateLimited)
	from(other, "ada", sweepPassword).want(200)
	// Other users from the same place: until the place as a whole has failed too often.
	n := 0
	for ; n < 100 && from(guesser, fmt.Sprint("user", n), "wrong-wrong-wrong").code == 401; n++ {
	}
	if n < 30 || n > 45 {
		t.Errorf("%d more guesses were checked", n)
	}
	from(other, "ada", sweepPassword).want(200)
	// A setup token is guessed no faster.
	from2 := func() *reply {
		req := httptest.NewRequest("POST", "/v1/setup", strings.NewReader(`{"token":"kfs_x","name":"root","password":"x"}`))
		req.RemoteAddr = "192.0.2.1:1"
		req.Header.Set("Content-Type", typeJSON)
		return b.do(req)
	}
	for range 10 {
		from2().problem(401, core.CodeInvalidLogin)
	}
	from2().problem(429, core.CodeRateLimited)
}

// Nobody can hand out, or take over, more than they may do themselves.
func TestNobodyRisesAboveThemselves(t *testing.T) {
	t.Parallel()
	b := setup(t)
	root := b.user(core.DefaultAccount, "root", auth.Superuser)
	second := b.user(core.DefaultAccount, "owner2", auth.Owner)
	b.user(core.DefaultAccount, "owner", auth.Owner)
	b.user(core.DefaultAccount, "operator", auth.Operator)
	b.user(core.DefaultAccount, "viewer", auth.Viewer)
	owner, _ := b.login("", "owner")
	password := `{"password":"violet-9-orchid-lamp"}`
	// An owner of the default account is no superuser, and cannot become one by way of one.
	b.call("PUT", "/v1/users/"+root+"/password", owner, password).problem(403, core.CodeInsufficientScope)
	b.call("PUT", "/v1/users/root/role", owner, `{"role":"viewer"}`).problem(403, core.CodeInsufficientScope)
	b.call("POST", "/v1/users/root/disable", owner, "").problem(403, core.CodeInsufficientScope)
	b.call("DELETE", "/v1/users/root", owner, "").problem(403, core.CodeInsufficientScope)
	b.call("PUT", "/v1/users/viewer/role", owner, `{"role":"superuser"}`).problem(403, core.CodeInsufficientScope)
	b.call("POST", "/v1/users", owner, `{"name":"x","role":"superuser","password":"`+sweepPassword+`"}`).problem(403, core.CodeInsufficientScope)
	b.call("POST", "/v1/keys", owner, `{"name":"x","type":"admin","scopes":["accounts:write"]}`).problem(422, core.CodeInvalidInput)
	b.call("POST", "/v1/keys", owner, `{"name":"x","type":"admin","scopes":["plugins:write"]}`).problem(422, core.CodeInvalidInput)
	b.call("GET", "/v1/accounts", owner, "").problem(403, core.CodeInsufficientScope)
	b.call("PUT", "/v1/users/"+second+"/password", owner, password).want(200)
	// Not oneself, so that nobody locks themselves out by mistake.
	for _, c := range [][3]string{{"PUT", "/role", `{"role":"viewer"}`}, {"POST", "/disable", ""}, {"DELETE", "", ""}} {
		b.call(c[0], "/v1/users/owner"+c[1], owner, c[2]).problem(409, core.CodeConflict)
	}
	// A key with users:write and little else makes users who may little.
	_, weak := b.key(admin.NewKey{Type: auth.AdminKey, Scopes: []string{auth.ScopeUsersWrite, auth.ScopeUsersRead}})
	b.call("POST", "/v1/users", weak, `{"name":"y","role":"viewer","password":"`+sweepPassword+`"}`).problem(403, core.CodeInsufficientScope)
	b.call("PUT", "/v1/users/viewer/password", weak, password).problem(403, core.CodeInsufficientScope)
	// A key with keys:write and little else makes no mightier key its own, and lifts nothing that holds it back. It can stop one that has leaked.
	_, little := b.key(admin.NewKey{Type: auth.AdminKey, Scopes: []string{auth.ScopeKeysWrite, auth.ScopeKeysRead}})
	mighty, _ := b.key(admin.NewKey{Type: auth.AdminKey, KeyLimits: admin.KeyLimits{AllowedIPs: []string{"203.0.113.7"}}})
	at1 := "/v1/keys/" + mighty.ID
	for _, change := range []string{`{"allowed_ips":[]}`, `{"expires_at":null}`, `{"max_runs":null}`, `{"allow_query":true}`, `{"scopes":["keys:read"]}`, `{"disabled":true,"allowed_ips":null}`} {
		b.call("PATCH", at1, little, change).problem(403, core.CodeInsufficientScope)
	}
	b.call("POST", at1+"/rotate", little, "").problem(403, core.CodeInsufficientScope)
	b.call("PATCH", at1, little, `{"disabled":true}`).want(200)
	b.call("POST", at1+"/enable", little, "").problem(403, core.CodeInsufficientScope)
	b.call("PATCH", at1, little, `{"disabled":false}`).problem(403, core.CodeInsufficientScope)
	b.call("POST", at1+"/disable", little, "").want(200)
	b.call("DELETE", at1, little, "").want(204)
	// A key for a group of workflows goes on managing the keys that it makes for one of them.
	b.publish("billing/invoice", "")
	_, group := b.key(admin.NewKey{Type: auth.AdminKey, Scopes: []string{auth.ScopeKeysWrite, auth.ScopeRunWorkflow + "billing/*"}})
	own := b.call("POST", "/v1/keys", group, `{"name":"x","workflow":"billing/invoice"}`).want(201).object()["id"].(string)
	b.call("PATCH", "/v1/keys/"+own, group, `{"max_runs":5}`).want(200)
	b.call("POST", "/v1/keys/"+own+"/rotate", group, "").want(201)
	// A key's default is what its maker may, and no scope of the server.
	operator, _ := b.login("", "operator")
	made := b.call("POST", "/v1/keys", operator, `{"name":"x","type":"admin"}`).want(201).object()
	var scopes []string
	for _, s := range made["scopes"].([]any) {
		scopes = append(scopes, s.(string))
	}
	if !auth.Covers(auth.Operator.Scopes(), scopes) || !slices.Contains(scopes, auth.ScopeKeysWrite) {
		t.Errorf("an operator's key may %v", scopes)
	}
	// Viewers see, and that is all.
	viewer, _ := b.login("", "viewer")
	b.publish("greet", "")
	for _, path := range []string{"/v1/workflows", "/v1/runs", "/v1/keys", "/v1/secrets", "/v1/users/viewer", "/v1/auth/whoami"} {
		if path != "/v1/secrets" {
			b.call("GET", path, viewer, "").want(200)
		}
	}
	for _, c := range [][3]string{
		{"POST", "/v1/workflows/greet/runs", "{}"},
		{"POST", "/v1/workflows/greet/disable", ""},
		{"POST", "/v1/keys", `{"name":"x","global":true}`},
		{"GET", "/v1/audit", ""},
		{"GET", "/v1/users", ""},
		{"PUT", "/v1/secrets/TOKEN", `{"value":"12345678"}`},
		{"GET", "/v1/plugins", ""},
		{"POST", "/v1/auth/signing-key/rotate", ""},
	} {
		b.call(c[0], c[1], viewer, c[2]).problem(403, core.CodeInsufficientScope)
	}
	// A superuser acts for an account by saying so; what it does there is that account's, in its own name.
	acme := b.newAccount("acme")
	super, _ := b.login("", "root")
	b.call("POST", "/v1/users", super, `{"name":"ada","role":"owner","password":"`+sweepPassword+`"}`, headerAccount, "acme").want(201)
	if self := b.call("GET", "/v1/auth/whoami", super, "", headerAccount, acme.ID).want(200).object(); at(self, "account")["name"] != "acme" || self["role"] != "superuser" {
		t.Errorf("whoami %v", self)
	}
	boss := b.boss
	boss.Principal.Account = acme.ID
	l, err := b.admin.AuditEvents(context.Background(), boss, core.AuditFilter{Action: core.ActionUserCreate}, core.Page{})
	b.must(err)
	if len(l.Items) != 1 || l.Items[0].Actor != "user:"+root {
		t.Errorf("audit %+v", l.Items)
	}
	// A superuser's key does the same, but starts no runs at nobody's cost.
	_, key := b.key(admin.NewKey{Type: auth.AdminKey, Scopes: []string{auth.ScopeAccountsWrite, auth.ScopeRunAll, auth.ScopeKeysRead}})
	b.call("GET", "/v1/keys", key, "", headerAccount, "acme").want(200)
	b.call("POST", "/v1/workflows/greet/runs", key, "{}", headerAccount, "acme").problem(403, core.CodeInsufficientScope)
	b.call("GET", "/v1/keys", key, "", headerAccount, "none").problem(404, core.CodeNotFound)
	b.call("POST", "/v1/keys", super, `{"name":"x","type":"admin","scopes":["accounts:write"]}`, headerAccount, "acme").problem(422, core.CodeInvalidInput)
}

// K2: with an account switched off while its callers keep calling, no request that begins after the answer is accepted, by no credential.
func TestDisabledAccountIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, func(tc *trigger.Config, _ *Config) { tc.MaxPending = 1 << 16 })
	acme := b.newAccount("acme")
	boss := b.boss
	boss.Principal.Account = acme.ID
	ctx := context.Background()
	_, err := b.admin.PublishWorkflow(ctx, boss, admin.Publish{
		Slug: "greet", Filename: "workflow.yaml", Source: []byte(workflowFile("greet", "")), Modules: map[string][]byte{"./only.wasm": []byte(wasm)},
	})
	b.must(err)
	_, key, err := b.admin.CreateKey(ctx, boss, admin.NewKey{Name: "x", Scopes: []string{auth.ScopeRunAll}})
	b.must(err)
	b.user(acme.ID, "ada", auth.Owner)
	access, _ := b.login("acme", "ada")
	var off atomic.Int64 // odd while the account is known to be off
	var stop atomic.Bool
	var served, refused, late atomic.Int64
	var callers sync.WaitGroup
	for i := range 8 {
		callers.Go(func() {
			for !stop.Load() {
				before := off.Load()
				var r *reply
				if i%2 == 0 {
					r = b.call("POST", "/v1/workflows/greet/runs", key.Reveal(), "{}")
				} else {
					r = b.call("GET", "/v1/auth/whoami", access, "")
				}
				switch r.code {
				case 200:
					served.Add(1)
					if before%2 == 1 && off.Load() == before {
						late.Add(1)
					}
				case 401:
					refused.Add(1)
				default:
					t.Errorf("status %d: %s", r.code, r.body)
				}
			}
		})
	}
	const rounds = 10
	for range rounds {
		_, err := b.admin.SetAccountEnabled(ctx, b.boss, "acme", false, "")
		b.must(err)
		off.Add(1)
		for n := refused.Load(); refused.Load() < n+16; {
			time.Sleep(time.Millisecond)
		}
		off.Add(1)
		_, err = b.admin.SetAccountEnabled(ctx, b.boss, "acme", true, "")
		b.must(err)
		for n := served.Load(); served.Load() < n+16; {
			time.Sleep(time.Millisecond)
		}
	}
	stop.Store(true)
	callers.Wait()
	if late.Load() != 0 {
		t.Errorf("%d requests were accepted while the account was off", late.Load())
	}
	t.Logf("%d times off: %d served, %d refused, %d accepted after", rounds, served.Load(), refused.Load(), late.Load())
}
