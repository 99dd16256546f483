package storetest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// createAccount stores an account.
func (f *fixture) createAccount(name string) core.Account {
	f.t.Helper()
	a := core.Account{ID: f.newID(core.PrefixAccount), Name: name, Title: "Title of " + name, CreatedAt: epoch, CreatedBy: "uid:1000"}
	f.must(f.CreateAccount(f.t.Context(), a, f.event(core.ActionAccountCreate, a.ID)))
	return a
}

var password = auth.PasswordHash{Text: "$argon2id$v=19$...", Pepper: 2}

// createUser stores a user of an account.
func (f *fixture) createUser(acct, name string, role auth.Role) auth.User {
	f.t.Helper()
	u := auth.User{ID: f.newID(core.PrefixUser), Account: acct, Name: name, Role: role, CreatedAt: epoch, CreatedBy: "uid:1000", PasswordAt: epoch}
	f.must(f.CreateUser(f.t.Context(), u, password, f.event(core.ActionUserCreate, u.ID)))
	return u
}

// login begins a session of a user.
func (f *fixture) login(u auth.User, n int) (auth.Session, auth.RefreshToken) {
	f.t.Helper()
	s := auth.Session{ID: f.newID(core.PrefixSession), Account: u.Account, UserID: u.ID, CreatedAt: epoch, SourceIP: "203.0.113.7", ExpiresAt: epoch.Add(time.Hour)}
	r := f.refresh(s, n)
	f.must(f.CreateSession(f.t.Context(), s, r, password, nil, f.event(core.ActionSessionCreate, s.ID)))
	return s, r
}

func (f *fixture) refresh(s auth.Session, n int) auth.RefreshToken {
	return auth.RefreshToken{
		PublicID: f.newID("r")[1:13] + string(rune('a'+n)), Account: s.Account, SessionID: s.ID, Hash: []byte{0, 1, byte(n), 0xff}, Pepper: 2, CreatedAt: epoch, ExpiresAt: epoch.Add(time.Minute),
	}
}

func exercisePeople(t *testing.T, open func(t *testing.T) *fixture) {
	t.Run("accounts", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		ctx := t.Context()
		def, err := f.Account(ctx, "default")
		f.must(err)
		if def.ID != core.DefaultAccount || def.Disabled() {
			t.Errorf("the default account is %+v", def)
		}
		a := f.createAccount("acme")
		for _, ref := range []string{a.ID, "acme"} {
			got, err := f.Account(ctx, ref)
			f.must(err)
			wantEqual(t, "account", got, a)
		}
		wantFilled(t, a, "DisabledAt", "DisabledBy", "DisabledWhy", "RateLimits", "MaxConcurrent", "RateState")
		again := a
		again.ID = f.newID(core.PrefixAccount)
		wantCode(t, f.CreateAccount(ctx, again, f.event(core.ActionAccountCreate, again.ID)), core.CodeConflict)
		f.must(f.AccountOpen(ctx, a.ID))
		wantCode(t, f.AccountOpen(ctx, "acct_none"), core.CodeNotFound)

		_, err = f.SetAccountEnabled(ctx, "default", false, "", f.event(core.ActionAccountDisable, "default"))
		wantCode(t, err, core.CodeConflict)
		wantCode(t, f.DeleteAccount(ctx, "default", f.event(core.ActionAccountDelete, "default")), core.CodeConflict)
		wantCode(t, f.DeleteAccount(ctx, "acme", f.event(core.ActionAccountDelete, "acme")), core.CodeConflict)

		off, err := f.SetAccountEnabled(ctx, "acme", false, "not paid", f.event(core.ActionAccountDisable, "acme"))
		f.must(err)
		want := a
		want.DisabledAt, want.DisabledBy, want.DisabledWhy = epoch, "uid:1000", "not paid"
		wantEqual(t, "disabled account", off, want)
		wantCode(t, f.AccountOpen(ctx, a.ID), core.CodeAccountDisabled)
		off, err = f.SetAccountEnabled(ctx, a.ID, false, "again", f.event(core.ActionAccountDisable, a.ID))
		f.must(err)
		wantEqual(t, "account disabled twice", off, want)
		on, err := f.SetAccountEnabled(ctx, "acme", true, "", f.event(core.ActionAccountEnable, "acme"))
		f.must(err)
		wantEqual(t, "enabled account", on, a)
		f.must(f.AccountOpen(ctx, a.ID))

		_, err = f.SetAccountEnabled(ctx, "acme", false, "", f.event(core.ActionAccountDisable, "acme"))
		f.must(err)
		f.must(f.DeleteAccount(ctx, "acme", f.event(core.ActionAccountDelete, "acme")))
		for _, ref := range []string{a.ID, "acme"} {
			_, err := f.Account(ctx, ref)
			wantCode(t, err, core.CodeNotFound)
		}
		wantCode(t, f.AccountOpen(ctx, a.ID), core.CodeNotFound)
		wantCode(t, f.DeleteAccount(ctx, a.ID, f.event(core.ActionAccountDelete, a.ID)), core.CodeNotFound)
		b := f.createAccount("acme") // the name is free
		c := f.createAccount("other")
		all := pages(t, 1, f.Accounts)
		var names []string
		for _, got := range all {
			names = append(names, got.ID)
		}
		slices.Sort(names)
		if !slices.Equal(names, slices.Sorted(slices.Values([]string{core.DefaultAccount, b.ID, c.ID}))) {
			t.Errorf("accounts %v", names)
		}
		wantAudit(t, f, core.ActionAccountCreate, core.ActionAccountDisable, core.ActionAccountEnable, core.ActionAccountDisable, core.ActionAccountDelete, core.ActionAccountCreate, core.ActionAccountCreate)
	})

	// K2: the state of the account is a condition of the transaction that admits a run, with a key and without, for a repeated request too.
	t.Run("a disabled account admits nothing", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		ctx := t.Context()
		a := f.createAccount("acme")
		w := f.publish("greet", func(p *core.Publication) { p.Account, p.Workflow.Account = a.ID, a.ID })
		k := f.createKey(func(k *auth.Key) { k.Account = a.ID })
		idempotent := func(adm *core.Admission) {
			adm.Idempotency = &core.Idempotency{Principal: "key:" + k.ID, Workflow: w.ID, Key: "once", Fingerprint: "f", ExpiresAt: epoch.Add(time.Hour)}
		}
		f.admit(w, &k, idempotent)
		_, err := f.SetAccountEnabled(ctx, "acme", false, "", f.event(core.ActionAccountDisable, a.ID))
		f.must(err)
		for name, adm := range map[string]core.Admission{"with a key": f.admission(w, &k), "without": f.admission(w, nil)} {
			if _, err := f.Admit(ctx, adm); core.CodeOf(err) != core.CodeAccountDisabled {
				t.Errorf("%s: %v", name, err)
			}
		}
		repeated := f.admission(w, &k)
		idempotent(&repeated)
		_, err = f.Admit(ctx, repeated)
		wantCode(t, err, core.CodeAccountDisabled)
		used, err := f.Key(ctx, a.ID, k.ID)
		f.must(err)
		if used.RunsUsed != 1 {
			t.Errorf("%d runs are charged, want 1", used.RunsUsed)
		}
		f.must(f.DeleteAccount(ctx, "acme", f.event(core.ActionAccountDelete, a.ID)))
		_, err = f.Admit(ctx, f.admission(w, nil))
		wantCode(t, err, core.CodeAccountDisabled)
	})

	t.Run("users", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		ctx := t.Context()
		a := f.createAccount("acme")
		u := f.createUser(a.ID, "ada", auth.Operator)
		for _, ref := range []string{u.ID, "ada"} {
			got, err := f.User(ctx, a.ID, ref)
			f.must(err)
			wantEqual(t, "user", got, u)
			_, err = f.User(ctx, account, ref)
			wantCode(t, err, core.CodeNotFound)
		}
		wantFilled(t, u, "DisabledAt", "DisabledBy", "DisabledWhy", "LastLoginAt")
		twin := u
		twin.ID = f.newID(core.PrefixUser)
		wantCode(t, f.CreateUser(ctx, twin, password, f.event(core.ActionUserCreate, twin.ID)), core.CodeConflict)
		other := f.createUser(account, "ada", auth.Viewer) // a name is an account's own
		got, hash, err := f.Login(ctx, a.ID, "ada")
		f.must(err)
		wantEqual(t, "user of a login", got, u)
		wantEqual(t, "password", hash, password)
		_, _, err = f.Login(ctx, a.ID, u.ID)
		wantCode(t, err, core.CodeNotFound)

		changed, err := f.SetUserRole(ctx, a.ID, "ada", auth.Owner, nil, f.event(core.ActionUserRole, u.ID))
		f.must(err)
		u.Role = auth.Owner
		wantEqual(t, "user with another role", changed, u)
		_, err = f.SetUserRole(ctx, a.ID, u.ID, auth.Owner, nil, f.event(core.ActionUserRole, u.ID)) // nothing changes, nothing is logged
		f.must(err)
		changed, err = f.SetUserEnabled(ctx, a.ID, u.ID, false, "on leave", nil, f.event(core.ActionUserDisable, u.ID))
		f.must(err)
		off := u
		off.DisabledAt, off.DisabledBy, off.DisabledWhy = epoch, "uid:1000", "on leave"
		wantEqual(t, "disabled user", changed, off)
		changed, err = f.SetUserEnabled(ctx, a.ID, u.ID, true, "", nil, f.event(core.ActionUserEnable, u.ID))
		f.must(err)
		wantEqual(t, "enabled user", changed, u)
		for name, err := range map[string]error{
			"role": func() error {
				_, err := f.SetUserRole(ctx, account, u.ID, auth.Viewer, nil, f.event(core.ActionUserRole, u.ID))
				return err
			}(),
			"disable": func() error {
				_, err := f.SetUserEnabled(ctx, account, u.ID, false, "", nil, f.event(core.ActionUserDisable, u.ID))
				return err
			}(),
			"password": func() error {
				_, err := f.SetUserPassword(ctx, account, u.ID, password, nil, f.event(core.ActionUserPassword, u.ID))
				return err
			}(),
			"delete": f.DeleteUser(ctx, account, u.ID, nil, f.event(core.ActionUserDelete, u.ID)),
		} {
			if core.CodeOf(err) != core.CodeNotFound {
				t.Errorf("%s of another account's user: %v", name, err)
			}
		}
		f.must(f.DeleteUser(ctx, a.ID, "ada", nil, f.event(core.ActionUserDelete, u.ID)))
		_, err = f.User(ctx, a.ID, u.ID)
		wantCode(t, err, core.CodeNotFound)
		list, err := f.Users(ctx, account, core.Page{})
		f.must(err)
		if len(list.Items) != 1 || list.Items[0].ID != other.ID {
			t.Errorf("users %+v", list.Items)
		}
	})

	// Whatever changes a user ends their sessions with the change.
	t.Run("sessions", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		ctx := t.Context()
		a := f.createAccount("acme")
		u := f.createUser(a.ID, "ada", auth.Operator)
		s, r := f.login(u, 0)
		live, err := f.LiveSession(ctx, s.ID)
		f.must(err)
		u.LastLoginAt = epoch
		wantEqual(t, "session", live, auth.LiveSession{Session: s, User: u})
		wantFilled(t, s, "EndedAt", "EndedWhy")
		token, err := f.RefreshToken(ctx, r.PublicID)
		f.must(err)
		wantEqual(t, "refresh token", token, r)
		_, err = f.LiveSession(ctx, "ses_none")
		wantCode(t, err, core.CodeNotFound)
		_, err = f.RefreshToken(ctx, "none")
		wantCode(t, err, core.CodeNotFound)

		why := func(s auth.Session) string {
			t.Helper()
			live, err := f.LiveSession(ctx, s.ID)
			f.must(err)
			if live.Session.EndedAt.IsZero() != (live.Session.EndedWhy == "") {
				t.Errorf("ended %v, %q", live.Session.EndedAt, live.Session.EndedWhy)
			}
			return live.Session.EndedWhy
		}
		n := 1
		for _, c := range []struct {
			want   string
			change func() error
		}{
			{"role changed", func() error {
				_, err := f.SetUserRole(ctx, a.ID, u.ID, auth.Owner, nil, f.event(core.ActionUserRole, u.ID))
				return err
			}},
			{"password changed", func() error {
				_, err := f.SetUserPassword(ctx, a.ID, u.ID, password, nil, f.event(core.ActionUserPassword, u.ID))
				return err
			}},
			{"user disabled", func() error {
				_, err := f.SetUserEnabled(ctx, a.ID, u.ID, false, "", nil, f.event(core.ActionUserDisable, u.ID))
				return err
			}},
			{"logout", func() error {
				_, err := f.EndSessions(ctx, a.ID, u.ID, "logout", f.event(core.ActionSessionEnd, u.ID))
				return err
			}},
			{"bye", func() error { return f.EndSession(ctx, a.ID, s.ID, "bye", f.event(core.ActionSessionEnd, s.ID)) }},
		} {
			_, err := f.SetUserEnabled(ctx, a.ID, u.ID, true, "", nil, f.event(core.ActionUserEnable, u.ID))
			f.must(err)
			s, _ = f.login(u, n)
			n++
			if got := why(s); got != "" {
				t.Fatalf("a new session has ended: %s", got)
			}
			f.must(c.change())
			if got := why(s); got != c.want {
				t.Errorf("ended for %q, want %q", got, c.want)
			}
		}
		f.must(f.EndSession(ctx, a.ID, s.ID, "again", f.event(core.ActionSessionEnd, s.ID)))
		if got := why(s); got != "bye" {
			t.Errorf("a session ended twice: %q", got)
		}
		s, _ = f.login(u, n)
		f.must(f.EndSession(ctx, account, s.ID, "theirs", f.event(core.ActionSessionEnd, s.ID)))
		if got := why(s); got != "" {
			t.Errorf("another account has ended it: %q", got)
		}
		_, err = f.SetAccountEnabled(ctx, a.ID, false, "", f.event(core.ActionAccountDisable, a.ID))
		f.must(err)
		live, err = f.LiveSession(ctx, s.ID)
		f.must(err)
		if !live.AccountDisabled {
			t.Error("a session does not say that its account is disabled")
		}
		f.must(f.DeleteUser(ctx, a.ID, u.ID, nil, f.event(core.ActionUserDelete, u.ID)))
		_, err = f.LiveSession(ctx, s.ID)
		wantCode(t, err, core.CodeNotFound)
	})

	// Of two people who end each other's sessions at the same moment, by whatever change, one is refused: the check sees what the other has committed.
	t.Run("nobody is left by changes at once", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		ctx := t.Context()
		a := f.createAccount("acme")
		change := []func(u auth.User, may auth.UserCheck) error{
			func(u auth.User, may auth.UserCheck) error {
				_, err := f.SetUserRole(ctx, a.ID, u.ID, auth.Viewer, may, f.event(core.ActionUserRole, u.ID))
				return err
			},
			func(u auth.User, may auth.UserCheck) error {
				_, err := f.SetUserEnabled(ctx, a.ID, u.ID, false, "", may, f.event(core.ActionUserDisable, u.ID))
				return err
			},
			func(u auth.User, may auth.UserCheck) error {
				return f.DeleteUser(ctx, a.ID, u.ID, may, f.event(core.ActionUserDelete, u.ID))
			},
		}
		for round := range 12 {
			var users [2]auth.User
			var sessions [2]auth.Session
			for i := range users {
				users[i] = f.createUser(a.ID, fmt.Sprintf("boss-%d-%d", round, i), auth.Owner)
				sessions[i], _ = f.login(users[i], 2*round+i)
			}
			var errs [2]error
			var both sync.WaitGroup
			begin := make(chan struct{})
			for i := range users {
				both.Go(func() {
					<-begin
					errs[i] = change[(round+i*round/3)%3](users[1-i], func(_ *auth.User, session func(string) (auth.LiveSession, error)) error {
						live, err := session(sessions[i].ID)
						if err != nil {
							return err
						}
						return auth.CheckSession(&live, epoch)
					})
				})
			}
			close(begin)
			both.Wait()
			refused := 0
			for _, err := range errs {
				if code := core.CodeOf(err); code == core.CodeSessionEnded || code == core.CodeNotFound || code == core.CodeUserDisabled {
					refused++
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if refused != 1 {
				t.Errorf("round %d: %d of two were refused: %v", round, refused, errs)
			}
		}
	})

	// A change of the user between the check of the password and the session is not lost.
	t.Run("a login that comes too late", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		ctx := t.Context()
		u := f.createUser(account, "ada", auth.Operator)
		try := func(checked auth.PasswordHash, rehash *auth.PasswordHash) error {
			s := auth.Session{ID: f.newID(core.PrefixSession), Account: account, UserID: u.ID, CreatedAt: epoch, ExpiresAt: epoch.Add(time.Hour)}
			return f.CreateSession(ctx, s, f.refresh(s, 0), checked, rehash, f.event(core.ActionSessionCreate, s.ID))
		}
		newer := auth.PasswordHash{Text: "newer", Pepper: 3}
		f.must(try(password, &newer))
		_, got, err := f.Login(ctx, account, "ada")
		f.must(err)
		wantEqual(t, "password stored anew", got, newer)
		wantCode(t, try(password, nil), core.CodeInvalidLogin)
		_, err = f.SetUserEnabled(ctx, account, u.ID, false, "", nil, f.event(core.ActionUserDisable, u.ID))
		f.must(err)
		wantCode(t, try(newer, nil), core.CodeInvalidLogin)
		f.must(f.DeleteUser(ctx, account, u.ID, nil, f.event(core.ActionUserDelete, u.ID)))
		wantCode(t, try(newer, nil), core.CodeInvalidLogin)
	})

	t.Run("refresh tokens work once", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		ctx := t.Context()
		u := f.createUser(f.createAccount("acme").ID, "ada", auth.Operator)
		s, first := f.login(u, 0)
		rotate := func(old, next auth.RefreshToken) (bool, error) {
			return f.RotateRefresh(ctx, old.PublicID, next, f.event(core.ActionSessionRefresh, s.ID), f.event(core.ActionSessionReuse, s.ID))
		}
		second := f.refresh(s, 1)
		reused, err := rotate(first, second)
		if reused || err != nil {
			t.Fatalf("first use: %v, %v", reused, err)
		}
		_, err = rotate(f.refresh(s, 2), f.refresh(s, 3))
		wantCode(t, err, core.CodeNotFound)

		// Of many that use one at once, one is first, and the others end the session.
		const clients = 8
		results := make(chan bool, clients)
		for i := range clients {
			next := f.refresh(s, 4+i)
			go func() {
				reused, err := rotate(second, next)
				if err != nil {
					t.Error(err)
				}
				results <- reused
			}()
		}
		firsts := 0
		for range clients {
			if !<-results {
				firsts++
			}
		}
		if firsts != 1 {
			t.Errorf("%d of %d were first", firsts, clients)
		}
		live, err := f.LiveSession(ctx, s.ID)
		f.must(err)
		if live.Session.EndedAt.IsZero() {
			t.Error("a token was used twice, and the session goes on")
		}
	})

	t.Run("the setup token makes one superuser", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		ctx := t.Context()
		token := func(id string, life time.Duration) auth.SetupToken {
			return auth.SetupToken{PublicID: id, Hash: []byte{0, 0xff}, Pepper: 2, CreatedAt: epoch, ExpiresAt: epoch.Add(life)}
		}
		put := func(token auth.SetupToken) {
			t.Helper()
			f.must(f.PutSetupToken(ctx, token, f.event(core.ActionSetupToken, "server")))
		}
		use := func(id, name string) error {
			u := auth.User{ID: f.newID(core.PrefixUser), Account: core.DefaultAccount, Name: name, Role: auth.Superuser, CreatedAt: epoch, PasswordAt: epoch}
			return f.UseSetupToken(ctx, id, u, password, f.event(core.ActionUserCreate, u.ID))
		}
		put(token("one", time.Hour))
		put(token("two", time.Hour))
		_, err := f.SetupToken(ctx, "one")
		wantCode(t, err, core.CodeNotFound)
		got, err := f.SetupToken(ctx, "two")
		f.must(err)
		wantEqual(t, "setup token", got, token("two", time.Hour))
		wantCode(t, use("one", "root"), core.CodeNotFound)
		put(token("late", 0))
		wantCode(t, use("late", "root"), core.CodeNotFound)
		has, err := f.HasSuperuser(ctx)
		if has || err != nil {
			t.Fatalf("superuser %v, %v", has, err)
		}
		put(token("good", time.Hour))
		f.must(use("good", "root"))
		wantCode(t, use("good", "root2"), core.CodeNotFound)
		put(token("again", time.Hour))
		wantCode(t, use("again", "root2"), core.CodeConflict)
		has, err = f.HasSuperuser(ctx)
		if !has || err != nil {
			t.Errorf("superuser %v, %v", has, err)
		}
	})
}
