package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/keyfire/keyfire/plugins"
)

// BenchmarkTriggerAuth compares a trigger by a built-in key with one by a credential that a plugin judges: the price of the process line. The two take turns
// within one run, so that whatever else the machine does hits both; the table has the medians of the rounds. It prints the table once, however long
// -benchtime is.
func BenchmarkTriggerAuth(b *testing.B) {
	data := filepath.Join(b.TempDir(), "data")
	if err := copyDir(data, filepath.Join(sharedDir(b), "data")); err != nil {
		b.Fatal(err)
	}
	plugin, err := exec.LookPath("keyfire-auth-test")
	if err != nil {
		b.Fatal(err)
	}
	digest, err := plugins.Digest(plugin)
	if err != nil {
		b.Fatal(err)
	}
	config := writeFile(b, "keyfire.yaml", fmt.Sprintf(`auth:
  - key: {}
  - plugin: {name: legacy, path: %q, sha256: %q, required: true, prefixes: [legacy_], accounts: [acct_default], scopes: ["run:workflow/echo"], timeout: 5s}
`, plugin, digest))
	var log bytes.Buffer
	s, err := launch(data, &log, "--config", config, "--log-level", "error")
	if err != nil {
		b.Fatalf("%v\n%s", err, log.String())
	}
	defer func() { _ = s.stop() }()
	create := exec.Command("keyfire", "keys", "create", "--name", "bench", "--workflow", "echo")
	create.Env = cleanEnv("KEYFIRE_DATA=" + data)
	key, err := create.Output()
	if err != nil {
		b.Fatal(err)
	}
	subjects := []*subject{
		newSubject(s.url, "/v1/workflows/echo/runs", "Authorization: Bearer "+strings.TrimSpace(string(key))+"\r\n", `{"input":{"n":1}}`),
		newSubject(s.url, "/v1/workflows/echo/runs", "Authorization: Bearer legacy_alice\r\n", `{"input":{"n":1}}`),
	}
	for b.Loop() {
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, "\nconnections\tkey/s\tp50\tp99\tplugin/s\tp50\tp99\tplugin:key\tp50 plugin:key\t")
		for _, connections := range []int{1, 16} {
			takeTurns(b, subjects, connections)
			fmt.Fprintf(w, "%d\t", connections)
			var rates, medians [2]float64
			for i, s := range subjects {
				rates[i] = median(s.rounds, func(r round) float64 { return r.rate })
				medians[i] = median(s.rounds, func(r round) float64 { return float64(r.p50) })
				p99 := median(s.rounds, func(r round) float64 { return float64(r.p99) })
				fmt.Fprintf(w, "%.0f\t%v\t%v\t", rates[i], time.Duration(medians[i]).Round(10*time.Microsecond), time.Duration(p99).Round(10*time.Microsecond))
			}
			fmt.Fprintf(w, "%.2f\t%.2f\t\n", rates[1]/rates[0], medians[1]/medians[0])
			b.ReportMetric(rates[1]/rates[0], fmt.Sprintf("plugin:key-%d", connections))
			b.ReportMetric(medians[1]/medians[0], fmt.Sprintf("p50-plugin:key-%d", connections))
		}
		w.Flush()
	}
}
