package marathon

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// streams are the clients of this server that follow events. What they are told of changes, each finds
// out from the store; what only this server knows, such as requests, is sent to all.
type streams struct {
	mu   sync.Mutex
	next int
	all  map[int]*stream
}

type stream struct {
	remote string
	events chan event // what does not fit is left out: a slow client misses events, and holds nobody up
}

type event struct {
	kind string
	data map[string]any
}

func (s *streams) open(remote string) (*stream, func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[int]*stream{}
	}
	id := s.next
	s.next++
	st := &stream{remote, make(chan event, 1024)}
	s.all[id] = st
	return st, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.all, id)
	}
}

func (s *streams) send(kind string, data map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.all {
		select {
		case st.events <- event{kind, data}:
		default:
		}
	}
}

// told tells those who follow events of a request that changed something.
func (a *API) told(r *request, uri string, app any) {
	data := map[string]any{"clientIp": clientIP(r.RemoteAddr), "uri": uri}
	if app != nil {
		data["appDefinition"] = app
	}
	a.streams.send("api_post_event", data)
}

func clientIP(remote string) string {
	if i := strings.LastIndexByte(remote, ':'); i > 0 {
		return strings.Trim(remote[:i], "[]")
	}
	return remote
}

// follow is the event stream: server-sent events of what happens from now on.
func (a *API) follow(w http.ResponseWriter, r *request) error {
	kinds := r.query["event_type"]
	light := r.query.Get("plan-format") == "light" || r.flag("light")
	ctx := r.Context()
	snap := a.Core.Store.Snapshot()
	objects := a.Core.Store.Watch(snap.Revision(), model.KindInstance, model.KindWorkload, model.KindNode)
	prefix := deploymentPrefix(r.ns)
	keys := a.Core.Store.WatchKeys(snap.Revision(), prefix, store.PrefixEnd(prefix))
	own, closeOwn := a.streams.open(r.RemoteAddr)
	defer closeOwn()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream;charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	control := http.NewResponseController(w)
	batches := make(chan store.Batch)
	ctx, stop := context.WithCancel(ctx)
	var pumps sync.WaitGroup
	defer pumps.Wait()
	defer stop()
	for _, watch := range []*store.Watcher{objects, keys} {
		pumps.Go(func() {
			defer stop() // who fell behind comes again
			pump(ctx, watch, batches)
		})
	}
	write := func(e event) error {
		if len(kinds) > 0 && !slices.Contains(kinds, e.kind) {
			return nil
		}
		data := map[string]any{"eventType": e.kind, "timestamp": stamp(time.Now())}
		for k, v := range e.data {
			data[k] = v
		}
		text, err := json.Marshal(data)
		if err != nil {
			return err
		}
		a.counts.events.Add(1)
		_, err = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", e.kind, text)
		return err
	}
	a.streams.send("event_stream_attached", map[string]any{"remoteAddress": clientIP(r.RemoteAddr)})
	defer a.streams.send("event_stream_detached", map[string]any{"remoteAddress": clientIP(r.RemoteAddr)})
	beat := time.NewTicker(15 * time.Second)
	defer beat.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case e := <-own.events:
			err = write(e)
		case b := <-batches:
			now := a.Core.Store.Snapshot()
			for _, e := range a.translate(now, r.ns, b, light) {
				if err = write(e); err != nil {
					break
				}
			}
		case <-beat.C:
			_, err = fmt.Fprint(w, "\r\n")
		}
		if err != nil || control.Flush() != nil {
			return nil
		}
	}
}

// pump hands on what changes until the context ends, or it falls behind what is kept.
func pump(ctx context.Context, w *store.Watcher, out chan<- store.Batch) {
	for {
		b, err := w.Next(ctx)
		if err != nil {
			return
		}
		select {
		case out <- b:
		case <-ctx.Done():
			return
		}
	}
}

// translate says in Marathon's words what changed.
func (a *API) translate(snap *store.Snapshot, ns string, b store.Batch, light bool) (out []event) {
	for _, ch := range b.Keys {
		out = append(out, deploymentEvents(snap, ch, light)...)
	}
	for _, ch := range b.Changes {
		switch ch.Kind {
		case model.KindInstance:
			out = append(out, a.instanceEvents(snap, ns, ch)...)
		case model.KindWorkload:
			out = append(out, a.workloadEvents(ns, ch)...)
		case model.KindNode:
			out = append(out, a.nodeEvents(snap, ns, ch)...)
		}
	}
	return out
}

func deploymentEvents(snap *store.Snapshot, ch store.KeyChange, light bool) (out []event) {
	old, now := readRecord(ch.Old), readRecord(ch.New)
	if now == nil {
		return nil
	}
	plan := map[string]any{"id": now.ID, "version": now.Version, "steps": now.steps()}
	if !light {
		group := map[string]any{"id": "/", "apps": []any{}, "groups": []any{}, "pods": []any{}, "dependencies": []any{}, "version": now.Version}
		plan["original"], plan["target"] = group, group
	}
	current := step{Actions: []action{}}
	if steps := now.steps(); len(steps) > 0 {
		current = steps[len(steps)-1]
	}
	data := func(more ...any) map[string]any {
		m := map[string]any{"plan": plan, "currentStep": current}
		for i := 0; i+1 < len(more); i += 2 {
			m[more[i].(string)] = more[i+1]
		}
		return m
	}
	switch {
	case old == nil && now.State == "":
		out = append(out, event{"deployment_info", data()})
	case now.State == succeeded && (old == nil || old.State == ""):
		out = append(out, event{"deployment_step_success", data()}, event{"deployment_success", map[string]any{"id": now.ID, "plan": plan}})
	case now.State == failed && (old == nil || old.State == ""):
		out = append(out, event{"deployment_step_failure", data()}, event{"deployment_failed", map[string]any{"id": now.ID, "plan": plan, "reason": now.Reason}})
	}
	return out
}

// workloadEvents tell of an app that went, and of the health checks that came and went with it.
func (a *API) workloadEvents(ns string, ch store.Change) (out []event) {
	old, _ := ch.Old.(*model.Workload)
	now, _ := ch.New.(*model.Workload)
	if w := cmp.Or(now, old); w == nil || w.Namespace != ns || now != nil && old != nil && bytes.Equal(old.Extensions[extension], now.Extensions[extension]) {
		return nil
	}
	was, is := checksOf(old), checksOf(now)
	for _, h := range was.list {
		if !slices.ContainsFunc(is.list, func(x healthCheck) bool { return reflect.DeepEqual(x, h) }) {
			out = append(out, event{"remove_health_check_event", map[string]any{"appId": was.path, "healthCheck": h}})
		}
	}
	for _, h := range is.list {
		if !slices.ContainsFunc(was.list, func(x healthCheck) bool { return reflect.DeepEqual(x, h) }) {
			out = append(out, event{"add_health_check_event", map[string]any{"appId": is.path, "version": is.version, "healthCheck": h}})
		}
	}
	if now == nil {
		if e := a.entryOf(old); e != nil {
			out = append(out, event{"app_terminated_event", map[string]any{"appId": e.path}})
		}
	}
	return out
}

// checks are the health checks of an app of this API.
type checks struct {
	path, version string
	list          []healthCheck
}

func checksOf(w *model.Workload) (c checks) {
	var k kept
	if w == nil || json.Unmarshal(w.Extensions[extension], &k) != nil || k.App == nil {
		return c
	}
	return checks{k.ID, k.Version, k.App.HealthChecks}
}

// instanceEvents tell of a task's state and health.
func (a *API) instanceEvents(snap *store.Snapshot, ns string, ch store.Change) (out []event) {
	now, _ := ch.New.(*model.Instance)
	old, _ := ch.Old.(*model.Instance)
	i := now
	if i == nil {
		i = old
	}
	if i == nil || i.Namespace != ns || i.NodeID == "" {
		return nil
	}
	e := a.entryByID(snap, i)
	if e == nil {
		return nil
	}
	node := nodeByID(snap, i.NodeID)
	state := stateOf(i, node)
	was := ""
	if old != nil && old.NodeID != "" {
		was = stateOf(old, node)
	}
	versions := map[string]string{}
	version := versionOf(snap, e, i, versions)
	status := func(state, run, message string) event {
		data := map[string]any{
			"slaveId": i.NodeID, "taskId": taskID(e.path, i.ID, run), "taskStatus": state, "message": message, "appId": e.path,
			"ports": portsHeld(i), "version": version, "ipAddresses": []ipOf{},
		}
		if node != nil {
			data["host"] = node.HostAddress
		}
		return event{"status_update_event", data}
	}
	if now == nil {
		return nil // it had ended before
	}
	if old != nil && now.Status.Restarts > old.Status.Restarts || old != nil && now.Status.State == model.InstanceWaiting && old.Status.State != model.InstanceWaiting {
		if now.Status.State == model.InstanceWaiting {
			out = append(out, status(endOfRun(now), runOf(now), now.Status.Message))
		}
	}
	if state != was && now.Status.State != model.InstanceWaiting {
		out = append(out, status(state, runOf(now), now.Status.Message))
	}
	if state != was {
		out = append(out, event{"instance_changed_event", map[string]any{
			"instanceId": instanceID(e.path, i.ID), "condition": condition(state), "runSpecId": e.path, "agentId": i.NodeID, "host": hostOf(node), "runSpecVersion": version,
		}})
	}
	if old != nil && old.Status.Health != now.Status.Health {
		out = append(out, healthEvents(e, now, version)...)
	}
	return out
}

func portsHeld(i *model.Instance) []int {
	out := []int{}
	for _, p := range i.HostPorts {
		out = append(out, p.Published)
	}
	return out
}

func hostOf(n *model.Node) string {
	if n == nil {
		return ""
	}
	return n.HostAddress
}

// endOfRun is how the run of an instance ended that waits for the next one.
func endOfRun(i *model.Instance) string {
	for _, t := range i.Status.Tasks {
		if t.State == "exited" && (t.ExitCode != 0 || t.Error != "") {
			return "TASK_FAILED"
		}
	}
	if strings.HasPrefix(i.Status.Message, "unhealthy") {
		return "TASK_KILLED"
	}
	return "TASK_FINISHED"
}

func healthEvents(e *entry, i *model.Instance, version string) []event {
	id := instanceID(e.path, i.ID)
	switch i.Status.Health {
	case model.HealthHealthy, model.HealthUnhealthy:
	default:
		return nil
	}
	healthy := i.Status.Health == model.HealthHealthy
	out := []event{
		{"health_status_changed_event", map[string]any{"appId": e.path, "instanceId": id, "taskId": taskID(e.path, i.ID, runOf(i)), "version": version, "alive": healthy}},
		{"instance_health_changed_event", map[string]any{"instanceId": id, "runSpecId": e.path, "healthy": healthy, "runSpecVersion": version}},
	}
	if !healthy {
		out = append(out,
			event{"failed_health_check_event", map[string]any{"appId": e.path, "instanceId": id, "taskId": taskID(e.path, i.ID, runOf(i)), "healthCheck": map[string]any{}}},
			event{"unhealthy_instance_kill_event", map[string]any{"appId": e.path, "taskId": taskID(e.path, i.ID, runOf(i)), "instanceId": id, "version": version, "reason": i.Status.Message, "host": "", "slaveId": i.NodeID}})
	}
	return out
}

// entryByID is the app or pod of an instance. One that was removed is known by what its revision says.
func (a *API) entryByID(snap *store.Snapshot, i *model.Instance) *entry {
	if w, ok := store.Get[*model.Workload](snap, i.WorkloadID); ok {
		return a.entryOf(w)
	}
	r, ok := store.Get[*model.Revision](snap, i.RevisionID)
	if !ok {
		return nil
	}
	for _, t := range r.Template.Tasks {
		for _, env := range t.Env {
			if path, ok := strings.CutPrefix(env, "MARATHON_APP_ID="); ok {
				return &entry{path: path, workload: &model.Workload{Meta: model.Meta{ID: i.WorkloadID, Namespace: i.Namespace}}}
			}
		}
	}
	return nil
}

// nodeEvents tell of the tasks of a node that is down.
func (a *API) nodeEvents(snap *store.Snapshot, ns string, ch store.Change) (out []event) {
	old, _ := ch.Old.(*model.Node)
	now, _ := ch.New.(*model.Node)
	if old == nil || now == nil || old.Status.State == now.Status.State {
		return nil
	}
	for i := range store.InstancesOnNode(snap, now.ID) {
		if i.Namespace != ns || i.Status.State.Final() {
			continue
		}
		before := *i
		out = append(out, a.stateAgain(snap, &before, old, now)...)
	}
	return out
}

// stateAgain tells the state of an instance anew, after its node's state has changed.
func (a *API) stateAgain(snap *store.Snapshot, i *model.Instance, old, now *model.Node) []event {
	was, state := stateOf(i, old), stateOf(i, now)
	e := a.entryByID(snap, i)
	if was == state || e == nil {
		return nil
	}
	version := versionOf(snap, e, i, map[string]string{})
	return []event{
		{"status_update_event", map[string]any{
			"slaveId": i.NodeID, "taskId": taskID(e.path, i.ID, runOf(i)), "taskStatus": state, "message": "node " + now.Name + " is " + string(now.Status.State), "appId": e.path,
			"host": now.HostAddress, "ports": portsHeld(i), "version": version, "ipAddresses": []ipOf{},
		}},
		{"instance_changed_event", map[string]any{
			"instanceId": instanceID(e.path, i.ID), "condition": condition(state), "runSpecId": e.path, "agentId": i.NodeID, "host": now.HostAddress, "runSpecVersion": version,
		}},
	}
}

// Run tells when deployments have come to their end, as long as this server leads, until ctx is done.
func (a *API) Run(ctx context.Context) error {
	after := a.Core.Store.Snapshot().Revision()
	watch := a.Core.Store.Watch(after)
	for ctx.Err() == nil {
		wait, cancel := context.WithTimeout(ctx, leadEvery)
		_, err := watch.Next(wait)
		expired := wait.Err() != nil
		cancel()
		if err != nil && !expired {
			watch = a.Core.Store.Watch(a.Core.Store.Snapshot().Revision())
		}
		if !expired {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(settleEvery):
			}
		}
		for drained := expired; !drained; { // one look is for all that happened meanwhile
			now, cancel := context.WithTimeout(ctx, time.Microsecond)
			_, err := watch.Next(now)
			drained = err != nil
			cancel()
		}
		if a.Core.Servers.Leader() == a.NodeID {
			a.settle(ctx)
		}
	}
	return nil
}

const (
	settleEvery = 100 * time.Millisecond // deployments are looked at, at most
	// leadEvery is when they are looked at though nothing has changed: this server may have come to lead.
	leadEvery = 3 * time.Second
)

func (a *API) settle(ctx context.Context) {
	snap := a.Core.Store.Snapshot()
	for _, ns := range namespacesOf(snap) {
		for _, rec := range records(snap, ns) {
			if state, reason := rec.progress(snap); state != "" {
				if err := a.finish(ctx, ns, rec, state, reason); err != nil && ctx.Err() == nil {
					a.Log.Debug("a deployment's end could not be kept", "deployment", rec.ID, "error", err)
				}
			}
		}
	}
}

// namespacesOf are those in which this adapter keeps something.
func namespacesOf(snap *store.Snapshot) (out []string) {
	const root = "marathon/"
	for from := root; from != ""; {
		next := ""
		for kv := range snap.Keys().Range(from, store.PrefixEnd(root)) {
			ns, _, _ := strings.Cut(strings.TrimPrefix(kv.Key, root), "/")
			out, next = append(out, ns), store.PrefixEnd(keyRoot(ns))
			break
		}
		from = next
	}
	return out
}

// finish keeps how a deployment ended.
func (a *API) finish(ctx context.Context, ns string, rec *record, state, reason string) error {
	over := *rec
	over.State, over.Reason = state, reason
	_, err := a.Core.ChangeKeys(ctx, core.Local("tutti", "marathon"), core.KeyChanges{Put: []core.KeyPut{over.put(ns)}})
	return err
}
