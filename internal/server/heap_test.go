package server

import (
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
	}{{0, 100}, {40 << 20, 100}, {192 << 20, 100}, {512 << 20, 37}, {1200 << 20, 16}, {4 << 30, 12}} {
		if have := collectAt(c.live); have != c.want {
			t.Errorf("with %d MiB live, collected at %d %%, want %d", c.live>>20, have, c.want)
		}
	}
}

// TestBoundHeap holds a large heap in a process of its own, whose collections it may set.
func TestBoundHeap(t *testing.T) {
	const hold = "TUTTI_TEST_HOLD"
	if os.Getenv(hold) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestBoundHeap$", "-test.v")
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "GOGC=") }), hold+"=yes")
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
	want := 37
	for range 1000 { // its cleanup runs in a goroutine
		runtime.GC()
		have := debug.SetGCPercent(want)
		if have >= want-1 && have <= want {
			runtime.KeepAlive(held)
			return
		}
		debug.SetGCPercent(have)
		runtime.Gosched()
	}
	t.Errorf("with %d MiB live it is not collected sooner", len(held))
}
