package store

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// Every table with something of an account is emptied when the account is deleted, or is said to be kept.
func TestPurgeKnowsEveryTable(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), Reserve: -1, SweepEvery: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	known := slices.Concat(kept, cascaded)
	for _, p := range purged {
		known = append(known, p.table)
	}
	for _, table := range accountTables(t, s) {
		if !slices.Contains(known, table) {
			t.Errorf("the table %s has a column account: add it to purged in accounts.go, with its primary key and before the tables it refers to, or to kept or cascaded", table)
		}
	}
}

func accountTables(t *testing.T, s *Store) []string {
	t.Helper()
	rows, err := s.bulk.QueryContext(t.Context(), `select m.name from sqlite_master m join pragma_table_info(m.name) c where m.type = 'table' and c.name = 'account' order by m.name`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		all = append(all, name)
	}
	if err := rows.Err(); err != nil || len(all) < 10 {
		t.Fatalf("tables %v, %v", all, err)
	}
	return all
}

// openSwept returns a store that deletes nothing but when a test says so.
func openSwept(t *testing.T, now func() time.Time) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), Reserve: -1, SweepEvery: -1, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// What a deleted account owned is gone, batch by batch; what others own, and the audit log, stay.
func TestPurge(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := openSwept(t, time.Now)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	id := 0
	event := func(account string) core.AuditEvent {
		id++
		return core.AuditEvent{ID: "evt_" + string(rune('a'+id%26)) + time.Duration(id).String(), Account: account, Time: at, Actor: "uid:0", Action: "test", Outcome: core.OutcomeOK}
	}
	fill := func(name string) string {
		a := core.Account{ID: "acct_" + name, Name: name, CreatedAt: at}
		must(s.CreateAccount(ctx, a, event(a.ID)))
		for i := range sweepBatch + 10 { // more than one batch
			_, err := s.Swap(ctx, a.ID, "wf_1", "k"+time.Duration(i).String(), []byte("v"), false, nil)
			must(err)
		}
		must(s.CreateKey(ctx, auth.Key{ID: "key_" + name, Account: a.ID, PublicID: name, Type: auth.TriggerKey, Hash: []byte{1}}, event(a.ID)))
		u := auth.User{ID: "usr_" + name, Account: a.ID, Name: "ada", Role: auth.Owner}
		hash := auth.PasswordHash{Text: "x", Pepper: 1}
		must(s.CreateUser(ctx, u, hash, event(a.ID)))
		ses := auth.Session{ID: "ses_" + name, Account: a.ID, UserID: u.ID, CreatedAt: at, ExpiresAt: at.Add(time.Hour)}
		must(s.CreateSession(ctx, ses, auth.RefreshToken{PublicID: "r" + name, Account: a.ID, SessionID: ses.ID, Hash: []byte{1}}, hash, nil, event(a.ID)))
		_, _, err := s.PutSecret(ctx, a.ID, "TOKEN", []byte("sealed"), event(a.ID))
		must(err)
		return a.ID
	}
	gone, stays := fill("gone"), fill("stays")
	_, err := s.SetAccountEnabled(ctx, gone, false, "", event(gone))
	must(err)
	must(s.DeleteAccount(ctx, gone, event(gone)))
	must(s.purge(ctx))
	must(s.purge(ctx)) // once is enough
	// What was under way when the account went leaves nothing behind.
	if _, err := s.Swap(ctx, gone, "wf_1", "late", []byte("v"), false, nil); core.CodeOf(err) != core.CodeNotFound {
		t.Errorf("a run of a deleted account keeps a value: %v", err)
	}
	must(s.RecordCallback(ctx, &core.Callback{Account: gone, ID: "cb_1", URL: "https://example.com/", State: core.CallbackDisabled, UpdatedAt: at, Log: []core.CallbackAttempt{{Status: 410}}}, at))
	count := func(table, account string) (n int) {
		t.Helper()
		must(s.bulk.QueryRowContext(ctx, "select count(*) from "+table+" where account = $1", account).Scan(&n))
		return n
	}
	for _, p := range purged {
		if n := count(p.table, gone); n != 0 {
			t.Errorf("%s still has %d rows", p.table, n)
		}
	}
	for table, want := range map[string]int{"kv": sweepBatch + 10, "keys": 1, "users": 1, "sessions": 1, "refresh_tokens": 1, "secrets": 1} {
		if n := count(table, stays); n != want {
			t.Errorf("%s of another account has %d rows, want %d", table, n, want)
		}
	}
	for key, want := range map[string]int{"key_gone": 0, "key_stays": 1} {
		var n int
		must(s.bulk.QueryRowContext(ctx, "select count(*) from key_secrets where key_id = $1", key).Scan(&n))
		if n != want {
			t.Errorf("%s has %d secrets, want %d", key, n, want)
		}
	}
	if count("audit", gone) == 0 {
		t.Error("the audit log is gone too")
	}
}

// A destination that wanted no callbacks is forgotten in the end: every run may name another one.
func TestPruneRefusedDestinations(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := openSwept(t, func() time.Time { return now })
	err := s.write(ctx, &change{name: "test"}, func(t *tx) error {
		for i := range sweepBatch + 10 {
			if err := t.put(sqlRefusalInsert, "acct_a", "https://example.com/"+time.Duration(i).String(), micros(now.Add(-callbackRefusalKept-time.Second))); err != nil {
				return err
			}
		}
		return t.put(sqlRefusalInsert, "acct_a", "https://example.com/", micros(now.Add(-callbackRefusalKept+time.Second)))
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prune(ctx, Retention{}); err != nil {
		t.Fatal(err)
	}
	var left int
	if err := s.bulk.QueryRowContext(ctx, `select count(*) from callback_refusals`).Scan(&left); err != nil || left != 1 {
		t.Errorf("%d refused destinations are left, %v; want the one that is not old", left, err)
	}
}

// What a deleted workflow leaves goes when nothing needs it any more: what its nodes kept with its last run, the rest with its history.
func TestSweepWorkflows(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := openSwept(t, func() time.Time { return now })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"wf_gone", "wf_stays"} {
		_, _, err := s.PublishWorkflow(ctx, core.Publication{
			Account: "acct_a", Workflow: core.Workflow{ID: id, Account: "acct_a", Slug: id[3:], Enabled: true}, Version: core.Version{Digest: "sha256:" + id, CreatedAt: now},
		}, event(id))
		must(err)
		for i := range sweepBatch + 10 {
			_, err := s.Swap(ctx, "acct_a", id, "k"+time.Duration(i).String(), []byte("v"), false, nil)
			must(err)
		}
	}
	run := core.Run{
		ID: "run_00000000000000000000000001", Account: "acct_a", Status: core.RunQueued, Durable: true, Workflow: core.WorkflowRef{ID: "wf_gone", Slug: "gone", Version: 1}, CreatedAt: now, Attempt: 1,
	}
	_, err := s.Admit(ctx, core.Admission{Run: run, Audit: event("run")})
	must(err)
	_, err = s.DeleteWorkflow(ctx, "acct_a", "gone", event("delete"))
	must(err)
	left := func(when string, kv, versions, workflows int) {
		t.Helper()
		must(s.sweepWorkflows(ctx))
		for table, want := range map[string]int{"kv": kv, "kv_usage": min(kv, 1), "versions": versions, "workflows": workflows} {
			column := "workflow_id"
			if table == "workflows" {
				column = "id"
			}
			for id, want := range map[string]int{"wf_gone": want, "wf_stays": map[string]int{"kv": sweepBatch + 10}[table] + map[string]int{"kv_usage": 1, "versions": 1, "workflows": 1}[table]} {
				var n int
				must(s.bulk.QueryRowContext(ctx, "select count(*) from "+table+" where "+column+" = $1", id).Scan(&n))
				if n != want {
					t.Errorf("%s: %s has %d rows in %s, want %d", when, id, n, table, want)
				}
			}
		}
	}
	left("deleted a moment ago", sweepBatch+10, 1, 1)
	now = now.Add(2*core.MaxRunTimeout + time.Second)
	left("while a run has not ended", sweepBatch+10, 1, 1)
	_, err = s.CancelRun(ctx, "acct_a", "run_00000000000000000000000001", "", now, event("cancel"))
	must(err)
	left("while there is a history", 0, 1, 1)
	now = now.Add(time.Hour * 24 * 365)
	if n, err := s.Prune(ctx, Retention{MaxAge: time.Hour}); n != 1 || err != nil {
		t.Fatalf("%d runs pruned: %v", n, err)
	}
	left("when the history is gone", 0, 0, 0)
}

// O1: what keeps a scheduled time from beginning twice does not grow for ever, also where all history is kept.
func TestTicksEndO1(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	s := openSwept(t, func() time.Time { return now })
	err := s.write(ctx, &change{name: "tick", lane: intake}, func(t *tx) error {
		for days, name := range []string{"new", "old"} {
			if _, err := t.exec(sqlTickInsert, "acct_a", "wf_1", name, "t", micros(now.AddDate(0, 0, -8*days)), "run_"+name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Prune(ctx, Retention{}); n != 0 || err != nil {
		t.Errorf("%d runs pruned: %v", n, err)
	}
	var left string
	if err := s.bulk.QueryRowContext(ctx, "select group_concat(name) from schedule_ticks").Scan(&left); err != nil || left != "new" {
		t.Errorf("the times %q are left, %v; want the new one", left, err)
	}
}
