package dispatch

import (
	"math"
	"time"
)

// LeaseFor is how long a node may run what needs a lease after it gave the sign of life that was
// confirmed. It is long enough for a new leader to be elected, and the same in a cluster of any
// size: who waits for its end need not know how large the cluster was when it was granted.
const LeaseFor = 5 * time.Second

// fenceMargin is added to a lease before what ran under it is started elsewhere: for clocks that do
// not run alike, and for the moment that a kill takes on a busy host.
const fenceMargin = 500 * time.Millisecond

// Pace is how often nodes give signs of life, and how long they may be silent.
type Pace struct {
	Beat time.Duration // between two signs of life
	Dead time.Duration // silence after which a node's work is placed elsewhere
}

// PaceFor is the pace of a cluster with so many nodes. In a large one signs of life are rarer, so that
// they cost servers little: some thousands a second at ten thousand nodes. The only node of a cluster
// has nobody who would take over: it is to rest. Even so its signs of life are closer together than the
// silence that is allowed once another node joins.
func PaceFor(nodes int) Pace {
	const few = 100
	if nodes == 1 {
		return Pace{Beat: 750 * time.Millisecond, Dead: 2800 * time.Millisecond}
	}
	p := Pace{Beat: 250 * time.Millisecond, Dead: 1400 * time.Millisecond}
	if nodes <= few {
		return p
	}
	p.Dead += time.Duration(1.5 * math.Log10(float64(nodes)/few) * float64(time.Second)).Round(10 * time.Millisecond)
	p.Beat = (p.Dead / 4).Round(10 * time.Millisecond)
	return p
}
