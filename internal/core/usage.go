package core

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// Pause stops the processes of all running instances that a reference covers where they are, or lets
// them go on.
func (c *Core) Pause(ctx context.Context, who Caller, ref string, pause bool) (err error) {
	a, err := c.begin(who, "pause", fmt.Sprintf("%s: %t", ref, pause))
	if err != nil {
		return err
	}
	defer a.end(&err)
	snap := c.look(who)
	f, err := find(snap, who.namespace(), ref)
	if err == nil {
		err = a.about(f)
	}
	if err != nil {
		return err
	}
	if f.Instance == nil && f.Workload == nil {
		return fault.New(fault.Invalid, "%s is %s; name a workload or an instance", ref, f.describe())
	}
	found := false
	for _, i := range instancesOf(snap, f) {
		if i.Status.State != model.InstanceRunning {
			continue
		}
		found = true
		if err := c.Remote.Pause(ctx, i.NodeID, wire.TaskRef{Instance: i.ID}, pause); err != nil {
			return err
		}
		c.Log.Info("instance paused or resumed", "instance", i.ID, "name", i.FullName(), "paused", pause, "by", who.Name, "via", who.Via)
	}
	if !found {
		return fault.New(fault.Unavailable, "%s is not running; `tutti explain %s` says why", f.describe(), ref)
	}
	return nil
}

// Usage is what a task uses.
type Usage struct {
	Instance string `json:"instance"` // full name
	ID       string `json:"id"`       // of the instance
	Task     string `json:"task"`
	Node     string `json:"node"` // name
	// NanoCPUs are the processors used over the interval, in billionths.
	NanoCPUs int64        `json:"nanoCPUs"`
	Stats    driver.Stats `json:"stats"`
	Error    string       `json:"error,omitempty"` // why it is not known
}

const (
	usageInterval = 500 * time.Millisecond
	usageAtOnce   = 32
	usagePatience = 5 * time.Second
)

// Usage reads what the tasks of all running instances that a reference covers use now, "" being all
// instances; processors over half a second.
func (c *Core) Usage(ctx context.Context, who Caller, ref string) ([]Usage, error) {
	a, err := c.begin(who, "look", ref)
	if err != nil {
		return nil, err
	}
	snap := c.look(who)
	var list []*model.Instance
	if ref == "" {
		list = slices.Collect(store.List[*model.Instance](snap))
	} else {
		f, err := find(snap, who.namespace(), ref)
		if err == nil {
			err = a.about(f)
		}
		if err != nil {
			return nil, err
		}
		list = instancesOf(snap, f)
	}
	type probe struct {
		node string // ID
		ref  wire.TaskRef
	}
	out, probes := []Usage{}, []probe{}
	for _, i := range list {
		if i.Status.State != model.InstanceRunning {
			continue
		}
		node := i.NodeID
		if n, ok := store.Get[*model.Node](snap, i.NodeID); ok {
			node = n.Name
		}
		for _, t := range i.Status.Tasks {
			if t.State == string(driver.Running) || t.State == string(driver.Paused) {
				out = append(out, Usage{Instance: i.FullName(), ID: i.ID, Task: t.Name, Node: node})
				probes = append(probes, probe{i.NodeID, wire.TaskRef{Instance: i.ID, Task: t.Name}})
			}
		}
	}
	room := make(chan struct{}, usageAtOnce)
	var wg sync.WaitGroup
	for n := range probes {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, usagePatience)
			defer cancel()
			read := func() (driver.Stats, error) {
				room <- struct{}{}
				defer func() { <-room }()
				return c.Remote.Stats(ctx, probes[n].node, probes[n].ref)
			}
			before, err := read()
			if err == nil {
				select {
				case <-time.After(usageInterval):
				case <-ctx.Done():
				}
				out[n].Stats, err = read()
			}
			if err != nil {
				out[n].Error = err.Error()
				return
			}
			if span := out[n].Stats.Time.Sub(before.Time); span > 0 {
				out[n].NanoCPUs = int64(float64(out[n].Stats.CPUNanoseconds-before.CPUNanoseconds) / float64(span) * 1e9)
			}
		})
	}
	wg.Wait()
	return out, ctx.Err()
}

// Stats reads what a task of an instance uses now; "" is its first.
func (c *Core) Stats(ctx context.Context, who Caller, instanceID, task string) (driver.Stats, error) {
	a, err := c.begin(who, "look", instanceID)
	if err != nil {
		return driver.Stats{}, err
	}
	i, err := c.placed(a, instanceID)
	if err != nil {
		return driver.Stats{}, err
	}
	return c.Remote.Stats(ctx, i.NodeID, wire.TaskRef{Instance: i.ID, Task: task})
}

// Processes lists the processes of a task of an instance; a workload means its first running
// instance, and no task the first.
func (c *Core) Processes(ctx context.Context, who Caller, ref, task string) ([]driver.Process, error) {
	a, err := c.begin(who, "look", ref)
	if err != nil {
		return nil, err
	}
	snap := c.look(who)
	f, err := find(snap, who.namespace(), ref)
	if err == nil {
		err = a.about(f)
	}
	if err != nil {
		return nil, err
	}
	if f.Instance == nil && f.Workload == nil {
		return nil, fault.New(fault.Invalid, "%s is %s; name a workload or an instance", ref, f.describe())
	}
	for _, i := range instancesOf(snap, f) {
		if i.Status.State == model.InstanceRunning {
			return c.Remote.Processes(ctx, i.NodeID, wire.TaskRef{Instance: i.ID, Task: task})
		}
	}
	return nil, fault.New(fault.Unavailable, "%s is not running; `tutti explain %s` says why", f.describe(), ref)
}
