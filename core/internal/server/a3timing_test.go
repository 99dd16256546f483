package server

import (
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core/internal/trigger"
)

// A3's clause about time: asking for what another account has takes as long as asking for what nobody has, within a tenth at the median. It measures, so it is for make
// chaos, on a machine that has nothing else to do.
func TestA3Timing(t *testing.T) {
	if !full() {
		t.Skip("measures time; make chaos runs it")
	}
	b := setup(t, func(c *trigger.Config, _ *Config) { c.MaxBadCredentials = -1 })
	var made atomic.Int64
	own, other := newWorld(b, "alpha", &made), newWorld(b, "bravo", &made)
	kinds := objectKinds()
	for _, c := range []struct{ kind, method, path, key, body string }{
		{"workflow", "GET", "/v1/workflows/{ref}", own.adminKey, ""},
		{"workflow", "POST", "/v1/workflows/{ref}/runs", own.triggerKey, `{}`},
		{"workflow", "POST", "/v1/workflows/{ref}/runs", own.boundKey, `{}`},
		{"run", "GET", "/v1/runs/{ref}", own.triggerKey, ""},
		{"run", "POST", "/v1/runs/{ref}/cancel", own.adminKey, `{}`},
		{"key", "GET", "/v1/keys/{ref}", own.adminKey, ""},
		{"key", "GET", "/v1/keys/{ref}/usage", own.adminKey, ""},
		{"user", "GET", "/v1/users/{ref}", own.session, ""},
		{"request", "GET", "/v1/auth/explain/{ref}", own.adminKey, ""},
	} {
		k := kinds[c.kind]
		refs := [2]string{k.make(other)[0], k.none(own)[0]}
		ask := func(ref string) time.Duration {
			req := httptest.NewRequest(c.method, strings.ReplaceAll(c.path, "{ref}", url.PathEscape(ref)), strings.NewReader(c.body))
			req.RemoteAddr = "203.0.113.7:4711"
			req.Header.Set("Authorization", "Bearer "+c.key)
			if c.body != "" {
				req.Header.Set("Content-Type", typeJSON)
			}
			w := httptest.NewRecorder()
			start := time.Now()
			b.handler.ServeHTTP(w, req)
			took := time.Since(start)
			if w.Code != 404 && w.Code != 403 {
				t.Fatalf("%s %s: status %d: %s", c.method, c.path, w.Code, w.Body)
			}
			return took
		}
		worst := ""
		for range 3 { // a leak shows every time, an accident does not
			var took [2][]time.Duration
			for range 2000 {
				first := rand.IntN(2)
				for _, i := range []int{first, 1 - first} {
					took[i] = append(took[i], ask(refs[i]))
				}
			}
			slices.Sort(took[0])
			slices.Sort(took[1])
			theirs, none := took[0][1000], took[1][1000]
			ratio := float64(theirs) / float64(none)
			worst = fmt.Sprintf("another account's %s, nothing %s, ratio %.3f", theirs, none, ratio)
			if ratio > 0.9 && ratio < 1.1 {
				t.Logf("%s %s: %s", c.method, c.path, worst)
				worst = ""
				break
			}
		}
		if worst != "" {
			t.Errorf("%s %s tells by its time what another account has: %s", c.method, c.path, worst)
		}
	}
}
