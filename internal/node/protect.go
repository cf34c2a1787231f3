package node

import (
	"os"
	"strconv"

	"github.com/tutti-run/tutti/internal/cgroup"
	"github.com/tutti-run/tutti/internal/host"
)

const (
	// oomScore has the kernel end almost anything else before this process, and before the supervisors
	// and responders that it starts; what runs in tasks gets a score of its own.
	oomScore = -900
	// mostPidsPerTask is for hosts that could have millions: nothing that works needs more, and what
	// only multiplies keeps a host busy for long with so many.
	mostPidsPerTask = 32 << 10
)

// protect keeps this process alive and able to work whatever instances do: all of them together
// cannot have the host's whole memory, nor all of its process numbers. It returns how many processes a task
// may have that has no limit of its own. What the host does not allow is told, and gone without.
func protect(cfg *Config) (pidsPerTask int64) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(oomScore)), 0); err != nil {
		cfg.Log.Warn("this process cannot be kept from being ended when memory is short", "error", err)
	}
	pids := host.MostPids()
	bounds := cgroup.Bounds{MemoryBytes: forInstances(cfg.Capacity.MemoryBytes), Pids: pids * 9 / 10}
	if err := cgroup.Bound(cfg.Cgroup, bounds); err != nil {
		cfg.Log.Warn("what all instances together may use up cannot be bounded", "error", err)
	}
	return min(pids/2, mostPidsPerTask)
}

// forInstances is how much of a host's memory all instances together may have: a twentieth, 64 MiB to 1 GiB, is
// kept for the host itself.
func forInstances(total int64) int64 {
	kept := min(max(total/20, 64<<20), 1<<30)
	return max(total-kept, total/2)
}
