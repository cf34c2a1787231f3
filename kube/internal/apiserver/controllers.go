package apiserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/controller-manager/pkg/clientbuilder"
	"k8s.io/controller-manager/pkg/healthz"
	"k8s.io/klog/v2"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/config"
	controlleroptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	serviceaccountcontroller "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"github.com/tutti-run/tutti/kube/internal/pods"
)

// In haste time is what lacks.
const (
	hasteGCPercent = 300
	hasteGCFor     = 6 * time.Second
	hasteBytes     = 128 << 20 // of a server that takes over
)

// newHaste returns what says that there is haste. It begins with more memory, which is not looked for meanwhile.
func newHaste() *pods.Haste {
	relax := time.AfterFunc(hasteGCFor, func() { debug.SetGCPercent(gcPercent) })
	return &pods.Haste{Begun: func() {
		debug.SetGCPercent(hasteGCPercent)
		relax.Reset(hasteGCFor)
	}}
}

// hurried are the controllers that Pods need to be made, to have what they run with, and to be reached.
var hurried = []string{
	names.ReplicaSetController, names.StatefulSetController, names.DaemonSetController, names.JobController, names.ReplicationControllerController,
	names.TaintEvictionController, names.EndpointSliceController, names.PersistentVolumeBinderController, names.EphemeralVolumeController,
	names.ResourceClaimController, names.ServiceAccountController, names.RootCACertificatePublisherController,
}

// lead runs the controllers, and the Pods, until ctx is done. What they are to know is kept up to date from the beginning on; they work
// from when leads is closed.
func (c *Config) lead(ctx context.Context, work pods.Config, leads <-chan struct{}) error {
	o, err := controlleroptions.NewKubeControllerManagerOptions()
	if err != nil {
		return err
	}
	all, disabled, aliases := controllers.KnownControllers(), controllers.ControllersDisabledByDefault(), controllers.ControllerAliases()
	named := o.Flags(all, disabled, aliases)
	if err := parseFlags("kube-controller-manager", &named, c.controllerArgs()); err != nil {
		return err
	}
	o.ParsedFlags = &named
	configured, err := o.Config(ctx, all, disabled, aliases)
	if err != nil {
		return err
	}
	work.Haste = newHaste()
	work.Prepared = func() error { return os.WriteFile(c.path(preparedFile), nil, 0o600) }
	completed := configured.Complete()
	defer completed.EventBroadcaster.Shutdown()
	root := clientbuilder.SimpleControllerClientBuilder{ClientConfig: completed.Kubeconfig}
	nobody := rest.AnonymousClientConfig(completed.Kubeconfig)
	nobody.Wrap(work.Haste.Wrap) // each controller is one of its own
	own := clientbuilder.NewDynamicClientBuilder(nobody, completed.Client.CoreV1(), metav1.NamespaceSystem)
	ctx, cancel := context.WithCancel(ctx)
	made, err := controllers.CreateControllerContext(ctx, completed, root, own)
	if err != nil {
		cancel()
		return err
	}
	defer made.InformerFactory.Shutdown() // which lets go of its name, too
	defer cancel()
	descriptors := controllers.NewControllerDescriptors()
	delete(descriptors, names.ServiceAccountTokenController) // what is described needs what only its own program has: see tokensController
	built, err := controllers.BuildControllers(ctx, made, descriptors, nil, healthz.NewMutableHealthzHandler())
	if err != nil {
		return err
	}
	tokens, err := c.tokensController(ctx, made.InformerFactory, completed.Client)
	if err != nil {
		return err
	}
	made.InformerFactory.Start(ctx.Done())
	made.ObjectOrMetadataInformerFactory.Start(ctx.Done())
	close(made.InformersStarted)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return pods.Run(ctx, work, made.InformerFactory, leads) })
	g.Go(func() error {
		return control(ctx, completed, made, built, work.Haste, func() { tokens.Run(ctx, int(made.ComponentConfig.SAController.ConcurrentSATokenSyncs)) }, leads)
	})
	if err := g.Wait(); !errors.Is(err, errStale) {
		return err
	}
	return nil
}

// freshFor is how long controllers wait for their turn before they are made anew: what they note to look at, by name, grows meanwhile
// with every Pod that came and went.
const freshFor = 6 * time.Hour

var errStale = errors.New("controllers have waited for long")

// control runs the controllers, and that of tokens. It is what kube-controller-manager does, where they are made, and learn of all objects,
// only when it is its turn. In a server that has waited for its turn the others follow those that are hurried.
func control(ctx context.Context, completed *config.CompletedConfig, made controllers.ControllerContext, built []controllers.Controller, haste *pods.Haste, tokens func(), leads <-chan struct{}) error {
	begun := time.Now()
	select {
	case <-leads:
	case <-time.After(freshFor):
		return errStale
	case <-ctx.Done():
		return nil
	}
	haste.TakeOver(begun)
	if haste.Left() > 0 {
		go takeMemory()
	}
	completed.EventBroadcaster.StartStructuredLogging(0)
	completed.EventBroadcaster.StartRecordingToSink(pods.NewSink(completed.Client, haste))
	run := func(work []controllers.Controller) error {
		if !controllers.RunControllers(ctx, made, work, controllers.ControllerStartJitter, completed.ControllerShutdownTimeout) {
			return errors.New("controllers did not end in time")
		}
		return nil
	}
	var first, others []controllers.Controller
	for _, w := range built {
		if slices.Contains(hurried, w.Name()) {
			first = append(first, w)
		} else {
			others = append(others, w)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		tokens()
		return nil
	})
	g.Go(func() error { return run(first) })
	g.Go(func() error {
		select {
		case <-time.After(haste.Left()):
			return run(others)
		case <-ctx.Done():
			return nil
		}
	})
	return g.Wait()
}

// takeMemory has memory at hand that is about to be needed, all at once: a page that is touched for the first time costs much more
// one by one, above all in a virtual machine, and more than to use it again.
func takeMemory() {
	var taken strings.Builder // what it grows by is not zeroed, which would touch it page by page
	taken.Grow(hasteBytes)
	taken.WriteByte(0)
	// Something so large begins with a page. An older kernel gives it page by page.
	_ = unix.Madvise(unsafe.Slice(unsafe.StringData(taken.String()), hasteBytes), unix.MADV_POPULATE_WRITE)
	taken.Reset()
	runtime.GC()
}

// tokensController makes the tokens of Secrets of type kubernetes.io/service-account-token.
func (c *Config) tokensController(ctx context.Context, factory informers.SharedInformerFactory, client kubernetes.Interface) (*serviceaccountcontroller.TokensController, error) {
	key, err := keyutil.PrivateKeyFromFile(c.path("service-accounts.key"))
	if err != nil {
		return nil, fmt.Errorf("read the key of service accounts: %w", err)
	}
	ca, err := os.ReadFile(c.path("ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("read the cluster's certificate: %w", err)
	}
	generator, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, key)
	if err != nil {
		return nil, fmt.Errorf("make tokens of service accounts: %w", err)
	}
	return serviceaccountcontroller.NewTokensController(klog.FromContext(ctx), factory.Core().V1().ServiceAccounts(), factory.Core().V1().Secrets(), client,
		serviceaccountcontroller.TokensControllerOptions{TokenGenerator: generator, RootCA: ca})
}
