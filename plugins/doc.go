// Package plugins runs auth plugins: programs that decide about credentials in processes of their own. It hides everything about those
// processes. What comes out is an [auth.Authenticator] for each plugin, which answers, refuses or fails, and never blocks longer than
// the plugin's deadline.
//
// What a [Host] promises about each plugin:
//
//   - Only bytes with the configured SHA-256 are executed. They are read once, through one descriptor, into sealed memory, hashed there
//     and executed from there, so no exchange of the file makes a difference. A restart executes the same bytes again; a new file
//     takes a reload.
//   - It starts with an empty environment but for what the configuration lists, no descriptor of the server's, and mutual TLS.
//   - It is shown what its configuration grants, and what it answers is held to its grant.
//   - When it crashes, hangs, floods or lies, requests that need it get [core.CodeAuthUnavailable]; nothing else is affected. It is
//     restarted after 0.1 s; while it keeps failing, after up to 1 s if it had been answering and up to 30 s if it had not.
//   - It does not outlive the server, however the server ends.
//
// The decisions behind this are argued in RATIONALE.md of this folder; README.md is the operator's page.
package plugins
