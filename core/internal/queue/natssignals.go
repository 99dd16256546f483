package queue

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// natsSignals are the signals of several servers: of this one in its memory, to the others and from them by NATS, which keeps none.
type natsSignals struct {
	local  LocalSignals
	conn   *nats.Conn
	prefix string
}

type natsCancel struct {
	Account string `json:"account"`
	Run     string `json:"run"`
}

// newNatsSignals listens for what the other servers say. newLine hears of new lines of the queue.
func newNatsSignals(conn *nats.Conn, prefix string, newLine func(name string)) (*natsSignals, error) {
	s := &natsSignals{conn: conn, prefix: prefix}
	if _, err := conn.Subscribe(prefix+"cancel", func(m *nats.Msg) {
		var c natsCancel
		if json.Unmarshal(m.Data, &c) == nil {
			s.local.Cancel(c.Account, c.Run)
		}
	}); err != nil {
		return nil, err
	}
	if _, err := conn.Subscribe(prefix+"line", func(m *nats.Msg) { newLine(string(m.Data)) }); err != nil {
		return nil, err
	}
	return s, conn.FlushTimeout(natsCall)
}

func (s *natsSignals) subject(account, run string) string {
	return s.prefix + "changed." + token(account) + "." + token(run)
}

// Changed implements Signals. What NATS does not take is lost, as signals may be.
func (s *natsSignals) Changed(account, run string) {
	s.local.Changed(account, run)
	_ = s.conn.Publish(s.subject(account, run), nil)
}

// Follow implements Signals.
func (s *natsSignals) Follow(account, run string) (<-chan struct{}, func()) {
	changed, stop := s.local.Follow(account, run)
	sub, err := s.conn.Subscribe(s.subject(account, run), func(*nats.Msg) { s.local.Changed(account, run) })
	if err != nil {
		return changed, stop // it looks by itself from time to time
	}
	// From here on nothing is missed; without an answer soon the follower is on its own, as above.
	_ = s.conn.FlushTimeout(100 * time.Millisecond)
	return changed, func() {
		_ = sub.Unsubscribe()
		stop()
	}
}

// Cancel implements Signals.
func (s *natsSignals) Cancel(account, run string) {
	s.local.Cancel(account, run)
	if body, err := json.Marshal(natsCancel{account, run}); err == nil {
		_ = s.conn.Publish(s.prefix+"cancel", body)
	}
}

// OnCancel implements Signals.
func (s *natsSignals) OnCancel(fn func(account, run string)) (stop func()) {
	return s.local.OnCancel(fn)
}

// announce tells the other servers of a line.
func (s *natsSignals) announce(name string) error {
	if err := s.conn.Publish(s.prefix+"line", []byte(name)); err != nil {
		return fmt.Errorf("announce line %s: %w", name, err)
	}
	return nil
}
