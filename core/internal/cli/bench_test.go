package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/keyfire/keyfire/core/internal/telemetry"
	"github.com/keyfire/keyfire/sdk/client"
)

const (
	benchRounds = 5
	benchTime   = 300 * time.Millisecond // of each subject in each round
	benchInput  = `{"name":"Ada"}`
)

// BenchmarkGreet compares a trigger of the greet example, with everything that belongs to it (authentication, admission, audit and two
// synced commits), with what its parts cost bare, and with itself in other shapes. All take turns within one run, so that whatever else the machine does
// hits all of them; the tables have the medians of the rounds. It prints them once, however long -benchtime is; with -short, from one short round, they show
// only that it works.
func BenchmarkGreet(b *testing.B) {
	servers := greetServers(b)
	for b.Loop() {
		for _, connections := range []int{1, 16, 64} {
			takeTurns(b, servers, connections)
			printRounds(b, connections, servers)
		}
	}
}

// takeTurns puts a load on each subject in turn, several times over; with -short once, and not for long.
func takeTurns(b *testing.B, subjects []*subject, connections int) {
	b.Helper()
	rounds, length := benchRounds, benchTime
	if testing.Short() {
		rounds, length = 1, benchTime/10
	}
	for _, s := range subjects {
		s.rounds = nil
		s.load(b, connections, length/3) // warm
	}
	for range rounds {
		for _, s := range subjects {
			s.rounds = append(s.rounds, s.load(b, connections, length))
		}
	}
}

// The subjects of BenchmarkGreet, by their place.
const (
	subjectGreet = iota
	subjectChain
	subjectPlain
	subjectPlainChain
	subjectEcho
	subjectFresh
)

// greetServers starts what BenchmarkGreet compares.
func greetServers(b *testing.B) []*subject {
	module, err := os.ReadFile(filepath.Join(examples(b), "examples/workflows/greet/nodes/greet.wasm"))
	if err != nil {
		b.Fatal(err)
	}
	chain := []byte(`{"keyfire": "v1", "name": "chain3", "trigger": {"enabled": true}, "nodes": [
		{"id": "one", "uses": "./greet.wasm", "with": {"name": "${{ input.name }}"}},
		{"id": "two", "uses": "./greet.wasm", "with": {"name": "${{ nodes.one.output.greeting }}"}},
		{"id": "three", "uses": "./greet.wasm", "with": {"name": "${{ nodes.two.output.greeting }}"}}]}`)
	gin.SetMode(gin.ReleaseMode)
	var subjects []*subject
	server := func(environ ...string) (url, secret string) {
		data := exampleData(b)
		url, _ = serveInProcess(b, data, telemetry.Config{}, environ...)
		c := socketClient(b, data)
		if _, err := c.PublishWorkflow(b.Context(), "chain3", client.Publication{
			Filename: "chain3.json", Source: chain, Modules: map[string][]byte{"./greet.wasm": module},
		}); err != nil {
			b.Fatal(err)
		}
		key, err := c.CreateKey(b.Context(), client.NewKey{Name: "bench", Scopes: []string{"run:*"}})
		if err != nil {
			b.Fatal(err)
		}
		return url, key.Secret
	}
	trigger := func(name, url, secret, workflow string) {
		s := newSubject(url, "/v1/workflows/"+workflow+"/runs", "Authorization: Bearer "+secret+"\r\n", `{"input":`+benchInput+`}`)
		s.name = name
		subjects = append(subjects, s)
	}
	url, secret := server()
	trigger("greet", url, secret, "greet")
	trigger("chain3", url, secret, "chain3")
	url, secret = server("KEYFIRE_WASM_ENGINE=plain")
	trigger("greet, engine: plain", url, secret, "greet")
	trigger("chain3, engine: plain", url, secret, "chain3")
	echo, fresh := newSubject(echoServer(b), "/", "", benchInput), newSubject(plainServer(b, module), "/", "", benchInput)
	echo.name, fresh.name = "Gin echo", "Gin + wazero fresh"
	return append(subjects, echo, fresh)
}

// printRounds prints the medians of one number of connections, and the ratios that are goals.
func printRounds(b *testing.B, connections int, subjects []*subject) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\n%d connections\tper s\tp50\tp99\tCPU µs\tKB allocated\t\n", connections)
	rate := make([]float64, len(subjects))
	cpu := make([]float64, len(subjects))
	for i, s := range subjects {
		of := func(f func(round) float64) float64 { return median(s.rounds, f) }
		rate[i], cpu[i] = of(func(r round) float64 { return r.rate }), of(func(r round) float64 { return r.cpu })
		ms := func(ns float64) float64 { return ns / 1e6 }
		fmt.Fprintf(w, "%s\t%.0f\t%.2f ms\t%.2f ms\t%.0f\t%.1f\t\n", s.name, rate[i], ms(of(func(r round) float64 { return float64(r.p50) })),
			ms(of(func(r round) float64 { return float64(r.p99) })), cpu[i], of(func(r round) float64 { return r.allocated })/1e3)
	}
	_ = w.Flush()
	for _, r := range []struct {
		name  string
		value float64
		goal  string
	}{
		{"greet : Gin + wazero fresh", rate[subjectGreet] / rate[subjectFresh], ">= 12"},
		{"greet : Gin echo", rate[subjectGreet] / rate[subjectEcho], ""},
		{"greet snapshot : plain", rate[subjectGreet] / rate[subjectPlain], ""},
		{"chain3 snapshot : plain", rate[subjectChain] / rate[subjectPlainChain], ""},
		{"greet : chain3", rate[subjectGreet] / rate[subjectChain], "<= 2"},
		{"CPU of greet - CPU of echo, µs", cpu[subjectGreet] - cpu[subjectEcho], "<= 200"},
	} {
		fmt.Printf("  %s: %.2f %s\n", r.name, r.value, r.goal)
	}
	b.ReportMetric(rate[subjectGreet], fmt.Sprintf("triggers/s-%d", connections))
	b.ReportMetric(rate[subjectGreet]/rate[subjectFresh], fmt.Sprintf("x-gin+wazero-%d", connections))
}

// BenchmarkGreetAlone is the same trigger without anything beside it, to be profiled; -short leaves it out.
func BenchmarkGreetAlone(b *testing.B) {
	if testing.Short() {
		b.Skip("BenchmarkGreet measures it too")
	}
	alone(b, greetServers(b)[subjectGreet])
}

// alone puts a load on one subject for as long as the benchmark runs.
func alone(b *testing.B, s *subject) {
	s.load(b, 64, benchTime)
	b.ResetTimer()
	for b.Loop() {
		r := s.load(b, 64, 10*benchTime)
		b.ReportMetric(r.rate, "triggers/s")
		b.ReportMetric(r.cpu, "cpu-µs/trigger")
		b.ReportMetric(r.allocated/1e3, "kB/trigger")
	}
}

// subject is a server under load, and the one request it is sent, byte by byte the same each time.
type subject struct {
	name    string
	address string
	request []byte
	rounds  []round
}

type round struct {
	rate     float64 // requests per second
	p50, p99 time.Duration

	// For each request, of the whole process: what the client takes is in it.
	cpu       float64 // µs
	allocated float64 // bytes
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
	start, before := time.Now(), spent(b)
	for i := range connections {
		wg.Go(func() {
			if err := s.connection(start.Add(d), &latencies[i]); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	elapsed, after := time.Since(start), spent(b)
	if b.Failed() {
		b.FailNow()
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	n := float64(len(all))
	return round{
		rate: n / elapsed.Seconds(), p50: all[len(all)/2], p99: all[len(all)*99/100],
		cpu: float64((after.cpu - before.cpu).Microseconds()) / n, allocated: float64(after.allocated-before.allocated) / n,
	}
}

type spending struct {
	cpu       time.Duration
	allocated uint64
}

// spent is what this process has used up to now.
func spent(b *testing.B) spending {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return spending{time.Duration(u.Utime.Nano() + u.Stime.Nano()), m.TotalAlloc}
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
		if sent.After(until) && len(*latencies) > 0 { // at least one, however long the dialing took
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
	if !strings.HasPrefix(status, "HTTP/1.1 20") {
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
	engine := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().WithCloseOnContextDone(true))
	b.Cleanup(func() { _ = engine.Close(ctx) })
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, engine); err != nil {
		b.Fatal(err)
	}
	compiled, err := engine.CompileModule(ctx, module)
	if err != nil {
		b.Fatal(err)
	}
	host := engine.NewHostModuleBuilder("keyfire_v1")
	for _, d := range compiled.ImportedFunctions() {
		if from, name, _ := d.Import(); from == "keyfire_v1" {
			host.NewFunctionBuilder().WithGoModuleFunction(plainHost(name), d.ParamTypes(), d.ResultTypes()).Export(name)
		}
	}
	if _, err := host.Instantiate(ctx); err != nil {
		b.Fatal(err)
	}
	return ginServer(b, func(c *gin.Context) {
		in, err := io.ReadAll(c.Request.Body)
		if err != nil {
			c.Status(http.StatusInternalServerError)
			return
		}
		call := &plainCall{in: in}
		ctx := context.WithValue(c.Request.Context(), plainKey{}, call)
		config := wazero.NewModuleConfig().WithName("").WithStartFunctions("_initialize").WithSysWalltime().WithSysNanotime().WithRandSource(rand.Reader)
		instance, err := engine.InstantiateModule(ctx, compiled, config)
		if err != nil {
			c.Status(http.StatusInternalServerError)
			return
		}
		defer instance.Close(ctx)
		if _, err := instance.ExportedFunction("run").Call(ctx, uint64(len(in))); err != nil {
			c.Status(http.StatusInternalServerError)
			return
		}
		c.Data(http.StatusOK, "application/json", call.out)
	})
}

type plainKey struct{}

type plainCall struct{ in, out []byte }

// plainHost is the least of a host that the module needs.
func plainHost(name string) api.GoModuleFunc {
	return func(ctx context.Context, m api.Module, stack []uint64) {
		call := ctx.Value(plainKey{}).(*plainCall)
		switch name {
		case "input_read":
			b, _ := m.Memory().Read(uint32(stack[1]), uint32(stack[2]))
			stack[0] = uint64(copy(b, call.in[min(int(uint32(stack[0])), len(call.in)):]))
		case "output_write":
			b, _ := m.Memory().Read(uint32(stack[0]), uint32(stack[1]))
			call.out = append(call.out, b...)
			stack[0] = 0
		default:
			stack[0] = 0
		}
	}
}

func ginServer(b *testing.B, handler gin.HandlerFunc) string {
	engine := gin.New()
	engine.POST("/", handler)
	server := httptest.NewServer(engine)
	b.Cleanup(server.Close)
	return server.URL
}
