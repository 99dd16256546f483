package trigger

import (
	"strings"
	"testing"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// A source that is slowed down was told rate_limited, so that is what its request is explained by; why its credential was bad is in the detail.
func TestExplainTellsWhatTheSenderWasTold(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.MaxBadCredentials = 1 })
	b.publish("open", nil)
	bad := auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret("nonsense")}
	operator := auth.Principal{Account: core.DefaultAccount, Subject: "uid:0", Scopes: []string{auth.ScopeAuditRead}}
	for _, c := range []struct {
		id   string
		told core.Code
	}{{"req_first", core.CodeInvalidKey}, {"req_second", core.CodeRateLimited}} {
		b.origin.RequestID = c.id
		_, err := b.start(bad, "open", Payload{})
		wantCode(t, err, c.told)
		v, err := b.Explain(t.Context(), operator, c.id)
		b.must(err)
		if v.Code != c.told {
			t.Errorf("%s was told %s and is explained by %s", c.id, c.told, v.Code)
		}
		for _, check := range v.Chain {
			if check.Check == "backend" && (check.Outcome != checkFail || !strings.Contains(check.Detail, "no backend knows the credential")) {
				t.Errorf("%s: %+v", c.id, check)
			}
		}
	}
}

// A request that follows a run is judged every few seconds, for days: what is remembered of that must not grow.
func TestTrailDoesNotGrow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.origin.Trail = &core.Trail{}
	bad := auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret("nonsense")}
	once := 0
	for range 3 {
		_, err := b.Authenticate(t.Context(), bad, b.origin)
		wantCode(t, err, core.CodeInvalidKey)
		n := len(b.origin.Trail.Backends)
		if once == 0 {
			once = n
		}
		if n != once || n == 0 {
			t.Errorf("%d verdicts of backends are remembered, %d after the first time", n, once)
		}
	}
}
