package pods

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tutti-run/tutti/internal/model"
)

func ptr[T any](v T) *T { return &v }

func podOf(containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-0", UID: "uid-1", Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: containers, DNSPolicy: corev1.DNSClusterFirst, RestartPolicy: corev1.RestartPolicyAlways},
	}
}

func around() *surroundings {
	return &surroundings{
		configMap: func(name string) (*corev1.ConfigMap, error) {
			if name != "settings" {
				return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
			}
			return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"level": "high", "file": "content"}}, nil
		},
		secret: func(name string) (*corev1.Secret, error) {
			return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{"password": []byte("hunter2")}}, nil
		},
		token: func(audience string, seconds int64) (string, error) {
			return fmt.Sprintf("token %s %d", audience, seconds), nil
		},
		groups:     func([]string, func(map[string]string) bool) []string { return []string{"shop/other"} },
		namespaces: func(func(map[string]string) bool) []string { return nil },
		runtime: func(class string) (string, error) {
			if class != "sandboxed" {
				return "", apierrors.NewNotFound(schema.GroupResource{Resource: "runtimeclasses"}, class)
			}
			return "runsc", nil
		},
	}
}

func TestAContainerBecomesATask(t *testing.T) {
	pod := podOf(corev1.Container{
		Name: "app", Image: "nginx:1", Command: []string{"run", "--at=$(POD_IP):80"}, Args: []string{"$(LEVEL)", "$$(LEVEL)", "$(NONE)"},
		Env: []corev1.EnvVar{
			{Name: "A", Value: "1"}, {Name: "B", Value: "$(A)2"},
			{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
			{Name: "APP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['app']"}}},
			{Name: "LEVEL", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}, Key: "level"}}},
			{Name: "PASSWORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "password"}}},
			{Name: "GONE", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Key: "x", Optional: ptr(true)}}},
			{Name: "CORES", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}}},
		},
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("64Mi"), "example.org/gpu": resource.MustParse("2")},
			Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m")},
		},
		Ports:          []corev1.ContainerPort{{Name: "http", ContainerPort: 80, HostPort: 8080}},
		ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("http")}}, PeriodSeconds: 3, FailureThreshold: 2},
		Lifecycle:      &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 3}}},
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: ptr(int64(1000)), RunAsGroup: ptr(int64(2000)), RunAsNonRoot: ptr(true), AllowPrivilegeEscalation: ptr(false),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, ReadOnlyRootFilesystem: ptr(true),
		},
	})
	pod.Spec.Subdomain, pod.Spec.TerminationGracePeriodSeconds, pod.Spec.HostUsers = "web", ptr(int64(5)), ptr(false)
	d, err := translate(pod, around())
	if err != nil {
		t.Fatal(err)
	}
	w := d.Workloads[0]
	if w.ID != "uid-1" || w.Type != model.SingleWorkload || w.Count != 1 || w.Exclusive || !w.Template.Separate || w.Template.StopGrace != 5*time.Second {
		t.Errorf("the workload is %+v", w)
	}
	if w.Template.Domainname != "web.shop.svc.cluster.local" || w.Template.Hostname != "web-0" || w.Template.DNS.Search[0] != "shop.svc.cluster.local" {
		t.Errorf("its names are %q, %q, %v", w.Template.Hostname, w.Template.Domainname, w.Template.DNS)
	}
	if !w.Template.Shared().OwnUsers {
		t.Error("it has no users of its own")
	}
	task := w.Template.Tasks[0]
	if want := []string{"A=1", "B=12", "APP=web", "LEVEL=high", "PASSWORD=hunter2", "CORES=2"}; !slices.Equal(task.Env, want) {
		t.Errorf("variables are %q, want %q", task.Env, want)
	}
	if !slices.Equal(task.PlacedEnv, []string{"POD_IP={address}"}) || !task.PlacedArgs || task.Entrypoint[1] != "--at={address}:80" {
		t.Errorf("what is known later is %q in %q", task.PlacedEnv, task.Entrypoint)
	}
	if want := []string{"high", "$(LEVEL)", "$(NONE)"}; !slices.Equal(task.Args, want) {
		t.Errorf("arguments are %q, want %q", task.Args, want)
	}
	if task.Reserve.NanoCPUs != 250e6 || task.Reserve.MemoryBytes != 64<<20 || task.Limit.NanoCPUs != 1500e6 || task.Reserve.Custom["example.org/gpu"] != 2 {
		t.Errorf("resources are %+v and %+v", task.Reserve, task.Limit)
	}
	if p := task.Readiness; p == nil || p.HTTP.Port != 80 || p.Interval != 3*time.Second || p.Retries != 2 || task.Liveness != nil || !task.NoHealth {
		t.Errorf("the probe is %+v", p)
	}
	if task.BeforeStop.Sleep != 3*time.Second || task.User != "1000:2000" || !task.NonRoot || !task.ReadOnlyRoot || !slices.Contains(task.SecurityOpts, "no-new-privileges") {
		t.Errorf("the task is %+v", task)
	}
	if w.Template.Ports[0] != (model.PortRequest{Protocol: "tcp", Host: 8080, Target: 80}) {
		t.Errorf("ports are %+v", w.Template.Ports)
	}
}

func TestVolumesBecomeMountsAndFolders(t *testing.T) {
	pod := podOf(corev1.Container{Name: "app", Image: "x", VolumeMounts: []corev1.VolumeMount{
		{Name: "scratch", MountPath: "/tmp"}, {Name: "conf", MountPath: "/etc/conf"}, {Name: "conf", MountPath: "/etc/one", SubPath: "renamed"},
		{Name: "all", MountPath: "/var/run/secrets"}, {Name: "host", MountPath: "/host", ReadOnly: true},
	}})
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(3000))}
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: ptr(resource.MustParse("1Mi"))}}},
		{Name: "conf", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}, Items: []corev1.KeyToPath{{Key: "file", Path: "renamed", Mode: ptr(int32(0o600))}},
		}}},
		{Name: "all", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: ptr(int64(600))}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}},
		}}}},
		{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/var/log", Type: ptr(corev1.HostPathDirectory)}}},
	}
	d, err := translate(pod, around())
	if err != nil {
		t.Fatal(err)
	}
	m := d.Workloads[0].Template.Tasks[0].Mounts
	if m[0].Type != model.MountVolume || m[0].Share != "scratch" || !m[0].Memory || m[0].SizeBytes != 1<<20 || m[0].GID != "3000" {
		t.Errorf("emptyDir is %+v", m[0])
	}
	if m[1].Folder != "conf" || m[1].Source != "web-0" || m[2].SubPath != "renamed" || m[3].Folder != "all" {
		t.Errorf("volumes of files are %+v", m[1:4])
	}
	if m[4].Type != model.MountBind || m[4].HostKind != "directory" || !m[4].ReadOnly {
		t.Errorf("hostPath is %+v", m[4])
	}
	if len(d.Secrets) != 1 || d.Secrets[0].ID != "uid-1-files" {
		t.Fatalf("secrets are %+v", d.Secrets)
	}
	got := map[string]string{}
	r := tar.NewReader(bytes.NewReader(d.Secrets[0].Data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(r)
		if h.Typeflag != tar.TypeDir {
			got[h.Name] = string(data)
			if h.Gid != 3000 {
				t.Errorf("%s belongs to group %d", h.Name, h.Gid)
			}
		}
	}
	want := map[string]string{"conf/renamed": "content", "all/token": "token  600", "all/labels": `app="web"`}
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s holds %q, want %q", name, got[name], text)
		}
	}
	if len(got) != len(want) {
		t.Errorf("files are %v", got)
	}
}

func TestWhatIsNotSupportedIsRefusedByName(t *testing.T) {
	pod := podOf(corev1.Container{Name: "app", Image: "x", VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}})
	pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}}}
	pod.Spec.ShareProcessNamespace, pod.Spec.HostUsers = ptr(true), ptr(false)
	_, err := translate(pod, around())
	for _, want := range []string{"spec.shareProcessNamespace", "volume v"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("it is refused with %v, which lacks %s", err, want)
		}
	}
}

func TestPlacement(t *testing.T) {
	pod := podOf(corev1.Container{Name: "app", Image: "x"})
	pod.OwnerReferences = []metav1.OwnerReference{{Kind: "StatefulSet", Controller: ptr(true)}}
	self := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	pod.Spec.NodeSelector = map[string]string{"disk": "ssd", corev1.LabelHostname: "n1"}
	pod.Spec.Affinity = &corev1.Affinity{
		NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
			{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpNotIn, Values: []string{"a", "b"}}}},
		}}},
		PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{LabelSelector: self, TopologyKey: corev1.LabelHostname}}},
	}
	pod.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 2, TopologyKey: "zone", WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: self}}
	pod.Spec.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}}
	d, err := translate(pod, around())
	if err != nil {
		t.Fatal(err)
	}
	p := d.Workloads[0].Template.Placement
	own := groupOf("shop", pod.Labels)
	if !d.Workloads[0].Exclusive || p.Group != own {
		t.Errorf("group is %q, want %q", p.Group, own)
	}
	if len(p.Constraints) != 3 || p.Constraints[0].Key != "node.labels.disk" || p.Constraints[1].Key != "node.name" || p.Constraints[2].Operator != model.NotIn {
		t.Errorf("constraints are %+v", p.Constraints)
	}
	if len(p.Apart) != 1 || !slices.Contains(p.Apart[0].Groups, own) || !slices.Contains(p.Apart[0].Groups, "shop/other") || p.Apart[0].Key != "node.name" {
		t.Errorf("apart from %+v", p.Apart)
	}
	if len(p.Skew) != 1 || p.Skew[0].Max != 2 || p.Skew[0].Key != "node.labels.zone" || !slices.Contains(p.Skew[0].Groups, own) {
		t.Errorf("spread is %+v", p.Skew)
	}
	if len(p.Tolerations) != 1 || p.Tolerations[0] != (model.Toleration{Key: "gpu", Effect: "noSchedule"}) {
		t.Errorf("tolerations are %+v", p.Tolerations)
	}
}

func TestStatus(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	n := &model.Node{Meta: model.Meta{ID: "n", Name: "n1"}, HostAddress: "192.0.2.1"}
	pod := podOf(corev1.Container{Name: "app", Image: "nginx:1"})
	pod.Spec.InitContainers = []corev1.Container{{Name: "first", Image: "x"}}
	i := &model.Instance{NodeID: "n", Desired: model.DesiredRun, Addresses: []model.Address{{IP: "10.244.0.7"}}}
	ready := func(st *corev1.PodStatus) bool { return conditionIs(st, corev1.PodReady) }

	i.Status = model.InstanceStatus{State: model.InstanceStarting, Tasks: []model.TaskStatus{{Name: "first", Run: 1, State: "running"}}}
	st := statusOf(pod, i, n, now)
	if st.Phase != corev1.PodPending || st.ContainerStatuses[0].State.Waiting.Reason != "PodInitializing" || conditionIs(&st, corev1.PodInitialized) || st.HostIP != "192.0.2.1" {
		t.Errorf("while it begins the status is %+v", st)
	}
	i.Status = model.InstanceStatus{State: model.InstanceRunning, Ready: true, Tasks: []model.TaskStatus{
		{Name: "first", Run: 1, State: "exited"}, {Name: "app", Run: 1, State: "running", Up: true, Ready: true, Image: "sha256:abc", Started: now},
	}}
	st = statusOf(pod, i, n, now)
	if c := st.ContainerStatuses[0]; st.Phase != corev1.PodRunning || !ready(&st) || !c.Ready || c.ImageID != "nginx@sha256:abc" || st.PodIP != "10.244.0.7" || !conditionIs(&st, corev1.PodInitialized) {
		t.Errorf("while it runs the status is %+v", st)
	}
	i.Status.Ready = false
	i.Status.Tasks[1] = model.TaskStatus{Name: "app", Run: 2, State: "exited", ExitCode: 3, Restarts: 1, Waiting: "exited with code 3; restarting in 10s", Message: "last words", Before: &model.TaskEnd{Run: 1, ExitCode: 2}}
	st = statusOf(pod, i, n, now)
	if c := st.ContainerStatuses[0]; c.State.Waiting.Reason != "CrashLoopBackOff" || c.RestartCount != 1 || c.LastTerminationState.Terminated.ExitCode != 3 ||
		c.LastTerminationState.Terminated.Message != "last words" || ready(&st) || st.Phase != corev1.PodRunning {
		t.Errorf("while it waits the status is %+v", st.ContainerStatuses[0])
	}
	i.Status.State, i.Status.Tasks[1] = model.InstanceFailed, model.TaskStatus{Name: "app", Run: 1, State: "exited", ExitCode: 137, OOM: true}
	st = statusOf(pod, i, n, now)
	if c := st.ContainerStatuses[0]; st.Phase != corev1.PodFailed || c.State.Terminated.Reason != "OOMKilled" {
		t.Errorf("when it failed the status is %+v", st)
	}
	i.Status.State, i.Status.Tasks[1] = model.InstanceCompleted, model.TaskStatus{Name: "app", Run: 1, State: "exited"}
	if st = statusOf(pod, i, n, now); st.Phase != corev1.PodSucceeded || ready(&st) {
		t.Errorf("when it completed the status is %+v", st)
	}
}

// TestAStatusThatIsKeptIsNotToldAgain holds that what the API makes of a status, which has whole seconds only, is what comes of the
// same instance later.
func TestAStatusThatIsKeptIsNotToldAgain(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)
	end := model.TaskEnd{Started: now, Finished: now.Add(300 * time.Millisecond), ExitCode: 1}
	inst := &model.Instance{Addresses: []model.Address{{IP: "10.244.0.3"}}}
	inst.Status = model.InstanceStatus{
		State: model.InstanceRunning, Ready: true, Started: now,
		Tasks: []model.TaskStatus{{Name: "web", State: "running", Up: true, Ready: true, Run: 2, Restarts: 1, Started: now.Add(time.Second), Before: &end}},
	}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "shop/web:v1"}}}}
	text, err := json.Marshal(statusOf(pod, inst, nil, now))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &pod.Status); err != nil {
		t.Fatal(err)
	}
	if again := statusOf(pod, inst, nil, now.Add(time.Minute)); !equality.Semantic.DeepEqual(again, pod.Status) {
		t.Errorf("it was\n%+v\nand is\n%+v", pod.Status, again)
	}
}
