package auth

import (
	"net/netip"
	"strings"

	"github.com/keyfire/keyfire/core"
)

// Place is where in a request a credential was found.
type Place string

// The places a credential is accepted in.
const (
	PlaceBearer  Place = "bearer"        // Authorization: Bearer
	PlaceAPIKey  Place = "x-api-key"     // X-API-Key header
	PlaceBifrost Place = "x-bifrost-key" // X-Bifrost-Key header
	PlaceQuery   Place = "query"         // ?x-api-key= or ?api_key=, for keys made with allow_query only

	// The two places that only backends named in the configuration accept. See [Route].
	PlaceAuthorization Place = "authorization" // Authorization with a scheme other than Bearer, given in Credential.Scheme
	PlaceHeader        Place = "header"        // a signature header that is the credential by itself; Secret is empty
)

// Credential is what a request presented, before anyone has judged it. The zero Credential means that nothing was presented.
//
// Place, Secret and Source are enough for built-in keys. The other fields describe the request around the credential, for
// backends that judge both together, such as signature schemes; a backend is shown only the part its configuration grants.
type Credential struct {
	Place  Place
	Secret Secret
	Source netip.Addr // address of the caller, by the trusted-proxy rule

	Scheme   string              // scheme of the Authorization header, lower case; "" for a credential from elsewhere
	Method   string              // request method
	Path     string              // request path without the query, which may hold a credential
	Workflow string              // the workflow reference the request names, "" while it is not known
	Header   map[string][]string // canonical name to values, holding only headers that some backend's configuration asks for
	Hook     bool                // the request came in on a webhook route, where the workflow itself may say how requests are signed

	Trail *core.Trail // where the chain notes what each authenticator said; nil is nowhere

	// Body returns the raw request body, read at most once and up to the server's limit; nil when there is none to give. Only
	// a backend that was granted the body calls it, so other requests are authenticated before their body is read.
	Body func() ([]byte, error)
}

// None reports whether the request presented nothing.
func (c Credential) None() bool { return c.Secret.Empty() && c.Place != PlaceHeader }

// Shape says what the credential looks like, without a part of it.
func (c Credential) Shape() string {
	text := c.Secret.Reveal()
	switch {
	case c.None():
		return "none"
	case c.Place == PlaceHeader:
		return "signature header"
	case c.Place == PlaceAuthorization:
		return "Authorization of scheme " + c.Scheme
	case likeOurKey(text):
		kind := "trigger key"
		if text[2] == 'a' {
			kind = "admin key"
		}
		if _, ok := ParseKey(c.Secret); ok {
			return kind + ", well formed"
		}
		return kind + ", malformed: its length, alphabet or check is wrong"
	case strings.Count(text, ".") == 2 && strings.HasPrefix(text, "ey"):
		return "JWT"
	}
	return "opaque token of another kind"
}
