package admin

import (
	"context"
	"crypto/rand"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
)

// promoting is a store in which somebody else promotes a user in the last moment before a change of theirs.
type promoting struct {
	*store.Store
	promote func()
}

func (s *promoting) SetUserPassword(ctx context.Context, account, ref string, p auth.PasswordHash, may auth.UserCheck, e core.AuditEvent) (auth.User, error) {
	s.promote()
	return s.Store.SetUserPassword(ctx, account, ref, p, may, e)
}

func (s *promoting) SetUserRole(ctx context.Context, account, ref string, role auth.Role, may auth.UserCheck, e core.AuditEvent) (auth.User, error) {
	s.promote()
	return s.Store.SetUserRole(ctx, account, ref, role, may, e)
}

func (s *promoting) SetUserEnabled(ctx context.Context, account, ref string, on bool, why string, may auth.UserCheck, e core.AuditEvent) (auth.User, error) {
	s.promote()
	return s.Store.SetUserEnabled(ctx, account, ref, on, why, may, e)
}

func (s *promoting) DeleteUser(ctx context.Context, account, ref string, may auth.UserCheck, e core.AuditEvent) error {
	s.promote()
	return s.Store.DeleteUser(ctx, account, ref, may, e)
}

// Nobody takes over a user who may do more than they may, also when that is so only since they have asked.
func TestPromotedUserIsOutOfReach(t *testing.T) {
	t.Parallel()
	b := setup(t)
	passwords, err := auth.NewPasswords(auth.PasswordConfig{Pepper: b.Pepper, Random: rand.Reader, Memory: 64, Passes: 1})
	b.must(err)
	b.Passwords = passwords
	b.boss.Principal.Scopes = auth.SuperuserScopes()
	u, err := b.CreateUser(t.Context(), b.boss, NewUser{Name: "ada", Role: auth.Operator, Password: auth.NewSecret("lamp-orchid-9-violet")})
	b.must(err)
	owner := as(core.DefaultAccount, "user:usr_owner", auth.Owner.Scopes()...)
	secret := auth.NewSecret("another-orchid-9-lamp")
	for what, change := range map[string]func() error{
		"password": func() error { _, err := b.SetPassword(t.Context(), owner, u.ID, auth.Secret{}, secret); return err },
		"role":     func() error { _, err := b.SetUserRole(t.Context(), owner, u.ID, auth.Viewer); return err },
		"disable":  func() error { _, err := b.SetUserEnabled(t.Context(), owner, u.ID, false, ""); return err },
		"delete":   func() error { return b.DeleteUser(t.Context(), owner, u.ID) },
	} {
		become := func(role auth.Role) {
			_, err := b.store.SetUserRole(t.Context(), core.DefaultAccount, u.ID, role, nil, b.event(b.boss, core.ActionUserRole, u.ID))
			b.must(err)
		}
		become(auth.Operator)
		b.Store = &promoting{b.store, func() { become(auth.Superuser) }}
		if err := change(); core.CodeOf(err) != core.CodeInsufficientScope {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// meeting is a store in which two changes wait for each other, so that both were let in before either is made.
type meeting struct {
	*store.Store
	both *sync.WaitGroup
}

func (s *meeting) wait() {
	s.both.Done()
	s.both.Wait()
}

func (s *meeting) SetUserRole(ctx context.Context, account, ref string, role auth.Role, may auth.UserCheck, e core.AuditEvent) (auth.User, error) {
	s.wait()
	return s.Store.SetUserRole(ctx, account, ref, role, may, e)
}

func (s *meeting) SetUserEnabled(ctx context.Context, account, ref string, on bool, why string, may auth.UserCheck, e core.AuditEvent) (auth.User, error) {
	s.wait()
	return s.Store.SetUserEnabled(ctx, account, ref, on, why, may, e)
}

func (s *meeting) DeleteUser(ctx context.Context, account, ref string, may auth.UserCheck, e core.AuditEvent) error {
	s.wait()
	return s.Store.DeleteUser(ctx, account, ref, may, e)
}

// Two superusers, or two owners, who take each other's power at the same moment: one is too late, and the other is left. storetest shows the same of both databases.
func TestTwoWhoRemoveEachOtherLeaveOne(t *testing.T) {
	t.Parallel()
	changes := map[string]func(b *bundle, a Actor, ref string) error{
		"role": func(b *bundle, a Actor, ref string) error {
			_, err := b.SetUserRole(context.Background(), a, ref, auth.Viewer)
			return err
		},
		"disable": func(b *bundle, a Actor, ref string) error {
			_, err := b.SetUserEnabled(context.Background(), a, ref, false, "")
			return err
		},
		"delete": func(b *bundle, a Actor, ref string) error { return b.DeleteUser(context.Background(), a, ref) },
	}
	for one, first := range changes {
		for two, second := range changes {
			for _, role := range []auth.Role{auth.Superuser, auth.Owner} {
				t.Run(string(role)+" "+one+" and "+two, func(t *testing.T) {
					t.Parallel()
					b := setup(t)
					people := [2]Actor{b.person("ada", role), b.person("bob", role)}
					var both sync.WaitGroup
					both.Add(2)
					b.Store = &meeting{b.store, &both}
					var errs [2]error
					var done sync.WaitGroup
					for i, change := range [2]func(*bundle, Actor, string) error{first, second} {
						done.Go(func() { errs[i] = change(b, people[i], people[1-i].Principal.User.ID) })
					}
					done.Wait()
					if (errs[0] == nil) == (errs[1] == nil) {
						t.Fatalf("both had the same answer: %v, %v", errs[0], errs[1])
					}
					for i, err := range errs {
						if code := core.CodeOf(err); err != nil && code != core.CodeSessionEnded {
							t.Errorf("who was too late was told %v", err)
						}
						u, getErr := b.store.User(t.Context(), core.DefaultAccount, people[i].Principal.User.ID)
						if err == nil && (getErr != nil || u.Role != role || u.Disabled()) {
							t.Errorf("nobody is left: %+v, %v", u, getErr)
						}
					}
				})
			}
		}
	}
}

// person is a user of the default account who is logged in.
func (b *bundle) person(name string, role auth.Role) Actor {
	b.t.Helper()
	u := auth.User{ID: b.NewID(core.PrefixUser), Account: core.DefaultAccount, Name: name, Role: role, CreatedAt: noon, PasswordAt: noon}
	hash := auth.PasswordHash{Text: "x", Pepper: 1}
	b.must(b.store.CreateUser(b.t.Context(), u, hash, b.event(b.boss, core.ActionUserCreate, u.ID)))
	s := auth.Session{ID: b.NewID(core.PrefixSession), Account: u.Account, UserID: u.ID, CreatedAt: noon, ExpiresAt: noon.Add(time.Hour)}
	r := auth.RefreshToken{PublicID: s.ID, Account: u.Account, SessionID: s.ID, Hash: []byte{1}, Pepper: 1, CreatedAt: noon, ExpiresAt: s.ExpiresAt}
	b.must(b.store.CreateSession(b.t.Context(), s, r, hash, nil, b.event(b.boss, core.ActionSessionCreate, s.ID)))
	live, err := b.store.LiveSession(b.t.Context(), s.ID)
	b.must(err)
	return Actor{Principal: live.Principal(s.ExpiresAt)}
}

// What is deleted is the workflow whose runs were cancelled before, whoever has its name by then.
func TestDeleteWorkflowKeepsToTheOneItBeganWith(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, err := b.publish("greet", "")
	b.must(err)
	var second Published
	deleted, err := b.DeleteWorkflow(t.Context(), b.boss, "greet", "", func(w core.Workflow) error {
		_, err := b.RenameWorkflow(t.Context(), b.boss, w.ID, "old-greet")
		b.must(err)
		second, err = b.publish("greet", "title: another\n")
		return err
	})
	b.must(err)
	if deleted.ID != first.Workflow.ID {
		t.Errorf("%s was deleted, want %s", deleted.ID, first.Workflow.ID)
	}
	if _, err := b.store.Workflow(t.Context(), core.DefaultAccount, second.Workflow.ID); err != nil {
		t.Errorf("the other one: %v", err)
	}
}

// O1: what the gate remembers of a login is as short as it says: a short part of a long text keeps all of the text in memory.
func TestLoginGateKeepsNoLongTextsO1(t *testing.T) {
	t.Parallel()
	g := newLoginGate(LoginLimits{}, func() time.Time { return noon })
	account := strings.Repeat("a", 1<<20)
	_, err := g.begin(netip.MustParseAddr("203.0.113.7"), account, strings.Repeat("u", 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	for k := range g.counts {
		if len(k.account) > 256 || len(k.user) > 300 || k.account != "" && unsafe.StringData(k.account) == unsafe.StringData(account) {
			t.Errorf("the gate holds on to the whole text of an account")
		}
	}
}

// listening is a store that tells whether the last change of a key was essential.
type listening struct {
	*store.Store
	essential bool
}

func (s *listening) UpdateKey(ctx context.Context, account, id string, essential bool, edit func(*auth.Key) (*auth.KeySecret, time.Time, error), e core.AuditEvent) (*auth.Key, error) {
	s.essential = essential
	return s.Store.UpdateKey(ctx, account, id, essential, edit, e)
}

// D4: on a full disk a key can still be switched off, whichever way that is asked for.
func TestSwitchingOffIsEssentialD4(t *testing.T) {
	t.Parallel()
	b := setup(t)
	k, _, err := b.CreateKey(t.Context(), b.boss, NewKey{Name: "ci", Scopes: []string{auth.ScopeRunAll}})
	b.must(err)
	s := &listening{Store: b.store}
	b.Store = s
	on, off, name := false, true, "other"
	for what, c := range map[string]struct {
		do   func() error
		want bool
	}{
		"disable":            {func() error { _, err := b.SetKeyEnabled(t.Context(), b.boss, k.ID, false, ""); return err }, true},
		"enable":             {func() error { _, err := b.SetKeyEnabled(t.Context(), b.boss, k.ID, true, ""); return err }, false},
		"change to disabled": {func() error { _, err := b.UpdateKey(t.Context(), b.boss, k.ID, KeyChange{Disabled: &off}); return err }, true},
		"change to enabled":  {func() error { _, err := b.UpdateKey(t.Context(), b.boss, k.ID, KeyChange{Disabled: &on}); return err }, false},
		"change more": {func() error {
			_, err := b.UpdateKey(t.Context(), b.boss, k.ID, KeyChange{Disabled: &off, Name: &name})
			return err
		}, false},
	} {
		b.must(c.do())
		if s.essential != c.want {
			t.Errorf("%s: essential is %v", what, s.essential)
		}
	}
}
