package cli

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/sdk/client"
)

// receiver takes callbacks and answers with the next of the given statuses, the last one for ever.
type receiver struct {
	got    chan *delivered
	status chan int
}

type delivered struct {
	header http.Header
	body   []byte
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	r.got <- &delivered{req.Header.Clone(), body}
	w.WriteHeader(<-r.status)
}

// verify checks a callback as a receiver does that has read the Standard Webhooks specification and nothing of ours.
func (d *delivered) verify(t *testing.T, secret string) {
	t.Helper()
	id, stamp := d.header.Get("webhook-id"), d.header.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || time.Since(time.Unix(seconds, 0)).Abs() > 5*time.Minute {
		t.Errorf("webhook-timestamp %q", stamp)
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id + "." + stamp + "." + string(d.body)))
	if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); !strings.Contains(" "+d.header.Get("webhook-signature")+" ", " "+want+" ") {
		t.Errorf("webhook-signature %q is not by %s", d.header.Get("webhook-signature"), secret)
	}
}

func newSecret() string {
	key := make([]byte, 32)
	rand.Read(key)
	return "whsec_" + base64.StdEncoding.EncodeToString(key)
}

// TestCallbacks tells the end of runs to a receiver that takes some, refuses one, and wants no more in the end.
func TestCallbacks(t *testing.T) {
	t.Parallel()
	r := &receiver{got: make(chan *delivered, 10), status: make(chan int, 10)}
	service := httptest.NewServer(r)
	defer service.Close()
	s := startServer(t, "--egress-allow", "127.0.0.0/8", "--callbacks-allow", service.URL)
	key := s.createKey(t, client.NewKey{Workflow: "echo"})
	c := s.client(t, key.Secret)
	trigger := func(url string) (*client.Run, error) {
		return c.Trigger(t.Context(), "", client.TriggerRequest{Input: json.RawMessage(`{"card":"4111"}`), Wait: time.Minute, Callback: &client.CallbackTo{URL: url}})
	}

	if _, err := trigger(service.URL + "/hook"); outcome(err) != string(core.CodeInvalidRequest) || !strings.Contains(err.Error(), "WEBHOOK_SIGNING_SECRET") {
		t.Errorf("without a secret to sign with: %v", err)
	}
	older, newer := newSecret(), newSecret()
	setSecret := func(value string) (string, error) {
		set := exec.Command("keyfire", "secrets", "set", "WEBHOOK_SIGNING_SECRET")
		set.Env = cleanEnv("KEYFIRE_DATA=" + s.data)
		set.Stdin = strings.NewReader(value)
		out, err := set.CombinedOutput()
		return string(out), err
	}
	for _, bad := range []string{newer + " " + strings.TrimPrefix(older, "whsec_"), "whsec_" + newer, "whsec_YWJjZA==", newer + "," + older} {
		if out, err := setSecret(bad); err == nil || !strings.Contains(out, "must be whsec_ and the base64") || strings.Contains(out, newer) {
			t.Errorf("a secret that nothing can be signed with: %v, %s", err, out)
		}
	}
	if _, err := trigger(service.URL + "/hook"); outcome(err) != string(core.CodeInvalidRequest) || !strings.Contains(err.Error(), "WEBHOOK_SIGNING_SECRET") {
		t.Errorf("when none was set: %v", err)
	}
	if out, err := setSecret(newer + " " + older); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, url := range []string{"http://169.254.169.254/", "https://example.com/", "file:///etc/passwd", service.URL + "@evil.example/", "http://user@" + strings.TrimPrefix(service.URL, "http://")} {
		if _, err := trigger(url); outcome(err) != string(core.CodeInvalidRequest) {
			t.Errorf("a callback to %s: %v", url, err)
		}
	}

	r.status <- 204
	run, err := trigger(service.URL + "/hook?a=1")
	if err != nil {
		t.Fatal(err)
	}
	d := <-r.got
	d.verify(t, newer)
	d.verify(t, older)
	var message struct {
		Type string
		Data map[string]any
	}
	if err := json.Unmarshal(d.body, &message); err != nil || message.Type != "run.finished" || message.Data["id"] != run.ID || message.Data["status"] != "succeeded" || message.Data["output"] == nil {
		t.Errorf("%v %s", err, d.body)
	}
	if _, told := message.Data["input"]; told {
		t.Error("the input was told")
	}
	state := func(run, want string, attempts int) client.Callback {
		t.Helper()
		for deadline := time.Now().Add(startTimeout); ; time.Sleep(10 * time.Millisecond) {
			l, err := c.Callbacks(t.Context(), run)
			if err != nil || len(l.Data) != 1 {
				t.Fatalf("%+v, %v", l, err)
			}
			if cb := l.Data[0]; cb.State == want && cb.Attempts == attempts {
				return cb
			}
			if time.Now().After(deadline) {
				t.Fatalf("the callback is %+v, want %s after %d attempts", l.Data[0], want, attempts)
			}
		}
	}
	cb := state(run.ID, "delivered", 1)
	if cb.Log[0].Status != 204 {
		t.Errorf("%+v", cb.Log)
	}

	// Once more, by hand: the same id, so that the receiver knows it.
	r.status <- 503
	if _, err := c.Redeliver(t.Context(), run.ID, cb.ID); err != nil {
		t.Fatal(err)
	}
	if again := <-r.got; again.header.Get("webhook-id") != d.header.Get("webhook-id") {
		t.Error("another webhook-id for the same callback")
	}
	if cb = state(run.ID, "pending", 2); cb.NextAt == nil || time.Until(*cb.NextAt) > 40*time.Second {
		t.Errorf("it is not tried again soon: %+v", cb)
	}

	// 410: no more of this, also not for others.
	r.status <- 410
	gone, err := trigger(service.URL + "/gone")
	if err != nil {
		t.Fatal(err)
	}
	<-r.got
	state(gone.ID, "disabled", 1)
	other, err := trigger(service.URL + "/gone")
	if err != nil {
		t.Fatal(err)
	}
	state(other.ID, "disabled", 0)

	// An operator does all that by name.
	keyfire := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("keyfire", args...)
		cmd.Env = cleanEnv("KEYFIRE_DATA=" + s.data)
		out, err := cmd.CombinedOutput()
		return fmt.Sprintf("%s%v", out, err)
	}
	r.status <- 200
	if out := keyfire("runs", "redeliver", gone.ID); !strings.HasSuffix(out, " pending\n<nil>") {
		t.Errorf("redelivered: %s", out)
	}
	<-r.got
	again := state(gone.ID, "delivered", 2)
	out := keyfire("runs", "callbacks", gone.ID)
	for _, want := range []string{again.ID, service.URL + "/gone", "delivered", "\nATTEMPT  AT ", " 410\n", " 200\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("the callbacks are shown without %q:\n%s", want, out)
		}
	}
	if out := keyfire("runs", "redeliver", gone.ID, "cb_none"); !strings.Contains(out, "there is no such callback (not_found)") {
		t.Errorf("a callback that there is not: %s", out)
	}
	plain, err := c.Trigger(t.Context(), "", client.TriggerRequest{Input: json.RawMessage(`{}`)})
	if err != nil {
		t.Fatal(err)
	}
	if out := keyfire("runs", "redeliver", plain.ID); !strings.Contains(out, "has 0 callbacks") {
		t.Errorf("a run without a callback: %s", out)
	}
	if out := keyfire("runs", "callbacks", plain.ID); !strings.Contains(out, "was made without a callback") {
		t.Errorf("the callbacks of a run without: %s", out)
	}
	close(r.status)
}

// deaf is a receiver that never answers, and counts how many requests it holds.
type deaf struct {
	over              chan struct{}
	held, most, begun atomic.Int64
}

func (d *deaf) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	d.begun.Add(1)
	n := d.held.Add(1)
	for was := d.most.Load(); n > was && !d.most.CompareAndSwap(was, n); was = d.most.Load() {
	}
	defer d.held.Add(-1)
	select {
	case <-r.Context().Done():
	case <-d.over:
	}
}

// callbacksTo starts a server that may send callbacks to some origins, and returns what triggers a run with a callback to a URL.
func callbacksTo(t *testing.T, origins ...string) (trigger func(url string)) {
	t.Helper()
	s := startServer(t, "--egress-allow", "127.0.0.0/8", "--callbacks-allow", strings.Join(origins, ","))
	set := exec.Command("keyfire", "secrets", "set", "WEBHOOK_SIGNING_SECRET")
	set.Env, set.Stdin = cleanEnv("KEYFIRE_DATA="+s.data), strings.NewReader(newSecret())
	if out, err := set.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c := s.client(t, s.createKey(t, client.NewKey{Workflow: "echo"}).Secret)
	return func(url string) {
		t.Helper()
		if _, err := c.Trigger(t.Context(), "", client.TriggerRequest{Input: json.RawMessage(`{}`), Wait: time.Minute, Callback: &client.CallbackTo{URL: url}}); err != nil {
			t.Fatal(err)
		}
	}
}

// O2: a receiver that never answers holds up nobody else's callbacks, however many wait for it.
func TestSlowReceiverHoldsUpNobodyO2(t *testing.T) {
	t.Parallel()
	d := &deaf{over: make(chan struct{})}
	slow := httptest.NewServer(d)
	defer slow.Close()
	defer close(d.over)
	told := make(chan struct{}, 1)
	quick := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { told <- struct{}{} }))
	defer quick.Close()
	trigger := callbacksTo(t, slow.URL, quick.URL)
	const waiting = 100
	for i := range waiting {
		trigger(slow.URL + "/" + strconv.Itoa(i))
	}
	trigger(quick.URL)
	<-told
	if n := d.begun.Load(); n >= waiting {
		t.Errorf("the receiver that answers was told after all %d callbacks to the one that does not", n)
	}
	if n := d.most.Load(); n > 8 {
		t.Errorf("%d requests to the slow receiver at once", n)
	}
}

// O2: nor do several of them together: each next one is given less of the senders.
func TestSlowReceiversLeaveSendersO2(t *testing.T) {
	t.Parallel()
	d := &deaf{over: make(chan struct{})}
	var origins []string
	for range 8 {
		slow := httptest.NewServer(d)
		defer slow.Close()
		origins = append(origins, slow.URL)
	}
	defer close(d.over)
	told := make(chan struct{}, 1)
	quick := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { told <- struct{}{} }))
	defer quick.Close()
	trigger := callbacksTo(t, append(origins, quick.URL)...)
	const each = 18
	for i := range each {
		for _, slow := range origins {
			trigger(slow + "/" + strconv.Itoa(i))
		}
	}
	trigger(quick.URL)
	<-told
	if n := d.begun.Load(); n >= each*int64(len(origins)) {
		t.Errorf("the receiver that answers was told after all %d callbacks to those that do not", n)
	}
	if n := d.most.Load(); n > 48 { // of 64
		t.Errorf("%d requests to slow receivers at once", n)
	}
}
