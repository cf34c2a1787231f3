package sim_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/fake"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
)

// converge ends the faults, and expects the cluster to come to rest as it should be.
func (c *course) converge() {
	c.endFaults()
	c.until("there is a leader of all servers", 15*time.Second, func() string {
		l := c.leader()
		if l == nil {
			return "nobody leads"
		}
		if n := c.voters(l); n != c.servers || len(c.live()) != c.servers {
			return fmt.Sprintf("%d of %d servers have a vote, %d run", n, c.servers, len(c.live()))
		}
		return ""
	})
	c.history.stop() // with what they began
	c.must("make all nodes active", func(ctx context.Context, p *process) error {
		for _, h := range c.hosts {
			if _, ok := store.Get[*model.Node](p.srv.Core().Store.Snapshot(), h.id); !ok {
				continue
			}
			if err := p.srv.Core().SetAvailability(ctx, operator, "node-"+h.id, model.Active); err != nil {
				return err
			}
		}
		return nil
	})
	rnd := rand.New(rand.NewPCG(c.seed, 4))
	final := deployment(rnd, true)
	c.must("deploy", func(ctx context.Context, p *process) error { return c.deploy(ctx, p, final) })
	// The slowest update replaces five instances one after another, each of them watched for 1.2
	// seconds after up to a second of stopping and ten of draining.
	c.until("desired is actual", time.Minute, c.wrong)
}

// until lets time pass until nothing is wrong any more.
func (c *course) until(what string, within time.Duration, wrong func() string) {
	c.t.Helper()
	for end := time.Now().Add(within); ; c.step(50 * time.Millisecond) {
		w := wrong()
		if w == "" {
			return
		}
		if time.Now().After(end) {
			c.fail("%s: not within %s: %s", what, within, w)
		}
	}
}

// must does what has to succeed now, through any server.
func (c *course) must(what string, do func(ctx context.Context, p *process) error) {
	c.t.Helper()
	done := make(chan error, 1)
	go func() {
		var err error
		for range 10 {
			if live := c.live(); len(live) > 0 {
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
				err = do(ctx, live[0])
				cancel()
				if err == nil {
					break
				}
			}
			time.Sleep(300 * time.Millisecond)
		}
		done <- err
	}()
	for {
		c.step(20 * time.Millisecond)
		select {
		case err := <-done:
			if err != nil {
				c.fail("%s: %v", what, err)
			}
			return
		default:
		}
	}
}

// wrong says what is not yet as it should be, "" when nothing is.
func (c *course) wrong() string {
	l := c.leader()
	if l == nil {
		return "nobody leads"
	}
	snap := l.srv.Core().Store.Snapshot()
	nodes := 0
	for n := range store.List[*model.Node](snap) {
		nodes++
		if n.Status.State != model.NodeReady || n.OverlayAddress == "" {
			return fmt.Sprintf("node %s is %s", n.Name, n.Status.State)
		}
	}
	if nodes != len(c.hosts) {
		return fmt.Sprintf("%d of %d nodes are known", nodes, len(c.hosts))
	}
	ready, wanted := map[string]int{}, map[string]int{}
	for w := range store.List[*model.Workload](snap) {
		wanted[w.ID] = w.Count
		if w.Type == model.GlobalWorkload {
			wanted[w.ID] = len(c.hosts)
		}
		switch s := w.Status.Rollout.State; s {
		case model.RolloutNone, model.RolloutCompleted:
		default:
			return fmt.Sprintf("the update of %s is %s: %s", w.Name, s, w.Status.Rollout.Message)
		}
		if w.Status.Generation != w.Generation || w.Status.Released != w.RevisionID {
			return fmt.Sprintf("status of %s: %+v", w.Name, w.Status)
		}
	}
	for i := range store.List[*model.Instance](snap) {
		w, ok := store.Get[*model.Workload](snap, i.WorkloadID)
		switch {
		case !ok:
			return i.Name + " outlives its workload"
		case w.Type == model.JobWorkload && i.Status.State == model.InstanceCompleted && i.Desired == model.DesiredRun && i.RevisionID == w.RevisionID:
			ready[w.ID]++
		case i.Status.State.Final():
		case !i.Serving() || i.RevisionID != w.RevisionID || w.Type == model.JobWorkload:
			return fmt.Sprintf("%s (%s) of %s on %q is to %s and %s (%s)", i.Name, i.ID, i.RevisionID, i.NodeID, i.Desired, i.Status.State, cmp.Or(i.Status.Message, i.Reason))
		default:
			ready[w.ID]++
		}
	}
	for w := range store.List[*model.Workload](snap) {
		if ready[w.ID] != wanted[w.ID] {
			return fmt.Sprintf("%s has %d of %d instances", w.Name, ready[w.ID], wanted[w.ID])
		}
	}
	for s := range store.List[*model.Service](snap) {
		if len(s.Status.VirtualIPs) != 1 {
			return "service " + s.Name + " has no virtual IP: " + s.Status.Message
		}
	}
	for _, h := range c.hosts {
		if w := c.wrongOn(snap, h); w != "" {
			return w
		}
	}
	for _, p := range c.live() {
		if r := p.srv.Core().Store.Snapshot().Revision(); r != snap.Revision() {
			return fmt.Sprintf("%s is at revision %d, the leader at %d", p.h.id, r, snap.Revision())
		}
	}
	return ""
}

// wrongOn compares what runs on a host, and what is left there, with what should.
func (c *course) wrongOn(snap *store.Snapshot, h *host) string {
	should := map[string]bool{}
	held := map[string]bool{}
	for i := range store.InstancesOnNode(snap, h.id) {
		held[i.ID] = true
		if i.Status.State == model.InstanceRunning {
			for _, t := range i.Status.Tasks {
				should[t.RunID] = true
			}
		}
	}
	h.world.mu.Lock()
	d := fake.New(h.world.tasks)
	var left []string
	for id := range h.world.secrets {
		if !held[id] {
			left = append(left, "secrets of "+id)
		}
	}
	for id := range h.world.attached {
		if !held[id] {
			left = append(left, "links of "+id)
		}
	}
	for key := range h.world.mounted {
		if id, _, _ := strings.Cut(key, "."); !held[id] {
			left = append(left, "the mount "+key)
		}
	}
	h.world.mu.Unlock()
	if len(left) > 0 {
		slices.Sort(left)
		return fmt.Sprintf("%s still has %s", h.id, strings.Join(left, ", "))
	}
	list, err := d.List(context.Background())
	if err != nil {
		return err.Error()
	}
	for _, t := range list {
		if t.State == driver.Exited {
			continue
		}
		if !should[t.ID] {
			return fmt.Sprintf("%s runs %s, of which the cluster does not know so", h.id, t.ID)
		}
		delete(should, t.ID)
	}
	for _, id := range slices.Sorted(maps.Keys(should)) {
		return fmt.Sprintf("%s does not run %s, though the cluster believes so", h.id, id)
	}
	return ""
}

// conclude checks what can be checked when everything is at rest.
func (c *course) conclude() {
	for _, p := range c.live() {
		c.watch.same(p)
	}
	c.finalReads()
	c.checkHistory()
	c.checkDisks()
	c.look()
}

// finalReads has every server answer for every register once more.
func (c *course) finalReads() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, p := range c.live() {
			for k := range registers {
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
				call := c.history.now()
				value, _, err := readRegister(ctx, p, k)
				cancel()
				if err != nil {
					c.broken("%s does not answer at the end: %v", p.h.id, err)
					continue
				}
				c.history.add(clients, call, operation{register: k}, outcome{value: value})
			}
		}
	}()
	for {
		c.step(10 * time.Millisecond)
		select {
		case <-done:
			return
		default:
		}
	}
}

// checkSecrets makes sure, whenever a host is given secrets, that one of its instances needs them:
// an instance that was placed there, as any server knows, and whose template mounts a secret.
func (c *course) checkSecrets(h *host, instance string, files []secret.File) {
	c.watch.mu.Lock()
	defer c.watch.mu.Unlock()
	i := c.watch.instances[instance]
	if i == nil {
		return // it is gone meanwhile; it was told of it when it was there
	}
	if i.NodeID != h.id {
		c.broken("%s was given %d secrets of %s, which is on %q", h.id, len(files), i.Name, i.NodeID)
	}
	rev, _ := c.watch.table[objectKey{model.KindRevision, i.RevisionID}].(*model.Revision)
	if rev == nil {
		return
	}
	mounts := 0
	for _, t := range rev.Template.Tasks {
		for _, m := range t.Mounts {
			if m.Type == model.MountSecret {
				mounts++
			}
		}
	}
	if mounts != len(files) {
		c.broken("%s was given %d secrets for %s, which mounts %d", h.id, len(files), i.Name, mounts)
	}
	c.count("secrets given")
}

// checkDisks makes sure that no secret was ever written to a disk, on any host.
func (c *course) checkDisks() {
	err := filepath.WalkDir(c.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), secretText) {
			c.broken("a secret is on a disk, in %s", filepath.Base(path))
		}
		return err
	})
	if err != nil {
		c.broken("read the agents' files: %v", err)
	}
	for _, h := range c.hosts[:c.servers] {
		if h.disk.Holds([]byte(secretText)) {
			c.broken("a secret is on the disk of server %s", h.id)
		}
	}
}
