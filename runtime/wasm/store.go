package wasm

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// artifacts is the cache directory: compiled modules on disk, each with a record that proves that this server's compiler made it. The
// engine executes what it finds in its files and checks no more than a CRC, so nothing is handed to it without a valid record.
//
//	<dir>/engine/<version>/<key>   native code, as the engine names and reads it; the name is that of the module's outline (outline.go)
//	<dir>/records/<module>-<kind>  which file that is, and the MAC over its name and content
//	<dir>/tmp-*                    compilations under way
//	<dir>.key                      the key of the MACs
type artifacts struct {
	dir  string
	key  []byte
	kind string // of engine and processor; artifacts of another kind are not found
	most int64  // bytes; 0 is any number
}

// record is the JSON form of a file in <dir>/records.
type record struct {
	File string `json:"file"` // below <dir>/engine
	MAC  string `json:"mac"`
}

const keySize = 32

// openArtifacts prepares the cache directory.
func openArtifacts(ctx context.Context, dir string, most int64) (*artifacts, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	a := &artifacts{dir: dir, most: most}
	for _, d := range []string{dir, a.engine(), filepath.Join(dir, "records")} {
		if err := privateDir(d); err != nil {
			return nil, err
		}
	}
	if err := a.sweep(); err != nil {
		return nil, err
	}
	if a.key, err = loadKey(dir + ".key"); err != nil {
		return nil, err
	}
	a.kind, err = a.probe(ctx)
	return a, err
}

// privateDir makes sure that dir exists and that only its owner may use it.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700) //nolint:gosec // a directory, which its owner must be able to enter
}

// loadKey reads the key of the MACs, making it on first use.
func loadKey(path string) ([]byte, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := makeKey(path); err != nil {
			return nil, err
		}
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be used by others than its owner (mode %04o); make it 0600", path, st.Mode().Perm())
	}
	key, err := os.ReadFile(path)
	if err == nil && len(key) != keySize {
		err = fmt.Errorf("%s has %d bytes, want %d; remove it to start with an empty cache", path, len(key), keySize)
	}
	return key, err
}

// makeKey writes a new key to path, unless another process was faster. A link makes the file appear with all its bytes.
func makeKey(path string) error {
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (a *artifacts) engine() string { return filepath.Join(a.dir, "engine") }

func (a *artifacts) recordPath(digest string) string {
	return filepath.Join(a.dir, "records", strings.TrimPrefix(digest, "sha256:")+"-"+a.kind)
}

// sweep removes what compilations left behind that were cut off by the end of their server. One that is under way, in another Runtime, is
// younger.
func (a *artifacts) sweep() error {
	found, err := filepath.Glob(filepath.Join(a.dir, scratchPattern))
	if err != nil {
		return err
	}
	for _, d := range found {
		if st, err := os.Stat(d); err == nil && time.Since(st.ModTime()) > 4*childWall {
			if err := os.RemoveAll(d); err != nil {
				return err
			}
		}
	}
	return nil
}

// scratch makes a directory for a compilation. The caller removes it.
func (a *artifacts) scratch() (string, error) { return os.MkdirTemp(a.dir, scratchPattern) }

const scratchPattern = "tmp-*"

// probe finds out what the engine calls its files on this machine. The name of a module's file depends on the engine's version, its
// settings and the processor's features; that of one fixed module therefore tells whether all those are as they were. The rewriter's version
// is added to it. On a full disk it is found out elsewhere, in memory if need be, for a server must start there too.
func (a *artifacts) probe(ctx context.Context) (string, error) {
	var errs []error
	for _, parent := range []string{a.dir, os.TempDir(), "/dev/shm"} {
		file, err := probeIn(ctx, parent)
		if err == nil {
			sum := sha256.Sum256([]byte(file + "\x00" + rewriterVersion))
			return hex.EncodeToString(sum[:8]), nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("probe the engine: %w", errs[0])
}

// probeIn returns the name of the fixed module's file, which it makes in a directory below parent that it removes.
func probeIn(ctx context.Context, parent string) (string, error) {
	dir, err := os.MkdirTemp(parent, scratchPattern)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	refused, failed := compileOnce(ctx, dir, probeModule)
	if err := errors.Join(refused, failed); err != nil {
		return "", err
	}
	return onlyFile(dir)
}

// probeModule has one function, which does nothing.
var probeModule = []byte("\x00asm\x01\x00\x00\x00" + "\x01\x04\x01\x60\x00\x00" + "\x03\x02\x01\x00" + "\x0a\x04\x01\x02\x00\x0b")

// onlyFile returns the path, relative to dir, of the one file in dir and the folders below it.
func onlyFile(dir string) (string, error) {
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if !d.Type().IsRegular() {
				return fmt.Errorf("%s is not a regular file", path)
			}
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("the compiler left %d files, want 1", len(found))
	}
	return filepath.Rel(dir, found[0])
}

// adopt takes what was compiled in a scratch directory into the cache, records it, and returns its file, open.
func (a *artifacts) adopt(digest, scratch string) (_ held, err error) {
	file, err := onlyFile(scratch)
	if err != nil {
		return held{}, err
	}
	code := held{path: filepath.Join(a.engine(), file)}
	if code.File, err = os.Open(filepath.Join(scratch, file)); err != nil {
		return held{}, err
	}
	defer func() {
		if err != nil {
			code.Close()
		}
	}()
	st, err := code.Stat()
	if err != nil {
		return held{}, err
	}
	mac, err := a.mac(digest, file, code)
	if err != nil {
		return held{}, err
	}
	if err := a.makeRoom(st.Size()); err != nil {
		return held{}, err
	}
	if err := privateDir(filepath.Dir(code.path)); err != nil {
		return held{}, err
	}
	if err := os.Rename(filepath.Join(scratch, file), code.path); err != nil {
		return held{}, err
	}
	b, err := json.Marshal(record{File: file, MAC: hex.EncodeToString(mac)})
	if err != nil {
		return held{}, err
	}
	// By way of a rename, so that a record is there in full or not at all.
	tmp := filepath.Join(scratch, "record")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return held{}, err
	}
	return code, os.Rename(tmp, a.recordPath(digest))
}

var errNoArtifact = errors.New("not in the compile cache")

// verify checks that the cache holds the compiled form of a module and that it is as it was recorded, and returns its file, open. Otherwise it makes sure that
// the engine will not find it, and returns an error, errNoArtifact when there simply is none.
func (a *artifacts) verify(digest string) (_ held, err error) {
	b, err := os.ReadFile(a.recordPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return held{}, errNoArtifact
	}
	if err != nil {
		return held{}, err
	}
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil || !filepath.IsLocal(rec.File) {
		return held{}, errors.Join(errors.New("the compile cache's record is damaged"), os.Remove(a.recordPath(digest)))
	}
	path := filepath.Join(a.engine(), rec.File)
	file, err := os.Open(path)
	if err == nil {
		var want []byte
		want, err = a.mac(digest, rec.File, file)
		if got, _ := hex.DecodeString(rec.MAC); err == nil && hmac.Equal(got, want) {
			a.used(path, a.recordPath(digest))
			return held{file, path}, nil
		}
		file.Close()
	}
	removed := os.Remove(path)
	if errors.Is(removed, fs.ErrNotExist) {
		removed = nil
	}
	return held{}, errors.Join(errors.New("the compile cache's entry is not what was recorded"), err, removed, os.Remove(a.recordPath(digest)))
}

// mac authenticates a file's content as the compiled form of a module.
func (a *artifacts) mac(digest, name string, content io.Reader) ([]byte, error) {
	h := hmac.New(sha256.New, a.key)
	fmt.Fprintf(h, "keyfire compiled module\x00%s\x00%s\x00%s\x00", a.kind, digest, name)
	if _, err := io.Copy(h, content); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}
