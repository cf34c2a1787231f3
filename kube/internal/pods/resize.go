package pods

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func allContainers(pod *corev1.Pod) []corev1.Container {
	return slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers)
}

// specified are the resources of a Pod's containers, by their names.
func specified(pod *corev1.Pod) map[string]corev1.ResourceRequirements {
	out := map[string]corev1.ResourceRequirements{}
	for _, c := range allContainers(pod) {
		out[c.Name] = c.Resources
	}
	return out
}

// applied are the resources that the containers have: as the status says, otherwise as they were made.
func (b *bridge) applied(pod *corev1.Pod) map[string]corev1.ResourceRequirements {
	out := specified(pod)
	b.mu.Lock()
	if made := b.made[string(pod.UID)]; made != nil && made.resources != nil {
		out = made.resources
	}
	b.mu.Unlock()
	return withStatus(pod, out)
}

// withStatus puts in place of resources what a Pod's status says.
func withStatus(pod *corev1.Pod, of map[string]corev1.ResourceRequirements) map[string]corev1.ResourceRequirements {
	out := map[string]corev1.ResourceRequirements{}
	for name, r := range of {
		out[name] = r
	}
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if c.Resources != nil {
			out[c.Name] = *c.Resources
		}
	}
	return out
}

// resize bounds the containers of a Pod as its spec says by now, and sets in a status what they have, or why not.
func (b *bridge) resize(ctx context.Context, pod *corev1.Pod, st *corev1.PodStatus) error {
	have, want := b.applied(pod), specified(pod)
	t := &translation{}
	tasks := map[string]model.Bounds{}
	var err error
	for _, c := range allContainers(pod) {
		was := have[c.Name]
		if equality.Semantic.DeepEqual(was, c.Resources) {
			continue
		}
		for _, p := range c.ResizePolicy {
			if p.RestartPolicy == corev1.RestartContainer && differs(p.ResourceName, &was, &c.Resources) {
				err = fault.New(fault.Unsupported, "container %s: its resizePolicy wants it restarted when its %s changes, which is not supported", c.Name, p.ResourceName)
			}
		}
		var task model.TaskSpec
		t.resources("container "+c.Name, &c, &task)
		tasks[c.Name] = task.Bounds()
	}
	dropConditions(st, corev1.PodResizePending, corev1.PodResizeInProgress)
	if len(tasks) == 0 {
		setResources(st, have)
		return nil
	}
	if err == nil {
		err = b.Tutti.BoundWorkload(ctx, native.BoundWorkload{ID: string(pod.UID), Tasks: tasks})
	}
	switch {
	case err == nil:
		setResources(st, want)
		b.events.Eventf(pod, corev1.EventTypeNormal, "ResizeCompleted", "The containers' resources are as generation %d of the pod says", pod.Generation)
		return nil
	case fault.Is(err, fault.Invalid), fault.Is(err, fault.Unsupported):
		setCondition(st, corev1.PodResizePending, corev1.ConditionTrue, corev1.PodReasonInfeasible, err.Error(), b.now())
		err = nil
	case fault.Is(err, fault.Exhausted):
		setCondition(st, corev1.PodResizePending, corev1.ConditionTrue, corev1.PodReasonDeferred, err.Error(), b.now())
	default:
		setCondition(st, corev1.PodResizeInProgress, corev1.ConditionTrue, corev1.PodReasonError, err.Error(), b.now())
	}
	setResources(st, have)
	if err != nil {
		return fmt.Errorf("resize the pod: %w", err)
	}
	return nil
}

func differs(name corev1.ResourceName, a, b *corev1.ResourceRequirements) bool {
	r, s := a.Requests[name], b.Requests[name]
	l, m := a.Limits[name], b.Limits[name]
	return r.Cmp(s) != 0 || l.Cmp(m) != 0
}

// setResources says in a status what the containers have.
func setResources(st *corev1.PodStatus, of map[string]corev1.ResourceRequirements) {
	for _, list := range [][]corev1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses} {
		for i := range list {
			if r, ok := of[list[i].Name]; ok {
				list[i].Resources, list[i].AllocatedResources = r.DeepCopy(), r.DeepCopy().Requests
			}
		}
	}
}

func dropConditions(st *corev1.PodStatus, kinds ...corev1.PodConditionType) {
	st.Conditions = slices.DeleteFunc(st.Conditions, func(c corev1.PodCondition) bool { return slices.Contains(kinds, c.Type) })
}
