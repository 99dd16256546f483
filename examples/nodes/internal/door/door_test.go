package door

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

type input struct {
	Amount int             `json:"amount"`
	Raw    json.RawMessage `json:"raw"`
	Config struct {
		Unit string `json:"unit"`
	} `json:"config"`
}

func TestRun(t *testing.T) {
	t.Parallel()
	double := func(in input) (map[string]any, error) {
		switch {
		case in.Amount < 0:
			return nil, &Fail{Status: 422, Code: "negative", Message: "amount is below zero"}
		case in.Amount == 13:
			return nil, errors.New("thirteen is out of order")
		}
		return map[string]any{"amount": 2 * in.Amount, "unit": in.Config.Unit}, nil
	}
	tests := []struct {
		name, stdin string
		stdout      string
		code        int
	}{
		{"output", `{"amount":21,"raw":{"anything":[1]},"config":{"unit":"kg"}}`, `{"amount":42,"unit":"kg"}`, 0},
		{"characters of HTML", `{"config":{"unit":"<b>&"}}`, `{"amount":0,"unit":"<b>&"}`, 0},
		{"failing on purpose", `{"amount":-1}`, `{"fail":{"status":422,"code":"negative","message":"amount is below zero"}}`, 1},
		{"any other error", `{"amount":13}`, `{"error":{"class":"failed","message":"thirteen is out of order"}}`, 1},
		{"unknown field", `{"amuont":21}`, `{"error":{"class":"failed","message":"read input: json: unknown field \"amuont\""}}`, 1},
		{"wrong type", `{"config":{"unit":7}}`, `{"error":{"class":"failed","message":"read input: config.unit cannot be a JSON number"}}`, 1},
		{"not an object", `[]`, `{"error":{"class":"failed","message":"read input: the input cannot be a JSON array"}}`, 1},
		{"nothing", ``, `{"error":{"class":"failed","message":"read input: EOF"}}`, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr strings.Builder
			code := run(strings.NewReader(tt.stdin), &stdout, &stderr, double)
			if got := strings.TrimSpace(stdout.String()); got != tt.stdout || code != tt.code {
				t.Errorf("exit %d, stdout %s\nwant %d, %s", code, got, tt.code, tt.stdout)
			}
			if stderr.Len() > 0 {
				t.Errorf("stderr: %s", stderr.String())
			}
		})
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }

// An output that could not be written must not look like success.
func TestRunCannotWrite(t *testing.T) {
	t.Parallel()
	var stderr strings.Builder
	code := run(strings.NewReader(`{}`), failingWriter{}, &stderr, func(input) (int, error) { return 1, nil })
	if code != 1 || !strings.Contains(stderr.String(), "disk full") {
		t.Errorf("exit %d, stderr %q; want 1 and the cause", code, stderr.String())
	}
}
