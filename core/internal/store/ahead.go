package store

import (
	"database/sql"
	"errors"
)

// In PostgreSQL every statement whose answer decides something is a round trip, while all servers wait for the lock. Most changes have one such
// statement and begin with it: the charge of a key, the claim of a run, the fence before a step. So those of changes that wait together are sent
// together, and then each change is applied with the answer that is there already: a batch costs three round trips, however many changes are in it.
//
// The statements run in the order of the changes, but before what the changes write after them. That is the same as one after the other only if no
// change's first statement depends on what one before it writes later. So a change may say what its statement is about, and of two about the
// same thing the second waits for the first to be done; and a change without such a statement, such as one of the control plane, ends what goes together.

// statement is what a change begins with.
type statement struct {
	query string
	args  []any
	rows  bool // it is answered with rows
	// touches names what it depends on or changes besides what it decides by itself: a run's id. "" is nothing that another change in the
	// batch would write after its own first statement.
	touches string
}

// answer is the answer to a statement that ran ahead of its change.
type answer struct {
	query   string
	changed int64
	rows    *pgRows
}

// row returns the first row, as tx.row does.
func (a *answer) row() row {
	if a.rows == nil || !a.rows.Next() {
		return row{err: sql.ErrNoRows}
	}
	return row{row: a.rows}
}

// errNotBegun is for a change that does not begin as it says. Its batch is rolled back, and it is tried alone, where nothing runs ahead.
var errNotBegun = errors.New("the change did not begin with its first statement")

// runAhead runs the first statements of as many changes as go together. It returns their number, at least one.
func (t *tx) runAhead(batch []*change) (int, error) {
	seen := make(map[string]bool, len(batch))
	var first []*statement
	for _, c := range batch {
		if c.first == nil || seen[c.first.touches] {
			break
		}
		if c.first.touches != "" {
			seen[c.first.touches] = true
		}
		first = append(first, c.first)
	}
	t.ran = nil
	if len(first) < 2 {
		return 1, nil
	}
	var err error
	t.ran, err = t.db.ahead(first)
	return len(first), err
}

// apply applies a change with the answer to its first statement, if that ran.
func (t *tx) apply(c *change) error {
	t.next = nil
	if len(t.ran) > 0 {
		t.next, t.ran = t.ran[0], t.ran[1:]
	}
	err := c.apply(t)
	if t.next != nil {
		return errNotBegun
	}
	return err
}

// known returns the answer to query if it ran ahead.
func (t *tx) known(query string) *answer {
	if t.next == nil || t.next.query != query {
		return nil
	}
	known := t.next
	t.next = nil
	return known
}
