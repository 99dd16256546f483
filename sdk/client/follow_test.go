package client_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/sdk/client"
)

// Every request says who asks and for which account, that for the events of a run too, which is sent by code of its own.
func TestWhoAsks(t *testing.T) {
	t.Parallel()
	asked := map[string]http.Header{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked[r.URL.Path] = r.Header.Clone()
		if r.URL.Path == "/v1/runs/run_1/events" {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "id: 8\ndata: {\"seq\": 8, \"type\": \"run.finished\"}\n\n")
			return
		}
		io.WriteString(w, "{}")
	}))
	hc := srv.Client()
	t.Cleanup(func() { hc.CloseIdleConnections(); srv.Close() })
	c, err := client.New(client.Config{URL: srv.URL, Key: "kfa_secret", Account: "acme", UserAgent: "ours/1", HTTPClient: hc})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Run(t.Context(), "run_1"); err != nil {
		t.Fatal(err)
	}
	if err := c.Follow(t.Context(), "run_1", 7, func(client.RunEvent) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v1/runs/run_1", "/v1/runs/run_1/events"} {
		for name, want := range map[string]string{"Authorization": "Bearer kfa_secret", "Keyfire-Account": "acme", "User-Agent": "ours/1"} {
			if got := asked[path].Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
	}
	if got := asked["/v1/runs/run_1/events"].Get("Last-Event-ID"); got != "7" {
		t.Errorf("Last-Event-ID is %q", got)
	}
}

// What will never be the events of a run ends the following of it, instead of being asked for again for ever.
func TestFollowGivesUpOnWhatIsNoStream(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]func(http.ResponseWriter){
		"a page of a proxy": func(w http.ResponseWriter) { io.WriteString(w, "<html>please log in</html>") },
		"an endless line": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			io.WriteString(w, "data: "+strings.Repeat("x", 2<<20)+"\n\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked.Add(1); answer(w) }))
			hc := srv.Client()
			t.Cleanup(func() { hc.CloseIdleConnections(); srv.Close() })
			c, err := client.New(client.Config{URL: srv.URL, HTTPClient: hc})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			err = c.Follow(ctx, "run_1", 0, func(client.RunEvent) error { return nil })
			if err == nil || ctx.Err() != nil || asked.Load() != 1 {
				t.Errorf("after %d requests: %v", asked.Load(), err)
			}
		})
	}
}

// What is in a text of the caller is quoted as JSON quotes it.
func TestImportKeyQuotesAsJSON(t *testing.T) {
	t.Parallel()
	var got struct{ Last4 string }
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
		io.WriteString(w, "{}")
	}))
	hc := srv.Client()
	t.Cleanup(func() { hc.CloseIdleConnections(); srv.Close() })
	c, err := client.New(client.Config{URL: srv.URL, HTTPClient: hc})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ImportKey(t.Context(), client.NewKey{Name: "old"}, "00", "a\x7f\a\U000e0001"); err != nil || got.Last4 != "a\x7f\a\U000e0001" {
		t.Errorf("%q, %v", got.Last4, err)
	}
}
