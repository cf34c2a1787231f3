package marathon

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// pathOf is the absolute path that a request names.
func pathOf(r *request) (string, error) {
	path, ok := resolvePath("/", r.vars["id"])
	if !ok || path == "/" {
		return "", badJSON("/id", idSentence)
	}
	return path, nil
}

func (a *API) appOf(r *request) (*entry, error) {
	path, err := pathOf(r)
	if err != nil {
		return nil, err
	}
	if e := a.find(r.snap, r.ns, path); e != nil && !e.isPod() {
		return e, nil
	}
	return nil, a.notFound("App", path)
}

func (a *API) appList(w http.ResponseWriter, r *request) error {
	with := embedsOf(r)
	list, err := a.chosen(r, "/")
	if err != nil {
		return err
	}
	infos := make([]*appInfo, 0, len(list))
	for _, e := range list {
		infos = append(infos, a.info(r, e, with))
	}
	answer(w, http.StatusOK, map[string]any{"apps": infos})
	return nil
}

// chosen are the apps below a group that the filters of a request let through.
func (a *API) chosen(r *request, group string) ([]*entry, error) {
	matches, err := selector(r.query.Get("label"))
	if err != nil {
		return nil, err
	}
	cmd, id := r.query.Get("cmd"), r.query.Get("id")
	var out []*entry
	for _, e := range a.entriesBelow(r.snap, r.ns, group) {
		if e.isPod() || !strings.Contains(e.path, id) {
			continue
		}
		if cmd != "" {
			spec := a.spec(r.snap, e)
			if spec.Cmd == nil || !strings.Contains(strings.ToLower(*spec.Cmd), strings.ToLower(cmd)) {
				continue
			}
		}
		if matches(e.workload.Labels) {
			out = append(out, e)
		}
	}
	return out, nil
}

func (a *API) appGet(w http.ResponseWriter, r *request) error {
	if group, ok := strings.CutSuffix(r.vars["id"], "/*"); ok {
		path, _ := resolvePath("/", group)
		list, err := a.chosen(r, path)
		if err != nil {
			return err
		}
		infos := []*appInfo{}
		for _, e := range list {
			infos = append(infos, a.info(r, e, embedsOf(r)))
		}
		answer(w, http.StatusOK, map[string]any{"*": infos})
		return nil
	}
	e, err := a.appOf(r)
	if err != nil {
		return err
	}
	with := embedsOf(r)
	if len(r.query["embed"]) == 0 {
		with = embeds{"tasks": true, "counts": true, "deployments": true, "lastTaskFailure": true, "readiness": true}
	}
	answer(w, http.StatusOK, map[string]any{"app": a.info(r, e, with)})
	return nil
}

func (a *API) appCreate(w http.ResponseWriter, r *request) error {
	o, err := bodyObject(r.Request)
	if err != nil {
		return err
	}
	p := &problems{}
	path, ok := resolvePath("/", o.text("id"))
	if !ok || path == "/" {
		p.add("/id", idSentence)
		return p.err()
	}
	o = o.without("id")
	o.set("id", path)
	spec := readApp(o, nil, false, p)
	if err := p.err(); err != nil {
		return err
	}
	rec, err := a.decide(r, func() (*change, error) {
		return &change{apps: map[string]*app{path: spec.clone()}, force: r.flag("force")}, a.free(r, path)
	})
	if err != nil {
		return err
	}
	e := a.find(a.Core.Store.Snapshot(), r.ns, path)
	if e == nil {
		return fault.New(fault.Conflict, "%s was removed meanwhile", path)
	}
	r.snap = a.Core.Store.Snapshot()
	info := a.info(r, e, embeds{"tasks": true})
	info.Deployments = []identified{{rec.ID}}
	w.Header().Set("Location", "/v2/apps"+path)
	w.Header().Set("Marathon-Deployment-Id", rec.ID)
	a.told(r, "/v2/apps", info)
	answer(w, http.StatusCreated, info)
	return nil
}

// free refuses a path that is taken.
func (a *API) free(r *request, path string) error {
	if e := a.find(r.snap, r.ns, path); e != nil {
		kind := "app"
		if e.isPod() {
			kind = "pod"
		}
		return &invalid{message: fmt.Sprintf("An %s with id [%s] already exists.", kind, path), status: http.StatusConflict}
	}
	if len(a.entriesBelow(r.snap, r.ns, path)) > 0 {
		return &invalid{message: fmt.Sprintf("A group with id [%s] already exists.", path), status: http.StatusConflict}
	}
	for above := parentOf(path); above != "/"; above = parentOf(above) {
		if a.find(r.snap, r.ns, above) != nil {
			return &invalid{message: "Object is not valid", status: http.StatusUnprocessableEntity, details: []detail{{
				Path: "/id", Errors: []string{"Groups and Applications may not have the same identifier: " + above},
			}}}
		}
	}
	if tree := groupsOf(r.snap, r.ns); tree.Groups[path] != nil {
		return &invalid{message: fmt.Sprintf("A group with id [%s] already exists.", path), status: http.StatusConflict}
	}
	return nil
}

// appUpdate changes an app, or makes it.
func (a *API) appUpdate(w http.ResponseWriter, r *request) error {
	path, err := pathOf(r)
	if err != nil {
		return err
	}
	o, err := bodyObject(r.Request)
	if err != nil {
		return err
	}
	partial := r.Method == http.MethodPatch || r.query.Get("partialUpdate") == "" || r.flag("partialUpdate")
	created := false
	rec, err := a.decide(r, func() (_ *change, err error) {
		if a.find(r.snap, r.ns, path) == nil && r.Method == http.MethodPatch {
			return nil, a.notFound("App", path)
		}
		c := &change{apps: map[string]*app{}, force: r.flag("force")}
		if created, err = a.update(r, c, path, o, partial); err != nil {
			return nil, err
		}
		if len(c.apps) == 0 {
			return nil, a.scaleForeign(r, path, o)
		}
		return c, nil
	})
	if err != nil {
		return err
	}
	if rec == nil {
		rec = &record{ID: newUUID(), Version: stamp(time.Now())}
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
		w.Header().Set("Location", "/v2/apps"+path)
	}
	a.decided(w, r, "/v2/apps"+path, status, rec)
	return nil
}

// update adds what is to become of one app to a change.
func (a *API) update(r *request, c *change, path string, o object, partial bool) (created bool, err error) {
	p := &problems{}
	if id := o.text("id"); id != "" {
		if given, ok := resolvePath(parentOf(path), id); !ok || given != path {
			p.add("/id", "does not match the id in the path")
			return false, p.err()
		}
	}
	e := a.find(r.snap, r.ns, path)
	if version := o.text("version"); version != "" && len(o.without("id", "version")) == 0 {
		if e == nil || e.kept == nil {
			return false, a.notFound("App", path)
		}
		then, err := a.atVersion(r, path, version)
		if err != nil {
			return false, err
		}
		then.Version, then.VersionInfo = "", nil
		c.apps[path] = then
		return false, nil
	}
	if e != nil && e.kept == nil {
		return false, nil // the caller knows what can be changed of it
	}
	var present *app
	if e != nil {
		if e.isPod() {
			return false, fault.New(fault.Conflict, "A pod with id [%s] already exists.", path)
		}
		present = a.present(r.snap, e)
	} else if err := a.free(r, path); err != nil {
		return false, err
	}
	o = o.without("id")
	o.set("id", path)
	spec := readApp(o, present, partial, p)
	if err := p.err(); err != nil {
		return false, err
	}
	c.apps[path] = spec
	return e == nil, nil
}

// scaleForeign changes the number of instances of what another API made; nothing else of it can be said
// in this API's words.
func (a *API) scaleForeign(r *request, path string, o object) error {
	e := a.find(r.snap, r.ns, path)
	if e == nil {
		return a.notFound("App", path)
	}
	rest := o.without(append([]string{"id", "instances"}, readOnly...)...)
	present := object{}
	data, _ := json.Marshal(a.spec(r.snap, e))
	_ = json.Unmarshal(data, &present)
	for name, value := range rest {
		if !sameJSON(value, present[name]) {
			if err := e.workload.Refusal(); err != nil {
				return err
			}
			return &invalid{message: "Object is not valid", status: http.StatusUnprocessableEntity, details: []detail{{
				Path: "/" + name, Errors: []string{"this app was made with another API of Tutti: here it can be scaled, restarted and deleted; change it where it was made"},
			}}}
		}
	}
	var n int
	if json.Unmarshal(o["instances"], &n) != nil {
		return nil
	}
	return a.Core.Scale(r.Context(), r.who, e.workload.ID, n)
}

func sameJSON(x, y []byte) bool {
	var u, v any
	if json.Unmarshal(x, &u) != nil {
		return false
	}
	_ = json.Unmarshal(y, &v)
	m, _ := json.Marshal(u)
	n, _ := json.Marshal(v)
	return bytes.Equal(m, n) || saysNothing(u) && saysNothing(v)
}

// atVersion is an app as a version said.
func (a *API) atVersion(r *request, path, version string) (*app, error) {
	kv, ok := r.snap.Keys().Get(versionKey(r.ns, path, version))
	k := &kept{}
	if !ok || json.Unmarshal(kv.Value, k) != nil || k.App == nil {
		return nil, a.notFound("App", path+" at version "+version)
	}
	out := k.App.clone()
	out.ID = path
	out.Version, out.VersionInfo = k.Version, &versionInfo{k.Scaled, k.Config}
	return out, nil
}

// appUpdateMany changes several apps together.
func (a *API) appUpdateMany(w http.ResponseWriter, r *request) error {
	body, err := readBody(r.Request)
	if err != nil {
		return err
	}
	var list []object
	if err := json.Unmarshal(body, &list); err != nil {
		return badJSON("/", "expected an array of apps: "+err.Error())
	}
	partial := r.Method == http.MethodPatch || r.query.Get("partialUpdate") == "" || r.flag("partialUpdate")
	rec, err := a.decide(r, func() (*change, error) {
		c := &change{apps: map[string]*app{}, force: r.flag("force")}
		for i, o := range list {
			path, ok := resolvePath("/", o.text("id"))
			if !ok || path == "/" {
				return nil, badJSON(fmt.Sprintf("(%d)/id", i), idSentence)
			}
			before := len(c.apps)
			if _, err := a.update(r, c, path, o, partial); err != nil {
				return nil, err
			}
			if len(c.apps) == before {
				return nil, fault.New(fault.Unsupported, "%s is there twice, or was made with another API of Tutti", path)
			}
		}
		return c, nil
	})
	if err != nil {
		return err
	}
	a.decided(w, r, "/v2/apps", http.StatusOK, rec)
	return nil
}

func (a *API) appDelete(w http.ResponseWriter, r *request) error {
	path, err := pathOf(r)
	if err != nil {
		return err
	}
	rec, err := a.decide(r, func() (*change, error) {
		if e := a.find(r.snap, r.ns, path); e == nil || e.isPod() {
			return nil, a.notFound("App", path)
		}
		return &change{remove: []string{path}, force: r.flag("force")}, nil
	})
	if err != nil {
		return err
	}
	a.decided(w, r, "/v2/apps"+path, http.StatusOK, rec)
	return nil
}

func (a *API) appRestart(w http.ResponseWriter, r *request) error {
	path, err := pathOf(r)
	if err != nil {
		return err
	}
	rec, err := a.decide(r, func() (*change, error) {
		e := a.find(r.snap, r.ns, path)
		switch {
		case e == nil || e.isPod():
			return nil, a.notFound("App", path)
		case e.kept == nil:
			return nil, a.Core.RestartWorkload(r.Context(), r.who, e.workload.ID)
		}
		return &change{apps: map[string]*app{path: a.present(r.snap, e).clone()}, force: r.flag("force"), restart: true}, nil
	})
	if err != nil {
		return err
	}
	if rec == nil {
		rec = &record{ID: newUUID(), Version: stamp(time.Now())}
	}
	a.decided(w, r, "/v2/apps"+path+"/restart", http.StatusOK, rec)
	return nil
}

func (a *API) appVersions(w http.ResponseWriter, r *request) error {
	e, err := a.appOf(r)
	if err != nil {
		return err
	}
	list := versionsOf(r.snap, versionPrefix(r.ns, e.path))
	if e.kept == nil {
		list = []string{a.spec(r.snap, e).Version}
	}
	answer(w, http.StatusOK, map[string]any{"versions": slices.Concat([]string{}, list)})
	return nil
}

func (a *API) appVersion(w http.ResponseWriter, r *request) error {
	path, err := pathOf(r)
	if err != nil {
		return err
	}
	spec, err := a.atVersion(r, path, r.vars["version"])
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, spec)
	return nil
}

func (a *API) appTasks(w http.ResponseWriter, r *request) error {
	if group, ok := strings.CutSuffix(r.vars["id"], "/*"); ok {
		path, _ := resolvePath("/", group)
		list := []task{}
		for _, e := range a.entriesBelow(r.snap, r.ns, path) {
			if !e.isPod() {
				list = append(list, a.tasksOf(r.snap, e)...)
			}
		}
		answer(w, http.StatusOK, map[string]any{"tasks": list})
		return nil
	}
	e, err := a.appOf(r)
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, map[string]any{"tasks": a.tasksOf(r.snap, e)})
	return nil
}

// appTasksKill ends the tasks of an app, all of them, those of one host or a single one.
func (a *API) appTasksKill(w http.ResponseWriter, r *request) error {
	host, single := r.query.Get("host"), r.vars["task"]
	e, err := a.appOf(r)
	if err != nil && strings.Contains(r.vars["id"], ".instance-") {
		e, err = a.appOfTask(r, single) // clients of before 1.5 take a wrong path out of the task's ID
	}
	if err != nil {
		return err
	}
	all := a.tasksOf(r.snap, e)
	killed := []task{}
	for _, t := range all {
		n, _ := store.Get[*model.Node](r.snap, t.SlaveID)
		onHost := host == "" || host == "*" || t.Host == host || n != nil && n.Name == host
		if onHost && (single == "" || sameTask(t.ID, single)) {
			killed = append(killed, t)
		}
	}
	if single != "" && len(killed) == 0 {
		return &invalid{message: fmt.Sprintf("Task '%s' does not exist", single), status: http.StatusNotFound}
	}
	rec, err := a.kill(r, killed)
	if err != nil {
		return err
	}
	switch {
	case rec != nil:
		answer(w, http.StatusOK, rec.result())
	case single != "":
		answer(w, http.StatusOK, map[string]any{"task": killed[0]})
	default:
		answer(w, http.StatusOK, map[string]any{"tasks": killed})
	}
	return nil
}

// appOfTask is the app that a task belongs to.
func (a *API) appOfTask(r *request, id string) (*entry, error) {
	instance, _ := instanceOf(id)
	if i, ok := store.Get[*model.Instance](r.snap, instance); ok {
		if w, ok := store.Get[*model.Workload](r.snap, i.WorkloadID); ok && w.Namespace == r.ns {
			if owner, within := store.Within(r.snap, w); within {
				w = owner
			}
			if e := a.entryOf(w); e != nil && !e.isPod() {
				return e, nil
			}
		}
	}
	return nil, &invalid{message: fmt.Sprintf("Task '%s' does not exist", id), status: http.StatusNotFound}
}

// sameTask reports whether an ID is a task's, of whichever run, or its instance's.
func sameTask(id, given string) bool {
	x, _ := instanceOf(id)
	y, ok := instanceOf(given)
	return ok && x == y
}

// kill ends tasks. With scale=true their apps shrink by as many, which is a deployment.
func (a *API) kill(r *request, list []task) (*record, error) {
	scale, wipe := r.flag("scale"), r.flag("wipe")
	if scale && wipe {
		return nil, &invalid{message: "You cannot use scale and wipe at the same time.", status: http.StatusBadRequest}
	}
	var ids []string
	fewer := map[string]int{}
	for _, t := range list {
		id, _ := instanceOf(t.ID)
		ids = append(ids, id)
		fewer[t.AppID]++
		if wipe {
			if e := a.find(r.snap, r.ns, t.AppID); e != nil && e.kept != nil && e.kept.App != nil && e.kept.App.resident() {
				return nil, &invalid{message: "wipe=true for tasks with persistent volumes is not supported by Tutti yet: remove the volume with `docker volume rm` once the app is gone", status: http.StatusUnprocessableEntity}
			}
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	var rec *record
	err := a.again(r, func() (err error) {
		if !scale {
			return a.Core.EndInstances(r.Context(), r.who, ids, false)
		}
		for path := range fewer {
			if rec := under(r.snap, r.ns, path); rec != nil && !r.flag("force") {
				if state, _ := rec.progress(r.snap); state == "" {
					return &locked{what: "App", deployments: []string{rec.ID}}
				}
			}
		}
		if err := a.Core.EndInstances(r.Context(), r.who, ids, true); err != nil {
			return err
		}
		r.snap = a.Core.Store.Snapshot()
		c := &change{apps: map[string]*app{}, force: true}
		for path := range fewer {
			if e := a.find(r.snap, r.ns, path); e != nil && e.kept != nil && e.kept.App != nil {
				c.apps[path] = a.present(r.snap, e).clone()
			}
		}
		rec, err = a.commit(r, c)
		return err
	})
	return rec, err
}
