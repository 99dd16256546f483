// Compiler is the process that tests compile modules in when they run with the race detector, which makes the engine's compiler ten times
// slower: it is built without.
package main

import (
	"os"

	"github.com/keyfire/keyfire/runtime/wasm"
)

func main() { os.Exit(wasm.CompileChild(os.Stdin, os.Stdout)) }
