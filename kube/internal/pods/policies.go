package pods

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// policyLabel names the NetworkPolicy that a policy of the core is of.
const policyLabel = "kubernetes.io/networkpolicy"

// neighbours is what a NetworkPolicy chooses from.
type neighbours struct {
	// namespaces are those whose labels match.
	namespaces func(labels.Selector) []string
	// pods are those of some namespaces (nil: all) whose labels match.
	pods func(namespaces []string, chosen labels.Selector) []*corev1.Pod
}

// policyMaker makes policies of a NetworkPolicy. What names ports by name needs policies of its own: a name
// stands for different numbers in different Pods.
type policyMaker struct {
	*neighbours
	of   *networkingv1.NetworkPolicy
	main *model.Policy
	more map[string]*model.Policy
}

// policiesOf are the core's policies of a NetworkPolicy.
func policiesOf(p *networkingv1.NetworkPolicy, n *neighbours) ([]*model.Policy, error) {
	m := &policyMaker{neighbours: n, of: p, more: map[string]*model.Policy{}}
	subject, err := selectorOf(&p.Spec.PodSelector)
	if err != nil {
		return nil, err
	}
	m.main = m.policy(nameOf(p.Name), subject)
	types := p.Spec.PolicyTypes
	if len(types) == 0 {
		types = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(p.Spec.Egress) > 0 {
			types = append(types, networkingv1.PolicyTypeEgress)
		}
	}
	m.main.IsolateIn = slices.Contains(types, networkingv1.PolicyTypeIngress)
	m.main.IsolateOut = slices.Contains(types, networkingv1.PolicyTypeEgress)
	if m.main.IsolateIn {
		for _, r := range p.Spec.Ingress {
			if err := m.rule(model.DirectionIn, r.From, r.Ports); err != nil {
				return nil, err
			}
		}
	}
	if m.main.IsolateOut {
		for _, r := range p.Spec.Egress {
			if err := m.rule(model.DirectionOut, r.To, r.Ports); err != nil {
				return nil, err
			}
		}
	}
	out := []*model.Policy{m.main}
	for _, name := range slices.Sorted(maps.Keys(m.more)) {
		out = append(out, m.more[name])
	}
	return out, nil
}

func (m *policyMaker) policy(name string, subject model.Selector) *model.Policy {
	return &model.Policy{Meta: model.Meta{Name: name, Labels: map[string]string{policyLabel: m.of.Name}}, Subject: subject}
}

// selectorOf is a selector of Pods in the core's words.
func selectorOf(s *metav1.LabelSelector) (model.Selector, error) {
	out := model.Selector{Application: application, Labels: maps.Clone(s.MatchLabels)}
	operators := map[metav1.LabelSelectorOperator]model.Operator{
		metav1.LabelSelectorOpIn: model.In, metav1.LabelSelectorOpNotIn: model.NotIn, metav1.LabelSelectorOpExists: model.Exists, metav1.LabelSelectorOpDoesNotExist: model.NotExists,
	}
	for _, e := range s.MatchExpressions {
		operator, ok := operators[e.Operator]
		if !ok {
			return out, fmt.Errorf("operator %q of label %s is not known", e.Operator, e.Key)
		}
		out.Expressions = append(out.Expressions, model.Constraint{Key: e.Key, Operator: operator, Values: slices.Clone(e.Values)})
	}
	return out, nil
}

// rule adds an allowing rule.
func (m *policyMaker) rule(direction model.Direction, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) error {
	r := model.PolicyRule{Direction: direction}
	for i := range peers {
		some, err := m.peers(&peers[i])
		if err != nil {
			return err
		}
		r.Peers = append(r.Peers, some...)
	}
	if len(peers) > 0 && len(r.Peers) == 0 {
		return nil // there is nobody whom it means: without peers it would mean everybody
	}
	for i := range ports {
		p := &ports[i]
		protocol := corev1.ProtocolTCP
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		out := model.PortRange{Protocol: protocolOf(protocol)}
		switch {
		case p.Port == nil:
		case p.Port.Type == intstr.String:
			if err := m.named(direction, peers, r.Peers, protocol, p.Port.StrVal); err != nil {
				return err
			}
			continue
		default:
			out.From = p.Port.IntValue()
			if p.EndPort != nil {
				out.To = int(*p.EndPort)
			}
		}
		r.Ports = append(r.Ports, out)
	}
	if len(ports) > 0 && len(r.Ports) == 0 {
		return nil // names alone
	}
	m.main.Rules = append(m.main.Rules, r)
	return nil
}

// peers are those that a peer of a rule means.
func (m *policyMaker) peers(p *networkingv1.NetworkPolicyPeer) (out []model.Peer, err error) {
	if p.IPBlock != nil {
		return []model.Peer{{CIDR: p.IPBlock.CIDR, Except: slices.Clone(p.IPBlock.Except)}}, nil
	}
	s := model.Selector{Application: application}
	if p.PodSelector != nil {
		if s, err = selectorOf(p.PodSelector); err != nil {
			return nil, err
		}
	}
	namespaces := []string{""} // its own
	if ns := p.NamespaceSelector; ns != nil {
		if namespaces, err = m.chosen(ns); err != nil {
			return nil, err
		}
		if namespaces == nil {
			namespaces = []string{model.AnyNamespace}
		}
	}
	for _, ns := range namespaces {
		one := s
		one.Namespace = ns
		out = append(out, model.Peer{Selector: &one})
	}
	return out, nil
}

// chosen are the namespaces that a selector means; nil: all of them.
func (m *policyMaker) chosen(s *metav1.LabelSelector) ([]string, error) {
	if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		return nil, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return nil, err
	}
	out := m.namespaces(selector)
	slices.Sort(out)
	return append([]string{}, out...), nil
}

// named adds, for each number that Pods have under a port's name, a rule about those Pods.
func (m *policyMaker) named(direction model.Direction, from []networkingv1.NetworkPolicyPeer, peers []model.Peer, protocol corev1.Protocol, name string) error {
	if direction == model.DirectionIn {
		chosen, err := metav1.LabelSelectorAsSelector(&m.of.Spec.PodSelector)
		if err != nil {
			return err
		}
		for number, uids := range numbersOf(m.pods([]string{m.of.Namespace}, chosen), protocol, name) {
			key := nameOf(fmt.Sprintf("%s.%s-%d", m.of.Name, strings.ToLower(string(protocol)), number))
			if m.more[key] == nil {
				m.more[key] = m.policy(key, model.Selector{Application: application})
			}
			p := m.more[key]
			p.Subject.Expressions = []model.Constraint{{Key: uidLabel, Operator: model.In, Values: uids}}
			p.Rules = append(p.Rules, model.PolicyRule{Direction: direction, Peers: peers, Ports: []model.PortRange{{Protocol: protocolOf(protocol), From: number}}})
		}
		return nil
	}
	if len(from) == 0 {
		from = []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{}}}
	}
	for i := range from {
		p := &from[i]
		if p.IPBlock != nil {
			continue // an address has no names of ports
		}
		namespaces, chosen := []string{m.of.Namespace}, labels.Everything()
		var err error
		if p.NamespaceSelector != nil {
			if namespaces, err = m.chosen(p.NamespaceSelector); err != nil {
				return err
			}
		}
		if p.PodSelector != nil {
			if chosen, err = metav1.LabelSelectorAsSelector(p.PodSelector); err != nil {
				return err
			}
		}
		numbers := numbersOf(m.pods(namespaces, chosen), protocol, name)
		for _, number := range slices.Sorted(maps.Keys(numbers)) {
			s := model.Selector{Namespace: model.AnyNamespace, Application: application, Expressions: []model.Constraint{{Key: uidLabel, Operator: model.In, Values: numbers[number]}}}
			m.main.Rules = append(m.main.Rules, model.PolicyRule{
				Direction: direction, Peers: []model.Peer{{Selector: &s}}, Ports: []model.PortRange{{Protocol: protocolOf(protocol), From: number}},
			})
		}
	}
	return nil
}

// numbersOf are the UIDs of Pods, ascending, by the number that a port's name stands for in them.
func numbersOf(list []*corev1.Pod, protocol corev1.Protocol, name string) map[int][]string {
	out := map[int][]string{}
	for _, pod := range list {
		for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			for _, p := range c.Ports {
				if p.Name == name && (p.Protocol == protocol || p.Protocol == "" && protocol == corev1.ProtocolTCP) {
					out[int(p.ContainerPort)] = append(out[int(p.ContainerPort)], string(pod.UID))
				}
			}
		}
	}
	for number, uids := range out {
		slices.Sort(uids)
		out[number] = slices.Compact(uids)
	}
	return out
}

// hasNames reports whether a NetworkPolicy names ports by name, and hasNamespaces whether it chooses namespaces.
func hasNames(p *networkingv1.NetworkPolicy) bool {
	named := func(ports []networkingv1.NetworkPolicyPort) bool {
		return slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool { return p.Port != nil && p.Port.Type == intstr.String })
	}
	return slices.ContainsFunc(p.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool { return named(r.Ports) }) ||
		slices.ContainsFunc(p.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool { return named(r.Ports) })
}

func hasNamespaces(p *networkingv1.NetworkPolicy) bool {
	chooses := func(peers []networkingv1.NetworkPolicyPeer) bool {
		return slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool { return p.NamespaceSelector != nil })
	}
	return slices.ContainsFunc(p.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool { return chooses(r.From) }) ||
		slices.ContainsFunc(p.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool { return chooses(r.To) })
}

// policiesChanged looks again at the NetworkPolicies that something concerns.
func (b *bridge) policiesChanged(concerned func(*networkingv1.NetworkPolicy) bool) {
	list, err := b.policies.List(everything)
	if err != nil {
		return
	}
	for _, p := range list {
		if concerned(p) {
			b.queue.Add("policy/" + p.Namespace + "/" + p.Name)
		}
	}
}

// syncPolicy has a NetworkPolicy enforced, or no longer.
func (b *bridge) syncPolicy(ctx context.Context, namespace, name string) error {
	p, err := b.policies.NetworkPolicies(namespace).Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	var want []*model.Policy
	if err == nil {
		if want, err = policiesOf(p, b.neighbours()); err != nil {
			b.events.Event(p, corev1.EventTypeWarning, "NotEnforced", err.Error())
			return nil
		}
		_, err = b.Tutti.Deploy(ctx, core.Deployment{
			Namespace: namespace, Application: application, Source: "kubernetes", KeepOthers: true, Members: true, Policies: want,
		})
		if fault.Is(err, fault.Invalid) || fault.Is(err, fault.Conflict) {
			b.events.Event(p, corev1.EventTypeWarning, "NotEnforced", err.Error())
		}
		if err != nil {
			return fmt.Errorf("enforce network policy %s/%s: %w", namespace, name, err)
		}
	}
	have, err := b.Tutti.Policies(ctx)
	if err != nil {
		return fmt.Errorf("list policies: %w", err)
	}
	for i := range have {
		old := &have[i]
		if old.Namespace != namespace || old.Application != application || old.Labels[policyLabel] != name ||
			slices.ContainsFunc(want, func(p *model.Policy) bool { return p.Name == old.Name }) {
			continue
		}
		if err := b.Tutti.RemovePolicy(ctx, old.ID); err != nil && !fault.Is(err, fault.NotFound) {
			return fmt.Errorf("remove policy %s: %w", old.Name, err)
		}
	}
	return nil
}

// oldPolicies looks at the NetworkPolicies of all policies that there are: some may be gone.
func (b *bridge) oldPolicies(ctx context.Context) error {
	have, err := b.Tutti.Policies(ctx)
	if err != nil {
		return fmt.Errorf("list policies: %w", err)
	}
	for i := range have {
		if p := &have[i]; p.Application == application && p.Labels[policyLabel] != "" {
			b.queue.Add("policy/" + p.Namespace + "/" + p.Labels[policyLabel])
		}
	}
	return nil
}

func (b *bridge) neighbours() *neighbours {
	return &neighbours{
		namespaces: func(s labels.Selector) (out []string) {
			list, err := b.spaces.List(s)
			if err != nil {
				return nil
			}
			for _, ns := range list {
				out = append(out, ns.Name)
			}
			return out
		},
		pods: func(namespaces []string, s labels.Selector) (out []*corev1.Pod) {
			list, err := b.pods.List(s)
			if err != nil {
				return nil
			}
			for _, p := range list {
				if !ended(p) && (namespaces == nil || slices.Contains(namespaces, p.Namespace)) {
					out = append(out, p)
				}
			}
			return out
		},
	}
}

// labelsOf are those of what a Pod becomes: policies choose by them.
func labelsOf(pod *corev1.Pod) map[string]string {
	out := maps.Clone(pod.Labels)
	if out == nil {
		out = map[string]string{}
	}
	out[uidLabel] = string(pod.UID)
	return out
}

// relabel has what a Pod became known by the labels that the Pod has now.
func (b *bridge) relabel(ctx context.Context, pod *corev1.Pod) error {
	uid := string(pod.UID)
	b.mu.Lock()
	made := b.made[uid]
	same := made != nil && made.labels != nil && maps.Equal(made.labels, labelsOf(pod))
	b.mu.Unlock()
	if same {
		return nil
	}
	if err := b.Tutti.LabelWorkload(ctx, native.LabelWorkload{ID: uid, Labels: labelsOf(pod)}); err != nil {
		return fmt.Errorf("label what pod %s/%s is: %w", pod.Namespace, pod.Name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if made := b.made[uid]; made != nil {
		made.labels = labelsOf(pod)
	}
	return nil
}
