package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core"
)

// readBody reads the request body once. It is called after the sender is known, except for backends that must see the body to know.
func (s *Server) readBody(c *gin.Context, req *request, limit int64) ([]byte, error) {
	if !req.bodyRead {
		req.place.Leave() // for as long as its sender takes
		defer req.place.Return()
		req.body, req.bodyErr = s.receive(c, limit)
		req.bodyRead = true
	}
	return req.body, req.bodyErr
}

func (s *Server) receive(c *gin.Context, limit int64) ([]byte, error) {
	r := c.Request
	tooLarge := func() error {
		c.Header("Connection", "close")
		discard(c)
		return core.Errorf(core.CodeBodyTooLarge, "the body has more than %d bytes, which is the limit here", limit)
	}
	if r.ContentLength > limit {
		return nil, tooLarge()
	}
	if r.Body == nil || r.ContentLength == 0 {
		return nil, nil
	}
	var buf bytes.Buffer
	if r.ContentLength > 0 {
		// Not all at once for a large one: announcing a body costs its sender nothing.
		buf.Grow(int(min(r.ContentLength, 64<<10)) + bytes.MinRead)
	}
	n, err := buf.ReadFrom(io.LimitReader(r.Body, limit+1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.Header("Connection", "close")
		return nil, core.Wrap(core.CodeInvalidRequest, err, "the body did not arrive within "+s.BodyTimeout.String())
	case err != nil:
		c.Header("Connection", "close")
		return nil, core.Wrap(core.CodeInvalidRequest, err, "the body ended early or is not framed as its header says")
	case n > limit:
		return nil, tooLarge()
	}
	// The body is here, so its deadline is off: it would otherwise end a run that takes longer.
	_ = http.NewResponseController(c.Writer).SetReadDeadline(time.Time{})
	return buf.Bytes(), nil
}

// Bounds of what is read of a body that is not wanted.
const (
	discardBytes = 32 << 20
	discardTime  = 2 * time.Second
)

// discard reads what a sender goes on sending of a body that is too large. Many clients read the answer only when all is sent; to them a connection that is closed in between is
// reset, and they never learn why. One that asked before sending is told instead.
func discard(c *gin.Context) {
	if c.GetHeader("Expect") != "" {
		return
	}
	_ = http.NewResponseController(c.Writer).SetReadDeadline(time.Now().Add(discardTime))
	_, _ = io.CopyN(io.Discard, c.Request.Body, discardBytes) // whatever ends it, the answer is the same
}

// readJSON reads a body of type application/json and checks it strictly. It returns nil for a request that has neither a body nor a type.
func (s *Server) readJSON(c *gin.Context, req *request) ([]byte, error) {
	body, err := s.readMaybeJSON(c, req)
	if err == nil && body == nil && c.Request.Header["Content-Type"] != nil {
		return nil, core.Errorf(core.CodeInvalidJSON, "there is no body, although its Content-Type is given; the smallest one is {}")
	}
	return body, err
}

// readMaybeJSON is readJSON for a body that may be left out: many clients give its type all the same.
func (s *Server) readMaybeJSON(c *gin.Context, req *request) ([]byte, error) {
	if err := s.checkType(c, "application/json"); err != nil {
		return nil, err
	}
	body, err := s.readBody(c, req, s.MaxBody)
	if err != nil || len(body) == 0 {
		return nil, err
	}
	if err := core.CheckJSON(body, core.JSONLimits{}); err != nil {
		return nil, err
	}
	return body, nil
}

// readObject reads a JSON body into the struct v points to. See decodeObject.
func (s *Server) readObject(req *request, v any) error {
	body, err := s.readJSON(req.c, req)
	if err != nil {
		return err
	}
	return decodeObject(body, v)
}

// readOptional is readObject for a body that may be left out, which leaves v as it is.
func (s *Server) readOptional(req *request, v any) error {
	body, err := s.readMaybeJSON(req.c, req)
	if err != nil || body == nil {
		return err
	}
	return decodeObject(body, v)
}

// readChange is readObject for the body of a change, of which what is absent stays as it is. A null takes away what can be taken away; any other is refused, since it would be
// taken for absent, and an allow_query that somebody nulls would stay true.
func (s *Server) readChange(req *request, v any) error {
	body, err := s.readJSON(req.c, req)
	if err != nil {
		return err
	}
	if err := decodeObject(body, v); err != nil {
		return err
	}
	known := membersOf(reflect.TypeOf(v).Elem())
	for name, value := range core.JSONMembers(body) {
		if !bytes.Equal(value, null) {
			continue
		}
		// decodeObject has seen that there is such a member.
		of := known[slices.IndexFunc(known, func(m bodyMember) bool { return m.name == name })].of
		if !takesNull(of) {
			if of.Kind() == reflect.Pointer {
				of = of.Elem()
			}
			return invalidField(core.CodeInvalidInput, "#/"+name, "must be "+describe(of)+"; leave it out to keep it as it is")
		}
	}
	return nil
}

// takesNull reports whether null is a value of a member: it reads null itself, or is a list or an object that emptyForNull empties.
func takesNull(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(decodesItself) || emptiesForNull(t)
}

func emptiesForNull(t reflect.Type) bool {
	return t.Kind() == reflect.Pointer && (t.Elem().Kind() == reflect.Slice || t.Elem().Kind() == reflect.Map)
}

// Why bodies are refused on any route.
const (
	refuseEncoded = "send the body without Content-Encoding: a compressed one cannot be bounded before it is unpacked"
	refuseTypes   = "the request has more than one Content-Type"
)

// encoded reports whether a body has to be unpacked.
func encoded(h http.Header) bool {
	e := h["Content-Encoding"]
	return len(e) > 0 && (len(e) > 1 || !strings.EqualFold(e[0], "identity"))
}

// checkType refuses bodies of another media type or with an encoding. A request that has no body needs no type.
func (s *Server) checkType(c *gin.Context, accepted ...string) error {
	_, _, err := mediaType(c, accepted...)
	return err
}

// acceptHeader is the header of a 415 that says what the body of a request may be.
func acceptHeader(method string) string {
	switch method {
	case http.MethodPut:
		return "Accept" // RFC 9110 section 12.5.1
	case http.MethodPatch:
		return "Accept-Patch" // RFC 5789 section 2.2
	}
	return "Accept-Post"
}

func mediaType(c *gin.Context, accepted ...string) (string, map[string]string, error) {
	refuse := func(message string) (string, map[string]string, error) {
		c.Header(acceptHeader(c.Request.Method), strings.Join(accepted, ", "))
		return "", nil, core.Errorf(core.CodeUnsupportedMediaType, "%s", message)
	}
	h := c.Request.Header
	if encoded(h) {
		return refuse(refuseEncoded)
	}
	switch types := h["Content-Type"]; {
	case len(types) > 1:
		return refuse(refuseTypes)
	case len(types) == 0 && c.Request.ContentLength == 0:
		return "", nil, nil
	case len(types) == 1:
		if types[0] == accepted[0] {
			return accepted[0], nil, nil
		}
		t, params, err := mime.ParseMediaType(types[0])
		if err != nil {
			break
		}
		for _, a := range accepted {
			if t != a {
				continue
			}
			if cs := params["charset"]; cs != "" && !strings.EqualFold(cs, "utf-8") {
				return refuse("send text in UTF-8")
			}
			return t, params, nil
		}
	}
	return refuse("send the body as Content-Type: " + strings.Join(accepted, " or "))
}

// decodeObject decodes body, which was checked, into the struct v points to. Members are matched by their exact names, at every depth; one that a struct does not have is
// CodeUnknownField, so that a typing error is not taken for a request that leaves the member out. A list or an object that may be left out and is null is empty.
func decodeObject(body []byte, v any) error {
	if !isObject(body) {
		return invalidField(core.CodeInvalidRequest, "#", "must be an object")
	}
	t := reflect.TypeOf(v).Elem()
	if err := knownMembers(body, t, "#"); err != nil {
		return err
	}
	body = emptyForNull(body, t)
	err := json.Unmarshal(body, v)
	var wrong *json.UnmarshalTypeError
	var classified *core.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &classified):
		return placed(body, v, classified)
	case errors.As(err, &wrong):
		at, want := misfit(body, t, "#")
		return invalidField(core.CodeInvalidInput, at, "must be "+describe(want))
	}
	return core.Wrap(core.CodeInvalidInput, err, "the body does not have the documented form")
}

// misfit finds the first value that does not decode into its type, which package json names by its field alone: without the index in a list, and the name in a map.
func misfit(raw []byte, t reflect.Type, at string) (string, reflect.Type) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	inside := func(value []byte, t reflect.Type, step string) (string, reflect.Type) {
		if json.Unmarshal(value, reflect.New(t).Interface()) == nil {
			return "", nil
		}
		return misfit(value, t, at+"/"+step)
	}
	switch {
	case reflect.PointerTo(t).Implements(decodesItself):
	case t.Kind() == reflect.Slice:
		var items []json.RawMessage
		if json.Unmarshal(raw, &items) != nil {
			break
		}
		for i, item := range items {
			if place, want := inside(item, t.Elem(), strconv.Itoa(i)); want != nil {
				return place, want
			}
		}
	case isObject(raw) && t.Kind() == reflect.Map:
		for name, value := range core.JSONMembers(raw) {
			if place, want := inside(value, t.Elem(), core.EscapePointer(clip(name))); want != nil {
				return place, want
			}
		}
	case isObject(raw) && t.Kind() == reflect.Struct:
		known := membersOf(t)
		for name, value := range core.JSONMembers(raw) {
			if i := slices.IndexFunc(known, func(m bodyMember) bool { return m.name == name }); i >= 0 {
				if place, want := inside(value, known[i].of, name); want != nil {
					return place, want
				}
			}
		}
	}
	return at, t
}

// placed names the member that a value which decodes itself has refused.
func placed(body []byte, v any, e *core.Error) *core.Error {
	if len(e.Fields) > 0 {
		return e
	}
	known := membersOf(reflect.TypeOf(v).Elem())
	for name, value := range core.JSONMembers(body) {
		alone, err := json.Marshal(map[string]json.RawMessage{name: value})
		if err != nil || json.Unmarshal(alone, reflect.New(reflect.TypeOf(v).Elem()).Interface()) == nil {
			continue
		}
		at := "#/" + core.EscapePointer(name)
		if i := slices.IndexFunc(known, func(m bodyMember) bool { return m.name == name }); i >= 0 && isObject(value) {
			if o, ok := reflect.Zero(known[i].of).Interface().(interface{ holds() reflect.Type }); ok {
				place, want := misfit(value, o.holds(), at)
				return invalidField(e.Code, place, "must be "+describe(want))
			}
		}
		own := invalidField(e.Code, at, e.Message)
		own.Err = e.Err
		return own
	}
	return e
}

func isObject(body []byte) bool {
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	return len(trimmed) > 0 && trimmed[0] == '{'
}

// bodyMember is a field of a struct that is decoded from JSON.
type bodyMember struct {
	name string
	of   reflect.Type
}

// membersOf returns the members of a struct, those of embedded ones included.
func membersOf(t reflect.Type) []bodyMember {
	all := make([]bodyMember, 0, t.NumField())
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			all = append(all, membersOf(f.Type)...)
			continue
		}
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			all = append(all, bodyMember{name, f.Type})
		}
	}
	return all
}

var decodesItself = reflect.TypeFor[json.Unmarshaler]()

// knownMembers refuses a value with a member that its type does not have. at is where the value stands.
func knownMembers(raw []byte, t reflect.Type, at string) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if o, ok := reflect.Zero(t).Interface().(interface{ holds() reflect.Type }); ok { // it is that, or null
		return knownMembers(raw, o.holds(), at)
	}
	if reflect.PointerTo(t).Implements(decodesItself) {
		return nil
	}
	switch t.Kind() {
	case reflect.Struct:
		known := membersOf(t)
		for name, value := range core.JSONMembers(raw) {
			i := slices.IndexFunc(known, func(m bodyMember) bool { return m.name == name })
			if i < 0 {
				names := make([]string, len(known))
				for i, m := range known {
					names[i] = m.name
				}
				return unknownField(at, name, names)
			}
			if err := knownMembers(value, known[i].of, at+"/"+name); err != nil {
				return err
			}
		}
	case reflect.Slice:
		if t.Elem().Kind() != reflect.Struct {
			return nil
		}
		var items []json.RawMessage
		if json.Unmarshal(raw, &items) != nil {
			return nil // which is told of the whole
		}
		for i, item := range items {
			if err := knownMembers(item, t.Elem(), at+"/"+strconv.Itoa(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// emptyForNull writes an empty list or object for a member that is null and may be left out: whoever takes a limit away writes null, and does not mean to leave it as it is.
func emptyForNull(body []byte, t reflect.Type) []byte {
	changed := map[string]json.RawMessage{}
	for _, m := range membersOf(t) {
		if emptiesForNull(m.of) {
			changed[m.name] = json.RawMessage("[]")
			if m.of.Elem().Kind() == reflect.Map {
				changed[m.name] = json.RawMessage("{}")
			}
		}
	}
	if len(changed) == 0 || !bytes.Contains(body, null) {
		return body
	}
	all := map[string]json.RawMessage{}
	for name, value := range core.JSONMembers(body) {
		if empty, ok := changed[name]; ok && bytes.Equal(value, null) {
			value = empty
		}
		all[name] = value
	}
	out, err := json.Marshal(all)
	if err != nil {
		return body
	}
	return out
}

func describe(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Map, reflect.Struct:
		return "an object"
	}
	return "of another type"
}

// invalidField refuses one place of a request: a JSON pointer into the body, or a header or parameter whose name follows inHeader or inQuery. detail says what
// would be right, as the predicate of a sentence about it.
func invalidField(code core.Code, pointer, detail string) *core.Error {
	message := "the body " + detail
	if pointer != "#" {
		message = strings.TrimPrefix(strings.TrimLeft(pointer, inHeader+inQuery), "#/") + " " + detail
	}
	e := core.Errorf(code, "%s", message)
	e.Fields = []core.Field{{Pointer: pointer, Detail: detail}}
	return e
}

// unknownField refuses a member by its place. Its name is part of the pointer, as it must be; its value is not shown.
func unknownField(at, name string, known []string) *core.Error {
	detail := "is not a known field; known are " + strings.Join(known, ", ")
	if len(known) == 0 {
		detail = "is not a known field; none is"
	}
	if near := core.Nearest(name, known); near != "" {
		detail = "is not a known field; did you mean " + near + "?"
	}
	e := core.Errorf(core.CodeUnknownField, "the body has a field that %s", detail)
	e.Fields = []core.Field{{Pointer: at + "/" + core.EscapePointer(clip(name)), Detail: detail}}
	return e
}
