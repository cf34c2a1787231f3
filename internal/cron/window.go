package cron

import (
	"fmt"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

// CheckWindow says what is wrong with a window, "" when nothing is.
func CheckWindow(w *model.Window) string {
	if _, err := Parse(w.At, w.TimeZone); err != nil {
		return err.Error()
	}
	if w.For < time.Minute || w.For > 31*24*time.Hour {
		return fmt.Sprintf("for %s is not between a minute and 31 days", w.For)
	}
	return ""
}

// Open reports whether one of the windows is open, and when the next one opens; without windows it is
// always open. Windows that cannot be read, which are refused where they come in, are never open.
func Open(windows []model.Window, now time.Time) (open bool, next time.Time) {
	for i := range windows {
		s, err := Parse(windows[i].At, windows[i].TimeZone)
		if err != nil {
			continue
		}
		if !s.Latest(now.Add(-windows[i].For), now).IsZero() {
			open = true
		}
		if at := s.Next(now); !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return open || len(windows) == 0, next
}
