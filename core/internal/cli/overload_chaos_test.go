package cli

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/keyfire/keyfire/core/internal/store/storetest"
	"github.com/keyfire/keyfire/sdk/client"
)

// TestChaosOverload sends five times what the server can do, whatever it answers, and counts (O1, O2): those who are let in are answered about as soon as at 80 % of what it can do, the others
// hear 503 with a Retry-After, an operator is answered all the while, another key gets its share, and when the flood ends everybody is let in again. The figures are printed, and fail the test
// when they are off by what no busy machine explains: client and server share its processors.
func TestChaosOverload(t *testing.T) {
	long := chaosTime(t)
	floods := []int{250, 1000, 4000} // connections
	if long < 10*time.Second {
		long, floods = time.Second, []int{1000}
	}
	o := newOverload(t, "")
	flood, mouse := o.key(t, "flood", "greet"), o.key(t, "mouse", "greet")
	by := func(key *client.Key, connections int, rate float64) openLoop {
		return o.by(key, benchInput, connections, rate)
	}
	show := o.show
	by(flood, 64, asFastAsItCan).run(t, long/2, nil)
	full := by(flood, 64, asFastAsItCan).run(t, min(long, 5*time.Second), nil)
	show("64 connections", full)
	capacity := float64(full.accepted) / full.took.Seconds()
	share := capacity / 10
	show("another key alone", by(mouse, 512, share).run(t, long, nil))
	calm := by(flood, 512, capacity*0.8).run(t, long, o.admin)
	show("80 %", calm)
	for _, connections := range floods {
		var beside figures
		var both sync.WaitGroup
		both.Go(func() { beside = by(mouse, 512, share).run(t, max(long, 8*time.Second), nil) })
		over := by(flood, connections, 5*capacity).run(t, max(long, 8*time.Second), o.admin) // longer than a burst is waited for
		both.Wait()
		show(fmt.Sprintf("5x, %d connections", connections), over)
		show("another key beside it", beside)
		after := by(flood, 512, capacity*0.8).run(t, 6*time.Second, o.admin)
		show("80 % at once after it", after)
		if over.accepted < int(capacity*over.took.Seconds()/10) || over.quantile(0.5) > 10*calm.quantile(0.99)+2*time.Second {
			t.Errorf("with %d connections, %d were let in, and half of them answered within %v", connections, over.accepted, over.quantile(0.5))
		}
		judge(t, over, beside, after)
	}
	o.end(t)
}

// TestChaosOverloadPostgres is the same on PostgreSQL, where what is done takes longer and the processors have less to do with it.
func TestChaosOverloadPostgres(t *testing.T) {
	long := max(min(chaosTime(t), 20*time.Second), 2*time.Second)
	o := newOverload(t, storetest.Postgres(t))
	flood, mouse := o.key(t, "flood", "greet"), o.key(t, "mouse", "greet")
	by := func(key *client.Key, connections int, rate float64) openLoop {
		return o.by(key, benchInput, connections, rate)
	}
	by(flood, 64, asFastAsItCan).run(t, time.Second, nil)
	full := by(flood, 64, asFastAsItCan).run(t, long/2, nil)
	o.show("64 connections", full)
	capacity := float64(full.accepted) / full.took.Seconds()
	calm := by(flood, 512, capacity*0.8).run(t, long, o.admin)
	o.show("80 %", calm)
	var over, beside, after figures
	var held []int64
	for range 2 { // the second one needs no more memory than the first
		var both sync.WaitGroup
		both.Go(func() { beside = by(mouse, 64, 20).run(t, long, nil) })
		over = by(flood, 1000, 5*capacity).run(t, long, o.admin)
		both.Wait()
		o.show("5x, 1,000 connections", over)
		o.show("another key beside it", beside)
		after = by(flood, 512, capacity*0.8).run(t, long, o.admin)
		o.show("80 % at once after it", after)
		held = append(held, o.resident())
		judge(t, over, beside, after)
	}
	if held[1] > held[0]*3/2+64<<20 {
		t.Errorf("the server holds %d bytes, and held %d after the flood before", held[1], held[0])
	}
	o.end(t)
}

// TestChaosOverloadComputing is the same for runs that keep a processor busy for some 30 ms each, so that few of them at once are all that can be done.
func TestChaosOverloadComputing(t *testing.T) {
	long := max(min(chaosTime(t), 20*time.Second), 4*time.Second)
	o := newOverload(t, "")
	_, err := o.admin.PublishWorkflow(t.Context(), "busy", client.Publication{
		Filename: "busy.json", Modules: map[string][]byte{"./busy.wasm": busyModule(15_000_000)},
		Source: []byte(`{"keyfire": "v1", "name": "busy", "trigger": {"enabled": true}, "nodes": [{"id": "busy", "uses": "./busy.wasm"}]}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	flood, mouse := o.key(t, "flood", "busy"), o.key(t, "mouse", "greet")
	by := func(connections int, rate float64) openLoop { return o.by(flood, "{}", connections, rate) }
	by(16, asFastAsItCan).run(t, time.Second, nil)
	full := by(16, asFastAsItCan).run(t, long/2, nil)
	o.show("16 connections", full)
	capacity := float64(full.accepted) / full.took.Seconds()
	const share = 20 // a second
	alone := o.by(mouse, benchInput, 64, share).run(t, long/2, nil)
	o.show("another key alone", alone)
	calm := by(256, capacity*0.8).run(t, long, o.admin)
	o.show("80 %", calm)
	var beside figures
	var both sync.WaitGroup
	both.Go(func() { beside = o.by(mouse, benchInput, 64, share).run(t, long, nil) })
	over := by(1000, 5*capacity).run(t, long, o.admin)
	both.Wait()
	o.show("5x", over)
	o.show("another key beside it", beside)
	after := by(256, capacity*0.8).run(t, long, o.admin)
	o.show("80 % at once after it", after)
	if over.accepted < int(capacity*over.took.Seconds()/4) || over.quantile(0.99) > 4*calm.quantile(0.99)+2*time.Second {
		t.Errorf("at 5x of %.0f/s, %d were let in in %v, and p99 of their answers is %v", capacity, over.accepted, over.took, over.quantile(0.99))
	}
	judge(t, over, beside, after)
	o.end(t)
}

// judge looks at what has nothing to do with how much was let in of a flood: another key beside it, an operator, and what came after it.
func judge(t *testing.T, over, beside, after figures) {
	t.Helper()
	if beside.accepted < beside.refused {
		t.Errorf("another key beside it: %d were let in, %d refused", beside.accepted, beside.refused)
	}
	if longest := max(over.operator, after.operator); longest > 5*time.Second {
		t.Errorf("an operator waited for %v", longest)
	}
	if after.accepted < after.refused {
		t.Errorf("at 80 %% after the flood %d were let in and %d refused, the last one after %v", after.accepted, after.refused, after.lastRefusal)
	}
}

// busyModule is a command that counts to n and answers with an empty object.
func busyModule(n int64) []byte {
	code := slices.Concat(
		[]byte{1, 1, 0x7f, 0x41}, signed(n), []byte{0x21, 0}, // local 0 = n
		[]byte{0x03, 0x40, 0x20, 0, 0x41, 1, 0x6b, 0x22, 0, 0x0d, 0, 0x0b}, // loop: if --local 0 != 0, again
		[]byte{0x41, 1, 0x41, 0, 0x41, 1, 0x41, 8, 0x10, 0, 0x1a, 0x0b},    // fd_write(1, the vector at 0, 1, written at 8)
	)
	code = append(binary.AppendUvarint([]byte{1}, uint64(len(code))), code...)
	return wasmModule(
		wasmSection(1, []byte{2, 0x60, 4, 0x7f, 0x7f, 0x7f, 0x7f, 1, 0x7f, 0x60, 0, 0}),
		wasmSection(2, []byte("\x01\x16wasi_snapshot_preview1\x08fd_write\x00\x00")),
		wasmSection(3, []byte{1, 1}), wasmSection(5, []byte{1, 0, 1}), wasmSection(7, []byte("\x02\x06_start\x00\x01\x06memory\x02\x00")),
		wasmSection(10, code), wasmSection(11, []byte("\x01\x00\x41\x00\x0b\x12\x10\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00{}")),
	)
}

// signed is a number in signed LEB128.
func signed(n int64) (b []byte) {
	for {
		low := byte(n & 0x7f)
		if n >>= 7; n == 0 && low&0x40 == 0 || n == -1 && low&0x40 != 0 {
			return append(b, low)
		}
		b = append(b, low|0x80)
	}
}

const asFastAsItCan = 1e6

// overload is a server that is sent more than it can do, and a table of what came of it.
type overload struct {
	*testServer
	address string
	table   *tabwriter.Writer
	wrong   int // answers
}

// newOverload starts a server with the examples, whose database is in PostgreSQL if store is not empty.
func newOverload(t *testing.T, store string) *overload {
	t.Helper()
	data := exampleData(t)
	var args []string
	if store != "" {
		args = []string{"--store", store}
		moveTo(t, store, data)
	}
	p, err := launch(data, io.Discard, args...)
	if err != nil {
		t.Fatal(err)
	}
	o := &overload{testServer: &testServer{process: p, admin: socketClient(t, data)}, table: tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)}
	o.address = strings.TrimPrefix(o.url, "http://")
	fmt.Fprintf(o.table, "\n\tsent/s\taccepted/s\trefused/s\tp50\tp99\toperator, longest\tRSS MiB\t\n")
	return o
}

func (o *overload) key(t *testing.T, name, workflow string) *client.Key {
	t.Helper()
	return o.createKey(t, client.NewKey{Name: name, Workflow: workflow})
}

// by is how a key is used to trigger its workflow.
func (o *overload) by(key *client.Key, input string, connections int, rate float64) openLoop {
	body := `{"input":` + input + `}`
	return openLoop{address: o.address, connections: connections, rate: rate, request: fmt.Appendf(nil,
		"POST /v1/trigger HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", o.address, key.Secret, len(body), body)}
}

// resident is how many bytes of memory the server holds, 0 where there is no /proc.
func (o *overload) resident() (n int64) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", o.cmd.Process.Pid))
	if _, after, ok := bytes.Cut(b, []byte("VmRSS:")); ok {
		_, _ = fmt.Sscan(string(after), &n)
	}
	return n << 10
}

func (o *overload) show(name string, f figures) {
	per := func(n int) float64 { return float64(n) / f.took.Seconds() }
	fmt.Fprintf(o.table, "%s\t%.0f\t%.0f\t%.0f\t%v\t%v\t%v\t%d\t\n", name, per(f.accepted+f.refused), per(f.accepted), per(f.refused), f.quantile(0.5), f.quantile(0.99),
		f.operator.Round(time.Millisecond), o.resident()>>20)
	if f.wrong > 0 {
		fmt.Fprintf(o.table, "%d answers were neither 200 nor 503 with a Retry-After: %s\n", f.wrong, f.sample)
	}
	o.wrong += f.wrong
}

// end prints the table and stops the server.
func (o *overload) end(t *testing.T) {
	t.Helper()
	_ = o.table.Flush()
	if o.wrong > 0 {
		t.Errorf("%d answers were neither 200 nor 503 with a Retry-After", o.wrong)
	}
	if err := o.stop(); err != nil {
		t.Error(err)
	}
}

// openLoop sends a request rate times a second, however long the answers take, as far as one of its connections is free.
type openLoop struct {
	address     string
	request     []byte
	connections int
	rate        float64
}

type figures struct {
	took                     time.Duration
	accepted, refused, wrong int
	sample                   string          // one of the wrong answers
	latencies                []time.Duration // of the accepted, sorted
	operator                 time.Duration   // the longest answer
	lastRefusal              time.Duration   // since the start
}

func (f figures) quantile(q float64) time.Duration {
	if len(f.latencies) == 0 {
		return 0
	}
	return f.latencies[min(int(q*float64(len(f.latencies))), len(f.latencies)-1)].Round(10 * time.Microsecond)
}

// run sends for a while. operator, unless it is nil, asks for something ten times a second meanwhile.
func (l openLoop) run(t *testing.T, d time.Duration, operator *client.Client) figures {
	var f figures
	var mu sync.Mutex
	var open atomic.Int64
	idle := make(chan *sender, l.connections)
	var all []*sender
	send := func(s *sender) {
		for due := range s.due {
			status, err := s.exchange(l.request)
			took := time.Since(due)
			mu.Lock()
			switch {
			case err == nil && status == 200:
				f.accepted++
				f.latencies = append(f.latencies, took)
			case err == nil && status == 503:
				f.refused++
				f.lastRefusal = time.Since(s.began)
			default:
				f.wrong++
				f.sample = fmt.Sprint(status, err)
			}
			mu.Unlock()
			if err != nil {
				s.close()
			}
			idle <- s
		}
		s.close()
	}
	began := time.Now()
	stop := make(chan struct{})
	var senders, asking sync.WaitGroup
	if operator != nil {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond): // the pace of an operator's tool
				}
				asked := time.Now()
				if _, err := operator.Keys(t.Context(), client.Page{}); err != nil {
					t.Errorf("an operator is answered with %v", err)
				}
				f.operator = max(f.operator, time.Since(asked))
			}
		})
	}
	sent := 0
	for time.Since(began) < d {
		due := min(int(time.Since(began).Seconds()*l.rate), sent+4*l.connections)
		for ; sent < due; sent++ {
			var s *sender
			select {
			case s = <-idle:
			default:
				if int(open.Load()) == l.connections {
					continue // more than it has connections for cannot be sent
				}
				open.Add(1)
				s = &sender{address: l.address, due: make(chan time.Time, 1), began: began}
				all = append(all, s)
				senders.Go(func() { send(s) })
			}
			s.due <- time.Now()
		}
		time.Sleep(time.Millisecond) // the grain of the schedule
	}
	f.took = time.Since(began)
	close(stop)
	asking.Wait()
	for _, s := range all {
		close(s.due)
	}
	senders.Wait()
	slices.Sort(f.latencies)
	return f
}

// sender has one connection, which it opens when it needs one.
type sender struct {
	address string
	due     chan time.Time
	began   time.Time
	conn    net.Conn
	r       *bufio.Reader
}

func (s *sender) close() {
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
}

func (s *sender) exchange(request []byte) (status int, err error) {
	if s.conn == nil {
		if s.conn, err = net.Dial("tcp", s.address); err != nil {
			return 0, err
		}
		s.r = bufio.NewReader(s.conn)
	}
	if _, err := s.conn.Write(request); err != nil {
		return 0, err
	}
	line, err := s.r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, err
	}
	length, closing, retry := 0, false, false
	for {
		line, err := s.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch string(name) {
		case "Content-Length":
			if length, err = strconv.Atoi(string(value)); err != nil {
				return 0, err
			}
		case "Connection":
			closing = string(value) == "close"
		case "Retry-After":
			retry = true
		}
	}
	if _, err := io.CopyN(io.Discard, s.r, int64(length)); err != nil {
		return 0, err
	}
	if closing {
		s.close()
	}
	if status == 503 && !retry {
		return 0, fmt.Errorf("503 without a Retry-After")
	}
	return status, nil
}
