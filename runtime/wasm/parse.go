package wasm

import (
	"bytes"
	"fmt"
	"math"
)

// Bounds on a module. Each keeps some quantity of the engine's work or memory proportional to the module's size; all are far above what
// compilers emit. The engine itself has none of them.
const (
	maxTypes        = 50_000
	maxImports      = 1_000
	maxFunctions    = 200_000
	maxTables       = 16
	maxTableEntries = 65_536 // of all tables together
	maxGlobals      = 50_000
	maxExports      = 20_000
	maxElements     = 100_000 // element segments
	maxDataSegments = 400_000 // a Go module of 3 MB has 36,000
	maxFunctionSize = 4 << 20 // bytes of one function
	maxLocals       = 50_000  // declared by one function
	maxAllLocals    = 2_000_000
	maxNesting      = 20_000    // a Go function nests one block per point it can resume at
	maxTargets      = 100_000   // of all branches of one function
	maxJoins        = 4_000_000 // locals times blocks and branches of one function: the engine tracks each local through each
	maxParams       = 1_000     // of one function type, and as many results
	maxPages        = 65_536    // 4 GiB, the end of a 32-bit memory
	pageSize        = 65_536
)

var header = []byte{0, 'a', 's', 'm', 1, 0, 0, 0}

// Section ids.
const (
	secCustom = iota
	secType
	secImport
	secFunction
	secTable
	secMemory
	secGlobal
	secExport
	secStart
	secElement
	secCode
	secData
	secDataCount
)

var sectionNames = [...]string{"custom", "type", "import", "function", "table", "memory", "global", "export", "start", "element", "code", "data", "data count"}

// sectionOrder is the place of each section id in the binary.
var sectionOrder = [...]int{
	secType: 1, secImport: 2, secFunction: 3, secTable: 4, secMemory: 5, secGlobal: 6, secExport: 7, secStart: 8,
	secElement: 9, secDataCount: 10, secCode: 11, secData: 12,
}

// Kinds of imports and exports.
const (
	kindFunc = iota
	kindTable
	kindMemory
	kindGlobal
)

// module is the structure of a binary. Slices of bytes point into the binary and are never written to.
type module struct {
	binary    []byte // all of it
	types     []funcType
	imports   []importDecl
	funcs     []uint32 // type of each function the module defines; their indices follow the imported functions'
	tables    []tableType
	memories  []limits // at most one
	globals   []global
	exports   []export
	byName    map[string]export
	start     *uint32
	elements  []element
	dataCount *uint32
	bodies    []body
	data      []dataSegment
	customs   []custom

	locals int // declared by all functions
}

type funcType struct{ params, results []byte }

type importDecl struct {
	module, name string
	kind         byte
	desc         []byte // as in the binary, kind byte excluded
	typ          uint32 // of a function
}

type limits struct {
	min, max uint32
	hasMax   bool
}

type tableType struct {
	elem byte
	limits
}

type global struct {
	typ     byte
	mutable bool
	init    []byte // constant expression, its end included
}

type export struct {
	name  string
	kind  byte
	index uint32
}

// element is an element segment. Exactly one of funcs and exprs is used.
type element struct {
	flags  uint32
	table  uint32
	offset []byte   // of an active segment
	typ    []byte   // the kind or type byte, when the encoding has one
	funcs  []uint32 // function indices
	exprs  [][]byte // constant expressions
}

type body struct {
	locals []localRun
	code   []byte // instructions, the final end included
}

type localRun struct {
	count uint32
	typ   byte
}

type dataSegment struct {
	passive bool
	offset  []byte // of an active segment
	init    []byte
}

type custom struct {
	name string
	data []byte
}

// parse reads the structure of a binary and checks everything that the engine takes on trust: that no count exceeds the bytes there are,
// that the bounds above hold, that every section and body ends where it says, and that every instruction is a known one. It does not
// check types: the engine's validator does that, on bytes that can no longer hurt it.
//
// Its time and memory are linear in len(binary).
func parse(binary []byte) (*module, error) {
	if len(binary) < len(header) || !bytes.Equal(binary[:4], header[:4]) {
		return nil, fmt.Errorf("it is not a WebAssembly binary: it does not start with the bytes 00 61 73 6d")
	}
	if !bytes.Equal(binary[4:8], header[4:]) {
		return nil, fmt.Errorf("it is not a WebAssembly module of version 1; components are not supported")
	}
	m := &module{binary: binary}
	r := &reader{b: binary, off: len(header)}
	last := 0
	for r.left() > 0 {
		id := r.byte()
		size := r.vec(1, "bytes of a section")
		content := r.bytes(size)
		if r.err != nil {
			return nil, r.err
		}
		if int(id) >= len(sectionNames) {
			return nil, fmt.Errorf("unknown section %d; exceptions, threads and other proposals are not supported", id)
		}
		if id != secCustom {
			if sectionOrder[id] <= last {
				return nil, fmt.Errorf("the %s section is repeated or out of order", sectionNames[id])
			}
			last = sectionOrder[id]
		}
		s := &reader{b: content}
		m.section(id, s)
		if s.err == nil && s.left() > 0 {
			s.failf("%d bytes follow its end", s.left())
		}
		if s.err != nil {
			return nil, fmt.Errorf("%s section: %w", sectionNames[id], s.err)
		}
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *module) section(id byte, r *reader) {
	switch id {
	case secCustom:
		c := custom{name: r.name("custom section's name")}
		c.data = r.bytes(r.left())
		if c.name == "name" && r.err == nil {
			checkNames(c.data, r)
		}
		m.customs = append(m.customs, c)
	case secType:
		for range r.limited(3, maxTypes, "types") {
			m.types = append(m.types, r.funcType())
		}
	case secImport:
		for range r.limited(4, maxImports, "imports") {
			m.imports = append(m.imports, r.importDecl())
		}
	case secFunction:
		for range r.limited(1, maxFunctions, "functions") {
			m.funcs = append(m.funcs, r.u32())
		}
	case secTable:
		for range r.limited(3, maxTables, "tables") {
			m.tables = append(m.tables, r.tableType())
		}
	case secMemory:
		for range r.limited(2, 1, "memories") {
			m.memories = append(m.memories, r.limits(maxPages))
		}
	case secGlobal:
		for range r.limited(4, maxGlobals, "globals") {
			m.globals = append(m.globals, r.global())
		}
	case secExport:
		for range r.limited(3, maxExports, "exports") {
			m.exports = append(m.exports, export{r.name("name of an export"), r.byte(), r.u32()})
		}
	case secStart:
		f := r.u32()
		m.start = &f
	case secElement:
		for range r.limited(2, maxElements, "element segments") {
			m.elements = append(m.elements, r.element())
		}
	case secDataCount:
		n := r.u32()
		m.dataCount = &n
	case secCode:
		for i := range r.limited(3, maxFunctions, "function bodies") {
			b := r.body()
			for _, l := range b.locals {
				m.locals += int(l.count)
			}
			if m.locals > maxAllLocals {
				r.failf("the functions have more than %d locals together", maxAllLocals)
			}
			if r.err != nil {
				r.err = fmt.Errorf("function %d: %w", i, r.err)
				return
			}
			m.bodies = append(m.bodies, b)
		}
	case secData:
		for range r.limited(2, maxDataSegments, "data segments") {
			m.data = append(m.data, r.dataSegment())
			if r.err != nil {
				return
			}
		}
	}
}

func (r *reader) funcType() (t funcType) {
	if c := r.byte(); r.err == nil && c != 0x60 {
		r.failf("a type starts with 0x%02x; only function types are supported", c)
	}
	t.params = r.valueTypes("parameters")
	t.results = r.valueTypes("results")
	return t
}

func (r *reader) valueTypes(what string) []byte {
	b := r.bytes(r.limited(1, maxParams, what))
	for _, t := range b {
		if !validValueType(t) {
			r.failf("unknown value type 0x%02x", t)
		}
	}
	return b
}

func (r *reader) importDecl() (d importDecl) {
	d.module, d.name = r.name("module name of an import"), r.name("name of an import")
	d.kind = r.byte()
	start := r.off
	switch d.kind {
	case kindFunc:
		d.typ = r.u32()
	case kindTable:
		r.tableType()
	case kindMemory:
		r.limits(maxPages)
	case kindGlobal:
		r.bytes(2)
	default:
		r.failf("import of unknown kind %d", d.kind)
	}
	if r.err == nil {
		d.desc = r.b[start:r.off]
	}
	return d
}

func (r *reader) limits(most uint32) (l limits) {
	switch flag := r.byte(); {
	case r.err != nil:
	case flag == 0:
		l.min = r.u32()
	case flag == 1:
		l.min, l.max, l.hasMax = r.u32(), r.u32(), true
	default:
		r.failf("limits with flag 0x%02x; shared and 64-bit memories are not supported", flag)
	}
	if r.err == nil && (l.min > most || l.hasMax && (l.max < l.min || l.max > most)) {
		r.failf("a size of %d to %d is out of range", l.min, l.max)
	}
	return l
}

func (r *reader) tableType() (t tableType) {
	if t.elem = r.byte(); r.err == nil && t.elem != typeFuncref && t.elem != typeExternref {
		r.failf("a table of unknown type 0x%02x", t.elem)
	}
	t.limits = r.limits(math.MaxUint32)
	return t
}

func (r *reader) global() (g global) {
	g.typ = r.byte()
	if r.err == nil && !validValueType(g.typ) {
		r.failf("unknown value type 0x%02x", g.typ)
	}
	switch c := r.byte(); {
	case c == 1:
		g.mutable = true
	case c != 0:
		r.failf("a global is neither constant nor mutable: 0x%02x", c)
	}
	g.init = r.constExpr()
	return g
}

// constExpr steps over a constant expression. Its instructions are those of a function, so an unknown one is refused here, too.
func (r *reader) constExpr() []byte {
	start := r.off
	for n := 0; r.err == nil; n++ {
		in := r.next()
		if r.err == nil && in.op == opEnd {
			return r.b[start:r.off]
		}
		switch in.op {
		case opI32Const, opI64Const, opF32Const, opF64Const, opGlobalGet, opRefNull, opRefFunc, opPrefixVector:
		default:
			r.failf("instruction 0x%02x in a constant expression", in.op)
		}
		if n > 16 {
			r.failf("a constant expression of more than 16 instructions")
		}
	}
	return nil
}

func (r *reader) element() (e element) {
	e.flags = r.u32()
	if e.flags > 7 {
		r.failf("an element segment of unknown kind %d", e.flags)
	}
	passive := e.flags&1 != 0
	if !passive {
		if e.flags&2 != 0 {
			e.table = r.u32()
		}
		e.offset = r.constExpr()
	}
	if e.flags&3 != 0 {
		e.typ = r.bytes(1)
	}
	if e.flags&4 != 0 {
		for range r.limited(2, maxTableEntries, "entries of an element segment") {
			e.exprs = append(e.exprs, r.constExpr())
			if r.err != nil {
				return e
			}
		}
		return e
	}
	for range r.limited(1, maxTableEntries, "entries of an element segment") {
		e.funcs = append(e.funcs, r.u32())
	}
	return e
}

func (r *reader) dataSegment() (d dataSegment) {
	switch flag := r.u32(); {
	case r.err != nil:
	case flag == 0:
		d.offset = r.constExpr()
	case flag == 1:
		d.passive = true
	case flag == 2:
		if r.u32() != 0 {
			r.failf("a data segment for a second memory")
		}
		d.offset = r.constExpr()
	default:
		r.failf("a data segment of unknown kind %d", flag)
	}
	d.init = r.bytes(r.vec(1, "bytes of a data segment"))
	return d
}

func (r *reader) body() (b body) {
	size := r.limited(1, maxFunctionSize, "bytes")
	f := &reader{b: r.bytes(size)}
	if r.err != nil {
		return b
	}
	var locals uint64
	for range f.vec(2, "groups of locals") {
		run := localRun{f.u32(), f.byte()}
		if f.err == nil && !validValueType(run.typ) {
			f.failf("unknown value type 0x%02x", run.typ)
		}
		if locals += uint64(run.count); locals > maxLocals {
			f.failf("it has more than %d locals", maxLocals)
		}
		if f.err != nil {
			break
		}
		b.locals = append(b.locals, run)
	}
	b.code = f.b[f.off:]
	depth, blocks, targets := 1, uint64(1), uint64(0)
	for f.err == nil && depth > 0 {
		switch in := f.next(); in.op {
		case opBlock, opLoop, opIf:
			blocks++
			if depth++; depth > maxNesting {
				f.failf("it nests blocks more than %d deep", maxNesting)
			}
		case opBr, opBrIf:
			targets++
		case opBrTable:
			targets += uint64(in.index) + 1
		case opEnd:
			depth--
		}
	}
	switch {
	case f.err != nil:
	case f.left() > 0:
		f.failf("%d bytes follow its end", f.left())
	case targets > maxTargets:
		f.failf("it has %d branch targets; at most %d are allowed", targets, maxTargets)
	case locals*(blocks+targets) > maxJoins:
		f.failf("it has %d locals and %d blocks and branches; their product may be at most %d", locals, blocks+targets, maxJoins)
	}
	if f.err != nil {
		r.fail(f.err)
	}
	return b
}

// check compares sections with each other, where the engine would otherwise index by a number it has not checked or allocate by one.
func (m *module) check() error {
	if len(m.funcs) != len(m.bodies) {
		return fmt.Errorf("it declares %d functions and has the code of %d", len(m.funcs), len(m.bodies))
	}
	if m.dataCount != nil && int(*m.dataCount) != len(m.data) {
		return fmt.Errorf("it announces %d data segments and has %d", *m.dataCount, len(m.data))
	}
	var entries uint64
	for _, t := range m.tables {
		entries += uint64(t.min)
	}
	if entries > maxTableEntries {
		return fmt.Errorf("its tables have %d entries; at most %d are allowed", entries, maxTableEntries)
	}
	for _, d := range m.imports {
		if d.kind == kindFunc && int(d.typ) >= len(m.types) {
			return fmt.Errorf("import %.100q %.100q has type %d of %d", d.module, d.name, d.typ, len(m.types))
		}
	}
	for i, t := range m.funcs {
		if int(t) >= len(m.types) {
			return fmt.Errorf("function %d has type %d of %d", i, t, len(m.types))
		}
	}
	m.byName = make(map[string]export, len(m.exports))
	for _, e := range m.exports {
		if _, twice := m.byName[e.name]; twice {
			return fmt.Errorf("it exports %.100q twice", e.name)
		}
		m.byName[e.name] = e
	}
	return nil
}

// importedFuncs returns how many functions the module imports, which is the index of the first one it defines.
func (m *module) importedFuncs() int {
	n := 0
	for _, d := range m.imports {
		if d.kind == kindFunc {
			n++
		}
	}
	return n
}

// typeOf returns the type of a function by its index in the module.
func (m *module) typeOf(index uint32) (funcType, bool) {
	i := int(index)
	for _, d := range m.imports {
		if d.kind != kindFunc {
			continue
		}
		if i == 0 {
			return m.types[d.typ], true
		}
		i--
	}
	if i >= len(m.funcs) {
		return funcType{}, false
	}
	return m.types[m.funcs[i]], true
}

// export returns the index of the function that is exported under a name.
func (m *module) export(name string) (uint32, bool) {
	e, ok := m.byName[name]
	return e.index, ok && e.kind == kindFunc
}

// checkNames steps over a name section, which the engine decodes too, and allocates by its counts.
func checkNames(b []byte, parent *reader) {
	r := &reader{b: b}
	for r.left() > 0 && r.err == nil {
		id := r.byte()
		s := &reader{b: r.bytes(r.vec(1, "bytes of a name subsection"))}
		switch id {
		case 0:
			s.name("module's name")
		case 1:
			s.nameMap()
		case 2:
			for range s.vec(2, "functions with local names") {
				s.u32()
				s.nameMap()
				if s.err != nil {
					break
				}
			}
		default:
			continue
		}
		if s.err == nil && s.left() > 0 {
			s.failf("%d bytes follow the end of a name subsection", s.left())
		}
		if s.err != nil {
			r.fail(s.err)
		}
	}
	if r.err != nil {
		parent.fail(r.err)
	}
}

func (r *reader) nameMap() {
	for range r.vec(2, "names") {
		r.u32()
		r.name("name")
		if r.err != nil {
			return
		}
	}
}
