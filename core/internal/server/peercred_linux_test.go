package server

import (
	"slices"
	"testing"

	"github.com/keyfire/keyfire/auth"
)

func TestUIDPrincipal(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		peer, own uint32
		want      string
	}{{1000, 1000, "uid:1000"}, {0, 1000, "uid:0"}, {0, 0, "uid:0"}, {1001, 1000, ""}, {1000, 0, ""}, {65534, 1000, ""}} {
		p, err := uidPrincipal(c.peer, c.own)
		if c.want == "" {
			if err == nil || p != nil {
				t.Errorf("user %d is let in by user %d", c.peer, c.own)
			}
			continue
		}
		if err != nil || p.Subject != c.want || p.Backend != "socket" || !slices.Equal(p.Scopes, auth.SuperuserScopes()) {
			t.Errorf("user %d by user %d: %+v, %v", c.peer, c.own, p, err)
		}
	}
}
