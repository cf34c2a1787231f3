package provision

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/autoscale"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Provider has hosts to give.
type Provider interface {
	// Hosts are those that it gave and has not taken back, in the order in which they came. The first
	// one is like those that it would give.
	Hosts() ([]Host, error)
	// Add makes a host that is to join the cluster, and need not be a member when it returns.
	Add(ctx context.Context) (name string, err error)
	// SetLeaving remembers, whatever ends meanwhile, whether a host is being given back.
	SetLeaving(name string, leaving bool) error
	// Stop ends all that runs on a host. It is safe to call again.
	Stop(ctx context.Context, name string) error
	// Remove takes a host back, with its data. It is safe to call again.
	Remove(ctx context.Context, name string) error
}

// Cluster is what a provider's hosts are for; native.Client is one.
type Cluster interface {
	HostDemand(ctx context.Context, like string, most int) (autoscale.Demand, error)
	TellHost(ctx context.Context, news autoscale.HostNews, host, why string) error
	SetAvailability(ctx context.Context, node string, a model.Availability) error
	RemoveNode(ctx context.Context, node string) error
}

// Growing asks a provider for hosts and gives them back. What it remembers, other than which hosts are
// leaving, need not survive it.
type Growing struct {
	Provider Provider
	Policy   autoscale.HostPolicy
	Log      *slog.Logger

	past autoscale.HostPast
}

// Look decides once and does what follows. What could not be done is tried again at the next look.
func (g *Growing) Look(ctx context.Context, c Cluster, now time.Time) error {
	all, err := g.Provider.Hosts()
	if err != nil || len(all) == 0 {
		return err
	}
	d, err := c.HostDemand(ctx, all[0].Name, max(g.Policy.Max-len(all), 0))
	if err != nil {
		return err
	}
	in := autoscale.HostInput{Policy: g.Policy, Demand: d, Past: g.past, Now: now}
	for _, h := range all {
		v := autoscale.HostView{Name: h.Name, Server: h.Server} // not a member yet, or no longer
		known := false
		if n := slices.IndexFunc(d.Hosts, func(v autoscale.HostView) bool { return v.Name == h.Name }); n >= 0 {
			v, known = d.Hosts[n], true
		}
		if h.Leaving {
			return g.leave(ctx, c, &v, known) // one thing at a time
		}
		in.Hosts = append(in.Hosts, v)
	}
	out := autoscale.NextHosts(in)
	g.past = out.Past
	switch {
	case out.Ask > 0:
		if err := c.TellHost(ctx, autoscale.HostAsked, "", fmt.Sprintf("%d further: %s", out.Ask, out.Reason)); err != nil {
			return err
		}
		for range out.Ask {
			name, err := g.Provider.Add(ctx)
			if err != nil {
				return c.TellHost(ctx, autoscale.HostRefused, "", err.Error())
			}
			g.Log.Info("host added", "host", name, "reason", out.Reason)
		}
	case out.GiveBack != "":
		if err := c.TellHost(ctx, autoscale.HostGivenBack, out.GiveBack, out.Reason); err != nil {
			return err
		}
		g.Log.Info("host is given back", "host", out.GiveBack, "reason", out.Reason)
		return g.Provider.SetLeaving(out.GiveBack, true)
	}
	return nil
}

// leave takes the next step of giving a host back: it is closed for new work, if nothing came meanwhile
// emptied of what every host has, stopped, forgotten by the cluster, and removed.
func (g *Growing) leave(ctx context.Context, c Cluster, h *autoscale.HostView, known bool) error {
	switch {
	case !known:
		return g.Provider.Remove(ctx, h.Name)
	case !h.Empty:
		if err := c.SetAvailability(ctx, h.Name, model.Active); err != nil {
			return err
		}
		if err := g.Provider.SetLeaving(h.Name, false); err != nil {
			return err
		}
		return c.TellHost(ctx, autoscale.HostKept, h.Name, "work came while it was being given back")
	case !h.Ready:
		if err := g.Provider.Stop(ctx, h.Name); err != nil {
			return err
		}
		if err := c.RemoveNode(ctx, h.Name); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		return g.Provider.Remove(ctx, h.Name)
	case h.Open:
		return c.SetAvailability(ctx, h.Name, model.Cordoned)
	case h.Instances > 0:
		return c.SetAvailability(ctx, h.Name, model.Draining)
	}
	return g.Provider.Stop(ctx, h.Name)
}
