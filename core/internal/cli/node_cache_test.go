package cli

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// answering is a node that answers true: a reactor of one function.
var answering = []byte("\x00asm\x01\x00\x00\x00" +
	"\x01\x0c\x02\x60\x02\x7f\x7f\x01\x7f\x60\x01\x7f\x01\x7f" + // types: of output_write and of run
	"\x02\x1b\x01\x0akeyfire_v1\x0coutput_write\x00\x00" +
	"\x03\x02\x01\x01" +
	"\x05\x03\x01\x00\x01" +
	"\x07\x10\x02\x06memory\x02\x00\x03run\x00\x01" +
	"\x0a\x0d\x01\x0b\x00\x41\x08\x41\x04\x10\x00\x1a\x41\x00\x0b" + // output_write(8, 4); 0
	"\x0b\x0a\x01\x00\x41\x08\x0b\x04true")

// TestNodeCache: what keyfire node compiled is there the next time, is used only as it was left, and is not needed.
func TestNodeCache(t *testing.T) {
	t.Parallel()
	dir, tmp := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "true.wasm"), answering, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(env []string, args ...string) (notes string) {
		t.Helper()
		out, errs, code := runKeyfire(t, dir, append([]string{"TMPDIR=" + tmp, envNodeCache + "="}, env...), append([]string{"node", "run", "true.wasm"}, args...)...)
		if code != 0 || out != "true\n" {
			t.Errorf("%v %v: exit %d\n%s%s", env, args, code, out, errs)
		}
		return errs
	}
	home := filepath.Join(t.TempDir(), "home")
	here := []string{"HOME=" + home, "XDG_CACHE_HOME="}
	cache := filepath.Join(home, ".cache", "keyfire")

	run(here, "--cache", "off")
	if files := filesBelow(t, home); len(files) > 0 {
		t.Errorf("--cache off leaves %v", files)
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { run(here) })
	}
	all.Wait()
	if run(here); t.Failed() {
		return
	}
	info, err := os.Stat(cache)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("the cache has mode %v, %v", info.Mode(), err)
	}
	files := filesBelow(t, cache) // native code, record, rewritten module and key
	if len(files) != 4 {
		t.Fatalf("four at once left %v", files)
	}

	// Native code that was changed is not executed but made again, and so is what another key vouches for.
	var code string
	for _, f := range files {
		if strings.HasPrefix(f, filepath.Join("modules", "engine")) {
			code = filepath.Join(cache, f)
		}
	}
	good, err := os.ReadFile(code)
	if err != nil {
		t.Fatal(err)
	}
	for _, hurt := range []func() error{
		func() error {
			return os.WriteFile(code, append(bytes.Clone(good[:len(good)-1]), ^good[len(good)-1]), 0o600)
		},
		func() error { return os.Remove(filepath.Join(cache, "modules.key")) },
	} {
		old, err := os.Open(code) // held open, so that no other file can become the same
		if err != nil {
			t.Fatal(err)
		}
		defer old.Close()
		before, err := old.Stat()
		if err == nil {
			err = hurt()
		}
		if err != nil {
			t.Fatal(err)
		}
		run(here)
		b, err := os.ReadFile(code)
		if err != nil || !bytes.Equal(b, good) {
			t.Errorf("the native code is not as it was: %v", err)
		}
		if after, err := os.Stat(code); err != nil || os.SameFile(before, after) {
			t.Errorf("native code that nothing vouches for was left there: %v", err)
		}
	}

	// Directories to choose; those that cannot be used are said, and the module runs.
	elsewhere := t.TempDir()
	run([]string{"XDG_CACHE_HOME=" + elsewhere})
	run([]string{envNodeCache + "=" + filepath.Join(elsewhere, "named")})
	for _, d := range []string{"keyfire", "named"} {
		if len(filesBelow(t, filepath.Join(elsewhere, d))) != 4 {
			t.Errorf("%s was not used", d)
		}
	}
	open := filepath.Join(elsewhere, "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if said := run(here, "--cache", open); !strings.Contains(said, "can be entered by others") || len(filesBelow(t, open)) > 0 {
		t.Errorf("a directory that others can enter: %s%v", said, filesBelow(t, open))
	}
	if said := run([]string{"HOME=" + filepath.Join(dir, "true.wasm"), "XDG_CACHE_HOME="}); !strings.Contains(said, "for this time only") {
		t.Errorf("without a place for a cache: %s", said)
	}
	if said := run([]string{"HOME=", "XDG_CACHE_HOME="}); said != "" {
		t.Errorf("without a home: %s", said)
	}
	if files := filesBelow(t, tmp); len(files) > 0 {
		t.Errorf("left among the temporary files: %v", files)
	}
}

// filesBelow lists the files in dir and the folders below it, none if it is not there.
func filesBelow(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if path, err = filepath.Rel(dir, path); err == nil {
				files = append(files, path)
			}
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return files
}
