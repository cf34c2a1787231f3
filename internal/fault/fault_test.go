package fault

import (
	"errors"
	"fmt"
	"testing"
)

func TestKindSurvivesWrapping(t *testing.T) {
	base := New(NotFound, "workload %q does not exist", "web")
	wrapped := fmt.Errorf("scale: %w", base)
	if KindOf(wrapped) != NotFound || !Is(wrapped, NotFound) {
		t.Fatalf("kind of %v is %v, want %v", wrapped, KindOf(wrapped), NotFound)
	}
	if got, want := wrapped.Error(), `scale: workload "web" does not exist`; got != want {
		t.Fatalf("text is %q, want %q", got, want)
	}
	reclassified := New(Unavailable, "ask leader: %w", wrapped)
	if KindOf(reclassified) != Unavailable {
		t.Fatalf("the outermost kind must win, got %v", KindOf(reclassified))
	}
	if !errors.Is(reclassified, base) {
		t.Fatal("wrapping must keep the chain")
	}
	if KindOf(errors.New("plain")) != Internal || Is(nil, Internal) {
		t.Fatal("an unclassified error is internal, and nil carries no kind")
	}
}

func TestKindNamesRoundTrip(t *testing.T) {
	for k := Internal; k <= TooOld; k++ {
		if ParseKind(k.String()) != k {
			t.Errorf("%v does not round-trip", k)
		}
	}
}
