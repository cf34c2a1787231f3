package server

import (
	"math"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

func TestCollectAt(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{{0, 100}, {40 << 20, 100}, {144 << 20, 100}, {512 << 20, 28}, {1200 << 20, 12}, {4 << 30, 11}} {
		if have := collectAt(c.live); have != c.want {
			t.Errorf("with %d MiB live, collected at %d %%, want %d", c.live>>20, have, c.want)
		}
	}
}

func TestKeepTo(t *testing.T) {
	if have := keepTo(usage{live: 100 << 20, objects: 120 << 20, unused: 20 << 20}, 100); have != math.MaxInt64 {
		t.Errorf("with a small heap, %d bytes are kept, want no bound", have)
	}
	// It may grow by a fifth, a tenth of all lies unused, and the rest stays.
	want := (1000*1.2*1.1 + 70) * (1 << 20) / 0.97
	if have := keepTo(usage{live: 1000 << 20, objects: 1100 << 20, unused: 110 << 20, other: 70 << 20}, 20); math.Abs(float64(have)-want) > 1 {
		t.Errorf("with a large heap, %d bytes are kept, want %.0f", have, want)
	}
}

// TestBoundHeap holds a large heap in a process of its own, whose collections it may set.
func TestBoundHeap(t *testing.T) {
	const hold = "TUTTI_TEST_HOLD"
	if os.Getenv(hold) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestBoundHeap$", "-test.v")
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "GOGC=") || strings.HasPrefix(e, "GOMEMLIMIT=") }), hold+"=yes")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	BoundHeap()
	held := make([][]byte, 0, 512)
	for range cap(held) {
		held = append(held, make([]byte, 1<<20))
	}
	want := 28
	for range 1000 { // its cleanup runs in a goroutine
		runtime.GC()
		have := debug.SetGCPercent(want)
		if limit := debug.SetMemoryLimit(-1); have >= want-1 && have <= want && limit > int64(len(held))<<20 && limit < 2*int64(len(held))<<20 {
			runtime.KeepAlive(held)
			return
		}
		debug.SetGCPercent(have)
		runtime.Gosched()
	}
	t.Errorf("with %d MiB live it is not collected sooner", len(held))
}
