package pods

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	certificateslisters "k8s.io/client-go/listers/certificates/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	nodelisters "k8s.io/client-go/listers/node/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
)

// Tutti is what the bridge asks of the cluster; a native.Client is one.
type Tutti interface {
	Watch(ctx context.Context, yield func(core.Seen) error) error
	Deploy(ctx context.Context, d core.Deployment) (core.DeployResult, error)
	RemoveWorkload(ctx context.Context, req native.RemoveWorkload) error
	RemoveService(ctx context.Context, id string) error
	LabelWorkload(ctx context.Context, req native.LabelWorkload) error
	Follow(ctx context.Context, f core.Following) error
	Unfollow(ctx context.Context, id string) error
	BoundWorkload(ctx context.Context, req native.BoundWorkload) error
	Policies(ctx context.Context) ([]model.Policy, error)
	RemovePolicy(ctx context.Context, id string) error
	RemoveVolume(ctx context.Context, id string) error
	LabelNode(ctx context.Context, node string, set map[string]string, remove []string) error
	TaintNode(ctx context.Context, node string, set []model.Taint, remove []string) error
	SetNodeResources(ctx context.Context, r native.NodeResources) error
	SetAvailability(ctx context.Context, node string, a model.Availability) error
	TaskLogs(ctx context.Context, instance, task string, o driver.LogOptions, yield func(driver.LogEntry) error) error
	Usage(ctx context.Context, ref string) ([]core.Usage, error)
	Exec(ctx context.Context, req native.ExecRequest, s driver.Streams) (int, error)
	Attach(ctx context.Context, instance, task string, s driver.Streams) error
	Dial(ctx context.Context, instance string, port int, s driver.Streams) error
}

// Config is what the bridge works with.
type Config struct {
	Rest  *rest.Config // of the API server, as somebody who may do everything
	Tutti Tutti
	// PodSubnet is where Pods have their addresses; "" is 10.244.0.0/16.
	PodSubnet string
	Version   string // of this program
	// Haste is what all that works for the API server goes by.
	Haste *Haste
	// Prepared is called when all objects are known, of whatever the factory has informers by then. Nil is told of nothing.
	Prepared func() error
	Log      *slog.Logger
}

var (
	everything = labels.Everything()
	mergePatch = types.MergePatchType
)

// bridge runs on one server at a time.
type bridge struct {
	Config
	client   kubernetes.Interface
	seen     *mirror
	queue    workqueue.TypedRateLimitingInterface[string]
	slow     workqueue.TypedRateLimitingInterface[string] // Pods whose images may take their time
	pulls    pulls
	events   record.EventRecorder
	pods     corelisters.PodLister
	nodes    corelisters.NodeLister
	services corelisters.ServiceLister
	configs  corelisters.ConfigMapLister
	secrets  corelisters.SecretLister
	spaces   corelisters.NamespaceLister
	slices   discoverylisters.EndpointSliceLister
	claims   corelisters.PersistentVolumeClaimLister
	volumes  corelisters.PersistentVolumeLister
	classes  storagelisters.StorageClassLister
	runtimes nodelisters.RuntimeClassLister
	makers   makers
	bundles  certificateslisters.ClusterTrustBundleLister
	requests certificateslisters.PodCertificateRequestLister

	ingresses      networkinglisters.IngressLister
	ingressClasses networkinglisters.IngressClassLister
	policies       networkinglisters.NetworkPolicyLister

	mu      sync.Mutex
	cordons map[string]bool // by node ID: what both sides agreed on last
	// toldNodes is what the core was told of nodes, by ID, until that is seen of it and stands in the Node.
	toldNodes map[string]*told
	made      map[string]*madePod                   // by UID
	removed   map[string]bool                       // UIDs of what was told to end
	failed    map[string]string                     // UID → why it could not be made
	bound     map[string]time.Time                  // UID → when it was bound to its node, for a moment
	keys      map[string]string                     // UID → key of the Pod
	certs     map[string]map[string]*podCertificate // by UID, and by source

	contents  uint64            // grows with every change of a ConfigMap or a Secret
	scaled    map[string]passed // by UID of what makes Pods
	addresses map[string]string // of services of type LoadBalancer, by namespace/name
	answering map[string]bool   // nodes, by ID, that answer Ingresses
}

// madePod is what is known of a Pod that was handed over.
type madePod struct {
	refresh time.Time // when its tokens are to be renewed
	files   bool      // it has volumes that are followed
	labels  map[string]string
	// resources are those of the containers when it was made.
	resources map[string]corev1.ResourceRequirements
	meta      string // labels and annotations that such a volume has
	// unplaced is set while they have tokens, or wait for certificates, that are to name the Pod's node.
	unplaced bool
}

// Run shows Tutti's nodes, and runs the Pods, of an API server until ctx is done. It works from when leads is closed, and keeps
// up with what the API server has before, by informers of the factory, so that little is left to learn by then.
func Run(ctx context.Context, c Config, factory informers.SharedInformerFactory, leads <-chan struct{}) error {
	client, err := kubernetes.NewForConfig(c.Rest)
	if err != nil {
		return fmt.Errorf("use the API server: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case <-leads:
			return registerMetrics(ctx, c.Rest, client)
		case <-ctx.Done():
			return nil
		}
	})
	g.Go(func() error { return run(ctx, c, client, factory, leads) })
	return g.Wait()
}

func run(ctx context.Context, c Config, client kubernetes.Interface, factory informers.SharedInformerFactory, leads <-chan struct{}) error {
	begun := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b := &bridge{
		Config: c, client: client, seen: newMirror(),
		queue: newQueue(), slow: newQueue(), pulls: pulls{of: map[string]*pull{}},
		cordons: map[string]bool{}, toldNodes: map[string]*told{}, made: map[string]*madePod{}, removed: map[string]bool{}, failed: map[string]string{}, bound: map[string]time.Time{}, keys: map[string]string{}, certs: map[string]map[string]*podCertificate{},
		scaled: map[string]passed{}, addresses: map[string]string{}, answering: map[string]bool{},
	}
	b.list(factory)
	factory.Start(ctx.Done())
	for kind, ok := range factory.WaitForCacheSync(ctx.Done()) {
		if !ok && ctx.Err() == nil {
			return fmt.Errorf("list %s: %w", kind, context.Cause(ctx))
		}
	}
	if ctx.Err() == nil && b.Prepared != nil {
		if err := b.Prepared(); err != nil {
			return fmt.Errorf("say that all is known: %w", err)
		}
	}
	select {
	case <-leads:
	case <-ctx.Done():
		return nil
	}
	broadcaster := record.NewBroadcaster()
	defer broadcaster.Shutdown()
	b.Haste.TakeOver(begun)
	broadcaster.StartRecordingToSink(NewSink(client, b.Haste))
	b.events = broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "tutti"})
	b.followAll(factory)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer b.queue.ShutDown()
	defer b.slow.ShutDown()
	wg.Go(func() { b.watch(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), b.seen.synced) {
		return nil
	}
	if err := errors.Join(b.makeNetwork(ctx), b.makeClass(ctx), b.makeIngressClass(ctx), b.oldPolicies(ctx)); err != nil {
		return err
	}
	for _, p := range b.allPods() {
		b.podChanged(p)
	}
	b.queue.Add("left-overs")
	wg.Go(func() { b.renewLeases(ctx) })
	const workers = 24 // most of the time they wait for the API server
	for range workers {
		wg.Go(func() { b.work(ctx, b.queue, b.sync) })
		wg.Go(func() { b.work(ctx, b.slow, b.makeSlowly) })
	}
	c.Log.Info("pods are run", "nodes", len(b.seen.allNodes()))
	<-ctx.Done()
	b.queue.ShutDown()
	b.slow.ShutDown()
	return nil
}

// list has listers of all that is followed.
func (b *bridge) list(factory informers.SharedInformerFactory) {
	v1, networking, certificates := factory.Core().V1(), factory.Networking().V1(), factory.Certificates().V1()
	apps, batch := factory.Apps().V1(), factory.Batch().V1()
	b.pods, b.nodes, b.services = v1.Pods().Lister(), v1.Nodes().Lister(), v1.Services().Lister()
	b.configs, b.secrets, b.spaces = v1.ConfigMaps().Lister(), v1.Secrets().Lister(), v1.Namespaces().Lister()
	b.slices = factory.Discovery().V1().EndpointSlices().Lister()
	b.claims, b.volumes, b.classes = v1.PersistentVolumeClaims().Lister(), v1.PersistentVolumes().Lister(), factory.Storage().V1().StorageClasses().Lister()
	b.runtimes = factory.Node().V1().RuntimeClasses().Lister()
	b.ingresses, b.ingressClasses, b.policies = networking.Ingresses().Lister(), networking.IngressClasses().Lister(), networking.NetworkPolicies().Lister()
	b.bundles, b.requests = certificates.ClusterTrustBundles().Lister(), certificates.PodCertificateRequests().Lister()
	b.makers = makers{
		apps.Deployments().Lister(), apps.ReplicaSets().Lister(), apps.StatefulSets().Lister(), apps.DaemonSets().Lister(),
		batch.Jobs().Lister(), batch.CronJobs().Lister(),
	}
}

// followAll is told of everything that is there, and of all that changes.
func (b *bridge) followAll(factory informers.SharedInformerFactory) {
	v1, networking, certificates := factory.Core().V1(), factory.Networking().V1(), factory.Certificates().V1()
	b.follow(v1.Pods().Informer(), func(o metav1.Object) { b.podChanged(o) })
	b.follow(v1.Nodes().Informer(), func(o metav1.Object) {
		if node, ok := o.(*corev1.Node); ok {
			b.queue.Add("node/" + strings.TrimPrefix(node.Spec.ProviderID, "tutti://"))
		}
	})
	b.follow(v1.ConfigMaps().Informer(), func(o metav1.Object) {
		if o.GetNamespace() == metav1.NamespaceSystem && o.GetName() == addressesMap {
			b.addressesChanged()
		}
		b.contentChanged(o, ofConfigMap)
	})
	b.follow(v1.Secrets().Informer(), func(o metav1.Object) {
		b.secretChanged(o)
		b.contentChanged(o, ofSecret)
	})
	b.follow(certificates.ClusterTrustBundles().Informer(), func(metav1.Object) { b.bundlesChanged() })
	b.follow(certificates.PodCertificateRequests().Informer(), func(o metav1.Object) { b.requestChanged(o) })
	b.follow(networking.Ingresses().Informer(), func(o metav1.Object) { b.queue.Add("ingress/" + o.GetNamespace() + "/" + o.GetName()) })
	b.follow(networking.IngressClasses().Informer(), func(metav1.Object) { b.ingressesChanged() })
	b.follow(networking.NetworkPolicies().Informer(), func(o metav1.Object) { b.queue.Add("policy/" + o.GetNamespace() + "/" + o.GetName()) })
	b.follow(v1.Namespaces().Informer(), func(metav1.Object) { b.policiesChanged(hasNamespaces) })
	b.follow(v1.Services().Informer(), func(o metav1.Object) { b.queue.Add("service/" + o.GetNamespace() + "/" + o.GetName()) })
	b.follow(factory.Discovery().V1().EndpointSlices().Informer(), func(o metav1.Object) {
		b.queue.Add("service/" + o.GetNamespace() + "/" + o.GetLabels()["kubernetes.io/service-name"])
	})
	b.follow(v1.PersistentVolumeClaims().Informer(), func(o metav1.Object) { b.claimChanged(o.GetNamespace(), o.GetName()) })
	b.follow(v1.PersistentVolumes().Informer(), func(o metav1.Object) { b.queue.Add("volume/" + o.GetName()) })
	b.followMakers(factory)
}

func newQueue() workqueue.TypedRateLimitingInterface[string] {
	return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](200*time.Millisecond, 30*time.Second))
}

func (b *bridge) now() time.Time { return time.Now() }

func (b *bridge) follow(i cache.SharedIndexInformer, changed func(metav1.Object)) {
	handle := func(obj any) {
		if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = gone.Obj
		}
		if o, ok := obj.(metav1.Object); ok {
			changed(o)
		}
	}
	_, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: handle, UpdateFunc: func(_, now any) { handle(now) }, DeleteFunc: handle})
	if err != nil {
		b.Log.Error("an informer takes no handler", "error", err) // only one that was stopped already
	}
}

// watch follows Tutti, anew whenever that breaks.
func (b *bridge) watch(ctx context.Context) {
	for ctx.Err() == nil {
		fresh := map[string]bool{}
		first := true
		err := b.Tutti.Watch(ctx, func(s core.Seen) error {
			if first {
				fresh[s.ID] = true
			}
			if s.Kind == "" {
				first = false
				b.forgetOthers(fresh)
			}
			b.told(b.seen.take(&s))
			if s.Kind == model.KindNode {
				b.nodeSeen(&s)
			}
			return nil
		})
		if ctx.Err() == nil {
			b.Log.Warn("the watch of the cluster ended, and begins anew", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
}

// told has what the core tells of looked at.
func (b *bridge) told(n news) {
	if n.foreign != "" {
		b.queue.Add("mirror/" + n.foreign)
	}
	if n.node != "" {
		b.queue.Add("node/" + n.node)
	}
	if n.workload != "" {
		b.instanceChanged(n.workload)
	}
	if n.followed != nil {
		b.workloadChanged(n.followed)
	}
}

// forgetOthers drops from the mirror what a new watch did not tell of.
func (b *bridge) forgetOthers(fresh map[string]bool) {
	for _, kind := range []model.Kind{model.KindNode, model.KindWorkload, model.KindInstance, model.KindService} {
		b.seen.mu.Lock()
		var gone []string
		collect := func(id string) {
			if !fresh[id] {
				gone = append(gone, id)
			}
		}
		switch kind {
		case model.KindNode:
			for id := range b.seen.nodes {
				collect(id)
			}
		case model.KindInstance:
			for id := range b.seen.instances {
				collect(id)
			}
			for id := range b.seen.foreign {
				collect(id)
			}
		case model.KindWorkload:
			for id := range b.seen.owners {
				collect(id)
			}
		case model.KindService:
			for id := range b.seen.services {
				collect(id)
			}
		}
		b.seen.mu.Unlock()
		for _, id := range gone {
			b.told(b.seen.take(&core.Seen{Kind: kind, ID: id}))
		}
	}
}

func (b *bridge) instanceChanged(workload string) {
	uid := uidOf(workload)
	b.mu.Lock()
	key := b.keys[uid]
	b.mu.Unlock()
	if key == "" {
		key = "gone/" + uid
	}
	b.queue.Add(key)
}

func (b *bridge) podChanged(o metav1.Object) {
	if id := mirrorOf(o); id != "" {
		b.queue.Add("mirror/" + id)
		return
	}
	key := "pod/" + o.GetNamespace() + "/" + o.GetName()
	b.mu.Lock()
	before := b.keys[string(o.GetUID())]
	b.keys[string(o.GetUID())] = key
	b.mu.Unlock()
	b.queue.Add(key)
	b.policiesChanged(hasNames)
	if before != "" {
		b.queue.Add("gone/" + string(o.GetUID()))
	}
}

// contentChanged looks at the Pods again whose volumes follow a ConfigMap or a Secret, and at those of its
// namespace that wait, maybe for one.
func (b *bridge) contentChanged(o metav1.Object, of func(v *corev1.Volume) []string) {
	b.mu.Lock()
	b.contents++
	b.mu.Unlock()
	list, err := b.pods.Pods(o.GetNamespace()).List(everything)
	if err != nil {
		return
	}
	for _, p := range list {
		b.mu.Lock()
		made := b.made[string(p.UID)]
		waits := made == nil
		follows := made != nil && made.files && slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return slices.Contains(of(&v), o.GetName()) })
		if follows {
			made.refresh = time.Time{}
		}
		b.mu.Unlock()
		if waits || follows {
			b.queue.AddAfter("pod/"+p.Namespace+"/"+p.Name, 100*time.Millisecond)
		}
	}
}

// ofConfigMap are the names of the ConfigMaps, and ofSecret those of the Secrets, that a volume shows.
func ofConfigMap(v *corev1.Volume) (names []string) {
	if v.ConfigMap != nil {
		names = append(names, v.ConfigMap.Name)
	}
	if v.Projected != nil {
		for _, s := range v.Projected.Sources {
			if s.ConfigMap != nil {
				names = append(names, s.ConfigMap.Name)
			}
		}
	}
	return names
}

func ofSecret(v *corev1.Volume) (names []string) {
	if v.Secret != nil {
		names = append(names, v.Secret.SecretName)
	}
	if v.Projected != nil {
		for _, s := range v.Projected.Sources {
			if s.Secret != nil {
				names = append(names, s.Secret.Name)
			}
		}
	}
	return names
}

func (b *bridge) allPods() []*corev1.Pod {
	list, err := b.pods.List(everything)
	if err != nil {
		b.Log.Error("pods cannot be listed", "error", err)
	}
	return list
}

// work does what a queue has, until that is shut down.
func (b *bridge) work(ctx context.Context, queue workqueue.TypedRateLimitingInterface[string], do func(ctx context.Context, key string) error) {
	for {
		key, down := queue.Get()
		if down {
			return
		}
		err := do(ctx, key)
		switch {
		case err == nil:
			queue.Forget(key)
		case ctx.Err() == nil:
			var again *later
			if errors.As(err, &again) {
				queue.AddAfter(key, again.after)
				break
			}
			b.Log.Warn("what was changed could not be followed, and is tried again", "what", key, "error", err)
			queue.AddRateLimited(key)
		}
		queue.Done(key)
	}
}

// later asks for another look.
type later struct{ after time.Duration }

func (l *later) Error() string { return "look again after " + l.after.String() }

func (b *bridge) sync(ctx context.Context, key string) error {
	kind, rest, _ := strings.Cut(key, "/")
	namespace, name, _ := strings.Cut(rest, "/")
	switch kind {
	case "pod":
		return b.syncPod(ctx, namespace, name)
	case "mirror":
		return b.syncMirror(ctx, rest)
	case "maker":
		of, name, _ := strings.Cut(name, "/")
		return b.syncMaker(ctx, namespace, of, name)
	case "gone":
		return b.syncGone(ctx, rest)
	case "node":
		return b.syncNode(ctx, rest)
	case "ingress":
		return b.syncIngress(ctx, namespace, name)
	case "policy":
		return b.syncPolicy(ctx, namespace, name)
	case "certificate":
		return b.dropCertificate(ctx, namespace, name)
	case "service":
		return b.syncService(ctx, namespace, name)
	case "claim":
		return b.syncClaim(ctx, namespace, name)
	case "volume":
		return b.syncVolume(ctx, rest)
	case "left-overs":
		for _, s := range b.seen.ourServices() {
			b.queue.Add("service/" + s.Namespace + "/" + s.Labels["kubernetes.io/service"])
		}
		for _, w := range b.seen.allFollowed() {
			b.workloadChanged(w)
		}
		for _, uid := range b.seen.made() {
			b.queue.Add("gone/" + uidOf(uid))
		}
	}
	return nil
}

// makeNetwork makes the network of all Pods.
func (b *bridge) makeNetwork(ctx context.Context) error {
	subnet := b.PodSubnet
	if subnet == "" {
		subnet = "10.244.0.0/16"
	}
	_, err := b.Tutti.Deploy(ctx, core.Deployment{
		Namespace: "kube-system", Application: application, Source: "kubernetes", KeepOthers: true, Members: true,
		Networks: []*model.Network{{Meta: model.Meta{ID: networkID, Name: "pods"}, Subnet: subnet, Shared: true}},
	})
	if err != nil {
		return fmt.Errorf("make the network of the pods: %w", err)
	}
	return nil
}

// token asks for a token of a Pod's service account.
func (b *bridge) token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (string, error) {
	r := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds, BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
	}}
	if audience != "" {
		r.Spec.Audiences = []string{audience}
	}
	name := pod.Spec.ServiceAccountName
	if name == "" {
		name = "default"
	}
	got, err := b.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, name, r, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("get a token for service account %s: %w", name, err)
	}
	return got.Status.Token, nil
}
