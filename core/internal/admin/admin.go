// Package admin is the control plane: the only way keys, workflows and modules change. Every method takes the Actor who asks,
// checks that the actor's scopes allow it, and hands the store the change together with its audit event, which the store
// commits in one transaction: there is no unaudited change.
//
// Errors are a *core.Error. An object of another account is CodeNotFound, exactly as one that does not exist.
package admin

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// Store is what the control plane needs of the store. Every method addresses its object by account, and every change takes its audit event.
type Store interface {
	CreateKey(ctx context.Context, k auth.Key, e core.AuditEvent) error
	Key(ctx context.Context, account, id string) (*auth.Key, error)
	Keys(ctx context.Context, account string, p core.Page) (core.List[auth.Key], error)
	RevokeKey(ctx context.Context, account, id, why string, e core.AuditEvent) (*auth.Key, error)
	UpdateKey(ctx context.Context, account, id string, essential bool, edit func(*auth.Key) (*auth.KeySecret, time.Time, error), e core.AuditEvent) (*auth.Key, error)
	KeySecrets(ctx context.Context, account, id string) ([]auth.KeySecret, error)
	KeyUsage(ctx context.Context, account, id string, from int64) ([]core.KeyUsage, error)

	PublishWorkflow(ctx context.Context, p core.Publication, e core.AuditEvent) (w core.Workflow, created bool, err error)
	SetWorkflowEnabled(ctx context.Context, account, id string, enabled bool, e core.AuditEvent) (core.Workflow, error)
	RenameWorkflow(ctx context.Context, account, ref, slug string, e core.AuditEvent) (core.Workflow, error)
	DeleteWorkflow(ctx context.Context, account, ref string, e core.AuditEvent) (core.Workflow, error)
	Workflow(ctx context.Context, account, ref string) (core.Workflow, error)
	Workflows(ctx context.Context, account string, p core.Page) (core.List[core.Workflow], error)
	Version(ctx context.Context, account, workflowID string, version int) (core.Version, error)
	Versions(ctx context.Context, account, workflowID string, p core.Page) (core.List[core.Version], error)
	Module(ctx context.Context, account, digest string) (core.Module, error)
	ModuleBytes(ctx context.Context, account, digest string) ([]byte, error)

	PutSecret(ctx context.Context, account, name string, sealed []byte, e core.AuditEvent) (s core.Secret, created bool, err error)
	Secrets(ctx context.Context, account string) ([]core.Secret, error)
	DeleteSecret(ctx context.Context, account, name string, e core.AuditEvent) error

	AccountStore
	UserStore

	Audit(ctx context.Context, events ...core.AuditEvent) error
	AuditEvents(ctx context.Context, account string, f core.AuditFilter, p core.Page) (core.List[core.AuditEvent], error)
}

// Config configures a Service. Store, Pepper, NewID, Check and Compile are required.
type Config struct {
	Store  Store
	Pepper *auth.Pepper
	NewID  core.NewID
	Now    func() time.Time // nil is time.Now
	Random io.Reader        // for key texts; nil is crypto/rand.Reader

	// Check compiles the expressions of a definition, adds the edges they imply to Needs, and returns what is wrong, with
	// pointers into the definition.
	Check func(def *core.Definition) []core.Field
	// Compile checks a module and prepares it for execution. Its error says what is wrong with the module.
	Compile func(ctx context.Context, binary []byte) error
	// Signed checks that an account may use a module, by its signature: binary, or if that is nil the stored module of that digest. Its error, a
	// *core.Error of CodeInvalidModule, says what is wrong. nil lets all modules in.
	Signed func(ctx context.Context, account, digest string, binary []byte) error
	// Ready makes the modules of a version that was published ready to run and tells how they start; nil does not.
	Ready func(ctx context.Context, account string, def *core.Definition) []core.NodeStart
	// Published is told of every new version once it is committed, and must not wait; nil is nobody.
	Published func(account string, def *core.Definition)
	// Vault seals secrets; without one there are none to set.
	Vault *Vault
	// CheckNode compares a node with its module: binary, or if that is nil the stored one. It returns what the node lacks, with pointers that
	// begin at the node. nil leaves that to the runtime, which does not start a module that lacks a grant.
	CheckNode func(ctx context.Context, account, digest string, binary []byte, n *core.Node) ([]core.Field, error)

	// Plugins are the server's auth plugins; nil is none.
	Plugins PluginHost

	// Passwords hashes the passwords of users, and Tokens signs the tokens of their sessions. Without them there are no users.
	Passwords *auth.Passwords
	Tokens    TokenSigner
	// Logins bounds failed logins; the zero value is its defaults.
	Logins LoginLimits
}

// Service is the control plane. It is safe for concurrent use.
type Service struct {
	Config
	logins *loginGate
}

// New returns a Service.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil || cfg.Pepper == nil || cfg.NewID == nil || cfg.Check == nil || cfg.Compile == nil {
		return nil, errors.New("admin: Store, Pepper, NewID, Check and Compile are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	// An answer must not tell more of a time than is kept of it, or an object differs from itself when it is read again.
	clock := cfg.Now
	cfg.Now = func() time.Time { return clock().Truncate(time.Microsecond) }
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	return &Service{Config: cfg, logins: newLoginGate(cfg.Logins, cfg.Now)}, nil
}

// Actor is who asks for something, and from where.
type Actor struct {
	Principal auth.Principal
	Origin    core.Origin
}

// Require returns CodeInsufficientScope for an actor that lacks a scope. Every method of Service asks by itself; others ask before they begin something that costs.
func (a Actor) Require(scope string) error {
	if auth.Allows(a.Principal.Scopes, scope) {
		return nil
	}
	return core.Errorf(core.CodeInsufficientScope, "this credential lacks the scope %s", scope)
}

// event starts the audit event of a change the actor asks for.
func (s *Service) event(a Actor, action, object string) core.AuditEvent {
	e := core.NewEvent(s.NewID(core.PrefixEvent), s.Now(), a.Origin, action, object)
	a.Principal.Sign(&e)
	return e
}

// AuditEvents lists the audit log of the account, newest first.
func (s *Service) AuditEvents(ctx context.Context, a Actor, f core.AuditFilter, p core.Page) (core.List[core.AuditEvent], error) {
	if err := a.Require(auth.ScopeAuditRead); err != nil {
		return core.List[core.AuditEvent]{}, err
	}
	return s.Store.AuditEvents(ctx, a.Principal.Account, f, p)
}
