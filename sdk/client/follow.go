package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// RunEvent is one thing that happened in a run.
type RunEvent struct {
	Seq          int64           `json:"seq"`  // grows within the run, not always by one
	Type         string          `json:"type"` // run.started, step.started, step.log, step.output, step.retrying, step.finished or run.finished
	Time         time.Time       `json:"time"`
	RunID        string          `json:"run_id"`
	Step         string          `json:"step"`
	Status       string          `json:"status"`      // of the step, or of the run
	Attempt      int             `json:"attempt"`     // of the step; of run.started and run.finished, the run's
	RunAttempt   int             `json:"run_attempt"` // grows when the run is carried on, after a wait or the end of a server; steps that had not ended then begin again
	Level        string          `json:"level"`       // of a line of a log
	Message      string          `json:"message"`     // the line
	Output       json.RawMessage `json:"output"`
	OmittedBytes int64           `json:"omitted_bytes"` // size of an output that is too large for an event
	Error        *RunError       `json:"error"`
	RetryAt      *time.Time      `json:"retry_at"`
}

// EventRunFinished is the type of the last event of a run.
const EventRunFinished = "run.finished"

// maxEvent bounds one line of a stream.
const maxEvent = 1 << 20

// errCutOff is how a stream ends that has not told the end of the run.
var errCutOff = errors.New("client: the stream ended before the run")

// Follow calls fn for every event of a run after the given number, 0 being all, and returns nil after the last one, at once when there is none left. When the connection breaks, it
// connects again and goes on where it was. It ends with an error of fn, an *Error of the server, an answer that is no
// stream of events, or the cause of ctx.
func (c *Client) Follow(ctx context.Context, id string, after int64, fn func(RunEvent) error) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		before := after
		done, err := c.follow(ctx, id, &after, fn)
		var refused *Error
		var final *finalError
		switch {
		case done:
			return nil
		case errors.As(err, &final):
			return final.err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &refused) && refused.Status < http.StatusInternalServerError:
			return err
		case after > before:
			wait = 100 * time.Millisecond
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// finalError is an error that connecting again does not mend: of the caller's function, of a request that cannot be sent, or of an answer that is no stream.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }

func (c *Client) follow(ctx context.Context, id string, after *int64, fn func(RunEvent) error) (done bool, err error) {
	req, err := c.newRequest(ctx, http.MethodGet, []string{"v1", "runs", id, "events"}, nil)
	if err != nil {
		return false, &finalError{err}
	}
	req.Header.Set("Accept", "text/event-stream, application/problem+json")
	if *after > 0 {
		req.Header.Set("Last-Event-ID", strconv.FormatInt(*after, 10))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNoContent {
		return true, nil
	}
	if resp.StatusCode != http.StatusOK {
		answer := Response{Status: resp.StatusCode, Header: resp.Header, RequestID: resp.Header.Get("Keyfire-Request-Id")}
		if answer.Body, err = io.ReadAll(io.LimitReader(resp.Body, maxResponse)); err != nil {
			return false, err
		}
		return false, newError(answer)
	}
	if t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); t != "text/event-stream" {
		return false, &finalError{fmt.Errorf("client: %s answered with %q instead of the events of a run (is it a Keyfire server?)", c.base.Host, t)}
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEvent)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue // every event is one line of data, which says all that the others do
		}
		var e RunEvent
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return false, fmt.Errorf("client: event: %w", err)
		}
		if err := fn(e); err != nil {
			return false, &finalError{err}
		}
		*after = e.Seq
		if e.Type == EventRunFinished {
			return true, nil
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return false, &finalError{fmt.Errorf("client: an event exceeds %d bytes", maxEvent)}
	case err != nil:
		return false, err
	}
	return false, errCutOff
}

// WaitRun returns a run once it has ended, or as it is after the given time, which the server may shorten.
func (c *Client) WaitRun(ctx context.Context, id string, wait time.Duration) (*Run, error) {
	return c.run(ctx, request{method: http.MethodGet, path: []string{"v1", "runs", id}, header: http.Header{"Prefer": {preferWait(wait)}}})
}

func preferWait(wait time.Duration) string {
	return "wait=" + strconv.Itoa(int((wait+time.Second-1)/time.Second))
}

// CancelRun asks for a run to be stopped and returns it as it is then: "cancelling", or "cancelled" when nobody was executing it.
func (c *Client) CancelRun(ctx context.Context, id, reason string) (*Run, error) {
	return c.run(ctx, request{method: http.MethodPost, path: []string{"v1", "runs", id, "cancel"}, body: because(reason)})
}

// Replay is what a run is repeated with. The zero value repeats it from the start, with the same version and input.
type Replay struct {
	From    string `json:"from,omitempty"`    // start, failed, or the id of a step
	Version string `json:"version,omitempty"` // same, latest, or a number
	Input   any    `json:"input,omitempty"`   // only from the start
	// IdempotencyKey makes a repeated request find the run of the first one.
	IdempotencyKey string `json:"-"`
}

// ReplayRun starts a new run that repeats an ended one.
func (c *Client) ReplayRun(ctx context.Context, id string, r Replay) (*Run, error) {
	header := http.Header{}
	if r.IdempotencyKey != "" {
		header.Set("Idempotency-Key", r.IdempotencyKey)
	}
	return c.run(ctx, request{method: http.MethodPost, path: []string{"v1", "runs", id, "replay"}, header: header, body: r})
}

// Callback is a request that tells somebody how a run ended.
type Callback struct {
	ID       string            `json:"id"`
	RunID    string            `json:"run_id"`
	URL      string            `json:"url"`
	State    string            `json:"state"` // waiting, pending, delivered, failed or disabled
	Attempts int               `json:"attempts"`
	NextAt   *time.Time        `json:"next_at"`
	Log      []CallbackAttempt `json:"log"`

	Response Response `json:"-"`
}

// Raw returns the object as the server sent it, with members that this version of the package does not know.
func (c *Callback) Raw() []byte { return c.Response.Body }

// CallbackAttempt is one sending of a callback.
type CallbackAttempt struct {
	Number     int       `json:"number"`
	At         time.Time `json:"at"`
	DurationMS int64     `json:"duration_ms"`
	Status     int       `json:"status"` // 0 when there was no answer
	Error      string    `json:"error"`
}

// Callbacks lists the callbacks of a run with their attempts.
func (c *Client) Callbacks(ctx context.Context, run string) (*List[Callback], error) {
	return list[Callback](ctx, c, nil, "v1", "runs", run, "callbacks")
}

// Redeliver has a callback sent once more.
func (c *Client) Redeliver(ctx context.Context, run, callback string) (*Callback, error) {
	return one(ctx, c, request{method: http.MethodPost, path: []string{"v1", "runs", run, "callbacks", callback, "redeliver"}}, func(v *Callback, res Response) { v.Response = res })
}
