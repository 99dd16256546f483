package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/keyfire/keyfire/sdk/node/internal/abi"
)

// handler is the node of this program. A module has one entrance, so it is one variable.
var handler func(ctx *Context, input []byte) (output []byte, err error)

// warmUp makes what encoding and decoding need once in a program's life, before the state is taken that every invocation begins from.
var warmUp = func() {}

// Handle makes f the node of this program. It is called once, from an init function: a reactor's main is never run.
//
// The input is decoded strictly: a name that In does not have fails, because it is a typing error in the workflow. A node that passes
// foreign data through takes it as json.RawMessage, which nothing is strict about. In and Out are what encoding/json can decode and
// encode.
//
// In a reactor, the zero values of In and Out are encoded, and In's decoded again, before the state is frozen that invocations begin from.
//
// An error of f ends the step. Its class, by which the workflow decides on a retry, is "failed", unless the error is or wraps one of
// [Unavailable], [Fail] or an error of this package's. A panic ends the step too, with its trace in the log.
func Handle[In, Out any](f func(ctx *Context, in In) (Out, error)) {
	if handler != nil {
		panic("node: Handle is called twice")
	}
	handler = func(ctx *Context, input []byte) ([]byte, error) {
		in, err := decode[In](input)
		if err != nil {
			return nil, err
		}
		out, err := f(ctx, in)
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal(out)
		if err != nil {
			return nil, fmt.Errorf("encode the output: %w", err)
		}
		return b, nil
	}
	warmUp = func() {
		// What a type's own methods do with a zero value is no failure of the node.
		defer func() { _ = recover() }()
		var in In
		if b, err := json.Marshal(in); err == nil {
			_, _ = decode[In](b)
		}
		var out Out
		_, _ = json.Marshal(out)
	}
}

func decode[In any](input []byte) (in In, err error) {
	d := json.NewDecoder(bytes.NewReader(input))
	d.DisallowUnknownFields()
	err = d.Decode(&in)
	if err == nil {
		if _, end := d.Token(); !errors.Is(end, io.EOF) {
			err = errors.New("there is more than one JSON value")
		}
	}
	if err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && wrong.Field != "" {
			err = fmt.Errorf("%s cannot be a JSON %s", wrong.Field, wrong.Value)
		}
		return in, fmt.Errorf("read the input: %w", err)
	}
	return in, nil
}

// serve runs the handler and returns its output, or its failure in the form of ABI.md.
func serve(ctx *Context, input []byte) (output, failure []byte) {
	if handler == nil {
		return nil, explain(errors.New("the program does not call node.Handle in an init function"))
	}
	output, err := handler(ctx, input)
	if err != nil {
		return nil, explain(err)
	}
	return output, nil
}

// explain writes an error in the form of ABI.md.
func explain(err error) []byte {
	var said any
	var fail *Failure
	var e *Error
	switch {
	case errors.As(err, &fail) && fail.valid():
		said = map[string]any{"fail": Failure{fail.Status, fail.Code, cut(fail.Message)}}
	case fail != nil:
		text := fmt.Sprintf("node.Fail(%d, %q): a status is 400 to 599, and a code 1 to 64 characters of a-z, 0-9 and _: %s", fail.Status, fail.Code, fail.Message)
		said = map[string]any{"error": map[string]string{"class": "failed", "message": cut(text)}}
	case errors.As(err, &e):
		said = map[string]any{"error": map[string]string{"class": e.class(), "message": cut(err.Error())}}
	default:
		said = map[string]any{"error": map[string]string{"class": "failed", "message": cut(err.Error())}}
	}
	b, _ := json.Marshal(said) // strings and an int
	return b
}

// cut bounds a message, of which the host shows 1,000 bytes, so that what is made of it fits error_set: JSON may write a byte in six.
func cut(s string) string { return s[:min(len(s), 2_000)] }

func newContext(ctx context.Context, h abi.Host) *Context { return &Context{Context: ctx, host: h} }
