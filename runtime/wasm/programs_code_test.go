package wasm

import (
	"bytes"
	"slices"
)

// operation is an instruction that takes values and gives one.
type operation struct {
	code   []byte
	in     []byte
	out    byte
	number bool // its result may be one of several NaNs, of which programs must not see the bits
	traps  bool // for some values
}

// operations are all instructions that only compute.
func operations() (ops []operation) {
	add := func(out byte, in []byte, number, traps bool, codes ...byte) {
		for _, c := range codes {
			ops = append(ops, operation{[]byte{c}, in, out, number, traps})
		}
	}
	span := func(from, to byte) (codes []byte) {
		for c := int(from); c <= int(to); c++ {
			codes = append(codes, byte(c))
		}
		return codes
	}
	two := func(t byte) []byte { return []byte{t, t} }
	one := func(t byte) []byte { return []byte{t} }
	add(typeI32, one(typeI32), false, false, 0x45, 0x67, 0x68, 0x69, 0xc0, 0xc1)
	add(typeI32, two(typeI32), false, false, span(0x46, 0x4f)...)
	add(typeI32, two(typeI32), false, false, 0x6a, 0x6b, 0x6c, 0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78)
	add(typeI32, two(typeI32), false, true, span(0x6d, 0x70)...)
	add(typeI32, one(typeI64), false, false, 0x50, 0xa7)
	add(typeI32, two(typeI64), false, false, span(0x51, 0x5a)...)
	add(typeI64, one(typeI64), false, false, 0x79, 0x7a, 0x7b, 0xc2, 0xc3, 0xc4)
	add(typeI64, two(typeI64), false, false, 0x7c, 0x7d, 0x7e, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a)
	add(typeI64, two(typeI64), false, true, span(0x7f, 0x82)...)
	add(typeI32, two(typeF32), false, false, span(0x5b, 0x60)...)
	add(typeI32, two(typeF64), false, false, span(0x61, 0x66)...)
	add(typeF32, one(typeF32), false, false, 0x8b, 0x8c)
	add(typeF32, one(typeF32), true, false, span(0x8d, 0x91)...)
	add(typeF32, two(typeF32), true, false, span(0x92, 0x97)...)
	add(typeF32, two(typeF32), false, false, 0x98)
	add(typeF64, one(typeF64), false, false, 0x99, 0x9a)
	add(typeF64, one(typeF64), true, false, span(0x9b, 0x9f)...)
	add(typeF64, two(typeF64), true, false, span(0xa0, 0xa5)...)
	add(typeF64, two(typeF64), false, false, 0xa6)
	add(typeI32, one(typeF32), false, true, 0xa8, 0xa9)
	add(typeI32, one(typeF64), false, true, 0xaa, 0xab)
	add(typeI64, one(typeI32), false, false, 0xac, 0xad)
	add(typeI64, one(typeF32), false, true, 0xae, 0xaf)
	add(typeI64, one(typeF64), false, true, 0xb0, 0xb1)
	add(typeF32, one(typeI32), false, false, 0xb2, 0xb3, 0xbe)
	add(typeF32, one(typeI64), false, false, 0xb4, 0xb5)
	add(typeF32, one(typeF64), true, false, 0xb6)
	add(typeF64, one(typeI32), false, false, 0xb7, 0xb8)
	add(typeF64, one(typeI64), false, false, 0xb9, 0xba, 0xbf)
	add(typeF64, one(typeF32), true, false, 0xbb)
	add(typeI32, one(typeF32), false, false, 0xbc)
	add(typeI64, one(typeF64), false, false, 0xbd)
	add(typeI32, one(typeFuncref), false, false, opRefIsNull)
	add(typeI32, one(typeExternref), false, false, opRefIsNull)
	for sub := range byte(8) {
		out, in := byte(typeI32), byte(typeF32)
		if sub >= 4 {
			out = typeI64
		}
		if sub&2 != 0 {
			in = typeF64
		}
		ops = append(ops, operation{[]byte{opPrefixFC, sub}, one(in), out, false, false})
	}
	vector := func(out byte, in []byte, subs ...uint32) {
		for _, sub := range subs {
			ops = append(ops, operation{appendU32([]byte{opPrefixVector}, sub), in, out, false, false})
		}
	}
	v := byte(typeV128)
	vector(v, one(typeI32), 15, 16, 17)
	vector(v, one(typeI64), 18)
	vector(v, one(v), 77, 98)
	vector(v, two(v), 14, 35, 78, 79, 80, 81, 110, 113, 142, 149, 174, 181, 206, 213)
	vector(v, []byte{v, v, v}, 82)
	vector(v, []byte{v, typeI32}, 107, 139, 171, 203)
	vector(typeI32, one(v), 83, 99, 100, 163)
	ops = append(ops,
		operation{[]byte{opPrefixVector, 21, 15}, one(v), typeI32, false, false}, operation{[]byte{opPrefixVector, 27, 2}, one(v), typeI32, false, false},
		operation{[]byte{opPrefixVector, 29, 1}, one(v), typeI64, false, false}, operation{[]byte{opPrefixVector, 28, 3}, []byte{v, typeI32}, v, false, false},
		operation{append([]byte{opPrefixVector, 13}, 0, 17, 2, 19, 31, 5, 6, 7, 16, 9, 10, 11, 30, 13, 14, 15), two(v), v, false, false})
	return ops
}

var madeOperations = func() map[byte][]operation {
	by := make(map[byte][]operation)
	for _, o := range operations() {
		by[o.out] = append(by[o.out], o)
	}
	return by
}()

// access is an instruction that reads or writes memory.
type access struct {
	code  []byte
	typ   byte
	align int
	lane  bool // takes a vector, and has the number of a lane
}

var (
	madeLoads = []access{
		{[]byte{0x28}, typeI32, 2, false},
		{[]byte{0x2c}, typeI32, 0, false},
		{[]byte{0x2d}, typeI32, 0, false},
		{[]byte{0x2e}, typeI32, 1, false},
		{[]byte{0x2f}, typeI32, 1, false},
		{[]byte{0x29}, typeI64, 3, false},
		{[]byte{0x30}, typeI64, 0, false},
		{[]byte{0x31}, typeI64, 0, false},
		{[]byte{0x32}, typeI64, 1, false},
		{[]byte{0x33}, typeI64, 1, false},
		{[]byte{0x34}, typeI64, 2, false},
		{[]byte{0x35}, typeI64, 2, false},
		{[]byte{0x2a}, typeF32, 2, false},
		{[]byte{0x2b}, typeF64, 3, false},
		{[]byte{0xfd, 0}, typeV128, 4, false},
		{[]byte{0xfd, 3}, typeV128, 3, false},
		{[]byte{0xfd, 7}, typeV128, 0, false},
		{[]byte{0xfd, 9}, typeV128, 2, false},
		{[]byte{0xfd, 93}, typeV128, 3, false},
		{[]byte{0xfd, 84}, typeV128, 0, true},
		{[]byte{0xfd, 87}, typeV128, 3, true},
	}
	madeStores = []access{
		{[]byte{0x36}, typeI32, 2, false},
		{[]byte{0x37}, typeI64, 3, false},
		{[]byte{0x38}, typeF32, 2, false},
		{[]byte{0x39}, typeF64, 3, false},
		{[]byte{0x3a}, typeI32, 0, false},
		{[]byte{0x3b}, typeI32, 1, false},
		{[]byte{0x3c}, typeI64, 0, false},
		{[]byte{0x3d}, typeI64, 1, false},
		{[]byte{0x3e}, typeI64, 2, false},
		{[]byte{0xfd, 11}, typeV128, 4, false},
		{[]byte{0xfd, 88}, typeV128, 0, true},
		{[]byte{0xfd, 91}, typeV128, 3, true},
	}
)

type madeLabel struct {
	types []byte // that a branch to it takes
	loop  bool
}

// coder writes the code of one function.
type coder struct {
	*maker
	b        []byte
	typ      funcType
	locals   []byte // types, parameters included
	tick     int    // a local for itself
	at       int    // one more, by which loops dispatch
	f32, f64 int    // and two
	labels   []madeLabel
	depth    int
	starts   bool // it is only a start-up's: what the host does is not for it
}

// body makes the body of a function.
func (m *maker) body(i int) []byte {
	f := &coder{maker: m, typ: m.types[m.funcs[i]]}
	f.locals = slices.Clone(f.typ.params)
	var runs [][]byte
	declare := func(n int, t byte) {
		runs = append(runs, append(appendU32(nil, uint32(n)), t))
		f.locals = append(f.locals, bytes.Repeat([]byte{t}, n)...)
	}
	for range m.n(4) {
		declare(m.n(3), m.valueType()) // also none
	}
	f.tick, f.f32, f.f64, f.at = len(f.locals), len(f.locals)+1, len(f.locals)+2, len(f.locals)+3
	runs = append(runs, []byte{1, typeI32}, []byte{1, typeF32}, []byte{1, typeF64}, []byte{1, typeI32})
	if i == m.entry {
		// However much its start-up took. It may be called again.
		f.with(opGlobalGet, began)
		f.emit(0x45, opIf, typeEmpty)
		f.emit(i32c(1)...)
		f.with(opGlobalSet, began)
		f.emit(i32c(int32(10 + m.n(200)))...)
		f.with(opGlobalSet, ticks)
		f.emit(opEnd)
	}
	f.spend()
	f.starts = m.isStart(i)
	if i == m.entry && m.door == DoorCommand {
		f.starts = true
		f.stmts(m.n(3))
		f.starts = false
		f.direct(0)
		f.drop(f.types[f.funcs[0]].results)
	}
	f.stmts(1 + m.n(6))
	if i == m.entry {
		f.look()
	}
	f.exprs(f.typ.results)
	return concat(vec(runs...), f.b, []byte{opEnd})
}

func (f *coder) emit(b ...byte) { f.b = append(f.b, b...); f.left-- }

func (f *coder) with(op byte, i int) { f.b = f.index(append(f.b, op), i); f.left-- }

func (f *coder) fc(sub byte, indices ...int) {
	f.b = append(f.b, opPrefixFC, sub)
	for _, i := range indices {
		f.b = f.index(f.b, i)
	}
	f.left--
}

// spend takes a tick, and gives up when there is none left.
func (f *coder) spend() {
	f.with(opGlobalGet, ticks)
	f.emit(i32c(1)...)
	f.emit(opSub)
	f.with(opLocalTee, f.tick)
	f.with(opGlobalSet, ticks)
	f.with(opLocalGet, f.tick)
	f.emit(i32c(0)...)
	f.emit(opLtS, opIf, typeEmpty)
	for _, t := range f.typ.results {
		f.zero(t)
	}
	f.emit(opReturn, opEnd)
}

func (f *coder) zero(t byte) { f.emit((&maker{choices: &choices{}}).constant(t)...) }

// look stores what the program can see of its tables and its memory's size.
func (f *coder) look() {
	for i, t := range f.tables {
		f.emit(i32c(int32(i * 8))...)
		f.fc(subTableSize, i)
		f.emit(0x36, 2, 0)
		if t.min == 0 {
			continue
		}
		f.emit(i32c(int32(i*8 + 4))...)
		f.emit(i32c(int32(f.n(int(t.min))))...)
		f.with(opTableGet, i)
		f.emit(opRefIsNull)
		f.emit(0x3a, 0, 0)
	}
}

// of finds the indices of what has a type.
func of(n int, has func(int) bool) (found []int) {
	for i := range n {
		if has(i) {
			found = append(found, i)
		}
	}
	return found
}

func (f *coder) exprs(types []byte) {
	for _, t := range types {
		f.expr(t)
	}
}

// drop takes values off the stack, the last one first.
func (f *coder) drop(types []byte) {
	for i := len(types) - 1; i >= 0; i-- {
		if at := of(len(f.locals), func(l int) bool { return f.locals[l] == types[i] }); len(at) > 0 && f.rarely(2) {
			f.with(opLocalSet, at[f.n(len(at))])
			continue
		}
		f.emit(0x1a)
	}
}

// expr makes code that leaves one value.
func (f *coder) expr(t byte) {
	if f.depth++; f.depth > 6 || f.left <= 0 {
		f.depth--
		f.leaf(t)
		return
	}
	defer func() { f.depth-- }()
	switch f.n(14) {
	case 0, 1, 2:
		f.leaf(t)
	case 3, 4, 5, 6:
		f.operate(t)
	case 7:
		f.load(t)
	case 8:
		f.block(t)
	case 9:
		f.call(t)
	case 10:
		f.expr(t)
		f.expr(t)
		f.expr(typeI32)
		if t == typeFuncref || t == typeExternref || f.rarely(2) {
			f.emit(opSelectTyped, 1, t)
		} else {
			f.emit(0x1b)
		}
	case 11:
		f.expr(t)
		if at := of(len(f.locals), func(l int) bool { return f.locals[l] == t }); len(at) > 0 {
			f.with(opLocalTee, at[f.n(len(at))])
		}
	case 12:
		f.ask(t)
	case 13:
		// A branch that is not taken leaves its value.
		at := of(len(f.labels), func(l int) bool { return bytes.Equal(f.labels[l].types, []byte{t}) })
		if len(at) == 0 {
			f.leaf(t)
			return
		}
		l := at[f.n(len(at))]
		f.expr(t)
		f.branch(opBrIf, l)
	}
}

func (f *coder) leaf(t byte) {
	locals := of(len(f.locals), func(l int) bool { return f.locals[l] == t })
	globals := of(len(f.globals), func(g int) bool { return f.globals[g].typ == t })
	switch k := f.n(4); {
	case k == 1 && len(globals) > 0:
		f.with(opGlobalGet, globals[f.n(len(globals))])
	case k >= 2 && len(locals) > 0:
		f.with(opLocalGet, locals[f.n(len(locals))])
	case t == typeFuncref && k == 3:
		f.with(opRefFunc, f.n(len(f.funcs)))
	default:
		f.emit(f.constant(t)...)
	}
}

func (f *coder) operate(t byte) {
	ops := madeOperations[t]
	if len(ops) == 0 {
		f.leaf(t)
		return
	}
	o := ops[f.n(len(ops))]
	f.exprs(o.in)
	if o.traps && len(o.in) == 2 && !f.rarely(8) {
		// Most divide by an odd number.
		if o.out == typeI32 {
			f.emit(append(i32c(1), opOr)...)
		} else {
			f.emit(opI64Const, 1, 0x84)
		}
	} else if o.traps && len(o.in) == 1 && !f.rarely(8) {
		f.drop(o.in)
		f.leaf(t)
		return
	}
	f.emit(o.code...)
	if !o.number {
		return
	}
	local, nan, equal := f.f32, []byte{opF32Const, 0, 0, 0xc0, 0x7f}, byte(0x5b)
	if t == typeF64 {
		local, nan, equal = f.f64, []byte{opF64Const, 0, 0, 0, 0, 0, 0, 0xf8, 0x7f}, 0x61
	}
	f.with(opLocalTee, local)
	f.emit(nan...)
	f.with(opLocalGet, local)
	f.with(opLocalGet, local)
	f.emit(equal, 0x1b)
}

// address makes an i32 that is mostly within the memory.
func (f *coder) address() {
	if f.memMin == 0 && !f.rarely(8) {
		f.expr(typeI32)
		f.emit(concat(i32c(0), []byte{0x71})...)
		return
	}
	switch k := f.n(16); {
	case k >= 8 && f.memMin > 16:
		// Where the first piece of a long operation ends.
		f.expr(typeI32)
		f.emit(concat(i32c(0xfff), []byte{0x71}, i32c(bulkPiece-0x800), []byte{opAdd})...)
	case k >= 10 && k <= 13:
		// Near the end that there is now.
		f.emit(opMemorySize, 0)
		f.emit(concat(i32c(16), []byte{0x74}, i32c(int32(40+8*f.n(64))), []byte{opSub})...)
	case k == 14:
		f.emit(i32c(int32(f.memMin*pageSize - 16 - f.n(40)))...)
	case k == 15 && !f.starts:
		if f.rarely(4) {
			f.expr(typeI32)
			return
		}
		f.expr(typeI32)
		f.emit(concat(i32c(0x3ffff), []byte{0x71})...)
	default:
		f.expr(typeI32)
		f.emit(concat(i32c(int32([]int{0xff, 0xfff, 0x7fff}[f.n(3)])), []byte{0x71})...)
	}
}

func (f *coder) memarg(a access) {
	offset := uint32(f.n(32))
	if f.rarely(16) {
		offset = []uint32{pageSize, 0xffff, 2 * pageSize, 0xffffffff}[f.n(4)]
	}
	f.b = append(f.b, a.code...)
	f.b = appendU32(appendU32(f.b, uint32(f.n(a.align+1))), offset)
	if a.lane {
		f.b = append(f.b, byte(f.n(16>>a.align)))
	}
	f.left--
}

func (f *coder) load(t byte) {
	at := of(len(madeLoads), func(l int) bool { return madeLoads[l].typ == t })
	if len(at) == 0 {
		f.leaf(t)
		return
	}
	a := madeLoads[at[f.n(len(at))]]
	f.address()
	if a.lane {
		f.expr(t)
	}
	f.memarg(a)
}

// ask makes what tells of memories and tables, or makes them larger.
func (f *coder) ask(t byte) {
	tables := of(len(f.tables), func(i int) bool { return f.tables[i].elem == t })
	switch {
	case t == typeI32:
		switch k := f.n(5); {
		case k == 0 && len(f.tables) > 0:
			f.fc(subTableSize, f.n(len(f.tables)))
		case k == 1 && len(f.tables) > 0 && f.moves:
			i := f.n(len(f.tables))
			f.expr(f.tables[i].elem)
			f.emit(i32c(int32(f.n(5)))...)
			f.fc(subTableGrow, i)
		case k == 2 || k == 3:
			if f.rarely(8) {
				f.expr(typeI32)
			} else {
				f.emit(i32c(int32(f.n(3)))...)
			}
			f.emit(opMemoryGrow, 0)
		default:
			f.emit(opMemorySize, 0)
		}
	case len(tables) > 0:
		i := tables[f.n(len(tables))]
		f.slot(i)
		f.with(opTableGet, i)
	default:
		f.leaf(t)
	}
}

// slot makes an index of a table, mostly one that there is.
func (f *coder) slot(table int) {
	if f.rarely(8) {
		f.expr(typeI32)
		return
	}
	f.emit(i32c(int32(f.n(max(1, int(f.tables[table].min)))))...)
}

// call makes a call whose first result is of a type, and drops the others.
func (f *coder) call(t byte) {
	gives := func(i uint32) bool { return len(f.types[i].results) > 0 && f.types[i].results[0] == t }
	if f.rarely(3) {
		slots := of(len(f.slots), func(s int) bool { return f.slots[s].fn >= 0 && gives(f.funcs[f.slots[s].fn]) })
		types := of(len(f.types), func(i int) bool { return gives(uint32(i)) })
		tables := of(len(f.tables), func(i int) bool { return f.tables[i].elem == typeFuncref })
		switch {
		case len(slots) > 0 && !f.rarely(8):
			s := f.slots[slots[f.n(len(slots))]]
			f.indirect(int(f.funcs[s.fn]), s.table, func() { f.emit(i32c(int32(s.slot))...) })
			f.drop(f.types[f.funcs[s.fn]].results[1:])
			return
		case len(types) > 0 && len(tables) > 0 && f.rarely(3):
			i, table := types[f.n(len(types))], tables[f.n(len(tables))]
			f.indirect(i, table, func() { f.slot(table) })
			f.drop(f.types[i].results[1:])
			return
		}
	}
	at := of(len(f.funcs), func(i int) bool { return gives(f.funcs[i]) && (!f.starts || !f.isImport(i)) })
	if len(at) == 0 {
		f.leaf(t)
		return
	}
	i := at[f.n(len(at))]
	f.direct(i)
	f.drop(f.types[f.funcs[i]].results[1:])
}

func (f *coder) indirect(typ, table int, slot func()) {
	f.exprs(f.types[typ].params)
	slot()
	f.with(opCallIndirect, typ)
	f.b = f.index(f.b, table)
}

// isStart reports whether a function runs before the program is frozen.
func (m *maker) isStart(i int) bool {
	return i == m.entry+1 && m.door == DoorReactor || m.start && i == m.startIndex()
}

// direct calls a function. What the host does is asked for places that there are, mostly.
func (f *coder) direct(i int) {
	if f.isImport(i) && !f.rarely(6) {
		switch f.imports[i].name {
		case "input_read":
			f.emit(i32c(0)...)
			f.address()
			f.emit(i32c(int32(f.n(64)))...)
		case "output_write":
			f.address()
			f.emit(i32c(int32(f.n(16)))...)
		case "fd_read", "fd_write":
			// A list of one buffer, made in place.
			fd := 0
			if f.imports[i].name == "fd_write" {
				fd = 1 + f.n(2)
			}
			f.emit(concat(i32c(32), i32c(int32(f.n(1024))), []byte{0x36, 2, 0}, i32c(36), i32c(int32(f.n(64))), []byte{0x36, 2, 0},
				i32c(int32(fd)), i32c(32), i32c(1), i32c(40))...)
		case "proc_exit":
			// Not always.
			f.emit(opBlock, typeEmpty)
			f.labels = append(f.labels, madeLabel{})
			f.expr(typeI32)
			f.emit(concat(i32c(0xff), []byte{0x71, opBrIf, 0}, i32c(int32(f.n(3))))...)
			f.with(opCall, i)
			f.emit(opEnd)
			f.labels = f.labels[:len(f.labels)-1]
			return
		case "sched_yield":
		}
	} else {
		f.exprs(f.types[f.funcs[i]].params)
	}
	f.with(opCall, i)
}

// branch makes a branch to a label, by its place from without. What a branch to a loop costs is paid first.
func (f *coder) branch(op byte, label int) {
	if f.labels[label].loop {
		f.spend()
	}
	if op == opBrIf {
		f.expr(typeI32)
	}
	f.with(op, len(f.labels)-1-label)
}
