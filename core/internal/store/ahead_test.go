package store

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// recorder is a transaction that notes what it is asked, one round trip a word.
type recorder struct{ said []string }

func (r *recorder) exec(query string, _ []any) (int64, error) {
	r.said = append(r.said, query)
	return 1, nil
}
func (r *recorder) put(string, []any) error              { return nil }
func (r *recorder) row(query string, _ []any) row        { r.said = append(r.said, query); return row{} }
func (r *recorder) query(string, []any) (rows, error)    { return nil, nil }
func (r *recorder) watched(time.Duration) (bool, error)  { return true, nil }
func (r *recorder) now(own time.Time) (time.Time, error) { return own, nil }
func (r *recorder) commit() error                        { return nil }
func (r *recorder) rollback()                            { r.said = append(r.said, "rollback") }
func (r *recorder) ahead(all []*statement) ([]*answer, error) {
	var together []string
	answers := make([]*answer, len(all))
	for i, s := range all {
		together = append(together, s.query)
		answers[i] = &answer{query: s.query, changed: int64(10 + i)}
	}
	r.said = append(r.said, strings.Join(together, "+"))
	return answers, nil
}

// TestAhead checks which changes of a batch share a round trip, and that each gets its own answer.
func TestAhead(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, batch, said, got string // batch: a letter is a change with that statement, with what it touches; - is one without
	}{
		{"all independent", "a b c", "a+b+c", "10 11 12"},
		{"one alone", "a", "a", "1"},
		{"about the same thing", "a/x b/x c/x", "a b c", "1 1 1"},
		{"partly about the same thing", "a/x b/y c/x d/y", "a+b c+d", "10 11 10 11"},
		{"one without in between", "a b - c d", "a+b - c+d", "10 11 1 10 11"},
		{"the same statement", "a a a", "a+a+a", "10 11 12"},
	} {
		r := &recorder{}
		w := &writer{cfg: &Config{Now: time.Now}, reserve: &reserve{}, session: recorderSession{r: r}}
		var batch []*change
		var got []string
		for word := range strings.FieldsSeq(c.batch) {
			query, touches, _ := strings.Cut(word, "/")
			ch := &change{name: word}
			if query != "-" {
				ch.first = &statement{query: query, touches: touches}
			}
			ch.apply = func(t *tx) error {
				n, err := t.exec(query)
				got = append(got, fmt.Sprint(n))
				return err
			}
			batch = append(batch, ch)
		}
		answers, err := w.transact(batch)
		if err != nil || errors.Join(answers...) != nil {
			t.Fatalf("%s: %v %v", c.name, err, answers)
		}
		if said := strings.Join(r.said, " "); said != c.said || strings.Join(got, " ") != c.got {
			t.Errorf("%s: said %q and got %q, want %q and %q", c.name, said, got, c.said, c.got)
		}
	}
}

// TestAheadNotBegun checks that a change which does something else first than it says takes nobody's answer and is not committed.
func TestAheadNotBegun(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	w := &writer{cfg: &Config{Now: time.Now}, reserve: &reserve{}, session: recorderSession{r: r}}
	other := &change{first: &statement{query: "a"}, apply: func(t *tx) error { _, err := t.exec("b"); return err }}
	fine := &change{first: &statement{query: "c"}, apply: func(t *tx) error { _, err := t.exec("c"); return err }}
	if _, err := w.transact([]*change{other, fine}); !errors.Is(err, errNotBegun) || r.said[len(r.said)-1] != "rollback" {
		t.Errorf("error = %v after %q", err, r.said)
	}
}

// recorderSession begins transactions that are one recorder.
type recorderSession struct {
	session
	r *recorder
}

func (s recorderSession) begin() (transaction, error) { return s.r, nil }
