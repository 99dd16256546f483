package core

import (
	"slices"
	"strings"
	"time"
)

// AuditEvent is one row of the audit log. It holds names and ids, never a body, a value or a credential.
type AuditEvent struct {
	Seq       int64 // given by the store, without gaps, in commit order
	ID        string
	Account   string
	Time      time.Time
	Actor     string // namespaced: "key:key_01...", "user:usr_01...", "uid:1000", "system"
	KeyID     string // the credential used, when it was a key
	SourceIP  string
	Action    string // an Action constant
	Object    string // id of what was changed or asked for
	Outcome   string // OutcomeOK or OutcomeRefused
	Reason    string // error code of a refusal, or the reason an operator gave
	RequestID string
	TraceID   string
	Count     int64 // how many refusals this row stands for; 1 everywhere else
}

// NewEvent returns the audit event of something that was done as a request from o asked, by nobody who is known: actor "unknown" of the default account. Whoever knows
// who it was, or that it was refused, writes that into it.
func NewEvent(id string, at time.Time, o Origin, action, object string) AuditEvent {
	return AuditEvent{
		ID: id, Account: DefaultAccount, Time: at.UTC(), Actor: "unknown", SourceIP: o.SourceIP(),
		Action: action, Object: object, Outcome: OutcomeOK, RequestID: o.RequestID, TraceID: o.TraceID, Count: 1,
	}
}

// Outcomes of audited actions.
const (
	OutcomeOK      = "ok"
	OutcomeRefused = "refused"
)

// Audited actions: the object first, then the verb.
const (
	ActionKeyCreate       = "key.create"
	ActionKeyRevoke       = "key.revoke"
	ActionKeyUpdate       = "key.update"
	ActionKeyDisable      = "key.disable"
	ActionKeyEnable       = "key.enable"
	ActionKeyRotate       = "key.rotate"
	ActionKeyImport       = "key.import"
	ActionWorkflowPublish = "workflow.publish"
	ActionWorkflowEnable  = "workflow.enable"
	ActionWorkflowDisable = "workflow.disable"
	ActionWorkflowRename  = "workflow.rename"
	ActionWorkflowDelete  = "workflow.delete"
	ActionSecretSet       = "secret.set"
	ActionSecretDelete    = "secret.delete"
	ActionRunAccept       = "run.accept"
	ActionRunInterrupt    = "run.interrupt"
	ActionRunCancel       = "run.cancel"
	ActionRedeliver       = "callback.redeliver"
	ActionAuthRefuse      = "auth.refuse"
	ActionServerStart     = "server.start"
	ActionModuleMismatch  = "module.mismatch" // an instance was not put back to its initial state; see wasm.verify_every
	ActionPluginPrefix    = "plugin."         // followed by what happened to the auth plugin: load, reload, crash, refuse, ...
	ActionPluginReload    = "plugin.reload"
	ActionServerStop      = "server.stop"
	ActionStoreRestore    = "store.restore"
	ActionStoreMigrate    = "store.migrate" // everything came here from another database

	ActionAccountCreate  = "account.create"
	ActionAccountUpdate  = "account.update"
	ActionAccountDisable = "account.disable"
	ActionAccountEnable  = "account.enable"
	ActionAccountDelete  = "account.delete"
	ActionUserCreate     = "user.create"
	ActionUserRole       = "user.role"
	ActionUserDisable    = "user.disable"
	ActionUserEnable     = "user.enable"
	ActionUserPassword   = "user.password"
	ActionUserDelete     = "user.delete"
	ActionSetupToken     = "setup.token"    // a setup token was made and printed
	ActionSessionCreate  = "session.create" // somebody logged in, or failed to
	ActionSessionRefresh = "session.refresh"
	ActionSessionEnd     = "session.end"
	ActionSessionReuse   = "session.reuse"      // a refresh token came a second time, so the session was ended
	ActionSessionKey     = "session.rotate_key" // the key that signs session tokens was replaced
	ActionSessionShare   = "session.share_key"  // a server has changed which keys those on its database verify tokens with
)

// auditActions are all of them; those of plugins have further ones.
var auditActions = []string{
	ActionKeyCreate, ActionKeyRevoke, ActionKeyUpdate, ActionKeyDisable, ActionKeyEnable, ActionKeyRotate, ActionKeyImport, ActionWorkflowPublish,
	ActionWorkflowEnable, ActionWorkflowDisable, ActionWorkflowRename, ActionWorkflowDelete, ActionSecretSet, ActionSecretDelete, ActionRunAccept,
	ActionRunInterrupt, ActionRunCancel, ActionRedeliver, ActionAuthRefuse, ActionServerStart, ActionModuleMismatch, ActionPluginReload, ActionServerStop,
	ActionStoreRestore, ActionStoreMigrate, ActionAccountCreate, ActionAccountUpdate, ActionAccountDisable, ActionAccountEnable, ActionAccountDelete,
	ActionUserCreate, ActionUserRole, ActionUserDisable, ActionUserEnable, ActionUserPassword, ActionUserDelete, ActionSetupToken, ActionSessionCreate,
	ActionSessionRefresh, ActionSessionEnd, ActionSessionReuse, ActionSessionKey, ActionSessionShare,
}

// CheckAction refuses what no audit event can have as its action: a list that is empty for a typing error would be taken for an answer.
func CheckAction(name string) error {
	if slices.Contains(auditActions, name) || strings.HasPrefix(name, ActionPluginPrefix) {
		return nil
	}
	detail := "is no action; they are " + strings.Join(auditActions, ", ") + " and " + ActionPluginPrefix + "*"
	if near := Nearest(name, auditActions); near != "" {
		detail = "is no action; did you mean " + near + "?"
	}
	return Errorf(CodeInvalidRequest, "%s", detail)
}
