package pods

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8stesting "k8s.io/client-go/testing"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
)

// running is an instance of a workload with one task that runs.
func running(id, name, workload, task string) core.Seen {
	i := &model.Instance{Meta: model.Meta{ID: id, Name: name, Namespace: "shop", Application: application}, WorkloadID: workload, NodeID: "n", Desired: model.DesiredRun}
	i.Status = model.InstanceStatus{State: model.InstanceRunning, Ready: true, Tasks: []model.TaskStatus{{Name: task, Run: 1, State: "running", Up: true, Ready: true}}}
	return core.Seen{Kind: model.KindInstance, ID: id, Instance: i}
}

func TestAnEphemeralContainer(t *testing.T) {
	client, f := started(t)
	ctx := t.Context()
	api := client.CoreV1().Pods("shop")
	pod := podOf(corev1.Container{Name: "app", Image: "nginx:1"})
	pod.Spec.NodeName = "n1"
	f.tell(running("i", "web-0", "uid-1", "app"))
	if _, err := api.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod runs", func() bool {
		p, err := api.Get(ctx, "web-0", metav1.GetOptions{})
		return err == nil && p.Status.Phase == corev1.PodRunning
	})
	p, err := api.Get(ctx, "web-0", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{
		{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "busybox", Stdin: true, TTY: true}, TargetContainerName: "app"},
		{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "odd", Image: "busybox", VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}}},
	}
	if _, err := api.Update(ctx, p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	id := ephemeralID("uid-1", "debug")
	var w *model.Workload
	eventually(t, "it is handed over", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, d := range f.deployed {
			if len(d.Workloads) == 1 && d.Workloads[0].ID == id {
				w = d.Workloads[0]
			}
		}
		return w != nil
	})
	if s := w.Template.Shared(); s.NetworkOf != "web-0" || s.PIDsOf != "web-0" || s.PIDsTask != "app" || !w.Template.Tasks[0].TTY || w.Template.Restart.Condition != model.RestartNever {
		t.Errorf("it becomes %+v, sharing %+v", w.Template, s)
	}
	f.tell(running("e", "web-0-e-debug", id, "debug"))
	eventually(t, "its state is shown, and why the other one is not made", func() bool {
		p, err := api.Get(ctx, "web-0", metav1.GetOptions{})
		if err != nil || len(p.Status.EphemeralContainerStatuses) != 2 {
			return false
		}
		list := p.Status.EphemeralContainerStatuses
		return list[0].State.Running != nil && list[1].State.Waiting != nil && strings.Contains(list[1].State.Waiting.Message, "volumeMounts")
	})
	if p, err = api.Get(ctx, "web-0", metav1.GetOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := workloadOf(p, "debug"); got != id {
		t.Errorf("container debug is run by %s", got)
	}
	if got := workloadOf(p, "app"); got != "uid-1" {
		t.Errorf("container app is run by %s", got)
	}
	now := metav1.Now()
	p.DeletionTimestamp = &now
	if _, err := api.Update(ctx, p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both workloads are removed", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.Contains(f.removed, id) && slices.Contains(f.removed, "uid-1")
	})
}

func TestAPodThatIsActiveForLongerThanItMay(t *testing.T) {
	client, f := started(t)
	ctx := t.Context()
	api := client.CoreV1().Pods("shop")
	pod := podOf(corev1.Container{Name: "app", Image: "nginx:1"})
	pod.Spec.NodeName, pod.Spec.ActiveDeadlineSeconds = "n1", ptr(int64(5))
	pod.Status.StartTime = &metav1.Time{Time: time.Now().Add(-time.Hour)}
	f.tell(running("i", "web-0", "uid-1", "app"))
	if _, err := api.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its workload is removed", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.Contains(f.removed, "uid-1")
	})
	f.tell(core.Seen{Kind: model.KindInstance, ID: "i"})
	eventually(t, "the pod has failed", func() bool {
		p, err := api.Get(ctx, "web-0", metav1.GetOptions{})
		return err == nil && p.Status.Phase == corev1.PodFailed && p.Status.Reason == "DeadlineExceeded"
	})
}

func TestCountedResourcesOfEitherSide(t *testing.T) {
	client, f := started(t)
	ctx := t.Context()
	nodes := client.CoreV1().Nodes()
	capacity := func(name string) string {
		n, err := nodes.Get(ctx, "n1", metav1.GetOptions{})
		if err != nil {
			return ""
		}
		q, ok := n.Status.Capacity[corev1.ResourceName(name)]
		if !ok {
			return "none"
		}
		return q.String()
	}
	set := func(name string, count int64) {
		n, err := nodes.Get(ctx, "n1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if count == 0 {
			delete(n.Status.Capacity, corev1.ResourceName(name))
		} else {
			n.Status.Capacity[corev1.ResourceName(name)] = *resource.NewQuantity(count, resource.DecimalSI)
		}
		if _, err := nodes.UpdateStatus(ctx, n, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	has := func(name string) int64 {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.all["n"].Node.Capacity.Custom[name]
	}
	eventually(t, "the node is shown", func() bool { return capacity("cpu") != "" && capacity("cpu") != "none" })
	// The fake API server knows no conflicts: what the bridge writes meanwhile may undo it.
	eventually(t, "the core's node has it", func() bool {
		set("example.org/foo", 5)
		return has("example.org/foo") == 5
	})
	eventually(t, "it is remembered", func() bool {
		n, err := nodes.Get(ctx, "n1", metav1.GetOptions{})
		return err == nil && strings.Contains(n.Annotations[agreedOn], "example.org/foo")
	})
	eventually(t, "the core's node has it no more", func() bool {
		set("example.org/foo", 0)
		return has("example.org/foo") == 0
	})
}

func TestPullSecretsAndPolicies(t *testing.T) {
	pod := podOf(corev1.Container{Name: "a", Image: "one.example/x/a:1", ImagePullPolicy: corev1.PullAlways}, corev1.Container{Name: "b", Image: "one.example/x/b:1", ImagePullPolicy: corev1.PullNever})
	pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "logins"}}
	all := around()
	all.secret = func(string) (*corev1.Secret, error) {
		return &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(
			`{"auths":{"https://one.example/":{"username":"ann","password":"secret"},"two.example":{"auth":"Ym9iOmhpZGRlbg=="}}}`)}}, nil
	}
	d, err := translate(pod, all)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := d.Logins["web-0"], (image.Credentials{User: "ann", Password: "secret"}); got != want {
		t.Errorf("the login is %+v", got)
	}
	if d.Pulls["one.example/x/a:1"] != core.PullNewest || d.Pulls["one.example/x/b:1"] != core.PullNever {
		t.Errorf("pulls are %v", d.Pulls)
	}
	pod.Spec.Containers = pod.Spec.Containers[:1]
	pod.Spec.Containers[0].Image = "two.example/b:1"
	if d, err = translate(pod, all); err != nil || d.Logins["web-0"] != (image.Credentials{User: "bob", Password: "hidden"}) {
		t.Errorf("the login is %+v, %v", d, err)
	}
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "c", Image: "one.example/a:1"})
	if _, err = translate(pod, all); err == nil || !strings.Contains(err.Error(), "imagePullSecrets") {
		t.Errorf("logins of two registries: %v", err)
	}
	pod.Spec.ImagePullSecrets, pod.Spec.RuntimeClassName = nil, ptr("sandboxed")
	if d, err = translate(pod, all); err != nil || d.Workloads[0].Template.Tasks[0].Runtime != "runsc" {
		t.Errorf("the runtime class leads to %+v, %v", d, err)
	}
}

func TestPodsThatHaveToGo(t *testing.T) {
	client, f := started(t)
	ctx := t.Context()
	api := client.CoreV1().Pods("shop")
	seen := running("i", "web-0", "uid-1", "app")
	seen.Instance.Desired, seen.Instance.Cause = model.DesiredStop, "gives way to another"
	f.tell(seen)
	pod := podOf(corev1.Container{Name: "app", Image: "nginx:1"})
	pod.Spec.NodeName = "n1"
	if _, err := api.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a pod that gives way is deleted", func() bool {
		_, err := api.Get(ctx, "web-0", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	f.tell(running("j", "web-1", "uid-2", "app"))
	other := podOf(corev1.Container{Name: "app", Image: "nginx:1"})
	other.Name, other.UID, other.Spec.NodeName = "web-1", "uid-2", "n1"
	if _, err := api.Create(ctx, other, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	n := f.all["n"].Node.Clone()
	f.mu.Unlock()
	n.Availability = model.Draining
	f.tell(core.Seen{Kind: model.KindNode, ID: "n", Node: n})
	eventually(t, "a pod of a node that is drained is evicted", func() bool {
		return slices.ContainsFunc(client.Actions(), func(a k8stesting.Action) bool { return a.GetSubresource() == "eviction" })
	})
}
