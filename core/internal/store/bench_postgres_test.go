//go:build unix

package store_test

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

// BenchmarkPostgres is an admission and the end of its run by 64 callers, on a PostgreSQL of this machine and on one half a millisecond away, where every
// round trip of the writer shows.
func BenchmarkPostgres(b *testing.B) {
	for _, away := range []time.Duration{0, 500 * time.Microsecond} {
		b.Run(fmt.Sprintf("away=%s/callers=64", away), func(b *testing.B) {
			s := open(b, store.Config{URL: further(b, storetest.Postgres(b), away/2), Path: filepath.Join(b.TempDir(), "keyfire.db"), Shared: true})
			a := fillBench(b, s)
			concurrently(b, 64, func(i int64) error {
				ad := a(i)
				if _, err := s.Admit(b.Context(), ad); err != nil {
					return err
				}
				run := finishedRun(ad.Run)
				return s.FinishRun(b.Context(), &run)
			})
		})
	}
}

// further returns an address of the database from which everything takes so much longer, each way.
func further(b *testing.B, address string, delay time.Duration) string {
	b.Helper()
	u, err := url.Parse(address)
	q := u.Query()
	if err != nil || q.Get("host") == "" || q.Get("port") == "" {
		b.Skip("this PostgreSQL is not one that the tests have started")
	}
	socket := filepath.Join(q.Get("host"), ".s.PGSQL."+q.Get("port"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", socket)
			if err != nil {
				_ = near.Close()
				continue
			}
			go later(far, near, delay)
			go later(near, far, delay)
		}
	}()
	host, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	q.Set("host", host)
	q.Set("port", port)
	q.Set("sslmode", "disable")
	u.RawQuery = q.Encode()
	return u.String()
}

// later copies what comes from src to dst after a delay, until one of them ends.
func later(dst, src net.Conn, delay time.Duration) {
	type piece struct {
		due  time.Time
		text []byte
	}
	pieces := make(chan piece, 1024)
	go func() {
		defer dst.Close()
		for p := range pieces {
			time.Sleep(time.Until(p.due))
			_, _ = dst.Write(p.text) // what cannot be sent any more is not missed
		}
	}()
	defer close(pieces)
	for {
		buffer := make([]byte, 64<<10)
		n, err := src.Read(buffer)
		if err != nil {
			return
		}
		pieces <- piece{time.Now().Add(delay), buffer[:n]}
	}
}
