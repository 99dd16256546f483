package authv1

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	allow := func(change func(*Principal)) *AuthenticateResponse {
		p := &Principal{Subject: "alice", Scopes: []string{"run:*"}, Attributes: map[string]string{"team": "billing"}}
		change(p)
		return &AuthenticateResponse{Allow: p}
	}
	deny := func(d *Denial) *AuthenticateResponse { return &AuthenticateResponse{Deny: d} }
	for name, tc := range map[string]struct {
		answer *AuthenticateResponse
		want   string // part of the error, "" for none
	}{
		"allow":             {allow(func(*Principal) {}), ""},
		"deny":              {deny(&Denial{Reason: "no", TtlSeconds: 60}), ""},
		"not mine":          {&AuthenticateResponse{NotMine: &NotMine{}}, ""},
		"nothing":           {&AuthenticateResponse{}, "0 verdicts"},
		"yes and no":        {&AuthenticateResponse{Allow: &Principal{Subject: "a"}, Deny: &Denial{}}, "2 verdicts"},
		"all three":         {&AuthenticateResponse{Allow: &Principal{Subject: "a"}, Deny: &Denial{}, NotMine: &NotMine{}}, "3 verdicts"},
		"no subject":        {allow(func(p *Principal) { p.Subject = "" }), "subject"},
		"line break":        {allow(func(p *Principal) { p.Subject = "a\nb" }), "subject"},
		"bidi override":     {allow(func(p *Principal) { p.Subject = "a\u202eb" }), "subject"},
		"not UTF-8":         {allow(func(p *Principal) { p.Subject = "a\xff" }), "subject"},
		"long subject":      {allow(func(p *Principal) { p.Subject = strings.Repeat("é", MaxSubject+1) }), "subject"},
		"longest subject":   {allow(func(p *Principal) { p.Subject = strings.Repeat("é", MaxSubject) }), ""},
		"account":           {allow(func(p *Principal) { p.Account = "a\x00" }), "account"},
		"empty scope":       {allow(func(p *Principal) { p.Scopes = []string{""} }), "scope"},
		"scope with space":  {allow(func(p *Principal) { p.Scopes = []string{"run:* keys:write"} }), "scope"},
		"many scopes":       {allow(func(p *Principal) { p.Scopes = make([]string, MaxScopes+1) }), "scopes"},
		"attribute name":    {allow(func(p *Principal) { p.Attributes = map[string]string{"": "x"} }), "attribute"},
		"attribute value":   {allow(func(p *Principal) { p.Attributes["x"] = strings.Repeat("v", MaxAttribute+1) }), "attribute"},
		"negative expiry":   {allow(func(p *Principal) { p.ExpiresAtUnix = -1 }), "negative"},
		"reason":            {deny(&Denial{Reason: "no\r\nSet-Cookie: x"}), "reason"},
		"long ttl":          {deny(&Denial{TtlSeconds: 61}), "seconds"},
		"negative ttl":      {deny(&Denial{TtlSeconds: -1}), "seconds"},
		"a nil answer fits": {nil, "0 verdicts"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := tc.answer.Check()
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// FuzzCheck decodes arbitrary bytes as an answer. What passes must hold one verdict and survive being sent again.
func FuzzCheck(f *testing.F) {
	for _, r := range []*AuthenticateResponse{
		{Allow: &Principal{Subject: "alice", Scopes: []string{"run:*"}}},
		{Deny: &Denial{Reason: "no"}},
		{NotMine: &NotMine{}},
		{Allow: &Principal{Subject: "alice"}, Deny: &Denial{}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r AuthenticateResponse
		if proto.Unmarshal(b, &r) != nil || r.Check() != nil {
			return
		}
		if p := r.GetAllow(); p != nil && (p.GetSubject() == "" || r.GetDeny() != nil || r.GetNotMine() != nil) {
			t.Errorf("passed: %v", &r)
		}
		if _, err := proto.Marshal(&r); err != nil {
			t.Errorf("passed, but cannot be sent: %v", err)
		}
	})
}
