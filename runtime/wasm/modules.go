package wasm

import (
	"container/list"
	"context"
	"sync"
)

// moduleCache holds loaded modules within a bound of bytes, least recently used first out. A module in use is never closed, so the
// bound may be exceeded by what is in use. Each digest is loaded once, however many calls ask for it at the same time.
type moduleCache struct {
	load func(ctx context.Context, account, digest string) (*program, error)
	free func(*program)
	size int64 // most bytes of loaded modules

	mu      sync.Mutex
	entries map[string]*moduleEntry
	recent  *list.List // of *moduleEntry, loaded ones only, most recently used first
	used    int64
	loads   sync.WaitGroup
	life    context.Context //nolint:containedctx // the lifetime of the cache, not of a call
	end     context.CancelFunc
}

type moduleEntry struct {
	digest string
	ready  chan struct{} // closed when program and err are set
	prog   *program
	err    error

	release func() // ends one use

	// Under moduleCache.mu.
	users int
	place *list.Element // nil while not loaded
}

func newModuleCache(size int64, load func(ctx context.Context, account, digest string) (*program, error), free func(*program)) *moduleCache {
	c := &moduleCache{load: load, free: free, size: size, entries: make(map[string]*moduleEntry), recent: list.New()}
	c.life, c.end = context.WithCancel(context.Background())
	return c
}

// acquire returns the module with the given digest, loading it if needed, and a function that must be called, exactly once, when it is no longer used.
func (c *moduleCache) acquire(ctx context.Context, account, digest string) (*program, func(), error) {
	c.mu.Lock()
	e, ok := c.entries[digest]
	if !ok {
		e = &moduleEntry{digest: digest, ready: make(chan struct{})}
		e.release = func() { c.release(e) }
		c.entries[digest] = e
		c.loads.Add(1)
		// A load serves every caller that waits for it, so it outlives the one that began it.
		go c.fill(context.WithoutCancel(ctx), e, account)
	}
	e.users++
	if e.place != nil {
		c.recent.MoveToFront(e.place)
	}
	c.mu.Unlock()

	select {
	case <-e.ready:
	case <-ctx.Done():
		c.release(e)
		return nil, nil, context.Cause(ctx)
	}
	if e.err != nil {
		c.release(e)
		return nil, nil, e.err
	}
	return e.prog, e.release, nil
}

// grow changes what a module, which the caller uses, is counted for.
func (c *moduleCache) grow(digest string, by int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries[digest].prog.size += by
	c.used += by
}

func (c *moduleCache) fill(ctx context.Context, e *moduleEntry, account string) {
	defer c.loads.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	prog, err := c.load(ctx, account, e.digest)
	c.mu.Lock()
	e.prog, e.err = prog, err
	if err != nil {
		// The next call tries again.
		delete(c.entries, e.digest)
	} else {
		e.place = c.recent.PushFront(e)
		c.used += prog.size
	}
	close(e.ready)
	closing := c.evict()
	c.mu.Unlock()
	c.closeAll(closing)
}

// retain counts one more user of a module that the caller uses, and returns the function that ends it.
func (c *moduleCache) retain(digest string) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[digest]
	e.users++
	return e.release
}

// release ends one use of a module.
func (c *moduleCache) release(e *moduleEntry) {
	c.mu.Lock()
	e.users--
	closing := c.evict()
	c.mu.Unlock()
	c.closeAll(closing)
}

// evict takes modules nobody uses out of the cache until the rest fits, and returns those to close. It is called with mu held.
func (c *moduleCache) evict() (closing []*program) {
	for el := c.recent.Back(); el != nil && c.used > c.size; {
		e := el.Value.(*moduleEntry)
		el = el.Prev()
		if e.users == 0 {
			c.remove(e)
			closing = append(closing, e.prog)
		}
	}
	return closing
}

func (c *moduleCache) remove(e *moduleEntry) {
	c.recent.Remove(e.place)
	delete(c.entries, e.digest)
	c.used -= e.prog.size
	e.place = nil
}

// close ends the loads under way, whose callers have gone, and closes every module. Nothing may use or acquire one any more.
func (c *moduleCache) close() {
	c.end()
	c.loads.Wait()
	c.mu.Lock()
	var closing []*program
	for el := c.recent.Front(); el != nil; {
		e := el.Value.(*moduleEntry)
		el = el.Next()
		c.remove(e)
		closing = append(closing, e.prog)
	}
	c.mu.Unlock()
	c.closeAll(closing)
}

func (c *moduleCache) closeAll(programs []*program) {
	for _, p := range programs {
		c.free(p)
	}
}
