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

// Stats implements supervisor.Body.
func (u usage) Stats() (*driver.Stats, error) {
	st, err := u.group.GetStats()
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	return supervisor.StatsOf(st), nil
}

// Members implements supervisor.Body.
func (u usage) Members() ([]int, error) { return cgroup.Members(u.group) }

// OutOfMemory implements supervisor.Body.
func (u usage) OutOfMemory() bool {
	n, err := u.group.OOMKillCount()
	return err == nil && n > 0
}
