package trade

import "testing"

func TestCart(t *testing.T) {
	cart := Cart{Lines: []Line{{"harp", 1}, {"violin", 3}}}
	if cart.Count() != 4 || cart.Quantity("violin") != 3 || cart.Quantity("drum") != 0 {
		t.Errorf("count %d, violins %d, drums %d", cart.Count(), cart.Quantity("violin"), cart.Quantity("drum"))
	}
}

func TestIDs(t *testing.T) {
	if a, b := NewID(), NewID(); a == b || !IsID(a) || !IsID(b) {
		t.Errorf("%q, %q", a, b)
	}
	for _, text := range []string{"", "x", NewID() + "A", "../../../../../../../../..", "abcdefghijklmnopqrstuvwxyz"} {
		if IsID(text) {
			t.Errorf("%q passes for an identity", text)
		}
	}
}

func TestMoney(t *testing.T) {
	for cents, want := range map[int]string{5: "€ 0.05", 129900: "€ 1299.00"} {
		if got := Money(cents); got != want {
			t.Errorf("Money(%d) = %q, want %q", cents, got, want)
		}
	}
}
