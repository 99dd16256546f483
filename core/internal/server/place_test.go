package server

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/server/compat"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// freePlaces returns how many requests would be let in now: whoever does not wait, because nobody would hear the answer, is let in as long as there is a place.
func (b *bundle) freePlaces() int {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	cancel()
	var taken []*trigger.Place
	defer func() {
		for _, p := range taken {
			p.Leave()
		}
	}()
	for {
		p, err := b.server.Trigger.Enter(ctx, auth.Credential{}, netip.Addr{})
		if err != nil {
			return len(taken)
		}
		taken = append(taken, p)
	}
}

// Whatever becomes of a request, its place is free afterwards, and meanwhile as long as its sender takes.
func TestPlacesAreGivenBack(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, c *Config) {
		c.Compat = compat.Products{Keyflow: true, Langflow: true, Bifrost: true, Miiflow: true}
	})
	b.publish("flow", "")
	b.publish("bug", "")
	b.executor.set("bug", func(context.Context, *core.Run) { panic("a bug") })
	key := b.globalKey()
	all := b.freePlaces()
	if all == 0 {
		t.Fatal("there are no places")
	}
	for _, c := range []struct {
		path, key, body string
		status          int
	}{
		{"/v1/workflows/flow/runs", key, `{}`, 200},
		{"/v1/workflows/bug/runs", key, `{}`, 500},
		{"/v1/workflows/flow/runs", "", `{}`, 401},
		{"/v1/workflows/flow/runs", "kft_no", `{}`, 401},
		{"/v1/workflows/none/runs", key, `{}`, 404},
		{"/v1/workflows/flow/runs", key, `{`, 400},
		{"/v1/workflows/flow/runs?wait=30", key, `{}`, 400},
		{"/v1/workflows/flow/runs", key, strings.Repeat(" ", 2<<20), 413},
		{"/v1/hooks/flow", key, `{}`, 202},
		{"/api/v1/process/flow", key, `{"inputs":{}}`, 200},
		{"/api/v1/process/flow", key, `{"input":{}}`, 400},
		{"/api/endpoints/flow", key, `{}`, 200},
		{"/api/endpoints/flow", "", `{}`, 422},
	} {
		if r := b.call("POST", c.path, c.key, c.body); r.code != c.status {
			t.Errorf("%s %s: %d, want %d: %s", c.path, c.body[:min(len(c.body), 20)], r.code, c.status, r.body)
		}
		if n := b.freePlaces(); n != all {
			t.Fatalf("after %s %s: %d of %d places are free", c.path, c.body[:min(len(c.body), 20)], n, all)
		}
	}

	body, sender := io.Pipe()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/workflows/flow/runs", body)
	r.Header.Set("X-API-Key", key)
	r.Header.Set("Content-Type", "application/json")
	r.ContentLength = 2
	answer, answered := httptest.NewRecorder(), make(chan struct{})
	go func() {
		defer close(answered)
		b.handler.ServeHTTP(answer, r)
	}()
	_, err := sender.Write([]byte("{")) // returns when it was read
	b.must(err)
	if n := b.freePlaces(); n != all {
		t.Errorf("while a body is received, %d of %d places are free", n, all)
	}
	_, err = sender.Write([]byte("}"))
	b.must(err)
	b.must(sender.Close())
	<-answered
	if n := b.freePlaces(); n != all || answer.Code != http.StatusOK {
		t.Errorf("%d: %d of %d places are free", answer.Code, n, all)
	}
}
