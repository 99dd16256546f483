// Package cli is the command line: the server's commands, those that talk to one, and the configuration of both. It is the one package
// that knows every other: wire.go puts them together by hand, and layer_test.go holds all of them to the table of imports.
//
// Results go to standard output, everything else to standard error with the prefix "keyfire:". With --json a command prints the
// API's own object. The exit status comes from one table, in exit.go.
package cli
