package cli

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/telemetry"
	"github.com/keyfire/keyfire/runtime/wasm"
	"github.com/keyfire/keyfire/sdk/client"
)

// A reset that leaves a difference in a real server is found, recorded once in the audit log with the module, counted in the metrics, and ends
// the fast way of resetting for that module, whose runs go on. The difference is made from outside: one byte of the server's own copy of the image
// is changed, which its instances do not share.
func TestMismatchEndToEnd(t *testing.T) {
	t.Parallel()
	collector := newCollector(t)
	data := filepath.Join(t.TempDir(), "data")
	copyData(t, data)
	log := &syncBuffer{}
	cmd := exec.Command("keyfire", "serve", "--json", "--data", data, "--listen", "127.0.0.1:0")
	cmd.Env = cleanEnv("KEYFIRE_WASM_VERIFY_EVERY=1", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT="+collector.url+"/v1/metrics",
		"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=http/protobuf", "OTEL_METRIC_EXPORT_INTERVAL=200")
	p, err := launchCommand(cmd, data, log)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	s := &testServer{process: p, admin: socketClient(t, data), log: log}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("stop: %v\n%s", err, log)
		}
	})
	key := s.createKey(t, client.NewKey{Workflow: "echo"})
	c := s.client(t, key.Secret)
	var runs int64
	run := func() {
		t.Helper()
		runs++
		res, err := c.Trigger(t.Context(), "echo", client.TriggerRequest{Input: []byte(`{"name":"Ada"}`)})
		if err != nil || res.Status != "succeeded" {
			t.Fatalf("%+v, %v\n%s", res, err, log)
		}
	}
	// The first runs may begin before there is an image.
	collector.wait(t, func(m map[string]int64) bool {
		run()
		return m[telemetry.MetricVerified] >= 3 && m[telemetry.MetricIdle] > 0
	})
	if m := collector.latest(); m[telemetry.MetricMismatches] != 0 || m[telemetry.MetricResets] < m[telemetry.MetricVerified] || m[telemetry.MetricModules] == 0 ||
		m[telemetry.MetricModuleMemory] == 0 || m[telemetry.MetricIdleMemory] == 0 || m[telemetry.MetricMade] == 0 || m[telemetry.MetricCalls] < 5 {
		t.Errorf("before anything went wrong: %v", m)
	}
	// A reset still under way would meet the change in the hands of the next run, which would then make its new instance from the changed image.
	collector.wait(t, func(m map[string]int64) bool {
		return m[telemetry.MetricCalls] == runs && m[telemetry.MetricResets] == runs-m[telemetry.MetricCalls+" "+string(wasm.StartPlain)]
	})
	mend, ok := spoilImages(t, p.cmd.Process.Pid)
	if !ok {
		t.Skip("SKIPPED: this kernel does not tell which pages were written, so images are copied whole from the beginning")
	}
	run()
	collector.wait(t, func(m map[string]int64) bool { return m[telemetry.MetricMismatches] == 1 })
	mend()
	var events []client.AuditEvent
	waitUntil(t, func() bool {
		l, err := s.admin.AuditEvents(t.Context(), client.AuditQuery{Action: core.ActionModuleMismatch})
		if err != nil {
			t.Fatal(err)
		}
		events = l.Data
		return len(events) > 0
	})
	if e := events[0]; len(events) != 1 || e.Actor != "system" || !strings.HasPrefix(e.Target, "sha256:") || !strings.Contains(e.Reason, "copying") {
		t.Errorf("audit events %+v", events)
	}
	if !strings.Contains(log.String(), "a reset left a difference") {
		t.Errorf("the log does not say so:\n%s", log)
	}
	// Put back by copying, instances are as the image, byte by byte, from now on.
	before := collector.latest()[telemetry.MetricVerified]
	collector.wait(t, func(m map[string]int64) bool {
		run()
		return m[telemetry.MetricVerified] >= before+3
	})
	if m := collector.latest(); m[telemetry.MetricMismatches] != 1 {
		t.Errorf("after the switch: %v", m)
	}
}

// spoilImages changes the last byte of every image that a server holds in a memory file, in the server's own view of it. It lies in
// memory that a Go program has not taken yet. mend undoes it.
func spoilImages(t *testing.T, pid int) (mend func(), ok bool) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var places []int64
	write := func(b byte) {
		for _, at := range places {
			if _, err := mem.WriteAt([]byte{b}, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Cleanup(func() { mem.Close() })
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || mode != "r--p" || !strings.Contains(line, "keyfire-image") {
			continue
		}
		var last [1]byte
		if _, err := mem.ReadAt(last[:], to-1); err != nil || last[0] != 0 {
			t.Fatalf("the last byte of an image is %v, %v", last, err)
		}
		places = append(places, to-1)
	}
	write(0x5a)
	return func() { write(0) }, len(places) > 0
}

// collector takes metrics by OTLP, and keeps the newest sum of each, over its attributes and for each value of one.
type collector struct {
	url string
	mu  sync.Mutex
	got map[string]int64
}

func newCollector(t *testing.T) *collector {
	c := &collector{got: make(map[string]int64)}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		// ExportMetricsServiceRequest.resource_metrics, .scope_metrics, .metrics
		for _, resource := range fields(b, 1) {
			for _, scope := range fields(resource, 2) {
				for _, m := range fields(scope, 2) {
					name := string(bytes.Join(fields(m, 1), nil))
					sums := total(m)
					c.got[name] = sums[""]
					delete(sums, "")
					for value, sum := range sums {
						c.got[name+" "+value] = sum
					}
				}
			}
		}
	}))
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// fields returns the values of one field of a message whose type has a length.
func fields(message []byte, number protowire.Number) (values [][]byte) {
	for len(message) > 0 {
		n, typ, size := protowire.ConsumeTag(message)
		if size < 0 {
			return values
		}
		message = message[size:]
		if size = protowire.ConsumeFieldValue(n, typ, message); size < 0 {
			return values
		}
		if v := message[:size]; n == number && typ == protowire.BytesType {
			b, _ := protowire.ConsumeBytes(v)
			values = append(values, b)
		}
		message = message[size:]
	}
	return values
}

// total adds up the whole numbers of a gauge or sum: all of them under "", and those with an attribute under its value.
func total(metric []byte) map[string]int64 {
	sums := make(map[string]int64)
	for _, data := range append(fields(metric, 5), fields(metric, 7)...) {
		for _, point := range fields(data, 1) {
			values := []string{""}
			for _, attribute := range fields(point, 7) {
				for _, value := range fields(attribute, 2) {
					values = append(values, string(bytes.Join(fields(value, 1), nil)))
				}
			}
			for _, value := range values {
				sums[value] += number(point)
			}
		}
	}
	return sums
}

// number returns the whole number of a data point, or 0.
func number(point []byte) int64 {
	for len(point) > 0 {
		n, typ, size := protowire.ConsumeTag(point)
		if size < 0 {
			return 0
		}
		point = point[size:]
		if size = protowire.ConsumeFieldValue(n, typ, point); size < 0 {
			return 0
		}
		if n == 6 && typ == protowire.Fixed64Type {
			v, _ := protowire.ConsumeFixed64(point)
			return int64(v)
		}
		point = point[size:]
	}
	return 0
}

func (c *collector) latest() map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[string]int64, len(c.got))
	maps.Copy(all, c.got)
	return all
}

func (c *collector) wait(t *testing.T, done func(map[string]int64) bool) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("metrics: %v", c.latest())
		}
	}()
	waitUntil(t, func() bool { return done(c.latest()) })
}
