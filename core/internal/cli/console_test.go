package cli

import (
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/sdk/client"
)

const (
	consolePassword = "lamp-orchid-9-violet"
	keysPage        = "/settings/workflow-keys"
)

// startConsole starts a server whose first superuser is root, with consolePassword.
func startConsole(t *testing.T, args ...string) *testServer {
	t.Helper()
	data := filepath.Join(t.TempDir(), "data")
	copyData(t, data)
	log := &syncBuffer{}
	cmd := exec.Command("keyfire", append([]string{"serve", "--json", "--data", data, "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Env = cleanEnv("KEYFIRE_SUPERUSER=root", "KEYFIRE_SUPERUSER_PASSWORD="+consolePassword)
	p, err := launchCommand(cmd, data, log)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return &testServer{process: p, admin: socketClient(t, data), log: log}
}

// visitor is a browser that keeps cookies and follows redirects, without the window.
type visitor struct {
	t    *testing.T
	base string
	http *http.Client
}

func newVisitor(t *testing.T, base string) *visitor {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &visitor{t: t, base: base, http: &http.Client{Jar: jar, Transport: transport}}
}

// shown is a page as the visitor gets it.
type shown struct {
	t      *testing.T
	path   string // where the redirects have led
	status int
	header http.Header
	body   string
}

func (v *visitor) do(method, path, body string, header map[string]string) *shown {
	v.t.Helper()
	req, err := http.NewRequestWithContext(v.t.Context(), method, v.base+path, strings.NewReader(body))
	if err != nil {
		v.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	res, err := v.http.Do(req)
	if err != nil {
		v.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	return &shown{t: v.t, path: res.Request.URL.RequestURI(), status: res.StatusCode, header: res.Header, body: string(raw)}
}

func (v *visitor) get(path string) *shown {
	v.t.Helper()
	return v.do(http.MethodGet, path, "", nil)
}

func (v *visitor) post(path string, form ...string) *shown {
	v.t.Helper()
	values := url.Values{}
	for i := 0; i < len(form); i += 2 {
		values.Set(form[i], form[i+1])
	}
	return v.do(http.MethodPost, path, values.Encode(), map[string]string{"Sec-Fetch-Site": "same-origin"})
}

func (v *visitor) login(user, account string) *visitor {
	v.t.Helper()
	v.post("/settings/login", "user", user, "password", consolePassword, "account", account).want(200, keysPage)
	return v
}

// cookie is the session that the visitor's browser keeps.
func (v *visitor) cookie() string {
	u, err := url.Parse(v.base + keysPage)
	if err != nil {
		v.t.Fatal(err)
	}
	for _, c := range v.http.Jar.Cookies(u) {
		return c.Value
	}
	return ""
}

// want checks the status, where it was led to, and that the page can load and run nothing from anywhere.
func (s *shown) want(status int, path string, texts ...string) *shown {
	s.t.Helper()
	if s.status != status || path != "" && s.path != path {
		s.t.Fatalf("status %d at %s, want %d at %s:\n%s", s.status, s.path, status, path, s.body)
	}
	if csp := s.header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; ") || !strings.Contains(csp, "frame-ancestors 'none'") {
		s.t.Errorf("policy %q", csp)
	}
	if s.header.Get("Cache-Control") != "no-store" || s.header.Get("Keyfire-Request-Id") == "" || strings.Contains(s.body, "<script") {
		s.t.Errorf("header %v", s.header)
	}
	for _, text := range texts {
		if !strings.Contains(s.body, text) {
			s.t.Fatalf("the page does not say %q:\n%s", text, s.body)
		}
	}
	return s
}

func (s *shown) lacks(texts ...string) *shown {
	s.t.Helper()
	for _, text := range texts {
		if strings.Contains(s.body, text) {
			s.t.Errorf("the page says %q:\n%s", text, s.body)
		}
	}
	return s
}

var (
	secretShown = regexp.MustCompile(`<pre id="secret"><code>(kft_[0-9A-Za-z]{50})</code>`)
	cardID      = regexp.MustCompile(`<article class="card[^"]*" id="(key_[0-9a-z]+)">\s*<h2>([^<]*)</h2>`)
)

// B5 to B10 by forms: a key is made, shown once, listed, used, and revoked after a confirmation, and all of it is in the audit log as what that person did.
func TestB9ConsoleKeys(t *testing.T) {
	t.Parallel()
	s := startConsole(t)
	v := newVisitor(t, s.url)
	v.get(keysPage).want(200, "/settings/login?next=%2Fsettings%2Fworkflow-keys", "Password")
	v.post("/settings/login", "user", "root", "password", "wrong").want(401, "", "the account, the name or the password is not right").lacks("wrong\"")
	v.login("root", "").get("/settings/").want(200, keysPage, "There is no key yet")
	v.get("/settings").want(200, keysPage, "There is no key yet")

	// B5: the form, and what is wrong with one. Nothing is made, and what was typed is still there.
	form := v.get(keysPage+"/new").want(200, "", `<option value="90" selected>`, "<option>echo</option>", "<option>billing/scoped</option>", `maxlength="32"`).lacks("<option>closed")
	for _, days := range []string{"", "30", "60", "180", "365"} {
		if !strings.Contains(form.body, `<option value="`+days+`">`) {
			t.Errorf("no choice of %q days", days)
		}
	}
	for _, wrong := range [][]string{
		{"description", "", "workflow", "echo", "expires", "90"},
		{"description", strings.Repeat("é", 33), "workflow", "echo", "expires", "90"},
		{"description", "both", "workflow", "echo", "global", "true", "expires", "90"},
		{"description", "neither", "expires", "90"},
		{"description", "no such life", "workflow", "echo", "expires", "7"},
		{"description", "no such workflow", "workflow", "nothing", "expires", "90"},
	} {
		page := v.post(keysPage, wrong...).want(422, keysPage, `class="problem"`)
		if wrong[1] != "" {
			page.want(422, "", `value="`+wrong[1]+`"`)
		}
	}
	v.get(keysPage).want(200, "", "There is no key yet")

	// B6: the text, this once, and a call that works.
	const name = `<b>CRM</b> "webhook"`
	made := v.post(keysPage, "description", name, "workflow", "echo", "expires", "30").want(201, keysPage, "&lt;b&gt;CRM", "curl -X POST", "/v1/workflows/echo/runs").lacks("<b>CRM")
	found := secretShown.FindStringSubmatch(made.body)
	if found == nil {
		t.Fatalf("the page has no key:\n%s", made.body)
	}
	secret := found[1]
	caller := s.client(t, secret)
	if _, err := caller.Trigger(t.Context(), "echo", client.TriggerRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := caller.Trigger(t.Context(), "typed", client.TriggerRequest{}); statusOf(err) != 403 {
		t.Errorf("another workflow: %v", err)
	}

	// B5: echo has a key now. B7: the card.
	v.get(keysPage+"/new").want(200, "").lacks("<option>echo</option>")
	list := v.get(keysPage).want(200, "", "&lt;b&gt;CRM", `<span class="badge">echo</span>`, "..."+secret[len(secret)-4:], "by root", "<dt>Last used</dt>", "<dd>1</dd>").lacks(secret)
	expires := time.Now().UTC().AddDate(0, 0, 30).Format("2006-01-02")
	if !strings.Contains(list.body, expires) && !strings.Contains(list.body, time.Now().UTC().AddDate(0, 0, 30).Add(-time.Minute).Format("2006-01-02")) {
		t.Errorf("it does not expire on %s:\n%s", expires, list.body)
	}
	v.post(keysPage, "description", "everything", "global", "true", "expires", "").want(201, keysPage, "It expires: never")
	v.get(keysPage).want(200, "", `<span class="badge global">global</span>`)

	// B8: a key whose workflow is gone is flagged and comes last.
	v.post(keysPage, "description", "for loop", "workflow", "loop", "expires", "90").want(201, keysPage)
	if _, err := s.admin.DeleteWorkflow(t.Context(), "loop", ""); err != nil {
		t.Fatal(err)
	}
	list = v.get(keysPage).want(200, "", "card orphaned", "orphaned</span>", "(deleted)")
	cards := cardID.FindAllStringSubmatch(list.body, -1)
	if len(cards) != 3 || cards[2][2] != "for loop" {
		t.Fatalf("cards %v", cards)
	}

	// B9: revoking asks first.
	var id string
	for _, c := range cards {
		if strings.Contains(c[2], "CRM") {
			id = c[1]
		}
	}
	v.get(keysPage+"/"+id).want(200, "", "Revoke", "cannot be taken back")
	if _, err := caller.Trigger(t.Context(), "echo", client.TriggerRequest{}); err != nil {
		t.Errorf("asking has revoked it: %v", err)
	}
	v.post(keysPage+"/"+id, "reason", "contract ended").want(200, keysPage+"?revoked", "The key is revoked").lacks("&lt;b&gt;CRM")
	if _, err := caller.Trigger(t.Context(), "echo", client.TriggerRequest{}); statusOf(err) != 401 {
		t.Errorf("after the revocation: %v", err)
	}
	v.get(keysPage+"/new").want(200, "", "<option>echo</option>")

	// B10: who did it.
	root, err := s.admin.User(t.Context(), "root")
	if err != nil {
		t.Fatal(err)
	}
	events, err := s.admin.AuditEvents(t.Context(), client.AuditQuery{Target: id})
	if err != nil {
		t.Fatal(err)
	}
	if len(events.Data) != 2 || events.Data[0].Action != "key.revoke" || events.Data[0].Reason != "contract ended" || events.Data[0].Actor != "user:"+root.ID || events.Data[1].Actor != "user:"+root.ID {
		t.Errorf("audit %+v", events.Data)
	}
	if strings.Contains(s.log.String(), secret) || strings.Contains(s.log.String(), v.cookie()) {
		t.Error("the log has a secret")
	}
	v.get("/settings/adapters").want(200, "", "Keyflow", "miiflow", "Langflow", "Bifrost", "compat.bifrost") // C8
}

// A page shows and does what its visitor's role and account allow, as the API does, and only while the session holds.
func TestA3ConsoleSessions(t *testing.T) {
	t.Parallel()
	s := startConsole(t, "--compat-miiflow=false")
	ctx := t.Context()
	for name, role := range map[string]string{"vera": "viewer", "otto": "operator"} {
		if _, err := s.admin.CreateUser(ctx, name, role, consolePassword); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.admin.CreateAccount(ctx, "acme", "Acme"); err != nil {
		t.Fatal(err)
	}
	ses, err := s.client(t, "").Login(ctx, "", "root", consolePassword)
	if err != nil {
		t.Fatal(err)
	}
	acme, err := client.New(client.Config{URL: s.url, Key: ses.AccessToken, Account: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := acme.CreateUser(ctx, "ada", "owner", consolePassword); err != nil {
		t.Fatal(err)
	}
	own := s.createKey(t, client.NewKey{Name: "default's", Workflow: "echo"})

	// A viewer sees, and changes nothing.
	vera := newVisitor(t, s.url).login("vera", "")
	vera.get(keysPage).want(200, "", "default&#39;s").lacks("New key", "Revoke")
	vera.get(keysPage+"/new").want(403, "", "keys:write")
	vera.post(keysPage, "description", "x", "workflow", "typed", "expires", "90").want(403, "", "keys:write")
	vera.post(keysPage+"/"+own.ID).want(403, "", "keys:write")

	// Admin keys are not for these pages: there is none, whatever is asked.
	boss := s.createKey(t, client.NewKey{Name: "boss", Type: "admin"})
	root := newVisitor(t, s.url).login("root", "")
	root.get(keysPage).want(200, "", "default&#39;s").lacks("boss")
	root.get(keysPage+"/"+boss.ID).want(404, "")
	root.post(keysPage+"/"+boss.ID, "reason", "x").want(404, "")
	if _, err := s.client(t, boss.Secret).Keys(ctx, client.Page{}); err != nil {
		t.Errorf("an admin key was revoked by a page that does not have it: %v", err)
	}

	// Another account's key is as good as none.
	ada := newVisitor(t, s.url).login("ada", "acme")
	ada.get(keysPage).want(200, "", "There is no key yet").lacks("default&#39;s")
	request := regexp.MustCompile(`req_[0-9a-z]{26}`)
	none := own.ID[:len(own.ID)-4] + "zzzz"
	for _, ask := range []func(id string) *shown{
		func(id string) *shown { return ada.get(keysPage + "/" + id) },
		func(id string) *shown { return ada.post(keysPage+"/"+id, "reason", "x") },
	} {
		theirs, nobodys := ask(own.ID).want(404, ""), ask(none).want(404, "")
		if request.ReplaceAllString(theirs.body, "") != request.ReplaceAllString(nobodys.body, "") {
			t.Errorf("another account's key and none are told apart:\n%s\n%s", theirs.body, nobodys.body)
		}
	}
	ada.post(keysPage, "description", "x", "workflow", "echo", "expires", "90").want(422, "", "does not exist")
	if _, err := s.client(t, own.Secret).Trigger(ctx, "echo", client.TriggerRequest{}); err != nil {
		t.Errorf("the key was changed: %v", err)
	}

	// The session is for these pages alone, and no credential anywhere else.
	otto := newVisitor(t, s.url).login("otto", "")
	if got := otto.get("/v1/keys"); got.status != 401 {
		t.Errorf("the API takes the cookie: %d", got.status)
	}
	if got := otto.do(http.MethodGet, "/v1/keys", "", map[string]string{"Cookie": "keyfire_console=" + otto.cookie()}); got.status != 401 {
		t.Errorf("the API takes the cookie when it is sent: %d", got.status)
	}
	if got := otto.do(http.MethodGet, "/v1/keys", "", map[string]string{"Authorization": "Bearer " + otto.cookie()}); got.status != 401 {
		t.Errorf("the API takes the session's token: %d", got.status)
	}

	// Pages of others cannot send forms, however they say who they are.
	form := url.Values{"description": {"forged"}, "global": {"true"}, "expires": {""}}.Encode()
	for _, from := range []map[string]string{
		{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site", "Origin": s.url},
	} {
		otto.do(http.MethodPost, keysPage, form, from).want(403, keysPage, "another site")
	}
	otto.do(http.MethodPost, keysPage, form, map[string]string{"Content-Type": "text/plain"}).want(415, "")
	otto.do(http.MethodPost, keysPage, "description="+strings.Repeat("x", 20<<10), nil).want(413, "")
	otto.do(http.MethodPost, keysPage, "description=%zz", nil).want(400, "")
	otto.get(keysPage).want(200, "").lacks("forged")
	for _, path := range []string{"/settings/nothing", keysPage + "/", keysPage + "/a/b", keysPage + "/key_none", "/settings//workflow-keys"} {
		otto.get(path).want(404, "")
	}
	if got := otto.do(http.MethodDelete, keysPage, "", nil); got.status != 405 {
		t.Errorf("DELETE: %d", got.status)
	}

	// After the login the way leads to a page of ours, and nowhere else.
	for next, to := range map[string]string{
		"/settings/adapters": "/settings/adapters", "https://evil.example/settings/": keysPage, "//evil.example/settings/": keysPage, "/settings/../v1/keys": keysPage,
		`/\evil.example`: keysPage, "/settings/login": keysPage, "javascript:alert(1)": keysPage, keysPage + "?after=x%0d%0aSet-Cookie:a=b": "",
	} {
		res := newVisitor(t, s.url).post("/settings/login", "user", "otto", "password", consolePassword, "next", next)
		if to != "" && (res.status != 200 || res.path != to) || len(res.header.Values("Set-Cookie")) > 0 {
			t.Errorf("next %s: %d at %s", next, res.status, res.path)
		}
	}
	otto.get("/settings/adapters").want(200, "", `<span class="badge bad">off</span>`)

	// What ends a session holds on the next request.
	if _, err := s.admin.SetUserRole(ctx, "vera", "operator"); err != nil {
		t.Fatal(err)
	}
	vera.get(keysPage).want(200, "/settings/login?next=%2Fsettings%2Fworkflow-keys")
	vera.login("vera", "").get(keysPage).want(200, keysPage, "New key")
	token := vera.cookie()
	vera.post("/settings/logout").want(200, "/settings/login")
	if vera.cookie() != "" {
		t.Error("the cookie is still there")
	}
	stale := newVisitor(t, s.url)
	stale.do(http.MethodGet, keysPage, "", map[string]string{"Cookie": "keyfire_console=" + token}).want(200, "/settings/login?next=%2Fsettings%2Fworkflow-keys")

	// Somebody takes the token and refreshes with it: the visitor is logged out, and so is the thief.
	stolen, err := s.client(t, "").Refresh(ctx, otto.cookie())
	if err != nil {
		t.Fatal(err)
	}
	otto.get(keysPage).want(200, "/settings/login?next=%2Fsettings%2Fworkflow-keys")
	if _, err := s.client(t, stolen.AccessToken).Keys(ctx, client.Page{}); statusOf(err) != 401 {
		t.Errorf("the thief: %v", err)
	}
	if _, err := s.client(t, "").Refresh(ctx, stolen.RefreshToken); statusOf(err) != 401 {
		t.Errorf("the thief refreshes: %v", err)
	}
}

// An operator who wants no pages has none.
func TestConsoleOff(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--console=false")
	v := newVisitor(t, s.url)
	for _, path := range []string{keysPage, "/settings/login", "/settings/style.css"} {
		if got := v.get(path); got.status != 404 || got.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
}

// statusOf is the status that a call was refused with, 0 when it was not.
func statusOf(err error) int {
	var answer *client.Error
	if errors.As(err, &answer) {
		return answer.Status
	}
	return 0
}

// B9 in a real browser: log in, make a key, use it, revoke it, log out. The browser holds the pages to their policy, and its cookie and its forms to the rules for both.
func TestB9Browser(t *testing.T) {
	t.Parallel()
	s := startConsole(t)
	b := openBrowser(t, s.url)
	b.open(keysPage)
	b.fill("user", "root")
	b.fill("password", consolePassword)
	b.click("Log in")
	b.reads("Workflow keys", "There is no key yet", "root, superuser")
	if got := b.eval("document.cookie"); got != "" {
		t.Errorf("scripts see the cookie %q", got)
	}
	if got := b.eval(`getComputedStyle(document.querySelector("header")).display`); got != "flex" {
		t.Errorf("the style sheet was not loaded: display %q", got)
	}

	b.click("New key")
	if got := b.eval(`document.querySelector("[name=expires]").selectedOptions[0].innerText`); got != "90 days" {
		t.Errorf("the key would expire after %q", got)
	}
	b.fill("description", `<img src=x onerror="document.title='run'">`[:32])
	b.fill("workflow", "echo")
	b.click("Make the key")
	b.reads("This is the only time its text is shown", "<img src=x", "/v1/workflows/echo/runs")
	secret := b.eval(`document.querySelector("#secret").innerText`)
	caller := s.client(t, secret)
	if _, err := caller.Trigger(t.Context(), "echo", client.TriggerRequest{}); err != nil {
		t.Fatal(err)
	}
	b.click("I have copied it")
	b.reads("<img src=x", "echo", secret[len(secret)-4:])
	if got := b.eval("document.title"); got != "Workflow keys - Keyfire" {
		t.Errorf("title %q: a description was run", got)
	}

	if got := b.eval(`document.querySelector("article a").getAttribute("aria-label")`); !strings.HasPrefix(got, "Revoke <img src=x") {
		t.Errorf("to who hears links read out, the one that revokes this key is %q", got)
	}
	b.click("Revoke")
	b.reads("cannot be taken back")
	b.click("Cancel")
	b.reads(secret[len(secret)-4:])
	b.click("Revoke")
	b.click("Revoke")
	b.reads("The key is revoked", "There is no key yet")
	if _, err := caller.Trigger(t.Context(), "echo", client.TriggerRequest{}); statusOf(err) != 401 {
		t.Errorf("after the revocation: %v", err)
	}

	long := s.createKey(t, client.NewKey{Name: strings.Repeat("w", 60), Workflow: "echo"})
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": false}, nil)
	for _, page := range []string{keysPage, keysPage + "/new", keysPage + "/" + long.ID, "/settings/adapters", "/docs"} {
		b.open(page)
		if got := b.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth"); got != "0" {
			t.Errorf("%s is %s pixels too wide for a window of 320", page, got)
		}
	}
	b.open(keysPage)
	b.click("Log out")
	b.reads("Password")
	b.open(keysPage)
	b.reads("Password")
}
