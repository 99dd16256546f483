//go:build !wasip1

package node

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/keyfire/keyfire/sdk/node/internal/abi"
)

// Main runs the node as this program, with the input that the host gives or, in a native build, with standard input and output. A node's main
// function calls it and nothing else. It is not called in a reactor. It does not return.
func Main() { os.Exit(run(os.Stdin, os.Stdout, os.Stderr)) }

func run(stdin io.Reader, stdout, stderr io.Writer) int {
	input, err := io.ReadAll(stdin)
	if err != nil {
		fmt.Fprintln(stderr, "read the input:", err)
		return 1
	}
	output, failure := serve(newContext(context.Background(), abi.NewHost(console{stderr})), input)
	if failure != nil {
		fmt.Fprintf(stdout, "%s\n", failure)
		return 1
	}
	fmt.Fprintf(stdout, "%s\n", output)
	return 0
}

// console is the host of a node that is run natively: it has a log and nothing else.
type console struct{ w io.Writer }

func (c console) Log(_ int32, text string) { fmt.Fprintln(c.w, text) }
func (c console) Config() []byte           { return []byte("{}") }
func (c console) Secret(string) (string, abi.Code, string) {
	return "", abi.Denied, "a node that is run natively has no secrets; a running server does"
}
func (c console) Get(string) ([]byte, abi.Code)              { return nil, abi.Denied }
func (c console) Swap(string, []byte, bool, []byte) abi.Code { return abi.Denied }
func (c console) HTTP(_, _ []byte) ([]byte, []byte, abi.Code, string) {
	return nil, nil, abi.Denied, "a node that is run natively sends no requests; a running server does"
}

// NewContext makes a context over a host that stands in for the server. Package nodetest calls it; there is nothing else that could.
func NewContext(ctx context.Context, h abi.Host) *Context { return newContext(ctx, h) }
