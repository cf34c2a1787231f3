package pods

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// ours reports whether the bridge is to run a Pod: it is not left to another scheduler, or to whoever
// holds its gates, unless it has a node already.
func (b *bridge) ours(p *corev1.Pod) bool {
	if p.Spec.NodeName != "" {
		return b.isNode(p.Spec.NodeName)
	}
	return (p.Spec.SchedulerName == "" || p.Spec.SchedulerName == corev1.DefaultSchedulerName) && len(p.Spec.SchedulingGates) == 0
}

func (b *bridge) isNode(name string) bool {
	return slices.ContainsFunc(b.seen.allNodes(), func(n *model.Node) bool { return n.Name == name })
}

// syncPod takes the next step for a Pod.
func (b *bridge) syncPod(ctx context.Context, namespace, name string) error {
	pod, err := b.pods.Pods(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil // syncGone sees to what is left
	}
	if err != nil {
		return err
	}
	if id := mirrorOf(pod); id != "" {
		return b.syncMirror(ctx, id)
	}
	inst := b.seen.instance(string(pod.UID))
	if pod.DeletionTimestamp != nil {
		return b.end(ctx, pod, inst)
	}
	if inst == nil {
		if ended(pod) || !b.ours(pod) {
			return nil
		}
		b.mu.Lock()
		made, asked := b.made[string(pod.UID)], b.removed[string(pod.UID)]
		b.mu.Unlock()
		if left, has := deadlineLeft(pod, b.now()); has && left <= 0 && asked {
			return b.expire(ctx, pod, nil)
		}
		if made != nil || asked {
			return nil // its instance will be told of
		}
		if !b.pulls.quick(imagesOf(pod)) {
			b.slow.Add("pod/" + namespace + "/" + name)
			return nil
		}
		return b.make(ctx, pod)
	}
	if inst.NodeID == "" {
		return b.unscheduled(ctx, pod, inst)
	}
	return b.running(ctx, pod, inst)
}

// make hands a Pod over to the core.
func (b *bridge) make(ctx context.Context, pod *corev1.Pod) error {
	for _, other := range b.seen.namesakes(pod.Namespace, nameOf(pod.Name), string(pod.UID)) {
		// An earlier Pod of the name, which was deleted by force.
		if err := b.remove(ctx, other, 0); err != nil {
			return err
		}
	}
	b.mu.Lock()
	contents := b.contents
	b.mu.Unlock()
	images := imagesOf(pod)
	if wait, because := b.pulls.begin(images, "pod/"+pod.Namespace+"/"+pod.Name, b.now()); because != nil {
		_ = b.notMade(ctx, pod, because)
		return &later{wait}
	} else if wait > 0 {
		return &later{wait}
	}
	began := b.now()
	made, err := b.deploy(ctx, pod)
	var failed error
	if imageMissing(err) {
		failed = err
	}
	for _, key := range b.pulls.end(images, failed, err, b.now().Sub(began), b.now()) {
		b.slow.Add(key)
	}
	if err != nil {
		return b.notMade(ctx, pod, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.made[string(pod.UID)] = made
	delete(b.failed, string(pod.UID))
	b.outrun(pod, made, contents)
	return nil
}

// outrun has what a Pod's volumes hold handed over anew if ConfigMaps or Secrets have changed since they were
// read. The lock is held.
func (b *bridge) outrun(pod *corev1.Pod, made *madePod, contents uint64) {
	if made.files && b.contents != contents {
		made.refresh = time.Time{}
		b.queue.AddAfter("pod/"+pod.Namespace+"/"+pod.Name, 100*time.Millisecond)
	}
}

func (b *bridge) deploy(ctx context.Context, pod *corev1.Pod) (*madePod, error) {
	made := &madePod{refresh: b.now().Add(24 * time.Hour)}
	around := b.surroundings(ctx, pod, made)
	// What was written before the Pod counts, also if the watch has not brought it yet.
	around.configMap = func(name string) (*corev1.ConfigMap, error) {
		if name == authorityMap {
			if m, err := b.configs.ConfigMaps(pod.Namespace).Get(name); err == nil {
				return m, nil
			}
		}
		return b.client.CoreV1().ConfigMaps(pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	}
	around.secret = func(name string) (*corev1.Secret, error) {
		return b.client.CoreV1().Secrets(pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	}
	d, err := translate(pod, around)
	if err != nil {
		return nil, &refusal{err}
	}
	made.files, made.labels, made.meta = len(d.Secrets) > 0, labelsOf(pod), followed(pod)
	made.resources = specified(pod)
	made.unplaced = pod.Spec.NodeName == "" && namesNode(pod)
	if _, err := b.Tutti.Deploy(ctx, *d); err != nil {
		return nil, err
	}
	return made, nil
}

// authorityMap is the ConfigMap that each namespace gets, and almost every Pod projects, of the authority of the API server.
const authorityMap = "kube-root-ca.crt"

// refusal is an error of the Pod itself, or of what it refers to.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

// surroundings are what a Pod refers to, as the API server has it.
func (b *bridge) surroundings(ctx context.Context, pod *corev1.Pod, made *madePod) *surroundings {
	s := &surroundings{
		configMap: func(name string) (*corev1.ConfigMap, error) { return b.configs.ConfigMaps(pod.Namespace).Get(name) },
		secret:    func(name string) (*corev1.Secret, error) { return b.secrets.Secrets(pod.Namespace).Get(name) },
		claim:     func(name string) (*corev1.PersistentVolume, error) { return b.claimed(ctx, pod, name) },
		token: func(audience string, seconds int64) (string, error) {
			if at := b.now().Add(time.Duration(seconds) * time.Second * 4 / 5); at.Before(made.refresh) {
				made.refresh = at
			}
			return b.token(ctx, pod, audience, seconds)
		},
		anchors: b.anchors,
		certificate: func(volume string, source int, p *corev1.PodCertificateProjection) ([]byte, []byte, error) {
			c, err := b.certificate(ctx, pod, volume, source, p)
			if err != nil {
				return nil, nil, err
			}
			if c.renew.Before(made.refresh) {
				made.refresh = c.renew
			}
			return c.key, c.chain, nil
		},
		groups: func(namespaces []string, matches func(map[string]string) bool) (out []string) {
			for _, ns := range namespaces {
				list, err := b.pods.Pods(ns).List(everything)
				if err != nil {
					continue
				}
				for _, p := range list {
					if g := groupOf(p.Namespace, p.Labels); !ended(p) && matches(p.Labels) && !slices.Contains(out, g) {
						out = append(out, g)
					}
				}
			}
			return out
		},
		namespaces: func(matches func(map[string]string) bool) (out []string) {
			list, err := b.spaces.List(everything)
			if err != nil {
				return nil
			}
			for _, ns := range list {
				if matches(ns.Labels) {
					out = append(out, ns.Name)
				}
			}
			return out
		},
	}
	s.runtime = func(class string) (string, error) {
		rc, err := b.runtimes.Get(class)
		if err != nil {
			return "", err
		}
		return rc.Handler, nil
	}
	s.owner = b.ownerOf(ctx, pod)
	if pod.Spec.Priority != nil {
		s.priority = int(*pod.Spec.Priority)
	}
	for _, ns := range []string{"default", pod.Namespace} {
		list, err := b.services.Services(ns).List(everything)
		if err != nil {
			continue
		}
		for _, svc := range list {
			if ns == pod.Namespace || svc.Name == "kubernetes" {
				s.services = append(s.services, svc)
			}
		}
	}
	slices.SortFunc(s.services, func(a, b *corev1.Service) int { return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name) })
	return s
}

// notMade tells why a Pod could not be handed over, and has it tried again.
func (b *bridge) notMade(ctx context.Context, pod *corev1.Pod, err error) error {
	reason, again := "CreateContainerConfigError", 2*time.Second
	_, refused := err.(*refusal)
	var waits *unplaceable
	switch {
	case errors.As(err, &waits):
		reason, again = corev1.PodReasonUnschedulable, 10*time.Second // what it waits for has it looked at again
	case refused && !isMissing(err):
		again = 30 * time.Second
	case refused:
	case imageMissing(err):
		reason = "ErrImagePull"
		b.mu.Lock()
		if b.failed[string(pod.UID)] != "" {
			reason = "ImagePullBackOff"
		}
		b.mu.Unlock()
		again = pullAgainFirst
	case fault.Is(err, fault.Unavailable), fault.Is(err, fault.Conflict):
		return err
	case fault.Is(err, fault.Invalid) && strings.Contains(err.Error(), "can run on no node"):
		reason, again = corev1.PodReasonUnschedulable, 5*time.Second
	}
	b.mu.Lock()
	news := b.failed[string(pod.UID)] != err.Error()
	b.failed[string(pod.UID)] = err.Error()
	b.mu.Unlock()
	if news {
		b.events.Event(pod, corev1.EventTypeWarning, eventOf[reason], err.Error())
	}
	if err := b.putStatus(ctx, pod, unplaced(pod, b.now(), reason, err.Error())); err != nil {
		return err
	}
	return &later{again}
}

// imageMissing reports whether an image could not be had.
func imageMissing(err error) bool {
	if _, refused := err.(*refusal); err == nil || refused {
		return false
	}
	return fault.Is(err, fault.NotFound) && strings.Contains(err.Error(), "image") || strings.Contains(err.Error(), "image ")
}

// makeSlowly makes a Pod whose images may take their time.
func (b *bridge) makeSlowly(ctx context.Context, key string) error {
	namespace, name, _ := strings.Cut(strings.TrimPrefix(key, "pod/"), "/")
	pod, err := b.pods.Pods(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	b.mu.Lock()
	made, asked := b.made[string(pod.UID)], b.removed[string(pod.UID)]
	b.mu.Unlock()
	if pod.DeletionTimestamp != nil || ended(pod) || made != nil || asked || !b.ours(pod) || b.seen.instance(string(pod.UID)) != nil {
		return nil
	}
	return b.make(ctx, pod)
}

// eventOf are the types of events by which it is told why containers wait.
var eventOf = map[string]string{
	"CreateContainerConfigError": "FailedCreatePod", "ErrImagePull": "Failed", "ImagePullBackOff": "BackOff", corev1.PodReasonUnschedulable: "FailedScheduling",
}

func isMissing(err error) bool {
	for e := err; e != nil; {
		if apierrors.IsNotFound(e) {
			return true
		}
		u, ok := e.(interface{ Unwrap() error })
		if !ok {
			return false
		}
		e = u.Unwrap()
	}
	return false
}

// rejection is what kubelets call it that a node has no room for a Pod; "" when it may wait.
func rejection(reason string) string {
	for _, one := range [][2]string{{"/tcp taken", "NodePorts"}, {"/udp taken", "NodePorts"}, {"too little cores", "OutOfcpu"}, {"too little memory", "OutOfmemory"}, {"too little disk", "OutOfephemeral-storage"}} {
		if strings.Contains(reason, one[0]) {
			return one[1]
		}
	}
	return ""
}

// unscheduled tells why a Pod has no node.
func (b *bridge) unscheduled(ctx context.Context, pod *corev1.Pod, inst *model.Instance) error {
	if inst.Reason == "" {
		return nil
	}
	if pod.Spec.NodeName != "" {
		if ended(pod) {
			return b.remove(ctx, string(pod.UID), 0)
		}
		// Whoever named the node does without a scheduler: it is the node that has no room.
		if why := rejection(inst.Reason); why != "" {
			st := *pod.Status.DeepCopy()
			st.Phase, st.Reason, st.Message, st.ObservedGeneration = corev1.PodFailed, why, "Pod was rejected: "+inst.Reason, pod.Generation
			b.events.Event(pod, corev1.EventTypeWarning, why, inst.Reason)
			return b.putStatus(ctx, pod, st)
		}
	}
	b.mu.Lock()
	news := b.failed[string(pod.UID)] != inst.Reason
	b.failed[string(pod.UID)] = inst.Reason
	b.mu.Unlock()
	if news {
		b.events.Event(pod, corev1.EventTypeWarning, "FailedScheduling", inst.Reason)
	}
	return b.putStatus(ctx, pod, unplaced(pod, b.now(), corev1.PodReasonUnschedulable, inst.Reason))
}

// soonReady is how long it takes most Pods to run, and to be ready, once they have a node. What happens on the way is not told until then:
// each of these steps would be told to everybody who follows Pods, and change the endpoints of services that lead nowhere yet.
const soonReady = time.Second

// untilTold is how long it is not told yet how a Pod is.
func (b *bridge) untilTold(pod *corev1.Pod, inst *model.Instance) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	at, has := b.bound[string(pod.UID)]
	if !has {
		return 0
	}
	left := at.Add(soonReady).Sub(b.now())
	switch st := &inst.Status; st.State {
	case model.InstancePending, model.InstancePreparing, model.InstanceStarting:
	case model.InstanceRunning:
		if st.Ready || slices.ContainsFunc(st.Tasks, func(t model.TaskStatus) bool { return t.Run > 1 || t.ExitCode != 0 }) {
			left = 0
		}
	default:
		left = 0
	}
	if inst.Status.Message != "" || left <= 0 {
		delete(b.bound, string(pod.UID))
		return 0
	}
	return left
}

// running takes over what the core tells of a Pod that has a node.
func (b *bridge) running(ctx context.Context, pod *corev1.Pod, inst *model.Instance) error {
	n := b.seen.node(inst.NodeID)
	if pod.Spec.NodeName == "" {
		if n == nil {
			return &later{time.Second}
		}
		b.mu.Lock()
		_, done := b.bound[string(pod.UID)]
		b.mu.Unlock()
		if done {
			return nil // the watch is about to bring it
		}
		err := b.client.CoreV1().Pods(pod.Namespace).Bind(ctx, &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
			Target:     corev1.ObjectReference{Kind: "Node", Name: n.Name},
		}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsConflict(err) {
			return fmt.Errorf("bind the pod to node %s: %w", n.Name, err)
		}
		if err == nil {
			b.mu.Lock()
			b.bound[string(pod.UID)] = b.now()
			b.mu.Unlock()
			b.events.Eventf(pod, corev1.EventTypeNormal, "Scheduled", "Successfully assigned %s/%s to %s: %s", pod.Namespace, pod.Name, n.Name, inst.Reason)
		}
		return nil // the watch brings the Pod with its node, and all else follows then
	}
	if ended(pod) {
		return nil
	}
	if givenUp(inst, n) && metav1.GetControllerOf(pod) != nil {
		// Whoever made it may make another.
		b.events.Event(pod, corev1.EventTypeWarning, "NodeLost", cmp.Or(inst.Status.Message, "its node is down"))
		return b.delete(ctx, pod)
	}
	if inst.Desired == model.DesiredStop {
		return b.giveWay(ctx, pod, inst)
	}
	if left, has := deadlineLeft(pod, b.now()); has && left <= 0 {
		return b.expire(ctx, pod, inst)
	} else if has {
		b.queue.AddAfter("pod/"+pod.Namespace+"/"+pod.Name, left)
	}
	if left := b.untilTold(pod, inst); left > 0 {
		return &later{left}
	}
	st := statusOf(pod, inst, n, b.now())
	var again error
	if !inst.Status.State.Final() {
		if err := b.resize(ctx, pod, &st); err != nil {
			b.Log.Warn("a pod could not be resized, and is tried again", "pod", pod.Namespace+"/"+pod.Name, "error", err)
			again = &later{10 * time.Second}
		}
	}
	if len(pod.Spec.EphemeralContainers) > 0 {
		var err error
		if inst.Status.State.Final() {
			err = b.removeEphemeral(ctx, string(pod.UID))
		} else {
			st.EphemeralContainerStatuses, err = b.ephemeral(ctx, pod)
		}
		if err != nil {
			return err
		}
	}
	if err := b.putStatus(ctx, pod, st); err != nil {
		return err
	}
	if err := b.relabel(ctx, pod); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if err := b.refresh(ctx, pod, inst); err != nil {
		if apierrors.HasStatusCause(errors.Unwrap(err), corev1.NamespaceTerminatingCause) {
			return nil // it is about to be deleted
		}
		return err
	}
	if n != nil && n.Availability == model.Draining && !stays(pod) && !inst.Status.State.Final() {
		return b.evict(ctx, pod)
	}
	return again
}

// givenUp reports whether an instance was lost with its node, or will be as soon as that cannot have a lease any more: what is
// made in its place waits for that, as the core keeps the slot until then, and makers take their time.
func givenUp(inst *model.Instance, n *model.Node) bool {
	waits := inst.Leased && !inst.Status.State.Final() && n != nil && n.Status.State == model.NodeDown
	return inst.Status.State == model.InstanceLost || waits
}

// followed is what the files of a Pod's volumes have of itself that may change.
func followed(pod *corev1.Pod) string {
	is := func(v corev1.Volume) bool {
		return v.DownwardAPI != nil || v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool { return s.DownwardAPI != nil })
	}
	if !slices.ContainsFunc(pod.Spec.Volumes, is) {
		return ""
	}
	return quoted(pod.Labels) + "\n\n" + quoted(pod.Annotations)
}

// freshens is within what time a bridge that takes others' Pods over hands over anew what their volumes hold. Tokens are renewed when a fifth of
// their time is left, and are good for ten minutes at least.
const freshens = time.Minute

// refresh hands over anew what a Pod's volumes hold, when that may have changed.
func (b *bridge) refresh(ctx context.Context, pod *corev1.Pod, inst *model.Instance) error {
	uid := string(pod.UID)
	if inst.Status.State.Final() {
		return nil
	}
	b.mu.Lock()
	made := b.made[uid]
	if made == nil { // by a bridge before this one
		made = &madePod{files: true}
		if left := b.Haste.Left(); left > 0 { // which has left it fresh for a while yet
			made.meta, made.refresh = followed(pod), b.now().Add(left+time.Duration(rand.Int64N(int64(freshens))))
		}
		b.made[uid] = made
	}
	left, contents := made.refresh.Sub(b.now()), b.contents
	if made.unplaced {
		left = min(left, b.Haste.Left())
	}
	due := made.files && (left <= 0 || made.meta != followed(pod))
	b.mu.Unlock()
	if !due {
		if made.files && left < time.Hour {
			b.queue.AddAfter("pod/"+pod.Namespace+"/"+pod.Name, left)
		}
		return nil
	}
	next := &madePod{labels: made.labels, resources: made.resources, refresh: b.now().Add(24 * time.Hour), unplaced: pod.Spec.NodeName == "" && namesNode(pod)}
	d, err := translate(pod, b.surroundings(ctx, pod, next))
	if err != nil {
		return err
	}
	next.files, next.meta = len(d.Secrets) > 0, followed(pod)
	d.Workloads, d.Volumes, d.Logins, d.Pulls = nil, nil, nil, nil
	if next.files {
		if _, err := b.Tutti.Deploy(ctx, *d); err != nil {
			return fmt.Errorf("hand over what its volumes hold: %w", err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.made[uid] = next
	b.outrun(pod, next, contents)
	return nil
}

// end ends what a deleted Pod runs, and then the Pod.
func (b *bridge) end(ctx context.Context, pod *corev1.Pod, inst *model.Instance) error {
	uid := string(pod.UID)
	b.mu.Lock()
	made, asked := b.made[uid] != nil, b.removed[uid]
	b.mu.Unlock()
	switch {
	case inst == nil && (!made || asked), pod.Spec.NodeName != "" && !b.isNode(pod.Spec.NodeName):
		// Whoever has a finalizer of it may wait for how it ended, which may have been told of together with its going.
		if !ended(pod) && len(pod.Finalizers) > 0 {
			if err := b.putStatus(ctx, pod, b.endOf(pod)); err != nil {
				return err
			}
		}
		return b.delete(ctx, pod)
	case inst != nil && inst.Status.State.Final():
		if !ended(pod) && inst.Status.State != model.InstanceLost {
			if err := b.putStatus(ctx, pod, statusOf(pod, inst, b.seen.node(inst.NodeID), b.now())); err != nil {
				return err
			}
		}
		if err := b.remove(ctx, uid, 0); err != nil {
			return err
		}
		return b.delete(ctx, pod)
	case asked:
		if inst != nil && inst.NodeID != "" {
			return b.putStatus(ctx, pod, statusOf(pod, inst, b.seen.node(inst.NodeID), b.now()))
		}
		return nil
	}
	grace := int64(30)
	if pod.DeletionGracePeriodSeconds != nil {
		grace = *pod.DeletionGracePeriodSeconds
	}
	b.tellEnding(pod)
	return b.remove(ctx, uid, time.Duration(grace)*time.Second)
}

// endOf is the status of a Pod of which nothing runs any more: failed, when it is not known how it ended.
func (b *bridge) endOf(pod *corev1.Pod) corev1.PodStatus {
	if last := b.seen.end(string(pod.UID)); last != nil && last.Status.State != model.InstanceLost {
		return statusOf(pod, last, b.seen.node(last.NodeID), b.now())
	}
	st := *pod.Status.DeepCopy()
	st.Phase, st.Reason, st.Message, st.ObservedGeneration = corev1.PodFailed, "Terminated", "nothing of it is left", pod.Generation
	setCondition(&st, corev1.PodReady, corev1.ConditionFalse, "PodFailed", "", b.now())
	return st
}

// remove removes the workload of a Pod, and what its volumes hold.
func (b *bridge) remove(ctx context.Context, uid string, grace time.Duration) error {
	if err := b.removeEphemeral(ctx, uid); err != nil {
		return err
	}
	milliseconds := grace.Milliseconds()
	err := b.Tutti.RemoveWorkload(ctx, native.RemoveWorkload{ID: uid, GraceMilliseconds: &milliseconds, Secrets: []string{uid + "-files"}})
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("remove the pod's workload: %w", err)
	}
	b.mu.Lock()
	b.removed[uid] = true
	b.mu.Unlock()
	if i := b.seen.instance(uid); i == nil {
		b.instanceChanged(uid)
	}
	return nil
}

// delete deletes a Pod of which nothing is left.
func (b *bridge) delete(ctx context.Context, pod *corev1.Pod) error {
	now := int64(0)
	err := b.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &pod.UID},
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// syncGone removes what is left of a Pod that the API server has no more.
func (b *bridge) syncGone(ctx context.Context, uid string) error {
	b.mu.Lock()
	key := b.keys[uid]
	b.mu.Unlock()
	if _, rest, ok := strings.Cut(key, "/"); ok {
		namespace, name, _ := strings.Cut(rest, "/")
		if pod, err := b.pods.Pods(namespace).Get(name); err == nil && string(pod.UID) == uid {
			return nil
		}
	}
	b.mu.Lock()
	asked, made := b.removed[uid], b.made[uid] != nil
	b.mu.Unlock()
	if inst := b.seen.instance(uid); (inst != nil || made) && !asked {
		if left := b.Haste.Left(); left > 0 && inst != nil && givenUp(inst, b.seen.node(inst.NodeID)) {
			return &later{left} // it is in nobody's way, other than of a Pod of its name, which sees to that
		}
		return b.remove(ctx, uid, 0)
	}
	if b.seen.instance(uid) == nil {
		b.mu.Lock()
		delete(b.keys, uid)
		delete(b.made, uid)
		delete(b.bound, uid)
		delete(b.failed, uid)
		delete(b.removed, uid)
		delete(b.certs, uid)
		b.mu.Unlock()
		b.seen.forget(uid)
	}
	return nil
}

// putStatus writes a Pod's status, if it says something else than before.
func (b *bridge) putStatus(ctx context.Context, pod *corev1.Pod, st corev1.PodStatus) error {
	if equality.Semantic.DeepEqual(st, pod.Status) {
		return nil
	}
	c := pod.DeepCopy()
	c.Status = st
	_, err := b.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, c, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // the watch brings the Pod as it is now
	}
	if err == nil {
		b.tell(pod, &pod.Status, &st)
	}
	return err
}
