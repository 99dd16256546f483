package queue

import (
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// natsSignals are the signals of several servers: of this one in its memory, to the others and from them by NATS, which keeps none.
type natsSignals struct {
	local  LocalSignals
	link   *natsLink
	prefix string

	said   chan *nats.Msg // for the other servers; what does not fit is lost, as signals may be
	ended  chan struct{}
	once   sync.Once
	saying sync.WaitGroup
}

// natsSaid bounds the signals that wait for the connection.
const natsSaid = 4096

// natsLink is a connection that can be asked at once whether it is there. A nats.Conn keeps whoever asks, or wants anything else of it, waiting while it
// dials, which takes natsCall each time where nobody answers.
type natsLink struct {
	*nats.Conn
	away atomic.Bool
}

func (l *natsLink) there() bool { return !l.away.Load() }

type natsCancel struct {
	Account string `json:"account"`
	Run     string `json:"run"`
}

type natsPublished struct {
	Account string `json:"account"`
	Module  string `json:"module"`
}

// newNatsSignals listens for what the other servers say. newLine hears of lines of the queue that are new or have another limit.
func newNatsSignals(conn *natsLink, prefix string, newLine func(name string)) (*natsSignals, error) {
	s := &natsSignals{link: conn, prefix: prefix, said: make(chan *nats.Msg, natsSaid), ended: make(chan struct{})}
	if _, err := conn.Subscribe(prefix+"cancel", func(m *nats.Msg) {
		var c natsCancel
		if json.Unmarshal(m.Data, &c) == nil {
			s.local.Cancel(c.Account, c.Run)
		}
	}); err != nil {
		return nil, err
	}
	if _, err := conn.Subscribe(prefix+"published", func(m *nats.Msg) {
		var p natsPublished
		if json.Unmarshal(m.Data, &p) == nil {
			s.local.Published(p.Account, p.Module)
		}
	}); err != nil {
		return nil, err
	}
	if _, err := conn.Subscribe(prefix+"line", func(m *nats.Msg) { newLine(string(m.Data)) }); err != nil {
		return nil, err
	}
	s.saying.Go(s.speak)
	return s, conn.FlushTimeout(natsCall)
}

// say has the other servers told, and does not wait for that.
func (s *natsSignals) say(subject string, body []byte) {
	select {
	case s.said <- &nats.Msg{Subject: s.prefix + subject, Data: body}:
	default:
	}
}

func (s *natsSignals) speak() {
	for {
		select {
		case m := <-s.said:
			_ = s.link.PublishMsg(m)
			continue
		case <-s.ended:
		}
		for {
			select {
			case m := <-s.said:
				_ = s.link.PublishMsg(m)
			default:
				return
			}
		}
	}
}

// hush returns once what was said is with the connection.
func (s *natsSignals) hush() {
	s.once.Do(func() { close(s.ended) })
	s.saying.Wait()
}

func changedSubject(account, run string) string {
	return "changed." + token(account) + "." + token(run)
}

// Changed implements Signals. What NATS does not take is lost, as signals may be.
func (s *natsSignals) Changed(account, run string) {
	s.local.Changed(account, run)
	s.say(changedSubject(account, run), nil)
}

// Follow implements Signals.
func (s *natsSignals) Follow(account, run string) (<-chan struct{}, func()) {
	changed, stop := s.local.Follow(account, run)
	if !s.link.there() {
		return changed, stop // it looks by itself from time to time
	}
	sub, err := s.link.Subscribe(s.prefix+changedSubject(account, run), func(*nats.Msg) { s.local.Changed(account, run) })
	if err != nil {
		return changed, stop
	}
	// From here on nothing is missed; without an answer soon the follower is on its own, as above.
	_ = s.link.FlushTimeout(100 * time.Millisecond)
	return changed, func() {
		stop()
		if s.link.there() {
			_ = sub.Unsubscribe()
		} else {
			go sub.Unsubscribe() //nolint:errcheck // there is nothing to do about it; the connection keeps whoever asks waiting while it dials
		}
	}
}

// Cancel implements Signals.
func (s *natsSignals) Cancel(account, run string) {
	s.local.Cancel(account, run)
	if body, err := json.Marshal(natsCancel{account, run}); err == nil {
		s.say("cancel", body)
	}
}

// OnCancel implements Signals.
func (s *natsSignals) OnCancel(fn func(account, run string)) (stop func()) {
	return s.local.OnCancel(fn)
}

// Published implements Signals.
func (s *natsSignals) Published(account, module string) {
	s.local.Published(account, module)
	if body, err := json.Marshal(natsPublished{account, module}); err == nil {
		s.say("published", body)
	}
}

// OnPublished implements Signals.
func (s *natsSignals) OnPublished(fn func(account, module string)) (stop func()) {
	return s.local.OnPublished(fn)
}

// announce tells the other servers of a line that is new or has another limit.
func (s *natsSignals) announce(name string) error {
	if err := s.link.Publish(s.prefix+"line", []byte(name)); err != nil {
		return fmt.Errorf("announce line %s: %w", name, err)
	}
	return nil
}
