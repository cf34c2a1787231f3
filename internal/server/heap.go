package server

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// leastRoom is up to where the heap may double between two collections, as is usual; a larger one
	// gets as much room, or an eighth of what it holds if that is more.
	leastRoom = 192 << 20
	roomPart  = 8
)

// collectAt returns after what growth, in percent of what is live, garbage is collected. In a large
// state little changes at a time: as much room for garbage as there is state would double a server's
// memory, and save little work.
func collectAt(live uint64) int {
	if live <= leastRoom {
		return 100
	}
	return int(100 * max(leastRoom, live/roomPart) / live)
}

// BoundHeap keeps this process's memory close to what the state takes, whatever size that has, for
// as long as the process lives; who sets GOGC has chosen otherwise. It looks after each collection,
// and costs nothing between them.
func BoundHeap() {
	if os.Getenv("GOGC") == "" {
		afterCollection(100)
	}
}

// afterCollection looks once the next collection has ended. What was allocated here is collected by
// that, which is when its cleanup runs.
func afterCollection(percent int) {
	type marker struct{ _ *byte }
	runtime.AddCleanup(&marker{new(byte)}, func(percent int) {
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(sample)
		if want := collectAt(sample[0].Value.Uint64()); want != percent {
			debug.SetGCPercent(want)
			percent = want
		}
		afterCollection(percent)
	}, percent)
}
