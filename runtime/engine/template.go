package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/keyfire/keyfire/core"
)

// template is JSON with expressions in its texts. It is kept flat: the JSON between two expressions, then an expression.
type template struct {
	parts []part
	nodes []string // ids its expressions name
}

// part is a piece of JSON text and, unless x is nil, the expression after it.
type part struct {
	json   string
	x      *expression
	inText bool // the expression stands inside a longer text
	at     string
}

// compiler collects what is wrong with the templates of a definition.
type compiler struct {
	nodes    []string // ids that exist
	problems []core.Field
}

func (c *compiler) report(pointer, format string, args ...any) {
	c.problems = append(c.problems, core.Field{Pointer: pointer, Detail: fmt.Sprintf(format, args...)})
}

// template compiles a JSON value whose texts may hold expressions.
func (c *compiler) template(raw json.RawMessage, pointer string) *template {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	b := builder{compiler: c, w: writer{limit: len(raw)*6 + 64}} // escaped text is at most six times as long
	if err := b.value(dec, pointer); err != nil {
		c.report(pointer, "must be JSON")
	}
	b.flush(nil, false, "")
	return &b.t
}

// builder writes one template.
type builder struct {
	*compiler
	t template
	w writer // JSON since the last expression
}

// flush ends the current part with an expression, or, with nil, the template.
func (b *builder) flush(x *expression, inText bool, at string) {
	if x == nil && len(b.w.b) == 0 {
		return
	}
	b.t.parts = append(b.t.parts, part{string(b.w.b), x, inText, at})
	b.w.b = b.w.b[:0]
	if x != nil {
		b.t.nodes = append(b.t.nodes, x.nodes...)
	}
}

func (b *builder) value(dec *json.Decoder, pointer string) error {
	token, err := dec.Token()
	if err != nil {
		return err
	}
	switch token := token.(type) {
	case json.Delim:
		if token == '[' {
			return b.list(dec, pointer)
		}
		return b.object(dec, pointer)
	case string:
		b.text(token, pointer)
	default:
		b.w.native(token)
	}
	return nil
}

func (b *builder) list(dec *json.Decoder, pointer string) error {
	b.w.raw("[")
	for i := 0; dec.More(); i++ {
		if i > 0 {
			b.w.raw(",")
		}
		if err := b.value(dec, fmt.Sprintf("%s/%d", pointer, i)); err != nil {
			return err
		}
	}
	b.w.raw("]")
	_, err := dec.Token()
	return err
}

func (b *builder) object(dec *json.Decoder, pointer string) error {
	b.w.raw("{")
	for i := 0; dec.More(); i++ {
		if i > 0 {
			b.w.raw(",")
		}
		token, err := dec.Token()
		if err != nil {
			return err
		}
		name, _ := token.(string) // the decoder gives nothing else here
		at := pointer + "/" + core.EscapePointer(name)
		if strings.Contains(name, opening) {
			b.report(at, "expressions are for values; a name is text")
		}
		b.w.text(name, true)
		b.w.raw(":")
		if err := b.value(dec, at); err != nil {
			return err
		}
	}
	b.w.raw("}")
	_, err := dec.Token()
	return err
}

// text compiles one text.
func (b *builder) text(s, pointer string) {
	pieces := b.split(s, pointer)
	if len(pieces) == 1 && pieces[0].expression {
		if x := b.compile(pieces[0], pointer); x != nil {
			b.flush(x, false, pointer)
		}
		return
	}
	b.w.raw(`"`)
	for _, p := range pieces {
		if !p.expression {
			b.w.text(p.text, false)
		} else if x := b.compile(p, pointer); x != nil {
			b.flush(x, true, pointer)
		}
	}
	b.w.raw(`"`)
}

const opening, closing = "${{", "}}"

// piece is a stretch of a text: plain, or the inside of ${{ }}.
type piece struct {
	text         string
	expression   bool
	line, column int // of an expression's first character, in the text, from 1
}

// split finds the expressions of a text.
func (c *compiler) split(s, pointer string) []piece {
	var pieces []piece
	line, column := 1, 1
	advance := func(s string) {
		if n := strings.Count(s, "\n"); n > 0 {
			line, column = line+n, 1
			s = s[strings.LastIndexByte(s, '\n')+1:]
		}
		column += utf8.RuneCountInString(s)
	}
	for s != "" {
		plain, rest, found := strings.Cut(s, opening)
		if plain != "" {
			pieces = append(pieces, piece{text: plain})
		}
		if !found {
			break
		}
		advance(plain)
		end := closingOf(rest)
		if end < 0 {
			c.problems = append(c.problems, core.Field{Pointer: pointer, Line: line, Column: column, Detail: "this expression has no end; write }} after it"})
			break
		}
		advance(opening)
		pieces = append(pieces, piece{rest[:end], true, line, column})
		advance(rest[:end] + closing)
		s = rest[end+len(closing):]
	}
	return pieces
}

// closingOf returns where the }} is that ends the expression s begins with, or -1. Braces of CEL's own objects and braces inside CEL's
// texts do not count.
func closingOf(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"', '\'':
			raw := i > 0 && (s[i-1] == 'r' || s[i-1] == 'R')
			i += quoted(s[i:], raw) - 1
		case '/':
			if strings.HasPrefix(s[i:], "//") {
				if n := strings.IndexByte(s[i:], '\n'); n >= 0 {
					i += n
				} else if n := strings.Index(s[i:], closing); n >= 0 {
					return i + n // a comment ends with the expression at the latest
				} else {
					return -1
				}
			}
		case '{':
			depth++
		case '}':
			if depth > 0 {
				depth--
			} else if strings.HasPrefix(s[i:], closing) {
				return i
			}
		}
	}
	return -1
}

// quoted returns how long the CEL text at the start of s is, quotes included; all of s when it does not end.
func quoted(s string, raw bool) int {
	quote := s[:1]
	if triple := strings.Repeat(quote, 3); strings.HasPrefix(s, triple) {
		quote = triple
	}
	for i := len(quote); i < len(s); i++ {
		switch {
		case s[i] == '\\' && !raw:
			i++
		case strings.HasPrefix(s[i:], quote):
			return i + len(quote)
		}
	}
	return len(s)
}

// compile compiles the expression of a piece, or reports why it cannot and returns nil.
func (c *compiler) compile(p piece, pointer string) *expression {
	if strings.TrimSpace(p.text) == "" {
		c.problems = append(c.problems, core.Field{Pointer: pointer, Line: p.line, Column: p.column, Detail: "an expression is missing between ${{ and }}"})
		return nil
	}
	x, flaws := compile(p.text, c.nodes)
	for _, f := range flaws {
		at := core.Field{Pointer: pointer, Line: p.line + f.line - 1, Column: f.column + 1, Detail: f.detail}
		if f.line == 1 {
			at.Column = p.column + f.column
		}
		c.problems = append(c.problems, at)
	}
	return x
}

// condition compiles the text of an if.
func (c *compiler) condition(s, pointer string) *expression {
	pieces := c.split(strings.TrimSpace(s), pointer)
	if len(pieces) != 1 || !pieces[0].expression {
		c.report(pointer, "must be one expression, as ${{ input.amount > 0 }}")
		return nil
	}
	// The text is trimmed to allow for a block's last line break; columns are those of the whole text.
	pieces = c.split(s[:len(strings.TrimRight(s, " \t\n"))], pointer)
	x := c.compile(pieces[len(pieces)-1], pointer)
	if x != nil && !x.boolean {
		c.report(pointer, "must be true or false")
	}
	return x
}

// append evaluates the template. An error names the place by its pointer's end.
func (t *template) append(ctx context.Context, s *scope, w *writer) error {
	for _, p := range t.parts {
		w.raw(p.json)
		if p.x == nil {
			continue
		}
		if err := p.x.write(ctx, s, w, p.inText); err != nil {
			return &placed{p.at, err}
		}
	}
	w.room()
	return w.err
}

// placed is an error in one field of a template.
type placed struct {
	pointer string
	err     error
}

func (p *placed) Error() string { return fmt.Sprintf("%s: %v", field(p.pointer), p.err) }
func (p *placed) Unwrap() error { return p.err }

// field names the place in a node that a pointer means: "#/nodes/0/with/id" is "with.id".
func field(pointer string) string {
	steps := strings.Split(strings.TrimPrefix(pointer, "#/"), "/")
	if steps[0] == "nodes" && len(steps) > 2 {
		steps = steps[2:]
	}
	for i, s := range steps {
		steps[i] = core.UnescapePointer(s)
	}
	return clip(strings.Join(steps, "."))
}
