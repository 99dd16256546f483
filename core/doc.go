// Package core is Keyfire's domain: workflows, runs, steps, audit events, the closed list of error codes, and the rules that
// hold for them whoever calls. It imports only the standard library and performs no I/O; every other package may import it.
//
// Words are used as the documentation uses them: an account owns workflows and keys; a workflow has immutable versions; a
// version is a graph of nodes; a trigger starts a run of one version; a run has one step for every node.
package core
