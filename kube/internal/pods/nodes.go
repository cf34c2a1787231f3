package pods

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tutti-run/tutti/internal/model"
)

// maxPods is how many Pods a node says that it takes; the core has no such bound.
const maxPods = 500

// nodeLabels are those that a Node has by what it is, and others.
func nodeLabels(n *model.Node, others map[string]string) map[string]string {
	out := maps.Clone(others)
	if out == nil {
		out = map[string]string{}
	}
	out[corev1.LabelHostname] = n.Name
	out[corev1.LabelOSStable] = orElse(n.Attributes["os"], "linux")
	out[corev1.LabelArchStable] = orElse(n.Attributes["arch"], "amd64")
	if n.Server {
		out["node-role.kubernetes.io/control-plane"] = ""
	}
	return out
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func resourcesOf(have, less *model.Resources) corev1.ResourceList {
	out := corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewMilliQuantity((have.NanoCPUs-less.NanoCPUs)/1e6, resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(have.MemoryBytes-less.MemoryBytes, resource.BinarySI),
		corev1.ResourcePods:   *resource.NewQuantity(maxPods, resource.DecimalSI),
	}
	if have.DiskBytes > 0 {
		out[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(have.DiskBytes-less.DiskBytes, resource.BinarySI)
	}
	for name, n := range have.Custom {
		if strings.Contains(name, "/") {
			out[corev1.ResourceName(name)] = *resource.NewQuantity(n-less.Custom[name], resource.DecimalSI)
		}
	}
	return out
}

// nodeStatus is the status of a Node.
func nodeStatus(n *model.Node, before corev1.NodeStatus, version string, now time.Time) corev1.NodeStatus {
	st := *before.DeepCopy()
	st.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n.HostAddress}, {Type: corev1.NodeHostName, Address: n.Name}}
	st.Capacity, st.Allocatable = resourcesOf(&n.Capacity, &model.Resources{}), resourcesOf(&n.Capacity, &n.Reserved)
	st.DaemonEndpoints.KubeletEndpoint.Port = kubeletPort
	st.NodeInfo = corev1.NodeSystemInfo{
		MachineID: n.ID, SystemUUID: n.ID, BootID: n.Status.Session, KernelVersion: n.Attributes["kernel"],
		OSImage: orElse(n.Attributes["osName"], "Linux"), ContainerRuntimeVersion: "tutti://" + version,
		KubeletVersion: "v1.37.2-tutti", OperatingSystem: orElse(n.Attributes["os"], "linux"), Architecture: orElse(n.Attributes["arch"], "amd64"),
	}
	set := func(kind corev1.NodeConditionType, is corev1.ConditionStatus, reason, message string) {
		c := corev1.NodeCondition{Type: kind, Status: is, Reason: reason, Message: message, LastTransitionTime: kept(now), LastHeartbeatTime: kept(now)}
		for i := range st.Conditions {
			if have := &st.Conditions[i]; have.Type == kind {
				if have.Status == is {
					c.LastTransitionTime, c.LastHeartbeatTime = have.LastTransitionTime, have.LastHeartbeatTime
				}
				*have = c
				return
			}
		}
		st.Conditions = append(st.Conditions, c)
	}
	set(corev1.NodeMemoryPressure, corev1.ConditionFalse, "NotObserved", "Tutti evicts nothing for a node's memory")
	set(corev1.NodeDiskPressure, corev1.ConditionFalse, "NotObserved", "Tutti evicts nothing for a node's disk")
	set(corev1.NodePIDPressure, corev1.ConditionFalse, "NotObserved", "Tutti evicts nothing for a node's processes")
	switch n.Status.State {
	case model.NodeReady:
		set(corev1.NodeReady, corev1.ConditionTrue, "NodeReady", "the node answers")
	case model.NodeDown:
		set(corev1.NodeReady, corev1.ConditionUnknown, "NodeDown", orElse(n.Status.Message, "the node does not answer"))
	default:
		set(corev1.NodeReady, corev1.ConditionFalse, "NodeUnknown", "the node was not heard yet")
	}
	return st
}

// wantedTaints are those that a Node gets by what the core knows of it, and others.
func wantedTaints(n *model.Node, others []corev1.Taint) []corev1.Taint {
	out := slices.Clone(others)
	if n.Status.State == model.NodeDown {
		out = append(out, corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoSchedule})
	}
	if n.Availability != model.Active && n.Availability != "" {
		out = append(out, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
	}
	return out
}

// syncNode shows a node of the core as a Node, and takes over what was changed of that: cordon, labels
// and taints.
func (b *bridge) syncNode(ctx context.Context, id string) error {
	n := b.seen.node(id)
	if n == nil {
		return b.forgetNodes(ctx)
	}
	api := b.client.CoreV1().Nodes()
	// As it is now: in one from before what was agreed on last, that would look like a change.
	have, err := api.Get(ctx, n.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: nodeLabels(n, n.Labels)}, Spec: corev1.NodeSpec{ProviderID: "tutti://" + n.ID}}
		node.Spec.Unschedulable = n.Availability == model.Cordoned || n.Availability == model.Draining
		if have, err = api.Create(ctx, node, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
			return nil // the watch will tell
		}
	}
	if err != nil {
		return err
	}
	if n.Availability == model.Draining {
		b.drained(n)
	}
	if err := b.cordoned(ctx, n, have); err != nil {
		return err
	}
	both, err := b.agreeOn(ctx, n, have)
	if err != nil {
		return err
	}
	want := have.DeepCopy()
	want.Labels, want.Spec.Taints = nodeLabels(n, both.Labels), wantedTaints(n, taintsOf(both.Taints))
	if want.Annotations == nil {
		want.Annotations = map[string]string{}
	}
	want.Annotations[agreedOn] = both.text()
	if !maps.Equal(want.Labels, have.Labels) || !maps.Equal(want.Annotations, have.Annotations) || !slices.Equal(keysOf(want.Spec.Taints), keysOf(have.Spec.Taints)) {
		if have, err = api.Update(ctx, want, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	st := nodeStatus(n, have.Status, b.Version, b.now())
	if !equality.Semantic.DeepEqual(st, have.Status) {
		c := have.DeepCopy()
		c.Status = st
		if _, err := api.UpdateStatus(ctx, c, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

func keysOf(list []corev1.Taint) (out []string) {
	for _, t := range list {
		out = append(out, t.Key+"="+t.Value+":"+string(t.Effect))
	}
	slices.Sort(out)
	return out
}

// cordoned makes cordon and uncordon of a Node those of the core's node, and the other way round: the
// later change counts.
func (b *bridge) cordoned(ctx context.Context, n *model.Node, have *corev1.Node) error {
	b.mu.Lock()
	known, told := b.cordons[n.ID]
	b.mu.Unlock()
	here, there := n.Availability == model.Cordoned || n.Availability == model.Draining, have.Spec.Unschedulable
	note := func(is bool) {
		b.mu.Lock()
		b.cordons[n.ID] = is
		b.mu.Unlock()
	}
	switch {
	case here == there:
		note(here)
		return nil
	case told && known == here || !told: // it was changed there
		availability := model.Active
		if there {
			availability = model.Cordoned
		}
		if err := b.Tutti.SetAvailability(ctx, n.Name, availability); err != nil {
			return fmt.Errorf("set availability of node %s: %w", n.Name, err)
		}
		note(there)
		return nil
	}
	patch := fmt.Sprintf(`{"spec":{"unschedulable":%t}}`, here)
	_, err := b.client.CoreV1().Nodes().Patch(ctx, n.Name, mergePatch, []byte(patch), metav1.PatchOptions{})
	if err == nil {
		note(here)
	}
	return err
}

// forgetNodes deletes Nodes that the core has no more.
func (b *bridge) forgetNodes(ctx context.Context) error {
	list, err := b.nodes.List(everything)
	if err != nil || !b.seen.synced() {
		return err
	}
	for _, node := range list {
		if strings.HasPrefix(node.Spec.ProviderID, "tutti://") && b.seen.node(strings.TrimPrefix(node.Spec.ProviderID, "tutti://")) == nil {
			if err := b.client.CoreV1().Nodes().Delete(ctx, node.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return err
			}
		}
	}
	return nil
}

// leaseEvery is how often the leases of live nodes are renewed.
const leaseEvery = 10 * time.Second

// renewLeases keeps a Lease for each node that is ready, as kubelets do.
func (b *bridge) renewLeases(ctx context.Context) {
	tick := time.NewTicker(leaseEvery)
	defer tick.Stop()
	for {
		for _, n := range b.seen.allNodes() {
			if n.Status.State == model.NodeReady {
				if err := b.renewLease(ctx, n); err != nil && ctx.Err() == nil {
					b.Log.Warn("the lease of a node could not be renewed", "node", n.Name, "error", err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (b *bridge) renewLease(ctx context.Context, n *model.Node) error {
	api := b.client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now, seconds := metav1.NewMicroTime(b.now()), int32(40)
	l, err := api.Get(ctx, n.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = api.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: n.Name, Namespace: corev1.NamespaceNodeLease},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &n.Name, LeaseDurationSeconds: &seconds, RenewTime: &now},
		}, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	l.Spec.HolderIdentity, l.Spec.RenewTime = &n.Name, &now
	_, err = api.Update(ctx, l, metav1.UpdateOptions{})
	return err
}
