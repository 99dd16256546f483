package store_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

// relay passes bytes on between servers and a database until it is frozen: then it keeps connections open and takes new ones, and nothing comes through,
// as when a machine hangs or a firewall forgets about its connections.
type relay struct {
	net.Listener
	to string // path of the database's socket

	mu     sync.Mutex
	frozen chan struct{} // closed when it is
	conns  []net.Conn
	all    sync.WaitGroup
}

// newRelay starts a relay and returns the address of the database by way of it.
func newRelay(t *testing.T, database string) (*relay, string) {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	r := &relay{to: filepath.Join(q.Get("host"), ".s.PGSQL."+q.Get("port")), frozen: make(chan struct{})}
	if r.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	r.all.Go(r.accept)
	t.Cleanup(func() {
		_ = r.Close()
		r.cut()
		r.all.Wait()
	})
	host, port, _ := net.SplitHostPort(r.Addr().String())
	q.Set("host", host)
	q.Set("port", port)
	q.Set("sslmode", "disable")
	u.RawQuery = q.Encode()
	return r, u.String()
}

func (r *relay) accept() {
	for {
		c, err := r.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		r.conns = append(r.conns, c)
		frozen := r.frozen
		r.mu.Unlock()
		select {
		case <-frozen:
			continue
		default:
		}
		d, err := net.Dial("unix", r.to)
		if err != nil {
			_ = c.Close()
			continue
		}
		r.mu.Lock()
		r.conns = append(r.conns, d)
		r.mu.Unlock()
		pass := func(to, from net.Conn) {
			b := make([]byte, 32<<10)
			for {
				n, err := from.Read(b)
				select {
				case <-frozen:
					return // and both stay open
				default:
				}
				if err == nil {
					_, err = to.Write(b[:n])
				}
				if err != nil {
					_, _ = to.Close(), from.Close()
					return
				}
			}
		}
		r.all.Go(func() { pass(c, d) })
		r.all.Go(func() { pass(d, c) })
	}
}

func (r *relay) freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.frozen)
}

// thaw lets new connections through; those from before stay as they are.
func (r *relay) thaw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = make(chan struct{})
}

func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		_ = c.Close()
	}
}

var _ io.Closer = (*relay)(nil)

// O1, D4: a database that does not answer any more, not even that it will not, keeps nobody waiting for more than half a minute, and when it is back the
// server goes on by itself. What was under way is answered for as it turned out.
func TestFrozenDatabaseO1(t *testing.T) {
	t.Parallel()
	r, address := newRelay(t, storetest.NewPostgres(t).URL)
	s := open(t, store.Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), URL: address, Shared: true})
	prepare(t, s, key("key_1", 0))
	if _, err := s.Admit(t.Context(), admission("run_first", "key_1")); err != nil {
		t.Fatal(err)
	}
	r.freeze()
	began := time.Now()
	var wg sync.WaitGroup
	for i := range 16 {
		for name, ask := range map[string]func() error{
			"admission": func() error {
				_, err := s.Admit(context.Background(), admission(fmt.Sprint("run_", i), "key_1"))
				return err
			},
			"key": func() error { _, err := s.Key(context.Background(), core.DefaultAccount, "key_1"); return err },
			"run": func() error { _, err := s.Run(context.Background(), core.DefaultAccount, "run_first"); return err },
			"list": func() error {
				_, err := s.Runs(context.Background(), core.DefaultAccount, core.RunFilter{}, core.Page{})
				return err
			},
			"events": func() error {
				_, err := s.RunEvents(context.Background(), core.DefaultAccount, "run_first", 0)
				return err
			},
		} {
			wg.Go(func() {
				if err := ask(); core.CodeOf(err) != core.CodeStoreUnavailable {
					t.Errorf("%s: %v", name, err)
				}
				if took := time.Since(began); took > 30*time.Second {
					t.Errorf("%s was answered after %v", name, took)
				}
			})
		}
	}
	wg.Wait()
	r.thaw()
	// Connections that were begun before are lost, so each kind of request may fail a few times more.
	for _, ask := range []func() error{
		func() error { _, err := s.Admit(t.Context(), admission("run_last", "key_1")); return err },
		func() error { _, err := s.Key(t.Context(), core.DefaultAccount, "key_1"); return err },
		func() error {
			_, err := s.Runs(t.Context(), core.DefaultAccount, core.RunFilter{}, core.Page{})
			return err
		},
	} {
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			err := ask()
			if err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	if runs, used := runsOf(t, s, "key_1"); !runs["run_first"] || !runs["run_last"] || int64(len(runs)) != used || used != 2 {
		t.Errorf("%v, counter %d", runs, used)
	}
}
