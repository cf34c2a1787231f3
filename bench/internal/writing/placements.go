package writing

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/bench/internal/placing"
	"github.com/tutti-run/tutti/bench/internal/report"
)

const (
	instancesPerNode = 10
	// What etcd is given to write for each placement, in transactions as large as it accepts by
	// default, some at a time.
	placementBytes  = 400
	etcdTransaction = 128
	etcdAtOnce      = 16
)

// placements measures instances that are decided and durable. etcd decides nothing: it writes as
// many objects, in transactions.
func (p plan) placements(ctx context.Context, sheet *report.Sheet, c *cluster, e *etcd) error {
	instances := p.nodes * instancesPerNode
	sheet.Say("placing %d instances on %d nodes, durably on %d Tutti servers", instances, p.nodes, c.size())
	leader := c.leader()
	own, err := placing.Durably(ctx, leader.store, leader.raft, p.nodes, instances)
	if err != nil {
		return fmt.Errorf("place durably: %w", err)
	}
	sheet.Say("as many objects to %d etcd members", e.size())
	peer, err := e.putAll(ctx, instances)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	return sheet.Add(report.Row{
		Name:  fmt.Sprintf("store/%d-servers/placed/%d-nodes/%d-instances", c.size(), p.nodes, instances),
		Value: float64(instances) / own.Seconds(), Unit: "placements/s",
		Peer: etcdName, PeerValue: float64(instances) / peer.Seconds(),
		Counted: fmt.Sprintf("Tutti: decided by the leader's control loop, with events, on disk (fsync) at a majority of %d servers on one machine and applied at the leader; "+
			"etcd: nothing decided, as many objects of %d B put by transactions of %d, %d at once", c.size(), placementBytes, etcdTransaction, etcdAtOnce),
	})
}

// putAll writes objects in transactions and returns how long that took.
func (e *etcd) putAll(ctx context.Context, objects int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	client, err := e.dial(e.leader)
	if err != nil {
		return 0, err
	}
	text := strings.Repeat("x", placementBytes)
	began := time.Now()
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range etcdAtOnce {
		g.Go(func() error {
			for {
				to := int(next.Add(etcdTransaction))
				from := to - etcdTransaction
				if from >= objects {
					return nil
				}
				var ops []clientv3.Op
				for i := from; i < min(to, objects); i++ {
					ops = append(ops, clientv3.OpPut("instance-"+strconv.Itoa(i), text))
				}
				if _, err := client.Txn(ctx).Then(ops...).Commit(); err != nil {
					return err
				}
			}
		})
	}
	err = g.Wait()
	return time.Since(began), err
}
