package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/sdk/client"
)

// K1, for people: passwords and the tokens of sessions are nowhere but in the answers that give them and in the files made for them. They are used well and badly, with
// everything logged and exported; then the log, what was exported, and every file of the server are searched for any 16 characters of them, in six forms.
func TestK1PeopleLeakScan(t *testing.T) {
	t.Parallel()
	const first, second, wrong = "a-first-password-of-lamps-and-orchids", "the-second-password-of-violets-and-tin", "quite-another-one-with-zinc-and-velvet"
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(first), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startWatched(t, "KEYFIRE_SUPERUSER=root", "KEYFIRE_SUPERUSER_PASSWORD_FILE="+file)

	windows := map[string]string{}
	for _, password := range []string{first, second, wrong} {
		addWindows(windows, "a password", password)
	}
	tokens := func(ses *client.Session) {
		t.Helper()
		head, rest, _ := strings.Cut(ses.AccessToken, ".")
		if head == "" || len(rest) < 100 {
			t.Fatalf("the access token has %d characters", len(ses.AccessToken))
		}
		addWindows(windows, "an access token", rest)
		addWindows(windows, "a refresh token", ses.RefreshToken[publicPrefix:])
	}
	var answers bytes.Buffer
	anybody := s.client(t, "")
	refused := func(err error) {
		t.Helper()
		if err == nil {
			t.Error("it was not refused")
			return
		}
		raw, _ := json.Marshal(err)
		answers.Write(raw)
		answers.WriteString(err.Error())
	}
	login := func(password string) *client.Session {
		t.Helper()
		ses, err := anybody.Login(t.Context(), "", "root", password)
		if err != nil {
			t.Fatal(err)
		}
		tokens(ses)
		return ses
	}
	ctx := t.Context()
	_, err := anybody.Login(ctx, "", "root", wrong)
	refused(err)
	_, err = anybody.Login(ctx, wrong, wrong, wrong)
	refused(err)
	_, err = anybody.Setup(ctx, "kfs_"+wrong, "root", wrong)
	refused(err)
	ses := login(first)
	misuse(t, s.url, ses.AccessToken, &answers)
	_, err = s.client(t, ses.AccessToken).CreateUser(ctx, "ada", "nobody", wrong)
	refused(err)
	next, err := anybody.Refresh(ctx, ses.RefreshToken)
	if err != nil {
		t.Fatal(err)
	}
	tokens(next)
	_, err = anybody.Refresh(ctx, ses.RefreshToken)
	refused(err)
	misuse(t, s.url, next.AccessToken, &answers)
	misuse(t, s.url, next.RefreshToken, &answers)
	ses = login(first)
	_, err = s.client(t, ses.AccessToken).SetPassword(ctx, "root", wrong, second)
	refused(err)
	if _, err := s.client(t, ses.AccessToken).SetPassword(ctx, "root", first, second); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client(t, login(second).AccessToken).Logout(ctx, true); err != nil {
		t.Fatal(err)
	}

	s.search(windows, answers.Bytes())
}
