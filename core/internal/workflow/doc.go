// Package workflow reads the workflow file: one YAML or JSON document that says who may start a workflow, what its input is and
// which nodes run. It hides the YAML library and the JSON Schema library; what leaves it is a [core.Definition], and every problem
// names its line, its column and what would be right there.
//
//	f, err := workflow.Decode(src, "workflow.yaml")        // all problems of the file at once
//	problems := f.Locate(engine.Check(&f.Definition))      // what only the engine can judge, placed in the file
//	err = f.Resolve(map[string]string{"./a.wasm": digest}) // modules by content
//	text, digest, err := workflow.Canonical(&f.Definition) // what a version stores
//
// The format is deliberately smaller than YAML: no anchors, aliases, merge keys, tags, directives or second document, no numbers
// that JSON could not write, no hundreds of empty lines in a row, no field that is not known. A feature the documentation promises for later is refused by its name and
// never ignored.
//
// The same package compiles the JSON Schema of a workflow's input, because publishing checks it and triggering uses it. All its
// functions and types are safe for concurrent use, except that a File must not be changed while others read it.
package workflow
