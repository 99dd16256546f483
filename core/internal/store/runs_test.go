package store

import (
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/keyfire/keyfire/core"
)

func TestOldestRunID(t *testing.T) {
	t.Parallel()
	for _, at := range []time.Time{time.UnixMilli(0), time.UnixMilli(1), time.Date(2026, 3, 1, 12, 0, 0, 123e6, time.UTC), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)} {
		var u ulid.ULID
		if err := u.SetTime(ulid.Timestamp(at)); err != nil {
			t.Fatal(err)
		}
		first := core.PrefixRun + strings.ToLower(u.String())
		if got := oldestRunID(at); !strings.HasPrefix(first, got) {
			t.Errorf("oldestRunID(%v) = %q, want the beginning of %q", at, got, first)
		}
	}
	if got := oldestRunID(time.Unix(-1, 0)); got != "run_0000000000" {
		t.Errorf("oldestRunID before 1970 = %q", got)
	}
}
