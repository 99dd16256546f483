// Package scaffold writes the files a new auth plugin starts from. They compile, pass the conformance kit, and are short enough to be
// read in full before anything is changed.
package scaffold

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"
)

//go:embed template
var files embed.FS

// Options say what to write.
type Options struct {
	// Name names the plugin: a lower-case letter, then up to 31 letters, digits and hyphens. The program is "keyfire-auth-<name>".
	Name string
	// Module is the path of the Go module, "keyfire-auth-<name>" when empty.
	Module string
	// Version is the version of Keyfire that go.mod requires, such as "v1.2.0".
	Version string
	// Replace, when set, is a folder go.mod uses in place of that version, for work on both at once.
	Replace string
}

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// Write writes a plugin into dir, which must not exist or be empty, and returns the paths it wrote. Nothing is ever overwritten.
func Write(dir string, o Options) (written []string, err error) {
	if !namePattern.MatchString(o.Name) {
		return nil, fmt.Errorf("name %q: use a lower-case letter, then up to 31 letters, digits and hyphens", o.Name)
	}
	if o.Version == "" {
		return nil, errors.New("no version of Keyfire given")
	}
	if o.Module == "" {
		o.Module = "keyfire-auth-" + o.Name
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec G301 -- source code, and a plugin's directory has to be searchable
		return nil, fmt.Errorf("create plugin: %w", err)
	}
	if entries, err := os.ReadDir(dir); err != nil {
		return nil, fmt.Errorf("create plugin: %w", err)
	} else if len(entries) > 0 {
		return nil, fmt.Errorf("%s is not empty; name a new folder", dir)
	}
	err = fs.WalkDir(files, "template", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		t, err := template.ParseFS(files, path)
		if err != nil {
			return err
		}
		var text bytes.Buffer
		if err := t.Execute(&text, o); err != nil {
			return err
		}
		to := filepath.Join(dir, strings.TrimSuffix(filepath.Base(path), ".tmpl"))
		if err := os.WriteFile(to, text.Bytes(), 0o644); err != nil { // #nosec G306 -- source code
			return fmt.Errorf("create plugin: %w", err)
		}
		written = append(written, to)
		return nil
	})
	return written, err
}
