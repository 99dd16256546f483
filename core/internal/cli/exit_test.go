package cli

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"testing"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/sdk/client"
)

func TestEveryCodeHasAnExitStatus(t *testing.T) {
	t.Parallel()
	codes := core.Codes()
	for _, code := range codes {
		if exitCodes[code] == exitOK {
			t.Errorf("code %s has no exit status", code)
		}
	}
	if len(exitCodes) != len(codes) {
		t.Errorf("the table has %d rows for %d codes", len(exitCodes), len(codes))
	}
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		err  error
		want int
	}{
		{"quota", &client.Error{Status: 429, Code: "quota_exhausted"}, exitLimited},
		{"failed run", &client.Error{Status: 500, Code: "run_failed", RunID: "run_1"}, exitRunFailed},
		{"failed with the workflow's own code", &client.Error{Status: 409, Code: "duplicate_invoice", RunID: "run_1"}, exitRunFailed},
		{"a proxy's answer", &client.Error{Status: 502}, exitUnavailable},
		{"a stranger's answer", &client.Error{Status: 418}, exitFailed},
		{"local", core.Errorf(core.CodeInvalidWorkflow, "x"), exitInvalid},
		{"wrapped", fmt.Errorf("apply: %w", &client.Error{Status: 404, Code: "not_found"}), exitNotFound},
		{"no server", fmt.Errorf("%w at x", errUnreachable), exitUnavailable},
		{"a server that dies over it", unreachable(&url.Error{Op: "Put", URL: "x", Err: io.EOF}), exitUnavailable},
		{"anything else", errors.New("x"), exitFailed},
	} {
		if got := exitCode(tc.err); got != tc.want {
			t.Errorf("%s: exit status %d, want %d", tc.name, got, tc.want)
		}
	}
}
