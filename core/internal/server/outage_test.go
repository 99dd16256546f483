package server

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// An outage that every request meets is told of at once, and not with each of them: the disk that the log is on is not to be the next that fails. Each request has its line at the level
// debug and in the access log.
func TestOutageIsNoFloodOfTheLogO1(t *testing.T) {
	t.Parallel()
	s := &blind{}
	b := setup(t, func(tc *trigger.Config, c *Config) {
		s.Store, tc.Store = tc.Store, s
		c.Ready = func(context.Context) error { return errors.New("the store is away") }
	})
	b.publish("later", "  mode: async\n")
	key := b.globalKey()
	run := b.call("POST", "/v1/workflows/later/runs", key, `{}`).want(202).header.Get("Keyfire-Run-Id")
	s.on.Store(true)
	const requests = 20
	for range requests {
		b.call("GET", "/v1/runs/"+run, key, "").problem(503, core.CodeStoreUnavailable)
		b.call("GET", "/readyz", "", "").want(503)
	}
	said := map[string]int{}
	for line := range strings.Lines(b.logs.String()) {
		var l struct {
			Level, Msg, Code string
			Status           int
		}
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if l.Msg == "request failed" || l.Msg == "not ready" || l.Msg == "request" && l.Status == 503 && l.Code != "" {
			said[l.Level+" "+l.Msg]++
		}
	}
	for what, want := range map[string]int{"ERROR request failed": 1, "DEBUG request failed": requests - 1, "WARN not ready": 1, "INFO request": requests} {
		if said[what] != want {
			t.Errorf("%q is in the log %d times, want %d", what, said[what], want)
		}
	}
}
