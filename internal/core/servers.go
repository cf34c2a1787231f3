package core

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// ServerView is a server of the cluster.
type ServerView struct {
	ID      string          `json:"id"`
	Name    string          `json:"name"`    // of its node
	Address string          `json:"address"` // host:port
	Voter   bool            `json:"voter"`   // else it follows without a vote
	Leader  bool            `json:"leader"`
	Standby bool            `json:"standby,omitempty"` // demoted: it gets no vote by itself
	State   model.NodeState `json:"state"`
	Since   time.Time       `json:"since,omitzero"` // of the state
	Version string          `json:"version,omitempty"`
}

// ListServers lists the cluster's servers by name.
func (c *Core) ListServers(who Caller) ([]ServerView, error) {
	if _, err := c.begin(who, "look", ""); err != nil {
		return nil, err
	}
	snap := c.Store.Snapshot()
	out := []ServerView{}
	for _, m := range c.Servers.Members() {
		v := ServerView{ID: m.ID, Name: m.ID, Address: m.Address, Voter: m.Voter, Leader: m.Leader, State: model.NodeUnknown}
		if n, ok := store.Get[*model.Node](snap, m.ID); ok {
			v.Name, v.Standby, v.State, v.Since, v.Version = n.Name, n.Standby, n.Status.State, n.Status.Since, n.Attributes["version"]
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b ServerView) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// Backup writes a backup of the cluster's state, which holds the cluster's keys.
func (c *Core) Backup(ctx context.Context, who Caller, to io.Writer) (err error) {
	a, err := c.begin(who, "backup", "")
	if err != nil {
		return err
	}
	defer a.end(&err)
	c.Log.Info("a backup is written", "by", who.Name, "through", who.Via)
	return c.Servers.WriteBackup(to)
}

// PromoteServer lets a server have a vote as soon as it has caught up.
func (c *Core) PromoteServer(ctx context.Context, who Caller, ref string) (err error) {
	a, err := c.begin(who, "server promote", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	n, err := findNode(c.Store.Snapshot(), ref)
	if err != nil {
		return err
	}
	if n.Status.State != model.NodeReady {
		return fault.New(fault.Invalid, "server %s is %s; only one that is ready can get a vote", n.Name, n.Status.State)
	}
	if err := c.Servers.Promote(ctx, n.ID); err != nil {
		return fmt.Errorf("promote server %s: %w", n.Name, err)
	}
	return c.tellOfServer(ctx, who, n, "server promoted")
}

// DemoteServer takes a server's vote away; it follows on, for when it is promoted again.
func (c *Core) DemoteServer(ctx context.Context, who Caller, ref string) (err error) {
	a, err := c.begin(who, "server demote", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	n, err := findNode(c.Store.Snapshot(), ref)
	if err != nil {
		return err
	}
	if err := c.Servers.Demote(ctx, n.ID); err != nil {
		return fmt.Errorf("demote server %s: %w", n.Name, err)
	}
	return c.tellOfServer(ctx, who, n, "server demoted")
}

// RemoveServer takes a server that is down out of the servers; its node stays. If it comes back, it
// joins again.
func (c *Core) RemoveServer(ctx context.Context, who Caller, ref string) (err error) {
	a, err := c.begin(who, "server remove", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	n, err := findNode(c.Store.Snapshot(), ref)
	if err != nil {
		return err
	}
	if n.Status.State == model.NodeReady {
		return fault.New(fault.Invalid, "server %s is ready: demote it, or stop it first", n.Name)
	}
	if err := c.Servers.Remove(ctx, n.ID); err != nil {
		return fmt.Errorf("remove server %s: %w", n.Name, err)
	}
	return c.tellOfServer(ctx, who, n, "server removed")
}

func (c *Core) tellOfServer(ctx context.Context, who Caller, n *model.Node, what string) error {
	cs := &store.ChangeSet{}
	event(cs, time.Now(), what, n, fmt.Sprintf("by %s through %s", who.Name, who.Via))
	_, err := c.Store.Commit(ctx, cs)
	return err
}
