package dispatch

import (
	"math"
	"time"
)

// LongestLease is how long a lease is at most: for so long a node may run what needs one after it gave the sign of
// life that was confirmed. It is how long it is unless a node's status says that it is shorter.
const LongestLease = 5 * time.Second

// ShortLease is how long it is where signs of life are frequent: a little longer than the silence after which a node is
// taken for dead, so that what runs under one is given up hardly later than all else. Who misses it is suspended, and
// loses nothing but that time.
const ShortLease = 1400 * time.Millisecond

// fenceMargin is added to a lease before what ran under it is started elsewhere: for clocks that do
// not run alike, and for the moment that suspending takes on a busy host.
const fenceMargin = 400 * time.Millisecond

// Pace is how often nodes give signs of life, and how long they may be silent.
type Pace struct {
	Beat time.Duration // between two signs of life
	Dead time.Duration // silence after which a node's work is placed elsewhere
	// Lease is how long a node may run what needs a lease after a sign of life that was confirmed.
	Lease time.Duration
}

// PaceFor is the pace of a cluster with so many nodes. In a large one signs of life are rarer, so that
// they cost servers little: some thousands a second at ten thousand nodes. The only node of a cluster
// has nobody who would take over: it is to rest. Even so its signs of life are closer together than the
// silence that is allowed once another node joins.
func PaceFor(nodes int) Pace {
	const few = 100
	if nodes == 1 {
		return Pace{Beat: 750 * time.Millisecond, Dead: 2800 * time.Millisecond, Lease: LongestLease}
	}
	p := Pace{Beat: 200 * time.Millisecond, Dead: 1200 * time.Millisecond, Lease: ShortLease}
	if nodes <= few {
		return p
	}
	p.Lease = LongestLease
	p.Dead += time.Duration(1.5 * math.Log10(float64(nodes)/few) * float64(time.Second)).Round(10 * time.Millisecond)
	p.Beat = (p.Dead / 4).Round(10 * time.Millisecond)
	return p
}
