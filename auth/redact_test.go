package auth

import "testing"

func TestRedact(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"/v1/workflows/greet/runs":                   "/v1/workflows/greet/runs",
		"/v1/workflows/kft_0123456789abcdef/runs":    "/v1/workflows/kft_[redacted]/runs",
		"kfkfa_0123456789":                           "kfkfa_[redacted]",
		"kf kfx_0123456789 kfs_01234567 kfr_0123456": "kf kfx_0123456789 kfs_[redacted] kfr_0123456",
		"kft": "kft",
		"workflow of eyJhbGciOiJFUzI1NiJ9.eyJhIjoxfQ.c2ln, kf": "workflow of [redacted], kf",
	} {
		if got := Redact(text); got != want {
			t.Errorf("Redact(%q) = %q, want %q", text, got, want)
		}
	}
}
