package trigger

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/keyfire/keyfire/core"
)

// CallbackConfig says how the ends of runs are told. Without Post, callbacks are refused.
type CallbackConfig struct {
	// Check refuses a destination that callbacks may not go to. Its error is shown to the caller.
	Check func(url string) error
	// Post sends a body and returns the status of the answer. It must hold to the destinations that Check allows, also after the name is resolved.
	Post func(ctx context.Context, url string, header [][2]string, body []byte) (status int, err error)
	// Secrets returns the secrets that callbacks of an account are signed with, each "whsec_" and base64, the newest first. None means that the
	// account takes no callbacks.
	Secrets func(ctx context.Context, account string) ([]string, error)
	// Data renders a run, without its input, as the member "data" of a callback.
	Data func(run *core.Run) any
}

// CheckCallback refuses a callback that could not be sent: CodeNotSupported when this server sends none, CodeInvalidRequest for a destination that
// is not allowed or when the account has no secret to sign with.
func (s *Service) CheckCallback(ctx context.Context, account, url string) error {
	c := &s.Callbacks
	refuse := func(code core.Code, pointer, detail string) error {
		e := core.Errorf(code, "callback: %s", detail)
		e.Fields = []core.Field{{Pointer: pointer, Detail: detail}}
		return e
	}
	if c.Post == nil {
		return refuse(core.CodeNotSupported, "#/callback", "this server sends no callbacks")
	}
	if err := c.Check(url); err != nil {
		return refuse(core.CodeInvalidRequest, "#/callback/url", err.Error())
	}
	secrets, err := c.Secrets(ctx, account)
	if err != nil {
		return err
	}
	if len(secrets) == 0 {
		return refuse(core.CodeInvalidRequest, "#/callback", "the account has no secret to sign callbacks with; its operator sets one: keyfire secrets set "+core.CallbackSecret)
	}
	for _, secret := range secrets {
		if _, err := core.CallbackKey(secret); err != nil {
			return refuse(core.CodeInvalidRequest, "#/callback", "the secret "+core.CallbackSecret+" "+err.Error())
		}
	}
	return nil
}

// RunCallbacks returns the callbacks of a run with their attempts. Whoever may read the run may read them.
func (s *Service) RunCallbacks(ctx context.Context, c Caller, run string) ([]core.Callback, error) {
	r, err := s.Run(ctx, c.Principal, run)
	if err != nil {
		return nil, err
	}
	return s.Store.Callbacks(ctx, r.Account, r.ID)
}

// Redeliver sends a callback once more, whatever became of it before. Whoever may cancel the run may ask for it.
func (s *Service) Redeliver(ctx context.Context, c Caller, run, id string) (core.Callback, error) {
	r, err := s.runToActOn(ctx, c, run)
	if err != nil {
		return core.Callback{}, err
	}
	cb, err := s.Store.Redeliver(ctx, r.Account, r.ID, id, s.Now().UTC(), s.event(c, core.ActionRedeliver, id, ""))
	if err == nil {
		s.callbacks.kick()
	}
	return cb, err
}

const (
	callbackTimeout = 5 * time.Second
	callbackLease   = time.Minute // for how long nobody else takes a callback that is being sent
	callbackSenders = 64          // callbacks sent at once
	callbackShare   = 8           // one destination may have this part of those that no other has
	callbackPoll    = 5 * time.Second
)

// callbackWaits are the waits after each attempt that failed, about a day in all. Each is spread by a fifth in both directions.
var callbackWaits = []time.Duration{
	5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 8 * time.Hour,
}

// deliverer sends callbacks that are due. A receiver that is slow holds a share of the senders and no more, however many callbacks wait for it. The share is a part of what is free,
// so the next slow one holds less, and it takes two dozen of them to leave nothing for others.
type deliverer struct {
	s     *Service
	awake chan struct{}

	mu      sync.Mutex
	sending map[string]int // by destination
}

func newDeliverer(s *Service) *deliverer {
	return &deliverer{s: s, awake: make(chan struct{}, 1), sending: map[string]int{}}
}

// kick makes it look at once.
func (d *deliverer) kick() {
	if d.s.Callbacks.Post == nil {
		return
	}
	select {
	case d.awake <- struct{}{}:
	default:
	}
}

func (d *deliverer) run() {
	if d.s.Callbacks.Post == nil {
		return
	}
	var senders sync.WaitGroup
	defer senders.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for {
		wait := callbackPoll
		if free, busy := d.state(); free > 0 { // whoever ends wakes the loop
			now := d.s.Now().Truncate(time.Microsecond)
			until := now.Add(callbackLease)
			due, next, err := d.s.Store.TakeCallbacks(ctx, now, until, callbackSenders, busy, d.pick)
			switch {
			case err != nil:
				d.s.Logger.Error("callbacks not read; trying again", "error", err)
			case len(due) > 0:
				wait = 0 // there may be more
			case !next.IsZero():
				wait = min(max(next.Sub(now), time.Millisecond), callbackPoll)
			}
			for _, c := range due {
				d.count(c.URL, 1)
				senders.Go(func() {
					defer d.kick()
					defer d.count(c.URL, -1)
					d.send(ctx, &c, until)
				})
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-d.awake:
			timer.Stop()
		case <-d.s.quit:
			timer.Stop()
			return
		}
	}
}

// state returns how many senders are free, and which destinations have their share.
func (d *deliverer) state() (free int, busy []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	free = d.free()
	for to, n := range d.sending {
		if n >= callbackRoom(free, n) {
			busy = append(busy, to)
		}
	}
	return free, busy
}

// free returns how many senders are free. The caller holds the lock.
func (d *deliverer) free() int {
	free := callbackSenders
	for _, n := range d.sending {
		free -= n
	}
	return free
}

// callbackRoom is how many senders a destination that has own may have while so many are free.
func callbackRoom(free, own int) int { return max(1, (free+own)/callbackShare) }

// pick chooses among callbacks that are due those that there is room for. It changes nothing: the store may ask twice.
func (d *deliverer) pick(due []core.Callback) []core.Callback {
	d.mu.Lock()
	defer d.mu.Unlock()
	free, sending := d.free(), maps.Clone(d.sending)
	var picked []core.Callback
	for _, c := range due {
		to := destination(c.URL)
		if free == 0 || sending[to] >= callbackRoom(free, sending[to]) {
			continue
		}
		sending[to]++
		free--
		picked = append(picked, c)
	}
	return picked
}

func (d *deliverer) count(url string, n int) {
	to := destination(url)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sending[to] += n; d.sending[to] == 0 {
		delete(d.sending, to)
	}
}

// destination returns who a URL is sent to: what all URLs of one receiver begin with, in lower case.
func destination(url string) string {
	at := strings.Index(url, "://") + len("://")
	if n := strings.IndexAny(url[at:], "/?#"); n >= 0 {
		url = url[:at+n+1]
	}
	return strings.ToLower(url)
}

// send makes one attempt to deliver a callback that was taken until the given time, and records it.
func (d *deliverer) send(ctx context.Context, c *core.Callback, until time.Time) {
	began := d.s.Now()
	status, err := d.post(ctx, c, began)
	if err != nil && ctx.Err() != nil {
		return // this server stops, and another one tries when the lease is over
	}
	c.Attempts++
	now := d.s.Now().UTC().Truncate(time.Microsecond)
	attempt := core.CallbackAttempt{Number: c.Attempts, At: began.UTC().Truncate(time.Microsecond), DurationMS: now.Sub(began).Milliseconds(), Status: status}
	if err != nil {
		attempt.Error = err.Error()
	}
	c.Log = append(c.Log, attempt)
	c.UpdatedAt, c.NextAt = now, time.Time{}
	switch {
	case err == nil && status >= 200 && status <= 299:
		c.State = core.CallbackDelivered
	case err == nil && status == 410:
		c.State = core.CallbackDisabled
	case c.Attempts > len(callbackWaits):
		c.State = core.CallbackFailed
	default:
		wait := callbackWaits[c.Attempts-1]
		spread := time.Duration((rand.Float64() - 0.5) * 0.4 * float64(wait)) //nolint:gosec // nothing depends on nobody guessing it
		c.State, c.NextAt = core.CallbackPending, now.Add(wait+spread)
	}
	// What has arrived is not sent twice for the sake of a server that stops.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callbackTimeout)
	defer cancel()
	if err := d.s.Store.RecordCallback(ctx, c, until); err != nil {
		d.s.Logger.Error("attempt of callback not recorded; it is sent again", "callback", c.ID, "error", err)
	}
}

// post sends a callback. Its error is for the delivery log, which the caller reads.
func (d *deliverer) post(ctx context.Context, c *core.Callback, now time.Time) (int, error) {
	config := &d.s.Callbacks
	run, err := d.s.Store.Run(ctx, c.Account, c.Run)
	if err != nil {
		return 0, errors.New("the run could not be read")
	}
	body, err := json.Marshal(struct {
		Type      string    `json:"type"`
		Timestamp time.Time `json:"timestamp"`
		Data      any       `json:"data"`
	}{core.EventRunFinished, run.FinishedAt.UTC(), config.Data(run)})
	if err != nil {
		return 0, errors.New("the run could not be written as JSON")
	}
	secrets, err := config.Secrets(ctx, c.Account)
	switch {
	case err != nil:
		return 0, errors.New("the secret to sign with could not be read")
	case len(secrets) == 0:
		return 0, errors.New("the account has no secret to sign with: keyfire secrets set " + core.CallbackSecret)
	}
	stamp := strconv.FormatInt(now.Unix(), 10)
	signature, err := signCallback(secrets, c.ID, stamp, body)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, callbackTimeout)
	defer cancel()
	return config.Post(ctx, c.URL, [][2]string{
		{"Content-Type", "application/json"}, {"Webhook-Id", c.ID}, {"Webhook-Timestamp", stamp}, {"Webhook-Signature", signature},
	}, body)
}

// signCallback signs as Standard Webhooks does: one signature for each secret, so that a receiver that knows the old or the new one can check.
func signCallback(secrets []string, id, stamp string, body []byte) (string, error) {
	var all []string
	for _, secret := range secrets {
		key, err := core.CallbackKey(secret)
		if err != nil {
			return "", fmt.Errorf("the secret %s %w", core.CallbackSecret, err)
		}
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.", id, stamp)
		mac.Write(body)
		all = append(all, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return strings.Join(all, " "), nil
}
