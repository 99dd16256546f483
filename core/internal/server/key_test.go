package server

import (
	"context"
	"crypto/rand"
	"hash/crc32"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// checkOf returns the check of a key's text without it, for keys that are well-formed and wrong.
func checkOf(body string) string {
	const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	sum := crc32.ChecksumIEEE([]byte(body))
	var check [6]byte
	for i := len(check) - 1; i >= 0; i-- {
		check[i] = base62[sum%62]
		sum /= 62
	}
	return string(check[:])
}

// expiredKey stores a key whose time is over, which the control plane would not make.
func (b *bundle) expiredKey() string {
	b.t.Helper()
	text, err := auth.GenerateKey(auth.TriggerKey, rand.Reader)
	b.must(err)
	hash, _ := b.pepper.Hash(1, text.Secret())
	now := time.Now().UTC()
	k := auth.Key{
		ID: b.ids(core.PrefixKey), Account: core.DefaultAccount, Type: auth.TriggerKey, PublicID: text.ID, Hash: hash[:], Pepper: 1, Last4: text.Last4, Name: "old",
		Scopes: []string{auth.ScopeRunAll}, CreatedAt: now.Add(-2 * time.Hour), CreatedBy: "uid:0", ExpiresAt: now.Add(-time.Hour),
	}
	b.must(b.store.CreateKey(context.Background(), k, core.AuditEvent{ID: b.ids(core.PrefixEvent), Account: k.Account, Time: now, Actor: "uid:0", Action: core.ActionKeyCreate, Object: k.ID, Outcome: core.OutcomeOK, Count: 1}))
	return text.Secret().Reveal()
}

// wrongSecret is a well-formed key with the id of another one.
func wrongSecret(t testing.TB, key string) string {
	t.Helper()
	other, err := auth.GenerateKey(auth.TriggerKey, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged := key[:16] + other.Secret().Reveal()[16:48]
	return forged + checkOf(forged)
}

// flip changes one character of a key's secret, so that its check is wrong.
func flip(key string) string {
	c := byte('A')
	if key[20] == c {
		c = 'B'
	}
	return key[:20] + string(c) + key[21:]
}
