package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/keyfire/keyfire/core"
)

const (
	sqlStepInsert = `insert into run_steps (account, run_id, position, step, body) values ($1, $2, $3, $4, $5)`
	sqlSteps      = `select body from run_steps where account = $1 and run_id = $2 order by position`
)

// storedStep is the JSON form of a step in the database. Fields are only added.
type storedStep struct {
	ID         string          `json:"id"`
	Status     core.StepStatus `json:"status"`
	Module     string          `json:"module,omitempty"`
	Attempts   []core.Attempt  `json:"attempts,omitempty"`
	Input      json.RawMessage `json:"input,omitempty"`
	Output     json.RawMessage `json:"output,omitempty"`
	Error      *core.StepError `json:"error,omitempty"`
	StartedAt  int64           `json:"started_at,omitempty"`
	FinishedAt int64           `json:"finished_at,omitempty"`
	RetryAt    int64           `json:"retry_at,omitempty"`
}

// stepRows are the steps of a run as they are written: all in one document in the run's row while that is small, which costs
// nothing more than the row; otherwise a row for each, so that one can be read without the others.
type stepRows struct {
	inline any
	rows   [][]any
	size   int64
}

func encodeSteps(run *core.Run) (*stepRows, error) {
	r := &stepRows{}
	if len(run.Steps) == 0 {
		return r, nil
	}
	bodies := make([]string, len(run.Steps))
	for i := range run.Steps {
		body, err := encodeStep(&run.Steps[i])
		if err != nil {
			return nil, err
		}
		bodies[i] = body
		r.size += int64(len(body))
	}
	if r.size <= inlineLimit {
		r.inline = "[" + strings.Join(bodies, ",") + "]"
		return r, nil
	}
	for i, body := range bodies {
		r.rows = append(r.rows, []any{run.Account, run.ID, i, run.Steps[i].ID, body})
	}
	return r, nil
}

func encodeStep(st *core.Step) (string, error) {
	body, err := encode(storedStep{
		ID: st.ID, Status: st.Status, Module: st.Module, Attempts: st.Attempts, Input: st.Input, Output: st.Output, Error: st.Error,
		StartedAt: micros(st.StartedAt), FinishedAt: micros(st.FinishedAt), RetryAt: micros(st.RetryAt),
	})
	if err != nil {
		return "", fmt.Errorf("step %s: %w", st.ID, err)
	}
	return body, nil
}

func (r *stepRows) insert(t *tx) error {
	for _, row := range r.rows {
		if err := t.put(sqlStepInsert, row...); err != nil {
			return err
		}
	}
	return nil
}

// readSteps returns the steps of a run, given the document in its row.
func (s *Store) readSteps(ctx context.Context, view *sql.Tx, run *core.Run, inline []byte) ([]core.Step, error) {
	if inline != nil {
		return decodeSteps(inline)
	}
	stmt, err := s.ready.get(ctx, sqlSteps)
	if err != nil {
		return nil, err
	}
	rows, err := view.StmtContext(ctx, stmt).QueryContext(ctx, run.Account, run.ID) //nolint:rowserrcheck // scanAll does
	if err != nil {
		return nil, err
	}
	return scanAll(rows, func(row scanner) (core.Step, error) {
		var body []byte
		if err := row.Scan(&body); err != nil {
			return core.Step{}, err
		}
		return decodeStep(body)
	})
}

func decodeSteps(b []byte) ([]core.Step, error) {
	var bodies []storedStep
	if err := json.Unmarshal(b, &bodies); err != nil {
		return nil, errors.Join(errDamaged, fmt.Errorf("steps: %w", err))
	}
	steps := make([]core.Step, len(bodies))
	for i := range bodies {
		steps[i] = bodies[i].step()
	}
	return steps, nil
}

func decodeStep(b []byte) (core.Step, error) {
	var st storedStep
	if err := json.Unmarshal(b, &st); err != nil {
		return core.Step{}, errors.Join(errDamaged, fmt.Errorf("step: %w", err))
	}
	return st.step(), nil
}

func (st *storedStep) step() core.Step {
	return core.Step{
		ID: st.ID, Status: st.Status, Module: st.Module, Attempts: st.Attempts, Input: st.Input, Output: st.Output, Error: st.Error,
		StartedAt: fromMicros(st.StartedAt), FinishedAt: fromMicros(st.FinishedAt), RetryAt: fromMicros(st.RetryAt),
	}
}
