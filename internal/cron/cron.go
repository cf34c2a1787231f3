package cron

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // hosts need not have the zones
)

// Schedule is a set of minutes.
type Schedule struct {
	minute, hour, day, month, weekday uint64 // bit n is for n
	// eitherDay is whether a day of the month or one of the week is enough, as both are restricted.
	eitherDay bool
	everyHour bool
	zone      *time.Location
}

var named = map[string]string{
	"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
	"@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}

type field struct {
	name     string
	min, max int
	words    []string // for min, min+1 and so on
}

var fields = []field{
	{"minute", 0, 59, nil},
	{"hour", 0, 23, nil},
	{"day of the month", 1, 31, nil},
	{"month", 1, 12, []string{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}},
	{"day of the week", 0, 7, []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}},
}

// Parse reads five fields (minute, hour, day of the month, month, day of the week), each *, a number,
// a range, with a step if need be, or a list of these, or @hourly, @daily, @weekly, @monthly and
// @yearly. zone is an IANA name such as Europe/Berlin; "" is UTC.
func Parse(text, zone string) (*Schedule, error) {
	location, err := Location(zone)
	if err != nil {
		return nil, err
	}
	words := strings.Fields(text)
	if len(words) == 1 {
		if full, ok := named[strings.ToLower(words[0])]; ok {
			words = strings.Fields(full)
		}
	}
	if len(words) != len(fields) {
		return nil, fmt.Errorf("%q is not a schedule: five fields such as */5 * * * *, or @hourly, @daily, @weekly, @monthly and @yearly are accepted", text)
	}
	sets := make([]uint64, len(fields))
	for i := range fields {
		if sets[i], err = fields[i].parse(words[i]); err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
	}
	s := &Schedule{minute: sets[0], hour: sets[1], day: sets[2], month: sets[3], weekday: sets[4], zone: location}
	if s.weekday&(1<<7) != 0 { // 7 is Sunday, too
		s.weekday |= 1
	}
	s.eitherDay = !strings.HasPrefix(words[2], "*") && !strings.HasPrefix(words[4], "*")
	s.everyHour = bits.OnesCount64(s.hour) == 24
	if s.Next(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, fmt.Errorf("%q names a day that no year has", text)
	}
	return s, nil
}

// Location is a time zone by its IANA name; "" is UTC.
func Location(zone string) (*time.Location, error) {
	location, err := time.LoadLocation(zone)
	if err != nil || zone == "Local" {
		return nil, fmt.Errorf("time zone %q is not known; write one such as Europe/Berlin", zone)
	}
	return location, nil
}

func (f *field) parse(text string) (set uint64, err error) {
	for item := range strings.SplitSeq(text, ",") {
		span, step, stepped := strings.Cut(item, "/")
		every := 1
		if stepped {
			if every, err = strconv.Atoi(step); err != nil || every < 1 {
				return 0, fmt.Errorf("%s: step %q is not a number from 1", f.name, step)
			}
		}
		from, to := f.min, f.max
		if span != "*" {
			first, last, ranged := strings.Cut(span, "-")
			if from, err = f.number(first); err != nil {
				return 0, err
			}
			switch {
			case ranged:
				if to, err = f.number(last); err != nil {
					return 0, err
				}
			case !stepped:
				to = from
			}
			if to < from {
				return 0, fmt.Errorf("%s: %q runs backwards", f.name, span)
			}
		} else if f.max == 7 {
			to = 6
		}
		for n := from; n <= to; n += every {
			set |= 1 << n
		}
	}
	return set, nil
}

func (f *field) number(text string) (int, error) {
	for i, w := range f.words {
		if strings.EqualFold(text, w) {
			return f.min + i, nil
		}
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < f.min || n > f.max {
		return 0, fmt.Errorf("%s: %q is not between %d and %d", f.name, text, f.min, f.max)
	}
	return n, nil
}

func has(set uint64, n int) bool { return set&(1<<n) != 0 }

func (s *Schedule) onDay(t time.Time) bool {
	day, week := has(s.day, t.Day()), has(s.weekday, int(t.Weekday()))
	if s.eitherDay {
		return day || week
	}
	return day && week
}

// Next returns the first minute after a time at which the schedule is due, in UTC; zero when there
// is none within thirty years. A time of day that a change of clocks leaves out is left out; one
// that it repeats counts once, unless the schedule is due in every hour.
func (s *Schedule) Next(after time.Time) time.Time {
	before := after.In(s.zone)
	t := before.Truncate(time.Minute).Add(time.Minute)
	limit := before.AddDate(30, 0, 0)
	for t.Before(limit) {
		switch {
		case !has(s.month, int(t.Month())):
			t = forward(t, time.Date(t.Year(), t.Month()+1, 1, 0, 0, 0, 0, s.zone))
		case !s.onDay(t):
			t = forward(t, time.Date(t.Year(), t.Month(), t.Day()+1, 0, 0, 0, 0, s.zone))
		case !has(s.hour, t.Hour()):
			t = t.Add(time.Hour - time.Duration(t.Minute())*time.Minute)
		case !has(s.minute, t.Minute()) || !s.everyHour && repeated(t):
			t = t.Add(time.Minute)
		default:
			return t.UTC()
		}
	}
	return time.Time{}
}

// forward is a later time, or else the next hour: midnight may not exist on a day that clocks change.
func forward(t, to time.Time) time.Time {
	if to.After(t) {
		return to
	}
	return t.Add(time.Hour)
}

// repeated reports whether clocks showed the same time an hour before.
func repeated(t time.Time) bool {
	earlier := t.Add(-time.Hour)
	return earlier.Hour() == t.Hour() && earlier.Minute() == t.Minute()
}

// Latest returns the last time the schedule was due after one time and not after another; zero when
// it was not.
func (s *Schedule) Latest(after, until time.Time) time.Time {
	var latest time.Time
	for back := time.Hour; ; back *= 8 { // near the end first: there may be very many
		from := until.Add(-back)
		if from.Before(after) {
			from = after
		}
		for t := s.Next(from); !t.IsZero() && !t.After(until); t = s.Next(t) {
			latest = t
		}
		if !latest.IsZero() || from.Equal(after) {
			return latest
		}
	}
}
