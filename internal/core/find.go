package core

import (
	"fmt"
	"strings"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// Find says what a reference means in the caller's namespace. Tried in this order: an
// application ("shop"), a workload ("shop/web", or "web" outside any application), an instance
// ("shop/web.1", "shop/db-0" of a stateful one), a node by name, and the beginning, of at least four characters, of an ID.
func (c *Core) Find(who Caller, ref string) (Found, error) {
	a, err := c.begin(who, "look", ref)
	if err != nil {
		return Found{}, err
	}
	f, err := find(c.look(who), who.namespace(), ref)
	if err == nil {
		err = a.about(f)
	}
	return f, err
}

func find(snap *store.Snapshot, ns, ref string) (Found, error) {
	if ref == "" {
		return Found{}, fault.New(fault.Invalid, "nothing was named")
	}
	if a, ok := store.ByName[*model.Application](snap, ns, "", ref); ok {
		return Found{Application: a}, nil
	}
	app, name := model.SplitFullName(ref)
	if w, ok := store.ByName[*model.Workload](snap, ns, app, name); ok {
		return Found{Workload: w}, nil
	}
	if i := findInstance(snap, ns, app, name); i != nil {
		return Found{Instance: i}, nil
	}
	if n, ok := store.ByName[*model.Node](snap, "", "", ref); ok {
		return Found{Node: n}, nil
	}
	if app == "" {
		if f, ok, err := findLoose(snap, ref); err != nil || ok {
			return f, err
		}
	}
	return Found{}, fault.New(fault.NotFound, "no application, workload, instance or node is called %q", ref)
}

// findInstance prefers, among instances of one name, the one that is wanted, then the newest.
func findInstance(snap *store.Snapshot, ns, app, name string) *model.Instance {
	workload, _, ok := strings.Cut(name, ".")
	if !ok {
		dash := strings.LastIndexByte(name, '-') // "db-0" of a stateful workload
		if dash < 0 {
			return nil
		}
		workload = name[:dash]
	}
	w, ok := store.ByName[*model.Workload](snap, ns, app, workload)
	if !ok {
		return nil
	}
	var best *model.Instance
	for i := range store.InstancesOfWorkload(snap, w.ID) {
		if i.Name != name {
			continue
		}
		if best == nil || (i.WantsToRun() && !best.WantsToRun()) ||
			(i.WantsToRun() == best.WantsToRun() && i.Created.After(best.Created)) {
			best = i
		}
	}
	return best
}

// findLoose takes what people shorten: a workload's name without its application, where only
// one has it, and the beginning of an ID.
func findLoose(snap *store.Snapshot, ref string) (Found, bool, error) {
	var named []*model.Workload
	for w := range store.List[*model.Workload](snap) {
		if w.Name == ref {
			named = append(named, w)
		}
	}
	if len(named) == 1 {
		return Found{Workload: named[0]}, true, nil
	}
	if len(named) > 1 {
		return Found{}, false, fault.New(fault.Invalid, "%q is ambiguous: %s and %s", ref, named[0].FullName(), named[1].FullName())
	}
	if len(ref) < 4 {
		return Found{}, false, nil
	}
	var all []Found
	var ids []string
	for i := range store.ByIDPrefix[*model.Instance](snap, ref) {
		all, ids = append(all, Found{Instance: i}), append(ids, i.ID)
	}
	for w := range store.ByIDPrefix[*model.Workload](snap, ref) {
		all, ids = append(all, Found{Workload: w}), append(ids, w.ID)
	}
	for n := range store.ByIDPrefix[*model.Node](snap, ref) {
		all, ids = append(all, Found{Node: n}), append(ids, n.ID)
	}
	switch len(all) {
	case 0:
		return Found{}, false, nil
	case 1:
		return all[0], true, nil
	}
	return Found{}, false, fault.New(fault.Invalid, "%q is ambiguous: it begins %d IDs, %s among them", ref, len(all), ids[0])
}

func (f Found) describe() string {
	switch {
	case f.Application != nil:
		return "application " + f.Application.Name
	case f.Workload != nil:
		return "workload " + f.Workload.FullName()
	case f.Instance != nil:
		return "instance " + f.Instance.FullName()
	default:
		return "node " + f.Node.Name
	}
}

// findWorkload takes a reference that must mean one workload.
func findWorkload(snap *store.Snapshot, ns, ref string) (*model.Workload, error) {
	f, err := find(snap, ns, ref)
	if err != nil {
		return nil, err
	}
	if f.Workload != nil {
		return f.Workload, nil
	}
	if f.Application != nil {
		var names []string
		for w := range store.ByApplication[*model.Workload](snap, ns, f.Application.Name) {
			names = append(names, w.FullName())
		}
		if len(names) > 0 {
			return nil, fault.New(fault.Invalid, "%s is an application; name one of its workloads: %s", ref, strings.Join(names, ", "))
		}
	}
	return nil, fault.New(fault.Invalid, "%s is %s, not a workload", ref, f.describe())
}

func findNode(snap *store.Snapshot, ref string) (*model.Node, error) {
	f, err := find(snap, model.DefaultNamespace, ref)
	if err != nil {
		return nil, err
	}
	if f.Node == nil {
		return nil, fault.New(fault.Invalid, "%s is %s, not a node", ref, f.describe())
	}
	return f.Node, nil
}

// instancesOf lists what a reference covers: every wanted or still existing instance of an
// application, a workload, a node, or the one instance.
func instancesOf(snap *store.Snapshot, f Found) []*model.Instance {
	var out []*model.Instance
	add := func(w *model.Workload) {
		for i := range store.InstancesOf(snap, w) {
			out = append(out, i)
		}
	}
	switch {
	case f.Application != nil:
		for w := range store.ByApplication[*model.Workload](snap, f.Application.Namespace, f.Application.Name) {
			add(w)
		}
	case f.Workload != nil:
		add(f.Workload)
	case f.Instance != nil:
		out = append(out, f.Instance)
	case f.Node != nil:
		for i := range store.InstancesOnNode(snap, f.Node.ID) {
			out = append(out, i)
		}
	}
	return out
}

func workloadLabel(w *model.Workload) string { return fmt.Sprintf("workload %s", w.FullName()) }
