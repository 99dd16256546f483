package auth

import "net/netip"

// Place is where in a request a credential was found.
type Place string

// The places a credential is accepted in.
const (
	PlaceBearer  Place = "bearer"        // Authorization: Bearer
	PlaceAPIKey  Place = "x-api-key"     // X-API-Key header
	PlaceBifrost Place = "x-bifrost-key" // X-Bifrost-Key header
	PlaceQuery   Place = "query"         // ?x-api-key= or ?api_key=, for keys made with allow_query only
)

// Credential is what a request presented, before anyone has judged it. The zero Credential means that nothing was presented.
type Credential struct {
	Place  Place
	Secret Secret
	Source netip.Addr // address of the caller, by the trusted-proxy rule
}

// None reports whether the request presented nothing.
func (c Credential) None() bool { return c.Secret.Empty() }
