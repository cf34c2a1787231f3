package pods

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregator "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

// Where the API server finds the metrics API: a Service that names a host which is nowhere but behind
// Kubelet.ServeConnect.
const (
	metricsService = "tutti-metrics"
	metricsHost    = "metrics.tutti.invalid"
	metricsPath    = "/apis/metrics.k8s.io"
)

// meterEvery is for how long what was measured is told again.
const meterEvery = 5 * time.Second

// meter reads what everything uses, when somebody asks.
type meter struct {
	tutti Tutti
	log   *slog.Logger

	mu   sync.Mutex
	at   time.Time
	last []core.Usage
}

func (m *meter) read(ctx context.Context) ([]core.Usage, time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.at) < meterEvery {
		return m.last, m.at, nil
	}
	list, err := m.tutti.Usage(ctx, "")
	if err != nil {
		return nil, time.Time{}, err
	}
	m.last, m.at = list, time.Now()
	missing, why := 0, ""
	for i := range list {
		if list[i].Error != "" {
			missing, why = missing+1, list[i].Instance+" on "+list[i].Node+": "+list[i].Error
		}
	}
	if missing > 0 {
		m.log.Warn("what some containers use could not be read: metrics are without them", "containers", missing, "one", why)
	}
	return m.last, m.at, nil
}

// meterWindow is over how long processors are measured.
const meterWindow = 500 * time.Millisecond

// metricsRoutes answer metrics.k8s.io/v1beta1, as the API server's aggregator passes it on; that has
// checked who asks.
func (k *Kubelet) metricsRoutes(mux *http.ServeMux) {
	version := metav1.GroupVersionForDiscovery{GroupVersion: "metrics.k8s.io/v1beta1", Version: "v1beta1"}
	group := metav1.APIGroup{
		TypeMeta: metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}, Name: "metrics.k8s.io",
		Versions: []metav1.GroupVersionForDiscovery{version}, PreferredVersion: version,
	}
	constant := func(v any) http.HandlerFunc { return func(w http.ResponseWriter, _ *http.Request) { answer(w, v) } }
	mux.HandleFunc("GET "+metricsPath, constant(group))
	mux.HandleFunc("GET "+metricsPath+"/v1beta1", constant(metav1.APIResourceList{
		TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: version.GroupVersion,
		APIResources: []metav1.APIResource{
			{Name: "nodes", Kind: "NodeMetrics", Verbs: metav1.Verbs{"get", "list"}},
			{Name: "pods", Kind: "PodMetrics", Namespaced: true, Verbs: metav1.Verbs{"get", "list"}},
		},
	}))
	mux.HandleFunc("GET "+metricsPath+"/v1beta1/nodes", k.nodeMetrics)
	mux.HandleFunc("GET "+metricsPath+"/v1beta1/nodes/{name}", k.nodeMetrics)
	mux.HandleFunc("GET "+metricsPath+"/v1beta1/pods", k.podMetrics)
	mux.HandleFunc("GET "+metricsPath+"/v1beta1/namespaces/{namespace}/pods", k.podMetrics)
	mux.HandleFunc("GET "+metricsPath+"/v1beta1/namespaces/{namespace}/pods/{name}", k.podMetrics)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // who asked has gone, or will see that it is cut short
}

// refuse answers with an error as the API server words it.
func refuse(w http.ResponseWriter, err error) {
	status := apierrors.APIStatus(apierrors.NewInternalError(err))
	if known, ok := err.(apierrors.APIStatus); ok {
		status = known
	}
	s := status.Status()
	s.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(s.Code))
	_ = json.NewEncoder(w).Encode(s)
}

// chosenBy returns which objects a request is about.
func chosenBy(r *http.Request) (func(o metav1.Object) bool, error) {
	q := r.URL.Query()
	byLabel, err := labels.Parse(q.Get("labelSelector"))
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	byField, err := fields.ParseSelector(q.Get("fieldSelector"))
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return func(o metav1.Object) bool {
		if name := r.PathValue("name"); name != "" && name != o.GetName() {
			return false
		}
		return byLabel.Matches(labels.Set(o.GetLabels())) && byField.Matches(fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()})
	}, nil
}

// used adds up what tasks use.
func used(list []core.Usage) corev1.ResourceList {
	var cpu, memory int64
	for i := range list {
		cpu += list[i].NanoCPUs
		memory += int64(list[i].Stats.MemoryBytes)
	}
	return corev1.ResourceList{
		corev1.ResourceCPU: *resource.NewScaledQuantity(cpu, resource.Nano), corev1.ResourceMemory: *resource.NewQuantity(memory, resource.BinarySI),
	}
}

// nodeMetrics answers with what the instances of each node use together, whoever made them.
func (k *Kubelet) nodeMetrics(w http.ResponseWriter, r *http.Request) {
	is, err := chosenBy(r)
	if err != nil {
		refuse(w, err)
		return
	}
	nodes, err := k.client.CoreV1().Nodes().List(r.Context(), metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		refuse(w, err)
		return
	}
	usage, at, err := k.meter.read(r.Context())
	if err != nil {
		refuse(w, err)
		return
	}
	out := metricsv1beta1.NodeMetricsList{TypeMeta: metav1.TypeMeta{Kind: "NodeMetricsList", APIVersion: "metrics.k8s.io/v1beta1"}, Items: []metricsv1beta1.NodeMetrics{}}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if !is(n) {
			continue
		}
		var here []core.Usage
		for _, u := range usage {
			if u.Node == n.Name && u.Error == "" {
				here = append(here, u)
			}
		}
		out.Items = append(out.Items, metricsv1beta1.NodeMetrics{
			TypeMeta:   metav1.TypeMeta{Kind: "NodeMetrics", APIVersion: "metrics.k8s.io/v1beta1"},
			ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.Labels, CreationTimestamp: metav1.NewTime(at)},
			Timestamp:  metav1.NewTime(at), Window: metav1.Duration{Duration: meterWindow}, Usage: used(here),
		})
	}
	one(w, r, "nodes", out.Items, out)
}

// podMetrics answers with what the containers of each running Pod use.
func (k *Kubelet) podMetrics(w http.ResponseWriter, r *http.Request) {
	is, err := chosenBy(r)
	if err != nil {
		refuse(w, err)
		return
	}
	pods, err := k.client.CoreV1().Pods(r.PathValue("namespace")).List(r.Context(), metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		refuse(w, err)
		return
	}
	usage, at, err := k.meter.read(r.Context())
	if err != nil {
		refuse(w, err)
		return
	}
	instances, err := instanceIDs(r.Context(), k.tutti)
	if err != nil {
		refuse(w, err)
		return
	}
	byInstance := map[string][]core.Usage{}
	for _, u := range usage {
		if u.Error == "" {
			byInstance[u.ID] = append(byInstance[u.ID], u)
		}
	}
	out := metricsv1beta1.PodMetricsList{TypeMeta: metav1.TypeMeta{Kind: "PodMetricsList", APIVersion: "metrics.k8s.io/v1beta1"}, Items: []metricsv1beta1.PodMetrics{}}
	for i := range pods.Items {
		p := &pods.Items[i]
		tasks := byInstance[cmp.Or(mirrorOf(p), instances[string(p.UID)])]
		if len(tasks) == 0 || !is(p) {
			continue
		}
		m := metricsv1beta1.PodMetrics{
			TypeMeta:   metav1.TypeMeta{Kind: "PodMetrics", APIVersion: "metrics.k8s.io/v1beta1"},
			ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, Labels: p.Labels, CreationTimestamp: metav1.NewTime(at)},
			Timestamp:  metav1.NewTime(at), Window: metav1.Duration{Duration: meterWindow},
		}
		for _, t := range tasks {
			m.Containers = append(m.Containers, metricsv1beta1.ContainerMetrics{Name: containerOf(p, t.Task), Usage: used([]core.Usage{t})})
		}
		slices.SortFunc(m.Containers, func(a, b metricsv1beta1.ContainerMetrics) int { return strings.Compare(a.Name, b.Name) })
		out.Items = append(out.Items, m)
	}
	one(w, r, "pods", out.Items, out)
}

// one answers with the whole list, or the only item where a name was given.
func one[T any](w http.ResponseWriter, r *http.Request, plural string, items []T, list any) {
	switch name := r.PathValue("name"); {
	case name == "":
		answer(w, list)
	case len(items) == 0:
		refuse(w, apierrors.NewNotFound(metricsv1beta1.Resource(plural), name))
	default:
		answer(w, items[0])
	}
}

// instanceIDs are those of the bridge's instances, by the UID of their Pod.
func instanceIDs(ctx context.Context, t Tutti) (map[string]string, error) {
	out := map[string]string{}
	err := eachInstance(ctx, t, func(i *model.Instance) bool {
		if i.Application == application {
			out[i.WorkloadID] = i.ID
		}
		return true
	})
	return out, err
}

// registerMetrics has the API server pass on metrics.k8s.io, unless somebody else answers it already, and
// lets whoever may view see it.
func registerMetrics(ctx context.Context, config *rest.Config, client kubernetes.Interface) error {
	_, err := client.CoreV1().Services(metav1.NamespaceSystem).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: metricsService},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: metricsHost},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make the service of the metrics: %w", err)
	}
	_, err = client.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "system:aggregated-metrics-reader", Labels: map[string]string{
			"rbac.authorization.k8s.io/aggregate-to-view": "true", "rbac.authorization.k8s.io/aggregate-to-edit": "true", "rbac.authorization.k8s.io/aggregate-to-admin": "true",
		}},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{"metrics.k8s.io"}, Resources: []string{"pods", "nodes"}, Verbs: []string{"get", "list", "watch"}}},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make the role for the metrics: %w", err)
	}
	registry, err := aggregator.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("use the API server: %w", err)
	}
	_, err = registry.ApiregistrationV1().APIServices().Create(ctx, &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: "v1beta1.metrics.k8s.io"},
		Spec: apiregistrationv1.APIServiceSpec{
			Group: "metrics.k8s.io", Version: "v1beta1", GroupPriorityMinimum: 100, VersionPriority: 100,
			Service: &apiregistrationv1.ServiceReference{Namespace: metav1.NamespaceSystem, Name: metricsService},
			// The connection does not leave the process: there is nobody to take for somebody else.
			InsecureSkipTLSVerify: true,
		},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("register the metrics: %w", err)
	}
	return nil
}
