package tables

import "testing"

// TestSidesHoldTheSame fills each side a little: what is measured has to be right.
func TestSidesHoldTheSame(t *testing.T) {
	for _, s := range sides {
		c, err := measure(s.make, 1000, 2000, 2000)
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
		if c.Insert <= 0 || c.Bytes <= 0 {
			t.Errorf("%s: %+v", s.name, c)
		}
	}
}
