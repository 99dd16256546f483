package node

import (
	"context"
	"os"

	"github.com/keyfire/keyfire/sdk/node/internal/abi"
)

// run is the entrance of a reactor.
//
//go:wasmexport run
func run(size int32) int32 {
	output, failure := serve(newContext(context.Background(), abi.Host{}), abi.Host{}.Input(int(size)))
	if failure != nil {
		abi.Host{}.Fail(failure)
		return 1
	}
	abi.Host{}.Output(output)
	return 0
}

// warm is called once, before the state of a reactor is frozen.
//
//go:wasmexport warm
func warm() { warmUp() }

// Main runs the node as this program, with the input that the host gives or, in a native build, with standard input and output. A node's main
// function calls it and nothing else. It is not called in a reactor. It does not return.
func Main() {
	warmUp() // the state is frozen where the input is read
	os.Exit(int(run(0)))
}
