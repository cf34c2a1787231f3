package autoscale

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

var (
	noon = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC) // a Monday
	cpu  = model.ScaleMetric{Kind: model.ScaleCPU, Target: 50}
	hits = model.ScaleMetric{Kind: model.ScaleRequests, Target: 20}
	jobs = model.ScaleMetric{Kind: model.ScalePrometheus, Target: 10, Server: "http://p", Query: "q"}
)

func TestNext(t *testing.T) {
	quiet := []Wish{{noon.Add(-time.Hour), 1}} // longer ago than any window
	for name, c := range map[string]struct {
		policy   model.Autoscale
		count    int
		readings []Reading
		past     []Wish
		want     int
		says     string
	}{
		"busy":                               {policy: model.Autoscale{Min: 1, Max: 9}, count: 2, readings: []Reading{{Metric: cpu, Total: 180, Of: 2}}, want: 4, says: "cpu is at 90 %"},
		"within a tenth":                     {policy: model.Autoscale{Min: 1, Max: 9}, count: 2, readings: []Reading{{Metric: cpu, Total: 109, Of: 2}}, want: 2},
		"at most twice as many":              {policy: model.Autoscale{Min: 1, Max: 99}, count: 8, readings: []Reading{{Metric: cpu, Total: 8 * 200, Of: 8}}, want: 16},
		"the most":                           {policy: model.Autoscale{Min: 1, Max: 3}, count: 2, readings: []Reading{{Metric: cpu, Total: 200, Of: 2}}, want: 3, says: "3 is the most"},
		"new ones count as idle":             {policy: model.Autoscale{Min: 1, Max: 9}, count: 4, readings: []Reading{{Metric: cpu, Total: 180, Of: 2}}, past: quiet, want: 4},
		"idle, but only just":                {policy: model.Autoscale{Min: 1, Max: 9}, count: 4, readings: []Reading{{Metric: cpu, Total: 4, Of: 4}}, want: 4},
		"idle for long":                      {policy: model.Autoscale{Min: 1, Max: 9}, count: 4, readings: []Reading{{Metric: cpu, Total: 4, Of: 4}}, past: quiet, want: 1, says: "cpu is at 1 %"},
		"new ones count as busy":             {policy: model.Autoscale{Min: 1, Max: 9}, count: 4, readings: []Reading{{Metric: cpu, Total: 4, Of: 2}}, past: quiet, want: 3},
		"more was needed in the window":      {policy: model.Autoscale{Min: 1, Max: 9}, count: 4, readings: []Reading{{Metric: cpu, Total: 4, Of: 4}}, past: []Wish{{noon.Add(-time.Minute), 3}}, want: 3},
		"a short window":                     {policy: model.Autoscale{Min: 1, Max: 9, DownAfter: 30 * time.Second}, count: 4, readings: []Reading{{Metric: cpu, Total: 4, Of: 4}}, past: []Wish{{noon.Add(-time.Minute), 3}}, want: 1},
		"the largest counts":                 {policy: model.Autoscale{Min: 1, Max: 9}, count: 2, readings: []Reading{{Metric: cpu, Total: 2, Of: 2}, {Metric: jobs, Total: 55}}, want: 6, says: "the query yields 55"},
		"not less than what is not known":    {policy: model.Autoscale{Min: 1, Max: 9}, count: 4, readings: []Reading{{Metric: cpu, Total: 4, Of: 4}, {Metric: jobs, Err: errors.New("refused")}}, past: quiet, want: 4},
		"more, whatever is not known":        {policy: model.Autoscale{Min: 1, Max: 9}, count: 4, readings: []Reading{{Metric: cpu, Err: errors.New("refused")}, {Metric: jobs, Total: 75}}, past: quiet, want: 8},
		"nothing is known":                   {policy: model.Autoscale{Min: 1, Max: 9}, count: 4, readings: []Reading{{Metric: cpu, Of: 0}}, past: quiet, want: 4},
		"requests":                           {policy: model.Autoscale{Min: 1, Max: 9}, count: 2, readings: []Reading{{Metric: hits, Total: 75}}, want: 4, says: "75 requests come a second, and an instance is for 20"},
		"requests that nobody answers":       {policy: model.Autoscale{Min: 0, Max: 9}, count: 0, readings: []Reading{{Metric: hits, Total: 0.2}}, want: 1, says: "0.2 requests"},
		"no requests":                        {policy: model.Autoscale{Min: 0, Max: 9}, count: 2, readings: []Reading{{Metric: hits}}, past: quiet, want: 0},
		"to zero":                            {policy: model.Autoscale{Min: 0, Max: 9}, count: 2, readings: []Reading{{Metric: jobs, Total: 0}}, past: quiet, want: 0},
		"from zero":                          {policy: model.Autoscale{Min: 0, Max: 9}, count: 0, readings: []Reading{{Metric: jobs, Total: 1}}, want: 1},
		"turned off by people":               {policy: model.Autoscale{Min: 1, Max: 9}, count: 0, readings: []Reading{{Metric: jobs, Total: 100}}, want: 0},
		"below the least":                    {policy: model.Autoscale{Min: 3, Max: 9}, count: 1, want: 3, says: "3 is the least"},
		"hours":                              {policy: model.Autoscale{Min: 1, Max: 9, Hours: []model.ScaleHours{{At: "0 8 * * 1-5", For: 10 * time.Hour, Min: 5, Max: 20}}}, count: 2, want: 5, says: "5 is the least until 18:00 UTC"},
		"hours elsewhere":                    {policy: model.Autoscale{Min: 1, Max: 9, Hours: []model.ScaleHours{{At: "0 8 * * 1-5", TimeZone: "Asia/Tokyo", For: 10 * time.Hour, Min: 5, Max: 20}}}, count: 2, want: 2},
		"hours of another day":               {policy: model.Autoscale{Min: 1, Max: 9, Hours: []model.ScaleHours{{At: "0 8 * * 2", For: 10 * time.Hour, Min: 5, Max: 20}}}, count: 2, want: 2},
		"of two hours at once the larger":    {policy: model.Autoscale{Min: 1, Max: 9, Hours: []model.ScaleHours{{At: "0 8 * * *", For: 10 * time.Hour, Min: 5, Max: 20}, {At: "0 11 * * *", For: 2 * time.Hour, Min: 4, Max: 30}}}, count: 2, want: 5},
		"hours that turn it off and on":      {policy: model.Autoscale{Min: 2, Max: 9, Hours: []model.ScaleHours{{At: "0 22 * * *", For: 8 * time.Hour, Min: 0, Max: 1}}}, count: 0, want: 2},
		"more than the most, once set lower": {policy: model.Autoscale{Min: 1, Max: 3}, count: 7, want: 3, says: "3 is the most"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, r := range c.readings {
				c.policy.Metrics = append(c.policy.Metrics, r.Metric)
			}
			out := Next(Input{Policy: &c.policy, Count: c.count, Readings: c.readings, Past: c.past, Now: noon})
			if out.Count != c.want || !strings.Contains(out.Reason, c.says) || (out.Reason != "") != (out.Count != c.count) {
				t.Errorf("got %d, %q; want %d, %q", out.Count, out.Reason, c.want, c.says)
			}
		})
	}
}

// TestALoadIsFollowed lets a service run through a day of load: it has never fewer instances than the
// load needs for longer than a few looks, is bounded, and does not swing.
func TestALoadIsFollowed(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		policy := &model.Autoscale{Min: 1, Max: 40, Metrics: []model.ScaleMetric{cpu}}
		count, load, short, changes := 1, 20.0, 0, 0
		var past []Wish
		now := noon
		for range 2000 {
			now = now.Add(5 * time.Second)
			if r.IntN(100) == 0 {
				load = r.Float64() * 1500 // percent of a processor, in all
			}
			noisy := load * (0.95 + 0.1*r.Float64())
			out := Next(Input{Policy: policy, Count: count, Readings: []Reading{{Metric: cpu, Total: noisy, Of: count}}, Past: past, Now: now})
			if out.Count < 1 || out.Count > 40 || out.Count > max(2*count, count+atOnce) {
				t.Fatalf("seed %d: from %d to %d", seed, count, out.Count)
			}
			if out.Count != count {
				changes++
			}
			count, past = out.Count, out.Past
			if float64(count)*cpu.Target*(1+tolerance) < load*0.95 {
				short++
			} else {
				short = 0
			}
			if short > 5 {
				t.Fatalf("seed %d: %d instances for a load of %.0f, for %d looks", seed, count, load, short)
			}
			if len(past) > 70 {
				t.Fatalf("seed %d: %d wishes are remembered", seed, len(past))
			}
		}
		if changes > 150 { // some twenty changes of load
			t.Errorf("seed %d: the count changed %d times", seed, changes)
		}
	}
}

func TestCheck(t *testing.T) {
	for want, a := range map[string]model.Autoscale{
		"":                              {Min: 1, Max: 3, Metrics: []model.ScaleMetric{cpu, jobs}, DownAfter: time.Minute},
		"min 4 and max 3":               {Min: 4, Max: 3},
		"min 0 and max 0":               {},
		"cpu: 0 is not a percentage":    {Min: 1, Max: 3, Metrics: []model.ScaleMetric{{Kind: model.ScaleCPU}}},
		"target 0 is not above 0":       {Min: 1, Max: 3, Metrics: []model.ScaleMetric{{Kind: model.ScalePrometheus}}},
		"server and query are needed":   {Min: 1, Max: 3, Metrics: []model.ScaleMetric{{Kind: model.ScalePrometheus, Target: 1, Query: "q"}}},
		"requests: 0 a second":          {Min: 1, Max: 3, Metrics: []model.ScaleMetric{{Kind: model.ScaleRequests}}},
		"none of cpu, memory, requests": {Min: 1, Max: 3, Metrics: []model.ScaleMetric{{Kind: "luck", Target: 1}}},
		"cpu and memory say nothing of": {Min: 0, Max: 3, Metrics: []model.ScaleMetric{cpu}},
		"down_after is negative":        {Min: 1, Max: 3, DownAfter: -1},
		"is not a schedule":             {Min: 1, Max: 3, Hours: []model.ScaleHours{{At: "now"}}},
		"not between a minute and":      {Min: 1, Max: 3, Hours: []model.ScaleHours{{At: "@daily"}}},
		"hours: min 2 and max 1":        {Min: 1, Max: 3, Hours: []model.ScaleHours{{At: "@daily", For: time.Hour, Min: 2, Max: 1}}},
	} {
		if got := Check(&a); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%+v: %q, want %q", a, got, want)
		}
	}
}
