package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// networkState is what this node was told of the cluster's network, and what became of it; guarded by
// Agent.mu.
type networkState struct {
	revision uint64 // up to which it is known to be right; 0: nothing was told
	version  int    // counts different contents
	inForce  int    // the version that is
	lost     bool   // a difference did not fit; everything is on its way
	// pending are the messages that are to be put in force next.
	pending []*wire.Network
}

// mostPending bounds what waits while a state is put in force: who is further behind asks for everything.
const mostPending = 4096

// take takes over a complete state or a difference. It reports whether a difference fits, and
// whether anything changed.
func (n *networkState) take(m *wire.Network) (fits, changed bool) {
	switch {
	case m.Since == 0:
		*n = networkState{version: n.version, inForce: n.inForce}
	case n.revision == 0 || n.revision < m.Since || len(n.pending) >= mostPending:
		return false, false
	case len(m.Nodes)+len(m.Networks)+len(m.Services)+len(m.Instances)+len(m.Policies)+len(m.Gone) == 0 && m.NodePool == "":
		n.revision = max(n.revision, m.Revision) // it only says that nothing changed
		return true, false
	}
	n.revision = max(n.revision, m.Revision)
	n.version++
	n.pending = append(n.pending, m)
	return true, true
}

// NetworkRevision is the revision of the network state that this agent holds; 0: none.
func (a *Agent) NetworkRevision() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.network.lost {
		return 0
	}
	return a.network.revision
}

// networkUnchanged says that the state last handed over is still right as of the revision.
func (a *Agent) networkUnchanged(revision uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := &a.network
	if n.revision == 0 || n.lost || revision <= n.revision {
		return
	}
	n.revision = revision
	a.tellApplied()
}

// tellApplied says which revision is in force; the lock is held.
func (a *Agent) tellApplied() {
	if n := &a.network; n.revision > 0 && n.inForce == n.version {
		a.session.Applied(n.revision)
	}
}

// SetNetwork takes over a newer network state, or what changed of it; it is put in force in the
// background. It reports false when a difference does not fit the state that the agent has: then
// everything has to be told anew.
func (a *Agent) SetNetwork(m *wire.Network) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := &a.network
	if n.lost && m.Since > 0 {
		return true // everything was asked for already
	}
	fits, changed := n.take(m)
	switch {
	case !fits:
		n.lost = true
	case changed:
		select {
		case a.networkWake <- struct{}{}:
		default:
		}
	default:
		a.tellApplied()
	}
	return fits
}

// keepEvery is how often keepers look after what is theirs.
const keepEvery = 2 * time.Second

func (a *Agent) runNetwork(ctx context.Context) error {
	keep := time.NewTicker(keepEvery)
	defer keep.Stop()
	kept := wire.NewKeptNetwork()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-keep.C:
			a.keepNetwork(ctx)
			continue
		case <-a.networkWake:
		}
		a.mu.Lock()
		version, revision, told := a.network.version, a.network.revision, a.network.pending
		a.network.pending = nil
		a.mu.Unlock()
		for _, m := range told {
			kept.Apply(m)
		}
		state := kept.Next()
		if err := a.syncNetwork(ctx, state); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			kept.Forget() // the parts are in different states now
			a.Log.Error("network state could not be put in force", "error", err, "revision", revision)
			time.AfterFunc(500*time.Millisecond, a.pokeNetwork)
			continue
		}
		var knows map[string][]model.Address // of all instances, where it is not known which are others
		if state.Changes == nil {
			knows = make(map[string][]model.Address, len(state.Instances))
			for i := range state.Instances {
				knows[state.Instances[i].ID] = state.Instances[i].Addresses
			}
		}
		a.mu.Lock()
		a.network.inForce = version
		if knows != nil {
			a.networkKnows = knows
		} else {
			for id := range state.Changes.Instances {
				if in := state.Instance(id); in != nil {
					a.networkKnows[id] = in.Addresses
				} else {
					delete(a.networkKnows, id)
				}
			}
		}
		close(a.networkChanged)
		a.networkChanged = make(chan struct{})
		if a.network.version == version {
			a.tellApplied()
		} else {
			a.session.Applied(revision) // a newer one is on its way
		}
		a.mu.Unlock()
	}
}

func (a *Agent) pokeNetwork() {
	select {
	case a.networkWake <- struct{}{}:
	default:
	}
}

// networkPatience bounds how long a start waits for the network to know the instance.
const networkPatience = 3 * time.Second

// awaitNetwork waits until routes, names and rules for an instance, with the addresses that it has, are in
// force on this node, so that it finds its peers from its first instruction on. It gives up waiting, not the
// start: an agent without a server has to work with the state that it has.
func (a *Agent) awaitNetwork(ctx context.Context, instance string, addresses []model.Address) {
	ctx, cancel := context.WithTimeout(ctx, networkPatience)
	defer cancel()
	for {
		a.mu.Lock()
		has, known := a.networkKnows[instance]
		known, unknown := known && slices.Equal(has, addresses), a.network.revision == 0
		changed := a.networkChanged
		a.mu.Unlock()
		if known || unknown {
			return
		}
		select {
		case <-ctx.Done():
			a.Log.Warn("instance is started before the network knows it", "instance", instance)
			return
		case <-changed:
		}
	}
}

func (a *Agent) keepNetwork(ctx context.Context) {
	a.mu.Lock()
	inForce := a.network.inForce > 0
	a.mu.Unlock()
	if !inForce {
		return
	}
	for _, part := range a.Network {
		if k, ok := part.(Keeper); ok {
			if err := k.Keep(ctx); err != nil && ctx.Err() == nil {
				a.Log.Error("a part of the network could not be kept up", "error", err)
			}
		}
	}
}

func (a *Agent) syncNetwork(ctx context.Context, n *wire.Network) error {
	var all []error
	for _, part := range a.Network {
		all = append(all, part.Sync(ctx, n))
	}
	return errors.Join(all...)
}
