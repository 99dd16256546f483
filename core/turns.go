package core

// Turns is a queue in which accounts take turns, and within an account its callers; what one caller has put comes in the order it was put. So whoever puts a
// thousand values makes everybody else wait for one of them. Every operation takes constant time, and what is empty is forgotten. The zero value is
// an empty queue. It is not safe for concurrent use.
type Turns[T any] struct {
	accounts map[string]*account[T]
	order    fifo[*account[T]] // those that have values, the next one first
	n        int
}

// account is what an account has in the queue.
type account[T any] struct {
	name    string
	callers map[string]*caller[T]
	order   fifo[*caller[T]] // those that have values, the next one first
}

type caller[T any] struct {
	name   string
	values fifo[T]
}

// Len returns how many values are in the queue.
func (q *Turns[T]) Len() int { return q.n }

// Push puts a value behind those of the same caller. A caller with no name is one like any other.
func (q *Turns[T]) Push(accountName, callerName string, v T) {
	a := q.accounts[accountName]
	if a == nil {
		if q.accounts == nil {
			q.accounts = map[string]*account[T]{}
		}
		a = &account[T]{name: accountName, callers: map[string]*caller[T]{}}
		q.accounts[a.name] = a
		q.order.push(a)
	}
	c := a.callers[callerName]
	if c == nil {
		c = &caller[T]{name: callerName}
		a.callers[c.name] = c
		a.order.push(c)
	}
	c.values.push(v)
	q.n++
}

// Peek returns the value that Pop will return; ok is false when there is none.
func (q *Turns[T]) Peek() (v T, ok bool) {
	if q.n == 0 {
		return v, false
	}
	return q.order.first().order.first().values.first(), true
}

// Pop takes the next value out; ok is false when there is none.
func (q *Turns[T]) Pop() (v T, ok bool) {
	if q.n == 0 {
		return v, false
	}
	a := q.order.pop()
	c := a.order.pop()
	v = c.values.pop()
	q.n--
	if c.values.len() > 0 {
		a.order.push(c)
	} else {
		delete(a.callers, c.name)
	}
	if a.order.len() > 0 {
		q.order.push(a)
	} else {
		delete(q.accounts, a.name)
	}
	return v, true
}

// fifo is a queue of values in a slice.
type fifo[T any] struct {
	items []T
	head  int
}

func (f *fifo[T]) len() int { return len(f.items) - f.head }

func (f *fifo[T]) push(v T) { f.items = append(f.items, v) }

func (f *fifo[T]) first() T { return f.items[f.head] }

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
