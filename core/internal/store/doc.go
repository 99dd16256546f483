// Package store keeps what Keyfire must not forget: keys, workflows and their modules, runs, and the audit log. It hides the
// database, how changes share a commit, and how the store recovers from a bad disk.
//
// What a caller may rely on:
//
//   - A method that changes something returns nil only after the change, and its audit event, are committed and synced.
//     A change without its audit event cannot be expressed.
//   - A refusal is a *core.Error and has written nothing. CodeStoreUnavailable means that the database could not take the change:
//     nothing was written. CodeOverloaded means that too much is waiting: nothing was written, or tried.
//   - When ctx ends while a change is still waiting for its turn, the change is not written and the error wraps ctx.Err and context.Cause.
//     Once a change has begun, its real outcome is returned, whatever becomes of ctx.
//   - Every method addresses objects by (account, id), so another account's object is answered exactly as one that does not exist.
//   - Times are kept in microseconds, UTC.
//
// All changes go through one goroutine that takes what is waiting, applies it in one transaction, and syncs once for all
// ("group commit"). Reads use their own connections and never wait for a change.
//
// A Store is safe for concurrent use.
package store
