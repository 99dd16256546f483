package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestRun drives a node as a native program. Not parallel: a program has one handler.
func TestRun(t *testing.T) {
	type in struct {
		Op string `json:"op"`
	}
	before := handler
	t.Cleanup(func() { handler = before })
	handler = nil
	Handle(func(ctx *Context, in in) (json.RawMessage, error) {
		ctx.Log().Info("asked", "op", in.Op)
		switch in.Op {
		case "unavailable":
			return nil, fmt.Errorf("ask: %w", Unavailable("closed"))
		case "fail":
			return nil, Fail(409, "taken", "it is taken")
		case "status":
			return nil, Fail(200, "taken", "it is taken")
		case "code":
			return nil, Fail(409, "Taken", "it is taken")
		case "denied":
			_, err := ctx.HTTP(&Request{URL: "https://a.example"})
			return nil, err
		case "error":
			return nil, errors.New("no way")
		}
		return json.RawMessage(`{"done":true}`), nil
	})
	for input, want := range map[string]string{
		`{"op":"x"}`:           `0 {"done":true}`,
		`{"op":"unavailable"}`: `1 {"error":{"class":"unavailable","message":"ask: closed"}}`,
		`{"op":"fail"}`:        `1 {"fail":{"status":409,"code":"taken","message":"it is taken"}}`,
		`{"op":"status"}`:      `1 {"error":{"class":"failed","message":"node.Fail(200, \"taken\"): a status is 400 to 599, and a code 1 to 64 characters of a-z, 0-9 and _: it is taken"}}`,
		`{"op":"code"}`:        `1 {"error":{"class":"failed","message":"node.Fail(409, \"Taken\"): a status is 400 to 599, and a code 1 to 64 characters of a-z, 0-9 and _: it is taken"}}`,
		`{"op":"denied"}`:      `1 {"error":{"class":"denied","message":"a node that is run natively sends no requests; a running server does"}}`,
		`{"op":"error"}`:       `1 {"error":{"class":"failed","message":"no way"}}`,
		`{"op":1}`:             `1 {"error":{"class":"failed","message":"read the input: op cannot be a JSON number"}}`,
		`{"up":1}`:             `1 {"error":{"class":"failed","message":"read the input: json: unknown field \"up\""}}`,
		`{} {}`:                `1 {"error":{"class":"failed","message":"read the input: there is more than one JSON value"}}`,
		``:                     `1 {"error":{"class":"failed","message":"read the input: EOF"}}`,
	} {
		var stdout, stderr bytes.Buffer
		code := run(strings.NewReader(input), &stdout, &stderr)
		if got := fmt.Sprintf("%d %s", code, strings.TrimSpace(stdout.String())); got != want {
			t.Errorf("%s gives %s, want %s", input, got, want)
		}
	}
}

func TestRunWithoutHandle(t *testing.T) {
	before := handler
	t.Cleanup(func() { handler = before })
	handler = nil
	var stdout, stderr bytes.Buffer
	if code := run(strings.NewReader("{}"), &stdout, &stderr); code != 1 || !strings.Contains(stdout.String(), "node.Handle") {
		t.Errorf("%d %s", code, &stdout)
	}
}
