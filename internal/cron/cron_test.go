package cron_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/cron"
	"github.com/tutti-run/tutti/internal/model"
)

func at(t *testing.T, text string) time.Time {
	t.Helper()
	when, err := time.Parse("2006-01-02 15:04", text)
	if err != nil {
		t.Fatal(err)
	}
	return when
}

func TestNext(t *testing.T) {
	for _, c := range []struct{ schedule, zone, after, want string }{
		{"*/5 * * * *", "", "2026-11-25 14:03", "2026-11-25 14:05"},
		{"*/5 * * * *", "", "2026-11-25 14:05", "2026-11-25 14:10"},
		{"0 3 * * *", "", "2026-11-25 14:03", "2026-11-26 03:00"},
		{"30 4 1,15 * 5", "", "2026-11-25 14:03", "2026-11-27 04:30"}, // either day will do
		{"0 0 29 2 *", "", "2026-11-25 14:03", "2028-02-29 00:00"},
		{"0 12 * * mon-fri", "", "2026-11-27 12:00", "2026-11-30 12:00"},
		{"0 12 * * 7", "", "2026-11-25 12:00", "2026-11-29 12:00"},
		{"10-20/5 8 * jan *", "", "2026-11-25 12:00", "2027-01-01 08:10"},
		{"@hourly", "", "2026-11-25 14:00", "2026-11-25 15:00"},
		{"0 3 * * *", "Europe/Berlin", "2026-11-25 14:03", "2026-11-26 02:00"},
		{"30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", "2026-03-30 00:30"}, // 02:30 is left out on the 29th
		{"30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", "2026-10-25 00:30"}, // and is there twice on the 25th
		{"30 2 * * *", "Europe/Berlin", "2026-10-25 00:30", "2026-10-26 01:30"},
		{"30 * * * *", "Europe/Berlin", "2026-10-25 00:30", "2026-10-25 01:30"},
		{"0 0 * * *", "America/Havana", "2026-03-07 12:00", "2026-03-09 04:00"}, // midnight of the 8th does not exist
	} {
		s, err := cron.Parse(c.schedule, c.zone)
		if err != nil {
			t.Errorf("%s: %v", c.schedule, err)
			continue
		}
		if got, want := s.Next(at(t, c.after)), at(t, c.want); !got.Equal(want) {
			t.Errorf("%s in %q after %s: %s, want %s", c.schedule, c.zone, c.after, got, want)
		}
	}
}

func TestLatest(t *testing.T) {
	s, err := cron.Parse("*/5 * * * *", "")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := s.Latest(at(t, "2020-01-01 00:00"), at(t, "2026-11-25 14:03")), at(t, "2026-11-25 14:00"); !got.Equal(want) {
		t.Errorf("after six years: %s, want %s", got, want)
	}
	if got := s.Latest(at(t, "2026-11-25 14:00"), at(t, "2026-11-25 14:04")); !got.IsZero() {
		t.Errorf("nothing was due, but %s", got)
	}
	yearly, err := cron.Parse("@yearly", "")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := yearly.Latest(at(t, "2020-06-01 00:00"), at(t, "2026-11-25 14:03")), at(t, "2026-01-01 00:00"); !got.Equal(want) {
		t.Errorf("yearly: %s, want %s", got, want)
	}
}

func TestWhatIsNoSchedule(t *testing.T) {
	for text, want := range map[string]string{
		"":             "five fields",
		"* * * *":      "five fields",
		"60 * * * *":   `minute: "60" is not between 0 and 59`,
		"* * * foo *":  `month: "foo" is not between 1 and 12`,
		"5-1 * * * *":  `minute: "5-1" runs backwards`,
		"*/0 * * * *":  `minute: step "0" is not a number from 1`,
		"0 0 30 feb *": "a day that no year has",
		"@fortnightly": "five fields",
		"0 0 * * * *":  "five fields",
	} {
		if _, err := cron.Parse(text, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	if _, err := cron.Parse("@daily", "Mars/Olympus"); err == nil || !strings.Contains(err.Error(), "Europe/Berlin") {
		t.Errorf("an unknown zone: %v", err)
	}
}

func TestWindows(t *testing.T) {
	night := model.Window{At: "0 2 * * *", TimeZone: "Europe/Berlin", For: 90 * time.Minute} // 1:00 to 2:30 UTC
	saturday := model.Window{At: "0 12 * * 6", For: 24 * time.Hour}
	friday := time.Date(2026, 1, 9, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		windows []model.Window
		at      time.Duration // after midnight
		open    bool
		next    time.Duration
	}{
		{nil, 0, true, 0},
		{[]model.Window{night}, 59 * time.Minute, false, time.Hour},
		{[]model.Window{night}, time.Hour, true, 25 * time.Hour},
		{[]model.Window{night}, 149 * time.Minute, true, 25 * time.Hour},
		{[]model.Window{night}, 150 * time.Minute, false, 25 * time.Hour},
		{[]model.Window{night, saturday}, 30 * time.Hour, false, 36 * time.Hour},
		{[]model.Window{night, saturday}, 50 * time.Hour, true, 73 * time.Hour},
		{[]model.Window{{At: "never"}}, 0, false, 0},
	} {
		open, next := cron.Open(c.windows, friday.Add(c.at))
		want := friday.Add(c.next)
		if c.next == 0 {
			want = time.Time{}
		}
		if open != c.open || !next.Equal(want) {
			t.Errorf("%v after %s: open %v, next %s; want %v, %s", c.windows, c.at, open, next, c.open, want)
		}
	}
	for want, w := range map[string]model.Window{"": night, "not between a minute": {At: "@daily"}, "is not a schedule": {At: "now", For: time.Hour}} {
		if got := cron.CheckWindow(&w); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%+v: %q, want %q", w, got, want)
		}
	}
}
