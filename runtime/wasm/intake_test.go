package wasm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

const huge = "\xff\xff\xff\xff\x0f" // 2^32-1

// bombs are modules that stop or bloat a process that hands them to the engine as they are (promises.md, facts 1 to 3).
func bombs() map[string][]byte {
	raw := func(id byte, content string) []byte { return newModule().section(id, []byte(content)...).b }
	code := func(b []byte) []byte {
		return newModule().section(secType, vec([]byte{0x60, 0, 0})...).section(secFunction, 1, 0).
			section(secCode, vec(sized(b))...).b
	}
	table := func(entries uint32) []byte {
		return newModule().section(secTable, vec(concat([]byte{typeFuncref, 0}, appendU32(nil, entries)))...).b
	}
	branches := concat([]byte{0}, i32c(0), []byte{opBrTable}, appendU32(nil, 1_000_000), make([]byte, 1_000_001), []byte{opEnd})
	ifs := bytes.Repeat(concat([]byte{opLocalGet, 0, opIf, typeEmpty}, i32c(1), []byte{opLocalSet, 1, opEnd}), 5_000)
	return map[string][]byte{
		"imports":             raw(secImport, huge),
		"types":               raw(secType, huge),
		"functions":           raw(secFunction, huge),
		"tables":              raw(secTable, huge),
		"globals":             raw(secGlobal, huge),
		"exports":             raw(secExport, huge),
		"elements":            raw(secElement, huge),
		"element entries":     raw(secElement, "\x01\x00\x41\x00\x0b"+huge),
		"bodies":              raw(secCode, huge),
		"data":                raw(secData, huge),
		"data bytes":          raw(secData, "\x01\x01"+huge),
		"parameters":          raw(secType, "\x01\x60"+huge),
		"section":             append(newModule().b, "\x01"+huge...),
		"custom name":         raw(secCustom, huge),
		"function names":      raw(secCustom, "\x04name\x01\x05"+huge),
		"local names":         raw(secCustom, "\x04name\x02\x07\x01\x00"+huge),
		"name":                raw(secCustom, "\x04name\x00\x05"+huge),
		"locals":              code([]byte("\x01" + huge + "\x7f\x0b")),
		"64 M locals":         code([]byte("\x01\x80\x80\x80\x20\x7f\x0b")),
		"locals by many runs": code(concat(appendU32(nil, 3), bytes.Repeat([]byte("\xff\xff\x02\x7f"), 3), []byte{opEnd})),
		"branch table":        code([]byte("\x00\x41\x00\x0e" + huge)),
		"long branch table":   code(branches),
		"deep blocks":         code(concat([]byte{0}, bytes.Repeat([]byte{opBlock, typeEmpty}, 200_000), bytes.Repeat([]byte{opEnd}, 200_001))),
		"locals through ifs":  code(concat([]byte{1}, appendU32(nil, 2000), []byte{typeI32}, ifs, []byte{opEnd})),
		"table":               table(1<<27 - 1),
		"tables together":     newModule().section(secTable, vec(concat([]byte{typeFuncref, 0}, appendU32(nil, 40_000)), concat([]byte{typeFuncref, 0}, appendU32(nil, 40_000)))...).b,
	}
}

// TestIntakeBombs is promise S1 for what the parser must stop: nothing is allocated by a number in the module. It is not parallel, so that
// the allocations it sees are its own.
func TestIntakeBombs(t *testing.T) {
	for name, b := range bombs() {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := parse(b)
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Fatal("accepted")
			}
			if allocated, limit := after.TotalAlloc-before.TotalAlloc, uint64(64<<10+64*len(b)); allocated > limit {
				t.Errorf("%d bytes were allocated for a module of %d", allocated, len(b))
			}
			t.Logf("%d bytes: %v", len(b), err)
		})
	}
}

// expensive is a module within every structural bound that takes the engine minutes.
func expensive() []byte {
	one := fn([][]byte{concat(appendU32(nil, 900), []byte{typeI32})},
		bytes.Repeat(concat([]byte{opLocalGet, 0, opIf, typeEmpty}, i32c(1), []byte{opLocalSet, 1, opEnd}), 4_000)...)
	var funcs [][]byte
	for range 40 {
		funcs = append(funcs, one)
	}
	return newModule().
		section(secType, vec([]byte{0x60, 0, 0})...).
		section(secFunction, vec(bytes.Split(make([]byte, 40), nil)...)...).
		section(secMemory, 1, 0, 1).
		section(secExport, vec(concat(name("_start"), []byte{kindFunc, 0}))...).
		section(secCode, vec(funcs...)...).b
}

// TestIntakeChild is promise S1 for what only the child's limits can stop.
func TestIntakeChild(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) {
		c.CacheDir, c.CompileCommand = filepath.Join(t.TempDir(), "cache"), compileCommand(t)
	})
	b.childCPU = 1
	before := resident(t)
	began := time.Now()
	_, err := b.Compile(t.Context(), expensive())
	if core.CodeOf(err) != core.CodeInvalidModule || !strings.Contains(err.Error(), "too large") {
		t.Errorf("got %v, want invalid_module", err)
	}
	t.Logf("answered after %s", time.Since(began))
	if grown := resident(t) - before; grown > 300<<20 {
		t.Errorf("the server grew by %d bytes", grown)
	}
	// The next module is not affected.
	b.publish(t, writer(`"next"`, 1))

	// A module is not blamed for what a busy machine did not get done.
	b.childCPU, b.childWall = childCPU, 200*time.Millisecond
	if _, err := b.Compile(t.Context(), expensive()); core.CodeOf(err) != core.CodeOverloaded {
		t.Errorf("got %v, want overloaded", err)
	}
	b.childWall = childWall

	// Neither is the caller's patience.
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the publisher went away")
	time.AfterFunc(50*time.Millisecond, func() { cancel(gone) })
	if _, err := b.Compile(ctx, expensive()); !errors.Is(err, gone) {
		t.Errorf("got %v, want the cause of the context", err)
	}
	if left, err := filepath.Glob(filepath.Join(b.config.CacheDir, "tmp-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// resident returns how much memory this process holds, in bytes.
func resident(t *testing.T) int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skipf("no /proc: %v", err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n * int64(os.Getpagesize())
}

// TestIntakeCompiler covers compile commands that do not work: the fault is the server's.
func TestIntakeCompiler(t *testing.T) {
	t.Parallel()
	for _, command := range [][]string{{"/no/such/program"}, {"/bin/false"}, {"/bin/echo", "hello"}} {
		b := setup(t, func(c *Config) { c.CacheDir, c.CompileCommand = t.TempDir(), command })
		if _, err := b.Compile(t.Context(), writer("1", 1)); err == nil || core.CodeOf(err) != core.CodeInternal {
			t.Errorf("%v: got %v, want an internal error", command, err)
		}
	}
}

// TestIntakeChildKilled: a module is not to blame for a compiler that somebody ends, such as a kernel without memory.
func TestIntakeChildKilled(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]core.Code{
		"kill -KILL $$": core.CodeOverloaded,
		"kill -TERM $$": core.CodeOverloaded,
		"kill -XCPU $$": core.CodeInvalidModule,
		"exit 2":        core.CodeInvalidModule, // what the Go runtime does within its limits
		"exit 1":        core.CodeInternal,
	} {
		b := setup(t, func(c *Config) { c.CacheDir, c.CompileCommand = t.TempDir(), []string{"/bin/sh", "-c", script} })
		_, err := b.Compile(t.Context(), writer("1", 1))
		if core.CodeOf(err) != want {
			t.Errorf("%s: %v, want %s", script, err, want)
		}
		if blames := strings.Contains(err.Error(), "too large"); blames != (want == core.CodeInvalidModule) {
			t.Errorf("%s: %v", script, err)
		}
	}
}

// L1: nobody waits for what is still being compiled when the server stops, such as everything after an upgrade.
func TestCloseEndsCompilingL1(t *testing.T) {
	t.Parallel()
	began := filepath.Join(t.TempDir(), "began")
	b := setup(t, func(c *Config) {
		c.CacheDir, c.CompileCommand = t.TempDir(), []string{"/bin/sh", "-c", `echo >"$0"; exec sleep 600`, began}
	})
	module := writer(`"late"`, 1)
	b.library.modules[digest(module)] = module
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for {
			if _, err := os.Stat(began); err == nil || ctx.Err() != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if _, err := b.Warm(ctx, "", digest(module)); !errors.Is(err, context.Canceled) {
		t.Errorf("Warm: %v", err)
	}
	closing := time.Now()
	if err := b.Close(context.Background()); err != nil {
		t.Error(err)
	}
	if took := time.Since(closing); took > childWall/2 {
		t.Errorf("closing took %s", took)
	}
}

// A server that stops while an image is being made says nothing about the module, whose author would look for a fault in it.
func TestCloseBlamesNoModule(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	b := setup(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&logged, nil)) })
	d := b.publish(t, writer(`"image"`, 1))
	b.booting.Lock()
	if _, err := b.call(t, d, "", core.Limits{}); err != nil { // begins the image, too
		t.Error(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- b.Close(context.Background()) }()
	<-b.life.Done()
	b.booting.Unlock()
	if err := <-closed; err != nil || logged.Len() > 0 {
		t.Errorf("%v, %s", err, &logged)
	}
}

// TestCompileCache checks that compiled code is reused, and that it is executed only as this server's compiler wrote it.
func TestCompileCache(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "cache")
	binary := writer(`"cached"`, 1)
	invoke := func(t *testing.T) string {
		t.Helper()
		b := setup(t, func(c *Config) { c.CacheDir = dir })
		d := b.publish(t, binary)
		res, err := b.call(t, d, "", core.Limits{})
		if err != nil || string(res.Output) != `"cached"` {
			t.Fatalf("%s, %v", res.Output, err)
		}
		return d
	}
	d := invoke(t)
	file, err := onlyFile(filepath.Join(dir, "engine"))
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "engine", file)
	original, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	records, err := filepath.Glob(filepath.Join(dir, "records", "*"))
	if err != nil || len(records) != 1 {
		t.Fatalf("records %v, %v", records, err)
	}

	invoke(t)
	if again, err := os.Stat(file); err != nil || !os.SameFile(original, again) {
		t.Errorf("a cached module was compiled again (%v)", err)
	}
	damage := map[string]func(t *testing.T){
		"one bit of the code":   func(t *testing.T) { flip(t, file) },
		"no code":               func(t *testing.T) { remove(t, file) },
		"one bit of the record": func(t *testing.T) { flip(t, records[0]) },
		"no record":             func(t *testing.T) { remove(t, records[0]) },
		"a record that leads elsewhere": func(t *testing.T) {
			if err := os.WriteFile(records[0], []byte(`{"file":"../../x","mac":""}`), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"another key": func(t *testing.T) { remove(t, dir+".key") },
	}
	for name, hurt := range damage {
		t.Run(name, func(t *testing.T) {
			before, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			hurt(t)
			a, err := openArtifacts(t.Context(), dir, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.verify(d); err == nil {
				t.Error("the damage is not seen")
			}
			if got := invoke(t); got != d {
				t.Errorf("digest %s, want %s", got, d)
			}
			after, err := os.ReadFile(file)
			if err != nil || !bytes.Equal(before, after) {
				t.Errorf("the entry is not as before (%v)", err)
			}
			if a, err = openArtifacts(t.Context(), dir, 0); err != nil {
				t.Fatal(err)
			}
			code, err := a.verify(d)
			if err != nil {
				t.Fatalf("the damage was not repaired: %v", err)
			}
			code.Close()
		})
	}
	t.Run("a key that others can read", func(t *testing.T) {
		if err := os.Chmod(dir+".key", 0o644); err != nil {
			t.Fatal(err)
		}
		if r, err := New(t.Context(), Config{CacheDir: dir, Load: (&library{}).load}); err == nil {
			r.Close(t.Context())
			t.Error("accepted")
		}
	})
}

// TestPrepare: what was compiled ahead is not compiled again, not even by who waited for its turn to compile it.
func TestPrepare(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "cache")
	binary := writer(`"ahead"`, 1)
	d := digest(binary)
	with := func(command ...string) bundle {
		b := setup(t, func(c *Config) { c.CacheDir, c.CompileCommand = dir, command })
		b.library.modules[d] = binary
		return b
	}
	unable := with("/bin/false")
	if err := unable.Prepare(t.Context(), "", d); err == nil || !strings.Contains(err.Error(), d) {
		t.Errorf("without a compiler: %v", err)
	}
	unable.building <- struct{}{} // somebody compiles
	waiting := make(chan error, 1)
	go func() { waiting <- unable.Prepare(t.Context(), "", d) }()

	able := with()
	if err := able.Prepare(t.Context(), "", d); err != nil {
		t.Fatal(err)
	}
	if n := able.Stats().Modules; n != 0 {
		t.Errorf("%d modules are loaded", n)
	}
	if _, ok := able.Weight(d); !ok {
		t.Error("the module is not in the cache")
	}
	<-unable.building
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	if res, err := unable.call(t, d, "", core.Limits{}); err != nil || string(res.Output) != `"ahead"` {
		t.Errorf("%s, %v", res.Output, err)
	}
	if err := able.Prepare(t.Context(), "", digest(nil)); err == nil {
		t.Error("a module that nobody has was prepared")
	}
}

// TestCacheSize: a cache with a bound keeps what was used last, whoever left it, and what is gone is compiled again.
func TestCacheSize(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "cache")
	bounded := func(most int64) bundle { return setup(t, func(c *Config) { c.CacheDir, c.CacheSize = dir, most }) }
	size := func() (sum int64) {
		for _, d := range []string{"engine", "records", "prepared"} {
			err := filepath.WalkDir(filepath.Join(dir, d), func(_ string, e fs.DirEntry, err error) error {
				if err == nil && !e.IsDir() {
					var info fs.FileInfo
					if info, err = e.Info(); err == nil {
						sum += info.Size()
					}
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		return sum
	}
	use := func(b bundle, n int) string {
		t.Helper()
		d := b.publish(t, writer(fmt.Sprintf(`"%04d"`, n), 1))
		if res, err := b.call(t, d, "", core.Limits{}); err != nil || string(res.Output) != fmt.Sprintf(`"%04d"`, n) {
			t.Fatalf("module %d: %s, %v", n, res.Output, err)
		}
		return d
	}
	first := use(bounded(0), 0)
	one := size()
	most := 3*one + one/2
	// Of a compiler that was killed, or of another version of the engine.
	if err := os.WriteFile(filepath.Join(dir, "engine", "left"), make([]byte, one), 0o600); err != nil {
		t.Fatal(err)
	}
	b := bounded(most)
	for n := range 6 {
		latest := use(b, n)
		use(bounded(most), 0) // by another process, as it were
		if got := size(); got > most {
			t.Errorf("with %d modules there are %d bytes, more than %d", n, got, most)
		}
		for _, d := range []string{latest, first} {
			code, err := b.artifacts.verify(d)
			if err != nil {
				t.Fatalf("after module %d, one that was just used: %v", n, err)
			}
			code.Close()
		}
	}
	if _, err := b.artifacts.verify(digest(writer(`"0001"`, 1))); err == nil {
		t.Error("the module that was not used for longest is still there")
	}
	if _, err := os.Stat(filepath.Join(dir, "engine", "left")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what belongs to no module is still there: %v", err)
	}
	use(bounded(most), 1)
	use(bounded(1), 7) // not even one fits
}

func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// TestIntakeMutations publishes damaged copies of real modules; TestChaosIntake does so with 2,000 of them.
func TestIntakeMutations(t *testing.T) {
	t.Parallel()
	intakeMutations(t, 60)
}

func intakeMutations(t *testing.T, count int) {
	t.Helper()
	source, err := engineSource()
	if err != nil {
		t.Skipf("the engine's source is not in the module cache: %v", err)
	}
	var seeds [][]byte
	for _, pattern := range []string{"examples/*/testdata/*.wasm", "imports/wasi_snapshot_preview1/testdata/*/*.wasm"} {
		files, err := filepath.Glob(filepath.Join(source, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			seeds = append(seeds, b)
		}
	}
	if len(seeds) == 0 {
		t.Skip("the engine's module comes without examples")
	}
	b := setup(t)
	b.childWall = childWall
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	refused, compiled := 0, 0
	for range count {
		m := mutate(random, seeds[random.IntN(len(seeds))])
		began := time.Now()
		_, err := b.Compile(t.Context(), m)
		if took := time.Since(began); took > childWall+time.Second {
			t.Errorf("a damaged module of %d bytes is answered after %s", len(m), took)
		}
		switch core.CodeOf(err) {
		case "":
			compiled++
		case core.CodeInvalidModule:
			refused++
		default:
			t.Fatalf("a damaged module is answered with %v", err)
		}
	}
	t.Logf("%d refused, %d compiled", refused, compiled)
}

// mutate changes a few places of a binary.
func mutate(r *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	for range 1 + r.IntN(4) {
		at := 8 + r.IntN(len(b)-8)
		switch r.IntN(4) {
		case 0:
			b[at] ^= 1 << r.IntN(8)
		case 1:
			b[at] = byte(r.Uint32())
		case 2:
			b = append(b[:at:at], append([]byte(huge), b[at:]...)...)
		default:
			b = append(b[:at:at], b[min(len(b), at+1+r.IntN(16)):]...)
		}
		if len(b) <= 16 {
			break
		}
	}
	return b
}

// FuzzParse checks that no input makes the parser panic, hang or allocate out of proportion, and that what it accepts the engine answers.
func FuzzParse(f *testing.F) {
	for _, b := range bombs() {
		if len(b) < 1<<10 {
			f.Add(b)
		}
	}
	f.Add(writer("1", 1))
	f.Add(probeModule)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		m, err := parse(b)
		if err != nil {
			return
		}
		if len(m.types) > len(b) || len(m.bodies) > len(b) || m.locals > maxAllLocals {
			t.Errorf("more was read than there is")
		}
		if _, err := inspect(b); err == nil {
			if _, failed := compileOnce(t.Context(), t.TempDir(), b); failed != nil {
				t.Error(failed)
			}
		}
	})
}
