package core

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/autoscale"
	"github.com/tutti-run/tutti/internal/cron"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
)

// Deploy makes an application as the deployment says, or changes it to that. It happens as a
// whole or, with an error that names every reason, not at all. It returns once the change is
// decided and durable; what follows is watched through the objects' statuses.
func (c *Core) Deploy(ctx context.Context, who Caller, d Deployment) (DeployResult, error) {
	results, err := c.DeployTogether(ctx, who, Batch{Deployments: []Deployment{d}})
	if err != nil {
		return DeployResult{}, err
	}
	return results[0], nil
}

// refersToConfigs reports whether a deployment's tasks have configs, whose content is identified with
// the key of secrets.
func refersToConfigs(d *Deployment) bool {
	for _, w := range d.Workloads {
		for _, t := range slices.Concat(w.Template.InitTasks, w.Template.Tasks) {
			if slices.ContainsFunc(t.Mounts, func(m model.Mount) bool { return m.Type == model.MountConfig }) {
				return true
			}
		}
	}
	return false
}

// checkDeployment refuses what can be refused without looking at the cluster.
func checkDeployment(d *Deployment) error {
	if err := model.CheckName(d.Application); err != nil && (d.Application != "" || !d.KeepOthers) {
		return fault.New(fault.Invalid, "application name %w", err)
	}
	var problems []string
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	type publisher struct{ service, hostIP string }
	published := map[string][]publisher{}
	for _, s := range d.Services {
		for _, p := range s.Ports {
			if _, err := netip.ParseAddr(p.HostIP); err != nil && p.HostIP != "" {
				bad("service %s: %q is no address of a host to publish port %d on", s.Name, p.HostIP, p.Published)
			}
			if p.Published == 0 || p.HostMode {
				continue
			}
			key := fmt.Sprintf("%d/%s", p.Published, p.Protocol)
			for _, other := range published[key] {
				if model.SameHostIP(other.hostIP, p.HostIP) {
					bad("services %s and %s both publish port %s", other.service, s.Name, key)
				}
			}
			published[key] = append(published[key], publisher{s.Name, p.HostIP})
		}
	}
	for _, v := range d.Volumes {
		if err := v.Check(); err != nil {
			return fmt.Errorf("application %s: %w", d.Application, err)
		}
	}
	names := map[string]bool{}
	for _, w := range d.Workloads {
		if err := model.CheckName(w.Name); err != nil {
			bad("workload name %v", err)
		}
		if names[w.Name] {
			bad("workload %s is there twice", w.Name)
		}
		names[w.Name] = true
		if w.Count < 0 {
			bad("workload %s: count %d is negative", w.Name, w.Count)
		}
		if w.Followed != nil {
			bad("workload %s: what another platform keeps is not deployed", w.Name)
		}
		if len(w.Template.Tasks) == 0 {
			bad("workload %s has no task", w.Name)
		}
		switch w.Type {
		case model.ServiceWorkload, model.GlobalWorkload, model.JobWorkload, model.GlobalJobWorkload, model.StatefulWorkload:
		case model.SingleWorkload:
			if w.Count != 1 {
				bad("workload %s: count %d: a single workload has one instance", w.Name, w.Count)
			}
		case model.CronWorkload:
			if _, err := cron.Parse(w.Cron.Schedule, w.Cron.TimeZone); err != nil {
				bad("workload %s: schedule %v", w.Name, err)
			}
		default:
			return fault.New(fault.Unsupported, "workload %s: kind %q is not supported yet; service, global, job, globalJob, cron, stateful and single are", w.Name, w.Type)
		}
		if w.Autoscale != nil {
			if why := autoscale.Check(w.Autoscale); why != "" {
				bad("workload %s: autoscale: %s", w.Name, why)
			}
			if w.Type != model.ServiceWorkload {
				bad("workload %s: only services are scaled; it is of kind %s", w.Name, w.Type)
			}
		}
		for i := range w.Maintenance {
			if why := cron.CheckWindow(&w.Maintenance[i]); why != "" {
				bad("workload %s: maintenance: %s", w.Name, why)
			}
		}
		if why := w.Template.UsersProblem(); why != "" {
			bad("workload %s: with users of its own (a user namespace) it cannot have %s", w.Name, why)
		}
		if why := w.Template.OnePIDsProblem(); why != "" {
			bad("workload %s: with one namespace for the processes of all tasks it cannot have %s", w.Name, why)
		}
		for _, t := range slices.Concat(w.Template.InitTasks, w.Template.Tasks) {
			if why := t.Tuning.Problem(); why != "" {
				bad("workload %s: %s", w.Name, why)
			}
			if process := t.Driver == "process"; t.Runtime != "" && process != (t.Runtime == model.UnitRuntime) {
				bad("workload %s: runtime %s: %s is for processes of the host, and all others are for containers", w.Name, t.Runtime, model.UnitRuntime)
			}
			if t.Tuning != nil && t.Tuning.Clocks != nil && t.Runtime != "" {
				bad("workload %s: clocks of its own (a time namespace) are for the built-in OCI runtime; it names %s", w.Name, t.Runtime)
			}
		}
		switch {
		case w.Exclusive && w.Type != model.SingleWorkload:
			bad("workload %s: exclusive is for single workloads; it is of kind %s", w.Name, w.Type)
		case w.Start != "" && w.Type != model.StatefulWorkload:
			bad("workload %s: a start order is for stateful workloads; it is of kind %s", w.Name, w.Type)
		case w.Start != "" && w.Start != model.Ordered && w.Start != model.Parallel:
			bad("workload %s: start order %q: ordered and parallel are accepted", w.Name, w.Start)
		}
	}
	for _, w := range d.Workloads {
		for _, dep := range w.DependsOn {
			if !names[dep.Workload] && !dep.Optional && !d.KeepOthers && !strings.Contains(dep.Workload, "/") {
				bad("workload %s depends on %s, which does not exist", w.Name, dep.Workload)
			}
		}
	}
	if len(problems) > 0 {
		return fault.New(fault.Invalid, "application %s: %s", d.Application, strings.Join(problems, "; "))
	}
	return nil
}

// planner turns a deployment into one change set over one snapshot.
type planner struct {
	outside map[string]string // kind + " " + name → ID of what is put outside any application together with it
	snap    *store.Snapshot
	cs      *store.ChangeSet
	d       *Deployment
	now     time.Time
	digests map[string]string // image reference → digest
	refs    map[string]string // kind + " " + name → ID
	// networksOf are those of this deployment, and of what is put outside together with it, by ID.
	networksOf map[string]*model.Network
	content    map[string]string // secret or config ID → what identifies its content
	result     DeployResult
	key        []byte // encrypts secrets
}

func (p *planner) plan(who Caller) error {
	p.content = map[string]string{}
	p.result = DeployResult{Application: p.d.Application}
	steps := []func() error{p.networks, p.volumes, p.secrets, p.configs, p.workloads, p.services, p.policies}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	if !p.d.KeepOthers {
		p.removeOthers()
	}
	return p.application(who)
}

func (p *planner) note(action string, obj model.Object) {
	ch := Change{Action: action, Kind: obj.Kind(), Name: obj.GetMeta().Name}
	if w, ok := obj.(*model.Workload); ok && action != "removed" {
		ch.Revision = w.RevisionID
	}
	p.result.Changes = append(p.result.Changes, ch)
}

func (p *planner) remember(obj model.Object) {
	p.refs[string(obj.Kind())+" "+obj.GetMeta().Name] = obj.GetMeta().ID
}

// resolve turns a name of the deployment into an ID: "x" is the application's, "/x" stands alone.
func resolve[T model.Object](p *planner, kind model.Kind, ref, where string) (string, error) {
	if name, external := strings.CutPrefix(ref, "/"); external {
		if id := p.outside[string(kind)+" "+name]; id != "" {
			return id, nil
		}
		if obj, ok := store.ByName[T](p.snap, p.d.Namespace, "", name); ok {
			return obj.GetMeta().ID, nil
		}
		return "", fault.New(fault.NotFound, "%s: external %s %q does not exist", where, kind, name)
	}
	if id := p.refs[string(kind)+" "+ref]; id != "" {
		return id, nil
	}
	if obj, ok := store.Get[T](p.snap, ref); ok && (obj.GetMeta().Namespace == p.d.Namespace || shared(obj)) {
		return ref, nil
	}
	if obj, ok := store.ByName[T](p.snap, p.d.Namespace, p.d.Application, ref); ok {
		return obj.GetMeta().ID, nil
	}
	return "", fault.New(fault.NotFound, "%s: %s %q does not exist in application %s", where, kind, ref, p.d.Application)
}

// shared reports whether an object may be referred to from every namespace.
func shared(obj model.Object) bool {
	n, ok := obj.(*model.Network)
	return ok && n.Shared
}

// settle writes want over what exists under its name, unless that is equal already, and says
// which. keep copies from the old object what the deployment does not decide.
func settle[T model.Object](p *planner, want T, keep func(old T)) error {
	m := want.GetMeta()
	if err := model.CheckName(m.Name); err != nil {
		return fault.New(fault.Invalid, "%s name %w", want.Kind(), err)
	}
	m.Namespace, m.Application = p.d.Namespace, p.d.Application
	old, ok := store.ByName[T](p.snap, m.Namespace, m.Application, m.Name)
	if !ok {
		m.ID, m.Created, m.Revision = cmp.Or(m.ID, model.NewID()), p.now, 0
		p.remember(want)
		p.note("created", want)
		put(p.cs, want)
		return nil
	}
	om := old.GetMeta()
	m.ID, m.Created, m.Revision = om.ID, om.Created, om.Revision
	want.AdoptStatus(old)
	keep(old)
	p.remember(want)
	if same(want, old) {
		p.note("unchanged", want)
		return nil
	}
	p.note("updated", want)
	put(p.cs, want)
	return nil
}

// same compares by the encoded form, in which absent and empty are equal.
func same(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

func (p *planner) networks() error {
	for _, n := range p.d.Networks {
		n = n.Clone()
		if err := n.CheckUnderlay(); err != nil {
			return err
		}
		var before *model.Network
		err := settle(p, n, func(old *model.Network) {
			if before = old; n.Subnet == "" {
				n.Subnet = old.Subnet
			}
		})
		if err != nil {
			return err
		}
		if before != nil && !n.SameUnderlay(before) {
			return fault.New(fault.Conflict, "network %s: where it is, and whether it is encrypted, cannot be changed; remove it, or give the other one another name", n.Name)
		}
		p.networksOf[n.ID] = n
	}
	return nil
}

// networkOf is a network as it will be; nil when there is none.
func (p *planner) networkOf(id string) *model.Network {
	if n := p.networksOf[id]; n != nil {
		return n
	}
	n, _ := store.Get[*model.Network](p.snap, id)
	return n
}

func (p *planner) volumes() error {
	for _, v := range p.d.Volumes {
		v = v.Clone()
		err := settle(p, v, func(old *model.Volume) { v.NodeID = old.NodeID })
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *planner) secrets() error {
	for _, s := range p.d.Secrets {
		want := &model.Secret{Meta: s.Meta, Digest: secret.Digest(p.key, s.Data), Templated: s.Templated}
		fresh := true
		if old, ok := store.ByName[*model.Secret](p.snap, p.d.Namespace, p.d.Application, s.Name); ok && old.Digest == want.Digest {
			want.Sealed, fresh = old.Sealed, false
		}
		if fresh {
			sealed, err := secret.Seal(p.key, s.Data, []byte(want.Digest))
			if err != nil {
				return fmt.Errorf("seal secret %s: %w", s.Name, err)
			}
			want.Sealed = sealed
		}
		if err := settle(p, want, func(*model.Secret) {}); err != nil {
			return err
		}
		p.content[want.ID] = contentOf(want.Digest, want.Templated)
		if fresh && p.exists(want) {
			p.tellFollowers(want, s.For)
		}
	}
	return nil
}

func (p *planner) exists(s *model.Secret) bool {
	_, ok := store.Get[*model.Secret](p.snap, s.ID)
	return ok
}

// tellFollowers has the instances see what a secret holds now that have folders of it: those of one workload, or of
// all of its application, which may be many.
func (p *planner) tellFollowers(s *model.Secret, only string) {
	follows := func(m model.Mount) bool { return m.Folder != "" && m.Source == s.ID }
	may := store.ByApplication[*model.Workload](p.snap, s.Namespace, s.Application)
	if only != "" {
		may = func(yield func(*model.Workload) bool) {
			if w, ok := store.Get[*model.Workload](p.snap, only); ok {
				yield(w)
			}
		}
	}
	for w := range may {
		if !slices.ContainsFunc(slices.Concat(w.Template.InitTasks, w.Template.Tasks), func(t model.TaskSpec) bool {
			return slices.ContainsFunc(t.Mounts, follows)
		}) {
			continue
		}
		for i := range store.InstancesOfWorkload(p.snap, w.ID) {
			if !i.Status.State.Final() {
				c := i.Clone()
				c.Folders = s.Digest
				put(p.cs, c)
			}
		}
	}
}

// contentOf identifies what a file is made of.
func contentOf(digest string, templated bool) string {
	if templated {
		return digest + " template"
	}
	return digest
}

func (p *planner) configs() error {
	for _, cfg := range p.d.Configs {
		cfg = cfg.Clone()
		if err := settle(p, cfg, func(*model.Config) {}); err != nil {
			return err
		}
		p.content[cfg.ID] = contentOf(secret.Digest(p.key, cfg.Data), cfg.Templated)
	}
	return nil
}

func (p *planner) workloads() error {
	for _, w := range p.d.Workloads {
		w = w.Clone()
		if err := p.resolveTemplate(w); err != nil {
			return err
		}
		if !p.d.NodesMayCome {
			if err := p.feasible(w); err != nil {
				return err
			}
		}
		if as, ok := p.d.Logins[w.Name]; ok {
			sealed, err := sealLogin(p.key, as, workloadBinding)
			if err != nil {
				return fmt.Errorf("keep the login of workload %s: %w", w.Name, err)
			}
			w.PullLogin = sealed
		}
		old, ok := store.ByName[*model.Workload](p.snap, p.d.Namespace, p.d.Application, w.Name)
		if ok && (w.Belongs == nil || old.Followed != nil) {
			if err := old.Refusal(); err != nil {
				return err
			}
		}
		if ok && old.Type != w.Type && (old.Type == model.StatefulWorkload || w.Type == model.StatefulWorkload) {
			return fault.New(fault.Conflict, "workload %s is of kind %s and cannot become %s: one writer in each slot could not be kept; remove it first, or give it another name",
				w.Name, old.Type, w.Type)
		}
		if ok && w.Template.ForceUpdate == 0 {
			w.Template.ForceUpdate = old.Template.ForceUpdate // a restart meanwhile is no reason for another one
		}
		hash := w.Template.Hash()
		w.ID, w.Generation = cmp.Or(w.ID, model.NewID()), 1 // unless it exists
		w.RevisionID = model.RevisionIDOf(w.ID, hash)
		var previous string
		err := settle(p, w, func(old *model.Workload) {
			w.Generation, w.Suspended, w.Paused, w.LaidOut = old.Generation, old.Suspended, old.Paused, old.LaidOut
			w.Proceed, w.Promoted = old.Proceed, old.Promoted
			if w.Autoscale != nil && old.Autoscale != nil { // the cluster has chosen it
				w.Count = old.Count
			}
			if w.PullLogin == nil {
				w.PullLogin = old.PullLogin
			}
			w.RevisionID, w.PreviousRevisionID = old.RevisionID, old.PreviousRevisionID
			if next := model.RevisionIDOf(w.ID, hash); next != old.RevisionID {
				w.PreviousRevisionID, w.RevisionID = old.RevisionID, next
				previous = old.RevisionID
			}
			if !same(w, old) {
				w.Generation++
			}
		})
		if err != nil {
			return err
		}
		keepRevision(p.snap, p.cs, w, hash, p.now)
		if previous != "" {
			event(p.cs, p.now, "workload updated", w, "a new revision is to be rolled out")
		}
	}
	return nil
}

// keepRevision makes the Revision object of a workload's template, unless it exists; then the
// change is on condition that it still does, as the leader forgets old ones.
func keepRevision(snap *store.Snapshot, cs *store.ChangeSet, w *model.Workload, hash string, now time.Time) {
	if r, ok := store.Get[*model.Revision](snap, w.RevisionID); ok {
		cs.Expect(model.KindRevision, r.ID, r.Revision)
		return
	}
	cs.Put(newRevision(snap, w, hash, now))
}

func newRevision(snap *store.Snapshot, w *model.Workload, hash string, now time.Time) *model.Revision {
	number := 1
	for r := range store.RevisionsOfWorkload(snap, w.ID) {
		number = max(number, r.Number+1)
	}
	return &model.Revision{
		Meta:       model.Meta{ID: w.RevisionID, Namespace: w.Namespace, Application: w.Application, Name: w.RevisionID, Created: now},
		WorkloadID: w.ID, Hash: hash, Number: number, Template: w.Template.Clone(),
	}
}

// joins looks at the workloads whose namespaces a workload enters, on whose nodes it is to run.
func (p *planner) joins(w *model.Workload, where string) error {
	shared := w.Template.Shared()
	for _, name := range shared.Joins() {
		application, bare, full := strings.Cut(name, "/")
		if !full {
			application, bare = p.d.Application, name
		}
		var other *model.Workload
		if i := slices.IndexFunc(p.d.Workloads, func(o *model.Workload) bool { return o.Name == bare }); i >= 0 && application == p.d.Application {
			other = p.d.Workloads[i]
		} else if other, _ = store.ByName[*model.Workload](p.snap, p.d.Namespace, application, bare); other == nil {
			return fault.New(fault.NotFound, "%s: workload %q, whose namespaces it is to enter, does not exist", where, name)
		}
		switch {
		case other.Name == w.Name && application == p.d.Application:
			return fault.New(fault.Invalid, "%s: it cannot enter its own namespaces", where)
		case len(other.Template.Tasks) > 0 && other.Template.Tasks[0].Driver == "process":
			return fault.New(fault.Invalid, "%s: workload %q is a process of the host, without namespaces that others could enter", where, name)
		case name == shared.IPCOf && !other.Template.Shared().OfferIPC && !other.Template.HostIPC:
			return fault.New(fault.Invalid, "%s: workload %q does not share its IPC: that has to be said there (ipc: shareable)", where, name)
		}
	}
	w.Template.StayWithJoined()
	return nil
}

// resolveTemplate turns the names in a template into IDs and pins images.
func (p *planner) resolveTemplate(w *model.Workload) error {
	where := "workload " + w.Name
	if err := p.joins(w, where); err != nil {
		return err
	}
	for i := range w.Template.Networks {
		id, err := resolve[*model.Network](p, model.KindNetwork, w.Template.Networks[i].Network, where)
		if err != nil {
			return err
		}
		w.Template.Networks[i].Network, w.Template.Networks[i].Link = id, nil
		if n := p.networkOf(id); n != nil {
			w.Template.Networks[i].Link = n.Link()
		}
	}
	for _, tasks := range [][]model.TaskSpec{w.Template.InitTasks, w.Template.Tasks} {
		for i := range tasks {
			t := &tasks[i]
			if t.Image != "" {
				t.Digest = p.digests[t.Image]
			}
			for j := range t.Mounts {
				if err := p.resolveMount(&t.Mounts[j], where); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (p *planner) resolveMount(m *model.Mount, where string) (err error) {
	switch m.Type {
	case model.MountImage:
		m.Content = p.digests[m.Source]
	case model.MountVolume:
		if m.Source != "" {
			m.Source, err = resolve[*model.Volume](p, model.KindVolume, m.Source, where)
		}
	case model.MountSecret:
		if m.Source, err = resolve[*model.Secret](p, model.KindSecret, m.Source, where); err != nil {
			return err
		}
		if m.Folder != "" {
			return nil // which is followed
		}
		m.Content = p.content[m.Source]
		if s, ok := store.Get[*model.Secret](p.snap, m.Source); ok && m.Content == "" {
			m.Content = contentOf(s.Digest, s.Templated)
		}
	case model.MountConfig:
		if m.Source, err = resolve[*model.Config](p, model.KindConfig, m.Source, where); err != nil {
			return err
		}
		m.Content = p.content[m.Source]
		if cfg, ok := store.Get[*model.Config](p.snap, m.Source); ok && m.Content == "" {
			m.Content = contentOf(secret.Digest(p.key, cfg.Data), cfg.Templated)
		}
	}
	return err
}

// feasible refuses a template that no node of the cluster could ever run: better said now than
// found out after the running revision was stopped for it.
func (p *planner) feasible(w *model.Workload) error {
	var nodes []*model.Node
	for n := range store.List[*model.Node](p.snap) {
		nodes = append(nodes, n)
	}
	if reason := schedule.Impossible(nodes, &w.Template); reason != "" {
		return fault.New(fault.Invalid, "workload %s can run on no node: %s", w.Name, reason)
	}
	return nil
}

func (p *planner) policies() error {
	for _, want := range p.d.Policies {
		want = want.Clone()
		where := "policy " + want.Name
		selectors := []*model.Selector{&want.Subject}
		for i := range want.Rules {
			for j := range want.Rules[i].Peers {
				if s := want.Rules[i].Peers[j].Selector; s != nil {
					selectors = append(selectors, s)
				}
			}
		}
		for _, s := range selectors {
			if s.Network == "" {
				continue
			}
			id, err := resolve[*model.Network](p, model.KindNetwork, s.Network, where)
			if err != nil {
				return err
			}
			s.Network = id
		}
		if want.Namespace = p.d.Namespace; want.Subject.Namespace == want.Namespace {
			want.Subject.Namespace = ""
		}
		if err := want.Check(); err != nil {
			return err
		}
		if err := settle(p, want, func(*model.Policy) {}); err != nil {
			return err
		}
	}
	return nil
}

// removeOthers drops members that the application has and the deployment lacks. Volumes stay:
// they hold data, and only an explicit word removes them.
func (p *planner) removeOthers() {
	ns, app := p.d.Namespace, p.d.Application
	gone := func(obj model.Object) bool { return p.refs[string(obj.Kind())+" "+obj.GetMeta().Name] == "" }
	for w := range store.ByApplication[*model.Workload](p.snap, ns, app) {
		if gone(w) && !p.isRun(w) {
			removeWorkload(p.snap, p.cs, w, nil)
			p.note("removed", w)
		}
	}
	for s := range store.ByApplication[*model.Service](p.snap, ns, app) {
		if gone(s) {
			p.drop(s)
		}
	}
	for n := range store.ByApplication[*model.Network](p.snap, ns, app) {
		if gone(n) {
			p.drop(n)
		}
	}
	for s := range store.ByApplication[*model.Secret](p.snap, ns, app) {
		if gone(s) {
			p.drop(s)
		}
	}
	for cfg := range store.ByApplication[*model.Config](p.snap, ns, app) {
		if gone(cfg) {
			p.drop(cfg)
		}
	}
	for policy := range store.ByApplication[*model.Policy](p.snap, ns, app) {
		if gone(policy) {
			p.drop(policy)
		}
	}
}

// isRun reports whether a workload is a run of a schedule, which goes with that.
func (p *planner) isRun(w *model.Workload) bool {
	_, ok := store.Get[*model.Workload](p.snap, w.OwnerID)
	return ok
}

func (p *planner) drop(obj model.Object) {
	p.cs.Delete(obj.Kind(), obj.GetMeta().ID)
	p.note("removed", obj)
}

// removeWorkload deletes a workload and its revisions; its instances end and are forgotten. within
// takes the place of the templates' StopGrace, unless it is nil.
func removeWorkload(snap *store.Snapshot, cs *store.ChangeSet, w *model.Workload, within *time.Duration) {
	cs.Delete(model.KindWorkload, w.ID)
	if w.Type == model.CronWorkload {
		for job := range store.ByApplication[*model.Workload](snap, w.Namespace, w.Application) {
			if job.OwnerID == w.ID {
				removeWorkload(snap, cs, job, within)
			}
		}
	}
	for i := range store.InstancesOfWorkload(snap, w.ID) {
		if i.Desired != model.DesiredRemove {
			c := i.Clone()
			c.Desired, c.Cause, c.StopWithin = model.DesiredRemove, "its workload was removed", within
			put(cs, c) // an older one must not take back where the leader has placed it meanwhile
		}
	}
}

// removeServices deletes the services that lead to a workload, and the policy that came with it.
func removeServices(snap *store.Snapshot, cs *store.ChangeSet, w *model.Workload) {
	for s := range store.ByApplication[*model.Service](snap, w.Namespace, w.Application) {
		if s.WorkloadID == w.ID {
			cs.Delete(model.KindService, s.ID)
		}
	}
	for p := range store.ByApplication[*model.Policy](snap, w.Namespace, w.Application) {
		if p.Name == w.Name && p.Subject.Workload == w.Name {
			cs.Delete(model.KindPolicy, p.ID)
		}
	}
}

func (p *planner) application(who Caller) error {
	a := &model.Application{Meta: model.Meta{Name: p.d.Application, Namespace: p.d.Namespace}, Source: p.d.Source, Version: 1}
	old, ok := store.ByName[*model.Application](p.snap, p.d.Namespace, "", p.d.Application)
	if p.d.Application == "" || p.d.Members && ok {
		return nil
	}
	if ok {
		a.Meta = old.Clone().Meta
		a.Version = old.Version + 1
	} else {
		a.ID, a.Created = model.NewID(), p.now
	}
	changed := !ok
	for _, ch := range p.result.Changes {
		changed = changed || ch.Action != "unchanged"
	}
	if !changed {
		return nil
	}
	put(p.cs, a)
	event(p.cs, p.now, "application deployed", a, fmt.Sprintf("version %d, by %s through %s", a.Version, who.Name, who.Via))
	return nil
}
