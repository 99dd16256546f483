package wasm

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
)

// addedOutline is a custom section of an outline: the digest of what it is the outline of.
const addedOutline = addedPrefix + "outline"

// outline returns a module that the rewriter made, with every function's code replaced by one instruction, unreachable. The native code was made of the
// whole module, where it was compiled, and lies in the cache under the outline's name: so the engine, which reads and validates what it is given although it has
// the native code, is given next to nothing. An outline must never be compiled: the caller sees to it that the engine finds the file.
func outline(binary []byte) ([]byte, error) {
	r := &reader{b: binary}
	out := append([]byte(nil), r.bytes(len(header))...)
	emit := func(id byte, content []byte) {
		out = append(appendU32(append(out, id), uint32(len(content))), content...)
	}
	for r.err == nil && r.left() > 0 {
		id := r.byte()
		content := r.bytes(int(r.u32()))
		if id == secCode {
			count := (&reader{b: content}).u32()
			content = appendU32(nil, count)
			for range count {
				content = append(content, 3, 0, opUnreachable, opEnd) // bytes, locals, and the code
			}
		}
		emit(id, content)
	}
	sum := sha256.Sum256(binary)
	emit(secCustom, append(appendName(nil, addedOutline), sum[:]...))
	return out, r.err
}

// compileOutlined compiles a module that the rewriter made into an engine cache in dir, under the name of its outline, and returns that. refused is an error of the
// module, failed any other.
func compileOutlined(ctx context.Context, dir string, binary []byte) (small []byte, refused, failed error) {
	whole, err := os.MkdirTemp(dir, "whole-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(whole)
	if refused, failed = compileOnce(withWorkers(ctx, 2), whole, binary); refused != nil || failed != nil {
		return nil, refused, failed
	}
	file, err := onlyFile(whole)
	if err != nil {
		return nil, nil, err
	}
	if small, err = outline(binary); err != nil {
		return nil, nil, err
	}
	// What the engine calls the outline's file, it says by making it.
	named, err := os.MkdirTemp(dir, "named-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(named)
	if refused, failed = compileOnce(ctx, named, small); refused != nil || failed != nil {
		return nil, refused, failed
	}
	name, err := onlyFile(named)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700)
	}
	if err == nil {
		err = os.Rename(filepath.Join(whole, file), filepath.Join(dir, name))
	}
	return small, nil, err
}

// held is a file of native code that is kept open, so that no other can pass for it while the engine reads it by its name.
type held struct {
	*os.File
	path string
}

// there reports whether the file is still what its name leads to. If it is not after the engine has loaded an outline, the engine may have found nothing and
// compiled the outline.
func (h held) there() bool {
	mine, err := h.Stat()
	if err != nil {
		return false
	}
	found, err := os.Stat(h.path)
	return err == nil && os.SameFile(mine, found)
}

var errReplaced = errors.New("the compile cache's entry was taken away while it was read")
