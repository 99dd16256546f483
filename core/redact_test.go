package core

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestRedactS5: a secret does not come out of text or JSON, as it is, escaped, or in base64 of any alphabet and alignment.
func TestRedactS5(t *testing.T) {
	t.Parallel()
	secrets := map[string]string{"A": "sk_live_51HqLyjWDarjtT1zd", "B": `p"w\ü-12345678`, "C": "12345678901", "D": "sk_live_51"}
	r := NewRedactor(secrets)
	for name, s := range secrets {
		texts := []string{s, "before " + s + " after", s + s}
		for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
			for _, before := range []string{"", "u", "us", "usr", "user:"} {
				for _, after := range []string{"", "x", "xy", "xyz"} {
					texts = append(texts, enc.EncodeToString([]byte(before+s+after)))
				}
			}
		}
		for _, text := range texts {
			if got := r.Text(text); !strings.Contains(got, Redacted) || strings.Contains(got, s) {
				t.Errorf("%s: %q gives %q", name, text, got)
			}
			quoted, err := json.Marshal(map[string]any{text: []any{text, 1.50, nil, true}})
			if err != nil {
				t.Fatal(err)
			}
			got := r.JSON(quoted)
			if !json.Valid(got) || strings.Count(string(got), Redacted) < 2 || !strings.Contains(string(got), ",1.5,null,true]") {
				t.Errorf("%s: %s gives %s", name, quoted, got)
			}
		}
	}
	if got := string(r.JSON([]byte(`{"n": 12345678901, "m": -12345678901.5e3, "k":1234567890, "u":"\u0073k_live_51HqLyjWDarjtT1zd"}`))); got !=
		`{"n": "[redacted]", "m": "[redacted]", "k":1234567890, "u":"[redacted]"}` {
		t.Errorf("numbers and escapes give %s", got)
	}
	untouched := `{"a":"\u00fc\/", "b" : [1e2, -0.0, 12345678901234567890.10], "c":"<&>"}`
	if got := string(r.JSON([]byte(untouched))); got != untouched {
		// 12345678901 is the beginning of the long number.
		if got != strings.Replace(untouched, "12345678901234567890.10", `"[redacted]"`, 1) {
			t.Errorf("%s gives %s", untouched, got)
		}
	}
	if NewRedactor(nil) != nil || NewRedactor(map[string]string{"A": "short"}) != nil {
		t.Error("a redactor without secrets")
	}
}

// TestRedactEncodedS5: a secret does not come out of an address, a form, hexadecimal digits, or JSON that was quoted again.
func TestRedactEncodedS5(t *testing.T) {
	t.Parallel()
	const part = "Vq7xkP2m"
	for _, s := range []string{"a/b+" + part + "==", `ü "` + part + `\ <&>`, "9~!*'()" + part + "$,;:@?#[]%", "\ufeffclient\t" + part} {
		r := NewRedactor(map[string]string{"A": s})
		component := strings.NewReplacer("+", "%20", "%21", "!", "%27", "'", "%28", "(", "%29", ")", "%2A", "*").Replace(url.QueryEscape(s)) // encodeURIComponent
		texts := []string{
			url.QueryEscape(s), url.PathEscape(s), "https://" + url.UserPassword("u", s).String() + "@h/", component, strings.ReplaceAll(url.QueryEscape(s), "%2F", "/"),
			hex.EncodeToString([]byte(s)), strings.ToUpper(hex.EncodeToString([]byte("key=" + s))), fmt.Sprintf("%x", s+"\n"),
		}
		document, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(string(document))
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(document), string(again), strconv.Quote(string(document)), strconv.Quote(s))
		// As a log prints it, see runtime/wasm.
		texts = append(texts, strings.NewReplacer("\t", " ", "\ufeff", "").Replace(s))
		for _, text := range texts {
			if got := r.Text("at " + text + "."); !strings.Contains(got, Redacted) || strings.Contains(got, part) || strings.Contains(got, hex.EncodeToString([]byte(part))) {
				t.Errorf("%q: %q gives %q", s, text, got)
			}
		}
		digits := regexp.MustCompile("%[0-9A-F]{2}").ReplaceAllStringFunc(url.QueryEscape(s), strings.ToLower)
		if got := r.Text(digits); got != Redacted {
			t.Errorf("%q: %q gives %q", s, digits, got)
		}
	}
}

// TestRedactQuotedAndInLinesS5: a secret that is a document, as many are, comes out neither quoted, as loggers do with it, nor line by line, as a log is.
func TestRedactQuotedAndInLinesS5(t *testing.T) {
	t.Parallel()
	key := "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg\r\n/ü<&>\"\\/kI9qUe3Xh4K2mZ0aLw8sV5tR1yP7nB6c\n-----END PRIVATE KEY-----\n"
	r := NewRedactor(map[string]string{"KEY": key})
	ascii := strings.ReplaceAll(strconv.QuoteToASCII(key), `\x`, `\u00`)
	plain := strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&")
	marshalled, err := json.Marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range append(strings.Split(key, "\n"), strconv.Quote(key), ascii, string(marshalled), plain.Replace(string(marshalled))) {
		got := r.Text("time=now msg=" + text)
		for _, part := range []string{"MIGHAgEAMBMG", "kI9qUe3Xh4K2m"} {
			if strings.Contains(got, part) {
				t.Errorf("%q gives %q", text, got)
			}
		}
	}
	document, err := json.Marshal(map[string]string{"log": string(marshalled)}) // JSON in JSON
	if err != nil {
		t.Fatal(err)
	}
	if got := string(r.JSON(document)); !strings.Contains(got, Redacted) || strings.Contains(got, "MIGH") || !json.Valid([]byte(got)) {
		t.Errorf("%s gives %s", document, got)
	}
	if got := NewRedactor(map[string]string{"CREDENTIALS": "{\n  \"type\": \"user\",\n  \"token\": \"4f9c2b7e6d1a8035\"\n}"}).Text(`the type of "token" is "type": "user",`); strings.Contains(got, Redacted) {
		t.Errorf("a short line of a document is taken out: %q", got)
	}
}
