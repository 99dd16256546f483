package core

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
)

// decodeByLibrary is what DecodeJSON is to find, from encoding/json.
func decodeByLibrary(raw []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	return v, nil
}

// FuzzDecodeJSON: whatever the text is, what is made of it is what encoding/json makes of it.
func FuzzDecodeJSON(f *testing.F) {
	for _, text := range []string{
		`{"a":[1,2.50,-0,1e400,{"b":null,"c":"\u00e9\n\ud83d\ude00"}],"a":true,"\u0000":[]}`,
		` [ [ ] , { } , "\ud800" , "` + "\xff" + `" , false ] `,
		`{"a" 1}`, `{"a":1,}`, `{1:2}`, `{"a":1`, `[1 2]`, `[`, `{`, `"`, ``, ` `, `nul`, `01`, `-`, `1 2`, `]`, `[]]`,
		strings.Repeat("[", 70) + strings.Repeat("]", 70),
		strings.Repeat(`{"a":`, 70) + `"x"` + strings.Repeat("}", 70),
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		want, wrong := decodeByLibrary(raw)
		got, err := DecodeJSON(raw)
		if (err == nil) != (wrong == nil) || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %#v, %v; encoding/json has %#v, %v", raw, got, err, want, wrong)
		}
	})
}

func BenchmarkDecodeJSON(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeJSON([]byte(`{"name":"Ada"}`)); err != nil {
			b.Fatal(err)
		}
	}
}
