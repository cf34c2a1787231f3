package placing

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/tutti-run/tutti/bench/internal/report"
)

// Both sides place everything of a small shape of every kind.
func TestBothSidesPlaceEverything(t *testing.T) {
	for _, k := range []kind{basic, spread, constrained, apart, mixed, full} {
		s := shape{k, 48, 3, 48}
		if k == full {
			s.instances = 480
		}
		if _, err := place(s); err != nil {
			t.Errorf("%s: %v", s, err)
		}
		if k == full { // what is refused is left in the loop's store, and it has no end
			continue
		}
		if _, err := loop(t.Context(), s); err != nil {
			t.Errorf("loop over %s: %v", s, err)
		}
		p, err := swarmKit(context.Background(), s, time.Second)
		if err != nil || p.instances != s.instances {
			t.Errorf("SwarmKit placed %d of %s: %v", p.instances, s, err)
		}
	}
}

// Clusters in use take further instances.
func TestRunning(t *testing.T) {
	var rows bytes.Buffer
	r := &run{sheet: report.New(&rows, io.Discard)}
	if err := errors.Join(r.daemon(48), r.churn(200)); err != nil {
		t.Error(err)
	}
	if n := bytes.Count(rows.Bytes(), []byte("\n")); n != 3 {
		t.Errorf("there are %d rows:\n%s", n, rows.Bytes())
	}
}

// Tutti alone knows these; they come out as they should.
func TestShapesWithoutAPeer(t *testing.T) {
	for _, k := range []kind{even, near, gang, preempt} {
		if _, err := place(shapeOf(k, 48)); err != nil {
			t.Errorf("%s: %v", k, err)
		}
	}
}
