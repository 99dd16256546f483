package wasm

// A builder of small modules, so that tests can say what is in a binary, valid or not.

type builder struct{ b []byte }

func newModule() *builder { return &builder{append([]byte(nil), header...)} }

// section appends a section with the right size.
func (m *builder) section(id byte, content ...byte) *builder {
	m.b = append(m.b, id)
	m.b = appendU32(m.b, uint32(len(content)))
	m.b = append(m.b, content...)
	return m
}

func concat(parts ...[]byte) (b []byte) {
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func vec(items ...[]byte) []byte { return concat(appendU32(nil, uint32(len(items))), concat(items...)) }

func sized(b []byte) []byte { return append(appendU32(nil, uint32(len(b))), b...) }

// fn is a function body: groups of locals, then instructions; the final end is added.
func fn(locals [][]byte, code ...byte) []byte {
	return sized(concat(vec(locals...), code, []byte{opEnd}))
}

func name(s string) []byte { return appendName(nil, s) }

func i32c(v int32) []byte { return appendSigned([]byte{opI32Const}, int64(v)) }

// command is a module with one page of memory, the given imports of type 0 () -> (), 1 (i32) -> (), 2 (i32,i32,i32,i32) -> (i32), and one
// function, exported as _start, of the given code.
func command(imports []string, typ byte, code ...byte) []byte {
	var decls [][]byte
	for _, n := range imports {
		decls = append(decls, concat(name(wasiModule), name(n), []byte{kindFunc, typ}))
	}
	m := newModule().
		section(secType, vec([]byte{0x60, 0, 0}, []byte{0x60, 1, typeI32, 0}, []byte{0x60, 4, typeI32, typeI32, typeI32, typeI32, 1, typeI32})...)
	if len(decls) > 0 {
		m.section(secImport, vec(decls...)...)
	}
	return m.section(secFunction, 1, 0).
		section(secMemory, 1, 0, 1).
		section(secGlobal, vec(concat([]byte{typeI32, 1}, i32c(0), []byte{opEnd}))...).
		section(secExport, vec(concat(name("_start"), []byte{kindFunc}, appendU32(nil, uint32(len(imports)))))...).
		section(secCode, vec(fn(nil, code...))...).b
}
