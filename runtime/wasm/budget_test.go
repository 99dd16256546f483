package wasm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// O2: whoever has filled the memory with nodes that stay, and has hundreds more to come, makes others wait for one of them to end.
func TestBudgetIsFairO2(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		elephant, mouse, cat, other := holder{"acc", "elephant"}, holder{"acc", "mouse"}, holder{"acc", "cat"}, holder{"other", "elephant"}
		b := newBudget(40)
		var mu sync.Mutex
		var got []string
		shares := map[holder][]*share{}
		ask := func(ctx context.Context, who holder, n int64) {
			go func() {
				if s, err := b.start(ctx, who, n, n); err == nil {
					mu.Lock()
					defer mu.Unlock()
					shares[who] = append(shares[who], s)
					got = append(got, who.account+"/"+who.caller)
				}
			}()
			synctest.Wait()
		}
		granted := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if got := strings.Join(got, " "); got != strings.Join(want, " ") {
				t.Errorf("%s: granted to %q, want %q", what, got, want)
			}
			got = nil
		}
		release := func(who holder, n int64) {
			mu.Lock()
			defer mu.Unlock()
			i := slices.IndexFunc(shares[who], func(s *share) bool { return s.held == n })
			s := shares[who][i]
			shares[who] = slices.Delete(shares[who], i, i+1)
			b.end(s)
		}
		for range 12 {
			ask(t.Context(), elephant, 10)
		}
		granted("40 are free", "acc/elephant", "acc/elephant", "acc/elephant", "acc/elephant")
		gone, leave := context.WithCancel(t.Context())
		ask(gone, cat, 1)
		ask(t.Context(), mouse, 5)
		ask(t.Context(), mouse, 5)
		ask(t.Context(), other, 10)
		granted("none is free")
		leave()
		synctest.Wait()
		release(elephant, 10)
		granted("an account that holds nothing goes first", "other/elephant")
		release(elephant, 10)
		// Both accounts wait, but the other one for nothing.
		granted("then a caller that holds little", "acc/mouse", "acc/mouse")
		ask(t.Context(), other, 1)
		release(mouse, 5)
		granted("who goes next is not overtaken", "other/elephant")
		release(elephant, 10)
		granted("then the one that holds more", "acc/elephant")

		release(mouse, 5)
		release(other, 10)
		release(other, 1)
		for range 8 {
			release(elephant, 10)
			synctest.Wait()
		}
		release(elephant, 10)
		if taken, waiting := b.usage(); taken != 0 || waiting != 0 || len(b.held) != 0 {
			t.Errorf("in the end %d are taken, %d wait, and %d hold some", taken, waiting, len(b.held))
		}
	})
}

// sound looks whether the sums of a budget are right, and whether all that are under way could end: by trying, in the plainest way.
func (b *budget) sound() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	can, by := b.free, map[holder]int64{}
	left := slices.Clone(b.shares)
	sum := b.free
	for i, s := range b.shares {
		sum += s.held
		by[holder{account: s.who.account}] += s.held
		if s.who.caller != "" {
			by[s.who] += s.held
		}
		if s.at != i || s.held < 0 || s.held > s.claim || s.needs() > b.largest {
			return fmt.Errorf("share %d of %d is %+v, and none needs more than %d", i, len(b.shares), *s, b.largest)
		}
	}
	if sum != b.size || b.free < 0 || !maps.Equal(by, b.held) {
		return fmt.Errorf("%d are held and free, of %d; by holder %v, want %v", sum, b.size, b.held, by)
	}
	for len(left) > 0 {
		i := slices.IndexFunc(left, func(s *share) bool { return s.needs() <= can })
		if i < 0 {
			return fmt.Errorf("with %d free, none of %d can get what it may still ask for", b.free, len(left))
		}
		can += left[i].held
		left = slices.Delete(left, i, i+1)
	}
	return nil
}

// S2: guests that ask for more and more at any moment, up to what they claimed, all get it and end. Where the test's goroutines all waited for each other, it would fail at once.
func TestBudgetNeverLocks(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			const size = 1000
			b := newBudget(size)
			var all sync.WaitGroup
			var ended, gaveUp, waits atomic.Int32
			guests := 1 + random.IntN(80)
			for range guests {
				r := rand.New(rand.NewPCG(random.Uint64(), 2))
				who := holder{fmt.Sprint("account", r.IntN(3)), fmt.Sprint(r.IntN(3))}
				all.Go(func() {
					time.Sleep(time.Duration(r.IntN(50)) * time.Millisecond)
					claim := 1 + r.Int64N(size)
					if r.IntN(4) > 0 {
						claim = 1 + r.Int64N(size/20)
					}
					ctx := t.Context()
					if r.IntN(8) == 0 {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, time.Duration(r.IntN(100))*time.Millisecond)
						defer cancel()
					}
					first := 1 + r.Int64N(claim)
					s, err := b.try(who, claim, first), error(nil)
					if s == nil {
						if s, err = b.start(ctx, who, claim, first); err != nil {
							gaveUp.Add(1)
							return
						}
					}
					defer b.end(s)
					for s.held < claim && r.IntN(10) > 0 {
						if r.IntN(3) > 0 {
							time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
						}
						n, was := 1+r.Int64N(claim-s.held), s.held
						if !b.tryGrow(s, n) {
							waits.Add(1)
							if b.grow(ctx, s, n) != nil {
								gaveUp.Add(1)
								return
							}
						}
						if s.held != was+n {
							t.Errorf("seed %d: it holds %d after %d and %d", seed, s.held, was, n)
						}
						if err := b.sound(); err != nil {
							t.Errorf("seed %d: %v", seed, err)
						}
					}
					ended.Add(1)
				})
			}
			all.Wait()
			if int(ended.Load()+gaveUp.Load()) != guests {
				t.Errorf("seed %d: %d of %d ended, and %d gave up", seed, ended.Load(), guests, gaveUp.Load())
			}
			if taken, waiting := b.usage(); taken != 0 || waiting != 0 || len(b.held) != 0 || len(b.shares) != 0 {
				t.Errorf("seed %d: in the end %d are taken, %d wait, and %d hold some", seed, taken, waiting, len(b.held))
			}
			if guests > 40 && waits.Load() == 0 {
				t.Errorf("seed %d: nobody waited", seed)
			}
		})
	}
}

// Two that may both need everything: the second waits for the first to end, whoever asks first, and gets it then.
func TestBudgetTwoNeedAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(100)
		one, two := b.try(holder{"a", ""}, 90, 10), b.try(holder{"b", ""}, 90, 10)
		if one == nil || two == nil {
			t.Fatal("two of 10 cannot start")
		}
		if !b.tryGrow(one, 5) {
			t.Fatal("one cannot grow, though it could have all that it may need")
		}
		var got []string
		grow := func(name string, s *share, n int64) {
			go func() {
				if b.grow(t.Context(), s, n) == nil {
					got = append(got, name)
				}
			}()
			synctest.Wait()
		}
		grow("two", two, 6) // then neither could have all
		grow("one", one, 75)
		if len(got) != 1 || got[0] != "one" {
			t.Fatalf("granted to %v before one ended", got)
		}
		b.end(one)
		synctest.Wait()
		if len(got) != 2 || two.held != 16 {
			t.Fatalf("granted to %v; two holds %d", got, two.held)
		}
		if !b.tryGrow(two, 74) || b.free != 10 {
			t.Errorf("two cannot have all; %d are free", b.free)
		}
		b.end(two)
	})
}

// O2: whoever grows in all of its guests keeps nobody else from starting, and an endless crowd of small guests keeps no large one of somebody else from growing.
func TestBudgetGrowingIsFairO2(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		b := newBudget(900 * mib)
		var elephants sync.WaitGroup
		began := time.Now()
		for range 300 {
			elephants.Go(func() {
				s, err := b.start(t.Context(), holder{"elephant", ""}, 64*mib, 2*mib)
				if err != nil {
					t.Error(err)
					return
				}
				defer b.end(s)
				for s.held < 64*mib {
					if err := b.grow(t.Context(), s, 31*mib); err != nil {
						t.Error(err)
						return
					}
				}
				time.Sleep(10 * time.Second)
			})
		}
		synctest.Wait()
		var worst time.Duration
		done := make(chan struct{})
		mice := make(chan int)
		go func() {
			n := 0
			defer func() { mice <- n }()
			var at sync.WaitGroup
			defer at.Wait()
			for {
				select {
				case <-done:
					return
				case <-time.After(20 * time.Millisecond):
				}
				asked := time.Now()
				s, err := b.start(t.Context(), holder{"mouse", ""}, 64*mib, 2*mib)
				if err != nil {
					t.Error(err)
					return
				}
				n, worst = n+1, max(worst, time.Since(asked))
				at.Go(func() {
					time.Sleep(time.Second)
					b.end(s)
				})
			}
		}()
		elephants.Wait()
		took := time.Since(began)
		close(done)
		n := <-mice
		t.Logf("300 large ones in %s, %d small ones beside them, which waited for %s at most", took, n, worst)
		// What all hold at first leaves room for four of the large ones at a time, and one that has it holds it for 10 s.
		if took > 700*time.Second || worst > 11*time.Second || n < 2_000 {
			t.Errorf("300 large ones took %s; %d small ones waited for up to %s", took, n, worst)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(100)
		large := b.try(holder{"large", ""}, 90, 60)
		ctx, stop := context.WithCancel(t.Context())
		var small sync.WaitGroup
		for range 10 {
			small.Go(func() {
				for ctx.Err() == nil {
					s, err := b.start(ctx, holder{"small", ""}, 5, 5)
					if err != nil {
						return
					}
					time.Sleep(30 * time.Millisecond)
					b.end(s)
				}
			})
		}
		synctest.Wait()
		began := time.Now()
		for range 3 {
			if err := b.grow(t.Context(), large, 10); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("the large one waited for %s, though the small ones take 30 ms", took)
		}
		stop()
		small.Wait()
		b.end(large)
	})
}

// O2: whoever fills the budget with guests that may grow leaves something to start with for somebody else, and one that is alone has nearly all.
func TestBudgetLeavesSomeO2(t *testing.T) {
	t.Parallel()
	b := newBudget(896)
	n := 0
	for b.try(holder{"acc", "elephant"}, 136, 4) != nil {
		n++
	}
	if least := (896 - 132 - 896/lastPart) / 4; n != least {
		t.Errorf("one that is alone has %d, want %d", n, least)
	}
	mice := 0
	for b.try(holder{"acc", "mouse"}, 136, 4) != nil {
		mice++
	}
	if mice != 896/lastPart/4 {
		t.Errorf("another one has %d, want %d", mice, 896/lastPart/4)
	}
	if err := b.sound(); err != nil {
		t.Error(err)
	}
}

// Whoever gives up leaves nothing behind, also one to whom it was given in that moment.
func TestBudgetCancelled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(100)
		one := b.try(holder{"a", ""}, 100, 90)
		two := b.try(holder{"b", ""}, 10, 5)
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("enough")
		errs := make(chan error, 2)
		go func() { errs <- b.grow(ctx, two, 5) }()
		synctest.Wait()
		go func() { _, err := b.start(ctx, holder{"c", ""}, 50, 50); errs <- err }()
		synctest.Wait()
		if _, waiting := b.usage(); two != nil && waiting != 1 {
			t.Errorf("%d wait", waiting)
		}
		cancel(cause)
		for range 2 {
			if err := <-errs; err != nil && !errors.Is(err, cause) {
				t.Error(err)
			}
		}
		b.end(one)
		if two != nil {
			b.end(two)
		}
		if taken, waiting := b.usage(); taken != 0 || waiting != 0 {
			t.Errorf("%d are taken and %d wait", taken, waiting)
		}
	})
}
