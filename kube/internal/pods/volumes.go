package pods

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tutti-run/tutti/internal/model"
)

// file is one that a volume holds.
type file struct {
	path string
	data []byte
	mode int64
	uid  int
	gid  int
	// awaited is set where the content is not known yet: nothing of the Pod starts before it is.
	awaited bool
	// placed is set where the content has what is known once the Pod has a node.
	placed bool
}

// Records that mark such files for the agent.
const (
	placedRecord  = "TUTTI.placed"
	awaitedRecord = "TUTTI.awaited"
)

// archive packs the files of volumes, each in a folder of its own. Equal files give equal archives.
func archive(folders map[string][]file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, folder := range slices.Sorted(maps.Keys(folders)) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder + "/", Mode: 0o755}); err != nil {
			return nil, err
		}
		files := slices.Clone(folders[folder])
		slices.SortFunc(files, func(a, b file) int { return bytes.Compare([]byte(a.path), []byte(b.path)) })
		for _, f := range files {
			h := &tar.Header{Name: path.Join(folder, f.path), Size: int64(len(f.data)), Mode: f.mode, Uid: f.uid, Gid: f.gid}
			switch {
			case f.placed:
				h.PAXRecords = map[string]string{placedRecord: "1"}
			case f.awaited:
				h.PAXRecords = map[string]string{awaitedRecord: "1"}
			}
			if err := w.WriteHeader(h); err != nil {
				return nil, err
			}
			if _, err := w.Write(f.data); err != nil {
				return nil, err
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// readVolumes reads what the Pod's volumes of files hold.
func (t *translation) readVolumes() error {
	for i := range t.pod.Spec.Volumes {
		v := &t.pod.Spec.Volumes[i]
		t.volumes[v.Name] = v
		files, is, err := t.files(v)
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
		if is {
			t.folders[v.Name] = files
		}
	}
	return nil
}

// files are those of a volume; is is false for one of another kind.
func (t *translation) files(v *corev1.Volume) (files []file, is bool, err error) {
	switch {
	case v.ConfigMap != nil:
		files, err = t.configFiles(&v.ConfigMap.LocalObjectReference, v.ConfigMap.Items, v.ConfigMap.Optional, modeOf(v.ConfigMap.DefaultMode))
	case v.Secret != nil:
		files, err = t.secretFiles(&corev1.LocalObjectReference{Name: v.Secret.SecretName}, v.Secret.Items, v.Secret.Optional, modeOf(v.Secret.DefaultMode))
	case v.DownwardAPI != nil:
		files, err = t.downwardFiles(v.DownwardAPI.Items, modeOf(v.DownwardAPI.DefaultMode))
	case v.Projected != nil:
		files, err = t.projected(v.Name, v.Projected)
	default:
		return nil, false, nil
	}
	if sc := t.pod.Spec.SecurityContext; sc != nil && sc.FSGroup != nil {
		for i := range files {
			files[i].gid = int(*sc.FSGroup)
			files[i].mode |= 0o440
		}
	}
	return files, true, err
}

func modeOf(mode *int32) int64 {
	if mode == nil {
		return 0o644
	}
	return int64(*mode)
}

// chosen are the files of a map: the items, or all.
func chosen(data map[string][]byte, items []corev1.KeyToPath, mode int64, optional bool, from string) (out []file, err error) {
	if len(items) == 0 {
		for name, content := range data {
			out = append(out, file{path: name, data: content, mode: mode})
		}
		return out, nil
	}
	for _, item := range items {
		content, ok := data[item.Key]
		if !ok && optional {
			continue
		}
		if !ok {
			return nil, fmt.Errorf("%s has no key %q", from, item.Key)
		}
		f := file{path: item.Path, data: content, mode: mode}
		if item.Mode != nil {
			f.mode = int64(*item.Mode)
		}
		out = append(out, f)
	}
	return out, nil
}

func (t *translation) configFiles(ref *corev1.LocalObjectReference, items []corev1.KeyToPath, optional *bool, mode int64) ([]file, error) {
	m, err := t.around.configMap(ref.Name)
	if missing(err, optional) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data := maps.Clone(m.BinaryData)
	if data == nil {
		data = map[string][]byte{}
	}
	for k, v := range m.Data {
		data[k] = []byte(v)
	}
	return chosen(data, items, mode, optional != nil && *optional, "ConfigMap "+ref.Name)
}

func (t *translation) secretFiles(ref *corev1.LocalObjectReference, items []corev1.KeyToPath, optional *bool, mode int64) ([]file, error) {
	s, err := t.around.secret(ref.Name)
	if missing(err, optional) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return chosen(s.Data, items, mode, optional != nil && *optional, "Secret "+ref.Name)
}

func (t *translation) downwardFiles(items []corev1.DownwardAPIVolumeFile, mode int64) (out []file, err error) {
	for _, item := range items {
		f := file{path: item.Path, mode: mode}
		if item.Mode != nil {
			f.mode = int64(*item.Mode)
		}
		var value string
		switch {
		case item.FieldRef != nil:
			value, err = t.field(item.FieldRef.FieldPath)
			if err == nil && placed(value) {
				err = fmt.Errorf("field %q in a file is not supported: it is known once the Pod has a node", item.FieldRef.FieldPath)
			}
		case item.ResourceFieldRef != nil:
			value, err = t.resourceField(&t.pod.Spec.Containers[0], item.ResourceFieldRef)
			f.placed = placed(value)
		}
		if err != nil {
			return nil, err
		}
		f.data = []byte(value)
		out = append(out, f)
	}
	return out, nil
}

func (t *translation) projected(volume string, p *corev1.ProjectedVolumeSource) (out []file, err error) {
	mode := modeOf(p.DefaultMode)
	for i := range p.Sources {
		var files []file
		switch s := &p.Sources[i]; {
		case s.ConfigMap != nil:
			// The authority is in a ConfigMap of each namespace, which comes a moment after that.
			files, err = t.configFiles(&s.ConfigMap.LocalObjectReference, s.ConfigMap.Items, s.ConfigMap.Optional, mode)
		case s.Secret != nil:
			files, err = t.secretFiles(&s.Secret.LocalObjectReference, s.Secret.Items, s.Secret.Optional, mode)
		case s.DownwardAPI != nil:
			files, err = t.downwardFiles(s.DownwardAPI.Items, mode)
		case s.ServiceAccountToken != nil:
			seconds := int64(3600)
			if s.ServiceAccountToken.ExpirationSeconds != nil {
				seconds = *s.ServiceAccountToken.ExpirationSeconds
			}
			var token string
			token, err = t.around.token(s.ServiceAccountToken.Audience, seconds)
			files = t.private(mode, file{path: s.ServiceAccountToken.Path, data: []byte(token)})
		case s.ClusterTrustBundle != nil:
			var anchors []byte
			anchors, err = t.around.anchors(s.ClusterTrustBundle)
			files = t.private(mode, file{path: s.ClusterTrustBundle.Path, data: anchors})
		case s.PodCertificate != nil:
			files, err = t.certificate(volume, i, s.PodCertificate)
			files = t.private(mode, files...)
		default:
			err = fmt.Errorf("source %d of what is projected is not supported", i)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, files...)
	}
	return out, nil
}

// private sets who may read files that are about the Pod itself: the one user that all its containers run as, or
// the group of its volumes; otherwise whoever its mode lets.
func (t *translation) private(mode int64, files ...file) []file {
	uid, one := t.oneUser()
	sc := t.pod.Spec.SecurityContext
	if one || sc != nil && sc.FSGroup != nil {
		mode = 0o600
	}
	for i := range files {
		files[i].mode = mode
		if one {
			files[i].uid = int(uid)
		}
	}
	return files
}

// oneUser is the user that all containers run as, if it is said and the same.
func (t *translation) oneUser() (uid int64, ok bool) {
	var of *int64
	if sc := t.pod.Spec.SecurityContext; sc != nil {
		of = sc.RunAsUser
	}
	for i, c := range slices.Concat(t.pod.Spec.InitContainers, t.pod.Spec.Containers) {
		user := of
		if c.SecurityContext != nil {
			user = firstOf(c.SecurityContext.RunAsUser, of)
		}
		if user == nil || i > 0 && *user != uid {
			return 0, false
		}
		uid = *user
	}
	return uid, true
}

// certificate makes files of a certificate for the Pod, and of its key.
func (t *translation) certificate(volume string, source int, p *corev1.PodCertificateProjection) (out []file, err error) {
	key, chain, err := t.around.certificate(volume, source, p)
	awaited := errors.Is(err, errAwaited)
	if err != nil && !awaited {
		return nil, err
	}
	for at, content := range map[string][]byte{p.CredentialBundlePath: slices.Concat(key, chain), p.KeyPath: key, p.CertificateChainPath: chain} {
		if at != "" {
			out = append(out, file{path: at, data: content, awaited: awaited})
		}
	}
	return out, nil
}

// mounts makes the container's mounts.
func (t *translation) mounts(at string, c *corev1.Container, task *model.TaskSpec) error {
	if len(c.VolumeDevices) > 0 {
		t.refused.add(at+": volumeDevices", "a raw block volume")
	}
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		v := t.volumes[vm.Name]
		if v == nil {
			return fmt.Errorf("%s: volume %q of mount %s does not exist", at, vm.Name, vm.MountPath)
		}
		m := model.Mount{Target: vm.MountPath, ReadOnly: vm.ReadOnly, SubPath: vm.SubPath}
		if vm.SubPathExpr != "" {
			values := map[string]string{}
			for _, e := range task.Env {
				for k := range len(e) {
					if e[k] == '=' {
						values[e[:k]] = e[k+1:]
						break
					}
				}
			}
			m.SubPath = expand(vm.SubPathExpr, values)
			if !filepath.IsLocal(m.SubPath) {
				t.refused = append(t.refused, fmt.Sprintf("%s: subPathExpr %q becomes %q, which is not within the volume", at, vm.SubPathExpr, m.SubPath))
			}
		}
		if p := vm.MountPropagation; p != nil {
			m.Propagation = map[corev1.MountPropagationMode]string{
				corev1.MountPropagationHostToContainer: "rslave", corev1.MountPropagationBidirectional: "rshared",
			}[*p]
		}
		if err := t.source(at, v, &m); err != nil {
			return err
		}
		task.Mounts = append(task.Mounts, m)
	}
	return nil
}

// source sets what a mount has its content from.
func (t *translation) source(at string, v *corev1.Volume, m *model.Mount) error {
	_, files := t.folders[v.Name]
	switch {
	case files:
		m.Type, m.Source, m.Folder, m.ReadOnly = model.MountSecret, nameOf(t.pod.Name), v.Name, true
	case v.EmptyDir != nil:
		m.Type, m.Share, m.NoCopy, m.Mode, m.GID = model.MountVolume, v.Name, true, 0o777, t.fsGroup()
		switch v.EmptyDir.Medium {
		case corev1.StorageMediumDefault:
		case corev1.StorageMediumMemory:
			m.Memory = true
			if v.EmptyDir.SizeLimit != nil {
				m.SizeBytes = v.EmptyDir.SizeLimit.Value()
			}
		default:
			t.refused.add("volume "+v.Name, "the medium "+string(v.EmptyDir.Medium))
		}
	case v.Image != nil:
		m.Type, m.Source, m.ReadOnly = model.MountImage, v.Image.Reference, true
		t.pull(m.Source, v.Image.PullPolicy)
	case v.HostPath != nil:
		t.hostPath(v.HostPath, m)
	case claimName(t.pod, v) != "":
		return t.claim(v, m)
	default:
		t.refused.add("volume "+v.Name, "a volume of this kind (emptyDir, hostPath, configMap, secret, downwardAPI, projected, image, persistentVolumeClaim and ephemeral are)")
	}
	return nil
}

// hostPath makes a mount of a path of the node.
func (t *translation) hostPath(p *corev1.HostPathVolumeSource, m *model.Mount) {
	m.Type, m.Source = model.MountBind, p.Path
	if p.Type != nil {
		switch *p.Type {
		case corev1.HostPathDirectoryOrCreate:
			m.CreateHostPath = true
		case corev1.HostPathDirectory:
			m.HostKind = "directory"
		case corev1.HostPathFile:
			m.HostKind = "file"
		case corev1.HostPathFileOrCreate:
			m.HostKind = "fileOrCreate"
		case corev1.HostPathSocket:
			m.HostKind = "socket"
		case corev1.HostPathCharDev:
			m.HostKind = "charDevice"
		case corev1.HostPathBlockDev:
			m.HostKind = "blockDevice"
		}
	} else {
		m.CreateHostPath = true // as the container runtimes of kubelets do
	}
}

// fsGroup is the group that may write to the Pod's volumes; "" for none of its own.
func (t *translation) fsGroup() string {
	if sc := t.pod.Spec.SecurityContext; sc != nil && sc.FSGroup != nil {
		return fmt.Sprint(*sc.FSGroup)
	}
	return ""
}
