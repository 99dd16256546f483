package queue

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/keyfire/keyfire/core"
)

// This file is how runs come from JetStream to the workers of this server, and how they are settled. What is put there is in jetstream.go.

// taker is a call of Take that waits.
type taker struct{ given chan *natsDelivery }

// natsDelivery is a run that was given to this server.
type natsDelivery struct {
	q        *JetStream
	line     *line
	msg      jetstream.Msg
	job      core.Job
	lost     chan struct{}
	beat     time.Time   // when JetStream last heard of it
	withdraw *time.Timer // while it is offered
}

// expired reports whether another worker may have the run by now. It is so after this process was stopped for a while, too.
func (d *natsDelivery) expired() bool { return time.Since(d.beat) > natsLost }

func (d *natsDelivery) Job() core.Job         { return d.job }
func (d *natsDelivery) Lost() <-chan struct{} { return d.lost }

// letGo ends the delivery and reports whether it was still ours to settle.
func (d *natsDelivery) letGo() bool {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	_, held := d.q.held[d]
	delete(d.q.held, d)
	return held && !d.expired()
}

// Done implements Delivery. When NATS does not hear it, the run is delivered again and found to have ended.
func (d *natsDelivery) Done() {
	if d.letGo() {
		d.ack()
	}
}

// ack waits until the run has left the queue, so that it is not counted any more; but not for a NATS that is away.
func (d *natsDelivery) ack() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.q.ctx), time.Second)
	defer cancel()
	if !d.q.conn.there() || d.msg.DoubleAck(ctx) != nil {
		_ = d.msg.Ack()
	}
}

// Again implements Delivery.
func (d *natsDelivery) Again(at time.Time) { d.again(at, false) }

// Broken implements Delivery.
func (d *natsDelivery) Broken(at time.Time) { d.again(at, true) }

func (d *natsDelivery) again(at time.Time, recovered bool) {
	if !d.letGo() {
		return // whoever has it now settles it
	}
	job := d.job
	job.Due, job.Recovered = at, recovered
	if err := d.q.publish(context.WithoutCancel(d.q.ctx), &job, job.Run+"/again/"+nuid.Next()); err != nil {
		_ = d.msg.NakWithDelay(min(max(0, time.Until(at)), time.Hour)) // it stays where it is, and comes again
		return
	}
	d.ack()
}

// Take implements Queue.
func (q *JetStream) Take(ctx context.Context) (Delivery, error) {
	q.mu.Lock()
	if q.closed.Load() {
		q.mu.Unlock()
		return nil, ErrClosed
	}
	if ctx.Err() != nil {
		q.mu.Unlock()
		return nil, context.Cause(ctx)
	}
	if d := q.next(); d != nil {
		q.mu.Unlock()
		return d, nil
	}
	t := &taker{given: make(chan *natsDelivery, 1)}
	q.takers = append(q.takers, t)
	q.changed.Broadcast()
	q.mu.Unlock()
	select {
	case d := <-t.given:
		if d == nil {
			return nil, ErrClosed
		}
		return d, nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.takers, t); i >= 0 {
		q.takers = slices.Delete(q.takers, i, i+1)
	} else if d := <-t.given; d != nil { // it came at the last moment, and is for somebody else
		q.offer(d)
	}
	return nil, context.Cause(ctx)
}

// next takes what is offered, from line to line in turns.
func (q *JetStream) next() *natsDelivery {
	for i, l := range q.turns {
		if len(l.offers) > 0 {
			d := l.offers[0]
			l.offers = l.offers[1:]
			q.turns = append(append(append([]*line{}, q.turns[:i]...), q.turns[i+1:]...), l)
			d.withdraw.Stop()
			return d
		}
	}
	return nil
}

// offer gives a delivery to whoever waits, or keeps it for a moment for whoever comes, and gives it back to the other servers then.
func (q *JetStream) offer(d *natsDelivery) {
	if q.closed.Load() {
		delete(q.held, d)
		_ = d.msg.Nak() // without it the run is delivered again a little later
		return
	}
	if len(q.takers) > 0 {
		t := q.takers[0]
		q.takers = q.takers[1:]
		t.given <- d
		return
	}
	d.line.offers = append(d.line.offers, d)
	d.withdraw = time.AfterFunc(natsOffer, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		for i, o := range d.line.offers {
			if o == d {
				d.line.offers = append(d.line.offers[:i:i], d.line.offers[i+1:]...)
				delete(q.held, d)
				_ = d.msg.Nak() // as above
				return
			}
		}
	})
}

// fetch asks for runs of one line while somebody waits for them.
func (q *JetStream) fetch(l *line) {
	for {
		q.mu.Lock()
		for len(q.takers) == 0 && !q.closed.Load() && !l.gone {
			q.changed.Wait()
		}
		if q.closed.Load() || l.gone {
			q.mu.Unlock()
			return
		}
		n, under := min(len(q.takers), natsAtOnce), q.fetches
		q.mu.Unlock()
		err := q.receive(under, l, n, func(m jetstream.Msg) {
			d := &natsDelivery{q: q, line: l, msg: m, lost: make(chan struct{}), beat: time.Now()}
			if err := json.Unmarshal(m.Data(), &d.job); err != nil {
				q.cfg.Logger.Error("a message in the queue is none of ours, and is removed", slog.String("subject", m.Subject()))
				_ = m.Term()
				return
			}
			if meta, err := m.Metadata(); err == nil && meta.NumDelivered > 1 {
				d.job.Recovered = true // a worker may have had it and died
			}
			q.mu.Lock()
			defer q.mu.Unlock()
			q.held[d] = struct{}{}
			q.offer(d)
		})
		q.pause(under, err)
	}
}

// receive asks for up to n runs of a line and passes them on as they come.
func (q *JetStream) receive(ctx context.Context, l *line, n int, each func(jetstream.Msg)) error {
	if !q.conn.there() {
		return nats.ErrConnectionClosed // a request would be kept until it is back, and what is asked anew then leaves nobody to hear the answer
	}
	ctx, cancel := context.WithTimeout(ctx, natsFetch)
	defer cancel()
	batch, err := l.consumer.Fetch(n, jetstream.FetchContext(ctx))
	if err != nil {
		return err
	}
	for m := range batch.Messages() {
		each(m)
	}
	return batch.Error()
}

// pause waits a moment after an error that is none of the usual ends of a request.
func (q *JetStream) pause(ctx context.Context, err error) {
	if err == nil || errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(200 * time.Millisecond):
	}
}

// returnDue takes what waits for a time, and puts what is due into its own line.
func (q *JetStream) returnDue(l *line) {
	var told time.Time // of runs that are not, all of which have the same reason
	for !q.closed.Load() {
		q.mu.Lock()
		under := q.fetches
		q.mu.Unlock()
		err := q.receive(under, l, natsAtOnce, func(m jetstream.Msg) {
			var job core.Job
			if json.Unmarshal(m.Data(), &job) != nil {
				_ = m.Term()
				return
			}
			if wait := time.Until(job.Due); wait > 0 {
				_ = m.NakWithDelay(min(wait, time.Hour)) // it comes again in any case
				return
			}
			if err := q.move(m, &job); err != nil && time.Since(told) > natsScan {
				told = time.Now()
				q.cfg.Logger.Warn("runs that are due are not executed for now", slog.String("run_id", job.Run), slog.Any("error", err))
			}
		})
		q.pause(under, err)
	}
}

// move puts a run that is due from the line of those that wait for a time into its own.
func (q *JetStream) move(m jetstream.Msg, job *core.Job) error {
	unique := job.Run + "/due/" + nuid.Next()
	err := q.publish(q.ctx, job, unique)
	switch {
	case err == nil:
		_ = m.Ack()
		return nil
	case !full(err):
		_ = m.NakWithDelay(time.Second)
		return err
	}
	// Nothing comes in before something goes out, and if all wait for a time nothing else will. When something else takes the room, the run is missing, and is looked for.
	ctx, cancel := context.WithTimeout(q.ctx, natsCall)
	defer cancel()
	if m.DoubleAck(ctx) != nil {
		return err
	}
	return q.publish(q.ctx, job, unique)
}

// full reports whether JetStream has no room for a message.
func full(err error) bool {
	return answered(err, natsNoResources) || answered(err, natsNoMemory) || answered(err, natsNoStorage) || answered(err, natsNotStored)
}

// again has everything asked anew of a server that knows nothing of the requests.
func (q *JetStream) again() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.refetch()
	q.fetches, q.refetch = context.WithCancel(q.ctx)
}

// beat tells JetStream that the workers of this server live, and the workers when it could not.
func (q *JetStream) beat() {
	tick := time.NewTicker(natsBeat)
	defer tick.Stop()
	for {
		select {
		case <-q.ctx.Done():
			return
		case <-tick.C:
		}
		connected := q.conn.there()
		q.mu.Lock()
		for d := range q.held {
			if d.expired() {
				delete(q.held, d)
				close(d.lost)
			} else if connected && d.msg.InProgress() == nil {
				d.beat = time.Now()
			}
		}
		q.mu.Unlock()
	}
}
