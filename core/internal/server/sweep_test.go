package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/server/compat"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// world is an account with somebody in it.
type world struct {
	b           *bundle
	account     string
	accountName string
	boss        admin.Actor
	adminKey    string
	triggerKey  string // may run every workflow
	triggerID   string
	boundKey    string // may run one
	session     string // of an owner
	workflow    string // id of a workflow that has run
	made        *atomic.Int64
}

// name returns a fresh name, always of the same length.
func (w *world) name(what string) string {
	return fmt.Sprintf("%s-%s%04d", what, w.accountName[:4], w.made.Add(1))
}

func (w *world) key(t auth.KeyType, scopes ...string) *auth.Key {
	w.b.t.Helper()
	if t == auth.TriggerKey && len(scopes) == 0 {
		scopes = []string{auth.ScopeRunAll}
	}
	k, secret, err := w.b.admin.CreateKey(context.Background(), w.boss, admin.NewKey{Type: t, Name: "sweep", Scopes: scopes})
	w.b.must(err)
	w.triggerKey = secret.Reveal()
	return k
}

// newWorld makes an account and what every one has; "" is the default account.
func newWorld(b *bundle, name string, made *atomic.Int64) *world {
	b.t.Helper()
	w := &world{b: b, account: core.DefaultAccount, accountName: "default", boss: b.boss, made: made}
	if name != "" {
		a, err := b.admin.CreateAccount(context.Background(), b.boss, name, "")
		b.must(err)
		w.account, w.accountName, w.boss.Principal.Account = a.ID, name, a.ID
	}
	all := objectKinds()
	w.workflow = all["workflow"].make(w)[0]
	w.key(auth.AdminKey)
	w.adminKey = w.triggerKey
	w.key(auth.TriggerKey, auth.ScopeRunWorkflow+w.workflow)
	w.boundKey = w.triggerKey
	w.triggerID = w.key(auth.TriggerKey).ID
	trigger := w.triggerKey
	all["run"].make(w)
	all["user"].make(w)
	user := w.name("boss")
	_, err := b.admin.CreateUser(context.Background(), w.boss, admin.NewUser{Name: user, Role: auth.Owner, Password: auth.NewSecret(sweepPassword)})
	b.must(err)
	w.session = b.call("POST", "/v1/auth/login", "", fmt.Sprintf(`{"account":%q,"user":%q,"password":%q}`, w.account, user, sweepPassword)).want(200).object()["access_token"].(string)
	w.triggerKey = trigger
	// Somebody known is refused, so that the account has audit events of its key.
	b.call("GET", "/v1/keys", w.triggerKey, "").want(403)
	b.call("GET", "/v1/keys", w.triggerKey, "").want(403)
	return w
}

// sweep is A3's test under way.
type sweep struct {
	t        *testing.T
	b        *bundle
	doc      map[string]any // the API document
	kinds    map[string]objectKind
	own      *world
	others   []*world
	requests int
}

// A3: whatever an account's credential asks for of another account's, it gets the answer, byte for byte, that it gets for what does not exist; and the other account
// does not notice. Every route of the server is tried, with every parameter and member that names an object, by id and by name, in the path, the query, the body and as
// a cursor, with an administrator's key, two trigger keys and an owner's session. A route, a parameter or a member that the table does not know fails the test.
func TestA3Sweep(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, c *Config) {
		c.Compat = compat.Products{Keyflow: true, Miiflow: true, Langflow: true, Bifrost: true}
	})
	vault, err := admin.NewVault(bytes.Repeat([]byte{3}, admin.VaultKeySize))
	b.must(err)
	b.admin.Vault = vault
	s := &sweep{t: t, b: b, doc: document(t, b), kinds: objectKinds()}
	var made atomic.Int64
	s.own = newWorld(b, "alpha", &made)
	s.others = []*world{newWorld(b, "bravo", &made), newWorld(b, "", &made)}
	used := func(w *world) []string { return []string{w.workflow} }
	s.kinds["used workflow"] = objectKind{make: used, none: func(*world) []string { return []string{"wf_" + noID} }}

	table := rows()
	routes := s.routes()
	for _, route := range routes {
		r, ok := table[route]
		if !ok {
			t.Errorf("%s has no row in rows() of sweep_rows_test.go: say there how to reach an own object by it, so that other accounts' objects are tried", route)
			continue
		}
		delete(table, route)
		if r.open == "" {
			s.route(route, r)
		}
	}
	for route := range table {
		t.Errorf("%s has a row in rows() of sweep_rows_test.go, but the server has no such route", route)
	}
	for _, w := range s.others {
		s.undisturbed(w)
	}
	t.Logf("%d routes, %d requests", len(routes), s.requests)
	if s.requests < 500 {
		t.Errorf("only %d requests were compared", s.requests)
	}
}

var ginParameter = regexp.MustCompile(`[:*](\w+)`)

func (s *sweep) routes() []string {
	var all []string
	for _, r := range s.b.server.engine.Routes() {
		if r.Method == "OPTIONS" {
			continue // asked by browsers, before anybody is known
		}
		all = append(all, r.Method+" "+ginParameter.ReplaceAllString(r.Path, "{$1}"))
	}
	slices.Sort(all)
	return all
}

// route tries one route with everything that it names.
func (s *sweep) route(route string, r row) {
	method, path, _ := strings.Cut(route, " ")
	inPath := pathParameter.FindAllStringSubmatch(path, -1)
	named := 0
	for _, m := range inPath {
		if _, ok := pathValues[m[1]]; ok {
			continue
		}
		named++
		kindName := m[1]
		if k := r.kinds[m[1]]; k != "" {
			kindName = k
		}
		k, ok := s.kinds[kindName]
		if !ok {
			s.t.Errorf("%s: {%s} has no kind in objectKinds() of sweep_rows_test.go, nor is it one of pathValues", route, m[1])
			return
		}
		s.compare(route+" {"+m[1]+"}", r, k, r.own, func() {}, func(ref string) *http.Request {
			return s.request(r, method, strings.ReplaceAll(path, m[0], url.PathEscape(ref)), "", strings.ReplaceAll(r.body, "{path}", ref))
		})
	}
	if named > 1 {
		s.t.Errorf("%s names two objects in its path; the sweep tries one at a time, so teach it", route)
		return
	}
	here := path // for what is not in the path: with an own object there
	fill := func(w *world) string {
		filled := here
		for _, m := range inPath {
			name := m[1]
			if r.kinds[name] != "" {
				name = r.kinds[name]
			}
			if k, ok := s.kinds[name]; ok && pathValues[m[1]] == "" {
				filled = strings.ReplaceAll(filled, m[0], url.PathEscape(k.make(w)[0]))
			}
		}
		return filled
	}
	if named == 0 {
		s.only(route, r.own, s.request(r, method, fill(s.own), "", r.body))
	}
	for _, p := range s.queryParameters(route) {
		switch kindName, ok := r.filters[p]; {
		case ok:
			s.filter(route, r, method, fill(s.own), p, s.kinds[kindName])
		case p == "cursor" && r.noPages:
		case p == "cursor":
			s.cursor(route, method, fill)
		case slices.Contains(plainNames, p) || slices.Contains(r.plain, p):
		default:
			s.t.Errorf("%s: the query parameter %q is neither in the row's filters, with the kind of object it names, nor in plainNames of sweep_rows_test.go", route, p)
		}
	}
	for _, name := range s.bodyMembers(route) {
		if _, ok := r.members[name]; !ok && !slices.Contains(plainNames, name) && !slices.Contains(r.plain, name) {
			s.t.Errorf("%s: the member %q of the body is neither in the row's members, with the kind of object it names, nor in plainNames of sweep_rows_test.go", route, name)
		}
	}
	for name, m := range r.members {
		own := r.own
		if m.own != 0 {
			own = m.own
		}
		r := r
		r.creates = r.creates || own == http.StatusCreated || strings.Contains(path, "agent_run")
		target := ""
		s.compare(route+" "+name, r, s.kinds[m.kind], own, func() { target = fill(s.own) }, func(ref string) *http.Request {
			return s.request(r, method, target, "", strings.ReplaceAll(m.body(ref), "{path}", target[strings.LastIndex(target, "/")+1:]))
		})
	}
	// The header by which a superuser acts for another account tells nobody else anything.
	target := fill(s.own)
	header := func(ref string) *http.Request {
		req := s.request(r, method, target, "", r.body)
		req.Header.Set(headerAccount, ref)
		return req
	}
	account := s.kinds["account"]
	for _, other := range s.others {
		for i, none := range account.none(s.own) {
			theirs := account.make(other)[i]
			s.same(route+" header "+headerAccount, r, theirs, none, s.send(s.own.adminKey, header(theirs)), s.send(s.own.adminKey, header(none)))
		}
	}
}

// request makes a request of a row.
func (s *sweep) request(r row, method, target, query, body string) *http.Request {
	for name, value := range pathValues {
		target = strings.ReplaceAll(target, "{"+name+"}", value)
	}
	if query != "" {
		target += "?" + query
	}
	body = strings.ReplaceAll(body, "{fresh}", s.own.name("user"))
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	switch {
	case strings.HasPrefix(body, "keyfire:"):
		req.Header.Set("Content-Type", typeYAML)
	case body != "":
		req.Header.Set("Content-Type", typeJSON)
	default:
		req.Body, req.ContentLength = http.NoBody, 0
	}
	return req
}

func (s *sweep) send(key string, req *http.Request) *reply {
	s.requests++
	req.RemoteAddr = "203.0.113.7:4711"
	req.Header.Set("Authorization", "Bearer "+key)
	return s.b.do(req)
}

// compare sends a request with a reference to an own object, which must be found; to one of another account, which must not change; and to nothing: the last two
// must have one answer. Every way of naming the object and every credential is tried. prepare is called before requests that may change something.
func (s *sweep) compare(what string, r row, k objectKind, own int, prepare func(), ask func(ref string) *http.Request) {
	for i := range k.none(s.own) {
		prepare()
		if got := s.send(s.own.adminKey, ask(k.make(s.own)[i])); got.code != own {
			s.t.Errorf("%s: status %d for an own object, want %d, so nothing shows that the request reaches one: %s", what, got.code, own, got.body)
			return
		}
		for _, other := range s.others {
			for caller, key := range map[string]string{"admin key": s.own.adminKey, "trigger key": s.own.triggerKey, "bound key": s.own.boundKey, "session": s.own.session} {
				prepare()
				names, none := k.make(other), k.none(s.own)[i]
				before := ""
				if k.show != nil {
					before = k.show(other, names)
				}
				s.same(fmt.Sprintf("%s as %s, name %d", what, caller, i), r, names[i], none, s.send(key, ask(names[i])), s.send(key, ask(none)))
				if k.show == nil {
					continue
				}
				if after := k.show(other, names); after != before {
					s.t.Errorf("%s has changed another account's object:\nbefore %s\nafter  %s", what, before, after)
				}
			}
		}
	}
}

// only sends the one request of a route that names nothing, and checks that it shows nothing of the other accounts.
func (s *sweep) only(route string, own int, req *http.Request) {
	got := s.send(s.own.adminKey, req)
	if got.code != own {
		s.t.Errorf("%s: status %d, want %d: %s", route, got.code, own, got.body)
	}
	for _, other := range s.others {
		for _, id := range []string{other.account, other.workflow, other.triggerID} {
			if bytes.Contains(got.body, []byte(id)) {
				s.t.Errorf("%s shows %s of another account: %s", route, id, got.body)
			}
		}
	}
}

func (s *sweep) filter(route string, r row, method, target, parameter string, k objectKind) {
	name := strings.ReplaceAll(parameter, "{name}", "crm")
	ask := func(ref string) *http.Request {
		return s.request(r, method, target, url.Values{name: {ref}}.Encode(), "")
	}
	found := s.send(s.own.adminKey, ask(k.make(s.own)[0]))
	var list struct{ Data []json.RawMessage }
	if err := json.Unmarshal(found.body, &list); err != nil || len(list.Data) == 0 {
		s.t.Errorf("%s?%s= finds nothing of the own account, so nothing shows that it would find another one's: %s", route, parameter, found.body)
	}
	s.compare(route+"?"+parameter, r, k, r.own, func() {}, ask)
}

// cursor sends a cursor of another account's list, which must be as good as one that was made up.
func (s *sweep) cursor(route, method string, fill func(*world) string) {
	page := func(w *world, cursor string) *http.Request {
		q := url.Values{"limit": {"1"}}
		if cursor != "" {
			q.Set("cursor", cursor)
		}
		return s.request(row{}, method, fill(w), q.Encode(), "")
	}
	next := func(w *world) string {
		r := s.send(w.adminKey, page(w, ""))
		if r.code == http.StatusForbidden {
			return "" // a list of the server
		}
		cursor, _ := r.want(200).object()["next_cursor"].(string)
		if cursor == "" {
			s.t.Errorf("%s has no second page in account %s: let newWorld make two", route, w.accountName)
		}
		return cursor
	}
	own := next(s.own)
	if own == "" {
		return
	}
	s.send(s.own.adminKey, page(s.own, own)).want(200)
	for _, other := range s.others {
		theirs := next(other)
		none := strings.Repeat("A", len(theirs))
		s.same(route+"?cursor", row{}, theirs, none, s.send(s.own.adminKey, page(s.own, theirs)), s.send(s.own.adminKey, page(s.own, none)))
	}
}

var (
	anyID   = regexp.MustCompile(`\b(acct|wf|run|key|evt|usr|ses)_[0-9a-z]{26}\b|kf[ta]_[0-9A-Za-z.]{19,50}|sha256:[0-9a-f]{64}`)
	anyTime = regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+Z`)
	anyName = regexp.MustCompile(`user-alph\d{4}`)
)

// same compares the answers about another account's object and about nothing.
func (s *sweep) same(what string, r row, theirs, none string, got, want *reply) {
	s.t.Helper()
	text := func(r2 *reply, ref string) string {
		h := r2.header.Clone()
		id := h.Get("Keyfire-Request-Id")
		for _, name := range []string{"Keyfire-Request-Id", "Content-Length"} { // the length of what the sender named itself
			h.Del(name)
		}
		var all bytes.Buffer
		fmt.Fprintf(&all, "%d\n", r2.code)
		_ = h.Write(&all)
		all.Write(r2.body)
		out := all.String()
		var p Problem
		if json.Unmarshal(r2.body, &p) == nil && p.TraceID != "" {
			out = strings.ReplaceAll(out, p.TraceID, "TRACE")
		}
		out = strings.ReplaceAll(strings.ReplaceAll(out, id, "REQUEST"), ref, "REF")
		if r.creates && r2.code < 300 {
			out = anyName.ReplaceAllString(anyTime.ReplaceAllString(anyID.ReplaceAllString(out, "ID"), "TIME"), "NAME")
		}
		return out
	}
	if a, b := text(got, theirs), text(want, none); a != b {
		s.t.Errorf("%s: another account's is told from nothing:\n--- another account's\n%s\n--- nothing\n%s", what, a, b)
	}
}

// undisturbed checks that nothing of what was tried is in an account's audit log.
func (s *sweep) undisturbed(w *world) {
	cursor, rows := "", 0
	for {
		l, err := s.b.admin.AuditEvents(context.Background(), w.boss, core.AuditFilter{}, core.Page{Limit: 200, Cursor: cursor})
		s.b.must(err)
		for _, e := range l.Items {
			rows++
			if e.Actor != w.boss.Principal.Subject && e.Actor != "key:"+w.triggerID && !strings.HasPrefix(e.Action, "session.") && e.Outcome == core.OutcomeRefused {
				s.t.Errorf("the audit log of %s has %+v", w.accountName, e)
			}
		}
		if cursor = l.Next; cursor == "" {
			break
		}
	}
	if rows == 0 {
		s.t.Errorf("the audit log of %s is empty", w.accountName)
	}
}

// operation returns a route in the API document, nil for the adapters' routes, which are not in it.
func (s *sweep) operation(route string) map[string]any {
	method, path, _ := strings.Cut(route, " ")
	item := at(s.doc, "paths", path)
	if method == http.MethodHead && item["head"] == nil {
		method = http.MethodGet // which it is described with
	}
	return at(item, strings.ToLower(method))
}

func (s *sweep) queryParameters(route string) []string {
	var names []string
	for _, p := range asList(s.operation(route)["parameters"]) {
		if at(p)["in"] == "query" {
			names = append(names, at(p)["name"].(string))
		}
	}
	return names
}

// bodyMembers returns the members of a route's JSON body.
func (s *sweep) bodyMembers(route string) []string {
	schema := at(s.operation(route), "requestBody", "content", typeJSON, "schema")
	if ref, ok := schema["$ref"].(string); ok {
		schema = at(s.doc, "components", "schemas", ref[strings.LastIndex(ref, "/")+1:])
	}
	return slices.Sorted(maps.Keys(at(schema, "properties")))
}
