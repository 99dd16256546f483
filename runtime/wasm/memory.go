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
	refused bool   // growth was refused at least once
	buf     []byte // at least size bytes, all zero beyond it
	foreign bool   // the engine allocates, and may move it
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
	m.buf, _ = mem.Read(0, mem.Size()) // a view, not a copy
}

// Allocate implements experimental.MemoryAllocator.
func (m *linearMemory) Allocate(_, _ uint64) experimental.LinearMemory { return m }

// Reallocate implements experimental.LinearMemory. The first call is for the module's minimum, which instantiate has
// compared with the limit: the engine panics when that is refused.
func (m *linearMemory) Reallocate(size uint64) []byte {
	if size > uint64(m.limit) {
		m.refused = true
		return nil
	}
	m.size = int64(size)
	m.buf = extend(m.buf, m.size)
	return m.buf[:size:size]
}

// Free implements experimental.LinearMemory. The engine calls it when the instance is closed, and newLinearMemory's caller when no instance
// came of it; nothing refers to the memory then.
func (m *linearMemory) Free() {
	if m.buf != nil && !m.foreign {
		unreserve(m.buf)
		m.buf = nil
	}
}
