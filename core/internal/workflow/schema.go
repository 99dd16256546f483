package workflow

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	failed "github.com/santhosh-tekuri/jsonschema/v6/kind"

	"github.com/keyfire/keyfire/core"
)

// Schema is the compiled JSON Schema of a workflow's input. It is safe for concurrent use.
type Schema struct {
	compiled  *jsonschema.Schema
	placeCost int
	heaviest  int // instructions of its largest pattern

	// For an input that could be too much for the patterns there is a copy whose patterns look at how long they take, for one input at a time: a pattern is told nothing but the text.
	source json.RawMessage
	timing sync.Mutex
	timed  *jsonschema.Schema // nil until it is needed
	limit  limit              // of timed
	free   int                // work that they may do in any case
	may    time.Duration      // that they may take for more
}

const (
	// schemaURL is where the schema is while it compiles. Nothing is ever loaded from it, or from anywhere else. It has a path, so that a
	// relative reference leads out of the schema and is refused: beside a URN it would be the URN, and so the schema itself.
	schemaURL = "keyfire:///input"

	dialect = "https://json-schema.org/draft/2020-12/schema"

	// maxExponent bounds the decimal exponent of numbers that are compared. A number is compared exactly, so it is written out first.
	maxExponent = 1000

	// maxSchemas bounds what may be a schema within a schema: the library compares each with all of them, which takes half a second for so many.
	maxSchemas = 10_000

	maxPointer = 200
)

// MaxProblems bounds what Validate reports of one input.
const MaxProblems = 20

// CompileSchema compiles a JSON Schema of dialect 2020-12. Formats are asserted. References reach only inside the schema: nothing is
// loaded from a file or a network, whatever the schema says.
//
// The error is a *core.Error with core.CodeInvalidWorkflow whose fields point into the schema as "#/input/...".
func CompileSchema(schema json.RawMessage) (*Schema, error) {
	doc, err := core.DecodeJSON(schema)
	if err != nil {
		return nil, core.Wrap(core.CodeInvalidWorkflow, err, "the input schema is not JSON")
	}
	if problems := checkSchema(doc); len(problems) > 0 {
		return nil, schemaError(problems)
	}
	if n := schemas(doc); n > maxSchemas {
		return nil, schemaError([]core.Field{{Pointer: "#/input", Detail: fmt.Sprintf("has %d objects and booleans; at most %d can be compiled", n, maxSchemas)}})
	}
	var p patterns
	compiled, err := p.schema(doc)
	if p.refused {
		return nil, schemaError([]core.Field{{Pointer: "#/input", Detail: tooLargePatterns}})
	}
	if err != nil {
		return nil, schemaError(compileProblems(doc, err))
	}
	cost, refusal := placeCost(compiled)
	if refusal != "" {
		return nil, schemaError([]core.Field{{Pointer: "#/input", Detail: refusal}})
	}
	return &Schema{compiled: compiled, placeCost: max(cost, 1), heaviest: p.heaviest, source: schema, free: maxPatternsWork, may: maxPatternsTime}, nil
}

// schema compiles a schema, and its patterns with it.
func (p *patterns) schema(doc any) (*jsonschema.Schema, error) {
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseLoader(nowhere{})
	c.UseRegexpEngine(p.compile)
	if err := c.AddResource(schemaURL, doc); err != nil {
		return nil, err
	}
	compiled, err := c.Compile(schemaURL)
	p.sealed = true
	return compiled, err
}

// Validate checks an input, which must be valid JSON. It returns nil when the input fits and otherwise up to MaxProblems fields in the order
// of their pointers, "#/input/...". Details quote the schema and never the input. Numbers are compared exactly.
//
// It takes at most about a second: an input with more values, or a longer text, than the schema can be checked against in that time
// does not fit.
func (s *Schema) Validate(input json.RawMessage) (problems []core.Field) {
	doc, err := core.DecodeJSON(input)
	if err != nil {
		return []core.Field{{Pointer: "#/input", Detail: "must be one JSON value"}}
	}
	if problems := checkNumbers(doc, "#/input", nil); len(problems) > 0 {
		return problems
	}
	if n, most := values(doc), maxTotalCost/s.placeCost; n > most {
		return []core.Field{{Pointer: "#/input", Detail: fmt.Sprintf("has %d values; at most %d can be checked against this schema", n, most)}}
	}
	defer func() {
		if r := recover(); r != nil {
			long, ok := r.(textTooLong)
			if !ok {
				panic(r)
			}
			problems = []core.Field{{Pointer: "#/input", Detail: long.detail()}}
		}
	}()
	var failure *jsonschema.ValidationError
	switch err := s.validate(doc, len(input)); {
	case err == nil:
		return nil
	case errors.As(err, &failure):
		return inputProblems(failure)
	}
	return []core.Field{{Pointer: "#/input", Detail: "cannot be checked against the schema"}}
}

// validate checks a decoded input that took so many bytes. It panics with textTooLong when the patterns have done as much as they may. Its only other error is that the copy of the
// schema cannot be made, which cannot be.
func (s *Schema) validate(doc any, size int) error {
	if matches := s.placeCost/patternCost + 1; size*s.heaviest <= s.free/matches { // for one place; so even all together can do no more
		return s.compiled.Validate(doc)
	}
	s.timing.Lock()
	defer s.timing.Unlock()
	if s.timed == nil {
		source, err := core.DecodeJSON(s.source)
		if err != nil {
			return fmt.Errorf("compile the schema once more: %w", err)
		}
		p := patterns{limit: &s.limit}
		if s.timed, err = p.schema(source); err != nil {
			return fmt.Errorf("compile the schema once more: %w", err)
		}
	}
	s.limit = limit{work: s.free, until: time.Now().Add(s.may)} // of the machine, not of the server's clock: this is about load
	return s.timed.Validate(doc)
}

// schemas counts what may be a schema in a decoded JSON value.
func schemas(v any) int {
	return sum(v, func(v any) int {
		switch v.(type) {
		case bool, map[string]any:
			return 1
		}
		return 0
	})
}

// values counts the values of a decoded JSON value.
func values(v any) int { return sum(v, func(any) int { return 1 }) }

// sum adds up what each value of a decoded JSON value counts for, v itself and all beneath it.
func sum(v any, counts func(any) int) int {
	n := counts(v)
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			n += sum(item, counts)
		}
	case map[string]any:
		for _, item := range v {
			n += sum(item, counts)
		}
	}
	return n
}

// nowhere is the loader of a world without other documents.
type nowhere struct{}

func (nowhere) Load(string) (any, error) {
	return nil, errors.New("a reference may only point inside the schema")
}

func schemaError(problems []core.Field) *core.Error {
	err := core.Errorf(core.CodeInvalidWorkflow, "the input schema is not valid")
	err.Fields = problems
	return err
}

// schemaProblems returns the fields of an error of CompileSchema.
func schemaProblems(err error) []core.Field {
	var e *core.Error
	if errors.As(err, &e) && len(e.Fields) > 0 {
		return e.Fields
	}
	return []core.Field{{Pointer: "#/input", Detail: "cannot be read as a JSON Schema"}}
}

// checkSchema refuses what the compiler would accept though this server means something narrower.
func checkSchema(doc any) []core.Field {
	obj, ok := doc.(map[string]any)
	if !ok {
		if _, ok := doc.(bool); !ok {
			return []core.Field{{Pointer: "#/input", Detail: "must be a JSON Schema: an object, or true for any input"}}
		}
		return nil
	}
	if v, set := obj["$schema"]; set && v != dialect {
		return []core.Field{{Pointer: "#/input/$schema", Detail: "must be " + dialect + ", or left out"}}
	}
	if others := otherDialects(obj, "#/input", nil); len(others) > 0 {
		return ordered(others)
	}
	if misspelt := misspeltKeywords(obj, "#/input", nil); len(misspelt) > 0 {
		return ordered(misspelt)
	}
	return checkNumbers(doc, "#/input", nil)
}

// keywords are those of the dialect, with what their values hold: a schema, schemas by name or in a list, or none.
var keywords = map[string]rune{
	"additionalProperties": 's', "allOf": 'l', "anyOf": 'l', "const": 0, "contains": 's', "contentEncoding": 0, "contentMediaType": 0, "contentSchema": 's', "default": 0,
	"dependentRequired": 0, "dependentSchemas": 'n', "deprecated": 0, "description": 0, "else": 's', "enum": 0, "examples": 0, "exclusiveMaximum": 0, "exclusiveMinimum": 0,
	"format": 0, "if": 's', "items": 's', "maxContains": 0, "maxItems": 0, "maxLength": 0, "maxProperties": 0, "maximum": 0, "minContains": 0, "minItems": 0, "minLength": 0,
	"minProperties": 0, "minimum": 0, "multipleOf": 0, "not": 's', "oneOf": 'l', "pattern": 0, "patternProperties": 'n', "prefixItems": 'l', "properties": 'n',
	"propertyNames": 's', "readOnly": 0, "required": 0, "then": 's', "title": 0, "type": 0, "unevaluatedItems": 's', "unevaluatedProperties": 's', "uniqueItems": 0,
	"writeOnly": 0, "$anchor": 0, "$comment": 0, "$defs": 'n', "$dynamicAnchor": 0, "$dynamicRef": 0, "$id": 0, "$ref": 0, "$schema": 0, "$vocabulary": 0,
	"definitions": 'n', "example": 0, "dependencies": 0, // of other dialects, often seen
}

// misspeltKeywords reports keywords that are as good as the dialect's: it has unknown ones for remarks, and so would let every input pass by them. Short words are
// near to many others and stay remarks.
func misspeltKeywords(schema any, pointer string, problems []core.Field) []core.Field {
	obj, _ := schema.(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(obj)) {
		if len(problems) >= MaxProblems {
			break
		}
		v, at := obj[name], join(pointer, name)
		holds, known := keywords[name]
		if !known && len(name) >= 6 {
			if near := core.Nearest(name, slices.Collect(maps.Keys(keywords))); near != "" {
				problems = append(problems, core.Field{Pointer: at, Detail: fmt.Sprintf("JSON Schema has no keyword %q; did you mean %q?", shorten(name), near)})
			}
		}
		switch list, _ := v.([]any); holds {
		case 's':
			problems = misspeltKeywords(v, at, problems)
		case 'l':
			for i, item := range list {
				problems = misspeltKeywords(item, fmt.Sprintf("%s/%d", at, i), problems)
			}
		case 'n':
			named, _ := v.(map[string]any)
			for _, key := range slices.Sorted(maps.Keys(named)) {
				problems = misspeltKeywords(named[key], join(at, key), problems)
			}
		}
	}
	return problems
}

// otherDialects reports the parts of a schema that say they are written in another dialect: the compiler would follow some and ignore others.
func otherDialects(v any, pointer string, problems []core.Field) []core.Field {
	switch v := v.(type) {
	case []any:
		for i, item := range v {
			problems = otherDialects(item, fmt.Sprintf("%s/%d", pointer, i), problems)
		}
	case map[string]any:
		if named, is := v["$schema"].(string); is && named != dialect {
			problems = append(problems, core.Field{Pointer: join(pointer, "$schema"), Detail: "must be " + dialect + ", or left out"})
		}
		for name, item := range v {
			switch name {
			case "const", "enum", "default", "examples": // data
			default:
				problems = otherDialects(item, join(pointer, name), problems)
			}
		}
	}
	return problems
}

// checkNumbers reports the numbers that are too long to be computed with.
func checkNumbers(v any, pointer string, problems []core.Field) []core.Field {
	if len(problems) >= MaxProblems {
		return problems
	}
	switch v := v.(type) {
	case json.Number:
		if _, exponent, ok := strings.Cut(strings.ToLower(v.String()), "e"); ok {
			if n, err := strconv.Atoi(exponent); err != nil || n > maxExponent || n < -maxExponent {
				return append(problems, core.Field{Pointer: pointer, Detail: fmt.Sprintf("must be a number with an exponent between -%d and %d", maxExponent, maxExponent)})
			}
		}
	case []any:
		for i, item := range v {
			problems = checkNumbers(item, fmt.Sprintf("%s/%d", pointer, i), problems)
		}
	case map[string]any:
		for name, item := range v {
			switch item.(type) {
			case string, bool, nil:
			default:
				problems = checkNumbers(item, join(pointer, name), problems)
			}
		}
	}
	return problems
}

// compileProblems places an error of the compiler inside the schema.
func compileProblems(doc any, err error) []core.Field {
	var invalid *jsonschema.SchemaValidationError
	if errors.As(err, &invalid) {
		var failure *jsonschema.ValidationError
		if errors.As(invalid.Err, &failure) {
			problems := inputProblems(failure) // the pointers of both begin with #/input
			for i := range problems {
				if problems[i].Detail == badName { // the one rule about names in the schema of schemas
					problems[i].Detail = "a name in patternProperties must be a regular expression of the RE2 syntax"
				}
			}
			return problems
		}
	}
	at := func(location, detail string) []core.Field {
		_, fragment, _ := strings.Cut(location, "#")
		if plain, err := url.PathUnescape(fragment); err == nil {
			fragment = plain
		}
		return []core.Field{{Pointer: "#/input" + fragment, Detail: detail}}
	}
	var badRegex *jsonschema.InvalidRegexError
	if errors.As(err, &badRegex) {
		return at(badRegex.URL, "not a regular expression of the RE2 syntax")
	}
	for _, p := range []struct {
		found  bool
		detail string
	}{
		{as[*jsonschema.LoadURLError](err), "a reference may only point inside the schema"},
		{as[*jsonschema.UnsupportedURLSchemeError](err), "a reference may only point inside the schema"},
		{as[*jsonschema.JSONPointerNotFoundError](err), "a reference points to nothing"},
		{as[*jsonschema.AnchorNotFoundError](err), "a reference points to nothing"},
		{as[*jsonschema.DuplicateIDError](err), "an $id is used twice"},
		{as[*jsonschema.DuplicateAnchorError](err), "an $anchor is used twice"},
	} {
		if p.found {
			return referenceProblems(doc, "#/input", p.detail, err.Error())
		}
	}
	return []core.Field{{Pointer: "#/input", Detail: "cannot be used as a JSON Schema: every $ref, $id and $anchor must be well formed"}}
}

func as[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}

// referenceProblems points at the references of the schema that the error speaks of, or at the whole schema when none is found.
func referenceProblems(doc any, pointer, detail, message string) []core.Field {
	var fields []core.Field
	var walk func(v any, pointer string)
	walk = func(v any, pointer string) {
		switch v := v.(type) {
		case []any:
			for i, item := range v {
				walk(item, fmt.Sprintf("%s/%d", pointer, i))
			}
		case map[string]any:
			for name, item := range v {
				ref, ok := item.(string)
				document, _, _ := strings.Cut(ref, "#")
				if ok && ref != "" && strings.HasPrefix(name, "$") && strings.Contains(message, cmp.Or(document, strings.TrimPrefix(ref, "#"))) {
					fields = append(fields, core.Field{Pointer: join(pointer, name), Detail: detail})
				}
				walk(item, join(pointer, name))
			}
		}
	}
	walk(doc, pointer)
	if len(fields) == 0 {
		return []core.Field{{Pointer: pointer, Detail: detail}}
	}
	return ordered(fields)
}

// inputProblems turns the tree of failures into fields.
func inputProblems(failure *jsonschema.ValidationError) []core.Field {
	return ordered(leaves(failure, nil))
}

func ordered(fields []core.Field) []core.Field {
	slices.SortFunc(fields, func(a, b core.Field) int {
		return cmp.Or(strings.Compare(a.Pointer, b.Pointer), strings.Compare(a.Detail, b.Detail))
	})
	fields = slices.Compact(fields)
	return fields[:min(len(fields), MaxProblems)]
}

const badName = "a field has a name the schema does not allow"

// leaves collects the failures that say something of their own.
func leaves(e *jsonschema.ValidationError, fields []core.Field) []core.Field {
	pointer := "#/input"
	for _, step := range e.InstanceLocation {
		pointer = join(pointer, step)
	}
	fail := func(p, format string, args ...any) {
		fields = append(fields, core.Field{Pointer: p, Detail: fmt.Sprintf(format, args...)})
	}
	switch k := e.ErrorKind.(type) {
	case *failed.AnyOf, *failed.OneOf:
		if one, ok := e.ErrorKind.(*failed.OneOf); ok && len(one.Subschemas) > 0 {
			fail(pointer, "must match exactly one of the alternatives, and matches more")
			return fields
		}
		if close := closest(e); close != nil {
			return leaves(close, fields)
		}
		fail(pointer, "must match one of the %d alternatives of the schema", len(e.Causes))
		return fields
	case *failed.Required:
		for _, name := range k.Missing {
			fail(join(pointer, name), "required")
		}
	case *failed.DependentRequired:
		for _, name := range k.Missing {
			fail(join(pointer, name), "required together with %q", shorten(k.Prop))
		}
	case *failed.AdditionalProperties:
		for _, name := range k.Properties[:min(len(k.Properties), MaxProblems)] {
			fail(join(pointer, name), "unknown field")
		}
	case *failed.PropertyNames:
		// The library does not keep the place of this failure below the top level.
		fail("#/input", badName)
	default:
		if detail := explain(e.ErrorKind); detail != "" {
			fail(pointer, "%s", detail)
			return fields
		}
		for _, cause := range e.Causes {
			fields = leaves(cause, fields)
		}
	}
	return fields
}

// closest returns the one alternative of a failed anyOf or oneOf whose type the value has, when there is exactly one.
func closest(e *jsonschema.ValidationError) *jsonschema.ValidationError {
	var found *jsonschema.ValidationError
	for _, cause := range e.Causes {
		direct := cause
		for len(direct.Causes) == 1 {
			direct = direct.Causes[0]
		}
		_, wrongType := direct.ErrorKind.(*failed.Type)
		if wrongType && len(direct.InstanceLocation) == len(e.InstanceLocation) {
			continue
		}
		if found != nil {
			return nil //nolint:nilerr // not an error here: two alternatives are equally close
		}
		found = cause
	}
	return found
}

// explain says what the schema asks for. It returns "" for failures that only group others.
func explain(k jsonschema.ErrorKind) string {
	switch k := k.(type) {
	case *failed.Type:
		return "must be " + typeNames(k.Want)
	case *failed.Enum:
		return "must be one of " + wantedAll(k.Want)
	case *failed.Const:
		return "must be " + wanted(k.Want)
	case *failed.Format:
		if k.Want == "regex" {
			return "must be a regular expression of the RE2 syntax"
		}
		return "must be a valid " + k.Want
	case *failed.Pattern:
		return "must match " + shorten(k.Want)
	case *failed.Minimum:
		return "must be >= " + decimal(k.Want)
	case *failed.Maximum:
		return "must be <= " + decimal(k.Want)
	case *failed.ExclusiveMinimum:
		return "must be > " + decimal(k.Want)
	case *failed.ExclusiveMaximum:
		return "must be < " + decimal(k.Want)
	case *failed.MultipleOf:
		return "must be a multiple of " + decimal(k.Want)
	case *failed.MinLength:
		return fmt.Sprintf("must have at least %d characters", k.Want)
	case *failed.MaxLength:
		return fmt.Sprintf("must have at most %d characters", k.Want)
	case *failed.MinItems:
		return fmt.Sprintf("must have at least %d items", k.Want)
	case *failed.MaxItems:
		return fmt.Sprintf("must have at most %d items", k.Want)
	case *failed.UniqueItems:
		return fmt.Sprintf("must not hold the same item twice; items %d and %d are equal", k.Duplicates[0], k.Duplicates[1])
	case *failed.MinProperties:
		return fmt.Sprintf("must have at least %d fields", k.Want)
	case *failed.MaxProperties:
		return fmt.Sprintf("must have at most %d fields", k.Want)
	case *failed.Contains:
		return "must hold an item that the schema asks for"
	case *failed.MinContains:
		return fmt.Sprintf("must hold at least %d of the items that the schema asks for", k.Want)
	case *failed.MaxContains:
		return fmt.Sprintf("must hold at most %d of the items that the schema asks for", k.Want)
	case *failed.FalseSchema:
		return "must not be there"
	case *failed.Not:
		return "must not match what the schema excludes"
	case *failed.RefCycle:
		return "cannot be checked, because the schema refers to itself without end"
	case *failed.Group, *failed.AllOf, *failed.Reference, *failed.Schema:
		return ""
	}
	return "does not fit the schema"
}

func typeNames(types []string) string {
	article := map[string]string{"object": "an object", "array": "an array", "integer": "an integer", "null": "null"}
	names := make([]string, 0, len(types))
	for _, t := range types {
		name := article[t]
		if name == "" {
			name = "a " + t
		}
		names = append(names, name)
	}
	return strings.Join(names, " or ")
}

func wantedAll(values []any) string {
	var names []string
	for i, v := range values {
		if i == 10 {
			names = append(names, "...")
			break
		}
		names = append(names, wanted(v))
	}
	return strings.Join(names, ", ")
}

func wanted(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return "what the schema says"
	}
	return shorten(string(raw))
}

// decimal writes a number of the schema, exactly if it ends.
func decimal(r *big.Rat) string {
	digits, exact := r.FloatPrec()
	if !exact {
		return r.RatString()
	}
	return shorten(r.FloatString(digits))
}

// join extends a pointer by one step. A name from an input may be as long as the input: a pointer that grows too long stays where
// it is, at the object around.
func join(pointer, step string) string {
	if len(pointer)+len(step) > maxPointer {
		return pointer
	}
	return pointer + "/" + core.EscapePointer(step)
}
