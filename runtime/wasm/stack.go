package wasm

import (
	"context"
	"runtime"

	"github.com/tetratelabs/wazero/experimental"
)

// machineStack is a copy of the machine stack of a guest that called a host function.
type machineStack struct{ snapshot experimental.Snapshot }

// resumable says whether the engine can go back to a copied stack: it can where it compiles, not where it interprets.
func (e experiments) resumable() bool {
	return !e.stack && (runtime.GOARCH == "amd64" || runtime.GOARCH == "arm64")
}

// stackable returns a context that a guest must have when it is entered, if its stack is to be copied.
func (e experiments) stackable(ctx context.Context) context.Context {
	if !e.resumable() {
		return ctx
	}
	return experimental.WithSnapshotter(ctx)
}

// copyStack copies the stack of the guest that calls a host function, which got ctx.
func copyStack(ctx context.Context) machineStack {
	return machineStack{experimental.GetSnapshotter(ctx).Snapshot()}
}

// restore makes a copied stack the guest's again: when the host function returns that calls it, it is the one that copied the stack which
// returns, with the given result.
func (m machineStack) restore(result uint64) { m.snapshot.Restore([]uint64{result}) }
