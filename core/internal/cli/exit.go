package cli

import (
	"errors"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/sdk/client"
)

// Exit statuses. They are part of the command line's interface: scripts branch on them.
const (
	exitOK          = 0
	exitFailed      = 1  // nothing more specific applies: the server's bug, a local file that cannot be read
	exitUsage       = 2  // the command line or the configuration is wrong; nothing was asked of a server
	exitInvalid     = 3  // the server refused what was sent as wrong: input, workflow file, module
	exitDenied      = 4  // the credential is missing, wrong, expired, revoked, or may not do it
	exitNotFound    = 5  // there is no such object
	exitConflict    = 6  // the object is in a state that does not allow it
	exitLimited     = 7  // a limit or quota is used up
	exitUnavailable = 8  // the server cannot be reached or cannot serve now; trying again may help
	exitRunFailed   = 10 // the run was made and failed
	exitRunTimedOut = 11 // the run was made and ran out of time
	exitRunStopped  = 12 // the run was made and was cancelled or interrupted
)

// exitCodes has a row for every code of package core.
var exitCodes = map[core.Code]int{
	core.CodeUnauthenticated:     exitDenied,
	core.CodeInvalidKey:          exitDenied,
	core.CodeKeyExpired:          exitDenied,
	core.CodeKeyRevoked:          exitDenied,
	core.CodeKeyDisabled:         exitDenied,
	core.CodeAmbiguousCredential: exitDenied,
	core.CodeSourceNotAllowed:    exitDenied,
	core.CodeInsufficientScope:   exitDenied,
	core.CodeAccountDisabled:     exitDenied,
	core.CodeUserDisabled:        exitDenied,
	core.CodeInvalidLogin:        exitDenied,
	core.CodeSessionExpired:      exitDenied,
	core.CodeSessionEnded:        exitDenied,
	core.CodeOverrideNotAllowed:  exitDenied,

	core.CodeNotFound: exitNotFound,

	core.CodeMethodNotAllowed:     exitInvalid,
	core.CodeUnsupportedMediaType: exitInvalid,
	core.CodeBodyTooLarge:         exitInvalid,
	core.CodeURLTooLong:           exitInvalid,
	core.CodeHeadersTooLarge:      exitInvalid,
	core.CodeInvalidRequest:       exitInvalid,
	core.CodeInvalidJSON:          exitInvalid,
	core.CodeUnknownField:         exitInvalid,
	core.CodeInvalidInput:         exitInvalid,
	core.CodeNotSupported:         exitInvalid,
	core.CodeInvalidWorkflow:      exitInvalid,
	core.CodeInvalidModule:        exitInvalid,
	core.CodeWorkflowRequired:     exitInvalid,

	core.CodeConflict:             exitConflict,
	core.CodeWorkflowDisabled:     exitConflict,
	core.CodeIdempotencyKeyReused: exitConflict,
	core.CodeRunAlreadyFinished:   exitConflict,
	core.CodeReplayIncompatible:   exitConflict,

	core.CodeRateLimited:        exitLimited,
	core.CodeConcurrencyLimited: exitLimited,
	core.CodeQuotaExhausted:     exitLimited,

	core.CodeRunFailed:      exitRunFailed,
	core.CodeRunTimedOut:    exitRunTimedOut,
	core.CodeRunCancelled:   exitRunStopped,
	core.CodeRunInterrupted: exitRunStopped,

	core.CodeAuthUnavailable:  exitUnavailable,
	core.CodeOverloaded:       exitUnavailable,
	core.CodeDraining:         exitUnavailable,
	core.CodeStoreUnavailable: exitUnavailable,
	core.CodeAuditUnavailable: exitUnavailable,

	core.CodeInternal: exitFailed,
}

// exitCode returns the exit status for an error of a command that ran.
func exitCode(err error) int {
	var answer *client.Error
	var local *core.Error
	switch {
	case errors.As(err, &answer):
		if code, ok := exitCodes[core.Code(answer.Code)]; ok {
			return code
		}
		if answer.RunID != "" {
			return exitRunFailed // with a code that the workflow chose
		}
		if answer.Status == 502 || answer.Status == 503 || answer.Status == 504 {
			return exitUnavailable // a proxy before the server
		}
		if answer.Status == 413 {
			return exitInvalid // so too
		}
		return exitFailed
	case errors.As(err, &local):
		return exitCodes[local.Code]
	case errors.Is(err, errUnreachable):
		return exitUnavailable
	}
	return exitFailed
}

// errUnreachable marks that no server answered.
var errUnreachable = errors.New("no server answers")
