package core

import "context"

// Load hears what is done for a request, so that whoever lets requests in knows what keeps the processors busy and what waits for something else. It is safe for
// concurrent use.
type Load interface {
	// Compute is told that one more node is executed (1), or one less (-1). It has the memory that it needs.
	Compute(change int)
	// Outside is told that one more of the nodes that are executed waits for something that is no processor of this server (1), such as another service or a time, or one less (-1).
	Outside(change int)
	// Wait is told that one more of what is done waits like that while no node is executed for it (1), such as for memory or for the next attempt, or one less (-1).
	Wait(change int)
}

type loadKey struct{}

// WithLoad returns a context for what is done for a request, of which l hears.
func WithLoad(ctx context.Context, l Load) context.Context {
	return context.WithValue(ctx, loadKey{}, l)
}

// LoadOf returns who hears of what is done under ctx, nobody if that was not said.
func LoadOf(ctx context.Context) Load {
	if l, ok := ctx.Value(loadKey{}).(Load); ok {
		return l
	}
	return noLoad{}
}

type noLoad struct{}

func (noLoad) Compute(int) {}
func (noLoad) Outside(int) {}
func (noLoad) Wait(int)    {}
