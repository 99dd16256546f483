package cli

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"

	"github.com/keyfire/keyfire/core/internal/telemetry"
	"github.com/keyfire/keyfire/sdk/client"
)

const (
	benchRounds = 5
	benchTime   = 300 * time.Millisecond // of each subject in each round
	benchInput  = `{"name":"Ada"}`
)

// BenchmarkGreet compares a trigger of the greet example, with everything that belongs to it (authentication, admission, audit and two
// synced commits), with what its parts cost bare: a Gin handler that echoes, and one that instantiates the same module with plain wazero
// for each request. The three take turns within one run, so that whatever else the machine does hits all of them; the table has the
// medians of the rounds. It prints the table once, however long -benchtime is.
func BenchmarkGreet(b *testing.B) {
	module, err := os.ReadFile(filepath.Join(examples(b), "examples/workflows/greet/nodes/greet.wasm"))
	if err != nil {
		b.Fatal(err)
	}
	data := exampleData(b)
	url, _ := serveInProcess(b, data, telemetry.Config{})
	key, err := socketClient(b, data).CreateKey(b.Context(), client.NewKey{Name: "bench", Workflow: "greet"})
	if err != nil {
		b.Fatal(err)
	}
	gin.SetMode(gin.ReleaseMode)
	subjects := []*subject{
		newSubject(url, "/v1/workflows/greet/runs", "Authorization: Bearer "+key.Secret+"\r\n", `{"input":`+benchInput+`}`),
		newSubject(echoServer(b), "/", "", benchInput),
		newSubject(plainServer(b, module), "/", "", benchInput),
	}
	for b.Loop() {
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, "\nconnections\tkeyfire/s\tp50\tp99\tgin echo/s\tp50\tp99\tgin+wazero/s\tp50\tp99\tkeyfire:echo\tkeyfire:gin+wazero\t")
		for _, connections := range []int{1, 16, 64} {
			for _, s := range subjects {
				s.rounds = nil
				s.load(b, connections, benchTime/3) // warm
			}
			for range benchRounds {
				for _, s := range subjects {
					s.rounds = append(s.rounds, s.load(b, connections, benchTime))
				}
			}
			fmt.Fprintf(w, "%d\t", connections)
			rates := make([]float64, len(subjects))
			for i, s := range subjects {
				rates[i] = median(s.rounds, func(r round) float64 { return r.rate })
				p50 := median(s.rounds, func(r round) float64 { return float64(r.p50) })
				p99 := median(s.rounds, func(r round) float64 { return float64(r.p99) })
				fmt.Fprintf(w, "%.0f\t%v\t%v\t", rates[i], time.Duration(p50).Round(10*time.Microsecond), time.Duration(p99).Round(10*time.Microsecond))
			}
			fmt.Fprintf(w, "%.3f\t%.2f\t\n", rates[0]/rates[1], rates[0]/rates[2])
			b.ReportMetric(rates[0], fmt.Sprintf("triggers/s-%d", connections))
			b.ReportMetric(rates[0]/rates[2], fmt.Sprintf("x-gin+wazero-%d", connections))
		}
		w.Flush()
	}
}

// subject is a server under load, and the one request it is sent, byte by byte the same each time.
type subject struct {
	address string
	request []byte
	rounds  []round
}

type round struct {
	rate     float64 // requests per second
	p50, p99 time.Duration
}

func newSubject(url, path, header, body string) *subject {
	address := strings.TrimPrefix(url, "http://")
	return &subject{address: address, request: fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s",
		path, address, header, len(body), body)}
}

// load sends the request over several connections for a while. The client does as little as HTTP allows, since it shares the processors with
// the server.
func (s *subject) load(b *testing.B, connections int, d time.Duration) round {
	b.Helper()
	latencies := make([][]time.Duration, connections)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range connections {
		wg.Go(func() {
			if err := s.connection(start.Add(d), &latencies[i]); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start)
	all := slices.Concat(latencies...)
	if b.Failed() || len(all) == 0 {
		b.FailNow()
	}
	slices.Sort(all)
	return round{float64(len(all)) / elapsed.Seconds(), all[len(all)/2], all[len(all)*99/100]}
}

func (s *subject) connection(until time.Time, latencies *[]time.Duration) error {
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		sent := time.Now()
		if sent.After(until) {
			return nil
		}
		if _, err := conn.Write(s.request); err != nil {
			return err
		}
		if err := readAnswer(r); err != nil {
			return err
		}
		*latencies = append(*latencies, time.Since(sent))
	}
}

// readAnswer reads one response with a Content-Length, which must be a success.
func readAnswer(r *bufio.Reader) error {
	status, err := textproto.NewReader(r).ReadLine()
	if err != nil {
		return err
	}
	if !strings.HasPrefix(status, "HTTP/1.1 200 ") {
		return fmt.Errorf("answered with %s", status)
	}
	length := -1
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			break
		}
		if name, value, _ := bytes.Cut(line, []byte(":")); bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
	if length <= 0 {
		return fmt.Errorf("an answer of %d bytes", length)
	}
	_, err = r.Discard(length)
	return err
}

func median(rounds []round, of func(round) float64) float64 {
	values := make([]float64, len(rounds))
	for i, r := range rounds {
		values[i] = of(r)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// echoServer answers with what it is sent.
func echoServer(b *testing.B) string {
	return ginServer(b, func(c *gin.Context) {
		body, err := io.ReadAll(c.Request.Body)
		if err != nil {
			c.Status(http.StatusInternalServerError)
			return
		}
		c.Data(http.StatusOK, "application/json", body)
	})
}

// plainServer runs the module as wazero's own documentation does it: compiled once, instantiated for each request.
func plainServer(b *testing.B, module []byte) string {
	ctx := context.Background()
	runtime := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().WithCloseOnContextDone(true))
	b.Cleanup(func() { _ = runtime.Close(ctx) })
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, runtime); err != nil {
		b.Fatal(err)
	}
	compiled, err := runtime.CompileModule(ctx, module)
	if err != nil {
		b.Fatal(err)
	}
	return ginServer(b, func(c *gin.Context) {
		var out bytes.Buffer
		config := wazero.NewModuleConfig().WithName("").WithStdin(c.Request.Body).WithStdout(&out).WithSysWalltime().WithSysNanotime()
		instance, err := runtime.InstantiateModule(c.Request.Context(), compiled, config)
		if instance != nil {
			defer instance.Close(ctx)
		}
		if exit, ok := err.(*sys.ExitError); err != nil && (!ok || exit.ExitCode() != 0) {
			c.Status(http.StatusInternalServerError)
			return
		}
		c.Data(http.StatusOK, "application/json", out.Bytes())
	})
}

func ginServer(b *testing.B, handler gin.HandlerFunc) string {
	engine := gin.New()
	engine.POST("/", handler)
	server := httptest.NewServer(engine)
	b.Cleanup(server.Close)
	return server.URL
}
