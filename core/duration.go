package core

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration that is written as text ("30s", "1m30s") in workflow files, config and JSON.
type Duration time.Duration

// Std returns d as a time.Duration.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String formats d as time.Duration does.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON writes the text form.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads the text form only: a bare number would leave its unit to guesswork.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return Errorf(CodeInvalidInput, `a duration is text with a unit, such as "30s"`)
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return Errorf(CodeInvalidInput, `not a duration; write for example "250ms", "30s" or "1m30s"`)
	}
	*d = Duration(v)
	return nil
}

// ParseSpan reads a duration, which may also be a number of days ("7d"), up to a hundred years.
func ParseSpan(text string) (time.Duration, error) {
	days, ok := strings.CutSuffix(text, "d")
	if !ok {
		return time.ParseDuration(text)
	}
	n, err := strconv.Atoi(days)
	if err != nil || n < 0 || n > 36500 {
		return 0, strconv.ErrSyntax
	}
	return time.Duration(n) * 24 * time.Hour, nil
}
