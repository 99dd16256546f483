package workflow

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // schedules mean the same on a machine that has no time zones

	"github.com/robfig/cron/v3"

	"github.com/keyfire/keyfire/core"
)

// Timetable is a schedule that was read.
type Timetable struct {
	spec *cron.SpecSchedule
	zone *time.Location
}

// ParseSchedule reads a schedule. Its error says what would be right.
func ParseSchedule(s *core.Schedule) (*Timetable, error) {
	zone := time.UTC
	if s.Timezone != "" {
		var err error
		if zone, err = time.LoadLocation(s.Timezone); err != nil || s.Timezone == "Local" {
			return nil, fmt.Errorf("%q is not a time zone of the tz database; write for example Europe/Paris or UTC", shorten(s.Timezone))
		}
	}
	const form = `a cron expression has five fields, minute hour day-of-month month day-of-week, such as "0 6 * * *", or is one of @yearly, @monthly, @weekly, @daily, @hourly`
	if strings.Contains(s.Cron, "=") || strings.HasPrefix(s.Cron, "@every") {
		return nil, errors.New(form + "; the time zone is given by timezone")
	}
	parsed, err := cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor).Parse(s.Cron)
	spec, ok := parsed.(*cron.SpecSchedule)
	if err != nil || !ok {
		return nil, errors.New(cmp.Or(wrongCronField(s.Cron), form))
	}
	spec.Location = zone
	t := &Timetable{spec: spec, zone: zone}
	if t.Next(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, errors.New("the expression names no date that exists")
	}
	return t, nil
}

// wrongCronField says which of five fields is wrong, "" when it is none of them alone.
func wrongCronField(expression string) string {
	fields := strings.Fields(expression)
	if len(fields) != 5 {
		return ""
	}
	for i, f := range []struct {
		what cron.ParseOption
		has  string
	}{
		{cron.Minute, "the minute, 0 to 59"},
		{cron.Hour, "the hour, 0 to 23"},
		{cron.Dom, "the day of the month, 1 to 31"},
		{cron.Month, "the month, 1 to 12 or JAN to DEC"},
		{cron.Dow, "the day of the week, 0 (Sunday) to 6 or SUN to SAT"},
	} {
		if _, err := cron.NewParser(f.what).Parse(fields[i]); err != nil {
			return fmt.Sprintf("%q cannot be %s; lists (1,3), spans (1-5) and steps (*/15) of them are allowed, and *", shorten(fields[i]), f.has)
		}
	}
	return ""
}

// Next returns the first scheduled time after the given one, to the minute; zero when there is none for years. Where clocks go forward, a time that
// they leave out is left out here.
func (t *Timetable) Next(after time.Time) time.Time {
	for {
		next := t.shown(after)
		if next.IsZero() || !t.repeated(next) {
			return next.UTC()
		}
		after = next
	}
}

// shown returns the first time after the given one at which clocks show what the schedule names. It looks at one span between two changes of the clocks after
// another, in which they are only an offset: the library goes over a change in whole hours, and would lose the days at which clocks change by half of one.
func (t *Timetable) shown(after time.Time) time.Time {
	spec, at := *t.spec, after
	for {
		local := at.In(t.zone)
		_, offset := local.Zone()
		_, end := local.ZoneBounds()
		spec.Location = time.FixedZone("", offset)
		next := spec.Next(after.In(spec.Location))
		if next.IsZero() || end.IsZero() || next.Before(end) {
			return next
		}
		at, after = end, end.Add(-time.Second)
	}
}

// every is the bit by which the parser marks a field that is "*".
const every = 1 << 63

// repeated reports whether a time is the second of two that clocks show when they go back, for a schedule that names hours: such a one means
// a time of day, once a day. One that runs every hour runs in both.
func (t *Timetable) repeated(at time.Time) bool {
	if t.spec.Hour&every != 0 {
		return false
	}
	local := at.In(t.zone)
	_, offset := local.Zone()
	_, before := local.Add(-3 * time.Hour).Zone()
	if before <= offset {
		return false
	}
	first := local.Add(-time.Duration(before-offset) * time.Second)
	return first.Format(time.DateTime) == local.Format(time.DateTime)
}

// Latest returns the last scheduled time after since and not after now. ok is false when there is none.
func (t *Timetable) Latest(since, now time.Time) (latest time.Time, ok bool) {
	// Looking back in growing steps keeps the number of times that are passed over small, however long the server was down.
	for _, back := range []time.Duration{2 * time.Minute, 2 * time.Hour, 49 * time.Hour, 32 * 24 * time.Hour, 366 * 24 * time.Hour, 8 * 366 * 24 * time.Hour} {
		from := now.Add(-back)
		if from.Before(since) {
			from = since
		}
		for at := t.Next(from); !at.IsZero() && !at.After(now); at = t.Next(at) {
			latest, ok = at, true
		}
		if ok || !from.After(since) {
			return latest, ok
		}
	}
	return latest, ok
}

// Key names a scheduled time within its schedule, so that it can have one run only.
func (t *Timetable) Key(at time.Time) string { return at.UTC().Format(time.RFC3339) }
