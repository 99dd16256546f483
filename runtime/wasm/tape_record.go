package wasm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/keyfire/keyfire/core"
)

// seedSize is the size of the seed of a recorded guest's random bytes. They are those of chacha8rand, which is as good a generator as the system's.
const seedSize = 32

// recorder writes the tape of one invocation. It stands between the guest and all that could differ from one time to the next: clock, random bytes, services,
// kept values and secrets. A guest that is replayed is recorded too, so that a replay is the same as what it repeats if its tape is.
type recorder struct {
	tape    *Tape
	send    sender
	secrets map[string]string // that the guest has read, or that were handed to it
	mask    *core.Mask
	size    int  // bytes of what is recorded, about
	most    int  // of size
	lost    bool // there is no tape, because the server failed
	long    bool // nor is there one, because it grew too large
	began   time.Time
	elapsed int64 // ms
	now     func() time.Time
	raw     []rawCall
}

// rawCall is a call whose texts may hold secrets that are read later.
type rawCall struct {
	call, what, digest string
	class              core.ErrorClass
	code               core.Code
	text               string
	value              *rawValue
}

type rawValue struct {
	status  int
	headers [][2]string
	body    []byte
	swapped bool
}

type sender func(context.Context, outgoing) (incoming, error)

// record makes g's outside world leave a tape.
func (r *Runtime) record(g *guest, call *Call, timeout time.Duration, memory, output int64) error {
	rec := &recorder{secrets: map[string]string{}, most: MaxTape, now: g.now}
	for name, value := range call.Private {
		if len(value) >= core.MinSecret { // a shorter one is no secret in the run's history either
			rec.secrets[name] = value
		}
	}
	send := g.egress.do
	rec.mask = core.NewMask(rec.secrets)
	limits := call.Limits
	limits.Timeout, limits.Memory, limits.Output = core.Duration(timeout), memory, output
	rec.tape = &Tape{
		Workflow: call.Workflow, Run: call.Run, Step: call.Step, Attempt: call.Attempt, Machine: machineOf(g.door),
		Module: call.Module, Door: g.door, Export: call.Export, Grants: call.Grants, Limits: limits,
		Seed: make([]byte, seedSize), Clock: []int64{0},
	}
	if call.play == nil {
		if _, err := io.ReadFull(g.random, rec.tape.Seed); err != nil {
			return fmt.Errorf("random source: %w", err)
		}
		rec.began = g.now()
		rec.tape.Recorded, rec.tape.Start = rec.began.UTC().Truncate(time.Microsecond), rec.began.UnixMilli()
		g.now = rec.read
	} else {
		p := call.play
		p.rec, g.play = rec, p
		copy(rec.tape.Seed, p.tape.Seed)
		rec.most = 1 << 40 // it is not kept
		rec.tape.Start, rec.tape.Recorded, rec.tape.Machine = p.tape.Start, p.tape.Recorded, p.tape.Machine
		g.now, g.vault, g.kv, send = p.now, p.secret, p, p.send
	}
	g.start, g.log.now = time.UnixMilli(rec.tape.Start), g.now
	g.random = &drawn{rand.NewChaCha8([seedSize]byte(rec.tape.Seed)), &rec.tape.Outcome.Random}
	vault, kv := g.vault, g.kv
	rec.send, g.kv = send, recordedKV{rec, kv}
	g.vault = func(ctx context.Context, account, name string) (string, error) {
		return rec.secret(ctx, account, name, vault)
	}
	rec.grow(len(call.Input) + len(call.Config))
	g.rec = rec
	return nil
}

type drawn struct {
	io.Reader
	n *int64
}

func (c *drawn) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	*c.n += int64(n)
	return n, err
}

// read is the clock of a guest that is recorded: in milliseconds, which is all a guest can see, and never backwards.
func (rec *recorder) read() time.Time {
	return rec.tick(rec.now().Sub(rec.began).Milliseconds())
}

// tick records a reading of the clock, so many milliseconds after its start.
func (rec *recorder) tick(ms int64) time.Time {
	c := &rec.tape.Clock
	if ms > rec.elapsed {
		*c = append(*c, ms-rec.elapsed, 0)
		rec.elapsed = ms
		rec.grow(8)
	}
	(*c)[len(*c)-1]++
	return time.UnixMilli(rec.tape.Start + rec.elapsed).UTC()
}

// grow counts bytes of the tape, and lets go of one that becomes too large.
func (rec *recorder) grow(n int) {
	if rec.size += n; rec.size > rec.most {
		rec.long, rec.raw = true, nil
		rec.tape.Clock = rec.tape.Clock[:1]
	}
}

// begin records that a call leaves the sandbox.
func (rec *recorder) begin(call, what string, args ...[]byte) *rawCall {
	c := rawCall{call: call, what: what, digest: callDigest(rec.mask, append([][]byte{[]byte(call)}, args...)...)}
	if rec.grow(200 + len(what)); rec.long {
		return &c
	}
	rec.raw = append(rec.raw, c)
	return &rec.raw[len(rec.raw)-1]
}

// failed records the failure of a call. One that is the server's own, and not told to the guest, leaves no tape.
func (rec *recorder) failed(ctx context.Context, c *rawCall, err error) {
	var e *egressError
	var coded *core.Error
	switch {
	case errors.As(err, &e):
		c.class, c.text = e.class, e.text
	case ctx.Err() != nil: // the guest is about to be stopped
	case errors.As(err, &coded):
		c.code = coded.Code
	case errors.Is(err, errUnderWay):
	default:
		rec.lost = true
	}
	rec.grow(len(c.text))
}

// http is egress.do.
func (rec *recorder) http(ctx context.Context, out outgoing) (incoming, error) {
	fields := slices.Clone(out.header)
	// A plugin's come in any order.
	slices.SortStableFunc(fields, func(a, b [2]string) int { return cmp.Or(strings.Compare(a[0], b[0]), strings.Compare(a[1], b[1])) })
	args := [][]byte{[]byte(out.method), []byte(out.url), out.body}
	for _, f := range fields {
		args = append(args, []byte(f[0]), []byte(f[1]))
	}
	c := rec.begin("http", out.method+" "+out.url, args...)
	in, err := rec.send(ctx, out)
	if err != nil {
		rec.failed(ctx, c, err)
		return in, err
	}
	c.value = &rawValue{status: in.status, headers: in.header, body: in.body}
	for _, f := range in.header {
		rec.grow(8 + len(f[0]) + len(f[1]))
	}
	rec.grow(len(in.body))
	return in, nil
}

func (rec *recorder) secret(ctx context.Context, account, name string, vault SecretSource) (string, error) {
	c := rec.begin("secret", name, []byte(name))
	value, err := vault(ctx, account, name)
	if err != nil {
		rec.failed(ctx, c, err)
		return value, err
	}
	c.value = &rawValue{}
	rec.secrets[name] = value
	rec.mask = core.NewMask(rec.secrets)
	return value, nil
}

type recordedKV struct {
	rec *recorder
	kv  KV
}

// Get implements KV.
func (k recordedKV) Get(ctx context.Context, account, workflow, key string) ([]byte, error) {
	c := k.rec.begin("kv_get", key, []byte(key))
	value, err := k.kv.Get(ctx, account, workflow, key)
	if err != nil {
		k.rec.failed(ctx, c, err)
		return nil, err
	}
	c.value = &rawValue{body: value}
	k.rec.grow(len(value))
	return value, nil
}

// Swap implements KV.
func (k recordedKV) Swap(ctx context.Context, account, workflow, key string, value []byte, check bool, old []byte) (bool, error) {
	checked := []byte(nil)
	if check {
		checked = []byte("checked")
	}
	c := k.rec.begin("kv_set", key, []byte(key), value, checked, old)
	swapped, err := k.kv.Swap(ctx, account, workflow, key, value, check, old)
	if err != nil {
		k.rec.failed(ctx, c, err)
		return false, err
	}
	c.value = &rawValue{swapped: swapped}
	return swapped, nil
}

// finish returns the tape of an invocation that has ended, nil if there is none.
func (rec *recorder) finish(g *guest, call *Call, res *Result, err error) *Tape {
	var own *Error
	t, o := rec.tape, &rec.tape.Outcome
	res.TooLong = rec.long
	switch {
	case rec.lost || rec.long:
		return nil
	case errors.As(err, &own):
		o.Error = &tapeEnd{Class: own.Class, ExitCode: own.ExitCode, Status: own.Status, Code: own.Code, Message: rec.blob(own.Message)}
	case g.cut, g.cutTaking:
		o.Error = &tapeEnd{Message: rec.blob("stopped with its run")}
	case err != nil:
		return nil
	}
	if g.cut {
		o.Stopped = g.looks
	}
	if g.cutTaking {
		o.Waiting = g.takes
	}
	t.Input, t.Config, o.Output = rec.mask.Cut(call.Input), rec.mask.Cut(call.Config), rec.mask.Cut(res.Output)
	o.Fuel, o.PeakMemory, o.LogDropped = res.Fuel, res.PeakMemory, res.LogDropped
	for _, l := range res.Log {
		o.Log = append(o.Log, tapeLog{l.Time.UnixMilli(), l.Level, rec.blob(l.Message)})
	}
	for _, c := range rec.raw {
		t.Calls = append(t.Calls, rec.call(c))
	}
	for name, value := range rec.secrets {
		t.Secrets = append(t.Secrets, tapeSecret{name, checkSecret(name, value)})
	}
	slices.SortFunc(t.Secrets, func(a, b tapeSecret) int { return strings.Compare(a.Name, b.Name) })
	return t
}

func (rec *recorder) blob(s string) blob { return rec.mask.Cut([]byte(s)) }

// call masks a call with all the secrets that are known in the end.
func (rec *recorder) call(c rawCall) tapeCall {
	out := tapeCall{Call: c.call, What: rec.blob(c.what), Digest: c.digest}
	if c.class != "" || c.code != "" {
		out.Error = &tapeError{Class: c.class, Code: c.code, Text: rec.blob(c.text)}
	}
	if v := c.value; v != nil {
		out.Value = &tapeValue{Status: v.status, Body: rec.mask.Cut(v.body), Swapped: v.swapped}
		for _, f := range v.headers {
			out.Value.Headers = append(out.Value.Headers, rec.blob(f[0]), rec.blob(f[1]))
		}
	}
	return out
}

// sameBytes reports whether two texts of tapes are the same, holes included.
func sameBytes(a, b blob) bool {
	return slices.EqualFunc(a, b, func(p, q core.Piece) bool { return p.Hole == q.Hole && bytes.Equal(p.Bytes, q.Bytes) })
}
