package marathon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// change is what is to become of apps, pods and groups together.
type change struct {
	apps   map[string]*app
	pods   map[string]*pod
	remove []string   // paths
	groups *groupTree // nil: they stay as they are
	// versions are groups of which the version is to be kept, by path, with what it says.
	versions map[string][]byte
	force    bool
	dry      bool
	restart  bool
}

// result is what a change is answered with.
type result struct {
	Version      string `json:"version"`
	DeploymentID string `json:"deploymentId"`
}

// planned is a change as it is carried out.
type planned struct {
	a     *API
	r     *request
	c     *change
	snap  *store.Snapshot
	now   time.Time
	rec   *record
	batch core.Batch
	byApp map[string]*core.Deployment
	pull  []string
	// have are the apps and pods that are changed: path → application and name.
	have  map[string][2]string
	taken map[int]bool // service ports of theirs, found out when first asked for
	next  int          // the service port from which on one may be free
	ended map[string]bool
	// results are what core made of it.
	results []core.DeployResult
}

// commit carries a change out, or checks it if it is dry. Whoever calls it holds the turn, and took the
// request's snapshot since.
func (a *API) commit(r *request, c *change) (*record, error) {
	p, err := a.carry(r, c)
	if err != nil {
		return nil, err
	}
	return p.rec, nil
}

func (a *API) carry(r *request, c *change) (*planned, error) {
	p := &planned{a: a, r: r, c: c, snap: r.snap, now: time.Now(), byApp: map[string]*core.Deployment{}, have: map[string][2]string{}, ended: map[string]bool{}}
	p.batch.Keys.Expect = map[string]uint64{}
	p.rec = &record{ID: newUUID(), Started: p.now}
	last := ""
	paths := slices.Sorted(maps.Keys(c.apps))
	paths = append(paths, slices.Sorted(maps.Keys(c.pods))...)
	present := map[string]*entry{}
	for _, path := range slices.Concat(paths, c.remove) {
		e := a.find(p.snap, r.ns, path)
		present[path] = e
		if e != nil && e.kept != nil {
			last = max(last, e.kept.Version)
		}
		if err := p.unlock(path); err != nil {
			return nil, err
		}
	}
	p.rec.Version = versionAfter(p.now, last)
	for _, path := range paths {
		p.have[path] = p.place(path)
	}
	if err := p.circles(); err != nil {
		return nil, err
	}
	for _, path := range slices.Sorted(maps.Keys(c.apps)) {
		if err := p.app(path, c.apps[path], present[path]); err != nil {
			return nil, err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(c.pods)) {
		if err := p.pod(path, c.pods[path], present[path]); err != nil {
			return nil, err
		}
	}
	for _, path := range c.remove {
		p.drop(path, present[path])
	}
	p.groups()
	for _, path := range append(paths, c.remove...) {
		p.batch.Keys.Put = append(p.batch.Keys.Put, core.KeyPut{Key: lockKey(r.ns, path), Value: []byte(p.rec.ID)})
	}
	p.batch.Keys.Put = append(p.batch.Keys.Put, p.rec.put(r.ns))
	return p, p.carryOut()
}

// unlock makes sure that no deployment stands in the way, or ends it.
func (p *planned) unlock(path string) error {
	kv, ok := p.snap.Keys().Get(lockKey(p.r.ns, path))
	if ok {
		p.batch.Keys.Expect[kv.Key] = kv.Modified
	} else {
		p.batch.Keys.Expect[lockKey(p.r.ns, path)] = 0
	}
	rec := under(p.snap, p.r.ns, path)
	if rec == nil || p.ended[rec.ID] || p.c.dry {
		return nil
	}
	if state, reason := rec.progress(p.snap); state == succeeded || state == failed {
		p.end(rec, state, reason) // it is over, and only not yet told
		return nil
	}
	if !p.c.force {
		return &locked{what: "App", deployments: []string{rec.ID}}
	}
	p.end(rec, failed, "canceled by a forced change")
	return nil
}

func (p *planned) end(rec *record, state, reason string) {
	p.ended[rec.ID] = true
	over := *rec
	over.State, over.Reason = state, reason
	p.batch.Keys.Put = append(p.batch.Keys.Put, over.put(p.r.ns))
}

// place is where the workload of a path is to be. One with volumes of its own needs an application, as
// those belong to it.
func (p *planned) place(path string) [2]string {
	if e := p.a.find(p.snap, p.r.ns, path); e != nil {
		return [2]string{e.workload.Application, e.workload.Name}
	}
	application, name := placeOf(path)
	if a := p.c.apps[path]; a != nil && a.resident() && application == "" {
		application = name
	}
	return [2]string{application, name}
}

// dependencies are those of an app or pod: its own, and those of the groups that it is in. A dependency
// on a group is one on all that is in it.
func (p *planned) dependencies(path string, own []string) []string {
	wanted := map[string]bool{}
	add := func(base string, list []string) {
		for _, d := range list {
			to, ok := resolvePath(base, d)
			if !ok {
				continue
			}
			for other := range p.have {
				if below(other, to) && other != path {
					wanted[other] = true
				}
			}
			for _, e := range p.a.entriesBelow(p.snap, p.r.ns, to) {
				if e.path != path && !slices.Contains(p.c.remove, e.path) {
					wanted[e.path] = true
				}
			}
		}
	}
	add(parentOf(path), own)
	tree := p.tree()
	for g := parentOf(path); ; g = parentOf(g) {
		if meta := tree.Groups[g]; meta != nil {
			add(parentOf(g), meta.Dependencies)
		}
		if g == "/" {
			break
		}
	}
	return slices.Sorted(maps.Keys(wanted))
}

// dependsOn says the same in the words of the workload.
func (p *planned) dependsOn(path string, own []string) (out []model.Dependency) {
	for _, to := range p.dependencies(path, own) {
		at, ok := p.have[to]
		if !ok {
			at = p.place(to)
		}
		out = append(out, model.Dependency{Workload: at[0] + "/" + at[1], Condition: model.DependencyReady})
	}
	return out
}

func (p *planned) tree() *groupTree {
	if p.c.groups != nil {
		return p.c.groups
	}
	return groupsOf(p.snap, p.r.ns)
}

// circles refuses apps that wait for each other.
func (p *planned) circles() error {
	own := func(path string) []string {
		if a := p.c.apps[path]; a != nil {
			return a.Dependencies
		}
		if e := p.a.find(p.snap, p.r.ns, path); e != nil && e.kept != nil && e.kept.App != nil {
			return e.kept.App.Dependencies
		}
		return nil
	}
	state := map[string]int{}
	var visit func(path string) bool
	visit = func(path string) bool {
		switch state[path] {
		case 1:
			return false
		case 2:
			return true
		}
		state[path] = 1
		for _, to := range p.dependencies(path, own(path)) {
			if !visit(to) {
				return false
			}
		}
		state[path] = 2
		return true
	}
	for path := range p.c.apps {
		if !visit(path) {
			return &invalid{message: "Object is not valid", status: 422, details: []detail{{Path: "/", Errors: []string{"Dependency graph has cyclic dependencies."}}}}
		}
	}
	return nil
}

// app plans one app.
func (p *planned) app(path string, a *app, e *entry) error {
	a.ID = path
	for i, d := range a.Dependencies {
		if to, ok := resolvePath(parentOf(path), d); ok {
			a.Dependencies[i] = to
		}
	}
	k := &kept{ID: path, App: a, Version: p.rec.Version, Config: p.rec.Version, Scaled: p.rec.Version}
	t := target{Path: path, Action: "Start"}
	if e != nil {
		if e.isPod() {
			return fault.New(fault.Conflict, "A pod with id [%s] already exists.", path)
		}
		t.Action, t.WorkloadID, t.Before, t.Count = "Restart", e.workload.ID, e.kept, e.workload.Count
		if err := e.workload.Refusal(); err != nil {
			return err
		}
		if e.kept == nil {
			return fault.New(fault.Unsupported, "%s was made with another API of Tutti: here it can be scaled, restarted and deleted; change it where it was made", path)
		}
		was := p.a.present(p.snap, e)
		if len(*portNumbers(a)) == len(*portNumbers(was)) {
			keepPorts(a, was)
		}
		if err := p.servicePorts(a); err != nil {
			return err
		}
		k.Scaled = e.kept.Scaled
		if sameConfig(a, was) && !p.c.restart {
			k.Config, t.Action = configOf(&e.workload.Template), "Scale"
			if k.Config == "" {
				k.Config = e.kept.Config
			}
			if *a.Instances == *was.Instances {
				t.Action, k.Version = "", e.kept.Version // nothing is changed: it keeps its version
			} else {
				k.Scaled = p.rec.Version
			}
		}
	} else if err := p.servicePorts(a); err != nil {
		return err
	}
	a.Version, a.VersionInfo = "", nil
	at := p.have[path]
	out := workloadOf(p.snap, a, at[1], k.Config)
	out.workload.DependsOn = p.dependsOn(path, a.Dependencies)
	if e != nil {
		out.workload.Template.ForceUpdate = e.workload.Template.ForceUpdate
	}
	p.add(at[0], out, k)
	p.rec.Affected = append(p.rec.Affected, t)
	return nil
}

// add makes a part of the batch, with what the adapter keeps of it.
func (p *planned) add(application string, out *part, k *kept) {
	data, err := json.Marshal(k)
	if err != nil {
		panic("an app is plain data: " + err.Error())
	}
	w := out.workload
	w.Extensions = map[string][]byte{extension: data}
	d := p.deployment(application)
	d.Workloads = append(d.Workloads, w)
	d.Volumes = append(d.Volumes, out.volumes...)
	if out.service != nil {
		d.Services = append(d.Services, out.service)
	}
	for _, n := range out.networks {
		p.needNetwork(n)
	}
	p.pull = append(p.pull, out.pull...)
	prefix := versionPrefix(p.r.ns, k.ID)
	p.batch.Keys.Put = append(p.batch.Keys.Put, core.KeyPut{Key: prefix + k.Version, Value: data})
	if old := versionsOf(p.snap, prefix); len(old) >= keptVersions {
		for _, v := range old[keptVersions-1:] {
			if v != k.Config {
				p.batch.Keys.Delete = append(p.batch.Keys.Delete, prefix+v)
			}
		}
	}
}

func (p *planned) deployment(application string) *core.Deployment {
	d := p.byApp[application]
	if d == nil {
		d = &core.Deployment{Namespace: p.r.ns, Application: application, Source: "marathon", KeepOthers: true, Members: true}
		p.byApp[application] = d
	}
	return d
}

// needNetwork makes a network outside any application, unless it is there.
func (p *planned) needNetwork(name string) {
	if _, ok := store.ByName[*model.Network](p.snap, p.r.ns, "", name); ok {
		return
	}
	d := p.deployment("")
	if !slices.ContainsFunc(d.Networks, func(n *model.Network) bool { return n.Name == name }) {
		d.Networks = append(d.Networks, &model.Network{Meta: model.Meta{Name: name}, Driver: "overlay", Attachable: true})
	}
}

func (p *planned) drop(path string, e *entry) {
	if e == nil {
		return
	}
	p.rec.Affected = append(p.rec.Affected, target{
		Path: path, Pod: e.isPod(), Action: "Stop", WorkloadID: e.workload.ID, Gone: true, Before: e.kept, Count: e.workload.Count,
	})
	p.batch.Remove = append(p.batch.Remove, e.workload.ID)
	p.deployment(e.workload.Application) // which goes with its last member, if it came to be with the first
	p.batch.Keys.DeletePrefixes = append(p.batch.Keys.DeletePrefixes, versionPrefix(p.r.ns, path))
}

// carryOut commits, and notes which workloads came to be.
func (p *planned) carryOut() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.r.Context()), 2*time.Minute)
	defer cancel()
	if p.c.dry {
		p.pull = nil
	}
	for _, ref := range p.pull {
		if _, err := p.a.Core.PullImage(ctx, p.r.who, ref, core.NoLogin, nil); err != nil {
			return &invalid{message: "Object is not valid", status: 422, details: []detail{{
				Path: "/container/docker/forcePullImage", Errors: []string{"the image " + ref + " could not be pulled: " + err.Error()},
			}}}
		}
	}
	for _, application := range slices.Sorted(maps.Keys(p.byApp)) { // the one outside any application first
		p.batch.Deployments = append(p.batch.Deployments, *p.byApp[application])
	}
	if len(p.batch.Deployments) == 0 {
		p.batch.Deployments = append(p.batch.Deployments, core.Deployment{Namespace: p.r.ns, KeepOthers: true, Members: true})
	}
	// What is new has its ID before it is made, for the record that is made with it.
	begun := map[[2]string]*target{}
	for i := range p.rec.Affected {
		if t := &p.rec.Affected[i]; t.WorkloadID == "" {
			begun[p.have[t.Path]] = t
		}
	}
	for i := range p.batch.Deployments {
		d := &p.batch.Deployments[i]
		d.DryRun = p.c.dry
		for _, w := range d.Workloads {
			w.ID = model.NewID()
			if old, ok := store.ByName[*model.Workload](p.snap, p.r.ns, d.Application, w.Name); ok {
				w.ID = old.ID
			}
			if t := begun[[2]string{d.Application, w.Name}]; t != nil {
				t.WorkloadID = w.ID
			}
		}
	}
	for i := range p.batch.Keys.Put {
		if p.batch.Keys.Put[i].Key == recordKey(p.r.ns, p.rec.ID) {
			p.batch.Keys.Put[i] = p.rec.put(p.r.ns)
		}
	}
	var err error
	p.results, err = p.a.Core.DeployTogether(ctx, p.r.who, p.batch)
	switch fault.KindOf(err) {
	case fault.NotFound, fault.Invalid, fault.Unsupported:
		if err != nil {
			path := "/"
			if strings.Contains(err.Error(), "image") {
				path = "/container/docker/image"
			}
			return &invalid{message: "Object is not valid", status: 422, details: []detail{{Path: path, Errors: []string{err.Error()}}}}
		}
	}
	return err
}

// present is an app as it is: as it was put, or as an earlier version said if the workload has returned
// to that, with as many instances as it has. What is in it is shared: clone it before you change that.
func (a *API) present(snap *store.Snapshot, e *entry) *app {
	k := e.kept
	if config := configOf(&e.workload.Template); config != "" && config != k.Config {
		if kv, ok := snap.Keys().Get(versionKey(e.workload.Namespace, e.path, config)); ok {
			then := &kept{}
			if json.Unmarshal(kv.Value, then) == nil && then.App != nil {
				k = then
			}
		}
	}
	c := *k.App
	count := e.workload.Count
	if e.workload.Suspended {
		count = 0
	}
	c.Instances = &count
	return &c
}

// sameConfig reports whether two apps differ in no more than how many instances there are.
func sameConfig(a, b *app) bool {
	x, y := *a, *b
	x.Instances, y.Instances, x.Version, y.Version, x.VersionInfo, y.VersionInfo = nil, nil, "", "", nil, nil
	m, err := json.Marshal(&x)
	n, err2 := json.Marshal(&y)
	return errors.Join(err, err2) == nil && reflect.DeepEqual(m, n)
}

// portNumbers are the service ports of an app.
func portNumbers(a *app) *[]int {
	var out []int
	for _, d := range a.definitions() {
		out = append(out, d.Port)
	}
	for _, m := range a.mappings() {
		out = append(out, m.ServicePort)
	}
	return &out
}

func setPort(a *app, i, n int) {
	if a.onHost() {
		(*a.PortDefinitions)[i].Port = n
		return
	}
	(*a.Container.PortMappings)[i].ServicePort = n
}

// keepPorts gives ports that are left open the numbers that they had.
func keepPorts(a, was *app) {
	if a.onHost() != was.onHost() || a.onHost() && *a.RequirePorts != *was.RequirePorts {
		return
	}
	old := *portNumbers(was)
	for i, n := range *portNumbers(a) {
		if n == 0 {
			setPort(a, i, old[i])
		}
	}
}

// The range of service ports.
const (
	firstServicePort = 10000
	lastServicePort  = 20000
)

// servicePorts assigns those that are left open. With requirePorts they are left to the node.
func (p *planned) servicePorts(a *app) error {
	for i, n := range *portNumbers(a) {
		if n != 0 || a.onHost() && *a.RequirePorts {
			continue
		}
		if n = p.freePort(); n == 0 {
			return fault.New(fault.Exhausted, "all service ports from %d to %d are taken", firstServicePort, lastServicePort)
		}
		setPort(a, i, n)
	}
	return nil
}

func (p *planned) freePort() int {
	if p.taken == nil {
		p.taken, p.next = map[int]bool{}, firstServicePort
		for _, a := range p.c.apps {
			for _, n := range *portNumbers(a) {
				p.taken[n] = true
			}
		}
	}
	n := p.a.freePort(p.snap, p.r.ns, p.next, p.taken)
	if n > 0 {
		p.next = n + 1
	}
	return n
}

// again runs a change that others' changes got ahead of once more, on what is then.
func (a *API) again(r *request, do func() error) error {
	a.turn.Lock()
	defer a.turn.Unlock()
	for n := 1; ; n++ {
		r.snap = a.Core.Store.Snapshot().Only(func(o model.Object) bool {
			return r.who.May(model.RoleViewer, o.GetMeta().Namespace) || o.GetMeta().Namespace == ""
		})
		err := do()
		if err == nil || n == 5 || !fault.Is(err, fault.Conflict) || errors.As(err, new(*locked)) || strings.Contains(err.Error(), "already exists") {
			return err
		}
	}
}

// decide carries out the change that is decided on, if any, on what is then; see again.
func (a *API) decide(r *request, what func() (*change, error)) (rec *record, err error) {
	err = a.again(r, func() error {
		c, err := what()
		if err == nil && c != nil {
			rec, err = a.commit(r, c)
		}
		return err
	})
	return rec, err
}

// decided answers a change, and tells those who follow events of it.
func (a *API) decided(w http.ResponseWriter, r *request, uri string, status int, rec *record) {
	w.Header().Set("Marathon-Deployment-Id", rec.ID)
	a.told(r, uri, nil)
	answer(w, status, rec.result())
}

func (r *record) result() result { return result{Version: r.Version, DeploymentID: r.ID} }

func newUUID() string {
	id := fmt.Sprintf("%x", model.NewID())
	return fmt.Sprintf("%s-%s-4%s-8%s-%s", id[:8], id[8:12], id[12:15], id[15:18], id[18:30])
}
