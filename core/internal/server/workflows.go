package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// Workflow is a workflow as the API shows it. Lists leave out definition and source.
type Workflow struct {
	Object      string            `json:"object" enum:"workflow" doc:"What this is."`
	ID          string            `json:"id" doc:"Never changes. Empty in the answer to a dry run for a workflow that does not exist."`
	Name        string            `json:"name" doc:"The slug."`
	Title       string            `json:"title"`
	Aliases     []string          `json:"aliases" nullable:"false" doc:"Further names that clients of other products send."`
	Enabled     bool              `json:"enabled" doc:"Whether triggers are accepted."`
	Version     int               `json:"version" doc:"The newest version, or the one asked for."`
	Digest      string            `json:"digest" doc:"Of that version, module digests included."`
	CreatedAt   time.Time         `json:"created_at"`
	UpdatedAt   time.Time         `json:"updated_at"`
	Definition  *core.Definition  `json:"definition,omitempty" doc:"What the file says, with modules named by digest."`
	Source      string            `json:"source,omitempty" doc:"The file as it was published."`
	Outcome     admin.Outcome     `json:"outcome,omitempty" enum:"created,changed,unchanged" doc:"In the answer to publishing: whether this is a new workflow, a new version, or what the newest version was already."`
	Differences []core.Difference `json:"differences,omitempty" doc:"In the answer to publishing: where the new version differs from the one before, for whoever may read workflows."`
	Starts      []NodeStart       `json:"starts,omitempty" doc:"In the answer to publishing: how invocations of each node begin. Nodes whose module is not ready yet are left out."`
}

// NodeStart says how invocations of a node begin. Each has a fresh sandbox, in every class.
type NodeStart struct {
	Node  string `json:"node" doc:"Its id."`
	Class string `json:"class" enum:"A,B,C,D,E" doc:"In order of cost."`
	Start string `json:"start" enum:"shared,reseeded,hooked,ahead,plain" doc:"shared (A), reseeded (B) and hooked (C): from the frozen state of the started module. ahead (D): in an instance started for it alone, before it was asked for. plain (E): by starting the module."`
	Why   string `json:"why,omitempty" doc:"What about the module stands in the way of a better class."`
}

// Version is one immutable published state of a workflow. Lists leave out definition and source.
type Version struct {
	Object     string           `json:"object" enum:"workflow_version" doc:"What this is."`
	Workflow   string           `json:"workflow" doc:"Id of the workflow."`
	Version    int              `json:"version"`
	Digest     string           `json:"digest"`
	CreatedAt  time.Time        `json:"created_at"`
	CreatedBy  string           `json:"created_by"`
	Definition *core.Definition `json:"definition,omitempty" doc:"What the file says, with modules named by digest."`
	Source     string           `json:"source,omitempty" doc:"The file as it was published."`
}

type moduleParams struct {
	Module string `path:"module" maxLength:"100" doc:"Its digest, sha256:<hex>."`
}

type moduleAnswer struct {
	ContentType string `header:"Content-Type"`
	Body        []byte
}

func (s *Server) getModule(ctx context.Context, req *request, in *moduleParams) (*moduleAnswer, error) {
	binary, err := s.Admin.ModuleBytes(ctx, req.actor(), in.Module)
	if err != nil {
		return nil, err
	}
	return &moduleAnswer{ContentType: "application/octet-stream", Body: binary}, nil
}

func (s *Server) routeWorkflows() {
	tags := []string{"Workflows"}
	register(s, huma.Operation{
		OperationID: "publish-workflow", Method: http.MethodPut, Path: "/v1/workflows/{workflow}", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Publish a workflow",
		Description: "Makes the file the newest version of the workflow: file, modules and audit event land together or not at all. " +
			"201 when a version was made, 200 when the newest version has this content already and nothing was written. " +
			"Modules that the file names by path are sent along as parts of a multipart body, each once: later publications may leave out what the server has. " +
			"With `dry_run` everything is checked as well, and nothing written: the answer is 200 with what would be. " +
			"Needs the scope workflows:write.",
	}, publishBody(), s.publishWorkflow)
	register(s, huma.Operation{
		OperationID: "list-workflows", Method: http.MethodGet, Path: "/v1/workflows", Tags: tags,
		Summary: "List workflows", Description: "Newest first. Needs the scope workflows:read.",
	}, nil, s.listWorkflows)
	register(s, huma.Operation{
		OperationID: "get-workflow", Method: http.MethodGet, Path: "/v1/workflows/{workflow}", Tags: tags,
		Summary: "Show a workflow", Description: "With the definition and the file of its newest version, or of the one named as `<workflow>@<version>`. Needs the scope workflows:read.",
	}, nil, s.getWorkflow)
	register(s, huma.Operation{
		OperationID: "enable-workflow", Method: http.MethodPost, Path: "/v1/workflows/{workflow}/enable", Tags: tags,
		Summary: "Open a workflow's trigger", Description: "Until the next version is published, whose file decides anew. Needs the scope workflows:write.",
	}, nil, s.switchWorkflow(true))
	register(s, huma.Operation{
		OperationID: "disable-workflow", Method: http.MethodPost, Path: "/v1/workflows/{workflow}/disable", Tags: tags,
		Summary: "Close a workflow's trigger", Description: "Runs already accepted finish. Needs the scope workflows:write.",
	}, nil, s.switchWorkflow(false))
	register(s, huma.Operation{
		OperationID: "rename-workflow", Method: http.MethodPatch, Path: "/v1/workflows/{workflow}", Tags: tags,
		Summary: "Rename a workflow",
		Description: "Its id stays, and with it its runs and the keys that are made for it. The old name is free at once, and who still sends it is answered as for any name that does " +
			"not exist. Change the name in the file too: publishing it under the old name would make another workflow. Needs the scope workflows:write.",
	}, s.jsonBody(RenamedWorkflow{}, true, map[string]any{"name": "invoice-sync"}), s.renameWorkflow)
	register(s, huma.Operation{
		OperationID: "delete-workflow", Method: http.MethodDelete, Path: "/v1/workflows/{workflow}", Tags: tags, DefaultStatus: http.StatusNoContent,
		Summary: "Delete a workflow",
		Description: "Once this has answered, it does not exist: no trigger, schedule or webhook starts a run of it, and its name and aliases are free. A workflow that is published under " +
			"the same name is another one, which keys that were made for this one do not reach; those are `orphaned`. Runs already accepted finish unless `cancel_runs` is true, and stay " +
			"in the history. With `cancel_runs` its trigger is closed and its runs are cancelled first, so the same request can be sent again if it fails in between. Needs the scope workflows:write.",
	}, nil, s.deleteWorkflow)
	register(s, huma.Operation{
		OperationID: "list-versions", Method: http.MethodGet, Path: "/v1/workflows/{workflow}/versions", Tags: tags,
		Summary: "List the versions of a workflow", Description: "Newest first. Needs the scope workflows:read.",
	}, nil, s.listVersions)
	register(s, huma.Operation{
		OperationID: "get-version", Method: http.MethodGet, Path: "/v1/workflows/{workflow}/versions/{version}", Tags: tags,
		Summary: "Show a version", Description: "With its definition and file. Needs the scope workflows:read.",
	}, nil, s.getVersion)
	register(s, huma.Operation{
		OperationID: "republish-version", Method: http.MethodPost, Path: "/v1/workflows/{workflow}/versions/{version}/publish", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Publish a version again",
		Description: "Makes what an earlier version says, and the modules it had, the newest version, as if its file were published again: a way back. Versions in between stay, and so do runs of them. " +
			"201 when a version was made, 200 when the newest version has this content already, or for a dry run. 409 when the workflow has been renamed since. Needs the scope workflows:write.",
	}, nil, s.republishVersion)
	register(s, huma.Operation{
		OperationID: "get-module", Method: http.MethodGet, Path: "/v1/modules/{module}", Tags: tags,
		Summary: "Download a module", Description: "The bytes that were published, of the module or script with that digest. Needs the scope workflows:write.",
	}, nil, s.getModule)
	operation(s.api.OpenAPI(), http.MethodGet, "/v1/modules/{module}").Responses["200"].Content = map[string]*huma.MediaType{
		"application/octet-stream": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}},
	}
}

// WorkflowParams names a workflow.
type WorkflowParams struct {
	Workflow string `path:"workflow" doc:"Id, slug or alias. A slash in a slug may be written as it is or as %2F." maxLength:"512"`
}

type publishAnswer struct {
	Status   int
	Location string `header:"Location" doc:"The version."`
	Body     Workflow
}

// DryRunParam has something checked that is not done.
type DryRunParam struct {
	DryRun bool `query:"dry_run" doc:"Check everything and write nothing."`
}

type publishParams struct {
	WorkflowParams
	DryRunParam
}

func (s *Server) publishWorkflow(ctx context.Context, req *request, in *publishParams) (*publishAnswer, error) {
	if !req.bodyRead && req.c.Request.ContentLength != 0 && strings.HasPrefix(strings.ToLower(req.c.GetHeader("Content-Type")), typeForm) {
		account := req.principal.Account
		if err := s.publications.enter(ctx, account); err != nil {
			return nil, err
		}
		defer s.publications.leave(account)
		_ = http.NewResponseController(req.c.Writer).SetReadDeadline(time.Now().Add(s.BodyTimeout)) // the wait is not its sender's
	}
	p, err := s.readPublication(req)
	if err != nil {
		return nil, err
	}
	p.Slug, p.DryRun = in.Workflow, in.DryRun
	return s.publish(func() (admin.Published, error) { return s.Admin.PublishWorkflow(ctx, req.actor(), p) })
}

type republishParams struct {
	VersionParams
	DryRunParam
}

func (s *Server) republishVersion(ctx context.Context, req *request, in *republishParams) (*publishAnswer, error) {
	if err := s.readOptional(req, &struct{}{}); err != nil {
		return nil, err
	}
	n, err := wholeNumber(in.Version)
	if err != nil {
		return nil, err
	}
	return s.publish(func() (admin.Published, error) {
		return s.Admin.RepublishVersion(ctx, req.actor(), in.Workflow, n, in.DryRun)
	})
}

func (s *Server) publish(do func() (admin.Published, error)) (*publishAnswer, error) {
	// Modules take seconds to compile.
	if !s.publishing.TryRLock() {
		e := core.Errorf(core.CodeDraining, "this server is stopping; send the request again")
		e.RetryAfter = time.Second
		return nil, e
	}
	defer s.publishing.RUnlock()
	done, err := do()
	if err != nil {
		return nil, err
	}
	a := &publishAnswer{Status: http.StatusOK, Body: workflowBody(&done.Workflow)}
	if a.Body.Outcome, a.Body.Differences = done.Outcome, done.Differences; done.Created || done.Outcome == admin.OutcomeUnchanged {
		a.Location = "/v1/workflows/" + done.Workflow.ID + "/versions/" + strconv.Itoa(done.Workflow.Version)
	}
	for _, n := range done.Starts {
		a.Body.Starts = append(a.Body.Starts, NodeStart(n))
	}
	if done.Created {
		a.Status = http.StatusCreated
	}
	return a, nil
}

const (
	typeYAML = "application/yaml"
	typeJSON = "application/json"

	typeProblem = "application/problem+json"
	typeForm    = "multipart/form-data"

	maxFilename = 512 // characters of a part's file name
)

// readPublication reads a workflow file, alone or with its modules.
func (s *Server) readPublication(req *request) (admin.Publish, error) {
	t, params, err := mediaType(req.c, typeYAML, typeJSON, typeForm)
	if err != nil {
		return admin.Publish{}, err
	}
	switch t {
	case "":
		return admin.Publish{}, core.Errorf(core.CodeInvalidRequest, "the body must be a workflow file")
	case typeForm:
		body, err := s.readBody(req.c, req, s.MaxPublish)
		if err != nil {
			return admin.Publish{}, err
		}
		return readForm(body, params["boundary"])
	}
	body, err := s.readBody(req.c, req, core.MaxWorkflowFile)
	if err != nil {
		return admin.Publish{}, err
	}
	p := admin.Publish{Filename: "workflow.yaml", Source: body}
	if t == typeJSON {
		p.Filename = "workflow.json"
		err = core.CheckJSON(body, core.JSONLimits{})
	}
	return p, err
}

// readForm takes a multipart body apart: one part "workflow", and parts "module" named by what the file says in `uses`.
func readForm(body []byte, boundary string) (admin.Publish, error) {
	p := admin.Publish{Modules: make(map[string][]byte)}
	wrong := func(format string, args ...any) (admin.Publish, error) {
		return admin.Publish{}, core.Errorf(core.CodeInvalidRequest, format, args...)
	}
	if boundary == "" {
		return wrong("multipart/form-data must name its boundary")
	}
	form := multipart.NewReader(bytes.NewReader(body), boundary)
	for {
		part, err := form.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return wrong("the multipart body is not well-formed")
		}
		content, err := io.ReadAll(part)
		if err != nil {
			return wrong("the multipart body ends within a part")
		}
		name := filename(part)
		if len(name) > maxFilename {
			return wrong("a file name must have at most %d characters", maxFilename)
		}
		switch part.FormName() {
		case "workflow":
			if p.Source != nil {
				return wrong(`the part "workflow" must be sent once`)
			}
			if len(content) > core.MaxWorkflowFile {
				return admin.Publish{}, core.Errorf(core.CodeBodyTooLarge, "the workflow file has more than %d bytes", core.MaxWorkflowFile)
			}
			if p.Filename, p.Source = name, content; name == "" {
				p.Filename = "workflow.yaml"
			}
		case "module":
			if name == "" {
				return wrong(`a part "module" must have the file name that the workflow file has in "uses"`)
			}
			if _, ok := p.Modules[name]; ok {
				return wrong("two modules are sent under one name")
			}
			if len(content) > core.MaxModule {
				return admin.Publish{}, core.Errorf(core.CodeBodyTooLarge, "the module %q has more than %d bytes", name, core.MaxModule)
			}
			p.Modules[name] = content
		default:
			return wrong(`the parts are called "workflow" and "module"`)
		}
	}
	if p.Source == nil {
		return wrong(`the part "workflow" is missing`)
	}
	return p, nil
}

// filename returns a part's file name with its directories, which multipart.Part.FileName cuts off: here it is only a name to look up, never opened.
func filename(part *multipart.Part) string {
	_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	if err != nil {
		return ""
	}
	return params["filename"]
}

func (s *Server) listWorkflows(ctx context.Context, req *request, in *struct{ PageParams }) (*listAnswer[Workflow], error) {
	l, err := s.Admin.Workflows(ctx, req.actor(), in.page())
	if err != nil {
		return nil, err
	}
	return listOf(req, l, workflowBody), nil
}

func (s *Server) getWorkflow(ctx context.Context, req *request, in *WorkflowParams) (*answer[Workflow], error) {
	ref, version := in.Workflow, 0
	if name, number, ok := strings.Cut(ref, "@"); ok {
		var err error
		if version, err = wholeNumber(number); err != nil {
			return nil, err
		}
		ref = name
	}
	w, v, err := s.Admin.Workflow(ctx, req.actor(), ref, version)
	if err != nil {
		return nil, err
	}
	body := workflowBody(&w)
	body.Version, body.Digest, body.Definition, body.Source = v.Version, v.Digest, &v.Definition, v.Source
	return &answer[Workflow]{Body: body}, nil
}

func (s *Server) switchWorkflow(enabled bool) handler[WorkflowParams, answer[Workflow]] {
	return func(ctx context.Context, req *request, in *WorkflowParams) (*answer[Workflow], error) {
		if err := s.readOptional(req, &struct{}{}); err != nil {
			return nil, err
		}
		return show(workflowBody)(s.Admin.SetWorkflowEnabled(ctx, req.actor(), in.Workflow, enabled))
	}
}

// RenamedWorkflow is the body of PATCH /v1/workflows/{workflow}.
type RenamedWorkflow struct {
	Name string `json:"name" minLength:"1" doc:"The new slug."`
}

func (s *Server) renameWorkflow(ctx context.Context, req *request, in *WorkflowParams) (*answer[Workflow], error) {
	var n RenamedWorkflow
	if err := s.readObject(req, &n); err != nil {
		return nil, err
	}
	return show(workflowBody)(s.Admin.RenameWorkflow(ctx, req.actor(), in.Workflow, n.Name))
}

type deleteWorkflowParams struct {
	WorkflowParams
	Reason     string `query:"reason" doc:"Kept in the audit log." maxLength:"1000"`
	CancelRuns bool   `query:"cancel_runs" doc:"Also cancel its runs that have not ended; the header Keyfire-Cancelled-Runs says how many those were."`
}

func (s *Server) deleteWorkflow(ctx context.Context, req *request, in *deleteWorkflowParams) (*struct{}, error) {
	var before func(core.Workflow) error
	n := 0
	cancel := func(w core.Workflow) error {
		more, err := s.Trigger.CancelWorkflowRuns(ctx, req.caller(), w.ID, because("workflow deleted", in.Reason))
		n += more
		return cancelled(req)(n, err)
	}
	if in.CancelRuns {
		// Before, so that the same request can be sent again if this fails in between.
		before = cancel
	}
	w, err := s.Admin.DeleteWorkflow(ctx, req.actor(), in.Workflow, in.Reason, before)
	if err == nil && in.CancelRuns {
		err = cancel(w) // what began meanwhile, if somebody has opened it again
	}
	return nil, err
}

type listVersionsParams struct {
	WorkflowParams
	PageParams
}

func (s *Server) listVersions(ctx context.Context, req *request, in *listVersionsParams) (*listAnswer[Version], error) {
	l, err := s.Admin.Versions(ctx, req.actor(), in.Workflow, in.page())
	if err != nil {
		return nil, err
	}
	return listOf(req, l, versionBody), nil
}

// VersionParams names a version of a workflow.
type VersionParams struct {
	WorkflowParams
	Version string `path:"version" doc:"Number of the version, from 1." pattern:"^[1-9][0-9]{0,8}$"`
}

func (s *Server) getVersion(ctx context.Context, req *request, in *VersionParams) (*answer[Version], error) {
	n, err := wholeNumber(in.Version)
	if err != nil {
		return nil, err
	}
	_, v, err := s.Admin.Workflow(ctx, req.actor(), in.Workflow, n)
	if err != nil {
		return nil, err
	}
	body := versionBody(&v)
	body.Definition, body.Source = &v.Definition, v.Source
	return &answer[Version]{Body: body}, nil
}

func workflowBody(w *core.Workflow) Workflow {
	body := Workflow{
		Object: "workflow", ID: w.ID, Name: w.Slug, Title: w.Title, Aliases: w.Aliases, Enabled: w.Enabled, Version: w.Version, Digest: w.Digest,
		CreatedAt: w.CreatedAt.UTC(), UpdatedAt: w.UpdatedAt.UTC(),
	}
	if body.Aliases == nil {
		body.Aliases = []string{}
	}
	return body
}

func versionBody(v *core.Version) Version {
	return Version{Object: "workflow_version", Workflow: v.Workflow, Version: v.Version, Digest: v.Digest, CreatedAt: v.CreatedAt.UTC(), CreatedBy: v.CreatedBy}
}
