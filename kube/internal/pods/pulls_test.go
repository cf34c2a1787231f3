package pods

import (
	"errors"
	"testing"
	"time"
)

func TestImagesThatAreNotHadAreAskedForRarely(t *testing.T) {
	p := pulls{of: map[string]*pull{}}
	now := time.Unix(1000, 0)
	bad, good := []string{"nowhere:1 "}, []string{"here:1 "}
	if wait, because := p.begin(bad, "pod/a/b", now); wait != 0 || because != nil {
		t.Fatalf("the first time: %v %v", wait, because)
	}
	if wait, because := p.begin(bad, "pod/a/b", now); wait == 0 || because != nil {
		t.Fatalf("while another asks: %v %v", wait, because)
	}
	none := errors.New("image nowhere:1 does not exist")
	if waited := p.end(bad, none, none, 10*time.Second, now); len(waited) != 1 || waited[0] != "pod/a/b" {
		t.Fatalf("who waited is %v", waited)
	}
	if wait, because := p.begin(bad, "pod/a/b", now.Add(time.Second)); wait != pullAgainFirst-time.Second || because != none {
		t.Fatalf("soon after it failed: %v %v", wait, because)
	}
	now = now.Add(pullAgainFirst)
	if wait, because := p.begin(bad, "pod/a/b", now); wait != 0 || because != nil {
		t.Fatalf("later: %v %v", wait, because)
	}
	p.end(bad, none, none, 10*time.Second, now)
	if wait, _ := p.begin(bad, "pod/a/b", now); wait != 2*pullAgainFirst {
		t.Fatalf("after it failed again: %v", wait)
	}
	if p.quick(good) {
		t.Fatal("an image that nobody asked for is not known to be had at once")
	}
	p.begin(good, "pod/a/b", now)
	p.end(good, nil, nil, time.Millisecond, now)
	if !p.quick(good) || p.quick(append(bad, good...)) {
		t.Fatal("an image that was had at once is known, and only that")
	}
}
