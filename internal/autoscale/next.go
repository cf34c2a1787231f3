package autoscale

import (
	"fmt"
	"math"
	"time"

	"github.com/tutti-run/tutti/internal/cron"
	"github.com/tutti-run/tutti/internal/model"
)

const (
	// tolerance is how far a reading may be from its target, in shares of it, before anything changes.
	tolerance = 0.1
	// atOnce bounds a step up: to twice the count, or by so many where that is more.
	atOnce = 4
	// defaultDownAfter is the window in which less has to be enough.
	defaultDownAfter = 5 * time.Minute
)

// Reading is what a metric measured.
type Reading struct {
	Metric model.ScaleMetric
	// Total is the sum over instances in percent of what each may use, the requests a second, or the
	// value of the query.
	Total float64
	// Of is how many instances Total is of, for cpu and memory.
	Of  int
	Err error // why it is not known
}

// Wish is a count that the readings asked for at a time.
type Wish struct {
	At    time.Time
	Count int
}

// Input is all that a decision rests on. Past is that of the decision before, empty for the first.
type Input struct {
	Policy   *model.Autoscale
	Count    int
	Readings []Reading
	Past     []Wish
	Now      time.Time
}

// Output is a decision. Reason says why Count is another than before, "" when it is not.
type Output struct {
	Count  int
	Reason string
	Past   []Wish
}

// Next decides on a count.
func Next(in Input) Output {
	lowest, highest, when := Bounds(in.Policy, in.Now)
	out := Output{Count: in.Count, Past: in.Past}
	if in.Count == 0 && lowest > 0 && len(in.Policy.Hours) == 0 {
		return out // people turned it off
	}
	wish, reason, unknown := in.Count, "", false
	if len(in.Policy.Metrics) > 0 {
		wish, reason, unknown = in.wish()
	}
	if len(in.Past) == 0 { // nothing is known of the time before
		out.Past = []Wish{{in.Now, in.Count}}
	}
	window := in.Policy.DownAfter
	if window == 0 {
		window = defaultDownAfter
	}
	kept := make([]Wish, 0, len(out.Past)+1)
	for _, w := range out.Past {
		if in.Now.Sub(w.At) < window {
			kept = append(kept, w)
		}
	}
	out.Past = append(kept, Wish{in.Now, wish})
	count := wish
	if wish < in.Count {
		for _, w := range out.Past {
			count = max(count, min(w.Count, in.Count))
		}
		if unknown {
			count = in.Count
		}
	}
	count = min(count, max(2*in.Count, in.Count+atOnce))
	switch bounded := min(max(count, lowest), highest); {
	case bounded > count:
		count, reason = bounded, fmt.Sprintf("%d is the least%s", lowest, when)
	case bounded < count:
		count = bounded
		if reason != "" {
			reason += ", and "
		}
		reason += fmt.Sprintf("%d is the most%s", highest, when)
	}
	if count != in.Count {
		out.Count, out.Reason = count, reason
	}
	return out
}

// wish is the count that the readings ask for, with the one that decides in words. unknown is true when
// one of them could ask for more, if it were known.
func (in *Input) wish() (count int, reason string, unknown bool) {
	known := false
	for _, r := range in.Readings {
		if r.Err != nil {
			unknown = true
			continue
		}
		n, words := in.asked(&r)
		if !known || n > count {
			known, count, reason = true, n, words
		}
	}
	if !known {
		return in.Count, "", true
	}
	return count, reason, unknown
}

// asked is the count that a reading asks for. Instances that are not measured, as they have just
// started, count as idle where that keeps others from being added, and as busy where it keeps them.
func (in *Input) asked(r *Reading) (int, string) {
	target := r.Metric.Target
	if kind := r.Metric.Kind; kind == model.ScalePrometheus || kind == model.ScaleRequests {
		words := fmt.Sprintf("the query yields %.4g, and an instance is for %.4g", r.Total, target)
		if kind == model.ScaleRequests {
			words = fmt.Sprintf("%.4g requests come a second, and an instance is for %.4g", r.Total, target)
		}
		if in.Count > 0 && math.Abs(r.Total/(target*float64(in.Count))-1) <= tolerance {
			return in.Count, words
		}
		return ceil(r.Total / target), words
	}
	if r.Of == 0 {
		return in.Count, ""
	}
	mean := r.Total / float64(r.Of)
	words := fmt.Sprintf("%s is at %.0f %% in the mean, and %.0f %% is wanted", r.Metric.Kind, mean, target)
	missing := max(in.Count-r.Of, 0)
	switch {
	case math.Abs(mean/target-1) <= tolerance:
		return in.Count, words
	case mean > target:
		return max(ceil(r.Total/target), in.Count), words
	}
	return min(ceil(r.Total/target)+missing, in.Count), words
}

func ceil(x float64) int {
	if x > 1<<20 {
		return 1 << 20
	}
	return max(int(math.Ceil(x-1e-9)), 0)
}

// Bounds are those that hold at a time, with words for when they are not the ordinary ones.
func Bounds(a *model.Autoscale, now time.Time) (lowest, highest int, when string) {
	lowest, highest = a.Min, a.Max
	first := true
	for _, h := range a.Hours {
		s, err := cron.Parse(h.At, h.TimeZone)
		if err != nil {
			continue // it is checked where it comes in
		}
		began := lastBegin(s, now, h.For)
		if began.IsZero() {
			continue
		}
		if first {
			lowest, highest, first = h.Min, h.Max, false
		} else {
			lowest, highest = max(lowest, h.Min), max(highest, h.Max)
		}
		when = " until " + began.Add(h.For).UTC().Format("15:04 MST")
	}
	return lowest, highest, when
}

// lastBegin is the latest time of a schedule that is not after now, within a span; zero: there is none.
func lastBegin(s *cron.Schedule, now time.Time, span time.Duration) (last time.Time) {
	for n := s.Next(now.Add(-span)); !n.IsZero() && !n.After(now); n = s.Next(n) {
		last = n
	}
	return last
}

// Basis is what a task may use: what it reserves, or its limit; 0 where it has neither.
func Basis(reserved, limit int64) float64 {
	if reserved > 0 {
		return float64(reserved)
	}
	return float64(limit)
}

// Measurable reports whether cpu or memory of a service's tasks can be told in percent of something.
func Measurable(t *model.Template, kind model.ScaleMetricKind) bool {
	for i := range t.Tasks {
		task := &t.Tasks[i]
		if kind == model.ScaleCPU && Basis(task.Reserve.NanoCPUs, task.Limit.NanoCPUs) > 0 ||
			kind == model.ScaleMemory && Basis(task.Reserve.MemoryBytes, task.Limit.MemoryBytes) > 0 {
			return true
		}
	}
	return false
}

// Check says what is wrong with a policy, "" when nothing is.
func Check(a *model.Autoscale) string {
	bounds := func(lowest, highest int) string {
		if lowest < 0 || highest < 1 || lowest > highest {
			return fmt.Sprintf("min %d and max %d: 0 <= min <= max and max >= 1 are accepted", lowest, highest)
		}
		return ""
	}
	if why := bounds(a.Min, a.Max); why != "" {
		return why
	}
	asksWithout := len(a.Metrics) == 0 // something is known of a service without instances
	for _, m := range a.Metrics {
		switch m.Kind {
		case model.ScaleCPU, model.ScaleMemory:
			if m.Target <= 0 || m.Target > 1000 {
				return fmt.Sprintf("%s: %g is not a percentage from 1 to 1000", m.Kind, m.Target)
			}
		case model.ScaleRequests:
			asksWithout = true // the ingress counts those that nobody answers
			if m.Target <= 0 {
				return fmt.Sprintf("requests: %g a second is not above 0", m.Target)
			}
		case model.ScalePrometheus:
			asksWithout = true
			switch {
			case m.Target <= 0:
				return fmt.Sprintf("prometheus: target %g is not above 0", m.Target)
			case m.Server == "" || m.Query == "":
				return "prometheus: server and query are needed"
			}
		default:
			return fmt.Sprintf("metric %q is none of cpu, memory, requests and prometheus", m.Kind)
		}
	}
	if a.Min == 0 && !asksWithout {
		return "min 0: cpu and memory say nothing of a service without instances; 1 is accepted, or requests or a prometheus query beside them"
	}
	if a.DownAfter < 0 {
		return "down_after is negative"
	}
	for _, h := range a.Hours {
		if _, err := cron.Parse(h.At, h.TimeZone); err != nil {
			return "hours: " + err.Error()
		}
		if h.For < time.Minute || h.For > 31*24*time.Hour {
			return fmt.Sprintf("hours: for %s is not between a minute and 31 days", h.For)
		}
		if why := bounds(h.Min, h.Max); why != "" {
			return "hours: " + why
		}
	}
	return ""
}
