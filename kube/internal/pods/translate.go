package pods

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

// Names of what belongs to the bridge in the core.
const (
	application = "kubernetes"
	networkID   = "kubernetes-pods"
	// uidLabel is on everything that is made for a Pod.
	uidLabel = "kubernetes.io/pod.uid"
)

// surroundings are what a Pod refers to.
type surroundings struct {
	configMap func(name string) (*corev1.ConfigMap, error)
	secret    func(name string) (*corev1.Secret, error)
	// claim is the PersistentVolume that a claim is bound to.
	claim func(name string) (*corev1.PersistentVolume, error)
	// token returns a token for the Pod's service account.
	token func(audience string, seconds int64) (string, error)
	// anchors are those of bundles of trust, in PEM.
	anchors func(*corev1.ClusterTrustBundleProjection) ([]byte, error)
	// certificate returns a key and a chain of certificates for the Pod, in PEM, for a source of one of its volumes, or errAwaited.
	certificate func(volume string, source int, p *corev1.PodCertificateProjection) (key, chain []byte, err error)
	// services are those whose addresses a container finds in its environment.
	services []*corev1.Service
	// groups are the placement groups whose Pods a selector means.
	groups func(namespaces []string, matches func(labels map[string]string) bool) []string
	// namespaces that a selector means.
	namespaces func(matches func(labels map[string]string) bool) []string
	priority   int
	// owner is the workload that the Pod's is a part of.
	owner string
	// runtime is what a RuntimeClass calls the OCI runtime.
	runtime func(class string) (string, error)
}

// unsupported is what a Pod asks for and does not get.
type unsupported []string

func (u *unsupported) add(field, what string) { *u = append(*u, field+": "+what+" is not supported") }

// nameOf is the name of what a Pod becomes: names in the core are shorter.
func nameOf(pod string) string {
	if len(pod) <= 63 {
		return pod
	}
	sum := sha256.Sum256([]byte(pod))
	return strings.TrimRight(pod[:54], "-.") + "-" + hex.EncodeToString(sum[:4])
}

// translation is a Pod on its way into the core.
type translation struct {
	pod     *corev1.Pod
	around  *surroundings
	refused unsupported
	folders map[string][]file // by volume
	volumes map[string]*corev1.Volume
	claimed []*model.Volume
	bound   []model.Constraint // nodes where its PersistentVolumes are
	pulls   map[string]core.PullPolicy
	runtime string // that its RuntimeClass names
}

// translate makes a deployment of a Pod. A Pod that asks for what is not there is refused as a whole.
func translate(pod *corev1.Pod, around *surroundings) (*core.Deployment, error) {
	t := &translation{pod: pod, around: around, folders: map[string][]file{}, volumes: map[string]*corev1.Volume{}}
	s := &pod.Spec
	w := &model.Workload{
		Meta:  model.Meta{ID: string(pod.UID), Name: nameOf(pod.Name), Labels: labelsOf(pod)},
		Type:  model.SingleWorkload,
		Count: 1, Exclusive: exclusive(pod), OwnerID: around.owner,
		Belongs: &model.Belonging{Platform: "Kubernetes", Tool: "kubectl", Kind: "Pod", Name: pod.Name},
	}
	w.Template = model.Template{
		Separate: true, HostNetwork: s.HostNetwork, HostPIDs: s.HostPID, HostIPC: s.HostIPC,
		Restart: model.RestartPolicy{
			Condition: conditions[s.RestartPolicy], Delay: 10 * time.Second, Factor: 2, MaxDelay: 5 * time.Minute, Window: 10 * time.Minute, AtOnce: true,
		},
		StopGrace: 30 * time.Second, Labels: pod.Labels, Placement: t.placement(),
	}
	if s.HostUsers != nil && !*s.HostUsers {
		w.Template.Sharing = &model.Sharing{OwnUsers: true}
	} else if s.ShareProcessNamespace != nil && *s.ShareProcessNamespace {
		w.Template.Sharing = &model.Sharing{OnePIDs: true}
	}
	if s.TerminationGracePeriodSeconds != nil {
		w.Template.StopGrace = time.Duration(*s.TerminationGracePeriodSeconds) * time.Second
	}
	t.names(&w.Template)
	if s.RuntimeClassName != nil && *s.RuntimeClassName != "" {
		handler, err := around.runtime(*s.RuntimeClassName)
		if err != nil {
			return nil, err
		}
		t.runtime = handler
	}
	if err := t.readVolumes(); err != nil {
		return nil, err
	}
	t.refuse()
	for i := range s.InitContainers {
		task, err := t.task(&s.InitContainers[i], &w.Template)
		if err != nil {
			return nil, err
		}
		task.Sidecar = s.InitContainers[i].RestartPolicy != nil
		w.Template.InitTasks = append(w.Template.InitTasks, task)
	}
	for i := range s.Containers {
		task, err := t.task(&s.Containers[i], &w.Template)
		if err != nil {
			return nil, err
		}
		w.Template.Tasks = append(w.Template.Tasks, task)
	}
	w.Template.Placement.Constraints = append(w.Template.Placement.Constraints, t.bound...)
	d, err := t.deployment(w)
	if err != nil {
		return nil, err
	}
	if len(t.folders) > 0 {
		data, err := archive(t.folders)
		if err != nil {
			return nil, err
		}
		d.Secrets = []core.SecretData{{Meta: model.Meta{ID: filesID(pod), Name: nameOf(pod.Name), Labels: map[string]string{uidLabel: string(pod.UID)}}, Data: data, For: w.ID}}
	}
	return d, nil
}

// deployment hands a workload over, unless something was refused.
func (t *translation) deployment(w *model.Workload) (*core.Deployment, error) {
	d := &core.Deployment{
		Namespace: t.pod.Namespace, Application: application, Source: "kubernetes", KeepOthers: true, Members: true,
		Workloads: []*model.Workload{w}, Volumes: t.claimed, Pulls: t.pulls,
	}
	if err := t.login(d, w); err != nil {
		return nil, err
	}
	if len(t.refused) > 0 {
		slices.Sort(t.refused)
		return nil, fmt.Errorf("%s", strings.Join(slices.Compact(t.refused), "; "))
	}
	return d, nil
}

// filesID is the ID of the secret that holds what is in a Pod's volumes.
func filesID(pod *corev1.Pod) string { return string(pod.UID) + "-files" }

// exclusive reports whether a Pod is known by its name, so that there must never be two.
func exclusive(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.OwnerReferences, func(o metav1.OwnerReference) bool { return o.Kind == "StatefulSet" })
}

var conditions = map[corev1.RestartPolicy]model.RestartCondition{
	"": model.RestartAlways, corev1.RestartPolicyAlways: model.RestartAlways,
	corev1.RestartPolicyOnFailure: model.RestartOnFailure, corev1.RestartPolicyNever: model.RestartNever,
}

// refuse notes what of the Pod itself is not supported.
func (t *translation) refuse() {
	s := &t.pod.Spec
	if s.HostUsers != nil && !*s.HostUsers && s.ShareProcessNamespace != nil && *s.ShareProcessNamespace {
		t.refused.add("spec.shareProcessNamespace", "one process namespace for all containers that have users of their own")
	}
	if len(s.ResourceClaims) > 0 {
		t.refused.add("spec.resourceClaims", "a claim of devices")
	}
	if s.OS != nil && s.OS.Name != corev1.Linux {
		t.refused.add("spec.os", "an operating system other than linux")
	}
}

// names sets host name, resolver and network.
func (t *translation) names(m *model.Template) {
	s := &t.pod.Spec
	if !s.HostNetwork {
		m.Networks = []model.Attachment{{Network: networkID}}
		m.Hostname = s.Hostname
		if m.Hostname == "" {
			m.Hostname = strings.TrimRight(t.pod.Name[:min(len(t.pod.Name), 63)], "-.")
		}
		if s.Subdomain != "" {
			m.Domainname = s.Subdomain + "." + t.pod.Namespace + ".svc." + clusterDomain
			m.Networks[0].Aliases = []string{m.Hostname + "." + s.Subdomain}
		}
	}
	if s.DNSPolicy == corev1.DNSClusterFirst && !s.HostNetwork || s.DNSPolicy == corev1.DNSClusterFirstWithHostNet || s.DNSPolicy == "" {
		m.DNS.Search = []string{t.pod.Namespace + ".svc." + clusterDomain, "svc." + clusterDomain, clusterDomain}
		m.DNS.Options = []string{"ndots:5"}
	}
	if c := s.DNSConfig; c != nil {
		m.DNS.Servers = append(m.DNS.Servers, c.Nameservers...)
		m.DNS.Direct = len(c.Nameservers) > 0 && s.DNSPolicy == corev1.DNSNone
		for _, domain := range c.Searches {
			if !slices.Contains(m.DNS.Search, domain) {
				m.DNS.Search = append(m.DNS.Search, domain)
			}
		}
		for _, o := range c.Options {
			m.DNS.Options = slices.DeleteFunc(m.DNS.Options, func(have string) bool { return have == o.Name || strings.HasPrefix(have, o.Name+":") })
			text := o.Name
			if o.Value != nil {
				text += ":" + *o.Value
			}
			m.DNS.Options = append(m.DNS.Options, text)
		}
	}
	if !s.HostNetwork {
		m.HostsTitle = "Kubernetes-managed hosts file." // by which people and programs know it
	}
	for _, a := range s.HostAliases {
		m.ExtraHosts = append(m.ExtraHosts, model.HostEntry{Name: strings.Join(a.Hostnames, "\t"), Address: a.IP})
	}
	if sc := s.SecurityContext; sc != nil {
		for _, c := range sc.Sysctls {
			if m.Sysctls == nil {
				m.Sysctls = map[string]string{}
			}
			m.Sysctls[c.Name] = c.Value
		}
	}
}

const clusterDomain = "cluster.local"

// task makes a task of a container.
func (t *translation) task(c *corev1.Container, m *model.Template) (task model.TaskSpec, err error) {
	at := "container " + c.Name
	task = model.TaskSpec{
		Name: c.Name, Image: c.Image, WorkingDir: c.WorkingDir, TTY: c.TTY, Stdin: c.Stdin, NoHealth: true,
		LastWords: model.LastWords{Path: c.TerminationMessagePath, FromLog: c.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError},
	}
	if task.LastWords.Path == "" {
		task.LastWords.Path = corev1.TerminationMessagePathDefault
	}
	task.Runtime = t.runtime
	t.pull(c.Image, c.ImagePullPolicy)
	if err := t.environment(c, &task); err != nil {
		return task, fmt.Errorf("%s: %w", at, err)
	}
	t.resources(at, c, &task)
	for _, p := range c.Ports {
		if p.Protocol == corev1.ProtocolSCTP {
			t.refused.add(at+": port "+p.Name, "SCTP")
		}
		if p.HostPort != 0 {
			if ip, err := netip.ParseAddr(p.HostIP); err == nil && !ip.IsUnspecified() && !ip.Unmap().Is4() {
				t.refused.add(at+": port "+p.Name, "hostIP "+p.HostIP+", which is of IPv6")
			}
			m.Ports = append(m.Ports, model.PortRequest{Protocol: protocolOf(p.Protocol), Host: int(p.HostPort), Target: int(p.ContainerPort), HostIP: model.OneHostIP(p.HostIP)})
		}
	}
	task.Startup = t.probe(at+": startupProbe", c, c.StartupProbe)
	task.Liveness = t.probe(at+": livenessProbe", c, c.LivenessProbe)
	task.Readiness = t.probe(at+": readinessProbe", c, c.ReadinessProbe)
	if l := c.Lifecycle; l != nil {
		task.AfterStart = t.hook(at+": lifecycle.postStart", c, l.PostStart)
		task.BeforeStop = t.hook(at+": lifecycle.preStop", c, l.PreStop)
		if l.StopSignal != nil {
			task.StopSignal = string(*l.StopSignal)
		}
	}
	t.security(at, c, &task)
	if err := t.mounts(at, c, &task); err != nil {
		return task, err
	}
	return task, nil
}

func protocolOf(p corev1.Protocol) string {
	if p == "" {
		return "tcp"
	}
	return strings.ToLower(string(p))
}

// portOf is a port by number, or by the name that the container gives it.
func (t *translation) portOf(at string, c *corev1.Container, p intstr.IntOrString) int {
	if p.Type == intstr.Int {
		return p.IntValue()
	}
	for _, have := range c.Ports {
		if have.Name == p.StrVal {
			return int(have.ContainerPort)
		}
	}
	t.refused = append(t.refused, fmt.Sprintf("%s: the container has no port of the name %q", at, p.StrVal))
	return 0
}

func (t *translation) httpProbe(at string, c *corev1.Container, g *corev1.HTTPGetAction) *model.HTTPProbe {
	out := &model.HTTPProbe{Scheme: strings.ToLower(string(g.Scheme)), Port: t.portOf(at, c, g.Port), Path: g.Path, Host: g.Host}
	for _, h := range g.HTTPHeaders {
		out.Headers = append(out.Headers, h.Name+": "+h.Value)
	}
	return out
}

func (t *translation) probe(at string, c *corev1.Container, p *corev1.Probe) *model.Probe {
	if p == nil {
		return nil
	}
	seconds := func(n, otherwise int32) time.Duration {
		if n == 0 {
			n = otherwise
		}
		return time.Duration(n) * time.Second
	}
	out := &model.Probe{
		Interval: seconds(p.PeriodSeconds, 10), Timeout: seconds(p.TimeoutSeconds, 1), Delay: seconds(p.InitialDelaySeconds, 0),
		Retries: max(int(p.FailureThreshold), 1), Passes: max(int(p.SuccessThreshold), 1),
	}
	if p.FailureThreshold == 0 {
		out.Retries = 3
	}
	if p.TerminationGracePeriodSeconds != nil {
		grace := time.Duration(*p.TerminationGracePeriodSeconds) * time.Second
		out.Grace = &grace
	}
	switch {
	case p.Exec != nil:
		out.Exec = p.Exec.Command
	case p.HTTPGet != nil:
		out.HTTP = t.httpProbe(at, c, p.HTTPGet)
	case p.TCPSocket != nil:
		out.TCPPort, out.Host = t.portOf(at, c, p.TCPSocket.Port), p.TCPSocket.Host
	case p.GRPC != nil:
		out.GRPC = &model.GRPCProbe{Port: int(p.GRPC.Port)}
		if p.GRPC.Service != nil {
			out.GRPC.Service = *p.GRPC.Service
		}
	}
	return out
}

func (t *translation) hook(at string, c *corev1.Container, h *corev1.LifecycleHandler) *model.Hook {
	switch {
	case h == nil:
	case h.Exec != nil:
		return &model.Hook{Exec: h.Exec.Command}
	case h.HTTPGet != nil:
		return &model.Hook{HTTP: t.httpProbe(at, c, h.HTTPGet)}
	case h.TCPSocket != nil:
		return &model.Hook{TCPPort: t.portOf(at, c, h.TCPSocket.Port)}
	case h.Sleep != nil:
		return &model.Hook{Sleep: time.Duration(h.Sleep.Seconds) * time.Second}
	}
	return nil
}

func (t *translation) resources(at string, c *corev1.Container, task *model.TaskSpec) {
	read := func(list corev1.ResourceList, limit bool) (out model.Resources) {
		for name, q := range list {
			switch {
			case name == corev1.ResourceCPU:
				out.NanoCPUs = q.MilliValue() * 1e6
			case name == corev1.ResourceMemory:
				out.MemoryBytes = q.Value()
			case name == corev1.ResourceEphemeralStorage:
				if !limit {
					out.DiskBytes = q.Value()
				}
			case strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
				t.refused.add(at+": resources", string(name))
			default:
				if !limit {
					if out.Custom == nil {
						out.Custom = map[string]int64{}
					}
					out.Custom[string(name)] = q.Value()
				}
			}
		}
		return out
	}
	task.Reserve, task.Limit = read(c.Resources.Requests, false), read(c.Resources.Limits, true)
	if task.Reserve.NanoCPUs == 0 {
		task.Tuning = &model.Tuning{CPUShares: fewestShares} // who asks for nothing comes after all who do
	}
}

// fewestShares are the shares of processors that a container has which asks for none.
const fewestShares = 2

func (t *translation) security(at string, c *corev1.Container, task *model.TaskSpec) {
	pod, own := t.pod.Spec.SecurityContext, c.SecurityContext
	if pod == nil {
		pod = &corev1.PodSecurityContext{}
	}
	if own == nil {
		own = &corev1.SecurityContext{}
	}
	user, group, nonRoot := firstOf(own.RunAsUser, pod.RunAsUser), firstOf(own.RunAsGroup, pod.RunAsGroup), firstOf(own.RunAsNonRoot, pod.RunAsNonRoot)
	if user != nil {
		task.User = fmt.Sprint(*user)
	}
	if group != nil {
		if user == nil {
			task.User = "0"
		}
		task.User += ":" + fmt.Sprint(*group)
	}
	task.NonRoot = nonRoot != nil && *nonRoot
	for _, g := range pod.SupplementalGroups {
		task.Groups = append(task.Groups, fmt.Sprint(g))
	}
	if pod.FSGroup != nil {
		task.Groups = append(task.Groups, fmt.Sprint(*pod.FSGroup))
	}
	if own.Capabilities != nil {
		for _, cap := range own.Capabilities.Add {
			task.CapAdd = append(task.CapAdd, string(cap))
		}
		for _, cap := range own.Capabilities.Drop {
			task.CapDrop = append(task.CapDrop, string(cap))
		}
	}
	task.Privileged = own.Privileged != nil && *own.Privileged
	task.ReadOnlyRoot = own.ReadOnlyRootFilesystem != nil && *own.ReadOnlyRootFilesystem
	if own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation {
		task.SecurityOpts = append(task.SecurityOpts, "no-new-privileges")
	}
	if p := firstOf(own.SeccompProfile, pod.SeccompProfile); p != nil {
		switch p.Type {
		case corev1.SeccompProfileTypeUnconfined:
			task.SecurityOpts = append(task.SecurityOpts, "seccomp=unconfined")
		case corev1.SeccompProfileTypeLocalhost:
			t.refused.add(at+": securityContext.seccompProfile", "a profile of the node")
		}
	}
	if p := firstOf(own.AppArmorProfile, pod.AppArmorProfile); p != nil && p.Type == corev1.AppArmorProfileTypeLocalhost {
		t.refused.add(at+": securityContext.appArmorProfile", "a profile of the node")
	}
}

func firstOf[T any](list ...*T) *T {
	for _, p := range list {
		if p != nil {
			return p
		}
	}
	return nil
}
