package wasm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Measurement is what invocations of one module cost, with one input, on this machine.
type Measurement struct {
	Readiness
	Plain  Timing // the module started for each invocation
	Fresh  Timing // as Readiness says
	Reused Timing // in one instance that is never reset and so keeps state, for comparison; zero where that cannot be: for commands, and for what then gives another answer
	Reset  Timing // of an instance after an invocation; not part of Fresh, since it happens after the answer

	DirtyPages int   // of 4 KiB, that an invocation changed
	IdleBytes  int64 // held by an instance that waits, about
	ImageBytes int64 // held once for all instances
}

// Timing is a distribution of times.
type Timing struct {
	Calls       int
	Median, P99 time.Duration
}

func timing(all []time.Duration) Timing {
	if len(all) == 0 {
		return Timing{}
	}
	slices.Sort(all)
	return Timing{len(all), all[len(all)/2], all[len(all)*99/100]}
}

// Bounds of one row of a measurement.
const (
	measureLeast = 5
	measureMost  = 2_000
)

// repeat times f until the time given is over.
func repeat(ctx context.Context, d time.Duration, f func() (time.Duration, error)) (Timing, error) {
	var all []time.Duration
	for end := time.Now().Add(d); len(all) < measureLeast || len(all) < measureMost && time.Now().Before(end); {
		took, err := f()
		if err != nil {
			return Timing{}, err
		}
		if ctx.Err() != nil {
			return Timing{}, context.Cause(ctx)
		}
		all = append(all, took)
	}
	return timing(all), nil
}

// Measure invokes a module again and again, for about d for each row of the result. The first invocation that fails ends it.
func (r *Runtime) Measure(ctx context.Context, call Call, d time.Duration) (m Measurement, err error) {
	if m.Readiness, err = r.Warm(ctx, call.Account, call.Module); err != nil {
		return m, err
	}
	invoke := func(engine Engine) func() (time.Duration, error) {
		call := call
		call.Engine = engine
		return func() (time.Duration, error) {
			began := time.Now()
			_, err := r.Invoke(ctx, call)
			return time.Since(began), err
		}
	}
	if m.Plain, err = repeat(ctx, d, invoke(EnginePlain)); err != nil {
		return m, err
	}
	if m.Start == StartPlain {
		m.Fresh = m.Plain
		return m, nil
	}
	if m.Fresh, err = repeat(ctx, d, invoke("")); err != nil {
		return m, err
	}
	return m, r.measureShell(ctx, &call, d, &m)
}

// measureShell measures what is seen of a shell only.
func (r *Runtime) measureShell(ctx context.Context, call *Call, d time.Duration, m *Measurement) error {
	end, err := r.begin()
	if err != nil {
		return err
	}
	defer end()
	p, release, err := r.modules.acquire(ctx, call.Account, call.Module)
	if err != nil {
		return fmt.Errorf("wasm: %w", err)
	}
	defer release()
	img := r.imageOf(p)
	if img == nil {
		return nil
	}
	defer img.release()
	s, err := r.make(p, img)
	if err != nil || s == nil {
		return err
	}
	defer func() { s.close() }()
	m.ImageBytes, m.IdleBytes = int64(len(img.memory)), s.weight()
	if r.once(img) {
		return nil
	}
	timeout, memory, room := r.limits(call.Limits)
	var output, answer []byte // of the last use, and of the first
	same := true              // all uses of a fresh instance gave that
	serve := func() (time.Duration, error) {
		began := time.Now()
		setup := guest{
			Context: ctx, now: r.config.Now, random: r.config.Random, stdin: WithConfig(call.Input, call.Config), output: room,
			log: logBuffer{now: r.config.Now}, start: r.config.Now(), limit: began.Add(timeout), door: p.info.Door, hostState: r.hostState(call), deep: maxStack,
		}
		err := s.serve(&setup, memory)
		output, err = s.g.conclude(err, timeout)
		s.g.endTime()
		return time.Since(began), err
	}
	looks := 3 // each leaves the processor's caches full of memory that a reset would not touch
	m.Reset, err = repeat(ctx, d, func() (time.Duration, error) {
		if _, err := serve(); err != nil {
			return 0, err
		}
		if answer == nil {
			answer = bytes.Clone(output)
		}
		same = same && bytes.Equal(output, answer)
		if looks > 0 {
			looks--
			m.DirtyPages = img.differs(s.g.memory.buf[:s.g.memory.size])
		}
		began := time.Now()
		ok := s.reset()
		took := time.Since(began)
		m.IdleBytes = s.weight()
		if !ok { // it has served for long enough
			s.close()
			if s, err = r.make(p, img); err != nil || s == nil {
				return 0, errors.Join(err, errors.New("no further instance could be made"))
			}
		}
		return took, nil
	})
	if err != nil || p.info.Door == DoorCommand {
		return err
	}
	m.Reused, err = repeat(ctx, d, func() (time.Duration, error) {
		took, err := serve()
		if err == nil && same && !bytes.Equal(output, answer) {
			err = errors.New("it gives another answer when it is called again")
		}
		return took, err
	})
	if err != nil && ctx.Err() == nil {
		// A guest that cannot be called twice is one that relies on being fresh.
		m.Reused, err = Timing{}, nil
	}
	return err
}

// differs counts the pages in which a memory is not the image's.
func (img *image) differs(memory []byte) (pages int) {
	const page = 4096
	for at := 0; at < len(memory); at += page {
		b := memory[at:min(at+page, len(memory))]
		if at < len(img.memory) && string(b) != string(img.memory[at:min(at+page, len(img.memory))]) || at >= len(img.memory) && !allZero(b) {
			pages++
		}
	}
	return pages
}
