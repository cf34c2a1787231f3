package pods

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tutti-run/tutti/internal/model"
)

// deadlineLeft is how long a Pod may still be active; has is false for one without a bound.
func deadlineLeft(pod *corev1.Pod, now time.Time) (left time.Duration, has bool) {
	if pod.Spec.ActiveDeadlineSeconds == nil || pod.Status.StartTime == nil {
		return 0, false
	}
	return pod.Status.StartTime.Add(time.Duration(*pod.Spec.ActiveDeadlineSeconds) * time.Second).Sub(now), true
}

// expire ends a Pod that was active for longer than it may. inst is nil once nothing of it runs.
func (b *bridge) expire(ctx context.Context, pod *corev1.Pod, inst *model.Instance) error {
	st := *pod.Status.DeepCopy()
	if inst != nil {
		st = statusOf(pod, inst, b.seen.node(inst.NodeID), b.now())
	}
	if inst == nil || inst.Status.State.Final() {
		st.ObservedGeneration = pod.Generation
		st.Phase, st.Reason, st.Message = corev1.PodFailed, "DeadlineExceeded", "the pod was active for longer than activeDeadlineSeconds"
		for _, kind := range []corev1.PodConditionType{corev1.ContainersReady, corev1.PodReady} {
			setCondition(&st, kind, corev1.ConditionFalse, "PodFailed", "", b.now())
		}
		return b.putStatus(ctx, pod, st)
	}
	b.mu.Lock()
	asked := b.removed[string(pod.UID)]
	b.mu.Unlock()
	if !asked {
		b.events.Event(pod, corev1.EventTypeNormal, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
		grace := int64(30)
		if pod.Spec.TerminationGracePeriodSeconds != nil {
			grace = *pod.Spec.TerminationGracePeriodSeconds
		}
		if err := b.remove(ctx, string(pod.UID), time.Duration(grace)*time.Second); err != nil {
			return err
		}
	}
	return b.putStatus(ctx, pod, st)
}
