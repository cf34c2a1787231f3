package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"
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

// leadEvery is how often it is looked whether this host's server leads; one that does not answer, for
// leadPatience at most, is taken to lead on.
const leadEvery, leadPatience = 250 * time.Millisecond, 3 * time.Second

// nodes answers what the API server asks of nodes, and runs the Pods while this host's server leads the
// cluster.
func (c *Config) nodes(ctx context.Context, log *slog.Logger) error {
	config, err := clientcmd.BuildConfigFromFlags("", c.path(AdminKubeconfig))
	if err != nil {
		return err
	}
	config.QPS, config.Burst = 1000, 2000
	tutti := native.Dial(c.Socket)
	defer tutti.Close()
	work := pods.Config{Rest: config, Tutti: tutti, Log: log}
	kubelet, err := pods.NewKubelet(work)
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", c.path("nodes.sock"))
	if err != nil {
		return fmt.Errorf("listen for what is asked of nodes: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return kubelet.Serve(ctx) })
	g.Go(func() error { return kubelet.ServeConnect(ctx, l) })
	g.Go(func() error {
		return whileLeading(ctx, tutti, c.Name, func(ctx context.Context) error { return pods.Run(ctx, work) }, log)
	})
	return g.Wait()
}

// whileLeading runs something while the server of a host leads its cluster.
func whileLeading(ctx context.Context, tutti *native.Client, name string, run func(context.Context) error, log *slog.Logger) error {
	hasty := tutti.Hasty()
	var led time.Time // when it led last
	leads := func() bool {
		st, err := hasty.Status(ctx)
		if err == nil && st.Leader == name {
			led = time.Now()
		}
		return err == nil && st.Leader == name || err != nil && time.Since(led) < leadPatience
	}
	tick := time.NewTicker(leadEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		if leads() {
			turn, end := context.WithCancel(ctx)
			done := make(chan error, 1)
			go func() { done <- run(turn) }()
			for turn.Err() == nil {
				select {
				case err := <-done:
					end()
					if err != nil && ctx.Err() == nil {
						log.Error("a part that is this server's while it leads ended, and begins anew soon", "error", err)
					}
					done <- nil
				case <-tick.C:
					if !leads() {
						end()
					}
				case <-ctx.Done():
					end()
				}
			}
			end()
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) && ctx.Err() == nil {
				log.Error("a part that was this server's while it led ended", "error", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}
