package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// signedBy is the policy on signatures, for the control plane. load returns the bytes of a stored module.
func signedBy(cfg *Config, load func(ctx context.Context, account, digest string) ([]byte, error)) func(ctx context.Context, account, digest string, binary []byte) error {
	return func(ctx context.Context, account, digest string, binary []byte) error {
		required := slices.Contains(cfg.MustSign, "*") || slices.Contains(cfg.MustSign, account)
		if binary == nil {
			if !required {
				return nil // it was looked at when it came
			}
			var err error
			if binary, err = load(ctx, account, digest); err != nil {
				return err
			}
		}
		_, err := cfg.TrustedKeys.Verify(binary)
		if required || errors.Is(err, wasm.ErrForged) {
			return err
		}
		return nil
	}
}

func (a *app) moduleCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "module",
		Short: "Sign modules and check their signatures",
		Long: `A module, or a script, can carry a signature by the key of whoever vouches for it: Ed25519, in the form of a signed note. A server that sets
modules.require_signature publishes only what one of its modules.trusted_keys has signed.`,
	}, a.moduleKeygen(), a.moduleSign(), a.moduleVerify())
}

func (a *app) moduleKeygen() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "keygen NAME",
		Short: "Make a key to sign modules with, and print its public half",
		Long: `Make a key to sign modules with. The private half goes to NAME.key, readable by its owner only; the public half, which servers are told, to standard
output.`,
		Example: `  keyfire module keygen release.example.com`,
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			private, public, err := wasm.NewSigningKey(args[0], nil)
			if err != nil {
				return usageError{err}
			}
			if out == "" {
				out = filepath.Base(args[0]) + ".key"
			}
			f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if errors.Is(err, os.ErrExist) {
				return fmt.Errorf("%s exists already, and a key that is gone is gone; choose another file with -o", out)
			}
			if err != nil {
				return err
			}
			_, err = f.WriteString(private + "\n")
			if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"object": "module_key", "public": public, "file": out})
			}
			fmt.Fprintln(a.Stdout, public)
			a.note("the private key is in %s; keep it secret and safe", out)
			return nil
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "file for the private key; NAME.key if empty")
	return cmd
}

func (a *app) moduleSign() *cobra.Command {
	var keyFile string
	cmd := &cobra.Command{
		Use:     "sign FILE...",
		Short:   "Sign modules or scripts, in place",
		Long:    `Sign modules or scripts, in place: the signature is added to the file's end, or replaced. The module does what it did, and has another digest.`,
		Example: `  keyfire module sign --key release.example.com.key nodes/fetch.wasm nodes/report.js`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if keyFile == "" {
				return usagef("--key names the file of the private key; keyfire module keygen makes one")
			}
			private, err := os.ReadFile(keyFile)
			if err != nil {
				return err
			}
			for _, name := range args {
				info, err := os.Stat(name)
				if err != nil {
					return err
				}
				module, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				signed, err := wasm.Sign(module, string(private))
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				if err := replaceFile(name, info.Mode().Perm(), signed); err != nil {
					return err
				}
				if !a.json {
					fmt.Fprintf(a.Stdout, "signed %s\n", name)
				}
			}
			if a.json {
				return a.printJSON(map[string]any{"object": "list", "data": args})
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&keyFile, "key", "", "file of the private key (required)")
	return cmd
}

// moduleVerdict is what module verify --json prints of a file.
type moduleVerdict struct {
	File   string `json:"file"`
	Signer string `json:"signer,omitempty"`
	Error  string `json:"error,omitempty"`
}

func (a *app) moduleVerify() *cobra.Command {
	var list []string
	cmd := &cobra.Command{
		Use:   "verify FILE...",
		Short: "Say which key each module is signed by, and fail if one is not",
		Long: `Say which key each module or script is signed by, and fail if one is not signed by a trusted key. Trusted are the keys of --key, or without any those of the server's
configuration (modules.trusted_keys).`,
		Example: `  keyfire module verify --key release.example.com+1f2e3d4c+AQ... nodes/*.wasm`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := wasm.ParseTrustedKeys(list)
			if err != nil {
				return usageError{fmt.Errorf("--key: %w", err)}
			}
			if len(list) == 0 {
				cfg, _, err := loadConfig(a.Environ, cmd.Flags())
				if err != nil {
					return usageError{err}
				}
				keys = cfg.TrustedKeys
			}
			verdicts := make([]moduleVerdict, 0, len(args))
			var wrong []string
			for _, name := range args {
				module, err := a.readFile(name)
				if err != nil {
					return err
				}
				v := moduleVerdict{File: name}
				if v.Signer, err = keys.Verify(module); err != nil {
					v.Error = err.Error()
					var e *core.Error
					if errors.As(err, &e) {
						v.Error = e.Message
					}
					wrong = append(wrong, name+": "+v.Error)
				} else if !a.json {
					fmt.Fprintf(a.Stdout, "%s: signed by %s\n", name, v.Signer)
				}
				verdicts = append(verdicts, v)
			}
			if a.json {
				if err := a.printJSON(map[string]any{"object": "list", "data": verdicts}); err != nil {
					return err
				}
			}
			if len(wrong) > 0 {
				return core.Errorf(core.CodeInvalidModule, "%s", strings.Join(wrong, "\n"))
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&list, "key", nil, "a public key that is trusted; may be repeated")
	return cmd
}
