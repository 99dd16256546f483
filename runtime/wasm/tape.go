package wasm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"time"
	"unicode/utf8"

	"github.com/keyfire/keyfire/core"
)

// MaxTape is the most bytes of an encoded tape. A call that would need more leaves none.
const MaxTape = 4 << 20

// Tape is a record of one invocation: everything the guest could learn from outside, and what became of it. With its module it is all that is needed to have the
// invocation again, wherever there is this program: see [Runtime.Replay].
//
// No value of a secret is on it. Where one stood there is a hole that names it (core.Mask).
type Tape struct {
	Workflow string    `json:"workflow"`
	Run      string    `json:"run"`
	Step     string    `json:"step"`
	Attempt  int       `json:"attempt"`
	Recorded time.Time `json:"recorded"`
	Machine  string    `json:"machine"` // what executed it: see machineOf

	Module string      `json:"module"`
	Door   Door        `json:"door"`
	Export string      `json:"call,omitempty"`
	Grants core.Grants `json:"grants,omitzero"`
	Limits core.Limits `json:"limits"`
	Input  blob        `json:"input"`
	Config blob        `json:"config,omitempty"`

	Seed    []byte       `json:"seed"` // of the random bytes
	Start   int64        `json:"start_ms"`
	Clock   []int64      `json:"clock"` // how many readings of the clock found it at Start, by how many ms it had advanced then, how many found it there, and so on
	Secrets []tapeSecret `json:"secrets,omitempty"`
	Calls   []tapeCall   `json:"calls,omitempty"`

	Outcome tapeOutcome `json:"outcome"`
}

// tapeSecret is a secret that the guest has read, or that its caller handed it.
type tapeSecret struct {
	Name string `json:"name"`
	// Check tells whether another value is likely the same. It has 16 bits, the same ones on every tape, so that not even all tapes together tell the value.
	Check string `json:"check"`
}

// tapeCall is one call that left the sandbox, and what it gave. One with neither an error nor a value was under way when the guest was stopped.
type tapeCall struct {
	Call   string `json:"call"`   // http, secret, kv_get or kv_set
	What   blob   `json:"what"`   // what it was about, in words: method and URL, a name, a key
	Digest string `json:"digest"` // of all of its arguments

	Error *tapeError `json:"error,omitempty"`
	Value *tapeValue `json:"value,omitempty"`
}

// tapeError is a failure of a call that the guest is told about.
type tapeError struct {
	Class core.ErrorClass `json:"class,omitempty"` // of an HTTP request
	Code  core.Code       `json:"code,omitempty"`  // of anything else
	Text  blob            `json:"text,omitempty"`
}

type tapeValue struct {
	Status  int    `json:"status,omitempty"`
	Headers []blob `json:"headers,omitempty"` // names and values in turn
	Body    blob   `json:"body,omitempty"`    // of a response, or the value of a key; that of a secret is not here
	Swapped bool   `json:"swapped,omitempty"`
}

// tapeOutcome is how an invocation ended.
type tapeOutcome struct {
	Output     blob      `json:"output,omitempty"`
	Error      *tapeEnd  `json:"error,omitempty"`
	Stopped    int64     `json:"stopped_at,omitempty"`      // which look at the deadline ended it; 0 for one that ended otherwise
	Waiting    int64     `json:"stopped_waiting,omitempty"` // how many times it took memory, the last of which it was waiting when it was ended; 0 for one that ended otherwise
	Log        []tapeLog `json:"log,omitempty"`
	LogDropped int64     `json:"log_dropped_bytes,omitempty"`
	Fuel       int64     `json:"fuel"`
	PeakMemory int64     `json:"peak_memory_bytes"`
	Random     int64     `json:"random_bytes"`
}

// tapeEnd is an Error. One without a class was stopped together with its run.
type tapeEnd struct {
	Class    core.ErrorClass `json:"class,omitempty"`
	Message  blob            `json:"message"`
	ExitCode int             `json:"exit_code,omitempty"`
	Status   int             `json:"status,omitempty"`
	Code     string          `json:"code,omitempty"`
}

type tapeLog struct {
	MS    int64  `json:"ms"` // since 1970
	Level string `json:"level"`
	Text  blob   `json:"text"`
}

// machineOf names what decides, beside a module, how much fuel its instructions cost and how its numbers that are none look.
func machineOf(d Door) string {
	m := "rewriter-" + rewriterVersion + "/" + runtime.GOARCH
	if d == DoorJavaScript {
		sum := sha256.Sum256(scriptPrelude)
		m += "/" + ScriptEnginePackage + "-" + ScriptEngineVersion + "/" + hex.EncodeToString(sum[:4])
	}
	return m
}

// checkSecret is the check of a secret's value.
func checkSecret(name, value string) string {
	sum := sha256.Sum256([]byte("keyfire tape\x00" + name + "\x00" + value))
	return hex.EncodeToString(sum[:2])
}

// callDigest is the digest of a call's arguments, each without its secrets. A nil argument is none.
func callDigest(m *core.Mask, args ...[]byte) string {
	h := sha256.New()
	for _, a := range args {
		pieces := m.Cut(a)
		n := int64(len(pieces))
		if a == nil {
			n = -1
		}
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
		for _, p := range pieces {
			fmt.Fprintf(h, "%s\x00%d\x00%d\x00", p.Hole.Secret, p.Hole.Form, len(p.Bytes))
			h.Write(p.Bytes)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// blob is a text on a tape, with holes. In JSON it is a string, or a list of strings, {"base64": ...} and {"secret": ..., "form": ...}.
type blob []core.Piece

type blobPart struct {
	Base64 []byte `json:"base64,omitempty"`
	Secret string `json:"secret,omitempty"`
	Form   int    `json:"form,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (b blob) MarshalJSON() ([]byte, error) {
	if len(b) == 0 {
		return []byte(`""`), nil
	}
	parts := make([]any, len(b))
	for i, p := range b {
		switch {
		case p.Hole.Secret != "":
			parts[i] = blobPart{Secret: p.Hole.Secret, Form: p.Hole.Form}
		case utf8.Valid(p.Bytes):
			parts[i] = string(p.Bytes)
		default:
			parts[i] = blobPart{Base64: p.Bytes}
		}
	}
	if text, ok := parts[0].(string); ok && len(parts) == 1 {
		return json.Marshal(text)
	}
	return json.Marshal(parts)
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *blob) UnmarshalJSON(raw []byte) error {
	*b = nil
	var parts []json.RawMessage
	if bytes.HasPrefix(raw, []byte("[")) {
		if err := json.Unmarshal(raw, &parts); err != nil {
			return err
		}
	} else {
		parts = []json.RawMessage{raw}
	}
	for _, part := range parts {
		var text string
		if json.Unmarshal(part, &text) == nil {
			if text != "" {
				*b = append(*b, core.Piece{Bytes: []byte(text)})
			}
			continue
		}
		var p blobPart
		dec := json.NewDecoder(bytes.NewReader(part))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&p); err != nil {
			return err
		}
		if (p.Secret == "") == (len(p.Base64) == 0) {
			return errors.New("a part of a text is neither bytes nor a secret")
		}
		*b = append(*b, core.Piece{Bytes: p.Base64, Hole: core.Hole{Secret: p.Secret, Form: p.Form}})
	}
	return nil
}

// String shows a text to people.
func (b blob) String() string {
	var s []byte
	for _, p := range b {
		s = append(s, p.Bytes...)
		if p.Hole.Secret != "" {
			s = append(s, "["+p.Hole.Secret+"]"...)
		}
	}
	return printable(string(s))
}

// tapeFormat is the number of the format of files.
const tapeFormat = 1

// tapeFile is an encoded tape.
type tapeFile struct {
	Format int             `json:"keyfire_tape"`
	Sum    string          `json:"sha256"` // of the tape's JSON, compact
	Tape   json.RawMessage `json:"tape"`
}

// ErrTapeTooLarge is the error for a tape of more than MaxTape bytes.
var ErrTapeTooLarge = fmt.Errorf("the tape has more than %s", byteSize(MaxTape))

// Encode returns a tape as a file holds it.
func (t *Tape) Encode() ([]byte, error) {
	b, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	file, err := json.Marshal(tapeFile{Format: tapeFormat, Sum: hex.EncodeToString(sum[:]), Tape: b})
	if err == nil && len(file) > MaxTape {
		return nil, ErrTapeTooLarge
	}
	return file, err
}

// DecodeTape reads what Encode wrote. The error says what is wrong with anything else.
func DecodeTape(file []byte) (*Tape, error) {
	refuse := func(format string, args ...any) (*Tape, error) {
		return nil, core.Errorf(core.CodeInvalidRequest, "this is no tape that could be replayed: "+format, args...)
	}
	var f tapeFile
	switch {
	case len(file) > 2*MaxTape: // white space may have been added
		return refuse("it has %d bytes; a tape has at most %s", len(file), byteSize(MaxTape))
	case json.Unmarshal(file, &f) != nil:
		return refuse("it is not JSON, or was cut off")
	case f.Format == 0:
		return refuse("it has no keyfire_tape, which is the number of its format")
	case f.Format != tapeFormat:
		return refuse("it has format %d; this version of keyfire reads format %d", f.Format, tapeFormat)
	}
	var body bytes.Buffer
	if err := json.Compact(&body, f.Tape); err != nil {
		return refuse("it is not JSON, or was cut off")
	}
	if sum := sha256.Sum256(body.Bytes()); hex.EncodeToString(sum[:]) != f.Sum {
		return refuse("it was damaged or changed; its checksum is not that of its content")
	}
	t := &Tape{}
	dec := json.NewDecoder(&body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(t); err != nil {
		return refuse("%s", printable(cut(err.Error())))
	}
	if wrong := t.wrong(); wrong != "" {
		return refuse("%s", wrong)
	}
	return t, nil
}

// wrong says what no recording leaves, "" for nothing.
func (t *Tape) wrong() string {
	switch {
	case !core.ValidDigest(t.Module):
		return "its module is no digest"
	case len(t.Seed) != seedSize:
		return fmt.Sprintf("its seed has %d bytes, not %d", len(t.Seed), seedSize)
	case t.Limits.Timeout <= 0 || t.Limits.Timeout.Std() > core.MaxRunTimeout:
		return "its time limit is not one that a node can have"
	case t.Limits.Memory <= 0 || t.Limits.Memory > maxPages*pageSize:
		return "its memory limit is not one that a node can have"
	case t.Limits.Output <= 0 || t.Limits.Output > MaxOutput || t.Limits.HostCalls < 0:
		return "its limits are not those that a node can have"
	case len(t.Clock)%2 != 1:
		return "its readings of the clock are incomplete"
	}
	for _, n := range t.Clock {
		if n < 0 {
			return "its clock goes backwards"
		}
	}
	for _, c := range t.Calls {
		if c.Error != nil && c.Value != nil || c.Value != nil && len(c.Value.Headers)%2 != 0 {
			return "the result of a call is not one that a call can have"
		}
	}
	return ""
}

// Ended says in words how the recorded attempt ended.
func (t *Tape) Ended() string { return t.Outcome.ends() }

// Stopped reports whether the recorded attempt was stopped from outside: by its deadline, or with its run.
func (t *Tape) Stopped() bool { return t.Outcome.Stopped != 0 || t.Outcome.Waiting != 0 }

// NeedsSecrets returns the names of the secrets that a replay needs, as [Replay.Secret] is asked for them.
func (t *Tape) NeedsSecrets() []string {
	names := make([]string, len(t.Secrets))
	for i, s := range t.Secrets {
		names[i] = s.Name
	}
	return names
}
