package core

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// NetCounts is what came to services so far.
type NetCounts struct {
	Services []ServiceCount `json:"services"`
	// Silent are nodes whose counts are not known, and why.
	Silent []string `json:"silent,omitempty"`
}

// ServiceCount is what came to an entrance of a service by a node, since it is there: it only grows.
type ServiceCount struct {
	Namespace string `json:"namespace"`
	Service   string `json:"service"` // with its application; of a port that an instance holds by itself, the instance
	Node      string `json:"node"`    // its name
	// Entrance is a virtual IP, or a published port as ":8080/tcp" or "127.0.0.1:8080/tcp"; "ingress" is all routes.
	Entrance string `json:"entrance"`
	// Connections are also those that nobody answered; of datagrams, pairs of ends.
	Connections uint64 `json:"connections"`
	Requests    uint64 `json:"requests"` // of HTTP, by the ingress
	Sent        uint64 `json:"sent"`     // bytes to the service, packets' headers with them
	Received    uint64 `json:"received"` // bytes from it
}

// EntranceIngress is the entrance of requests by routes.
const EntranceIngress = "ingress"

// NetCounts asks all nodes what they counted for services: for all that the caller may see, or those of a reference.
func (c *Core) NetCounts(ctx context.Context, who Caller, ref string) (NetCounts, error) {
	a, err := c.begin(who, "look", ref)
	if err != nil {
		return NetCounts{}, err
	}
	seen := c.look(who)
	counted := &counting{seen: seen, who: who}
	if ref != "" {
		f, err := find(seen, who.namespace(), ref)
		if err == nil {
			err = a.about(f)
		}
		if err == nil && f.Application == nil && f.Workload == nil {
			err = fault.New(fault.Invalid, "%s is %s; name an application or a workload", ref, f.describe())
		}
		if err != nil {
			return NetCounts{}, err
		}
		counted.about = &f
	}
	var mu sync.Mutex
	out := NetCounts{Services: []ServiceCount{}}
	together(ctx, store.List[*model.Node](c.Store.Snapshot()), usageAtOnce, netMapPatience, func(ctx context.Context, n *model.Node) {
		reply, err := c.Remote.Counts(ctx, n.ID)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			out.Silent = append(out.Silent, fmt.Sprintf("%s: %v", n.Name, err))
		}
		out.Services = append(out.Services, counted.of(n.Name, &reply)...)
	})
	slices.SortFunc(out.Services, func(a, b ServiceCount) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Entrance, b.Entrance), cmp.Compare(a.Node, b.Node))
	})
	slices.Sort(out.Silent)
	return out, ctx.Err()
}

// counting gives names to what nodes counted.
type counting struct {
	seen  *store.Snapshot
	who   Caller
	about *Found // nil: everything
}

func (c *counting) of(node string, reply *wire.CountsReply) (out []ServiceCount) {
	for i := range reply.Counts {
		e := &reply.Counts[i]
		if one, ok := c.name(&e.ServiceEntrance); ok {
			one.Node, one.Entrance = node, entranceText(&e.ServiceEntrance)
			one.Connections, one.Sent, one.Received = e.Connections, e.Sent, e.Received
			out = append(out, one)
		}
	}
	for id, n := range reply.Requests {
		if one, ok := c.name(&wire.ServiceEntrance{Service: id}); ok {
			one.Node, one.Entrance, one.Requests = node, EntranceIngress, n
			out = append(out, one)
		}
	}
	return out
}

// name says whose entrance it is, if the caller may know and asked about it.
func (c *counting) name(e *wire.ServiceEntrance) (one ServiceCount, ok bool) {
	var namespace, application, workload string
	if group, of := wire.GroupOf(e.Service); of {
		parts := strings.SplitN(group, "/", 3)
		if len(parts) != 3 || !c.who.has(model.RoleViewer, parts[0]) {
			return one, false
		}
		namespace, application, one.Service = parts[0], parts[1], strings.TrimPrefix(parts[1]+"/"+parts[2], "/")
	} else if e.Instance != "" {
		i, seen := store.Get[*model.Instance](c.seen, e.Instance)
		if !seen {
			return one, false
		}
		namespace, application, workload, one.Service = i.Namespace, i.Application, i.WorkloadID, i.FullName()
	} else {
		s, seen := store.Get[*model.Service](c.seen, e.Service)
		if !seen {
			return one, false
		}
		namespace, application, workload, one.Service = s.Namespace, s.Application, s.WorkloadID, s.FullName()
	}
	one.Namespace = namespace
	switch f := c.about; {
	case f == nil:
	case f.Application != nil && (f.Application.Namespace != namespace || f.Application.Name != application):
		return one, false
	case f.Workload != nil && f.Workload.ID != workload:
		return one, false
	}
	return one, true
}

func entranceText(e *wire.ServiceEntrance) string {
	if e.Port == 0 {
		return e.IP
	}
	return net.JoinHostPort(e.IP, strconv.Itoa(int(e.Port))) + "/" + e.Protocol
}
