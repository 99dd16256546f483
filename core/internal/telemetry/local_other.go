//go:build !unix

package telemetry

import "os"

// local returns what the log is written through. That nobody reads it can only be found out on Unix.
func local(file *os.File, _ *gate) *os.File { return file }
