package server

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// leastRoom is up to where the heap may double between two collections, as is usual; a larger one
	// gets as much room, or a ninth of what it holds if that is more.
	leastRoom = 144 << 20
	roomPart  = 9
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

// usage is how this process's memory is used, in bytes.
type usage struct {
	live    uint64 // at the end of the latest collection
	objects uint64 // those that will be found dead included
	unused  uint64 // between objects
	other   uint64 // than the heap
}

func used() usage {
	sample := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/total:bytes"},
	}
	metrics.Read(sample)
	n := func(k int) uint64 { return sample[k].Value.Uint64() }
	return usage{live: n(0), objects: n(1), unused: n(2), other: n(5) - n(1) - n(2) - n(3) - n(4)}
}

// keepTo returns how much memory the process keeps at most, in bytes: what it needs until the next
// collection, whose growth is given in percent of what is live. More that it had is given back to the
// kernel; the runtime by itself keeps a tenth of the heap. A small process may keep what it likes.
func keepTo(u usage, percent int) int64 {
	if u.live <= leastRoom || u.objects == 0 {
		return math.MaxInt64
	}
	goal := float64(u.live) * (1 + float64(percent)/100)
	goal *= 1 + float64(u.unused)/float64(u.objects)
	return int64((goal + float64(u.other)) / 0.97) // the runtime collects when 3 % are left of what it may have
}

// BoundHeap keeps this process's memory close to what the state takes, whatever size that has, for
// as long as the process lives; who sets GOGC or GOMEMLIMIT has chosen otherwise. It looks after each
// collection, and costs nothing between them.
func BoundHeap() {
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		afterCollection(100)
	}
}

// afterCollection looks once the next collection has ended. What was allocated here is collected by
// that, which is when its cleanup runs.
func afterCollection(percent int) {
	type marker struct{ _ *byte }
	runtime.AddCleanup(&marker{new(byte)}, func(percent int) {
		u := used()
		if want := collectAt(u.live); want != percent {
			debug.SetGCPercent(want)
			percent = want
		}
		debug.SetMemoryLimit(keepTo(u, percent))
		afterCollection(percent)
	}, percent)
}
