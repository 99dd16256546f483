package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// The checked-in files are what this program writes, so neither can be edited without the other.
func TestFilesAreUpToDate(t *testing.T) {
	t.Parallel()
	export := generate()
	request, err := requestBody(export)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"orders.csv": export, "request.json": request} {
		got, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "workflows", "csv-report", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what genorders writes; run: go run ./internal/sales/genorders ../workflows/csv-report", name)
		}
	}
}
