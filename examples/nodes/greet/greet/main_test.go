package main

import (
	"errors"
	"testing"

	"github.com/keyfire/keyfire/sdk/node"
)

func TestGreet(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, want string }{
		{"Ada", "Hello, Ada"},
		{"  Grace \n Hopper ", "Hello, Grace Hopper"},
		{"Čeněk", "Hello, Čeněk"},
	}
	for _, tt := range tests {
		got, err := greet(nil, input{Name: tt.name})
		if err != nil || got.Greeting != tt.want {
			t.Errorf("greet(%q) = %q, %v; want %q", tt.name, got.Greeting, err, tt.want)
		}
	}
}

func TestGreetNobody(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", " \t\n"} {
		got, err := greet(nil, input{Name: name})
		var fail *node.Failure
		if !errors.As(err, &fail) || fail.Status != 422 || fail.Code != "no_name" {
			t.Errorf("greet(%q) = %q, %v; want 422 no_name", name, got.Greeting, err)
		}
	}
}
