package marathon

import (
	"cmp"
	"context"
	"strings"
	"sync"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/store/tree"
)

// index has the apps and pods of all namespaces by path, and the ports that they and services have. It
// follows the store when it is asked, so that nothing walks all workloads to find one.
type index struct {
	mu     sync.Mutex
	follow *store.Watcher // nil: it is to be made anew
	paths  tree.Tree[*entry]
	byID   map[string]*entry // by workload
	// service counts which apps of a namespace have a service port, published which services of any one do.
	service   map[nsPort]int
	published map[int]int
}

type nsPort struct {
	ns   string
	port int
}

// Entries stand by namespace and path; where a path is there twice, what was made with this API is first.

func (e *entry) place() (ns, path, own string) {
	own = "1" + e.workload.ID
	if e.kept != nil {
		own = "0"
	}
	return e.workload.Namespace, e.path, own
}

func atPlace(ns, path, own string) func(*entry) int {
	return func(e *entry) int {
		n, p, o := e.place()
		return cmp.Or(strings.Compare(n, ns), strings.Compare(p, path), strings.Compare(o, own))
	}
}

// at returns the apps and pods as a snapshot has them, or as they are since.
func (a *API) at(snap *store.Snapshot) tree.Tree[*entry] {
	x := &a.index
	x.mu.Lock()
	defer x.mu.Unlock()
	a.catchUp(snap)
	return x.paths
}

// presently is a context that has ended: who waits with it is told what is there.
var presently = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// catchUp brings the index to a snapshot, or beyond. The lock is held.
func (a *API) catchUp(snap *store.Snapshot) {
	x := &a.index
	edit := x.paths.Edit()
	for x.follow != nil && x.follow.Seen() < snap.Revision() {
		b, err := x.follow.Next(presently)
		if err != nil {
			if presently.Err() != err {
				x.follow = nil
			}
			break
		}
		for _, ch := range b.Changes {
			a.indexChange(&edit, ch.Old, ch.New)
		}
	}
	if x.follow == nil {
		whole := a.Core.Store.Snapshot() // the request's may hide what another one is to find
		edit = tree.Tree[*entry]{}.Edit()
		x.byID, x.service, x.published = map[string]*entry{}, map[nsPort]int{}, map[int]int{}
		x.follow = a.Core.Store.Watch(whole.Revision(), model.KindWorkload, model.KindService)
		for w := range store.List[*model.Workload](whole) {
			a.indexChange(&edit, nil, w)
		}
		for s := range store.List[*model.Service](whole) {
			a.indexChange(&edit, nil, s)
		}
	}
	x.paths = edit.Share()
}

func (a *API) indexChange(edit *tree.Edit[*entry], old, now model.Object) {
	x := &a.index
	if s, ok := old.(*model.Service); ok {
		x.publish(s, -1)
	}
	if s, ok := now.(*model.Service); ok {
		x.publish(s, 1)
	}
	if w, ok := old.(*model.Workload); ok {
		if e := x.byID[w.ID]; e != nil {
			edit.Remove(atPlace(e.place()))
			x.count(e, -1)
			delete(x.byID, w.ID)
		}
	}
	if w, ok := now.(*model.Workload); ok {
		if e := a.entryOf(w); e != nil {
			edit.Put(e, atPlace(e.place()))
			x.count(e, 1)
			x.byID[w.ID] = e
		}
	}
}

func (x *index) publish(s *model.Service, n int) {
	for _, p := range s.Ports {
		if p.Published > 0 {
			x.published[p.Published] += n
		}
	}
}

func (x *index) count(e *entry, n int) {
	if e.kept == nil || e.kept.App == nil {
		return
	}
	for _, port := range *portNumbers(e.kept.App) {
		if port == 0 {
			continue
		}
		key := nsPort{e.workload.Namespace, port}
		if x.service[key] += n; x.service[key] == 0 {
			delete(x.service, key)
		}
	}
}

// freePort is the first service port from one on that no app of a namespace has, no service publishes, and
// that is not taken otherwise; 0 when there is none.
func (a *API) freePort(snap *store.Snapshot, ns string, from int, taken map[int]bool) int {
	x := &a.index
	x.mu.Lock()
	defer x.mu.Unlock()
	a.catchUp(snap)
	for n := from; n <= lastServicePort; n++ {
		if !taken[n] && x.service[nsPort{ns, n}] == 0 && x.published[n] == 0 {
			return n
		}
	}
	return 0
}

// entries are all apps and pods, by path.
func (a *API) entries(snap *store.Snapshot, ns string) []*entry { return a.entriesBelow(snap, ns, "/") }

// entriesBelow are the apps and pods at a path or below it, by path.
func (a *API) entriesBelow(snap *store.Snapshot, ns, path string) (out []*entry) {
	paths := a.at(snap)
	walk := func(from string, belongs func(e *entry) bool) {
		paths.From(atPlace(ns, from, ""), func(e *entry) bool {
			if e.workload.Namespace != ns || !belongs(e) {
				return false
			}
			out = append(out, e)
			return true
		})
	}
	if path == "/" {
		walk("", func(*entry) bool { return true })
		return out
	}
	walk(path, func(e *entry) bool { return e.path == path })
	walk(path+"/", func(e *entry) bool { return strings.HasPrefix(e.path, path+"/") })
	return out
}

// find is the app or pod of a path, nil when there is none.
func (a *API) find(snap *store.Snapshot, ns, path string) (found *entry) {
	a.at(snap).From(atPlace(ns, path, ""), func(e *entry) bool {
		if e.workload.Namespace == ns && e.path == path {
			found = e
		}
		return false
	})
	return found
}
