package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Reading is what is left of what a host has, for it and its instances together.
type Reading struct {
	MemoryBytes, MemoryLeftBytes int64
	DiskBytes, DiskLeftBytes     int64 // of the file system that a node keeps its data in
	Inodes, InodesLeft           int64 // the same; 0: it has no fixed number
	Pids, PidsLeft               int64 // processes and threads
}

// MostPids is how many processes and threads the kernel lets there be; 0 when it does not tell.
func MostPids() int64 {
	most := int64(0)
	for _, file := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		if n, ok := readNumber(file); ok && (most == 0 || n < most) {
			most = n
		}
	}
	return most
}

// Look reads what is left on this host: of its memory and process numbers, and of what the cgroup of all instances may
// have of them, whichever is less; and of the disk that a directory is on.
func Look(dataDir, cgroup string) (Reading, error) {
	r := Reading{Pids: MostPids()}
	errs := []error{r.memory(), r.disk(dataDir), r.processes()}
	for _, dir := range cgroupDirs(cgroup) {
		r.bound(dir)
	}
	return r, errors.Join(errs...)
}

func (r *Reading) memory() error {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return fmt.Errorf("read how much memory is left: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(f[1], 10, 64) // the kernel's own
		switch f[0] {
		case "MemTotal:":
			r.MemoryBytes = kib << 10
		case "MemAvailable:":
			r.MemoryLeftBytes = kib << 10
		}
	}
	return nil
}

func (r *Reading) disk(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("read how much of the disk of %s is left: %w", dir, err)
	}
	r.DiskBytes, r.DiskLeftBytes = int64(st.Blocks)*st.Bsize, int64(st.Bavail)*st.Bsize
	r.Inodes, r.InodesLeft = int64(st.Files), int64(st.Ffree)
	return nil
}

// processes counts those of the whole machine: /proc/loadavg has "running/all".
func (r *Reading) processes() error {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return fmt.Errorf("count processes: %w", err)
	}
	if f := strings.Fields(string(text)); len(f) > 3 {
		_, all, _ := strings.Cut(f[3], "/")
		n, _ := strconv.ParseInt(all, 10, 64)
		r.PidsLeft = max(r.Pids-n, 0)
	}
	return nil
}

// bound takes over what a cgroup's bounds leave, where that is less.
func (r *Reading) bound(dir string) {
	for _, file := range []string{"memory.max", "memory.limit_in_bytes"} {
		most, ok := readNumber(filepath.Join(dir, file))
		if !ok || most >= r.MemoryBytes {
			continue
		}
		r.MemoryBytes, r.MemoryLeftBytes = most, min(r.MemoryLeftBytes, max(most-heldIn(dir), 0))
	}
	most, ok := readNumber(filepath.Join(dir, "pids.max"))
	used, there := readNumber(filepath.Join(dir, "pids.current"))
	if ok && there && most < r.Pids {
		r.Pids, r.PidsLeft = most, min(r.PidsLeft, max(most-used, 0))
	}
}

// heldIn is the memory of a cgroup that cannot be had back: what processes and file systems in memory hold, and what the
// kernel cannot do without for them, where it tells. Files that can be read again do not count, nor what it remembers of them.
func heldIn(dir string) (held int64) {
	text, err := os.ReadFile(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) != 2 {
			continue
		}
		switch f[0] {
		case "total_rss", "total_shmem", // version 1
			"anon", "shmem", "slab_unreclaimable", "kernel_stack", "pagetables": // version 2
			n, _ := strconv.ParseInt(f[1], 10, 64) // the kernel's own
			held += n
		}
	}
	return held
}

// cgroupDirs are the directories of a cgroup in the hierarchies that bound memory and processes.
func cgroupDirs(cgroup string) []string {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil
	}
	var out []string
	for _, m := range mounts {
		options := strings.Split(m.VFSOptions, ",")
		if m.FSType == "cgroup2" || slices.Contains(options, "memory") || slices.Contains(options, "pids") {
			out = append(out, filepath.Join(m.Mountpoint, cgroup))
		}
	}
	return out
}

// readNumber reads a file that holds one number; "max" is none.
func readNumber(file string) (int64, bool) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil
}
