package pods

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tutti-run/tutti/internal/model"
)

func claimOf(name string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "claim-1", Annotations: map[string]string{provisionerOf: provisioner}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr(localClass), AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
}

func withClaim(name string) *corev1.Pod {
	pod := podOf(corev1.Container{Name: "app", Image: "x", VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}})
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}}
	return pod
}

// The claim's volume is made, a Pod waits until the two are bound and then mounts it, and what the volume
// holds goes when it was released. What binds them, and says that it was released, is Kubernetes' own
// controller; here it is the test.
func TestTheLifeOfAClaim(t *testing.T) {
	client, f := started(t)
	ctx := t.Context()
	if _, err := client.CoreV1().Pods("shop").Create(ctx, withClaim("data"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	message := func() string {
		p, err := client.CoreV1().Pods("shop").Get(ctx, "web-0", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled {
				return c.Reason + ": " + c.Message
			}
		}
		return ""
	}
	eventually(t, "the pod waits for its claim", func() bool {
		return strings.HasPrefix(message(), "Unschedulable: ") && strings.Contains(message(), `persistentvolumeclaim "data" not found`)
	})
	claim, err := client.CoreV1().PersistentVolumeClaims("shop").Create(ctx, claimOf("data"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	volumes := client.CoreV1().PersistentVolumes()
	var volume *corev1.PersistentVolume
	eventually(t, "the volume is made", func() bool {
		volume, err = volumes.Get(ctx, "pvc-claim-1", metav1.GetOptions{})
		return err == nil
	})
	if volume.Spec.ClaimRef.UID != "claim-1" || volume.Spec.CSI.VolumeHandle != "pvc-claim-1" || volume.Spec.StorageClassName != localClass ||
		volume.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || volume.Spec.Capacity.Storage().String() != "1Gi" {
		t.Errorf("the volume is %+v", volume.Spec)
	}
	eventually(t, "the pod waits until it is bound", func() bool { return strings.Contains(message(), "unbound PersistentVolumeClaims") })
	claim.Spec.VolumeName, claim.Status.Phase = volume.Name, corev1.ClaimBound
	if _, err := client.CoreV1().PersistentVolumeClaims("shop").Update(ctx, claim, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod is handed over", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.deployed) == 2
	})
	d := f.deployed[1]
	if m := d.Workloads[0].Template.Tasks[0].Mounts[0]; m.Type != model.MountVolume || m.Source != "pvc-claim-1" || len(d.Volumes) != 1 || d.Volumes[0].ID != "pvc-claim-1" {
		t.Errorf("the mount is %+v, and the volumes %+v", m, d.Volumes)
	}
	volume.Status.Phase = corev1.VolumeReleased
	now := metav1.Now()
	volume.DeletionTimestamp = &now // the fake API server would delete it at once, whatever keeps it
	if _, err := volumes.Update(ctx, volume, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what it held is gone", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		now, err := volumes.Get(ctx, volume.Name, metav1.GetOptions{})
		return slices.Equal(f.emptied, []string{"pvc-claim-1"}) && (apierrors.IsNotFound(err) || err == nil && len(now.Finalizers) == 0)
	})
}

func TestWhatIsNotProvided(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*corev1.PersistentVolumeClaim, *storagev1.StorageClass)
		want   string
	}{
		"nothing odd": {func(*corev1.PersistentVolumeClaim, *storagev1.StorageClass) {}, ""},
		"block": {func(c *corev1.PersistentVolumeClaim, _ *storagev1.StorageClass) {
			c.Spec.VolumeMode = ptr(corev1.PersistentVolumeBlock)
		}, "Block"},
		"copy": {func(c *corev1.PersistentVolumeClaim, _ *storagev1.StorageClass) {
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "other"}
		}, "data source"},
		"selector": {func(c *corev1.PersistentVolumeClaim, _ *storagev1.StorageClass) {
			c.Spec.Selector = &metav1.LabelSelector{}
		}, "selector"},
		"parameters": {func(_ *corev1.PersistentVolumeClaim, s *storagev1.StorageClass) {
			s.Parameters = map[string]string{"fast": "yes"}
		}, "parameters"},
	} {
		claim, class := claimOf("data"), &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: localClass}, Provisioner: provisioner}
		c.change(claim, class)
		if got := unprovided(claim, class); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want something of %q", name, got, c.want)
		}
	}
}

func TestPersistentVolumesOfNodes(t *testing.T) {
	a := around()
	volume := &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/srv/data"}},
		NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
			{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"n1"}}}},
		}}},
	}}
	a.claim = func(string) (*corev1.PersistentVolume, error) { return volume, nil }
	d, err := translate(withClaim("data"), a)
	if err != nil {
		t.Fatal(err)
	}
	w := d.Workloads[0].Template
	if m := w.Tasks[0].Mounts[0]; m.Type != model.MountBind || m.Source != "/srv/data" || m.HostKind != "directory" || len(d.Volumes) != 0 {
		t.Errorf("the mount is %+v", m)
	}
	if c := w.Placement.Constraints; len(c) != 1 || c[0].Key != "node.name" || c[0].Values[0] != "n1" {
		t.Errorf("constraints are %+v", c)
	}
	volume.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{Server: "x", Path: "/"}}
	if _, err := translate(withClaim("data"), a); err == nil || !strings.Contains(err.Error(), "of this kind") {
		t.Errorf("a kind that is not known gave %v", err)
	}
}
