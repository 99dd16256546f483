package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keyfire/keyfire/core"
)

// errTimeout is the cause of a guest's context when its own time is up, as opposed to its caller's.
var errTimeout = errors.New("the node's deadline passed")

// Invoke runs one call in a fresh instance and waits for its end.
//
// A failure of the node is an *Error. When ctx ends first, the guest is stopped and the cause of ctx is returned, wrapped; any other
// error means that the server could not run the module at all. In every case the Result holds what is known.
func (r *Runtime) Invoke(ctx context.Context, call Call) (Result, error) {
	var res Result
	end, err := r.begin()
	if err != nil {
		return res, err
	}
	defer end()
	stdin := WithConfig(call.Input, call.Config)
	if len(stdin) > MaxInput {
		return res, errorf(core.ClassLimit, "the node's input has %d bytes; at most %s are allowed", len(stdin), byteSize(MaxInput))
	}
	timeout, memory, output := r.limits(call.Limits)

	began := time.Now()
	prog, release, err := r.modules.acquire(ctx, call.Account, call.Module)
	if err != nil {
		return res, fmt.Errorf("wasm: %w", err)
	}
	defer release()
	res.Load = time.Since(began)

	if err := prog.permitted(&call); err != nil {
		return res, err
	}
	door, err := prog.doorOf(&call)
	if err != nil {
		return res, err
	}
	if prog.info.MinMemory > memory {
		return res, errorf(core.ClassLimit, "the module starts with %s of memory; the limit is %s", byteSize(prog.info.MinMemory), byteSize(memory))
	}
	allowed := memory
	if declared := prog.info.MaxMemory; declared > 0 {
		memory = min(memory, declared)
	}
	began = time.Now()
	load := core.LoadOf(ctx)
	c, deep, err := r.charge(ctx, load, prog, door, &call, memory, len(stdin))
	if err != nil {
		return res, fmt.Errorf("wasm: waiting for memory: %w", err)
	}
	res.Queued = time.Since(began)
	load.Compute(1)
	defer load.Compute(-1)

	began = time.Now()
	s, err := r.lease(ctx, prog, door, &call, &c)
	if err != nil {
		r.memory.end(c.share)
		return res, fmt.Errorf("wasm: %w", err)
	}
	if s != nil {
		defer r.giveBack(call.Account, s, c.share)
	} else {
		defer r.memory.end(c.share)
	}
	res.Queued += c.waited
	res.Load += time.Since(began) - c.waited

	err = r.run(ctx, &call, &seat{prog: prog, door: door, shell: s, charge: c, deep: deep, stdin: stdin, timeout: timeout, allowed: allowed, memory: memory, output: output}, &res)
	return res, err
}

// seat is what a call that was let in runs with.
type seat struct {
	prog    *program
	door    Door
	shell   *shell // nil without one
	charge  charge
	deep    int64
	stdin   []byte
	timeout time.Duration
	allowed int64 // bytes of memory, by the limits of the call
	memory  int64 // and by what the module declares
	output  int64 // bytes
}

// run runs a call in its seat and adds to the result what is known of it.
func (r *Runtime) run(ctx context.Context, call *Call, at *seat, res *Result) error {
	patience := at.timeout
	if call.play != nil && call.play.same {
		patience = 10*at.timeout + time.Minute // it is stopped where the recorded one was; this is for a machine that is slower
	}
	began := time.Now()
	setup := guest{
		Context: ctx, now: r.config.Now, random: r.config.Random,
		stdin: at.stdin, output: at.output, log: logBuffer{now: r.config.Now}, start: r.config.Now(), limit: began.Add(patience),
		door: at.door, script: at.prog.script, hostState: r.hostState(call), pace: pace{crowd: r.crowd}, charge: at.charge, deep: at.deep,
	}
	if call.Record {
		if err := r.record(&setup, call, at.timeout, at.allowed, at.output); err != nil {
			return fmt.Errorf("wasm: %w", err)
		}
	}
	r.crowd.count.Add(1)
	defer r.crowd.count.Add(-1)
	// Without a shell, or with one that starts with more memory than this call may have, the guest is started: then it will find out itself.
	s := at.shell
	shelled := s != nil && int64(s.pages)*pageSize <= at.memory
	g := new(guest)
	if shelled {
		g = s.g
	}
	defer g.endTime()
	defer g.pace.pause()
	var err error
	if shelled {
		res.Start = s.image.start
		err = s.serve(&setup, at.memory)
	} else {
		res.Start = StartPlain
		*g = setup
		err = r.start(g, at.prog, at.memory)
	}
	at.prog.expects.learn(g.charge.took())
	r.starts[res.Start.Class()[0]-'A'].Add(1)
	if g.memory == nil {
		return fmt.Errorf("wasm: %w", err)
	}
	waited := g.charge.waited - at.charge.waited
	res.Queued, res.Wall = res.Queued+waited, time.Since(began)-waited
	res.Host, res.PeakMemory = g.host, int64(g.pages)*pageSize
	if g.inst != nil {
		res.Fuel = g.fuelUsed()
	}

	res.Output, err = g.conclude(err, at.timeout)
	g.log.flush(levelInfo)
	res.Log, res.LogDropped = g.log.lines, g.log.dropped
	g.redact(res, err)
	if g.rec != nil {
		res.Tape = g.rec.finish(g, call, res, err)
	}
	return err
}

// limits applies defaults and bounds to the limits of a call.
func (r *Runtime) limits(l core.Limits) (timeout time.Duration, memory, output int64) {
	timeout, memory, output = core.DefaultNodeLimit, r.config.MemoryLimit, MaxOutput
	if l.Timeout > 0 {
		timeout = min(l.Timeout.Std(), core.MaxRunTimeout)
	}
	if l.Memory > 0 {
		memory = min(memory, wholePages(l.Memory))
	}
	if l.Output > 0 {
		output = min(output, l.Output)
	}
	return timeout, memory, output
}

// conclude turns the way a guest ended into its output or an error. The host's own reasons come first: what the engine reports is then
// only how the guest was unwound.
func (g *guest) conclude(err error, timeout time.Duration) ([]byte, error) {
	switch {
	case g.stop != nil:
		err = g.stop
	case err == nil && !g.exited, g.exited && g.code == 0:
		return g.finished()
	case g.exited:
		return nil, g.failed()
	default:
		return nil, g.trapped(err)
	}
	var own *Error
	switch {
	case errors.As(err, &own):
		return nil, own
	case errors.Is(err, errTimeout):
		return nil, &Error{Class: core.ClassTimeout, Message: fmt.Sprintf("the node did not finish within %s", timeout), Err: err}
	case g.Err() != nil:
		return nil, fmt.Errorf("wasm: stopped with its caller: %w", err)
	}
	return nil, fmt.Errorf("wasm: host function: %w", err)
}

// finished returns the output of a guest that says it succeeded.
func (g *guest) finished() ([]byte, error) {
	if g.door != DoorExtism {
		return jsonOutput(g.stdout, g.door)
	}
	if err := g.extismError(); err != nil {
		return nil, err
	}
	return g.extismOutput()
}

// jsonOutput checks that what a guest wrote is one JSON value. Its errors name where a guest of that door writes.
func jsonOutput(b []byte, d Door) ([]byte, error) {
	where, hint := "standard output", "; log to standard error instead"
	if d == DoorReactor {
		where, hint = "output_write", "" // its standard output is its log
	}
	switch {
	case len(b) == 0:
		return nil, errorf(core.ClassInvalidOutput, "the node wrote nothing to %s; it must write one JSON value", where)
	case !utf8.Valid(b):
		return nil, errorf(core.ClassInvalidOutput, "what the node wrote to %s is not valid UTF-8", where)
	case !json.Valid(b):
		return nil, errorf(core.ClassInvalidOutput, "what the node wrote to %s is not one JSON value%s", where, hint)
	}
	return b, nil
}

// trapped describes a guest that did something WebAssembly forbids, and logs the trace of it for the author.
func (g *guest) trapped(err error) error {
	text := err.Error()
	g.log.error(text)
	if g.memory.refused {
		return g.outOfMemory(0, err)
	}
	reason := strings.TrimSuffix(strings.TrimPrefix(firstLine(text), "wasm error: "), " (recovered by wazero)")
	return &Error{Class: core.ClassTrap, Message: "the node trapped: " + printable(reason), Err: err}
}

// outOfMemory describes a guest that failed after more memory was refused to it. That is not proof, but by far the likeliest reason.
func (g *guest) outOfMemory(code int, err error) *Error {
	return &Error{
		Class: core.ClassLimit, ExitCode: code, Err: err,
		Message: fmt.Sprintf("the node needed more memory than its limit of %s", byteSize(g.memory.limit)),
	}
}

var codePattern = regexp.MustCompile(`^[a-z0-9_]{1,64}$`)

// failed describes a guest that exited with a code other than 0: in its own words, when standard output holds them.
func (g *guest) failed() error {
	code := int(g.code)
	if err := g.extismError(); err != nil {
		return err
	}
	said := g.stdout
	if g.said != nil {
		said = g.said
	}
	if e, ok := explained(said, code, g.denied); ok {
		return e
	}
	if g.memory.refused {
		return g.outOfMemory(code, nil)
	}
	return &Error{Class: core.ClassExit, ExitCode: code, Message: fmt.Sprintf("the node exited with code %d%s", code, misexplained(said))}
}

// misexplained says what is wrong with an explanation that is nearly one, "" for anything else a guest may have written before it gave up. Without it an author sees a
// status that is ignored, and not why.
func misexplained(b []byte) string {
	var said map[string]json.RawMessage
	if json.Unmarshal(b, &said) != nil || len(said) != 1 {
		return ""
	}
	var form struct {
		Class   *string `json:"class"`
		Status  *int    `json:"status"`
		Code    *string `json:"code"`
		Message *string `json:"message"`
	}
	switch fail, failed := said["fail"]; {
	case failed && json.Unmarshal(fail, &form) != nil:
		return `; its fail is not of the form {"status": 409, "code": "...", "message": "..."}`
	case failed && (form.Status == nil || *form.Status < 400 || *form.Status > 599):
		return "; its fail.status is not from 400 to 599"
	case failed:
		return "; its fail.code is not 1 to 64 of a-z, 0-9 and _"
	}
	switch e, ok := said["error"]; {
	case !ok:
		return ""
	case json.Unmarshal(e, &form) != nil:
		return `; its error is not of the form {"class": "failed", "message": "..."}`
	}
	return "; its error.class is not unavailable, failed or denied"
}

// explained reads a guest's own words for its failure. The class "denied" is taken from a guest to which something was denied, and
// becomes "failed" for any other.
func explained(b []byte, code int, denied bool) (*Error, bool) {
	var said struct {
		Error *struct {
			Class   core.ErrorClass `json:"class"`
			Message string          `json:"message"`
		} `json:"error"`
		Fail *struct {
			Status  int    `json:"status"`
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"fail"`
	}
	if !utf8.Valid(b) || json.Unmarshal(b, &said) != nil {
		return nil, false //nolint:nilerr // what is not in that form is an output
	}
	switch e, f := said.Error, said.Fail; {
	case e != nil && f == nil && slices.Contains([]core.ErrorClass{core.ClassUnavailable, core.ClassFailed, core.ClassDenied}, e.Class):
		if e.Class == core.ClassDenied && !denied {
			e.Class = core.ClassFailed
		}
		return &Error{Class: e.Class, Message: message(e.Message, "the node reported an error"), ExitCode: code}, true
	case f != nil && e == nil && f.Status >= 400 && f.Status <= 599 && codePattern.MatchString(f.Code):
		return &Error{Class: core.ClassFailed, Message: message(f.Message, "the node failed the run"), ExitCode: code, Status: f.Status, Code: f.Code}, true
	}
	return nil, false
}

// message is a guest's own text, made safe to show, or other when there is none. It is as long as the guest made it: who shows it cuts it, after secrets are taken
// out, of which a part would be left otherwise.
func message(s, other string) string {
	if s = strings.TrimSpace(printable(s)); s == "" {
		return other
	}
	return s
}

// cut bounds a message.
func cut(s string) string {
	const most = 1_000 // bytes
	if len(s) > most {
		s = strings.TrimSpace(strings.ToValidUTF8(s[:most], ""))
	}
	return s
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
