package placing

import (
	"context"
	"testing"
	"time"
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

// Tutti alone knows these; they come out as they should.
func TestShapesWithoutAPeer(t *testing.T) {
	for _, k := range []kind{even, near, gang, preempt} {
		if _, err := place(shapeOf(k, 48)); err != nil {
			t.Errorf("%s: %v", k, err)
		}
	}
}
