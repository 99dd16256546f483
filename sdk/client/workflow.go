package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Workflow is a named, versioned graph of nodes. ID never changes, Name may.
type Workflow struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"` // slug
	Title     string    `json:"title,omitempty"`
	Aliases   []string  `json:"aliases,omitempty"`
	Enabled   bool      `json:"enabled"`
	Version   int       `json:"version"`
	Digest    string    `json:"digest"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`

	// Source is the published file and Definition its decoded form. Lists leave them out.
	Source     string          `json:"source,omitempty"`
	Definition json.RawMessage `json:"definition,omitempty"`
	// Outcome is, in the answer to PublishWorkflow and RepublishVersion, "created" for a new workflow, "changed" for a new version, or "unchanged", and of a dry run what it would be.
	Outcome string `json:"outcome,omitempty"`
	// Differences are those to the version before, in the same answer, for whoever may read workflows.
	Differences []Difference `json:"differences,omitempty"`
	// Starts says, in the answer to PublishWorkflow, how invocations of the nodes begin, of those whose modules are ready by then.
	Starts []NodeStart `json:"starts,omitempty"`
	// Created is true in the answer to PublishWorkflow when a new version was made, false when the newest had this content already.
	Created bool `json:"-"`

	Response Response `json:"-"`
}

// Raw returns the object as the server sent it, with members that this version of the package does not know.
func (w *Workflow) Raw() []byte { return w.Response.Body }

// Difference is one place in which two versions differ.
type Difference struct {
	Path   string          `json:"path"` // JSON pointer into the definition, in which nodes go by their ids
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after,omitempty"`
}

// NodeStart says how invocations of a node begin. Each has a fresh sandbox.
type NodeStart struct {
	Node  string `json:"node"`
	Class string `json:"class"` // "A" to "E", in order of cost
	Start string `json:"start"` // "shared", "reseeded", "hooked", "ahead" or "plain"
	Why   string `json:"why,omitempty"`
}

// Version is one immutable published state of a workflow.
type Version struct {
	Version   int       `json:"version"`
	Digest    string    `json:"digest"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
}

// Publication is a workflow file with the modules that it names by path.
type Publication struct {
	Filename string            // named in errors
	Source   []byte            // YAML or JSON
	Modules  map[string][]byte // by the text of `uses`, such as "./fetch.wasm"
	DryRun   bool              // check everything and publish nothing; the answer is the workflow as it would be
}

// PublishWorkflow makes a file the newest version of the workflow called name, modules and all, or changes nothing. Publishing
// the same content again is no error and makes no version. A dry run is refused what publishing would be refused.
func (c *Client) PublishWorkflow(ctx context.Context, name string, p Publication) (*Workflow, error) {
	size := len(p.Source) + 1<<10
	for uses, module := range p.Modules {
		size += len(module) + len(uses) + 1<<10
	}
	body := bytes.NewBuffer(make([]byte, 0, size)) // which would double itself as modules of some megabytes go in
	form := multipart.NewWriter(body)
	err := part(form, "workflow", p.Filename, "application/yaml", p.Source)
	for _, uses := range slices.Sorted(maps.Keys(p.Modules)) {
		if err == nil {
			err = part(form, "module", uses, "application/wasm", p.Modules[uses])
		}
	}
	if err == nil {
		err = form.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("client: encode workflow: %w", err)
	}
	w, err := c.workflow(ctx, request{
		method: http.MethodPut,
		path:   []string{"v1", "workflows", name},
		query:  dryRun(p.DryRun),
		header: http.Header{"Content-Type": {form.FormDataContentType()}},
		raw:    body,
	})
	if err != nil {
		return nil, err
	}
	w.Created = w.Response.Status == http.StatusCreated
	return w, nil
}

// RepublishVersion makes what an earlier version says the newest version of a workflow, or only checks that it could be.
func (c *Client) RepublishVersion(ctx context.Context, ref string, version int, dry bool) (*Workflow, error) {
	w, err := c.workflow(ctx, request{method: http.MethodPost, path: []string{"v1", "workflows", ref, "versions", strconv.Itoa(version), "publish"}, query: dryRun(dry)})
	if err != nil {
		return nil, err
	}
	w.Created = w.Response.Status == http.StatusCreated
	return w, nil
}

func dryRun(dry bool) url.Values {
	if !dry {
		return nil
	}
	return url.Values{"dry_run": {"true"}}
}

func part(form *multipart.Writer, field, filename, contentType string, content []byte) error {
	// Not CreateFormFile: it would call every part an octet stream.
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\r", "%0D", "\n", "%0A")
	w, err := form.CreatePart(textproto.MIMEHeader{
		"Content-Disposition": {fmt.Sprintf(`form-data; name="%s"; filename="%s"`, field, quote.Replace(filename))},
		"Content-Type":        {contentType},
	})
	if err != nil {
		return err
	}
	_, err = io.Copy(w, bytes.NewReader(content))
	return err
}

// Workflow returns a workflow by id, slug or alias, with an optional "@version".
func (c *Client) Workflow(ctx context.Context, ref string) (*Workflow, error) {
	return c.workflow(ctx, request{method: http.MethodGet, path: []string{"v1", "workflows", ref}})
}

// EnableWorkflow opens the workflow's trigger until the next version is published, whose file decides anew.
func (c *Client) EnableWorkflow(ctx context.Context, ref string) (*Workflow, error) {
	return c.workflow(ctx, request{method: http.MethodPost, path: []string{"v1", "workflows", ref, "enable"}})
}

// DisableWorkflow closes the workflow's trigger. Runs already accepted finish.
func (c *Client) DisableWorkflow(ctx context.Context, ref string) (*Workflow, error) {
	return c.workflow(ctx, request{method: http.MethodPost, path: []string{"v1", "workflows", ref, "disable"}})
}

// RenameWorkflow gives a workflow another name. Its id, its keys and its history stay.
func (c *Client) RenameWorkflow(ctx context.Context, ref, name string) (*Workflow, error) {
	return c.workflow(ctx, request{method: http.MethodPatch, path: []string{"v1", "workflows", ref}, body: map[string]string{"name": name}})
}

// DeleteWorkflow deletes a workflow: once it has returned, no run of it starts, and its names are free. Its history stays. The reason may be empty. Runs already
// accepted finish unless CancelRuns is given.
func (c *Client) DeleteWorkflow(ctx context.Context, ref, reason string, also ...Also) (Response, error) {
	return c.do(ctx, request{method: http.MethodDelete, path: []string{"v1", "workflows", ref}, query: ending(reason, also)}, nil)
}

func (c *Client) workflow(ctx context.Context, r request) (*Workflow, error) {
	return one(ctx, c, r, func(v *Workflow, res Response) { v.Response = res })
}

// Workflows lists the account's workflows.
func (c *Client) Workflows(ctx context.Context, p Page) (*List[Workflow], error) {
	return list[Workflow](ctx, c, p.values(), "v1", "workflows")
}

// Versions lists the versions of a workflow, newest first.
func (c *Client) Versions(ctx context.Context, ref string, p Page) (*List[Version], error) {
	return list[Version](ctx, c, p.values(), "v1", "workflows", ref, "versions")
}
