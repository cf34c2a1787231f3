package docker

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func (a *API) swarmInfo(snap *store.Snapshot, r *request) swarm.Info {
	self := a.self(snap, r)
	i := swarm.Info{NodeID: r.at, NodeAddr: self.HostAddress, LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true}
	for n := range store.List[*model.Node](snap) {
		if n.Server {
			i.Managers++
			i.RemoteManagers = append(i.RemoteManagers, swarm.Peer{NodeID: n.ID, Addr: n.WireAddress})
		}
	}
	if c, ok := store.Get[*model.Cluster](snap, model.ClusterID); ok {
		if info, err := a.clusterInfo(c); err == nil {
			i.Cluster = &info
		}
	}
	return i
}

// clusterInfo is the cluster as a swarm.
func (a *API) clusterInfo(c *model.Cluster) (swarm.ClusterInfo, error) {
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
	i.RootRotationInProgress = c.Retiring != nil
	view, err := a.Core.Trust.View()
	i.Spec.EncryptionConfig.AutoLockManagers = view.Autolock
	return i, err
}

// updateState is the state of a service's rollout in Swarm's words; "" when there is none to tell of.
func updateState(w *model.Workload) swarm.UpdateState {
	r := &w.Status.Rollout
	if r.Revision == w.RevisionID && specifiedOf(w).RolledBack {
		switch r.State {
		case model.RolloutUpdating:
			return swarm.UpdateStateRollbackStarted
		case model.RolloutPaused:
			return swarm.UpdateStateRollbackPaused
		case model.RolloutCompleted:
			return swarm.UpdateStateRollbackCompleted
		}
	}
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

// updateMessages are said of rollouts of which no more is known, in Swarm's words.
var updateMessages = map[swarm.UpdateState]string{
	swarm.UpdateStateUpdating: "update in progress", swarm.UpdateStatePaused: "update paused", swarm.UpdateStateCompleted: "update completed",
	swarm.UpdateStateRollbackStarted: "manually requested rollback", swarm.UpdateStateRollbackPaused: "rollback paused", swarm.UpdateStateRollbackCompleted: "rollback completed",
}

func (a *API) swarmInspect(w http.ResponseWriter, r *request) error {
	c, ok := store.Get[*model.Cluster](a.snapshot(), model.ClusterID)
	if !ok {
		return fault.New(fault.Unavailable, "the cluster is still being set up")
	}
	info, err := a.clusterInfo(c)
	if err != nil {
		return err
	}
	v := swarm.Swarm{ClusterInfo: info}
	if v.JoinTokens.Worker, err = a.Core.JoinToken(r.Context(), r.who, false); err != nil {
		return err
	}
	if v.JoinTokens.Manager, err = a.Core.JoinToken(r.Context(), r.who, true); err != nil {
		return err
	}
	return answer(w, http.StatusOK, v)
}

// swarmMember refuses what only a host outside a swarm can do.
func swarmMember(_ http.ResponseWriter, r *request) error {
	var req swarm.JoinRequest
	hint := "`tutti join ADDRESS --token TOKEN`"
	if strings.HasSuffix(r.URL.Path, "/join") && decode(r, &req, true) == nil && len(req.RemoteAddrs) > 0 {
		hint = "`tutti join " + req.RemoteAddrs[0] + " --token " + cmp.Or(req.JoinToken, "TOKEN") + "`"
	}
	return fault.New(fault.Unavailable, "This node is already part of a swarm. Use `docker swarm leave` to leave this swarm, or `tutti down --purge` on a host that was not started with --waiting, and %s to join another one; `tutti token` on a server of that prints tokens", hint)
}

// swarmUpdate replaces tokens, keys and authorities, and switches autolock. What else a specification says
// stays as it is, and a change of that is refused by name.
func (a *API) swarmUpdate(w http.ResponseWriter, r *request) error {
	c, ok := store.Get[*model.Cluster](a.snapshot(), model.ClusterID)
	if !ok {
		return fault.New(fault.Unavailable, "the cluster is still being set up")
	}
	if version, err := strconv.ParseUint(r.query.Get("version"), 10, 64); err != nil {
		return fault.New(fault.Invalid, "invalid swarm version '%s': %w", r.query.Get("version"), err)
	} else if version != c.Revision {
		return fault.New(fault.Internal, "rpc error: code = Unknown desc = update out of sequence")
	}
	present, err := a.clusterInfo(c)
	if err != nil {
		return err
	}
	asked, err := a.clusterInfo(c) // what is not said stays as it is
	if err != nil {
		return err
	}
	spec := asked.Spec
	if err := decode(r, &spec, true); err != nil {
		return err
	}
	autolock, rotate := spec.EncryptionConfig.AutoLockManagers, spec.CAConfig.ForceRotate > present.Spec.CAConfig.ForceRotate
	spec.EncryptionConfig, spec.CAConfig.ForceRotate = present.Spec.EncryptionConfig, present.Spec.CAConfig.ForceRotate
	if field, value := firstDifference("", plain(spec), plain(present.Spec)); field != "" {
		return notHonoured("docker swarm update of "+field, value)
	}
	if worker, manager := r.flag("rotateWorkerToken"), r.flag("rotateManagerToken"); worker || manager {
		if err := a.Core.RotateTokens(r.Context(), r.who, manager, worker); err != nil {
			return err
		}
	}
	if rotate {
		if err := a.Core.RotateAuthority(r.Context(), r.who, 0); err != nil {
			return err
		}
	}
	if autolock != present.Spec.EncryptionConfig.AutoLockManagers {
		if _, err := a.Core.SetAutolock(r.Context(), r.who, autolock); err != nil {
			return err
		}
	}
	if r.flag("rotateManagerUnlockKey") {
		if _, err := a.Core.UnlockKey(r.Context(), r.who, true); err != nil {
			return err
		}
	}
	return done(w, http.StatusOK)
}

// plain is a value as JSON has it.
func plain(v any) (out any) {
	data, err := json.Marshal(v)
	if err != nil || json.Unmarshal(data, &out) != nil {
		return nil
	}
	return out
}

// firstDifference names a field in which two values differ, and what it is in the first; "" when there is none.
func firstDifference(at string, a, b any) (string, any) {
	x, y := asMap(a), asMap(b)
	if x == nil && y == nil {
		if fmt.Sprint(a) != fmt.Sprint(b) && !(empty(a) && empty(b)) {
			return at, a
		}
		return "", nil
	}
	names := map[string]bool{}
	for name := range x {
		names[name] = true
	}
	for name := range y {
		names[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if field, value := firstDifference(strings.TrimPrefix(at+"."+name, "."), x[name], y[name]); field != "" {
			return field, value
		}
	}
	return "", nil
}

func asMap(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

func (a *API) swarmUnlockKey(w http.ResponseWriter, r *request) error {
	view, err := a.Core.Authority(r.Context(), r.who)
	if err != nil {
		return err
	}
	key := ""
	if view.Autolock {
		if key, err = a.Core.UnlockKey(r.Context(), r.who, false); err != nil {
			return err
		}
	}
	return answer(w, http.StatusOK, map[string]string{"UnlockKey": key})
}

func (a *API) swarmUnlock(w http.ResponseWriter, r *request) error {
	var req swarm.UnlockRequest
	if err := decode(r, &req, true); err != nil {
		return err
	}
	view, err := a.Core.Authority(r.Context(), r.who)
	if err != nil {
		return err
	}
	if !view.Locked {
		return fault.New(fault.Conflict, "swarm is not locked")
	}
	if err := a.Core.Unlock(r.Context(), r.who, req.UnlockKey); err != nil {
		return err
	}
	return done(w, http.StatusOK)
}
