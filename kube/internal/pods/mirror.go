package pods

import (
	"cmp"
	"context"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tutti-run/tutti/internal/model"
)

// Instances of workloads that were made through other APIs are shown as mirror pods: bound to their node,
// with what they ask for and how they are, and with nothing of theirs that a selector could mean. A mirror pod
// that is deleted comes again; what it shows is changed where it was made.

// What is noted at mirror pods. Kubernetes' own note makes them those of a static pod, which kubectl drain and
// admission leave alone.
const (
	instanceNote     = "tutti.run/instance" // ID
	ownerNote        = "tutti.run/owner"    // the workload, as `tutti ls` has it
	applicationLabel = "tutti.run/application"
	workloadLabel    = "tutti.run/workload"
	// processImage is the image of what runs without one.
	processImage = "tutti.run/process"
)

// mirrorOf is the ID of the instance that a pod shows, "" for pods of Kubernetes' own.
func mirrorOf(o metav1.Object) string { return o.GetAnnotations()[instanceNote] }

// containerOf is the name of the container that shows a task of an instance.
func containerOf(pod metav1.Object, task string) string {
	if mirrorOf(pod) != "" {
		return labelled(task)
	}
	return task
}

// labelled makes a name one that Kubernetes takes for names and values of labels.
func labelled(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, s)
	return strings.Trim(s[:min(len(s), 63)], "-")
}

// mirrorName is the name of the pod that shows an instance; no two instances have one.
func mirrorName(i *model.Instance) string {
	const most = 48
	name := labelled(i.Application + "-" + i.Name)
	return strings.TrimRight(name[:min(len(name), most)], "-") + "-" + labelled(model.ShortID(i.ID))
}

// mirrorPod is the pod that shows an instance on a node.
func mirrorPod(i *model.Instance, w *model.Workload, n *model.Node) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: i.Namespace, Name: mirrorName(i),
		Labels:      map[string]string{workloadLabel: labelled(w.Name)},
		Annotations: map[string]string{corev1.MirrorPodAnnotationKey: i.ID, instanceNote: i.ID, ownerNote: w.FullName()},
	}}
	if i.Application != "" {
		p.Labels[applicationLabel] = labelled(i.Application)
	}
	no := false
	p.Spec = corev1.PodSpec{
		NodeName: n.Name, HostNetwork: w.Template.HostNetwork, RestartPolicy: corev1.RestartPolicyAlways, AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
		Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
	}
	switch w.Template.Restart.Condition {
	case model.RestartNever:
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
	case model.RestartOnFailure:
		p.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	}
	for k := range w.Template.InitTasks {
		p.Spec.InitContainers = append(p.Spec.InitContainers, mirrorContainer(&w.Template.InitTasks[k]))
	}
	for k := range w.Template.Tasks {
		p.Spec.Containers = append(p.Spec.Containers, mirrorContainer(&w.Template.Tasks[k]))
	}
	return p
}

// mirrorContainer shows a task; its environment and arguments, which may hold secrets of others, are not shown.
func mirrorContainer(t *model.TaskSpec) corev1.Container {
	c := corev1.Container{Name: labelled(t.Name), Image: strings.TrimSpace(cmp.Or(t.Image, processImage)), ImagePullPolicy: corev1.PullNever}
	list := func(r *model.Resources) corev1.ResourceList {
		out := corev1.ResourceList{}
		if r.NanoCPUs > 0 {
			out[corev1.ResourceCPU] = *resource.NewMilliQuantity(r.NanoCPUs/1e6, resource.DecimalSI)
		}
		if r.MemoryBytes > 0 {
			out[corev1.ResourceMemory] = *resource.NewQuantity(r.MemoryBytes, resource.BinarySI)
		}
		return out
	}
	c.Resources.Requests, c.Resources.Limits = list(&t.Reserve), list(&t.Limit)
	for name, most := range c.Resources.Limits {
		if asked := c.Resources.Requests[name]; asked.Cmp(most) > 0 {
			delete(c.Resources.Limits, name) // Kubernetes takes no such thing
		}
	}
	return c
}

// syncMirror shows an instance of another API's workload, as far as it has a node.
func (b *bridge) syncMirror(ctx context.Context, id string) error {
	i, w := b.seen.others(id)
	var n *model.Node
	if i != nil {
		n = b.seen.node(i.NodeID)
	}
	if i == nil || n == nil {
		return b.unmirror(ctx, id)
	}
	if w == nil { // removed, and its last instances end
		return &later{time.Second}
	}
	if _, err := b.spaces.Get(i.Namespace); apierrors.IsNotFound(err) {
		_, err = b.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: i.Namespace}}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	want := mirrorPod(i, w, n)
	have, err := b.pods.Pods(want.Namespace).Get(want.Name)
	switch {
	case apierrors.IsNotFound(err):
		if i.Status.State.Final() && i.Desired != model.DesiredRun {
			return nil // about to be forgotten
		}
		have, err = b.client.CoreV1().Pods(want.Namespace).Create(ctx, want, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil // the watch will tell
		}
		if err != nil {
			return err
		}
	case err != nil:
		return err
	case have.DeletionTimestamp != nil || have.Spec.NodeName != n.Name:
		return b.delete(ctx, have) // it comes again
	}
	if !maps.Equal(want.Labels, have.Labels) || have.Annotations[ownerNote] != want.Annotations[ownerNote] {
		c := have.DeepCopy()
		c.Labels, c.Annotations = want.Labels, want.Annotations
		if have, err = b.client.CoreV1().Pods(want.Namespace).Update(ctx, c, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	shown := i.Clone()
	for k := range shown.Status.Tasks {
		t := &shown.Status.Tasks[k]
		t.Name = labelled(t.Name)
		if !w.Template.Separate { // they are ready together
			t.Ready = i.Status.Ready && t.State != "exited"
			t.Up = t.Ready
		}
	}
	return b.putStatus(ctx, have, statusOf(have, shown, n, b.now()))
}

// unmirror deletes the pods that show an instance which is no more.
func (b *bridge) unmirror(ctx context.Context, id string) error {
	if !b.seen.synced() {
		return nil
	}
	for _, p := range b.allPods() {
		if mirrorOf(p) == id {
			if err := b.delete(ctx, p); err != nil {
				return err
			}
		}
	}
	return nil
}
