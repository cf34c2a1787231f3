package core

import (
	"context"
	"fmt"
	"time"

	"github.com/tutti-run/tutti/internal/autoscale"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// maxFurther bounds how many further hosts may be asked about at once.
const maxFurther = 100

// HostDemand says what up to so many further hosts like a given one would be good for, and which hosts
// are empty.
func (c *Core) HostDemand(_ context.Context, who Caller, like string, most int) (autoscale.Demand, error) {
	if _, err := c.begin(who, "host demand", like); err != nil {
		return autoscale.Demand{}, err
	}
	if most < 0 || most > maxFurther {
		return autoscale.Demand{}, fault.New(fault.Invalid, "%d further hosts: 0 to %d are accepted", most, maxFurther)
	}
	snap := c.Store.Snapshot()
	n, err := findNode(snap, like)
	if err != nil {
		return autoscale.Demand{}, err
	}
	return c.Demand(snap, n, most), nil
}

// TellHost makes an event of what becomes of a provider's hosts, and why; host is empty while there is
// none yet.
func (c *Core) TellHost(ctx context.Context, who Caller, news autoscale.HostNews, host, why string) (err error) {
	a, err := c.begin(who, "host tell", fmt.Sprintf("%s %s", news, host))
	if err != nil {
		return err
	}
	defer a.end(&err)
	switch news {
	case autoscale.HostAsked, autoscale.HostRefused, autoscale.HostGivenBack, autoscale.HostKept:
	default:
		return fault.New(fault.Invalid, "news %q: %q, %q, %q and %q are accepted", news, autoscale.HostAsked, autoscale.HostRefused, autoscale.HostGivenBack, autoscale.HostKept)
	}
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		if host != "" {
			n, err := findNode(snap, host)
			if err != nil {
				return err
			}
			event(cs, time.Now(), string(news), n, why)
			return nil
		}
		cluster, ok := store.Get[*model.Cluster](snap, model.ClusterID)
		if !ok {
			return fault.New(fault.Unavailable, "the cluster is still being set up")
		}
		event(cs, time.Now(), string(news), cluster, why)
		return nil
	})
}
