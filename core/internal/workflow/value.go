package workflow

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/keyfire/keyfire/core"
)

// kind is what sort of JSON value a value is.
type kind uint8

const (
	null kind = iota
	boolean
	number
	text
	list
	object
)

// String names the kind as an author would.
func (k kind) String() string {
	return [...]string{"null", "true or false", "a number", "text", "a list", "an object"}[k]
}

// style is how the file writes a text. It decides where inside the file a character of the text is found again.
type style uint8

const (
	plain style = iota
	singleQuoted
	doubleQuoted
	block  // |
	folded // >
)

// place is a position in the file; lines and columns count characters from 1.
type place struct{ line, column int }

// before orders places as one reads the file.
func (p place) before(q place) bool {
	return p.line < q.line || p.line == q.line && p.column < q.column
}

// value is one value of the file and where it is written. It is a tree of JSON values, whichever notation the file uses.
type value struct {
	kind    kind
	text    string   // text: its content; number: exactly as written; boolean: "true" or "false"; null: absent when nothing is written
	items   []*value // list
	members []member // object, in file order
	at      place
	style   style // text only
}

// absent marks a null that is not written: the value of "with:".
const absent = "absent"

// member is one name and value of an object.
type member struct {
	name  string
	at    place
	value *value
}

// member returns the member called name, or nil.
func (v *value) member(name string) *member {
	for i := range v.members {
		if v.members[i].name == name {
			return &v.members[i]
		}
	}
	return nil
}

// find walks a JSON pointer ("#/nodes/0/with") as far as the file goes: a field the file leaves to its default is reported at the
// object that could hold it. whole is false when the walk ended early.
func (v *value) find(pointer string) (found *value, whole bool) {
	rest := strings.TrimPrefix(pointer, "#")
	for rest != "" {
		var step string
		step, rest, _ = strings.Cut(strings.TrimPrefix(rest, "/"), "/")
		if rest != "" {
			rest = "/" + rest
		}
		next := v.child(core.UnescapePointer(step))
		if next == nil {
			return v, false
		}
		v = next
	}
	return v, true
}

func (v *value) child(step string) *value {
	switch v.kind {
	case object:
		if m := v.member(step); m != nil {
			return m.value
		}
	case list:
		if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(v.items) {
			return v.items[i]
		}
	}
	return nil
}

// json returns the value as JSON text. Numbers keep their digits; members keep their order.
func (v *value) json() json.RawMessage { return v.appendJSON(nil) }

func (v *value) appendJSON(b []byte) []byte {
	switch v.kind {
	case null:
		return append(b, "null"...)
	case boolean, number:
		return append(b, v.text...)
	case text:
		return appendText(b, v.text)
	case list:
		b = append(b, '[')
		for i, item := range v.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = item.appendJSON(b)
		}
		return append(b, ']')
	default:
		b = append(b, '{')
		for i, m := range v.members {
			if i > 0 {
				b = append(b, ',')
			}
			b = m.value.appendJSON(append(appendText(b, m.name), ':'))
		}
		return append(b, '}')
	}
}

// appendText appends s as a JSON string. HTML characters stay themselves: the text goes to nodes, not into a page.
func appendText(b []byte, s string) []byte {
	var buf strings.Builder
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string cannot fail to encode, nor a strings.Builder to be written
	return append(b, strings.TrimSuffix(buf.String(), "\n")...)
}
