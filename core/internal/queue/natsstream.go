package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	natsCopies = 3 // of the stream, in a NATS cluster: one may be lost
	natsRetry  = 100 * time.Millisecond
)

// What JetStream answers for lack of servers or room, which the library has no names for. See server/errors.json of nats-server.
const (
	natsNoPeers     jetstream.ErrorCode = 10005 // fewer than copies
	natsNotReady    jetstream.ErrorCode = 10008 // the cluster has no leader yet
	natsNoCluster   jetstream.ErrorCode = 10074
	natsNoResources jetstream.ErrorCode = 10023 // of the server
	natsNoMemory    jetstream.ErrorCode = 10028
	natsNoStorage   jetstream.ErrorCode = 10047
	natsNoMessage   jetstream.ErrorCode = 10057 // of that number, to be removed
	natsNotStored   jetstream.ErrorCode = 10077 // with a reason, such as the stream's limit or the disk's
)

// makeStream makes the stream that runs wait in, unless it is there. A cluster of NATS that has just been started says nothing for seconds, and is waited for.
func (q *JetStream) makeStream(ctx context.Context) (jetstream.Stream, error) {
	for {
		try, cancel := context.WithTimeout(ctx, natsCall/2)
		stream, err := q.tryStream(try)
		silent := try.Err() != nil
		cancel()
		switch {
		case err == nil:
			return stream, nil
		case !silent && !answered(err, natsNotReady):
			return nil, fmt.Errorf("JetStream of this NATS cannot keep runs (is the server started with -js, and may this user make streams?): %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("JetStream of this NATS does not answer; if it is a cluster, most of its servers must run: %w", err)
		case <-time.After(natsRetry):
		}
	}
}

// tryStream makes the stream in as many copies as there can be, but no fewer than it has.
func (q *JetStream) tryStream(ctx context.Context) (jetstream.Stream, error) {
	c := jetstream.StreamConfig{
		Name: "KEYFIRE_" + q.cfg.Name, Description: "runs that wait for a worker", Subjects: []string{q.prefix + "run.>"},
		Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage, Duplicates: natsUnique, MaxConsumers: -1, MaxMsgs: -1, MaxBytes: -1,
		Replicas: 1,
	}
	switch there, err := q.js.Stream(ctx, c.Name); {
	case err == nil:
		c.Replicas = there.CachedInfo().Config.Replicas
	case !errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, err
	}
	if c.Replicas < natsCopies {
		more := c
		more.Replicas = natsCopies
		stream, err := q.js.CreateOrUpdateStream(ctx, more)
		if !answered(err, natsNoPeers) && !answered(err, natsNoCluster) {
			return stream, err
		}
		q.cfg.Logger.Debug("one server of NATS keeps the queue: it has no three", slog.Any("error", err))
	}
	return q.js.CreateOrUpdateStream(ctx, c)
}

// answered reports whether JetStream has answered with that code.
func answered(err error, code jetstream.ErrorCode) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == code
}
