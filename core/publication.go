package core

import "encoding/json"

// Publication is everything one publish writes: the new version of a workflow and the modules it names. The store commits all
// of it, together with the audit event, or nothing.
type Publication struct {
	Account string
	// Workflow says which workflow is published. When its ID is one of the account's workflows, that one gets the version, and its slug
	// may change; otherwise the workflow that has the slug gets it; otherwise a workflow with this ID is created.
	// Slug, Title, Aliases and Enabled are written; Version, Digest and the times come from the version.
	Workflow Workflow
	// Version is the version to add. Its number is given by the store; its Digest decides whether there is anything to publish.
	Version Version
	// Modules are the binaries that come with the publication, by digest. A module the account already holds may be left out.
	Modules map[string][]byte
	// DryRun asks what would become of it: everything is checked, and nothing written.
	DryRun bool
}

// Difference is one place in which two versions of a workflow differ.
type Difference struct {
	// Path is a JSON pointer into the definition, in which nodes go by their ids, such as "#/nodes/fetch/grants/http".
	Path string `json:"path"`
	// Before and After are what is there, nil for nothing.
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after,omitempty"`
}

// NodeStart says how invocations of a node begin, each in a fresh sandbox. It follows from what the module does when it starts.
type NodeStart struct {
	Node  string
	Class string // "A" to "E", in order of cost
	Start string // "shared", "reseeded", "hooked", "ahead" or "plain"
	Why   string // of "plain": what stands in the way of a better class; "" otherwise
}
