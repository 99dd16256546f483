package trigger

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
)

// awayStore takes neither audit events nor uses of keys while it is away.
type awayStore struct {
	*store.Store
	away atomic.Bool
}

func (s *awayStore) Audit(ctx context.Context, events ...core.AuditEvent) error {
	if s.away.Load() {
		return core.Errorf(core.CodeStoreUnavailable, "away")
	}
	return s.Store.Audit(ctx, events...)
}

func (s *awayStore) TouchKeys(ctx context.Context, used map[string]time.Time) error {
	if s.away.Load() {
		return core.Errorf(core.CodeStoreUnavailable, "away")
	}
	return s.Store.TouchKeys(ctx, used)
}

// U1, K3: what a key was refused while the database could not be written to is in the audit log once it can be again, and so is when a key was used last.
func TestRefusalsOutliveTheDatabaseU1(t *testing.T) {
	t.Parallel()
	var away *awayStore
	b := setup(t, func(c *Config) {
		away = &awayStore{Store: c.Store.(*store.Store)}
		c.Store = away
	})
	open := b.publish("open", nil)
	b.publish("closed", nil)
	k, c := b.key(0, "run:workflow/"+open.ID)
	_, err := b.start(c, "open", Payload{})
	b.must(err)
	away.away.Store(true)
	for range 3 {
		_, err = b.start(c, "closed", Payload{})
		wantCode(t, err, core.CodeInsufficientScope)
	}
	b.flush()
	if rows := b.audit(core.ActionAuthRefuse); len(rows) != 0 {
		t.Fatalf("%d rows were written while the database was away", len(rows))
	}
	away.away.Store(false)
	b.flush()
	rows := b.audit(core.ActionAuthRefuse)
	if len(rows) != 3 || rows[0].KeyID != k.ID || rows[0].Reason != string(core.CodeInsufficientScope) {
		t.Errorf("the refusals of before: %+v", rows)
	}
	if kept, err := b.store.Key(t.Context(), k.Account, k.ID); err != nil || kept.LastUsedAt.IsZero() {
		t.Errorf("last used %v, %v", kept.LastUsedAt, err)
	}
	b.flush()
	if again := b.audit(core.ActionAuthRefuse); len(again) != len(rows) {
		t.Errorf("%d rows, and %d after another look", len(rows), len(again))
	}

	// What waits is bounded, and what the database would never take does not wait.
	b.refusals.keep(core.Errorf(core.CodeStoreUnavailable, "away"), make([]core.AuditEvent, maxKept+5)...)
	b.refusals.keep(core.Errorf(core.CodeInternal, "no such row"), core.AuditEvent{})
	if n := len(b.refusals.kept); n != maxKept {
		t.Errorf("%d rows wait, want %d", n, maxKept)
	}
	b.refusals.kept = nil
}
