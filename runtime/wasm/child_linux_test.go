package wasm

import (
	"os"
	"path/filepath"
	"testing"
)

// TestCompileWithoutDisk: a disk that takes nothing more is no fault of the module, which would be refused for good otherwise.
func TestCompileWithoutDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if refused, failed := compileOnce(t.Context(), dir, probeModule); refused != nil || failed != nil {
		t.Fatal(refused, failed)
	}
	made, err := os.ReadDir(dir)
	if err != nil || len(made) != 1 {
		t.Fatal(made, err)
	}
	version := filepath.Join(dir, made[0].Name())
	if err := os.RemoveAll(version); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self", version); err != nil { // where nobody makes files, root included
		t.Fatal(err)
	}
	if refused, failed := compileOnce(t.Context(), dir, probeModule); refused != nil || failed == nil {
		t.Errorf("refused as %v, failed with %v", refused, failed)
	}
}
