package admin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/workflow"
)

// Publish is a workflow file with the modules it uses.
type Publish struct {
	Slug     string            // from the route; must be the name in the file
	Filename string            // for error messages
	Source   []byte            // YAML or JSON
	Modules  map[string][]byte // by the path in `uses`; modules named by digest must be stored already
	DryRun   bool              // check everything and write nothing

	again *core.Version // the version whose file this is
}

// Published is the outcome of publishing.
type Published struct {
	Workflow core.Workflow
	Created  bool // false: the newest version has this content already, and nothing was written, or it was a dry run
	// Outcome says the same, and of a dry run what would be. The workflow is as it would be then, and without an id if it would be new.
	Outcome Outcome
	// Differences are those to the newest version before, for whoever may read workflows. A workflow that is new has none.
	Differences []core.Difference
	// Starts says how invocations of its nodes begin, of those that are known by now.
	Starts []core.NodeStart
}

// Outcome is what publishing comes to.
type Outcome string

// What publishing comes to.
const (
	OutcomeCreated   Outcome = "created"   // a new workflow
	OutcomeChanged   Outcome = "changed"   // a new version
	OutcomeUnchanged Outcome = "unchanged" // nothing: the newest version has this content
)

// PublishWorkflow checks a workflow file and everything it refers to and makes it the newest version: the file, its modules and the audit event
// land together or not at all. An error with CodeInvalidWorkflow lists every place in the file that is wrong. A dry run is refused what publishing is
// refused, and leaves nothing but compiled modules in the cache.
func (s *Service) PublishWorkflow(ctx context.Context, a Actor, p Publish) (Published, error) {
	if err := a.Require(auth.ScopeWorkflowsWrite); err != nil {
		return Published{}, err
	}
	f, err := workflow.Decode(p.Source, p.Filename)
	if err != nil {
		return Published{}, err
	}
	def := &f.Definition
	invalid := func(fields ...core.Field) error {
		fields = f.Locate(fields)
		e := core.Errorf(core.CodeInvalidWorkflow, "%s", firstOf(fields))
		e.Fields = fields
		return e
	}
	if p.Slug != def.Name {
		return Published{}, invalid(core.Field{Pointer: "#/name", Detail: fmt.Sprintf("must be %q, the name in the URL", p.Slug)})
	}
	if fields := s.Check(def); len(fields) > 0 {
		return Published{}, invalid(fields...)
	}
	digests, modules, fields, err := s.modules(ctx, a, def, &p)
	if err != nil {
		return Published{}, err
	}
	if len(fields) > 0 {
		return Published{}, invalid(fields...)
	}
	if fields, err = s.grants(ctx, a, def, digests, modules); err != nil {
		return Published{}, err
	}
	if len(fields) > 0 {
		return Published{}, invalid(fields...)
	}
	if err := f.Resolve(digests); err != nil {
		return Published{}, err
	}
	_, digest, err := workflow.Canonical(def)
	if err != nil {
		return Published{}, err
	}
	now := s.Now().UTC()
	w := core.Workflow{
		ID: s.NewID(core.PrefixWorkflow), Account: a.Principal.Account, Slug: def.Name, Title: def.Title, Aliases: def.Aliases,
		Enabled: def.Trigger.Enabled, Digest: digest, CreatedAt: now, UpdatedAt: now,
	}
	e := s.event(a, core.ActionWorkflowPublish, w.ID)
	if p.again != nil {
		w.ID, e.Reason = p.again.Workflow, fmt.Sprintf("as version %d", p.again.Version)
	}
	stored, changed, err := s.Store.PublishWorkflow(ctx, core.Publication{
		Account:  a.Principal.Account,
		Workflow: w,
		Version:  core.Version{Digest: digest, Definition: *def, Source: string(p.Source), CreatedAt: now, CreatedBy: a.Principal.Subject},
		Modules:  modules,
		DryRun:   p.DryRun,
	}, e)
	if err != nil {
		return Published{}, err
	}
	done := Published{Workflow: stored, Created: changed && !p.DryRun}
	if done.Outcome, done.Differences, err = s.outcome(ctx, a, &stored, changed, def); err != nil && p.DryRun {
		return Published{}, err // what is published is, whether the version before can be read or not
	}
	if p.DryRun {
		if done.Outcome == OutcomeCreated {
			done.Workflow.ID = ""
		}
		return done, nil
	}
	if changed && s.Published != nil {
		s.Published(a.Principal.Account, def)
	}
	if s.Ready != nil {
		done.Starts = s.Ready(ctx, a.Principal.Account, def)
	}
	return done, nil
}

// outcome compares a workflow as it was published, or would be, with the version before.
func (s *Service) outcome(ctx context.Context, a Actor, w *core.Workflow, changed bool, def *core.Definition) (Outcome, []core.Difference, error) {
	switch {
	case !changed:
		return OutcomeUnchanged, nil, nil
	case w.Version == 1:
		return OutcomeCreated, nil, nil
	case !auth.Allows(a.Principal.Scopes, auth.ScopeWorkflowsRead):
		return OutcomeChanged, nil, nil
	}
	before, err := s.Store.Version(ctx, a.Principal.Account, w.ID, w.Version-1)
	if err != nil {
		return OutcomeChanged, nil, err
	}
	differences, err := workflow.Compare(&before.Definition, def)
	return OutcomeChanged, differences, err
}

// RepublishVersion publishes a version of a workflow again, file and modules, as its newest one. What was true of the server when it was published first may not be so any more, so that
// everything is checked as for a file. It is CodeConflict when the workflow has been renamed since, as the file says the old name.
func (s *Service) RepublishVersion(ctx context.Context, a Actor, ref string, version int, dryRun bool) (Published, error) {
	if err := a.Require(auth.ScopeWorkflowsWrite); err != nil {
		return Published{}, err
	}
	w, err := s.Store.Workflow(ctx, a.Principal.Account, ref)
	if err != nil {
		return Published{}, err
	}
	v, err := s.Store.Version(ctx, a.Principal.Account, w.ID, version)
	if err != nil {
		return Published{}, err
	}
	if v.Definition.Name != w.Slug {
		return Published{}, core.Errorf(core.CodeConflict, "version %d calls the workflow %q, and it has been renamed to %q since; publish the version's file with the new name in it", v.Version, v.Definition.Name, w.Slug)
	}
	return s.PublishWorkflow(ctx, a, Publish{Slug: w.Slug, Filename: fmt.Sprintf("%s@%d", w.Slug, v.Version), Source: []byte(v.Source), DryRun: dryRun, again: &v})
}

func firstOf(fields []core.Field) string {
	f := fields[0]
	text := f.Detail
	if f.Line > 0 {
		text = fmt.Sprintf("%s:%d:%d: %s", f.File, f.Line, f.Column, f.Detail)
	}
	if n := len(fields) - 1; n > 0 {
		text += fmt.Sprintf(" (and %d more)", n)
	}
	return text
}

// modules finds the digest of every `uses` and compiles the modules that are new to the account.
func (s *Service) modules(ctx context.Context, a Actor, def *core.Definition, p *Publish) (digests map[string]string, fresh map[string][]byte, fields []core.Field, err error) {
	digests = make(map[string]string)
	fresh = make(map[string][]byte)
	for i := range def.Nodes {
		uses := def.Nodes[i].Uses
		if _, done := digests[uses]; done {
			continue
		}
		at := fmt.Sprintf("#/nodes/%d/uses", i)
		digest := uses
		binary, ok := p.Modules[uses]
		switch {
		case p.again != nil:
			digest = p.again.Definition.Nodes[i].Module
		case ok:
			sum := sha256.Sum256(binary)
			digest = "sha256:" + hex.EncodeToString(sum[:])
		case !core.ValidDigest(uses):
			fields = append(fields, core.Field{Pointer: at, Detail: "names a file that was not sent along; keyfire apply sends the files a workflow uses"})
			continue
		}
		_, err := s.Store.Module(ctx, a.Principal.Account, digest)
		if s.Signed != nil && (ok || err == nil) {
			// Before anything reads more of it; and again for a module that came in when less was asked of it.
			var e *core.Error
			err := s.Signed(ctx, a.Principal.Account, digest, binary)
			if errors.As(err, &e) && e.Code == core.CodeInvalidModule {
				fields = append(fields, core.Field{Pointer: at, Detail: e.Message})
				continue
			}
			if err != nil {
				return nil, nil, nil, err
			}
		}
		switch core.CodeOf(err) {
		case "":
			digests[uses] = digest
			continue
		case core.CodeNotFound:
		default:
			return nil, nil, nil, err
		}
		if !ok {
			fields = append(fields, core.Field{Pointer: at, Detail: "names a module this server does not have; send the file along once"})
			continue
		}
		if err := s.Compile(ctx, binary); err != nil {
			var e *core.Error
			if !errors.As(err, &e) || e.Code != core.CodeInvalidModule {
				return nil, nil, nil, err
			}
			wrong := e.Fields // such as each import it cannot have
			if len(wrong) == 0 {
				wrong = []core.Field{{Detail: e.Message}}
			}
			for _, f := range wrong {
				fields = append(fields, core.Field{Pointer: at, Detail: f.Detail})
			}
			continue
		}
		digests[uses] = digest
		fresh[digest] = binary
	}
	return digests, fresh, fields, nil
}

// grants finds the nodes whose module needs more than the node gives it.
func (s *Service) grants(ctx context.Context, a Actor, def *core.Definition, digests map[string]string, fresh map[string][]byte) (fields []core.Field, err error) {
	if s.CheckNode == nil {
		return nil, nil
	}
	for i := range def.Nodes {
		n := &def.Nodes[i]
		digest := digests[n.Uses]
		wrong, err := s.CheckNode(ctx, a.Principal.Account, digest, fresh[digest], n)
		if err != nil {
			return nil, err
		}
		for _, f := range wrong {
			f.Pointer = fmt.Sprintf("#/nodes/%d%s", i, f.Pointer)
			fields = append(fields, f)
		}
	}
	return fields, nil
}

// SetWorkflowEnabled opens or closes a workflow's trigger until the next version is published, whose file decides anew. Runs
// already accepted finish.
func (s *Service) SetWorkflowEnabled(ctx context.Context, a Actor, ref string, enabled bool) (core.Workflow, error) {
	if err := a.Require(auth.ScopeWorkflowsWrite); err != nil {
		return core.Workflow{}, err
	}
	w, err := s.Store.Workflow(ctx, a.Principal.Account, ref)
	if err != nil {
		return core.Workflow{}, err
	}
	action := core.ActionWorkflowDisable
	if enabled {
		action = core.ActionWorkflowEnable
	}
	return s.Store.SetWorkflowEnabled(ctx, a.Principal.Account, w.ID, enabled, s.event(a, action, w.ID))
}

// RenameWorkflow gives a workflow another name. Its id stays, and with it the keys that are made for it and its history; the old name is free at once. The file says the
// old one until it is published again under the new one.
func (s *Service) RenameWorkflow(ctx context.Context, a Actor, ref, name string) (core.Workflow, error) {
	if err := a.Require(auth.ScopeWorkflowsWrite); err != nil {
		return core.Workflow{}, err
	}
	if !core.ValidSlug(name) {
		return core.Workflow{}, invalid("#/name", `must be lower-case letters, digits and inner hyphens, such as "invoice-sync", in up to four parts separated by "/"`)
	}
	w, err := s.Store.Workflow(ctx, a.Principal.Account, ref)
	if err != nil {
		return core.Workflow{}, err
	}
	e := s.event(a, core.ActionWorkflowRename, w.ID)
	e.Reason = w.Slug + " -> " + name
	return s.Store.RenameWorkflow(ctx, a.Principal.Account, w.ID, name, e)
}

// DeleteWorkflow deletes a workflow: from its return on it does not exist for anybody, and its names are free. Runs already accepted finish. The history and the audit log
// stay, and so do keys that are made for it, which are for nothing then: see [Orphaned]. A workflow that is published under the same name later is another one.
//
// before, if it is not nil, is what must be done while the workflow still has its name and takes no runs any more: its trigger is closed for it. An error of before
// leaves the workflow like that, and the same call again goes on.
func (s *Service) DeleteWorkflow(ctx context.Context, a Actor, ref, why string, before func(core.Workflow) error) (core.Workflow, error) {
	if err := a.Require(auth.ScopeWorkflowsWrite); err != nil {
		return core.Workflow{}, err
	}
	if err := checkReason(why); err != nil {
		return core.Workflow{}, err
	}
	if before != nil {
		w, err := s.SetWorkflowEnabled(ctx, a, ref, false)
		if err == nil {
			err = before(w)
		}
		if err != nil {
			return core.Workflow{}, err
		}
		ref = w.ID // whoever has the name by now
	}
	e := s.event(a, core.ActionWorkflowDelete, ref)
	e.Reason = why
	return s.Store.DeleteWorkflow(ctx, a.Principal.Account, ref, e)
}

// Workflow returns a workflow by id, slug or alias, with one version: the newest for version 0.
func (s *Service) Workflow(ctx context.Context, a Actor, ref string, version int) (core.Workflow, core.Version, error) {
	if err := a.Require(auth.ScopeWorkflowsRead); err != nil {
		return core.Workflow{}, core.Version{}, err
	}
	w, err := s.Store.Workflow(ctx, a.Principal.Account, ref)
	if err != nil {
		return core.Workflow{}, core.Version{}, err
	}
	if version == 0 {
		version = w.Version
	}
	v, err := s.Store.Version(ctx, a.Principal.Account, w.ID, version)
	return w, v, err
}

// Workflows lists the account's workflows, newest first.
func (s *Service) Workflows(ctx context.Context, a Actor, p core.Page) (core.List[core.Workflow], error) {
	if err := a.Require(auth.ScopeWorkflowsRead); err != nil {
		return core.List[core.Workflow]{}, err
	}
	return s.Store.Workflows(ctx, a.Principal.Account, p)
}

// Versions lists the versions of a workflow, newest first, without their definition and source.
func (s *Service) Versions(ctx context.Context, a Actor, ref string, p core.Page) (core.List[core.Version], error) {
	if err := a.Require(auth.ScopeWorkflowsRead); err != nil {
		return core.List[core.Version]{}, err
	}
	w, err := s.Store.Workflow(ctx, a.Principal.Account, ref)
	if err != nil {
		return core.List[core.Version]{}, err
	}
	return s.Store.Versions(ctx, a.Principal.Account, w.ID, p)
}

// ModuleBytes returns a module of the account by its digest, as it was published.
func (s *Service) ModuleBytes(ctx context.Context, a Actor, digest string) ([]byte, error) {
	if err := a.Require(auth.ScopeWorkflowsWrite); err != nil {
		return nil, err
	}
	return s.Store.ModuleBytes(ctx, a.Principal.Account, digest)
}
