package node_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/sdk/node"
	"github.com/keyfire/keyfire/sdk/node/nodehttp"
	"github.com/keyfire/keyfire/sdk/node/nodetest"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	ctx := nodetest.Context(t, nodetest.Host{Config: map[string]any{"region": "eu", "rate": json.Number("1.50")}})
	var c struct {
		Region string      `json:"region"`
		Rate   json.Number `json:"rate"`
	}
	if err := ctx.Config(&c); err != nil || c.Region != "eu" || c.Rate != "1.50" {
		t.Errorf("config %+v, %v", c, err)
	}
	var less struct {
		Region string `json:"region"`
	}
	if err := ctx.Config(&less); err == nil || !strings.Contains(err.Error(), "rate") {
		t.Errorf("a config with an unknown name gives %v", err)
	}
}

func TestLog(t *testing.T) {
	t.Parallel()
	var got []string
	ctx := nodetest.Context(t, nodetest.Host{Log: func(line string) { got = append(got, line) }})
	l := ctx.Log()
	l.Debug("plain")
	l.With("a", 1).WithGroup("g").Warn("grouped", "b", "x y", "c", "")
	l.Error("bad", "err", errors.New("no\nway"))
	want := []string{"debug: plain", `warn: grouped a=1 g.b="x y" g.c=""`, `error: bad err="no\nway"`}
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	server := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "/", http.StatusFound)
			return
		}
		w.Header().Set("X-Got", r.Method+" "+r.URL.String()+" "+r.Header.Get("X-Sent")+" "+string(b))
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, "made")
	})
	ctx := nodetest.Context(t, nodetest.Host{HTTP: nodetest.Handler(server)})
	r, err := ctx.HTTP(&node.Request{Method: "POST", URL: "https://api.example.com/x?y", Header: [][2]string{{"X-Sent", "1"}}, Body: []byte("hi")})
	if err != nil {
		t.Fatal(err)
	}
	if r.Status != http.StatusCreated || string(r.Body) != "made" || r.Get("x-got") != "POST https://api.example.com/x?y 1 hi" || r.Get("none") != "" {
		t.Errorf("response %+v", r)
	}

	res, err := nodehttp.Client(ctx).Post("https://api.example.com/z", "text/plain", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || string(b) != "made" || res.StatusCode != http.StatusCreated || res.Header.Get("X-Got") != "POST https://api.example.com/z  body" {
		t.Errorf("response %d %q %v, %v", res.StatusCode, b, res.Header, err)
	}
	moved, err := nodehttp.Client(ctx).Get("https://api.example.com/moved")
	if err != nil {
		t.Fatal(err)
	}
	moved.Body.Close()
	if moved.StatusCode != http.StatusFound {
		t.Errorf("the client followed a redirect, to %d", moved.StatusCode)
	}

	_, err = nodetest.Context(t, nodetest.Host{}).HTTP(&node.Request{URL: "https://api.example.com"})
	if !errors.Is(err, node.ErrDenied) {
		t.Errorf("without a grant: %v, want ErrDenied", err)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	if err := node.Unavailable("closed on %s", "Sundays"); !errors.Is(err, node.ErrUnavailable) || err.Error() != "closed on Sundays" {
		t.Errorf("Unavailable gives %v", err)
	}
	var f *node.Failure
	if err := node.Fail(409, "taken", "it is taken"); !errors.As(err, &f) || f.Status != 409 || f.Code != "taken" || err.Error() != "it is taken" {
		t.Errorf("Fail gives %+v", f)
	}
}

func TestSecret(t *testing.T) {
	t.Parallel()
	ctx := nodetest.Context(t, nodetest.Host{Secrets: map[string]string{"TOKEN": "t0ps3cret"}})
	if v, err := ctx.Secret("TOKEN"); err != nil || v != "t0ps3cret" {
		t.Errorf("%q, %v", v, err)
	}
	if _, err := ctx.Secret("OTHER"); !errors.Is(err, node.ErrDenied) {
		t.Errorf("another secret: %v, want ErrDenied", err)
	}
}

func TestKV(t *testing.T) {
	t.Parallel()
	kept := map[string][]byte{}
	kv := nodetest.Context(t, nodetest.Host{KV: kept}).KV()
	if _, err := kv.Get("a"); !errors.Is(err, node.ErrNotFound) {
		t.Errorf("no value: %v", err)
	}
	steps := []struct {
		name string
		err  error
		want error
	}{
		{"put", kv.Put("a", []byte("1")), nil},
		{"swap of another value", kv.CompareAndSwap("a", []byte("2"), []byte("3")), node.ErrConflict},
		{"swap of no value", kv.CompareAndSwap("a", nil, []byte("3")), node.ErrConflict},
		{"swap", kv.CompareAndSwap("a", []byte("1"), []byte("2")), nil},
		{"swap to nothing", kv.CompareAndSwap("a", []byte("2"), nil), nil},
		{"swap from nothing", kv.CompareAndSwap("a", nil, []byte("4")), nil},
		{"put of an empty value", kv.Put("b", nil), nil},
		{"delete", kv.Delete("a"), nil},
		{"delete of nothing", kv.Delete("a"), nil},
		{"put without a key", kv.Put("", nil), node.ErrInvalid},
		{"put with a NUL in the key", kv.Put("a\x00", nil), node.ErrInvalid},
		{"put with a long key", kv.Put(strings.Repeat("k", 513), nil), node.ErrInvalid},
		{"put of a large value", kv.Put("c", make([]byte, 64<<10+1)), node.ErrTooLarge},
	}
	for _, s := range steps {
		if !errors.Is(s.err, s.want) {
			t.Errorf("%s: %v, want %v", s.name, s.err, s.want)
		}
	}
	// Whoever is granted nothing has not lost a race.
	if err := nodetest.Context(t, nodetest.Host{}).KV().CompareAndSwap("a", nil, []byte("1")); !errors.Is(err, node.ErrDenied) || !strings.Contains(err.Error(), "granted") {
		t.Errorf("without a grant: %v", err)
	}
	if v, ok := kept["b"]; len(kept) != 1 || !ok || len(v) != 0 {
		t.Errorf("kept %q", kept)
	}
}
