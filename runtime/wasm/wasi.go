package wasm

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// wasiModule is the import module of WASI preview 1. Keyfire implements it itself, over *guest, rather than taking the engine's: a guest is
// to find no files, no arguments and no environment, and no state of a call may live where the next one could see it.
const wasiModule = "wasi_snapshot_preview1"

// errno is a WASI error number.
type errno uint32

const (
	errnoSuccess errno = 0
	errnoBadf    errno = 8
	errnoFault   errno = 21
	errnoInval   errno = 28
	errnoNosys   errno = 52
	errnoSpipe   errno = 70
)

// hostFunc is a function that guests may import. Its signature is written with one letter for each value: "i" for i32, "I" for i64.
// Every one returns an errno, except that proc_exit returns nothing.
type hostFunc struct {
	params string
	fn     func(g *guest, m api.Memory, p []uint64) errno
}

// wasiFuncs is all of WASI preview 1. What is not here cannot be imported; what needs an open file or a socket finds that there is none.
var wasiFuncs = map[string]hostFunc{
	"args_get":                {"ii", func(*guest, api.Memory, []uint64) errno { return errnoSuccess }},
	"args_sizes_get":          {"ii", zeroSizes},
	"environ_get":             {"ii", func(*guest, api.Memory, []uint64) errno { return errnoSuccess }},
	"environ_sizes_get":       {"ii", zeroSizes},
	"clock_res_get":           {"ii", clockRes},
	"clock_time_get":          {"iIi", clockTime},
	"fd_advise":               {"iIIi", stdioOnly(errnoSpipe)},
	"fd_allocate":             {"iII", stdioOnly(errnoSpipe)},
	"fd_close":                {"i", stdioOnly(errnoSuccess)},
	"fd_datasync":             {"i", stdioOnly(errnoSuccess)},
	"fd_fdstat_get":           {"ii", fdstat},
	"fd_fdstat_set_flags":     {"ii", stdioOnly(errnoSuccess)},
	"fd_fdstat_set_rights":    {"iII", stdioOnly(errnoSuccess)},
	"fd_filestat_get":         {"ii", filestat},
	"fd_filestat_set_size":    {"iI", stdioOnly(errnoInval)},
	"fd_filestat_set_times":   {"iIIi", stdioOnly(errnoInval)},
	"fd_pread":                {"iiiIi", stdioOnly(errnoSpipe)},
	"fd_prestat_get":          {"ii", noFile},
	"fd_prestat_dir_name":     {"iii", noFile},
	"fd_pwrite":               {"iiiIi", stdioOnly(errnoSpipe)},
	"fd_read":                 {"iiii", fdRead},
	"fd_readdir":              {"iiiIi", noFile},
	"fd_renumber":             {"ii", noFile},
	"fd_seek":                 {"iIii", stdioOnly(errnoSpipe)},
	"fd_sync":                 {"i", stdioOnly(errnoSuccess)},
	"fd_tell":                 {"ii", stdioOnly(errnoSpipe)},
	"fd_write":                {"iiii", fdWrite},
	"path_create_directory":   {"iii", noFile},
	"path_filestat_get":       {"iiiii", noFile},
	"path_filestat_set_times": {"iiiiIIi", noFile},
	"path_link":               {"iiiiiii", noFile},
	"path_open":               {"iiiiiIIii", noFile},
	"path_readlink":           {"iiiiii", noFile},
	"path_remove_directory":   {"iii", noFile},
	"path_rename":             {"iiiiii", noFile},
	"path_symlink":            {"iiiii", noFile},
	"path_unlink_file":        {"iii", noFile},
	"poll_oneoff":             {"iiii", pollOneoff},
	"proc_exit":               {"i", func(g *guest, _ api.Memory, p []uint64) errno { g.exit(uint32(p[0])); return 0 }},
	"proc_raise":              {"i", func(*guest, api.Memory, []uint64) errno { return errnoNosys }},
	"random_get":              {"ii", randomGet},
	"sched_yield":             {"", func(g *guest, _ api.Memory, _ []uint64) errno { g.checkDeadline(); return errnoSuccess }},
	"sock_accept":             {"iii", noFile},
	"sock_recv":               {"iiiiii", noFile},
	"sock_send":               {"iiiii", noFile},
	"sock_shutdown":           {"ii", noFile},
}

// hostSignature returns the type of an importable function.
func hostSignature(module, name string) (funcType, bool) {
	if f, ok := abiFuncs[name]; ok && module == keyfireModule {
		return f.signature(), true
	}
	if f, ok := extismFuncs[name]; ok && module == extismModule {
		return f.signature(), true
	}
	f, ok := wasiFuncs[name]
	if module != wasiModule || !ok {
		return funcType{}, false
	}
	var t funcType
	for _, c := range f.params {
		if c == 'I' {
			t.params = append(t.params, typeI64)
		} else {
			t.params = append(t.params, typeI32)
		}
	}
	if name != "proc_exit" {
		t.results = []byte{typeI32}
	}
	return t, true
}

// instantiateHost makes the host functions importable in a runtime.
func instantiateHost(ctx context.Context, rt wazero.Runtime) error {
	b := rt.NewHostModuleBuilder(wasiModule)
	for name, f := range wasiFuncs {
		t, _ := hostSignature(wasiModule, name)
		fn := wrap(f.fn, len(t.results))
		if name == "fd_read" {
			fn = resumableRead
		}
		b.NewFunctionBuilder().WithGoModuleFunction(fn, valueTypes(t.params), valueTypes(t.results)).Export(name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("host module %s: %w", wasiModule, err)
	}
	// What rewritten modules import.
	b = rt.NewHostModuleBuilder(meterModule)
	i32 := []api.ValueType{api.ValueTypeI32}
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, _ api.Module, _ []uint64) {
		guestOf(ctx).check()
	}), nil, nil).Export(meterCheck)
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, mod api.Module, stack []uint64) {
		g := guestOf(ctx)
		g.spend(callWork)
		stack[0] = uint64(uint32(g.grow(mod.Memory(), uint32(stack[0]))))
	}), i32, i32).Export(meterGrow)
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, _ api.Module, _ []uint64) {
		if g := guestOf(ctx); g.shell != nil && g.asked == nil {
			g.shell.end()
		}
	}), nil, nil).Export(meterDone)
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, mod api.Module, stack []uint64) {
		stack[0] = guestOf(ctx).shell.reread(ctx, mod)
	}), nil, i32).Export(meterAgain)
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("host module %s: %w", meterModule, err)
	}
	return instantiateABI(ctx, rt)
}

func wrap(fn func(*guest, api.Memory, []uint64) errno, results int) api.GoModuleFunc {
	if results == 0 {
		return func(ctx context.Context, mod api.Module, stack []uint64) { fn(guestOf(ctx), mod.Memory(), stack) }
	}
	return func(ctx context.Context, mod api.Module, stack []uint64) {
		g := guestOf(ctx)
		g.spend(callWork)
		stack[0] = uint64(fn(g, mod.Memory(), stack))
	}
}

func valueTypes(t []byte) []api.ValueType { return append([]api.ValueType(nil), t...) }

// The engine leaves garbage in the upper half of a 32-bit argument's slot, so every function below cuts its arguments to size.

func noFile(*guest, api.Memory, []uint64) errno { return errnoBadf }

// stdioOnly answers e for the three standard descriptors, and that there is no such file for any other.
func stdioOnly(e errno) func(*guest, api.Memory, []uint64) errno {
	return func(_ *guest, _ api.Memory, p []uint64) errno {
		if uint32(p[0]) > 2 {
			return errnoBadf
		}
		return e
	}
}

func zeroSizes(_ *guest, m api.Memory, p []uint64) errno {
	if !m.WriteUint32Le(uint32(p[0]), 0) || !m.WriteUint32Le(uint32(p[1]), 0) {
		return errnoFault
	}
	return errnoSuccess
}

// Clocks.
const (
	clockRealtime  = 0
	clockMonotonic = 1

	// clockResolution is the finest step of time a guest can see: finer ones make good instruments for attacks on shared hardware.
	clockResolution = time.Millisecond
	// monotonicBase is the monotonic clock at the start of an invocation. It is not 0, which some runtimes take for "no clock".
	monotonicBase = time.Second
)

func (g *guest) monotonic() time.Duration { return monotonicBase + g.now().Sub(g.start) }

func clockRes(_ *guest, m api.Memory, p []uint64) errno {
	if id := uint32(p[0]); id != clockRealtime && id != clockMonotonic {
		return errnoInval
	}
	if !m.WriteUint64Le(uint32(p[1]), uint64(clockResolution)) {
		return errnoFault
	}
	return errnoSuccess
}

func clockTime(g *guest, m api.Memory, p []uint64) errno {
	if g.still {
		if !m.WriteUint64Le(uint32(p[2]), 0) {
			return errnoFault
		}
		return errnoSuccess
	}
	if g.asked != nil {
		g.asked.clock++
	}
	var t int64
	switch uint32(p[0]) {
	case clockRealtime:
		t = g.now().UnixNano()
	case clockMonotonic:
		t = int64(g.monotonic())
	default:
		return errnoInval
	}
	if !m.WriteUint64Le(uint32(p[2]), uint64(t-t%int64(clockResolution))) {
		return errnoFault
	}
	return errnoSuccess
}

func randomGet(g *guest, m api.Memory, p []uint64) errno {
	b, ok := m.Read(uint32(p[0]), uint32(p[1]))
	if !ok {
		return errnoFault
	}
	if g.still {
		clear(b)
		return errnoSuccess
	}
	if g.asked != nil {
		g.asked.random++
	}
	g.fillRandom(b)
	return errnoSuccess
}

// fillRandom fills b with random bytes, of which the host makes a gigabyte a second or less.
func (g *guest) fillRandom(b []byte) {
	for chunk := range slices.Chunk(b, 64<<10) {
		if _, err := io.ReadFull(g.random, chunk); err != nil {
			g.abort(fmt.Errorf("random source: %w", err))
		}
		g.spend(16 * len(chunk))
	}
}

// Rights of the standard descriptors, as WASI defines the bits.
const (
	rightRead  = 1 << 1
	rightWrite = 1 << 6
	rightStat  = 1 << 21
	rightPoll  = 1 << 27
)

// fdstat describes the standard descriptors as what they are, pipes: neither files that could be sought in nor a terminal, which
// would make C programs flush every line.
func fdstat(_ *guest, m api.Memory, p []uint64) errno {
	var rights uint64 = rightWrite | rightStat | rightPoll
	switch uint32(p[0]) {
	case 0:
		rights = rightRead | rightStat | rightPoll
	case 1, 2:
	default:
		return errnoBadf
	}
	b, ok := m.Read(uint32(p[1]), 24)
	if !ok {
		return errnoFault
	}
	clear(b)
	binary.LittleEndian.PutUint64(b[8:], rights)
	return errnoSuccess
}

func filestat(_ *guest, m api.Memory, p []uint64) errno {
	if uint32(p[0]) > 2 {
		return errnoBadf
	}
	b, ok := m.Read(uint32(p[1]), 64)
	if !ok {
		return errnoFault
	}
	clear(b)
	return errnoSuccess
}

// iovecs calls f with each buffer of a scatter list until f returns false.
func iovecs(m api.Memory, ptr, count uint32, f func([]byte) bool) errno {
	if count > 1<<16 {
		return errnoInval
	}
	list, ok := m.Read(ptr, count*8)
	if !ok {
		return errnoFault
	}
	for ; len(list) > 0; list = list[8:] {
		b, ok := m.Read(binary.LittleEndian.Uint32(list), binary.LittleEndian.Uint32(list[4:]))
		if !ok {
			return errnoFault
		}
		if !f(b) {
			break
		}
	}
	return errnoSuccess
}

// retry is retryRead as the engine takes it.
const retry = uint64(1<<32 + int64(retryRead))

// resumableRead is fd_read for guests that may be shells, which need the engine's own context.
func resumableRead(ctx context.Context, mod api.Module, stack []uint64) {
	g := guestOf(ctx)
	if g.shell != nil && uint32(stack[0]) == 0 && g.shell.beforeRead(ctx, resumableRead, stack) {
		stack[0] = retry
		return
	}
	g.notWhileBooting("reads standard input, which belongs to its start-up,")
	stack[0] = uint64(fdRead(g, mod.Memory(), stack))
}

func fdRead(g *guest, m api.Memory, p []uint64) errno {
	if uint32(p[0]) != 0 {
		return errnoBadf
	}
	g.checkDeadline()
	var n int
	e := iovecs(m, uint32(p[1]), uint32(p[2]), func(b []byte) bool {
		k := copy(b, g.stdin)
		g.stdin = g.stdin[k:]
		n += k
		return len(g.stdin) > 0
	})
	if e == errnoSuccess && !m.WriteUint32Le(uint32(p[3]), uint32(n)) {
		e = errnoFault
	}
	return e
}

func fdWrite(g *guest, m api.Memory, p []uint64) errno {
	fd := uint32(p[0])
	if fd != 1 && fd != 2 {
		return errnoBadf
	}
	g.checkDeadline()
	var n int
	e := iovecs(m, uint32(p[1]), uint32(p[2]), func(b []byte) bool {
		for piece := range slices.Chunk(b, bulkPiece) {
			if fd == 1 {
				g.writeStdout(piece)
			} else {
				g.log.Write(piece)
			}
			g.spend(len(piece))
		}
		n += len(b)
		return true
	})
	if e == errnoSuccess && !m.WriteUint32Le(uint32(p[3]), uint32(n)) {
		e = errnoFault
	}
	return e
}

// pollOneoff waits for timers; the standard descriptors are always ready. Guests sleep by it, so it honours the deadline.
func pollOneoff(g *guest, m api.Memory, p []uint64) errno {
	const subscriptionSize, eventSize, maxSubscriptions = 48, 32, 4096
	const tagClock, tagRead, tagWrite, absolute = 0, 1, 2, 1
	count := uint32(p[2])
	if count == 0 || count > maxSubscriptions {
		return errnoInval
	}
	subs, ok := m.Read(uint32(p[0]), count*subscriptionSize)
	if !ok {
		return errnoFault
	}
	// The events may overlap the subscriptions.
	subs = append([]byte(nil), subs...)
	events, ok := m.Read(uint32(p[1]), count*eventSize)
	if !ok {
		return errnoFault
	}
	g.checkDeadline()

	now := map[uint32]int64{clockRealtime: g.now().UnixNano(), clockMonotonic: int64(g.monotonic())}
	waits := make([]time.Duration, count) // until each subscription is due
	errs := make([]errno, count)
	shortest := time.Duration(1<<63 - 1)
	for i := range waits {
		s := subs[i*subscriptionSize:]
		switch s[8] {
		case tagClock:
			clock, timeout := binary.LittleEndian.Uint32(s[16:]), int64(binary.LittleEndian.Uint64(s[24:]))
			at, known := now[clock]
			switch {
			case !known:
				errs[i] = errnoInval
			case timeout < 0: // beyond 292 years
				waits[i] = 1<<63 - 1
			case binary.LittleEndian.Uint16(s[40:])&absolute != 0:
				waits[i] = time.Duration(max(0, timeout-at))
			default:
				waits[i] = time.Duration(timeout)
			}
		case tagRead, tagWrite:
			if binary.LittleEndian.Uint32(s[16:]) > 2 {
				errs[i] = errnoBadf
			}
		default:
			return errnoInval
		}
		shortest = min(shortest, waits[i])
	}
	if shortest > 0 {
		g.sleep(shortest)
	}
	var n uint32
	for i := range waits {
		if waits[i] > shortest {
			continue
		}
		s, e := subs[i*subscriptionSize:], events[n*eventSize:][:eventSize]
		clear(e)
		copy(e, s[:8]) // user data
		binary.LittleEndian.PutUint16(e[8:], uint16(errs[i]))
		e[10] = s[8]
		n++
	}
	if !m.WriteUint32Le(uint32(p[3]), n) {
		return errnoFault
	}
	return errnoSuccess
}
