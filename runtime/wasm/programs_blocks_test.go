package wasm

import "bytes"

// block makes a block, loop or if that gives one value, and perhaps took some.
func (f *coder) block(t byte) {
	index, typ := -1, funcType{results: []byte{t}}
	if at := of(len(f.types), func(i int) bool { return len(f.types[i].results) > 0 && f.types[i].results[0] == t }); len(at) > 0 && f.rarely(2) {
		index = at[f.n(len(at))]
		typ = f.types[index]
	}
	f.blockOf(index, typ)
	f.drop(typ.results[1:])
}

// blockOf makes a block of a type: that of an index, or without parameters and with one result at most.
func (f *coder) blockOf(index int, typ funcType) {
	header := []byte{typeEmpty}
	switch {
	case index >= 0:
		header = appendSigned(nil, int64(index))
	case len(typ.results) == 1:
		header = typ.results
	}
	f.exprs(typ.params)
	kind := []byte{opBlock, opLoop, opIf}[f.n(3)]
	label := madeLabel{types: typ.results}
	switch kind {
	case opLoop:
		label = madeLabel{types: typ.params, loop: true}
	case opIf:
		f.expr(typeI32)
	}
	f.emit(append([]byte{kind}, header...)...)
	f.labels = append(f.labels, label)
	inside := func() {
		f.drop(typ.params)
		f.stmts(f.n(4))
		if kind == opLoop && !f.rarely(4) {
			f.exprs(typ.params)
			f.branch(opBrIf, len(f.labels)-1)
			f.drop(typ.params)
		}
		f.exprs(typ.results)
	}
	inside()
	// An if without an else gives what it takes.
	if kind == opIf && (!bytes.Equal(typ.params, typ.results) || f.rarely(2)) {
		f.emit(opElse)
		inside()
	}
	f.labels = f.labels[:len(f.labels)-1]
	f.emit(opEnd)
}

func (f *coder) stmts(n int) {
	for range n {
		if f.left <= 0 {
			return
		}
		f.stmt()
	}
}

// stmt makes code that leaves the stack as it was.
func (f *coder) stmt() {
	if f.depth++; f.depth > 8 {
		f.depth--
		return
	}
	defer func() { f.depth-- }()
	if (f.passive || f.memMin > 16) && f.rarely(4) {
		f.bulk()
		return
	}
	switch f.n(22) {
	case 0, 1:
		t := f.valueType()
		f.expr(t)
		f.drop([]byte{t})
	case 2:
		if at := of(len(f.globals), func(i int) bool { return i > began && f.globals[i].mutable }); len(at) > 0 {
			i := at[f.n(len(at))]
			f.expr(f.globals[i].typ)
			f.with(opGlobalSet, i)
		}
	case 3, 4, 5, 6:
		a := madeStores[f.n(len(madeStores))]
		f.address()
		f.expr(a.typ)
		f.memarg(a)
	case 7, 8:
		f.blockOf(-1, funcType{})
	case 9, 10:
		i := f.n(len(f.types))
		f.blockOf(i, f.types[i])
		f.drop(f.types[i].results)
	case 11:
		f.jump()
	case 12, 13, 14:
		i := f.n(len(f.funcs))
		if f.starts && f.isImport(i) {
			return
		}
		f.direct(i)
		f.drop(f.types[f.funcs[i]].results)
	case 15:
		f.bulk()
	case 16:
		f.table()
	case 17:
		f.dead()
	case 18:
		f.emit(0x01)
		if f.rarely(2) {
			// What is new is written to.
			f.emit(concat(i32c(1), []byte{opMemoryGrow, 0, opIf, typeEmpty, opMemorySize, 0}, i32c(16), []byte{0x74}, i32c(int32(1+f.n(1<<16))), []byte{opSub})...)
			f.emit(concat(i32c(-1), []byte{0x3a, 0, 0, opEnd})...)
		}
	case 19:
		if f.rarely(8) {
			f.emit(opUnreachable)
		}
	case 20, 21:
		f.dispatch()
	}
}

// dispatch makes a loop of blocks that are jumped to by a local, as Go's compiler does, and sometimes one that is almost like that.
func (f *coder) dispatch() {
	f.emit(opLoop, typeEmpty)
	f.labels = append(f.labels, madeLabel{loop: true})
	loop, n := len(f.labels)-1, 1+f.n(3)
	for range n {
		f.emit(opBlock, typeEmpty)
		f.labels = append(f.labels, madeLabel{})
	}
	targets := n
	if f.rarely(6) {
		f.spend()
		targets = n + 1 // also to the loop
	}
	f.with(opLocalGet, f.at)
	count := f.n(4)
	f.b = appendU32(append(f.b, opBrTable), uint32(count))
	for range count + 1 {
		f.b = f.index(f.b, f.n(targets))
	}
	for range n {
		f.labels = f.labels[:len(f.labels)-1]
		f.emit(opEnd)
		f.stmts(f.n(3))
		f.jumpBy(loop)
	}
	f.labels = f.labels[:len(f.labels)-1]
	f.emit(opEnd)
}

// jumpBy makes a jump to a block of a loop that dispatches, taken or not.
func (f *coder) jumpBy(loop int) {
	if f.rarely(4) {
		return
	}
	f.spend()
	f.expr(typeI32)
	f.emit(opIf, typeEmpty)
	f.labels = append(f.labels, madeLabel{})
	f.emit(i32c(int32(f.n(6) - 1))...)
	f.with(opLocalSet, f.at)
	if f.rarely(12) {
		f.emit(0x01)
	}
	f.with(opBr, len(f.labels)-1-loop)
	f.labels = f.labels[:len(f.labels)-1]
	f.emit(opEnd)
}

// jump makes a branch. What follows it is never reached.
func (f *coder) jump() {
	if len(f.labels) == 0 || f.rarely(4) {
		if len(f.labels) > 0 { // otherwise it would be all there is
			f.exprs(f.typ.results)
			if f.rarely(2) {
				f.with(opBr, len(f.labels)) // the function itself
			} else {
				f.emit(opReturn)
			}
		}
		return
	}
	l := f.n(len(f.labels))
	to := f.labels[l]
	f.exprs(to.types)
	switch f.n(3) {
	case 0:
		f.branch(opBrIf, l)
		f.drop(to.types)
	case 1:
		f.branch(opBr, l)
	case 2:
		alike := of(len(f.labels), func(i int) bool { return bytes.Equal(f.labels[i].types, to.types) })
		f.spend()
		f.expr(typeI32)
		n := f.n(4)
		f.b = appendU32(append(f.b, opBrTable), uint32(n))
		for range n + 1 {
			f.b = f.index(f.b, len(f.labels)-1-alike[f.n(len(alike))])
		}
		f.left--
	}
}

// bulk makes an operation on a stretch of memory.
func (f *coder) bulk() {
	length := func() {
		switch k := f.n(8); {
		case k >= 4 && f.memMin > 16:
			f.emit(i32c(int32(bulkPiece + f.n(3)*1000 - 1000))...)
		case k >= 6:
			f.emit(i32c(int32(f.n(1 << 16)))...)
		default:
			f.emit(i32c(int32(f.n(80)))...)
		}
	}
	if f.memMin > 16 && f.rarely(2) {
		// Long, and overlapping.
		for range 2 {
			f.expr(typeI32)
			f.emit(concat(i32c(0x1fff), []byte{0x71})...)
		}
		length()
		f.fc(subMemoryCopy)
		f.b = append(f.b, 0, 0)
		return
	}
	f.address()
	switch k := f.n(5); {
	case k == 2 && f.passive && len(f.data) > 0:
		f.emit(i32c(int32(f.n(4)))...)
		f.emit(i32c(int32(f.n(20)))...)
		f.fc(subMemoryInit, f.n(len(f.data)))
		f.b = append(f.b, 0)
	case k == 3 && f.passive && len(f.data) > 0:
		f.emit(0x1a)
		f.fc(subDataDrop, f.n(len(f.data)))
	case k <= 3 && k >= 2 || k == 1:
		f.expr(typeI32)
		length()
		f.fc(subMemoryFill)
		f.b = append(f.b, 0)
	default:
		f.address()
		length()
		f.fc(subMemoryCopy)
		f.b = append(f.b, 0, 0)
	}
}

// table makes an operation that changes a table.
func (f *coder) table() {
	if !f.moves || len(f.tables) == 0 {
		return
	}
	i := f.n(len(f.tables))
	elem := f.tables[i].elem
	few := func() { f.emit(i32c(int32(f.n(4)))...) }
	switch f.n(5) {
	case 0:
		f.slot(i)
		f.expr(elem)
		f.with(opTableSet, i)
	case 1:
		f.slot(i)
		f.expr(elem)
		few()
		f.fc(subTableFill, i)
	case 2:
		same := of(len(f.tables), func(j int) bool { return f.tables[j].elem == elem })
		from := same[f.n(len(same))]
		f.slot(i)
		f.slot(from)
		few()
		f.fc(subTableCopy, i, from)
	case 3:
		if at := of(f.elems, func(e int) bool { return f.elemType[e] == elem }); len(at) > 0 {
			f.slot(i)
			few()
			few()
			f.fc(subTableInit, at[f.n(len(at))], i)
		}
	case 4:
		if f.elems > 0 {
			f.fc(subElemDrop, f.n(f.elems))
		}
	}
}

// dead makes a block whose end is never reached in order, where the stack holds whatever is asked of it.
func (f *coder) dead() {
	f.emit(opBlock, typeEmpty)
	f.labels = append(f.labels, madeLabel{})
	if f.rarely(2) {
		f.emit(opBr, 0)
	} else {
		f.expr(typeI32)
		f.emit(opBrTable, 0, 0)
	}
	for range f.n(4) {
		switch f.n(12) {
		case 0:
			f.emit(0x6a, 0x1a)
		case 1:
			f.emit(opPrefixFC, subMemoryFill, 0)
		case 2:
			f.emit(opPrefixFC, subMemoryCopy, 0, 0)
		case 3:
			f.emit(opMemoryGrow, 0, 0x1a)
		case 4:
			i := f.n(len(f.funcs))
			f.with(opCall, i)
			for range f.types[f.funcs[i]].results {
				f.emit(0x1a)
			}
		case 5:
			f.emit(opLoop, typeEmpty, opBr, 0, opEnd)
		case 6:
			f.emit(opReturn)
		case 7:
			f.emit(0x1b, 0x1a)
		case 8:
			f.emit(opIf, typeI32, opUnreachable, 0x45, opElse, opUnreachable, opEnd, 0x1a)
		case 9:
			f.emit(opBrTable, 1, 0, 0)
		case 10:
			f.with(opLocalTee, f.tick)
			f.emit(0x1a)
		case 11:
			f.emit(opBlock, typeI64, opUnreachable, opLoop, 1, opEnd, 0xac, opEnd, 0x1a) // loop i32 -> i32
		}
	}
	f.labels = f.labels[:len(f.labels)-1]
	f.emit(opEnd)
}
