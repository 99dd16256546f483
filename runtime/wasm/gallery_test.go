package wasm

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/core"
)

type galleryOutput struct {
	Accepted int `json:"accepted"`
	Rejected []struct {
		Line   int    `json:"line"`
		Reason string `json:"reason"`
	} `json:"rejected"`
	Countries []galleryCountry `json:"countries"`
}

type galleryCountry struct {
	Country string `json:"country"`
	Orders  int64  `json:"orders"`
	Units   int64  `json:"units"`
	Cents   int64  `json:"cents"`
}

// galleryDocument makes a document of some 50 KB, and with it what every node must make of it.
func galleryDocument() (document string, want galleryOutput) {
	return randomDocument(rand.New(rand.NewPCG(1, 2)), 50_000)
}

// randomDocument makes one of about size bytes.
func randomDocument(r *rand.Rand, size int) (document string, want galleryOutput) {
	var b strings.Builder
	b.WriteString("id,customer,country,qty,price\n")
	totals := map[string]galleryCountry{}
	customers := []string{"Ada", `O"Brien`, "Zoë", `back\slash`, "Ünal\tÇelik", "李", "𝄞"}
	for line := 2; b.Len() < size; line++ {
		id, country, qty, price := fmt.Sprintf("ord-%06d", line), string([]byte{byte('A' + r.IntN(26)), byte('A' + r.IntN(3))}), 1+r.Int64N(1000), r.Int64N(1_000_000)
		fields := []string{id, customers[r.IntN(len(customers))], country, fmt.Sprint(qty), fmt.Sprint(price)}
		reason := ""
		switch r.IntN(40) {
		case 0:
			fields, reason = fields[:4], "fields"
		case 1:
			fields, reason = append(fields, "more"), "fields"
		case 2:
			fields[0], reason = "", "id"
		case 3:
			fields[2], reason = strings.ToLower(country), "country"
		case 4:
			fields[2], reason = country+"X", "country"
		case 5:
			fields[3], reason = []string{"0", "-1", "1.5", "", "1000001", "99999999999"}[r.IntN(6)], "qty"
		case 6:
			fields[4], reason = []string{"", "x", "1000000001", " 1"}[r.IntN(4)], "price"
		case 7:
			b.WriteString("\n") // an empty line counts, and is no order
			continue
		}
		b.WriteString(strings.Join(fields, ",") + "\n")
		if reason != "" {
			want.Rejected = append(want.Rejected, struct {
				Line   int    `json:"line"`
				Reason string `json:"reason"`
			}{line, reason})
			continue
		}
		want.Accepted++
		t := totals[country]
		totals[country] = galleryCountry{country, t.Orders + 1, t.Units + qty, t.Cents + qty*price}
	}
	for _, t := range totals {
		want.Countries = append(want.Countries, t)
	}
	sort.Slice(want.Countries, func(i, j int) bool { return want.Countries[i].Country < want.Countries[j].Country })
	return b.String(), want
}

// galleryNode is one node of the gallery.
type galleryNode struct {
	name, dir string
	build     []string // OUT stands for the module; nil for a script
	call      string
	door      Door
}

// galleryNodes are all of them.
func galleryNodes() []galleryNode {
	clang := []string{"clang", "--target=wasm32-wasi", "-mexec-model=reactor", "-Os", "-Wall", "-Werror", "-Wl,--strip-all", "-o", "OUT", "node.c"}
	return []galleryNode{
		{"go", "go", []string{"go", "build", "-trimpath", "-ldflags", "-s -w", "-buildmode=c-shared", "-o", "OUT", "."}, "", DoorReactor},
		{"go command", "go", []string{"go", "build", "-trimpath", "-ldflags", "-s -w", "-o", "OUT", "."}, "", DoorCommand},
		{"c", "c", clang, "", DoorReactor},
		{"extism", "c", append(clang[:len(clang):len(clang)], "-DEXTISM"), "run_test", DoorExtism},
		{"rust", "rust", []string{"/usr/bin/rustc", "--edition", "2021", "--target", "wasm32-wasi", "-C", "linker=wasm-ld-14", "-O", "-C", "strip=symbols", "-o", "OUT", "node.rs"}, "", DoorCommand},
		{"assemblyscript", "assemblyscript", []string{"npx", "--no-install", "asc", "node.ts", "-O", "--runtime", "stub", "--use", "abort=node/abort", "--exportStart", "_initialize", "-o", "OUT"}, "", DoorReactor},
		{"javascript", "javascript", nil, "", DoorJavaScript},
	}
}

var galleryBuilds sync.Map // of *sync.Mutex, by name

// binary builds the node once.
func (n galleryNode) binary(t testing.TB) []byte {
	t.Helper()
	gallery, err := filepath.Abs(filepath.FromSlash("../../examples/nodes/gallery"))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(gallery, n.dir)
	file := filepath.Join(dir, "node.js")
	if n.build != nil {
		file = filepath.Join(sharedDir, "gallery "+n.name+".wasm")
		lock, _ := galleryBuilds.LoadOrStore(n.name, new(sync.Mutex))
		lock.(*sync.Mutex).Lock()
		defer lock.(*sync.Mutex).Unlock()
		if _, err := os.Stat(file); err != nil {
			buildGallery(t, dir, file, n.build)
		}
	}
	binary, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// TestGallery runs the same node in every language. A language whose toolchain is absent is skipped, loudly, unless
// KEYFIRE_TOOLCHAINS, a list of commands, says that it must be there.
func TestGallery(t *testing.T) {
	t.Parallel()
	document, want := galleryDocument()
	input, err := json.Marshal(map[string]string{"document": document})
	if err != nil {
		t.Fatal(err)
	}
	b := setup(t)
	for _, tt := range galleryNodes() {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := b
			if tt.build == nil {
				b = setup(t, withScripts(t))
			}
			binary := tt.binary(t)
			info, err := b.Compile(t.Context(), binary)
			if err != nil {
				t.Fatal(err)
			}
			if info.Door != tt.door {
				t.Errorf("door %s, want %s", info.Door, tt.door)
			}
			d := b.publish(t, binary)
			call := Call{Account: core.DefaultAccount, Module: d, Input: input, Export: tt.call, Limits: core.Limits{Timeout: core.Duration(time.Minute)}}
			for range 2 {
				res, err := b.Invoke(t.Context(), call)
				if err != nil {
					t.Fatal(err)
				}
				var got galleryOutput
				if err := json.Unmarshal(res.Output, &got); err != nil {
					t.Fatalf("output %.200s: %v", res.Output, err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("output (-want +got):\n%s", diff)
				}
				t.Logf("%d bytes, fuel %d, wall %v", len(binary), res.Fuel, res.Wall)
			}
			call.Input = []byte(`{}`)
			if tt.dir == "go" || tt.dir == "javascript" {
				return // an absent text is an empty one there, or a TypeError
			}
			_, err = b.Invoke(t.Context(), call)
			if e := wantError(t, err, core.ClassFailed); e.Message != "the input has no text called document" {
				t.Errorf("message %q", e.Message)
			}
		})
	}
}

// buildGallery builds a node as its page says.
func buildGallery(t testing.TB, dir, out string, args []string) {
	t.Helper()
	absent := func(why any) {
		t.Helper()
		if slices.Contains(strings.Fields(os.Getenv("KEYFIRE_TOOLCHAINS")), filepath.Base(args[0])) {
			t.Fatalf("the toolchain is absent: %v", why)
		}
		t.Skipf("SKIPPED: the toolchain is absent: %v", why)
	}
	if _, err := exec.LookPath(args[0]); err != nil {
		absent(err)
	}
	if args[0] == "npx" {
		if _, err := os.Stat(filepath.Join(dir, "node_modules", "assemblyscript")); err != nil {
			absent("run npm install in " + dir)
		}
	}
	if args[0] == "clang" {
		if _, err := os.Stat("/usr/lib/wasm32-wasi/libc.a"); err != nil {
			absent("wasi-libc is not installed")
		}
	}
	words := make([]string, len(args)-1)
	for i, a := range args[1:] {
		words[i] = strings.ReplaceAll(a, "OUT", out)
	}
	cmd := exec.Command(args[0], words...)
	cmd.Dir = dir
	cmd.Env = os.Environ()
	if args[0] == "go" {
		cmd.Env = append(cmd.Env, "GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=-trimpath")
	}
	if b, err := cmd.CombinedOutput(); err != nil {
		if strings.Contains(string(b), "can't find crate for") {
			absent("libstd-rust-dev-wasm32 is not installed")
		}
		t.Fatalf("%v\n%s", err, b)
	}
}
