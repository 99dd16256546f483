package server

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/keyfire/keyfire/core"
)

// setLimits tells the caller where its key stands (draft-ietf-httpapi-ratelimit-headers): what its limits are, and what is left of each. A key without
// limits, or with nothing but a number of runs in all, has nothing to tell.
func setLimits(h http.Header, limits []core.LimitState) {
	if len(limits) == 0 {
		return
	}
	policies, states := make([]string, 0, len(limits)), make([]string, 0, len(limits))
	for _, l := range limits {
		name := `"` + l.Name + `"`
		policy, state := name+";q="+strconv.FormatInt(l.Limit, 10), name+";r="+strconv.FormatInt(l.Remaining, 10)
		switch l.Kind {
		case core.LimitConcurrency:
			policy += `;qu="concurrent-requests"`
		case core.LimitRate:
			policy += ";w=" + strconv.FormatInt(seconds(l.Per), 10)
		}
		if l.Reset > 0 {
			state += ";t=" + strconv.FormatInt(seconds(l.Reset), 10)
		}
		policies, states = append(policies, policy), append(states, state)
	}
	h.Set("RateLimit-Policy", strings.Join(policies, ", "))
	h.Set("RateLimit", strings.Join(states, ", "))
}

// seconds rounds up: whoever waits that long has waited long enough.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
