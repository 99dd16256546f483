package workflow

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

func at(t *testing.T, text string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Where clocks go forward or back, a time of day comes once a day or not at all, and what runs every so often goes on.
func TestScheduleAcrossClockChanges(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, cron, from string
		want             []string
	}{
		{"02:30 does not exist in spring", "30 2 * * *", "2026-03-28T12:00:00Z", []string{"2026-03-30T00:30:00Z", "2026-03-31T00:30:00Z"}},
		{"02:30 comes once in autumn", "30 2 * * *", "2026-10-24T12:00:00Z", []string{"2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"}},
		{
			"every half hour goes on in autumn", "*/30 * * * *", "2026-10-25T00:00:00Z",
			[]string{"2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:00:00Z"},
		},
		{"every half hour goes on in spring", "*/30 * * * *", "2026-03-29T00:30:00Z", []string{"2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z"}},
		{"06:00 moves with the clocks", "0 6 * * *", "2026-03-28T00:00:00Z", []string{"2026-03-28T05:00:00Z", "2026-03-29T04:00:00Z"}},
	} {
		table, err := ParseSchedule(&core.Schedule{Cron: c.cron, Timezone: "Europe/Paris"})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for next := at(t, c.from); len(got) < len(c.want); {
			next = table.Next(next)
			got = append(got, next.Format(time.RFC3339))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestScheduleLatest(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ cron, since, now, want string }{
		{"* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:00:59Z", ""},
		{"* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z", "2026-01-01T00:01:00Z"},
		{"* * * * *", "2016-01-01T00:00:00Z", "2026-01-01T00:01:30Z", "2026-01-01T00:01:00Z"},
		{"0 6 * * *", "2025-06-01T00:00:00Z", "2026-01-01T05:59:59Z", "2025-12-31T06:00:00Z"},
		{"0 0 29 2 *", "2020-03-01T00:00:00Z", "2027-01-01T00:00:00Z", "2024-02-29T00:00:00Z"},
		{"@hourly", "2026-01-01T00:30:00Z", "2026-01-01T00:59:00Z", ""},
	} {
		table, err := ParseSchedule(&core.Schedule{Cron: c.cron})
		if err != nil {
			t.Fatal(err)
		}
		got, ok := table.Latest(at(t, c.since), at(t, c.now))
		if ok != (c.want != "") || ok && !got.Equal(at(t, c.want)) {
			t.Errorf("%s from %s to %s: %s, want %q", c.cron, c.since, c.now, got, c.want)
		}
	}
}

func TestParseScheduleRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		schedule core.Schedule
		says     string
	}{
		"six fields":       {core.Schedule{Cron: "0 0 6 * * *"}, "five fields"},
		"nothing":          {core.Schedule{}, "five fields"},
		"a zone inside":    {core.Schedule{Cron: "TZ=UTC 0 6 * * *"}, "timezone"},
		"an interval":      {core.Schedule{Cron: "@every 5s"}, "five fields"},
		"minute 60":        {core.Schedule{Cron: "60 * * * *"}, `"60" cannot be the minute, 0 to 59`},
		"hour 25":          {core.Schedule{Cron: "0 8-25 * * *"}, `"8-25" cannot be the hour, 0 to 23`},
		"day 7":            {core.Schedule{Cron: "0 6 * * 7"}, `"7" cannot be the day of the week, 0 (Sunday) to 6`},
		"no such date":     {core.Schedule{Cron: "0 0 31 2 *"}, "no date"},
		"no such zone":     {core.Schedule{Cron: "@daily", Timezone: "Europe/Nowhere"}, "tz database"},
		"the server's own": {core.Schedule{Cron: "@daily", Timezone: "Local"}, "tz database"},
	} {
		if _, err := ParseSchedule(&c.schedule); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q in it", name, err, c.says)
		}
	}
}

// D2: a time of day comes once on every day that has it, in every kind of zone: clocks change by whole hours, by two and by half of one, at midnight too.
func TestTimesOfDayInOddZonesD2(t *testing.T) {
	t.Parallel()
	for _, zone := range []string{
		"Europe/Paris", "Australia/Lord_Howe", "Africa/Cairo", "America/Havana", "America/Santiago", "Asia/Gaza", "Africa/Casablanca", "Antarctica/Troll", "Pacific/Chatham", "Asia/Kathmandu",
	} {
		loc, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		for hour := range 4 {
			table, err := ParseSchedule(&core.Schedule{Cron: fmt.Sprintf("15 %d * * *", hour), Timezone: zone})
			if err != nil {
				t.Fatal(err)
			}
			at := table.Next(time.Date(2019, 12, 31, 12, 0, 0, 0, loc))
			for day := range 3 * 366 {
				date := time.Date(2020, 1, 1+day, hour, 15, 0, 0, time.UTC)
				// Go moves a time that clocks leave out.
				if wall := time.Date(2020, 1, 1+day, hour, 15, 0, 0, loc); wall.Format(time.DateTime) != date.Format(time.DateTime) {
					continue
				}
				if got := at.In(loc).Format(time.DateTime); got != date.Format(time.DateTime) {
					t.Fatalf("%s: after %s comes %s", zone, date.AddDate(0, 0, -1).Format(time.DateTime), got)
				}
				at = table.Next(at)
			}
		}
	}
}
