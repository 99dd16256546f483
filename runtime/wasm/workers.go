package wasm

import (
	"context"

	"github.com/tetratelabs/wazero/experimental"
)

// withWorkers returns a context in which the engine compiles with n threads. What it makes is the same with any number.
func withWorkers(ctx context.Context, n int) context.Context {
	return experimental.WithCompilationWorkers(ctx, n)
}
