package wasm

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
)

// The Go runtime keeps ChaCha8 generators in its memory: one for the program, one for each thread. math/rand, the order of maps and the
// seeds of new maps come from them. They are recognised without symbols, by recomputing their contents: a place counts only if its buffer is the
// generator's block for the seed and counter beside it.

// The layout of internal/chacha8rand.State.
const (
	stateBuffer  = 0   // 32 words of 8 bytes
	stateSeed    = 256 // 32 bytes
	stateNext    = 288 // i: words of the buffer handed out, 4 bytes
	stateCount   = 292 // n: words that may be, 4 bytes
	stateCounter = 296 // c: of the block, 4 bytes
	stateSize    = 300

	blockWords = 32
	seedWords  = 4 // the last block of a seed gives that many words less: they are the next seed
	lastBlock  = 12
)

// generators returns where memory has the state of a generator that other has, too, but seeded otherwise. Those that are seeded alike
// were seeded by the program, on purpose.
func generators(memory, other []byte) (at []uint32) {
	for off := 0; off+stateSize <= len(memory); off += 8 {
		if isGenerator(memory[off:]) && isGenerator(other[off:]) && !bytes.Equal(memory[off+stateSeed:][:32], other[off+stateSeed:][:32]) {
			at = append(at, uint32(off))
		}
	}
	return at
}

func isGenerator(b []byte) bool {
	next := binary.LittleEndian.Uint32(b[stateNext:])
	count := binary.LittleEndian.Uint32(b[stateCount:])
	counter := binary.LittleEndian.Uint32(b[stateCounter:])
	want := uint32(blockWords)
	if counter == lastBlock {
		want -= seedWords
	}
	if count != want || next > count || counter%4 != 0 || counter > lastBlock {
		return false
	}
	var seed [32]byte
	if copy(seed[:], b[stateSeed:]); seed == [32]byte{} {
		return false
	}
	g := rand.NewChaCha8(seed)
	for range counter / 4 * blockWords {
		g.Uint64()
	}
	for i := range count {
		if g.Uint64() != binary.LittleEndian.Uint64(b[stateBuffer+8*i:]) {
			return false
		}
	}
	return true
}

// seedGenerator writes the state of a generator that was just seeded.
func seedGenerator(b []byte, seed [32]byte) {
	g := rand.NewChaCha8(seed)
	for i := range blockWords {
		binary.LittleEndian.PutUint64(b[stateBuffer+8*i:], g.Uint64())
	}
	copy(b[stateSeed:], seed[:])
	binary.LittleEndian.PutUint32(b[stateNext:], 0)
	binary.LittleEndian.PutUint32(b[stateCount:], blockWords)
	binary.LittleEndian.PutUint32(b[stateCounter:], 0)
}
