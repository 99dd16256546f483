package wasm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// imager makes the image of one program, and another when it has grown old.
type imager struct {
	mu     sync.Mutex
	image  *image        // nil until made
	why    string        // not "": the module starts plain, and this is why
	making chan struct{} // closed when an image was made, or found impossible; nil while nobody makes one
}

// once reports whether shells of an image are used once: because each was started for one use, or because nothing is to be used twice.
func (r *Runtime) once(img *image) bool {
	return img.start == StartAhead || r.config.Isolation == IsolationStrict
}

// keyOf returns which shells a call of an account may take.
func (r *Runtime) keyOf(img *image, account string) shelfKey {
	if r.once(img) {
		return shelfKey{image: img}
	}
	return shelfKey{img, account}
}

// lease returns an idle or a new shell for a call by the given door, or nil if it must start plain: for good, or because the image
// is not ready yet, or because no instance was started in time. giveBack takes it back.
func (r *Runtime) lease(ctx context.Context, p *program, door Door, call *Call, c *charge) (*shell, error) {
	if r.config.Engine == EnginePlain || call.Engine == EnginePlain || call.Record || door != p.info.Door || call.Export == exportStart || call.Export == exportInitialize {
		return nil, nil
	}
	img := r.imageOf(p)
	if img == nil {
		return nil, nil
	}
	defer img.release()
	if err := img.charge(ctx, c); err != nil {
		return nil, fmt.Errorf("waiting for memory: %w", err)
	}
	k := r.keyOf(img, call.Account)
	img.demand.lease()
	for s := r.shelf.take(k); s != nil; s = r.shelf.take(k) {
		if r.clean(s, true) {
			r.ahead(p, img)
			if err := s.charge(ctx, c); err != nil {
				s.close()
				img.demand.release()
				return nil, fmt.Errorf("waiting for memory: %w", err)
			}
			return s, nil
		}
		s.close()
	}
	r.ahead(p, img)
	if r.once(img) && (img.start == StartAhead || p.info.Door == DoorCommand) {
		// To start it now takes as long as a plain start, which has the call's own deadline.
		img.demand.release()
		return nil, nil
	}
	s, err := r.make(p, img)
	if err != nil || s == nil {
		img.demand.release()
	}
	return s, err
}

// make makes a new shell. It returns nil if the module turns out not to be poolable.
func (r *Runtime) make(p *program, img *image) (*shell, error) {
	img.retain()
	s, err := r.newShell(p, img)
	if err == nil {
		r.made.Add(1)
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

// ahead makes shells that are used once before they are needed, one after the other, in the background. A call that Close waits for must use p
// meanwhile.
func (r *Runtime) ahead(p *program, img *image) {
	k := shelfKey{image: img}
	if !r.once(img) || !img.demand.wants(r.shelf.count(k)) {
		return
	}
	img.retain()
	release := r.modules.retain(p.info.Digest)
	r.calls.Go(func() {
		defer release()
		defer img.release()
		for again := true; again; again = r.life.Err() == nil && !img.retired.Load() && img.demand.wants(r.shelf.count(k)) {
			s, err := r.makeAhead(p, img)
			if s != nil {
				closeShells(r.shelf.put(s, k))
			}
			img.demand.made()
			if err != nil || s == nil {
				if err != nil && r.life.Err() == nil {
					r.config.Logger.Warn("no instance of a module could be started", "module", p.info.Digest, "error", err)
				}
				return
			}
		}
	})
}

func (r *Runtime) makeAhead(p *program, img *image) (*shell, error) {
	share, err := r.reserve(r.life, r.shellCost(p, img))
	if err != nil {
		return nil, err
	}
	defer r.memory.end(share)
	return r.make(p, img)
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
	if m.making == nil && (img == nil || img.rotates() && time.Since(img.born) > imageLife) {
		m.making = make(chan struct{})
		release := r.modules.retain(p.info.Digest)
		r.calls.Go(func() {
			defer release()
			r.makeImage(p)
		})
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
	case r.life.Err() != nil: // the runtime is closing, which says nothing about the module
		old = nil
	case errors.As(err, &plain):
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

// Warm loads a module, waits until its image, if it gets one, is ready, and makes a first instance: the next call of the account starts as
// fast as any.
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
	img := r.imageOf(p)
	if img == nil {
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
		if img = r.imageOf(p); img == nil {
			m.mu.Lock()
			defer m.mu.Unlock()
			return Readiness{Start: StartPlain, Why: m.why}, nil
		}
	}
	defer img.release()
	if err := r.first(ctx, p, img, account); err != nil {
		return Readiness{}, err
	}
	p.imager.mu.Lock()
	defer p.imager.mu.Unlock()
	if p.imager.why != "" {
		return Readiness{Start: StartPlain, Why: p.imager.why}, nil
	}
	return Readiness{Start: img.start}, nil
}

// first makes sure that one instance is ready for an account.
func (r *Runtime) first(ctx context.Context, p *program, img *image, account string) error {
	k := r.keyOf(img, account)
	if r.shelf.count(k) > 0 {
		return nil
	}
	share, err := r.reserve(ctx, r.shellCost(p, img))
	if err != nil {
		return fmt.Errorf("wasm: waiting for memory: %w", err)
	}
	defer r.memory.end(share)
	s, err := r.make(p, img)
	if err != nil {
		return fmt.Errorf("wasm: %w", err)
	}
	if s != nil {
		closeShells(r.shelf.put(s, k))
	}
	return nil
}

// retire gives up an image. Shells in use close when they are given back.
func (r *Runtime) retire(img *image) {
	img.retired.Store(true)
	r.shelf.drop(func(s *shell) bool { return s.image == img })
	r.shelf.forget(func(k shelfKey) bool { return k.image == img })
	img.release()
}

// giveBack takes a shell after its call, and ends the call's share once the shell holds no more than the shelf counts. One that is used again lies on the shelf at once, and is reset in the background, while the call's
// answer is on its way; whoever takes it before that resets it.
func (r *Runtime) giveBack(account string, s *shell, share *share) {
	img := s.image
	defer img.demand.release()
	if s.dead || r.once(img) {
		s.close()
		r.memory.end(share)
		return
	}
	if len(img.memory) <= smallImage && s.g.memory.high <= smallImage {
		// It is reset sooner than another goroutine would be awake.
		s.mu.Lock()
		s.taken = false
		s.mu.Unlock()
		defer r.memory.end(share)
		if !r.clean(s, false) {
			s.close()
			return
		}
		closeShells(r.shelf.put(s, shelfKey{img, account}))
		return
	}
	// The reset that an earlier call left behind may come only now, so the shell stays locked until it lies there.
	s.mu.Lock()
	s.taken = false
	closing := r.shelf.put(s, shelfKey{img, account})
	s.mu.Unlock()
	closeShells(closing)
	r.calls.Go(func() {
		defer r.memory.end(share)
		if !r.clean(s, false) {
			r.shelf.discard(s)
		}
	})
}

// clean makes sure that a shell is as new, for a call that has taken it, or in the background, where it does nothing with one that was taken
// meanwhile. It reports false when the shell must be closed.
func (r *Runtime) clean(s *shell, take bool) bool {
	ok, closing := r.cleanLocked(s, take)
	closeShells(closing)
	return ok
}

func (r *Runtime) cleanLocked(s *shell, take bool) (ok bool, closing []*shell) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken {
		return true, nil
	}
	s.taken = take
	// Once a faster way has failed, what it did before does not count.
	trusted := s.copied || !s.image.copying.Load()
	if s.closed || !s.dirty && trusted {
		return !s.closed, nil
	}
	if !s.reset() {
		return false, nil
	}
	n := r.resets.Add(1)
	if every := r.config.VerifyEvery; every > 0 && (n-1)%uint64(every) == 0 {
		r.verified.Add(1)
		if !s.equal() {
			s.dirty = true
			r.mismatch(s.image)
			return false, nil
		}
	}
	return true, r.shelf.settle(s, s.weight())
}

// mismatch ends the fast ways of resetting for an image: some byte of one invocation would have been there for the next.
func (r *Runtime) mismatch(img *image) {
	r.mismatches.Add(1)
	if img.copying.Swap(true) {
		return
	}
	r.config.Logger.Error("a reset left a difference; the module's instances are reset by copying from now on", "module", img.module)
	if r.config.Mismatch == nil {
		return
	}
	r.calls.Go(func() { r.config.Mismatch(img.module) })
}

// idleTime is how long an instance waits that nobody uses.
const idleTime = 2 * time.Minute

// tidy closes instances that nobody needed for a while, until the runtime is closed.
func (r *Runtime) tidy() {
	t := time.NewTicker(idleTime / 4)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			r.release(now.Add(-idleTime))
		case <-r.life.Done():
			return
		}
	}
}

// release closes the instances that were not used since, and begins a new window of demand for their images.
func (r *Runtime) release(since time.Time) {
	images := make(map[*image]bool)
	r.shelf.drop(func(s *shell) bool {
		old := s.since.Before(since)
		if old {
			images[s.image] = true
		}
		return old
	})
	for img := range images {
		img.demand.window()
	}
	r.shelf.forget(func(shelfKey) bool { return true })
}

// Stats are counts for an operator's metrics.
type Stats struct {
	Modules     int   // loaded
	ModuleBytes int64 // held by them, about
	IdleShells  int   // instances that wait to be used again
	IdleBytes   int64 // held by them, about
	MemoryInUse int64 // of the memory budget, by the calls under way
	Waiting     int   // calls that wait for memory

	Starts     map[Start]uint64 // invocations by how they began, since the start
	Made       uint64           // instances that can be used again or were started ahead, since the start
	Resets     uint64           // of instances, since the start
	Verified   uint64           // of the resets, compared byte by byte
	Mismatches uint64           // resets that were found to have left a difference; anything but 0 deserves a report to the maintainers
}

// Stats returns the counts at this moment.
func (r *Runtime) Stats() Stats {
	s := Stats{Made: r.made.Load(), Resets: r.resets.Load(), Verified: r.verified.Load(), Mismatches: r.mismatches.Load()}
	s.Starts = make(map[Start]uint64, len(starts))
	for i, start := range starts {
		s.Starts[start] = r.starts[i].Load()
	}
	s.MemoryInUse, s.Waiting = r.memory.usage()
	r.modules.mu.Lock()
	s.Modules, s.ModuleBytes = r.modules.recent.Len(), r.modules.used
	r.modules.mu.Unlock()
	r.shelf.mu.Lock()
	s.IdleShells, s.IdleBytes = r.shelf.order.n, r.shelf.held
	r.shelf.mu.Unlock()
	return s
}
