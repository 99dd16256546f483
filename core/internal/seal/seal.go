// Package seal makes changes of the audit log show. A server seals the events that are new every few seconds: it writes a keyed hash of each, and one that binds them to
// all seals before, to a file of its own. Whoever can change the database, and not this file and the key, can then change, remove, add, reorder or cut off no event that
// was sealed without [Check] saying which one.
package seal

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"github.com/keyfire/keyfire/core"
)

// MaxEvents bounds the events of one seal.
const MaxEvents = 1_000

// leafSize is how much of the hash of an event is kept. It is keyed, so an event with the same hash as another cannot be searched for.
const leafSize = 8

// maxLine bounds a line of the file.
const maxLine = 64 << 10

// Keys returns the key of a version, which must be secret and random; ok is false when there is none.
type Keys func(version int) (key []byte, ok bool)

// line is a seal as it stands in the file: JSON, one a line.
type line struct {
	Key    int       `json:"key"`  // version of the key
	From   int64     `json:"from"` // sequence numbers of the first event and the last one
	To     int64     `json:"to"`
	At     time.Time `json:"at"`
	Hashes []byte    `json:"hashes"` // leafSize bytes of each event
	MAC    []byte    `json:"mac"`    // of all the above and of the MAC of the line before
}

func mac(key []byte, label string, message []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(label))
	h.Write(message)
	return h.Sum(nil)
}

// leaves makes what is kept of events, one after the other.
type leaves struct {
	mac hash.Hash
	b   []byte // room for an event and for its hash
}

func newLeaves(key []byte) *leaves { return &leaves{mac: hmac.New(sha256.New, key)} }

// of returns what is kept of an event, until the next is asked for. Each field is preceded by its length, so that no two events read the same.
func (l *leaves) of(ev *core.AuditEvent) []byte {
	b := append(l.b[:0], "keyfire audit event"...)
	for _, n := range []int64{ev.Seq, ev.Time.UnixMicro(), ev.Count} {
		b = binary.BigEndian.AppendUint64(b, uint64(n)) // the same bits
	}
	for _, text := range []string{ev.ID, ev.Account, ev.Actor, ev.KeyID, ev.SourceIP, ev.Action, ev.Object, ev.Outcome, ev.Reason, ev.RequestID, ev.TraceID} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
		b = append(b, text...)
	}
	l.mac.Reset()
	l.mac.Write(b)
	l.b = l.mac.Sum(b)
	return l.b[len(b):][:leafSize]
}

func (l *line) seal(key, before []byte) []byte {
	b := append([]byte{}, before...)
	for _, n := range []int64{int64(len(before)), int64(l.Key), l.From, l.To, l.At.UnixMicro()} {
		b = binary.BigEndian.AppendUint64(b, uint64(n)) // the same bits
	}
	return mac(key, "keyfire audit seal", append(b, l.Hashes...))
}

// Problem is what Check has found.
type Problem struct {
	Seq  int64 // the first event that is not as it was sealed; 0 when it is a seal itself
	Text string
}

func (p *Problem) Error() string { return p.Text }

// reader reads a file of seals from its beginning and checks each.
type reader struct {
	in   *bufio.Reader
	keys Keys
	n    int    // of the line
	last *line  // nil before the first
	size int64  // of the whole lines so far
	mac  []byte // of the last one
}

// next returns the next seal, io.EOF after the last one. A last line without its end is what a server that was killed has left, and no seal.
func (r *reader) next() (*line, error) {
	text, err := r.in.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	r.n++
	bad := func(why string) error { return &Problem{Text: fmt.Sprintf("seal %d %s", r.n, why)} }
	var l line
	if len(text) > maxLine || json.Unmarshal(text, &l) != nil || l.To < l.From || int64(len(l.Hashes)) != (l.To-l.From+1)*leafSize {
		return nil, bad("is damaged")
	}
	key, ok := r.keys(l.Key)
	switch {
	case !ok:
		return nil, bad(fmt.Sprintf("was made with version %d of the pepper, which is not here", l.Key))
	case !hmac.Equal(l.MAC, l.seal(key, r.mac)):
		return nil, bad("was changed, or those before it are not the ones that were there when it was made, or the pepper is another one")
	case r.last == nil && l.From != 1 || r.last != nil && l.From != r.last.To+1:
		return nil, bad("does not go on where the one before ends")
	}
	r.last, r.mac = &l, l.MAC
	r.size += int64(len(text))
	return &l, nil
}

// File is a file of seals that is added to. It is not safe for concurrent use.
type File struct {
	f      *os.File
	keys   Keys
	newest int
	last   *line
	mac    []byte
}

// Open opens a file of seals, or makes one that only its owner can read, and checks what is in it. newest is the version of the key to seal with. An error that is a
// [Problem] says that the file is not what was written.
func Open(path string, keys Keys, newest int) (_ *File, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("seals: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
		}
	}()
	r := &reader{in: bufio.NewReader(f), keys: keys}
	for {
		if _, err := r.next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
	}
	// What follows the last whole line was never answered for.
	if err := f.Truncate(r.size); err != nil {
		return nil, err
	}
	if _, err := f.Seek(r.size, io.SeekStart); err != nil {
		return nil, err
	}
	return &File{f: f, keys: keys, newest: newest, last: r.last, mac: r.mac}, nil
}

// Sealed returns the sequence number of the last event that is sealed, 0 for none.
func (f *File) Sealed() int64 {
	if f.last == nil {
		return 0
	}
	return f.last.To
}

// Matches reports whether the event that was sealed last is this one.
func (f *File) Matches(ev *core.AuditEvent) bool {
	if f.last == nil {
		return false
	}
	key, ok := f.keys(f.last.Key)
	return ok && ev.Seq == f.last.To && hmac.Equal(newLeaves(key).of(ev), f.last.Hashes[len(f.last.Hashes)-leafSize:])
}

// Append seals at most MaxEvents events, which follow those that are sealed without a gap. The seal is on disk when it returns.
func (f *File) Append(events []core.AuditEvent, at time.Time) error {
	key, ok := f.keys(f.newest)
	if !ok {
		return fmt.Errorf("seals: there is no key of version %d", f.newest)
	}
	if len(events) == 0 || len(events) > MaxEvents {
		return fmt.Errorf("seals: %d events, want 1 to %d", len(events), MaxEvents)
	}
	l := line{Key: f.newest, From: f.Sealed() + 1, To: f.Sealed() + int64(len(events)), At: at.UTC().Truncate(time.Microsecond)}
	kept := newLeaves(key)
	l.Hashes = make([]byte, 0, len(events)*leafSize)
	for i := range events {
		if want := l.From + int64(i); events[i].Seq != want {
			return &Problem{want, fmt.Sprintf("event %d is missing", want)}
		}
		l.Hashes = append(l.Hashes, kept.of(&events[i])...)
	}
	l.MAC = l.seal(key, f.mac)
	text, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("seals: %w", err)
	}
	start, err := f.f.Seek(0, io.SeekCurrent)
	if err == nil {
		_, err = f.f.Write(append(text, '\n'))
	}
	if err == nil {
		err = f.f.Sync()
	}
	if err != nil {
		// Half a line would make the next one unreadable.
		_, serr := f.f.Seek(start, io.SeekStart)
		return errors.Join(fmt.Errorf("seals: %w", err), f.f.Truncate(start), serr)
	}
	f.last, f.mac = &l, l.MAC
	return nil
}

// InPlace reports whether what is written goes to the file that path names, and not to one that was removed or replaced meanwhile.
func (f *File) InPlace(path string) bool {
	open, err := f.f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(path)
	return err == nil && os.SameFile(open, named)
}

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }

// Report is what Check has seen.
type Report struct {
	Seals    int       // in the file
	Sealed   int64     // events that are as they were sealed
	Unsealed int64     // events after them
	At       time.Time // when the last seal was made
	Head     string    // MAC of the last seal, which binds all before it: kept elsewhere, it shows that the file itself was cut off or made anew
}

// Check compares an audit log with the seals of a file. next returns the events in the order of their numbers, io.EOF after the last one. An error that is a [Problem] says
// what is not as it was sealed, and is the first such thing. head is one that was seen before and must be among the seals, "" for none. Seals may be added meanwhile: begin to read the events after the end of in is known.
func Check(in io.Reader, keys Keys, next func() (*core.AuditEvent, error), head string) (Report, error) {
	var rep Report
	r := &reader{in: bufio.NewReader(in), keys: keys}
	through := head == ""
	for {
		l, err := r.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return rep, err
		}
		key, _ := keys(l.Key)
		kept := newLeaves(key)
		for seq := l.From; seq <= l.To; seq++ {
			ev, err := next()
			at := (seq - l.From) * leafSize
			switch {
			case errors.Is(err, io.EOF):
				return rep, &Problem{seq, fmt.Sprintf("event %d is missing, and so is all after it, at least up to event %d: the log was cut off", seq, l.To)}
			case err != nil:
				return rep, err
			case ev.Seq != seq:
				return rep, &Problem{seq, fmt.Sprintf("event %d is missing: it was removed, or its number was changed", seq)}
			case !bytes.Equal(kept.of(ev), l.Hashes[at:at+leafSize]):
				return rep, &Problem{seq, fmt.Sprintf("event %d is not the one that was sealed at %s: it was changed, or another one put in its place", seq, l.At.Format(time.RFC3339))}
			}
			rep.Sealed++
		}
		rep.At, rep.Seals = l.At, r.n
		through = through || base64.StdEncoding.EncodeToString(l.MAC) == head
	}
	if !through {
		return rep, &Problem{Text: "the seals do not go through the head " + head + ": they were cut off, or made anew"}
	}
	rep.Head = base64.StdEncoding.EncodeToString(r.mac)
	for seq := rep.Sealed + 1; ; seq++ {
		ev, err := next()
		if errors.Is(err, io.EOF) {
			return rep, nil
		}
		if err != nil {
			return rep, err
		}
		if ev.Seq != seq {
			return rep, &Problem{seq, fmt.Sprintf("event %d is missing", seq)}
		}
		rep.Unsealed++
	}
}
