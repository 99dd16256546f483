// Greet is the smallest node there is: a name in, a greeting out.
package main

import (
	"strings"

	"github.com/keyfire/keyfire/examples/nodes/internal/door"
)

type input struct {
	Name string `json:"name"`
}

type output struct {
	Greeting string `json:"greeting"`
}

func main() { door.Main(greet) }

func greet(in input) (output, error) {
	name := strings.Join(strings.Fields(in.Name), " ")
	if name == "" {
		return output{}, &door.Fail{Status: 422, Code: "no_name", Message: "the name is only spaces; give somebody to greet"}
	}
	return output{Greeting: "Hello, " + name}, nil
}
