package server

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/server/compat"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

func TestCredentialPlaces(t *testing.T) {
	t.Parallel()
	s := &Server{Config: Config{AuthSchemes: []string{"hmac"}, AuthHeaders: []string{"X-Hub-Signature-256"}}}
	for _, c := range []struct {
		name   string
		target string
		header http.Header
		place  auth.Place
		text   string
		left   string // query that is left
		two    bool
	}{
		{name: "none", target: "/"},
		{name: "bearer", header: http.Header{"Authorization": {"Bearer abc"}}, place: auth.PlaceBearer, text: "abc"},
		{name: "bearer in another case", header: http.Header{"Authorization": {"bEARER  abc "}}, place: auth.PlaceBearer, text: "abc"},
		{name: "bearer before a tab", header: http.Header{"Authorization": {"Bearer\tabc"}}, place: auth.PlaceBearer, text: "abc"},
		{name: "a tab hides no second one", header: http.Header{"Authorization": {"Bearer\tabc"}, "X-Api-Key": {"k"}}, two: true},
		{name: "no scheme", header: http.Header{"Authorization": {"abc"}}},
		{name: "basic", header: http.Header{"Authorization": {"Basic abc"}}},
		{name: "basic beside a key", header: http.Header{"Authorization": {"Basic abc"}, "X-Api-Key": {"k"}}, place: auth.PlaceAPIKey, text: "k"},
		{name: "a backend's scheme", header: http.Header{"Authorization": {"HMAC a=1, b=2"}}, place: auth.PlaceAuthorization, text: "a=1, b=2"},
		{name: "a backend's scheme beside a key", header: http.Header{"Authorization": {"HMAC x"}, "X-Api-Key": {"x"}}, two: true},
		{name: "a backend's header", header: http.Header{"X-Hub-Signature-256": {"sha256=00"}}, place: auth.PlaceHeader},
		{name: "api key", header: http.Header{"X-Api-Key": {" abc "}}, place: auth.PlaceAPIKey, text: "abc"},
		{name: "bifrost", header: http.Header{"X-Bifrost-Key": {"abc"}}, place: auth.PlaceBifrost, text: "abc"},
		{name: "empty ones are absent", header: http.Header{"Authorization": {"Bearer "}, "X-Api-Key": {""}, "X-Bifrost-Key": {"abc"}}, place: auth.PlaceBifrost, text: "abc"},
		{name: "equal ones", target: "/?api_key=abc", header: http.Header{"Authorization": {"Bearer abc"}, "X-Api-Key": {"abc"}}, place: auth.PlaceBearer, text: "abc"},
		{name: "different ones", header: http.Header{"Authorization": {"Bearer abc"}, "X-Api-Key": {"abd"}}, two: true},
		{name: "repeated", header: http.Header{"X-Api-Key": {"abc", "abc"}}, two: true},
		{name: "repeated authorization", header: http.Header{"Authorization": {"Bearer abc", "Basic x"}}, two: true},
		{name: "a list", header: http.Header{"X-Api-Key": {"abc,abc"}}, two: true},
		{name: "a list of schemes", header: http.Header{"Authorization": {"Bearer abc, Basic x"}}, two: true},
		{name: "query", target: "/?x-api-key=abc", place: auth.PlaceQuery, text: "abc"},
		{name: "query among others", target: "/?a=1&api_key=a%62c&b=%20+x&b=2", place: auth.PlaceQuery, text: "abc", left: "a=1&b=%20+x&b=2"},
		{name: "query in another case", target: "/?X-API-Key=abc", place: auth.PlaceQuery, text: "abc"},
		{name: "escaped name", target: "/?x%2Dapi-key=abc", place: auth.PlaceQuery, text: "abc"},
		{name: "twice in the query", target: "/?api_key=abc&api_key=abc", two: true},
		{name: "two names in the query", target: "/?api_key=abc&x-api-key=abd", two: true},
		{name: "empty in the query", target: "/?api_key=&c", left: "c"},
		{name: "bad escapes", target: "/?api_key=%zz&d=%zz", place: auth.PlaceQuery, text: "%zz", left: "d=%zz"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.target == "" {
				c.target = "/"
			}
			r := httptest.NewRequest("GET", "/", nil)
			r.URL, _ = url.ParseRequestURI(c.target)
			r.RequestURI = c.target
			maps.Copy(r.Header, c.header)
			var got request
			s.takeCredential(r, &got)
			if (got.ambiguous != nil) != c.two {
				t.Fatalf("ambiguous: %v", got.ambiguous)
			}
			if !c.two && (got.credential.Place != c.place || got.credential.Secret.Reveal() != c.text) {
				t.Errorf("%s %q", got.credential.Place, got.credential.Secret.Reveal())
			}
			if c.place != auth.PlaceHeader && len(r.Header) > 0 {
				t.Errorf("left in the header: %v", r.Header)
			}
			if !c.two && r.URL.RawQuery != c.left || strings.Contains(r.RequestURI, "abc") || strings.Contains(r.URL.String(), "abc") {
				t.Errorf("left in the URL: %s %s", r.URL, r.RequestURI)
			}
		})
	}
}

// FuzzCredential throws headers and queries at the extractor. Whatever they are, it takes at most one credential, one that was sent, and leaves none behind.
func FuzzCredential(f *testing.F) {
	f.Add("Bearer kft_abc", "", "", "")
	f.Add("bearer  x ", "x", "x", "api_key=x&a=1")
	f.Add("Basic dTpw", "k,k", "", "x-api-key=%6b")
	f.Add("", " ", "\tq", "api%5Fkey=a&api_key=b&;=&&%zz=%zz")
	s := &Server{Config: Config{AuthSchemes: []string{"hmac"}}}
	f.Fuzz(func(t *testing.T, authorization, apiKey, bifrost, query string) {
		r := &http.Request{Method: "POST", URL: &url.URL{Path: "/v1/trigger", RawQuery: query}, Header: http.Header{
			"Authorization": {authorization}, "X-Api-Key": {apiKey}, "X-Bifrost-Key": {bifrost},
		}}
		var got request
		s.takeCredential(r, &got)
		text := got.credential.Secret.Reveal()
		if got.ambiguous != nil && text != "" {
			t.Fatal("ambiguous, and yet one was taken")
		}
		if len(r.Header) > 0 {
			t.Fatalf("left in the header: %v", r.Header)
		}
		var sent []string
		for pair := range strings.SplitSeq(query, "&") {
			name, value, _ := strings.Cut(pair, "=")
			if slices.Contains(queryKeys, strings.ToLower(unescape(name))) {
				sent = append(sent, strings.TrimSpace(unescape(value)))
			}
		}
		for pair := range strings.SplitSeq(r.URL.RawQuery, "&") {
			name, _, _ := strings.Cut(pair, "=")
			if slices.Contains(queryKeys, strings.ToLower(unescape(name))) {
				t.Fatalf("left in the query: %q", r.URL.RawQuery)
			}
		}
		switch got.credential.Place {
		case auth.PlaceQuery:
			if !slices.Contains(sent, text) {
				t.Fatalf("%q was not in the query %q", text, query)
			}
		case auth.PlaceBearer, auth.PlaceAuthorization:
			if !strings.Contains(authorization, text) {
				t.Fatalf("%q was not in %q", text, authorization)
			}
		case auth.PlaceAPIKey, auth.PlaceBifrost:
			if !strings.Contains(apiKey+" "+bifrost, text) {
				t.Fatalf("%q was not sent", text)
			}
		default:
			if text != "" {
				t.Fatalf("a credential from %q", got.credential.Place)
			}
		}
	})
}

func TestKeyInTheQuery(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	_, key := b.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}, AllowQuery: true})
	for _, name := range queryKeys {
		r := b.call("POST", "/v1/workflows/open/runs?"+name+"="+key, "", "{}").want(200)
		if r.header.Get("Deprecation") != queryDeprecation || r.header.Get("Cache-Control") != "no-store" || r.header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("header %v", r.header)
		}
		id := r.object()["id"].(string)
		r = b.call("GET", "/v1/runs/"+id+"?"+name+"="+key, "", "").want(200)
		if r.header.Get("Deprecation") == "" || r.header.Get("Cache-Control") != "no-store" {
			t.Errorf("header %v", r.header)
		}
	}
	if r := b.call("POST", "/v1/workflows/open/runs?x-api-key="+key, key, "{}").want(200); r.header.Get("Deprecation") != queryDeprecation {
		t.Error("a key in the URL is not deprecated when it is in a header too")
	}
	r := b.call("POST", "/v1/workflows/open/runs", key, "{}").want(200)
	if r.header.Get("Deprecation") != "" {
		t.Error("a header is not deprecated")
	}
	// The pages of a list are linked without the key.
	boss, text := b.key(admin.NewKey{Type: auth.AdminKey, AllowQuery: true})
	if link := b.call("GET", "/v1/runs?limit=1&api_key="+text, "", "").want(200).header.Get("Link"); link == "" || strings.Contains(link, boss.PublicID) {
		t.Errorf("Link %q", link)
	}
}

// K1: a key sent to any route, in any place, right or wrong, is in nothing that is written down or answered.
func TestKeysLeaveNoTrace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	b.server.engine.GET("/panic/:with", b.server.authenticate, func(c *gin.Context) { panic(fmt.Sprintf("request %v of %s", c.Request.Header, c.Param("with"))) })
	var keys []string
	for range 3 {
		_, k := b.key(admin.NewKey{Type: auth.AdminKey, AllowQuery: true})
		_, q := b.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}})
		keys = append(keys, k, q, wrongSecret(t, k), flip(q))
	}
	var answers bytes.Buffer
	for _, key := range keys {
		for _, route := range append(b.server.engine.Routes(), b.server.engine.Routes()[0]) {
			path := strings.NewReplacer(":workflow", key, ":run", key, ":step", key, ":key", key, ":version", key, ":with", key, ":file", key).Replace(route.Path)
			for _, how := range []func(r *http.Request){
				func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+key) },
				func(r *http.Request) {
					r.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(key)))
				},
				func(r *http.Request) { r.Header.Set("X-API-Key", key) },
				func(r *http.Request) { r.Header.Set("X-Bifrost-Key", key); r.Header.Set("X-Api-Key", "other") },
				func(r *http.Request) { r.Header.Set("Cookie", "session="+key) },
				func(r *http.Request) { r.URL.RawQuery = "api_key=" + url.QueryEscape(key) },
				func(r *http.Request) { r.URL.RawQuery = key + "=1&token=" + key; r.Header.Set("X-Api-Key", key) },
				func(r *http.Request) { r.Header.Set("Idempotency-Key", key+" "); r.Header.Set("X-Api-Key", key) },
				func(r *http.Request) {
					r.Header.Set("Traceparent", key)
					r.Header.Set("User-Agent", key)
					r.Header.Set("X-Forwarded-For", key)
				},
			} {
				r := httptest.NewRequest(route.Method, path, strings.NewReader(`{"`+key+`":"`+key+`"}`))
				r.Header.Set("Content-Type", "application/json")
				how(r)
				r.RequestURI = r.URL.RequestURI()
				w := httptest.NewRecorder()
				b.handler.ServeHTTP(w, r)
				answers.Write(w.Body.Bytes())
				_ = w.Header().Write(&answers)
			}
		}
	}
	for name, text := range map[string]string{"answers": answers.String(), "log": b.logs.String(), "spans": b.spanText()} {
		if len(text) < 1000 {
			t.Fatalf("only %d bytes of %s", len(text), name)
		}
		for _, key := range keys {
			for form, leak := range map[string]string{
				"text": key, "secret": key[16:48], "window": key[20:36], "base64": base64.StdEncoding.EncodeToString([]byte(key)), "hex": hex.EncodeToString([]byte(key)), "escaped": url.QueryEscape(key),
			} {
				if i := strings.Index(text, leak); i >= 0 {
					t.Errorf("%s in %s: ...%s...", form, name, text[max(0, i-120):min(len(text), i+120)])
					break
				}
			}
		}
	}
}

func (b *bundle) spanText() string {
	var text bytes.Buffer
	for _, s := range b.spans.Ended() {
		fmt.Fprintf(&text, "%s %v %v %v %v\n", s.Name(), s.Attributes(), s.Events(), s.Status(), s.Links())
	}
	return text.String()
}

func TestPanicsAreAnswered(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.server.engine.GET("/panic", func(*gin.Context) { panic("db password is hunter2") })
	b.server.engine.GET("/late", func(c *gin.Context) {
		_, _ = c.Writer.WriteString("half")
		panic("too late")
	})
	p := b.call("GET", "/panic", "", "").problem(500, core.CodeInternal)
	if p.Detail != "" {
		t.Errorf("detail %q", p.Detail)
	}
	if log := b.logs.String(); !strings.Contains(log, p.RequestID) || !strings.Contains(log, "credential_test.go") {
		t.Errorf("the log does not help: %s", log)
	}
	defer func() {
		if v := recover(); v != http.ErrAbortHandler {
			t.Errorf("recovered %v: a half answer must cut the connection", v)
		}
	}()
	b.call("GET", "/late", "", "")
}

// T1: a caller's trace is linked, a trusted proxy's is continued, and baggage goes nowhere.
func TestTraceContext(t *testing.T) {
	t.Parallel()
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	b := setup(t, func(_ *trigger.Config, sc *Config) {
		sc.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	})
	b.publish("open", "")
	key := b.globalKey()
	send := func(remote, traceparent string) (string, *Problem) {
		r := httptest.NewRequest("POST", "/v1/workflows/open/runs?token=hidden", strings.NewReader("{}"))
		r.RemoteAddr = remote
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+key)
		r.Header.Set("Traceparent", traceparent)
		r.Header.Set("Baggage", "userId=alice")
		p := b.do(r).problem(400, core.CodeInvalidRequest)
		return p.TraceID, p
	}
	if id, _ := send("10.1.1.1:1", parent); id != "4bf92f3577b34da6a3ce929d0e0e4736" {
		t.Errorf("a trusted proxy's trace is not continued: %s", id)
	}
	for _, bad := range []string{"", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "garbage", parent + "-x"} {
		if id, _ := send("10.1.1.1:1", bad); len(id) != 32 {
			t.Errorf("traceparent %q: %q", bad, id)
		}
	}
	id, p := send("203.0.113.7:1", parent)
	if id == "4bf92f3577b34da6a3ce929d0e0e4736" || len(id) != 32 {
		t.Errorf("anybody's trace is continued: %s", id)
	}
	linked := false
	for _, s := range b.spans.Ended() {
		if s.SpanContext().TraceID().String() != id || s.Name() != "trigger" {
			continue
		}
		if s.SpanKind() != trace.SpanKindServer || s.Parent().IsValid() {
			t.Errorf("span %v", s)
		}
		for _, l := range s.Links() {
			linked = linked || l.SpanContext.TraceID().String() == "4bf92f3577b34da6a3ce929d0e0e4736"
		}
		names := map[string]bool{}
		for _, a := range s.Attributes() {
			names[string(a.Key)] = true
		}
		if !names["keyfire.request.id"] || !names["http.route"] || !names["keyfire.error.code"] || !names["keyfire.workflow.id"] {
			t.Errorf("attributes %v", s.Attributes())
		}
	}
	if !linked {
		t.Error("the caller's trace is not linked")
	}
	if text := b.spanText() + b.logs.String(); strings.Contains(text, "alice") || strings.Contains(text, "hidden") {
		t.Error("baggage or query in spans or log")
	}
	if p.RequestID == "" {
		t.Error("no request id")
	}
}

// A native trigger has no parameters: whoever writes one means something that would not happen, and is told. No value is repeated, and nothing runs.
func TestQueryOfATriggerIsNotIgnored(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, c *Config) {
		c.Compat = compat.Products{Keyflow: true, Langflow: true, Bifrost: true}
	})
	b.publish("open", "")
	key, admin := b.globalKey(), b.adminKey()
	const said = "did you mean "
	for _, c := range []struct {
		method, target, key string
		status              int
		code                core.Code
		parameter, detail   string
	}{
		{"POST", "/v1/workflows/open/runs?wait=hidden", key, 400, core.CodeInvalidRequest, "wait", "the header Prefer"},
		{"POST", "/v1/workflows/open/runs?customer=hidden", key, 400, core.CodeInvalidRequest, "customer", "the body"},
		{"POST", "/v1/workflows/open/runs?API-KEYS=hidden", key, 400, core.CodeInvalidRequest, "API-KEYS", said + "api_key?"},
		{"POST", "/v1/workflows/open/runs?x_api_key=hidden", key, 400, core.CodeInvalidRequest, "x_api_key", said},
		{"POST", "/v1/workflows/open/runs?x=%zz", key, 400, core.CodeInvalidRequest, "", "not well-formed"},
		// Without a credential there is one answer everywhere, and what may help.
		{"POST", "/v1/workflows/open/runs?api_keys=hidden", "", 401, core.CodeUnauthenticated, "", said + "api_key?"},
		{"POST", "/v1/trigger?apikey=hidden", "", 401, core.CodeUnauthenticated, "", said + "api_key?"},
		{"POST", "/v1/hooks/open?x-apikey=hidden", "", 401, core.CodeUnauthenticated, "", said + "x-api-key?"},
		{"GET", "/v1/runs?x-api-keys=hidden", "", 401, core.CodeUnauthenticated, "", said + "x-api-key?"},
		{"GET", "/v1/runs?limit=1", "", 401, core.CodeUnauthenticated, "", "send an API key"},
	} {
		r := b.call(c.method, c.target, c.key, "{}")
		p := r.problem(c.status, c.code)
		if !strings.Contains(p.Detail, c.detail) || strings.Contains(string(r.body), "hidden") {
			t.Errorf("%s %s: %s", c.method, c.target, r.body)
		}
		if c.parameter != "" && (len(p.Errors) != 1 || p.Errors[0].Parameter != c.parameter) {
			t.Errorf("%s %s: %+v", c.method, c.target, p.Errors)
		}
	}
	if n := len(asList(b.call("GET", "/v1/runs", admin, "").want(200).object()["data"])); n != 0 {
		t.Errorf("%d runs", n)
	}
	// Webhooks and the other products' clients add parameters of their own, and go on.
	b.call("POST", "/v1/hooks/open?source=crm", key, "{}").want(202)
	b.call("POST", "/api/v1/run/open?stream=false&utm_source=x", key, `{"inputs":{}}`).want(200)
	if strings.Contains(b.spanText()+b.logs.String(), "hidden") {
		t.Error("the query is in spans or log")
	}
}

// A key in Authorization without the word Bearer is no credential, whether it is a good one or not, and its sender is told what is missing.
func TestKeyWithoutBearer(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	for _, c := range []struct{ authorization, says string }{
		{b.globalKey(), "write Authorization: Bearer"},
		{"kft_" + strings.Repeat("x", 50), "write Authorization: Bearer"},
		{"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.abcdefgh", "write Authorization: Bearer"},
		{"nonsense", "send an API key"},
		{"", "send an API key"},
	} {
		for _, target := range []string{"/v1/workflows/open/runs", "/v1/keys"} {
			r := b.call("POST", target, "", "{}", "Authorization", c.authorization)
			if p := r.problem(401, core.CodeUnauthenticated); !strings.Contains(p.Detail, c.says) || c.authorization != "" && strings.Contains(string(r.body), c.authorization) {
				t.Errorf("%s with %q: %s", target, c.authorization, r.body)
			}
		}
	}
}

// One line a request, with what an operator needs to find it again.
func TestAccessLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	key := b.globalKey()
	b.call("POST", "/v1/workflows/open/runs", key, "{}").want(200)
	b.call("GET", "/healthz", "", "").want(200)
	lines := strings.Split(strings.TrimSpace(b.logs.String()), "\n")
	if len(lines) != 1 {
		t.Fatalf("%d lines: %v", len(lines), lines)
	}
	var line map[string]any
	if err := json.Unmarshal([]byte(lines[0]), &line); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"request_id", "method", "path", "status", "duration", "bytes", "source_ip", "run_id", "principal"} {
		if line[name] == nil {
			t.Errorf("no %s in %v", name, line)
		}
	}
}

// A source that keeps sending bad credentials is slowed down; good ones from there are not.
func TestBadCredentialsAreLimited(t *testing.T) {
	t.Parallel()
	b := setup(t, func(tc *trigger.Config, _ *Config) { tc.MaxBadCredentials = 3 })
	b.publish("open", "")
	key := b.globalKey()
	for range 3 {
		b.call("GET", "/v1/keys", "nonsense", "").problem(401, core.CodeInvalidKey)
	}
	r := b.call("GET", "/v1/keys", "nonsense", "")
	if p := r.problem(429, core.CodeRateLimited); !p.Retryable || r.header.Get("Retry-After") == "" {
		t.Errorf("%s %v", r.body, r.header)
	}
	b.call("POST", "/v1/workflows/open/runs", key, "{}").want(200)
	req := httptest.NewRequest("GET", "/v1/keys", nil)
	req.RemoteAddr = "198.51.100.9:1"
	req.Header.Set("X-Api-Key", "nonsense")
	b.do(req).problem(401, core.CodeInvalidKey)
}
