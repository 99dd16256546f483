package server

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"testing"

	"github.com/keyfire/keyfire/core/internal/server/compat"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// RFC 9110 section 9.3.2: HEAD is answered wherever GET is, as GET without the body. The adapters answer as the products do, which know no HEAD.
func TestHeadIsGetWithoutTheBody(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, c *Config) { c.Compat = compat.Products{Langflow: true, Bifrost: true} })
	key := b.adminKey()
	b.publish("greet", "")
	run := b.call("POST", "/v1/workflows/greet/runs", b.globalKey(), `{}`).want(200).object()["id"].(string)
	addr, _, _ := b.serve()

	ask := func(method, path, key string) *http.Response {
		req, err := http.NewRequest(method, "http://"+addr+path, nil)
		b.must(err)
		if key != "" {
			req.Header.Set("Authorization", "Bearer "+key)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		b.must(err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body) // the client would take a body for the next answer, and say so
		b.must(err)
		if method == http.MethodHead && len(body) > 0 {
			t.Errorf("HEAD %s has a body", path)
		}
		return resp
	}
	for _, c := range []struct {
		path, key string
		status    int
	}{
		{"/v1/workflows", key, 200},
		{"/v1/workflows/greet", key, 200},
		{"/v1/runs?limit=1", key, 200},
		{"/v1/runs/" + run, key, 200},
		{"/v1/runs/" + run + "/logs", key, 200},
		{"/v1/runs/" + run + "/events", key, 200},
		{"/v1/keys", key, 200},
		{"/v1/auth/whoami", key, 200},
		{"/v1/keys?limit=0", key, 400},
		{"/v1/keys?lmit=1", key, 400},
		{"/v1/keys", "", 401},
		{"/v1/workflows/nothing", key, 404},
		{"/v1/runs/" + run + "/events", "", 401},
		{"/openapi.json", "", 200},
	} {
		got, head := ask(http.MethodGet, c.path, c.key), ask(http.MethodHead, c.path, c.key)
		if got.StatusCode != c.status || head.StatusCode != c.status {
			t.Errorf("%s: GET %d, HEAD %d, want %d", c.path, got.StatusCode, head.StatusCode, c.status)
		}
		for _, h := range []http.Header{got.Header, head.Header} {
			for _, own := range []string{"Keyfire-Request-Id", "Date"} {
				h.Del(own)
			}
		}
		if c.status >= 400 { // the ids in the body make it longer or shorter
			got.Header.Del("Content-Length")
			head.Header.Del("Content-Length")
		}
		if !maps.EqualFunc(got.Header, head.Header, slices.Equal) {
			t.Errorf("%s:\nGET  %v\nHEAD %v", c.path, got.Header, head.Header)
		}
	}

	has := map[string]bool{}
	for _, r := range b.server.engine.Routes() {
		has[r.Method+" "+r.Path] = true
	}
	for _, r := range b.server.engine.Routes() {
		if r.Method == http.MethodGet && r.Path != routeHook && !b.server.adapted[r.Path] && !has["HEAD "+r.Path] {
			t.Errorf("%s takes GET and not HEAD", r.Path)
		}
	}
}

// A GET of a hook starts a run, so HEAD, which mail programs and chats send to look at a link, is none of its methods.
func TestHeadStartsNoRun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("greet", "")
	key := b.adminKey()
	r := b.call("HEAD", "/v1/hooks/greet", b.globalKey(), "").want(405)
	if allow := r.header.Get("Allow"); allow != "GET, POST, PUT" && allow != "POST, PUT, GET" {
		t.Errorf("Allow %q", allow)
	}
	b.call("HEAD", "/v1/trigger", b.globalKey(), "").want(405)
	if n := len(asList(b.call("GET", "/v1/runs", key, "").want(200).object()["data"])); n != 0 {
		t.Errorf("%d runs", n)
	}
}
