package supervisor

import (
	"strings"
	"time"

	"github.com/opencontainers/cgroups"

	"github.com/tutti-run/tutti/internal/driver"
)

// StatsOf states a reading of a task's cgroups in the driver's terms.
func StatsOf(cg *cgroups.Stats) *driver.Stats {
	out := &driver.Stats{
		Time: time.Now(), CPUNanoseconds: cg.CpuStats.CpuUsage.TotalUsage,
		MemoryBytes: cg.MemoryStats.Usage.Usage, MemoryLimitBytes: cg.MemoryStats.Usage.Limit, Pids: cg.PidsStats.Current,
	}
	for _, key := range []string{"total_inactive_file", "inactive_file"} {
		if cache, ok := cg.MemoryStats.Stats[key]; ok && cache < out.MemoryBytes {
			out.MemoryBytes -= cache
			break
		}
	}
	for _, e := range cg.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(e.Op) {
		case "read":
			out.ReadBytes += e.Value
		case "write":
			out.WriteBytes += e.Value
		}
	}
	return out
}
