package provision

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/tutti-run/tutti/internal/autoscale"
	"github.com/tutti-run/tutti/internal/cgroup"
	"github.com/tutti-run/tutti/internal/fault"
)

// Policy says how many hosts there may be; ok is false when they stay as many as they are.
func (m *Machine) Policy() (p autoscale.HostPolicy, ok bool, err error) {
	s, err := m.load()
	if err != nil {
		return p, false, err
	}
	return s.Policy, s.Policy.Max > s.Policy.Min, nil
}

// change changes what the machine remembers.
func (m *Machine) change(fn func(*state) error) error {
	return m.locked(func() error {
		s, err := m.load()
		if err == nil && len(s.Hosts) == 0 {
			err = fault.New(fault.NotFound, "this machine has no virtual hosts any more")
		}
		if err == nil {
			err = fn(s)
		}
		if err != nil {
			return err
		}
		return m.save(s)
	})
}

// Add remembers one more host, an agent, which Start boots.
func (m *Machine) Add() (h Host, err error) {
	err = m.change(func(s *state) error {
		if len(s.Hosts) >= max(s.Policy.Max, s.Policy.Min) {
			return fault.New(fault.Exhausted, "there are %d virtual hosts already, as many as there may be", len(s.Hosts))
		}
		h = m.newHost(s.Hosts)
		s.Hosts = append(s.Hosts, h)
		return nil
	})
	return h, err
}

// SetLeaving remembers whether a host is being given back.
func (m *Machine) SetLeaving(name string, leaving bool) error {
	return m.change(func(s *state) error {
		for i := range s.Hosts {
			if s.Hosts[i].Name == name {
				s.Hosts[i].Leaving = leaving
			}
		}
		return nil
	})
}

// Stop shuts a host down; one that does not run is left alone.
func (m *Machine) Stop(ctx context.Context, name string) error {
	h, err := m.find(name)
	if err != nil {
		return err
	}
	return m.stop(ctx, h)
}

// Remove ends a host, and removes it and its data. It is safe to call again.
func (m *Machine) Remove(ctx context.Context, name string) error {
	return m.change(func(s *state) error {
		n := slices.IndexFunc(s.Hosts, func(h Host) bool { return h.Name == name })
		if n < 0 {
			return nil
		}
		h := &s.Hosts[n]
		if h.Server {
			return fault.New(fault.Invalid, "%s is a server: only agents can be given back", name)
		}
		if err := m.stop(ctx, h); err != nil {
			return err
		}
		if err := errors.Join(cgroup.Remove(h.Cgroup()), os.RemoveAll(h.RunDir), os.RemoveAll(h.DataDir)); err != nil {
			return err
		}
		s.Hosts = slices.Delete(s.Hosts, n, n+1)
		return nil
	})
}
