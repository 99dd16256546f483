package workflow

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/keyfire/keyfire/core"
)

// File is a workflow file that was read and checked.
type File struct {
	// Definition is what the file says, with every default of the format filled in. The modules of its nodes are empty until
	// Resolve, and their needs are the explicit ones until the engine has checked the expressions.
	Definition core.Definition

	root   *value
	source *source
}

// Decode reads a workflow file. filename is only quoted in errors. JSON is read as the YAML it is.
//
// The error is a *core.Error with core.CodeInvalidWorkflow; its fields hold every problem found, in the order of the file, up to 50,
// each with pointer, file, line, column, excerpt and what would be right. A text that cannot be read as YAML at all has one problem.
// Decode checks everything that does not need the expressions to be understood: those are the engine's.
func Decode(src []byte, filename string) (*File, error) {
	root, s := parse(src, filename)
	if root == nil {
		return nil, s.err()
	}
	d := decoder{source: s}
	def := d.workflow(root)
	if err := s.err(); err != nil {
		return nil, err
	}
	return &File{Definition: def, root: root, source: s}, nil
}

// Locate returns fields with File, Line, Column and Excerpt filled in, for fields that carry only a pointer into the definition.
// A pointer to something the file leaves out is placed where it could have been written.
//
// A field may say where inside the text at its pointer the problem is: Line and Column, both counted from 1 in the text, with File
// empty. Locate then points at that character, if the notation of the text keeps it in one place.
func (f *File) Locate(fields []core.Field) []core.Field {
	located := make([]core.Field, len(fields))
	for i, field := range fields {
		located[i] = field
		if field.File != "" {
			continue
		}
		v, whole := f.root.find(field.Pointer)
		at := v.at
		if whole && field.Line > 0 {
			at = f.source.inside(v, field.Line, field.Column)
		}
		located[i] = f.source.field(problem{field.Pointer, at, field.Detail})
	}
	return located
}

// Resolve names the module of every node: what digests says for its `uses`, or the digest that `uses` itself is. The error is a
// *core.Error with core.CodeInvalidWorkflow that points at every `uses` without a module.
func (f *File) Resolve(digests map[string]string) error {
	s := newSource(f.source.name, "")
	s.lines = f.source.lines
	for i := range f.Definition.Nodes {
		n := &f.Definition.Nodes[i]
		switch digest := digests[n.Uses]; {
		case core.ValidDigest(n.Uses):
			n.Module = n.Uses
		case core.ValidDigest(digest):
			n.Module = digest
		default:
			pointer := fmt.Sprintf("#/nodes/%d/uses", i)
			v, _ := f.root.find(pointer)
			s.report(pointer, v.at, "no module was sent for this file; send it along, or name a module that is already here as sha256:<digest>")
		}
	}
	return s.err()
}

// Canonical returns the one JSON text of a definition, names sorted and numbers as written, and the digest over it: what a version
// stores, and how identical content is recognised. Every module must be resolved.
func Canonical(def *core.Definition) (text []byte, digest string, err error) {
	for _, n := range def.Nodes {
		if !core.ValidDigest(n.Module) {
			return nil, "", fmt.Errorf("canonical form of workflow %s: node %s has no module", def.Name, n.ID)
		}
	}
	written, err := json.Marshal(def)
	if err != nil {
		return nil, "", fmt.Errorf("canonical form of workflow %s: %w", def.Name, err)
	}
	tree, err := core.DecodeJSON(written)
	if err != nil {
		return nil, "", fmt.Errorf("canonical form of workflow %s: %w", def.Name, err)
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf) // sorts the names of objects
	enc.SetEscapeHTML(false)
	if err := enc.Encode(tree); err != nil {
		return nil, "", fmt.Errorf("canonical form of workflow %s: %w", def.Name, err)
	}
	text = bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	sum := sha256.Sum256(text)
	return text, "sha256:" + hex.EncodeToString(sum[:]), nil
}

//go:embed schema.json
var fileSchema []byte

// FileSchema returns the JSON Schema (2020-12) of the workflow file, with a description of every field, for editors. What it cannot
// say, such as that a node in trigger.overrides exists, Decode still checks.
func FileSchema() []byte { return bytes.Clone(fileSchema) }
