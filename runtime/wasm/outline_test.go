package wasm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/keyfire/keyfire/core"
)

// digitWriter is a command that answers with a digit, which is in its code alone.
func digitWriter(digit byte) []byte {
	store := func(to, v int32) []byte { return concat(i32c(to), i32c(v), []byte{0x36, 2, 0}) }
	return command([]string{"fd_write"}, 2, concat(store(16, int32(digit)), store(0, 16), store(4, 1), i32c(1), i32c(0), i32c(1), i32c(8), []byte{opCall, 0, 0x1a})...)
}

// TestOutline: modules that differ in nothing but their code are told apart, and one whose native code goes away while it is loaded is compiled again,
// and not run as its outline.
func TestOutline(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) {
		c.CacheDir, c.ModuleBudget, c.Engine = filepath.Join(t.TempDir(), "cache"), 1, EnginePlain
	})
	answers := func(d, want string) {
		t.Helper()
		if res, err := b.call(t, d, "", core.Limits{}); err != nil || string(res.Output) != want {
			t.Errorf("%s, %v, want %s", res.Output, err, want)
		}
	}
	three, four := b.publish(t, digitWriter('3')), b.publish(t, digitWriter('4'))
	answers(three, "3")
	answers(four, "4")
	answers(three, "3")

	_, rw, err := b.artifacts.kept(three)
	if err != nil {
		t.Fatal(err)
	}
	code, err := b.artifacts.verify(three)
	if err != nil {
		t.Fatal(err)
	}
	defer code.Close()
	good, err := os.ReadFile(code.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(code.path); err != nil {
		t.Fatal(err)
	}
	// The engine finds nothing, compiles what it is given, and leaves that where the native code was.
	compiled, err := b.wazero.CompileModule(t.Context(), rw.binary)
	if err != nil {
		t.Fatal(err)
	}
	bad, err := os.ReadFile(code.path)
	if err != nil || bytes.Equal(bad, good) {
		t.Fatalf("the engine did not compile the outline (%v), so this test shows nothing", err)
	}
	if code.there() {
		t.Error("nobody sees that the native code was not there")
	}
	if err := compiled.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	answers(three, "3")
	if again, err := os.ReadFile(code.path); err != nil || !bytes.Equal(again, good) {
		t.Errorf("the native code is not as it was: %v", err)
	}

	// While files come and go, as in a cache that several processes keep small, there is an answer or an error that says so.
	var taken atomic.Int32
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
			}
			if os.Remove(code.path) == nil {
				taken.Add(1)
			}
			runtime.Gosched()
		}
	}()
	for n := 0; n < 10 || taken.Load() < 3; n++ {
		res, err := b.call(t, three, "", core.Limits{})
		if err == nil && string(res.Output) != "3" || err != nil && !errors.Is(err, errReplaced) && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s, %v", res.Output, err)
		}
	}
	close(done)
	<-ended
	answers(three, "3")
}
