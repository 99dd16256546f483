package console

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// Bounds of the pages.
const (
	keysOnPage    = 2 * core.MaxPage  // so that the useless ones come last of all, in accounts that people can overlook
	mostWorkflows = 1000              // in the picker
	mostKeys      = 20 * core.MaxPage // that are looked through for workflows that have one
	maxText       = 32                // characters of a key's description, which is what a card has room for
)

// lives are the choices of when a key expires, in days; "" is never.
var lives = []choice{{"", "Never"}, {"30", "30 days"}, {"60", "60 days"}, {"90", "90 days"}, {"180", "180 days"}, {"365", "1 year"}}

const usualLife = "90" // admin.DefaultKeyLife

type choice struct{ Value, Text string }

// card is a key as the list shows it.
type card struct {
	ID, Description, Masked string
	Scope                   []string // what it runs, for people
	Global                  bool
	State                   auth.KeyState
	Orphaned                bool
	Created, LastUsed       time.Time
	Expires                 time.Time
	CreatedBy               string
	Runs                    int64
}

// useless keys can start nothing. They come last.
func (k *card) useless() bool { return k.Orphaned || k.State != auth.KeyActive }

type keyList struct {
	Cards    []card
	Next     string // cursor of older keys
	MayWrite bool
	Revoked  bool // a key was just revoked
}

func (c *Console) listKeys(v *visit) error {
	query := v.r.URL.Query()
	shown := keyList{MayWrite: v.may(auth.ScopeKeysWrite), Revoked: query.Has("revoked")}
	people := make(map[string]string)
	keys, next, err := c.Admin.TriggerKeys(v.ctx(), v.actor(), query.Get("after"), keysOnPage)
	if err != nil {
		return err
	}
	names, err := c.Admin.ScopeNames(v.ctx(), v.actor(), keys...)
	if err != nil {
		return err
	}
	shown.Next = next
	var useless []card
	for i := range keys {
		card := c.card(&keys[i], names)
		card.CreatedBy = c.person(v, people, keys[i].CreatedBy)
		if card.useless() {
			useless = append(useless, card)
		} else {
			shown.Cards = append(shown.Cards, card)
		}
	}
	shown.Cards = append(shown.Cards, useless...)
	return c.render(v, http.StatusOK, "keys", "Workflow keys", shown)
}

// person returns the name of a user who is named as audit events do, or the subject itself when it is no user, or none the visitor may see. seen remembers.
func (c *Console) person(v *visit, seen map[string]string, subject string) string {
	id, ok := strings.CutPrefix(subject, "user:")
	if !ok {
		return subject
	}
	if name, ok := seen[id]; ok {
		return name
	}
	seen[id] = subject
	if u, err := c.Admin.User(v.ctx(), v.actor(), id); err == nil {
		seen[id] = u.Name
	}
	return seen[id]
}

func (c *Console) card(k *auth.Key, names map[string]string) card {
	reach := auth.ReachOf(k.Scopes)
	shown := card{
		ID: k.ID, Description: cmp.Or(k.Description, k.Name, k.Mask()), Masked: k.Mask(), Global: reach.All, State: k.State(c.Now()), Orphaned: admin.Orphaned(k, names),
		Created: k.CreatedAt, LastUsed: k.LastUsedAt, Expires: k.ExpiresAt, CreatedBy: k.CreatedBy, Runs: k.RunsUsed,
	}
	for _, id := range reach.Workflows {
		name := names[id]
		if name == "" {
			name = id + " (deleted)"
		}
		shown.Scope = append(shown.Scope, name)
	}
	for _, prefix := range reach.Prefixes {
		shown.Scope = append(shown.Scope, prefix+"*")
	}
	return shown
}

// keyForm is the form of a new key, with what was typed into it.
type keyForm struct {
	Description, Workflow, Expires string
	Global                         bool
	Problem                        string

	Workflows []string // those that can be picked
	Lives     []choice
	MaxText   int
}

func (c *Console) newKey(v *visit) error {
	return c.showForm(v, http.StatusOK, &keyForm{Expires: usualLife})
}

func (c *Console) showForm(v *visit, status int, f *keyForm) error {
	if err := v.actor().Require(auth.ScopeKeysWrite); err != nil {
		return err
	}
	var err error
	if f.Workflows, err = c.withoutKey(v); err != nil {
		return err
	}
	f.Lives, f.MaxText = lives, maxText
	return c.render(v, status, "new", "New key", f)
}

// withoutKey returns the names of the workflows that wait for a key: they can be triggered, not by everybody, and no key that works is made for them.
func (c *Console) withoutKey(v *visit) ([]string, error) {
	has, err := c.withKey(v.ctx(), v.actor())
	if err != nil {
		return nil, err
	}
	var names []string
	for page := (core.Page{Limit: core.MaxPage}); len(names) < mostWorkflows; {
		l, err := c.Admin.Workflows(v.ctx(), v.actor(), page)
		if err != nil {
			return nil, err
		}
		for i := range l.Items {
			w := &l.Items[i]
			if !w.Enabled || has[w.ID] {
				continue
			}
			_, version, err := c.Admin.Workflow(v.ctx(), v.actor(), w.ID, w.Version)
			if core.CodeOf(err) == core.CodeNotFound {
				continue // it was deleted a moment ago
			}
			if err != nil {
				return nil, err
			}
			if !version.Definition.Trigger.Public {
				names = append(names, w.Slug)
			}
		}
		if page.Cursor = l.Next; l.Next == "" {
			break
		}
	}
	slices.Sort(names)
	return names, nil
}

// withKey returns the ids of the workflows that a key in good order is made for, as far as they are among the account's newest few thousand.
func (c *Console) withKey(ctx context.Context, a admin.Actor) (map[string]bool, error) {
	keys, _, err := c.Admin.TriggerKeys(ctx, a, "", mostKeys)
	if err != nil {
		return nil, err
	}
	has := make(map[string]bool)
	for i := range keys {
		if k := &keys[i]; k.State(c.Now()) == auth.KeyActive {
			for _, id := range auth.WorkflowScopes(k.Scopes) {
				has[id] = true
			}
		}
	}
	return has, nil
}

// made is what is shown of a new key, this once.
type made struct {
	Secret, Description string
	Call                string // a command that runs its workflow, "" for a global key
	Expires             time.Time
}

func (c *Console) createKey(v *visit) error {
	if err := v.actor().Require(auth.ScopeKeysWrite); err != nil {
		return err
	}
	values, err := v.form()
	if err != nil {
		return err
	}
	f := &keyForm{
		Description: strings.TrimSpace(values.Get("description")), Workflow: values.Get("workflow"), Global: values.Get("global") != "", Expires: values.Get("expires"),
	}
	asked, problem := f.key(c.Now())
	if problem != "" {
		f.Problem = problem
		return c.showForm(v, http.StatusUnprocessableEntity, f)
	}
	k, secret, err := c.Admin.CreateKey(v.ctx(), v.actor(), asked)
	switch core.CodeOf(err) {
	case "":
	case core.CodeInvalidInput:
		f.Problem = said(err)
		return c.showForm(v, http.StatusUnprocessableEntity, f)
	default:
		return err
	}
	shown := made{Secret: secret.Reveal(), Description: k.Description, Expires: k.ExpiresAt}
	if f.Workflow != "" {
		if w, version, err := c.Admin.Workflow(v.ctx(), v.actor(), f.Workflow, 0); err == nil { // the text must not get lost for want of an example
			shown.Call = c.Call(v.origin.Base(v.r.Host), w, version.Definition.Input)
		}
	}
	return c.render(v, http.StatusCreated, "made", "Key made", shown)
}

// key is the key that the form asks for, or what is wrong with the form.
func (f *keyForm) key(now time.Time) (admin.NewKey, string) {
	asked := admin.NewKey{Name: f.Description, Description: f.Description}
	if n := len([]rune(f.Description)); n < 1 || n > maxText {
		return asked, "The description must have 1 to " + strconv.Itoa(maxText) + " characters, so that people can tell keys apart."
	}
	switch {
	case f.Global && f.Workflow == "":
		asked.Scopes = []string{auth.ScopeRunAll}
	case !f.Global && f.Workflow != "":
		asked.Scopes = []string{auth.ScopeRunWorkflow + f.Workflow}
	default:
		return asked, "Pick the workflow that the key is for, or make the key global, and not both."
	}
	if !slices.ContainsFunc(lives, func(c choice) bool { return c.Value == f.Expires }) {
		return asked, "Pick one of the choices for when the key expires."
	}
	days, err := strconv.Atoi(f.Expires)
	asked.Never = err != nil
	if !asked.Never {
		asked.ExpiresAt = now.Add(time.Duration(days) * 24 * time.Hour)
	}
	return asked, ""
}

// confirmRevoke asks whether a key shall be revoked, which is for good.
func (c *Console) confirmRevoke(v *visit) error {
	if err := v.actor().Require(auth.ScopeKeysWrite); err != nil {
		return err
	}
	k, err := c.Admin.Key(v.ctx(), v.actor(), v.key)
	if err != nil {
		return err
	}
	if k.Type != auth.TriggerKey {
		return core.Errorf(core.CodeNotFound, "there is no such key") // admin keys are not for this page
	}
	names, err := c.Admin.ScopeNames(v.ctx(), v.actor(), *k)
	if err != nil {
		return err
	}
	return c.render(v, http.StatusOK, "revoke", "Revoke a key", c.card(k, names))
}

func (c *Console) revokeKey(v *visit) error {
	if err := v.actor().Require(auth.ScopeKeysWrite); err != nil {
		return err
	}
	values, err := v.form()
	if err != nil {
		return err
	}
	if _, err := c.Admin.RevokeTriggerKey(v.ctx(), v.actor(), v.key, strings.TrimSpace(values.Get("reason"))); err != nil {
		return err
	}
	return v.redirect(pathKeys + "?revoked")
}
