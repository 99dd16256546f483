package wasm

import "runtime"

// resumable says whether the engine can resume a command: it can where it compiles, not where it interprets.
const resumable = runtime.GOARCH == "amd64" || runtime.GOARCH == "arm64"
