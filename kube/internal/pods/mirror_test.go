package pods

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

// TestMirrorPods: instances of other APIs' workloads are shown, come again when they are deleted, and go
// with the instance.
func TestMirrorPods(t *testing.T) {
	client, f := started(t)
	eventually(t, "the node is shown", func() bool {
		_, err := client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
		return err == nil
	})
	shop := &model.Workload{Meta: model.Meta{ID: "w", Namespace: "default", Application: "shop", Name: "Web_1"}, Template: model.Template{
		Tasks: []model.TaskSpec{
			{Name: "Main_task", Image: "shop/web:v1", Reserve: model.Resources{NanoCPUs: 20e6, MemoryBytes: 32 << 20}, Limit: model.Resources{NanoCPUs: 10e6, MemoryBytes: 64 << 20}},
			{Name: "helper"},
		},
	}}
	i := &model.Instance{
		Meta: model.Meta{ID: "abcdefgh12345678", Namespace: "default", Application: "shop", Name: "Web_1.2"}, WorkloadID: "w", NodeID: "n",
		Addresses: []model.Address{{Network: "x", IP: "10.1.0.5"}}, Desired: model.DesiredRun,
		Status: model.InstanceStatus{State: model.InstanceRunning, Ready: true, Tasks: []model.TaskStatus{{Name: "Main_task", Run: 1, State: "running"}, {Name: "helper", Run: 1, State: "running"}}},
	}
	f.tell(core.Seen{Kind: model.KindWorkload, ID: "w", Workload: shop})
	f.tell(core.Seen{Kind: model.KindInstance, ID: i.ID, Instance: i})
	const name = "shop-web-1-2-abcdefgh1234"
	get := func() (*corev1.Pod, error) {
		return client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
	}
	eventually(t, "a mirror pod that is ready", func() bool {
		p, err := get()
		return err == nil && conditionIs(&p.Status, corev1.PodReady)
	})
	p, err := get()
	if err != nil {
		t.Fatal(err)
	}
	if p.Annotations[corev1.MirrorPodAnnotationKey] == "" || p.Annotations[ownerNote] != "shop/Web_1" || p.Labels[workloadLabel] != "web-1" || p.Spec.NodeName != "n1" || p.Status.PodIP != "10.1.0.5" {
		t.Errorf("the mirror pod is %+v", p)
	}
	main := p.Spec.Containers[0]
	if main.Name != "main-task" || main.Resources.Requests.Cpu().MilliValue() != 20 || main.Resources.Limits.Memory().Value() != 64<<20 || !main.Resources.Limits.Cpu().IsZero() {
		t.Errorf("its container is %+v", main)
	}
	if image := p.Spec.Containers[1].Image; image != processImage {
		t.Errorf("a process has the image %s", image)
	}
	if c := p.Status.ContainerStatuses[0]; c.State.Running == nil || !c.Ready {
		t.Errorf("the status of a task with another name is %+v", p.Status.ContainerStatuses[0])
	}
	if err := client.CoreV1().Pods("default").Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mirror pod again", func() bool {
		p, err := get()
		return err == nil && conditionIs(&p.Status, corev1.PodReady)
	})
	f.tell(core.Seen{Kind: model.KindInstance, ID: i.ID})
	eventually(t, "no mirror pod", func() bool {
		_, err := get()
		return apierrors.IsNotFound(err)
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.deployed) > 1 || len(f.removed) > 0 {
		t.Errorf("a mirror pod was handed over: %+v, %v", f.deployed, f.removed)
	}
}
