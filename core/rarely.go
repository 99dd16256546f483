package core

import (
	"sync/atomic"
	"time"
)

// Rarely is how often something is told that may happen at any rate, such as with every request while a database is away: the first time at once, and from then on now and then with the
// number of times that it happened. The zero value has not told of anything.
type Rarely struct{ times, told atomic.Int64 } // since it was told, and when that was, in Unix nanoseconds

// rarely is how often.
const rarely = 10 * time.Second

// Happened counts one more. When it is to be told now, it returns how often it happened since it was told last, and 0 otherwise.
func (r *Rarely) Happened(now time.Time) int64 {
	n := r.times.Add(1)
	last, at := r.told.Load(), now.UnixNano()
	since := time.Duration(at - last)
	if last != 0 && since >= 0 && since < rarely || !r.told.CompareAndSwap(last, at) {
		return 0
	}
	r.times.Add(-n)
	if since >= 2*rarely {
		return 1 // what came before belongs to another time, which is over
	}
	return n
}
