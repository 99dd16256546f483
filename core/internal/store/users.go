package store

import (
	"context"
	"strings"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

const userColumns = `id, account, name, role, created_at, created_by, password_at, disabled_at, disabled_by, disabled_why, last_login_at`

const (
	sqlUserInsert = `insert into users (` + userColumns + `, password, pepper) values ($1, $2, $3, $4, $5, $6, $7, 0, '', '', 0, $8, $9)`
	sqlUserTaken  = `select count(*) from users where account = $1 and (id = $2 or name = $3)`
	sqlUserByID   = `select ` + userColumns + ` from users where account = $1 and id = $2`
	sqlUserByName = `select ` + userColumns + ` from users where account = $1 and name = $2`
	sqlUsers      = `select ` + userColumns + ` from users`
	sqlUserLogin  = `select ` + userColumns + `, password, pepper from users where account = $1 and name = $2`

	sqlUserRole     = `update users set role = $1 where account = $2 and id = $3`
	sqlUserSwitch   = `update users set disabled_at = $1, disabled_by = $2, disabled_why = $3 where account = $4 and id = $5`
	sqlUserPassword = `update users set password = $1, pepper = $2, password_at = $3 where account = $4 and id = $5`
	sqlUserRehash   = `update users set password = $1, pepper = $2 where account = $3 and id = $4`
	sqlUserLoggedIn = `update users set last_login_at = $1 where account = $2 and id = $3`
	sqlUserDelete   = `delete from users where account = $1 and id = $2`

	sqlSuperusers  = `select count(*) from users where account = $1 and role = $2`
	sqlSetupInsert = `insert into setup_tokens (public_id, hash, pepper, created_at, expires_at) values ($1, $2, $3, $4, $5)`
	sqlSetup       = `select public_id, hash, pepper, created_at, expires_at from setup_tokens where public_id = $1`
	sqlSetupClear  = `delete from setup_tokens`
)

// CreateUser adds a user with a password. It is CodeConflict when the account has a user of that name.
func (s *Store) CreateUser(ctx context.Context, u auth.User, p auth.PasswordHash, ev core.AuditEvent) error {
	return s.write(ctx, &change{name: "create user", lane: control}, func(t *tx) error {
		if err := insertUser(t, &u, p); err != nil {
			return err
		}
		return t.audit(ev)
	})
}

func insertUser(t *tx, u *auth.User, p auth.PasswordHash) error {
	var taken int64
	if err := t.row(sqlUserTaken, u.Account, u.ID, u.Name).Scan(&taken); err != nil {
		return err
	}
	if taken > 0 {
		return core.Errorf(core.CodeConflict, "a user with this name exists already")
	}
	_, err := t.exec(sqlUserInsert, u.ID, u.Account, u.Name, string(u.Role), micros(u.CreatedAt), u.CreatedBy, micros(u.PasswordAt), p.Text, p.Pepper)
	return err
}

// userQuery chooses between ids and names, which cannot be mixed up: no name begins like an id.
func userQuery(ref string) string {
	if strings.HasPrefix(ref, core.PrefixUser) {
		return sqlUserByID
	}
	return sqlUserByName
}

// User returns the account's user with the given id or name, CodeNotFound when there is none.
func (s *Store) User(ctx context.Context, account, ref string) (auth.User, error) {
	u, err := scanUser(s.row(ctx, userQuery(ref), account, ref))
	return u, found(err, "user")
}

// Users returns a page of the account's users, newest first.
func (s *Store) Users(ctx context.Context, account string, p core.Page) (core.List[auth.User], error) {
	return read(ctx, s, userListing(account), p)
}

func userListing(account string) listing[auth.User] {
	return listing[auth.User]{
		name: "users", account: account,
		columns: sqlUsers, where: "account = $1", args: []any{account},
		key: "id", keyOf: func(u *auth.User) string { return u.ID },
		scan: func(row scanner) (auth.User, error) { return scanUser(row) },
	}
}

// Login returns what a login by name is checked against, CodeNotFound when the account has no such user.
func (s *Store) Login(ctx context.Context, account, name string) (auth.User, auth.PasswordHash, error) {
	var p auth.PasswordHash
	u, err := scanUser(s.row(ctx, sqlUserLogin, account, name), &p.Text, &p.Pepper)
	return u, p, found(err, "user")
}

// changeUser applies a change to a user that exists and commits it with its event, if may, which is asked about the user as they are in that transaction, returns nil; a nil
// may is asked nothing. apply reports whether it changed anything.
func (s *Store) changeUser(ctx context.Context, name, account, ref string, may auth.UserCheck, ev core.AuditEvent, apply func(t *tx, u *auth.User) (bool, error)) (auth.User, error) {
	var u auth.User
	err := s.write(ctx, &change{name: name, lane: control, essential: true}, func(t *tx) (err error) {
		if u, err = scanUser(t.row(userQuery(ref), account, ref)); err != nil {
			return notFound(err, "user")
		}
		if may != nil {
			if err := may(&u, t.session); err != nil {
				return err
			}
		}
		changed, err := apply(t, &u)
		if err != nil || !changed {
			return err
		}
		ev.Object = u.ID
		return t.audit(ev)
	})
	if err != nil {
		return auth.User{}, err
	}
	return u, nil
}

// SetUserRole gives a user a role and ends the user's sessions in the same transaction. A role that the user has already changes nothing.
func (s *Store) SetUserRole(ctx context.Context, account, ref string, role auth.Role, may auth.UserCheck, ev core.AuditEvent) (auth.User, error) {
	return s.changeUser(ctx, "set role", account, ref, may, ev, func(t *tx, u *auth.User) (bool, error) {
		if u.Role == role {
			return false, nil
		}
		u.Role = role
		if _, err := t.exec(sqlUserRole, string(role), account, u.ID); err != nil {
			return false, err
		}
		return true, endSessions(t, u, "role changed", ev)
	})
}

// SetUserEnabled lets a user log in or no longer, in which case the user's sessions end in the same transaction. What is so already changes nothing.
func (s *Store) SetUserEnabled(ctx context.Context, account, ref string, enabled bool, why string, may auth.UserCheck, ev core.AuditEvent) (auth.User, error) {
	return s.changeUser(ctx, "switch user", account, ref, may, ev, func(t *tx, u *auth.User) (bool, error) {
		if u.Disabled() == !enabled {
			return false, nil
		}
		u.DisabledAt, u.DisabledBy, u.DisabledWhy = time.Time{}, "", ""
		if !enabled {
			u.DisabledAt, u.DisabledBy, u.DisabledWhy = fromMicros(micros(ev.Time)), ev.Actor, why
		}
		if _, err := t.exec(sqlUserSwitch, micros(u.DisabledAt), u.DisabledBy, u.DisabledWhy, account, u.ID); err != nil {
			return false, err
		}
		if enabled {
			return true, nil
		}
		return true, endSessions(t, u, "user disabled", ev)
	})
}

// SetUserPassword replaces a user's password and ends the user's sessions in the same transaction.
func (s *Store) SetUserPassword(ctx context.Context, account, ref string, p auth.PasswordHash, may auth.UserCheck, ev core.AuditEvent) (auth.User, error) {
	return s.changeUser(ctx, "set password", account, ref, may, ev, func(t *tx, u *auth.User) (bool, error) {
		u.PasswordAt = fromMicros(micros(ev.Time))
		if _, err := t.exec(sqlUserPassword, p.Text, p.Pepper, micros(ev.Time), account, u.ID); err != nil {
			return false, err
		}
		return true, endSessions(t, u, "password changed", ev)
	})
}

// DeleteUser removes a user and the user's sessions.
func (s *Store) DeleteUser(ctx context.Context, account, ref string, may auth.UserCheck, ev core.AuditEvent) error {
	_, err := s.changeUser(ctx, "delete user", account, ref, may, ev, func(t *tx, u *auth.User) (bool, error) {
		_, err := t.exec(sqlUserDelete, account, u.ID)
		return true, err
	})
	return err
}

// HasSuperuser reports whether a superuser exists, disabled or not.
func (s *Store) HasSuperuser(ctx context.Context) (bool, error) {
	var n int64
	err := s.row(ctx, sqlSuperusers, core.DefaultAccount, string(auth.Superuser)).Scan(&n)
	return n > 0, unavailable("count superusers", err)
}

// PutSetupToken stores the one setup token there is, in place of any earlier one.
func (s *Store) PutSetupToken(ctx context.Context, token auth.SetupToken, ev core.AuditEvent) error {
	return s.write(ctx, &change{name: "put setup token", lane: control}, func(t *tx) error {
		if _, err := t.exec(sqlSetupClear); err != nil {
			return err
		}
		if _, err := t.exec(sqlSetupInsert, token.PublicID, token.Hash, token.Pepper, micros(token.CreatedAt), micros(token.ExpiresAt)); err != nil {
			return err
		}
		return t.audit(ev)
	})
}

// SetupToken returns the setup token with the given public id, CodeNotFound when there is none.
func (s *Store) SetupToken(ctx context.Context, publicID string) (auth.SetupToken, error) {
	token, err := scanSetup(s.row(ctx, sqlSetup, publicID))
	return token, found(err, "setup token")
}

// UseSetupToken makes the first superuser, and takes the token away in the same transaction. CodeNotFound when the token is gone or has expired by ev.Time, CodeConflict when a
// superuser exists: then somebody else was first.
func (s *Store) UseSetupToken(ctx context.Context, publicID string, u auth.User, p auth.PasswordHash, ev core.AuditEvent) error {
	return s.write(ctx, &change{name: "use setup token", lane: control}, func(t *tx) error {
		token, err := scanSetup(t.row(sqlSetup, publicID))
		if err != nil {
			return notFound(err, "setup token")
		}
		if !ev.Time.Before(token.ExpiresAt) {
			return core.Errorf(core.CodeNotFound, "there is no such setup token")
		}
		var n int64
		if err := t.row(sqlSuperusers, core.DefaultAccount, string(auth.Superuser)).Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			return core.Errorf(core.CodeConflict, "this server has a superuser already")
		}
		if err := insertUser(t, &u, p); err != nil {
			return err
		}
		if _, err := t.exec(sqlSetupClear); err != nil {
			return err
		}
		return t.audit(ev)
	})
}

func scanSetup(row scanner) (auth.SetupToken, error) {
	var (
		token            auth.SetupToken
		created, expires int64
	)
	err := row.Scan(&token.PublicID, &token.Hash, &token.Pepper, &created, &expires)
	token.CreatedAt, token.ExpiresAt = fromMicros(created), fromMicros(expires)
	return token, err
}

// scanUser reads a user, and into more what the query selects behind it.
func scanUser(row scanner, more ...any) (auth.User, error) {
	var (
		u                                  auth.User
		created, password, disabled, login int64
	)
	err := row.Scan(append([]any{&u.ID, &u.Account, &u.Name, &u.Role, &created, &u.CreatedBy, &password, &disabled, &u.DisabledBy, &u.DisabledWhy, &login}, more...)...)
	u.CreatedAt, u.PasswordAt, u.DisabledAt, u.LastLoginAt = fromMicros(created), fromMicros(password), fromMicros(disabled), fromMicros(login)
	return u, err
}
