package pods

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/tools/reference"
)

// unhurried is a sink of events that takes none in haste.
type unhurried struct {
	record.EventSink
	haste *Haste
}

// NewSink returns a sink of events that takes none in haste.
func NewSink(client kubernetes.Interface, haste *Haste) record.EventSink {
	return unhurried{&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")}, haste}
}

// Create implements record.EventSink.
func (u unhurried) Create(e *corev1.Event) (*corev1.Event, error) {
	time.Sleep(u.haste.Left())
	return u.EventSink.Create(e)
}

// Patch implements record.EventSink.
func (u unhurried) Patch(old *corev1.Event, data []byte) (*corev1.Event, error) {
	time.Sleep(u.haste.Left())
	return u.EventSink.Patch(old, data)
}

// containerRef is what an event about a container is about.
func containerRef(pod *corev1.Pod, container string) *corev1.ObjectReference {
	ref, err := reference.GetReference(scheme.Scheme, pod)
	if err != nil {
		return &corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
	}
	ref.FieldPath = "spec.containers{" + container + "}"
	if slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == container }) {
		ref.FieldPath = "spec.initContainers{" + container + "}"
	}
	return ref
}

// tell tells of what happened to the containers between two statuses of a Pod, in the words that kubelets use.
func (b *bridge) tell(pod *corev1.Pod, before, now *corev1.PodStatus) {
	was := map[string]*corev1.ContainerStatus{}
	for _, list := range [][]corev1.ContainerStatus{before.InitContainerStatuses, before.ContainerStatuses} {
		for i := range list {
			was[list[i].Name] = &list[i]
		}
	}
	for _, list := range [][]corev1.ContainerStatus{now.InitContainerStatuses, now.ContainerStatuses} {
		for i := range list {
			c := &list[i]
			old := was[c.Name]
			if old == nil {
				old = &corev1.ContainerStatus{}
			}
			b.tellOf(pod, old, c)
		}
	}
}

func (b *bridge) tellOf(pod *corev1.Pod, old, c *corev1.ContainerStatus) {
	ref := containerRef(pod, c.Name)
	if c.ContainerID != "" && c.ContainerID != old.ContainerID {
		b.events.Eventf(ref, corev1.EventTypeNormal, "Pulled", "Container image %q is on the node", c.Image)
		b.events.Event(ref, corev1.EventTypeNormal, "Created", "Container created")
		if end := cmp.Or(c.State.Terminated, c.LastTerminationState.Terminated); end != nil && end.ContainerID == c.ContainerID && end.Reason == startError {
			b.events.Event(ref, corev1.EventTypeWarning, "Failed", "Error: "+end.Message)
		} else {
			b.events.Event(ref, corev1.EventTypeNormal, "Started", "Container started")
		}
	}
	if backsOff(c) && !backsOff(old) {
		b.events.Eventf(ref, corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s_%s(%s)", c.Name, pod.Name, pod.Namespace, pod.UID)
	}
}

func backsOff(c *corev1.ContainerStatus) bool {
	return c.State.Waiting != nil && c.State.Waiting.Reason == "CrashLoopBackOff"
}

// tellEnding tells that the containers that run are about to be stopped.
func (b *bridge) tellEnding(pod *corev1.Pod) {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range list {
			if list[i].State.Running != nil {
				b.events.Eventf(containerRef(pod, list[i].Name), corev1.EventTypeNormal, "Killing", "Stopping container %s", list[i].Name)
			}
		}
	}
}
