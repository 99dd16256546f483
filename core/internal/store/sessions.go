package store

import (
	"context"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

const (
	sqlSessionInsert = `insert into sessions (id, account, user_id, created_at, source_ip, expires_at, ended_at, ended_why) values ($1, $2, $3, $4, $5, $6, 0, '')`
	sqlSession       = `select s.id, s.account, s.user_id, s.created_at, s.source_ip, s.expires_at, s.ended_at, s.ended_why, a.disabled_at,
		u.id, u.account, u.name, u.role, u.created_at, u.created_by, u.password_at, u.disabled_at, u.disabled_by, u.disabled_why, u.last_login_at
		from sessions s join users u on u.account = s.account and u.id = s.user_id join accounts a on a.id = s.account where s.id = $1`
	sqlSessionEnd   = `update sessions set ended_at = $1, ended_why = $2 where account = $3 and id = $4 and ended_at = 0`
	sqlSessionsEnd  = `update sessions set ended_at = $1, ended_why = $2 where account = $3 and user_id = $4 and ended_at = 0`
	sqlSessionSweep = `delete from sessions where id in (select id from sessions where expires_at < $1 order by expires_at limit $2)`

	sqlRefreshInsert = `insert into refresh_tokens (public_id, account, session_id, hash, pepper, created_at, expires_at, used_at) values ($1, $2, $3, $4, $5, $6, $7, 0)`
	sqlRefresh       = `select public_id, account, session_id, hash, pepper, created_at, expires_at, used_at from refresh_tokens where public_id = $1`
	sqlRefreshUse    = `update refresh_tokens set used_at = $1 where public_id = $2 and used_at = 0`
	sqlRefreshCount  = `select count(*) from refresh_tokens where session_id = $1`
)

// MaxRefreshes is how often one session can be refreshed, which bounds the rows it leaves behind.
const MaxRefreshes = 5_000

// CreateSession begins a session with its first refresh token. The user must still be there, enabled, and have the password that was checked: otherwise it is
// CodeInvalidLogin, since the login and the change were at the same time. rehash, if not nil, replaces the stored form of that same password.
func (s *Store) CreateSession(ctx context.Context, ses auth.Session, r auth.RefreshToken, checked auth.PasswordHash, rehash *auth.PasswordHash, ev core.AuditEvent) error {
	return s.write(ctx, &change{name: "create session", lane: control}, func(t *tx) error {
		var p auth.PasswordHash
		u, err := scanUser(t.row(sqlUserLoginByID, ses.Account, ses.UserID), &p.Text, &p.Pepper)
		changed := core.Errorf(core.CodeInvalidLogin, "the user changed during the login; log in again")
		switch {
		case err != nil:
			if core.CodeOf(notFound(err, "user")) == core.CodeNotFound {
				return changed
			}
			return err
		case u.Disabled() || p != checked:
			return changed
		}
		if err := t.accountOpen(ses.Account); err != nil {
			return err
		}
		if _, err := t.exec(sqlSessionInsert, ses.ID, ses.Account, ses.UserID, micros(ses.CreatedAt), ses.SourceIP, micros(ses.ExpiresAt)); err != nil {
			return err
		}
		if err := insertRefresh(t, r); err != nil {
			return err
		}
		if _, err := t.exec(sqlUserLoggedIn, micros(ses.CreatedAt), ses.Account, ses.UserID); err != nil {
			return err
		}
		if rehash != nil {
			if _, err := t.exec(sqlUserRehash, rehash.Text, rehash.Pepper, ses.Account, ses.UserID); err != nil {
				return err
			}
		}
		return t.audit(ev)
	})
}

const sqlUserLoginByID = `select ` + userColumns + `, password, pepper from users where account = $1 and id = $2`

func insertRefresh(t *tx, r auth.RefreshToken) error {
	_, err := t.exec(sqlRefreshInsert, r.PublicID, r.Account, r.SessionID, r.Hash, r.Pepper, micros(r.CreatedAt), micros(r.ExpiresAt))
	return err
}

// LiveSession returns a session with its user and the state of its account as they are now, CodeNotFound when there is none. Whoever decides by it must ask for it
// with every request: it is what makes an end of a session hold at once.
func (s *Store) LiveSession(ctx context.Context, id string) (auth.LiveSession, error) {
	l, err := scanSession(s.row(ctx, sqlSession, id))
	return l, found(err, "session")
}

// session is LiveSession in a transaction.
func (t *tx) session(id string) (auth.LiveSession, error) {
	l, err := scanSession(t.row(sqlSession, id))
	if err != nil {
		return auth.LiveSession{}, notFound(err, "session")
	}
	return l, nil
}

func scanSession(row scanner) (auth.LiveSession, error) {
	var (
		l                                        auth.LiveSession
		created, expires, ended, accountDisabled int64
		ucreated, upassword, udisabled, ulogin   int64
		ses, u                                   = &l.Session, &l.User
	)
	err := row.Scan(&ses.ID, &ses.Account, &ses.UserID, &created, &ses.SourceIP, &expires, &ended, &ses.EndedWhy, &accountDisabled,
		&u.ID, &u.Account, &u.Name, &u.Role, &ucreated, &u.CreatedBy, &upassword, &udisabled, &u.DisabledBy, &u.DisabledWhy, &ulogin)
	if err != nil {
		return auth.LiveSession{}, err
	}
	ses.CreatedAt, ses.ExpiresAt, ses.EndedAt = fromMicros(created), fromMicros(expires), fromMicros(ended)
	u.CreatedAt, u.PasswordAt, u.DisabledAt, u.LastLoginAt = fromMicros(ucreated), fromMicros(upassword), fromMicros(udisabled), fromMicros(ulogin)
	l.AccountDisabled = accountDisabled > 0
	return l, nil
}

// RefreshToken returns the refresh token with the given public id, CodeNotFound when there is none.
func (s *Store) RefreshToken(ctx context.Context, publicID string) (auth.RefreshToken, error) {
	r, err := scanRefresh(s.row(ctx, sqlRefresh, publicID))
	return r, found(err, "refresh token")
}

// RotateRefresh replaces a refresh token by the next one of its session. Each works once: when the old one was used before, somebody has a copy of it, so the
// session ends, reused is true and the event is onReuse. It does not judge the session, which may have ended. CodeSessionExpired when the session has been refreshed MaxRefreshes times.
func (s *Store) RotateRefresh(ctx context.Context, old string, next auth.RefreshToken, ev, onReuse core.AuditEvent) (reused bool, err error) {
	err = s.write(ctx, &change{name: "refresh session", lane: control, essential: true}, func(t *tx) error {
		reused = false
		r, err := scanRefresh(t.row(sqlRefresh, old))
		if err != nil {
			return notFound(err, "refresh token")
		}
		if !r.UsedAt.IsZero() {
			reused = true
			if _, err := t.exec(sqlSessionEnd, micros(onReuse.Time), "a refresh token was used twice", r.Account, r.SessionID); err != nil {
				return err
			}
			return t.audit(onReuse)
		}
		var n int64
		if err := t.row(sqlRefreshCount, r.SessionID).Scan(&n); err != nil {
			return err
		}
		if n >= MaxRefreshes {
			return core.Errorf(core.CodeSessionExpired, "this session was refreshed as often as one can be; log in again")
		}
		if _, err := t.exec(sqlRefreshUse, micros(ev.Time), old); err != nil {
			return err
		}
		if err := insertRefresh(t, next); err != nil {
			return err
		}
		return t.audit(ev)
	})
	return reused, err
}

// EndSession ends a session. One that has ended already stays as it is, and nothing is written.
func (s *Store) EndSession(ctx context.Context, account, id, why string, ev core.AuditEvent) error {
	return s.write(ctx, &change{name: "end session", lane: control, essential: true}, func(t *tx) error {
		ended, err := t.exec(sqlSessionEnd, micros(ev.Time), why, account, id)
		if err != nil || ended == 0 {
			return err
		}
		return t.audit(ev)
	})
}

// EndSessions ends all sessions of a user and reports how many there were.
func (s *Store) EndSessions(ctx context.Context, account, userID, why string, ev core.AuditEvent) (ended int64, err error) {
	err = s.write(ctx, &change{name: "end sessions", lane: control, essential: true}, func(t *tx) (err error) {
		if ended, err = t.exec(sqlSessionsEnd, micros(ev.Time), why, account, userID); err != nil || ended == 0 {
			return err
		}
		return t.audit(ev)
	})
	return ended, err
}

// endSessions ends a user's sessions as part of the change that ev tells of.
func endSessions(t *tx, u *auth.User, why string, ev core.AuditEvent) error {
	_, err := t.exec(sqlSessionsEnd, micros(ev.Time), why, u.Account, u.ID)
	return err
}

// sessionsKept is how long a session is kept after its expiry, with the refresh tokens it had, so that a late reuse is still seen.
const sessionsKept = 24 * time.Hour

// sweepSessions deletes sessions whose time is long over.
func (s *Store) sweepSessions(ctx context.Context) error {
	return s.deleteAll(ctx, "sweep sessions", sqlSessionSweep, micros(s.cfg.Now().Add(-sessionsKept)))
}

func scanRefresh(row scanner) (auth.RefreshToken, error) {
	var (
		r                      auth.RefreshToken
		created, expires, used int64
	)
	err := row.Scan(&r.PublicID, &r.Account, &r.SessionID, &r.Hash, &r.Pepper, &created, &expires, &used)
	r.CreatedAt, r.ExpiresAt, r.UsedAt = fromMicros(created), fromMicros(expires), fromMicros(used)
	return r, err
}
