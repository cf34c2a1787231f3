package pods

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	appslisters "k8s.io/client-go/listers/apps/v1"
	batchlisters "k8s.io/client-go/listers/batch/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// What Kubernetes' controllers make Pods of is shown as a workload, of which the Pods' own are a part: its
// number of instances can be changed through every API, and is written to the scale subresource. The
// controllers stay the ones that make and delete Pods.

// followedApplication is the application that those workloads belong to. It is not that of the Pods: a Pod
// may have the name of a Deployment.
const followedApplication = "k8s"

// The kinds that are shown.
const (
	kindDeployment  = "Deployment"
	kindReplicaSet  = "ReplicaSet"
	kindStatefulSet = "StatefulSet"
	kindDaemonSet   = "DaemonSet"
	kindJob         = "Job"
	kindCronJob     = "CronJob"
)

// makers are what makes Pods.
type makers struct {
	deployments  appslisters.DeploymentLister
	replicaSets  appslisters.ReplicaSetLister
	statefulSets appslisters.StatefulSetLister
	daemonSets   appslisters.DaemonSetLister
	jobs         batchlisters.JobLister
	cronJobs     batchlisters.CronJobLister
}

func (b *bridge) followMakers(factory informers.SharedInformerFactory) {
	apps, batch := factory.Apps().V1(), factory.Batch().V1()
	for kind, informer := range map[string]cache.SharedIndexInformer{
		kindDeployment: apps.Deployments().Informer(), kindReplicaSet: apps.ReplicaSets().Informer(), kindStatefulSet: apps.StatefulSets().Informer(),
		kindDaemonSet: apps.DaemonSets().Informer(), kindJob: batch.Jobs().Informer(), kindCronJob: batch.CronJobs().Informer(),
	} {
		b.follow(informer, func(o metav1.Object) { b.queue.Add(makerKey(kind, o.GetNamespace(), o.GetName())) })
	}
}

func makerKey(kind, namespace, name string) string {
	return "maker/" + kind + "/" + namespace + "/" + name
}

// workloadChanged looks at what a workload shows, which was changed here or is gone.
func (b *bridge) workloadChanged(w *model.Workload) {
	b.queue.Add(makerKey(w.Belongs.Kind, w.Namespace, w.Belongs.Name))
}

// maker is what makes Pods, as a workload, and the version of the object that this is from.
type maker struct {
	*model.Workload
	version uint64
}

// passed is the version of a workload of which the number of instances was passed on, and that of what
// makes Pods by then.
type passed struct{ generation, version uint64 }

// shown is what makes Pods, as a workload; nil when there is no such thing, or something else stands for it.
func (b *bridge) shown(kind, namespace, name string) (*maker, error) {
	switch kind {
	case kindDeployment:
		return showing(kind, b.makers.deployments.Deployments(namespace).Get, name, showDeployment)
	case kindReplicaSet:
		return showing(kind, b.makers.replicaSets.ReplicaSets(namespace).Get, name, showReplicaSet)
	case kindStatefulSet:
		return showing(kind, b.makers.statefulSets.StatefulSets(namespace).Get, name, showStatefulSet)
	case kindDaemonSet:
		return showing(kind, b.makers.daemonSets.DaemonSets(namespace).Get, name, showDaemonSet)
	case kindJob:
		return showing(kind, b.makers.jobs.Jobs(namespace).Get, name, showJob)
	case kindCronJob:
		return showing(kind, b.makers.cronJobs.CronJobs(namespace).Get, name, showCronJob)
	}
	return nil, nil
}

func showing[T metav1.Object](kind string, get func(name string) (T, error), name string, show func(o T, w *model.Workload)) (*maker, error) {
	o, err := get(name)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	owner := metav1.GetControllerOf(o)
	if owner != nil && kind == kindReplicaSet && owner.Kind == kindDeployment {
		return nil, nil
	}
	w := &model.Workload{
		Meta: model.Meta{
			ID: string(o.GetUID()), Namespace: o.GetNamespace(), Application: followedApplication, Name: nameOf(o.GetName()),
			Labels: o.GetLabels(), Created: o.GetCreationTimestamp().Time,
		},
		Belongs: &model.Belonging{Platform: "Kubernetes", Tool: "kubectl", Kind: kind, Name: o.GetName()}, Followed: &model.Followed{},
	}
	if owner != nil && kind == kindJob && owner.Kind == kindCronJob {
		w.OwnerID = string(owner.UID)
	}
	show(o, w)
	if w.Type != model.GlobalWorkload {
		w.Followed.Count = w.Count
	}
	return &maker{w, versionOf(o.GetResourceVersion())}, nil
}

// versionOf reads the version of an object; those of Tutti's storage are numbers that grow.
func versionOf(text string) uint64 {
	n, _ := strconv.ParseUint(text, 10, 64) // 0, from which nothing follows, of any other
	return n
}

func counted(n *int32) int {
	if n == nil {
		return 1
	}
	return int(*n)
}

func showDeployment(d *appsv1.Deployment, w *model.Workload) {
	w.Type, w.Count, w.Paused, w.Template = model.ServiceWorkload, counted(d.Spec.Replicas), d.Spec.Paused, templateOf(&d.Spec.Template)
	w.Followed.Updated = int(d.Status.UpdatedReplicas)
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentProgressing && c.Status == corev1.ConditionFalse || c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			w.Followed.Failing, w.Followed.Message = true, c.Message
		}
	}
}

func showReplicaSet(r *appsv1.ReplicaSet, w *model.Workload) {
	w.Type, w.Count, w.Template = model.ServiceWorkload, counted(r.Spec.Replicas), templateOf(&r.Spec.Template)
	w.Followed.Updated = int(r.Status.Replicas)
	for _, c := range r.Status.Conditions {
		if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue {
			w.Followed.Failing, w.Followed.Message = true, c.Message
		}
	}
}

func showStatefulSet(s *appsv1.StatefulSet, w *model.Workload) {
	w.Type, w.Count, w.Template = model.StatefulWorkload, counted(s.Spec.Replicas), templateOf(&s.Spec.Template)
	w.Followed.Updated = int(s.Status.UpdatedReplicas)
	u := &s.Spec.UpdateStrategy
	if u.Type == appsv1.OnDeleteStatefulSetStrategyType || u.RollingUpdate != nil && u.RollingUpdate.Partition != nil && *u.RollingUpdate.Partition > 0 {
		w.Followed.Updated = w.Count // others stay as they are until somebody says more
	}
}

func showDaemonSet(d *appsv1.DaemonSet, w *model.Workload) {
	w.Type, w.Template = model.GlobalWorkload, templateOf(&d.Spec.Template)
	w.Followed.Fixed, w.Followed.Wanted, w.Followed.Updated = true, int(d.Status.DesiredNumberScheduled), int(d.Status.UpdatedNumberScheduled)
	if d.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType {
		w.Followed.Updated = w.Followed.Wanted
	}
}

func jobCount(s *batchv1.JobSpec) int {
	if s.Completions != nil {
		return int(*s.Completions)
	}
	return counted(s.Parallelism)
}

func showJob(j *batchv1.Job, w *model.Workload) {
	w.Type, w.Count, w.Template = model.JobWorkload, jobCount(&j.Spec), templateOf(&j.Spec.Template)
	w.Job.Parallelism, w.Suspended = counted(j.Spec.Parallelism), j.Spec.Suspend != nil && *j.Spec.Suspend
	w.Followed.Fixed, w.Followed.Completed, w.Followed.Failed = true, int(j.Status.Succeeded), int(j.Status.Failed)
	for _, c := range j.Status.Conditions {
		switch {
		case c.Status != corev1.ConditionTrue:
		case c.Type == batchv1.JobFailed:
			w.Followed.Failing, w.Followed.Message = true, c.Message
		case c.Type == batchv1.JobComplete:
			w.Followed.Completed = max(w.Followed.Completed, w.Count)
		}
	}
}

func showCronJob(c *batchv1.CronJob, w *model.Workload) {
	w.Type, w.Count, w.Template = model.CronWorkload, jobCount(&c.Spec.JobTemplate.Spec), templateOf(&c.Spec.JobTemplate.Spec.Template)
	w.Suspended, w.Followed.Fixed, w.Cron.Schedule = c.Spec.Suspend != nil && *c.Spec.Suspend, true, c.Spec.Schedule
	if c.Spec.TimeZone != nil {
		w.Cron.TimeZone = *c.Spec.TimeZone
	}
}

// templateOf is what is shown of a template: what runs, and what it asks for. Environment and arguments are
// left out, as they are of mirror pods.
func templateOf(t *corev1.PodTemplateSpec) model.Template {
	m := model.Template{Labels: t.Labels, HostNetwork: t.Spec.HostNetwork, Restart: model.RestartPolicy{Condition: conditions[t.Spec.RestartPolicy]}, Separate: true}
	for _, part := range []struct {
		from []corev1.Container
		to   *[]model.TaskSpec
	}{{t.Spec.InitContainers, &m.InitTasks}, {t.Spec.Containers, &m.Tasks}} {
		for k := range part.from {
			c := &part.from[k]
			*part.to = append(*part.to, model.TaskSpec{Name: c.Name, Image: c.Image, Reserve: amounts(c.Resources.Requests), Limit: amounts(c.Resources.Limits)})
		}
	}
	return m
}

func amounts(list corev1.ResourceList) model.Resources {
	return model.Resources{NanoCPUs: list.Cpu().MilliValue() * 1e6, MemoryBytes: list.Memory().Value()}
}

// syncMaker shows what makes Pods as it is now, and tells it how many people want of it.
func (b *bridge) syncMaker(ctx context.Context, kind, namespace, name string) error {
	w, err := b.shown(kind, namespace, name)
	if err != nil {
		return err
	}
	for _, have := range b.seen.followed(kind, namespace, name) {
		if w == nil || have.ID != w.ID {
			if err := b.Tutti.Unfollow(ctx, have.ID); err != nil {
				return fmt.Errorf("forget %s: %w", have.FullName(), err)
			}
			b.mu.Lock()
			delete(b.scaled, have.ID)
			b.mu.Unlock()
		}
	}
	if w == nil {
		return nil
	}
	f := core.Following{Workload: w.Workload}
	if have := b.seen.workload(w.ID); have != nil {
		w.Name = have.Name
		if asked := have.Count; asked != have.Followed.Count && !w.Followed.Fixed {
			b.mu.Lock()
			last := b.scaled[w.ID]
			b.mu.Unlock()
			switch {
			case last.generation == have.Generation && w.version < last.version:
				return nil // the watch will bring what it is since
			case last.generation != have.Generation && w.Count != asked:
				version, err := b.scale(ctx, w.Workload, asked)
				if err == nil {
					b.mu.Lock()
					b.scaled[w.ID] = passed{have.Generation, version}
					b.mu.Unlock()
					return nil // the watch brings it as it is then
				}
				if f.Refused = refusedBy(err); f.Refused == "" {
					return fmt.Errorf("scale %s %s/%s: %w", kind, namespace, name, err)
				}
			}
			f.Told = &asked
		}
	}
	err = b.Tutti.Follow(ctx, f)
	if fault.Is(err, fault.Conflict) && b.seen.workload(w.ID) == nil { // of another kind there is one of this name
		w.Name = nameOf(name + "." + strings.ToLower(kind))
		err = b.Tutti.Follow(ctx, f)
	}
	if err != nil {
		return fmt.Errorf("show %s %s/%s: %w", kind, namespace, name, err)
	}
	return nil
}

// scale writes the scale subresource of what a workload shows, and returns the version that has.
func (b *bridge) scale(ctx context.Context, w *model.Workload, count int) (uint64, error) {
	s := &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: w.Belongs.Name},
		Spec:       autoscalingv1.ScaleSpec{Replicas: int32(count)},
	}
	apps, o := b.client.AppsV1(), metav1.UpdateOptions{}
	var err error
	switch w.Belongs.Kind {
	case kindDeployment:
		s, err = apps.Deployments(w.Namespace).UpdateScale(ctx, s.Name, s, o)
	case kindReplicaSet:
		s, err = apps.ReplicaSets(w.Namespace).UpdateScale(ctx, s.Name, s, o)
	case kindStatefulSet:
		s, err = apps.StatefulSets(w.Namespace).UpdateScale(ctx, s.Name, s, o)
	}
	if err != nil {
		return 0, err
	}
	return versionOf(s.ResourceVersion), nil
}

// refusedBy is why the API server does not have a change, and will not have it later either; "" when that
// may be otherwise the next time.
func refusedBy(err error) string {
	switch {
	case apierrors.IsInvalid(err), apierrors.IsForbidden(err), apierrors.IsBadRequest(err), apierrors.IsMethodNotSupported(err):
		return err.Error()
	}
	return ""
}

// ownerOf is the ID of the workload that a Pod is a part of; "" of one that stands for itself.
func (b *bridge) ownerOf(ctx context.Context, pod *corev1.Pod) string {
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return ""
	}
	switch owner.Kind {
	case kindStatefulSet, kindDaemonSet, kindJob:
		return string(owner.UID)
	case kindReplicaSet:
		r, err := b.makers.replicaSets.ReplicaSets(pod.Namespace).Get(owner.Name)
		if err != nil || r.UID != owner.UID { // it was made just now
			r, err = b.client.AppsV1().ReplicaSets(pod.Namespace).Get(ctx, owner.Name, metav1.GetOptions{})
		}
		if err != nil || r.UID != owner.UID {
			return ""
		}
		if above := metav1.GetControllerOf(r); above != nil && above.Kind == kindDeployment {
			return string(above.UID)
		}
		return string(r.UID)
	}
	return ""
}
