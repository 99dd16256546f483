package wasm

// The instructions the rewriter acts on or builds. All others are only stepped over.
const (
	opUnreachable  = 0x00
	opBlock        = 0x02
	opLoop         = 0x03
	opIf           = 0x04
	opElse         = 0x05
	opEnd          = 0x0b
	opBr           = 0x0c
	opBrIf         = 0x0d
	opBrTable      = 0x0e
	opReturn       = 0x0f
	opCall         = 0x10
	opCallIndirect = 0x11
	opSelectTyped  = 0x1c
	opLocalGet     = 0x20
	opLocalSet     = 0x21
	opLocalTee     = 0x22
	opGlobalGet    = 0x23
	opGlobalSet    = 0x24
	opTableGet     = 0x25
	opTableSet     = 0x26
	opI32Load      = 0x28
	opI64Store32   = 0x3e
	opMemorySize   = 0x3f
	opMemoryGrow   = 0x40
	opI32Const     = 0x41
	opI64Const     = 0x42
	opF32Const     = 0x43
	opF64Const     = 0x44
	opLastSimple   = 0xc4 // i64.extend32_s; 0x45 up to here have no immediate
	opRefNull      = 0xd0
	opRefIsNull    = 0xd1
	opRefFunc      = 0xd2
	opPrefixFC     = 0xfc
	opPrefixVector = 0xfd

	// After opPrefixFC.
	subMemoryInit = 8
	subDataDrop   = 9
	subMemoryCopy = 10
	subMemoryFill = 11
	subTableInit  = 12
	subElemDrop   = 13
	subTableCopy  = 14
	subTableGrow  = 15
	subTableSize  = 16
	subTableFill  = 17
)

// Value types.
const (
	typeI32       = 0x7f
	typeI64       = 0x7e
	typeF32       = 0x7d
	typeF64       = 0x7c
	typeV128      = 0x7b
	typeFuncref   = 0x70
	typeExternref = 0x6f
	typeEmpty     = 0x40 // as a block type
)

func validValueType(t byte) bool {
	switch t {
	case typeI32, typeI64, typeF32, typeF64, typeV128, typeFuncref, typeExternref:
		return true
	}
	return false
}

// instr is one decoded instruction. Its bytes are code[start:end].
type instr struct {
	start, end int
	op         byte
	sub        uint32 // the opcode after a prefix byte
	index      uint32 // the first index immediate: function, local, global, label, table, data or element; or br_table's count
}

// next steps over one instruction of a function body. It knows exactly the instructions of WebAssembly 2.0 and fails on any other,
// so that nothing reaches the engine, or slips through the rewriter, that this package does not understand.
func (r *reader) next() (in instr) {
	in.start = r.off
	in.op = r.byte()
	switch op := in.op; {
	case op == opUnreachable || op == 0x01 || op == opElse || op == opEnd || op == opReturn || op == 0x1a || op == 0x1b || op == opRefIsNull:
	case op >= 0x45 && op <= opLastSimple:
	case op == opBlock || op == opLoop || op == opIf:
		in.index = uint32(r.signed(33)) // blockType reads it again where it matters
	case op == opBr || op == opBrIf || op == opCall || op == opRefFunc || op >= opLocalGet && op <= opTableSet:
		in.index = r.u32()
	case op == opBrTable:
		n := r.vec(1, "branch targets")
		in.index = uint32(n)
		for range n + 1 {
			r.u32()
		}
	case op == opCallIndirect:
		in.index = r.u32()
		r.u32()
	case op == opSelectTyped:
		for range r.vec(1, "types of a select") {
			if t := r.byte(); r.err == nil && !validValueType(t) {
				r.failf("unknown value type 0x%02x", t)
			}
		}
	case op >= opI32Load && op <= opI64Store32:
		r.u32()
		r.u32()
	case op == opMemorySize || op == opMemoryGrow:
		if m := r.byte(); m != 0 {
			r.failf("it uses memory %d; there is only memory 0", m)
		}
	case op == opI32Const:
		r.signed(32)
	case op == opI64Const:
		r.signed(64)
	case op == opF32Const:
		r.bytes(4)
	case op == opF64Const:
		r.bytes(8)
	case op == opRefNull:
		if t := r.byte(); r.err == nil && t != typeFuncref && t != typeExternref {
			r.failf("unknown reference type 0x%02x", t)
		}
	case op == opPrefixFC:
		in.sub = r.u32()
		switch {
		case in.sub <= 7: // saturating truncation
		case in.sub == subMemoryInit:
			in.index = r.u32()
			r.memoryZero()
		case in.sub == subMemoryCopy:
			r.memoryZero()
			r.memoryZero()
		case in.sub == subMemoryFill:
			r.memoryZero()
		case in.sub == subTableInit || in.sub == subTableCopy:
			in.index = r.u32()
			r.u32()
		case in.sub == subDataDrop || in.sub == subElemDrop || in.sub >= subTableGrow && in.sub <= subTableFill:
			in.index = r.u32()
		default:
			r.failf("unknown instruction 0xfc 0x%02x", in.sub)
		}
	case op == opPrefixVector:
		in.sub = r.u32()
		r.vectorImmediates(in.sub)
	default:
		r.failf("unknown instruction 0x%02x", op)
	}
	in.end = r.off
	return in
}

func (r *reader) memoryZero() {
	if m := r.byte(); r.err == nil && m != 0 {
		r.failf("it uses memory %d; there is only memory 0", m)
	}
}

func (r *reader) vectorImmediates(sub uint32) {
	switch {
	case sub <= 11 || sub == 92 || sub == 93: // loads, splat and zero loads, store
		r.u32()
		r.u32()
	case sub == 12 || sub == 13: // v128.const, i8x16.shuffle
		r.bytes(16)
	case sub >= 21 && sub <= 34: // extract and replace lane
		r.byte()
	case sub >= 84 && sub <= 91: // load and store lane
		r.u32()
		r.u32()
		r.byte()
	case sub > 255:
		r.failf("unknown instruction 0xfd 0x%x", sub)
	}
}
