// Package wasm runs one node: it takes the bytes of a WebAssembly module and one JSON value, and gives back one JSON value, the
// node's log, and what the call cost. It hides the engine, the compile cache, the limits and everything a guest can reach.
//
// # Promises
//
//   - Every invocation gets a sandbox that no other invocation has used: its memory, globals and tables are as the module's author
//     defined them, whatever ran before and however it ended.
//   - A guest has no ambient authority: no files, environment, arguments or sockets, a clock no finer than a millisecond, and random bytes
//     from the server's CSPRNG. A module that imports anything this package does not offer is refused by name, before it is stored.
//   - Time, memory, input, output and log are bounded, and a guest that computes without end is stopped at its deadline. All
//     guests together stay inside one memory budget; an invocation that does not fit waits.
//   - A guest that fails, in whatever way, fails only its own call, with an [Error] that says in which class and keeps the cause.
//   - A fresh sandbox costs about as much as a used one: modules are started once, frozen, and every invocation begins from there
//     ([EngineSnapshot]); which modules can be, they show by what they do when they start ([Start]).
//   - Bytes are checked by this package's own parser before the engine sees them, because the engine trusts the counts it reads.
//
// # The command door
//
// A module is a WASI command: it exports _start, reads the whole of standard input, which is one JSON value, and writes one JSON value to
// standard output. What it writes to standard error becomes the step's log, line by line. Exit code 0 means the output counts.
// With another exit code, standard output may hold an explanation, and the invocation's [Error] carries it:
//
//	{"error": {"class": "unavailable", "message": "the rates service is closed on Sundays"}}
//	{"fail": {"status": 409, "code": "duplicate_invoice", "message": "this invoice exists"}}
//
// A command of a node with config finds it in its input, as the member "config".
//
// # The reactor door, and host functions
//
// A module that exports run(i32) -> i32 instead is a reactor. It reads its input and writes its output by host functions, as
// sdk/node/ABI.md has it. Modules of both kinds may import those: for config, log levels and, when the workflow grants it, HTTP requests
// ([Call].Grants). A grant that is missing shows when the workflow is published ([Runtime.CheckNode]); a module never starts without it.
//
// # The Extism door
//
// A plugin that was built with a development kit of Extism runs unchanged. The call names its function ([Call].Export). Input that is a JSON string
// goes in as its text, any other input as JSON; output that is JSON is the output, any other text becomes a JSON string. The plugin finds
// the node's config as Extism's, sends HTTP requests under the node's grants, and what it sets with error_set is the [Error]'s message. Its
// variables live as long as the invocation. There are no files, no functions of other hosts and no further modules to link: such imports are
// refused by name.
//
// # The JavaScript door
//
// What is text and not WebAssembly is a script: an ECMAScript module whose default export is a function (input, ctx) that returns the output, or a
// promise of it. It runs on QuickJS-ng, which is itself a module in the same sandbox, under the same meter and limits. The engine is
// Config.ScriptEngine, and is taken only with the digest ScriptEngineDigest. ctx has config, log, secret, kv, http, random, fail and
// unavailable; there are no imports, files or Node.js. Math.random, Date and crypto are of the invocation. A script that is not JavaScript, or
// exports no function, is refused when it is published, with the line. What it is not granted, it is told when it asks.
//
// # Example
//
//	rt, err := wasm.New(ctx, wasm.Config{CacheDir: dir, Load: store.ModuleBytes})
//	...
//	info, err := rt.Compile(ctx, binary) // when it is published
//	...
//	res, err := rt.Invoke(ctx, wasm.Call{Account: account, Module: info.Digest, Input: []byte(`{"name":"Ada"}`)})
//
// Arguments for the choices made here are in RATIONALE.md of the folder above.
package wasm
