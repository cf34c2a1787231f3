// Package kube measures Kubernetes' API as it is answered on Tutti's key space, beside the same API server,
// with the same controllers and the same nodes, on etcd: one server of each, on disk, in the same run.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/bench/internal/report"
)

// size says how much is asked for.
type size struct {
	creates, clients int
	pods             int // one after the other, and then together
}

func sizeOf(brief bool) size {
	if brief {
		return size{creates: 1000, clients: 16, pods: 10}
	}
	return size{creates: 10_000, clients: 16, pods: 50}
}

// figures are those of one side.
type figures struct {
	ready            time.Duration
	rate             float64
	creates          []time.Duration
	alone, together  []time.Duration // from create to Running
	whole            time.Duration   // until all that were created together are
	idle, afterwards float64         // MB
}

// Run measures.
func Run(ctx context.Context, sheet *report.Sheet, brief bool) (err error) {
	dir, err := os.MkdirTemp("/var/tmp", "tutti-bench-kube-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	sz := sizeOf(brief)
	t, err := up(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.down()) }()
	sheet.Say("the API server on Tutti's key space")
	ours, err := t.measure(ctx, sheet, "tutti", "", sz)
	if err != nil {
		return fmt.Errorf("on Tutti's key space: %w", err)
	}
	e, err := startEtcd(ctx, filepath.Join(dir, "etcd"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.end()) }()
	sheet.Say("the same on %s", e.version)
	theirs, err := t.measure(ctx, sheet, "etcd", e.url, sz, e.process)
	if err != nil {
		return fmt.Errorf("on etcd: %w", err)
	}
	return rows(sheet, sz, ours, theirs, "kube-apiserver on "+e.version)
}

func rows(sheet *report.Sheet, sz size, ours, theirs *figures, peer string) error {
	const durable = "one server, on disk, with all of its admission and controllers, over HTTPS on loopback"
	row := func(name, unit string, value, other float64, counted string) error {
		return sheet.Add(report.Row{Name: "kube/" + name, Value: value, Unit: unit, Peer: peer, PeerValue: other, Counted: counted})
	}
	milliseconds := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	pods := fmt.Sprintf("from the request until a watch says Running, real containers on one node; %d", sz.pods)
	return errors.Join(
		row("ready", "ms", milliseconds(ours.ready), milliseconds(theirs.ready), "from the start of the process until /readyz says so; keys and certificates are there"),
		row(fmt.Sprintf("create/%d-clients", sz.clients), "objects/s", ours.rate, theirs.rate, fmt.Sprintf("%d ConfigMaps of 1 KiB, acknowledged; %s", sz.creates, durable)),
		row(fmt.Sprintf("create/%d-clients/p99", sz.clients), "ms", report.Percentile(ours.creates, 0.99), report.Percentile(theirs.creates, 0.99), "the same"),
		row("pod/p50", "ms", report.Percentile(ours.alone, 0.5), report.Percentile(theirs.alone, 0.5), pods+" one after the other"),
		row("pod/p99", "ms", report.Percentile(ours.alone, 0.99), report.Percentile(theirs.alone, 0.99), pods+" one after the other"),
		row(fmt.Sprintf("%d-pods/p99", sz.pods), "ms", report.Percentile(ours.together, 0.99), report.Percentile(theirs.together, 0.99), pods+" together"),
		row(fmt.Sprintf("%d-pods/all", sz.pods), "ms", milliseconds(ours.whole), milliseconds(theirs.whole), pods+" together, until the last runs"),
		row("memory/idle", "MB", ours.idle, theirs.idle, "resident, five seconds after it was ready: API server and controllers, and etcd; Tutti's server, which both need for nodes, is not in it"),
		row("memory/after", "MB", ours.afterwards, theirs.afterwards, "the same after all of this"),
	)
}

// measure runs an API server on a storage and asks it; more are processes whose memory counts with it.
func (t *cluster) measure(ctx context.Context, sheet *report.Sheet, name, etcd string, sz size, more ...*process) (f *figures, err error) {
	began := time.Now()
	s, err := t.serve(ctx, name, etcd)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	f = &figures{}
	if err := s.awaitReady(ctx); err != nil {
		return nil, err
	}
	f.ready = time.Since(began)
	if err := s.awaitAccount(ctx); err != nil {
		return nil, err
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(5 * time.Second):
	}
	processes := append([]*process{s.process}, more...)
	if f.idle, err = memory(processes); err != nil {
		return nil, err
	}
	sheet.Say("%d creates by %d clients", sz.creates, sz.clients)
	if err := s.creates(ctx, sz, f); err != nil {
		return nil, err
	}
	sheet.Say("%d pods one after the other, and together", sz.pods)
	if err := s.pods(ctx, sz, f); err != nil {
		return nil, err
	}
	f.afterwards, err = memory(processes)
	return f, err
}

func (s *server) creates(ctx context.Context, sz size, f *figures) error {
	took := make([]time.Duration, sz.creates)
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	text := strings.Repeat("tutti ", 1024/6)
	began := time.Now()
	for range sz.clients {
		g.Go(func() error {
			for {
				n := int(next.Add(1)) - 1
				if n >= sz.creates {
					return nil
				}
				body, err := json.Marshal(map[string]any{
					"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": fmt.Sprintf("bench-%d", n)}, "data": map[string]any{"text": text},
				})
				if err != nil {
					return err
				}
				at := time.Now()
				if err := s.ask(ctx, http.MethodPost, "/api/v1/namespaces/default/configmaps", body, nil); err != nil {
					return err
				}
				took[n] = time.Since(at)
			}
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	f.rate, f.creates = float64(sz.creates)/time.Since(began).Seconds(), took
	return nil
}

func pod(name string) ([]byte, error) {
	return json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name},
		"spec": map[string]any{"terminationGracePeriodSeconds": 0, "containers": []any{map[string]any{"name": "pause", "image": imageName}}},
	})
}

func (s *server) pods(ctx context.Context, sz size, f *figures) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	w := s.watchPods(ctx)
	defer w.close()
	create := func(name string) (time.Time, error) {
		body, err := pod(name)
		if err != nil {
			return time.Time{}, err
		}
		at := time.Now()
		return at, s.ask(ctx, http.MethodPost, "/api/v1/namespaces/default/pods", body, nil)
	}
	for n := range sz.pods {
		name := fmt.Sprintf("alone-%d", n)
		at, err := create(name)
		if err != nil {
			return err
		}
		running, err := w.running(ctx, name)
		if err != nil {
			return err
		}
		f.alone = append(f.alone, running.Sub(at))
	}
	began := time.Now()
	at := make([]time.Time, sz.pods)
	g, _ := errgroup.WithContext(ctx)
	for n := range sz.pods {
		g.Go(func() (err error) {
			at[n], err = create(fmt.Sprintf("together-%d", n))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for n := range sz.pods {
		running, err := w.running(ctx, fmt.Sprintf("together-%d", n))
		if err != nil {
			return err
		}
		f.together = append(f.together, running.Sub(at[n]))
		f.whole = max(f.whole, running.Sub(began))
	}
	if err := s.ask(ctx, http.MethodDelete, "/api/v1/namespaces/default/pods?gracePeriodSeconds=0", nil, nil); err != nil {
		return err
	}
	for {
		var list struct{ Items []any }
		if err := s.ask(ctx, http.MethodGet, "/api/v1/namespaces/default/pods", nil, &list); err != nil || len(list.Items) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the pods to end: %w", ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
