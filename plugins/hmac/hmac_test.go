package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/sdk/authplugin"
	"github.com/keyfire/keyfire/sdk/authplugin/plugintest"
)

func TestMain(m *testing.M) { plugintest.Main(m, newBackend()) }

const (
	secret = "It's a Secret to Everybody"
	body   = "Hello, World!"
)

var settings = `{"replays": "allow", "senders": [
	{"name": "gh", "preset": "github", "secrets": ["the old secret of github", "` + secret + `"], "scopes": ["run:workflow/wf_push"]},
	{"name": "stripe", "preset": "stripe", "secrets": ["` + secret + `"]},
	{"name": "slack", "preset": "slack", "secrets": ["` + secret + `"]},
	{"name": "svix", "preset": "standard-webhooks", "secrets": ["whsec_` + base64.StdEncoding.EncodeToString([]byte(secret)) + `"]},
	{"name": "erp", "preset": "custom", "secrets": ["` + secret + `"], "account": "acct_erp",
	 "custom": {"header": "X-Erp-Mac", "encoding": "base64", "algorithm": "sha256", "timestamp_header": "X-Erp-Time", "separator": "\n"}}
]}`

func mac(message string) []byte {
	m := hmac.New(sha256.New, []byte(secret))
	m.Write([]byte(message))
	return m.Sum(nil)
}

func hexMAC(message string) string { return hex.EncodeToString(mac(message)) }
func b64MAC(message string) string { return base64.StdEncoding.EncodeToString(mac(message)) }

func signed(headers ...string) authplugin.Request {
	h := make(http.Header)
	for i := 0; i < len(headers); i += 2 {
		h.Add(headers[i], headers[i+1])
	}
	return authplugin.Request{Scheme: authplugin.SchemeHeader, Method: "POST", Path: "/v1/trigger/x", Header: h, Body: []byte(body)}
}

// without takes the body out of a request.
func without(r authplugin.Request) authplugin.Request {
	r.Body = nil
	return r
}

func TestConformance(t *testing.T) {
	now := fmt.Sprint(time.Now().Unix())
	old := fmt.Sprint(time.Now().Add(-time.Hour).Unix())
	plugintest.Run(t, plugintest.Config{
		Settings: settings,
		BadSettings: []string{
			`{}`, `{"senders": [{"name": "x", "preset": "github", "secrets": ["short"]}]}`, `{"senders": [{"name": "x", "preset": "gitea", "secrets": ["` + secret + `"]}]}`,
			`{"replays": "maybe", "senders": [{"name": "x", "preset": "slack", "secrets": ["` + secret + `"]}]}`,
			`{"senders": [{"name": "x", "preset": "custom", "secrets": ["` + secret + `"], "custom": {"header": "X", "encoding": "hex", "algorithm": "md5"}}]}`,
		},
		Cases: []plugintest.Case{
			// The vector of GitHub's documentation.
			{
				Name: "github", Want: plugintest.Allow, Request: signed("X-Hub-Signature-256", "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"),
				Principal: authplugin.Principal{Subject: "gh", Scopes: []string{"run:workflow/wf_push"}, Attributes: map[string]string{"scheme": "github"}},
			},
			{Name: "github, wrong", Want: plugintest.Deny, Request: signed("X-Hub-Signature-256", "sha256="+strings.Repeat("0", 64))},
			{Name: "github, without a body", Want: plugintest.Deny, Request: without(signed("X-Hub-Signature-256", "sha256="+hexMAC("")))},
			{Name: "slack, without a body", Want: plugintest.Allow, Request: without(signed("X-Slack-Signature", "v0="+hexMAC("v0:"+now+":"), "X-Slack-Request-Timestamp", now))},
			{Name: "github, two headers", Want: plugintest.Deny, Request: signed("X-Hub-Signature-256", "sha256="+hexMAC(body), "X-Hub-Signature-256", "x")},
			{Name: "stripe", Want: plugintest.Allow, Request: signed("Stripe-Signature", "t="+now+",v1="+strings.Repeat("0", 64)+",v1="+hexMAC(now+"."+body)+",v0=abc")},
			{Name: "stripe, old", Want: plugintest.Deny, Request: signed("Stripe-Signature", "t="+old+",v1="+hexMAC(old+"."+body))},
			{Name: "stripe, without time", Want: plugintest.Deny, Request: signed("Stripe-Signature", "v1="+hexMAC("."+body))},
			{Name: "stripe, time with a sign", Want: plugintest.Deny, Request: signed("Stripe-Signature", "t=+"+now+",v1="+hexMAC("+"+now+"."+body))},
			{Name: "slack", Want: plugintest.Allow, Request: signed("X-Slack-Signature", "v0="+hexMAC("v0:"+now+":"+body), "X-Slack-Request-Timestamp", now)},
			{Name: "slack, another time", Want: plugintest.Deny, Request: signed("X-Slack-Signature", "v0="+hexMAC("v0:"+old+":"+body), "X-Slack-Request-Timestamp", now)},
			{Name: "standard webhooks", Want: plugintest.Allow, Request: signed("Webhook-Id", "msg_1", "Webhook-Timestamp", now, "Webhook-Signature", "v1,AAAA v2,x v1,"+b64MAC("msg_1."+now+"."+body))},
			{Name: "standard webhooks, dot in the id", Want: plugintest.Deny, Request: signed("Webhook-Id", "msg.1", "Webhook-Timestamp", now, "Webhook-Signature", "v1,"+b64MAC("msg.1."+now+"."+body))},
			{Name: "standard webhooks, no id", Want: plugintest.Deny, Request: signed("Webhook-Timestamp", now, "Webhook-Signature", "v1,"+b64MAC("."+now+"."+body))},
			{
				Name: "custom", Want: plugintest.Allow, Request: signed("X-Erp-Mac", b64MAC(now+"\n"+body), "X-Erp-Time", now),
				Principal: authplugin.Principal{Subject: "erp", Account: "acct_erp", Attributes: map[string]string{"scheme": "custom"}},
			},
			{Name: "not signed", Want: plugintest.NotMine, Request: signed()},
		},
	})
}

func TestReplays(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_800_000_000, 0)
	b := &backend{now: func() time.Time { return at }}
	if err := b.Configure(context.Background(), []byte(strings.Replace(settings, `"replays": "allow", `, "", 1))); err != nil {
		t.Fatal(err)
	}
	ask := func(r authplugin.Request) error {
		_, err := b.Authenticate(t.Context(), &r)
		return err
	}
	slackAt := func(ts string) authplugin.Request {
		return signed("X-Slack-Signature", "v0="+hexMAC("v0:"+ts+":"+body), "X-Slack-Request-Timestamp", ts)
	}
	var denied *authplugin.Denied
	if err := ask(slackAt("1800000000")); err != nil {
		t.Fatal(err)
	}
	if err := ask(slackAt("1800000000")); !errors.As(err, &denied) {
		t.Errorf("a replay was admitted: %v", err)
	}
	upper := slackAt("1800000000")
	upper.Header.Set("X-Slack-Signature", strings.Replace(strings.ToUpper(upper.Header.Get("X-Slack-Signature")), "V0=", "v0=", 1))
	if err := ask(upper); !errors.As(err, &denied) {
		t.Errorf("a replay that is written differently was admitted: %v", err)
	}
	if err := ask(slackAt("1800000001")); err != nil {
		t.Errorf("the sender's own retry, with a time of its own: %v", err)
	}
	at = at.Add(defaultTolerance + 2*time.Second)
	if err := ask(slackAt("1800000000")); !errors.As(err, &denied) {
		t.Errorf("past the tolerance: %v", err)
	}
	github := signed("X-Hub-Signature-256", "sha256="+hexMAC(body))
	for range 2 {
		if err := ask(github); err != nil {
			t.Errorf("a scheme without time cannot tell replays, and redelivery is a feature of it: %v", err)
		}
	}
}

// TestRepeatsOnHookRoutes leaves repetitions to the route that remembers ids, and to no other.
func TestRepeatsOnHookRoutes(t *testing.T) {
	t.Parallel()
	const ts = "1800000000"
	b := &backend{now: func() time.Time { return time.Unix(1_800_000_000, 0) }}
	if err := b.Configure(context.Background(), []byte(strings.Replace(settings, `"replays": "allow", `, "", 1))); err != nil {
		t.Fatal(err)
	}
	ask := func(path string, r authplugin.Request) bool {
		r.Path = path
		_, err := b.Authenticate(t.Context(), &r)
		return err == nil
	}
	message := func(id string) authplugin.Request {
		return signed("Webhook-Id", id, "Webhook-Timestamp", ts, "Webhook-Signature", "v1,"+b64MAC(id+"."+ts+"."+body))
	}
	slack := signed("X-Slack-Signature", "v0="+hexMAC("v0:"+ts+":"+body), "X-Slack-Request-Timestamp", ts)
	for n, tc := range []struct {
		path    string
		request authplugin.Request
		want    bool
	}{
		{"/v1/hooks/a", message("1"), true},
		{"/v1/hooks/a", message("1"), true},
		{"/v1/hooks/b", message("1"), false},
		{"/v1/workflows/a/runs", message("1"), false},
		{"/v1/workflows/a/runs", message("2"), true},
		{"/v1/hooks/a", message("2"), false},
		{"/v1/hooks/a", slack, true},
		{"/v1/hooks/a", slack, false}, // it signs no id, so the route cannot tell
	} {
		if got := ask(tc.path, tc.request); got != tc.want {
			t.Errorf("request %d: admitted %v, want %v", n, got, tc.want)
		}
	}
}

func TestSecretFiles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newBackend()
	config := func(path string) []byte {
		return fmt.Appendf(nil, `{"senders": [{"name": "gh", "preset": "github", "secret_files": [%q]}]}`, path)
	}
	if err := b.Configure(t.Context(), config(path)); err != nil {
		t.Fatal(err)
	}
	r := signed("X-Hub-Signature-256", "sha256="+hexMAC(body))
	if _, err := b.Authenticate(t.Context(), &r); err != nil {
		t.Error(err)
	}
	if err := b.Validate(config(path + ".none")); err == nil || !strings.Contains(err.Error(), "secret_files") {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	m := newMemory()
	now := time.Unix(1_800_000_000, 0)
	for n := range maxSeen {
		if !m.first(sha256.Sum256(fmt.Append(nil, n)), "", now, now.Add(time.Minute)) {
			t.Fatalf("%d was taken for a replay", n)
		}
	}
	if m.first(sha256.Sum256([]byte("one more")), "", now, now.Add(time.Minute)) {
		t.Error("a full memory let something in that it could not remember")
	}
	if !m.first(sha256.Sum256([]byte("one more")), "", now.Add(2*time.Minute), now.Add(3*time.Minute)) || len(m.seen) != 1 {
		t.Errorf("what is past was not forgotten: %d left", len(m.seen))
	}
}
