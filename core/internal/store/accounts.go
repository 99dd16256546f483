package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/keyfire/keyfire/core"
)

const accountColumns = `id, name, title, created_at, created_by, disabled_at, disabled_by, disabled_why, rate_limits, rate_state, max_concurrent`

const (
	sqlAccountInsert = `insert into accounts (` + accountColumns + `, deleted_at, purged_at) values ($1, $2, $3, $4, $5, 0, '', '', '', '', 0, 0, 0)`
	sqlAccountTaken  = `select count(*) from accounts where id = $1 or name = $2`
	sqlAccountByID   = `select ` + accountColumns + ` from accounts where id = $1 and deleted_at = 0`
	sqlAccountByName = `select ` + accountColumns + ` from accounts where name = $1 and deleted_at = 0`
	sqlAccounts      = `select ` + accountColumns + ` from accounts`
	sqlAccountSwitch = `update accounts set disabled_at = $1, disabled_by = $2, disabled_why = $3 where id = $4`
	sqlAccountDelete = `update accounts set name = id, deleted_at = $1 where id = $2`
	sqlAccountUpdate = `update accounts set title = $1, rate_limits = $2, rate_state = $3, max_concurrent = $4, limited = $5 where id = $6`
)

// CreateAccount adds an account. It is CodeConflict when there is one with its id or name.
func (s *Store) CreateAccount(ctx context.Context, a core.Account, ev core.AuditEvent) error {
	return s.write(ctx, &change{name: "create account", lane: control}, func(t *tx) error {
		var taken int64
		if err := t.row(sqlAccountTaken, a.ID, a.Name).Scan(&taken); err != nil {
			return err
		}
		if taken > 0 {
			return core.Errorf(core.CodeConflict, "an account with this name exists already")
		}
		if _, err := t.exec(sqlAccountInsert, a.ID, a.Name, a.Title, micros(a.CreatedAt), a.CreatedBy); err != nil {
			return err
		}
		return t.audit(ev)
	})
}

// Account returns the account with the given id or name, CodeNotFound when there is none or it was deleted.
func (s *Store) Account(ctx context.Context, ref string) (core.Account, error) {
	a, err := scanAccount(s.row(ctx, sqlAccountQuery(ref), ref))
	return a, found(err, "account")
}

// sqlAccountQuery chooses between ids and names, which cannot be mixed up: a name has no underscore.
func sqlAccountQuery(ref string) string {
	if core.ValidAccountName(ref) {
		return sqlAccountByName
	}
	return sqlAccountByID
}

// Accounts returns a page of the server's accounts, newest first, without deleted ones.
func (s *Store) Accounts(ctx context.Context, p core.Page) (core.List[core.Account], error) {
	return read(ctx, s, accountListing(), p)
}

func accountListing() listing[core.Account] {
	return listing[core.Account]{
		name: "accounts", columns: sqlAccounts, where: "deleted_at = 0",
		key: "id", keyOf: func(a *core.Account) string { return a.ID },
		scan: scanAccount,
	}
}

// UpdateAccount changes the title and the limits of an account and returns it. edit is given the account as it is in the transaction and edits it, or refuses with
// a *core.Error; it may run more than once, and nothing else it changes is kept. A limit that stays as it is keeps its state, others start full. CodeNotFound when
// there is no such account.
func (s *Store) UpdateAccount(ctx context.Context, ref string, edit func(*core.Account) error, ev core.AuditEvent) (core.Account, error) {
	var a core.Account
	err := s.write(ctx, &change{name: "update account", lane: control}, func(t *tx) (err error) {
		if a, err = scanAccount(t.row(sqlAccountQuery(ref), ref)); err != nil {
			return notFound(err, "account")
		}
		before, asked := a, a
		if err := edit(&asked); err != nil {
			return err
		}
		a.Title, a.RateLimits, a.MaxConcurrent = asked.Title, asked.RateLimits, asked.MaxConcurrent
		a.RateState = keptRates(before.RateLimits, a.RateLimits, before.RateState)
		var limits, state string
		if len(a.RateLimits) > 0 {
			if limits, err = encode(a.RateLimits); err != nil {
				return err
			}
		}
		if len(a.RateState) > 0 {
			if state, err = encode(a.RateState); err != nil {
				return err
			}
		}
		if err := t.put(sqlAccountUpdate, a.Title, limits, state, a.MaxConcurrent, a.Limited(), a.ID); err != nil {
			return err
		}
		ev.Object = a.ID
		return t.audit(ev)
	})
	if err != nil {
		return core.Account{}, err
	}
	return a, nil
}

// SetAccountEnabled switches an account on or off, at ev.Time in the name of ev.Actor, and returns it. Once it has returned, no request that starts later is
// accepted for an account that is off: [Store.AccountOpen] and the admission of runs refuse it. One that is so already is returned unchanged, and nothing is
// written. The default account cannot be switched off: CodeConflict.
func (s *Store) SetAccountEnabled(ctx context.Context, ref string, enabled bool, why string, ev core.AuditEvent) (core.Account, error) {
	var a core.Account
	err := s.write(ctx, &change{name: "switch account", lane: control, essential: true}, func(t *tx) (err error) {
		if a, err = scanAccount(t.row(sqlAccountQuery(ref), ref)); err != nil {
			return notFound(err, "account")
		}
		switch {
		case a.Disabled() == !enabled:
			return nil
		case a.ID == core.DefaultAccount:
			return errDefaultAccount()
		case enabled:
			a.DisabledAt, a.DisabledBy, a.DisabledWhy = time.Time{}, "", ""
		default:
			a.DisabledAt, a.DisabledBy, a.DisabledWhy = fromMicros(micros(ev.Time)), ev.Actor, why
		}
		if _, err := t.exec(sqlAccountSwitch, micros(a.DisabledAt), a.DisabledBy, a.DisabledWhy, a.ID); err != nil {
			return err
		}
		ev.Object = a.ID
		return t.audit(ev)
	})
	if err != nil {
		return core.Account{}, err
	}
	return a, nil
}

func errDefaultAccount() *core.Error {
	return core.Errorf(core.CodeConflict, "the default account belongs to the server and stays")
}

// DeleteAccount deletes an account that is disabled: from its return on it does not exist for anybody. Its objects are removed in the background, piece by
// piece, by [Store.purge]; its audit events stay. CodeConflict for an account that is not disabled, so that none is deleted while it is in use.
func (s *Store) DeleteAccount(ctx context.Context, ref string, ev core.AuditEvent) error {
	err := s.write(ctx, &change{name: "delete account", lane: control}, func(t *tx) error {
		a, err := scanAccount(t.row(sqlAccountQuery(ref), ref))
		switch {
		case err != nil:
			return notFound(err, "account")
		case a.ID == core.DefaultAccount:
			return errDefaultAccount()
		case !a.Disabled():
			return core.Errorf(core.CodeConflict, "the account is in use; disable it first")
		}
		if _, err := t.exec(sqlAccountDelete, micros(ev.Time), a.ID); err != nil {
			return err
		}
		ev.Object = a.ID
		return t.audit(ev)
	})
	if err == nil {
		s.wakeSweeper()
	}
	return err
}

// AccountOpen returns nil for an account that may act, core.ErrAccountDisabled for one that is switched off, and CodeNotFound for one that does not exist or was
// deleted. It reads the database every time: there is no cache that could outlive a change. Only the default account, which cannot be switched off, costs nothing.
func (s *Store) AccountOpen(ctx context.Context, id string) error {
	if id == core.DefaultAccount {
		return nil
	}
	return accountOpen(s.row(ctx, sqlAccountByID, id))
}

// accountOpen is AccountOpen within a transaction.
func (t *tx) accountOpen(id string) error {
	if id == core.DefaultAccount {
		return nil
	}
	err := accountOpen(t.row(sqlAccountState, id))
	if core.CodeOf(err) == core.CodeNotFound {
		return nil // only a configuration knows it; whoever authenticates for it is refused before this
	}
	return err
}

// sqlAccountState finds deleted accounts too, which are disabled.
const sqlAccountState = `select ` + accountColumns + ` from accounts where id = $1`

func accountOpen(r row) error {
	a, err := scanAccount(r)
	switch {
	case err != nil:
		return found(err, "account")
	case a.Disabled():
		return core.ErrAccountDisabled()
	}
	return nil
}

func scanAccount(row scanner) (core.Account, error) {
	var (
		a                 core.Account
		created, disabled int64
		limits, state     []byte
	)
	err := row.Scan(&a.ID, &a.Name, &a.Title, &created, &a.CreatedBy, &disabled, &a.DisabledBy, &a.DisabledWhy, &limits, &state, &a.MaxConcurrent)
	if err != nil {
		return a, err
	}
	a.CreatedAt, a.DisabledAt = fromMicros(created), fromMicros(disabled)
	if len(limits) > 0 {
		err = json.Unmarshal(limits, &a.RateLimits)
	}
	if len(state) > 0 {
		err = errors.Join(err, json.Unmarshal(state, &a.RateState))
	}
	if err != nil {
		return a, fmt.Errorf("row of account %s: %w", a.ID, err)
	}
	return a, nil
}

// purged lists the tables of what an account owns, in an order in which rows can be deleted: those that refer to others first. A test fails while a table with a
// column "account" is in none of these lists.
var purged = []struct{ table, key string }{
	{"run_events", "account, run_id, seq"},
	{"run_dedupe", "account, workflow_id, key"},
	{"callbacks", "account, id"},
	{"callback_refusals", "account, url"},
	{"schedule_ticks", "account, workflow_id, name, tick"},
	{"schedules", "account, workflow_id, name"},
	{"run_documents", "account, run_id, part"},
	{"run_steps", "account, run_id, position"},
	{"run_tapes", "account, run_id, step, attempt"},
	{"run_metadata", "account, name, value, run_id"},
	{"idempotency", "account, principal, workflow_id, key"},
	{"runs", "account, id"},
	{"kv", "account, workflow_id, name"},
	{"kv_usage", "account, workflow_id"},
	{"workflow_names", "account, name"},
	{"versions", "account, workflow_id, version"},
	{"workflows", "account, id"},
	{"modules", "account, digest"},
	{"key_usage", "key_id, day, kind, value"},
	{"refusals", "request_id"},
	{"keys", "id"},
	{"secrets", "account, name"},
	{"refresh_tokens", "public_id"},
	{"sessions", "id"},
	{"users", "account, id"},
}

// kept are the tables whose rows outlive their account, and cascaded those whose rows the database deletes with what they refer to.
var (
	kept     = []string{"audit"}
	cascaded = []string{"key_secrets"}
)

const (
	sqlAccountToPurge = `select id from accounts where deleted_at > 0 and purged_at = 0 order by deleted_at limit 1`
	sqlAccountPurged  = `update accounts set purged_at = $1 where id = $2`
)

// purge removes what deleted accounts owned, batch by batch, so that admissions do not wait for it. It begins again after a restart.
func (s *Store) purge(ctx context.Context) error {
	for {
		var id string
		switch err := found(s.row(ctx, sqlAccountToPurge).Scan(&id), "account"); core.CodeOf(err) {
		case "":
		case core.CodeNotFound:
			return nil
		default:
			return err
		}
		for _, p := range purged {
			query := `delete from ` + p.table + ` where (` + p.key + `) in (select ` + p.key + ` from ` + p.table + ` where account = $1 limit $2)`
			if err := s.deleteAll(ctx, "purge "+p.table, query, id); err != nil {
				return err
			}
		}
		if err := s.write(ctx, &change{name: "purge account", lane: intake}, func(t *tx) error {
			_, err := t.exec(sqlAccountPurged, micros(s.cfg.Now()), id)
			return err
		}); err != nil {
			return err
		}
	}
}

// deleteAll runs a deletion until it finds less than the number of rows that its last argument, which comes after args, is.
func (s *Store) deleteAll(ctx context.Context, name, query string, args ...any) error {
	args = append(args, sweepBatch)
	for {
		var deleted int64
		err := s.write(ctx, &change{name: name, lane: intake}, func(t *tx) (err error) {
			deleted, err = t.exec(query, args...)
			return err
		})
		if err != nil || deleted < sweepBatch {
			return err
		}
	}
}
