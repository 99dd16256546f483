package core

import (
	"encoding/base64"
	"errors"
	"strings"
	"time"
)

// CallbackSecret is the name of the account's secret that callbacks are signed with. Its value is one secret, or several with a space between them, the newest first.
const CallbackSecret = "WEBHOOK_SIGNING_SECRET"

// CallbackKey returns the key that one of them stands for.
func CallbackKey(secret string) ([]byte, error) {
	text, ok := strings.CutPrefix(secret, "whsec_")
	key, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(key) < 24 || len(key) > 64 {
		return nil, errors.New("must be whsec_ and the base64 of 24 to 64 bytes; several are separated by a space")
	}
	return key, nil
}

// Callback is a request that tells somebody how a run ended.
type Callback struct {
	ID        string
	Account   string
	Run       string
	URL       string
	State     CallbackState
	Attempts  int
	NextAt    time.Time // when it is sent next; zero when it is not
	CreatedAt time.Time
	UpdatedAt time.Time
	Log       []CallbackAttempt // the last ones, oldest first; not in lists of what is due
}

// CallbackState is how far a callback is.
type CallbackState string

// The states of a callback. The last three are final until somebody asks for another delivery.
const (
	CallbackWaiting   CallbackState = "waiting"   // its run has not ended
	CallbackPending   CallbackState = "pending"   // it is sent, or sent again, when it is due
	CallbackDelivered CallbackState = "delivered" // the receiver answered 2xx
	CallbackFailed    CallbackState = "failed"    // the receiver did not take it for a day
	CallbackDisabled  CallbackState = "disabled"  // the receiver answered 410: it wants no more
)

// CallbackAttempt is one sending of a callback.
type CallbackAttempt struct {
	Number     int       `json:"number"` // from 1
	At         time.Time `json:"at"`
	DurationMS int64     `json:"duration_ms"`
	Status     int       `json:"status,omitempty"` // of the answer; 0 when there was none
	Error      string    `json:"error,omitempty"`  // why there was none
}

// Tick is one scheduled time of a workflow's schedule.
type Tick struct {
	Workflow string
	Schedule string // name of the schedule within the workflow
	Key      string // the scheduled time as the schedule counts it; unique within the schedule
	At       time.Time
}

// ScheduleState is a schedule of the current version of an enabled workflow, and how far it is.
type ScheduleState struct {
	Account  string
	Workflow string
	Name     string // of the schedule within the workflow
	Schedule Schedule
	Since    time.Time // published; times before it do not count
	Last     time.Time // the last time that has a run, or that was passed over; zero for none
}
