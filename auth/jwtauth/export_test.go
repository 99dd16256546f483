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
