package docker

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// message is an event with the fields that older clients read, too.
type message struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func (a *API) pluginList(w http.ResponseWriter, r *request) error {
	if _, err := readFilters(r, "capability", "enabled"); err != nil {
		return err
	}
	return answer(w, http.StatusOK, []any{})
}

func (m *message) chosen(f filters) bool {
	if m.Scope == "swarm" && len(f["scope"]) == 0 && m.Type == events.ContainerEventType {
		return false
	}
	for _, t := range eventTypes { // of whom it is: by ID or name, or how these begin
		if !f.prefix(string(t), m.Actor.ID, m.Actor.Attributes["name"]) {
			return false
		}
	}
	image := m.Actor.Attributes["image"]
	if m.Type == events.ImageEventType {
		image = m.Actor.Attributes["name"]
	}
	action := f.exact("event", string(m.Action))
	if named, _, ok := strings.Cut(string(m.Action), ":"); ok { // such as health_status: healthy
		action = action || f.exact("event", named)
	}
	return action && f.exact("type", string(m.Type)) && f.exact("scope", m.Scope) && f.labels("label", m.Actor.Attributes) &&
		f.exact("image", m.Actor.ID, image, familiar(m.Actor.ID, false), familiar(image, false))
}

// eventTypes are what events can be chosen by, other than images.
var eventTypes = []events.Type{
	events.ConfigEventType, events.ContainerEventType, events.DaemonEventType, events.NetworkEventType, events.NodeEventType, events.PluginEventType,
	events.SecretEventType, events.ServiceEventType, events.VolumeEventType,
}

func newMessage(t events.Type, action events.Action, id, scope string, attributes map[string]string) *message {
	now := time.Now()
	m := &message{Message: events.Message{
		Type: t, Action: action, Actor: events.Actor{ID: id, Attributes: attributes}, Scope: scope, Time: now.Unix(), TimeNano: now.UnixNano(),
	}}
	if t == events.ContainerEventType || t == events.ImageEventType {
		m.Status, m.ID, m.From = string(action), id, attributes["image"]
	}
	return m
}

// translateEvent says in Docker's words what a change was.
func (a *API) translateEvent(snap *store.Snapshot, ch store.Change) []*message {
	of := a.happened.follow(ch)
	meta, created, gone := metaOf(ch)
	if meta == nil {
		return nil
	}
	attributes := map[string]string{"name": dockerName(meta)}
	action := events.Action(events.ActionUpdate)
	switch {
	case created:
		action = events.ActionCreate
	case gone:
		action = events.ActionRemove
	}
	one := func(t events.Type, scope string, quietUpdates bool) []*message {
		if quietUpdates && !created && !gone {
			return nil
		}
		return []*message{newMessage(t, action, meta.ID, scope, attributes)}
	}
	switch ch.Kind {
	case model.KindInstance:
		return a.instanceEvents(snap, ch, of)
	case model.KindWorkload:
		return a.workloadEvents(snap, ch, of, action, attributes)
	case model.KindNetwork:
		if gone {
			action = events.ActionDestroy
		}
		attributes["type"] = "overlay"
		return one(events.NetworkEventType, "swarm", true)
	case model.KindVolume:
		if gone {
			action = events.ActionDestroy
		}
		attributes["driver"] = "local"
		out := one(events.VolumeEventType, "local", true)
		for _, m := range out {
			m.Actor.ID = attributes["name"]
		}
		return out
	case model.KindImage:
		action = events.ActionLoad
		if gone {
			action = events.ActionDelete
		}
		return one(events.ImageEventType, "local", true)
	case model.KindNode:
		return one(events.NodeEventType, "swarm", false)
	case model.KindSecret:
		return one(events.SecretEventType, "swarm", false)
	case model.KindConfig:
		return one(events.ConfigEventType, "swarm", false)
	}
	return nil
}

func metaOf(ch store.Change) (m *model.Meta, created, gone bool) {
	switch {
	case ch.New != nil:
		return ch.New.GetMeta(), ch.Old == nil, false
	case ch.Old != nil:
		return ch.Old.GetMeta(), false, true
	}
	return nil, false, false
}

func (a *API) workloadEvents(snap *store.Snapshot, ch store.Change, of *followed, action events.Action, attributes map[string]string) []*message {
	w := of.workload
	if made := a.madeOf(w); made != nil {
		old, updated := ch.Old.(*model.Workload)
		switch {
		case action == events.ActionRemove:
			if of.instances > 0 {
				return nil // it is gone when they are
			}
			return []*message{destroyed(w, made)}
		case updated && old.Name != w.Name:
			action = events.ActionRename
			attributes["oldName"] = "/" + old.Name
		case updated && action == events.ActionUpdate:
			return rewired(snap, old, w)
		case action != events.ActionCreate:
			return nil // what becomes of it shows in its instance
		}
		describe(attributes, made)
		return []*message{newMessage(events.ContainerEventType, action, containerID(w.ID, 0), "local", attributes)}
	}
	if w.Type == model.SingleWorkload && w.OwnerID != "" {
		return nil // it is a part of the service that another platform's workload shows as
	}
	old, updated := ch.Old.(*model.Workload)
	if action == events.ActionUpdate && updated && old.Generation == w.Generation {
		if old.Status.Rollout.State == w.Status.Rollout.State {
			return nil
		}
		attributes["updatestate.new"], attributes["updatestate.old"] = string(updateState(w)), string(updateState(old))
	}
	return []*message{newMessage(events.ServiceEventType, action, w.ID, "swarm", attributes)}
}

// rewired tells of the networks that a container joined and left. What else becomes of it shows in its instance.
func rewired(snap *store.Snapshot, old, now *model.Workload) (out []*message) {
	tell := func(action events.Action, from, to *model.Workload) {
		for _, at := range to.Template.Networks {
			if !slices.ContainsFunc(from.Template.Networks, func(had model.Attachment) bool { return had.Network == at.Network }) {
				attributes := map[string]string{"container": containerID(now.ID, 0), "name": at.Network, "type": "overlay"}
				if n, ok := store.Get[*model.Network](snap, at.Network); ok {
					attributes["name"] = dockerName(&n.Meta)
				}
				out = append(out, newMessage(events.NetworkEventType, action, at.Network, "swarm", attributes))
			}
		}
	}
	tell(events.ActionConnect, old, now)
	tell(events.ActionDisconnect, now, old)
	return out
}

func describe(attributes map[string]string, made *created) {
	for k, v := range made.Config.Labels {
		attributes[k] = v
	}
	attributes["image"] = made.Config.Image
}

func destroyed(w *model.Workload, made *created) *message {
	attributes := map[string]string{"name": dockerName(&w.Meta)}
	describe(attributes, made)
	return newMessage(events.ContainerEventType, events.ActionDestroy, containerID(w.ID, 0), "local", attributes)
}

// instanceEvents are those of a container's life: start, die, health, pause.
func (a *API) instanceEvents(snap *store.Snapshot, ch store.Change, of *followed) []*message {
	now, _ := ch.New.(*model.Instance)
	old, _ := ch.Old.(*model.Instance)
	i := now
	if i == nil {
		i = old
	}
	if of != nil && i.NodeID == "" && now == nil && of.removed && of.instances == 0 {
		if made := a.madeOf(of.workload); made != nil { // it was never placed
			return []*message{destroyed(of.workload, made)}
		}
	}
	if of == nil || i.NodeID == "" || now != nil && old != nil && nothingToTell(old, now) {
		return nil
	}
	w := of.workload
	b := a.ownBox(snap, w, nil)
	if b == nil || i.Slot != 1 {
		list := instanceBoxes(snap, w, i, nil)
		if len(list) == 0 {
			return nil
		}
		b = list[0]
	}
	b.instance = i
	b.at(snap)
	attributes := b.labels()
	attributes["name"], attributes["image"], attributes["node"] = b.name, b.spec().Image, b.node
	var out []*message
	add := func(action events.Action, more ...string) {
		own := map[string]string{}
		for k, v := range attributes {
			own[k] = v
		}
		for n := 0; n+1 < len(more); n += 2 {
			own[more[n]] = more[n+1]
		}
		out = append(out, newMessage(events.ContainerEventType, action, b.id, "local", own))
	}
	before, after := *b, *b
	before.instance, after.instance = old, now
	was := before.run()
	if now == nil {
		if was != nil && was.State != "exited" {
			add(events.ActionDie, "exitCode", strconv.Itoa(was.ExitCode))
		}
		switch {
		case b.made == nil:
			add(events.ActionDestroy)
		case of.removed && of.instances == 0:
			out = append(out, destroyed(w, b.made))
		}
		return out
	}
	is := after.run()
	if old == nil && b.made == nil || old != nil && old.NodeID == "" && b.made == nil {
		add(events.ActionCreate)
	}
	if is != nil && (was == nil || was.Run != is.Run) && is.State != "created" {
		add(events.ActionStart)
		was = nil
	}
	if is != nil && was != nil && (was.State == "paused") != (is.State == "paused") && is.State != "exited" {
		action := events.ActionPause
		if was.State == "paused" {
			action = events.ActionUnPause
		}
		add(action)
	}
	if is != nil && is.State == "exited" && (was == nil || was.State != "exited") {
		if is.OOM {
			add(events.ActionOOM)
		}
		add(events.ActionDie, "exitCode", strconv.Itoa(is.ExitCode))
		if killed := now.StopWithin != nil && *now.StopWithin == 0; now.Desired != model.DesiredRun && !killed {
			add(events.ActionStop)
		}
	}
	if old != nil && old.Status.Health != now.Status.Health && slices.Contains([]model.Health{model.HealthHealthy, model.HealthUnhealthy}, now.Status.Health) {
		add(events.Action("health_status: " + string(now.Status.Health)))
	}
	return out
}

// nothingToTell reports whether a change is none of what events tell of.
func nothingToTell(old, now *model.Instance) bool {
	if old.NodeID != now.NodeID || old.Status.Health != now.Status.Health || len(old.Status.Tasks) != len(now.Status.Tasks) {
		return false
	}
	for n := range now.Status.Tasks {
		if x, y := &old.Status.Tasks[n], &now.Status.Tasks[n]; x.Run != y.Run || x.State != y.State {
			return false
		}
	}
	return true
}
