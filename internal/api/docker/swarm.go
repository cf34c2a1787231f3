package docker

import (
	"net/http"
	"net/netip"

	"github.com/moby/moby/api/types/swarm"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func (a *API) swarmInfo(snap *store.Snapshot) swarm.Info {
	self := a.self(snap)
	i := swarm.Info{NodeID: a.NodeID, NodeAddr: self.HostAddress, LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true}
	for n := range store.List[*model.Node](snap) {
		if n.Server {
			i.Managers++
			i.RemoteManagers = append(i.RemoteManagers, swarm.Peer{NodeID: n.ID, Addr: n.WireAddress})
		}
	}
	if c, ok := store.Get[*model.Cluster](snap, model.ClusterID); ok {
		info := clusterInfo(c)
		i.Cluster = &info
	}
	return i
}

// clusterInfo is the cluster as a swarm.
func clusterInfo(c *model.Cluster) swarm.ClusterInfo {
	i := swarm.ClusterInfo{ID: digestOf("cluster", string(c.CACertificate))[:25], SubnetSize: uint32(c.NetworkBits)}
	i.Version.Index, i.CreatedAt, i.UpdatedAt = c.Revision, c.Created, c.Created
	i.Spec.Name = "default"
	i.Spec.Labels = map[string]string{}
	limit := int64(2)
	i.Spec.Orchestration.TaskHistoryRetentionLimit = &limit
	i.TLSInfo.TrustRoot = string(c.CACertificate)
	if p, err := netip.ParsePrefix(c.AddressPool); err == nil {
		i.DefaultAddrPool = []netip.Prefix{p}
	}
	return i
}

// updateState is the state of a rollout in Swarm's words; "" when there is none to tell of.
func updateState(r *model.RolloutStatus) swarm.UpdateState {
	switch r.State {
	case model.RolloutUpdating:
		return swarm.UpdateStateUpdating
	case model.RolloutPaused:
		return swarm.UpdateStatePaused
	case model.RolloutCompleted:
		return swarm.UpdateStateCompleted
	case model.RolloutRolling:
		return swarm.UpdateStateRollbackStarted
	case model.RolloutRolledBack:
		return swarm.UpdateStateRollbackCompleted
	case model.RolloutFailed:
		return swarm.UpdateStateRollbackPaused
	}
	return ""
}

func (a *API) swarmInspect(w http.ResponseWriter, r *request) error {
	c, ok := store.Get[*model.Cluster](a.snapshot(), model.ClusterID)
	if !ok {
		return fault.New(fault.Unavailable, "the cluster is still being set up")
	}
	v := swarm.Swarm{ClusterInfo: clusterInfo(c)}
	var err error
	if v.JoinTokens.Worker, err = a.Core.JoinToken(r.Context(), r.who, false); err != nil {
		return err
	}
	if v.JoinTokens.Manager, err = a.Core.JoinToken(r.Context(), r.who, true); err != nil {
		return err
	}
	return answer(w, http.StatusOK, v)
}

// swarmMember refuses what only a host outside a swarm can do.
func swarmMember(http.ResponseWriter, *request) error {
	return fault.New(fault.Unavailable, "This node is already part of a swarm. Use `tutti down` to leave this swarm and `tutti join` to join another one.")
}

// swarmUnlock says that there is nothing to unlock.
func swarmUnlock(http.ResponseWriter, *request) error {
	return fault.New(fault.Conflict, "swarm is not locked")
}
