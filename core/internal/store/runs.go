package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/keyfire/keyfire/core"
)

// inlineLimit is the size up to which a document lives in its run's row. A larger one has a row of its own: the end of a
// run rewrites the run's row, and lists pass over it.
const inlineLimit = 4 << 10

const runColumns = `account, id, status, workflow_id, workflow_slug, workflow_version, workflow_digest, trigger_type, trigger_route, principal,
	key_id, key_name, key_hint, backend, source_ip, created_at, started_at, finished_at, deadline_at, attempt, trace_id, request_id, metadata, error, attributes,
	durable, due_at, timeout, run_limit, replay_of, span`

const (
	sqlRunInsert = `insert into runs (` + runColumns + `, input, overrides, output, steps, server)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, null, null, $34)`
	sqlRunFinish = `update runs set status = $1, started_at = $2, finished_at = $3, error = $4, output = $5, steps = $6
		where account = $7 and id = $8 and attempt = $9 and finished_at = 0`
	sqlRunState = `select status, attempt, finished_at from runs where account = $1 and id = $2`
	sqlRun      = `select ` + runColumns + `, input, overrides, output, steps from runs where account = $1 and id = $2`
	sqlRuns     = `select ` + runColumns + ` from runs`

	// sqlRunsLeft finds the inline runs of servers that were not seen for a while before this one was. On a database of one server there
	// are no rows of servers, and all of its runs are found.
	sqlRunsLeft = `select account, id from runs where status = $4 and status <> 'succeeded' and not durable
		and server not in (select id from servers where seen_at > (select seen_at from servers where id = $2) - $3) order by account, id limit $1`
	sqlServersForget = `delete from servers where seen_at < (select seen_at from servers where id = $1) - $2
		and not exists (select 1 from runs where status = 'running' and status <> 'succeeded' and server = servers.id)`
	sqlRunInterrupt = `update runs set status = $1, finished_at = $2, error = $3 where account = $4 and id = $5 and finished_at = 0`

	sqlDocumentInsert = `insert into run_documents (account, run_id, part, body) values ($1, $2, $3, $4)`
	sqlDocuments      = `select part, body from run_documents where account = $1 and run_id = $2`
	sqlMetadataInsert = `insert into run_metadata (account, name, value, run_id) values ($1, $2, $3, $4)`
)

// The parts of a run that have a row of their own when they are large.
const (
	partInput     = "input"
	partOverrides = "overrides"
	partOutput    = "output"
)

// runRows is a run as it is inserted, prepared outside the transaction so that the writer only writes.
type runRows struct {
	args      []any
	documents []document
	metadata  [][]any
	size      int64
}

type document struct{ account, run, part, body string }

// newRunRows takes the server that executes the run, "" for any.
func newRunRows(run *core.Run, server string) (*runRows, error) {
	metadata := ""
	if len(run.Metadata) > 0 {
		var err error
		if metadata, err = encode(run.Metadata); err != nil {
			return nil, err
		}
	}
	attributes := ""
	if len(run.Trigger.Attributes) > 0 {
		var err error
		if attributes, err = encode(run.Trigger.Attributes); err != nil {
			return nil, err
		}
	}
	runError, err := encodeRunError(run.Error)
	if err != nil {
		return nil, err
	}
	r := &runRows{size: int64(len(run.Input) + len(run.Overrides) + len(metadata) + len(attributes) + 1024)}
	for _, name := range slices.Sorted(maps.Keys(run.Metadata)) {
		r.metadata = append(r.metadata, []any{run.Account, name, run.Metadata[name], run.ID})
	}
	input, documents := inline(run, nil, partInput, run.Input)
	overrides, documents := inline(run, documents, partOverrides, run.Overrides)
	r.documents = documents
	w, tr := &run.Workflow, &run.Trigger
	r.args = []any{
		run.Account, run.ID, string(run.Status), w.ID, w.Slug, w.Version, w.Digest, tr.Type, tr.Route, tr.Principal,
		tr.KeyID, tr.KeyName, tr.KeyHint, tr.Backend, tr.SourceIP, micros(run.CreatedAt), micros(run.StartedAt), micros(run.FinishedAt), micros(run.DeadlineAt),
		run.Attempt, run.TraceID, run.RequestID, metadata, runError, attributes,
		run.Durable, micros(run.DueAt), run.Timeout.Microseconds(), run.Limit, run.ReplayOf, run.Span, input, overrides, server,
	}
	return r, nil
}

// inline returns what goes into the run's row for a document: its text, or null when it is absent or gets a row of its own.
func inline(run *core.Run, apart []document, part string, body json.RawMessage) (any, []document) {
	switch {
	case len(body) == 0:
		return nil, apart
	case len(body) > inlineLimit:
		return nil, append(apart, document{run.Account, run.ID, part, string(body)})
	}
	return string(body), apart
}

func (r *runRows) insert(t *tx) error {
	if err := t.put(sqlRunInsert, r.args...); err != nil {
		return err
	}
	for _, m := range r.metadata {
		if err := t.put(sqlMetadataInsert, m...); err != nil {
			return err
		}
	}
	return insertDocuments(t, r.documents)
}

func insertDocuments(t *tx, documents []document) error {
	for _, d := range documents {
		if err := t.put(sqlDocumentInsert, d.account, d.run, d.part, d.body); err != nil {
			return err
		}
	}
	return nil
}

// FinishRun records how a run ended: status, times, output, error and steps, and for a durable run the last events. A run ends once:
// CodeRunAlreadyFinished when it has ended, CodeConflict when another attempt has taken it over, CodeNotFound when the account has no such run.
func (s *Store) FinishRun(ctx context.Context, run *core.Run, events ...core.RunEvent) error {
	if !run.Status.Terminal() || run.FinishedAt.IsZero() {
		return fmt.Errorf("finish run: status %q, finished at %s: not the end of a run", run.Status, run.FinishedAt)
	}
	runError, err := encodeRunError(run.Error)
	if err != nil {
		return fmt.Errorf("finish run: %w", err)
	}
	steps, err := encodeSteps(s.cfg.cap(run))
	if err != nil {
		return fmt.Errorf("finish run: %w", err)
	}
	told, err := encodeEvents(events)
	if err != nil {
		return fmt.Errorf("finish run: %w", err)
	}
	output, documents := inline(run, nil, partOutput, run.Output)
	first := &statement{query: sqlRunFinish, touches: run.ID, args: []any{
		string(run.Status), micros(run.StartedAt), micros(run.FinishedAt), runError, output, steps.inline, run.Account, run.ID, run.Attempt,
	}}
	c := &change{name: "finish run", lane: results, account: run.Account, caller: run.Trigger.Principal, size: int64(len(run.Output)) + steps.size + told.size() + tapesSize(run.Steps), first: first}
	return s.write(ctx, c, func(t *tx) error {
		n, err := t.exec(first.query, first.args...)
		if err != nil {
			return err
		}
		if n == 0 {
			return whyNotFinished(t, run)
		}
		if run.Durable {
			if err := finishDurable(t, run.Account, run.ID, run.FinishedAt, told); err != nil {
				return err
			}
		}
		if err := insertDocuments(t, documents); err != nil {
			return err
		}
		if err := putTapes(t, run.Account, run.ID, run.Steps); err != nil {
			return err
		}
		return steps.insert(t)
	})
}

// whyNotFinished finds which condition made sqlRunFinish change nothing.
func whyNotFinished(t *tx, run *core.Run) error {
	var (
		status   core.RunStatus
		attempt  int
		finished int64
	)
	err := t.row(sqlRunState, run.Account, run.ID).Scan(&status, &attempt, &finished)
	switch {
	case err != nil:
		return notFound(err, "run")
	case finished != 0:
		return core.Errorf(core.CodeRunAlreadyFinished, "the run has ended already, as %s", status)
	}
	return core.Errorf(core.CodeConflict, "attempt %d of the run was taken over by attempt %d; its result does not count", run.Attempt, attempt)
}

// interruptBatch bounds how many runs one transaction ends.
const interruptBatch = 200

// InterruptRuns ends, as interrupted, the inline runs that died with their server: at the start of the only server all that are still
// running, and where servers share the database those of servers that were silent for Silent while this one watched: after a time in which the database was
// away, and after this server started, it waits as long, since it cannot tell who was dead and who could not write. newEvent makes the audit event of each; it may
// be asked about a run more than once. It returns how many runs there were; after an error, that many are ended and the rest is not.
func (s *Store) InterruptRuns(ctx context.Context, at time.Time, newEvent func(runID, account string) core.AuditEvent) (int, error) {
	reason, err := encodeRunError(&core.RunError{
		Code:    core.CodeRunInterrupted,
		Message: "the server stopped while the run was executing; what it did until then is not known, and it is not executed again",
	})
	if err != nil {
		return 0, fmt.Errorf("interrupt runs: %w", err)
	}
	total := 0
	for {
		var n int
		err := s.write(ctx, &change{name: "interrupt runs", lane: control, essential: true}, func(t *tx) error {
			n = 0
			left, err := s.runsLeft(t)
			if err != nil {
				return err
			}
			for _, r := range left {
				if err := t.put(sqlRunInterrupt, string(core.RunInterrupted), micros(at), reason, r.Account, r.ID); err != nil {
					return err
				}
				if err := t.audit(newEvent(r.ID, r.Account)); err != nil {
					return err
				}
			}
			n = len(left)
			return nil
		})
		if err != nil {
			return total, err
		}
		if total += n; n < interruptBatch {
			return total, nil
		}
	}
}

func (s *Store) runsLeft(t *tx) ([]core.Run, error) {
	silent := Silent
	if !s.cfg.Shared {
		silent = 0 // this server is alone, so the others are gone however short ago they were seen
	} else if watched, err := t.db.watched(silent); err != nil || !watched {
		return nil, err
	}
	if s.cfg.URL != "" {
		if err := t.put(sqlServersForget, s.cfg.Server, time.Hour.Microseconds()); err != nil {
			return nil, err
		}
	}
	var left []core.Run
	for _, status := range []core.RunStatus{core.RunRunning, core.RunCancelling} {
		found, err := rowsOf(t, func(row scanner) (r core.Run, err error) {
			err = row.Scan(&r.Account, &r.ID)
			return r, err
		}, sqlRunsLeft, interruptBatch-len(left), s.cfg.Server, silent.Microseconds(), string(status))
		if err != nil {
			return nil, err
		}
		left = append(left, found...)
	}
	return left, nil
}

// Run returns a whole run with its steps, CodeNotFound when the account has none with that id.
func (s *Store) Run(ctx context.Context, account, id string) (*core.Run, error) {
	if ctx.Err() != nil {
		return nil, unavailable("read run", ended(ctx))
	}
	var run *core.Run
	err := s.lookUp(ctx, func(ctx context.Context) (err error) {
		run, err = s.lookUpRun(ctx, account, id)
		return err
	})
	if err != nil {
		return nil, found(err, "run")
	}
	return run, nil
}

func (s *Store) lookUpRun(ctx context.Context, account, id string) (*core.Run, error) {
	// Prepared before the transaction has a connection: preparing takes another one of the same pool, and when all are held by
	// transactions that wait for one, nobody ever gets it.
	for _, query := range []string{sqlRun, sqlDocuments, sqlSteps} {
		if _, err := s.ready.get(ctx, query); err != nil {
			return nil, err
		}
	}
	// One transaction, so that a run that ends meanwhile is seen either before or after its end.
	view, err := s.points.BeginTx(ctx, s.snapshot)
	if err != nil {
		return nil, err
	}
	// Nothing is written, so there is nothing that ending it could lose.
	defer func() { _ = view.Rollback() }()
	return s.run(ctx, view, account, id)
}

func (s *Store) run(ctx context.Context, view *sql.Tx, account, id string) (*core.Run, error) {
	stmt, err := s.ready.get(ctx, sqlRun)
	if err != nil {
		return nil, err
	}
	var input, overrides, output, steps []byte
	run, err := scanRun(view.StmtContext(ctx, stmt).QueryRowContext(ctx, account, id), &input, &overrides, &output, &steps)
	if err != nil {
		return nil, err
	}
	run.Input, run.Overrides, run.Output = input, overrides, output
	if input == nil || overrides == nil || output == nil {
		if err := s.readDocuments(ctx, view, &run); err != nil {
			return nil, err
		}
	}
	run.Steps, err = s.readSteps(ctx, view, &run, steps)
	return &run, err
}

// readDocuments fills in the documents that have a row of their own.
func (s *Store) readDocuments(ctx context.Context, view *sql.Tx, run *core.Run) error {
	stmt, err := s.ready.get(ctx, sqlDocuments)
	if err != nil {
		return err
	}
	rows, err := view.StmtContext(ctx, stmt).QueryContext(ctx, run.Account, run.ID)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var (
			part string
			body []byte
		)
		if err := rows.Scan(&part, &body); err != nil {
			return err
		}
		switch part {
		case partInput:
			run.Input = body
		case partOverrides:
			run.Overrides = body
		case partOutput:
			run.Output = body
		}
	}
	return rows.Err()
}

// Runs returns a page of the account's runs, newest first, without input, overrides, output and steps.
func (s *Store) Runs(ctx context.Context, account string, f core.RunFilter, p core.Page) (core.List[core.Run], error) {
	return read(ctx, s, runListing(account, f), p)
}

func runListing(account string, f core.RunFilter) listing[core.Run] {
	var w where
	w.equal("account", account)
	w.equalIf("workflow_id", f.Workflow)
	// The conditions of partial indexes are repeated, so that the database knows it may use them.
	if f.KeyID != "" {
		w.sql += " and key_id <> ''"
		w.equal("key_id", f.KeyID)
	}
	if f.Status != "" {
		if f.Status != core.RunSucceeded {
			w.sql += " and status <> 'succeeded'"
		}
		w.equal("status", string(f.Status))
	}
	if f.TraceID != "" {
		w.add("id in (select id from runs where account = $1 and trace_id = ", f.TraceID)
		w.sql += ")"
	}
	if !f.CreatedAfter.IsZero() {
		w.add("created_at > ", micros(f.CreatedAfter))
		// The index is by id, and an id holds its time: without this bound a page that is not filled reads all that is older.
		w.add("id > ", oldestRunID(f.CreatedAfter.Add(-idSlack)))
	}
	for _, name := range slices.Sorted(maps.Keys(f.Metadata)) {
		w.add("id in (select run_id from run_metadata where account = $1 and name = ", name)
		w.add("value = ", f.Metadata[name])
		w.sql += ")"
	}
	return listing[core.Run]{
		name: "runs", account: account,
		columns: sqlRuns, where: w.sql, args: w.args,
		key: "id", keyOf: func(r *core.Run) string { return r.ID },
		scan: func(row scanner) (core.Run, error) { return scanRun(row) },
	}
}

// idSlack is how far the time in a run's id may be behind the run's CreatedAt.
const idSlack = time.Minute

// oldestRunID returns the smallest id that a run made at the given time can have: a ULID begins with the milliseconds since 1970
// in ten digits of base 32, here in lower case.
func oldestRunID(at time.Time) string {
	const digits = "0123456789abcdefghjkmnpqrstvwxyz"
	ms := max(at.UnixMilli(), 0)
	var text [10]byte
	for i := len(text) - 1; i >= 0; i-- {
		text[i] = digits[ms&31]
		ms >>= 5
	}
	return core.PrefixRun + string(text[:])
}

// scanRun reads the columns of a list, and any further ones into more.
func scanRun(row scanner, more ...any) (core.Run, error) {
	var (
		run                                  core.Run
		created, started, finished, deadline int64
		due, timeout                         int64
		metadata, runError, attributes       []byte
	)
	w, tr := &run.Workflow, &run.Trigger
	dest := append([]any{
		&run.Account, &run.ID, &run.Status, &w.ID, &w.Slug, &w.Version, &w.Digest, &tr.Type, &tr.Route, &tr.Principal,
		&tr.KeyID, &tr.KeyName, &tr.KeyHint, &tr.Backend, &tr.SourceIP, &created, &started, &finished, &deadline, &run.Attempt, &run.TraceID, &run.RequestID,
		&metadata, &runError, &attributes, &run.Durable, &due, &timeout, &run.Limit, &run.ReplayOf, &run.Span,
	}, more...)
	if err := row.Scan(dest...); err != nil {
		return core.Run{}, err
	}
	run.CreatedAt, run.StartedAt, run.FinishedAt, run.DeadlineAt = fromMicros(created), fromMicros(started), fromMicros(finished), fromMicros(deadline)
	run.DueAt, run.Timeout = fromMicros(due), time.Duration(timeout)*time.Microsecond
	var errs []error
	if len(metadata) > 0 {
		errs = append(errs, json.Unmarshal(metadata, &run.Metadata))
	}
	if len(attributes) > 0 {
		errs = append(errs, json.Unmarshal(attributes, &run.Trigger.Attributes))
	}
	if len(runError) > 0 {
		errs = append(errs, json.Unmarshal(runError, &run.Error))
	}
	if err := errors.Join(errs...); err != nil {
		return core.Run{}, fmt.Errorf("run %s: %w", run.ID, err)
	}
	return run, nil
}

func encodeRunError(e *core.RunError) (string, error) {
	if e == nil {
		return "", nil
	}
	return encode(e)
}
