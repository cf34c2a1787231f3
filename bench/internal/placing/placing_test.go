package placing

import (
	"context"
	"testing"
	"time"
)

// Both sides place everything of a small shape of every kind.
func TestBothSidesPlaceEverything(t *testing.T) {
	for _, k := range []kind{basic, spread, constrained, apart} {
		s := shape{k, 48, 3, 48}
		if _, err := place(s); err != nil {
			t.Errorf("%s: %v", s, err)
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
