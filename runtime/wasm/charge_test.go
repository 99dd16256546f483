package wasm

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// needy is a command that reads its input, if it is to be frozen there, does what code says, and writes "fine". Function 3 takes an i32 and nests its calls as deep.
func needy(reads bool, code ...byte) []byte {
	io := func(function byte, fd, buffer int32) []byte {
		return concat(i32c(fd), i32c(buffer), i32c(1), i32c(8), []byte{opCall, function, 0x1a})
	}
	body := concat(code, io(1, 1, 0))
	if reads {
		body = concat(io(0, 0, 24), body)
	}
	dive := concat([]byte{opLocalGet, 0, opIf, typeEmpty, opLocalGet, 0}, i32c(1), []byte{0x6b, opCall, 3, opEnd})
	data := concat([]byte{0}, i32c(0), []byte{opEnd}, sized(concat([]byte{16, 0, 0, 0, 6, 0, 0, 0}, make([]byte, 8), []byte(`"fine"  `), []byte{64, 0, 0, 0, 8, 0, 0, 0})))
	imported := func(f string) []byte { return concat(name(wasiModule), name(f), []byte{kindFunc, 1}) }
	return newModule().section(secType, vec([]byte{0x60, 0, 0}, []byte{0x60, 4, typeI32, typeI32, typeI32, typeI32, 1, typeI32}, []byte{0x60, 1, typeI32, 0})...).
		section(secImport, vec(imported("fd_read"), imported("fd_write"))...).
		section(secFunction, 2, 0, 2).section(secMemory, 1, 0, 1).
		section(secExport, vec(concat(name("_start"), []byte{kindFunc, 2}))...).
		section(secCode, vec(fn(nil, body...), fn(nil, dive...))...).
		section(secData, vec(data)...).b
}

// grower asks for so many pages and fills all it has. It traps if it does not get them.
func grower(reads bool, pages int32) []byte {
	return needy(reads, concat(i32c(pages), []byte{opMemoryGrow, 0}, i32c(-1), []byte{0x46, opIf, typeEmpty, opUnreachable, opEnd},
		i32c(4096), i32c(1), []byte{0x3f, 0}, i32c(16), []byte{0x74}, i32c(4096), []byte{0x6b, opPrefixFC, subMemoryFill, 0})...)
}

func diver(reads bool, deep int32) []byte {
	return needy(reads, concat(i32c(deep), []byte{opCall, 3})...)
}

// taken lets everything but so many bytes of a budget be somebody else's, until what it returns is called.
func (b bundle) taken(t *testing.T, left int64) (end func()) {
	t.Helper()
	waitFor(t, func() bool { taken, waiting := b.memory.usage(); return taken == 0 && waiting == 0 })
	other, err := b.reserve(t.Context(), b.memory.size-left)
	if err != nil {
		t.Fatal(err)
	}
	return func() { b.memory.end(other) }
}

// S2: a guest that needs more memory than is free at the moment waits for it, whatever it needs it for, and hears nothing of that: it takes none of its time.
func TestWaitsToGrowS2(t *testing.T) {
	t.Parallel()
	for name, binary := range map[string][]byte{"memory": grower(false, 500), "stack": diver(false, 40_000)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(c *Config) { c.Engine = EnginePlain }) // no image that waits for memory, too
			d := b.publish(t, binary)
			if res, err := b.call(t, d, "", core.Limits{}); err != nil || string(res.Output) != `"fine"` {
				t.Fatalf("with all the memory: %s, %v", res.Output, err)
			}
			p, release, err := b.modules.acquire(t.Context(), core.DefaultAccount, d)
			if err != nil {
				t.Fatal(err)
			}
			defer release()
			for _, record := range []bool{false, true} {
				p.expects.bytes.Store(0) // it is not known for what it takes
				end := b.taken(t, 8<<20)
				var load waits
				type ended struct {
					res Result
					err error
				}
				done := make(chan ended, 1)
				const limit = time.Second
				call := Call{Account: core.DefaultAccount, Module: d, Record: record, Limits: core.Limits{Timeout: core.Duration(limit)}}
				go func() {
					res, err := b.Invoke(core.WithLoad(t.Context(), &load), call)
					done <- ended{res, err}
				}()
				waitFor(t, func() bool { _, waiting := b.memory.usage(); return waiting == 1 || len(done) > 0 })
				if now, computing := load.now.Load(), load.computing.Load(); now != 1 || computing != 1 {
					t.Errorf("%d wait of %d", now, computing)
				}
				began := time.Now()
				time.Sleep(limit) // all of its time
				end()
				got := <-done
				if got.err != nil || string(got.res.Output) != `"fine"` || got.res.Queued < limit || got.res.Queued > time.Since(began)+time.Second || got.res.Wall > limit {
					t.Errorf("%s, %v: it waited %s and took %s", got.res.Output, got.err, got.res.Queued, got.res.Wall)
				}
				if load.now.Load() != 0 || load.changes.Load() != 2 {
					t.Errorf("%d wait, after %d changes", load.now.Load(), load.changes.Load())
				}

				// With its caller, it gives up.
				p.expects.bytes.Store(0)
				end = b.taken(t, 8<<20)
				ctx, cancel := context.WithCancelCause(t.Context())
				cause := errors.New("nobody waits any more")
				go func() {
					res, err := b.Invoke(ctx, call)
					done <- ended{res, err}
				}()
				waitFor(t, func() bool { _, waiting := b.memory.usage(); return waiting == 1 || len(done) > 0 })
				cancel(cause)
				got = <-done
				var own *Error
				if !errors.Is(got.err, cause) || errors.As(got.err, &own) {
					t.Errorf("cancelled while it waits, it ends with %v", got.err)
				}
				end()
				if record {
					if got.res.Tape == nil || !got.res.Tape.Stopped() {
						t.Fatalf("the tape is %+v", got.res.Tape)
					}
					r := recorded{tape: got.res.Tape, player: newPlayback(t, b)}
					r.identical(t, 3, got.res, got.err)
				}
			}
			waitFor(t, func() bool { taken, waiting := b.memory.usage(); return taken == 0 && waiting == 0 })
		})
	}
}

// S2: guests that all take everything they may end one after the other where there is room for one, each with what it asked for.
func TestAllTakeEverythingS2(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.MemoryBudget = 2 * callCost(DefaultMemoryLimit) })
	grows, dives := b.publish(t, grower(false, DefaultMemoryLimit/pageSize-1)), b.publish(t, diver(false, 100_000))
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			d := grows
			if i%3 == 0 {
				d = dives
			}
			res, err := b.Invoke(t.Context(), Call{Account: core.DefaultAccount, Caller: string(rune('a' + i%2)), Module: d})
			if err != nil || string(res.Output) != `"fine"` {
				t.Errorf("%d: %s, %v", i, res.Output, err)
			}
			if err := b.memory.sound(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	waitFor(t, func() bool { taken, waiting := b.memory.usage(); return taken == 0 && waiting == 0 })
}

// What a call leaves in an instance that is used again is what the shelf counts: an instance whose stack or memory has grown much is closed.
func TestGrownInstancesAreClosed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, tt := range map[string]struct {
		binary []byte
		closed bool
	}{
		"a little memory": {grower(true, 16), false},
		"much memory":     {grower(true, 500), true},
		"a shallow stack": {diver(true, 100), false},
		"a deep stack":    {diver(true, 20_000), true},
	} {
		d := b.publish(t, tt.binary)
		b.warm(t, d, StartShared)
		for range 3 {
			made := b.made.Load()
			res, err := b.call(t, d, "{}", core.Limits{})
			if err != nil || string(res.Output) != `"fine"` || res.Start != StartShared {
				t.Fatalf("%s: %s (%s), %v", name, res.Output, res.Start, err)
			}
			waitFor(t, func() bool { taken, _ := b.memory.usage(); return taken == 0 })
			b.shelf.mu.Lock()
			idle := 0
			for k, list := range b.shelf.by {
				if k.image.module == d {
					idle += len(list)
				}
			}
			b.shelf.mu.Unlock()
			if closed := idle == 0; closed != tt.closed {
				t.Errorf("%s: closed %v (%d were made)", name, closed, b.made.Load()-made)
			}
		}
	}
}

// S2: what the host keeps for a guest beside its memory counts, too, where it is much.
func TestHostSideIsChargedS2(t *testing.T) {
	t.Parallel()
	const large = 400 << 10
	text := strings.Repeat("a", large)
	s, e := allowedServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			io.WriteString(w, text)
		}
	})
	origin, egress := at(t, s, "example.com"), func(c *Config) { c.Egress = e.config }
	// took returns what a call is charged beside what is fixed.
	took := func(t *testing.T, b bundle, binary []byte, export, input string) int64 {
		t.Helper()
		d := b.publish(t, binary)
		p, release, err := b.modules.acquire(t.Context(), core.DefaultAccount, d)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		p.expects.bytes.Store(0)
		if _, err = b.Invoke(t.Context(), Call{
			Account: core.DefaultAccount, Module: d, Export: export, Input: []byte(input), Grants: core.Grants{HTTP: []string{"GET " + origin}, Secrets: []string{"TOKEN"}, KV: core.KVWrite},
			Limits: core.Limits{Timeout: core.Duration(5 * time.Second)},
		}); err != nil && export == "" {
			t.Error(err)
		}
		return p.expects.bytes.Load()
	}
	sdk := sdkGuest(t, "./conformance/typed", true)
	t.Run("response", func(t *testing.T) {
		t.Parallel()
		b := setup(t, withHost, egress)
		small, more := took(t, b, sdk, "", `{"op":"http","url":"`+origin+`/"}`), took(t, b, sdk, "", `{"op":"http","url":"`+origin+`/large"}`)
		if more-small < 2*MaxResponseBody {
			t.Errorf("it is charged %d, without it %d", more, small)
		}
	})
	t.Run("output", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		small, more := took(t, b, guestModule(t), "", `{"op":"echo"}`), took(t, b, guestModule(t), "", `{"op":"echo","text":"`+text+`"}`)
		if more-small < 2*large {
			t.Errorf("it is charged %d, without it %d", more, small)
		}
	})
	t.Run("plugin", func(t *testing.T) {
		t.Parallel()
		if n := took(t, setup(t), hostileKinds()["memory of the host's"].binary, "run", `{}`); n < extismMemory {
			t.Errorf("a plugin that allocates all it may is charged %d", n)
		}
	})
	t.Run("script", func(t *testing.T) {
		t.Parallel()
		b := setup(t, withScripts(t))
		small, more := took(t, b, []byte(`export default () => "a"`), "", `1`), took(t, b, []byte(`export default () => "a".repeat(400 << 10)`), "", `1`)
		if more-small < 3*large {
			t.Errorf("it is charged %d, without it %d", more, small)
		}
	})
}

// expected: what the calls of a module take is known after some, so that they ask for it at once; a rare large one does not count for all.
func TestExpectation(t *testing.T) {
	t.Parallel()
	var e expectation
	if e.get() != 0 {
		t.Errorf("at first %d are expected", e.get())
	}
	const usual, rare = 4 << 20, 64 << 20
	e.learn(usual)
	for range 100 {
		e.learn(usual + 100)
	}
	if got := e.get(); got < usual+100 || got > usual+chargeStep+100 {
		t.Errorf("%d are expected of what always takes %d", got, usual)
	}
	for i := range 1000 {
		if i%100 == 0 {
			e.learn(rare)
		}
		e.learn(usual)
	}
	if got := e.get(); got > 2*usual {
		t.Errorf("%d are expected of what mostly takes %d", got, usual)
	}
	for range 20 {
		e.learn(rare)
	}
	if got := e.get(); got < rare-(1<<20) {
		t.Errorf("%d are expected of what takes %d now", got, rare)
	}
}
