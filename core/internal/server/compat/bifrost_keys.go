package compat

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// bifrostKey is a key as Bifrost's management API shows it (B7, B12). raw_key is in the answer that made it only.
type bifrostKey struct {
	ID           string     `json:"id"`
	RawKey       string     `json:"raw_key,omitempty"`
	MaskedKey    string     `json:"masked_key"` // the last four characters
	Description  string     `json:"description"`
	WorkflowID   *string    `json:"workflow_id"` // null: global
	WorkflowName *string    `json:"workflow_name"`
	IsGlobal     bool       `json:"is_global"`
	IsOrphaned   bool       `json:"is_orphaned"`
	IsExpired    bool       `json:"is_expired"`
	CreatedBy    string     `json:"created_by"`
	CreatedAt    time.Time  `json:"created_at"`
	LastUsedAt   *time.Time `json:"last_used_at"`
	ExpiresAt    *time.Time `json:"expires_at"`
	Revoked      bool       `json:"revoked"`
}

// Bounds of Bifrost's form (B5) and of its list, which has no pages.
const (
	bifrostDescription = 32                // characters
	bifrostDays        = 90                // until a key expires when nothing is said
	bifrostList        = 20 * core.MaxPage // the account's newest keys, revoked ones included
)

func (b bifrost) keyRoutes() []Route {
	return []Route{
		{Method: http.MethodGet, Path: bifrostKeys, Handle: answering(b, b.listKeys)},
		{Method: http.MethodPost, Path: bifrostKeys, Handle: answering(b, b.createKey)},
		{Method: http.MethodDelete, Path: bifrostKeys + "/:key", Handle: answering(b, b.revokeKey)},
	}
}

// listKeys lists the trigger keys that are not revoked. Those of a workflow that is gone come last (B8).
func (b bifrost) listKeys(c *gin.Context) error {
	control, actor, err := b.Control(c)
	if err != nil {
		return err
	}
	keys, _, err := control.TriggerKeys(c.Request.Context(), actor, "", bifrostList)
	if err != nil {
		return err
	}
	names, err := control.ScopeNames(c.Request.Context(), actor, keys...)
	if err != nil {
		return err
	}
	all, orphans := []bifrostKey{}, []bifrostKey{}
	for i := range keys {
		if shown := bifrostShow(&keys[i], names, control.Now()); shown.IsOrphaned {
			orphans = append(orphans, shown)
		} else {
			all = append(all, shown)
		}
	}
	b.Send(c, http.StatusOK, typeJSON, append(all, orphans...), nil)
	return nil
}

func bifrostShow(k *auth.Key, names map[string]string, now time.Time) bifrostKey {
	shown := bifrostKey{
		ID: k.ID, MaskedKey: "..." + k.Last4, Description: k.Description, IsGlobal: auth.ReachOf(k.Scopes).All, IsOrphaned: admin.Orphaned(k, names),
		IsExpired: k.State(now) == auth.KeyExpired, CreatedBy: k.CreatedBy, CreatedAt: k.CreatedAt, Revoked: !k.RevokedAt.IsZero(),
	}
	if shown.Description == "" {
		shown.Description = k.Name
	}
	if !k.LastUsedAt.IsZero() {
		shown.LastUsedAt = &k.LastUsedAt
	}
	if !k.ExpiresAt.IsZero() {
		shown.ExpiresAt = &k.ExpiresAt
	}
	if id := auth.ReachOf(k.Scopes).Single(); id != "" {
		shown.WorkflowID = &id
		if name := names[id]; name != "" {
			shown.WorkflowName = &name
		}
	}
	return shown
}

// createKey makes a key by Bifrost's form: a description, a workflow unless it is global, and when it expires (B5).
func (b bifrost) createKey(c *gin.Context) error {
	control, actor, err := b.Control(c)
	if err == nil {
		err = actor.Require(auth.ScopeKeysWrite) // before the body is read
	}
	if err != nil {
		return err
	}
	m, err := readMembers(b, c, core.JSONLimits{})
	if err != nil {
		return err
	}
	asked, err := bifrostForm(m, control.Now())
	if err != nil {
		return err
	}
	k, secret, err := control.CreateKey(c.Request.Context(), actor, asked)
	if err != nil {
		return err
	}
	names, err := control.ScopeNames(c.Request.Context(), actor, *k)
	if err != nil {
		names = nil // the key exists, and its text must not get lost for want of a name
	}
	shown := bifrostShow(k, names, control.Now())
	shown.RawKey, shown.IsOrphaned = secret.Reveal(), false
	b.Send(c, http.StatusCreated, typeJSON, shown, nil)
	return nil
}

func bifrostForm(m members, now time.Time) (admin.NewKey, error) {
	description, _ := m.text("description")
	if n := len([]rune(strings.TrimSpace(description))); n < 1 || n > bifrostDescription {
		return admin.NewKey{}, wrong(core.CodeInvalidInput, "description", "must have 1 to 32 characters")
	}
	asked := admin.NewKey{Name: strings.TrimSpace(description), Description: strings.TrimSpace(description)}
	workflow, named := m.text("workflow_id")
	if !named {
		workflow, named = m.text("workflow_name")
	}
	global := string(m["is_global"]) == "true"
	switch {
	case named && workflow != "" && !global:
		asked.Scopes = []string{auth.ScopeRunWorkflow + workflow}
	case global && workflow == "":
		asked.Scopes = []string{auth.ScopeRunAll}
	default:
		return admin.NewKey{}, wrong(core.CodeInvalidInput, "workflow_id", "must name the workflow, or is_global must be true, and not both")
	}
	for name := range m {
		if name != "expires_in_days" && strings.HasPrefix(strings.ToLower(name), "expir") {
			return admin.NewKey{}, wrong(core.CodeInvalidInput, core.EscapePointer(core.Clip(name)), "is not a known field, and the key would live longer than you ask; did you mean expires_in_days?")
		}
	}
	days := bifrostDays
	if raw, given := m["expires_in_days"]; given {
		if string(raw) == "null" {
			asked.Never = true
			return asked, nil
		}
		if json.Unmarshal(raw, &days) != nil || days < 1 || days > 3650 {
			return admin.NewKey{}, wrong(core.CodeInvalidInput, "expires_in_days", "must be a number of days from 1 to 3650, or null for never")
		}
	}
	asked.ExpiresAt = now.Add(time.Duration(days) * 24 * time.Hour)
	return asked, nil
}

func (b bifrost) revokeKey(c *gin.Context) error {
	control, actor, err := b.Control(c)
	if err == nil {
		_, err = control.RevokeTriggerKey(c.Request.Context(), actor, c.Param("key"), "")
	}
	if err != nil {
		return err
	}
	c.Status(http.StatusNoContent)
	return nil
}

// failKey answers in the words of the management API, which takes no key in a header of its own.
func (b bifrost) failKey(c *gin.Context, err error) {
	err = b.Refused(c, err)
	status, e := b.Status(err)
	text := detail(e)
	switch e.Code {
	case core.CodeNotFound:
		if param(c, "key") != "" {
			text = "Workflow key not found"
		}
	case core.CodeInvalidKey, core.CodeKeyExpired, core.CodeKeyRevoked, core.CodeKeyDisabled:
		text = "Invalid or expired API key"
	}
	b.Send(c, status, typeJSON, bifrostError{text}, err)
}
