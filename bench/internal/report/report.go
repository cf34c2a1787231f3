// Package report prints what was measured: one JSON object a line for machines on one stream,
// what is going on for people on another.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"time"
)

// Row is one figure beside its peer's, both from the same run.
type Row struct {
	Name  string  `json:"name"` // group, what was done and at which size, joined by "/"
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Peer names the other program with its version, PeerValue is its figure.
	// Without both there is no peer that does the like.
	Peer      string  `json:"peer,omitempty"`
	PeerValue float64 `json:"peer_value,omitempty"`
	// Ratio tells how many times better Tutti is; below 1 it is worse.
	Ratio float64 `json:"ratio,omitempty"`
	// Counted says what was counted (decided, committed, running), with which durability, and
	// where the two sides differ.
	Counted string `json:"counted"`
}

// Sheet collects rows. It is not safe for concurrent use.
type Sheet struct {
	rows     io.Writer
	progress io.Writer
	began    time.Time
}

// New returns a sheet that writes rows and progress where it is told.
func New(rows, progress io.Writer) *Sheet {
	return &Sheet{rows: rows, progress: progress, began: time.Now()}
}

// Add prints a row; the ratio follows from the unit: of rates more is better, of all else less.
func (s *Sheet) Add(r Row) error {
	alone := r.Peer == "" && r.PeerValue == 0
	if alone {
		r.PeerValue = r.Value // nothing to compare with
	}
	better, worse := r.PeerValue, r.Value
	if perSecond(r.Unit) {
		better, worse = r.Value, r.PeerValue
	}
	if worse <= 0 || better <= 0 {
		return fmt.Errorf("%s: %g %s against %g: nothing was measured", r.Name, r.Value, r.Unit, r.PeerValue)
	}
	r.Ratio = round(better / worse)
	r.Value, r.PeerValue = round(r.Value), round(r.PeerValue)
	if alone {
		r.PeerValue, r.Ratio = 0, 0
	}
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode %s: %w", r.Name, err)
	}
	if _, err := fmt.Fprintf(s.rows, "%s\n", line); err != nil {
		return fmt.Errorf("print %s: %w", r.Name, err)
	}
	return nil
}

// alone is a figure that no peer has.
type alone struct {
	Name    string  `json:"name"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"`
	Counted string  `json:"counted"`
}

// AddAlone prints a figure for which there is no peer.
func (s *Sheet) AddAlone(name string, value float64, unit, counted string) error {
	line, err := json.Marshal(alone{name, round(value), unit, counted})
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	if _, err := fmt.Fprintf(s.rows, "%s\n", line); err != nil {
		return fmt.Errorf("print %s: %w", name, err)
	}
	return nil
}

// Say tells people what is being done.
func (s *Sheet) Say(format string, args ...any) {
	fmt.Fprintf(s.progress, "bench %5.1f s: %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// Streams returns where rows and progress go, for a process that measures on behalf of this one.
func (s *Sheet) Streams() (rows, progress io.Writer) { return s.rows, s.progress }

func perSecond(unit string) bool { return len(unit) > 2 && unit[len(unit)-2:] == "/s" }

// round keeps four digits: more were noise.
func round(v float64) float64 {
	if v == 0 {
		return 0
	}
	unit := math.Pow(10, math.Floor(math.Log10(math.Abs(v)))-3)
	if unit >= 1 {
		return math.Round(v/unit) * unit
	}
	scale := math.Round(1 / unit) // powers of ten below one have no exact form, those above have
	return math.Round(v*scale) / scale
}

// Percentile returns the p-th (0 to 1) of durations, in milliseconds; it sorts them.
func Percentile(d []time.Duration, p float64) float64 {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	i := min(int(p*float64(len(d))), len(d)-1)
	return float64(d[i]) / float64(time.Millisecond)
}

// Median returns the middle of figures; it sorts them.
func Median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
