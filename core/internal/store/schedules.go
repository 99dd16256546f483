package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/keyfire/keyfire/core"
)

const (
	sqlTick       = `select run_id from schedule_ticks where account = $1 and workflow_id = $2 and name = $3 and tick = $4`
	sqlTickInsert = `insert into schedule_ticks (account, workflow_id, name, tick, at, run_id) values ($1, $2, $3, $4, $5, $6)`

	sqlScheduleInsert = `insert into schedules (account, workflow_id, name, spec, since, last) values ($1, $2, $3, $4, $5, 0)`
	sqlScheduleDelete = `delete from schedules where account = $1 and workflow_id = $2 and name = $3`
	sqlScheduleNames  = `select name from schedules where account = $1 and workflow_id = $2`
	sqlScheduleLast   = `update schedules set last = $1 where account = $2 and workflow_id = $3 and name = $4 and last < $1`
	sqlSchedulesSince = `update schedules set since = $1 where account = $2 and workflow_id = $3`
	sqlSchedules      = `select s.account, s.workflow_id, s.name, s.spec, s.since, s.last from schedules s
		join workflows w on w.account = s.account and w.id = s.workflow_id where w.enabled
		and not exists (select 1 from accounts a where a.id = s.account and (a.disabled_at > 0 or a.deleted_at > 0))`
)

// replaceSchedules makes the schedules of a workflow those of its new version. One that stays as it is keeps its place in time.
func replaceSchedules(t *tx, w *core.Workflow, schedules []core.Schedule) error {
	names, err := rowsOf(t, scanText, sqlScheduleNames, w.Account, w.ID)
	if err != nil {
		return err
	}
	old := map[string]bool{}
	for _, name := range names {
		old[name] = true
	}
	for i := range schedules {
		spec, err := encode(schedules[i])
		if err != nil {
			return err
		}
		name := scheduleName(spec)
		if known, seen := old[name]; seen {
			if known {
				old[name] = false
			}
			continue
		}
		old[name] = false
		if _, err := t.exec(sqlScheduleInsert, w.Account, w.ID, name, spec, micros(w.UpdatedAt)); err != nil {
			return err
		}
	}
	for name, gone := range old {
		if !gone {
			continue
		}
		if _, err := t.exec(sqlScheduleDelete, w.Account, w.ID, name); err != nil {
			return err
		}
	}
	return nil
}

// scheduleName names a schedule by what it says.
func scheduleName(spec string) string {
	sum := sha256.Sum256([]byte(spec))
	return hex.EncodeToString(sum[:8])
}

// PassTick notes that a scheduled time is passed over: it and those before it get no run any more.
func (s *Store) PassTick(ctx context.Context, account string, tick *core.Tick) error {
	return s.write(ctx, &change{name: "pass over a scheduled time", lane: control}, func(t *tx) error {
		_, err := t.exec(sqlScheduleLast, micros(tick.At), account, tick.Workflow, tick.Schedule)
		return err
	})
}

// Schedules returns the schedules of every workflow that is enabled, in an account that is.
func (s *Store) Schedules(ctx context.Context) ([]core.ScheduleState, error) {
	return all(ctx, s, "list schedules", func(row scanner) (st core.ScheduleState, err error) {
		var (
			spec        []byte
			since, last int64
		)
		if err := row.Scan(&st.Account, &st.Workflow, &st.Name, &spec, &since, &last); err != nil {
			return st, err
		}
		if err := json.Unmarshal(spec, &st.Schedule); err != nil {
			return st, fmt.Errorf("%w: schedule %s of %s: %w", errDamaged, st.Name, st.Workflow, err)
		}
		st.Since, st.Last = fromMicros(since), fromMicros(last)
		return st, nil
	}, sqlSchedules)
}
