package pods

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// An ephemeral container becomes a workload of its own, which uses the network and the names of the Pod's, and
// where it has a target the processes of that container.

const ephemeralMark = "-e-"

// ephemeralID is the ID of the workload that an ephemeral container becomes.
func ephemeralID(uid, container string) string { return uid + ephemeralMark + container }

// uidOf is the UID of the Pod that a workload was made for.
func uidOf(workload string) string {
	uid, _, _ := strings.Cut(workload, ephemeralMark)
	return uid
}

// workloadOf is the workload that runs a container of a Pod.
func workloadOf(pod *corev1.Pod, container string) string {
	if slices.ContainsFunc(pod.Spec.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return c.Name == container }) {
		return ephemeralID(string(pod.UID), container)
	}
	return string(pod.UID)
}

// translateEphemeral makes a deployment of an ephemeral container of a Pod that has a node.
func translateEphemeral(pod *corev1.Pod, e *corev1.EphemeralContainer, around *surroundings) (*core.Deployment, error) {
	t := &translation{pod: pod, around: around, folders: map[string][]file{}, volumes: map[string]*corev1.Volume{}}
	s, c := &pod.Spec, corev1.Container(e.EphemeralContainerCommon)
	for range c.VolumeMounts {
		t.refused.add("ephemeral container "+c.Name+": volumeMounts", "a volume")
	}
	c.VolumeMounts = nil
	if s.HostUsers != nil && !*s.HostUsers {
		t.refused.add("ephemeral container "+c.Name, "one in a Pod with users of its own")
	}
	w := &model.Workload{
		Meta: model.Meta{ID: ephemeralID(string(pod.UID), c.Name), Name: nameOf(pod.Name + ephemeralMark + c.Name), Labels: map[string]string{uidLabel: string(pod.UID)}},
		Type: model.SingleWorkload, Count: 1,
	}
	w.Template = model.Template{
		Separate: true, HostNetwork: s.HostNetwork, HostPIDs: s.HostPID, HostIPC: s.HostIPC,
		Restart: model.RestartPolicy{Condition: model.RestartNever},
		Placement: model.Placement{
			Constraints: []model.Constraint{{Key: "node.name", Operator: model.Equal, Values: []string{s.NodeName}}},
			Tolerations: []model.Toleration{{}}, Priority: around.priority,
		},
		Sharing: &model.Sharing{},
	}
	if !s.HostNetwork {
		w.Template.Sharing.NetworkOf = nameOf(pod.Name)
	}
	if e.TargetContainerName != "" && !s.HostPID {
		w.Template.Sharing.PIDsOf, w.Template.Sharing.PIDsTask = nameOf(pod.Name), e.TargetContainerName
	}
	task, err := t.task(&c, &w.Template)
	if err != nil {
		return nil, err
	}
	w.Template.Tasks = []model.TaskSpec{task}
	return t.deployment(w)
}

// ephemeral runs the Pod's ephemeral containers, and returns their states.
func (b *bridge) ephemeral(ctx context.Context, pod *corev1.Pod) (out []corev1.ContainerStatus, err error) {
	for i := range pod.Spec.EphemeralContainers {
		e := &pod.Spec.EphemeralContainers[i]
		id := ephemeralID(string(pod.UID), e.Name)
		inst := b.seen.instance(id)
		b.mu.Lock()
		known := b.made[id] != nil
		b.mu.Unlock()
		why := ""
		if inst == nil && !known && !b.endedBefore(pod, e.Name) {
			made := &madePod{}
			d, err := translateEphemeral(pod, e, b.surroundings(ctx, pod, made))
			if err == nil {
				_, err = b.Tutti.Deploy(ctx, *d)
			}
			switch {
			case fault.Is(err, fault.Unavailable), fault.Is(err, fault.Conflict):
				return nil, fmt.Errorf("run ephemeral container %s: %w", e.Name, err)
			case err != nil:
				why = err.Error()
				b.queue.AddAfter("pod/"+pod.Namespace+"/"+pod.Name, 10*time.Second)
			default:
				b.mu.Lock()
				b.made[id] = made
				b.mu.Unlock()
			}
		}
		out = append(out, ephemeralStatus(pod, e, inst, why))
	}
	return out, nil
}

// endedBefore reports whether a Pod's status has that an ephemeral container has ended.
func (b *bridge) endedBefore(pod *corev1.Pod, container string) bool {
	return slices.ContainsFunc(pod.Status.EphemeralContainerStatuses, func(c corev1.ContainerStatus) bool {
		return c.Name == container && c.State.Terminated != nil
	})
}

// ephemeralStatus is the state of an ephemeral container; why says why it could not be made.
func ephemeralStatus(pod *corev1.Pod, e *corev1.EphemeralContainer, inst *model.Instance, why string) corev1.ContainerStatus {
	if inst == nil {
		for _, before := range pod.Status.EphemeralContainerStatuses {
			if before.Name == e.Name && why == "" {
				return before
			}
		}
		st := corev1.ContainerStatus{Name: e.Name, Image: e.Image, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}}
		if why != "" {
			st.State.Waiting = &corev1.ContainerStateWaiting{Reason: "CreateContainerConfigError", Message: why}
		}
		return st
	}
	st := containers(pod, []corev1.Container{corev1.Container(e.EphemeralContainerCommon)}, inst)[0]
	st.Ready, st.Started = false, nil // which it never is
	return st
}

// removeEphemeral ends what is left of a Pod's ephemeral containers.
func (b *bridge) removeEphemeral(ctx context.Context, uid string) error {
	ids := b.seen.ephemeral(uid)
	b.mu.Lock()
	for id := range b.made {
		if id != uid && uidOf(id) == uid && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	b.mu.Unlock()
	for _, id := range ids {
		none := int64(0)
		if err := b.Tutti.RemoveWorkload(ctx, native.RemoveWorkload{ID: id, GraceMilliseconds: &none}); err != nil && !fault.Is(err, fault.NotFound) {
			return fmt.Errorf("remove an ephemeral container of the pod: %w", err)
		}
		b.mu.Lock()
		delete(b.made, id)
		b.mu.Unlock()
	}
	return nil
}
