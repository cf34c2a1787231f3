package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/kube/internal/storage"
	"github.com/tutti-run/tutti/kube/internal/storagetest"
)

// patience is how long something may take that another part of the program does by itself.
const patience = 2 * time.Minute

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// ownAddress returns an address of this host that is none of loopback: an API server is an endpoint of a
// service, and those must not be there.
func ownAddress(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Fatal("this host has no address but that of loopback")
	return ""
}

// TestAnAPIServerOnTheKeySpace runs all of it, once: a process can have one API server only.
func TestAnAPIServerOnTheKeySpace(t *testing.T) {
	address := ownAddress(t)
	free, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	c := &Config{
		Socket: storagetest.Cluster(t), Name: "alpha", Address: address, Port: free.Addr().(*net.TCPAddr).Port,
		Dir: filepath.Join(t.TempDir(), "kube"), ServicePool: "10.212.0.0/16", Domain: "cluster.local",
	}
	free.Close()
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- run(ctx, c, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ran:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("it does not end")
		}
	})
	var config *rest.Config
	var k *kubernetes.Clientset
	eventually(t, "the API is answered", func() error {
		select {
		case err := <-ran:
			ran <- err
			t.Fatalf("it ended: %v", err)
		default:
		}
		var err error
		if config, err = clientcmd.BuildConfigFromFlags("", c.path(AdminKubeconfig)); err != nil {
			return err
		}
		if k, err = kubernetes.NewForConfig(config); err != nil {
			return err
		}
		_, err = k.CoreV1().ServiceAccounts("default").Get(t.Context(), "default", metav1.GetOptions{}) // the controllers make it
		return err
	})

	secret, err := k.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"word": "hush"},
	}, metav1.CreateOptions{})
	if err != nil || string(secret.Data["word"]) != "hush" {
		t.Fatalf("a secret: %v, %v", secret, err)
	}
	keys := native.Dial(c.Socket)
	defer keys.Close()
	stored, err := keys.Key(t.Context(), storage.Root+"/registry/secrets/default/s", 0)
	if err != nil || string(stored.Key.Value[:19]) != "k8s:enc:secretbox:v" {
		t.Errorf("a secret is stored as %.40q, %v", stored.Key.Value, err)
	}

	one := int32(1)
	labels := map[string]string{"app": "web"}
	if _, err := k.AppsV1().Deployments("default").Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web"}}},
		}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	service, err := k.CoreV1().Services("default").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Selector: labels, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil || service.Spec.ClusterIP == "" || service.Spec.Ports[0].NodePort == 0 {
		t.Errorf("a service has no addresses: %v, %v", service, err)
	}
	eventually(t, "a deployment makes pods", func() error {
		pods, err := k.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
		if err == nil && len(pods.Items) != 1 {
			err = errors.New("there are none")
		}
		return err
	})
	tutti := native.Dial(c.Socket)
	defer tutti.Close()
	shown := func() (*native.WorkloadView, error) {
		list, err := tutti.Workloads(t.Context(), "")
		if err != nil {
			return nil, err
		}
		if len(list) != 1 || list[0].FullName() != "k8s/web" {
			return nil, fmt.Errorf("workloads are %d, the first of %+v", len(list), list)
		}
		return &list[0], nil
	}
	eventually(t, "the deployment is a workload, and its pods a part of that", func() error {
		w, err := shown()
		if err == nil && (w.Count != 1 || w.Belongs.Kind != "Deployment") {
			err = fmt.Errorf("it is %+v", w)
		}
		return err
	})
	if err := tutti.Scale(t.Context(), "k8s/web", 2); err != nil {
		t.Fatal(err)
	}
	eventually(t, "scaling it is scaling the deployment", func() error {
		d, err := k.AppsV1().Deployments("default").Get(t.Context(), "web", metav1.GetOptions{})
		if err != nil {
			return err
		}
		w, err := shown()
		if err == nil && (*d.Spec.Replicas != 2 || d.Status.Replicas != 2 || w.Count != 2 || w.Followed.Count != 2) {
			err = fmt.Errorf("the deployment has %d, of %d, and the workload %d", d.Status.Replicas, *d.Spec.Replicas, w.Count)
		}
		return err
	})
	eventually(t, "the API server is an endpoint", func() error {
		slices, err := k.DiscoveryV1().EndpointSlices("default").List(t.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=kubernetes"})
		if err == nil && len(slices.Items) != 1 {
			err = errors.New("there is none")
		}
		return err
	})

	token, err := k.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	nobody := rest.AnonymousClientConfig(config)
	nobody.BearerToken = token.Status.Token
	other := kubernetes.NewForConfigOrDie(nobody)
	if _, err := other.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a service account lists secrets: %v, want forbidden", err)
	}

	// Another server finds the same keys.
	sealing, err := keys.ComponentKey(t.Context(), component)
	if err != nil {
		t.Fatal(err)
	}
	first, err := loadKeys(t.Context(), keys, sealing)
	if err != nil {
		t.Fatal(err)
	}
	second, err := loadKeys(t.Context(), keys, sealing)
	if err != nil || string(first.CA.Cert) != string(second.CA.Cert) || string(first.ServiceAccounts) != string(second.ServiceAccounts) {
		t.Errorf("keys differ from load to load: %v", err)
	}
	if list, err := keys.Keys(t.Context(), core.KeyQuery{Prefix: keysKey}); err != nil || len(list.Keys) != 1 {
		t.Errorf("%d keys, %v", len(list.Keys), err)
	}
}
