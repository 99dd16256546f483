package cli

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/keyfire/keyfire/runtime/wasm"
)

// measureTime is how long each row of a measurement takes.
const measureTime = time.Second

// measureNode measures a module with one input.
func (a *app) measureNode(ctx context.Context, binary []byte, call wasm.Call, local local) (*wasm.Measurement, error) {
	var m wasm.Measurement
	err := a.localRuntime(ctx, binary, &call, local, func(rt *wasm.Runtime) (err error) {
		m, err = rt.Measure(ctx, call, measureTime)
		return err
	})
	return &m, err
}

// measurement is what `node inspect --measure --json` adds.
type measurement struct {
	Class      string  `json:"class"`
	Start      string  `json:"start"`
	Why        string  `json:"why,omitempty"`
	Plain      timing  `json:"plain"`
	Fresh      timing  `json:"fresh"`
	Reused     *timing `json:"reused,omitempty"`
	Reset      *timing `json:"reset,omitempty"`
	DirtyPages int     `json:"dirty_pages"`
	IdleBytes  int64   `json:"idle_bytes"`
	ImageBytes int64   `json:"image_bytes"`
}

type timing struct {
	Calls    int     `json:"calls"`
	MedianUS float64 `json:"median_us"`
	P99US    float64 `json:"p99_us"`
}

func timingBody(t wasm.Timing) timing {
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	return timing{t.Calls, us(t.Median), us(t.P99)}
}

func measurementBody(m *wasm.Measurement) *measurement {
	if m == nil {
		return nil
	}
	b := &measurement{
		Class: m.Start.Class(), Start: string(m.Start), Why: m.Why, Plain: timingBody(m.Plain), Fresh: timingBody(m.Fresh),
		DirtyPages: m.DirtyPages, IdleBytes: m.IdleBytes, ImageBytes: m.ImageBytes,
	}
	for _, row := range []struct {
		of wasm.Timing
		to **timing
	}{{m.Reused, &b.Reused}, {m.Reset, &b.Reset}} {
		if row.of.Calls > 0 {
			t := timingBody(row.of)
			*row.to = &t
		}
	}
	return b
}

// printMeasurement prints the module's own table.
func (a *app) printMeasurement(m *wasm.Measurement) {
	start := fmt.Sprintf("%s, %s", m.Start.Class(), m.Start)
	if m.Why != "" {
		start += ": " + m.Why
	}
	a.fields("start", start)
	w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\ninvocation\tcalls\tmedian\tp99\t")
	for _, row := range []struct {
		name string
		of   wasm.Timing
	}{{"plain", m.Plain}, {"fresh", m.Fresh}, {"reused", m.Reused}, {"reset", m.Reset}} {
		if row.of.Calls == 0 {
			fmt.Fprintf(w, "%s\t-\t-\t-\t\n", row.name)
			continue
		}
		fmt.Fprintf(w, "%s\t%d\t%v\t%v\t\n", row.name, row.of.Calls, row.of.Median.Round(100*time.Nanosecond), row.of.P99.Round(100*time.Nanosecond))
	}
	_ = w.Flush()
	fmt.Fprintf(a.Stdout, "\ndirty pages %d of 4 KiB, idle instance %d KiB, image %d KiB\n", m.DirtyPages, m.IdleBytes>>10, m.ImageBytes>>10)
}
