package seal_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/seal"
)

var epoch = time.Date(2027, 1, 2, 3, 4, 5, 6000, time.UTC)

func keys(version int) ([]byte, bool) {
	return fmt.Appendf(nil, "a key of version %d", version), version == 1 || version == 2
}

// events returns a log of n events.
func events(n int) []core.AuditEvent {
	all := make([]core.AuditEvent, n)
	for i := range all {
		all[i] = core.NewEvent(fmt.Sprint("evt_", i), epoch.Add(time.Duration(i)*time.Second), core.Origin{RequestID: "req_1", TraceID: "t"}, core.ActionKeyCreate, fmt.Sprint("key_", i))
		all[i].Seq, all[i].Reason = int64(i+1), "why"
	}
	return all
}

// sealed writes seals of so many events each and returns the file.
func sealed(t testing.TB, all []core.AuditEvent, each ...int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.seals")
	for i, n := range each { // opened anew for each, as after a restart
		f, err := seal.Open(path, keys, 1+i%2)
		if err != nil {
			t.Fatal(err)
		}
		from := int(f.Sealed())
		if from > 0 && (!f.Matches(&all[from-1]) || f.Matches(&core.AuditEvent{Seq: int64(from)})) {
			t.Fatal("the last event that was sealed is not known")
		}
		if err := errors.Join(f.Append(all[from:from+n], epoch), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func check(t *testing.T, path string, all []core.AuditEvent, head string) (seal.Report, error) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i := -1
	return seal.Check(bytes.NewReader(b), keys, func() (*core.AuditEvent, error) {
		if i++; i >= len(all) {
			return nil, io.EOF
		}
		return &all[i], nil
	}, head)
}

// U2: every kind of tampering with what was sealed is found, with the number of the first event it concerns.
func TestTamperingIsFoundU2(t *testing.T) {
	t.Parallel()
	path := sealed(t, events(30), 10, 1, 14)
	rep, err := check(t, path, events(30), "")
	if err != nil || rep.Sealed != 25 || rep.Unsealed != 5 || rep.Seals != 3 || !rep.At.Equal(epoch.Truncate(time.Microsecond)) || rep.Head == "" {
		t.Fatalf("an honest log: %+v, %v", rep, err)
	}
	changes := map[string]func(*core.AuditEvent){
		"id": func(e *core.AuditEvent) { e.ID += "x" }, "account": func(e *core.AuditEvent) { e.Account = "acct_2" }, "time": func(e *core.AuditEvent) { e.Time = e.Time.Add(time.Microsecond) },
		"actor": func(e *core.AuditEvent) { e.Actor = "uid:0" }, "key": func(e *core.AuditEvent) { e.KeyID = "key_x" }, "source": func(e *core.AuditEvent) { e.SourceIP = "10.0.0.1" },
		"action": func(e *core.AuditEvent) { e.Action = core.ActionKeyRevoke }, "object": func(e *core.AuditEvent) { e.Object = "" }, "outcome": func(e *core.AuditEvent) { e.Outcome = core.OutcomeRefused },
		"reason": func(e *core.AuditEvent) { e.Reason = "" }, "request": func(e *core.AuditEvent) { e.RequestID = "req_2" }, "trace": func(e *core.AuditEvent) { e.TraceID = "" },
		"count": func(e *core.AuditEvent) { e.Count++ },
		// The same bytes in a row, divided otherwise.
		"division": func(e *core.AuditEvent) { e.Object, e.Outcome = e.Object+e.Outcome[:1], e.Outcome[1:] },
	}
	for name, change := range changes {
		for _, at := range []int{0, 9, 10, 24} {
			all := events(30)
			change(&all[at])
			wantProblem(t, name, path, all, int64(at+1), "is not the one that was sealed")
		}
	}
	for name, c := range map[string]struct {
		tamper func([]core.AuditEvent) []core.AuditEvent
		seq    int64
	}{
		"deleted":  {func(all []core.AuditEvent) []core.AuditEvent { return slices.Delete(all, 11, 12) }, 12},
		"head cut": {func(all []core.AuditEvent) []core.AuditEvent { return all[3:] }, 1},
		"tail cut": {func(all []core.AuditEvent) []core.AuditEvent { return all[:20] }, 21},
		"emptied":  {func([]core.AuditEvent) []core.AuditEvent { return nil }, 1},
		"replaced": {func(all []core.AuditEvent) []core.AuditEvent { return renumber(slices.Clone(all[5:])) }, 1},
		"put in":   {func(all []core.AuditEvent) []core.AuditEvent { return renumber(slices.Insert(all, 7, all[3])) }, 8},
		"reordered": {func(all []core.AuditEvent) []core.AuditEvent {
			all[13], all[14] = all[14], all[13]
			return renumber(all)
		}, 14},
		"moved":          {func(all []core.AuditEvent) []core.AuditEvent { all[24].Seq = 26; return slices.Delete(all, 25, 26) }, 25},
		"new with a gap": {func(all []core.AuditEvent) []core.AuditEvent { return slices.Delete(all, 27, 28) }, 28},
	} {
		wantProblem(t, name, path, c.tamper(events(30)), c.seq, "event")
	}
}

func renumber(all []core.AuditEvent) []core.AuditEvent {
	for i := range all {
		all[i].Seq = int64(i + 1)
	}
	return all
}

func wantProblem(t *testing.T, name, path string, all []core.AuditEvent, seq int64, text string) {
	t.Helper()
	_, err := check(t, path, all, "")
	var p *seal.Problem
	if !errors.As(err, &p) || p.Seq != seq || !strings.Contains(p.Text, text) {
		t.Errorf("%s: found %v, want a problem with event %d", name, err, seq)
	}
}

// U2: seals that were changed, taken away or put in place by somebody without the key are found out, and no server goes on with them.
func TestTamperedSealsU2(t *testing.T) {
	t.Parallel()
	all := events(30)
	path := sealed(t, all, 10, 10, 10)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))[:3]
	first, err := check(t, sealed(t, all, 10), all, "")
	if err != nil {
		t.Fatal(err)
	}
	end, err := check(t, path, all, first.Head)
	if err != nil {
		t.Fatal(err)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, content := range map[string][]byte{
		"the first taken away": join(lines[1], lines[2]),
		"one taken away":       join(lines[0], lines[2]),
		"swapped":              join(lines[0], lines[2], lines[1]),
		"twice":                join(lines[0], lines[1], lines[1]),
		"another time":         bytes.Replace(whole, []byte("2027"), []byte("2026"), 1),
		"another key":          bytes.Replace(whole, []byte(`"key":1`), []byte(`"key":2`), 1),
		"no key":               bytes.Replace(whole, []byte(`"key":1`), []byte(`"key":7`), 1),
		"not JSON":             join(lines[0], []byte("{}}\n")),
		"empty lines":          join(lines[0], []byte("\n"), lines[1]),
	} {
		bad := filepath.Join(t.TempDir(), "audit.seals")
		if err := os.WriteFile(bad, content, 0o600); err != nil {
			t.Fatal(err)
		}
		var p *seal.Problem
		if _, err := check(t, bad, all, ""); !errors.As(err, &p) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := seal.Open(bad, keys, 1); !errors.As(err, &p) {
			t.Errorf("%s: opened, %v", name, err)
		}
	}
	for i := range whole {
		flipped := slices.Clone(whole)
		flipped[i] ^= 1
		bad := filepath.Join(t.TempDir(), "audit.seals")
		if i%7 != 0 {
			continue
		}
		if err := os.WriteFile(bad, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		if rep, err := check(t, bad, all, end.Head); err == nil {
			t.Errorf("byte %d may be changed: %+v", i, rep)
		}
	}
	// What is cut off shows by a head that was kept.
	short := sealed(t, all, 10, 10)
	if _, err := check(t, short, all[:20], ""); err != nil {
		t.Error(err)
	}
	var p *seal.Problem
	if _, err := check(t, short, all[:20], end.Head); !errors.As(err, &p) {
		t.Errorf("a file that was cut off: %v", err)
	}
}

// A server that is killed while it seals leaves half a line, after which the next one goes on.
func TestHalfASeal(t *testing.T) {
	t.Parallel()
	all := events(20)
	path := sealed(t, all, 10)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{0, 1, len(whole) / 2, len(whole) - 1} {
		if err := os.WriteFile(path, append(slices.Clone(whole), whole[:cut]...), 0o600); err != nil {
			t.Fatal(err)
		}
		if rep, err := check(t, path, all, ""); err != nil || rep.Sealed != 10 {
			t.Errorf("%d bytes of the next seal: %+v, %v", cut, rep, err)
		}
		f, err := seal.Open(path, keys, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Append(all[10:], epoch), f.Close()); err != nil {
			t.Error(err)
		}
		if rep, err := check(t, path, all, ""); err != nil || rep.Sealed != 20 || rep.Head != f.Head() {
			t.Errorf("after %d bytes: %+v, %v", cut, rep, err)
		}
	}
	f, err := seal.Open(path, keys, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var p *seal.Problem
	if err := f.Append(all[5:9], epoch); !errors.As(err, &p) {
		t.Errorf("events that do not follow are sealed: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("others can read it: %v, %v", info.Mode(), err)
	}
}

// U2: how many events a second can be checked; 50,000 are promised.
func BenchmarkCheck(b *testing.B) {
	const n = 100_000
	all := events(n)
	content, err := os.ReadFile(sealed(b, all, slices.Repeat([]int{seal.MaxEvents}, n/seal.MaxEvents)...))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		i := -1
		rep, err := seal.Check(bytes.NewReader(content), keys, func() (*core.AuditEvent, error) {
			if i++; i == n {
				return nil, io.EOF
			}
			return &all[i], nil
		}, "")
		if err != nil || rep.Sealed != n {
			b.Fatal(rep, err)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
