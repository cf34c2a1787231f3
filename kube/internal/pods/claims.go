package pods

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Names of what PersistentVolumes are made by.
const (
	provisioner = "tutti.run/local"
	// localClass is the StorageClass that claims get which name none.
	localClass = "tutti-local"
	// volumeDriver is the one that a PersistentVolume of the core names; its handle is the volume's ID.
	volumeDriver = "local.tutti.run"
	// keptBy holds a PersistentVolume until its data is gone.
	keptBy = "tutti.run/volume"

	provisionedBy  = "pv.kubernetes.io/provisioned-by"
	provisionerOf  = "volume.kubernetes.io/storage-provisioner" // set on a claim once it is to be provisioned for
	isDefaultClass = "storageclass.kubernetes.io/is-default-class"
)

// unplaceable is an error because of which a Pod cannot have a node yet.
type unplaceable struct{ error }

func (u *unplaceable) Unwrap() error { return u.error }

// makeClass makes the StorageClass for what claims ask of Tutti, where there is none.
func (b *bridge) makeClass(ctx context.Context) error {
	if _, err := b.classes.Get(localClass); err == nil {
		return nil
	}
	reclaim, binding := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingImmediate
	_, err := b.client.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: localClass, Annotations: map[string]string{isDefaultClass: "true"}},
		Provisioner: provisioner, ReclaimPolicy: &reclaim, VolumeBindingMode: &binding,
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make the storage class %s: %w", localClass, err)
	}
	return nil
}

// claimChanged looks at a claim, and at the Pods that wait for it.
func (b *bridge) claimChanged(namespace, name string) {
	b.queue.Add("claim/" + namespace + "/" + name)
	list, err := b.pods.Pods(namespace).List(everything)
	if err != nil {
		return
	}
	for _, p := range list {
		if p.Spec.NodeName == "" && slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return claimName(p, &v) == name }) {
			b.queue.Add("pod/" + p.Namespace + "/" + p.Name)
		}
	}
}

// claimName is the name of the claim that a Pod's volume stands for; "" for one of another kind.
func claimName(p *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil: // Kubernetes' own controller makes it
		return p.Name + "-" + v.Name
	}
	return ""
}

// syncClaim provides a PersistentVolume for a claim that is to have one at once.
func (b *bridge) syncClaim(ctx context.Context, namespace, name string) error {
	claim, err := b.claims.PersistentVolumeClaims(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if claim.Annotations[provisionerOf] != provisioner {
		return nil // it is bound to a volume that is there, or waits for its first Pod, or is somebody else's
	}
	return b.provide(ctx, claim)
}

// provide makes the PersistentVolume of a claim; Kubernetes' own controller binds the two.
func (b *bridge) provide(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil || claim.Spec.StorageClassName == nil {
		return nil
	}
	class, err := b.classes.Get(*claim.Spec.StorageClassName)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if class.Provisioner != provisioner {
		return nil
	}
	if odd := unprovided(claim, class); odd != "" {
		b.events.Event(claim, corev1.EventTypeWarning, "ProvisioningFailed", odd)
		return nil
	}
	name := "pvc-" + string(claim.UID)
	if _, err := b.volumes.Get(name); err == nil {
		return nil
	}
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: provisioner}, Finalizers: []string{keptBy}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: claim.Spec.Resources.Requests, AccessModes: claim.Spec.AccessModes, VolumeMode: claim.Spec.VolumeMode,
			StorageClassName: class.Name, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete, MountOptions: class.MountOptions,
			ClaimRef:               &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: volumeDriver, VolumeHandle: name}},
		},
	}
	if class.ReclaimPolicy != nil {
		volume.Spec.PersistentVolumeReclaimPolicy = *class.ReclaimPolicy
	}
	if _, err = b.client.CoreV1().PersistentVolumes().Create(ctx, volume, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make volume %s: %w", name, err)
	}
	b.events.Eventf(claim, corev1.EventTypeNormal, "ProvisioningSucceeded", "Successfully provisioned volume %s: it lives on the node of the first Pod that uses it", name)
	return nil
}

// unprovided says what a claim asks for and does not get.
func unprovided(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) string {
	switch {
	case claim.Spec.VolumeMode != nil && *claim.Spec.VolumeMode == corev1.PersistentVolumeBlock:
		return "volumeMode Block is not supported; Filesystem is"
	case claim.Spec.DataSource != nil || claim.Spec.DataSourceRef != nil:
		return "a data source is not supported: volumes begin empty"
	case claim.Spec.Selector != nil:
		return "a selector is not supported where volumes are provisioned"
	case len(class.Parameters) > 0:
		return fmt.Sprintf("storage class %s has parameters: none are known", class.Name)
	case len(class.MountOptions) > 0:
		return fmt.Sprintf("storage class %s has mount options: local volumes take none", class.Name)
	}
	return ""
}

// syncVolume removes what a PersistentVolume holds when nobody may want it any more.
func (b *bridge) syncVolume(ctx context.Context, name string) error {
	v, err := b.volumes.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if v.Annotations[provisionedBy] != provisioner {
		return nil
	}
	if v.DeletionTimestamp == nil {
		if v.Status.Phase != corev1.VolumeReleased || v.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
			return nil
		}
		err := b.client.CoreV1().PersistentVolumes().Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &v.UID}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("delete volume %s: %w", name, err)
		}
		return nil
	}
	if !slices.Equal(v.Finalizers, []string{keptBy}) {
		return nil // somebody has use for it yet
	}
	if v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete && v.Spec.CSI != nil {
		if err := b.Tutti.RemoveVolume(ctx, v.Spec.CSI.VolumeHandle); err != nil && !fault.Is(err, fault.NotFound) {
			b.events.Event(v, corev1.EventTypeWarning, "VolumeFailedDelete", err.Error())
			return fmt.Errorf("remove what volume %s holds: %w", name, err)
		}
	}
	c := v.DeepCopy()
	c.Finalizers = nil
	if _, err = b.client.CoreV1().PersistentVolumes().Update(ctx, c, metav1.UpdateOptions{}); apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // the watch brings it as it is now
	}
	return err
}

// claimed is the PersistentVolume that a Pod's claim is bound to.
func (b *bridge) claimed(ctx context.Context, pod *corev1.Pod, name string) (*corev1.PersistentVolume, error) {
	claim, err := b.claims.PersistentVolumeClaims(pod.Namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil, &unplaceable{fmt.Errorf("persistentvolumeclaim %q not found", name)}
	}
	if err != nil {
		return nil, err
	}
	if claim.DeletionTimestamp != nil {
		return nil, &unplaceable{fmt.Errorf("persistentvolumeclaim %q is being deleted", name)}
	}
	if slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteOncePod) {
		if other := b.userOf(pod, name); other != "" {
			return nil, &unplaceable{fmt.Errorf("persistentvolumeclaim %q is for one Pod alone, and Pod %s uses it", name, other)}
		}
	}
	if claim.Status.Phase != corev1.ClaimBound || claim.Spec.VolumeName == "" {
		if claim.Status.Phase == corev1.ClaimLost {
			return nil, &unplaceable{fmt.Errorf("persistentvolumeclaim %q has lost its volume %s", name, claim.Spec.VolumeName)}
		}
		return nil, errors.Join(&unplaceable{fmt.Errorf("pod has unbound PersistentVolumeClaims: %q", name)}, b.provide(ctx, claim))
	}
	volume, err := b.volumes.Get(claim.Spec.VolumeName)
	if err != nil {
		return nil, &unplaceable{fmt.Errorf("the volume of persistentvolumeclaim %q: %w", name, err)}
	}
	return volume, nil
}

// userOf is another Pod that uses a claim; "" when there is none.
func (b *bridge) userOf(pod *corev1.Pod, claim string) string {
	list, err := b.pods.Pods(pod.Namespace).List(everything)
	if err != nil {
		return ""
	}
	for _, p := range list {
		uses := func(v corev1.Volume) bool { return claimName(p, &v) == claim }
		if p.UID != pod.UID && !ended(p) && b.seen.instance(string(p.UID)) != nil && slices.ContainsFunc(p.Spec.Volumes, uses) {
			return p.Name
		}
	}
	return ""
}

// claim makes a mount of a PersistentVolume.
func (t *translation) claim(v *corev1.Volume, m *model.Mount) error {
	pv, err := t.around.claim(claimName(t.pod, v))
	if err != nil {
		return fmt.Errorf("volume %s: %w", v.Name, err)
	}
	if affinity := pv.Spec.NodeAffinity; affinity != nil && affinity.Required != nil {
		if len(affinity.Required.NodeSelectorTerms) > 1 {
			t.refused.add("volume "+v.Name, "a PersistentVolume with a choice between several terms of nodes")
		}
		for i := range affinity.Required.NodeSelectorTerms {
			t.bound = append(t.bound, t.term(&affinity.Required.NodeSelectorTerms[i])...)
		}
	}
	switch {
	case pv.Spec.CSI != nil && pv.Spec.CSI.Driver == volumeDriver:
		id := pv.Spec.CSI.VolumeHandle
		if !slices.ContainsFunc(t.claimed, func(have *model.Volume) bool { return have.ID == id }) {
			t.claimed = append(t.claimed, &model.Volume{Meta: model.Meta{ID: id, Name: id}, Driver: "local"})
		}
		m.Type, m.Source, m.NoCopy = model.MountVolume, id, true
		m.Mode, m.GID = 0o777, t.fsGroup() // for whoever the containers run as, when it is made
	case pv.Spec.Local != nil:
		m.Type, m.Source, m.HostKind = model.MountBind, pv.Spec.Local.Path, "directory"
	case pv.Spec.HostPath != nil:
		t.hostPath(pv.Spec.HostPath, m)
	default:
		t.refused.add("volume "+v.Name, "a PersistentVolume of this kind (those of "+provisioner+", local and hostPath are)")
	}
	if c := v.PersistentVolumeClaim; c != nil {
		m.ReadOnly = m.ReadOnly || c.ReadOnly
	}
	return nil
}
