package pods

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// fakeTutti places each workload on its node and does what the test says of it.
type fakeTutti struct {
	Tutti
	mu       sync.Mutex
	all      map[string]core.Seen
	watchers map[chan core.Seen]bool
	deployed []core.Deployment
	removed  []string
	emptied  []string // volumes
	refused  []string // why a number of instances was
	refuse   error
}

func (f *fakeTutti) tell(s core.Seen) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.Node == nil && s.Instance == nil && s.Workload == nil {
		delete(f.all, s.ID)
	} else {
		f.all[s.ID] = s
	}
	for w := range f.watchers {
		w <- s
	}
}

func (f *fakeTutti) Watch(ctx context.Context, yield func(core.Seen) error) error {
	in := make(chan core.Seen, 1000)
	f.mu.Lock()
	for _, s := range f.all {
		in <- s
	}
	in <- core.Seen{}
	f.watchers[in] = true
	f.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return nil
		case s := <-in:
			if err := yield(s); err != nil {
				return err
			}
		}
	}
}

func (f *fakeTutti) Deploy(_ context.Context, d core.Deployment) (core.DeployResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil && len(d.Workloads) > 0 {
		return core.DeployResult{}, f.refuse
	}
	f.deployed = append(f.deployed, d)
	return core.DeployResult{}, nil
}

func (f *fakeTutti) RemoveWorkload(_ context.Context, req native.RemoveWorkload) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removed = append(f.removed, req.ID)
	return nil
}

func (f *fakeTutti) Follow(_ context.Context, following core.Following) error {
	w := following.Workload.Clone()
	f.mu.Lock()
	for _, s := range f.all {
		if o := s.Workload; o != nil && o.ID != w.ID && o.Namespace == w.Namespace && o.Application == w.Application && o.Name == w.Name {
			f.mu.Unlock()
			return fault.New(fault.Conflict, "the name %s is taken", w.FullName())
		}
	}
	if old := f.all[w.ID].Workload; old != nil {
		if old.Count != old.Followed.Count && (following.Told == nil || *following.Told != old.Count) {
			w.Count = old.Count
		}
		w.Generation = old.Generation + 1
	}
	if following.Refused != "" {
		f.refused = append(f.refused, following.Refused)
	}
	f.mu.Unlock()
	f.tell(core.Seen{Kind: model.KindWorkload, ID: w.ID, Workload: w})
	return nil
}

func (f *fakeTutti) Unfollow(_ context.Context, id string) error {
	f.tell(core.Seen{Kind: model.KindWorkload, ID: id})
	return nil
}

func (f *fakeTutti) Policies(context.Context) ([]model.Policy, error) { return nil, nil }

func (f *fakeTutti) LabelWorkload(context.Context, native.LabelWorkload) error { return nil }
func (f *fakeTutti) BoundWorkload(context.Context, native.BoundWorkload) error { return nil }

func (f *fakeTutti) RemoveVolume(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.emptied = append(f.emptied, id)
	return nil
}

func (f *fakeTutti) LabelNode(_ context.Context, node string, set map[string]string, remove []string) error {
	f.mu.Lock()
	n := f.all["n"].Node.Clone()
	f.mu.Unlock()
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	maps.Copy(n.Labels, set)
	for _, k := range remove {
		delete(n.Labels, k)
	}
	f.tell(core.Seen{Kind: model.KindNode, ID: "n", Node: n})
	return nil
}

func (f *fakeTutti) TaintNode(_ context.Context, _ string, set []model.Taint, remove []string) error {
	f.mu.Lock()
	n := f.all["n"].Node.Clone()
	f.mu.Unlock()
	n.Taints = slices.DeleteFunc(n.Taints, func(t model.Taint) bool {
		return slices.Contains(remove, t.Key) || slices.ContainsFunc(set, func(s model.Taint) bool { return s.Key == t.Key })
	})
	n.Taints = append(n.Taints, set...)
	f.tell(core.Seen{Kind: model.KindNode, ID: "n", Node: n})
	return nil
}

func (f *fakeTutti) SetNodeResources(_ context.Context, r native.NodeResources) error {
	f.mu.Lock()
	n := f.all["n"].Node.Clone()
	f.mu.Unlock()
	if n.Capacity.Custom == nil {
		n.Capacity.Custom = map[string]int64{}
	}
	maps.Copy(n.Capacity.Custom, r.Counts)
	for _, k := range r.Remove {
		delete(n.Capacity.Custom, k)
	}
	f.tell(core.Seen{Kind: model.KindNode, ID: "n", Node: n})
	return nil
}

func (f *fakeTutti) SetAvailability(context.Context, string, model.Availability) error { return nil }

func (f *fakeTutti) TaskLogs(context.Context, string, string, driver.LogOptions, func(driver.LogEntry) error) error {
	return errors.New("no logs")
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// started runs a bridge between a fake API server and a fake cluster of one node until the test ends.
func started(t *testing.T, objects ...runtime.Object) (*fake.Clientset, *fakeTutti) {
	client := fake.NewClientset(objects...)
	f := &fakeTutti{all: map[string]core.Seen{}, watchers: map[chan core.Seen]bool{}}
	f.tell(core.Seen{Kind: model.KindNode, ID: "n", Node: &model.Node{Meta: model.Meta{ID: "n", Name: "n1"}, HostAddress: "192.0.2.1", Availability: model.Active, Status: model.NodeStatus{State: model.NodeReady}}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	leads := make(chan struct{})
	close(leads)
	go func() {
		ended <- run(ctx, Config{Tutti: f, Haste: &Haste{}, Log: slog.New(slog.DiscardHandler)}, client, informers.NewSharedInformerFactory(client, 0), leads)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the bridge ended with %v", err)
		}
	})
	return client, f
}

func TestTheLifeOfAPod(t *testing.T) {
	client, f := started(t)
	ctx := t.Context()
	eventually(t, "the node is shown", func() bool {
		n, err := client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		return err == nil && len(n.Status.Conditions) > 0
	})
	api := client.CoreV1().Pods("shop")
	pod := podOf(corev1.Container{Name: "app", Image: "nginx:1"})
	if _, err := api.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod is handed over", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.deployed) == 2 && f.deployed[1].Workloads[0].ID == "uid-1" // after the network
	})
	inst := &model.Instance{Meta: model.Meta{ID: "i", Name: "web-0", Namespace: "shop", Application: application}, WorkloadID: "uid-1", NodeID: "n", Desired: model.DesiredRun}
	inst.Status = model.InstanceStatus{State: model.InstanceRunning, Ready: true, Tasks: []model.TaskStatus{{Name: "app", Run: 1, State: "running", Up: true, Ready: true}}}
	f.tell(core.Seen{Kind: model.KindInstance, ID: "i", Instance: inst})
	eventually(t, "the pod is bound", func() bool {
		for _, a := range client.Actions() {
			if a.GetSubresource() == "binding" {
				return true
			}
		}
		return false
	})
	again := inst.Clone()
	again.Status.Tasks[0].Run = 2
	f.tell(core.Seen{Kind: model.KindInstance, ID: "i", Instance: again}) // before it is seen that the pod was bound
	got, err := api.Get(ctx, "web-0", metav1.GetOptions{})                // the fake API server does not act on a binding
	if err != nil {
		t.Fatal(err)
	}
	got.Spec.NodeName = "n1"
	if _, err := api.Update(ctx, got, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod is ready", func() bool {
		p, err := api.Get(ctx, "web-0", metav1.GetOptions{})
		return err == nil && p.Status.Phase == corev1.PodRunning && conditionIs(&p.Status, corev1.PodReady)
	})
	got, err = api.Get(ctx, "web-0", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	now := metav1.Now()
	got.DeletionTimestamp = &now
	if _, err := api.Update(ctx, got, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the workload is removed", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.removed) == 1 && f.removed[0] == "uid-1"
	})
	f.tell(core.Seen{Kind: model.KindInstance, ID: "i"})
	eventually(t, "the pod is deleted", func() bool {
		_, err := api.Get(ctx, "web-0", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	bindings := 0
	for _, a := range client.Actions() {
		if a.GetSubresource() == "binding" {
			bindings++
		}
	}
	if bindings != 1 {
		t.Errorf("the pod was bound %d times", bindings)
	}
}

// What a lost node ran is removed after what is made in its place.
func TestALostNodesPodsAreDeletedBeforeTheyAreRemoved(t *testing.T) {
	client, f := started(t)
	ctx := t.Context()
	api := client.CoreV1().Pods("shop")
	pod := podOf(corev1.Container{Name: "app", Image: "nginx:1"})
	yes := true
	pod.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web", UID: "rs", Controller: &yes}}
	pod.Spec.NodeName = "n1"
	if _, err := api.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	inst := &model.Instance{Meta: model.Meta{ID: "i", Name: "web-0", Namespace: "shop", Application: application}, WorkloadID: "uid-1", NodeID: "n", Desired: model.DesiredRun}
	inst.Status = model.InstanceStatus{State: model.InstanceRunning, Ready: true, Tasks: []model.TaskStatus{{Name: "app", Run: 1, State: "running", Up: true, Ready: true}}}
	f.tell(core.Seen{Kind: model.KindInstance, ID: "i", Instance: inst})
	eventually(t, "the pod is ready", func() bool {
		p, err := api.Get(ctx, "web-0", metav1.GetOptions{})
		return err == nil && conditionIs(&p.Status, corev1.PodReady)
	})
	f.tell(core.Seen{Kind: model.KindNode, ID: "n", Node: &model.Node{Meta: model.Meta{ID: "n", Name: "n1"}, HostAddress: "192.0.2.1", Availability: model.Active, Status: model.NodeStatus{State: model.NodeDown}}})
	lost := inst.Clone()
	lost.Status.State, lost.Status.Ready = model.InstanceLost, false
	f.tell(core.Seen{Kind: model.KindInstance, ID: "i", Instance: lost})
	removed := func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.Contains(f.removed, "uid-1")
	}
	eventually(t, "the pod is deleted", func() bool {
		_, err := api.Get(ctx, "web-0", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	if removed() {
		t.Error("the workload is removed in haste")
	}
	eventually(t, "the workload is removed", removed)
}

func TestLabelsAndTaintsOfEitherSide(t *testing.T) {
	client, f := started(t)
	ctx := t.Context()
	nodes := client.CoreV1().Nodes()
	eventually(t, "the node is shown", func() bool {
		n, err := nodes.Get(ctx, "n1", metav1.GetOptions{})
		return err == nil && n.Annotations[agreedOn] != ""
	})
	if err := f.LabelNode(ctx, "n1", map[string]string{"zone": "a"}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a label of the core is shown", func() bool {
		n, err := nodes.Get(ctx, "n1", metav1.GetOptions{})
		return err == nil && n.Labels["zone"] == "a" && n.Labels[corev1.LabelHostname] == "n1"
	})
	n, err := nodes.Get(ctx, "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Labels["disk"] = "ssd"
	delete(n.Labels, "zone")
	n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "gpu", Value: "yes", Effect: corev1.TaintEffectNoSchedule})
	if _, err := nodes.Update(ctx, n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the core's node takes them over", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		n := f.all["n"].Node
		return maps.Equal(n.Labels, map[string]string{"disk": "ssd"}) && slices.Equal(n.Taints, []model.Taint{{Key: "gpu", Value: "yes", Effect: "noSchedule"}})
	})
	eventually(t, "a taint that the core has no more goes", func() bool {
		// As long as the bridge has not seen that both agreed on the taint, it takes it for one that was just added.
		if err := f.TaintNode(ctx, "n1", nil, []string{"gpu"}); err != nil {
			t.Fatal(err)
		}
		n, err := nodes.Get(ctx, "n1", metav1.GetOptions{})
		return err == nil && len(n.Spec.Taints) == 0 && n.Labels["disk"] == "ssd"
	})
}
