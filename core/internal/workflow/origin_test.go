package workflow

import "testing"

// C4: what no browser ever sends is refused where it is written, since a page would be refused later for no reason that its author can see.
func TestOriginAsBrowsersSendIt(t *testing.T) {
	t.Parallel()
	for origin, valid := range map[string]bool{
		"https://app.example.com": true, "http://localhost:3000": true, "http://127.0.0.1": true, "https://[::1]:8443": true, "https://xn--bcher-kva.example": true,
		"https://a_b.example": true, "http://a.example:443": true,

		"": false, "*": false, "null": false, "app.example.com": false, "ftp://app.example.com": false, "https://": false, "https://:8443": false,
		"https://*.example.com": false, "https://bücher.example": false, "https://App.example.com": false, "HTTPS://app.example.com": false,
		"https://app.example.com/": false, "https://app.example.com/x": false, "https://app.example.com?x": false, "https://me@app.example.com": false,
		"https://app.example.com:443": false, "http://app.example.com:80": false, "https://app.example.com:": false, "https://app.example.com:0": false,
		"https://app.example.com:99999": false, "https://app.example.com:08443": false, "https://[::1%25eth0]": false, "https://[0:0::1]": false, "https://a b": false,
	} {
		if got := ValidOrigin(origin); got != valid {
			t.Errorf("%q: %t, want %t", origin, got, valid)
		}
	}
}
