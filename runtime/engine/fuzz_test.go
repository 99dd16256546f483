package engine

import (
	"context"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"time"

	"cel.dev/cel-go/common/types"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// FuzzTemplate proves that no text makes compiling or evaluating a template panic, hang or write anything but JSON.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{
		"", "plain", "${{ input }}", "a ${{ input.a }} b ${{ input.?b.orValue('}}') }}", "${{ {'a': {'b': 1}}.a.b }}", "${{", "${{ '", "${{ r'\\' }}", "${{ '''}}''' }}",
		"${{ nodes.a.output[0] }}", "${{ nodes['a'] }}", "${{ [1,2].map(x, x * input.n) }}", "${{ input.a // }}\n}}", "${{ \"\\u00e9\" }}${{ 1u }}", "${{ b'\\xff' }}", "${{ -9223372036854775808 }}",
		"${{ 1 / 0 }}", "${{ timestamp(0) }}", "${{ {1:2} }}", "${{ optional.none() }}", "${{ type(1) }}", "${{ input.n < input.big }}", "${{ string(input.big) }}", "${{ int(input.f) }}",
	} {
		f.Add(s)
	}
	input := newLazy(json.RawMessage(`{"a":"x\"y","n":12,"f":1.5,"big":123456789012345678901234567890,"l":[1,null,{"k":true}]}`))
	f.Fuzz(func(t *testing.T, s string) {
		began := time.Now()
		raw, err := json.Marshal(s)
		if err != nil || json.Unmarshal(raw, &s) != nil { // which replaces what is not UTF-8
			t.Skip()
		}
		c := compiler{nodes: []string{"a"}}
		tmpl := c.template(raw, "#/output")
		lines := strings.Split(s, "\n")
		for _, p := range c.problems {
			if p.Line > len(lines) || p.Line > 0 && (p.Column < 1 || p.Column > len([]rune(lines[p.Line-1]))+1) {
				t.Errorf("%q: %d:%d is outside the text: %s", s, p.Line, p.Column, p.Detail)
			}
		}
		if len(c.problems) == 0 {
			ctx, cancel := context.WithTimeoutCause(t.Context(), 2*patience, core.ErrRunTimedOut)
			defer cancel()
			scope := &scope{
				input: input, trigger: map[string]any{"type": "api", "key_name": ""}, run: map[string]any{"id": "r"},
				nodes: map[string]any{"a": map[string]any{"status": "succeeded", "output": input, "error": nil}},
			}
			w := writer{limit: wasm.MaxInput}
			if err := tmpl.append(ctx, scope, &w); err == nil && !json.Valid(w.b) {
				t.Errorf("%q gives %s", s, w.b)
			}
			if err == nil && !strings.Contains(s, opening) {
				if want := string(raw); !sameJSON(t, want, string(w.b)) {
					t.Errorf("%q without expressions gives %s", s, w.b)
				}
			}
		}
		if took := time.Since(began); took > patience {
			t.Errorf("%q took %s", s, took)
		}
	})
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var va, vb any
	return json.Unmarshal([]byte(a), &va) == nil && json.Unmarshal([]byte(b), &vb) == nil && va == vb
}

// FuzzNumber proves that a JSON number keeps its value through CEL, whatever its size.
func FuzzNumber(f *testing.F) {
	for _, s := range []string{"0", "-0", "1", "-1.5", "0.1", "1e2", "1E-7", "9007199254740993", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1.50", "0.30000000000000004", "0.3000000000000000444", "4.9e-324", "2e-324", "1.7976931348623157e308", "123456789012345678901234567890.5", "100000000000000000000000", "0.000001", "5e-7"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !json.Valid([]byte(s)) || strings.Trim(s, "-+.0123456789eE") != "" || len(s) > 50 {
			t.Skip()
		}
		want, ok := new(big.Rat).SetString(s)
		if !ok {
			t.Skip() // an exponent that nobody may send
		}
		v := number(s)
		w := writer{limit: 1 << 20}
		w.value(v)
		got, ok := new(big.Rat).SetString(string(w.b))
		if w.err != nil || !json.Valid(w.b) || !ok || got.Cmp(want) != 0 {
			t.Errorf("%s becomes %T %s (%v)", s, v, w.b, w.err)
		}
		if number(s).Equal(v) != types.True {
			t.Errorf("%s does not equal itself", s)
		}
	})
}
