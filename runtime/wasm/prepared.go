package wasm

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A module that was loaded once is kept in its rewritten form too, with what was found out about it, so that loading it again, after a
// restart or an eviction, neither parses nor rewrites it: for a module of 3 MB that is most of the time. The file lies beside the record of the
// native code and is authenticated in the same way.
//
//	<dir>/prepared/<module>-<kind>   MAC; length of the head, 4 bytes; head; offset and length of each span, 4 bytes each; binary; initial data
//
// It is written to be read with few allocations: a server that loads many modules one after the other would otherwise be mostly garbage. The initial data of a
// Go program are thousands of spans, which as JSON would take longer to read than everything else.

// prepared is the head of such a file, in JSON. Its fields are those of rewritten and Info that loading needs.
type prepared struct {
	Info       Info
	Binary     int // bytes
	Spans      int
	MinPages   uint32
	MaxPages   uint32
	HasStart   bool
	IsGo       bool
	Globals    []int
	Hooks      hooks
	Unpoolable string
}

// spanSize is how many bytes say where a span lies.
const spanSize = 8

func (a *artifacts) preparedPath(digest string) string {
	return filepath.Join(a.dir, "prepared", strings.TrimPrefix(digest, "sha256:")+"-"+a.kind)
}

// keep stores the rewritten form of a module, beside its native code.
func (a *artifacts) keep(info Info, rw *rewritten, code held) error {
	p := prepared{
		Info: info, Binary: len(rw.binary), Spans: len(rw.data), MinPages: rw.minPages, MaxPages: rw.maxPages, HasStart: rw.hasStart, IsGo: rw.isGo,
		Globals: rw.globals, Hooks: rw.hooks, Unpoolable: rw.unpoolable,
	}
	head, err := json.Marshal(p)
	if err != nil {
		return err
	}
	b := make([]byte, sha256.Size, sha256.Size+4+len(head)+spanSize*len(rw.data)+len(rw.binary))
	b = append(binary.LittleEndian.AppendUint32(b, uint32(len(head))), head...)
	for _, s := range rw.data {
		b = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, s.offset), uint32(len(s.bytes)))
	}
	b = append(b, rw.binary...)
	for _, s := range rw.data {
		b = append(b, s.bytes...)
	}
	copy(b, a.preparedMAC(info.Digest, b[sha256.Size:]))
	to := a.preparedPath(info.Digest)
	if err := privateDir(filepath.Dir(to)); err != nil {
		return err
	}
	if err := a.makeRoom(int64(len(b)), code.path, a.recordPath(info.Digest)); err != nil {
		return err
	}
	f, err := os.CreateTemp(a.dir, "tmp-") // mode 0600; a rename makes it appear in full
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// weigh returns how many bytes a module has, false if its rewritten form is not kept. Nothing has authenticated that number.
func (a *artifacts) weigh(digest string) (int64, bool) {
	f, err := os.Open(a.preparedPath(digest))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	var size [sha256.Size + 4]byte
	if _, err := io.ReadFull(f, size[:]); err != nil {
		return 0, false
	}
	var p prepared
	err = json.NewDecoder(io.LimitReader(f, int64(binary.LittleEndian.Uint32(size[sha256.Size:])))).Decode(&p)
	return p.Info.Size, err == nil && p.Info.Size > 0
}

// kept returns the rewritten form of a module, errNoArtifact if it is not there. A file that is not as it was written is removed.
func (a *artifacts) kept(digest string) (Info, *rewritten, error) {
	path := a.preparedPath(digest)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Info{}, nil, errNoArtifact
	}
	if err != nil {
		return Info{}, nil, err
	}
	var rw *rewritten
	var info Info
	switch {
	case len(b) < sha256.Size || !hmac.Equal(b[:sha256.Size], a.preparedMAC(digest, b[sha256.Size:])):
		err = errors.New("the kept form of a module is not what was written")
	default:
		info, rw, err = decodePrepared(b[sha256.Size:])
	}
	if err == nil && info.Digest != digest {
		err = fmt.Errorf("it is of module %s", info.Digest)
	}
	if err != nil {
		return Info{}, nil, errors.Join(err, os.Remove(path))
	}
	a.used(path)
	return info, rw, nil
}

var errShortArtifact = errors.New("the kept form of a module ends early")

// decodePrepared reads what follows the MAC, which has been checked. The binary is a part of b; the rest is not.
func decodePrepared(b []byte) (Info, *rewritten, error) {
	take := func(n int) (part []byte, err error) {
		if n < 0 || n > len(b) {
			return nil, errShortArtifact
		}
		part, b = b[:n], b[n:]
		return part, nil
	}
	size, err := take(4)
	if err != nil {
		return Info{}, nil, err
	}
	head, err := take(int(binary.LittleEndian.Uint32(size)))
	if err != nil {
		return Info{}, nil, err
	}
	var p prepared
	if err := json.Unmarshal(head, &p); err != nil {
		return Info{}, nil, err
	}
	rw := &rewritten{
		minPages: p.MinPages, maxPages: p.MaxPages, hasStart: p.HasStart, isGo: p.IsGo, globals: p.Globals,
		hooks: p.Hooks, unpoolable: p.Unpoolable,
	}
	if p.Spans < 0 || p.Spans > len(b)/spanSize {
		return Info{}, nil, errShortArtifact
	}
	spans, err := take(p.Spans * spanSize)
	if err != nil {
		return Info{}, nil, err
	}
	if rw.binary, err = take(p.Binary); err != nil {
		return Info{}, nil, err
	}
	b = bytes.Clone(b)
	rw.data = make([]span, p.Spans)
	for i := range rw.data {
		at := spans[i*spanSize:]
		part, err := take(int(binary.LittleEndian.Uint32(at[4:])))
		if err != nil {
			return Info{}, nil, err
		}
		rw.data[i] = span{binary.LittleEndian.Uint32(at), part}
	}
	return p.Info, rw, nil
}

func (a *artifacts) preparedMAC(digest string, content []byte) []byte {
	h := hmac.New(sha256.New, a.key)
	fmt.Fprintf(h, "keyfire prepared module\x00%s\x00%s\x00", a.kind, digest)
	h.Write(content)
	return h.Sum(nil)
}
