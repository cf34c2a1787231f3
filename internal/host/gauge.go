package host

import (
	"slices"
	"time"
)

// What a host can be short of.
const (
	Memory = "memory"
	Disk   = "disk"
	Pids   = "pids"
)

const (
	// shortAfter is how long a host has too little of something before it is short of it, enoughAfter for how long it
	// has had clearly more before it is not: what comes and goes is no reason to move anything.
	shortAfter  = 4 * time.Second
	enoughAfter = 30 * time.Second
)

// Gauge says what a host is short of, from what is read of it now and then.
type Gauge struct {
	short map[string]bool
	since map[string]time.Time // when what was read began to say something else
	now   map[string]bool      // what the latest reading had too little of
}

// Acute reports whether the latest reading itself had too little of something. A host is short of it for a while longer,
// in which it takes no new work and nothing more has to end.
func (g *Gauge) Acute(what string) bool { return g.now[what] }

// Update takes in a reading and returns what the host is short of, in order.
func (g *Gauge) Update(r *Reading, now time.Time) []string {
	if g.short == nil {
		g.short, g.since, g.now = map[string]bool{}, map[string]time.Time{}, map[string]bool{}
	}
	for what, level := range map[string]level{
		Memory: levelOf(r.MemoryLeftBytes, r.MemoryBytes/33, 32<<20, 512<<20),
		Disk:   max(levelOf(r.DiskLeftBytes, r.DiskBytes/33, 64<<20, 2<<30), levelOf(r.InodesLeft, r.Inodes/50, 0, 100_000)),
		Pids:   levelOf(r.PidsLeft, r.Pids/20, 0, 2000),
	} {
		g.now[what] = level == short
		if g.short[what] && level != enough || !g.short[what] && level != short {
			delete(g.since, what)
			continue
		}
		since, ok := g.since[what]
		if !ok {
			g.since[what], since = now, now
		}
		patience := shortAfter
		if g.short[what] {
			patience = enoughAfter
		}
		if now.Sub(since) >= patience {
			g.short[what] = !g.short[what]
			delete(g.since, what)
		}
	}
	var out []string
	for what, is := range g.short {
		if is {
			out = append(out, what)
		}
	}
	slices.Sort(out)
	return out
}

// level is how much is left of something.
type level int

const (
	enough level = iota
	between
	short
)

// levelOf judges what is left by how much there should be: a part of all, within bounds. Half as much again is enough.
// Nothing is said of what could not be read.
func levelOf(left, part, least, most int64) level {
	if part == 0 {
		return enough
	}
	wanted := min(max(part, least), most)
	switch {
	case left < wanted:
		return short
	case left < wanted*3/2:
		return between
	}
	return enough
}
