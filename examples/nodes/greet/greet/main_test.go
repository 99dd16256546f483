package main

import "testing"

func TestGreet(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, want string }{
		{"Ada", "Hello, Ada"},
		{"  Grace \n Hopper ", "Hello, Grace Hopper"},
		{"Čeněk", "Hello, Čeněk"},
	}
	for _, tt := range tests {
		got, err := greet(input{Name: tt.name})
		if err != nil || got.Greeting != tt.want {
			t.Errorf("greet(%q) = %q, %v; want %q", tt.name, got.Greeting, err, tt.want)
		}
	}
}

func TestGreetNobody(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", " \t\n"} {
		if got, err := greet(input{Name: name}); err == nil {
			t.Errorf("greet(%q) = %q; want an error", name, got.Greeting)
		}
	}
}
