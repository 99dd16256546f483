// Package nodes_test runs the nodes as the programs they are.
package nodes_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/examples/nodes/internal/sales"
)

// build compiles every node into a fresh directory, natively or with the environment given.
func build(t *testing.T, env ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, main := range mains(t) {
		cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, filepath.Base(main)), "./"+main)
		cmd.Env = append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", main, err, out)
		}
	}
	return dir
}

// mains returns the directory of every node: <workflow>/<node>.
func mains(t *testing.T) []string {
	t.Helper()
	files, err := fs.Glob(os.DirFS("."), "*/*/main.go")
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		files[i] = filepath.Dir(f)
	}
	return files
}

// Every node has a name of its own and compiles to a WebAssembly module with the plain Go toolchain.
func TestNodesAreModules(t *testing.T) {
	t.Parallel()
	dir := build(t, "GOOS=wasip1", "GOARCH=wasm")
	modules, err := os.ReadDir(dir)
	if want := len(mains(t)); err != nil || len(modules) != want || want == 0 {
		t.Fatalf("%d modules, %v; want one for each of the %d nodes", len(modules), err, want)
	}
	for _, m := range modules {
		binary, err := os.ReadFile(filepath.Join(dir, m.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(binary, []byte("\x00asm\x01\x00\x00\x00")) {
			t.Errorf("%s is not a WebAssembly module", m.Name())
		}
	}
}

// invoke runs one node and decodes its output into out.
func invoke(t *testing.T, node string, in map[string]any, out any) {
	t.Helper()
	stdin, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(node)
	cmd.Stdin = bytes.NewReader(stdin)
	stdout, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", filepath.Base(node), err, stdout)
	}
	if err := json.Unmarshal(stdout, out); err != nil {
		t.Fatalf("%s wrote %q: %v", filepath.Base(node), stdout, err)
	}
}

// The totals of csv-report are those that awk counts in the same file, to the cent: overall, by month and by country.
func TestReportEqualsIndependentCount(t *testing.T) {
	t.Parallel()
	awk, err := exec.LookPath("awk")
	if err != nil {
		t.Skip("there is no awk on this machine to count with")
	}
	const example = "../workflows/csv-report/"
	counted, err := exec.Command(awk, "-f", example+"totals.awk", example+"orders.csv").Output()
	if err != nil {
		t.Fatal(err)
	}
	export, err := os.ReadFile(example + "orders.csv")
	if err != nil {
		t.Fatal(err)
	}

	dir := build(t)
	var valid struct {
		Orders             json.RawMessage
		Accepted, Rejected int
	}
	invoke(t, filepath.Join(dir, "validate"), map[string]any{
		"csv": string(export), "config": map[string]any{"currency": "EUR", "max_rejected_percent": 2},
	}, &valid)
	var totals struct {
		Overall           sales.Sum
		Months, Countries []sales.Group
	}
	invoke(t, filepath.Join(dir, "totals"), map[string]any{"orders": valid.Orders}, &totals)

	line := func(kind, key string, s sales.Sum) string {
		return fmt.Sprintf("%s %s orders %d cancelled %d units %d gross_cents %d refund_cents %d net_cents %d",
			kind, key, s.Orders, s.Cancelled, s.Units, s.Gross, s.Refunds, s.Net)
	}
	got := []string{fmt.Sprintf("accepted %d rejected %d", valid.Accepted, valid.Rejected), line("total", "all", totals.Overall)}
	for _, m := range totals.Months {
		got = append(got, line("month", m.Key, m.Sum))
	}
	slices.SortFunc(totals.Countries, func(a, b sales.Group) int { return strings.Compare(a.Key, b.Key) })
	for _, c := range totals.Countries {
		got = append(got, line("country", c.Key, c.Sum))
	}
	if want := strings.TrimSpace(string(counted)); strings.Join(got, "\n") != want {
		t.Errorf("the nodes count\n%s\nawk counts\n%s", strings.Join(got, "\n"), want)
	}
	if valid.Accepted < 1000 {
		t.Errorf("%d orders; the example promises more than 1,000", valid.Accepted)
	}
}
