package queue

import "github.com/keyfire/keyfire/core"

// fifo is a queue of values in a slice.
type fifo[T any] struct {
	items []T
	head  int
}

func (f *fifo[T]) len() int { return len(f.items) - f.head }

func (f *fifo[T]) push(v T) { f.items = append(f.items, v) }

func (f *fifo[T]) pop() T {
	var none T
	v := f.items[f.head]
	f.items[f.head] = none
	f.head++
	switch {
	case f.head == len(f.items):
		f.items, f.head = f.items[:0], 0
	case f.head >= 64 && f.head*2 >= len(f.items):
		n := copy(f.items, f.items[f.head:])
		clear(f.items[n:])
		f.items, f.head = f.items[:n], 0
	}
	return v
}

// fair is a queue in which accounts take turns, and within an account its lanes; within a lane it is first in, first out. Every operation
// takes constant time, and what is empty is forgotten.
type fair struct {
	accounts map[string]*turns
	order    fifo[*turns] // accounts that have jobs, the next one first
	n        int
}

// turns are the lanes of one account.
type turns struct {
	name  string
	lanes map[string]*lane
	order fifo[*lane] // lanes that have jobs, the next one first
}

type lane struct {
	name string
	jobs fifo[*entry]
}

// entry is a job in a queue. Dropped entries are passed over when their turn comes.
type entry struct {
	job     core.Job
	state   entryState
	at      int // place in the heap of those that are not due
	dropped bool
}

func newFair() *fair { return &fair{accounts: map[string]*turns{}} }

func (f *fair) push(e *entry) {
	a := f.accounts[e.job.Account]
	if a == nil {
		a = &turns{name: e.job.Account, lanes: map[string]*lane{}}
		f.accounts[a.name] = a
		f.order.push(a)
	}
	l := a.lanes[e.job.Lane]
	if l == nil {
		l = &lane{name: e.job.Lane}
		a.lanes[l.name] = l
		a.order.push(l)
	}
	l.jobs.push(e)
	f.n++
}

// pop returns the next entry, nil when there is none.
func (f *fair) pop() *entry {
	if f.order.len() == 0 {
		return nil
	}
	a := f.order.pop()
	l := a.order.pop()
	e := l.jobs.pop()
	f.n--
	if l.jobs.len() > 0 {
		a.order.push(l)
	} else {
		delete(a.lanes, l.name)
	}
	if a.order.len() > 0 {
		f.order.push(a)
	} else {
		delete(f.accounts, a.name)
	}
	return e
}
