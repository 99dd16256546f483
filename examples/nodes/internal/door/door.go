// Package door is the command door of a Keyfire node, as plain Go: a node is a program that reads its input from stdin as one
// JSON object, and writes its output to stdout as one JSON value. Main is all of it that a node needs:
//
//	func main() { door.Main(greet) }
//
//	func greet(in input) (output, error) { ... }
//
// The node itself stays a function from a value to a value, so it is tested natively, without WebAssembly. What the node writes
// to stderr becomes the log of its step.
package door

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// Fail is the error of a node that ends the run on purpose: the caller gets this status and code instead of "run failed".
// Any other error is a failure of the node, which the caller cannot do anything about.
type Fail struct {
	Status  int    `json:"status"`  // HTTP status, 400 to 599
	Code    string `json:"code"`    // 1 to 64 characters of a-z, 0-9 and _; callers tell failures apart by it
	Message string `json:"message"` // one sentence for a human; callers see it
}

// Error returns the message.
func (f *Fail) Error() string { return f.Message }

// Main runs node as this program and exits: with code 0 after writing its output, with code 1 after writing its error in the
// form that Keyfire reads. It does not return.
//
// The input is decoded strictly: an unknown field fails, because it is a typing error in the workflow's `with` or `config`.
// A node that passes foreign data through takes it as json.RawMessage, which nothing is strict about.
func Main[In, Out any](node func(In) (Out, error)) {
	os.Exit(run(os.Stdin, os.Stdout, os.Stderr, node))
}

func run[In, Out any](stdin io.Reader, stdout, stderr io.Writer, node func(In) (Out, error)) int {
	out, err := call(stdin, node)
	code := 0
	var answer any = out
	if err != nil {
		code, answer = 1, failure(err)
	}
	enc := json.NewEncoder(stdout)
	enc.SetEscapeHTML(false) // the output goes to the next node, not into a page
	if err := enc.Encode(answer); err != nil {
		fmt.Fprintln(stderr, "write output:", err)
		return 1
	}
	return code
}

func call[In, Out any](stdin io.Reader, node func(In) (Out, error)) (Out, error) {
	var in In
	dec := json.NewDecoder(stdin)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		var none Out
		return none, fmt.Errorf("read input: %w", explain(err))
	}
	return node(in)
}

// failure returns what the door expects on stdout beside an exit code other than 0.
func failure(err error) any {
	var fail *Fail
	if errors.As(err, &fail) {
		return map[string]any{"fail": fail}
	}
	return map[string]any{"error": map[string]string{"class": "failed", "message": err.Error()}}
}

// explain says where a value of the wrong type stands, in the words of JSON instead of those of Go.
func explain(err error) error {
	var wrong *json.UnmarshalTypeError
	if !errors.As(err, &wrong) {
		return err
	}
	where := wrong.Field
	if where == "" {
		where = "the input"
	}
	return fmt.Errorf("%s cannot be a JSON %s", where, wrong.Value)
}
