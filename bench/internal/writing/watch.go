package writing

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// watch tells a remote watcher the number of every object that is written from now on.
func (s *server) watch(ctx context.Context, st *wire.Stream) error {
	w := s.store.Watch(s.store.Snapshot().Revision(), model.KindConfig)
	if err := st.Send(0); err != nil { // it watches
		return err
	}
	for {
		b, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, c := range b.Changes {
			n, err := strconv.Atoi(strings.TrimPrefix(c.ID, "object-"))
			if err != nil {
				return err
			}
			if err := st.Send(n); err != nil {
				return err
			}
		}
	}
}

// watcher follows all writes: it calls ready when it watches and seen with the number of each, and
// returns when that returns false.
type watcher func(ctx context.Context, ready func(), seen func(number int) bool) error

func (c *cluster) watchRemotely(ctx context.Context, ready func(), seen func(int) bool) error {
	st, err := c.client.Client().Stream(ctx, c.leader().address(), pathWatch)
	if err != nil {
		return err
	}
	defer st.Close()
	for {
		var n int
		if err := st.Receive(&n); err != nil {
			return err
		}
		if n == 0 {
			ready()
		} else if !seen(n) {
			return nil
		}
	}
}

// watcher follows over one connection, as Tutti's does: etcd then has one stream for all watchers
// that share a context, and one for each of those that do not, like Tutti.
func (e *etcd) watcher(c *clientv3.Client) watcher {
	return func(ctx context.Context, ready func(), seen func(int) bool) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for r := range c.Watch(ctx, "object-", clientv3.WithPrefix(), clientv3.WithCreatedNotify()) {
			if err := r.Err(); err != nil {
				return err
			}
			if r.Created {
				ready()
			}
			for _, ev := range r.Events {
				n, err := strconv.Atoi(strings.TrimPrefix(string(ev.Kv.Key), "object-"))
				if err != nil {
					return err
				}
				if !seen(n) {
					return nil
				}
			}
		}
		return errors.New("the watch ended early")
	}
}

// fanOut lets one writer write, each time after everybody has seen the write before.
func (p plan) fanOut(ctx context.Context, sheet *report.Sheet, c *cluster, e *etcd) error {
	sheet.Say("1 writer and %d watchers on %d etcd members", p.watchers, e.size())
	client, err := e.dial(e.leader)
	if err != nil {
		return err
	}
	remote, err := e.writer(ctx, 1)
	if err != nil {
		return err
	}
	peer, err := p.watched(ctx, remote, e.watcher(client))
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	sheet.Say("1 writer and %d watchers on %d Tutti servers", p.watchers, c.size())
	own, err := p.watched(ctx, c.writeObjectRemotely, c.watchRemotely)
	if err != nil {
		return fmt.Errorf("measure Tutti: %w", err)
	}
	name := fmt.Sprintf("store/%d-servers/1-writer-%d-watchers", c.size(), p.watchers)
	counted := "from the begin of a durable write until the last of all watchers, over one connection, has seen it; Tutti with mutual TLS, etcd without"
	return errors.Join(
		sheet.Add(report.Row{Name: name + "/p50", Value: report.Percentile(own, 0.5), Unit: "ms", Peer: etcdName, PeerValue: report.Percentile(peer, 0.5), Counted: counted}),
		sheet.Add(report.Row{Name: name + "/p99", Value: report.Percentile(own, 0.99), Unit: "ms", Peer: etcdName, PeerValue: report.Percentile(peer, 0.99), Counted: counted}),
	)
}

// watched returns for each write how long it took until the last watcher had seen it.
func (p plan) watched(ctx context.Context, w write, follow watcher) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var ready, watching, saw sync.WaitGroup
	ready.Add(p.watchers)
	failed := make(chan error, p.watchers)
	for range p.watchers {
		watching.Go(func() {
			left := p.changes
			err := follow(ctx, ready.Done, func(int) bool {
				left--
				saw.Done()
				return left > 0
			})
			if err != nil {
				failed <- err
				cancel()
			}
		})
	}
	var out []time.Duration
	err := await(ctx, &ready)
	for range p.changes {
		if err != nil {
			break
		}
		saw.Add(p.watchers)
		began := time.Now()
		if err = w(ctx, int(numbers.Add(1))); err == nil {
			err = await(ctx, &saw)
		}
		out = append(out, time.Since(began))
	}
	if err != nil {
		cancel()
	}
	watching.Wait()
	close(failed)
	return out, errors.Join(err, <-failed)
}

func await(ctx context.Context, wg *sync.WaitGroup) error {
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("not everybody was heard of: %w", ctx.Err())
	}
}
