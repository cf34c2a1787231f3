package docker

import (
	"cmp"
	"context"
	"net/http"

	"github.com/moby/moby/api/types/container"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// containerUpdate changes the limits and the restart policy of a container: of one that runs at once, without its being
// started anew.
func (a *API) containerUpdate(w http.ResponseWriter, r *request) error {
	var req container.UpdateConfig
	if err := decode(r, &req, false); err != nil {
		return err
	}
	b, err := a.box(r)
	if err != nil {
		return err
	}
	if b.made == nil {
		return fault.New(fault.Unsupported, "container %s belongs to the service %s: update that", b.name, dockerName(&b.workload.Meta))
	}
	made := decodeRequest(b.workload)
	if err := updated(made.HostConfig, &req); err != nil {
		return fault.New(fault.KindOf(err), "Cannot update container %s: %w", b.id, err)
	}
	if err := refuseContainer(made.Config, made.HostConfig); err != nil {
		return err
	}
	if field, _ := firstDifference("", plain(made.HostConfig), plain(b.made.HostConfig)); field == "" {
		return answer(w, http.StatusOK, container.UpdateResponse{Warnings: []string{}})
	}
	change := func(wl *model.Workload, kept *created) error {
		t := &translation{api: a, r: r, name: b.name, made: made, workload: *wl}
		task := &wl.Template.Tasks[0]
		if err := t.resources(task); err != nil {
			return err
		}
		var err error
		if task.Tuning, err = tuningOf(made.HostConfig); err != nil {
			return err
		}
		policy, err := restartPolicy(made.HostConfig.RestartPolicy)
		wl.Template.Restart, kept.HostConfig = policy, made.HostConfig
		return err
	}
	if err := a.bound(r, b, change); err != nil {
		return err
	}
	return answer(w, http.StatusOK, container.UpdateResponse{Warnings: []string{}})
}

// bound changes the bounds of a container: first where it runs, as only its node can say whether that is possible, then for good.
func (a *API) bound(r *request, b *box, change func(*model.Workload, *created) error) error {
	before, after := b.workload.Template.Tasks[0].Bounds(), b.workload.Clone()
	if err := change(after, decodeRequest(b.workload)); err != nil {
		return err
	}
	running := b.running() && b.state() != container.StateRestarting
	if running {
		if err := a.Core.Bound(r.Context(), r.who, b.instance.ID, b.spec().Name, after.Template.Tasks[0].Bounds()); err != nil {
			return fault.New(fault.KindOf(err), "Cannot update container %s: %w", b.id, err)
		}
	}
	err := a.changeContainer(r, b, change)
	if err != nil && running {
		if back := a.Core.Bound(context.WithoutCancel(r.Context()), r.who, b.instance.ID, b.spec().Name, before); back != nil {
			a.Log.Warn("a container is bounded otherwise than it was to be until it is started again", "container", b.name, "error", back)
		}
	}
	if err != nil || b.instance == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), rewiredWithin)
	defer cancel()
	err = a.await(ctx, b.id, func(now *box) bool {
		return now == nil || now.instance == nil || now.instance.RevisionID == now.workload.RevisionID
	})
	if err != nil {
		return fault.New(fault.Unavailable, "the update of container %s is decided, but its instance has not followed yet: %w", b.name, err)
	}
	return nil
}

// updated takes over what an update says into what a container was made with.
func updated(h *container.HostConfig, req *container.UpdateConfig) error {
	if req.RestartPolicy.Name != "" {
		if h.AutoRemove && !req.RestartPolicy.IsNone() {
			return fault.New(fault.Invalid, "Restart policy cannot be updated because AutoRemove is enabled for the container")
		}
		h.RestartPolicy = req.RestartPolicy
	}
	switch {
	case req.NanoCPUs > 0 && h.CPUPeriod > 0:
		return fault.New(fault.Conflict, "Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set")
	case req.NanoCPUs > 0 && h.CPUQuota > 0:
		return fault.New(fault.Conflict, "Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set")
	case req.CPUPeriod > 0 && h.NanoCPUs > 0:
		return fault.New(fault.Conflict, "Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set")
	case req.CPUQuota > 0 && h.NanoCPUs > 0:
		return fault.New(fault.Conflict, "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set")
	case req.Memory > 0 && h.MemorySwap > 0 && req.Memory > h.MemorySwap && req.MemorySwap == 0:
		return fault.New(fault.Conflict, "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
	}
	for _, n := range []struct {
		to   *int64
		from int64
	}{
		{&h.Memory, req.Memory}, {&h.MemoryReservation, req.MemoryReservation}, {&h.MemorySwap, req.MemorySwap}, {&h.NanoCPUs, req.NanoCPUs},
		{&h.CPUQuota, req.CPUQuota}, {&h.CPUPeriod, req.CPUPeriod}, {&h.CPUShares, req.CPUShares}, {&h.CPURealtimePeriod, req.CPURealtimePeriod},
		{&h.CPURealtimeRuntime, req.CPURealtimeRuntime},
	} {
		if n.from != 0 {
			*n.to = n.from
		}
	}
	h.CpusetCpus, h.CpusetMems, h.BlkioWeight = cmp.Or(req.CpusetCpus, h.CpusetCpus), cmp.Or(req.CpusetMems, h.CpusetMems), cmp.Or(req.BlkioWeight, h.BlkioWeight)
	if req.PidsLimit != nil {
		h.PidsLimit = req.PidsLimit
	}
	if len(req.BlkioWeightDevice)+len(req.BlkioDeviceReadBps)+len(req.BlkioDeviceWriteBps)+len(req.BlkioDeviceReadIOps)+len(req.BlkioDeviceWriteIOps) > 0 {
		return notHonoured("an update of limits of single devices", "HostConfig.BlkioDevice…")
	}
	if len(req.Devices)+len(req.DeviceRequests)+len(req.DeviceCgroupRules)+len(req.Ulimits) > 0 || req.CgroupParent != "" || req.OomKillDisable != nil || req.MemorySwappiness != nil {
		return notHonoured("an update of devices, ulimits, the cgroup's parent, swappiness or the OOM killer", "UpdateConfig")
	}
	return nil
}
