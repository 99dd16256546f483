package jwtauth_test

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/auth/jwtauth"
	"github.com/keyfire/keyfire/core"
)

// sharedTable is what the servers of a test have in common.
type sharedTable struct {
	keys  []jwtauth.SigningKey
	asked int
	err   error

	hold chan struct{} // an answer waits for it
	at   atomic.Int32  // how many ask
	most int32         // at once
}

func (s *sharedTable) Load(context.Context) ([]jwtauth.SigningKey, error) {
	s.most = max(s.most, s.at.Add(1))
	defer s.at.Add(-1)
	s.asked++
	if s.hold != nil {
		<-s.hold
	}
	return slices.Clone(s.keys), s.err
}

func (s *sharedTable) Store(_ context.Context, keys []jwtauth.SigningKey, remove []string) error {
	if s.err != nil {
		return s.err
	}
	for _, k := range keys {
		if !slices.ContainsFunc(s.keys, func(have jwtauth.SigningKey) bool { return have.ID == k.ID }) {
			s.keys = append(s.keys, k)
		}
	}
	s.keys = slices.DeleteFunc(s.keys, func(k jwtauth.SigningKey) bool { return slices.Contains(remove, k.ID) })
	return nil
}

// join makes a server of r's sessions on shared, whose file has a key of its own.
func (r *sessionRig) join(t *testing.T, shared *sharedTable, anew bool) *sessionRig {
	t.Helper()
	key, err := jwtauth.NewSigningKey(rand.Reader, r.now)
	if err != nil {
		t.Fatal(err)
	}
	s := &sessionRig{now: r.now, table: r.table, key: key}
	s.sessions, err = jwtauth.NewSessions(jwtauth.SessionConfig{
		Keys: []jwtauth.SigningKey{key}, Sessions: r.table, Shared: shared, Now: func() time.Time { return r.now }, Random: rand.Reader,
		Save: func(keys []jwtauth.SigningKey) error { s.saved = keys; return nil },
	})
	if err == nil {
		err = s.sessions.Join(t.Context(), anew)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSharedSigningKeys: what one of several servers signs, the others verify, also with a key that it has made just now, and none signs with one that another has replaced long ago.
func TestSharedSigningKeys(t *testing.T) {
	t.Parallel()
	r, shared := newSessionRig(t), &sharedTable{}
	a := r.join(t, shared, false)
	r.now = r.now.Add(time.Minute)
	b := r.join(t, shared, false) // with another file
	everywhere := func(what, text string) {
		t.Helper()
		for name, s := range map[string]*sessionRig{"first": a, "second": b} {
			if _, err := s.judge(text); err != nil {
				t.Errorf("%s, on the %s: %v", what, name, err)
			}
		}
	}
	sign := func(s *sessionRig) string {
		t.Helper()
		text, _, err := s.sessions.Sign(t.Context(), r.table["ses_1"].Session, r.table["ses_1"].User, "tok_1")
		if err != nil {
			t.Fatal(err)
		}
		return text.Reveal()
	}
	before := sign(a)
	everywhere("a token of the first", before)
	everywhere("a token of the second", sign(b))
	for round := range 3 {
		r.now = r.now.Add(2 * time.Second)
		if _, err := a.sessions.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		everywhere("a token of a key that was made just now", sign(a))
		everywhere("a token of before", before)
		// By now, nobody can have a token of the keys before, and the second server was not asked anything meanwhile.
		r.now = r.now.Add(jwtauth.SessionLife + time.Minute)
		r.table["ses_1"] = auth.LiveSession{Session: auth.Session{ID: "ses_1", Account: "acct_a", UserID: "usr_1", ExpiresAt: r.now.Add(time.Hour)}, User: r.table["ses_1"].User}
		if _, err := a.sessions.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
		before = sign(b)
		everywhere("a token of a server that has slept", before)
		if len(shared.keys) != 2 || len(a.saved) != 2 {
			t.Errorf("round %d: %d keys in common and %d in the file, want 2", round, len(shared.keys), len(a.saved))
		}
	}

	// A clock that is behind makes a key that signs all the same.
	r.now = r.now.Add(-5 * time.Minute)
	id, err := b.sessions.Rotate(t.Context())
	if err != nil || b.saved[0].ID != id {
		t.Errorf("%v, signed with %s, want %s", err, b.saved[0].ID, id)
	}
	r.now = r.now.Add(5 * time.Minute)

	// Many tokens of made-up keys ask one at a time and share the answers, and a store that is down is no verdict.
	stranger := newSessionRig(t)
	stranger.now = r.now
	forged := sign(stranger)
	const many = 10
	shared.asked, shared.hold = 0, make(chan struct{})
	var judging sync.WaitGroup
	for range many {
		judging.Go(func() {
			if _, err := a.judge(forged); core.CodeOf(err) != core.CodeInvalidKey {
				t.Errorf("a token of a key that nobody has: %v", err)
			}
		})
	}
	shared.hold <- struct{}{} // one asks; of the others, those that are there by now share the next answer
	close(shared.hold)
	judging.Wait()
	if shared.most != 1 || shared.asked > many {
		t.Errorf("asked %d times about %d tokens of made-up keys, %d at once", shared.asked, many, shared.most)
	}
	shared.err = errors.New("disk on fire")
	if _, err := a.judge(forged); core.CodeOf(err) != core.CodeAuthUnavailable {
		t.Errorf("while the keys of others cannot be read: %v", err)
	}
	if _, err := a.judge(before); err != nil {
		t.Errorf("a token of a key that is known, meanwhile: %v", err)
	}
	if _, err := a.sessions.Rotate(t.Context()); err == nil {
		t.Error("a key is used that the others cannot know")
	}
	shared.err = nil

	// Whoever has removed the file has logged everybody out.
	last := r.join(t, shared, true)
	if _, err := last.judge(before); core.CodeOf(err) != core.CodeInvalidKey || len(shared.keys) != 1 || shared.keys[0].ID != last.key.ID {
		t.Errorf("with a new file: %v, %d keys in common", err, len(shared.keys))
	}
}
