package store

import (
	"container/list"
	"sync"

	"github.com/keyfire/keyfire/core"
)

// Bounds of the version cache, by number and by bytes of their text.
const (
	maxCachedVersions = 256
	maxCachedBytes    = 32 << 20
)

// versionCache keeps the versions used last. It may, because a version never changes once it is committed, nor goes away while a
// run can name it.
type versionCache struct {
	maxLen   int
	maxBytes int64

	mu    sync.Mutex
	by    map[versionID]*list.Element
	used  list.List // of cachedVersion, the most recently used first
	bytes int64
}

type versionID struct {
	account, workflow string
	version           int
}

type cachedVersion struct {
	id      versionID
	version core.Version
	bytes   int64
}

func (c *versionCache) init(maxLen int, maxBytes int64) {
	c.maxLen, c.maxBytes = maxLen, maxBytes
	c.by = make(map[versionID]*list.Element, maxLen)
}

func (c *versionCache) get(id versionID) (core.Version, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.by[id]
	if e == nil {
		return core.Version{}, false
	}
	c.used.MoveToFront(e)
	return e.Value.(*cachedVersion).version, true
}

func (c *versionCache) put(id versionID, v core.Version, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by[id] != nil || bytes > c.maxBytes {
		return
	}
	c.by[id] = c.used.PushFront(&cachedVersion{id, v, bytes})
	c.bytes += bytes
	for c.used.Len() > c.maxLen || c.bytes > c.maxBytes {
		oldest := c.used.Remove(c.used.Back()).(*cachedVersion)
		delete(c.by, oldest.id)
		c.bytes -= oldest.bytes
	}
}

// maxNamed bounds how many names of workflows are kept.
const maxNamed = 4096

// workflowCache keeps the workflows that were looked up last, until anything of the control plane changes. On SQLite the writer makes all changes there are, so what
// is kept is what a look-up would find.
type workflowCache struct {
	mu      sync.RWMutex
	changes int64 // of the control plane when what is kept was read
	by      map[workflowName]core.Workflow
}

type workflowName struct{ account, ref string }

// get returns what is kept of a name, if nothing has changed since.
func (c *workflowCache) get(name workflowName, changes int64) (core.Workflow, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.changes != changes {
		return core.Workflow{}, false
	}
	w, ok := c.by[name]
	return w, ok
}

// put keeps what was read. changes is the number from before that.
func (c *workflowCache) put(name workflowName, changes int64, w core.Workflow) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case changes < c.changes:
		return
	case changes > c.changes || c.by == nil || len(c.by) >= maxNamed:
		c.changes, c.by = changes, make(map[workflowName]core.Workflow)
	}
	c.by[name] = w
}
