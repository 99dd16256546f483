// Command keyfire is the server and its command line in one binary. Run "keyfire help" for what it does.
package main

import (
	"context"
	"os"

	"github.com/keyfire/keyfire/core/internal/cli"
)

var version string // set by the linker; see the Makefile

func main() {
	env := cli.Env{Args: os.Args[1:], Environ: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Version: version}
	os.Exit(cli.Main(context.Background(), env))
}
