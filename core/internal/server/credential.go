package server

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/console"
)

// queryDeprecation is when credentials in the query became deprecated, which is from the start (RFC 9745: a date as in RFC 9651).
const queryDeprecation = "@1767225600"

// queryKeys are the query parameters that can hold a credential.
var queryKeys = []string{"x-api-key", "api_key"}

// takeCredential finds the credential of a request and removes every trace of credentials from it, used or not, so that no handler, log line or
// span can show one. Two different ones are ambiguous: whichever we chose, a proxy before us may have checked the other.
func (s *Server) takeCredential(r *http.Request, req *request) {
	req.credential.Source = req.origin.Source
	req.credential.Method = r.Method
	req.credential.Path = r.URL.Path

	found := collector{}
	authorization := r.Header["Authorization"]
	for _, v := range authorization {
		scheme, text := strings.Trim(v, " \t"), ""
		if i := strings.IndexAny(scheme, " \t"); i >= 0 {
			scheme, text = scheme[:i], strings.Trim(scheme[i:], " \t")
		}
		req.noScheme = req.noScheme || text == "" && auth.Redact(scheme) != scheme
		switch scheme = strings.ToLower(scheme); {
		case scheme == "bearer":
			found.add(auth.PlaceBearer, text, "")
		case slices.Contains(s.AuthSchemes, scheme):
			found.add(auth.PlaceAuthorization, text, scheme)
		}
	}
	found.repeated = found.repeated || len(authorization) > 1
	for _, h := range [...]struct {
		name  string
		place auth.Place
	}{{"X-Api-Key", auth.PlaceAPIKey}, {"X-Bifrost-Key", auth.PlaceBifrost}} {
		values := r.Header[h.name]
		found.repeated = found.repeated || len(values) > 1
		for _, v := range values {
			found.add(h.place, strings.Trim(v, " \t"), "")
		}
	}
	if r.URL.RawQuery != "" {
		found.addQuery(r.URL)
		req.inQuery = found.inQuery
		if found.inQuery {
			r.RequestURI = r.URL.RequestURI()
		}
	}
	delete(r.Header, "Authorization")
	delete(r.Header, "X-Api-Key")
	delete(r.Header, "X-Bifrost-Key")
	delete(r.Header, "Proxy-Authorization")
	if req.page {
		req.session = console.SessionOf(r)
	}
	delete(r.Header, "Cookie") // no other route takes one, and a browser or proxy may send someone's session
	list := found.scheme == "" && strings.Contains(found.text, ",")
	if found.repeated || found.different || list {
		req.ambiguous = errAmbiguous()
		return
	}
	if found.text != "" {
		req.credential.Place = found.place
		req.credential.Secret = auth.NewSecret(found.text)
		req.credential.Scheme = found.scheme
	}
	s.takeSignature(r, req)
}

// takeSignature passes on the headers that auth backends ask for. One that is a credential by itself is ambiguous beside another credential, and is
// taken out of the request like any other.
func (s *Server) takeSignature(r *http.Request, req *request) {
	signed := s.passHeaders(r, req, s.AuthHeaders)
	s.passHeaders(r, req, s.AuthShown)
	if req.hook {
		req.credential.Hook = true
		signed = s.passHeaders(r, req, hookSignature) || signed
		s.passHeaders(r, req, hookShown)
	}
	if s.AuthBody || req.hook {
		req.credential.Body = func() ([]byte, error) { return s.readBody(req.c, req, s.MaxBody) }
	}
	if !signed {
		return
	}
	for _, name := range s.AuthHeaders {
		r.Header.Del(name)
	}
	if !req.credential.Secret.Empty() {
		req.credential = auth.Credential{}
		req.ambiguous = errAmbiguous()
		return
	}
	req.credential.Place = auth.PlaceHeader
}

// passHeaders copies headers to the credential and reports whether there was one.
func (s *Server) passHeaders(r *http.Request, req *request, names []string) (found bool) {
	for _, name := range names {
		values := r.Header[name]
		if len(values) == 0 {
			continue
		}
		found = true
		if req.credential.Header == nil {
			req.credential.Header = make(map[string][]string, len(names))
		}
		req.credential.Header[name] = values
	}
	return found
}

func errAmbiguous() *core.Error {
	return core.Errorf(core.CodeAmbiguousCredential, "the request has more than one credential; send one, once")
}

// collector gathers what a request presents, empty values aside.
type collector struct {
	place     auth.Place
	text      string
	scheme    string
	different bool
	repeated  bool
	inQuery   bool
}

func (f *collector) add(place auth.Place, text, scheme string) {
	switch {
	case text == "":
	case f.text == "":
		f.place, f.text, f.scheme = place, text, scheme
	case f.text != text || f.scheme != scheme:
		f.different = true
	}
}

// addQuery takes credentials out of the query, leaving the rest of it as it is written.
func (f *collector) addQuery(u *url.URL) {
	kept := make([]string, 0, 4)
	count := make(map[string]int, len(queryKeys))
	for pair := range strings.SplitSeq(u.RawQuery, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name = unescape(name)
		if i := slices.IndexFunc(queryKeys, func(k string) bool { return strings.EqualFold(k, name) }); i >= 0 {
			f.inQuery = true
			count[queryKeys[i]]++
			f.repeated = f.repeated || count[queryKeys[i]] > 1
			f.add(auth.PlaceQuery, strings.TrimSpace(unescape(value)), "")
			continue
		}
		kept = append(kept, pair)
	}
	if f.inQuery {
		u.RawQuery = strings.Join(kept, "&")
	}
}

// nearCredential returns the parameter that a misspelt one of the URL was meant to be a credential by, "" when there is none.
func nearCredential(u *url.URL) string {
	if u.RawQuery == "" {
		return ""
	}
	for pair := range strings.SplitSeq(u.RawQuery, "&") {
		name, _, _ := strings.Cut(pair, "=")
		if near := core.Nearest(strings.ToLower(unescape(name)), queryKeys); near != "" {
			return near
		}
	}
	return ""
}

// unescape undoes the escapes of a query component, and keeps what is not one as it is.
func unescape(s string) string {
	if t, err := url.QueryUnescape(s); err == nil {
		return t
	}
	return s
}

// redact removes keys from text that a caller wrote, such as a path into which someone has pasted theirs.
func redact(s string) string { return auth.Redact(s) }
