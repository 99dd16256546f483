// Package engine runs the graph of a workflow version: it evaluates expressions, starts nodes when what they need has ended, repeats
// failed attempts, and fills in the run. It hides CEL and the scheduling; it knows a module only by its digest.
//
//	problems := engine.Check(&def)      // when a workflow is published; also completes the needs of its nodes
//	...
//	e, err := engine.New(engine.Config{Invoker: wasmRuntime, Tracer: tracer})
//	e.Execute(ctx, run, &def)           // run.Status, Output, Error and Steps say what happened
//
// # Expressions
//
// A text in with, if or output may hold CEL expressions as ${{ expr }}. A text that is exactly one expression becomes its value, of
// whatever type; inside longer text, the value becomes text: texts and numbers as they are, null as nothing, lists and objects as JSON.
// Expressions know these names and no others, in particular no secrets, environment or files:
//
//	input                the run's input
//	nodes.<id>.output    output of a node; null when it was skipped
//	nodes.<id>.status    "succeeded" or "skipped"
//	nodes.<id>.error     null, as a run ends with its first failing node
//	trigger.type         how the run was started, such as "api"
//	trigger.key_name     name of the key that started it, "" when it was none
//	trigger.variables    texts that the request brought along for this run alone, such as trigger.variables.REGION
//	run.id               id of the run
//
// A field that may be missing is read as input.?name.orValue("nobody"); the same works on the null of a skipped node, and on trigger.variables.
//
// Variables may be secrets. They are not part of the run: what is recorded of it, and its output, have [core.Redacted] in their place, see [core.Redactor], so a node gets the
// value only from an expression that names the variable, and not out of another node's output.
//
// An expression that only names a value, such as ${{ nodes.fetch.output.lines }}, copies it: a number keeps every digit. Computing
// is done with 64-bit integers and doubles. A number that neither holds exactly can be copied and compared for equality; computing
// with it fails the step instead of rounding it.
//
// # Graph
//
// A node needs the nodes it lists and those its expressions name; a cycle or an unknown node is refused when the workflow is
// published. A node starts once all it needs have ended. It is skipped when its if is false, and when it needs other nodes and all
// of them were skipped. The first node that fails, after its retries, ends the run: nodes still running are stopped and recorded as
// cancelled, as are those that never started.
//
// # Output
//
// Without an output template, the output of the run is that of the node no other node needs. When there are several, it is an
// object of their outputs by id, without those that were skipped.
package engine
