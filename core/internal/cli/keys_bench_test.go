package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
	"github.com/keyfire/keyfire/core/internal/telemetry"
)

// BenchmarkManyKeys shows that the number of keys costs a caller nothing: requests that do nothing but have their key verified, of a server with a thousand keys and of one with
// many more (KEYFIRE_BENCH_KEYS, such as 1000000; 20000 by default, and 2000 with -short), 2,000 of each in turns. BenchmarkKeys of the store has what that is in the store alone.
func BenchmarkManyKeys(b *testing.B) {
	many := storetest.ManyKeys(b)
	servers := []*keyServer{newKeyServer(b, 1000), newKeyServer(b, many)}
	for _, s := range servers { // not before: filling the second takes longer than a connection may be idle
		s.dial(b)
	}
	for b.Loop() {
		took := make([][]time.Duration, len(servers))
		for i := range 20_000 {
			for which, s := range servers {
				began := time.Now()
				if err := s.verify(i); err != nil {
					b.Fatal(err)
				}
				took[which] = append(took[which], time.Since(began))
			}
		}
		var p50 [2]float64
		for which := range servers {
			slices.Sort(took[which])
			p50[which] = float64(took[which][len(took[which])/2])
		}
		b.ReportMetric(p50[0]/1e3, "p50-1000-µs")
		b.ReportMetric(p50[1]/1e3, "p50-many-µs")
		b.ReportMetric(p50[1]/p50[0], "p50-ratio")
	}
}

// keyServer is a server with many keys, and a connection to it.
type keyServer struct {
	conn    net.Conn
	r       *bufio.Reader
	address string
	secrets []string // of up to 2,000 of its keys
}

func newKeyServer(b *testing.B, n int) *keyServer {
	b.Helper()
	data := exampleData(b)
	s := &keyServer{secrets: fillKeys(b, data, n)}
	url, _ := serveInProcess(b, data, telemetry.Config{})
	s.address = strings.TrimPrefix(url, "http://")
	return s
}

func (s *keyServer) dial(b *testing.B) {
	b.Helper()
	var err error
	if s.conn, err = net.Dial("tcp", s.address); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.conn.Close() })
	s.r = bufio.NewReader(s.conn)
}

// verify asks for a run that does not exist, which is told only to who has a key.
func (s *keyServer) verify(i int) error {
	if _, err := fmt.Fprintf(s.conn, "GET /v1/runs/run_01jd0000000000000000000000 HTTP/1.1\r\nHost: %s\r\nX-API-Key: %s\r\n\r\n", s.address, s.secrets[i%len(s.secrets)]); err != nil {
		return err
	}
	resp, err := http.ReadResponse(s.r, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err == nil && resp.StatusCode != http.StatusNotFound {
		err = fmt.Errorf("answered with %s", resp.Status)
	}
	return err
}

// fillKeys makes keys in a data directory that no server has, and returns some of them.
func fillKeys(b *testing.B, data string, n int) (secrets []string) {
	b.Helper()
	dir, err := openDataDir(data)
	if err != nil {
		b.Fatal(err)
	}
	pepper, err := dir.pepper()
	if err != nil {
		b.Fatal(err)
	}
	s, err := store.Open(b.Context(), store.Config{Path: dir.file(databaseFile), Reserve: -1})
	if err != nil {
		b.Fatal(err)
	}
	for _, text := range storetest.FillKeys(b, s, pepper, n) {
		secrets = append(secrets, text.Reveal())
	}
	if err := errors.Join(s.Close(), dir.Close()); err != nil {
		b.Fatal(err)
	}
	return secrets
}
