package pods

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

// TestContentIsHandedOverToThoseThatUseIt: a ConfigMap that changes concerns the Pods with a volume of it.
func TestContentIsHandedOverToThoseThatUseIt(t *testing.T) {
	settings := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "settings"}, Data: map[string]string{"a": "1"}}
	others := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "others"}, Data: map[string]string{"a": "1"}}
	client, f := started(t, settings, others)
	ctx := t.Context()
	for _, name := range []string{"settings", "others"} {
		p := podOf(corev1.Container{Name: "app", Image: "nginx:1", VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}})
		p.Name, p.UID, p.Spec.NodeName = name, types.UID("uid-of-"+name), "n1"
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}}}}}
		if _, err := client.CoreV1().Pods("shop").Create(ctx, p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		i := &model.Instance{Meta: model.Meta{ID: "i-" + name, Name: name, Namespace: "shop", Application: application}, WorkloadID: string(p.UID), NodeID: "n", Desired: model.DesiredRun}
		i.Status = model.InstanceStatus{State: model.InstanceRunning, Ready: true}
		eventually(t, "the pod is handed over", func() bool { return f.handed(name) > 0 })
		f.tell(core.Seen{Kind: model.KindInstance, ID: i.ID, Instance: i})
		eventually(t, "the pod is ready", func() bool {
			p, err := client.CoreV1().Pods("shop").Get(ctx, name, metav1.GetOptions{})
			return err == nil && conditionIs(&p.Status, corev1.PodReady)
		})
	}
	before := f.handed("others")
	for _, value := range []string{"2", "3"} {
		was := f.handed("settings")
		settings.Data["a"] = value
		if _, err := client.CoreV1().ConfigMaps("shop").Update(ctx, settings.DeepCopy(), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "what changed is handed over", func() bool { return f.handed("settings") > was })
	}
	if n := f.handed("others"); n != before {
		t.Errorf("what did not change was handed over %d times more", n-before)
	}
}

// handed counts how often the files of a Pod's volumes were handed over.
func (f *fakeTutti) handed(name string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.deployed {
		for _, s := range d.Secrets {
			if s.Name == name {
				n++
			}
		}
	}
	return n
}
