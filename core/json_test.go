package core

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// accepted are JSON texts that RFC 8259 allows and CheckJSON takes, by the section of the RFC that allows them.
var accepted = []string{
	// Section 2: any value may be a text; white space around it.
	`null`, `true`, `false`, `0`, `-0`, `""`, `"a"`, `[]`, `{}`, ` null`, "null\n", "\t\r\n null \t\r\n", " [ ] ", " { } ", "[\n]", "{\t}",
	`42`, `-1`, `-0.1`, `"\u0041"`, ` "asd"`, `"asd "`, "[ 4]", `["a"]`, `[ "a" , 1 ]`, `[1 ]`, "[1\n,1\n,\t1]", `[true]`, `[false]`, `[null]`,
	// Section 3: the three words.
	`[true,false,null]`, `{"a":true}`, `{"a":null,"b":false}`,
	// Section 4: objects.
	`{"a":1}`, `{"a":"b"}`, `{"":0}`, `{"a":[]}`, `{"a":{}}`, `{"a":{"a":{"a":1}}}`, `{"a":1,"b":2}`, `{"a" : 1 , "b" :2}`, "{\n\"a\": \"b\"\n}",
	`{"a":1,"A":2}`, `{"a":1,"a ":2}`, `{"a":1,"\u00e4":2}`, `{"x":[{"id":1}],"id":"x"}`, `{"\u0041":1,"\u0042":2}`, `{"min":-1.0e+28,"max":1.0e+28}`,
	`{"title":"\u041f\u043e\u043b\u0442\u043e\u0440\u0430"}`, `{"a":[{"b":1},{"b":2}]}`, `[{"a":1},{"a":1}]`, `{"a":{"b":1},"b":{"b":1}}`,
	`{"1":1,"01":2,"1.0":3}`, "{\"\u00e9\":1,\"e\u0301\":2}", // two ways to write é: other bytes, another name
	// Section 5: arrays.
	`[1,2,3]`, `[[]]`, `[[],[]]`, `[[[[[[[[]]]]]]]]`, `[null,1,"1",{}]`, `[1,null,null,null,2]`, `[""]`, `[[]   ]`, `[ ]`, `[{},{}]`,
	// Section 6: numbers.
	`[0]`, `[-0]`, `[0.0]`, `[-0.0]`, `[123]`, `[123.456]`, `[123.456789]`, `[1e5]`, `[1E5]`, `[1e+5]`, `[1e-5]`, `[1E+2]`, `[1E-2]`, `[0e0]`, `[0e+1]`, `[0E-1]`,
	`[0e1]`, `[20e1]`, `[123e65]`, `[123.456e78]`, `[1.5e10]`, `[-123]`, `[-1]`, `[-0.5]`, `[0.1e-2]`, `[100000000000000000000]`, `[12345678901234567890123456789]`,
	`[9007199254740993]`, `[1.7976931348623157e308]`, `[-1.7976931348623157e308]`, `[5e-324]`, `[2.2250738585072014e-308]`, `[1e308]`, `[1e-323]`, `[0e9999]`, `[0.0e-9999]`,
	`[-0.000000000000000000000000000000000000000000000000000000000000000000000000000001]`, `[0.1000000000000000055511151231257827021181583404541015625]`,
	`[1` + strings.Repeat("0", 308) + `]`, `[0.` + strings.Repeat("0", 320) + `1]`, `[1` + strings.Repeat("0", 400) + `e-400]`,
	// Section 7: strings.
	`["a"]`, `["\""]`, `["\\"]`, `["\/"]`, `["\b\f\n\r\t"]`, `["\"\\\/\b\f\n\r\t"]`, `["\u0000"]`, `["\u0022"]`, `["\u005C"]`, `["\u00e9"]`, `["\u00E9"]`, `["\uFFFF"]`, `["\uFFFE"]`,
	`["\uD834\uDD1E"]`, `["\ud83d\ude00"]`, `["\uDBFF\uDFFF"]`, `["\uD800\uDC00"]`, `["\\u0000"]`, `["\\a"]`, `["\u2028\u2029"]`, "[\"\u2028\u2029\"]", `["a/*b*/c"]`, `[" "]`,
	"[\"\x7f\"]", "[\"\u0080\"]", "[\"é\"]", "[\"日本語\"]", "[\"😀\"]", "[\"\U0010ffff\"]", "[\"\ufffe\uffff\"]", "[\"\U0001fffe\"]", "[\"\ufeff\"]", "[\"\ufffd\"]", `["new\u00A0line"]`, `["\u0821"]`, `["\u0123"]`,
	`["asd "]`, `["\u0061\u30af\u30EA\u30b9"]`, "[\"€\U0001d11e\"]", `["` + strings.Repeat("x", 5000) + `"]`, `"` + strings.Repeat(`\n`, 500) + `"`,
	// Section 9: limits at their edges.
	strings.Repeat("[", 64) + strings.Repeat("]", 64), strings.Repeat(`{"a":`, 63) + "{}" + strings.Repeat("}", 63), "[" + strings.Repeat("1,", 99_998) + "1]", objectOf(50, ""), objectOf(1000, ""),
}

// refused are texts that CheckJSON refuses, with a part of the rule it names.
var refused = []struct{ text, rule string }{
	// Nothing, or more than one thing.
	{"", "text ends"},
	{" ", "text ends"},
	{"\n\t", "text ends"},
	{"1 2", "nothing after"},
	{"[] []", "nothing after"},
	{"{}{}", "nothing after"},
	{"[1]x", "nothing after"},
	{`{"a":1}}`, "nothing after"},
	{"[]]", "nothing after"},
	{`""""`, "nothing after"},
	{`{"a":"b"}/**/`, "nothing after"},
	{`{"a":"b"}#`, "nothing after"},
	{"1]", "nothing after"},
	{"\"\"\x00", "nothing after"},
	{"nullnull", "nothing after"},
	{"[1],", "nothing after"},
	{"[]\x0b", "nothing after"},
	{"2@", "nothing after"},
	{`{"a":1}//`, "nothing after"},
	// A byte order mark, other encodings, other white space.
	{"\xef\xbb\xbf{}", "byte order mark"},
	{"\xef\xbb\xbf", "byte order mark"},
	{"\xff\xfe{\x00}\x00", "value must"},
	{"\xfe\xff\x00[\x00]", "value must"},
	{"\u00a0[]", "value must"},
	{"\x0c[]", "value must"},
	{"[\x0c]", "value must"},
	{"[\u2060]", "value must"},
	{"\u2028{}", "value must"},
	{"{\u00a0}", "member name"},
	{"\x00", "value must"},
	{"[\x0b1]", "value must"},
	// Words.
	{"nul", "only words"},
	{"nulll", "nothing after"},
	{"tru", "only words"},
	{"TRUE", "value must"},
	{"True", "value must"},
	{"fals", "only words"},
	{"FALSE", "value must"},
	{"NULL", "value must"},
	{"[nul]", "only words"},
	{"[tru]", "only words"},
	{"[fals]", "only words"},
	{"[True]", "value must"},
	{"truth", "only words"},
	{"[t]", "only words"},
	{"NaN", "value must"},
	{"[NaN]", "value must"},
	{"[-NaN]", "minus"},
	{"Infinity", "value must"},
	{"[Infinity]", "value must"},
	{"[-Infinity]", "minus"},
	{"undefined", "value must"},
	{"[nan]", "only words"},
	{"yes", "value must"},
	{"[true", "goes on"},
	{"a", "value must"},
	{"[a]", "value must"},
	{"å", "value must"},
	{"<null>", "value must"},
	{"[<null>]", "value must"},
	{"*", "value must"},
	{"@", "value must"},
	// Arrays.
	{"[", "text ends"},
	{"]", "value must"},
	{"[1", "goes on"},
	{"[1,", "text ends"},
	{"[1,]", "value must"},
	{"[,1]", "value must"},
	{"[,]", "value must"},
	{"[1,,2]", "value must"},
	{"[1,,]", "value must"},
	{"[1 2]", "goes on"},
	{"[1:2]", "goes on"},
	{"[1;2]", "goes on"},
	{"[1}", "goes on"},
	{"[[]", "goes on"},
	{"[3[4]]", "goes on"},
	{`["a"`, "goes on"},
	{`["a" "b"]`, "goes on"},
	{`["",]`, "value must"},
	{`["x"]]`, "nothing after"},
	{"[1\n1]", "goes on"},
	{"['a']", "value must"},
	{`["a",4,1,`, "text ends"},
	{`[""`, "goes on"},
	{"[\n1,\n1\n,1", "goes on"},
	{"[{}", "goes on"},
	{"[x", "value must"},
	{"[*]", "value must"},
	{"[...]", "value must"},
	{`["a\`, "must end"},
	{"[1,2", "goes on"},
	{"[/**/]", "value must"},
	{"[//\n]", "value must"},
	{"[#]", "value must"},
	// Objects.
	{"{", "member name"},
	{"}", "value must"},
	{"{]", "member name"},
	{`{"a"`, "colon"},
	{`{"a"}`, "colon"},
	{`{"a":`, "text ends"},
	{`{"a":}`, "value must"},
	{`{"a":1`, "goes on"},
	{`{"a":1,`, "member name"},
	{`{"a":1,}`, "member name"},
	{`{,"a":1}`, "member name"},
	{`{"a":1,,"b":2}`, "member name"},
	{`{"a" 1}`, "colon"},
	{`{"a",1}`, "colon"},
	{`{"a"::1}`, "value must"},
	{`{a:1}`, "member name"},
	{`{'a':1}`, "member name"},
	{`{1:1}`, "member name"},
	{`{null:1}`, "member name"},
	{`{[]:1}`, "member name"},
	{`{"a":1 "b":2}`, "goes on"},
	{`{"a":1]`, "goes on"},
	{`{"a":'b'}`, "value must"},
	{`{"a":b}`, "value must"},
	{`{"a":1;"b":2}`, "goes on"},
	{`{"a":/**/1}`, "value must"},
	{`{/**/}`, "member name"},
	{`{"a":"b",,}`, "member name"},
	{`{true:false}`, "member name"},
	{`{"a":"b"`, "goes on"},
	{`{"a":"b`, "must end"},
	{`{"a`, "must end"},
	{`{"a":1,"b"}`, "colon"},
	{`{9999E9999:1}`, "member name"},
	{`{"x", null}`, "colon"},
	{`{"x"x:1}`, "colon"},
	{`{"a":=1}`, "value must"},
	// Numbers.
	{"01", "superfluous"},
	{"-01", "superfluous"},
	{"00", "superfluous"},
	{"[-012]", "superfluous"},
	{"+1", "value must"},
	{"[+1]", "value must"},
	{"[++1]", "value must"},
	{"-", "minus"},
	{"[-]", "minus"},
	{"[--1]", "minus"},
	{"[- 1]", "minus"},
	{"[-a]", "minus"},
	{".5", "value must"},
	{"[.5]", "value must"},
	{"[-.5]", "minus"},
	{"[1.]", "decimal point"},
	{"[-1.]", "decimal point"},
	{"[2.e3]", "decimal point"},
	{"[0.e1]", "decimal point"},
	{"[1.e]", "decimal point"},
	{"[1e]", "exponent"},
	{"[1E]", "exponent"},
	{"[1e+]", "exponent"},
	{"[1e-]", "exponent"},
	{"[1E+]", "exponent"},
	{"[0e]", "exponent"},
	{"[0.3e+]", "exponent"},
	{"[1eE2]", "exponent"},
	{"[1ee2]", "exponent"},
	{"[1.5.5]", "goes on"},
	{"[1e5.5]", "goes on"},
	{"[1+2]", "goes on"},
	{"[0x1F]", "goes on"},
	{"[0b1]", "goes on"},
	{"[1_000]", "goes on"},
	{"[1,000]", "superfluous"},
	{"[1a]", "goes on"},
	{"[123abc]", "goes on"},
	{"[1 000.0]", "goes on"},
	{"[\uff11]", "value must"},
	{"[0.1.2]", "goes on"},
	{"[9.e+]", "decimal point"},
	{"[.-1]", "value must"},
	{"[.2e-3]", "value must"},
	{"[1e1x]", "goes on"},
	{"[-2.]", "decimal point"},
	{"[1\x00]", "goes on"},
	{"[-1x]", "goes on"},
	{"[-foo]", "minus"},
	{"[0E+]", "exponent"},
	{"[1.8011670033376514H-308]", "goes on"},
	{"[1e309]", "range"},
	{"[-1e309]", "range"},
	{"[1.7976931348623159e308]", "range"},
	{"[1e-325]", "range"},
	{"[1e400]", "range"},
	{"[1e-400]", "range"},
	{"[123123e100000]", "exponent of"},
	{"[0e10000]", "exponent of"},
	{"[123e-10000000]", "exponent of"},
	{"[1e99999999999999999999]", "exponent of"},
	{"[1" + strings.Repeat("0", 309) + "]", "range"},
	{"[0." + strings.Repeat("0", 400) + "1]", "range"},
	{"[0." + strings.Repeat("1", 1000) + "]", "1000 characters"},
	// Strings.
	{`"`, "must end"},
	{`"a`, "must end"},
	{`["a]`, "must end"},
	{`["\"]`, "must end"},
	{`["\`, "must end"},
	{`["\\\"]`, "must end"},
	{`["\x00"]`, "escapes are"},
	{`["\a"]`, "escapes are"},
	{`["\'"]`, "escapes are"},
	{`["\0"]`, "escapes are"},
	{`["\v"]`, "escapes are"},
	{`["\e"]`, "escapes are"},
	{"[\"\\\t\"]", "escapes are"},
	{`["\U0041"]`, "escapes are"},
	{`["\ "]`, "escapes are"},
	{"[\"\\é\"]", "escapes are"},
	{"[\"\\\x00\"]", "escapes are"},
	{`["\u"]`, "hexadecimal"},
	{`["\u0"]`, "hexadecimal"},
	{`["\u00"]`, "hexadecimal"},
	{`["\u004"]`, "hexadecimal"},
	{`["\u00G0"]`, "hexadecimal"},
	{`["\u+041"]`, "hexadecimal"},
	{`["\u 041"]`, "hexadecimal"},
	{`["\u{41}"]`, "hexadecimal"},
	{`["\u00A"]`, "hexadecimal"},
	{`["\uqqqq"]`, "hexadecimal"},
	{`["\u123`, "hexadecimal"},
	{"[\"\n\"]", "control"},
	{"[\"\t\"]", "control"},
	{"[\"\r\"]", "control"},
	{"[\"\x00\"]", "control"},
	{"[\"\x1f\"]", "control"},
	{"[\"a\x00a\"]", "control"},
	{"[\"\\n\n\"]", "control"},
	{"{\"a\nb\":1}", "control"},
	{`["asd`, "must end"},
	{`[\u0020"a"]`, "value must"},
	{`[\n]`, "value must"},
	{`"\u00`, "hexadecimal"},
	{`["a\u00e`, "hexadecimal"},
	// Surrogates that are not a pair.
	{`["\uD800"]`, "surrogate"},
	{`["\uDC00"]`, "surrogate"},
	{`["\uD834\u0041"]`, "surrogate"},
	{`["\uD834\uD834"]`, "surrogate"},
	{`["\uDD1E\uD834"]`, "surrogate"},
	{`["\uD800abc"]`, "surrogate"},
	{`["\uD800\n"]`, "surrogate"},
	{`["\ud800`, "surrogate"},
	{`["\uD800\"]`, "surrogate"},
	{`["\uD800\u"]`, "surrogate"},
	{`["\uD834\uDd"]`, "surrogate"},
	{`["\uDFAA"]`, "surrogate"},
	{`{"\uD800":1}`, "surrogate"},
	{`["\uD800\uD800\uDC00"]`, "surrogate"},
	// Bytes that are not UTF-8.
	{"[\"\xff\"]", "UTF-8"},
	{"[\"\x80\"]", "UTF-8"},
	{"[\"\xc3\"]", "UTF-8"},
	{"[\"\xc0\xaf\"]", "UTF-8"},
	{"[\"\xe0\x80\x80\"]", "UTF-8"},
	{"[\"\xed\xa0\x80\"]", "UTF-8"},
	{"[\"\xf4\x90\x80\x80\"]", "UTF-8"},
	{"[\"\xf0\x28\x8c\xbc\"]", "UTF-8"},
	{"[\"\xe2\x82\"]", "UTF-8"},
	{"[\"\xfc\x80\x80\x80\x80\x80\"]", "UTF-8"},
	{"[\"\\n\xff\"]", "UTF-8"},
	{"{\"\xff\":1}", "UTF-8"},
	{"[\xff]", "value must"},
	{"[\"\\u0041\xc3\"]", "UTF-8"},
	{"[\"\xe9\"]", "UTF-8"},
	{"[\"日ш\xfa\"]", "UTF-8"},
	{"[\"\\\xe5\"]", "escapes are"},
	{"[1\xe5]", "goes on"},
	{"[1e1\xe5]", "goes on"},
	{"[0\xe5]", "goes on"},
	{"[-123.123\xe5]", "goes on"},
	{"{\"\xb9\":\"0\",}", "UTF-8"},
	// What RFC 8259 leaves open and we do not.
	{`{"a":1,"a":1}`, "that name already"},
	{`{"a":1,"b":2,"a":3}`, "that name already"},
	{`{"a":1,"\u0061":2}`, "that name already"},
	{`{"\u0061":1,"\u0061":2}`, "that name already"},
	{`[{"x":{"a":1,"a":2}}]`, "that name already"},
	{`{"":1,"":2}`, "that name already"},
	{`{"\/":1,"/":2}`, "that name already"},
	{`{"\ud83d\ude00":1,"😀":2}`, "that name already"},
	{`{"a":{"a":1},"a":2}`, "that name already"},
	{objectOf(50, `,"n7":0`), "that name already"},
	{objectOf(1000, `,"n999":0`), "that name already"},
	{objectOf(13, `,"n12":0`), "that name already"},
	{objectOf(12, `,"n0":0`), "that name already"},
	{objectOf(11, `,"n10":0`), "that name already"},
	{objectOf(20, `,"\u006e0":0`), "that name already"},
	{`{"\u0000":1}`, "NUL"},
	{`{"a\u0000b":1}`, "NUL"},
	{"{\"a\x00\":1}", "control"},
	{strings.Repeat("[", 65) + strings.Repeat("]", 65), "deeper"},
	{strings.Repeat(`{"a":`, 65) + "1" + strings.Repeat("}", 65), "deeper"},
	{strings.Repeat("[", 100_000), "deeper"},
	{strings.Repeat(`[{"":`, 50_000), "deeper"},
	{"[" + strings.Repeat("1,", 100_000) + "1]", "more than 100000"},
}

// objectOf writes an object of n members called n0, n1, ... and what follows them.
func objectOf(n int, more string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"n%d":%d`, i, i)
	}
	return "{" + b.String()[1:] + more + "}"
}

func TestCheckJSONAccepts(t *testing.T) {
	t.Parallel()
	if len(accepted) < 95 {
		t.Errorf("%d cases, want at least 95", len(accepted))
	}
	for _, text := range accepted {
		if err := CheckJSON([]byte(text), JSONLimits{}); err != nil {
			t.Errorf("%.80q refused: %v", text, err)
		}
		if !json.Valid([]byte(text)) {
			t.Errorf("%.80q is no JSON", text)
		}
	}
}

func TestCheckJSONRefuses(t *testing.T) {
	t.Parallel()
	if len(refused) < 188 {
		t.Errorf("%d cases, want at least 188", len(refused))
	}
	for _, c := range refused {
		err := CheckJSON([]byte(c.text), JSONLimits{})
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeInvalidJSON {
			t.Errorf("%.80q: got %v", c.text, err)
			continue
		}
		if !strings.HasPrefix(e.Message, "at byte ") || !strings.Contains(e.Message, c.rule) {
			t.Errorf("%.80q: message %q does not name the rule %q", c.text, e.Message, c.rule)
		}
	}
}

func TestCheckJSONSaysWhere(t *testing.T) {
	t.Parallel()
	for text, offset := range map[string]int{
		`{"a":1,"a":2}`: 7, `[1,2,x]`: 5, `{"a":"` + "\n" + `"}`: 6, `["\ud800"]`: 2, `[1e999]`: 1, `{"a" 1}`: 5, `[1] 2`: 4, "[\"é\xff\"]": 4, `[`: 1, "\xef\xbb\xbf1": 0, `["ab\q"]`: 4,
	} {
		err := CheckJSON([]byte(text), JSONLimits{})
		if want := fmt.Sprintf("at byte %d:", offset); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestCheckJSONLimits(t *testing.T) {
	t.Parallel()
	lim := JSONLimits{Depth: 2, Values: 4}
	for text, ok := range map[string]bool{`[[1,2]]`: true, `[[[]]]`: false, `[1,2,3]`: true, `[1,2,3,4]`: false, `{"a":1,"b":2,"c":3}`: true, `{"a":[1,2,3]}`: false} {
		if err := CheckJSON([]byte(text), lim); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// One object with very many members must not cost the square of their number, nor much memory.
func TestCheckJSONManyMembers(t *testing.T) {
	text := []byte(objectOf(99_999, ""))
	if allocs := testing.AllocsPerRun(3, func() {
		if err := CheckJSON(text, JSONLimits{}); err != nil {
			t.Fatal(err)
		}
	}); allocs > 2000 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestCheckJSONAllocatesNothing(t *testing.T) {
	text := []byte(`{"input":{"customer":"acme","amount":12.5,"lines":[{"sku":"a","n":1},{"sku":"b","n":2}]},"metadata":{"crm_id":"42"}}`)
	if allocs := testing.AllocsPerRun(100, func() {
		if err := CheckJSON(text, JSONLimits{}); err != nil {
			t.Fatal(err)
		}
	}); allocs > 4 {
		t.Errorf("%v allocations for a usual body", allocs)
	}
}

func TestJSONMembers(t *testing.T) {
	t.Parallel()
	text := " { \"a\" : [1, {\"x\":\"}\"}] ,\"\\u0062\\n\":\"q\\\"]\" , \"c\":-1.50e2,\"d\":null,\"e\":{}\t,\"\":true}"
	type member struct{ Name, Value string }
	var got []member
	for name, value := range JSONMembers([]byte(text)) {
		got = append(got, member{name, string(value)})
	}
	want := []member{{"a", `[1, {"x":"}"}]`}, {"b\n", `"q\"]"`}, {"c", "-1.50e2"}, {"d", "null"}, {"e", "{}"}, {"", "true"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, none := range []string{"[1]", "1", `"{"`, "null", "{}", " { } "} {
		for name := range JSONMembers([]byte(none)) {
			t.Errorf("%s has a member %q", none, name)
		}
	}
	for range JSONMembers([]byte(`{"a":1,"b":2}`)) {
		break // stopping early is allowed
	}
}

// FuzzCheckJSON holds CheckJSON against encoding/json: it accepts only what that accepts, and refuses of that only what breaks one of its own rules.
func FuzzCheckJSON(f *testing.F) {
	for _, text := range accepted {
		if len(text) < 2000 {
			f.Add([]byte(text))
		}
	}
	for _, c := range refused {
		if len(c.text) < 2000 {
			f.Add([]byte(c.text))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		err := CheckJSON(data, JSONLimits{})
		valid := json.Valid(data)
		switch {
		case err == nil && !valid:
			t.Fatalf("accepted %q, which encoding/json refuses", data)
		case err != nil && valid && !ownRule(err):
			t.Fatalf("refused %q: %v", data, err)
		case err != nil:
			return
		}
		if !utf8.Valid(data) {
			t.Fatalf("accepted bad UTF-8: %q", data)
		}
		var members map[string]json.RawMessage
		if json.Unmarshal(data, &members) == nil && members != nil {
			for name, value := range JSONMembers(data) {
				if string(members[name]) != string(value) {
					t.Fatalf("member %q of %q: %q, encoding/json has %q", name, data, value, members[name])
				}
				delete(members, name)
			}
			if len(members) > 0 {
				t.Fatalf("members %v of %q not seen", members, data)
			}
		}
		checkTokens(t, data)
	})
}

// checkTokens decodes an accepted text token by token and looks for what CheckJSON promises not to let through.
func checkTokens(t *testing.T, data []byte) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	type level struct {
		names map[string]bool // nil for an array
		name  bool            // the next token is a name
	}
	var open []level
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("accepted %q: %v", data, err)
		}
		top := len(open) - 1
		if s, ok := token.(string); ok && top >= 0 && open[top].name {
			if open[top].names[s] || strings.Contains(s, "\x00") {
				t.Fatalf("accepted %q with a bad name %q", data, s)
			}
			open[top].names[s], open[top].name = true, false
			continue
		}
		switch v := token.(type) {
		case json.Delim:
			switch v {
			case '{':
				open = append(open, level{names: map[string]bool{}, name: true})
				continue
			case '[':
				open = append(open, level{})
				continue
			}
			open = open[:top]
		case json.Number:
			x, err := strconv.ParseFloat(string(v), 64)
			if err != nil || math.IsInf(x, 0) || x == 0 && strings.ContainsAny(strings.FieldsFunc(string(v), func(r rune) bool { return r == 'e' || r == 'E' })[0], "123456789") {
				t.Fatalf("accepted the number %s", v)
			}
		}
		if top := len(open) - 1; top >= 0 && open[top].names != nil {
			open[top].name = true
		}
	}
}

func ownRule(err error) bool {
	for _, rule := range []string{"UTF-8", "surrogate", "that name already", "NUL", "range", "exponent of", "1000 characters", "deeper", "more than"} {
		if strings.Contains(err.Error(), rule) {
			return true
		}
	}
	return false
}

func BenchmarkCheckJSON(b *testing.B) {
	var orders strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&orders, `,{"id":%d,"customer":"customer %d","total":%d.25,"paid":true,"tags":["a","b"]}`, i, i%97, i)
	}
	for name, text := range map[string]string{
		"small": `{"input":{"customer":"acme","amount":12.5},"metadata":{"crm_id":"42"}}`,
		"large": `{"input":[` + orders.String()[1:] + `]}`,
	} {
		data := []byte(text)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if err := CheckJSON(data, JSONLimits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/json.Valid", func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				json.Valid(data)
			}
		})
	}
}
