package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Bounds are what everything in a cgroup together may use up; zero is without a bound.
type Bounds struct {
	MemoryBytes int64
	Pids        int64 // processes and threads
}

// Bound makes a cgroup, such as "/tutti", if need be, and bounds it.
func Bound(cgroup string, b Bounds) error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	var errs []error
	for _, m := range mounts {
		dir := filepath.Join(m.Mountpoint, cgroup)
		options := strings.Split(m.VFSOptions, ",")
		if m.FSType == "cgroup2" {
			if err := enable(m.Mountpoint, cgroup); err != nil {
				errs = append(errs, err)
				continue
			}
		} else if !slices.Contains(options, "memory") && !slices.Contains(options, "pids") {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			errs = append(errs, fmt.Errorf("make cgroup %s: %w", cgroup, err))
			continue
		}
		for file, value := range map[string]int64{"memory.max": b.MemoryBytes, "memory.limit_in_bytes": b.MemoryBytes, "pids.max": b.Pids} {
			if value > 0 {
				errs = append(errs, write(filepath.Join(dir, file), value))
			}
		}
	}
	return errors.Join(errs...)
}

// enable lets cgroups of version 2 on the way to one, and in it, bound memory and processes.
func enable(root, cgroup string) error {
	have, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read which controllers there are: %w", err)
	}
	dir := root
	for _, part := range strings.Split(strings.Trim(filepath.Clean("/"+cgroup), "/"), "/") {
		for _, c := range []string{"memory", "pids"} {
			if !slices.Contains(strings.Fields(string(have)), c) {
				continue // version 1 has it, or the kernel does not
			}
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
				return fmt.Errorf("enable controller %s below %s: %w", c, dir, err)
			}
		}
		dir = filepath.Join(dir, part)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup %s: %w", cgroup, err)
		}
	}
	return nil
}

// write sets a value where there is one of that name: which files there are says which controllers.
func write(file string, value int64) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		_, err = f.WriteString(strconv.FormatInt(value, 10))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("set %s: %w", file, err)
	}
	return nil
}
