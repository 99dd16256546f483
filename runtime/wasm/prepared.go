package wasm

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A module that was loaded once is kept in its rewritten form too, with what was found out about it, so that loading it again, after a
// restart or an eviction, neither parses nor rewrites it: for a module of 3 MB that is most of the time. The file lies beside the record of the
// native code and is authenticated in the same way.
//
//	<dir>/prepared/<module>-<kind>   MAC, then a prepared in gob

// prepared is what such a file holds. Its fields are those of rewritten and Info that loading needs.
type prepared struct {
	Info       Info
	Binary     []byte
	Data       []preparedSpan
	MinPages   uint32
	MaxPages   uint32
	HasStart   bool
	IsGo       bool
	Globals    []int
	Hooks      hooks
	Unpoolable string
}

type preparedSpan struct {
	Offset uint32
	Bytes  []byte
}

func (a *artifacts) preparedPath(digest string) string {
	return filepath.Join(a.dir, "prepared", strings.TrimPrefix(digest, "sha256:")+"-"+a.kind)
}

// keep stores the rewritten form of a module.
func (a *artifacts) keep(info Info, rw *rewritten) error {
	p := prepared{
		Info: info, Binary: rw.binary, MinPages: rw.minPages, MaxPages: rw.maxPages, HasStart: rw.hasStart, IsGo: rw.isGo,
		Globals: rw.globals, Hooks: rw.hooks, Unpoolable: rw.unpoolable,
	}
	for _, s := range rw.data {
		p.Data = append(p.Data, preparedSpan{s.offset, s.bytes})
	}
	var b bytes.Buffer
	b.Write(make([]byte, sha256.Size))
	if err := gob.NewEncoder(&b).Encode(p); err != nil {
		return err
	}
	copy(b.Bytes(), a.preparedMAC(info.Digest, b.Bytes()[sha256.Size:]))
	to := a.preparedPath(info.Digest)
	if err := privateDir(filepath.Dir(to)); err != nil {
		return err
	}
	f, err := os.CreateTemp(a.dir, "tmp-") // mode 0600; a rename makes it appear in full
	if err != nil {
		return err
	}
	_, err = f.Write(b.Bytes())
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
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
	var p prepared
	switch {
	case len(b) < sha256.Size || !hmac.Equal(b[:sha256.Size], a.preparedMAC(digest, b[sha256.Size:])):
		err = errors.New("the kept form of a module is not what was written")
	default:
		err = gob.NewDecoder(bytes.NewReader(b[sha256.Size:])).Decode(&p)
	}
	if err == nil && p.Info.Digest != digest {
		err = fmt.Errorf("it is of module %s", p.Info.Digest)
	}
	if err != nil {
		return Info{}, nil, errors.Join(err, os.Remove(path))
	}
	rw := &rewritten{
		binary: p.Binary, minPages: p.MinPages, maxPages: p.MaxPages, hasStart: p.HasStart, isGo: p.IsGo, globals: p.Globals,
		hooks: p.Hooks, unpoolable: p.Unpoolable,
	}
	for _, s := range p.Data {
		rw.data = append(rw.data, span{s.Offset, s.Bytes})
	}
	return p.Info, rw, nil
}

func (a *artifacts) preparedMAC(digest string, content []byte) []byte {
	h := hmac.New(sha256.New, a.key)
	fmt.Fprintf(h, "keyfire prepared module\x00%s\x00%s\x00", a.kind, digest)
	h.Write(content)
	return h.Sum(nil)
}
