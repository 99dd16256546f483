package wasm

import (
	"encoding/binary"
	"math"
)

// A generator of whole programs: valid modules that end, made from bytes, so that what a fuzzer finds can be made smaller. They use all that the intake
// lets in: calls of both kinds, every kind of block and branch, memory near its bounds, growth, bulk operations, tables and references, vectors, traps,
// data and element segments of every kind, a start function.

// choices are the bytes a program is made from. When they are used up every choice is the first, which is always the shortest.
type choices struct{ b []byte }

func (c *choices) n(k int) int {
	if k <= 1 || len(c.b) == 0 {
		return 0
	}
	v := int(c.b[0])
	c.b = c.b[1:]
	if k > 256 && len(c.b) > 0 {
		v |= int(c.b[0]) << 8
		c.b = c.b[1:]
	}
	return v % k
}

// rarely is true once in so many times.
func (c *choices) rarely(times int) bool { return c.n(times) == times-1 }

type madeTable struct {
	elem     byte
	min, max uint32
}

type madeGlobal struct {
	typ     byte
	mutable bool
	init    []byte
}

// madeSlot is an entry of a table in which a function surely is when the program starts.
type madeSlot struct{ table, slot, fn int }

// maker makes one module.
type maker struct {
	*choices
	types    []funcType
	imports  []importDecl
	funcs    []uint32 // types of all functions, imported ones first
	globals  []madeGlobal
	tables   []madeTable
	slots    []madeSlot
	elements []byte // of elems segments, without their count
	elems    int
	elemType []byte // of each segment
	data     [][]byte
	memMin   int
	memMax   int // -1 for none
	door     Door
	start    bool // has a start function
	entry    int  // its index
	vectors  bool // mutable globals may be vectors and references
	moves    bool // tables change
	passive  bool // memory is initialised by instructions
	padded   bool // indices are written in five bytes, as linkers do
	left     int  // instructions that may still be made
	clocks   bool // imports what looks at the deadline by itself
}

// Globals 0 and 1 see to it that programs end: they enter functions and turn loops until the first is used up, and fill it up once.
const (
	ticks = iota
	began
)

// madePages is the most pages that programs grow to, by the host's limit where they have none of their own.
const madePages = 24

var numbers = []byte{typeI32, typeI64, typeF32, typeF64}

// makeProgram makes a module from bytes.
func makeProgram(b []byte) *maker {
	m := &maker{choices: &choices{b}, door: DoorReactor, memMin: 1, memMax: -1}
	if m.rarely(3) {
		m.door = DoorCommand
	}
	m.vectors, m.moves, m.passive, m.padded = m.rarely(8), m.rarely(4), m.rarely(6), m.rarely(5)
	m.left = 30 + m.n(128)
	m.makeTypes()
	m.makeMemory()
	m.makeFuncs()
	m.makeGlobals()
	m.makeTables()
	m.makeData()
	return m
}

func (m *maker) valueType() byte {
	if m.rarely(6) {
		return []byte{typeV128, typeFuncref, typeExternref}[m.n(3)]
	}
	return numbers[m.n(len(numbers))]
}

func (m *maker) makeTypes() {
	m.types = []funcType{
		{},
		{params: []byte{typeI32}, results: []byte{typeI32}},
		{params: []byte{typeI32, typeI32}, results: []byte{typeI32}},
		{params: []byte{typeI32, typeI32, typeI32}, results: []byte{typeI32}},
		{params: []byte{typeI32, typeI32, typeI32, typeI32}, results: []byte{typeI32}},
		{params: []byte{typeI32}},
		{results: []byte{typeI32}},
	}
	for range m.n(7) {
		var t funcType
		for range m.n(4) {
			t.params = append(t.params, m.valueType())
		}
		for range m.n(4) {
			t.results = append(t.results, m.valueType())
		}
		m.types = append(m.types, t) // perhaps one that is there
	}
}

func (m *maker) makeMemory() {
	if m.rarely(3) {
		m.memMin = m.n(4)
	}
	if m.rarely(24) {
		m.memMin = 17 + m.n(4) // where bulk operations are done in pieces
	}
	if !m.rarely(3) {
		m.memMax = min(m.memMin+m.n(4), madePages)
	}
}

func (m *maker) makeFuncs() {
	kinds := []struct {
		module, name string
		typ          uint32
	}{{keyfireModule, "input_read", 3}, {keyfireModule, "output_write", 2}, {wasiModule, "sched_yield", 6}, {wasiModule, "fd_read", 4}, {wasiModule, "fd_write", 4}, {wasiModule, "proc_exit", 5}}
	for i := range 1 + m.n(4) {
		k := kinds[m.n(len(kinds))]
		if i == 0 && m.door == DoorCommand {
			k = kinds[[]int{0, 3}[m.n(2)]] // it reads its input
		}
		m.imports = append(m.imports, importDecl{module: k.module, name: k.name, typ: k.typ})
		m.funcs = append(m.funcs, k.typ)
		m.clocks = m.clocks || k.module == wasiModule
	}
	m.entry = len(m.funcs)
	if m.door == DoorCommand {
		m.funcs = append(m.funcs, 0)
	} else {
		m.funcs = append(m.funcs, 1, 0) // and _initialize
	}
	if m.start = m.rarely(3); m.start {
		m.funcs = append(m.funcs, 0)
	}
	for range m.n(5) {
		m.funcs = append(m.funcs, uint32(m.n(len(m.types))))
	}
}

func (m *maker) isImport(f int) bool { return f < len(m.imports) }

func (m *maker) makeGlobals() {
	m.globals = []madeGlobal{{typeI32, true, i32c(100)}, {typeI32, true, i32c(0)}}
	for range m.n(6) {
		g := madeGlobal{typ: m.valueType(), mutable: !m.rarely(3)}
		if g.mutable && !m.vectors && (g.typ == typeV128 || g.typ == typeFuncref || g.typ == typeExternref) {
			g.typ = typeI64
		}
		g.init = m.constant(g.typ)
		if g.typ == typeFuncref && m.rarely(2) {
			g.init = appendU32([]byte{opRefFunc}, uint32(m.n(len(m.funcs))))
		}
		m.globals = append(m.globals, g)
	}
}

// index is an index as it stands in code.
func (m *maker) index(b []byte, i int) []byte {
	if !m.padded {
		return appendU32(b, uint32(i))
	}
	for range 4 {
		b = append(b, byte(i)|0x80)
		i >>= 7
	}
	return append(b, byte(i))
}

// constant is an instruction that gives a value.
func (m *maker) constant(t byte) []byte {
	pick := func() int64 {
		switch m.n(6) {
		case 0, 1:
			return int64(m.n(16))
		case 2:
			return int64(m.n(256)) - 128
		case 3:
			return []int64{math.MinInt32, math.MaxInt32, math.MinInt64, math.MaxInt64, -1, 65535, 65536}[m.n(7)]
		case 4:
			return int64(m.n(256))<<24 | int64(m.n(1<<16))
		}
		return 1 << m.n(63)
	}
	switch t {
	case typeI32:
		return appendSigned([]byte{opI32Const}, int64(int32(pick())))
	case typeI64:
		return appendSigned([]byte{opI64Const}, pick())
	case typeF32:
		v := float32(pick())
		switch m.n(6) {
		case 4:
			v /= 3
		case 5:
			v = []float32{float32(math.Inf(1)), float32(math.NaN()), float32(math.Copysign(0, -1)), math.SmallestNonzeroFloat32, math.MaxFloat32}[m.n(5)]
		}
		return binary.LittleEndian.AppendUint32([]byte{opF32Const}, math.Float32bits(v))
	case typeF64:
		v := float64(pick())
		switch m.n(6) {
		case 4:
			v /= 3
		case 5:
			v = []float64{math.Inf(1), math.NaN(), math.Copysign(0, -1), math.SmallestNonzeroFloat64, math.MaxFloat64}[m.n(5)]
		}
		return binary.LittleEndian.AppendUint64([]byte{opF64Const}, math.Float64bits(v))
	case typeV128:
		b := binary.LittleEndian.AppendUint64([]byte{opPrefixVector, 12}, uint64(pick()))
		return binary.LittleEndian.AppendUint64(b, uint64(pick()))
	}
	return []byte{opRefNull, t}
}

func (m *maker) makeTables() {
	for range m.n(4) {
		t := madeTable{elem: typeFuncref, min: uint32(m.n(12))}
		if m.rarely(4) {
			t.elem = typeExternref
		}
		t.max = t.min + uint32(m.n(12))
		m.tables = append(m.tables, t)
	}
	if len(m.tables) == 0 {
		return
	}
	ended := func(b []byte) []byte { return append(b, opEnd) }
	for range m.n(5) {
		table := m.n(len(m.tables))
		t := m.tables[table]
		n := m.n(5)
		offset := m.n(1 + max(0, int(t.min)-n))
		// 0 to 7, as in the binary. Passive segments are of no use, and allowed, where tables do not change.
		flags := uint32(m.n(8))
		if flags&3 == 0 && (table != 0 || t.elem != typeFuncref) {
			flags |= 2
		}
		active := flags&1 == 0
		if flags&4 == 0 && t.elem != typeFuncref {
			flags |= 4
		}
		if active && n > int(t.min) && !m.rarely(4) {
			n = 0
		}
		b := appendU32(nil, flags)
		if active {
			if flags&2 != 0 {
				b = appendU32(b, uint32(table))
			}
			b = append(b, ended(i32c(int32(offset)))...)
		}
		if flags&3 != 0 {
			if flags&4 != 0 {
				b = append(b, t.elem)
			} else {
				b = append(b, 0)
			}
		}
		b = appendU32(b, uint32(n))
		for i := range n {
			f := m.n(len(m.funcs))
			switch {
			case flags&4 == 0:
				b = appendU32(b, uint32(f))
			case t.elem == typeExternref || m.rarely(4):
				b = append(b, opRefNull, t.elem, opEnd)
				f = -1
			default:
				b = append(appendU32(append(b, opRefFunc), uint32(f)), opEnd)
			}
			if active {
				m.slots = append(m.slots, madeSlot{table, offset + i, f})
			}
		}
		m.elements = append(m.elements, b...)
		m.elems++
		m.elemType = append(m.elemType, t.elem)
	}
}

func (m *maker) makeData() {
	size := m.memMin * pageSize
	for range m.n(6) {
		text := make([]byte, m.n(40))
		for i := range text {
			text[i] = byte(m.n(256))
		}
		if m.passive && m.rarely(2) {
			m.data = append(m.data, concat([]byte{1}, sized(text)))
			continue
		}
		at := m.n(400)
		switch m.n(4) {
		case 2:
			at = size - len(text) - m.n(3)
		case 3:
			at = m.n(400) * 160
		}
		if at+len(text) > size && !m.rarely(32) {
			at, text = 0, nil
		}
		flags := []byte{0}
		if m.rarely(4) {
			flags = []byte{2, 0}
		}
		m.data = append(m.data, concat(flags, i32c(int32(at)), []byte{opEnd}, sized(text)))
	}
}

// binary writes the module, its code made on the way.
func (m *maker) binary() []byte {
	var bodies [][]byte
	for i := len(m.imports); i < len(m.funcs); i++ {
		bodies = append(bodies, sized(m.body(i)))
	}
	b := newModule()
	custom := func() {
		if m.rarely(8) {
			b.section(secCustom, concat(name([]string{"producers", "", "x"}[m.n(3)]), make([]byte, m.n(9)))...)
		}
	}
	list := func(id byte, items [][]byte) {
		custom()
		if len(items) > 0 || m.rarely(16) {
			b.section(id, vec(items...)...)
		}
	}
	var types, imports, funcs, tables, globals, exports [][]byte
	for _, t := range m.types {
		types = append(types, concat([]byte{0x60}, sized(t.params), sized(t.results)))
	}
	for _, d := range m.imports {
		imports = append(imports, concat(name(d.module), name(d.name), []byte{kindFunc}, appendU32(nil, d.typ)))
	}
	for _, t := range m.funcs[len(m.imports):] {
		funcs = append(funcs, appendU32(nil, t))
	}
	for i, t := range m.tables {
		tables = append(tables, concat([]byte{t.elem, 1}, appendU32(nil, t.min), appendU32(nil, t.max)))
		exports = append(exports, concat(name("table"+string(rune('0'+i))), []byte{kindTable}, appendU32(nil, uint32(i))))
	}
	for i, g := range m.globals {
		mutable := byte(0)
		if g.mutable {
			mutable = 1
		}
		globals = append(globals, concat([]byte{g.typ, mutable}, g.init, []byte{opEnd}))
		exports = append(exports, concat(name("g"+string(rune('0'+i))), []byte{kindGlobal}, appendU32(nil, uint32(i))))
	}
	function := func(n string, i int) {
		exports = append(exports, concat(name(n), []byte{kindFunc}, appendU32(nil, uint32(i))))
	}
	if m.door == DoorCommand {
		function(exportStart, m.entry)
	} else {
		function(exportRun, m.entry)
		function(exportInitialize, m.entry+1)
	}
	if m.rarely(2) {
		exports = append(exports, concat(name("memory"), []byte{kindMemory, 0}))
		function("first", 0)
	}
	list(secType, types)
	list(secImport, imports)
	list(secFunction, funcs)
	list(secTable, tables)
	custom()
	memory := concat([]byte{1, 0}, appendU32(nil, uint32(m.memMin)))
	if m.memMax >= 0 {
		memory = concat([]byte{1, 1}, appendU32(nil, uint32(m.memMin)), appendU32(nil, uint32(m.memMax)))
	}
	b.section(secMemory, memory...)
	list(secGlobal, globals)
	list(secExport, exports)
	if m.start {
		b.section(secStart, appendU32(nil, uint32(m.startIndex()))...)
	}
	custom()
	// One more segment declares every function that code may refer to.
	all := concat([]byte{3, 0}, appendU32(nil, uint32(len(m.funcs))))
	for i := range m.funcs {
		all = appendU32(all, uint32(i))
	}
	b.section(secElement, concat(appendU32(nil, uint32(m.elems+1)), m.elements, all)...)
	if m.passive || m.rarely(4) {
		b.section(secDataCount, appendU32(nil, uint32(len(m.data)))...)
	}
	list(secCode, bodies)
	list(secData, m.data)
	if m.rarely(3) {
		b.section(secCustom, concat(name("name"), m.nameSection())...)
	}
	custom()
	return b.b
}

func (m *maker) startIndex() int {
	if m.door == DoorCommand {
		return m.entry + 1
	}
	return m.entry + 2
}

func (m *maker) nameSection() []byte {
	var names [][]byte
	for i := range m.funcs {
		if !m.rarely(3) {
			names = append(names, concat(appendU32(nil, uint32(i)), name("function "+string(rune('a'+i)))))
		}
	}
	b := concat([]byte{0}, sized(name("made")), []byte{1}, sized(vec(names...)))
	if m.rarely(2) {
		b = concat(b, []byte{2}, sized(vec(concat([]byte{0}, vec(concat([]byte{0}, name("local")))))))
	}
	return b
}
