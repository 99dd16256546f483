package wasm

import (
	"bytes"
	"fmt"
	"slices"
)

// maxStack is how deep calls may nest, in bytes of the estimate that frame makes. The engine's own stack for it is of the same order.
const maxStack = 16 << 20

// plan is what one pass over a function's code found out, for the pass that rewrites it.
type plan struct {
	entry uint32 // price of everything that no loop pays for
	loops []loop // in the order of their headers
	depth bool   // the function counts depth
	pays  bool   // the function pays at its entry
	frame int32  // how deep one call of it is

	outermost int // the loop, within no other, that the pass is in, -1 for none
}

// function appends the rewritten body of the i-th function to the code section.
func (w *rewriter) function(i int) error {
	body := &w.m.bodies[i]
	typ := w.m.types[w.m.funcs[i]]
	locals := len(typ.params)
	for _, run := range body.locals {
		locals += int(run.count)
	}
	p, err := w.plan(body, locals, typ)
	if err != nil {
		return err
	}

	// Two more locals for the inserted code.
	f := &function{w: w, p: p, index: i, typ: typ, weight: p.frame, temp: uint32(locals), other: uint32(locals) + 1}
	f.b = appendU32(make([]byte, 0, len(body.code)*5/4+64), uint32(len(body.locals)+1))
	for _, run := range body.locals {
		f.b = append(appendU32(f.b, run.count), run.typ)
	}
	f.b = append(f.b, 2, typeI32)
	if len(p.loops) > 0 {
		f.locals = append(f.locals, typ.params...)
		for _, run := range body.locals {
			f.locals = append(f.locals, bytes.Repeat([]byte{run.typ}, int(run.count))...)
		}
	}

	f.enter()
	if err := f.copy(body.code); err != nil {
		return err
	}
	f.left()
	w.code = append(appendU32(w.code, uint32(len(f.b))), f.b...)
	w.bodies++
	return nil
}

// plan prices a function's code and checks every index in it.
func (w *rewriter) plan(body *body, locals int, typ funcType) (plan, error) {
	p, code := plan{outermost: -1}, body.code
	v := values{vectors: hasVector(typ.params) || hasVector(typ.results) || slices.ContainsFunc(body.locals, func(l localRun) bool { return l.typ == typeV128 })}
	var open []int // for each open block, the loop it is in, -1 for none
	at := -1       // the loop this is in
	var total uint32
	var before [2]instr // the last two instructions
	r := &reader{b: code}
	for r.left() > 0 {
		in := r.next()
		price := uint32(1)
		if err := w.checkInstr(in, code, locals, len(open)); err != nil {
			return p, err
		}
		v.step(w, in)
		switch in.op {
		case opCall, opCallIndirect:
			p.depth = true
			price = leafFree
			if at >= 0 {
				p.loops[at].calls = true
			}
		case opLocalSet, opLocalTee:
			if at >= 0 {
				p.loops[at].set(in.index)
			}
		}
		total++
		if at >= 0 {
			p.loops[at].price += price
		} else {
			p.entry += price
		}
		switch in.op {
		case opBlock, opIf:
			open = append(open, at)
		case opLoop:
			open = append(open, at)
			next := loop{}
			if at < 0 {
				next.dispatch = w.dispatch(code, in, len(open))
				p.outermost = len(p.loops)
			}
			at = len(p.loops)
			p.loops = append(p.loops, next)
		case opBr, opBrIf, opBrTable:
			p.branch(code, in, before, len(open))
		case opEnd:
			if n := len(open); n > 0 {
				p.closed(at, open[n-1], n)
				at, open = open[n-1], open[:n-1]
			}
		}
		before = [2]instr{before[1], in}
	}
	p.frame = frame(locals, len(code), v)
	p.depth = p.depth || p.frame > leafFrame
	p.pays = p.depth || total > leafFree || len(p.loops) > 0
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
	w           *rewriter
	p           plan
	index       int // among those the module defines
	typ         funcType
	weight      int32  // of its frame
	locals      []byte // their types; nil if it has no loop
	b           []byte
	temp, other uint32 // indices of the added locals
}

func (f *function) op(op byte, index uint32) { f.b = appendU32(append(f.b, op), index) }

func (f *function) constant(v int32) { f.b = appendSigned(append(f.b, opI32Const), int64(v)) }

// blockType appends the type of a block with results and no parameters.
func (f *function) blockType(results []byte) {
	switch len(results) {
	case 0:
		f.b = append(f.b, typeEmpty)
	case 1:
		f.b = append(f.b, results[0])
	default:
		f.b = appendSigned(f.b, int64(f.w.typeIndex(funcType{results: results})))
	}
}

// lower leaves an added global less what by pushes in a local, and on the stack. Both are signed: below zero is used up.
func (f *function) lower(global, local uint32, by func()) {
	f.op(opGlobalGet, global)
	by()
	f.b = append(f.b, opSub)
	f.op(opLocalTee, local)
}

// take takes fuel, as much as by pushes, and leaves the rest on the stack.
func (f *function) take(by func()) {
	f.lower(f.w.fuel, f.temp, by)
	f.op(opGlobalSet, f.w.fuel)
	f.op(opLocalGet, f.temp)
}

// set sets a global to a local.
func (f *function) set(global, local uint32) {
	f.op(opLocalGet, local)
	f.op(opGlobalSet, global)
}

// branchBelow leaves for a label if the i32 on the stack is below zero.
func (f *function) branchBelow(label uint32) {
	f.constant(0)
	f.b = append(f.b, opLtS)
	f.op(opBrIf, label)
}

// price pushes a price, or maxTurn if that is less.
func (f *function) price(p uint32) func() { return func() { f.constant(int32(min(p, maxTurn))) } }

// callCheck calls the host if the i32 on the stack is below zero.
func (f *function) callCheck() {
	f.constant(0)
	f.b = append(f.b, opLtS, opIf, typeEmpty)
	f.op(opCall, f.w.check)
	f.b = append(f.b, opEnd)
}

// payLength takes fuel for the length on the top of the stack, which stays there.
func (f *function) payLength(shift int32) {
	f.op(opLocalTee, f.other)
	f.take(func() {
		f.op(opLocalGet, f.other)
		f.constant(shift)
		f.b = append(f.b, opShrU)
	})
	f.callCheck()
}

// copy appends the code, with what must be changed in it changed. plan has checked it.
func (f *function) copy(code []byte) error {
	w := f.w
	var l labels
	next := 0          // the loop whose header comes next
	var around []*loop // those that are open and have blocks around them
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
			lp := &f.p.loops[next]
			next++
			// The blocks around a loop have no place for what it takes from the stack.
			apart := lp.asks() && len(around) < maxLoops && !w.takes(in)
			l.push(apart)
			replace(in)
			f.turn(code[in.start:in.end], lp, apart)
			if apart {
				around = append(around, lp)
			}
		case opEnd:
			if l.pop() {
				flush(in.end)
				f.turned(around[len(around)-1])
				around = around[:len(around)-1]
			}
		case opBr, opBrIf:
			replace(in)
			if in.op == opBr && len(around) > 0 {
				f.jump(around[0], in, l.index(in.index))
			}
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
			if in.op == opCall && int(in.index) < w.imported && w.readAt[in.index] >= 0 {
				f.b = w.appendRead(f.b, in.index, f.temp)
				break
			}
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
