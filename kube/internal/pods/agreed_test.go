package pods

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestMerged(t *testing.T) {
	is := func(pairs ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	for name, c := range map[string]struct{ last, here, there, want map[string]string }{
		"nothing":         {nil, nil, nil, is()},
		"first":           {nil, is("zone", "a"), is("disk", "ssd"), is("zone", "a", "disk", "ssd")},
		"set there":       {is("zone", "a"), is("zone", "a"), is("zone", "b"), is("zone", "b")},
		"set here":        {is("zone", "a"), is("zone", "b"), is("zone", "a"), is("zone", "b")},
		"removed there":   {is("zone", "a"), is("zone", "a"), is(), is()},
		"removed here":    {is("zone", "a"), is(), is("zone", "a"), is()},
		"both the same":   {is("zone", "a"), is("zone", "b"), is("zone", "b"), is("zone", "b")},
		"both otherwise":  {is("zone", "a"), is("zone", "b"), is("zone", "c"), is("zone", "c")},
		"different keys":  {is(), is("x", "1"), is("y", "2"), is("x", "1", "y", "2")},
		"empty is a word": {is(), is(), is("gpu", ""), is("gpu", "")},
	} {
		if got := merged(c.last, c.here, c.there); !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	// What was merged stays as it is.
	for range 1000 {
		random := func() map[string]string {
			m := map[string]string{}
			for range rand.IntN(4) {
				m[string(rune('a'+rand.IntN(4)))] = string(rune('0' + rand.IntN(3)))
			}
			return m
		}
		both := merged(random(), random(), random())
		if again := merged(both, both, both); !maps.Equal(again, both) {
			t.Fatalf("%v became %v", both, again)
		}
	}
}

func TestTaintsArePackedByTheirKeys(t *testing.T) {
	list := []corev1.Taint{
		{Key: "b", Value: "1", Effect: corev1.TaintEffectNoSchedule}, {Key: "a", Effect: corev1.TaintEffectPreferNoSchedule},
		{Key: "b", Value: "2", Effect: corev1.TaintEffectNoExecute}, {Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoSchedule},
	}
	want := []corev1.Taint{list[1], list[0], list[2]}
	if got := taintsOf(byKey(list)); !slices.Equal(got, want) {
		t.Errorf("they are %v, want %v", got, want)
	}
}

// A taint that is set and taken away again before the core is seen to have it stays away.
func TestWhatTheCoreWasToldIsWaitedFor(t *testing.T) {
	b := &bridge{toldNodes: map[string]*told{}}
	with, without := &agreed{Taints: map[string]string{"key": ":NoExecute"}}, &agreed{}
	if told, ok := b.lastTold("n", without, without); told != nil || !ok {
		t.Fatalf("nothing was told, and that is %v, %t", told, ok)
	}
	b.noteTold("n", nil, with.Taints)
	if _, ok := b.lastTold("n", without, without); ok {
		t.Error("the core is believed while it is seen as it was before")
	}
	if told, ok := b.lastTold("n", without, with); !ok || told == nil || told.Taints["key"] == "" {
		t.Errorf("the core is seen to have the taint, and told is %v, %t", told, ok)
	}
	if merged := merged(b.toldNodes["n"].Taints, with.Taints, without.Taints); len(merged) != 0 {
		t.Errorf("a taint that was taken away from the Node is back as %v", merged)
	}
	if told, ok := b.lastTold("n", with, with); !ok || told == nil || b.toldNodes["n"] != nil {
		t.Errorf("once it stands in the Node it is kept as %v, %t", told, ok)
	}
	b.noteTold("n", nil, with.Taints)
	b.toldNodes["n"].until = time.Now()
	if told, ok := b.lastTold("n", without, without); !ok || told == nil || b.toldNodes["n"] != nil {
		t.Errorf("what is never seen is waited for: %v, %t", told, ok)
	}
}
