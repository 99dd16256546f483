package wasm

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// imager makes the image of one program, and another when it has grown old.
type imager struct {
	mu     sync.Mutex
	image  *image        // nil until made
	why    string        // not "": the module starts plain, and this is why
	making chan struct{} // closed when an image was made, or found impossible; nil while nobody makes one
}

// shelf keeps the shells nobody uses, of all modules. Shells are kept apart by account, so that no account's data ever was in memory that
// another account's guest may use.
type shelf struct {
	size int64 // most bytes held

	mu    sync.Mutex
	by    map[shelfKey][]*shell // most recently used last
	order *list.List            // of *shell, most recently used first
	held  int64
}

type shelfKey struct {
	image   *image
	account string
}

func newShelf(size int64) *shelf {
	return &shelf{size: size, by: make(map[shelfKey][]*shell), order: list.New()}
}

func (h *shelf) take(img *image, account string) *shell {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := shelfKey{img, account}
	list := h.by[k]
	if len(list) == 0 {
		return nil
	}
	return h.remove(list[len(list)-1])
}

// remove takes a shell off the shelf. It is called with mu held.
func (h *shelf) remove(s *shell) *shell {
	list := h.by[s.key]
	for i := range list {
		if list[i] == s {
			list = append(list[:i], list[i+1:]...)
			break
		}
	}
	if h.by[s.key] = list; len(list) == 0 {
		delete(h.by, s.key)
	}
	h.order.Remove(s.place)
	h.held -= s.held
	return s
}

// put adds a shell and closes those that no longer fit.
func (h *shelf) put(s *shell, account string) {
	var closing []*shell
	h.mu.Lock()
	if s.image.retired.Load() {
		closing = append(closing, s)
	} else {
		s.key, s.held = shelfKey{s.image, account}, s.memory.held(s.g.memory.size)
		h.by[s.key] = append(h.by[s.key], s)
		s.place = h.order.PushFront(s)
		h.held += s.held
		for h.held > h.size {
			closing = append(closing, h.remove(h.order.Back().Value.(*shell)))
		}
	}
	h.mu.Unlock()
	for _, s := range closing {
		s.close()
	}
}

// drop closes the shells of an image, or all of them if img is nil.
func (h *shelf) drop(img *image) {
	var closing []*shell
	h.mu.Lock()
	for el := h.order.Front(); el != nil; {
		s := el.Value.(*shell)
		el = el.Next()
		if img == nil || s.image == img {
			closing = append(closing, h.remove(s))
		}
	}
	h.mu.Unlock()
	for _, s := range closing {
		s.close()
	}
}

// lease returns an idle or a new shell for a call by the given door, or nil if it must start plain: for good, or because the image
// is not ready yet. giveBack takes it back.
func (r *Runtime) lease(p *program, door Door, call *Call) (*shell, error) {
	if r.config.Engine == EnginePlain || door != p.info.Door || call.Export == exportStart || call.Export == exportInitialize {
		return nil, nil
	}
	img := r.imageOf(p)
	if img == nil {
		return nil, nil
	}
	if s := r.shelf.take(img, call.Account); s != nil {
		img.release()
		return s, nil
	}
	s, err := r.newShell(p, img)
	if err == nil {
		return s, nil // it has taken over the reference to img
	}
	img.release()
	var plain errNotPoolable
	if !errors.As(err, &plain) {
		return nil, err
	}
	p.imager.mu.Lock()
	p.imager.why = plain.why
	p.imager.mu.Unlock()
	return nil, nil
}

// imageOf returns a reference to the image of a program, or nil if there is none. It never waits: an image that is missing or old is
// made in the background, so that nobody's deadline pays for a module's start-up. A call that Close waits for must use p meanwhile.
func (r *Runtime) imageOf(p *program) *image {
	m := &p.imager
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.why != "" {
		return nil
	}
	img := m.image
	if img != nil {
		img.retain()
	}
	if m.making == nil && (img == nil || img.start == StartReseeded && time.Since(img.born) > imageLife) {
		m.making = make(chan struct{})
		r.calls.Add(1)
		release := r.modules.retain(p.info.Digest)
		go func() {
			defer r.calls.Done()
			defer release()
			r.makeImage(p)
		}()
	}
	return img
}

// makeImage makes an image, one at a time in the whole runtime, and retires the one before.
func (r *Runtime) makeImage(p *program) {
	r.booting.Lock()
	img, err := r.newImage(p)
	r.booting.Unlock()
	if err == nil {
		r.modules.grow(p.info.Digest, int64(len(img.memory)))
	}
	m := &p.imager
	m.mu.Lock()
	old := m.image
	var plain errNotPoolable
	switch {
	case err == nil:
		m.image = img
	case errors.As(err, &plain) && r.life.Err() == nil:
		m.why, m.image = plain.why, nil
	default:
		old = nil
		r.config.Logger.Warn("no image of a module could be made", "module", p.info.Digest, "error", err)
	}
	close(m.making)
	m.making = nil
	m.mu.Unlock()
	if old != nil {
		r.modules.grow(p.info.Digest, -int64(len(old.memory)))
		r.retire(old)
	}
}

// Readiness says how calls of a module start.
type Readiness struct {
	Start Start
	// Why is the reason of StartPlain, for the module's author; "" when nothing about the module is the reason.
	Why string
}

// Warm loads a module and waits until its image, if it gets one, is ready: the next call starts as fast as any.
func (r *Runtime) Warm(ctx context.Context, account, module string) (Readiness, error) {
	end, err := r.begin()
	if err != nil {
		return Readiness{}, err
	}
	defer end()
	p, release, err := r.modules.acquire(ctx, account, module)
	if err != nil {
		return Readiness{}, fmt.Errorf("wasm: %w", err)
	}
	defer release()
	if r.config.Engine == EnginePlain {
		return Readiness{Start: StartPlain}, nil
	}
	if img := r.imageOf(p); img != nil {
		defer img.release()
		return Readiness{Start: img.start}, nil
	}
	m := &p.imager
	m.mu.Lock()
	making := m.making
	m.mu.Unlock()
	if making != nil {
		select {
		case <-making:
		case <-ctx.Done():
			return Readiness{}, context.Cause(ctx)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.image == nil {
		return Readiness{Start: StartPlain, Why: m.why}, nil
	}
	return Readiness{Start: m.image.start}, nil
}

// retire gives up an image. Shells in use close when they are given back.
func (r *Runtime) retire(img *image) {
	img.retired.Store(true)
	r.shelf.drop(img)
	img.release()
}

// copyOnly is set when the faster way of resetting has failed, in this process and so on this kernel.
var copyOnly atomic.Bool

// giveBack resets a shell and keeps it for the next call of the account.
func (r *Runtime) giveBack(p *program, account string, s *shell) {
	if !s.reset() {
		s.close()
		return
	}
	n := r.resets.Add(1)
	if every := r.config.VerifyEvery; every > 0 && (n-1)%uint64(every) == 0 && !s.equal() {
		// Some byte of one invocation would have been there for the next. Never again with this way of resetting.
		r.mismatches.Add(1)
		r.config.Logger.Error("a reset left a difference; all modules are reset by copying from now on", "module", p.info.Digest)
		copyOnly.Store(true)
		s.close()
		r.shelf.drop(nil)
		return
	}
	r.shelf.put(s, account)
}

// Stats are counts for an operator's metrics.
type Stats struct {
	Modules     int    // loaded
	ModuleBytes int64  // held by them, about
	IdleShells  int    // instances that wait to be used again
	IdleBytes   int64  // held by them, about
	Resets      uint64 // of instances, since the start
	Mismatches  uint64 // resets that were found to have left a difference; anything but 0 deserves a report to the maintainers
}

// Stats returns the counts at this moment.
func (r *Runtime) Stats() Stats {
	s := Stats{Resets: r.resets.Load(), Mismatches: r.mismatches.Load()}
	r.modules.mu.Lock()
	s.Modules, s.ModuleBytes = r.modules.recent.Len(), r.modules.used
	r.modules.mu.Unlock()
	r.shelf.mu.Lock()
	s.IdleShells, s.IdleBytes = r.shelf.order.Len(), r.shelf.held
	r.shelf.mu.Unlock()
	return s
}
