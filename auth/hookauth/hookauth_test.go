package hookauth

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

const (
	// The example of the Standard Webhooks specification.
	exampleSecret    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" // #nosec G101 -- published as an example
	exampleID        = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	exampleTime      = 1614265330
	exampleBody      = `{"test": 2432232314}`
	exampleSignature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
)

// bench is an Authenticator over one workflow whose secret is in the vault.
type bench struct {
	*Authenticator
	now     time.Time
	secrets map[string]string
	findErr error
}

func setup(t *testing.T, shared bool) *bench {
	t.Helper()
	b := &bench{now: time.Unix(exampleTime, 0), secrets: map[string]string{"acct_a/CRM": exampleSecret}}
	var err error
	b.Authenticator, err = New(Config{
		Find: func(_ context.Context, ref string) (Hook, error) {
			switch {
			case b.findErr != nil:
				return Hook{}, b.findErr
			case ref == "sync":
				return Hook{Account: "acct_a", Workflow: "wf_1", Verify: core.VerifyStandardWebhooks, Secret: "CRM"}, nil
			case ref == "future":
				return Hook{Account: "acct_a", Workflow: "wf_2", Verify: "http-message-signatures", Secret: "CRM"}, nil
			}
			return Hook{}, core.Errorf(core.CodeNotFound, "no such workflow")
		},
		Secret: func(_ context.Context, account, name string) (string, error) {
			if v, ok := b.secrets[account+"/"+name]; ok {
				return v, nil
			}
			return "", core.Errorf(core.CodeNotFound, "no such secret")
		},
		Shared: shared, Now: func() time.Time { return b.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func example() auth.Credential {
	return auth.Credential{
		Place: auth.PlaceHeader, Hook: true, Workflow: "sync", Body: func() ([]byte, error) { return []byte(exampleBody), nil },
		Header: map[string][]string{HeaderID: {exampleID}, HeaderTime: {strconv.Itoa(exampleTime)}, HeaderSignature: {exampleSignature}},
	}
}

// sign signs a message as a sender would.
func sign(secret, id, at, body string) string {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		panic(err)
	}
	m := hmac.New(sha256.New, key)
	m.Write([]byte(id + "." + at + "." + body))
	return "v1," + base64.StdEncoding.EncodeToString(m.Sum(nil))
}

func TestSignedMessage(t *testing.T) {
	t.Parallel()
	b := setup(t, false)
	p, err := b.Authenticate(t.Context(), example())
	if err != nil {
		t.Fatal(err)
	}
	if p.Account != "acct_a" || p.Subject != "webhook:CRM" || p.Backend != "webhook" || len(p.Scopes) != 1 || p.Scopes[0] != "run:workflow/wf_1" || p.Attributes["webhook_id"] != exampleID {
		t.Errorf("%+v", p)
	}
	const next = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"
	b.secrets["acct_a/CRM"] = next + " " + exampleSecret
	if _, err := b.Authenticate(t.Context(), example()); err != nil {
		t.Errorf("the old secret during a rotation: %v", err)
	}
	c := example()
	c.Header[HeaderSignature] = []string{"v1a,zzz v2,AAAA " + exampleSignature[:20] + " " + sign(next, exampleID, strconv.Itoa(exampleTime), exampleBody)}
	if _, err := b.Authenticate(t.Context(), c); err != nil {
		t.Errorf("the new secret, among other signatures: %v", err)
	}
	b.secrets["acct_a/CRM"] = next
	if _, err := b.Authenticate(t.Context(), example()); core.CodeOf(err) != core.CodeInvalidKey {
		t.Errorf("the old secret after the rotation: %v", err)
	}
}

// TestForgedWebhooksA4 tries messages that are wrong in one way each. Every answer is the same: none tells what was wrong.
func TestForgedWebhooksA4(t *testing.T) {
	t.Parallel()
	at := strconv.Itoa(exampleTime)
	set := func(name string, values ...string) func(*auth.Credential) {
		return func(c *auth.Credential) { c.Header[name] = values }
	}
	signed := func(id, at, body string) func(*auth.Credential) {
		return func(c *auth.Credential) {
			c.Header[HeaderID], c.Header[HeaderTime], c.Header[HeaderSignature] = []string{id}, []string{at}, []string{sign(exampleSecret, id, at, body)}
			c.Body = func() ([]byte, error) { return []byte(body), nil }
		}
	}
	mac := strings.TrimPrefix(exampleSignature, "v1,")
	forgeries := map[string]func(*auth.Credential){
		"body changed":                 func(c *auth.Credential) { c.Body = func() ([]byte, error) { return []byte(exampleBody + " "), nil } },
		"body empty":                   func(c *auth.Credential) { c.Body = func() ([]byte, error) { return nil, nil } },
		"id changed":                   set(HeaderID, exampleID+"x"),
		"id missing":                   set(HeaderID),
		"id twice":                     set(HeaderID, exampleID, exampleID),
		"id empty, signed":             signed("", at, exampleBody),
		"id with a dot, signed":        signed("msg.1", at, exampleBody),
		"id with a space, signed":      signed("msg 1", at, exampleBody),
		"id too long, signed":          signed(strings.Repeat("x", 256), at, exampleBody),
		"time changed":                 set(HeaderTime, strconv.Itoa(exampleTime+1)),
		"time missing":                 set(HeaderTime),
		"time twice":                   set(HeaderTime, at, at),
		"301 s ago, signed":            signed(exampleID, strconv.Itoa(exampleTime-301), exampleBody),
		"301 s ahead, signed":          signed(exampleID, strconv.Itoa(exampleTime+301), exampleBody),
		"time with a sign, signed":     signed(exampleID, "+"+at, exampleBody),
		"time with a zero, signed":     signed(exampleID, "0"+at, exampleBody),
		"time in hex, signed":          signed(exampleID, "0x6037b872", exampleBody),
		"time negative, signed":        signed(exampleID, "-"+at, exampleBody),
		"time in milliseconds, signed": signed(exampleID, at+"000", exampleBody),
		"time beyond 64 bits, signed":  signed(exampleID, strings.Repeat("9", 30), exampleBody),
		"digits moved from time to body": func(c *auth.Credential) {
			c.Header[HeaderTime] = []string{at[:9]}
			c.Body = func() ([]byte, error) { return []byte(at[9:] + "." + exampleBody), nil }
		},
		"signature empty":                set(HeaderSignature, ""),
		"signature twice":                set(HeaderSignature, exampleSignature, exampleSignature),
		"signature without version":      set(HeaderSignature, mac),
		"signature of another version":   set(HeaderSignature, "v2,"+mac),
		"signature cut":                  set(HeaderSignature, exampleSignature[:len(exampleSignature)-5]),
		"signature of zeros":             set(HeaderSignature, "v1,"+base64.StdEncoding.EncodeToString(make([]byte, 32))),
		"signature of nothing":           set(HeaderSignature, "v1,"),
		"signature in hex":               set(HeaderSignature, "v1,83484cf52b04f8e4cf2531adfed9882ad4b2665137b852442d594d20e2c9d4e1"),
		"signature separated by a comma": set(HeaderSignature, "v1,AAAA,"+exampleSignature),
		"right signature as the ninth":   set(HeaderSignature, strings.Repeat("v1,AAAA ", 8)+exampleSignature),
		"signed with an empty secret":    set(HeaderSignature, sign("", exampleID, at, exampleBody)),
		"signed with the secret's text":  set(HeaderSignature, sign(base64.StdEncoding.EncodeToString([]byte(exampleSecret)), exampleID, at, exampleBody)),
		"of a workflow without webhooks": func(c *auth.Credential) { c.Workflow = "other" },
		"of no workflow":                 func(c *auth.Credential) { c.Workflow = "" },
		"a megabyte of signatures":       set(HeaderSignature, strings.Repeat("v1,AAAA ", 1<<17)),
	}
	if len(forgeries) < 30 {
		t.Fatalf("%d forgeries, 30 were promised", len(forgeries))
	}
	b := setup(t, false)
	answers := make(map[string]bool)
	for name, change := range forgeries {
		c := example()
		change(&c)
		if len(c.Header[HeaderSignature]) == 0 {
			t.Fatalf("%s: nothing to judge", name)
		}
		p, err := b.Authenticate(t.Context(), c)
		if core.CodeOf(err) != core.CodeInvalidKey || p.Subject != "" {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
		answers[err.Error()] = true
	}
	if len(answers) != 1 {
		t.Errorf("%d different answers: %v", len(answers), answers)
	}
	if _, err := b.Authenticate(t.Context(), example()); err != nil {
		t.Errorf("the good message is no longer taken: %v", err)
	}
	for _, off := range []time.Duration{-300 * time.Second, 300 * time.Second} {
		b.now = time.Unix(exampleTime, 0).Add(off)
		if _, err := b.Authenticate(t.Context(), example()); err != nil {
			t.Errorf("%s away: %v", off, err)
		}
	}
}

func TestNotApplicable(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*auth.Credential){
		"on another route": func(c *auth.Credential) { c.Hook = false },
		"a key":            func(c *auth.Credential) { c.Place, c.Secret = auth.PlaceBearer, auth.NewSecret("kft_x") },
		"another header":   func(c *auth.Credential) { delete(c.Header, HeaderSignature) },
	} {
		c := example()
		change(&c)
		if _, err := setup(t, false).Authenticate(t.Context(), c); !errors.Is(err, auth.ErrNotApplicable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := example()
	c.Workflow = "other"
	if _, err := setup(t, true).Authenticate(t.Context(), c); !errors.Is(err, auth.ErrNotApplicable) {
		t.Errorf("a workflow that says nothing, beside a backend that takes the header: %v", err)
	}
}

func TestFailsClosed(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*bench, *auth.Credential){
		"secret not set":     func(b *bench, _ *auth.Credential) { b.secrets = nil },
		"secret no base64":   func(b *bench, _ *auth.Credential) { b.secrets["acct_a/CRM"] = "whsec_%%%" },
		"secret short":       func(b *bench, _ *auth.Credential) { b.secrets["acct_a/CRM"] = "whsec_AAAA" },
		"secret blank":       func(b *bench, _ *auth.Credential) { b.secrets["acct_a/CRM"] = " " },
		"too many secrets":   func(b *bench, _ *auth.Credential) { b.secrets["acct_a/CRM"] = strings.Repeat(exampleSecret+" ", 5) },
		"scheme of tomorrow": func(_ *bench, c *auth.Credential) { c.Workflow = "future" },
		"store down":         func(b *bench, _ *auth.Credential) { b.findErr = errors.New("disk") },
	} {
		b, c := setup(t, false), example()
		change(b, &c)
		_, err := b.Authenticate(t.Context(), c)
		if core.CodeOf(err) != core.CodeAuthUnavailable {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(err.Error(), "whsec_%") || strings.Contains(err.Error(), exampleSecret) {
			t.Errorf("%s: the error quotes the secret: %v", name, err)
		}
	}
	c := example()
	c.Body = func() ([]byte, error) { return nil, core.Errorf(core.CodeBodyTooLarge, "too large") }
	if _, err := setup(t, false).Authenticate(t.Context(), c); core.CodeOf(err) != core.CodeBodyTooLarge {
		t.Errorf("a body that cannot be read: %v", err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("made of nothing")
	}
}
