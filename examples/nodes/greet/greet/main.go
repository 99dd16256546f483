// Greet is the smallest node there is: a name in, a greeting out. It is made with the SDK and built as a reactor, which starts fastest; the
// other examples are plain programs.
package main

import (
	"strings"

	"github.com/keyfire/keyfire/sdk/node"
)

type input struct {
	Name string `json:"name"`
}

type output struct {
	Greeting string `json:"greeting"`
}

func init() { node.Handle(greet) }

func main() { node.Main() }

func greet(_ *node.Context, in input) (output, error) {
	name := strings.Join(strings.Fields(in.Name), " ")
	if name == "" {
		return output{}, node.Fail(422, "no_name", "the name is only spaces; give somebody to greet")
	}
	return output{Greeting: "Hello, " + name}, nil
}
