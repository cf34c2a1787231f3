package control

import (
	"fmt"
	"slices"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// relink takes an instance that is kept for itself over to its workload's revision where that only has other
// networks, other bounds or another restart policy than the instance's own: it stays, and so does what runs in it, and
// joins and leaves networks and is bounded as it is. The addresses that it has it keeps. Other instances are left as they are.
func (p *pass) relink(w *model.Workload, i *model.Instance) (*model.Instance, error) {
	if !w.Template.KeepEnded || i.RevisionID == w.RevisionID || i.Status.State.Final() ||
		i.Desired != model.DesiredRun && i.Desired != model.DesiredHold {
		return i, nil
	}
	r, ok := store.Get[*model.Revision](p.snap, i.RevisionID)
	if !ok || !elsewhereOnly(&r.Template, &w.Template) {
		return i, nil
	}
	if n, ok := p.allNodes().byID[i.NodeID]; ok && slices.ContainsFunc(w.Template.Links(), func(l model.Link) bool { return !n.Carries(l.Driver, l.Parent) }) {
		return i, nil // its node is not on that network
	}
	c := current(p, i).Clone()
	c.RevisionID, c.Addresses = w.RevisionID, nil
	for _, at := range w.Template.Networks {
		if i.NodeID == "" {
			break // it gets them with its node
		}
		k := slices.IndexFunc(i.Addresses, func(a model.Address) bool {
			return a.Network == at.Network && (at.Address == "" || a.IP == at.Address) && (at.Address6 == "" || a.IP6 == at.Address6)
		})
		if k >= 0 {
			c.Addresses = append(c.Addresses, i.Addresses[k])
			continue
		}
		got, err := p.address(i, at, i.NodeID)
		if err != nil {
			return i, fmt.Errorf("put %s on further networks: %w", i.FullName(), err)
		}
		c.Addresses = append(c.Addresses, got)
	}
	p.put(c)
	return c, nil
}

// elsewhereOnly reports whether two templates differ in nothing but the networks that instances are on, and what bounds them.
func elsewhereOnly(a, b *model.Template) bool {
	x, y := a.Clone(), b.Clone()
	for _, t := range []*model.Template{&x, &y} {
		t.Unbind()
		t.Networks, t.NoNetwork = nil, false
	}
	return x.Hash() == y.Hash()
}
