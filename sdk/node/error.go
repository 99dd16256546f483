package node

import (
	"errors"
	"fmt"
	"strings"

	"github.com/keyfire/keyfire/sdk/node/internal/abi"
)

// What errors of the host are. Test for them with errors.Is.
var (
	ErrNotFound    = errors.New("not found")   // there is no such thing
	ErrInvalid     = errors.New("invalid")     // the call itself is wrong
	ErrDenied      = errors.New("denied")      // the workflow does not grant it
	ErrTooLarge    = errors.New("too large")   // it is beyond a limit
	ErrConflict    = errors.New("conflict")    // the value is not what was expected
	ErrTimeout     = errors.New("timeout")     // it took too long
	ErrUnavailable = errors.New("unavailable") // it does not work now and may work later
)

// Error is an error of the host, or of a node that calls itself unavailable.
type Error struct {
	kind error
	text string
}

// Error returns what is wrong.
func (e *Error) Error() string { return e.text }

// Unwrap returns which of the errors of this package it is.
func (e *Error) Unwrap() error { return e.kind }

// class is what the workflow sees when the node returns the error as its own.
func (e *Error) class() string {
	switch e.kind {
	case ErrUnavailable, ErrTimeout:
		return "unavailable"
	case ErrDenied:
		return "denied"
	}
	return "failed"
}

// Unavailable returns an error that says: this cannot work now and may work later. Workflows usually retry on it. The format is that of
// fmt.Sprintf.
func Unavailable(format string, args ...any) error {
	return &Error{ErrUnavailable, fmt.Sprintf(format, args...)}
}

// Failure is the error of a node that ends the run on purpose.
type Failure struct {
	Status  int    `json:"status"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Error returns the message.
func (f *Failure) Error() string { return f.Message }

// valid reports whether the host takes the failure.
func (f *Failure) valid() bool {
	other := func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' }
	return f.Status >= 400 && f.Status <= 599 && f.Code != "" && len(f.Code) <= 64 && !strings.ContainsFunc(f.Code, other)
}

// Fail returns an error that ends the run on purpose: its caller gets this HTTP status, from 400 to 599, this code, 1 to 64 characters of a-z,
// 0-9 and _, by which callers tell failures apart, and this message, one sentence for a human. With another status or code it is an error like any
// other, which says so.
func Fail(status int, code, message string) error { return &Failure{status, code, message} }

// hostError makes an error of a result of the host, nil for success.
func hostError(h abi.Host, code abi.Code) error {
	kind := ErrUnavailable
	switch code {
	case abi.OK:
		return nil
	case abi.NotFound:
		kind = ErrNotFound
	case abi.Invalid:
		kind = ErrInvalid
	case abi.Denied:
		kind = ErrDenied
	case abi.TooLarge:
		kind = ErrTooLarge
	case abi.Conflict:
		kind = ErrConflict
	case abi.Timeout:
		kind = ErrTimeout
	}
	text := h.ErrorText()
	if text == "" {
		text = kind.Error()
	}
	return &Error{kind, text}
}
