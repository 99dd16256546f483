package cli

import (
	"errors"

	"github.com/keyfire/keyfire/runtime/wasm"
)

// wasmConfig is how invocations of nodes get their sandboxes.
type wasmConfig struct {
	Engine      wasm.Engine
	Isolation   wasm.Isolation
	Reset       wasm.ResetMode
	VerifyEvery int
}

func wasmEngine() setting {
	return setting{
		key:   "wasm.engine",
		usage: "How invocations of nodes begin, each in a fresh sandbox: snapshot, from the frozen state of the started module, or plain, by starting the module. plain holds for all nodes; with snapshot a workflow or node may ask for plain.",
		value: "snapshot",
		set: func(c *Config, text string) error {
			if c.Wasm.Engine = wasm.Engine(text); c.Wasm.Engine != wasm.EngineSnapshot && c.Wasm.Engine != wasm.EnginePlain {
				return errors.New("want snapshot or plain")
			}
			return nil
		},
	}
}

func wasmIsolation() setting {
	return setting{
		key:   "wasm.isolation",
		usage: "Who may use an instance again once it was put back to its module's initial state: account, only calls of the same account, or strict, nobody. strict makes a new instance for each invocation.",
		value: "account",
		set: func(c *Config, text string) error {
			if c.Wasm.Isolation = wasm.Isolation(text); c.Wasm.Isolation != wasm.IsolationAccount && c.Wasm.Isolation != wasm.IsolationStrict {
				return errors.New("want account or strict")
			}
			return nil
		},
	}
}

func wasmReset() setting {
	return setting{
		key:   "wasm.reset",
		usage: "How instances are put back: auto, the way measured to be fastest, or copy, all of their memory, which relies on nothing the kernel says.",
		value: "auto",
		set: func(c *Config, text string) error {
			switch text {
			case "auto":
				c.Wasm.Reset = wasm.ResetAuto
			case "copy":
				c.Wasm.Reset = wasm.ResetCopy
			default:
				return errors.New("want auto or copy")
			}
			return nil
		},
	}
}

func wasmVerify() setting {
	return setting{
		key:   "wasm.verify_every",
		usage: "One of so many resets is compared byte by byte with the initial state, 1 to 1000000000. A difference is recorded in the audit log, and the module's instances are put back by copying from then on.",
		value: "1000",
		set:   func(c *Config, text string) error { return setInt(&c.Wasm.VerifyEvery, text, 1, 1_000_000_000) },
	}
}
