package core

import (
	"math"
	"time"
)

// Bounds of the limits of a key and of an account. They are part of the API.
const (
	MaxRateLimits     = 10
	MaxRate           = 1_000_000           // runs of a rate limit
	MinRatePeriod     = time.Second         // of a rate limit
	MaxRatePeriod     = 31 * 24 * time.Hour // of a rate limit
	MaxConcurrentRuns = 1000
)

// RateLimit is a token bucket: it holds Burst runs and gains Limit runs in each Per. In any time t, no more than Burst + Limit*t/Per runs
// are admitted.
type RateLimit struct {
	Name  string   `json:"name"`            // distinguishes the limits of a key or account; shown in the RateLimit headers
	Limit int64    `json:"limit"`           // 1..MaxRate
	Per   Duration `json:"per"`             // MinRatePeriod..MaxRatePeriod
	Burst int64    `json:"burst,omitempty"` // 1..Limit; 0 is Limit
}

// interval is the time in which the bucket gains one run, rounded up, so that rounding never admits more.
func (l RateLimit) interval() int64 { return (int64(l.Per) + l.Limit - 1) / l.Limit }

func (l RateLimit) burst() int64 {
	if l.Burst > 0 {
		return l.Burst
	}
	return l.Limit
}

// clockSlack is by how much runs may ask a bucket in another order than that of their times, as those do that wait for the store beside each other.
const clockSlack = time.Minute

// Take asks the bucket for one run at the time now. full is the state of the bucket: the time, in nanoseconds since 1970, at which it will be full
// again, 0 for a new one. It returns the state after the run, and whether there was one to take; if not, the state stays as it is
// and LimitState.Reset says when there will be.
func (l RateLimit) Take(full int64, now time.Time) (after int64, state LimitState, ok bool) {
	if state = l.State(full, now); state.Remaining == 0 {
		return full, state, false
	}
	state.Remaining--
	state.Reset += time.Duration(l.interval())
	return now.UnixNano() + int64(state.Reset), state, true
}

// State is where the bucket stands at the time now, of which nothing is taken. full is as for [RateLimit.Take].
func (l RateLimit) State(full int64, now time.Time) LimitState { return l.state(l.debt(full, now)) }

// Later is where the bucket stands a while after it stood as State or a refusal said, if nothing was taken from it.
func (l RateLimit) Later(s LimitState, by time.Duration) LimitState {
	debt := int64(s.Reset)
	if s.Remaining == 0 {
		debt += l.interval() * (l.burst() - 1)
	}
	return l.state(max(debt-int64(by), 0))
}

// debt is the time until the bucket is full.
func (l RateLimit) debt(full int64, now time.Time) int64 {
	step, burst := l.interval(), l.burst()
	debt := max(full-now.UnixNano(), 0)
	if debt > step*burst+int64(clockSlack) {
		// No bucket is emptier than empty: the clock was set back, and must not close it for as long as it was ahead. One run is let through, from
		// which on the bucket is counted by the clock as it is now.
		return step * (burst - 1)
	}
	return debt
}

func (l RateLimit) state(debt int64) LimitState {
	step, burst := l.interval(), l.burst()
	s := LimitState{Name: l.Name, Kind: LimitRate, Limit: l.Limit, Per: l.Per.Std()}
	if empty := step * (burst - 1); debt > empty {
		s.Reset = time.Duration(debt - empty)
		return s
	}
	s.Remaining, s.Reset = (step*burst-debt)/step, time.Duration(debt)
	return s
}

// LimitKind says what a limit counts.
type LimitKind string

// The kinds of limits. An account has no quota.
const (
	LimitRate        LimitKind = "rate"        // runs in a time
	LimitConcurrency LimitKind = "concurrency" // runs at once
	LimitQuota       LimitKind = "quota"       // runs in all, or until the next refill
)

// AccountLimit precedes the names of an account's limits, which its keys' limits, having no colon, cannot be mistaken for.
const AccountLimit = "account:"

// LimitState is where a key, or with AccountLimit before the name its account, stands with a limit.
type LimitState struct {
	Name      string        `json:"name"`
	Kind      LimitKind     `json:"kind"`
	Limit     int64         `json:"limit"`
	Per       time.Duration `json:"-"`         // of a rate
	Remaining int64         `json:"remaining"` // runs that may still be started now
	Reset     time.Duration `json:"-"`         // until there is more, or until all is back when Remaining is not 0; 0 is not known or never
}

// RefillEvery says how often a quota is refilled.
type RefillEvery string

// How often a quota is refilled: at midnight in UTC, every day, on one day of the week or of the month.
const (
	RefillDaily   RefillEvery = "day"
	RefillWeekly  RefillEvery = "week"
	RefillMonthly RefillEvery = "month"
)

// Refill gives a key back runs of its quota from time to time.
type Refill struct {
	Every  RefillEvery `json:"every"`
	Amount int64       `json:"amount"`        // runs that come back, up to the key's quota
	Day    int         `json:"day,omitempty"` // of the week, Monday being 1, or of the month, where a shorter month means its last; 0 is 1
}

// Next returns the first refill after t.
func (r Refill) Next(t time.Time) time.Time {
	t = t.UTC()
	day := max(r.Day, 1)
	midnight := time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
	switch r.Every {
	case RefillWeekly:
		today := (int(t.Weekday())+6)%7 + 1
		ahead := (day - today + 7) % 7
		if ahead == 0 {
			ahead = 7
		}
		return midnight.AddDate(0, 0, ahead)
	case RefillMonthly:
		for month := t.Month(); ; month++ {
			first := time.Date(t.Year(), month, 1, 0, 0, 0, 0, time.UTC)
			last := first.AddDate(0, 1, -1).Day()
			if next := first.AddDate(0, 0, min(day, last)-1); next.After(t) {
				return next
			}
		}
	default:
		return midnight.AddDate(0, 0, 1)
	}
}

// Quota is where a key stands with the runs it may start.
type Quota struct {
	Max      int64     // 0: no limit
	Used     int64     // runs the key has started in its life
	Credited int64     // runs that refills have given back
	Refill   *Refill   // nil: never
	RefillAt time.Time // the next refill, zero without one
}

// At returns the quota with the refills that are due at now.
func (q Quota) At(now time.Time) Quota {
	if q.Refill == nil || q.Max == 0 || q.RefillAt.IsZero() || now.Before(q.RefillAt) {
		return q
	}
	left := q.Left()
	for !now.Before(q.RefillAt) {
		if left = min(left+q.Refill.Amount, q.Max); left == q.Max {
			q.RefillAt = q.Refill.Next(now) // those in between have nothing to add
			break
		}
		q.RefillAt = q.Refill.Next(q.RefillAt)
	}
	q.Credited = left + q.Used - q.Max
	return q
}

// Left returns how many runs may still be started, not counting refills that are due.
func (q Quota) Left() int64 {
	if q.Max == 0 {
		return math.MaxInt64
	}
	return max(q.Max+q.Credited-q.Used, 0)
}

// UsageKind says what a row of usage counts runs by.
type UsageKind string

// What the usage of a key is counted by.
const (
	UsageRuns     UsageKind = "runs"
	UsageWorkflow UsageKind = "workflow"
	UsageSource   UsageKind = "source"
	UsageAgent    UsageKind = "agent"
)

// MaxUsageValues bounds the different values of one kind that are told apart for one key on one day. Runs with further ones are counted under
// the value "".
const MaxUsageValues = 100

// KeyUsage counts the runs that one key started on one day by one value: a workflow's id, a source address, a user agent.
type KeyUsage struct {
	Account string
	KeyID   string
	Day     int64 // days since 1970 in UTC
	Kind    UsageKind
	Value   string // "" for UsageRuns, and for what MaxUsageValues leaves over
	Count   int64
	LastAt  time.Time
}

// SecretUse is the last use of one of a key's secrets.
type SecretUse struct {
	PublicID string
	At       time.Time
	Source   string
	Agent    string
}
