package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"cel.dev/cel-go/common/types"

	"github.com/keyfire/keyfire/core"
)

// evaluate renders one template with an input, as a node's with would be.
func evaluate(t *testing.T, ctx context.Context, tmpl, input string) (string, error) {
	t.Helper()
	c := compiler{nodes: []string{"a", "b-c"}}
	tt := c.template(json.RawMessage(tmpl), "#/nodes/0/with")
	for _, p := range c.problems {
		t.Fatalf("%s: %d:%d: %s", p.Pointer, p.Line, p.Column, p.Detail)
	}
	s := &scope{
		input: newLazy(json.RawMessage(input)),
		nodes: map[string]any{
			"a":   map[string]any{"status": "succeeded", "output": newLazy(json.RawMessage(`{"n":1,"big":123456789012345678901.5,"list":[1,2,3],"t":"x"}`)), "error": nil},
			"b-c": map[string]any{"status": "skipped", "output": nil, "error": nil},
		},
		trigger: map[string]any{"type": "api", "key_name": "ci"},
		run:     map[string]any{"id": "run_1"},
	}
	w := writer{limit: 1 << 20}
	err := tt.append(ctx, s, &w)
	return string(w.b), err
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	const input = `{"n":12,"f":12.5,"t":"Ada","q":"a\"b\\c\n<&>\u0001é😀","nil":null,"yes":true,"big":12345678901234567890123.10,"max":18446744073709551615,
		"min":-9223372036854775808,"text12":"12","e":1e2,"money":19.90,"list":[{"v":1},{"v":2.5}],"o":{"b":1,"a":[true,null]},"empty":{}}`
	tests := []struct{ name, tmpl, want, err string }{
		{name: "constants stay as written", tmpl: `{"b":1.50,"a":[null,true,"x"],"n":123456789012345678901234567890}`, want: `{"b":1.50,"a":[null,true,"x"],"n":123456789012345678901234567890}`},
		{name: "alone keeps its type", tmpl: `["${{ input.n }}","${{ input.t }}","${{ input.yes }}","${{ input.nil }}","${{ input.o }}"]`, want: `[12,"Ada",true,null,{"a":[true,null],"b":1}]`},
		{name: "inside text becomes text", tmpl: `"${{ input.t }} is ${{ input.n }}, ${{ input.f }}, ${{ input.yes }}${{ input.nil }}: ${{ input.o }}"`, want: `"Ada is 12, 12.5, true: {\"a\":[true,null],\"b\":1}"`},
		{name: "text is escaped", tmpl: `["${{ input.q }}", "<${{ input.q }}>"]`, want: `["a\"b\\c\n<&>\u0001é😀","<a\"b\\c\n<&>\u0001é😀>"]`},
		{name: "whole values are copied", tmpl: `"${{ nodes.a.output }}"`, want: `{"n":1,"big":123456789012345678901.5,"list":[1,2,3],"t":"x"}`},
		{name: "numbers keep every digit", tmpl: `["${{ input.big }}","${{ input.max }}","${{ input.min }}","${{ input.e }}","${{ input.money }}","${{ nodes.a.output.big }}"]`, want: `[12345678901234567890123.10,18446744073709551615,-9223372036854775808,1e2,19.90,123456789012345678901.5]`},
		{name: "also through a choice", tmpl: `"${{ input.yes ? input.big : 0 }}"`, want: `12345678901234567890123.10`},
		{name: "also inside a computed list", tmpl: `"${{ [input.big, input.max, input.o] }}"`, want: `[12345678901234567890123.10,18446744073709551615,{"a":[true,null],"b":1}]`},
		{name: "also inside text", tmpl: `"n=${{ input.big }}"`, want: `"n=12345678901234567890123.10"`},
		{name: "also as a text", tmpl: `"${{ string(input.big) + input.t + string(input.n) }}"`, want: `"12345678901234567890123.10Ada12"`},
		{name: "long numbers compare exactly", tmpl: `"${{ [input.big > 5, input.big < input.max, input.big == input.big, input.big == 5, input.big >= input.f, 5 > input.big] }}"`, want: `[true,false,true,false,true,false]`},
		{name: "long numbers do not compute", tmpl: `"${{ input.big + 1 }}"`, err: "with: a number has too many digits to compute with; it can be copied and compared"},
		{name: "integers do not overflow silently", tmpl: `"${{ input.min - 1 }}"`, err: "overflow"},
		{name: "unsigned do not turn into negative", tmpl: `"${{ input.max + 1 }}"`, err: "too many digits"},
		{name: "ints and doubles compute together", tmpl: `"${{ [input.n * 1.5, 1.5 * input.n, input.n + input.f, input.f - input.n, input.n / 2.5, input.f / 5] }}"`, want: `[18,18,24.5,0.5,4.8,2.5]`},
		{name: "whole numbers divide as CEL does", tmpl: `"${{ [input.n / 5, input.n % 5] }}"`, want: `[2,2]`},
		{name: "remainders of whole numbers, however written", tmpl: `"${{ [input.e % 7, 7 % input.e, input.n % 5, input.e % dyn(3.0)] }}"`, want: `[2,7,2,1]`},
		{name: "no remainder of a fraction", tmpl: `"${{ input.f % 5 }}"`, err: "with: % takes whole numbers"},
		{name: "no remainder of a text", tmpl: `"${{ input.t % 5 }}"`, err: "with: % does not take string and int"},
		{name: "no remainder by zero", tmpl: `"${{ input.n % 0 }}"`, err: "with: modulus by zero"},
		{name: "no remainder of too many digits", tmpl: `"${{ input.big % 5 }}"`, err: "with: a number has too many digits"},
		{name: "not of a number", tmpl: `"${{ !input.n }}"`, err: "with: an operator got a value of a type that it does not take; !, && and || take true or false"},
		{name: "item that is not there", tmpl: `"${{ input.list[input.n] }}"`, err: "with: the list has no item 12"},
		{name: "text that is no number", tmpl: `"${{ int(input.t) }}"`, err: "with: this string cannot be converted to int"},
		{name: "text and number do not add", tmpl: `"${{ input.t + input.n }}"`, err: "with: + does not take string and int"},
		{name: "text adds", tmpl: `"${{ input.t + ' L' + string(input.n) }}"`, want: `"Ada L12"`},
		{name: "null does not compare", tmpl: `"${{ input.nil < 1 }}"`, err: "with: < does not take null_type and int"},
		{name: "missing field by path", tmpl: `{"x":{"y":["${{ input.o.c }}"]}}`, err: `with.x.y.0: input.o has no field "c"`},
		{name: "missing item by path", tmpl: `"${{ input.list[2] }}"`, err: `with: input.list has no item 2`},
		{name: "missing field computed", tmpl: `"${{ input.o.c + 1 }}"`, err: `with: there is no field "c"`},
		{name: "optional field", tmpl: `"${{ input.?nope.orValue('none') }}"`, want: `"none"`},
		{name: "optional chain", tmpl: `"${{ input.?o.?a[?0].orValue(false) }}"`, want: `true`},
		{name: "optional of a skipped node", tmpl: `"${{ nodes['b-c'].output.?x.orValue(7) }}"`, want: `7`},
		{name: "optional left empty", tmpl: `"${{ input.?nope }}"`, err: "with: the value is missing; give another one with .orValue(...)"},
		{name: "skipped node", tmpl: `["${{ nodes['b-c'].output }}","${{ nodes['b-c'].status }}","${{ nodes['b-c'].error }}"]`, want: `[null,"skipped",null]`},
		{name: "trigger and run", tmpl: `"${{ trigger.type }}/${{ trigger.key_name }}/${{ run.id }}"`, want: `"api/ci/run_1"`},
		{name: "macros", tmpl: `"${{ input.list.filter(i, i.v > 1).map(i, i.v) }}"`, want: `[2.5]`},
		{name: "objects", tmpl: `"${{ {'b': input.n, 'a': {'c': [1]}} }}"`, want: `{"a":{"c":[1]},"b":12}`},
		{name: "object keyed by number", tmpl: `"${{ {1: 2} }}"`, err: "with: an object's names must be text"},
		{name: "braces inside texts do not end it", tmpl: `"${{ '}}' + \"}}\" }}"`, want: `"}}}}"`},
		{name: "literal opening", tmpl: `"${{ '${{' }}"`, want: `"${{"`},
		{name: "two in a row", tmpl: `"${{ input.n }}${{ input.t }}"`, want: `"12Ada"`},
		{name: "nothing special", tmpl: `"$ {{ }} ${ $"`, want: `"$ {{ }} ${ $"`},
		{name: "strings", tmpl: `"${{ input.t.upperAscii().replace('A', 'o') + ['x','y'].join(',') + '%s-%d'.format([input.t, input.n]) + 'abc'.replace('b', 'zz', 1) + ['p','q'].join() + string('abcb'.indexOf('b')) + string('abcb'.indexOf('b', 2)) + string('abcb'.lastIndexOf('b')) }}"`, want: `"oDox,yAda-12azzcpq133"`},
		{name: "patterns", tmpl: `"${{ [input.t.matches('^A.a$'), matches(input.t, 'x'), 'b'.matches(input.t)] }}"`, want: `[true,false,false]`},
		{name: "bad pattern", tmpl: `"${{ input.t.matches('(' + input.t) }}"`, err: "with: the pattern is no regular expression of the RE2 syntax"},
		{name: "distinct", tmpl: `"${{ [1, 2, 1].distinct() }}"`, want: `[1,2]`},
		{name: "infinity", tmpl: `"${{ input.f / 0.0 }}"`, err: "with: the number is infinite"},
		{name: "division by zero", tmpl: `"${{ input.n / 0 }}"`, err: "with: division by zero"},
		{name: "bytes, time", tmpl: `["${{ b'abc' }}","${{ timestamp('2024-02-29T12:00:00Z') + duration('1h') }}","${{ duration('90s') }}","at ${{ timestamp('2024-02-29T12:00:00Z') }}"]`, want: `["YWJj","2024-02-29T13:00:00Z","90s","at 2024-02-29T12:00:00Z"]`},
		{name: "types have no JSON", tmpl: `"${{ type(input.n) }}"`, err: "with: the value is a type, which has no JSON form"},
		{name: "input is data, never a template", tmpl: `"${{ '${' + '{ run.id }}' }}"`, want: `"${{ run.id }}"`},
		{name: "a comment", tmpl: `"${{ input.n // how many }}"`, want: `12`},
		{name: "lines", tmpl: `"${{\n  input.n\n  + 1\n}}"`, want: `13`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := evaluate(t, t.Context(), tt.tmpl, input)
			switch {
			case tt.err != "" && err == nil:
				t.Errorf("got %s, want the error %q", got, tt.err)
			case tt.err != "" && !strings.Contains(err.Error(), tt.err):
				t.Errorf("error = %q, want %q", err, tt.err)
			case tt.err == "" && err != nil:
				t.Errorf("error: %v", err)
			case tt.err == "" && got != tt.want:
				t.Errorf("got  %s\nwant %s", got, tt.want)
			case tt.err == "" && !json.Valid([]byte(got)):
				t.Errorf("not JSON: %s", got)
			}
		})
	}
}

// TestErrorsAreNotShared has expressions fail beside each other, for the race detector: CEL writes into an error where it happened.
func TestErrorsAreNotShared(t *testing.T) {
	t.Parallel()
	input := `{"s":"` + strings.Repeat("a", 2_000) + `"}`
	var failing sync.WaitGroup
	for range 4 {
		failing.Go(func() {
			for range 20 {
				if _, err := evaluate(t, t.Context(), `"${{ input.s.replace('a', input.s) }}"`, input); err == nil || !strings.Contains(err.Error(), "longer than 1048576 bytes") {
					t.Errorf("error = %v", err)
				}
			}
		})
	}
	failing.Wait()
}

// TestExpensiveExpressionsEnd proves that an expression can neither compute for long nor make much out of little.
func TestExpensiveExpressionsEnd(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 500_000)
	input := `{"s":"` + long + `","n":100000,"list":[` + strings.Repeat("1,", 5000) + `1]}`
	tests := []struct{ name, x, err string }{
		{"loops in loops", "lists.range(1000).map(a, lists.range(1000).map(b, lists.range(1000).map(c, a * b * c))).size()", "too expensive"},
		{"a list searched over and over", "input.list.all(i, !(2 in input.list))", "too expensive"},
		{"a text for each of many items", "input.list.map(i, 'item ' + string(i) + ';').join('')", ""},
		{"a text doubled", "input.s + input.s + input.s", "too large"},
		{"a text replaced by longer ones", "input.s.replace('a', input.s)", "longer than 1048576 bytes"},
		{"the same, some of it", "input.s.replace('', input.s, 400000)", "longer than 1048576 bytes"},
		{"many texts joined", "lists.range(input.n).map(i, input.s).join(',')", ""},
		{"many texts formatted", "'%s%s%s'.format([input.s, input.s, [input.s, input.s]])", "longer than 1048576 bytes"},
		{"a long range", "lists.range(1000000000)", "exceeds maximum"},
		{"lists doubled", "[input.list].map(a, a + a)[0].map(b, b).size()", ""},
		{"shared lists compared", "[[1,1,1,1,1,1,1,1,1,1]].map(a, [a,a,a,a,a,a,a,a,a,a].map(b, [b,b,b,b,b,b,b,b,b,b].map(c, [c,c,c,c,c,c,c,c,c,c,c,c,c,c,c,c,c,c,c,c].map(d, d)))) == input.list", ""},
		{"a long text in a long text", "input.s.indexOf(input.s.substring(1) + 'b')", "too expensive"},
		{"the same from the end", "input.s.lastIndexOf('b' + input.s.substring(1))", "too expensive"},
		{"a short text in a long text", "input.s.indexOf('aaaaaaaaaaaaaaaaaab')", ""},
		{"distinct of many", "input.list.distinct()", "too expensive"},
		{"a wide pattern", "input.s.matches('(a?){' + '900}b')", "the pattern is too large"},
		{"a pattern that repeats", "input.s.matches('(a?){100}b')", "too long for this pattern; it can match 12"},
		{"a small pattern", "input.s.matches('^a+$')", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tmpl, _ := json.Marshal("${{ " + tt.x + " }}")
			ctx, cancel := context.WithTimeoutCause(t.Context(), 2*patience, core.ErrRunTimedOut)
			defer cancel()
			began := time.Now()
			_, err := evaluate(t, ctx, string(tmpl), input)
			if took := time.Since(began); took > patience {
				t.Errorf("took %s", took)
			}
			if tt.err == "" {
				t.Logf("err = %v after %s", err, time.Since(began))
			} else if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error = %v, want %q", err, tt.err)
			}
		})
	}
}

// TestExpressionsMakeLittle proves that an expression cannot make more than some tens of megabytes, in loops that are too short to be measured too. It is not parallel, since it
// counts what is allocated.
func TestExpressionsMakeLittle(t *testing.T) { //nolint:paralleltest // see above
	const most = 100 << 20
	input := `{"texts":[` + strings.Repeat(`"`+strings.Repeat("a", 4000)+`",`, 199) + `"b"]}`
	for _, of := range []string{"a + b", "bytes(a)", "bytes(a) + b'x'", "a.upperAscii()", "base64.encode(bytes(b))", "{a + 'x': 1}", "a.replace('b', 'c') + b", "a.split('')", "lists.range(99999)"} {
		tmpl, _ := json.Marshal("${{ input.texts.map(a, input.texts.map(b, " + of + ")).size() }}")
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := evaluate(t, t.Context(), string(tmpl), input)
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), "too expensive") {
			t.Errorf("%s: error = %v", of, err)
		}
		if made := after.TotalAlloc - before.TotalAlloc; made > most {
			t.Errorf("%s: %d MiB were made", of, made>>20)
		}
	}
}

// TestExpressionStopsWithTheRun proves that an expression that computes notices the run's end.
func TestExpressionStopsWithTheRun(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(core.ErrRunCancelled)
	_, err := evaluate(t, ctx, `"${{ lists.range(1000).map(a, lists.range(1000).map(b, a * b)).size() }}"`, `{}`)
	if core.CodeOf(err) != core.CodeRunCancelled {
		t.Errorf("error = %v, want the cause of the context", err)
	}
}

// TestPatternsFromInputs: patterns that come from inputs are neither kept at any length, nor do they keep others waiting while they are read.
func TestPatternsFromInputs(t *testing.T) {
	t.Parallel()
	p := newPatterns()
	for i := range 2 * maxPatterns {
		source := fmt.Sprintf("[%s]x{%d}", strings.Repeat("a", 64<<10), 1+i)
		if v := p.match(types.String("a"), types.String(source)); !types.IsError(v) || !strings.Contains(v.(*types.Err).Error(), "the pattern is too large") {
			t.Fatalf("a pattern of %d bytes gives %v", len(source), v)
		}
		small := fmt.Sprintf("[%s]x{%d}", strings.Repeat("a", maxPatternText-20), 1+i%500)
		if v := p.match(types.String("b"), types.String(small)); v != types.False {
			t.Fatal(v)
		}
	}
	kept := 0
	for source := range p.compiled {
		kept += len(source)
	}
	if most := maxPatterns * maxPatternText; kept > most || len(p.compiled) > maxPatterns {
		t.Errorf("%d patterns with %d bytes are kept", len(p.compiled), kept)
	}
}

// TestEnvironmentIsShared proves, with the race detector, that expressions are compiled at the same time in one environment, right ones and wrong ones.
func TestEnvironmentIsShared(t *testing.T) {
	t.Parallel()
	env, err := newEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	start := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		for src, fine := range map[string]bool{"inptu.n + 1": false, "[1, 2].map(i, [i].map(j, i + j)).size()": true} {
			wg.Go(func() {
				<-start
				if _, issues := env.Compile(src); (issues.Err() == nil) != fine {
					t.Errorf("%s: %v", src, issues.Err())
				}
			})
		}
	}
	close(start)
	wg.Wait()
}

// What does not fit stays an error, whatever small there is after it: a text with a gap would be another one.
func TestTemplateWithoutRoom(t *testing.T) {
	t.Parallel()
	for _, small := range []string{"1", "[1]", "{'a': 1}", "b'x'"} {
		var c compiler
		tt := c.template(json.RawMessage(`"${{ 'fits' }} does not fit ${{ `+small+` }}"`), "#/with")
		w := writer{limit: 12}
		if err := tt.append(t.Context(), &scope{}, &w); !errors.Is(err, errTooLarge) {
			t.Errorf("%s: %v, %s", small, err, w.b)
		}
	}
}
