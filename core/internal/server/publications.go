package server

import (
	"context"
	"sync"
	"time"

	"github.com/keyfire/keyfire/core"
)

// Publications with modules that are held at once, in all and of one account. Each takes up to three times MaxPublish, as a body, as its parts and as modules that are compiled one after
// the other: more of them would be done no sooner.
const (
	mostPublications = 4
	mostOfOneAccount = 2
	publicationWaits = time.Minute
)

// publications lets a few publications in at a time. The others wait before their body is read.
type publications struct {
	mu   sync.Mutex
	all  int
	of   map[string]int // by account
	left chan struct{}  // closed when one has left

	patience time.Duration
}

func newPublications() *publications {
	return &publications{of: make(map[string]int), left: make(chan struct{}), patience: publicationWaits}
}

// enter waits for a place, which leave gives back. Its error is CodeOverloaded, or that ctx has ended.
func (p *publications) enter(ctx context.Context, account string) error {
	late := time.NewTimer(p.patience)
	defer late.Stop()
	for {
		p.mu.Lock()
		left := p.left
		if p.all < mostPublications && p.of[account] < mostOfOneAccount {
			p.all++
			p.of[account]++
			p.mu.Unlock()
			return nil
		}
		p.mu.Unlock()
		select {
		case <-left:
		case <-late.C:
			return core.Errorf(core.CodeOverloaded, "other publications are being taken; send the request again")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (p *publications) leave(account string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if p.of[account]--; p.of[account] == 0 {
		delete(p.of, account)
	}
	close(p.left)
	p.left = make(chan struct{})
}
