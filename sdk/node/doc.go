// Package node is for writing nodes of Keyfire workflows in Go. A node is a function from an input to an output:
//
//	package main
//
//	import "github.com/keyfire/keyfire/sdk/node"
//
//	type input struct{ Name string `json:"name"` }
//	type output struct{ Greeting string `json:"greeting"` }
//
//	func greet(ctx *node.Context, in input) (output, error) {
//		ctx.Log().Info("greeting", "name", in.Name)
//		return output{"Hello, " + in.Name}, nil
//	}
//
//	func init() { node.Handle(greet) }
//	func main() { node.Main() }
//
// It is built with the Go toolchain alone, as a reactor, which the server can start faster, or as a WASI command:
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o greet.wasm .
//	GOOS=wasip1 GOARCH=wasm go build -o greet.wasm .
//
// A node gets its input, its config, a log, and what the workflow grants to it. It has no files, no environment and no sockets, and no
// invocation sees anything of another. It asks for exactly the grants that its code can use: a node that never calls
// [Context.HTTP] does not import it, and runs without the grant.
//
// Built for any other system, a node is an ordinary Go program, so it is tested natively; package nodetest makes the context. The contract
// with the host, for those who write nodes in other languages, is ABI.md.
package node
