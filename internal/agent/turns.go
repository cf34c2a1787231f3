package agent

import (
	"context"
	"runtime"
	"time"
)

// turns bounds how much of what a node does for instances it does at once. Mounts, cgroups and interfaces are made and
// removed under locks that the kernel has once for all: hundreds at once take each other's time, and that of
// the signs of life.
type turns chan struct{}

func newTurns() turns { return make(turns, max(4, 2*runtime.GOMAXPROCS(0))) }

// turnWait is how long a turn is waited for: where others hang, as in a mount of a host that is gone, one goes on
// beside them.
const turnWait = 10 * time.Second

// take waits for a turn, and returns what ends it.
func (t turns) take(ctx context.Context) (end func()) {
	select {
	case t <- struct{}{}:
		return func() { <-t }
	case <-ctx.Done(): // what is done next finds out
	case <-time.After(turnWait):
	}
	return func() {}
}
