package agent

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// turns bounds how much of what a node does for instances it does at once. Mounts, cgroups and interfaces are made and
// removed under locks that the kernel has once for all: hundreds at once take each other's time, and that of
// the signs of life.
type turns chan struct{}

func newTurns() turns { return make(turns, max(4, 2*runtime.GOMAXPROCS(0))) }

// turnLimit is for how long one has a turn: when what it does hangs, as in a mount of a host that is gone, it goes on beside
// another's. Who waits is not let in otherwise: with hundreds waiting, that takes from a node the time to say that it lives.
const turnLimit = 5 * time.Second

// take waits for a turn, and returns what ends it.
func (t turns) take(ctx context.Context) (end func()) {
	select {
	case t <- struct{}{}:
	case <-ctx.Done(): // what is done next finds out
		return func() {}
	}
	give := sync.OnceFunc(func() { <-t })
	late := time.AfterFunc(turnLimit, give)
	return func() { late.Stop(); give() }
}
