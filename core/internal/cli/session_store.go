package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/keyfire/keyfire/sdk/client"
)

// sessionStore is the file in which login leaves what later commands of the same person need. It holds secrets, so it is its owner's only.
type sessionStore struct{ path string }

// storedSessions is the content of the file.
type storedSessions struct {
	Current  string                   `json:"current"`  // URL of the server logged in to last
	Sessions map[string]storedSession `json:"sessions"` // by URL
}

type storedSession struct {
	Account          string    `json:"account"` // as it was given to login; "" is the default account
	User             string    `json:"user"`
	ID               string    `json:"id"`
	AccessToken      string    `json:"access_token"`
	ExpiresAt        time.Time `json:"expires_at"`
	RefreshToken     string    `json:"refresh_token"`
	RefreshExpiresAt time.Time `json:"refresh_expires_at"`
}

func stored(s *client.Session, account string) storedSession {
	return storedSession{
		Account: account, User: s.User.Name, ID: s.ID, AccessToken: s.AccessToken, ExpiresAt: s.ExpiresAt, RefreshToken: s.RefreshToken, RefreshExpiresAt: s.RefreshExpiresAt,
	}
}

// sessions returns the store of the user's config directory; its path is "" for a process without a home, which has none.
func (a *app) sessions() sessionStore {
	if dir := lookup(a.Environ, "XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return sessionStore{filepath.Join(dir, "keyfire", "credentials.json")}
	}
	if home := lookup(a.Environ, "HOME"); home != "" {
		return sessionStore{filepath.Join(home, ".config", "keyfire", "credentials.json")}
	}
	return sessionStore{}
}

// read returns what is stored. A file that others can read is refused: its tokens may be theirs by now.
func (s sessionStore) read() (storedSessions, error) {
	var all storedSessions
	if s.path == "" {
		return all, nil
	}
	info, err := os.Stat(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	if err != nil {
		return all, fmt.Errorf("stored sessions: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return all, usagef("%s can be read by others (mode %04o); run chmod 0600 on it, and keyfire login again if somebody else may have read it", s.path, mode)
	}
	raw, err := os.ReadFile(s.path)
	if err != nil {
		return all, fmt.Errorf("stored sessions: %w", err)
	}
	if json.Unmarshal(raw, &all) != nil { // the decoder's own error could quote the file
		return storedSessions{}, usagef("%s is damaged; remove it and run keyfire login again", s.path)
	}
	return all, nil
}

// change lets fn change what is stored while no other command does. Two that refreshed the same session at once would look like a thief.
func (s sessionStore) change(fn func(all *storedSessions) error) error {
	if s.path == "" {
		return usagef("there is no place to keep a session: set HOME or XDG_CONFIG_HOME")
	}
	dir := filepath.Dir(s.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("stored sessions: %w", err)
	}
	lock, err := os.OpenFile(s.path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("stored sessions: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock stored sessions: %w", err)
	}
	all, err := s.read()
	if err != nil {
		return err
	}
	if all.Sessions == nil {
		all.Sessions = make(map[string]storedSession)
	}
	if err := fn(&all); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(s.path, 0o600, append(raw, '\n'))
}

// refreshEarly is how long before its end an access token is replaced, so that none ends on the way.
const refreshEarly = 30 * time.Second

// token returns the access token for a server, refreshed if its time is over, and "" when there is no session with it.
func (a *app) token(ctx context.Context, base string) (string, error) {
	store := a.sessions()
	all, err := store.read()
	if err != nil {
		return "", err
	}
	ses, ok := all.Sessions[base]
	if !ok || time.Until(ses.ExpiresAt) > refreshEarly {
		return ses.AccessToken, nil
	}
	err = store.change(func(all *storedSessions) error {
		if ses, ok = all.Sessions[base]; !ok || time.Until(ses.ExpiresAt) > refreshEarly {
			return nil // another command was faster
		}
		c, err := client.New(client.Config{URL: base, UserAgent: a.agent()})
		if err != nil {
			return err
		}
		next, err := c.Refresh(ctx, ses.RefreshToken)
		if err != nil {
			return err
		}
		ses = stored(next, ses.Account)
		all.Sessions[base] = ses
		return nil
	})
	var answer *client.Error
	if errors.As(err, &answer) && answer.Status == http.StatusUnauthorized {
		a.note("the session with %s is over; run: keyfire login --url %s", base, shellQuote(base))
	}
	if err != nil {
		return "", unreachable(err)
	}
	return ses.AccessToken, nil
}

// safeForPassword refuses to send a password where anybody on the way could read it.
func safeForPassword(base string, insecure bool) error {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" || insecure {
		return nil //nolint:nilerr // the client says what is wrong with a URL
	}
	if ip := net.ParseIP(u.Hostname()); u.Hostname() == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return usagef("%s is not encrypted, and a password would be sent there; use https, or --insecure if the network in between is yours", base)
}

// trimURL is a server's URL as sessions are stored under.
func trimURL(base string) string { return strings.TrimRight(base, "/") }
