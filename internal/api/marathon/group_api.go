package marathon

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// groupInfo is a group with what is in it.
type groupInfo struct {
	ID           string       `json:"id"`
	Apps         []*appInfo   `json:"apps"`
	Pods         []any        `json:"pods"`
	Groups       []*groupInfo `json:"groups"`
	Dependencies []string     `json:"dependencies"`
	Version      string       `json:"version"`
	EnforceRole  bool         `json:"enforceRole,omitempty"`
}

// groupUpdate is a group as it is put.
type groupUpdate struct {
	ID           string         `json:"id"`
	Apps         []object       `json:"apps"`
	Pods         []object       `json:"pods"`
	Groups       []*groupUpdate `json:"groups"`
	Dependencies *[]string      `json:"dependencies"`
	ScaleBy      *float64       `json:"scaleBy"`
	Version      string         `json:"version"`
	EnforceRole  *bool          `json:"enforceRole"`
}

// groupPath is the path of a group that a request names; "/" without a name.
func groupPath(r *request) (string, error) {
	path, ok := resolvePath("/", r.vars["id"])
	if !ok {
		return "", badJSON("/id", idSentence)
	}
	return path, nil
}

// paths are those of all groups: those that hold something, and those that were made.
func groupPaths(list []*entry, tree *groupTree) map[string]bool {
	out := map[string]bool{"/": true}
	for path := range tree.Groups {
		out[path] = true
	}
	for _, e := range list {
		for g := parentOf(e.path); g != "/"; g = parentOf(g) {
			out[g] = true
		}
	}
	return out
}

func (a *API) groupView(r *request, path string) *groupInfo {
	list, tree := a.entries(r.snap, r.ns), groupsOf(r.snap, r.ns)
	paths := groupPaths(list, tree)
	if !paths[path] {
		return nil
	}
	with := embedsOf(r)
	asked := len(r.query["embed"]) > 0
	var view func(path string) *groupInfo
	view = func(path string) *groupInfo {
		g := &groupInfo{ID: path, Apps: []*appInfo{}, Pods: []any{}, Groups: []*groupInfo{}, Dependencies: []string{}}
		if meta := tree.Groups[path]; meta != nil {
			g.Version, g.EnforceRole = meta.Version, meta.EnforceRole
			g.Dependencies = append(g.Dependencies, meta.Dependencies...)
		}
		for _, e := range list {
			if parentOf(e.path) != path {
				continue
			}
			if e.isPod() {
				if !asked || with["pods"] {
					g.Pods = append(g.Pods, podSpec(e))
				}
				continue
			}
			spec := a.spec(r.snap, e)
			g.Version = max(g.Version, spec.Version)
			if !asked || with["apps"] {
				g.Apps = append(g.Apps, a.info(r, e, with))
			}
		}
		for _, sub := range slices.Sorted(maps.Keys(paths)) {
			if sub != "/" && parentOf(sub) == path {
				s := view(sub)
				g.Version = max(g.Version, s.Version)
				if !asked || with["groups"] || with["apps"] {
					g.Groups = append(g.Groups, s)
				}
			}
		}
		if g.Version == "" {
			g.Version = stamp(time.Unix(0, 0))
		}
		return g
	}
	return view(path)
}

func (a *API) groupGet(w http.ResponseWriter, r *request) error {
	path, err := groupPath(r)
	if err != nil {
		return err
	}
	g := a.groupView(r, path)
	if g == nil {
		return a.notFound("Group", path)
	}
	answer(w, http.StatusOK, g)
	return nil
}

func (a *API) groupVersions(w http.ResponseWriter, r *request) error {
	path, err := groupPath(r)
	if err != nil {
		return err
	}
	list := versionsOf(r.snap, groupVersionPrefix(r.ns, path))
	if len(list) == 0 && path != "/" && a.groupView(r, path) == nil {
		return a.notFound("Group", path)
	}
	answer(w, http.StatusOK, slices.Concat([]string{}, list))
	return nil
}

func (a *API) groupVersion(w http.ResponseWriter, r *request) error {
	path, err := groupPath(r)
	if err != nil {
		return err
	}
	kv, ok := r.snap.Keys().Get(groupVersionPrefix(r.ns, path) + r.vars["version"])
	if !ok {
		return a.notFound("Group", path+" at version "+r.vars["version"])
	}
	answer(w, http.StatusOK, json.RawMessage(kv.Value))
	return nil
}

// groupPut makes a group as it is put, or with POST a new one.
func (a *API) groupPut(w http.ResponseWriter, r *request) error {
	base, err := groupPath(r)
	if err != nil {
		return err
	}
	body, err := readBody(r.Request)
	if err != nil {
		return err
	}
	u := &groupUpdate{}
	p := &problems{}
	readInto(body, u, "/", p)
	if err := p.err(); err != nil {
		return &invalid{message: "Invalid JSON", details: p.details, status: http.StatusBadRequest}
	}
	path := base
	if u.ID != "" {
		from := base
		if r.Method == http.MethodPut && strings.HasPrefix(u.ID, "/") || r.Method == http.MethodPost {
			var ok bool
			if path, ok = resolvePath(from, u.ID); !ok {
				return badJSON("/id", idSentence)
			}
		}
	}
	if r.Method == http.MethodPut && r.vars["id"] != "" && path != base {
		return badJSON("/id", "does not match the id in the path")
	}
	return a.changeGroup(w, r, path, u, body)
}

// groupRollback returns a group to a version.
func (a *API) groupRollback(w http.ResponseWriter, r *request) error {
	path, err := groupPath(r)
	if err != nil {
		return err
	}
	return a.changeGroup(w, r, path, &groupUpdate{Version: r.vars["version"]}, nil)
}

func (a *API) changeGroup(w http.ResponseWriter, r *request, path string, u *groupUpdate, body []byte) error {
	var rec *record
	dry, exists := r.flag("dryRun"), false
	err := a.again(r, func() (err error) {
		c := &change{apps: map[string]*app{}, pods: map[string]*pod{}, groups: groupsOf(r.snap, r.ns).clone(), versions: map[string][]byte{}, force: r.flag("force"), dry: dry}
		exists = groupPaths(a.entries(r.snap, r.ns), c.groups)[path]
		if r.Method == http.MethodPost && exists && path != "/" {
			return &invalid{message: fmt.Sprintf("Group %s is already created. Use PUT to change this group.", path), status: http.StatusConflict}
		}
		if err := a.noApp(r, path); err != nil {
			return err
		}
		switch {
		case u.ScaleBy != nil:
			if *u.ScaleBy < 0 || *u.ScaleBy > 1000 {
				return badJSON("/scaleBy", "must be between 0 and 1000")
			}
			a.scaleGroup(r, c, path, *u.ScaleBy)
		case u.Version != "" && len(u.Apps)+len(u.Groups)+len(u.Pods) == 0:
			if err := a.restoreGroup(r, c, path, u.Version); err != nil {
				return err
			}
		default:
			p := &problems{}
			a.collect(r, c, path, "", u, p)
			if err := p.err(); err != nil {
				return err
			}
			a.removeRest(r, c, path)
		}
		a.keepGroup(r, c, path)
		rec, err = a.commit(r, c)
		return err
	})
	if err != nil {
		if !dry {
			a.streams.send("group_change_failed", map[string]any{"groupId": path, "version": stamp(time.Now()), "reason": err.Error()})
		}
		return err
	}
	if dry {
		answer(w, http.StatusOK, map[string]any{"steps": rec.steps()})
		return nil
	}
	status := http.StatusOK
	if r.Method == http.MethodPost || !exists {
		status = http.StatusCreated
		w.Header().Set("Location", "/v2/groups"+path)
	}
	a.streams.send("group_change_success", map[string]any{"groupId": path, "version": rec.Version})
	a.decided(w, r, "/v2/groups"+path, status, rec)
	return nil
}

// noApp refuses the path of an app as that of a group.
func (a *API) noApp(r *request, path string) error {
	if a.find(r.snap, r.ns, path) != nil {
		return &invalid{message: fmt.Sprintf("An app with id [%s] already exists.", path), status: http.StatusConflict}
	}
	return nil
}

// collect reads a group and those in it into a change.
func (a *API) collect(r *request, c *change, path, at string, u *groupUpdate, p *problems) {
	meta := c.groups.Groups[path]
	if meta == nil {
		meta = &groupMeta{}
		c.groups.Groups[path] = meta
	}
	if u.EnforceRole != nil {
		meta.EnforceRole = *u.EnforceRole
	}
	meta.Dependencies = nil
	if u.Dependencies != nil {
		for i, d := range *u.Dependencies {
			to, ok := resolvePath(parentOf(path), d)
			if !ok {
				p.add(fmt.Sprintf("%s/dependencies(%d)", at, i), idSentence)
				continue
			}
			meta.Dependencies = append(meta.Dependencies, to)
		}
	}
	if u.ScaleBy != nil && at != "" {
		p.add(at+"/scaleBy", "is accepted for the group that is put only")
	}
	member := func(i int, kind string, o object) (string, bool) {
		where := fmt.Sprintf("%s/%s(%d)", at, kind, i)
		id, ok := resolvePath(path, o.text("id"))
		switch {
		case !ok || id == path || o.text("id") == "":
			p.add(where+"/id", idSentence)
		case parentOf(id) != path:
			p.add(where+"/id", "App has to be child of group with parent id")
		case c.apps[id] != nil || c.pods[id] != nil:
			p.add(where+"/id", "Applications and Pods may not share the same id")
		default:
			return id, true
		}
		return "", false
	}
	for i, o := range u.Apps {
		id, ok := member(i, "apps", o)
		if !ok {
			continue
		}
		inner := &problems{}
		e := a.find(r.snap, r.ns, id)
		if e != nil && e.kept == nil {
			inner.add("/id", "this app was made with another API of Tutti")
		}
		o = o.without("id")
		o.set("id", id)
		spec := readApp(o, nil, false, inner)
		for _, d := range inner.details {
			for _, text := range d.Errors {
				p.add(fmt.Sprintf("%s/apps(%d)%s", at, i, strings.TrimSuffix(d.Path, "/")), text)
			}
		}
		c.apps[id] = spec
	}
	for i, o := range u.Pods {
		id, ok := member(i, "pods", o)
		if !ok {
			continue
		}
		inner := &problems{}
		spec := readPod(o, id, inner)
		for _, d := range inner.details {
			for _, text := range d.Errors {
				p.add(fmt.Sprintf("%s/pods(%d)%s", at, i, strings.TrimSuffix(d.Path, "/")), text)
			}
		}
		c.pods[id] = spec
	}
	for i, sub := range u.Groups {
		where := fmt.Sprintf("%s/groups(%d)", at, i)
		if sub == nil {
			p.add(where, "expected an object")
			continue
		}
		id, ok := resolvePath(path, sub.ID)
		if !ok || sub.ID == "" || parentOf(id) != path || id == path {
			p.add(where+"/id", "Group has to be child of groups with parent id")
			continue
		}
		if c.apps[id] != nil {
			p.add(where+"/id", "Groups and Applications may not have the same identifier.")
			continue
		}
		a.collect(r, c, id, where, sub, p)
	}
}

// removeRest removes what a group has and the one that is put in its place has not.
func (a *API) removeRest(r *request, c *change, path string) {
	for _, e := range a.entriesBelow(r.snap, r.ns, path) {
		if e.kept != nil && c.apps[e.path] == nil && c.pods[e.path] == nil {
			c.remove = append(c.remove, e.path)
		}
	}
	keep := map[string]bool{path: true}
	for _, id := range append(slices.Collect(maps.Keys(c.apps)), slices.Collect(maps.Keys(c.pods))...) {
		for g := parentOf(id); ; g = parentOf(g) {
			keep[g] = true
			if g == "/" {
				break
			}
		}
	}
	for g := range c.groups.Groups {
		if below(g, path) && !keep[g] && !emptyGroupWanted(c, g) {
			delete(c.groups.Groups, g)
		}
	}
}

// emptyGroupWanted reports whether a group was put though nothing is in it.
func emptyGroupWanted(c *change, path string) bool {
	meta := c.groups.Groups[path]
	return meta != nil && meta.Version == ""
}

func (a *API) scaleGroup(r *request, c *change, path string, factor float64) {
	for _, e := range a.entriesBelow(r.snap, r.ns, path) {
		if e.kept == nil {
			continue
		}
		n := int(math.Ceil(float64(e.workload.Count) * factor))
		if e.kept.App != nil {
			spec := a.present(r.snap, e).clone()
			spec.Instances = &n
			c.apps[e.path] = spec
		} else if e.isPod() {
			spec := podSpec(e)
			spec.Scaling.Instances = n
			c.pods[e.path] = spec
		}
	}
}

// groupState is a group as its versions keep it.
type groupState struct {
	Apps         []*app        `json:"apps"`
	Pods         []*pod        `json:"pods"`
	Groups       []*groupState `json:"groups"`
	ID           string        `json:"id"`
	Dependencies []string      `json:"dependencies"`
	Version      string        `json:"version"`
}

// keepGroup notes the version of a group that a change makes.
func (a *API) keepGroup(r *request, c *change, path string) {
	apps, pods := map[string]*app{}, map[string]*pod{}
	removed := map[string]bool{}
	for _, gone := range c.remove {
		removed[gone] = true
	}
	for _, e := range a.entriesBelow(r.snap, r.ns, path) {
		if e.kept == nil || removed[e.path] {
			continue
		}
		if e.isPod() {
			pods[e.path] = podSpec(e)
		} else {
			apps[e.path] = a.present(r.snap, e)
		}
	}
	maps.Copy(apps, c.apps)
	maps.Copy(pods, c.pods)
	var state func(path string) *groupState
	state = func(path string) *groupState {
		g := &groupState{ID: path, Apps: []*app{}, Pods: []*pod{}, Groups: []*groupState{}, Dependencies: []string{}}
		if meta := c.groups.Groups[path]; meta != nil {
			g.Dependencies = append(g.Dependencies, meta.Dependencies...)
		}
		subs := map[string]bool{}
		note := func(id string) bool {
			if parentOf(id) == path {
				return true
			}
			for s := id; s != "/"; s = parentOf(s) {
				if parentOf(s) == path {
					subs[s] = true
				}
			}
			return false
		}
		for _, id := range slices.Sorted(maps.Keys(apps)) {
			if below(id, path) && note(id) {
				g.Apps = append(g.Apps, apps[id])
			}
		}
		for _, id := range slices.Sorted(maps.Keys(pods)) {
			if below(id, path) && note(id) {
				g.Pods = append(g.Pods, pods[id])
			}
		}
		for sub := range c.groups.Groups {
			if sub != path && sub != "/" && below(sub, path) {
				note(sub + "/x")
			}
		}
		for _, s := range slices.Sorted(maps.Keys(subs)) {
			g.Groups = append(g.Groups, state(s))
		}
		return g
	}
	data, err := json.Marshal(state(path))
	if err != nil {
		panic("a group is plain data: " + err.Error())
	}
	c.versions[path] = data
}

// restoreGroup makes a group what a version of it said.
func (a *API) restoreGroup(r *request, c *change, path, version string) error {
	kv, ok := r.snap.Keys().Get(groupVersionPrefix(r.ns, path) + version)
	var g groupState
	if !ok || json.Unmarshal(kv.Value, &g) != nil {
		return a.notFound("Group", path+" at version "+version)
	}
	var take func(g *groupState)
	take = func(g *groupState) {
		c.groups.Groups[g.ID] = &groupMeta{Dependencies: g.Dependencies}
		for _, x := range g.Apps {
			x.Version, x.VersionInfo = "", nil
			c.apps[x.ID] = x
		}
		for _, x := range g.Pods {
			x.Version = ""
			c.pods[x.ID] = x
		}
		for _, s := range g.Groups {
			take(s)
		}
	}
	take(&g)
	a.removeRest(r, c, path)
	return nil
}

func (a *API) groupDelete(w http.ResponseWriter, r *request) error {
	path, err := groupPath(r)
	if err != nil {
		return err
	}
	rec, err := a.decide(r, func() (*change, error) {
		c := &change{groups: groupsOf(r.snap, r.ns).clone(), versions: map[string][]byte{}, force: r.flag("force")}
		list := a.entries(r.snap, r.ns)
		if !groupPaths(list, c.groups)[path] {
			return nil, a.notFound("Group", path)
		}
		for _, e := range list {
			if below(e.path, path) && (e.kept != nil || path != "/") {
				c.remove = append(c.remove, e.path)
			}
		}
		for g := range c.groups.Groups {
			if below(g, path) {
				delete(c.groups.Groups, g)
			}
		}
		c.versions[parentOf(path)] = nil
		return c, nil
	})
	if err != nil {
		return err
	}
	a.decided(w, r, "/v2/groups"+path, http.StatusOK, rec)
	return nil
}

// groupPatch changes what a group says of itself.
func (a *API) groupPatch(w http.ResponseWriter, r *request) error {
	path, err := groupPath(r)
	if err != nil {
		return err
	}
	body, err := readBody(r.Request)
	if err != nil {
		return err
	}
	var u struct {
		EnforceRole *bool `json:"enforceRole"`
	}
	p := &problems{}
	readInto(body, &u, "/", p)
	if err := p.err(); err != nil {
		return err
	}
	_, err = a.decide(r, func() (*change, error) {
		c := &change{groups: groupsOf(r.snap, r.ns).clone(), versions: map[string][]byte{}}
		meta := c.groups.Groups[path]
		if meta == nil && !groupPaths(a.entries(r.snap, r.ns), c.groups)[path] {
			return nil, a.notFound("Group", path)
		}
		if meta == nil {
			meta = &groupMeta{}
			c.groups.Groups[path] = meta
		}
		if u.EnforceRole != nil {
			meta.EnforceRole = *u.EnforceRole
		}
		a.keepGroup(r, c, path)
		return c, nil
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// nodeByID is a node, nil when it is gone.
func nodeByID(snap *store.Snapshot, id string) *model.Node {
	n, _ := store.Get[*model.Node](snap, id)
	return n
}
