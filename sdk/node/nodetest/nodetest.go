//go:build !wasip1

// Package nodetest makes the context of a node for tests that run natively:
//
//	func TestGreet(t *testing.T) {
//		ctx := nodetest.Context(t, nodetest.Host{Config: map[string]any{"greeting": "Hi"}})
//		got, err := greet(ctx, input{Name: "Ada"})
//		...
//	}
package nodetest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/keyfire/keyfire/sdk/node"
	"github.com/keyfire/keyfire/sdk/node/internal/abi"
)

// Host is what a node is to find in a test. The zero Host has no config and answers no request.
type Host struct {
	// Config is the node's config, by name. Values are what encoding/json can encode.
	Config map[string]any
	// Secrets are the secrets the node is granted, by name.
	Secrets map[string]string
	// KV are the values that the workflow keeps; nil keeps none and denies writing. The node's changes are made to it.
	KV map[string][]byte
	// HTTP answers the node's requests; nil denies them. An http.Handler becomes one with [Handler].
	HTTP http.RoundTripper
	// Log gets every line of the node's log as "level: text"; nil writes them to the test's log.
	Log func(line string)
}

// Context returns a context over h, for one test.
func Context(t testing.TB, h Host) *node.Context {
	t.Helper()
	config := []byte("{}")
	if h.Config != nil {
		var err error
		if config, err = json.Marshal(h.Config); err != nil {
			t.Fatalf("nodetest: encode Host.Config: %v", err)
		}
	}
	if h.Log == nil {
		h.Log = func(line string) { t.Log(line) }
	}
	return node.NewContext(t.Context(), abi.NewHost(&fake{host: h, config: config}))
}

type fake struct {
	host   Host
	config []byte
	mu     sync.Mutex
}

var levels = map[int32]string{abi.Debug: "debug", abi.Info: "info", abi.Warn: "warn", abi.Error: "error"}

func (f *fake) Log(level int32, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.host.Log(levels[level] + ": " + text)
}

func (f *fake) Config() []byte { return f.config }

func (f *fake) Secret(name string) (string, abi.Code, string) {
	if v, ok := f.host.Secrets[name]; ok {
		return v, abi.OK, ""
	}
	return "", abi.Denied, "nodetest.Host.Secrets has no " + name
}

// Bounds of a server, so that what it would refuse does not pass a test.
const (
	maxKey   = 512
	maxValue = 64 << 10
)

func validKey(key string) bool {
	return key != "" && len(key) <= maxKey && utf8.ValidString(key) && !strings.Contains(key, "\x00")
}

func (f *fake) Get(key string) ([]byte, abi.Code) {
	if !validKey(key) {
		return nil, abi.Invalid
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if v, ok := f.host.KV[key]; ok {
		return bytes.Clone(v), abi.OK
	}
	return nil, abi.NotFound
}

func (f *fake) Swap(key string, value []byte, check bool, old []byte) abi.Code {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.host.KV == nil:
		return abi.Denied
	case !validKey(key):
		return abi.Invalid
	case len(value) > maxValue || len(old) > maxValue:
		return abi.TooLarge
	}
	now, ok := f.host.KV[key]
	if check && (ok != (old != nil) || !bytes.Equal(now, old)) {
		return abi.Conflict
	}
	if value == nil {
		delete(f.host.KV, key)
		return abi.OK
	}
	f.host.KV[key] = append([]byte{}, value...)
	return abi.OK
}

func (f *fake) HTTP(head, body []byte) ([]byte, []byte, abi.Code, string) {
	if f.host.HTTP == nil {
		return nil, nil, abi.Denied, "nodetest.Host.HTTP is nil, so no request is granted"
	}
	var h struct {
		Method, URL string
		Headers     [][2]string
	}
	if err := json.Unmarshal(head, &h); err != nil {
		return nil, nil, abi.Invalid, err.Error()
	}
	req, err := http.NewRequest(h.Method, h.URL, bytes.NewReader(body))
	if err != nil {
		return nil, nil, abi.Invalid, err.Error()
	}
	for _, f := range h.Headers {
		req.Header.Add(f[0], f[1])
	}
	res, err := f.host.HTTP.RoundTrip(req)
	if err != nil {
		return nil, nil, abi.Unavailable, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, nil, abi.Unavailable, fmt.Sprintf("read the response: %v", err)
	}
	var fields [][2]string
	for name, values := range res.Header {
		for _, v := range values {
			fields = append(fields, [2]string{name, v})
		}
	}
	out, err := json.Marshal(map[string]any{"status": res.StatusCode, "headers": fields, "length": len(b)})
	if err != nil {
		return nil, nil, abi.Unavailable, err.Error()
	}
	return out, b, abi.OK, ""
}

// Handler answers requests with an http.Handler, without a network.
func Handler(h http.Handler) http.RoundTripper { return handler{h} }

type handler struct{ http.Handler }

// RoundTrip implements http.RoundTripper.
func (h handler) RoundTrip(r *http.Request) (*http.Response, error) {
	w := &recorder{header: make(http.Header), status: http.StatusOK}
	h.ServeHTTP(w, r)
	return &http.Response{StatusCode: w.status, Header: w.header, Body: io.NopCloser(&w.body), Request: r}, nil
}

type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *recorder) Header() http.Header         { return w.header }
func (w *recorder) WriteHeader(status int)      { w.status = status }
func (w *recorder) Write(b []byte) (int, error) { return w.body.Write(b) }
