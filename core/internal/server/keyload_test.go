package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/auth/authtest"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/server/compat"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// full says whether the numbers of the promises are to be reached, which takes minutes; make chaos sets it.
func full() bool { return os.Getenv("KEYFIRE_CHAOS") != "" }

// attempt runs a workflow by a key and returns the status.
func (b *bundle) attempt(path, secret string) int {
	req := httptest.NewRequest("POST", path, strings.NewReader(`{}`))
	req.RemoteAddr = "203.0.113.7:4711"
	req.Header.Set("Authorization", "Bearer "+secret)
	req.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	b.handler.ServeHTTP(w, req)
	return w.Code
}

// K3: rotations under load. A client that learns of a new text later than it is made, but within the overlap, is never refused, and all texts charge the one
// counter.
func TestRotationsUnderLoadK3(t *testing.T) {
	t.Parallel()
	rotations := 50
	if full() {
		rotations = 500
	}
	b := setup(t)
	b.publish("open", "")
	k, first := b.key(admin.NewKey{Scopes: []string{"run:workflow/open"}})
	var mu sync.Mutex
	texts := []string{first} // the last two: the overlap is longer than the test, and clients are slow by one
	var runs, refused atomic.Int64
	done := make(chan struct{})
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				mu.Lock()
				secret := texts[rand.IntN(len(texts))]
				mu.Unlock()
				if code := b.attempt("/v1/trigger", secret); code == 200 {
					runs.Add(1)
				} else {
					refused.Add(1)
					t.Errorf("status %d within the overlap", code)
				}
			}
		})
	}
	for range rotations {
		before := runs.Load()
		_, secret, err := b.admin.RotateKey(context.Background(), b.boss, k.ID, time.Hour)
		b.must(err)
		mu.Lock()
		texts = append(texts, secret.Reveal())
		texts = texts[max(0, len(texts)-2):]
		mu.Unlock()
		for runs.Load() == before && refused.Load() == 0 { // the new text is used before the next one comes
			time.Sleep(time.Millisecond)
		}
	}
	close(done)
	clients.Wait()
	got, err := b.store.Key(context.Background(), core.DefaultAccount, k.ID)
	b.must(err)
	if got.RunsUsed != runs.Load() {
		t.Errorf("the counter is %d after %d runs", got.RunsUsed, runs.Load())
	}
	t.Logf("%d rotations, %d runs, %d refused", rotations, runs.Load(), refused.Load())
}

// Two hundred keys that Bifrost gave out go on working with the requests its clients send.
func TestImportsOfBifrostKeys(t *testing.T) {
	t.Parallel()
	b := setup(t, func(tc *trigger.Config, c *Config) {
		tc.MaxBadCredentials, c.Compat = -1, compat.Products{Bifrost: true}
	})
	w := b.publish("flow", "")
	boss := b.adminKey()
	for i := range 200 {
		text := fmt.Sprintf("bk_live_%032x", sha256.Sum256([]byte{byte(i)}))[:40]
		sum := sha256.Sum256([]byte(text))
		b.call("POST", "/v1/keys/import", boss, fmt.Sprintf(`{"name":"old %d","workflow":"flow","sha256":"%s","last4":"%s"}`, i, hex.EncodeToString(sum[:]), text[36:])).want(201)
		b.call("POST", "/api/endpoints/"+w.ID, "", `{"input":"your data"}`, "X-Bifrost-Key", text).want(200)
		other := []byte(text)
		other[39] ^= 1
		b.call("POST", "/api/endpoints/"+w.ID, "", `{"input":"your data"}`, "X-Bifrost-Key", string(other)).want(401)
	}
}

// Q2: a rate limit never admits more than its burst and its rate over the time, in cells of limit, window and concurrency, with the real clock.
func TestRateLimitCellsQ2(t *testing.T) {
	t.Parallel()
	window := 1200 * time.Millisecond
	if full() {
		window = 10 * time.Second
	}
	b := setup(t, func(c *trigger.Config, _ *Config) { c.MaxBadCredentials = -1 })
	b.publish("open", "")
	var cells sync.WaitGroup
	n := 0
	for _, limit := range []int64{1, 7, 50} {
		for _, per := range []time.Duration{time.Second, 3 * time.Second} {
			for _, clients := range []int{1, 4, 16, 64} {
				n++
				_, secret := b.key(admin.NewKey{Scopes: []string{"run:workflow/open"}, KeyLimits: admin.KeyLimits{RateLimits: []core.RateLimit{{Limit: limit, Per: core.Duration(per)}}}})
				cells.Go(func() { b.cell(limit, per, clients, window, secret) })
			}
		}
	}
	// The same for an account, whose callers have keys of their own.
	acme, err := b.admin.CreateAccount(context.Background(), b.boss, "acme", "")
	b.must(err)
	_, err = b.admin.UpdateAccount(context.Background(), b.boss, "acme", admin.AccountChange{RateLimits: &[]core.RateLimit{{Limit: 7, Per: core.Duration(time.Second)}}})
	b.must(err)
	theirs := b.boss
	theirs.Principal.Account = acme.ID
	_, err = b.admin.PublishWorkflow(context.Background(), theirs, admin.Publish{
		Slug: "open", Filename: "workflow.yaml", Source: []byte(workflowFile("open", "")), Modules: map[string][]byte{"./only.wasm": []byte(wasm)},
	})
	b.must(err)
	var secrets []string
	for range 16 {
		_, secret, err := b.admin.CreateKey(context.Background(), theirs, admin.NewKey{Name: "x", Scopes: []string{"run:workflow/open"}})
		b.must(err)
		secrets = append(secrets, secret.Reveal())
	}
	cells.Go(func() { b.cell(7, time.Second, 16, window, secrets...) })
	cells.Wait()
	if n != 24 {
		t.Errorf("%d cells", n)
	}
}

// cell asks as often as it can, each client with one of the secrets, and compares what was let through with what may be.
func (b *bundle) cell(limit int64, per time.Duration, clients int, window time.Duration, secrets ...string) {
	var admitted, refused, other atomic.Int64
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range clients {
		secret := secrets[i%len(secrets)]
		wg.Go(func() {
			for time.Since(begin) < window {
				switch b.attempt("/v1/trigger", secret) {
				case 200:
					admitted.Add(1)
				case 429:
					refused.Add(1)
					time.Sleep(2 * time.Millisecond) // a refusal takes microseconds, and the machine has other cells to serve
				default:
					other.Add(1)
				}
			}
		})
	}
	wg.Wait()
	most := float64(limit) + float64(limit)*float64(time.Since(begin))/float64(per)
	if float64(admitted.Load()) > most || refused.Load() > 0 && admitted.Load() < limit || other.Load() > 0 {
		b.t.Errorf("limit %d per %s, %d clients: %d admitted of at most %.1f, %d refused, %d other answers", limit, per, clients, admitted.Load(), most, refused.Load(), other.Load())
	}
}

// alike is how many texts there are of each kind of wrong text. Where in a page of the database one is found takes some nanoseconds more or less, which is not to
// be taken for a difference of the kinds.
func alike() int {
	if full() {
		return 2000
	}
	return 200
}

// K4 on a real store: how long a refusal takes says nothing about how wrong the key is, nor about what the key has to say, and neither does a byte of it.
func TestBadKeysAreAlikeK4(t *testing.T) {
	b := setup(t, func(tc *trigger.Config, _ *Config) { tc.MaxBadCredentials = -1 })
	little, much := b.texts(brief, false), b.texts(wordy, false)
	b.refusedAlike(little[0][:53]+"_", map[string][]string{"unknown": allForged(little, 8), "wrong at first": allForged(little, 16), "wrong at last": allForged(much, 47)})
}

// K4 for the texts that keys had before they were rotated: where a text is looked for says nothing either.
func TestReplacedKeysAreAlikeK4(t *testing.T) {
	b := setup(t, func(tc *trigger.Config, _ *Config) { tc.MaxBadCredentials = -1 })
	little, much := b.texts(brief, false), b.texts(wordy, false)
	b.refusedAlike(little[0][:53]+"_", map[string][]string{
		"unknown": allForged(little, 8), "wrong at first": allForged(little, 16), "wrong at last": allForged(much, 47), "replaced and wrong": allForged(b.texts(wordy, true), 47),
	})
}

// brief is a key that says little, and wordy one that takes several pages of the database.
func brief() admin.NewKey { return admin.NewKey{Scopes: []string{"run:*"}} }

func wordy() admin.NewKey {
	k := brief()
	k.Description, k.Metadata = strings.Repeat("x", 900), map[string]string{"note": strings.Repeat("y", 400)}
	for i := range 40 {
		k.Scopes = append(k.Scopes, fmt.Sprintf("run:workflow/%s-%d/*", strings.Repeat("z", 40), i))
	}
	return k
}

// texts makes keys and returns their texts, or those that they had before they were rotated.
func (b *bundle) texts(what func() admin.NewKey, rotate bool) []string {
	b.t.Helper()
	texts := make([]string, alike())
	for i := range texts {
		k, text := b.key(what())
		if rotate {
			_, _, err := b.admin.RotateKey(context.Background(), b.boss, k.ID, time.Hour)
			b.must(err)
		}
		texts[i] = text
	}
	return texts
}

// allForged returns all texts forged at a place. That of the id makes it another one, which is looked for in another place.
func allForged(texts []string, at int) []string {
	all := make([]string, len(texts))
	for i, text := range texts {
		all[i] = forged(text, at)
	}
	return all
}

// forged returns a key's text with another character at a place, and the checksum that goes with it.
func forged(text string, at int) string {
	body := []byte(text[:48])
	if body[at]++; body[at] == '9'+1 || body[at] == 'Z'+1 || body[at] == 'z'+1 {
		body[at] = '0'
	}
	return string(body) + checkOf(string(body))
}

// refusedAlike proves that all these texts are refused with one answer, and those that are well formed in the same time.
func (b *bundle) refusedAlike(malformed string, classes map[string][]string) {
	b.t.Helper()
	answers := map[string]bool{}
	for _, secret := range slices.Concat([]string{malformed}, slices.Concat(slices.Collect(maps.Values(classes))...)) {
		r := b.call("POST", "/v1/trigger", secret, `{}`).want(401)
		body := string(r.body)
		for _, own := range []string{r.header.Get("Keyfire-Request-Id"), r.texts()["trace_id"]} {
			body = strings.ReplaceAll(body, own, "ID")
		}
		answers[body+r.header.Get("WWW-Authenticate")+fmt.Sprint(len(r.header))] = true
	}
	if len(answers) != 1 {
		b.t.Errorf("%d different answers: %v", len(answers), answers)
	}
	if testing.Short() || raceEnabled {
		b.t.Skip("the rest measures time")
	}
	rounds := 10_000
	if full() {
		rounds = 1_000_000
	}
	ring := auth.NewKeyring(b.store, b.pepper, time.Now)
	names := slices.Sorted(maps.Keys(classes))
	worst := 0.0
	for range 3 { // a leak shows every time, an accident does not
		times := make([][]float64, len(names))
		for c := range times {
			times[c] = make([]float64, 0, rounds) // growing in the midst would be in the times
		}
		for range rounds {
			for _, c := range rand.Perm(len(names)) {
				texts := classes[names[c]]
				credential := auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret(strings.Clone(texts[rand.IntN(len(texts))]))}
				// What was touched last is found sooner, whatever it is, and some rows are touched by several kinds. So the second time is what counts.
				_, _ = ring.Authenticate(context.Background(), credential)
				start := time.Now()
				_, err := ring.Authenticate(context.Background(), credential)
				times[c] = append(times[c], float64(time.Since(start)))
				if core.CodeOf(err) != core.CodeInvalidKey {
					b.t.Fatal(err)
				}
			}
		}
		worst = 0
		for a := range names {
			for c := range a {
				worst = max(worst, authtest.WelchT(times[a], times[c]))
			}
		}
		b.t.Logf("|t| = %.2f over %d each", worst, rounds)
		if worst < authtest.MaxT {
			return
		}
	}
	b.t.Errorf("|t| = %.1f, want less than 4.5: the time of a refusal tells what is wrong", worst)
}

// texts decodes a problem's texts.
func (r *reply) texts() map[string]string {
	r.t.Helper()
	texts := map[string]string{}
	var all map[string]any
	if err := json.Unmarshal(r.body, &all); err != nil {
		r.t.Fatal(err)
	}
	for name, v := range all {
		if s, ok := v.(string); ok {
			texts[name] = s
		}
	}
	return texts
}
