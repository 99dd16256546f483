package store

import (
	"context"
	"strconv"

	"github.com/keyfire/keyfire/core"
)

const auditColumns = `seq, id, account, time, actor, key_id, source_ip, action, object, outcome, reason, request_id, trace_id, count`

const (
	sqlAuditLast   = `select coalesce(max(seq), 0) from audit`
	sqlAuditInsert = `insert into audit (` + auditColumns + `) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`
	sqlAudit       = `select ` + auditColumns + ` from audit`
)

// audit adds an event to the transaction. Sequence numbers are given in the order of commits and without gaps: the
// transaction is alone in writing, and one that is rolled back takes its numbers with it.
func (t *tx) audit(ev core.AuditEvent) error {
	if t.seq == 0 {
		if err := t.row(sqlAuditLast).Scan(&t.seq); err != nil {
			return err
		}
	}
	if err := t.put(sqlAuditInsert, t.seq+1, ev.ID, ev.Account, micros(ev.Time), ev.Actor, ev.KeyID, ev.SourceIP, ev.Action, ev.Object,
		ev.Outcome, ev.Reason, ev.RequestID, ev.TraceID, max(ev.Count, 1)); err != nil {
		return err
	}
	t.seq++
	return nil
}

// Audit records events that belong to no change, such as refusals, in the order given and all or none. Seq is given by the store;
// a Count of 0 counts as 1.
func (s *Store) Audit(ctx context.Context, events ...core.AuditEvent) error {
	if len(events) == 0 {
		return nil
	}
	return s.write(ctx, &change{name: "audit", lane: intake, size: int64(len(events)) * 512}, func(t *tx) error {
		for _, ev := range events {
			if err := t.audit(ev); err != nil {
				return err
			}
		}
		return nil
	})
}

// AuditEvents returns a page of the account's audit log, newest first.
func (s *Store) AuditEvents(ctx context.Context, account string, f core.AuditFilter, p core.Page) (core.List[core.AuditEvent], error) {
	return read(ctx, s, auditListing(account, f), p)
}

func auditListing(account string, f core.AuditFilter) listing[core.AuditEvent] {
	var w where
	w.equal("account", account)
	w.equalIf("action", f.Action)
	w.equalIf("actor", f.Actor)
	w.equalIf("object", f.Object)
	if !f.After.IsZero() {
		w.add("time > ", micros(f.After))
	}
	return listing[core.AuditEvent]{
		name: "audit", account: account,
		columns: sqlAudit, where: w.sql, args: w.args,
		key: "seq", numeric: true, keyOf: func(ev *core.AuditEvent) string { return strconv.FormatInt(ev.Seq, 10) },
		scan: scanAudit,
	}
}

func scanAudit(row scanner) (core.AuditEvent, error) {
	var (
		ev core.AuditEvent
		at int64
	)
	err := row.Scan(&ev.Seq, &ev.ID, &ev.Account, &at, &ev.Actor, &ev.KeyID, &ev.SourceIP, &ev.Action, &ev.Object, &ev.Outcome, &ev.Reason,
		&ev.RequestID, &ev.TraceID, &ev.Count)
	ev.Time = fromMicros(at)
	return ev, err
}
