package wasm

import "fmt"

// maxStack is how deep calls may nest, in bytes of the estimate that frame makes. The engine's own stack for it is of the same order.
const maxStack = 16 << 20

// frame estimates the stack that one call of a function takes: the engine keeps locals and intermediate values in it, and every
// instruction makes at most one value.
func frame(locals, code int) int32 { return int32(128 + 8*locals + code/2) }

// plan is what one pass over a function's code found out, for the pass that rewrites it.
type plan struct {
	calls bool
	loops []uint32 // price of one turn of each loop, in the order of their headers
	entry uint32   // price of everything outside of loops
	depth bool     // the function counts depth
	pays  bool     // the function pays at its entry
}

// function appends the rewritten body of the i-th function to the code section.
func (w *rewriter) function(i int) error {
	body := &w.m.bodies[i]
	typ := w.m.types[w.m.funcs[i]]
	locals := len(typ.params)
	for _, run := range body.locals {
		locals += int(run.count)
	}
	p, err := w.plan(body.code, locals)
	if err != nil {
		return err
	}

	// Two more locals for the inserted code.
	f := &function{w: w, p: p, temp: uint32(locals), length: uint32(locals) + 1}
	f.b = appendU32(make([]byte, 0, len(body.code)*5/4+64), uint32(len(body.locals)+1))
	for _, run := range body.locals {
		f.b = append(appendU32(f.b, run.count), run.typ)
	}
	f.b = append(f.b, 2, typeI32)

	weight := frame(locals, len(body.code))
	switch {
	case p.depth:
		f.enter(p.entry, weight)
		f.b = append(f.b, opBlock)
		switch len(typ.results) {
		case 0:
			f.b = append(f.b, typeEmpty)
		case 1:
			f.b = append(f.b, typ.results[0])
		default:
			f.b = appendSigned(f.b, int64(w.typeIndex(funcType{results: typ.results})))
		}
	case p.pays:
		f.pay(p.entry)
	}
	if err := f.copy(body.code); err != nil {
		return err
	}
	if p.depth {
		// The code's own end closes the block.
		f.op(opGlobalGet, w.depth)
		f.constant(weight)
		f.b = append(f.b, opAdd)
		f.op(opGlobalSet, w.depth)
		f.b = append(f.b, opEnd)
	}
	w.code = append(appendU32(w.code, uint32(len(f.b))), f.b...)
	w.bodies++
	return nil
}

// plan prices a function's code and checks every index in it.
func (w *rewriter) plan(code []byte, locals int) (plan, error) {
	var p plan
	var open []int // for each open block, the loop it is in, -1 for none
	loop := -1
	var total uint32
	r := &reader{b: code}
	for r.left() > 0 {
		in := r.next()
		price := uint32(1)
		if err := w.checkInstr(in, code, locals, len(open)); err != nil {
			return p, err
		}
		switch in.op {
		case opCall, opCallIndirect:
			p.calls = true
			price = leafFree
		case opBlock, opIf:
			open = append(open, loop)
		case opLoop:
			open = append(open, loop)
			p.loops = append(p.loops, 0)
			loop = len(p.loops) - 1
		case opEnd:
			if len(open) > 0 {
				loop = open[len(open)-1]
				open = open[:len(open)-1]
			}
		}
		total++
		if loop >= 0 {
			p.loops[loop] += price
		} else {
			p.entry += price
		}
	}
	p.depth = p.calls
	p.pays = p.calls || total > leafFree || len(p.loops) > 0
	return p, nil
}

// checkInstr checks the indices of one instruction against the original module, and notes what makes it unfit for pooling.
func (w *rewriter) checkInstr(in instr, code []byte, locals, depth int) error {
	m := w.m
	bad := func(what string, n int) error {
		return fmt.Errorf("it refers to %s %d of %d", what, in.index, n)
	}
	switch in.op {
	case opCall, opRefFunc:
		_, err := w.funcIndex(in.index)
		return err
	case opCallIndirect:
		if int(in.index) >= len(m.types) {
			return bad("type", len(m.types))
		}
	case opBlock, opLoop, opIf:
		if t := int32(in.index); t >= 0 && int(t) >= len(m.types) {
			return bad("type", len(m.types))
		}
	case opBr, opBrIf:
		if int64(in.index) > int64(depth) {
			return bad("block", depth)
		}
	case opBrTable:
		r := &reader{b: code[:in.end], off: in.start + 1}
		for range r.u32() + 1 {
			if l := r.u32(); int64(l) > int64(depth) {
				return fmt.Errorf("it branches to block %d of %d", l, depth)
			}
		}
	case opLocalGet, opLocalSet, opLocalTee:
		if int64(in.index) >= int64(locals) {
			return bad("local", locals)
		}
	case opGlobalGet, opGlobalSet:
		if int64(in.index) >= int64(len(m.globals)) {
			return bad("global", len(m.globals))
		}
	case opMemorySize, opMemoryGrow:
		// What takes their place works without a memory, so nobody else would notice.
		if len(m.memories) == 0 {
			return fmt.Errorf("it measures a memory, and has none")
		}
	case opTableSet:
		w.pool("it changes its tables")
	case opPrefixFC:
		switch in.sub {
		case subTableInit, subElemDrop, subTableCopy, subTableGrow, subTableFill:
			w.pool("it changes its tables")
		case subMemoryInit, subDataDrop:
			w.memoryInit = true
		}
	}
	return nil
}

// function is a body under construction.
type function struct {
	w            *rewriter
	p            plan
	b            []byte
	temp, length uint32 // indices of the added locals
}

func (f *function) op(op byte, index uint32) { f.b = appendU32(append(f.b, op), index) }

func (f *function) constant(v int32) { f.b = appendSigned(append(f.b, opI32Const), int64(v)) }

// lower takes the i32 that by pushes from an added global and leaves the new value in temp. Both are signed: below zero is used up.
func (f *function) lower(global uint32, by func()) {
	f.op(opGlobalGet, global)
	by()
	f.b = append(f.b, opSub)
	f.op(opLocalTee, f.temp)
	f.op(opGlobalSet, global)
}

// callCheck calls the host if the i32 on the stack is below zero.
func (f *function) callCheck() {
	f.constant(0)
	f.b = append(f.b, opLtS, opIf, typeEmpty)
	f.op(opCall, f.w.check)
	f.b = append(f.b, opEnd)
}

// pay takes fuel.
func (f *function) pay(price uint32) {
	f.lower(f.w.fuel, func() { f.constant(int32(price)) })
	f.op(opLocalGet, f.temp)
	f.callCheck()
}

// enter takes fuel and depth with one test for both.
func (f *function) enter(price uint32, weight int32) {
	f.lower(f.w.fuel, func() { f.constant(int32(price)) })
	f.op(opLocalGet, f.temp)
	f.lower(f.w.depth, func() { f.constant(weight) })
	f.op(opLocalGet, f.temp)
	f.b = append(f.b, opOr)
	f.callCheck()
}

// payLength takes fuel for the length on the top of the stack, which stays there.
func (f *function) payLength(shift int32) {
	f.op(opLocalTee, f.length)
	f.lower(f.w.fuel, func() {
		f.op(opLocalGet, f.length)
		f.constant(shift)
		f.b = append(f.b, opShrU)
	})
	f.op(opLocalGet, f.temp)
	f.callCheck()
}

// copy appends the code, with what must be changed in it changed. plan has checked it.
func (f *function) copy(code []byte) error {
	w := f.w
	var l labels
	loop := 0
	r := &reader{b: code}
	kept := 0 // the code before it is copied
	flush := func(upTo int) {
		f.b = append(f.b, code[kept:upTo]...)
		kept = upTo
	}
	// replace is flush up to an instruction which something else takes the place of.
	replace := func(in instr) {
		flush(in.start)
		kept = in.end
	}
	for r.left() > 0 {
		in := r.next()
		switch in.op {
		case opBlock, opIf:
			l.push(false)
		case opLoop:
			// The blocks around a loop have no place for what it takes from the stack.
			t := int32(in.index)
			around := l.loops < maxLoops && (t < 0 || len(w.m.types[t].params) == 0)
			l.push(around)
			replace(in)
			f.turn(code[in.start:in.end], f.p.loops[loop], around)
			loop++
		case opEnd:
			if l.pop() {
				flush(in.end)
				f.turned()
			}
		case opBr, opBrIf:
			replace(in)
			f.op(in.op, l.index(in.index))
		case opBrTable:
			replace(in)
			f.op(opBrTable, in.index)
			targets := &reader{b: code[:in.end], off: in.start + 1}
			for range targets.u32() + 1 {
				f.b = appendU32(f.b, l.index(targets.u32()))
			}
		case opReturn:
			if f.p.depth {
				replace(in)
				f.op(opBr, l.depth)
			}
		case opCall, opRefFunc:
			i, err := w.funcIndex(in.index)
			if err != nil {
				return err
			}
			replace(in)
			f.op(in.op, i)
		case opMemorySize:
			replace(in)
			f.op(opGlobalGet, w.pages)
		case opMemoryGrow:
			replace(in)
			f.op(opCall, w.grow)
		case opPrefixFC:
			switch in.sub {
			case subMemoryInit:
				flush(in.start)
				f.payLength(bulkShift)
			case subMemoryCopy, subMemoryFill:
				replace(in)
				f.payLength(bulkShift)
				inPieces := w.fill
				if in.sub == subMemoryCopy {
					inPieces = w.copy
				}
				f.bulk(code[in.start:in.end], inPieces)
			case subTableInit, subTableCopy, subTableGrow, subTableFill:
				flush(in.start)
				f.payLength(tableShift)
			}
		}
	}
	flush(len(code))
	return r.err
}
