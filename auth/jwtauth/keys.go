package jwtauth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// How often an issuer is asked. A token with a key id nobody knows, or with a wrong signature, makes us look for new keys; without a
// bound, whoever sends such tokens would have us flood the issuer. The burst lets tokens of a new key in at once although the keys were fetched
// just before.
const (
	fetchTimeout  = 5 * time.Second
	fetchInterval = 10 * time.Second // between fetches that succeed, once the burst is used up
	fetchBurst    = 4
	retryFailed   = 2 * time.Second // after one that failed
	maxFetch      = 1 << 20         // bytes of a document
)

// How long keys are good that were fetched once. An issuer that withdraws a key, since somebody has stolen it, tells nobody; whoever wants to know has to ask again. One that is
// away cannot withdraw anything, and its workloads are not to stop for that at once.
const (
	keysFresh = 5 * time.Minute // then the issuer is asked again, and until it answers its keys are those it had
	keysStale = time.Hour       // then they are nobody's
	retryKeys = 30 * time.Second
)

// errUnavailable marks failures that say nothing about the token.
var errUnavailable = errors.New("issuer is not available")

// errRecent is why keys were not fetched again: they are as new as a token can expect.
var errRecent = errors.New("no such key, and the keys were fetched just now")

// keys verifies signatures with the keys an issuer publishes. go-oidc does the caching and the look-up of new keys; what is added is
// late discovery, bounds, forgetting keys that were withdrawn, and telling an issuer that is down from a token that is bad.
type keys struct {
	cfg          Issuer
	client       *http.Client
	fetcher      *fetcher      // of client
	fresh, stale time.Duration // keysFresh and keysStale

	turn     chan struct{} // held while discovering, and while asking for the keys again
	mu       sync.Mutex
	location string
	set      *oidc.RemoteKeySet
	retryAt  time.Time // keys that are not stale are not asked for again before
}

func newKeys(cfg Issuer) *keys {
	client := http.Client{}
	if cfg.Client != nil {
		client = *cfg.Client
	}
	base := client.Transport
	if base == nil {
		base = http.DefaultTransport
	}
	client.Timeout = fetchTimeout
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	f := &fetcher{base: base, interval: fetchInterval, retry: retryFailed, last: make(map[string]fetch)}
	client.Transport = f
	return &keys{cfg: cfg, client: &client, fetcher: f, fresh: keysFresh, stale: keysStale, turn: make(chan struct{}, 1)}
}

// verify returns the payload of the token if its signature is good. An error that is not errUnavailable is about the token.
func (k *keys) verify(ctx context.Context, token string) ([]byte, error) {
	set, err := k.keySet(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnavailable, err)
	}
	if k.age() > k.fresh {
		if set, err = k.renew(ctx, set, token); err != nil {
			return nil, fmt.Errorf("%w: %w", errUnavailable, err)
		}
	}
	payload, err := set.VerifySignature(ctx, token)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("%w: %w", errUnavailable, ctx.Err())
	}
	return payload, err
}

// age returns for how long the issuer has not been heard to publish the keys there are; 0 if it was never asked for them.
func (k *keys) age() time.Duration {
	k.mu.Lock()
	at := k.fetcher.succeeded(k.location)
	k.mu.Unlock()
	if at.IsZero() {
		return 0
	}
	return time.Since(at)
}

// renew asks the issuer for its keys again, on behalf of a token to verify, and returns what is to verify it: the answer, or the old keys for as long as they are not stale. One
// caller asks; the others go on with the old keys, or wait for it.
func (k *keys) renew(ctx context.Context, old *oidc.RemoteKeySet, token string) (*oidc.RemoteKeySet, error) {
	stale := k.age() >= k.stale
	if stale {
		select {
		case k.turn <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	} else {
		select {
		case k.turn <- struct{}{}:
		default:
			return old, nil
		}
	}
	defer func() { <-k.turn }()
	k.mu.Lock()
	location, set, wait := k.location, k.set, time.Now().Before(k.retryAt)
	k.mu.Unlock()
	before := k.fetcher.succeeded(location)
	if age := time.Since(before); age <= k.fresh || wait && age < k.stale {
		return set, nil
	}
	// The caller may go away; whoever waits behind it is served by the result all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
	defer cancel()
	fresh := oidc.NewRemoteKeySet(oidc.ClientContext(ctx, k.client), location)
	_, err := fresh.VerifySignature(ctx, token) // has it fetch the keys; what becomes of the token is asked of it once more
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.fetcher.succeeded(location).After(before):
		k.set, k.retryAt = fresh, time.Time{}
	case !errors.Is(err, errUnavailable) && ctx.Err() == nil: // the token is none, so nobody was asked
	case time.Since(before) >= k.stale:
		return nil, fmt.Errorf("its keys are older than %s: %w", k.stale, err)
	default:
		k.retryAt = time.Now().Add(retryKeys)
	}
	return k.set, nil
}

// keySet discovers where the keys are, once. Callers wait for the one that does it.
func (k *keys) keySet(ctx context.Context) (*oidc.RemoteKeySet, error) {
	if set := k.known(); set != nil {
		return set, nil
	}
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if set := k.known(); set != nil {
		return set, nil
	}
	// The caller may go away; whoever waits behind it is served by the result all the same.
	ctx, cancel := context.WithTimeout(oidc.ClientContext(context.WithoutCancel(ctx), k.client), fetchTimeout)
	defer cancel()
	location := k.cfg.JWKS
	if location == "" {
		p, err := oidc.NewProvider(ctx, k.cfg.URL)
		if err != nil {
			return nil, err
		}
		var meta struct {
			JWKS string `json:"jwks_uri"`
		}
		if err := p.Claims(&meta); err != nil {
			return nil, err
		}
		if err := checkURL("jwks_uri", meta.JWKS); err != nil {
			return nil, err
		}
		location = meta.JWKS
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.set, k.location = oidc.NewRemoteKeySet(ctx, location), location
	return k.set, nil
}

func (k *keys) known() *oidc.RemoteKeySet {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.set
}

// fetcher bounds how often each document of an issuer is fetched and how large it is, and makes every failure errUnavailable.
type fetcher struct {
	base            http.RoundTripper
	interval, retry time.Duration // fetchInterval and retryFailed

	mu   sync.Mutex
	last map[string]fetch // by URL: the two documents of an issuer
}

// fetch is when a document was fetched last, why that failed, how many fetches are left until the interval gives another one, and when it was fetched with success.
type fetch struct {
	at   time.Time
	err  error
	left float64
	had  time.Time
}

// next returns what is left of the burst at now, before another fetch.
func (f fetch) next(now time.Time, interval time.Duration) float64 {
	if f.at.IsZero() || interval <= 0 {
		return fetchBurst
	}
	return min(fetchBurst, f.left+now.Sub(f.at).Seconds()/interval.Seconds())
}

// RoundTrip implements http.RoundTripper.
func (f *fetcher) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	last := f.last[r.URL.String()]
	f.mu.Unlock()
	now := time.Now() // not the configured clock, which may be a test's: this is about load
	left := last.next(now, f.interval)
	switch {
	case last.err != nil && now.Sub(last.at) < f.retry:
		return nil, last.err
	case last.err == nil && left < 1:
		return nil, errRecent
	}
	res, err := f.fetch(r)
	if err != nil {
		err = fmt.Errorf("%w: %w", errUnavailable, err)
	}
	next := fetch{at: time.Now(), err: err, left: max(0, left-1), had: last.had}
	if err == nil {
		next.had = now // from then on the issuer may have published others
	}
	f.mu.Lock()
	f.last[r.URL.String()] = next
	f.mu.Unlock()
	return res, err
}

// succeeded returns when the last fetch of a document that succeeded began, the zero time if none did.
func (f *fetcher) succeeded(url string) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last[url].had
}

func (f *fetcher) fetch(r *http.Request) (*http.Response, error) {
	res, err := f.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK { // before its body: that of a 101 is the bare connection, which no deadline ends
		return nil, fmt.Errorf("%s answered %s", r.URL.Path, res.Status)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxFetch+1))
	switch {
	case err != nil:
		return nil, err
	case len(body) > maxFetch:
		return nil, fmt.Errorf("%s is longer than %d bytes", r.URL.Path, maxFetch)
	case !json.Valid(body):
		return nil, fmt.Errorf("%s is not JSON", r.URL.Path)
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	return res, nil
}
