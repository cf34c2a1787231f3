package pods

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tutti-run/tutti/internal/model"
)

// unplaced is the status of a Pod that has no node, or could not be made: conditions and the reason why
// its containers wait.
func unplaced(pod *corev1.Pod, now time.Time, reason, message string) corev1.PodStatus {
	st := *pod.Status.DeepCopy()
	st.Phase, st.ObservedGeneration = corev1.PodPending, pod.Generation
	if reason == corev1.PodReasonUnschedulable || reason == corev1.PodReasonSchedulingGated {
		setCondition(&st, corev1.PodScheduled, corev1.ConditionFalse, reason, message, now)
		return st
	}
	waits := func(list []corev1.Container) (out []corev1.ContainerStatus) {
		for i := range list {
			off := false
			out = append(out, corev1.ContainerStatus{
				Name: list[i].Name, Image: list[i].Image, Started: &off,
				State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}},
			})
		}
		return out
	}
	st.ContainerStatuses, st.InitContainerStatuses = waits(pod.Spec.Containers), waits(pod.Spec.InitContainers)
	var late []string
	for _, c := range pod.Spec.Containers {
		late = append(late, c.Name)
	}
	setCondition(&st, corev1.PodReady, corev1.ConditionFalse, "ContainersNotReady", unready(late), now)
	setCondition(&st, corev1.ContainersReady, corev1.ConditionFalse, "ContainersNotReady", unready(late), now)
	return st
}

// unready is how it is told which containers are late.
func unready(late []string) string {
	return "containers with unready status: [" + strings.Join(late, " ") + "]"
}

// kept is a time as the API keeps it: in whole seconds. Others would be taken for a change each time.
func kept(t time.Time) metav1.Time { return metav1.NewTime(t.Truncate(time.Second)) }

func setCondition(st *corev1.PodStatus, kind corev1.PodConditionType, is corev1.ConditionStatus, reason, message string, now time.Time) {
	c := corev1.PodCondition{Type: kind, Status: is, Reason: reason, Message: message, LastTransitionTime: kept(now), ObservedGeneration: st.ObservedGeneration}
	for i := range st.Conditions {
		if have := &st.Conditions[i]; have.Type == kind {
			if have.Status == is {
				c.LastTransitionTime = have.LastTransitionTime
			}
			c.LastProbeTime = have.LastProbeTime
			*have = c
			return
		}
	}
	st.Conditions = append(st.Conditions, c)
}

func conditionIs(st *corev1.PodStatus, kind corev1.PodConditionType) bool {
	return slices.ContainsFunc(st.Conditions, func(c corev1.PodCondition) bool { return c.Type == kind && c.Status == corev1.ConditionTrue })
}

// statusOf is the status of a Pod whose instance has a node.
func statusOf(pod *corev1.Pod, i *model.Instance, n *model.Node, now time.Time) corev1.PodStatus {
	st := *pod.Status.DeepCopy()
	st.ObservedGeneration = pod.Generation
	st.QOSClass = pod.Status.QOSClass
	if n != nil {
		st.HostIP, st.HostIPs = n.HostAddress, []corev1.HostIP{{IP: n.HostAddress}}
	}
	if st.StartTime == nil {
		t := kept(now)
		st.StartTime = &t
	}
	st.PodIP, st.PodIPs = "", nil
	for _, a := range i.Addresses {
		st.PodIPs = append(st.PodIPs, corev1.PodIP{IP: a.IP})
	}
	if pod.Spec.HostNetwork && n != nil {
		st.PodIPs = []corev1.PodIP{{IP: n.HostAddress}}
	}
	if len(st.PodIPs) > 0 {
		st.PodIP = st.PodIPs[0].IP
	}
	st.InitContainerStatuses = containers(pod, pod.Spec.InitContainers, i)
	st.ContainerStatuses = containers(pod, pod.Spec.Containers, i)
	setResources(&st, withStatus(pod, specified(pod)))
	st.Phase, st.Reason, st.Message = phase(pod, i)
	initialized, ready := true, i.Status.Ready && i.Desired == model.DesiredRun
	var late, awaited []string
	for k, c := range st.InitContainerStatuses {
		sidecar := pod.Spec.InitContainers[k].RestartPolicy != nil
		done := c.State.Terminated != nil && c.State.Terminated.ExitCode == 0
		if sidecar && !(c.Started != nil && *c.Started) || !sidecar && !done {
			initialized = false
			awaited = append(awaited, c.Name)
		}
	}
	for _, c := range st.ContainerStatuses {
		if !c.Ready {
			late = append(late, c.Name)
		}
	}
	setCondition(&st, corev1.PodScheduled, corev1.ConditionTrue, "", "", now)
	setCondition(&st, corev1.PodReadyToStartContainers, is(i.Status.State != model.InstancePending && i.Status.State != model.InstancePreparing && !i.Status.State.Final()), "", "", now)
	ended := st.Phase == corev1.PodSucceeded || st.Phase == corev1.PodFailed
	switch {
	case initialized || st.Phase == corev1.PodSucceeded:
		reason := ""
		if st.Phase == corev1.PodSucceeded {
			reason = "PodCompleted"
		}
		setCondition(&st, corev1.PodInitialized, corev1.ConditionTrue, reason, "", now)
	default:
		setCondition(&st, corev1.PodInitialized, corev1.ConditionFalse, "ContainersNotInitialized", fmt.Sprintf("containers with incomplete status: %v", awaited), now)
	}
	reason, message := "", ""
	switch {
	case st.Phase == corev1.PodSucceeded:
		reason = "PodCompleted"
	case ended:
		reason = "PodFailed"
	case !ready:
		reason, message = "ContainersNotReady", unready(late)
	}
	setCondition(&st, corev1.ContainersReady, is(ready), reason, message, now)
	for _, gate := range pod.Spec.ReadinessGates {
		if ready && !conditionIs(&st, gate.ConditionType) {
			ready, reason, message = false, "ReadinessGatesNotReady", "the readiness gate "+string(gate.ConditionType)+" is not true"
		}
	}
	setCondition(&st, corev1.PodReady, is(ready), reason, message, now)
	return st
}

func is(b bool) corev1.ConditionStatus {
	if b {
		return corev1.ConditionTrue
	}
	return corev1.ConditionFalse
}

func phase(pod *corev1.Pod, i *model.Instance) (phase corev1.PodPhase, reason, message string) {
	switch i.Status.State {
	case model.InstanceRunning, model.InstanceStopping, model.InstanceHeld:
		return corev1.PodRunning, "", ""
	case model.InstanceWaiting:
		return corev1.PodRunning, "", i.Status.Message
	case model.InstanceLost:
		return corev1.PodFailed, "NodeLost", i.Status.Message
	case model.InstanceFailed:
		return corev1.PodFailed, "", i.Status.Message
	case model.InstanceCompleted:
		if i.Desired != model.DesiredRun && pod.DeletionTimestamp == nil {
			return corev1.PodFailed, "Preempted", i.Cause
		}
		for _, t := range i.Status.Tasks {
			if slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == t.Name }) && (t.ExitCode != 0 || t.Error != "") {
				return corev1.PodFailed, "", i.Status.Message
			}
		}
		return corev1.PodSucceeded, "", ""
	}
	return corev1.PodPending, "", ""
}

func containers(pod *corev1.Pod, list []corev1.Container, i *model.Instance) (out []corev1.ContainerStatus) {
	for k := range list {
		c := &list[k]
		st := corev1.ContainerStatus{Name: c.Name, Image: c.Image}
		at := slices.IndexFunc(i.Status.Tasks, func(t model.TaskStatus) bool { return t.Name == c.Name })
		up := false
		st.Started = &up
		if at < 0 || i.Status.Tasks[at].Run == 0 {
			st.State.Waiting = waiting(pod, i)
			out = append(out, st)
			continue
		}
		t := &i.Status.Tasks[at]
		st.RestartCount, st.ImageID, st.ContainerID = int32(t.Restarts), imageID(c.Image, t.Image), containerID(t.RunID)
		up, st.Ready = t.Up, t.Ready
		switch {
		case t.State != "exited" && !i.Status.State.Final():
			st.State.Running = &corev1.ContainerStateRunning{StartedAt: kept(t.Started)}
		case t.Waiting != "":
			end := t.End()
			st.State.Waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: t.Waiting}
			if t.ExitCode == 0 && t.Error == "" && t.Restarts == 0 {
				st.State = corev1.ContainerState{Terminated: terminated(end)} // it is about to run again
				break
			}
			st.LastTerminationState.Terminated = terminated(end)
			out = append(out, st)
			continue
		default:
			end := t.End()
			st.State.Terminated = terminated(end)
			// What has completed of an init container counts as ready.
			st.Ready = end.ExitCode == 0 && end.Error == "" && slices.ContainsFunc(pod.Spec.InitContainers, func(o corev1.Container) bool {
				return o.Name == c.Name && o.RestartPolicy == nil
			})
		}
		if t.Before != nil {
			st.LastTerminationState.Terminated = terminated(t.Before)
		}
		out = append(out, st)
	}
	return out
}

func containerID(run string) string {
	if run == "" {
		return ""
	}
	return "tutti://" + run
}

func imageID(image, digest string) string {
	if digest == "" {
		return ""
	}
	name, _, _ := strings.Cut(image, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return name + "@" + digest
}

// waiting is why a container has not been started yet.
func waiting(pod *corev1.Pod, i *model.Instance) *corev1.ContainerStateWaiting {
	switch {
	case i.Status.State == model.InstancePreparing && i.Status.Message != "":
		reason := "CreateContainerError"
		if strings.Contains(i.Status.Message, "image") {
			reason = "ErrImagePull"
		}
		if strings.HasPrefix(i.Status.Message, "fetching image") || strings.Contains(i.Status.Message, model.Awaited) {
			reason = "ContainerCreating"
		}
		return &corev1.ContainerStateWaiting{Reason: reason, Message: i.Status.Message}
	case len(pod.Spec.InitContainers) > 0:
		return &corev1.ContainerStateWaiting{Reason: "PodInitializing"}
	}
	return &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
}

// startError is why a container ended that could not be started.
const startError = "StartError"

func terminated(end *model.TaskEnd) *corev1.ContainerStateTerminated {
	out := &corev1.ContainerStateTerminated{
		ExitCode: int32(end.ExitCode), StartedAt: kept(end.Started), FinishedAt: kept(end.Finished),
		ContainerID: containerID(end.RunID), Reason: "Completed", Message: cmp.Or(end.Message, end.Error),
	}
	switch {
	case end.OOM:
		out.Reason = "OOMKilled"
	case end.Error != "" && end.Started.IsZero():
		out.Reason = startError
	case end.ExitCode != 0 || end.Error != "":
		out.Reason = "Error"
	}
	return out
}
