package workflow

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/keyfire/keyfire/core"
)

// TestValidate lists what a caller is told. Every detail is also searched for the values sent: none may be quoted.
func TestValidate(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, schema, input string
		want                []string
	}{
		{"fits", `{"type":"object","required":["a"]}`, `{"a":1}`, nil},
		{"true takes anything", `true`, `{"a":[1,"x"]}`, nil},
		{"an empty schema takes anything", `{}`, `null`, nil},
		{"type", `{"properties":{"a":{"type":"string"},"b":{"type":["integer","null"]}}}`, `{"a":4711,"b":47.11}`, []string{"#/input/a: must be a string", "#/input/b: must be null or an integer"}},
		{"required", `{"required":["a","b/c"]}`, `{}`, []string{"#/input/a: required", "#/input/b~1c: required"}},
		{"unknown fields", `{"additionalProperties":false,"properties":{"a":true}}`, `{"a":1,"z":2,"y":{"secret-4711":1}}`, []string{"#/input/y: unknown field", "#/input/z: unknown field"}},
		{"numbers", `{"items":{"minimum":0,"exclusiveMaximum":1e2,"multipleOf":0.1}}`, `[-4711,100,0.25,99.9]`, []string{"#/input/0: must be >= 0", "#/input/1: must be < 100", "#/input/2: must be a multiple of 0.1"}},
		{"large numbers are exact", `{"items":{"maximum":12345678901234567890}}`, `[12345678901234567890,12345678901234567891]`, []string{"#/input/1: must be <= 12345678901234567890"}},
		{"large numbers are exact in const and enum", `{"properties":{"a":{"const":9007199254740993},"b":{"enum":[9007199254740993,"x"]}}}`, `{"a":9007199254740992,"b":9007199254740992}`, []string{"#/input/a: must be 9007199254740993", `#/input/b: must be one of 9007199254740993, "x"`}},
		{"equal numbers are equal however written", `{"items":{"const":1.0},"uniqueItems":false}`, `[1,1.00,10e-1]`, nil},
		{"text", `{"items":{"minLength":2,"maxLength":3,"pattern":"^[a-z]+$"}}`, `["4","abcd","éé"]`, []string{"#/input/0: must have at least 2 characters", "#/input/0: must match ^[a-z]+$", "#/input/1: must have at most 3 characters", "#/input/2: must match ^[a-z]+$"}},
		{"formats are asserted", `{"items":{"format":"email"}}`, `["a@example.com","4711"]`, []string{"#/input/1: must be a valid email"}},
		{"lists", `{"minItems":2,"uniqueItems":true,"contains":{"const":1}}`, `["4711","4711"]`, []string{"#/input: must hold an item that the schema asks for", "#/input: must not hold the same item twice; items 0 and 1 are equal"}},
		{"objects", `{"minProperties":3,"propertyNames":{"maxLength":3},"dependentRequired":{"a":["b"]},"not":{"required":["long4711"]}}`, `{"a":1,"long4711":2}`, []string{"#/input: a field has a name the schema does not allow", "#/input: must have at least 3 fields", "#/input: must not match what the schema excludes", `#/input/b: required together with "a"`}},
		{"alternatives of other types say what the near one wants", `{"properties":{"a":{"anyOf":[{"type":"null"},{"type":"string","minLength":9}]}}}`, `{"a":"4711"}`, []string{"#/input/a: must have at least 9 characters"}},
		{"alternatives", `{"oneOf":[{"required":["a"]},{"required":["b"]}]}`, `{}`, []string{"#/input: must match one of the 2 alternatives of the schema"}},
		{"too many alternatives", `{"oneOf":[{"required":["a"]},{"required":["b"]}]}`, `{"a":1,"b":2}`, []string{"#/input: must match exactly one of the alternatives, and matches more"}},
		{"references", `{"$ref":"#/$defs/x","$defs":{"x":{"properties":{"a":{"$ref":"#/$defs/y"}}},"y":{"type":"string"}}}`, `{"a":4711}`, []string{"#/input/a: must be a string"}},
		{"conditions", `{"if":{"required":["a"]},"then":{"required":["b"]},"else":false}`, `{"a":1}`, []string{"#/input/b: required"}},
		{"forbidden", `{"properties":{"a":false}}`, `{"a":"4711"}`, []string{"#/input/a: must not be there"}},
		{"exponents", `{"items":{"minimum":1}}`, `[1e1000000000,-1e-1000000000,1e99999999999999999999]`, []string{"#/input/0: must be a number with an exponent between -1000 and 1000", "#/input/1: must be a number with an exponent between -1000 and 1000", "#/input/2: must be a number with an exponent between -1000 and 1000"}},
		{"no JSON", `true`, `{"a":`, []string{"#/input: must be one JSON value"}},
		{"a long name stays out of the pointer", `{"additionalProperties":false}`, `{"` + strings.Repeat("x", 500) + `":1}`, []string{"#/input: unknown field"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := CompileSchema(json.RawMessage(tt.schema))
			if err != nil {
				t.Fatalf("%v: %v", err, schemaProblems(err))
			}
			var got []string
			for _, f := range s.Validate(json.RawMessage(tt.input)) {
				got = append(got, f.Pointer+": "+f.Detail)
				if strings.Contains(f.Detail, "4711") {
					t.Errorf("a detail quotes the input: %q", f.Detail)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestValidateIsBounded proves that a bad input of many values is not answered with as many problems.
func TestValidateIsBounded(t *testing.T) {
	t.Parallel()
	s, err := CompileSchema(json.RawMessage(`{"items":{"type":"string"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(s.Validate(json.RawMessage("[" + strings.Repeat("1,", 5000) + "1]"))); n != MaxProblems {
		t.Errorf("%d problems, want %d", n, MaxProblems)
	}
}

func TestCompileSchemaRefuses(t *testing.T) {
	t.Parallel()
	deep := `{"$ref":"#/$defs/0","$defs":{`
	for i := range 12 {
		deep += fmt.Sprintf(`"%d":{"allOf":[{"$ref":"#/$defs/%d"},{"$ref":"#/$defs/%d"}]},`, i, i+1, i+1)
	}
	deep += `"12":{}}}`
	tests := []struct{ name, schema, pointer, detail string }{
		{"a file", `{"$ref":"file:///etc/passwd"}`, "#/input/$ref", "a reference may only point inside the schema"},
		{"the network", `{"properties":{"a":{"items":{"$ref":"https://example.com/x"}}}}`, "#/input/properties/a/items/$ref", "a reference may only point inside the schema"},
		{"a file beside it", `{"properties":{"a":{"$ref":"other.json"}}}`, "#/input/properties/a/$ref", "a reference may only point inside the schema"},
		{"a file beside it, and a place there", `{"properties":{"a":{"$ref":"other.json#/$defs/x"}}}`, "#/input/properties/a/$ref", "a reference may only point inside the schema"},
		{"a path", `{"properties":{"a":{"$ref":"/etc/passwd"}}}`, "#/input/properties/a/$ref", "a reference may only point inside the schema"},
		{"another draft inside", `{"properties":{"a":{"$schema":"http://json-schema.org/draft-04/schema#","minimum":1,"exclusiveMinimum":true}}}`, "#/input/properties/a/$schema", "must be https://json-schema.org/draft/2020-12/schema, or left out"},
		{"another draft in a part with an id", `{"$defs":{"x":{"$id":"http://example.com/x","$schema":"http://json-schema.org/draft-07/schema#"}}}`, "#/input/$defs/x/$schema", "must be https://json-schema.org/draft/2020-12/schema, or left out"},
		{"another host's id", `{"$id":"https://example.com/x","$ref":"other"}`, "#/input/$ref", "a reference may only point inside the schema"},
		{"nothing", `{"properties":{"a":{"$ref":"#/$defs/none"}}}`, "#/input/properties/a/$ref", "a reference points to nothing"},
		{"itself", `{"$ref":"#"}`, "#/input", "a schema refers to itself for the same value, without end"},
		{"each other", `{"anyOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"not":{"$ref":"#"}}}}`, "#/input", "a schema refers to itself for the same value, without end"},
		{"dynamic references", `{"$dynamicAnchor":"n","properties":{"a":{"$dynamicRef":"#n"}}}`, "#/input", "$dynamicRef is not supported; use $ref"},
		{"a pattern", `{"pattern":"["}`, "#/input/pattern", "must be a regular expression of the RE2 syntax"},
		{"a pattern of names", `{"patternProperties":{"[":true}}`, "#/input", "a name in patternProperties must be a regular expression of the RE2 syntax"},
		{"a keyword's type", `{"properties":{"a":{"minLength":"1"}}}`, "#/input/properties/a/minLength", "must be an integer"},
		{"doubling", deep, "#/input", "could take too long"},
		{"doubling with depth", `{"allOf":[{"properties":{"a":{"$ref":"#"}}},{"properties":{"a":{"$ref":"#"}}}]}`, "#/input", "could take too long"},
		{"doubling with depth by patterns", `{"patternProperties":{"a":{"$ref":"#"},"b":{"$ref":"#"}}}`, "#/input", "could take too long"},
		{"doubling with depth in lists", `{"items":{"$ref":"#"},"contains":{"$ref":"#"}}`, "#/input", "could take too long"},
		{"very many alternatives", `{"enum":[` + strings.Repeat("1,", 120_000) + `1]}`, "#/input", "could take too long"},
		{"no schema", `7`, "#/input", "must be a JSON Schema: an object, or true for any input"},
		{"no JSON", `{`, "#/input", "cannot be read as a JSON Schema"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := CompileSchema(json.RawMessage(tt.schema))
			if core.CodeOf(err) != core.CodeInvalidWorkflow {
				t.Fatalf("err = %v", err)
			}
			got := schemaProblems(err)[0]
			if got.Pointer != tt.pointer || !strings.HasPrefix(got.Detail, tt.detail) {
				t.Errorf("got  %s: %s\nwant %s: %s", got.Pointer, got.Detail, tt.pointer, tt.detail)
			}
		})
	}
}

// TestCostlySchemasWouldStall shows what the refusal is for: without it, this input of 400 bytes would take longer than the test may.
func TestCostlySchemasWouldStall(t *testing.T) {
	t.Parallel()
	linear := `{"properties":{"a":{"$ref":"#"},"b":{"$ref":"#"}},"additionalProperties":{"$ref":"#"}}`
	s, err := CompileSchema(json.RawMessage(linear))
	if err != nil {
		t.Fatalf("a schema that checks every place once was refused: %v", schemaProblems(err))
	}
	input := strings.Repeat(`{"a":`, 60) + "1" + strings.Repeat("}", 60)
	began := time.Now()
	if problems := s.Validate(json.RawMessage(input)); len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
	if took := time.Since(began); took > patience {
		t.Errorf("took %s", took)
	}
}

// TestValidateEnds proves that checking ends soon whatever a caller sends, also for schemas that are dear but legitimate.
func TestValidateEnds(t *testing.T) {
	t.Parallel()
	var enum strings.Builder
	for i := range 9000 {
		fmt.Fprintf(&enum, `"airport-%d",`, i)
	}
	many := "[" + strings.Repeat(`"nowhere",`, 90_000) + `""]`
	long := `"` + strings.Repeat("a", 1<<20) + `"`
	tests := []struct{ name, schema, input, detail string }{
		{"many values of a long enum", `{"items":{"enum":[` + enum.String() + `"x"]}}`, many, "has 90002 values; at most"},
		{"few values of a long enum", `{"items":{"enum":[` + enum.String() + `"nowhere"]}}`, `["nowhere","nowhere"]`, ""},
		{"a pattern that repeats", `{"pattern":"(a?){100}b"}`, long, "holds a text that is too long for a pattern of the schema; 24813 bytes can be checked"},
		{"the same, shorter", `{"pattern":"(a?){100}b"}`, long[:20_001] + `b"`, ""},
		{"a small pattern", `{"pattern":"^a*$"}`, long, ""},
		{"many texts and a pattern that repeats", `{"items":{"pattern":"(a?){450}b"}}`, texts(strings.Repeat("a", 5000), 300), "holds more text than can be compared with the patterns"},
		{"many names and patterns", `{"patternProperties":{"(.*a){20}1":true,"(.*a){20}2":true,"(.*a){20}3":true,"(.*a){20}4":true,"(.*a){20}5":true}}`, names(strings.Repeat("a", 9000), 100), "holds more text than can be compared with the patterns"},
		{"many addresses", `{"items":{"pattern":"^[a-zA-Z0-9.!#$%&'*+/=?^_{|}~-]+@[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$"}}`, texts("someone.somewhere@example.company.com", 25_000), ""},
		{"patterns of names", `{"patternProperties":{"(a?){100}b":true}}`, `{` + long + `:1}`, "holds a text that is too long"},
		{"many simple values", `{"items":{"type":"string","maxLength":10}}`, many, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, err := CompileSchema(json.RawMessage(tt.schema))
			if err != nil {
				t.Fatal(schemaProblems(err))
			}
			if tt.detail == "" {
				s.may = patience // what is little work takes a second, too, on a machine that does much else
			} else {
				s.free /= 10 // and what is much is not to be done to its end there
			}
			began := time.Now()
			problems := s.Validate(json.RawMessage(tt.input))
			if took := time.Since(began); took > patience {
				t.Errorf("took %s", took)
			}
			switch {
			case tt.detail == "" && len(problems) > 0:
				t.Errorf("problems: %v", problems)
			case tt.detail != "" && (len(problems) != 1 || !strings.HasPrefix(problems[0].Detail, tt.detail)):
				t.Errorf("problems: %v, want %q", problems, tt.detail)
			}
		})
	}
}

// texts returns a list with a text n times.
func texts(text string, n int) string {
	return "[" + strings.Repeat(`"`+text+`",`, n-1) + `"` + text + `"]`
}

// names returns an object with n members whose names begin with a text.
func names(text string, n int) string {
	members := make([]string, n)
	for i := range n {
		members[i] = fmt.Sprintf(`"%s%03d":1`, text, i)
	}
	return "{" + strings.Join(members, ",") + "}"
}

// TestFileSchemaAgrees compares the published schema with the decoder on every file of testdata. A file that Decode refuses for what a
// schema cannot say is listed with the reason; every other verdict must be the same.
func TestFileSchemaAgrees(t *testing.T) {
	t.Parallel()
	unsayable := map[string]string{
		"duplicates.yaml": "names set twice are gone once the file is a value", "yaml-parts.yaml": "not JSON", "two-documents.yaml": "not one value", "two-documents-dots.yaml": "not one value", "reserved.yaml": "not YAML",
		"directive.yaml": "not JSON", "empty.yaml": "no value", "comment.yaml": "no value", "nul.yaml": "not text", "latin1.yaml": "not text",
		"no-comma.json": "not JSON", "tab.yaml": "not YAML", "unquoted-colon.yaml": "not YAML", "indent-list.yaml": "not YAML", "indent-field.yaml": "not YAML", "list-in-fields.yaml": "not YAML", "schema-misspelt.yaml": "remarks elsewhere", "numbers.yaml": "notation of numbers",
		"schemas.yaml": "references", "schema-pattern.yaml": "patterns are judged by the server's engine", "schema-explosion.yaml": "cost",
		"relations.yaml": "relations between values",
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	doc, err := core.DecodeJSON(FileSchema())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AddResource("mem:///file.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("mem:///file.json")
	if err != nil {
		t.Fatal(err)
	}
	paths, _ := filepath.Glob("testdata/*/*")
	for _, path := range paths {
		name, kind := filepath.Base(path), filepath.Base(filepath.Dir(path))
		if strings.HasSuffix(name, ".golden") || kind != "good" && kind != "bad" {
			continue
		}
		t.Run(kind+"/"+name, func(t *testing.T) {
			src, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			root, s := parse(src, name)
			if root == nil || len(s.problems) > 0 {
				if unsayable[name] == "" {
					t.Fatal("cannot be read, and is not listed")
				}
				return
			}
			v, err := core.DecodeJSON(root.json())
			if err != nil {
				t.Fatal(err)
			}
			verdict := schema.Validate(v)
			switch {
			case kind == "good" && verdict != nil:
				t.Errorf("the schema refuses a good file: %v", verdict)
			case kind == "bad" && verdict == nil && unsayable[name] == "":
				t.Error("the schema accepts a bad file")
			}
		})
	}
}

// TestFileSchemaDescribes proves that every field, and everything that is referred to, has a description.
func TestFileSchemaDescribes(t *testing.T) {
	t.Parallel()
	var doc map[string]any
	if err := json.Unmarshal(FileSchema(), &doc); err != nil {
		t.Fatal(err)
	}
	fields := 0
	var walk func(at string, v any, field bool)
	walk = func(at string, v any, field bool) {
		obj, ok := v.(map[string]any)
		if !ok {
			return
		}
		if field {
			fields++
			said, _ := obj["description"].(string)
			ref, _ := obj["$ref"].(string)
			if said == "" && strings.HasPrefix(ref, "#/$defs/") {
				target, _ := doc["$defs"].(map[string]any)[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
				said, _ = target["description"].(string)
			}
			if !strings.HasSuffix(said, ".") {
				t.Errorf("%s has no description, or one that is no sentence: %q", at, said)
			}
		}
		for name, member := range obj {
			switch name {
			case "properties", "$defs":
				for n, m := range member.(map[string]any) {
					walk(at+"/"+name+"/"+n, m, true)
				}
			case "items", "then":
				walk(at+"/"+name, member, false)
			}
		}
	}
	walk("#", doc, true)
	if fields < 30 {
		t.Errorf("found only %d fields; this test looks in the wrong place", fields)
	}
}

// TestFileSchemaKnowsEveryField proves that the schema lists exactly the fields the decoder reads, by asking the decoder for each.
func TestFileSchemaKnowsEveryField(t *testing.T) {
	t.Parallel()
	var doc struct {
		Properties map[string]any
		Defs       map[string]struct{ Properties map[string]any } `json:"$defs"`
	}
	if err := json.Unmarshal(FileSchema(), &doc); err != nil {
		t.Fatal(err)
	}
	known := func(file string) []string {
		_, err := Decode([]byte(file), "f.yaml")
		for line := range strings.SplitSeq(report(err), "\n") {
			if _, list, ok := strings.Cut(line, `has no field "?"; it has `); ok {
				return strings.Split(list, ", ")
			}
		}
		t.Fatalf("the decoder does not list its fields: %v", err)
		return nil
	}
	for name, tt := range map[string]struct {
		file string
		in   map[string]any
	}{
		"workflow": {`{"?": 1}`, doc.Properties},
		"trigger":  {`{trigger: {"?": 1}}`, doc.Defs["trigger"].Properties},
		"node":     {`{nodes: [{"?": 1}]}`, doc.Defs["node"].Properties},
		"grants":   {`{nodes: [{grants: {"?": 1}}]}`, doc.Defs["grants"].Properties},
		"limits":   {`{nodes: [{limits: {"?": 1}}]}`, doc.Defs["limits"].Properties},
		"retry":    {`{nodes: [{retry: {"?": 1}}]}`, doc.Defs["retry"].Properties},
	} {
		later := map[string]bool{
			"respond":  true,
			"for_each": true, "max_parallel": true, "on_error": true, "join": true,
		}
		var decoder []string
		for _, f := range known(tt.file) {
			if !later[f] {
				decoder = append(decoder, f)
			}
		}
		var schema []string
		for f := range tt.in {
			schema = append(schema, f)
		}
		less := func(a, b string) bool { return a < b }
		if diff := cmp.Diff(decoder, schema, cmpopts.SortSlices(less)); diff != "" {
			t.Errorf("%s: -decoder +schema:\n%s", name, diff)
		}
	}
}

func TestFileSchemaIsACopy(t *testing.T) {
	t.Parallel()
	FileSchema()[0] = 'x'
	if !bytes.HasPrefix(FileSchema(), []byte("{")) {
		t.Error("a caller changed the schema")
	}
}
