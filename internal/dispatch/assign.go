package dispatch

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// assignments returns what the session's node has to be told of its instances, and notes that it
// was.
func (s *Sessions) assignments(snap *store.Snapshot, sess *session) (*wire.Assign, error) {
	out := &wire.Assign{Revision: snap.Revision()}
	wanted := map[string]bool{}
	for inst := range store.InstancesOnNode(snap, sess.nodeID) {
		if sess.full {
			out.Seq = max(out.Seq, inst.Status.Seq)
		}
		if inst.Status.State == model.InstanceLost {
			continue // replaced while the node was away: the agent must drop it
		}
		if inst.Desired == model.DesiredRemove && inst.Status.State.Final() {
			continue
		}
		wanted[inst.ID] = true
		key := keyOf(inst)
		had, has := sess.sent[inst.ID]
		if had == key {
			out.Keep = append(out.Keep, inst.ID)
			continue
		}
		as, err := s.assignment(snap, inst)
		if err != nil {
			sess.fail(inst.ID, err)
			if has {
				out.Keep = append(out.Keep, inst.ID) // better than nothing
			}
			continue
		}
		sess.fail(inst.ID, nil)
		as.Key = key
		sess.sent[inst.ID] = key
		out.Put = append(out.Put, *as)
	}
	for id := range sess.sent {
		if !wanted[id] {
			delete(sess.sent, id)
			sess.fail(id, nil)
			out.Remove = append(out.Remove, id)
		}
	}
	if !sess.full {
		out.Keep = nil
	} else {
		out.Remove = nil // what is not there is removed
	}
	out.Total = len(sess.sent)
	return out, nil
}

// keyOf stands for what an agent is told of an instance. Revisions never change, and what secrets
// and configs hold makes a new one.
func keyOf(inst *model.Instance) string {
	h := fnv.New64a()
	fmt.Fprint(h, inst.Desired, inst.Starts, inst.Addresses, inst.HostPorts, inst.RevisionID, inst.Stateful, inst.Leased, inst.Volumes, inst.Folders)
	return strconv.FormatUint(h.Sum64(), 36)
}

// fail notes why an instance cannot be assigned, nil that it can; it is tried again when something
// has changed.
func (sess *session) fail(id string, err error) {
	sess.mu.Lock()
	defer sess.mu.Unlock()
	if err == nil {
		delete(sess.failed, id)
		return
	}
	if sess.failed[id] == err.Error() {
		return
	}
	if sess.failed == nil {
		sess.failed = map[string]string{}
	}
	sess.failed[id] = err.Error()
	sess.log.Error("instance cannot be assigned", "instance", id, "error", err)
}

// assignment gathers all that a node needs to run an instance, and nothing more.
func (s *Sessions) assignment(snap *store.Snapshot, inst *model.Instance) (*wire.Assignment, error) {
	rev, ok := store.Get[*model.Revision](snap, inst.RevisionID)
	if !ok {
		return nil, fmt.Errorf("revision %s does not exist", inst.RevisionID)
	}
	as := &wire.Assignment{
		Instance: inst, Template: withOwnVolumes(&rev.Template, inst),
		Workload: wire.WorkloadRef{ID: inst.WorkloadID, Application: inst.Application, Namespace: inst.Namespace, Name: inst.Name},
		Secrets:  map[string][]byte{}, Configs: map[string][]byte{},
	}
	if w, ok := store.Get[*model.Workload](snap, inst.WorkloadID); ok {
		as.Workload.Name = w.Name
	}
	if n, ok := store.Get[*model.Node](snap, inst.NodeID); ok && rev.Template.Separate {
		as.Room = &model.Resources{
			NanoCPUs: n.Capacity.NanoCPUs - n.Reserved.NanoCPUs, MemoryBytes: n.Capacity.MemoryBytes - n.Reserved.MemoryBytes,
			DiskBytes: n.Capacity.DiskBytes - n.Reserved.DiskBytes,
		}
	}
	for _, at := range rev.Template.Networks {
		if n, ok := store.Get[*model.Network](snap, at.Network); ok {
			c := n.Clone()
			c.Status.Blocks = nil // routes are not the instance's business
			as.Networks = append(as.Networks, c)
		}
	}
	for _, t := range slices.Concat(as.Template.InitTasks, as.Template.Tasks) {
		for _, m := range t.Mounts {
			if err := s.addMount(snap, as, &m); err != nil {
				return nil, err
			}
		}
	}
	return as, nil
}

// withOwnVolumes is the template with the slot's own volumes in place of those that it names.
func withOwnVolumes(t *model.Template, inst *model.Instance) *model.Template {
	if len(inst.Volumes) == 0 {
		return t
	}
	c := t.Clone()
	for _, tasks := range [][]model.TaskSpec{c.InitTasks, c.Tasks} {
		for i := range tasks {
			for j := range tasks[i].Mounts {
				if m := &tasks[i].Mounts[j]; m.Type == model.MountVolume {
					m.Source = inst.OwnVolume(m.Source)
				}
			}
		}
	}
	return &c
}

func (s *Sessions) addMount(snap *store.Snapshot, as *wire.Assignment, m *model.Mount) error {
	switch m.Type {
	case model.MountVolume:
		if v, ok := store.Get[*model.Volume](snap, m.Source); ok {
			as.Volumes = append(as.Volumes, v)
		}
	case model.MountConfig:
		if c, ok := store.Get[*model.Config](snap, m.Source); ok {
			as.Configs[c.ID] = c.Data
			s.note(snap, as, c.ID, c.Templated)
		}
	case model.MountSecret:
		sec, ok := store.Get[*model.Secret](snap, m.Source)
		if !ok {
			return nil
		}
		data, err := s.Open(sec)
		if err != nil {
			return fmt.Errorf("open secret %s: %w", sec.FullName(), err)
		}
		as.Secrets[sec.ID] = data
		s.note(snap, as, sec.ID, sec.Templated)
	}
	return nil
}

// note says of a file that it is a template, with what such ones may say of the workload.
func (s *Sessions) note(snap *store.Snapshot, as *wire.Assignment, id string, templated bool) {
	if !templated {
		return
	}
	if as.Templated == nil {
		as.Templated = map[string]bool{}
		if w, ok := store.Get[*model.Workload](snap, as.Workload.ID); ok {
			as.Labels = w.Labels
		}
	}
	as.Templated[id] = true
}
