package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/kube/internal/pods"
)

// egress has the API server reach nodes through this process: see pods.Kubelet.
const egress = `apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    proxyProtocol: HTTPConnect
    transport:
      uds:
        udsName: %s
`

// It is looked whether this host's server leads every leadEvery, and every leaderlessEvery while it knows of none that does; one
// that does not answer, for leadPatience at most, is taken to lead on.
const leadEvery, leaderlessEvery, leadPatience = 100 * time.Millisecond, 25 * time.Millisecond, 3 * time.Second

// nodes has what is needed for two parts: for what answers the API server in place of nodes, on every server, and for what runs
// the Pods, on the one that leads.
type nodes struct {
	work    pods.Config
	kubelet *pods.Kubelet
	listen  net.Listener
	tutti   *native.Client
}

// newNodes is there before the API server is, which looks for the metrics as soon as it begins and would
// tell everybody that there are none.
func (c *Config) newNodes(log *slog.Logger) (*nodes, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.path(AdminKubeconfig))
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 1000, 2000
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
	n := &nodes{tutti: native.Dial(c.Socket)}
	n.work = pods.Config{Rest: config, Tutti: n.tutti, Log: log}
	if n.kubelet, err = pods.NewKubelet(n.work); err == nil {
		n.listen, err = net.Listen("unix", c.path("nodes.sock"))
	}
	if err != nil {
		n.tutti.Close()
		return nil, fmt.Errorf("prepare for what is asked of nodes: %w", err)
	}
	return n, nil
}

// answer answers what the API server asks of nodes until ctx is done.
func (n *nodes) answer(ctx context.Context) error {
	defer n.tutti.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.kubelet.Serve(ctx) })
	g.Go(func() error { return n.kubelet.ServeConnect(ctx, n.listen) })
	return g.Wait()
}

// whileLeading runs something while the server of a host leads its cluster. It is begun before, to make ready; leads is closed
// when it is to work.
func whileLeading(ctx context.Context, tutti *native.Client, name string, run func(ctx context.Context, leads <-chan struct{}) error, log *slog.Logger) error {
	hasty := tutti.Hasty()
	var led time.Time // when it led last
	next := leadEvery
	leads := func() bool {
		p, err := hasty.Ping(ctx)
		next = leadEvery
		switch {
		case err != nil:
			return time.Since(led) < leadPatience
		case p.Leader == "":
			next = leaderlessEvery
		case p.Leader == name:
			led = time.Now()
			return true
		}
		return false
	}
	for ctx.Err() == nil {
		turn, end := context.WithCancel(ctx)
		work, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- run(turn, work) }()
		working := false
		for turn.Err() == nil {
			if now := leads(); now && !working {
				working = true
				close(work)
			} else if working && !now {
				end()
			}
			select {
			case err := <-done:
				if err != nil && ctx.Err() == nil {
					log.Error("a part that is this server's while it leads ended, and begins anew soon", "error", err)
				}
				end()
				done <- nil
			case <-time.After(next):
			case <-ctx.Done():
				end()
			}
		}
		end()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) && ctx.Err() == nil {
			log.Error("a part that was this server's while it led ended", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(leadEvery):
		}
	}
	return nil
}
