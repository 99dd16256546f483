package auth

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// K1: a secret that gets into a log line, an error or an encoder by mistake is not shown there, alone or within something else.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	const text = "kft_hunter2hunter2"
	s := NewSecret(text)
	type holder struct {
		Name   string
		Secret Secret
		Ptr    *Secret
		List   []Secret
		Map    map[string]Secret
	}
	h := holder{"name", s, &s, []Secret{s}, map[string]Secret{"k": s}}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+"\n", s)
		fmt.Fprintf(&out, verb+"\n", &s)
		fmt.Fprintf(&out, verb+"\n", []any{s, &s})
		fmt.Fprintf(&out, verb+"\n", h.List)
		fmt.Fprintf(&out, verb+"\n", h.Map)
	}
	fmt.Fprintf(&out, "%v %+v %#v\n", h, h, h)
	fmt.Fprintln(&out, errors.New(fmt.Sprint("refused ", s)), Credential{Secret: s}, KeyText{secret: s})
	fmt.Fprintf(&out, "%+v %#v\n", Credential{Secret: s}, KeyText{secret: s})
	for _, logger := range []*slog.Logger{slog.New(slog.NewTextHandler(&out, nil)), slog.New(slog.NewJSONHandler(&out, nil))} {
		logger.Info("line", "secret", s, "pointer", &s, "holder", h, "credential", Credential{Secret: s}, "list", h.List)
	}
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(b)
	type element struct{ S Secret }
	b, err = xml.Marshal(element{s})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(b)
	for _, leak := range []string{"hunter2", fmt.Sprintf("%x", "hunter2"), fmt.Sprintf("%X", "hunter2"), "104 117 110"} {
		if i := strings.Index(out.String(), leak); i >= 0 {
			t.Errorf("%q is shown: ...%s...", leak, out.String()[max(0, i-80):i+20])
		}
	}
	if s.Reveal() != text || s.Empty() || !NewSecret("").Empty() || !s.Equal(NewSecret(text)) || s.Equal(NewSecret(text+"x")) || s.Equal(Secret{}) {
		t.Error("a secret is not its text")
	}
}

// K1: neither are the keys that keys are made with.
func TestPeppersAreNotShown(t *testing.T) {
	t.Parallel()
	p, err := NewPepper(map[int][]byte{1: bytes.Repeat([]byte("hunter2!"), PepperSize/8)})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+verb+"\n", p, []*Pepper{p})
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("line", "pepper", p)
	slog.New(slog.NewTextHandler(&out, nil)).Info("line", "pepper", p)
	for _, leak := range []string{"hunter2", fmt.Sprintf("%x", "hunter2"), fmt.Sprintf("%X", "hunter2"), "104 117 110"} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("%q is shown: %s", leak, out.String())
		}
	}
}
