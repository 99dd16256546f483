package client_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/keyfire/keyfire/sdk/client"
)

// Every request says who asks and for which account, that for the events of a run too, which is sent by code of its own.
func TestWhoAsks(t *testing.T) {
	t.Parallel()
	asked := map[string]http.Header{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked[r.URL.Path] = r.Header.Clone()
		if r.URL.Path == "/v1/runs/run_1/events" {
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
