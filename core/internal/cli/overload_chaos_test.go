package cli

import (
	"bufio"
	"bytes"
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
	data := exampleData(t)
	p, err := launch(data, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	s := &testServer{process: p, admin: socketClient(t, data)}
	flood, mouse := s.createKey(t, client.NewKey{Name: "flood", Workflow: "greet"}), s.createKey(t, client.NewKey{Name: "mouse", Workflow: "greet"})
	address := strings.TrimPrefix(s.url, "http://")
	by := func(key *client.Key, connections int, rate float64) openLoop {
		const body = `{"input":` + benchInput + `}`
		return openLoop{address: address, connections: connections, rate: rate, request: fmt.Appendf(nil,
			"POST /v1/trigger HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s", address, key.Secret, len(body), body)}
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\n\tsent/s\taccepted/s\trefused/s\tp50\tp99\toperator, longest\tRSS MiB\t\n")
	show := func(name string, f figures) {
		per := func(n int) float64 { return float64(n) / f.took.Seconds() }
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.0f\t%v\t%v\t%v\t%d\t\n", name, per(f.accepted+f.refused), per(f.accepted), per(f.refused), f.quantile(0.5), f.quantile(0.99),
			f.operator.Round(time.Millisecond), statusBytes(t, p.cmd.Process.Pid, "VmRSS:")>>20)
		if f.wrong > 0 {
			t.Errorf("%s: %d answers were neither 200 nor 503 with a Retry-After: %s", name, f.wrong, f.sample)
		}
	}
	const asFastAsItCan = 1e6
	by(flood, 64, asFastAsItCan).run(t, long/2, nil)
	full := by(flood, 64, asFastAsItCan).run(t, min(long, 5*time.Second), nil)
	show("64 connections", full)
	capacity := float64(full.accepted) / full.took.Seconds()
	share := capacity / 10
	show("another key alone", by(mouse, 512, share).run(t, long, nil))
	calm := by(flood, 512, capacity*0.8).run(t, long, s.admin)
	show("80 %", calm)
	for _, connections := range floods {
		var beside figures
		var both sync.WaitGroup
		both.Go(func() { beside = by(mouse, 512, share).run(t, max(long, 8*time.Second), nil) })
		over := by(flood, connections, 5*capacity).run(t, max(long, 8*time.Second), s.admin) // longer than a burst is waited for
		both.Wait()
		show(fmt.Sprintf("5x, %d connections", connections), over)
		show("another key beside it", beside)
		after := by(flood, 512, capacity*0.8).run(t, 6*time.Second, s.admin)
		show("80 % at once after it", after)
		if over.accepted < int(capacity*over.took.Seconds()/10) || over.quantile(0.5) > 10*calm.quantile(0.99)+2*time.Second {
			t.Errorf("with %d connections, %d were let in, and half of them answered within %v", connections, over.accepted, over.quantile(0.5))
		}
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
	_ = w.Flush()
	if err := p.stop(); err != nil {
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
