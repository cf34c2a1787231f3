package oci

import (
	"fmt"

	"github.com/opencontainers/cgroups"

	"github.com/tutti-run/tutti/internal/cgroup"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/supervisor"
)

// usage is what a container's cgroup tells of it.
type usage struct{ group cgroups.Manager }

// usageOf finds the cgroup of a container. One of another runtime may be a machine of its own, whose runtime is to be asked.
func usageOf(t *driver.Task) (supervisor.Usage, error) {
	if t.Runtime != "" {
		return nil, nil
	}
	m, err := cgroupOf(t)
	if err != nil {
		return nil, err
	}
	return usage{m}, nil
}

// Stats implements supervisor.Usage.
func (u usage) Stats() (*driver.Stats, error) {
	st, err := u.group.GetStats()
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	return supervisor.StatsOf(st), nil
}

// Members implements supervisor.Usage.
func (u usage) Members() ([]int, error) { return cgroup.Members(u.group) }

// OutOfMemory implements supervisor.Body.
func (u usage) OutOfMemory() bool {
	n, err := u.group.OOMKillCount()
	return err == nil && n > 0
}
