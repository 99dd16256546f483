package wasm

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"math"
	"slices"
)

// The rewriter gives a module what lets the host bound, freeze and reset it, without the engine's help:
//
//   - fuel: every path through the code pays for its instructions ahead, and asks the host for more when it runs out;
//   - a bound on the depth of calls, in bytes of stack;
//   - a memory size of the host's choosing, so that a memory can shrink again between calls;
//   - its mutable globals exported, its start function and its data left to the host.
//
// It must never make a valid module of an invalid one, or hand a guest an index that reaches what was added: it checks every index it
// passes against the original module.

// rewriterVersion is part of the name of what is cached. It must change with every change of what the rewriter emits, of Info and of
// prepared.
const rewriterVersion = "11"

// What the rewriter adds. Guests can neither import from meterModule nor export names with the prefix.
const (
	meterModule = "keyfire_meter"
	addedPrefix = "__kf_"
	addedFuel   = addedPrefix + "fuel"
	addedDepth  = addedPrefix + "depth"
	addedPages  = addedPrefix + "pages"
	addedStart  = addedPrefix + "start"
	addedRun    = addedPrefix + "run"
	addedGlobal = addedPrefix + "g"      // and the index
	addedOrigin = addedPrefix + "origin" // a custom section: the digest of the original

	meterCheck = "check" // () -> (): fuel or depth is below zero
	meterGrow  = "grow"  // (i32) -> (i32): memory.grow
	meterDone  = "done"  // () -> (): _start returned
	meterAgain = "again" // () -> (i32): the read that gave retryRead
	added      = 4       // imported functions
)

const (
	// leafFree is the size in instructions up to which a function that calls nothing and does not loop pays nothing itself; every call
	// instruction costs as much instead.
	leafFree = 32
	// bulkShift divides the length of a bulk operation on memory to give its price: a unit for 16 bytes.
	bulkShift = 4
	// bulkPiece is the most bytes that one instruction fills or copies. A guest cannot be stopped within an instruction, and 64 MiB that are touched
	// for the first time take tens of milliseconds.
	bulkPiece = 1 << 20
	// tableShift is the same for entries of a table.
	tableShift = 1
	// retryRead is the result by which the host asks the guest to read its input again. It is no errno of WASI's, and no result of input_read's.
	retryRead int32 = -0x6b66
)

// rewritten is a module made ready for the host.
type rewritten struct {
	binary   []byte
	data     []span // what the host writes to memory before it calls anything
	minPages uint32
	maxPages uint32 // by the module's own declaration, or all there can be
	hasStart bool
	isGo     bool  // compiled by Go
	globals  []int // indices of the mutable globals of the original
	hooks    hooks
	// unpoolable says why instances cannot be frozen and reset, "" if they can.
	unpoolable string
}

// span is a run of initial memory.
type span struct {
	offset uint32
	bytes  []byte
}

// rewrite returns the rewritten form of a module that examine accepted. An error means that the module is invalid.
func rewrite(m *module) (*rewritten, error) {
	w := newRewriter(m)
	if err := w.run(); err != nil {
		return nil, err
	}
	return w.out, nil
}

func newRewriter(m *module) *rewriter {
	w := &rewriter{m: m, imported: m.importedFuncs(), out: &rewritten{hooks: m.hooks()}, refreshes: map[string]uint32{}}
	for _, l := range m.memories { // one at most
		w.out.minPages, w.out.maxPages = l.min, maxPages
		if l.hasMax {
			w.out.maxPages = l.max
		}
	}
	return w
}

type rewriter struct {
	m        *module
	imported int      // functions the original imports
	sigs     []uint32 // the types of its functions
	out      *rewritten
	types    []funcType // those of the original and the added ones
	typeOf   map[string]uint32

	check, grow, done   uint32            // indices of the added imports,
	again               uint32            // and of the last one
	fuel, depth, pages  uint32            // indices of the added globals
	reads               []uint32          // the imported functions that read a command's input
	readAt              []int             // for each imported function, its place in reads, or -1
	readWrapper         uint32            // what takes the place of the first of them wherever it is not called directly; the others follow
	rereads             uint32            // what is called to read again, once it is needed
	fill, copy          uint32            // what is called for the bulk operations that are longer than bulkPiece
	refreshes           map[string]uint32 // of behind, by the types of their parameters
	behind              []helper          // what the functions of the module need; it follows all other functions
	code                []byte            // code section under construction
	bodies              int
	memoryInit, passive bool
}

func (w *rewriter) run() error {
	m := w.m
	w.types = append(w.types, m.types...)
	for _, d := range m.imports {
		if d.kind == kindFunc {
			w.sigs = append(w.sigs, d.typ)
		}
	}
	w.sigs = append(w.sigs, m.funcs...)
	w.check, w.grow, w.done, w.again = uint32(w.imported), uint32(w.imported+1), uint32(w.imported+2), uint32(w.imported+3)
	w.fuel = uint32(len(m.globals)) // imported globals are refused
	w.depth, w.pages = w.fuel+1, w.fuel+2
	w.readWrapper = uint32(w.imported + added + len(m.funcs))
	_, frozen := m.export(exportStart) // within its first read; others are entered again
	for i, d := range m.imports {      // all are functions
		at := -1
		if frozen && (d.module == wasiModule && d.name == "fd_read" || d.module == keyfireModule && d.name == "input_read") {
			at = len(w.reads)
			w.reads = append(w.reads, uint32(i))
		}
		w.readAt = append(w.readAt, at)
	}
	w.fill = w.readWrapper + uint32(len(w.reads))
	w.copy = w.fill + 1
	for _, c := range m.customs {
		w.out.isGo = w.out.isGo || c.name == "go:buildid"
	}
	if err := w.checkStructure(); err != nil {
		return err
	}
	for i := range m.bodies {
		if err := w.function(i); err != nil {
			return fmt.Errorf("function %d: %w", i, err)
		}
	}
	for _, d := range m.data {
		w.passive = w.passive || d.passive
	}
	if w.memoryInit || w.passive {
		w.pool("it initialises memory by its own instructions")
	} else if err := w.takeData(); err != nil {
		return err
	}
	w.assemble()
	return nil
}

// pool notes a reason why instances cannot be pooled.
func (w *rewriter) pool(reason string) {
	if w.out.unpoolable == "" {
		w.out.unpoolable = reason
	}
}

func (w *rewriter) funcCount() uint32 { return uint32(w.imported + len(w.m.funcs)) }

// funcIndex renumbers a function.
func (w *rewriter) funcIndex(i uint32) (uint32, error) {
	switch {
	case i >= w.funcCount():
		return 0, fmt.Errorf("it refers to function %d of %d", i, w.funcCount())
	case i >= uint32(w.imported):
		return i + added, nil
	case w.readAt[i] >= 0:
		return w.readWrapper + uint32(w.readAt[i]), nil
	}
	return i, nil
}

// checkStructure checks the indices outside of code.
func (w *rewriter) checkStructure() error {
	m := w.m
	for _, e := range m.exports {
		counts := [...]int{kindFunc: int(w.funcCount()), kindTable: len(m.tables), kindMemory: len(m.memories), kindGlobal: len(m.globals)}
		if int(e.kind) >= len(counts) || int64(e.index) >= int64(counts[e.kind]) {
			return fmt.Errorf("export %.100q refers to what does not exist", e.name)
		}
		if len(e.name) >= len(addedPrefix) && e.name[:len(addedPrefix)] == addedPrefix {
			return fmt.Errorf("it exports %.100q; names that start with %q are reserved", e.name, addedPrefix)
		}
	}
	if m.start != nil {
		t, ok := m.typeOf(*m.start)
		if !ok || len(t.params)+len(t.results) > 0 {
			return fmt.Errorf("its start function does not exist or has the wrong type")
		}
		w.out.hasStart = true
	}
	for i, g := range m.globals {
		if !g.mutable {
			continue
		}
		if g.typ != typeI32 && g.typ != typeI64 && g.typ != typeF32 && g.typ != typeF64 {
			w.pool("it has mutable globals of vector or reference types")
		}
		w.out.globals = append(w.out.globals, i)
	}
	for _, e := range m.elements {
		if int64(e.table) >= int64(len(m.tables)) && e.flags&1 == 0 {
			return fmt.Errorf("an element segment refers to table %d of %d", e.table, len(m.tables))
		}
	}
	return nil
}

// takeData turns the active data segments into spans and leaves none in the binary.
func (w *rewriter) takeData() error {
	if len(w.m.data) > 0 && len(w.m.memories) == 0 {
		return fmt.Errorf("it has data, and no memory for it")
	}
	size := uint64(w.out.minPages) * pageSize
	spans := make([]span, 0, len(w.m.data))
	for _, d := range w.m.data {
		r := &reader{b: d.offset}
		if in := r.next(); in.op != opI32Const || r.byte() != opEnd || r.err != nil {
			return fmt.Errorf("a data segment's offset is not a constant")
		}
		c := &reader{b: d.offset, off: 1}
		offset := uint32(c.signed(32))
		if uint64(offset)+uint64(len(d.init)) > size {
			return fmt.Errorf("a data segment does not fit the memory of %d pages", w.out.minPages)
		}
		if len(d.init) > 0 {
			spans = append(spans, span{offset, d.init})
		}
	}
	w.out.data = joined(spans)
	return nil
}

func (s span) end() uint64 { return uint64(s.offset) + uint64(len(s.bytes)) }

// joined returns spans that make the same memory as the given ones, one after the other, with those that touch or almost touch made one: Go's linker leaves out every
// run of eight zeros, and makes 40,000 segments of a small program. Their order, which is not that of their places, matters only when some overlap; those stay as they are.
// Nothing of the given bytes is kept.
func joined(spans []span) []span {
	const gap = 64
	sorted := slices.Clone(spans)
	slices.SortFunc(sorted, func(a, b span) int { return cmp.Compare(a.offset, b.offset) })
	for i := range sorted[:max(len(sorted)-1, 0)] {
		if sorted[i].end() > uint64(sorted[i+1].offset) {
			for i := range spans {
				spans[i].bytes = bytes.Clone(spans[i].bytes)
			}
			return spans
		}
	}
	var out []span
	for i := 0; i < len(sorted); {
		last := i
		for last+1 < len(sorted) && uint64(sorted[last+1].offset)-sorted[last].end() <= gap {
			last++
		}
		one := span{sorted[i].offset, make([]byte, sorted[last].end()-uint64(sorted[i].offset))}
		for ; i <= last; i++ {
			copy(one.bytes[sorted[i].offset-one.offset:], sorted[i].bytes)
		}
		out = append(out, one)
	}
	return out
}

// typeIndex returns the index of a type, adding it if need be.
func (w *rewriter) typeIndex(t funcType) uint32 {
	key := func(t funcType) string { return string(t.params) + ">" + string(t.results) }
	if w.typeOf == nil {
		w.typeOf = make(map[string]uint32, len(w.types))
		for i, u := range w.types {
			w.typeOf[key(u)] = uint32(i)
		}
	}
	i, ok := w.typeOf[key(t)]
	if !ok {
		i = uint32(len(w.types))
		w.types = append(w.types, t)
		w.typeOf[key(t)] = i
	}
	return i
}

// assemble writes the new binary.
func (w *rewriter) assemble() {
	m := w.m
	none, intToInt := w.typeIndex(funcType{}), w.typeIndex(funcType{params: []byte{typeI32}, results: []byte{typeI32}})
	toInt := w.typeIndex(funcType{results: []byte{typeI32}})
	out := append([]byte(nil), header...)
	emit := func(id byte, content []byte) {
		out = append(out, id)
		out = appendU32(out, uint32(len(content)))
		out = append(out, content...)
	}

	if len(w.reads) > 0 {
		w.reread()
	}
	funcs := w.functions(none)
	w.appendHelpers()

	b := appendU32(nil, uint32(len(w.types)))
	for _, t := range w.types {
		b = append(b, 0x60)
		b = append(appendU32(b, uint32(len(t.params))), t.params...)
		b = append(appendU32(b, uint32(len(t.results))), t.results...)
	}
	emit(secType, b)

	b = appendU32(nil, uint32(len(m.imports)+added))
	for _, d := range m.imports {
		b = append(appendName(appendName(b, d.module), d.name), d.kind)
		b = append(b, d.desc...)
	}
	for _, d := range []struct {
		name string
		typ  uint32
	}{{meterCheck, none}, {meterGrow, intToInt}, {meterDone, none}, {meterAgain, toInt}} {
		b = appendU32(append(appendName(appendName(b, meterModule), d.name), kindFunc), d.typ)
	}
	emit(secImport, b)
	emit(secFunction, funcs)
	if len(m.tables) > 0 {
		emit(secTable, w.tables())
	}
	if len(m.memories) > 0 {
		b = append(appendU32(nil, 1), 1)
		emit(secMemory, appendU32(appendU32(b, w.out.minPages), maxPages)) // the maximum is the host's to look at
	}
	emit(secGlobal, w.globals())
	emit(secExport, w.exports())
	if len(m.elements) > 0 {
		emit(secElement, w.elements())
	}
	if w.memoryInit || w.passive {
		emit(secDataCount, appendU32(nil, uint32(len(m.data))))
	}
	emit(secCode, append(appendU32(nil, uint32(w.bodies)), w.code...))
	if w.memoryInit || w.passive {
		emit(secData, w.data())
	}
	for _, c := range m.customs {
		if c.name == "name" {
			emit(secCustom, append(appendName(nil, "name"), w.names(c.data)...))
		}
	}
	// Modules that differ in what is left out, such as their data, must still differ: the engine shares the code of equal ones, and may give it to the
	// second while the first is not done loading it.
	origin := sha256.Sum256(m.binary)
	emit(secCustom, append(appendName(nil, addedOrigin), origin[:]...))
	w.out.binary = out
}

// functions returns the types of all functions. none is the type of one that takes and returns nothing.
func (w *rewriter) functions(none uint32) []byte {
	b := appendU32(nil, uint32(len(w.m.funcs)+w.helpers()+len(w.behind)))
	for _, t := range w.m.funcs {
		b = appendU32(b, t)
	}
	for _, i := range w.reads {
		b = appendU32(b, w.m.imports[i].typ)
	}
	if len(w.m.memories) > 0 {
		bulk := w.typeIndex(bulkType())
		b = appendU32(appendU32(b, bulk), bulk)
	}
	b = appendU32(b, none) // __kf_run
	for _, h := range w.behind {
		b = appendU32(b, h.typ)
	}
	return b
}

func (w *rewriter) data() []byte {
	b := appendU32(nil, uint32(len(w.m.data)))
	for _, d := range w.m.data {
		if d.passive {
			b = append(b, 1)
		} else {
			b = append(append(b, 0), d.offset...)
		}
		b = append(appendU32(b, uint32(len(d.init))), d.init...)
	}
	return b
}

// helpers is the number of functions added to those of the module.
func (w *rewriter) helpers() int {
	n := 1 + len(w.reads)
	if len(w.m.memories) > 0 {
		n += 2
	}
	return n
}

// appendRead appends a call of an imported function that reads a command's input:
//
//	temp = read(...)
//	temp == retryRead ? reread() : temp
//
// It stands where the call stood. In a function around it, it would take 13 ns of 50 more: the processor does not foresee where one more function
// returns to after the host was called.
func (w *rewriter) appendRead(b []byte, read, temp uint32) []byte {
	b = appendU32(append(b, opCall), read)
	b = appendU32(append(b, opLocalTee), temp)
	b = append(appendSigned(append(b, opI32Const), int64(retryRead)), opEq, opIf, typeI32)
	b = appendU32(append(b, opCall), w.reread())
	b = appendU32(append(b, opElse, opLocalGet), temp)
	return append(b, opEnd)
}

// reread returns the function that reads again for as long as the host says so.
func (w *rewriter) reread() uint32 {
	if w.rereads == 0 {
		// loop { r = again(); if r == retryRead continue }; r
		b := appendU32([]byte{1, 1, typeI32, opLoop, typeEmpty, opCall}, w.again)
		b = appendSigned(append(b, opLocalTee, 0, opI32Const), int64(retryRead))
		b = append(b, opEq, opBrIf, 0, opEnd, opLocalGet, 0, opEnd)
		w.rereads = w.helper(w.typeIndex(funcType{results: []byte{typeI32}}), b)
	}
	return w.rereads
}

// bulkType is the type of what is called for bulk operations.
func bulkType() funcType { return funcType{params: []byte{typeI32, typeI32, typeI32}} }

// appendHelpers adds the bodies of the functions that were added.
func (w *rewriter) appendHelpers() {
	for _, read := range w.reads {
		b := []byte{1, 1, typeI32}
		params := byte(len(w.m.types[w.m.imports[read].typ].params))
		for i := range params {
			b = append(b, opLocalGet, i)
		}
		b = append(w.appendRead(b, read, uint32(params)), opEnd)
		w.code = append(appendU32(w.code, uint32(len(b))), b...)
		w.bodies++
	}
	if len(w.m.memories) > 0 {
		for _, b := range [][]byte{w.fillInPieces(), w.copyInPieces()} {
			w.code = append(appendU32(w.code, uint32(len(b))), b...)
			w.bodies++
		}
	}
	// _start(); done()
	b := []byte{0}
	if start, ok := w.m.export(exportStart); ok {
		// With another signature it is no command's.
		if t, ok := w.m.typeOf(start); ok && t.equal(funcType{}) {
			start, _ = w.funcIndex(start) // checkStructure has seen it
			b = appendU32(append(b, opCall), start)
		}
	}
	b = append(appendU32(append(b, opCall), w.done), opEnd)
	w.code = append(appendU32(w.code, uint32(len(b))), b...)
	w.bodies++
	for _, h := range w.behind {
		w.code = append(appendU32(w.code, uint32(len(h.body))), h.body...)
		w.bodies++
	}
}

// tables writes the tables, each with a maximum such that all together keep to maxTableEntries however they grow.
func (w *rewriter) tables() []byte {
	spare := uint32(maxTableEntries)
	for _, t := range w.m.tables {
		spare -= t.min
	}
	spare /= uint32(len(w.m.tables))
	b := appendU32(nil, uint32(len(w.m.tables)))
	for _, t := range w.m.tables {
		most := t.min + spare
		if t.hasMax {
			most = min(most, t.max)
		}
		b = appendU32(appendU32(append(b, t.elem, 1), t.min), most)
	}
	return b
}

func (w *rewriter) globals() []byte {
	b := appendU32(nil, uint32(len(w.m.globals)+3))
	for _, g := range w.m.globals {
		mutable := byte(0)
		if g.mutable {
			mutable = 1
		}
		b = append(append(b, g.typ, mutable), w.constExpr(g.init)...)
	}
	for range 2 {
		b = append(b, typeI32, 1, opI32Const, 0, opEnd)
	}
	b = append(b, typeI32, 1, opI32Const)
	return append(appendSigned(b, int64(int32(w.out.minPages))), opEnd)
}

// constExpr renumbers functions in a constant expression. An index out of range stays out of range, for the engine to refuse.
func (w *rewriter) constExpr(expr []byte) []byte {
	r := &reader{b: expr}
	var b []byte
	for r.left() > 0 {
		switch in := r.next(); in.op {
		case opRefFunc:
			i, err := w.funcIndex(in.index)
			if err != nil {
				i = math.MaxUint32
			}
			b = appendU32(append(b, opRefFunc), i)
		case opGlobalGet:
			if int64(in.index) >= int64(len(w.m.globals)) {
				in.index = math.MaxUint32
			}
			b = appendU32(append(b, opGlobalGet), in.index)
		default:
			b = append(b, expr[in.start:in.end]...)
		}
	}
	return b
}

func (w *rewriter) exports() []byte {
	n := len(w.m.exports) + len(w.out.globals) + 4
	if w.out.hasStart {
		n++
	}
	b := appendU32(nil, uint32(n))
	add := func(name string, kind byte, index uint32) { b = appendU32(append(appendName(b, name), kind), index) }
	for _, e := range w.m.exports {
		if e.kind == kindFunc {
			e.index, _ = w.funcIndex(e.index) // checkStructure has seen it
		}
		add(e.name, e.kind, e.index)
	}
	for _, i := range w.out.globals {
		add(fmt.Sprint(addedGlobal, i), kindGlobal, uint32(i))
	}
	add(addedFuel, kindGlobal, w.fuel)
	add(addedDepth, kindGlobal, w.depth)
	add(addedPages, kindGlobal, w.pages)
	add(addedRun, kindFunc, w.funcCount()+added+uint32(w.helpers()-1))
	if w.out.hasStart {
		start, _ := w.funcIndex(*w.m.start)
		add(addedStart, kindFunc, start)
	}
	return b
}

func (w *rewriter) elements() []byte {
	b := appendU32(nil, uint32(len(w.m.elements)))
	for _, e := range w.m.elements {
		b = appendU32(b, e.flags)
		if e.flags&1 == 0 {
			if e.flags&2 != 0 {
				b = appendU32(b, e.table)
			}
			b = append(b, w.constExpr(e.offset)...)
		}
		b = append(b, e.typ...)
		if e.flags&4 != 0 {
			b = appendU32(b, uint32(len(e.exprs)))
			for _, x := range e.exprs {
				b = append(b, w.constExpr(x)...)
			}
			continue
		}
		b = appendU32(b, uint32(len(e.funcs)))
		for _, f := range e.funcs {
			i, err := w.funcIndex(f)
			if err != nil {
				i = math.MaxUint32
			}
			b = appendU32(b, i)
		}
	}
	return b
}

// names renumbers the function names of a name section, so that traces stay readable, and drops the rest of it.
func (w *rewriter) names(section []byte) []byte {
	var out []byte
	r := &reader{b: section}
	for r.left() > 0 {
		id := r.byte()
		content := r.bytes(int(r.u32()))
		if id != 1 {
			continue
		}
		s := &reader{b: content}
		n := s.u32()
		b := appendU32(nil, n)
		for range n {
			i := s.u32()
			if i >= uint32(w.imported) {
				i += added
			}
			b = appendName(appendU32(b, i), s.name("name"))
		}
		out = append(append(append(out, 1), appendU32(nil, uint32(len(b)))...), b...)
	}
	return out
}
