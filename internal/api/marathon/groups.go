package marathon

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/store"
)

// groupTree is what is kept of groups beside the apps that they hold.
type groupTree struct {
	Groups map[string]*groupMeta `json:"groups"` // by path
	raw    *store.KeyValue
}

type groupMeta struct {
	Dependencies []string `json:"dependencies,omitempty"`
	Version      string   `json:"version"`
	EnforceRole  bool     `json:"enforceRole,omitempty"`
}

// groupsOf reads what is kept of groups.
func groupsOf(snap *store.Snapshot, ns string) *groupTree {
	t := &groupTree{}
	if kv, ok := snap.Keys().Get(groupsKey(ns)); ok {
		t.raw = kv
		_ = json.Unmarshal(kv.Value, t) // our own
	}
	if t.Groups == nil {
		t.Groups = map[string]*groupMeta{}
	}
	return t
}

func (t *groupTree) clone() *groupTree {
	c := &groupTree{Groups: map[string]*groupMeta{}, raw: t.raw}
	for path, g := range t.Groups {
		m := *g
		m.Dependencies = slices.Clone(g.Dependencies)
		c.Groups[path] = &m
	}
	return c
}

// groups adds what is to be kept of groups to the batch, and the versions of those that were named.
func (p *planned) groups() {
	tree := p.c.groups
	if tree == nil {
		return
	}
	p.batch.Keys.Expect[groupsKey(p.r.ns)] = 0
	if tree.raw != nil {
		p.batch.Keys.Expect[groupsKey(p.r.ns)] = tree.raw.Modified
		p.rec.Groups = tree.raw.Value
	}
	for path := range p.c.versions {
		for g := path; ; g = parentOf(g) {
			if tree.Groups[g] == nil {
				tree.Groups[g] = &groupMeta{}
			}
			tree.Groups[g].Version = p.rec.Version
			if g == "/" {
				break
			}
		}
	}
	data, err := json.Marshal(tree)
	if err != nil {
		panic("groups are plain data: " + err.Error())
	}
	p.batch.Keys.Put = append(p.batch.Keys.Put, core.KeyPut{Key: groupsKey(p.r.ns), Value: data})
	for _, path := range slices.Sorted(maps.Keys(p.c.versions)) {
		prefix := groupVersionPrefix(p.r.ns, path)
		if body := p.c.versions[path]; body != nil {
			p.batch.Keys.Put = append(p.batch.Keys.Put, core.KeyPut{Key: prefix + p.rec.Version, Value: body})
			if old := versionsOf(p.snap, prefix); len(old) >= keptVersions {
				for _, v := range old[keptVersions-1:] {
					p.batch.Keys.Delete = append(p.batch.Keys.Delete, prefix+v)
				}
			}
		}
	}
}
