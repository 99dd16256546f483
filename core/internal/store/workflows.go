package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/keyfire/keyfire/core"
)

const (
	workflowColumns = `w.account, w.id, w.slug, w.title, w.aliases, w.enabled, w.version, w.digest, w.created_at, w.updated_at`
	versionColumns  = `workflow_id, version, digest, created_at, created_by`
)

const (
	sqlWorkflowByName = `select ` + workflowColumns + ` from workflow_names n join workflows w on w.account = n.account and w.id = n.workflow_id
		where n.account = $1 and n.name = $2`
	sqlWorkflowHome   = `select account from workflows where id = $1 and deleted_at = 0`
	sqlWorkflows      = `select ` + workflowColumns + ` from workflows w`
	sqlWorkflowInsert = `insert into workflows (account, id, slug, title, aliases, enabled, version, digest, created_at, updated_at)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`
	sqlWorkflowUpdate = `update workflows set slug = $1, title = $2, aliases = $3, enabled = $4, version = $5, digest = $6, updated_at = $7
		where account = $8 and id = $9`
	sqlWorkflowEnable = `update workflows set enabled = $1, updated_at = $2 where account = $3 and id = $4`

	sqlNamesDelete = `delete from workflow_names where account = $1 and workflow_id = $2`
	sqlNameInsert  = `insert into workflow_names (account, name, workflow_id) values ($1, $2, $3)`

	sqlVersionInsert = `insert into versions (account, workflow_id, version, digest, created_at, created_by, definition, source)
		values ($1, $2, $3, $4, $5, $6, $7, $8)`
	sqlVersion  = `select ` + versionColumns + `, definition, source from versions where account = $1 and workflow_id = $2 and version = $3`
	sqlVersions = `select ` + versionColumns + ` from versions`

	sqlModuleInsert = `insert into modules (account, digest, size, created_at, body) values ($1, $2, $3, $4, $5)
		on conflict (account, digest) do nothing`
	sqlModule      = `select account, digest, size, created_at from modules where account = $1 and digest = $2`
	sqlModuleBytes = `select body from modules where account = $1 and digest = $2`
)

// PublishWorkflow adds a version to a workflow, creating the workflow if need be, together with the modules it names. When
// the workflow's newest version has the same digest there is nothing to publish: created is false and nothing is written, the
// enabled state included. Otherwise the workflow takes slug, title, aliases and enabled from the publication, so what the
// enable and disable commands said lasts until the next publish that changes something. The event's object becomes the id of the
// workflow, which only the store knows. A dry run ends where writing would begin, the event included, with what would be returned.
//
// It is CodeConflict when the slug or an alias is a name of another workflow, and CodeInvalidModule when a module's bytes do not
// have its digest or a node names a module that neither came along nor is held by the account.
func (s *Store) PublishWorkflow(ctx context.Context, p core.Publication, ev core.AuditEvent) (w core.Workflow, created bool, err error) {
	size := int64(len(p.Version.Source))
	for digest, body := range p.Modules {
		if digestOf(body) != digest {
			return core.Workflow{}, false, core.Errorf(core.CodeInvalidModule, "the bytes sent as module %s are not those of that digest", digest)
		}
		size += int64(len(body))
	}
	definition, err := encode(p.Version.Definition)
	if err != nil {
		return core.Workflow{}, false, fmt.Errorf("publish workflow: %w", err)
	}
	size += int64(len(definition))
	err = s.write(ctx, &change{name: "publish workflow", lane: control, size: size}, func(t *tx) (err error) {
		w, created, err = publish(t, &p, definition, ev)
		return err
	})
	if err != nil {
		return core.Workflow{}, false, err
	}
	return w, created, nil
}

func publish(t *tx, p *core.Publication, definition string, ev core.AuditEvent) (core.Workflow, bool, error) {
	w, exists, err := published(t, p)
	if err != nil {
		return core.Workflow{}, false, err
	}
	if exists && w.Digest == p.Version.Digest {
		return w, false, nil
	}
	at := fromMicros(micros(p.Version.CreatedAt))
	if !exists {
		w = core.Workflow{ID: p.Workflow.ID, Account: p.Account, CreatedAt: at}
	}
	w.Slug, w.Title, w.Aliases, w.Enabled = p.Workflow.Slug, p.Workflow.Title, p.Workflow.Aliases, p.Workflow.Enabled
	w.Version, w.Digest, w.UpdatedAt = w.Version+1, p.Version.Digest, at
	aliases, err := encode(w.Aliases)
	if err != nil {
		return core.Workflow{}, false, err
	}
	names := workflowNames(&w)
	if err := namesFree(t, &w, names); err != nil {
		return core.Workflow{}, false, err
	}
	if err := modulesKnown(t, p); err != nil {
		return core.Workflow{}, false, err
	}
	if p.DryRun {
		return w, true, nil
	}

	if exists {
		err = t.put(sqlWorkflowUpdate, w.Slug, w.Title, aliases, w.Enabled, w.Version, w.Digest, micros(at), w.Account, w.ID)
	} else {
		err = t.put(sqlWorkflowInsert, w.Account, w.ID, w.Slug, w.Title, aliases, w.Enabled, w.Version, w.Digest, micros(at), micros(at))
	}
	if err != nil {
		return core.Workflow{}, false, err
	}
	if err := t.put(sqlNamesDelete, w.Account, w.ID); err != nil {
		return core.Workflow{}, false, err
	}
	for _, name := range names {
		if err := t.put(sqlNameInsert, w.Account, name, w.ID); err != nil {
			return core.Workflow{}, false, err
		}
	}
	if err := t.put(sqlVersionInsert, w.Account, w.ID, w.Version, w.Digest, micros(at), p.Version.CreatedBy, definition, p.Version.Source); err != nil {
		return core.Workflow{}, false, err
	}
	for digest, body := range p.Modules {
		if err := t.put(sqlModuleInsert, w.Account, digest, len(body), micros(at), body); err != nil {
			return core.Workflow{}, false, err
		}
	}
	if err := replaceSchedules(t, &w, p.Version.Definition.Trigger.Schedule); err != nil {
		return core.Workflow{}, false, err
	}
	ev.Object = w.ID
	return w, true, t.audit(ev)
}

// published finds the workflow that a publication is a version of: the one with its id, or else the one whose slug it has.
// An alias of another workflow is not enough; that is a conflict, found later.
func published(t *tx, p *core.Publication) (core.Workflow, bool, error) {
	w, err := scanWorkflow(t.row(sqlWorkflowByName, p.Account, p.Workflow.ID))
	if errors.Is(err, sql.ErrNoRows) || err == nil && w.ID != p.Workflow.ID {
		w, err = scanWorkflow(t.row(sqlWorkflowByName, p.Account, p.Workflow.Slug))
		if errors.Is(err, sql.ErrNoRows) || err == nil && w.Slug != p.Workflow.Slug {
			return core.Workflow{}, false, nil
		}
	}
	return w, err == nil, err
}

// workflowNames returns every name the workflow answers to, each once.
func workflowNames(w *core.Workflow) []string {
	names := append([]string{w.ID, w.Slug}, w.Aliases...)
	slices.Sort(names)
	return slices.Compact(names)
}

// namesFree refuses names that belong to another workflow of the account.
func namesFree(t *tx, w *core.Workflow, names []string) error {
	for _, name := range names {
		other, err := scanWorkflow(t.row(sqlWorkflowByName, w.Account, name))
		switch {
		case errors.Is(err, sql.ErrNoRows):
			continue
		case err != nil:
			return err
		case other.ID != w.ID:
			return core.Errorf(core.CodeConflict, "the name %q belongs to workflow %q (%s); choose another, or remove it there first", name, other.Slug, other.ID)
		}
	}
	return nil
}

// modulesKnown refuses a definition with a module that is neither in the publication nor in the account.
func modulesKnown(t *tx, p *core.Publication) error {
	for _, n := range p.Version.Definition.Nodes {
		if _, ok := p.Modules[n.Module]; ok {
			continue
		}
		if _, err := scanModule(t.row(sqlModule, p.Account, n.Module)); errors.Is(err, sql.ErrNoRows) {
			return core.Errorf(core.CodeInvalidModule, "node %q uses module %s, which was neither sent nor published before; send its bytes along", n.ID, n.Module)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// SetWorkflowEnabled opens or closes a workflow for triggers and returns it. It lasts until the next publish that changes the
// workflow: the file decides then. When it is in that state already, nothing is written. CodeNotFound when the account has no workflow of that id, slug or alias.
func (s *Store) SetWorkflowEnabled(ctx context.Context, account, ref string, enabled bool, ev core.AuditEvent) (core.Workflow, error) {
	var w core.Workflow
	err := s.write(ctx, &change{name: "enable or disable workflow", lane: control, essential: !enabled}, func(t *tx) (err error) {
		if w, err = scanWorkflow(t.row(sqlWorkflowByName, account, ref)); err != nil {
			return notFound(err, "workflow")
		}
		if w.Enabled == enabled {
			return nil
		}
		w.Enabled, w.UpdatedAt = enabled, fromMicros(micros(ev.Time))
		if err := t.put(sqlWorkflowEnable, enabled, micros(ev.Time), account, w.ID); err != nil {
			return err
		}
		// What was due while the workflow was closed is not made up for.
		if _, err := t.exec(sqlSchedulesSince, micros(ev.Time), account, w.ID); err != nil {
			return err
		}
		return t.audit(ev)
	})
	if err != nil {
		return core.Workflow{}, err
	}
	return w, nil
}

// Workflow returns the workflow with the given id, slug or alias, CodeNotFound when the account has none.
func (s *Store) Workflow(ctx context.Context, account, ref string) (core.Workflow, error) {
	alone := s.cfg.URL == "" // others write to a database that is shared
	name, changes := workflowName{account, ref}, s.writer.controlled.Load()
	if alone {
		if w, ok := s.named.get(name, changes); ok {
			return w, nil
		}
	}
	w, err := scanWorkflow(s.row(ctx, sqlWorkflowByName, account, ref))
	if err == nil && alone {
		s.named.put(name, changes, w)
	}
	return w, found(err, "workflow")
}

// WorkflowAccount returns the account that the workflow with an id belongs to, for webhook routes: their URL is all that is known before a
// signature has been checked with a secret of that account. CodeNotFound when there is no such workflow.
func (s *Store) WorkflowAccount(ctx context.Context, id string) (account string, err error) {
	err = s.row(ctx, sqlWorkflowHome, id).Scan(&account)
	return account, found(err, "workflow")
}

// Workflows returns a page of the account's workflows, newest first.
func (s *Store) Workflows(ctx context.Context, account string, p core.Page) (core.List[core.Workflow], error) {
	return read(ctx, s, listing[core.Workflow]{
		name: "workflows", account: account,
		columns: sqlWorkflows, where: "w.account = $1 and w.deleted_at = 0", args: []any{account},
		key: "w.id", keyOf: func(w *core.Workflow) string { return w.ID },
		scan: scanWorkflow,
	}, p)
}

// Version returns one version of a workflow, by the workflow's id. Versions never change, so those in use are kept in memory; what is returned
// is shared and must not be modified. CodeNotFound when there is no such version.
func (s *Store) Version(ctx context.Context, account, workflowID string, version int) (core.Version, error) {
	id := versionID{account, workflowID, version}
	if v, ok := s.cache.get(id); ok {
		return v, nil
	}
	var (
		v          core.Version
		created    int64
		definition []byte
	)
	err := s.row(ctx, sqlVersion, account, workflowID, version).
		Scan(&v.Workflow, &v.Version, &v.Digest, &created, &v.CreatedBy, &definition, &v.Source)
	if err != nil {
		return core.Version{}, found(err, "version of this workflow")
	}
	v.CreatedAt = fromMicros(created)
	if err := json.Unmarshal(definition, &v.Definition); err != nil {
		return core.Version{}, unavailable("read the definition of "+workflowID, err)
	}
	s.cache.put(id, v, int64(len(definition)+len(v.Source)))
	return v, nil
}

// Versions returns a page of a workflow's versions, newest first, without their definitions and sources. A workflow that does not exist has none.
func (s *Store) Versions(ctx context.Context, account, workflowID string, p core.Page) (core.List[core.Version], error) {
	return read(ctx, s, listing[core.Version]{
		name: "versions of " + workflowID, account: account,
		columns: sqlVersions, where: "account = $1 and workflow_id = $2", args: []any{account, workflowID},
		key: "version", numeric: true, keyOf: func(v *core.Version) string { return strconv.Itoa(v.Version) },
		scan: func(row scanner) (v core.Version, err error) {
			var created int64
			err = row.Scan(&v.Workflow, &v.Version, &v.Digest, &created, &v.CreatedBy)
			v.CreatedAt = fromMicros(created)
			return v, err
		},
	}, p)
}

// Module describes a module of the account, CodeNotFound when it has none of that digest.
func (s *Store) Module(ctx context.Context, account, digest string) (core.Module, error) {
	m, err := scanModule(s.row(ctx, sqlModule, account, digest))
	return m, found(err, "module")
}

// ModuleBytes returns the binary of a module, after making sure that it still has its digest. CodeNotFound when the account has
// none of that digest.
func (s *Store) ModuleBytes(ctx context.Context, account, digest string) ([]byte, error) {
	var body []byte
	if err := s.row(ctx, sqlModuleBytes, account, digest).Scan(&body); err != nil {
		return nil, found(err, "module")
	}
	if digestOf(body) != digest {
		return nil, unavailable("read module", fmt.Errorf("%w: module %s of %s is stored with other bytes", errDamaged, digest, account))
	}
	return body, nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func scanWorkflow(row scanner) (core.Workflow, error) {
	var (
		w                core.Workflow
		aliases          []byte
		created, updated int64
	)
	if err := row.Scan(&w.Account, &w.ID, &w.Slug, &w.Title, &aliases, &w.Enabled, &w.Version, &w.Digest, &created, &updated); err != nil {
		return core.Workflow{}, err
	}
	if err := json.Unmarshal(aliases, &w.Aliases); err != nil {
		return core.Workflow{}, fmt.Errorf("aliases of workflow %s: %w", w.ID, err)
	}
	w.CreatedAt, w.UpdatedAt = fromMicros(created), fromMicros(updated)
	return w, nil
}

func scanModule(row scanner) (core.Module, error) {
	var (
		m       core.Module
		created int64
	)
	err := row.Scan(&m.Account, &m.Digest, &m.Size, &created)
	m.CreatedAt = fromMicros(created)
	return m, err
}
