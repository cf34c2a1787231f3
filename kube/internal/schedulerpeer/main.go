// Command schedulerpeer lets the scheduler of the Kubernetes project, as a library, decide a cluster
// that the placement benchmarks (bench/) give to Tutti, too. It reads a shape as JSON from standard
// input and writes what came of it to standard output.
//
// Each pod goes through the default profile with all its plugins (filters, scores, the adaptive
// sample of nodes); the result is assumed in the scheduler's cache, as its own loop does. There is no
// API server, no queue and no binding. It runs on one processor and is charged the processor time of
// the whole program while it decides.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/profile"
)

// shape is what is to be placed; see bench/internal/placing.
type shape struct {
	Kind                        string
	Nodes, Workloads, Instances int
	NodeMilliCPUs, NodeMemory   int64
	MilliCPUs, Memory           int64
	Zones, SSDEvery             int
	Patience                    time.Duration
}

type result struct {
	Instances int     `json:"instances"` // decided within the patience
	Seconds   float64 `json:"seconds"`   // processor time
	Version   string  `json:"version"`
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "schedulerpeer:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	runtime.GOMAXPROCS(1)
	klog.LogToStderr(false)
	klog.SetLogger(klog.Logger{})
	var s shape
	if err := json.NewDecoder(os.Stdin).Decode(&s); err != nil {
		return fmt.Errorf("read the shape: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	logger := klog.FromContext(ctx)
	client := fake.NewClientset()
	snapshot := cache.NewEmptySnapshot()
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	sched, err := scheduler.New(ctx, client, informers.NewSharedInformerFactory(client, 0), nil, profile.NewRecorderFactory(broadcaster), scheduler.WithNodeInfoSnapshot(snapshot))
	if err != nil {
		return fmt.Errorf("make a scheduler: %w", err)
	}
	for i := range s.Nodes {
		sched.Cache.AddNode(logger, s.node(i))
	}
	pods := make([]*corev1.Pod, s.Instances)
	for i := range pods {
		pods[i] = s.pod(i)
	}
	fwk := sched.Profiles[corev1.DefaultSchedulerName]
	runtime.GC()
	before, err := processorTime()
	if err != nil {
		return err
	}
	began, decided := time.Now(), 0
	for _, pod := range pods {
		if err := sched.Cache.UpdateSnapshot(logger, snapshot); err != nil {
			return err
		}
		info, err := framework.NewPodInfo(pod)
		if err != nil {
			return err
		}
		got, err := sched.SchedulePod(ctx, fwk, framework.NewCycleState(), &framework.QueuedPodInfo{PodInfo: info})
		if err != nil {
			return fmt.Errorf("place pod %d of %d: %w", decided+1, len(pods), err)
		}
		placed := pod.DeepCopy()
		placed.Spec.NodeName = got.SuggestedHost
		if err := sched.Cache.AssumePod(logger, placed); err != nil {
			return err
		}
		if decided++; time.Since(began) > s.Patience {
			break
		}
	}
	after, err := processorTime()
	if err != nil {
		return err
	}
	if decided == 0 {
		return errors.New("nothing was decided")
	}
	return json.NewEncoder(os.Stdout).Encode(result{decided, (after - before).Seconds(), version()})
}

func (s shape) node(n int) *corev1.Node {
	name := "node-" + strconv.Itoa(n)
	labels := map[string]string{"zone": fmt.Sprintf("z%02d", n%s.Zones), corev1.LabelHostname: name}
	if n%s.SSDEvery == 0 {
		labels["disk"] = "ssd"
	}
	room := corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewMilliQuantity(s.NodeMilliCPUs, resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(s.NodeMemory, resource.BinarySI),
		corev1.ResourcePods:   *resource.NewQuantity(1000, resource.DecimalSI),
	}
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: labels}, Status: corev1.NodeStatus{Capacity: room, Allocatable: room}}
}

func (s shape) pod(n int) *corev1.Pod {
	app := map[string]string{"app": "workload-" + strconv.Itoa(n*s.Workloads/s.Instances)}
	name := "instance-" + strconv.Itoa(n)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name), Labels: app},
		Spec: corev1.PodSpec{SchedulerName: corev1.DefaultSchedulerName, Containers: []corev1.Container{{
			Name: "main", Image: "app",
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU:    *resource.NewMilliQuantity(s.MilliCPUs, resource.DecimalSI),
				corev1.ResourceMemory: *resource.NewQuantity(s.Memory, resource.BinarySI),
			}},
		}}},
	}
	self := &metav1.LabelSelector{MatchLabels: app}
	switch s.Kind {
	case "spread", "evenly":
		when := corev1.ScheduleAnyway
		if s.Kind == "evenly" {
			when = corev1.DoNotSchedule
		}
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: "zone", WhenUnsatisfiable: when, LabelSelector: self}}
	case "constraint":
		p.Spec.NodeSelector = map[string]string{"disk": "ssd"}
	case "antiaffinity":
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{LabelSelector: self, TopologyKey: corev1.LabelHostname}},
		}}
	case "affinity":
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{LabelSelector: self, TopologyKey: "zone"}},
		}}
	}
	return p
}

func processorTime() (time.Duration, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("read the processor time spent: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// version is that of the scheduler.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range info.Deps {
		if m.Path == "k8s.io/kubernetes" {
			return m.Version
		}
	}
	return ""
}
