package engine

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

const (
	// maxTapes bounds the tapes that one execution of a run keeps: until it ends they are in memory.
	maxTapes = 4 * wasm.MaxTape
	// maxTapesHeld bounds those of all runs together, with those of runs that have ended and are not stored yet.
	maxTapesHeld = 64 * wasm.MaxTape
)

// tapeRoom is the memory that tapes of all runs may take.
type tapeRoom struct {
	most     int64         // bytes
	held     atomic.Int64  // of most
	encoding chan struct{} // holds one for each tape that is being encoded, for which it takes several times the memory
}

func newTapeRoom(most int64) *tapeRoom {
	return &tapeRoom{most: most, encoding: make(chan struct{}, runtime.GOMAXPROCS(0))}
}

// encode returns a tape as it is stored, ErrTapeTooLarge for one that is or for which there is no room.
func (m *tapeRoom) encode(t *wasm.Tape) ([]byte, error) {
	m.encoding <- struct{}{}
	defer func() { <-m.encoding }()
	if m.held.Load()+wasm.MaxTape > m.most {
		return nil, wasm.ErrTapeTooLarge
	}
	file, err := t.Encode()
	if err != nil {
		return nil, err
	}
	// It is not known here when it is stored, which may be long after the run, where the store is out of order. So it counts until it is gone.
	n := int64(len(file))
	m.held.Add(n)
	runtime.AddCleanup(&file[0], func(n int64) { m.held.Add(-n) }, n)
	return file, nil
}

// keepTape keeps the tape of an attempt, if there is one.
func (r *runner) keepTape(ctx context.Context, a *core.Attempt, result *wasm.Result) {
	switch {
	case result.TooLong:
		a.Tape = core.TapeTooLarge
		return
	case result.Tape == nil:
		return
	}
	file, err := r.tapes.encode(result.Tape)
	if err == nil && r.taped.Add(int64(len(file))) > maxTapes {
		r.taped.Add(-int64(len(file)))
		err = wasm.ErrTapeTooLarge
	}
	switch {
	case err == nil:
		a.Tape, a.Recording = core.TapeKept, file
	case errors.Is(err, wasm.ErrTapeTooLarge):
		a.Tape = core.TapeTooLarge
	default:
		r.config.Logger.ErrorContext(ctx, "tape not kept", "run_id", r.of.ID, "node", r.node.ID, "error", err)
	}
}
