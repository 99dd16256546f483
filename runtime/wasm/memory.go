package wasm

import (
	"context"
	"fmt"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
)

// linearMemory is the memory of one instance, and the place where its limit holds: growth beyond the limit is refused, which the guest
// sees as memory.grow returning -1. It implements the engine's allocator and memory interfaces for exactly one memory.
type linearMemory struct {
	limit   int64  // bytes
	size    int64  // as the engine sees it
	high    int64  // the largest that size ever was
	refused bool   // growth was refused at least once
	buf     []byte // at least high bytes, all zero beyond it
	foreign bool   // the engine allocates, and may move it
	shorter bool   // the engine is to get size bytes, whatever it asks for
}

var (
	_ experimental.MemoryAllocator = (*linearMemory)(nil)
	_ experimental.LinearMemory    = (*linearMemory)(nil)
)

// newLinearMemory returns a memory of at most limit bytes, which must be a multiple of the page size.
func (e experiments) newLinearMemory(limit int64) (*linearMemory, error) {
	if e.memory {
		// The engine says a memory's size in 32 bits.
		return &linearMemory{limit: min(limit, (maxPages-1)*pageSize), foreign: true}, nil
	}
	buf, err := reserve(limit)
	if err != nil {
		return nil, fmt.Errorf("reserve %d bytes of linear memory: %w", limit, err)
	}
	return &linearMemory{limit: limit, buf: buf}, nil
}

// allocating returns a context in which the engine makes an instance with this memory.
func (m *linearMemory) allocating(ctx context.Context) context.Context {
	if m.foreign {
		return ctx
	}
	return experimental.WithMemoryAllocator(ctx, m)
}

// follow finds the memory again where the engine allocates it. It is called when an instance was made, and after its memory has grown.
func (m *linearMemory) follow(mem api.Memory) {
	if !m.foreign || mem == nil {
		return
	}
	m.size = int64(mem.Size())
	m.high = m.size
	m.buf, _ = mem.Read(0, mem.Size()) // a view, not a copy
}

// Allocate implements experimental.MemoryAllocator.
func (m *linearMemory) Allocate(_, _ uint64) experimental.LinearMemory { return m }

// Reallocate implements experimental.LinearMemory. The first call is for the module's minimum, which instantiate has
// compared with the limit: the engine panics when that is refused.
func (m *linearMemory) Reallocate(size uint64) []byte {
	if m.shorter {
		return m.buf[:m.size:m.size]
	}
	if size > uint64(m.limit) {
		m.refused = true
		return nil
	}
	m.size = int64(size)
	m.high = max(m.high, m.size)
	m.buf = extend(m.buf, m.size)
	return m.buf[:size:size]
}

// shrink makes the memory smaller, for a guest that is to find it as it was before another used it. A memory never shrinks in WebAssembly, and the engine
// has no way to do it; but it takes what its allocator gives, so it is asked to grow, and given less. No code of a guest's may be running that
// has seen the memory larger. It reports false if the engine allocates.
func (m *linearMemory) shrink(mem api.Memory, size int64) bool {
	if m.size == size {
		return true
	}
	if m.foreign {
		return false
	}
	was := m.size
	m.shorter, m.size = true, size
	_, ok := mem.Grow(1)
	m.shorter = false
	if !ok || int64(mem.Size()) != size {
		m.size = was
		return false
	}
	return true
}

// Free implements experimental.LinearMemory. The engine calls it when the instance is closed, and newLinearMemory's caller when no instance
// came of it; nothing refers to the memory then.
func (m *linearMemory) Free() {
	if m.buf != nil && !m.foreign {
		unreserve(m.buf)
		m.buf = nil
	}
}
