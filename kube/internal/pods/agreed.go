package pods

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/model"
)

// agreedOn is the annotation of a Node with the labels and taints that both sides last had.
const agreedOn = "tutti.run/agreed"

// agreed are labels and taints of a node that may be changed on either side.
type agreed struct {
	Labels map[string]string `json:"labels,omitempty"`
	// Taints are by key: value and effect of each, in order, with commas between.
	Taints map[string]string `json:"taints,omitempty"`
	// Resources are how many a node has of what is counted there, by names with a domain. They stand here once the
	// Node's status has them, so that one that was not written yet is not taken for one that was removed.
	Resources map[string]string `json:"resources,omitempty"`
}

// countedHere are the resources of a node that people said it has.
func countedHere(n *model.Node) map[string]string {
	out := map[string]string{}
	for name, count := range n.Capacity.Custom {
		if _, own := n.Attributes[model.CDIAttribute+name]; strings.Contains(name, "/") && !own {
			out[name] = strconv.FormatInt(count, 10)
		}
	}
	return out
}

// countedThere are those in the status of its Node.
func countedThere(n *model.Node, have *corev1.Node) map[string]string {
	out := map[string]string{}
	for name, q := range have.Status.Capacity {
		if _, own := n.Attributes[model.CDIAttribute+string(name)]; strings.Contains(string(name), "/") && !own && q.Value() > 0 {
			out[string(name)] = strconv.FormatInt(q.Value(), 10)
		}
	}
	return out
}

// countAgain is after how long a node whose resources were changed is looked at again.
const countAgain = 100 * time.Millisecond

// count makes the core's node have the resources that both sides agreed on, and returns what is to be remembered of that.
func (b *bridge) count(ctx context.Context, n *model.Node, have *corev1.Node, last map[string]string) (map[string]string, error) {
	here, there := countedHere(n), countedThere(n, have)
	both := merged(last, here, there)
	if set, gone := changes(here, both); len(set)+len(gone) > 0 {
		r := native.NodeResources{Ref: n.Name, Counts: map[string]int64{}, Remove: gone}
		for name, count := range set {
			var err error
			if r.Counts[name], err = strconv.ParseInt(count, 10, 64); err != nil {
				return nil, fmt.Errorf("count %s of node %s: %w", name, n.Name, err)
			}
		}
		if err := b.Tutti.SetNodeResources(ctx, r); err != nil {
			return nil, fmt.Errorf("set resources of node %s: %w", n.Name, err)
		}
		// Until the core tells of them, what it told before would be written into the Node, as if they had been removed there.
		return nil, &later{countAgain}
	}
	out := map[string]string{}
	for name, count := range both {
		if was, ok := last[name]; there[name] == count {
			out[name] = count
		} else if ok {
			out[name] = was
		}
	}
	return out, nil
}

// merged are the entries of two maps that began alike: what was changed there counts, else what is here.
func merged(last, here, there map[string]string) map[string]string {
	out := map[string]string{}
	all := maps.Clone(here)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, there)
	for k := range all {
		was, before := last[k]
		now, is := there[k]
		if now != was || is != before { // changed there
			if is {
				out[k] = now
			}
			continue
		}
		if v, ok := here[k]; ok {
			out[k] = v
		}
	}
	return out
}

// ownLabels are those that say what a node is: nobody changes them.
var ownLabels = []string{corev1.LabelHostname, corev1.LabelOSStable, corev1.LabelArchStable, "node-role.kubernetes.io/control-plane"}

// ownTaints are those that say how a node is; the core knows by itself.
var ownTaints = []string{
	corev1.TaintNodeUnreachable, corev1.TaintNodeNotReady, corev1.TaintNodeUnschedulable, corev1.TaintNodeMemoryPressure,
	corev1.TaintNodeDiskPressure, corev1.TaintNodePIDPressure, corev1.TaintNodeNetworkUnavailable,
}

func without(m map[string]string, keys []string) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		if !slices.Contains(keys, k) {
			out[k] = v
		}
	}
	return out
}

// effectNames are Kubernetes' words for the core's effects.
var effectNames = map[string]corev1.TaintEffect{
	"noSchedule": corev1.TaintEffectNoSchedule, "preferNoSchedule": corev1.TaintEffectPreferNoSchedule, "noExecute": corev1.TaintEffectNoExecute,
}

// byKey packs taints for agreed.
func byKey(list []corev1.Taint) map[string]string {
	parts := map[string][]string{}
	for _, t := range list {
		parts[t.Key] = append(parts[t.Key], t.Value+":"+string(t.Effect))
	}
	out := map[string]string{}
	for k, p := range parts {
		slices.Sort(p)
		out[k] = strings.Join(slices.Compact(p), ",")
	}
	return without(out, ownTaints)
}

// taintsOf unpacks what byKey packed.
func taintsOf(packed map[string]string) (out []corev1.Taint) {
	for _, k := range slices.Sorted(maps.Keys(packed)) {
		for part := range strings.SplitSeq(packed[k], ",") {
			value, effect, _ := strings.Cut(part, ":")
			out = append(out, corev1.Taint{Key: k, Value: value, Effect: corev1.TaintEffect(effect)})
		}
	}
	return out
}

// agreeOn makes labels, taints and counted resources the same on both sides and returns them: the core's node takes over
// what was changed of the Node since they last agreed, and the Node what was changed of the core's.
func (b *bridge) agreeOn(ctx context.Context, n *model.Node, have *corev1.Node) (agreed, error) {
	var last agreed
	if text := have.Annotations[agreedOn]; text != "" {
		if err := json.Unmarshal([]byte(text), &last); err != nil {
			b.Log.Warn("what was agreed on for a node cannot be read, and is agreed on anew", "node", n.Name, "error", err)
		}
	}
	here := agreed{Labels: without(n.Labels, ownLabels)}
	var taints []corev1.Taint
	for _, t := range n.Taints {
		taints = append(taints, corev1.Taint{Key: t.Key, Value: t.Value, Effect: effectNames[t.Effect]})
	}
	here.Taints = byKey(taints)
	if told, ok := b.lastTold(n.ID, &last, &here); !ok {
		return agreed{}, &later{seeAgain}
	} else if told != nil {
		last.Labels, last.Taints = told.Labels, told.Taints
	}
	both := agreed{
		Labels: merged(last.Labels, here.Labels, without(have.Labels, ownLabels)),
		Taints: merged(last.Taints, here.Taints, byKey(have.Spec.Taints)),
	}
	if set, gone := changes(here.Labels, both.Labels); len(set)+len(gone) > 0 {
		if err := b.Tutti.LabelNode(ctx, n.Name, set, gone); err != nil {
			return both, fmt.Errorf("label node %s: %w", n.Name, err)
		}
		b.noteTold(n.ID, both.Labels, here.Taints)
	}
	if set, gone := changes(here.Taints, both.Taints); len(set)+len(gone) > 0 {
		var list []model.Taint
		for _, t := range taintsOf(set) {
			list = append(list, model.Taint{Key: t.Key, Value: t.Value, Effect: effects[t.Effect]})
		}
		if err := b.Tutti.TaintNode(ctx, n.Name, list, gone); err != nil {
			return both, fmt.Errorf("taint node %s: %w", n.Name, err)
		}
		b.noteTold(n.ID, both.Labels, both.Taints)
	}
	var err error
	both.Resources, err = b.count(ctx, n, have, last.Resources)
	return both, err
}

// told is what the core was told of a node and may not be seen of it yet, or not be written into its Node.
type told struct {
	Labels, Taints map[string]string
	until          time.Time
}

const (
	seeWithin = 2 * time.Second       // what the core was told is seen of it, unless somebody else changes it as well
	seeAgain  = 50 * time.Millisecond // when it is looked for again
)

func (b *bridge) noteTold(node string, labels, taints map[string]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.toldNodes[node] = &told{labels, taints, b.now().Add(seeWithin)}
}

// lastTold returns what the core was told of a node, for it to be what both sides agreed on last: what the Node says of that may be from
// before. It is not ok as long as the core is seen as it was before.
func (b *bridge) lastTold(node string, last, here *agreed) (t *told, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t = b.toldNodes[node]; t == nil {
		return nil, true
	}
	is := func(a *agreed) bool { return maps.Equal(a.Labels, t.Labels) && maps.Equal(a.Taints, t.Taints) }
	late := !b.now().Before(t.until)
	if !is(here) && !late {
		return nil, false
	}
	if is(last) || late {
		delete(b.toldNodes, node)
	}
	return t, true
}

// changes are those that make one map the other.
func changes(from, to map[string]string) (set map[string]string, gone []string) {
	set = map[string]string{}
	for k, v := range to {
		if have, ok := from[k]; !ok || have != v {
			set[k] = v
		}
	}
	for k := range from {
		if _, ok := to[k]; !ok {
			gone = append(gone, k)
		}
	}
	slices.Sort(gone)
	return set, gone
}

// text is what the annotation says.
func (a *agreed) text() string {
	b, err := json.Marshal(a)
	if err != nil { // strings alone
		panic(err)
	}
	return string(b)
}
