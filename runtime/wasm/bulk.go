package wasm

// Instructions that only what is added needs.
const (
	opEq   = 0x46 // i32.eq
	opLtS  = 0x48 // i32.lt_s
	opLtU  = 0x49 // i32.lt_u
	opGtU  = 0x4b // i32.gt_u
	opLeU  = 0x4d // i32.le_u
	opAdd  = 0x6a // i32.add
	opSub  = 0x6b // i32.sub
	opOr   = 0x72 // i32.or
	opShrU = 0x76 // i32.shr_u
)

// bulk appends a memory.fill or memory.copy whose operands, and its length in f.other, are there: the instruction itself, or, for more than
// bulkPiece bytes, a call of what does it in pieces.
func (f *function) bulk(instruction []byte, inPieces uint32) {
	f.op(opLocalGet, f.other)
	f.constant(bulkPiece)
	f.b = append(f.b, opGtU, opIf)
	f.b = appendSigned(f.b, int64(f.w.typeIndex(bulkType())))
	f.op(opCall, inPieces)
	f.b = append(f.b, opElse)
	f.b = append(f.b, instruction...)
	f.b = append(f.b, opEnd)
}

// bulkBody writes the two bodies. The parameters are a destination, a source or value, and a length.
type bulkBody struct {
	b           []byte
	instruction []byte
}

func (c *bulkBody) op(code ...byte) { c.b = append(c.b, code...) }

func (c *bulkBody) constant(v int32) { c.b = appendSigned(append(c.b, opI32Const), int64(v)) }

// whole does all that is left in one instruction, and returns.
func (c *bulkBody) whole() {
	c.op(opLocalGet, 0, opLocalGet, 1, opLocalGet, 2)
	c.op(c.instruction...)
	c.op(opReturn)
}

// lastPiece does what is left if that is one piece, and returns then.
func (c *bulkBody) lastPiece() {
	c.op(opLocalGet, 2)
	c.constant(bulkPiece)
	c.op(opLeU, opIf, typeEmpty)
	c.whole()
	c.op(opEnd)
}

// move adds to a parameter.
func (c *bulkBody) move(parameter byte, by int32) {
	c.op(opLocalGet, parameter)
	c.constant(by)
	c.op(opAdd, opLocalSet, parameter)
}

// again lets the host look at the clock, and begins the loop's next turn.
func (c *bulkBody) again(check uint32) {
	c.b = appendU32(append(c.b, opCall), check)
	c.op(opBr, 0, opEnd)
}

// fillInPieces is memory.fill of any length.
func (w *rewriter) fillInPieces() []byte {
	c := &bulkBody{b: []byte{0}, instruction: []byte{opPrefixFC, subMemoryFill, 0}}
	// An end beyond 4 GiB is left to the instruction.
	c.op(opLocalGet, 0, opLocalGet, 2, opAdd, opLocalGet, 0, opLtU, opIf, typeEmpty)
	c.whole()
	c.op(opEnd)
	// Like the instruction, trap before anything is written: filling nothing at the end does.
	c.op(opLocalGet, 0, opLocalGet, 2, opAdd)
	c.constant(0)
	c.constant(0)
	c.op(c.instruction...)
	c.op(opLoop, typeEmpty)
	c.lastPiece()
	c.op(opLocalGet, 0, opLocalGet, 1)
	c.constant(bulkPiece)
	c.op(c.instruction...)
	c.move(0, bulkPiece)
	c.move(2, -bulkPiece)
	c.again(w.check)
	return append(c.b, opEnd)
}

// copyInPieces is memory.copy of any length. Places that overlap are copied from the side where nothing is overwritten too early.
func (w *rewriter) copyInPieces() []byte {
	c := &bulkBody{b: []byte{0}, instruction: []byte{opPrefixFC, subMemoryCopy, 0, 0}}
	c.op(opLocalGet, 0, opLocalGet, 2, opAdd, opLocalGet, 0, opLtU)
	c.op(opLocalGet, 1, opLocalGet, 2, opAdd, opLocalGet, 1, opLtU, opOr, opIf, typeEmpty)
	c.whole()
	c.op(opEnd)
	c.op(opLocalGet, 0, opLocalGet, 2, opAdd, opLocalGet, 1, opLocalGet, 2, opAdd)
	c.constant(0)
	c.op(c.instruction...)
	c.op(opLocalGet, 0, opLocalGet, 1, opLeU, opIf, typeEmpty, opLoop, typeEmpty)
	c.lastPiece()
	c.op(opLocalGet, 0, opLocalGet, 1)
	c.constant(bulkPiece)
	c.op(c.instruction...)
	c.move(0, bulkPiece)
	c.move(1, bulkPiece)
	c.move(2, -bulkPiece)
	c.again(w.check)
	c.op(opEnd)
	c.op(opLoop, typeEmpty)
	c.lastPiece()
	c.move(2, -bulkPiece)
	c.op(opLocalGet, 0, opLocalGet, 2, opAdd, opLocalGet, 1, opLocalGet, 2, opAdd)
	c.constant(bulkPiece)
	c.op(c.instruction...)
	c.again(w.check)
	return append(c.b, opEnd)
}
