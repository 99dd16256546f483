package workflow

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/keyfire/keyfire/core"
)

const (
	maxDepth  = 64     // levels of lists and objects
	maxNumber = 1000   // characters of one number
	maxTokens = 50_000 // the parser's time grows with the square of the names in one object
	maxBlank  = 100    // lines without content in a row, and
	maxSigns  = 1000   // signs "<": the lexer's time grows with the square of either, and more in a block of text
)

// parse reads src into a tree. A nil tree means that the problems are in the source.
func parse(src []byte, filename string) (*value, *source) {
	if len(src) > core.MaxWorkflowFile {
		s := newSource(filename, "")
		s.report("#", place{}, fmt.Sprintf("the file has %d bytes; at most %d are allowed", len(src), core.MaxWorkflowFile))
		return nil, s
	}
	// Editors on some systems write a mark at the start and two characters at the end of a line. Neither is content, and neither
	// moves a line or a column once it is gone.
	txt := strings.TrimPrefix(string(src), "\ufeff")
	txt = strings.ReplaceAll(strings.ReplaceAll(txt, "\r\n", "\n"), "\r", "\n")
	s := newSource(filename, strings.ToValidUTF8(txt, "\ufffd"))
	if !s.characters(txt) || !s.runs(txt) {
		return nil, s
	}
	tokens := lexer.Tokenize(txt)
	if !s.tokens(tokens) {
		return nil, s
	}
	file, err := parseTokens(tokens)
	if err != nil {
		s.syntax(err)
		return nil, s
	}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil {
		s.report("#", place{}, "the file is empty; a workflow begins with `keyfire: v1`")
		return nil, s
	}
	if len(file.Docs) > 1 {
		at := place{}
		switch second := file.Docs[1]; {
		case second.Start != nil:
			at = s.locate(second.Start)
		case second.Body != nil: // after "...", a document needs no beginning
			at = place{second.Body.GetToken().Position.Line, 1}
		}
		s.report("#", at, "a file holds one workflow; write the second document into a file of its own")
		return nil, s
	}
	b := builder{source: s}
	return b.build(file.Docs[0].Body, "#", 1), s
}

// parseTokens turns a panic of the YAML library into an error: the text comes from outside, and a server outlives it.
func parseTokens(tokens token.Tokens) (file *ast.File, err error) {
	defer func() {
		if r := recover(); r != nil {
			file, err = nil, errors.New("the text cannot be read as YAML")
		}
	}()
	return parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
}

// characters refuses what is not text.
func (s *source) characters(txt string) bool {
	line, column := 1, 1
	for i, r := range txt {
		if r == utf8.RuneError {
			if _, width := utf8.DecodeRuneInString(txt[i:]); width == 1 {
				s.report("#", place{line, column}, "a byte that is not UTF-8; save the file as UTF-8")
				return false
			}
		}
		if r == 0 {
			s.report("#", place{line, column}, "a NUL character; a workflow file is text")
			return false
		}
		column++
		if r == '\n' {
			line, column = line+1, 1
		}
	}
	return true
}

// runs refuses what would keep the lexer busy for minutes.
func (s *source) runs(txt string) bool {
	blank, number := 0, 0
	for line := range strings.Lines(txt) {
		number++
		if blank++; strings.TrimLeft(line, " \t\n") != "" {
			blank = 0
		}
		if blank > maxBlank {
			s.report("#", place{number, 1}, fmt.Sprintf("more than %d empty lines in a row", maxBlank))
			return false
		}
		if at := strings.Index(line, strings.Repeat("<", maxSigns+1)); at >= 0 {
			s.report("#", place{number, utf8.RuneCountInString(line[:at]) + 1}, fmt.Sprintf("more than %d signs < in a row", maxSigns))
			return false
		}
	}
	return true
}

// refused names the parts of YAML that a workflow file does without, and why.
var refused = map[token.Type]string{
	token.AnchorType:     "anchors are not allowed; write the value out",
	token.AliasType:      "aliases are not allowed; write the value out",
	token.MergeKeyType:   "merge keys are not allowed; write the fields out",
	token.TagType:        "tags are not allowed; write the value as JSON would",
	token.DirectiveType:  "directives are not allowed",
	token.MappingKeyType: "names are written as `name: value`, without `?`",
}

// tokens refuses, before anything recursive or quadratic runs, what would make it expensive, and reports the refused parts of YAML.
func (s *source) tokens(tokens token.Tokens) bool {
	if len(tokens) > maxTokens {
		s.report("#", place{}, fmt.Sprintf("the file has %d parts (names, values, brackets); at most %d are allowed", len(tokens), maxTokens))
		return false
	}
	depth, line, dashes := 0, 0, 0
	for _, t := range tokens {
		if t.Position.Line != line {
			line, dashes = t.Position.Line, 0
		}
		switch t.Type {
		case token.MappingStartType, token.SequenceStartType:
			depth++
		case token.MappingEndType, token.SequenceEndType:
			depth--
		case token.SequenceEntryType:
			dashes++
		}
		if depth > maxDepth || dashes > maxDepth {
			s.report("#", s.locate(t), tooDeep)
			return false
		}
		if why := refused[t.Type]; why != "" {
			s.report("#", s.locate(t), why)
		}
	}
	return len(s.problems) == 0
}

var tooDeep = fmt.Sprintf("more than %d levels of lists and objects", maxDepth)

// opening begins an expression. The engine reads them; here they only explain some mistakes.
const opening = "${{"

const sameColumn = "lines that belong together begin in the same column"

// syntax reports why the text is no YAML.
func (s *source) syntax(err error) {
	var e *yaml.SyntaxError
	if !errors.As(err, &e) || e.Token == nil {
		s.report("#", place{}, err.Error())
		return
	}
	at := s.locate(e.Token)
	detail := e.Message
	if at.line >= 1 && at.line <= len(s.lines) {
		line := s.lines[at.line-1]
		indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
		switch tab := strings.IndexByte(indent, '\t'); {
		case tab >= 0 && at.column == len(indent)+1:
			at.column, detail = tab+1, "a tab cannot indent here; use spaces"
		case strings.Contains(line, opening):
			detail += "; text with an expression often needs quotes: \"${{ ... }}\""
		case strings.Contains(detail, "mapping value is not allowed") && !strings.Contains(string([]rune(line)[min(at.column-1, utf8.RuneCountInString(line)):]), ":"):
			detail = "this is a value, so the lines below cannot belong to it; " + sameColumn
		case strings.Contains(detail, "reserved character") || strings.Contains(detail, "mapping value is not allowed"):
			detail += "; put quotes around it if it is text"
		case strings.Contains(detail, "value is not allowed in this context"):
			detail = "this does not belong to what is above it; " + sameColumn
		case strings.Contains(detail, "non-map value is specified"):
			detail = "a field is expected here, as `name: value`; " + sameColumn
		}
	}
	s.report("#", at, detail)
}

// locate returns where a token begins. The library's column is that of the white space before it in some cases.
func (s *source) locate(t *token.Token) place {
	at := place{t.Position.Line, t.Position.Column}
	if at.line < 1 || at.line > len(s.lines) {
		return place{}
	}
	line := []rune(s.lines[at.line-1])
	at.column = max(at.column, 1)
	for at.column <= len(line) && (line[at.column-1] == ' ' || line[at.column-1] == '\t') {
		at.column++
	}
	return at
}

// builder makes our tree from the library's.
type builder struct{ *source }

func (b *builder) build(n ast.Node, pointer string, depth int) *value {
	if n == nil {
		return &value{kind: null}
	}
	at := b.locate(n.GetToken())
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode, *ast.SequenceNode:
		if depth > maxDepth {
			b.report(pointer, at, tooDeep)
			return &value{kind: null, at: at}
		}
	}
	switch n := n.(type) {
	case *ast.MappingNode:
		return b.object(at, n.Values, pointer, depth)
	case *ast.MappingValueNode:
		return b.object(at, []*ast.MappingValueNode{n}, pointer, depth)
	case *ast.SequenceNode:
		v := &value{kind: list, at: at}
		for i, item := range n.Values {
			v.items = append(v.items, b.build(item, fmt.Sprintf("%s/%d", pointer, i), depth+1))
		}
		return v
	case *ast.LiteralNode:
		v := &value{kind: text, text: n.Value.Value, at: at, style: block}
		if n.Start.Type == token.FoldedType {
			v.style = folded
		}
		return b.checked(v, pointer)
	case *ast.StringNode:
		switch n.Token.Type {
		case token.SingleQuoteType:
			return b.checked(&value{kind: text, text: n.Value, at: at, style: singleQuoted}, pointer)
		case token.DoubleQuoteType:
			return b.checked(&value{kind: text, text: n.Value, at: at, style: doubleQuoted}, pointer)
		}
		return b.plain(n.Value, at, pointer)
	case *ast.NullNode:
		v := &value{kind: null, at: at}
		if n.Token.Type == token.ImplicitNullType {
			v.text = absent
		}
		return v
	case ast.ScalarNode:
		return b.plain(n.GetToken().Value, at, pointer)
	}
	b.report(pointer, at, "this part of YAML is not allowed; write the value as JSON would")
	return &value{kind: null, at: at}
}

func (b *builder) object(at place, values []*ast.MappingValueNode, pointer string, depth int) *value {
	v := &value{kind: object, at: at}
	seen := make(map[string]place, len(values))
	for i, kv := range values {
		m := member{at: b.locate(kv.Key.GetToken())}
		if i == 0 && m.at.before(at) {
			v.at = m.at // the library begins a block object at its first colon
		}
		switch key := kv.Key.(type) {
		case *ast.StringNode:
			m.name = key.Value
		case ast.ScalarNode:
			m.name = key.GetToken().Value
		default:
			b.report(pointer, m.at, "a name must be text")
			continue
		}
		switch first, again := seen[m.name]; {
		case again:
			b.report(pointer+"/"+core.EscapePointer(m.name), m.at, fmt.Sprintf("%q is set twice, first in line %d; keep one", shorten(m.name), first.line))
			continue
		case strings.ContainsRune(m.name, 0) || !utf8.ValidString(m.name):
			b.report(pointer, m.at, "a name must be valid text without NUL")
			continue
		}
		seen[m.name] = m.at
		m.value = b.build(kv.Value, pointer+"/"+core.EscapePointer(m.name), depth+1)
		if m.value.at == (place{}) {
			m.value.at = m.at
		}
		v.members = append(v.members, m)
	}
	return v
}

func (b *builder) checked(v *value, pointer string) *value {
	if !utf8.ValidString(v.text) {
		b.report(pointer, v.at, "an escape in this text stands for no character")
		v.text = strings.ToValidUTF8(v.text, "\ufffd")
	}
	return v
}

var (
	jsonNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$`)
	// likeNumber is what YAML, in one of its versions, or its reader takes for a number though JSON does not.
	likeNumber = regexp.MustCompile(`^[-+]?(0[xX][0-9a-fA-F_]+|0[oO]?[0-7_]+|0[bB][01_]+|[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|\.(inf|Inf|INF)|\.(nan|NaN|NAN))$`)
)

// plain decides what an unquoted word is. The rule is YAML 1.2's, with one difference: what looks like a number but is none in JSON
// is refused, because the node would read something else than the author wrote.
func (b *builder) plain(s string, at place, pointer string) *value {
	switch s {
	case "null", "Null", "NULL", "~", "":
		return &value{kind: null, at: at}
	case "true", "True", "TRUE", "false", "False", "FALSE":
		return &value{kind: boolean, text: strings.ToLower(s), at: at}
	}
	switch {
	case jsonNumber.MatchString(s):
		if _, err := strconv.ParseFloat(s, 64); err != nil || len(s) > maxNumber {
			b.report(pointer, at, fmt.Sprintf("a number that is too large for a double, or longer than %d characters; put quotes around it if it is text", maxNumber))
		}
		return &value{kind: number, text: s, at: at}
	case likeNumber.MatchString(s):
		b.report(pointer, at, "not a number as JSON writes it; write a plain decimal number, or put quotes around it if it is text")
		return &value{kind: null, at: at}
	}
	return b.checked(&value{kind: text, text: s, at: at, style: plain}, pointer)
}

// shorten keeps a name that a message quotes from filling the message.
func shorten(name string) string {
	if r := []rune(name); len(r) > 40 {
		return string(r[:40]) + "..."
	}
	return name
}
