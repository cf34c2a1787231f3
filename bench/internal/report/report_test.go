package report

import (
	"strings"
	"testing"
	"time"
)

func TestRatioIsAboveOneWhereTuttiIsBetter(t *testing.T) {
	for _, c := range []struct {
		unit        string
		value, peer float64
		want        string
	}{
		{"placements/s", 200, 50, `"ratio":4,`},
		{"ms", 20, 50, `"ratio":2.5,`},
		{"MB", 500, 50, `"ratio":0.1,`},
		{"writes/s", 123456.789, 50, `"value":123500,`},
		{"s", 1.234567, 50, `"value":1.235,`},
	} {
		var out strings.Builder
		if err := New(&out, nil).Add(Row{Name: "x", Unit: c.unit, Value: c.value, PeerValue: c.peer}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), c.want) {
			t.Errorf("%g against %g %s: %s lacks %s", c.value, c.peer, c.unit, out.String(), c.want)
		}
	}
	if err := New(&strings.Builder{}, nil).Add(Row{Name: "x", Unit: "ms"}); err == nil {
		t.Error("nothing measured was reported as something")
	}
}

func TestPercentile(t *testing.T) {
	d := []time.Duration{4 * time.Millisecond, 1 * time.Millisecond, 3 * time.Millisecond, 2 * time.Millisecond}
	if p50, p99 := Percentile(d, 0.5), Percentile(d, 0.99); p50 != 3 || p99 != 4 {
		t.Errorf("p50 %g, p99 %g, want 3 and 4", p50, p99)
	}
}
