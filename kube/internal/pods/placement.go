package pods

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tutti-run/tutti/internal/model"
)

// groupOf is the placement group of a Pod: Pods of a namespace with the same labels count together.
// Labels that name one Pod alone are left out, or each would be a group of its own.
func groupOf(namespace string, podLabels map[string]string) string {
	h := sha256.New()
	for _, k := range slices.Sorted(maps.Keys(groupLabels(podLabels))) {
		fmt.Fprintf(h, "%s\x00%s\x00", k, podLabels[k])
	}
	return namespace + "/" + hex.EncodeToString(h.Sum(nil)[:8])
}

var ofOnePod = []string{"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index", "batch.kubernetes.io/job-completion-index"}

func groupLabels(all map[string]string) map[string]string {
	out := maps.Clone(all)
	for _, name := range ofOnePod {
		delete(out, name)
	}
	return out
}

// key is the core's key for a label of a node.
func key(label string) string {
	switch label {
	case corev1.LabelHostname:
		return "node.name"
	case corev1.LabelOSStable:
		return "node.platform.os"
	case corev1.LabelArchStable:
		return "node.platform.arch"
	}
	return "node.labels." + label
}

var operators = map[corev1.NodeSelectorOperator]model.Operator{
	corev1.NodeSelectorOpIn: model.In, corev1.NodeSelectorOpNotIn: model.NotIn, corev1.NodeSelectorOpExists: model.Exists,
	corev1.NodeSelectorOpDoesNotExist: model.NotExists, corev1.NodeSelectorOpGt: model.Greater, corev1.NodeSelectorOpLt: model.Less,
}

// placement says where the Pod may run, in the core's terms.
func (t *translation) placement() model.Placement {
	s := &t.pod.Spec
	p := model.Placement{Group: groupOf(t.pod.Namespace, t.pod.Labels), Priority: t.around.priority}
	for _, name := range slices.Sorted(maps.Keys(s.NodeSelector)) {
		p.Constraints = append(p.Constraints, model.Constraint{Key: key(name), Operator: model.Equal, Values: []string{s.NodeSelector[name]}})
	}
	if s.NodeName != "" {
		p.Constraints = append(p.Constraints, model.Constraint{Key: "node.name", Operator: model.Equal, Values: []string{s.NodeName}})
		p.Tolerations = append(p.Tolerations, model.Toleration{}) // whoever chose the node has weighed its taints
	}
	t.affinity(&p)
	for _, tol := range s.Tolerations {
		out := model.Toleration{Key: tol.Key, Value: tol.Value, Effect: effects[tol.Effect]}
		if tol.Operator == corev1.TolerationOpExists {
			out.Value = ""
		} else if tol.Value == "" && tol.Key != "" {
			out.Value = "" // an empty value tolerates any: the core knows no other meaning
		}
		p.Tolerations = append(p.Tolerations, out)
	}
	for i := range s.TopologySpreadConstraints {
		c := &s.TopologySpreadConstraints[i]
		if c.WhenUnsatisfiable == corev1.ScheduleAnyway {
			p.Spread = append(p.Spread, key(c.TopologyKey))
			continue
		}
		skew := model.Skew{Key: key(c.TopologyKey), Max: int(c.MaxSkew)}
		if c.MinDomains != nil {
			skew.MinDomains = int(*c.MinDomains)
		}
		skew.Groups = t.meant(c.LabelSelector, []string{t.pod.Namespace}, c.MatchLabelKeys)
		p.Skew = append(p.Skew, skew)
	}
	return p
}

var effects = map[corev1.TaintEffect]string{
	"": "", corev1.TaintEffectNoSchedule: "noSchedule", corev1.TaintEffectPreferNoSchedule: "preferNoSchedule", corev1.TaintEffectNoExecute: "noExecute",
}

func (t *translation) affinity(p *model.Placement) {
	a := t.pod.Spec.Affinity
	if a == nil {
		return
	}
	if n := a.NodeAffinity; n != nil {
		if r := n.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
			if len(r.NodeSelectorTerms) > 1 {
				t.refused.add("spec.affinity.nodeAffinity", "a choice between several required terms")
			}
			for i := range r.NodeSelectorTerms {
				p.Constraints = append(p.Constraints, t.term(&r.NodeSelectorTerms[i])...)
			}
		}
		for i := range n.PreferredDuringSchedulingIgnoredDuringExecution {
			term := &n.PreferredDuringSchedulingIgnoredDuringExecution[i]
			list := t.term(&term.Preference)
			if len(list) > 1 {
				t.refused.add("spec.affinity.nodeAffinity", "a preference of several expressions")
			}
			for _, c := range list {
				p.Prefer = append(p.Prefer, model.Preference{Constraint: c, Weight: int(term.Weight)})
			}
		}
	}
	if n := a.PodAffinity; n != nil {
		p.Near = t.affinities(n.RequiredDuringSchedulingIgnoredDuringExecution, n.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if n := a.PodAntiAffinity; n != nil {
		p.Apart = t.affinities(n.RequiredDuringSchedulingIgnoredDuringExecution, n.PreferredDuringSchedulingIgnoredDuringExecution)
	}
}

func (t *translation) term(term *corev1.NodeSelectorTerm) (out []model.Constraint) {
	for _, e := range term.MatchExpressions {
		out = append(out, model.Constraint{Key: key(e.Key), Operator: operators[e.Operator], Values: e.Values})
	}
	for _, e := range term.MatchFields { // the only one there is: metadata.name
		out = append(out, model.Constraint{Key: "node.name", Operator: operators[e.Operator], Values: e.Values})
	}
	return out
}

func (t *translation) affinities(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm) (out []model.Affinity) {
	one := func(term *corev1.PodAffinityTerm, weight int) {
		namespaces := slices.Clone(term.Namespaces)
		if term.NamespaceSelector != nil {
			if selector, err := metav1.LabelSelectorAsSelector(term.NamespaceSelector); err == nil {
				namespaces = append(namespaces, t.around.namespaces(func(l map[string]string) bool { return selector.Matches(labels.Set(l)) })...)
			}
		} else if len(namespaces) == 0 {
			namespaces = []string{t.pod.Namespace}
		}
		groups := t.meant(term.LabelSelector, namespaces, term.MatchLabelKeys)
		if len(term.MismatchLabelKeys) > 0 {
			t.refused.add("spec.affinity", "mismatchLabelKeys")
		}
		out = append(out, model.Affinity{Groups: groups, Key: key(term.TopologyKey), Weight: weight})
	}
	for i := range required {
		one(&required[i], 0)
	}
	for i := range preferred {
		one(&preferred[i].PodAffinityTerm, int(preferred[i].Weight))
	}
	return out
}

// nobody is a group without Pods.
const nobody = "none"

// meant are the groups of the Pods that a selector means, the Pod's own among them where it does.
func (t *translation) meant(s *metav1.LabelSelector, namespaces, also []string) []string {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.refused = append(t.refused, "a label selector cannot be read: "+err.Error())
		return []string{nobody}
	}
	matches := func(l map[string]string) bool {
		for _, name := range also {
			if l[name] != t.pod.Labels[name] {
				return false
			}
		}
		return selector.Matches(labels.Set(l))
	}
	groups := t.around.groups(namespaces, matches)
	if own := groupOf(t.pod.Namespace, t.pod.Labels); slices.Contains(namespaces, t.pod.Namespace) && matches(t.pod.Labels) && !slices.Contains(groups, own) {
		groups = append(groups, own)
	}
	if len(groups) == 0 {
		return []string{nobody}
	}
	slices.Sort(groups)
	return groups
}
