package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/tutti-run/tutti/internal/model"
)

// bytesText is a size for people: "1.4 GiB".
func bytesText(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	v, u := float64(n), 0
	for v >= 1023.95 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	if u == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[u])
}

// cpusText is a number of cores for people: "0.5", "8".
func cpusText(nano int64) string {
	return strconv.FormatFloat(float64(nano/1e7)/100, 'f', -1, 64)
}

// ageText is a duration in its one most telling unit: "45s", "12m", "3h", "9d".
func ageText(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

func ageOf(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return ageText(time.Since(t))
}

// tookText is how long something took: "0.4 s", "72 s".
func tookText(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%.0f s", d.Seconds())
}

// counted is a number and its noun: "1 instance", "2 instances".
func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// orDash makes an empty cell visible.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// portText is a published port as people write it: "8080->80/tcp".
func portText(p model.ServicePort) string {
	s := fmt.Sprintf("%d->%d/%s", p.Published, p.Target, p.Protocol)
	if p.HostIP != "" {
		s = p.HostIP + ":" + s
	}
	return s
}

// shortImage drops what everybody adds in thought.
func shortImage(name string) string {
	name = strings.TrimPrefix(name, "docker.io/")
	return strings.TrimPrefix(name, "library/")
}

// parseWhen reads a point in time: how long ago ("10m", "2h30m", "3d"), a date with or without a
// time, or seconds since 1970.
func parseWhen(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseFloat(days, 64); err == nil && n >= 0 {
			return now.Add(-time.Duration(n * 24 * float64(time.Hour))), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d.Abs()), nil
	}
	if sec, err := strconv.ParseFloat(s, 64); err == nil && sec > 0 {
		return time.UnixMilli(int64(sec * 1000)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", time.DateTime, "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef("%q is not a time: give one such as 10m, 3d, 2026-01-31 or 2026-01-31T15:04:05Z", s)
}

// isTerminal reports whether people look at w.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// painter colours text, or does not.
type painter struct{ on bool }

// paintFor colours where people look, unless they asked not to (https://no-color.org).
func paintFor(w io.Writer) painter {
	return painter{on: isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

func (p painter) code(code, s string) string {
	if !p.on || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p painter) good(s string) string  { return p.code("32", s) }
func (p painter) bad(s string) string   { return p.code("31", s) }
func (p painter) busy(s string) string  { return p.code("33", s) }
func (p painter) faint(s string) string { return p.code("2", s) }
func (p painter) bold(s string) string  { return p.code("1", s) }

// nth is one of a few colours that tell sources apart.
func (p painter) nth(n int, s string) string {
	colours := []string{"36", "33", "32", "35", "34", "96", "93", "92", "95", "94"}
	return p.code(colours[n%len(colours)], s)
}
