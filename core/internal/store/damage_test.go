package store_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
)

// damages returns how many places are damaged: so few, or as many as the promise says under KEYFIRE_CHAOS.
func damages(few, many int) int {
	if os.Getenv("KEYFIRE_CHAOS") != "" {
		return many
	}
	return few
}

// TestKillWALDamageD4 damages the WAL that a server left which was killed: cut off, or with bytes changed, at places of all kinds. The database opens every
// time, with what was written before the damage and nothing else: the runs are the first so many of those that were acknowledged, and the counter
// is their number. KEYFIRE_CHAOS makes it the 5,000 places of the promise.
func TestKillWALDamageD4(t *testing.T) {
	t.Parallel()
	const runs = 100
	dir := t.TempDir()
	path := filepath.Join(dir, "keyfire.db")
	s := open(t, store.Config{Path: path, SweepEvery: -1})
	prepare(t, s, key("key_1", 0))
	// What is before the runs is in the database file, so that no damage can reach it.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, store.Config{Path: path, SweepEvery: -1})
	for i := range runs {
		if _, err := s.Admit(t.Context(), admission(fmt.Sprintf("run_%03d", i), "key_1")); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	wal, err := os.ReadFile(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d bytes of WAL", seed, len(wal))
	random := rand.New(rand.NewPCG(seed, 0))
	copied := filepath.Join(dir, "copy.db")
	whole, total := 0, damages(40, 5000)
	for n := range total {
		hurt := bytes.Clone(wal)
		at, what := random.IntN(len(wal)), ""
		switch n % 4 {
		case 0:
			hurt, what = hurt[:at], "cut"
		case 1:
			hurt[at] ^= byte(1 << random.IntN(8))
			what = "a bit flipped"
		case 2:
			end := min(len(hurt), at+1+random.IntN(8192))
			for i := at; i < end; i++ {
				hurt[i] = byte(random.IntN(256))
			}
			what = "bytes overwritten"
		default:
			end := min(len(hurt), at+4096)
			clear(hurt[at:end])
			what = "a page of zeros"
		}
		for name, content := range map[string][]byte{"": file, "-wal": hurt} {
			if err := os.WriteFile(copied+name, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_ = os.Remove(copied + "-shm") // of the round before, if that failed
		again, err := store.Open(t.Context(), store.Config{Path: copied, Reserve: -1, SweepEvery: -1})
		if err != nil {
			t.Fatalf("%s at %d: %v", what, at, err)
		}
		ids, used := runsOf(t, again, "key_1")
		for i := range len(ids) {
			if !ids[fmt.Sprintf("run_%03d", i)] {
				t.Fatalf("%s at %d: of %d runs number %d is missing", what, at, len(ids), i)
			}
		}
		if int64(len(ids)) != used {
			t.Fatalf("%s at %d: %d runs, counter %d", what, at, len(ids), used)
		}
		if len(ids) == runs {
			whole++
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d places: opened every time, with a prefix of what was acknowledged; with all of it %d times", total, whole)
	if whole == total {
		t.Error("no damage made a difference, so it was not in the WAL")
	}
}

// TestKillFlippedByteD4 changes one byte of a database at a time. Either the server refuses to start and says what to do, or what it serves is what was
// stored, or what it is asked for is an error: it never serves what nobody stored.
func TestKillFlippedByteD4(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "keyfire.db")
	s := open(t, store.Config{Path: path, SweepEvery: -1})
	prepare(t, s, key("key_1", 0))
	const runs = 60
	for i := range runs {
		a := admission(fmt.Sprintf("run_%03d", i), "key_1")
		a.Run.Input = []byte(`{"text":"` + strings.Repeat(string(rune('a'+i%26)), 3000) + `"}`)
		if _, err := s.Admit(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	told := served(t, s, runs)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d bytes", seed, len(file))
	random := rand.New(rand.NewPCG(seed, 0))
	refused, failed, same, wrong := 0, 0, 0, 0
	copied := filepath.Join(dir, "copy.db")
	for n := range damages(140, 1000) {
		at := random.IntN(len(file))
		if n < 100 {
			at = n // the header, where everything begins
		}
		hurt := bytes.Clone(file)
		hurt[at] ^= byte(1 << random.IntN(8))
		for _, name := range []string{"-wal", "-shm"} {
			_ = os.Remove(copied + name)
		}
		if err := os.WriteFile(copied, hurt, 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := store.Open(t.Context(), store.Config{Path: copied, Reserve: -1, SweepEvery: -1})
		if err != nil {
			refused++
			if page := fmt.Sprintf("page %d of the file", at/4096+1); !strings.Contains(err.Error(), page) || !strings.Contains(err.Error(), "keyfire admin restore") {
				t.Errorf("byte %d: %v; want it to name page %d and say how to restore", at, err, at/4096+1)
			}
			continue
		}
		now := served(t, again, runs)
		if err := again.Close(); err != nil {
			t.Logf("close after byte %d: %v", at, err)
		}
		errs := 0
		for what, answer := range now {
			switch {
			case strings.HasPrefix(answer, "error"):
				errs++
			case answer != told[what]:
				wrong++
				if wrong < 5 {
					t.Logf("byte %d: %s is served as\n%.300s\nwas\n%.300s", at, what, answer, told[what])
				}
			}
		}
		if errs > 0 {
			failed++
		} else {
			same++
		}
	}
	t.Logf("%d refused at the start, %d told errors, %d served what was stored; %d wrong answers", refused, failed, same, wrong)
	if wrong > 0 {
		t.Errorf("%d answers that nobody stored", wrong)
	}
}

// served is everything that a store tells, by what was asked.
func served(t *testing.T, s *store.Store, runs int) map[string]string {
	t.Helper()
	told := map[string]string{}
	note := func(what string, v any, err error) {
		if err != nil {
			told[what] = "error " + err.Error()
			return
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		told[what] = string(b)
	}
	for i := range runs {
		id := fmt.Sprintf("run_%03d", i)
		run, err := s.Run(t.Context(), core.DefaultAccount, id)
		note(id, run, err)
	}
	k, err := s.Key(t.Context(), core.DefaultAccount, "key_1")
	note("key", k, err)
	w, err := s.Workflow(t.Context(), core.DefaultAccount, "greet")
	note("workflow", w, err)
	v, err := s.Version(t.Context(), core.DefaultAccount, "wf_1", 1)
	note("version", v, err)
	l, err := s.Runs(t.Context(), core.DefaultAccount, core.RunFilter{}, core.Page{Limit: core.MaxPage})
	note("list", l.Items, err)
	a, err := s.AuditEvents(t.Context(), core.DefaultAccount, core.AuditFilter{}, core.Page{Limit: core.MaxPage})
	note("audit", a.Items, err)
	return told
}
