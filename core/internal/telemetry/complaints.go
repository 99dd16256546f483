package telemetry

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
)

// complaints hears what the SDK has to say about OTEL_* variables. By itself it prints a line of its own form for one that it cannot read, and goes on as if that was not
// there: with a mistyped endpoint, telemetry would go to the default one.
type complaints struct {
	mu    sync.Mutex
	texts []string
	later func(error) // set by end: hears what comes afterwards
}

// hear makes c the process-wide ear of the SDK, which has no other.
func (c *complaints) hear() {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(c.add))
	otel.SetLogger(logr.New(c))
}

func (c *complaints) add(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.later != nil {
		c.later(err)
		return
	}
	if text := withoutHeaders(err.Error()); !slices.Contains(c.texts, text) {
		c.texts = append(c.texts, text)
	}
}

// end returns what was heard as an error, and passes what comes from now on to later.
func (c *complaints) end(later func(error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.later = later
	if len(c.texts) == 0 {
		return nil
	}
	return fmt.Errorf("telemetry: OTEL_* variables: %s", strings.Join(c.texts, "; "))
}

// withoutHeaders takes the values of headers out of a text. They are where credentials are.
func withoutHeaders(text string) string {
	for _, signal := range []string{"", "TRACES_", "METRICS_", "LOGS_"} {
		if v := os.Getenv("OTEL_EXPORTER_OTLP_" + signal + "HEADERS"); v != "" {
			text = strings.ReplaceAll(text, v, "(not shown)")
		}
	}
	return text
}

// The SDK's logger: only errors are listened to, and of these not the values, which can be a header.

func (c *complaints) Init(logr.RuntimeInfo)          {}
func (c *complaints) Enabled(int) bool               { return false }
func (c *complaints) Info(int, string, ...any)       {}
func (c *complaints) WithValues(...any) logr.LogSink { return c }
func (c *complaints) WithName(string) logr.LogSink   { return c }
func (c *complaints) Error(err error, msg string, _ ...any) {
	c.add(fmt.Errorf("%s: %w", msg, err))
}
