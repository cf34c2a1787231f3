package pods

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

func templateFor(image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "app", Image: image, Env: []corev1.EnvVar{{Name: "WORD", Value: "hush"}},
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("20m")}},
	}}}}
}

func owned(kind, name, uid string) []metav1.OwnerReference {
	yes := true
	return []metav1.OwnerReference{{Kind: kind, Name: name, UID: types.UID("uid-" + uid), Controller: &yes}}
}

// scalable has the fake API server act on what is written to the scale subresource, as the real one does;
// refuse makes it refuse.
func scalable(client *fake.Clientset, refuse *bool) {
	client.PrependReactor("update", "deployments", func(a clienttesting.Action) (bool, runtime.Object, error) {
		u, ok := a.(clienttesting.UpdateAction)
		if !ok || a.GetSubresource() != "scale" {
			return false, nil, nil
		}
		s := u.GetObject().(*autoscalingv1.Scale)
		if *refuse {
			return true, nil, apierrors.NewForbidden(appsv1.Resource("deployments"), s.Name, nil)
		}
		o, err := client.Tracker().Get(appsv1.SchemeGroupVersion.WithResource("deployments"), s.Namespace, s.Name)
		if err != nil {
			return true, nil, err
		}
		d := o.(*appsv1.Deployment).DeepCopy()
		d.Spec.Replicas = &s.Spec.Replicas
		return true, s, client.Tracker().Update(appsv1.SchemeGroupVersion.WithResource("deployments"), d, s.Namespace)
	})
}

// TestDeploymentsAreWorkloads: a Deployment is shown, scaled from here, and goes; another number that
// Kubernetes has counts, too.
func TestDeploymentsAreWorkloads(t *testing.T) {
	client, f := started(t)
	refuse := false
	scalable(client, &refuse)
	ctx := t.Context()
	three := int32(3)
	api := client.AppsV1().Deployments("shop")
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "uid-d", Labels: map[string]string{"tier": "front"}}, Spec: appsv1.DeploymentSpec{Replicas: &three, Template: templateFor("shop/web:v1")}}
	if _, err := api.Create(ctx, d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	shown := func() *model.Workload {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.all["uid-d"].Workload
	}
	eventually(t, "the deployment is shown", func() bool { return shown() != nil })
	w := shown()
	if w.Namespace != "shop" || w.FullName() != followedApplication+"/web" || w.Type != model.ServiceWorkload || w.Count != 3 || w.Labels["tier"] != "front" || w.Belongs.Kind != "Deployment" {
		t.Errorf("it is shown as %+v", w)
	}
	if task := w.Template.Tasks[0]; task.Image != "shop/web:v1" || task.Reserve.NanoCPUs != 20e6 || len(task.Env) > 0 {
		t.Errorf("its container is %+v", task)
	}

	ask := func(n int) { // as core.Scale does
		w := shown().Clone()
		w.Count = n
		w.Generation++
		f.tell(core.Seen{Kind: model.KindWorkload, ID: w.ID, Workload: w})
	}
	ask(5)
	eventually(t, "the scale is written, and agreed on", func() bool {
		d, err := api.Get(ctx, "web", metav1.GetOptions{})
		w := shown()
		return err == nil && *d.Spec.Replicas == 5 && w.Count == 5 && w.Followed.Count == 5
	})
	got, err := api.Get(ctx, "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	two := int32(2)
	got.Spec.Replicas, got.Status.UpdatedReplicas = &two, 2
	if _, err := api.Update(ctx, got, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "kubectl's number counts", func() bool { w := shown(); return w.Count == 2 && w.Followed.Count == 2 && w.Followed.Updated == 2 })

	refuse = true
	ask(9)
	eventually(t, "a number that is refused is taken back", func() bool {
		w := shown()
		f.mu.Lock()
		defer f.mu.Unlock()
		return w.Count == 2 && len(f.refused) > 0
	})
	if err := api.Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it goes with the deployment", func() bool { return shown() == nil })
}

// TestOtherMakersAreWorkloads: what is shown, what as, and what stands for what.
func TestOtherMakersAreWorkloads(t *testing.T) {
	three, yes := int32(3), true
	meta := func(name, uid string, owner []metav1.OwnerReference) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + uid), OwnerReferences: owner}
	}
	_, f := started(t,
		&appsv1.Deployment{ObjectMeta: meta("web", "d", nil), Spec: appsv1.DeploymentSpec{Template: templateFor("a")}},
		&appsv1.ReplicaSet{ObjectMeta: meta("web-1", "r", owned("Deployment", "web", "d")), Spec: appsv1.ReplicaSetSpec{Template: templateFor("a")}},
		&appsv1.ReplicaSet{ObjectMeta: meta("bare", "bare", nil), Spec: appsv1.ReplicaSetSpec{Replicas: &three, Template: templateFor("a")}},
		&appsv1.StatefulSet{ObjectMeta: meta("web", "s", nil), Spec: appsv1.StatefulSetSpec{Replicas: &three, Template: templateFor("a")}},
		&appsv1.DaemonSet{ObjectMeta: meta("agent", "a", nil), Spec: appsv1.DaemonSetSpec{Template: templateFor("a")}, Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: 4}},
		&batchv1.CronJob{ObjectMeta: meta("hourly", "c", nil), Spec: batchv1.CronJobSpec{Schedule: "0 * * * *", Suspend: &yes, JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: templateFor("a")}}}},
		&batchv1.Job{ObjectMeta: meta("hourly-1", "j", owned("CronJob", "hourly", "c")), Spec: batchv1.JobSpec{Completions: &three, Template: templateFor("a")}, Status: batchv1.JobStatus{Succeeded: 1}},
		&corev1.Pod{ObjectMeta: meta("web-1-x", "p", owned("ReplicaSet", "web-1", "r")), Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "a"}}}},
		&corev1.Pod{ObjectMeta: meta("hourly-1-x", "q", owned("Job", "hourly-1", "j")), Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "a"}}}},
	)
	get := func(id string) *model.Workload {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.all["uid-"+id].Workload
	}
	eventually(t, "all are shown", func() bool {
		for _, id := range []string{"d", "bare", "s", "a", "c", "j"} {
			if get(id) == nil {
				return false
			}
		}
		return true
	})
	if w := get("d"); w.Count != 1 {
		t.Errorf("a deployment that does not say how many has %d", w.Count)
	}
	if get("d").Name == get("s").Name || get("r") != nil {
		t.Errorf("two have one name, or a replica set is shown beside its deployment: %v, %v, %v", get("d"), get("s"), get("r"))
	}
	if w := get("bare"); w.Type != model.ServiceWorkload || w.Count != 3 || !w.Scalable() {
		t.Errorf("a replica set of nobody's is %+v", w)
	}
	if w := get("a"); w.Type != model.GlobalWorkload || w.Followed.Wanted != 4 || w.Scalable() {
		t.Errorf("a daemon set is %+v", w)
	}
	if w := get("c"); w.Type != model.CronWorkload || !w.Suspended || w.Cron.Schedule != "0 * * * *" {
		t.Errorf("a cron job is %+v", w)
	}
	if w := get("j"); w.Type != model.JobWorkload || w.Count != 3 || w.Followed.Completed != 1 || w.OwnerID != "uid-c" {
		t.Errorf("a job is %+v", w)
	}
	owners := map[string]string{}
	eventually(t, "the pods are handed over", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, d := range f.deployed {
			for _, w := range d.Workloads {
				owners[w.ID] = w.OwnerID
			}
		}
		return len(owners) == 2
	})
	if owners["uid-p"] != "uid-d" || owners["uid-q"] != "uid-j" {
		t.Errorf("pods are parts of %v", owners)
	}
}
