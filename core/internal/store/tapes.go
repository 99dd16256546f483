package store

import (
	"context"

	"github.com/keyfire/keyfire/core"
)

const (
	// A durable run may come by an attempt again, when what it did the first time was not committed as a whole.
	sqlTapePut = `insert into run_tapes (account, run_id, step, attempt, body) values ($1, $2, $3, $4, $5)
		on conflict (account, run_id, step, attempt) do update set body = excluded.body`
	sqlTape = `select body from run_tapes where account = $1 and run_id = $2 and step = $3 and attempt = $4`
)

// tapesSize is how many bytes of tapes come with steps.
func tapesSize(steps []core.Step) (size int64) {
	for i := range steps {
		for j := range steps[i].Attempts {
			size += int64(len(steps[i].Attempts[j].Recording))
		}
	}
	return size
}

// putTapes stores the tapes that come with steps.
func putTapes(t *tx, account, run string, steps []core.Step) error {
	for i := range steps {
		for j := range steps[i].Attempts {
			a := &steps[i].Attempts[j]
			if len(a.Recording) == 0 {
				continue
			}
			if err := t.put(sqlTapePut, account, run, steps[i].ID, a.Number, a.Recording); err != nil {
				return err
			}
		}
	}
	return nil
}

// Tape returns the tape of one attempt of a step, CodeNotFound when there is none.
func (s *Store) Tape(ctx context.Context, account, run, step string, attempt int) ([]byte, error) {
	var body []byte
	err := s.bulk.QueryRowContext(s.listing(ctx), sqlTape, account, run, step, attempt).Scan(&body)
	return body, found(err, "tape")
}
