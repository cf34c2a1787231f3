package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// KillAll ends everything in a cgroup, however fast it multiplies.
func KillAll(m cgroups.Manager) error {
	for range 500 {
		pids, err := Members(m)
		if err != nil || len(pids) == 0 {
			return err
		}
		// On a hybrid host this would kill, too, but not what is frozen.
		if !cgroups.IsCgroup2UnifiedMode() || os.WriteFile(filepath.Join(m.Path(""), "cgroup.kill"), []byte("1"), 0) != nil {
			killFrozen(m)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return errors.New("its processes do not end")
}

// Members lists the processes of a cgroup in every hierarchy: with version 1, they could be in some.
func Members(m cgroups.Manager) ([]int, error) {
	var all []int
	for _, dir := range m.GetPaths() {
		pids, err := cgroups.GetAllPids(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) { // gone already
			return nil, fmt.Errorf("list its processes: %w", err)
		}
		all = append(all, pids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// killFrozen is for kernels that cannot kill a cgroup as a whole: what is frozen does not fork.
func killFrozen(m cgroups.Manager) {
	m.Freeze(cgroups.Frozen) // what cannot be frozen is killed all the same
	pids, _ := Members(m)
	for _, pid := range pids {
		unix.Kill(pid, unix.SIGKILL)
	}
	m.Freeze(cgroups.Thawed)
}
