package wasm

import (
	"slices"
	"sync"
	"time"
)

// shelf keeps the shells nobody uses, of all modules, within a share of the memory budget. A shell that was used is kept apart by account, so
// that no account's data ever was in memory that another account's guest may use.
//
// How many there are follows from demand: as many as were in use at once. One that nobody needed for a while is closed, and the least
// recently used ones are when all together no longer fit.
type shelf struct {
	size int64 // most bytes held

	mu    sync.Mutex
	by    map[shelfKey][]*shell // most recently used last; a list may be empty, since its calls come again
	order shellList
	held  int64
}

// shellList is a list of shells that are linked by their own fields, most recently used first: to put one on the shelf allocates nothing.
type shellList struct {
	front, back *shell
	n           int
}

func (l *shellList) push(s *shell) {
	s.prev, s.next = nil, l.front
	if l.front != nil {
		l.front.prev = s
	} else {
		l.back = s
	}
	l.front = s
	l.n++
}

func (l *shellList) remove(s *shell) {
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		l.front = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		l.back = s.prev
	}
	s.prev, s.next = nil, nil
	l.n--
}

// shelfKey says who may take a shell. The account is empty for shells that nobody has used.
type shelfKey struct {
	image   *image
	account string
}

func newShelf(size int64) *shelf {
	return &shelf{size: size, by: make(map[shelfKey][]*shell)}
}

// take returns a shell, or nil. It may still be dirty.
func (h *shelf) take(k shelfKey) *shell {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := h.by[k]
	if len(list) == 0 {
		return nil
	}
	return h.remove(list[len(list)-1])
}

// count returns how many shells there are for k.
func (h *shelf) count(k shelfKey) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.by[k])
}

// remove takes a shell off the shelf. It is called with mu held.
func (h *shelf) remove(s *shell) *shell {
	list := h.by[s.key]
	for i := range list {
		if list[i] == s {
			h.by[s.key] = slices.Delete(list, i, i+1)
			break
		}
	}
	h.order.remove(s)
	s.shelved = false
	h.held -= s.held
	return s
}

// put adds a shell and returns those to close that no longer fit, which s may be one of. What s holds is read, so it is called with s.mu held
// unless nobody else knows s.
func (h *shelf) put(s *shell, k shelfKey) (closing []*shell) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.image.retired.Load() {
		closing = append(closing, s)
	} else {
		s.key, s.held, s.since = k, s.weight(), time.Now()
		h.by[k] = append(h.by[k], s)
		s.shelved = true
		h.order.push(s)
		h.held += s.held
		closing = h.fit()
	}
	return closing
}

// fit removes what no longer fits. It is called with mu held; the caller closes what it gets without.
func (h *shelf) fit() (closing []*shell) {
	for h.held > h.size {
		closing = append(closing, h.remove(h.order.back))
	}
	return closing
}

// settle counts anew what a shell holds, once it was reset, and returns shells to close. It does nothing if somebody took it meanwhile.
func (h *shelf) settle(s *shell, held int64) (closing []*shell) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.shelved {
		h.held += held - s.held
		s.held = held
		closing = h.fit()
	}
	return closing
}

// discard takes a shell off the shelf, if it is there, and closes it.
func (h *shelf) discard(s *shell) {
	h.mu.Lock()
	there := s.shelved
	if there {
		h.remove(s)
	}
	h.mu.Unlock()
	if there {
		s.close()
	}
}

// drop closes the shells for which f holds.
func (h *shelf) drop(f func(*shell) bool) {
	var closing []*shell
	h.mu.Lock()
	for s := h.order.front; s != nil; {
		next := s.next
		if f(s) {
			closing = append(closing, h.remove(s))
		}
		s = next
	}
	h.mu.Unlock()
	closeShells(closing)
}

// forget removes the empty lists for which f holds.
func (h *shelf) forget(f func(shelfKey) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, list := range h.by {
		if len(list) == 0 && f(k) {
			delete(h.by, k)
		}
	}
}

func closeShells(closing []*shell) {
	for _, s := range closing {
		s.close()
	}
}

// demand is how many shells of one image are in use, and how many were at most within a window of time. It decides how many are made ahead.
type demand struct {
	mu         sync.Mutex
	used, peak int
	making     int // being made ahead
}

// lease counts one more shell in use.
func (d *demand) lease() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.used++
	d.peak = max(d.peak, d.used)
}

func (d *demand) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.used--
}

// window begins a new window of time.
func (d *demand) window() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peak = d.used
}

// maxAhead is how many instances of one image wait at most to be used once.
const maxAhead = 32

// wants reports whether one more shell is to be made, when so many are idle, and counts it as being made. made ends that.
func (d *demand) wants(idle int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if idle+d.making >= min(max(d.peak, 1), maxAhead) {
		return false
	}
	d.making++
	return true
}

func (d *demand) made() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.making--
}
