package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	cliflag "k8s.io/component-base/cli/flag"
	logsapi "k8s.io/component-base/logs/api/v1"
	kubeapiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	serveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"github.com/spf13/pflag"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/kube/internal/storage"
)

// component is the name under which keys are sealed.
const component = "kubernetes"

// gcPercent trades processor time for memory: caches of the API server make up most of it.
const gcPercent = 50

// Main runs what a command line says until ctx is done.
func Main(ctx context.Context, args []string) error {
	c, err := parse(args)
	if err != nil {
		return err
	}
	debug.SetGCPercent(gcPercent)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.Lifeline {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin) // whatever it says, its end counts
			cancel()
		}()
	}
	return run(ctx, c, log)
}

// run runs everything until ctx is done or a part of it fails.
func run(ctx context.Context, c *Config, log *slog.Logger) error {
	if err := errors.Join(os.RemoveAll(c.Dir), os.MkdirAll(c.Dir, 0o700)); err != nil {
		return fmt.Errorf("make the directory: %w", err)
	}
	keys := native.Dial(c.Socket).Linearizable()
	defer keys.Close()
	if err := c.prepare(ctx, keys, log); err != nil {
		return err
	}
	etcd, err := net.Listen("unix", c.path("etcd.sock"))
	if err != nil {
		return fmt.Errorf("listen for the API server: %w", err)
	}
	nodes, err := c.newNodes(log)
	if err != nil {
		return errors.Join(err, etcd.Close())
	}
	listener, err := listenAt(c.Address, "127.0.0.1", c.Port)
	if err != nil {
		return errors.Join(err, etcd.Close(), nodes.listen.Close())
	}
	// What is used outlives what uses it: the controllers end first, then the API server, then the
	// storage, and what answers in place of nodes.
	storageCtx, closeStorage := context.WithCancel(context.WithoutCancel(ctx))
	below, storageCtx := errgroup.WithContext(storageCtx)
	below.Go(func() error { return storage.New(storage.Deps{Keys: keys, Log: log}).Serve(storageCtx, etcd) })
	below.Go(func() error { return nodes.answer(storageCtx) })
	work, ctx := errgroup.WithContext(ctx)
	serverCtx, closeServer := context.WithCancel(storageCtx)
	work.Go(func() error { return ended(ctx, "the API server", c.serve(serverCtx, listener)) })
	work.Go(func() error {
		defer closeServer()
		if err := c.awaitReady(ctx); err != nil {
			return err
		}
		log.Info("the Kubernetes API is answered", "address", c.url())
		lead := func(ctx context.Context, leads <-chan struct{}) error { return c.lead(ctx, nodes.work, leads) }
		return ended(ctx, "what one server does for all", whileLeading(ctx, nodes.tutti, c.Name, lead, log))
	})
	err = work.Wait()
	closeStorage()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, below.Wait())
}

// ended makes the end of a part that should not end an error.
func ended(ctx context.Context, what string, err error) error {
	switch {
	case ctx.Err() != nil:
		return nil
	case err == nil:
		return errors.New(what + " has ended")
	}
	return fmt.Errorf("run %s: %w", what, err)
}

// prepare writes all files, as soon as the server of this host has the keys: one that has just
// started, or is locked, does not.
func (c *Config) prepare(ctx context.Context, keys *native.Client, log *slog.Logger) error {
	said := ""
	for {
		err := func() error {
			sealing, err := keys.ComponentKey(ctx, component)
			if err != nil {
				return err
			}
			shared, err := loadKeys(ctx, keys, sealing)
			if err != nil {
				return err
			}
			return c.writeFiles(shared, sealing)
		}()
		if err == nil || ctx.Err() != nil {
			return err
		}
		if err.Error() != said {
			said = err.Error()
			log.Warn("the API server cannot begin yet", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// settle sets up what both programs have in common: one log, and how they end.
var settle = sync.OnceFunc(func() {
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
})

// serve runs the API server.
func (c *Config) serve(ctx context.Context, l net.Listener) error {
	settle()
	o := serveroptions.NewServerRunOptions()
	named := o.Flags()
	if err := parseFlags("kube-apiserver", &named, c.serverArgs()); err != nil {
		return err
	}
	if err := o.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	if err := logsapi.ValidateAndApply(o.Logs, utilfeature.DefaultFeatureGate); err != nil {
		return err
	}
	o.SecureServing.Listener = l
	completed, err := o.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return utilerrors.NewAggregate(errs)
	}
	return kubeapiserver.Run(ctx, completed)
}

func parseFlags(name string, named *cliflag.NamedFlagSets, args []string) error {
	all := pflag.NewFlagSet(name, pflag.ContinueOnError)
	for _, f := range named.FlagSets {
		all.AddFlagSet(f)
	}
	return all.Parse(args)
}

// awaitReady waits until the API server answers everything.
func (c *Config) awaitReady(ctx context.Context) error {
	config, err := clientcmd.BuildConfigFromFlags("", c.path(AdminKubeconfig))
	if err != nil {
		return err
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url()+"/readyz", nil)
		if err != nil {
			return err
		}
		if answer, err := client.Do(r); err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// listeners accepts at several addresses.
type listeners struct {
	all      []net.Listener
	accepted chan accepted
	done     chan struct{}
	close    func() error
}

type accepted struct {
	conn net.Conn
	err  error
}

// listenAt listens at a port of two addresses; what the first is, the whole is called.
func listenAt(first, second string, port int) (net.Listener, error) {
	l := &listeners{accepted: make(chan accepted), done: make(chan struct{})}
	for _, address := range []string{first, second} {
		one, err := net.Listen("tcp4", net.JoinHostPort(address, strconv.Itoa(port)))
		if err != nil {
			for _, o := range l.all {
				err = errors.Join(err, o.Close())
			}
			return nil, fmt.Errorf("listen for the Kubernetes API: %w", err)
		}
		l.all = append(l.all, one)
		if first == second {
			break
		}
	}
	l.close = sync.OnceValue(func() error {
		close(l.done)
		var err error
		for _, o := range l.all {
			err = errors.Join(err, o.Close())
		}
		return err
	})
	for _, o := range l.all {
		go func() {
			for {
				conn, err := o.Accept()
				select {
				case l.accepted <- accepted{conn, err}:
				case <-l.done:
					if err == nil {
						conn.Close()
					}
					return
				}
			}
		}()
	}
	return l, nil
}

func (l *listeners) Accept() (net.Conn, error) {
	select {
	case a := <-l.accepted:
		return a.conn, a.err
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listeners) Close() error   { return l.close() }
func (l *listeners) Addr() net.Addr { return l.all[0].Addr() }
