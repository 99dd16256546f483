package jwtauth

import "time"

// NewWithIntervals is New with other bounds on how often an issuer is asked, which no test wants to wait for.
func NewWithIntervals(cfg Config, fetched, failed time.Duration) (*Authenticator, error) {
	a, err := New(cfg)
	if err != nil {
		return nil, err
	}
	for _, i := range a.issuers {
		i.keys.client.Transport.(*fetcher).interval, i.keys.client.Transport.(*fetcher).retry = fetched, failed
	}
	return a, nil
}

// NewWithAges is New with other bounds on how old an issuer's keys may be, and none on how often it is asked.
func NewWithAges(cfg Config, fresh, stale time.Duration) (*Authenticator, error) {
	a, err := NewWithIntervals(cfg, 0, 0)
	if err != nil {
		return nil, err
	}
	for _, i := range a.issuers {
		i.keys.fresh, i.keys.stale = fresh, stale
	}
	return a, nil
}
