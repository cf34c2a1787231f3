package docker

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/compose"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// link is a further name that a container has for another one, on a network that both are on.
type link struct {
	to      *box
	alias   string
	network string // ID
}

// link reads "name:alias" of --link. The alias becomes a name of the other container on the network: others there find
// it by that, too.
func (t *translation) link(list []string, networkID string) error {
	snap := t.api.snapshot()
	for _, text := range list {
		name, alias, _ := strings.Cut(text, ":")
		alias = alias[strings.LastIndexByte(alias, '/')+1:] // as inspections show it: "/db:/web/db"
		b, err := t.api.findBox(snap, name)
		if err != nil {
			return fault.New(fault.Invalid, "could not get container for %s: %w", name, err)
		}
		alias = cmp.Or(alias, b.name)
		k := slices.IndexFunc(b.template.Networks, func(at model.Attachment) bool { return at.Network == networkID })
		switch {
		case k < 0:
			return fault.New(fault.Invalid, "Cannot link to %s, as it does not belong to the same network", b.name)
		case slices.Contains(b.template.Networks[k].Aliases, alias):
			continue
		case b.made == nil:
			return notHonoured("--link to a container of a service by another name than its own", text)
		}
		t.links = append(t.links, link{b, alias, networkID})
	}
	return nil
}

// linkAll gives containers their further names.
func (a *API) linkAll(r *request, links []link) error {
	for _, l := range links {
		b := a.boxByID(a.snapshot(), l.to.id)
		if b == nil {
			return fault.New(fault.Conflict, "container %s was removed meanwhile", l.to.name)
		}
		err := a.changeContainer(r, b, func(wl *model.Workload, _ *created) error {
			for i := range wl.Template.Networks {
				at := &wl.Template.Networks[i]
				if at.Network == l.network && !slices.Contains(at.Aliases, l.alias) {
					at.Aliases = append(slices.Clone(at.Aliases), l.alias)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// volumesFrom are the volumes and folders of other containers, where they have them, but for targets that are taken.
// Folders are those of the node that the other one is on, to which this one goes, too.
func (t *translation) volumesFrom(taken map[string]bool) (out []model.Mount, err error) {
	snap := t.api.snapshot()
	for _, text := range t.made.HostConfig.VolumesFrom {
		name, mode, _ := strings.Cut(text, ":")
		readOnly := slices.Contains(strings.Split(mode, ","), "ro")
		for _, o := range strings.Split(mode, ",") {
			if !slices.Contains([]string{"", "ro", "rw", "z", "Z"}, o) {
				return nil, fault.New(fault.Invalid, "invalid mode: %s", mode)
			}
		}
		b, err := t.api.findBox(snap, name)
		if err != nil { // clients take "not found" for an image that they have to pull
			return nil, fault.New(fault.Invalid, "%w", err)
		}
		for _, m := range b.spec().Mounts {
			switch {
			case m.Type != model.MountVolume && m.Type != model.MountBind || taken[m.Target]:
				continue
			case m.Type == model.MountVolume && m.Source == "":
				return nil, notHonoured("--volumes-from "+name+", whose volume at this path has no name and is its own alone", m.Target)
			case m.Type == model.MountBind && (b.instance == nil || b.instance.NodeID == ""):
				return nil, fault.New(fault.Unsupported, "--volumes-from %s: it mounts the folder %s of its node, and has none before it is started; start it first", name, m.Source)
			case m.Type == model.MountBind:
				t.pin(b.instance.NodeID)
			}
			taken[m.Target] = true
			m.ReadOnly = m.ReadOnly || readOnly
			out = append(out, m)
		}
	}
	return out, nil
}

// pin places the container on a node.
func (t *translation) pin(nodeID string) {
	c := model.Constraint{Key: "node.id", Operator: model.Equal, Values: []string{nodeID}}
	list := &t.workload.Template.Placement.Constraints
	if !slices.ContainsFunc(*list, func(have model.Constraint) bool {
		return have.Key == c.Key && have.Operator == c.Operator && slices.Equal(have.Values, c.Values)
	}) {
		*list = append(*list, c)
	}
}

// affinity reads classic Swarm's "container==NAME" and "LABEL==VALUE", which mean the nodes where such containers are when
// this one is made, and with != all others. Values may have a * or be a /regular expression/.
func (t *translation) affinity(expr string) (model.Constraint, error) {
	c := model.Constraint{Key: "node.id", Operator: model.In}
	key, value, ok := strings.Cut(expr, "==")
	if !ok {
		if key, value, ok = strings.Cut(expr, "!="); !ok {
			return c, fault.New(fault.Invalid, "affinity %q: container==name, label==value and the same with != are accepted", expr)
		}
		c.Operator = model.NotIn
	}
	switch {
	case strings.HasPrefix(value, "~"):
		return c, notHonoured("soft affinities", expr)
	case key == "image":
		return c, notHonoured("affinity to images", expr)
	case strings.HasPrefix(value, "/") && strings.HasSuffix(value, "/") && len(value) > 1:
		value = value[1 : len(value)-1]
	default:
		value = strings.ReplaceAll(regexp.QuoteMeta(value), `\*`, ".*")
	}
	pattern, err := regexp.Compile("^(?:" + value + ")$")
	if err != nil {
		return c, fault.New(fault.Invalid, "affinity %q: %w", expr, err)
	}
	snap := t.api.snapshot()
	for _, b := range t.api.boxes(snap) {
		if b.instance == nil || b.instance.NodeID == "" || slices.Contains(c.Values, b.instance.NodeID) {
			continue
		}
		label, labelled := b.labels()[key]
		if key == "container" && (pattern.MatchString(b.name) || pattern.MatchString(b.id)) || key != "container" && labelled && pattern.MatchString(label) {
			c.Values = append(c.Values, b.instance.NodeID)
		}
	}
	if len(c.Values) == 0 {
		if c.Operator == model.NotIn {
			return model.Constraint{Key: "node.id", Operator: model.Exists}, nil
		}
		return c, fault.New(fault.Invalid, "unable to find a node that satisfies the affinity %s: no container that has a node is like that", expr)
	}
	return c, nil
}

// log takes over what is to be kept of the output.
func (t *translation) log(task *model.TaskSpec) error {
	l := t.made.HostConfig.LogConfig
	policy, unused, err := compose.LogPolicy(l.Type, l.Config)
	if len(unused) > 0 {
		t.warnings = append(t.warnings, "Log options without effect: "+strings.Join(unused, ", "))
	}
	task.Log = policy
	return err
}
