package plugins

import (
	"slices"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
)

func BenchmarkPluginCall(b *testing.B) {
	h := startHost(b, pluginHere(b, "p"))
	a, err := h.Authenticator("p")
	if err != nil {
		b.Fatal(err)
	}
	c := auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret("tok_ok"), Method: "POST", Path: "/v1/trigger/invoice"}
	took := make([]time.Duration, 0, 1<<16)
	for b.Loop() {
		began := time.Now()
		if _, err := a.Authenticate(b.Context(), c); err != nil {
			b.Fatal(err)
		}
		if len(took) < cap(took) {
			took = append(took, time.Since(began))
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
}
