package client

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Error is an answer other than 2xx: an RFC 9457 problem of the API, or whatever a proxy before it said.
type Error struct {
	Status    int          `json:"status"`
	Code      string       `json:"code"`   // stable, such as "invalid_input"; "" when the answer is not a problem of the API
	Title     string       `json:"title"`  // what kind of problem it is
	Detail    string       `json:"detail"` // what was wrong this time
	Errors    []FieldError `json:"errors"` // where in the request or the workflow file
	RequestID string       `json:"request_id"`
	TraceID   string       `json:"trace_id"`
	Retryable bool         `json:"retryable"` // the same request may succeed later

	// RunID is set when a run exists: 500 with a RunID is the workflow's failure, not the server's.
	RunID      string    `json:"run_id"`
	FailedStep string    `json:"failed_step"`
	Run        *RunError `json:"error"` // why that run failed

	// RetryAfter is how long the server asks to wait; zero when it does not say.
	RetryAfter time.Duration `json:"-"`
	Response   Response      `json:"-"`
}

// FieldError is one place that is wrong.
type FieldError struct {
	Pointer   string `json:"pointer,omitempty"`   // JSON pointer into the body or file, such as "#/input/amount"
	Parameter string `json:"parameter,omitempty"` // name of a query parameter
	Header    string `json:"header,omitempty"`    // name of a header
	Detail    string `json:"detail"`              // what would be right
	File      string `json:"file,omitempty"`
	Line      int    `json:"line,omitempty"` // from 1
	Column    int    `json:"column,omitempty"`
	Excerpt   string `json:"excerpt,omitempty"` // the lines of the file, with the place marked
}

// Place returns what in the request is wrong: the pointer, or the name of a parameter or header.
func (f FieldError) Place() string {
	switch {
	case f.Parameter != "":
		return "parameter " + f.Parameter
	case f.Header != "":
		return "header " + f.Header
	}
	return f.Pointer
}

// RunError is why a run did not succeed.
type RunError struct {
	Code      string `json:"code"` // "run_failed", "run_timed_out", ...
	Class     string `json:"class,omitempty"`
	Message   string `json:"message"`
	Step      string `json:"step,omitempty"`
	Retryable bool   `json:"retryable"`
	Status    int    `json:"status,omitempty"`    // HTTP status that the workflow chose
	UserCode  string `json:"user_code,omitempty"` // code that the workflow chose
}

// Error returns the code and the detail, and the request id to ask an operator about.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Code != "" {
		b.WriteString(e.Code + ": ")
	}
	switch {
	case e.Detail != "":
		b.WriteString(e.Detail)
	case e.Title != "":
		b.WriteString(e.Title)
	default:
		fmt.Fprintf(&b, "HTTP status %d", e.Status)
	}
	for _, f := range e.Errors {
		if f.Detail != e.Detail {
			fmt.Fprintf(&b, "; %s %s", f.Place(), f.Detail)
		}
	}
	if e.RequestID != "" {
		fmt.Fprintf(&b, " (%s)", e.RequestID)
	}
	return b.String()
}

func newError(r Response) *Error {
	e := &Error{}
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t == "application/problem+json" {
		if err := json.Unmarshal(r.Body, e); err != nil {
			e = &Error{}
		}
	}
	e.Status, e.Response = r.Status, r
	if e.RequestID == "" {
		e.RequestID = r.RequestID
	}
	if e.Title == "" {
		e.Title = http.StatusText(r.Status)
	}
	if s, err := strconv.Atoi(r.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}
