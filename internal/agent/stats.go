package agent

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/wire"
)

// addHost adds what the host tells: of itself, and, unless pid is 0, of the network that a task's process is in.
// What cannot be read stays out.
func addHost(st *driver.Stats, pid int) {
	if text, err := os.ReadFile("/proc/stat"); err == nil {
		hostTimes(st, string(text))
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "MemTotal:" {
				st.HostMemoryBytes = number(f[1]) << 10
			}
		}
	}
	if pid == 0 {
		return
	}
	if text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "net/dev")); err == nil {
		st.Links = linkStats(string(text))
	}
}

// hostTick is the unit of /proc/stat, on every platform that Go knows.
const hostTick = 10 * time.Millisecond

func hostTimes(st *driver.Stats, text string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || !strings.HasPrefix(f[0], "cpu"):
		case f[0] == "cpu":
			for _, v := range f[1:min(len(f), 9)] { // what guests used is counted in what users did
				st.HostNanoseconds += number(v) * uint64(hostTick)
			}
		default:
			st.Processors++
		}
	}
}

// linkStats reads /proc/net/dev.
func linkStats(text string) []driver.LinkStats {
	var out []driver.LinkStats
	for line := range strings.Lines(text) {
		name, counts, ok := strings.Cut(strings.TrimSpace(line), ":")
		f := strings.Fields(counts)
		if !ok || len(f) < 16 || name == "lo" {
			continue
		}
		out = append(out, driver.LinkStats{
			Name: name, ReceivedBytes: number(f[0]), ReceivedPackets: number(f[1]), ReceiveErrors: number(f[2]), ReceiveDropped: number(f[3]),
			SentBytes: number(f[8]), SentPackets: number(f[9]), SendErrors: number(f[10]), SendDropped: number(f[11]),
		})
	}
	return out
}

// number reads a count of the kernel's.
func number(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

// usage adds up what the tasks of an instance use; false: one of them cannot be read, or none runs.
func (w *worker) usage(ctx context.Context) (sum wire.InstanceUsage, ok bool) {
	w.mu.Lock()
	var names []string
	for name, runs := range w.runs {
		if len(runs) > 0 {
			names = append(names, name)
		}
	}
	w.mu.Unlock()
	for _, name := range names {
		d, id, err := w.latestRun(name)
		if err != nil {
			return sum, false
		}
		st, err := d.Stats(ctx, id)
		if err != nil {
			return sum, false
		}
		sum.CPUNanoseconds += st.CPUNanoseconds
		sum.MemoryBytes += st.MemoryBytes
	}
	return sum, len(names) > 0
}
