package core

import (
	"bytes"
	"encoding/json"
	"hash/maphash"
	"iter"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// JSONLimits bound what CheckJSON accepts. Zero fields are the defaults, which are part of the HTTP API.
type JSONLimits struct {
	Depth  int // open arrays and objects at once; 0 is DefaultJSONDepth
	Values int // values in all, member names not counted; 0 is DefaultJSONValues

	// RepeatedNames accepts objects with several members of one name. It is for clients whose own documentation sends them; whoever sets it must
	// also make one value of them before anything else reads the text.
	RepeatedNames bool
}

// Defaults of JSONLimits, and the bound on one number.
const (
	DefaultJSONDepth  = 64
	DefaultJSONValues = 100_000
	maxJSONNumber     = 1000 // characters of one number
	maxJSONExponent   = 9999 // written exponent, whatever its sign
)

// CheckJSON returns nil when data is exactly one JSON text by RFC 8259 that means the same to every reader, and otherwise an *Error
// with CodeInvalidJSON whose message names the byte offset and the rule, and quotes nothing.
//
// It is stricter than encoding/json, which repairs or picks where a caller would rather hear of a mistake:
//
//   - valid UTF-8 only, without a byte order mark, and no \u escape of half a surrogate pair: encoding/json replaces both silently;
//   - no two members of one object with the same name, compared byte by byte after unescaping and case-sensitively: encoding/json
//     lets the last one win, others the first, and a check that reads one of them while the workflow reads the other is no check;
//   - no NUL in a member name, which ends the name in some readers;
//   - numbers within the range of an IEEE 754 double, at most 1000 characters long: their digits are kept as they are, but nobody
//     is handed a number that can only be read as infinity or zero, or that takes gigabytes to expand;
//   - bounded depth and number of values, so that the size of data also bounds what decoding it costs.
//
// It reads data once and allocates only for objects with more than a few members and for escaped names.
func CheckJSON(data []byte, lim JSONLimits) error {
	if lim.Depth <= 0 {
		lim.Depth = DefaultJSONDepth
	}
	if lim.Values <= 0 {
		lim.Values = DefaultJSONValues
	}
	c := jsonChecker{data: data, lim: lim}
	var room [fewMembers]jsonName // spares most texts an allocation
	c.names = room[:0]
	if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) {
		return c.fail(0, "a JSON text must not start with a byte order mark")
	}
	c.space()
	if err := c.value(0); err != nil {
		return err
	}
	if c.space(); c.at < len(data) {
		return c.fail(c.at, "there must be nothing after the JSON value")
	}
	return nil
}

// jsonChecker is one pass over data.
type jsonChecker struct {
	data   []byte
	at     int
	lim    JSONLimits
	values int

	// names holds the member names of the objects that are open, innermost last.
	names   []jsonName
	buf     []byte // unescaped text of the names that had escapes
	objects int    // objects opened so far; numbers them
	// seen finds names of objects with many members, which a search from name to name would make quadratic.
	seen map[jsonNameKey]jsonName
	seed maphash.Seed
}

// jsonName is the text of a name: a part of data, or of buf when it had escapes.
type jsonName struct {
	start, end int
	unescaped  bool
}

type jsonNameKey struct {
	object int
	hash   uint64
}

// fewMembers is how many members an object may have before its names go into the map.
const fewMembers = 12

func (c *jsonChecker) fail(offset int, rule string) error {
	return Errorf(CodeInvalidJSON, "at byte %d: %s", offset, rule)
}

func (c *jsonChecker) space() {
	for c.at < len(c.data) {
		switch c.data[c.at] {
		case ' ', '\t', '\n', '\r':
			c.at++
		default:
			return
		}
	}
}

// value checks the value that starts at c.at; depth is the number of open arrays and objects around it.
func (c *jsonChecker) value(depth int) error {
	if c.at >= len(c.data) {
		return c.fail(c.at, "the text ends where a value must follow")
	}
	if c.values++; c.values > c.lim.Values {
		return c.fail(c.at, "there are more than "+strconv.Itoa(c.lim.Values)+" values")
	}
	switch b := c.data[c.at]; {
	case b == '"':
		_, err := c.text()
		return err
	case b == '{' || b == '[':
		if depth == c.lim.Depth {
			return c.fail(c.at, "arrays and objects are nested deeper than "+strconv.Itoa(c.lim.Depth))
		}
		c.at++
		if b == '{' {
			return c.object(depth + 1)
		}
		return c.array(depth + 1)
	case b == '-' || b >= '0' && b <= '9':
		return c.number()
	case b == 't':
		return c.literal("true")
	case b == 'f':
		return c.literal("false")
	case b == 'n':
		return c.literal("null")
	}
	return c.fail(c.at, `a value must follow: an object, an array, a string in double quotes, a number, true, false or null`)
}

func (c *jsonChecker) literal(word string) error {
	if len(c.data)-c.at < len(word) || string(c.data[c.at:c.at+len(word)]) != word {
		return c.fail(c.at, "true, false and null are the only words, in lower case")
	}
	c.at += len(word)
	return nil
}

func (c *jsonChecker) array(depth int) error {
	if c.space(); c.at < len(c.data) && c.data[c.at] == ']' {
		c.at++
		return nil
	}
	for {
		c.space()
		if err := c.value(depth); err != nil {
			return err
		}
		c.space()
		more, err := c.next(']', "an array goes on with a comma or ends with ]")
		if err != nil || !more {
			return err
		}
	}
}

// next steps over a comma, which means more follows, or over the end of an array or object.
func (c *jsonChecker) next(end byte, rule string) (more bool, err error) {
	if c.at < len(c.data) {
		switch c.data[c.at] {
		case ',':
			c.at++
			return true, nil
		case end:
			c.at++
			return false, nil
		}
	}
	return false, c.fail(c.at, rule)
}

func (c *jsonChecker) object(depth int) error {
	if c.space(); c.at < len(c.data) && c.data[c.at] == '}' {
		c.at++
		return nil
	}
	object, first, buffered := c.objects, len(c.names), len(c.buf)
	c.objects++
	for {
		if c.space(); c.at >= len(c.data) || c.data[c.at] != '"' {
			return c.fail(c.at, "a member name in double quotes must follow")
		}
		start := c.at
		name, err := c.text()
		if err != nil {
			return err
		}
		if bytes.IndexByte(c.bytes(name), 0) >= 0 {
			return c.fail(start, "a member name must not contain NUL")
		}
		if c.duplicate(object, first, name) && !c.lim.RepeatedNames {
			return c.fail(start, "this object has a member of that name already")
		}
		if c.space(); c.at >= len(c.data) || c.data[c.at] != ':' {
			return c.fail(c.at, "a colon must follow a member name")
		}
		c.at++
		c.space()
		if err := c.value(depth); err != nil {
			return err
		}
		c.space()
		more, err := c.next('}', "an object goes on with a comma or ends with }")
		if err != nil {
			return err
		}
		if !more {
			c.names, c.buf = c.names[:first], c.buf[:buffered]
			return nil
		}
	}
}

func (c *jsonChecker) bytes(n jsonName) []byte {
	if n.unescaped {
		return c.buf[n.start:n.end]
	}
	return c.data[n.start:n.end]
}

// duplicate adds name to those of an object, which begin at c.names[first], and reports whether it was there.
func (c *jsonChecker) duplicate(object, first int, name jsonName) bool {
	text := c.bytes(name)
	if len(c.names)-first < fewMembers {
		for _, other := range c.names[first:] {
			if bytes.Equal(c.bytes(other), text) {
				return true
			}
		}
		c.names = append(c.names, name)
		return false
	}
	if c.seen == nil {
		c.seen = make(map[jsonNameKey]jsonName)
		c.seed = maphash.MakeSeed()
	}
	if len(c.names)-first == fewMembers {
		for _, other := range c.names[first:] {
			c.seen[jsonNameKey{object, maphash.Bytes(c.seed, c.bytes(other))}] = other
		}
	}
	key := jsonNameKey{object, maphash.Bytes(c.seed, text)}
	if other, ok := c.seen[key]; ok {
		if bytes.Equal(c.bytes(other), text) {
			return true
		}
		// Two names with one hash: the map knows only the first of them, so look at all.
		for _, other := range c.names[first:] {
			if bytes.Equal(c.bytes(other), text) {
				return true
			}
		}
	} else {
		c.seen[key] = name
	}
	c.names = append(c.names, name)
	return false
}

// text checks the string that starts at c.at and returns where its content is.
func (c *jsonChecker) text() (jsonName, error) {
	c.at++
	start := c.at
	for c.at < len(c.data) {
		switch b := c.data[c.at]; {
		case b == '"':
			c.at++
			return jsonName{start: start, end: c.at - 1}, nil
		case b == '\\':
			return c.escaped(start)
		case b < 0x20:
			return jsonName{}, c.fail(c.at, "a control character in a string must be escaped")
		case b < utf8.RuneSelf:
			c.at++
		default:
			r, size := utf8.DecodeRune(c.data[c.at:])
			if r == utf8.RuneError && size == 1 {
				return jsonName{}, c.fail(c.at, "a string must be valid UTF-8")
			}
			c.at += size
		}
	}
	return jsonName{}, c.fail(c.at, "a string must end with a double quote")
}

// escaped goes on with a string from its first escape and collects its unescaped content.
func (c *jsonChecker) escaped(start int) (jsonName, error) {
	begin := len(c.buf)
	c.buf = append(c.buf, c.data[start:c.at]...)
	for c.at < len(c.data) {
		switch b := c.data[c.at]; {
		case b == '"':
			c.at++
			return jsonName{start: begin, end: len(c.buf), unescaped: true}, nil
		case b == '\\':
			if err := c.escape(); err != nil {
				return jsonName{}, err
			}
		case b < 0x20:
			return jsonName{}, c.fail(c.at, "a control character in a string must be escaped")
		default:
			r, size := utf8.DecodeRune(c.data[c.at:])
			if r == utf8.RuneError && size == 1 {
				return jsonName{}, c.fail(c.at, "a string must be valid UTF-8")
			}
			c.buf = append(c.buf, c.data[c.at:c.at+size]...)
			c.at += size
		}
	}
	return jsonName{}, c.fail(c.at, "a string must end with a double quote")
}

// jsonEscapes maps the character after a backslash to what it stands for.
var jsonEscapes = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

func (c *jsonChecker) escape() error {
	at := c.at
	if at+1 >= len(c.data) {
		return c.fail(at, "a string must end with a double quote")
	}
	if b := c.data[at+1]; b != 'u' {
		plain := jsonEscapes[b]
		if plain == 0 {
			return c.fail(at, `the escapes are \" \\ \/ \b \f \n \r \t and \u with four hexadecimal digits`)
		}
		c.buf = append(c.buf, plain)
		c.at += 2
		return nil
	}
	r, ok := c.hex4(at + 2)
	if !ok {
		return c.fail(at, `four hexadecimal digits must follow \u`)
	}
	c.at += 6
	if r >= 0xd800 && r < 0xe000 {
		const half = `an escaped surrogate must be a pair, a high and then a low one`
		if r >= 0xdc00 || c.at+1 >= len(c.data) || c.data[c.at] != '\\' || c.data[c.at+1] != 'u' {
			return c.fail(at, half)
		}
		low, ok := c.hex4(c.at + 2)
		if !ok || low < 0xdc00 || low >= 0xe000 {
			return c.fail(at, half)
		}
		r = (r-0xd800)<<10 + (low - 0xdc00) + 0x10000
		c.at += 6
	}
	c.buf = utf8.AppendRune(c.buf, r)
	return nil
}

func (c *jsonChecker) hex4(at int) (rune, bool) {
	if at+4 > len(c.data) {
		return 0, false
	}
	var r rune
	for _, b := range c.data[at : at+4] {
		switch {
		case b >= '0' && b <= '9':
			r = r<<4 | rune(b-'0')
		case b >= 'a' && b <= 'f':
			r = r<<4 | rune(b-'a'+10)
		case b >= 'A' && b <= 'F':
			r = r<<4 | rune(b-'A'+10)
		default:
			return 0, false
		}
	}
	return r, true
}

// number checks the grammar of a number and that its value is within the range of a double.
func (c *jsonChecker) number() error {
	start := c.at
	if c.data[c.at] == '-' {
		c.at++
	}
	whole := c.at
	if c.digits() == 0 {
		return c.fail(start, "digits must follow a minus sign")
	}
	if c.data[whole] == '0' && c.at > whole+1 {
		return c.fail(start, "a number must not start with a superfluous zero")
	}
	point := c.at
	if c.at < len(c.data) && c.data[c.at] == '.' {
		c.at++
		if c.digits() == 0 {
			return c.fail(start, "digits must follow a decimal point")
		}
	}
	mantissa := c.at
	exponent := 0
	if c.at < len(c.data) && (c.data[c.at] == 'e' || c.data[c.at] == 'E') {
		c.at++
		negative := false
		if c.at < len(c.data) && (c.data[c.at] == '+' || c.data[c.at] == '-') {
			negative = c.data[c.at] == '-'
			c.at++
		}
		first := c.at
		if c.digits() == 0 {
			return c.fail(start, "digits must follow an exponent")
		}
		for _, d := range c.data[first:c.at] {
			if exponent = exponent*10 + int(d-'0'); exponent > maxJSONExponent {
				return c.fail(start, "the exponent of a number must be at most "+strconv.Itoa(maxJSONExponent))
			}
		}
		if negative {
			exponent = -exponent
		}
	}
	if c.at-start > maxJSONNumber {
		return c.fail(start, "a number must have at most "+strconv.Itoa(maxJSONNumber)+" characters")
	}
	if !c.inRange(whole, point, mantissa, exponent) {
		return c.fail(start, "a number must be within the range of a double-precision number")
	}
	return nil
}

func (c *jsonChecker) digits() int {
	start := c.at
	for c.at < len(c.data) && c.data[c.at] >= '0' && c.data[c.at] <= '9' {
		c.at++
	}
	return c.at - start
}

// inRange reports whether a number is neither beyond the largest double nor so small that it would be read as zero. Almost every number is
// settled by the decimal place of its first digit that is not zero; only those near the ends are parsed.
func (c *jsonChecker) inRange(whole, point, mantissa, exponent int) bool {
	lead := whole
	for lead < mantissa && (c.data[lead] == '0' || c.data[lead] == '.') {
		lead++
	}
	if lead == mantissa {
		return true // zero
	}
	place := point - lead // of the first digit: 1 for 7.5, 3 for 750, 0 for 0.75
	if lead < point {
		place--
	} // now 0 for 7.5, 2 for 750, -1 for 0.75
	switch place += exponent; {
	case place > -307 && place < 308:
		return true
	case place < -324 || place > 308:
		return false
	}
	v, err := strconv.ParseFloat(string(c.data[whole:c.at]), 64)
	return err == nil && v != 0 && !math.IsInf(v, 0)
}

// JSONMembers returns the members of the object that data holds, in order, with names unescaped and values as they are written.
// CheckJSON must have accepted data. For any other value than an object there is none.
func JSONMembers(data []byte) iter.Seq2[string, json.RawMessage] {
	return func(yield func(string, json.RawMessage) bool) {
		c := jsonChecker{data: data, lim: JSONLimits{Depth: math.MaxInt, Values: math.MaxInt}}
		if c.space(); c.at >= len(data) || data[c.at] != '{' {
			return
		}
		c.at++
		for {
			if c.space(); c.at >= len(data) || data[c.at] != '"' {
				return
			}
			name, err := c.text()
			if err != nil {
				return
			}
			c.space()
			c.at++ // the colon
			c.space()
			start := c.at
			c.skip()
			if !yield(string(c.bytes(name)), json.RawMessage(data[start:c.at:c.at])) {
				return
			}
			c.space()
			c.at++ // a comma, or the end
		}
	}
}

// skip steps over a value that is known to be well-formed.
func (c *jsonChecker) skip() {
	depth := 0
	for c.at < len(c.data) {
		switch b := c.data[c.at]; {
		case b == '"':
			for c.at++; c.at < len(c.data) && c.data[c.at] != '"'; c.at++ {
				if c.data[c.at] == '\\' {
					c.at++
				}
			}
			c.at++
			if depth == 0 {
				return
			}
			continue
		case b == '{' || b == '[':
			depth++
		case b == '}' || b == ']':
			if depth == 0 {
				return // the end of the object around a number or a word
			}
			if depth--; depth == 0 {
				c.at++
				return
			}
		case depth == 0 && (b == ',' || strings.IndexByte(" \t\r\n", b) >= 0):
			return
		}
		c.at++
	}
}
