package core

import (
	"errors"
	"fmt"
	"time"
)

// Code names one kind of failure. The list is closed: each code has exactly one row in the HTTP status table (package server)
// and one in the exit code table (package cli), and a test in each fails while a code lacks its row. Codes are part of the API:
// they are only added, never renamed.
type Code string

// Credentials and permission.
const (
	CodeUnauthenticated     Code = "unauthenticated"      // no credential was sent
	CodeInvalidKey          Code = "invalid_key"          // malformed, unknown or wrong; deliberately one answer for all
	CodeKeyExpired          Code = "key_expired"          // the secret was proved, the key is past its expiry
	CodeKeyRevoked          Code = "key_revoked"          // the secret was proved, the key was revoked
	CodeKeyDisabled         Code = "key_disabled"         // the secret was proved, the key is switched off
	CodeAmbiguousCredential Code = "ambiguous_credential" // two different credentials, or one header repeated
	CodeAuthUnavailable     Code = "auth_unavailable"     // the auth backend that must decide cannot
	CodeSourceNotAllowed    Code = "source_not_allowed"   // the source address is not on the key's list
	CodeInsufficientScope   Code = "insufficient_scope"   // known, and this credential may never do it
	CodeAccountDisabled     Code = "account_disabled"     // the credential was proved, its account is switched off
	CodeUserDisabled        Code = "user_disabled"        // the password was proved, the user is switched off
	CodeInvalidLogin        Code = "invalid_login"        // unknown user or wrong password; deliberately one answer for both
	CodeSessionExpired      Code = "session_expired"      // the token was proved and is past its expiry; refresh, or log in again
	CodeSessionEnded        Code = "session_ended"        // the token was proved; its session was logged out or revoked
)

// Requests.
const (
	CodeNotFound             Code = "not_found"
	CodeMethodNotAllowed     Code = "method_not_allowed"
	CodeUnsupportedMediaType Code = "unsupported_media_type"
	CodeBodyTooLarge         Code = "body_too_large"
	CodeURLTooLong           Code = "url_too_long"
	CodeHeadersTooLarge      Code = "headers_too_large"
	CodeInvalidRequest       Code = "invalid_request" // a parameter or header that no narrower code describes
	CodeInvalidJSON          Code = "invalid_json"
	CodeUnknownField         Code = "unknown_field"
	CodeInvalidInput         Code = "invalid_input"
	CodeNotSupported         Code = "not_supported" // documented, but this server does not do it yet; never silently ignored
	CodeConflict             Code = "conflict"      // the object changed or exists already
)

// Workflows and triggers.
const (
	CodeInvalidWorkflow      Code = "invalid_workflow"
	CodeInvalidModule        Code = "invalid_module"
	CodeWorkflowRequired     Code = "workflow_required"
	CodeWorkflowDisabled     Code = "workflow_disabled"
	CodeOverrideNotAllowed   Code = "override_not_allowed"
	CodeIdempotencyKeyReused Code = "idempotency_key_reused"
	CodeRateLimited          Code = "rate_limited"
	CodeConcurrencyLimited   Code = "concurrency_limited"
	CodeQuotaExhausted       Code = "quota_exhausted"
)

// Runs.
const (
	CodeRunFailed          Code = "run_failed"
	CodeRunTimedOut        Code = "run_timed_out"
	CodeRunCancelled       Code = "run_cancelled"
	CodeRunInterrupted     Code = "run_interrupted" // the server stopped while an inline run was executing; outcome unknown
	CodeRunAlreadyFinished Code = "run_already_finished"
	CodeReplayIncompatible Code = "replay_incompatible"
)

// The server itself.
const (
	CodeOverloaded       Code = "overloaded"
	CodeDraining         Code = "draining"
	CodeStoreUnavailable Code = "store_unavailable"
	CodeAuditUnavailable Code = "audit_unavailable"
	CodeInternal         Code = "internal"
)

// Codes returns every code, for the tables that must have a row for each.
func Codes() []Code {
	return []Code{
		CodeUnauthenticated, CodeInvalidKey, CodeKeyExpired, CodeKeyRevoked, CodeKeyDisabled, CodeAmbiguousCredential,
		CodeAuthUnavailable, CodeSourceNotAllowed, CodeInsufficientScope,
		CodeAccountDisabled, CodeUserDisabled, CodeInvalidLogin, CodeSessionExpired, CodeSessionEnded,
		CodeNotFound, CodeMethodNotAllowed, CodeUnsupportedMediaType, CodeBodyTooLarge, CodeURLTooLong, CodeHeadersTooLarge,
		CodeInvalidRequest, CodeInvalidJSON, CodeUnknownField, CodeInvalidInput, CodeNotSupported, CodeConflict,
		CodeInvalidWorkflow, CodeInvalidModule, CodeWorkflowRequired, CodeWorkflowDisabled, CodeOverrideNotAllowed,
		CodeIdempotencyKeyReused, CodeRateLimited, CodeConcurrencyLimited, CodeQuotaExhausted,
		CodeRunFailed, CodeRunTimedOut, CodeRunCancelled, CodeRunInterrupted, CodeRunAlreadyFinished, CodeReplayIncompatible,
		CodeOverloaded, CodeDraining, CodeStoreUnavailable, CodeAuditUnavailable, CodeInternal,
	}
}

// Error is the one error type that crosses package boundaries when a caller must act on it. Message and Fields are public and
// must hold no credential, input value, SQL, file name or stack; Err is the cause, for the log only.
//
// An error that is not an *Error is answered as CodeInternal with no text.
type Error struct {
	Code    Code
	Message string  // public, one sentence, no final period
	Fields  []Field // public, where in the request or file it went wrong

	// RetryAfter is when the same request may succeed; zero when waiting does not help or is not known.
	RetryAfter time.Duration
	// KeyID is the key that was refused once it is known, for the audit row. It is not secret and never sent to the caller.
	KeyID string
	// Account is the account of that key, in whose audit log the refusal belongs.
	Account string
	// Limits is where the key stands with the limits that were looked at, when it was one of them that refused.
	Limits []LimitState
	// Err is the cause. It is logged, never sent.
	Err error
}

// Field is one place in a request body or a workflow file that is wrong.
type Field struct {
	// Pointer is an RFC 6901 JSON pointer as a URI fragment, such as "#/input/amount".
	Pointer string `json:"pointer"`
	// Detail says what would be right. It never quotes the value that was sent.
	Detail string `json:"detail"`
	// File, Line, Column and Excerpt locate an error in a workflow file; lines and columns count from 1.
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Excerpt string `json:"excerpt,omitempty"`
}

// ErrUnchanged is the answer of a function that was asked to change something and finds it as it shall be. It is not a failure.
var ErrUnchanged = errors.New("nothing to change")

// Errorf makes an *Error with a public message. The arguments must be public too.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Wrap makes an *Error with a public message and a private cause.
func Wrap(code Code, cause error, message string) *Error {
	return &Error{Code: code, Message: message, Err: cause}
}

// Error returns the code, the public message and the cause, for the log. It is not the text for the caller: that is Message.
func (e *Error) Error() string {
	s := string(e.Code)
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the private cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, &Error{Code: c}) ask for the code alone.
func (e *Error) Is(target error) bool {
	var t *Error
	ok := errors.As(target, &t)
	return ok && t.Code == e.Code && t.Message == "" && t.Err == nil
}

// CodeOf returns the code of the outermost *Error in err's chain, CodeInternal for any other error, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := err.(*Error); ok { //nolint:errorlint // the usual case; the search below takes care of the others
		return e.Code
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}
