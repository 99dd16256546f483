package plugins

import (
	"slices"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/sdk/authplugin/authv1"
)

// BenchmarkPluginCall is a credential judged by a plugin, beside the same remote call with nothing of the host around it: what the machine takes for going to
// another process and back is in both. They take turns.
func BenchmarkPluginCall(b *testing.B) {
	h := startHost(b, pluginHere(b, "p"))
	a, err := h.Authenticator("p")
	if err != nil {
		b.Fatal(err)
	}
	rpc := h.plugins["p"].current.Load().rpc
	c := auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret("tok_ok"), Method: "POST", Path: "/v1/trigger/invoice"}
	bare := &authv1.AuthenticateRequest{Credential: "tok_ok", Method: "POST", Path: "/v1/trigger/invoice"}
	timed := func(call func() error) time.Duration {
		began := time.Now()
		if err := call(); err != nil {
			b.Fatal(err)
		}
		return time.Since(began)
	}
	var judged, called []time.Duration
	for b.Loop() {
		judged = append(judged, timed(func() error { _, err := a.Authenticate(b.Context(), c); return err }))
		called = append(called, timed(func() error { _, err := rpc.Authenticate(b.Context(), bare); return err }))
	}
	at := func(list []time.Duration, percent int) float64 {
		slices.Sort(list)
		return float64(list[len(list)*percent/100].Microseconds())
	}
	b.ReportMetric(at(judged, 50), "p50-us")
	b.ReportMetric(at(judged, 99), "p99-us")
	b.ReportMetric(at(called, 50), "bare-p50-us")
	b.ReportMetric(at(judged, 50)/at(called, 50), "x-bare")
}
