package wasm

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// reader reads a WebAssembly binary from front to back. It never allocates by a count it has read: vec refuses one that the bytes left
// cannot hold, which is the whole difference between a malformed module and an exhausted server.
//
// The first error sticks: later reads return zero values, so that callers may check once for a group of reads.
type reader struct {
	b   []byte
	off int // of the next byte, within b
	err error
}

var errTruncated = errors.New("it ends in the middle")

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
		r.off = len(r.b)
	}
}

func (r *reader) failf(format string, args ...any) { r.fail(fmt.Errorf(format, args...)) }

func (r *reader) left() int { return len(r.b) - r.off }

func (r *reader) byte() byte {
	if r.off >= len(r.b) {
		r.fail(errTruncated)
		return 0
	}
	c := r.b[r.off]
	r.off++
	return c
}

func (r *reader) bytes(n int) []byte {
	if n < 0 || n > r.left() {
		r.fail(errTruncated)
		return nil
	}
	b := r.b[r.off : r.off+n : r.off+n]
	r.off += n
	return b
}

// u32 reads an unsigned LEB128 number of at most 32 bits and 5 bytes.
func (r *reader) u32() uint32 {
	// Most numbers in a module are below 128.
	if r.off < len(r.b) && r.b[r.off] < 0x80 {
		r.off++
		return uint32(r.b[r.off-1])
	}
	var v uint32
	for shift := 0; shift < 35; shift += 7 {
		c := r.byte()
		if shift == 28 && c > 0x0f {
			r.failf("a number does not fit 32 bits")
			return 0
		}
		v |= uint32(c&0x7f) << shift
		if c < 0x80 {
			return v
		}
	}
	return 0
}

// signed reads a signed LEB128 number of at most the given bits.
func (r *reader) signed(bits int) int64 {
	var v int64
	var shift int
	for {
		c := r.byte()
		if r.err != nil {
			return 0
		}
		if rest := bits - shift; rest < 7 {
			// Bits beyond the width must all repeat the sign.
			if top := int8(c<<1) >> rest; c >= 0x80 || (top != 0 && top != -1) {
				r.failf("a number does not fit %d bits", bits)
				return 0
			}
		}
		v |= int64(c&0x7f) << shift
		shift += 7
		if c < 0x80 {
			if shift < 64 && c&0x40 != 0 {
				v |= -1 << shift
			}
			return v
		}
		if shift >= bits {
			r.failf("a number does not fit %d bits", bits)
			return 0
		}
	}
}

// vec reads the count of a vector whose elements take at least size bytes each.
func (r *reader) vec(size int, what string) int {
	n := r.u32()
	if r.err == nil && uint64(n)*uint64(size) > uint64(r.left()) {
		r.failf("it declares %d %s in the %d bytes left", n, what, r.left())
		return 0
	}
	return int(n)
}

// limited is vec with an upper bound of our own.
func (r *reader) limited(size, limit int, what string) int {
	n := r.vec(size, what)
	if n > limit {
		r.failf("it has %d %s; at most %d are allowed", n, what, limit)
		return 0
	}
	return n
}

func (r *reader) name(what string) string {
	b := r.bytes(r.vec(1, "bytes of "+what))
	if r.err == nil && !utf8.Valid(b) {
		r.failf("a %s is not valid UTF-8", what)
		return ""
	}
	return string(b)
}

// Encoders, for the rewriter.

func appendU32(b []byte, v uint32) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

func appendSigned(b []byte, v int64) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if (v == 0 && c&0x40 == 0) || (v == -1 && c&0x40 != 0) {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

func appendName(b []byte, s string) []byte { return append(appendU32(b, uint32(len(s))), s...) }
