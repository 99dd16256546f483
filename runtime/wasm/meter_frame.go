package wasm

import "slices"

// leafFrame is the estimate of a frame from which a function counts its depth, although it calls no others.
const leafFrame = 4 << 10

// frame estimates the stack that one call of a function takes: the engine keeps there its locals and the values that are needed after a call, of which there are never more at a time
// than the operand stack of WebAssembly holds, beside the arguments and results of calls. A part of the code stands for what the engine computes in between and has no register for.
func frame(locals, code int, v values) int32 {
	size := 8
	if v.vectors {
		size = 16
	}
	return int32(128 + size*(locals+v.most+v.area) + code/2)
}

// values follows how many values are on the operand stack of a function. Where an instruction of the vectors takes more than it is known for, there seem to be more.
type values struct {
	now     int
	most    int
	area    int   // the most arguments and results of one call
	bases   []int // for each open block, how many there were before it
	types   []funcType
	vectors bool // the function has values of 16 bytes
}

// step follows one instruction. Its indices have been checked.
func (v *values) step(w *rewriter, in instr) {
	switch op := in.op; {
	case op == opBlock || op == opLoop || op == opIf:
		if op == opIf {
			v.now--
		}
		t := w.blockType(in)
		v.bases = append(v.bases, max(v.now-len(t.params), v.base()))
		v.types = append(v.types, t)
	case op == opElse && len(v.bases) > 0:
		v.now = v.base() + len(v.types[len(v.types)-1].params)
	case op == opEnd && len(v.bases) > 0:
		last := len(v.bases) - 1
		v.now = v.bases[last] + len(v.types[last].results)
		v.bases, v.types = v.bases[:last], v.types[:last]
	case op == opCall:
		v.call(w.m.types[w.sigs[in.index]])
	case op == opCallIndirect:
		v.now--
		v.call(w.m.types[in.index])
	case op == opGlobalGet:
		v.vectors = v.vectors || w.m.globals[in.index].typ == typeV128
		v.now++
	case op == opPrefixVector:
		v.vectors = true
		v.now += vectorEffect(in.sub)
	default:
		v.now += effect(in)
	}
	v.now = max(v.now, v.base()) // in code that is never reached
	v.most = max(v.most, v.now)
}

func (v *values) call(t funcType) {
	v.area = max(v.area, len(t.params)+len(t.results))
	v.now += len(t.results) - len(t.params)
	v.vectors = v.vectors || hasVector(t.params) || hasVector(t.results)
}

func (v *values) base() int {
	if last := len(v.bases) - 1; last >= 0 {
		return v.bases[last]
	}
	return 0
}

func hasVector(types []byte) bool {
	return slices.Contains(types, typeV128)
}

// blockType returns what a block takes and gives.
func (w *rewriter) blockType(block instr) funcType {
	switch t := int32(block.index); {
	case t >= 0:
		return w.m.types[t]
	case byte(t)&0x7f == typeEmpty:
		return funcType{}
	default:
		return funcType{results: []byte{byte(t) & 0x7f}}
	}
}

// effect is how many values more are on the stack after an instruction that is no block, call or vector's.
func effect(in instr) int {
	switch op := in.op; {
	case op == opLocalGet || op == opMemorySize || op >= opI32Const && op <= opF64Const || op == opRefNull || op == opRefFunc:
		return 1
	case op == opBrIf || op == opBrTable || op == 0x1a || op == opLocalSet || op == opGlobalSet: // and drop
		return -1
	case op == 0x1b || op == opSelectTyped || op == opTableSet || op > 0x35 && op <= opI64Store32: // select, and stores
		return -2
	case op >= 0x46 && op <= 0x4f || op >= 0x51 && op <= 0x66: // comparisons of two
		return -1
	case op >= 0x6a && op <= 0x78 || op >= 0x7c && op <= 0x8a || op >= 0x92 && op <= 0x98 || op >= 0xa0 && op <= 0xa6: // arithmetic with two
		return -1
	case op == opPrefixFC:
		switch in.sub {
		case subMemoryInit, subMemoryCopy, subMemoryFill, subTableInit, subTableCopy, subTableFill:
			return -3
		case subTableGrow:
			return -1
		case subTableSize:
			return 1
		}
	}
	return 0
}

// vectorEffect is the same for instructions of vectors, or more.
func vectorEffect(sub uint32) int {
	switch {
	case sub == 12: // v128.const
		return 1
	case sub == 11 || sub >= 88 && sub <= 91: // stores
		return -2
	case sub == 13 || sub == 14 || sub >= 35 && sub <= 76 || sub >= 78 && sub <= 81 || sub >= 84 && sub <= 87: // with two
		return -1
	}
	return 0
}
