package control

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
)

// place finds nodes for all instances that have none.
func (p *pass) place() {
	var pending []*model.Instance
	for i := range store.UnplacedInstances(p.snap) {
		if i.Desired == model.DesiredRun && !i.Status.State.Final() && p.changed[i.ID] == nil {
			pending = append(pending, i)
		}
	}
	for _, o := range p.changed { // created in this very pass
		if i, ok := o.(*model.Instance); ok && i.NodeID == "" && i.Desired == model.DesiredRun {
			pending = append(pending, i)
		}
	}
	if len(pending) == 0 {
		return
	}
	slices.SortFunc(pending, func(a, b *model.Instance) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.WorkloadID, b.WorkloadID), cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.ID, b.ID))
	})
	p.seen = nil // what was created since counts too
	views, byID := p.views()
	templates := map[string]*model.Template{}
	requests := make([]schedule.Request, 0, len(pending))
	instances := map[string]*model.Instance{}
	for _, i := range pending {
		t := templates[i.RevisionID]
		if t == nil {
			r, ok := store.Get[*model.Revision](p.snap, i.RevisionID)
			if !ok {
				continue
			}
			t = &r.Template
			templates[i.RevisionID] = t
		}
		w, ok := store.Get[*model.Workload](p.snap, i.WorkloadID)
		if !ok {
			continue // removed; so will be the instance
		}
		if why := p.slotHeld(i); why != "" {
			p.pending(i.Clone(), why)
			continue
		}
		requests = append(requests, p.requestFor(i, w, t))
		instances[i.ID] = i
	}
	if len(requests) == 0 {
		return
	}
	var placed *tally
	if len(requests) > fewPlaced {
		placed = &tally{}
		p.split()
	}
	from := len(p.full)
	in := schedule.Cluster{Nodes: views, Spare: p.contest(byID, requests), Namespaces: p.shares(requests)}
	for n, pl := range schedule.Place(in, requests, p.snap.Revision()) {
		if placed != nil && p.cs.Len() >= setChanges {
			p.tell(placed)
			placed = &tally{}
		}
		p.cut()
		c := instances[pl.InstanceID].Clone()
		for _, victim := range pl.Victims {
			p.giveWay(victim, c)
		}
		if pl.NodeID == "" {
			p.pending(c, pl.Reason)
			continue
		}
		node := byID[pl.NodeID].Node
		if home, _ := p.pin(c, requests[n].Template); home != "" && home != node.ID {
			continue // a placement before this one gave its volume a home; the next pass heeds that
		}
		if err := p.assign(c, requests[n].Template, node, pl.Reason); err != nil {
			p.pending(c, err.Error())
			continue
		}
		p.put(c)
		if placed == nil {
			p.event("instance placed", c, "on "+node.Name+": "+pl.Reason)
		} else {
			placed.add(c, pl.Reason)
		}
	}
	if placed != nil {
		p.tell(placed)
		p.split()
		if !p.homes {
			p.loose = [2]int{from, len(p.full)}
		}
	}
}

// fewPlaced is how many placements of one pass are told one by one; more of them are told by
// workload, as each says of itself where it is and why.
const fewPlaced = 100

// tally sums up placements by workload, in the order in which workloads had their turn.
type tally struct {
	order []string
	by    map[string]*placements
}

type placements struct {
	count  int
	nodes  map[string]bool
	reason string // of the first
}

func (t *tally) add(i *model.Instance, reason string) {
	s := t.by[i.WorkloadID]
	if s == nil {
		if t.by == nil {
			t.by = map[string]*placements{}
		}
		s = &placements{nodes: map[string]bool{}, reason: reason}
		t.by[i.WorkloadID] = s
		t.order = append(t.order, i.WorkloadID)
	}
	s.count++
	s.nodes[i.NodeID] = true
}

func (p *pass) tell(t *tally) {
	for _, id := range t.order {
		if w, ok := store.Get[*model.Workload](p.snap, id); ok {
			s := t.by[id]
			p.event("instances placed", w, fmt.Sprintf("%d on %d nodes; the first: %s", s.count, len(s.nodes), s.reason))
		}
	}
}

// request asks for a place for an instance of a workload.
func (p *pass) request(w *model.Workload, t *model.Template) schedule.Request {
	r, ok := p.asked[t]
	if !ok {
		r = schedule.Request{WorkloadID: t.Placement.CountedAs(w.ID), Workload: w.FullName(), Namespace: w.Namespace, Template: t, HostPorts: p.fixedPorts(w.ID, t)}
		r.Near, r.Apart = p.relations(w, t)
		if p.asked == nil {
			p.asked = map[*model.Template]schedule.Request{}
		}
		p.asked[t] = r
	}
	return r
}

// requestFor is the request of an instance that waits for a node.
func (p *pass) requestFor(i *model.Instance, w *model.Workload, t *model.Template) schedule.Request {
	r := p.request(w, t)
	r.InstanceID = i.ID
	r.PinnedTo, r.PinReason = p.pin(i, t)
	return r
}

// pending writes why an instance has no place: the first time at once, later not too often, as
// with every change elsewhere it may read a little different.
func (p *pass) pending(i *model.Instance, reason string) {
	switch {
	case i.Reason == reason:
		return
	case i.Reason == "":
		p.event("instance pending", i, reason)
	case p.now.Before(p.c.reasoned.Add(reasonEvery)):
		p.unreasoned = true
		return
	default:
		p.reasoned = true
	}
	i.Reason = reason
	p.put(i)
}

// nodes are the cluster's nodes.
type nodes struct {
	list    []*model.Node
	byID    map[string]*model.Node
	leaving map[string]bool // IDs of those that are being drained
	// evicting are those with a taint that ends what runs there and does not tolerate it.
	evicting []*model.Node
}

func (p *pass) allNodes() *nodes {
	if p.nodes == nil {
		p.nodes = &nodes{byID: map[string]*model.Node{}, leaving: map[string]bool{}}
		for n := range store.List[*model.Node](p.snap) {
			p.nodes.list = append(p.nodes.list, n)
			p.nodes.byID[n.ID] = n
			if n.Availability == model.Draining {
				p.nodes.leaving[n.ID] = true
			}
			if schedule.Evicts(n, &model.Template{}) {
				p.nodes.evicting = append(p.nodes.evicting, n)
			}
		}
	}
	return p.nodes
}

// views counts what is taken of each node. Whoever places something there accounts for it.
func (p *pass) views() ([]*schedule.NodeView, map[string]*schedule.NodeView) {
	if p.seen != nil {
		return p.seen, p.seenByID
	}
	p.seen, p.seenByID = []*schedule.NodeView{}, map[string]*schedule.NodeView{}
	for _, n := range p.allNodes().list {
		v := &schedule.NodeView{Node: n, Images: p.images()[n.ID]}
		p.seen = append(p.seen, v)
		p.seenByID[n.ID] = v
	}
	var all []*model.Instance
	for i := range store.List[*model.Instance](p.snap) {
		all = append(all, i)
	}
	leaving := p.leaving(all)
	type kind struct {
		wanted    model.Resources
		placement model.Placement
	}
	kinds := map[string]kind{}
	take := func(i *model.Instance) {
		v := p.seenByID[i.NodeID]
		if v == nil || i.Status.State.Final() {
			return
		}
		r, ok := kinds[i.RevisionID]
		if !ok {
			if rev, found := store.Get[*model.Revision](p.snap, i.RevisionID); found {
				r = kind{schedule.Wanted(&rev.Template), rev.Template.Placement}
			}
			kinds[i.RevisionID] = r
		}
		workload := r.placement.CountedAs(i.WorkloadID)
		if leaving[i.ID] || i.Desired != model.DesiredRun {
			workload = "" // takes room still, but what takes its place may be spread as if it had gone
		}
		v.Take(workload, &r.wanted, i.HostPorts)
	}
	for _, i := range all {
		take(i)
	}
	for _, o := range p.changed { // created in this very pass
		if i, ok := o.(*model.Instance); ok && i.Revision == 0 {
			take(i)
		}
	}
	return p.seen, p.seenByID
}

// images are the images that nodes hold, by node ID, as far as is known.
func (p *pass) images() map[string]map[string]int64 {
	if p.held == nil {
		p.held = map[string]map[string]int64{}
		for img := range store.List[*model.Image](p.snap) {
			for _, n := range img.Status.Nodes {
				if p.held[n] == nil {
					p.held[n] = map[string]int64{}
				}
				p.held[n][img.Digest] = img.SizeBytes
			}
		}
	}
	return p.held
}

// leaving are the instances that run only until another one has taken their place.
func (p *pass) leaving(all []*model.Instance) map[string]bool {
	out := map[string]bool{}
	note := func(i *model.Instance) {
		if i.Replaces != "" && i.WantsToRun() {
			out[i.Replaces] = true
		}
	}
	for _, i := range all {
		note(i)
	}
	for _, o := range p.changed {
		if i, ok := o.(*model.Instance); ok {
			note(i)
		}
	}
	return out
}

// hostPorts are the ports that each instance of a workload holds on its node.
func (p *pass) hostPorts(workloadID string) []model.HostPort {
	if p.ports == nil {
		p.ports = map[string][]model.HostPort{}
		for s := range store.List[*model.Service](p.snap) {
			for _, port := range s.Ports {
				if port.HostMode && port.Published > 0 {
					p.ports[s.WorkloadID] = append(p.ports[s.WorkloadID], model.HostPort{Protocol: port.Protocol, Published: port.Published, Target: port.Target, HostIP: model.OneHostIP(port.HostIP)})
				}
			}
		}
	}
	return p.ports[workloadID]
}

func volumeIDs(t *model.Template) []string {
	var out []string
	for _, tasks := range [...][]model.TaskSpec{t.InitTasks, t.Tasks} {
		for n := range tasks {
			for i := range tasks[n].Mounts {
				if m := &tasks[n].Mounts[i]; m.Type == model.MountVolume && m.Source != "" {
					out = append(out, m.Source)
				}
			}
		}
	}
	return out
}

// nowhere is the ID of no node.
const nowhere = "-"

// pin returns the node on which an instance's local volumes live.
func (p *pass) pin(i *model.Instance, t *model.Template) (nodeID, reason string) {
	var first *model.Volume
	name := func(id string) string {
		if n := p.allNodes().byID[id]; n != nil {
			return n.Name
		}
		return model.ShortID(id)
	}
	volumes, err := p.volumesOf(i, t)
	if err != nil {
		return "", "" // assign says so
	}
	for _, m := range volumes {
		v := m.Volume
		switch {
		case v.NodeID == "":
		case first == nil:
			first = v
		case first.NodeID != v.NodeID:
			return nowhere, fmt.Sprintf("do not hold both the volume %s, which lives on %s, and %s, which lives on %s",
				first.FullName(), name(first.NodeID), v.FullName(), name(v.NodeID))
		}
	}
	if first == nil {
		return p.destination(i)
	}
	return first.NodeID, fmt.Sprintf("do not hold the volume %s, which lives on %s", first.FullName(), name(first.NodeID))
}

// assign puts an instance on a node: addresses, ports, and the home of volumes that have none.
func (p *pass) assign(i *model.Instance, t *model.Template, n *model.Node, reason string) error {
	var addresses []model.Address
	for _, at := range t.Networks {
		got, err := p.address(i, at, n.ID)
		if err != nil {
			return err
		}
		addresses = append(addresses, got)
	}
	if err := p.settleVolumes(i, t, n); err != nil {
		return err
	}
	ports, err := p.choosePorts(i, t, n)
	if err != nil {
		return err
	}
	if err := p.chooseDevices(i, t, n); err != nil {
		return err
	}
	i.NodeID, i.Reason, i.Addresses, i.HostPorts = n.ID, reason, addresses, ports
	if w, ok := store.Get[*model.Workload](p.snap, i.WorkloadID); ok && w.LaidOut && w.Suspended && i.Starts == 0 {
		i.Desired = model.DesiredHold // it has nothing to run yet
	}
	return nil
}

// address gives an instance one on a network: the fixed one, that of the instance which it replaces, or a free one.
func (p *pass) address(i *model.Instance, at model.Attachment, nodeID string) (model.Address, error) {
	ip := p.previous(i, at.Network)
	var err error
	if at.Address != "" || !p.pool(at.Network).takeAgain(nodeID, ip) {
		if ip, err = p.pool(at.Network).take(nodeID, at.Address); err != nil {
			return model.Address{}, err
		}
	}
	ip6, err := p.pool(at.Network).take6(ip, at.Address6)
	return model.Address{Network: at.Network, IP: ip, IP6: ip6}, err
}
