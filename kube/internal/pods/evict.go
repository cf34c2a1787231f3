package pods

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tutti-run/tutti/internal/model"
)

// evictAgain is after how long a Pod that may not be disrupted yet is asked for again.
const evictAgain = 5 * time.Second

// giveWay deletes a Pod that has to make room for a more important one.
func (b *bridge) giveWay(ctx context.Context, pod *corev1.Pod, inst *model.Instance) error {
	st := statusOf(pod, inst, b.seen.node(inst.NodeID), b.now())
	st.Phase, st.Reason, st.Message = pod.Status.Phase, pod.Status.Reason, pod.Status.Message
	setCondition(&st, corev1.DisruptionTarget, corev1.ConditionTrue, corev1.PodReasonPreemptionByScheduler, inst.Cause, b.now())
	if !conditionIs(&pod.Status, corev1.DisruptionTarget) {
		b.events.Event(pod, corev1.EventTypeNormal, "Preempted", inst.Cause)
		return b.putStatus(ctx, pod, st) // the watch brings it
	}
	err := b.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// stays reports whether a Pod is left on a node that is drained: a DaemonSet would only make it again.
func stays(pod *corev1.Pod) bool {
	owner := metav1.GetControllerOf(pod)
	return owner != nil && owner.Kind == "DaemonSet"
}

// evict asks that a Pod leaves a node that Tutti drains, inside what its PodDisruptionBudgets allow.
func (b *bridge) evict(ctx context.Context, pod *corev1.Pod) error {
	err := b.client.CoreV1().Pods(pod.Namespace).EvictV1(ctx, &policyv1.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}},
	})
	switch {
	case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return nil
	case apierrors.IsTooManyRequests(err):
		return &later{evictAgain}
	}
	return fmt.Errorf("evict the pod from a node that is drained: %w", err)
}

// drained has the Pods of a node that Tutti drains looked at.
func (b *bridge) drained(n *model.Node) {
	for _, p := range b.allPods() {
		if p.Spec.NodeName == n.Name && !ended(p) {
			b.queue.Add("pod/" + p.Namespace + "/" + p.Name)
		}
	}
}
