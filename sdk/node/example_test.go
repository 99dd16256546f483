package node_test

import (
	"testing"

	"github.com/keyfire/keyfire/sdk/node"
	"github.com/keyfire/keyfire/sdk/node/nodetest"
)

type person struct {
	Name string `json:"name"`
}

type greeting struct {
	Greeting string `json:"greeting"`
}

func greet(ctx *node.Context, in person) (greeting, error) {
	if in.Name == "" {
		return greeting{}, node.Fail(422, "no_name", "a name is needed to greet somebody")
	}
	var config struct {
		Word string `json:"word"`
	}
	if err := ctx.Config(&config); err != nil {
		return greeting{}, err
	}
	ctx.Log().Info("greeting", "name", in.Name)
	return greeting{config.Word + ", " + in.Name}, nil
}

// A node is a function, registered in an init function. Its main function calls Main.
func ExampleHandle() {
	node.Handle(greet)
}

// TestGreet is how a node is tested: as the function it is.
func TestGreet(t *testing.T) {
	t.Parallel()
	ctx := nodetest.Context(t, nodetest.Host{Config: map[string]any{"word": "Hello"}})
	got, err := greet(ctx, person{Name: "Ada"})
	if err != nil || got.Greeting != "Hello, Ada" {
		t.Errorf("%+v, %v", got, err)
	}
}
