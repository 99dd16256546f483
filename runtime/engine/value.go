package engine

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/keyfire/keyfire/core"
)

// lazy is a JSON value that is decoded when somebody looks inside it. Most values are only copied from one node to the next.
// It is safe for concurrent use.
type lazy struct {
	raw  json.RawMessage // valid JSON
	room *atomic.Int64   // values that may still be decoded, nil for any number
	once sync.Once
	tree any
	err  error
}

// Bounds of what a run holds until it ends, beside what nodes hold: they may be many, and each output and log is bounded alone.
const (
	maxOutputs = 32 << 20  // bytes of all its outputs
	maxLogs    = 16 << 20  // bytes of the logs of all attempts of all nodes
	maxDecoded = 1_000_000 // values of those that expressions have read; one takes some 60 bytes
)

var errManyValues = fmt.Errorf("the outputs of nodes that expressions read hold more than %d values together", maxDecoded)

func newLazy(raw json.RawMessage) *lazy {
	if len(raw) == 0 {
		raw = json.RawMessage("null")
	}
	return &lazy{raw: raw}
}

// value returns the decoded value: *object, *array, string, bool, nil or json.Number, and so on inside.
func (l *lazy) value() (any, error) {
	l.once.Do(func() {
		var tree any
		if tree, l.err = core.DecodeJSON(l.raw); l.err != nil {
			return
		}
		tree, size := shape(tree)
		if l.room != nil && l.room.Add(-int64(size)) < 0 {
			l.err = errManyValues
			return
		}
		l.tree = tree
	})
	return l.tree, l.err
}

// object is a decoded JSON object as CEL sees it. It knows how many values it holds: CEL measures what an expression touches, and a
// large input must not be counted again for every mention.
type object struct {
	traits.Mapper
	fields map[string]any
	size   uint32
}

// AggregateSize implements types.AggregateSizeVisitor.
func (o *object) AggregateSize(types.AggregateSizer) uint32 { return o.size }

// array is a decoded JSON array as CEL sees it.
type array struct {
	traits.Lister
	items []any
	size  uint32
}

// AggregateSize implements types.AggregateSizeVisitor.
func (a *array) AggregateSize(types.AggregateSizer) uint32 { return a.size }

// shape replaces the maps and slices of a decoded value, in place, and returns how large CEL would measure it.
func shape(v any) (any, uint32) {
	switch v := v.(type) {
	case string:
		return v, uint32(max(1, (len(v)+9)/10))
	case []any:
		a := &array{items: v, size: 1}
		for i, item := range v {
			var n uint32
			v[i], n = shape(item)
			a.size += n
		}
		a.Lister = types.NewDynamicList(adapter{types.DefaultTypeAdapter}, v)
		return a, a.size
	case map[string]any:
		o := &object{fields: v, size: 1}
		for name, item := range v {
			shaped, n := shape(item)
			v[name] = shaped
			o.size += n + uint32(max(1, (len(name)+9)/10))
		}
		o.Mapper = types.NewStringInterfaceMap(adapter{types.DefaultTypeAdapter}, v)
		return o, o.size
	}
	return v, 1
}

// adapter shows decoded JSON to CEL. It decodes numbers itself; everything else is the registry's.
type adapter struct{ types.Adapter }

// NativeToValue implements types.Adapter.
func (a adapter) NativeToValue(v any) ref.Val {
	switch v := v.(type) {
	case json.Number:
		return number(v.String())
	case ref.Val:
		return v
	case map[string]any:
		return types.NewStringInterfaceMap(a, v)
	case []any:
		return types.NewDynamicList(a, v)
	case *lazy:
		tree, err := v.value()
		if err != nil {
			return types.WrapErr(err)
		}
		return a.NativeToValue(tree)
	}
	return a.Adapter.NativeToValue(v)
}

// number returns the CEL value of a JSON number: int, uint or double when one of them is exactly the number, else an inexact.
func number(s string) ref.Val {
	if !strings.ContainsAny(s, ".eE") {
		if i, err := strconv.ParseInt(s, 10, 64); err == nil {
			return types.Int(i)
		}
		if u, err := strconv.ParseUint(s, 10, 64); err == nil {
			return types.Uint(u)
		}
	}
	f, err := strconv.ParseFloat(s, 64)
	if err == nil && sameNumber(s, strconv.FormatFloat(f, 'e', -1, 64)) {
		return types.Double(f)
	}
	return inexact(s)
}

// sameNumber reports whether two JSON numbers have the same value.
func sameNumber(a, b string) bool {
	aSign, aDigits, aExp := scientific(a)
	bSign, bDigits, bExp := scientific(b)
	return aSign == bSign && aDigits == bDigits && aExp == bExp
}

// scientific writes a JSON number as sign * 0.digits * 10^exp, with digits that neither begin nor end with a zero.
func scientific(s string) (negative bool, digits string, exp int) {
	s, negative = strings.CutPrefix(s, "-")
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		exp, _ = strconv.Atoi(s[i+1:]) // out of range: saturated, and equal to no double
		s = s[:i]
	}
	whole, fraction, _ := strings.Cut(s, ".")
	digits = strings.TrimLeft(whole+fraction, "0")
	exp += len(whole) - (len(whole) + len(fraction) - len(digits))
	if digits = strings.TrimRight(digits, "0"); digits == "" {
		return negative, "", 0
	}
	return negative, digits, exp
}

// inexact is a JSON number that no CEL number holds exactly. It can be passed on and compared for equality. CEL finds no other
// operation for it, so computing with it is an error rather than a rounded result.
type inexact string

var inexactType = types.NewOpaqueType("number_of_too_many_digits")

// ConvertToNative implements ref.Val.
func (n inexact) ConvertToNative(t reflect.Type) (any, error) {
	return nil, fmt.Errorf("a number of too many digits cannot become %s", t)
}

// ConvertToType implements ref.Val.
func (n inexact) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.StringType:
		return types.String(n)
	case types.TypeType:
		return inexactType
	}
	return types.NewErr("a number of too many digits cannot become %s", t.TypeName())
}

// Equal implements ref.Val. A number that CEL can hold is never equal to one that it cannot.
func (n inexact) Equal(other ref.Val) ref.Val {
	o, ok := other.(inexact)
	return types.Bool(ok && sameNumber(string(n), string(o)))
}

// Type implements ref.Val.
func (n inexact) Type() ref.Type { return inexactType }

// Value implements ref.Val.
func (n inexact) Value() any { return json.Number(n) }

// errTooLarge means that a value would exceed the bytes it may have.
var errTooLarge = errors.New("too large")

// writer appends JSON to a buffer that may not exceed limit bytes. After its first error it appends nothing more.
type writer struct {
	b     []byte
	limit int
	err   error
}

// room reports whether writing may go on.
func (w *writer) room() bool {
	if w.err == nil && len(w.b) > w.limit {
		w.err = errTooLarge
	}
	return w.err == nil
}

func (w *writer) raw(s string) {
	if w.room() && len(s) <= w.limit-len(w.b) {
		w.b = append(w.b, s...)
	} else if w.err == nil {
		w.err = errTooLarge
	}
}

// native appends decoded JSON. Names are sorted, so equal values have equal text.
func (w *writer) native(v any) {
	if !w.room() {
		return
	}
	switch v := v.(type) {
	case nil:
		w.raw("null")
	case bool:
		w.raw(strconv.FormatBool(v))
	case string:
		w.text(v, true)
	case json.Number:
		w.raw(v.String())
	case *array:
		w.raw("[")
		for i, item := range v.items {
			if i > 0 {
				w.raw(",")
			}
			w.native(item)
		}
		w.raw("]")
	case *object:
		w.fields(v.fields)
	case map[string]any:
		w.fields(v)
	case *lazy:
		w.raw(string(v.raw))
	case ref.Val:
		w.value(v)
	default:
		w.err = fmt.Errorf("a value of type %T has no JSON form", v)
	}
}

func (w *writer) fields(m map[string]any) {
	w.raw("{")
	for i, name := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			w.raw(",")
		}
		w.text(name, true)
		w.raw(":")
		w.native(m[name])
	}
	w.raw("}")
}

// value appends the result of an expression.
func (w *writer) value(v ref.Val) {
	if !w.room() {
		return
	}
	switch v := v.(type) {
	case types.Null:
		w.raw("null")
	case types.Bool:
		w.raw(strconv.FormatBool(bool(v)))
	case types.Int:
		w.raw(strconv.FormatInt(int64(v), 10))
	case types.Uint:
		w.raw(strconv.FormatUint(uint64(v), 10))
	case types.Double:
		w.double(float64(v))
	case inexact:
		w.raw(string(v))
	case types.String:
		w.text(string(v), true)
	case types.Bytes:
		w.text(base64.StdEncoding.EncodeToString(v), true)
	case types.Timestamp:
		w.text(v.Format(time.RFC3339Nano), true)
	case types.Duration:
		w.text(strconv.FormatFloat(v.Seconds(), 'f', -1, 64)+"s", true)
	case *types.Optional:
		if !v.HasValue() {
			w.err = errors.New("the value is missing; give another one with .orValue(...)")
			return
		}
		w.value(v.GetValue())
	case *object, *array:
		w.native(v) // its numbers keep their digits
	case traits.Mapper:
		w.mapper(v)
	case traits.Lister:
		w.lister(v)
	case *types.Err:
		w.err = v
	default:
		w.err = fmt.Errorf("the value is a %s, which has no JSON form", typeName(v))
	}
}

// double appends a double in the shortest form that reads back as the same double.
func (w *writer) double(f float64) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		w.err = errors.New("the number is infinite or not a number, which JSON cannot say")
		return
	}
	b, err := json.Marshal(f)
	if err != nil {
		w.err = err
		return
	}
	w.raw(string(b))
}

func (w *writer) lister(v traits.Lister) {
	w.raw("[")
	size, _ := v.Size().(types.Int)
	for i := types.Int(0); i < size && w.room(); i++ {
		if i > 0 {
			w.raw(",")
		}
		w.value(v.Get(i))
	}
	w.raw("]")
}

func (w *writer) mapper(v traits.Mapper) {
	var names []string
	for it := v.Iterator(); it.HasNext() == types.True; {
		name, ok := it.Next().(types.String)
		if !ok {
			w.err = errors.New("an object's names must be text")
			return
		}
		names = append(names, string(name))
	}
	slices.Sort(names)
	w.raw("{")
	for i, name := range names {
		if !w.room() {
			return
		}
		if i > 0 {
			w.raw(",")
		}
		w.text(name, true)
		w.raw(":")
		w.value(v.Get(types.String(name)))
	}
	w.raw("}")
}

// interpolate appends a value as part of a longer text, without quotes.
func (w *writer) interpolate(v ref.Val) {
	if !w.room() {
		return
	}
	switch v := v.(type) {
	case types.Null:
	case types.String:
		w.text(string(v), false)
	case types.Timestamp, types.Duration, types.Bytes, *types.Optional, traits.Mapper, traits.Lister:
		inner := writer{limit: w.limit}
		inner.value(v)
		if w.err = inner.err; w.err != nil {
			return
		}
		var s string
		if json.Unmarshal(inner.b, &s) == nil {
			w.text(s, false)
			return
		}
		w.text(string(inner.b), false)
	default:
		w.value(v)
	}
}

const hexDigits = "0123456789abcdef"

// text appends s as the inside of a JSON string, with quotes if asked.
func (w *writer) text(s string, quoted bool) {
	if !w.room() {
		return
	}
	if len(s) > w.limit-len(w.b) {
		w.err = errTooLarge
		return
	}
	if !utf8.ValidString(s) {
		w.err = errors.New("the text is not valid UTF-8")
		return
	}
	if quoted {
		w.b = append(w.b, '"')
	}
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		w.b = append(w.b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			w.b = append(w.b, '\\', c)
		case '\n':
			w.b = append(w.b, '\\', 'n')
		case '\r':
			w.b = append(w.b, '\\', 'r')
		case '\t':
			w.b = append(w.b, '\\', 't')
		default:
			w.b = append(w.b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	w.b = append(w.b, s[from:]...)
	if quoted {
		w.b = append(w.b, '"')
	}
}

// typeName names the type of a CEL value for a message.
func typeName(v ref.Val) string {
	if v == nil || v.Type() == nil {
		return "value"
	}
	return v.Type().TypeName()
}
