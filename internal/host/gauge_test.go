package host

import (
	"slices"
	"testing"
	"time"
)

func TestAHostIsShortOfWhatItLacksForAWhile(t *testing.T) {
	const gib = 1 << 30
	plenty := Reading{MemoryBytes: 8 * gib, MemoryLeftBytes: 4 * gib, DiskBytes: 100 * gib, DiskLeftBytes: 50 * gib, Inodes: 1e6, InodesLeft: 5e5, Pids: 30000, PidsLeft: 20000}
	little := plenty
	little.MemoryLeftBytes, little.PidsLeft = 100<<20, 100
	some := plenty
	some.MemoryLeftBytes, some.PidsLeft = 280<<20, 1700
	full := plenty
	full.InodesLeft = 10
	var g Gauge
	now := time.Unix(0, 0)
	for n, step := range []struct {
		r    Reading
		wait time.Duration
		want []string
	}{
		{plenty, 0, nil},
		{little, time.Second, nil},
		{plenty, time.Second, nil},
		{little, time.Second, nil},
		{little, 3 * time.Second, nil},
		{little, time.Second, []string{Memory, Pids}},
		{some, time.Hour, []string{Memory, Pids}},
		{plenty, time.Second, []string{Memory, Pids}},
		{some, 29 * time.Second, []string{Memory, Pids}},
		{plenty, time.Second, []string{Memory, Pids}},
		{plenty, 29 * time.Second, []string{Memory, Pids}},
		{plenty, time.Second, nil},
		{full, time.Second, nil},
		{full, 5 * time.Second, []string{Disk}},
		{Reading{}, time.Hour, []string{Disk}}, // nothing could be read: it stays so for a while
		{Reading{}, time.Hour, nil},
	} {
		now = now.Add(step.wait)
		if got := g.Update(&step.r, now); !slices.Equal(got, step.want) {
			t.Errorf("step %d: short of %v, want %v", n, got, step.want)
		}
		if lacks := step.r.PidsLeft == little.PidsLeft; g.Acute(Pids) != lacks || g.Acute(Memory) != lacks {
			t.Errorf("step %d: it lacks memory now: %v", n, g.Acute(Memory))
		}
	}
}

func TestThisHostIsRead(t *testing.T) {
	r, err := Look(t.TempDir(), "/tutti-none")
	if err != nil {
		t.Fatal(err)
	}
	if r.MemoryBytes <= 0 || r.MemoryLeftBytes > r.MemoryBytes || r.DiskBytes <= 0 || r.DiskLeftBytes > r.DiskBytes || r.Pids <= 0 || r.PidsLeft > r.Pids {
		t.Errorf("this host is read as %+v", r)
	}
	for _, f := range Features(nil) {
		if f.Name == "" || f.Says == "" {
			t.Errorf("%+v does not say what it is", f)
		}
	}
}
