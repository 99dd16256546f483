// Package abi is the boundary between a node and its host: the functions of ABI.md, with Go types and nothing else. Built for
// wasip1 they are the host's; built for any other system they are a fake's, so that a node runs as an ordinary Go program in its tests.
package abi

// Code is a negative result of a host function.
type Code int32

// The codes of ABI.md.
const (
	OK          Code = 0
	NotFound    Code = -1
	Invalid     Code = -2
	Denied      Code = -3
	TooLarge    Code = -4
	Conflict    Code = -5
	Timeout     Code = -6
	Unavailable Code = -7
)

// Levels of log lines.
const (
	Debug int32 = iota
	Info
	Warn
	Error
)
