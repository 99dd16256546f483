package cli

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core/internal/store/storetest"
	"github.com/keyfire/keyfire/core/internal/telemetry"
	"github.com/keyfire/keyfire/sdk/client"
)

// BenchmarkAccept compares accepting a durable run, which is answered with 202 once it is stored and synced with its charge and its audit event, with the
// least that a durable 202 costs: a handler that has one row inserted by a writer that commits for all who wait. Both are on SQLite in WAL mode with
// synchronous=FULL, take turns, and hear of nothing but requests: the runs are not due for months.
func BenchmarkAccept(b *testing.B) {
	accept := acceptServer(b)
	insert := newSubject(insertServer(b, false), "/", "", benchInput)
	charge := newSubject(insertServer(b, true), "/", "", benchInput)
	insert.name, charge.name = "Gin + bare insert", "Gin + bare update and insert"
	subjects := []*subject{accept, insert, charge}
	for b.Loop() {
		for _, connections := range []int{1, 64} {
			takeTurns(b, subjects, connections)
			printAccepts(b, connections, subjects)
		}
	}
}

// acceptServer starts a server that accepts runs which are not due for months.
func acceptServer(b *testing.B) *subject {
	data := exampleData(b)
	keyfire, _ := serveInProcess(b, data, telemetry.Config{}, "KEYFIRE_RUNS_MAX_QUEUED=10000000")
	key, err := socketClient(b, data).CreateKey(b.Context(), client.NewKey{Name: "bench", Scopes: []string{"run:*"}})
	if err != nil {
		b.Fatal(err)
	}
	s := newSubject(keyfire, "/v1/workflows/greet/runs", "Prefer: respond-async\r\nAuthorization: Bearer "+key.Secret+"\r\n", `{"input":`+benchInput+`,"run_after":"`+time.Now().AddDate(0, 6, 0).UTC().Format(time.RFC3339)+`"}`)
	s.name = "accept"
	return s
}

// BenchmarkAcceptAlone is the same accept without anything beside it, to be profiled; -short leaves it out.
func BenchmarkAcceptAlone(b *testing.B) {
	if testing.Short() {
		b.Skip("BenchmarkAccept measures it too")
	}
	alone(b, acceptServer(b))
}

func printAccepts(b *testing.B, connections int, subjects []*subject) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\n202, %d connections\tper s\tp50\tp99\tCPU µs\t\n", connections)
	rate := make([]float64, len(subjects))
	cpu := make([]float64, len(subjects))
	var slow float64
	for i, s := range subjects {
		of := func(f func(round) float64) float64 { return median(s.rounds, f) }
		rate[i], cpu[i] = of(func(r round) float64 { return r.rate }), of(func(r round) float64 { return r.cpu })
		p50, p99 := of(func(r round) float64 { return float64(r.p50) }), of(func(r round) float64 { return float64(r.p99) })
		if i == 0 {
			slow = p99 / p50
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.2f ms\t%.2f ms\t%.0f\t\n", s.name, rate[i], p50/1e6, p99/1e6, cpu[i])
	}
	_ = w.Flush()
	fmt.Printf("  accept : bare insert: %.2f by rate, %.2f by CPU (goal >= 0.5)\n  accept : bare update and insert: %.2f by rate, %.2f by CPU\n  p99 : p50 of accept: %.1f (goal <= 4)\n",
		rate[0]/rate[1], cpu[1]/cpu[0], rate[0]/rate[2], cpu[2]/cpu[0], slow)
	b.ReportMetric(rate[0], fmt.Sprintf("accepts/s-%d", connections))
	b.ReportMetric(rate[0]/rate[1], fmt.Sprintf("x-bare-%d", connections))
}

// insertServer stores what it is sent in a row of its own, after an update of a counter if charge is set, and answers with 202.
func insertServer(b *testing.B, charge bool) string {
	insert := storetest.BareGroupCommit(b, charge)
	newID, pad := newIDs(), string(make([]byte, 512-len(benchInput)))
	return ginServer(b, func(c *gin.Context) {
		body, err := io.ReadAll(c.Request.Body)
		if err == nil {
			err = insert(newID("run_"), string(body)+pad)
		}
		if err != nil {
			c.Status(http.StatusInternalServerError)
			return
		}
		c.JSON(http.StatusAccepted, map[string]any{"object": "run", "status": "queued", "at": time.Now()})
	})
}
