package wasm

import (
	"bytes"
	"encoding/json"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// costly are guests that have the host do as much as a call may ask for, again and again: what the host does for a guest costs it no fuel.
func costly() map[string][]byte {
	kinds := make(map[string][]byte)
	add := func(what, function string, data []byte, args ...int32) {
		sig := abiFuncs[function].signature()
		var call []byte
		for _, a := range args {
			call = append(call, i32c(a)...)
		}
		kinds[what] = newModule().section(secType, vec([]byte{0x60, 0, 0}, concat([]byte{0x60}, sized(sig.params), sized(sig.results)))...).
			section(secImport, vec(concat(name(keyfireModule), name(function), []byte{kindFunc, 1}))...).
			section(secFunction, 1, 0).section(secMemory, concat([]byte{1, 0}, appendU32(nil, 1023))...).
			section(secExport, vec(concat(name("_start"), []byte{kindFunc, 1}))...).
			section(secCode, vec(fn(nil, concat([]byte{opLoop, typeEmpty}, call, []byte{opCall, 0, 0x1a, opBr, 0, opEnd})...))...).
			section(secData, vec(concat([]byte{0}, i32c(0), []byte{opEnd}, sized(data)))...).b
	}
	head := []byte(`{"method":"GET","url":"https://api.example.com","headers":[` + strings.Repeat(`["A","b"],`, 6000) + `["A","b"]]}`)
	said := []byte(`{"error":{"class":"failed","message":"` + strings.Repeat(`\u0061`, 2000) + `"}}`)
	add("a name of 60 MiB", "config_get", nil, 0, 60<<20, 0, 0)
	add("all of the config", "config_get", nil, 0, 0, 0, 1<<20)
	add("nothing but line breaks", "log", bytes.Repeat([]byte("\n"), 64<<10), 1, 0, 64<<10)
	add("requests that are refused", "http_request", head, 0, int32(len(head)), 0, 0)
	add("errors", "error_set", said, 0, int32(len(said)))
	add("the input", "input_read", nil, 0, 0, 1<<20)
	return kinds
}

// TestHostWorkDeadline is promise S2 for guests that compute little and ask for much: they are stopped at their deadline.
func TestHostWorkDeadline(t *testing.T) {
	t.Parallel()
	b := setup(t)
	config, err := json.Marshal(map[string]string{"text": strings.Repeat("\n", 200<<10)})
	if err != nil {
		t.Fatal(err)
	}
	for what, binary := range costly() {
		d := b.publish(t, binary)
		res, err := b.Invoke(t.Context(), Call{
			Account: core.DefaultAccount, Module: d, Input: bytes.Repeat([]byte("1"), 900<<10), Config: config,
			Grants: core.Grants{HTTP: []string{"GET https://other.example.com"}}, Limits: core.Limits{Timeout: core.Duration(100 * time.Millisecond), HostCalls: MaxHostCalls},
		})
		wantError(t, err, core.ClassTimeout)
		over := res.Wall - 100*time.Millisecond
		t.Logf("%s: stopped %s after its deadline", what, over)
		if over > 2*time.Second { // the promise is 250 ms; a busy machine is no failure, and what these were seen to take was up to 10 s
			t.Errorf("%s: it ran for %s after its deadline", what, over)
		}
	}
}

// TestExtismLateError: a plugin whose deadline passes while its error is taken from it has failed like any other. Here making room for a long text takes longer
// than the plugin has.
func TestExtismLateError(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, newModule().section(secType, vec([]byte{0x60, 0, 1, typeI32}, []byte{0x60, 1, typeI64, 1, typeI64}, []byte{0x60, 1, typeI64, 0})...).
		section(secImport, vec(concat(name(extismModule), name("alloc"), []byte{kindFunc, 1}), concat(name(extismModule), name("error_set"), []byte{kindFunc, 2}))...).
		section(secFunction, 1, 0).section(secMemory, 1, 0, 1).
		section(secExport, vec(concat(name("run"), []byte{kindFunc, 2}))...).
		section(secCode, vec(fn(nil, concat(appendSigned([]byte{opI64Const}, 15<<20), []byte{opCall, 0, opCall, 1}, i32c(1))...))...).b)
	for range 10 {
		_, err := b.Invoke(t.Context(), Call{Account: core.DefaultAccount, Module: d, Export: "run", Input: []byte("1"), Limits: core.Limits{Timeout: core.Duration(time.Millisecond)}})
		if class := wantAnyError(t, err); class != core.ClassFailed && class != core.ClassTimeout {
			t.Errorf("it ends with class %s: %v", class, err)
		}
	}
}

// wantAnyError checks that err is the node's, and returns its class.
func wantAnyError(t *testing.T, err error) core.ErrorClass {
	t.Helper()
	e, ok := err.(*Error)
	if !ok {
		t.Fatalf("error %v, want the node's", err)
	}
	return e.Class
}

// TestCrowd: invocations are counted while they are under way, however they end, and guests let others go first only when they may be as many as the processors.
func TestCrowd(t *testing.T) {
	t.Parallel()
	var b bundle
	var most atomic.Int32
	b = setup(t, func(c *Config) {
		c.Now = func() time.Time {
			most.Store(max(most.Load(), b.crowd.count.Load())) // the guest asks for the time
			return time.Now()
		}
	})
	clock := abiFuncs["clock"].signature()
	asks := func(then byte) string {
		return b.publish(t, newModule().section(secType, vec([]byte{0x60, 0, 0}, concat([]byte{0x60}, sized(clock.params), sized(clock.results)))...).
			section(secImport, vec(concat(name(keyfireModule), name("clock"), []byte{kindFunc, 1}))...).section(secFunction, 1, 0).section(secMemory, 1, 0, 1).
			section(secExport, vec(concat(name("_start"), []byte{kindFunc, 1}))...).section(secCode, vec(fn(nil, opCall, 0, 0x1a, then))...).b)
	}
	_, err := b.call(t, asks(0x01), "", core.Limits{})
	wantError(t, err, core.ClassInvalidOutput)
	_, err = b.call(t, asks(opUnreachable), "", core.Limits{})
	wantError(t, err, core.ClassTrap)
	if now := b.crowd.count.Load(); most.Load() != 1 || now != 0 {
		t.Errorf("counted %d at most, and %d in the end", most.Load(), now)
	}

	c := newCrowd()
	c.count.Store(int32(runtime.GOMAXPROCS(0)) - 1)
	few := c.waits()
	c.count.Add(1)
	if few || !c.waits() || !(*crowd)(nil).waits() {
		t.Errorf("somebody waits: %t with a processor left, %t with none, %t for guests that nobody counts", few, c.waits(), (*crowd)(nil).waits())
	}
}
