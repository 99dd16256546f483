package wasm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/keyfire/keyfire/core"
)

// player is the outside world of a guest that is replayed: what a tape says it was. It reaches nothing else.
type player struct {
	tape    *Tape
	rec     *recorder
	same    bool // the module is the tape's
	secrets map[string]string
	mask    *core.Mask
	used    []bool // calls of the tape

	at      int   // in tape.Clock
	left    int64 // readings there
	elapsed int64
	slept   int64 // ms, since the last reading

	off string // the call that is not on the tape, once there was one
}

// errOffTape ends a guest that asks for something of which the tape does not know the answer; errUnderWay one whose tape ends here.
var (
	errOffTape    = errors.New("the call is not on the tape")
	errUnderWay   = errors.New("the attempt was stopped during the call")
	errEndedByRun = errors.New("the attempt was stopped with its run")
)

func newPlayer(t *Tape, same bool, secrets map[string]string) *player {
	return &player{tape: t, same: same, secrets: secrets, mask: core.NewMask(secrets), used: make([]bool, len(t.Calls)), left: t.Clock[0]}
}

// now is the next reading of the clock. A module that reads it more often than the recorded one sees it go on, by a millisecond each time and by what it sleeps, so
// that it does not wait for ever.
func (p *player) now() time.Time {
	c := p.tape.Clock
	for p.left == 0 && p.at+2 < len(c) {
		p.elapsed += c[p.at+1]
		p.left, p.at = c[p.at+2], p.at+2
	}
	if p.left > 0 {
		p.left--
	} else {
		p.elapsed += 1 + p.slept
	}
	p.slept = 0
	return p.rec.tick(p.elapsed)
}

func (p *player) sleep(d time.Duration) { p.slept += d.Milliseconds() }

// stops returns why the guest is stopped at this look at the deadline, nil if it is not.
func (p *player) stops(look int64) error {
	if p == nil || !p.same || p.tape.Outcome.Stopped != look {
		return nil
	}
	if e := p.tape.Outcome.Error; e != nil && e.Class == core.ClassTimeout {
		return errTimeout
	}
	return errEndedByRun
}

// stopsTaking returns why the guest is stopped when it takes memory, for that many times, nil if it is not.
func (p *player) stopsTaking(times int64) error {
	if p == nil || !p.same || p.tape.Outcome.Waiting != times {
		return nil
	}
	return errEndedByRun
}

// take finds what the call that was recorded last gave the first time. A module that was changed may leave out calls, or make them in another order.
func (p *player) take() (*tapeCall, error) {
	asked := &p.rec.raw[len(p.rec.raw)-1]
	for i := range p.tape.Calls {
		c := &p.tape.Calls[i]
		if p.used[i] || c.Call != asked.call || c.Digest != asked.digest {
			continue
		}
		p.used[i] = true
		if c.Error == nil && c.Value == nil {
			if !p.same {
				p.off = fmt.Sprintf("call %d, %s, was under way when the recorded attempt was stopped, so the tape has no answer to it", i+1, c)
			}
			return c, errUnderWay
		}
		return c, nil
	}
	p.off = fmt.Sprintf("call %d, %s, is not on the tape%s", len(p.rec.raw), p.rec.call(*asked), p.near(asked))
	return nil, errOffTape
}

// near says what the tape has in place of a call.
func (p *player) near(asked *rawCall) string {
	for i, c := range p.tape.Calls {
		if p.used[i] {
			continue
		}
		if want := p.rec.call(*asked); c.Call == want.Call && sameBytes(c.What, want.What) {
			return fmt.Sprintf("; its call %d is to the same, with other arguments", i+1)
		}
		return fmt.Sprintf("; its next call is %d, %s", i+1, &c)
	}
	return ", which has no further calls"
}

// String names a call.
func (c tapeCall) String() string {
	return strings.ReplaceAll(c.Call, "_", " ") + " " + c.What.String()
}

func (p *player) send(context.Context, outgoing) (incoming, error) {
	c, err := p.take()
	if err != nil {
		return incoming{}, err
	}
	if c.Error != nil {
		return incoming{}, &egressError{class: c.Error.Class, text: string(p.mask.Join(c.Error.Text))}
	}
	in := incoming{status: c.Value.Status, header: [][2]string{}, body: p.mask.Join(c.Value.Body)}
	for h := c.Value.Headers; len(h) > 0; h = h[2:] {
		in.header = append(in.header, [2]string{string(p.mask.Join(h[0])), string(p.mask.Join(h[1]))})
	}
	return in, nil
}

// answer is what the call that was recorded last gave the first time, or the server's error that it ended with.
func (p *player) answer() (*tapeValue, error) {
	c, err := p.take()
	switch {
	case err != nil:
		return nil, err
	case c.Error != nil:
		return nil, core.Errorf(c.Error.Code, "as on the tape")
	}
	return c.Value, nil
}

func (p *player) secret(_ context.Context, _, name string) (string, error) {
	if _, err := p.answer(); err != nil {
		return "", err
	}
	return p.secrets[name], nil
}

// Get implements KV.
func (p *player) Get(context.Context, string, string, string) ([]byte, error) {
	v, err := p.answer()
	if err != nil {
		return nil, err
	}
	return p.mask.Join(v.Body), nil
}

// Swap implements KV.
func (p *player) Swap(context.Context, string, string, string, []byte, bool, []byte) (bool, error) {
	v, err := p.answer()
	if err != nil {
		return false, err
	}
	return v.Swapped, nil
}

// Replay is what a tape is replayed with.
type Replay struct {
	Tape *Tape
	// Module is the digest of the module to execute; "" is the tape's own. Config.Load is asked for it.
	Module string
	// Secret gives the values of the secrets that stood where the tape has holes.
	Secret func(name string) (value string, ok bool)
}

// Replayed says how a replay went.
type Replayed struct {
	Result  Result
	Err     error    // the node's, as Invoke returns it
	Other   []string // secrets whose value is another one than that which was used
	Machine string   // what executes it here, if the tape is of another one; fuel may differ then
	// Difference says in what the replay is not the same as what it repeats, the first such thing only; "" if every byte is the same: calls, log, output or error, fuel,
	// memory, clock and random bytes.
	Difference string
	// Ended is set when the guest could not go on, because it made a call that the tape does not have; Difference names it.
	Ended bool
}

// Replay executes the invocation on a tape again. It reaches nothing but the module: every answer the guest gets is the tape's. The error is that of a replay that could
// not be begun.
//
// A guest that was stopped when its time was up is stopped at the same instruction, whatever time it took until there.
func (r *Runtime) Replay(ctx context.Context, re Replay) (Replayed, error) {
	t := re.Tape
	secrets, other, err := t.fill(re.Secret)
	if err != nil {
		return Replayed{}, err
	}
	out := Replayed{Other: other}
	p := newPlayer(t, re.Module == "" || re.Module == t.Module, secrets)
	call := Call{
		Account: core.DefaultAccount, Module: re.Module, Workflow: t.Workflow, Run: t.Run, Step: t.Step, Attempt: t.Attempt,
		Input: p.mask.Join(t.Input), Config: p.mask.Join(t.Config), Export: t.Export, Grants: t.Grants, Limits: t.Limits,
		Record: true, Private: t.handed(secrets), play: p,
	}
	if p.same {
		call.Module = t.Module
	}
	out.Result, out.Err = r.Invoke(ctx, call)
	again := out.Result.Tape
	var own *Error
	switch {
	case ctx.Err() != nil:
		return out, context.Cause(ctx)
	case p.off != "":
		out.Difference, out.Ended = p.off, true
		return out, nil
	case again == nil && errors.As(out.Err, &own):
		out.Difference = "the module did not start: " + own.Message
		return out, nil
	case again == nil:
		return out, out.Err
	}
	if machine := machineOf(t.Door); p.same && machine != t.Machine {
		out.Machine = machine
	}
	out.Difference = t.differs(again)
	return out, nil
}

// handed returns those secrets that the guest did not ask for.
func (t *Tape) handed(secrets map[string]string) map[string]string {
	handed := maps.Clone(secrets)
	for _, c := range t.Calls {
		if c.Call == "secret" && c.Value != nil {
			delete(handed, c.What.String())
		}
	}
	return handed
}

// fill finds values for the holes of a tape, and those that are other ones than were there.
func (t *Tape) fill(secret func(string) (string, bool)) (values map[string]string, other []string, err error) {
	values = make(map[string]string)
	var missing []string
	for _, s := range t.Secrets {
		value, ok := secret(s.Name)
		switch {
		case !ok:
			missing = append(missing, s.Name)
		case len(value) < core.MinSecret:
			return nil, nil, core.Errorf(core.CodeInvalidRequest, "the value for %s is too short: a secret has at least %d bytes", printable(s.Name), core.MinSecret)
		case checkSecret(s.Name, value) != s.Check:
			other = append(other, s.Name)
		}
		values[s.Name] = value
	}
	if len(missing) > 0 {
		return nil, nil, core.Errorf(core.CodeInvalidRequest, "the attempt knew secrets, which are not on the tape: %s", printable(strings.Join(missing, ", ")))
	}
	return values, other, nil
}

// differs says in what u is another recording than t, "" for nothing.
func (t *Tape) differs(u *Tape) string {
	was, is := &t.Outcome, &u.Outcome
	for i, c := range t.Calls {
		if i >= len(u.Calls) {
			return fmt.Sprintf("call %d, %s, was made then and not now", i+1, c)
		}
		if d := u.Calls[i]; c.String() != d.String() {
			return fmt.Sprintf("call %d was %s, and is now %s", i+1, c, d)
		} else if c.Digest != d.Digest {
			return fmt.Sprintf("call %d, %s, has other arguments now", i+1, c)
		}
	}
	if a, b := was.ends(), is.ends(); a != b {
		return fmt.Sprintf("it ended with %s, and now with %s", a, b)
	}
	for i, l := range was.Log {
		if i >= len(is.Log) {
			return fmt.Sprintf("line %d of the log was %q, and is not there now", i+1, l.Text)
		}
		if m := is.Log[i]; l.Level != m.Level || !sameBytes(l.Text, m.Text) {
			return fmt.Sprintf("line %d of the log was %s %q, and is now %s %q", i+1, l.Level, l.Text, m.Level, m.Text)
		}
	}
	if len(is.Log) > len(was.Log) {
		return fmt.Sprintf("line %d of the log, %q, was not there then", len(was.Log)+1, is.Log[len(was.Log)].Text)
	}
	switch {
	case !sameBytes(was.Output, is.Output):
		return fmt.Sprintf("the output differs from byte %d on", differsAt(was.Output, is.Output))
	case was.Fuel != is.Fuel:
		return fmt.Sprintf("it took %d instructions, and now %d", was.Fuel, is.Fuel)
	case was.PeakMemory != is.PeakMemory:
		return fmt.Sprintf("it took %d bytes of memory, and now %d", was.PeakMemory, is.PeakMemory)
	case was.Random != is.Random:
		return fmt.Sprintf("it drew %d random bytes, and now %d", was.Random, is.Random)
	}
	copied := *u
	copied.Module = t.Module
	a, err := json.Marshal(t)
	b, err2 := json.Marshal(&copied)
	if err != nil || err2 != nil || !bytes.Equal(a, b) {
		return "it read the clock at other times"
	}
	return ""
}

// ends names an end.
func (o *tapeOutcome) ends() string {
	switch e := o.Error; {
	case e == nil:
		return "an output"
	case e.Class == "":
		return e.Message.String()
	case e.Status != 0:
		return fmt.Sprintf("a failure of its own (%d %s): %s", e.Status, e.Code, e.Message)
	case e.ExitCode != 0:
		return fmt.Sprintf("%s (exit code %d): %s", e.Class, e.ExitCode, e.Message)
	default:
		return fmt.Sprintf("%s: %s", e.Class, e.Message)
	}
}

// differsAt returns the first byte in which two texts differ.
func differsAt(a, b blob) int {
	x, y := a.String(), b.String()
	n := 0
	for n < len(x) && n < len(y) && x[n] == y[n] {
		n++
	}
	return n
}
