package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// cluster is some servers in this process, connected by ports on the loopback.
type cluster struct {
	testing.TB
	authority *wire.Authority
	dir       string
	servers   []*server
	fsm       func() FSM      // nil: a store
	ctx       context.Context // ends with the patience of the test

	commitTimeout time.Duration
	patience      time.Duration // with a leader that is silent, of servers that are started from now on; 0: a short one
}

// server is one that may be down at the moment.
type server struct {
	c       *cluster
	id      string
	address string // kept over restarts
	first   bool
	dir     string

	store  *store.Store
	raft   *Raft
	client *wire.Client
	close  func() // the port
}

// newCluster starts servers, of which the first lets the others in.
func newCluster(t testing.TB, size int) *cluster { return newClusterOf(t, size, nil) }

func newClusterOf(t testing.TB, size int, fsm func() FSM) *cluster {
	t.Helper()
	a, err := wire.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	c := &cluster{TB: t, authority: a, dir: t.TempDir(), fsm: fsm, ctx: ctx}
	for range size {
		c.add()
	}
	return c
}

// newcomer starts a server that no other knows of.
func (c *cluster) newcomer() *server {
	c.Helper()
	n := len(c.servers)
	s := &server{c: c, id: fmt.Sprint("s", n+1), address: "127.0.0.1:0", first: n == 0, dir: filepath.Join(c.dir, fmt.Sprint("s", n+1))}
	c.servers = append(c.servers, s)
	s.start()
	c.Cleanup(func() { s.kill() })
	return s
}

// add starts a new server and makes it a member.
func (c *cluster) add() *server {
	c.Helper()
	s := c.newcomer()
	if s.first {
		if err := s.raft.Sync(c.ctx); err != nil {
			c.Fatal(err)
		}
		return s
	}
	if err := c.leader().raft.AddServer(c.ctx, s.id, s.address); err != nil {
		c.Fatal(err)
	}
	return s
}

func (s *server) start() {
	s.c.Helper()
	csr, key, err := wire.NewRequest()
	if err != nil {
		s.c.Fatal(err)
	}
	cert, err := s.c.authority.Sign(csr, s.id, wire.RoleServer)
	if err != nil {
		s.c.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	port, err := wire.Listen(s.address, &wire.Identity{NodeID: s.id, Role: wire.RoleServer, CertPEM: cert, KeyPEM: key, CAPEM: s.c.authority.CertPEM}, log)
	if err != nil {
		s.c.Fatal(err)
	}
	s.address, s.client, s.store = port.Addr().String(), port.Client(), store.New(log)
	fsm := FSM(s.store)
	if s.c.fsm != nil {
		fsm = s.c.fsm()
	}
	r, err := New(Config{
		NodeID: s.id, Address: s.address, DataDir: s.dir, Bootstrap: s.first, Layer: port.RaftLayer(), FSM: fsm, Calls: OverWire(port.Client()), Log: log,
		HeartbeatTimeout: or(s.c.patience, 300*time.Millisecond), ElectionTimeout: or(s.c.patience, 300*time.Millisecond), LeaseTimeout: 200 * time.Millisecond,
		CommitTimeout: s.c.commitTimeout,
	})
	if err != nil {
		s.c.Fatal(err)
	}
	s.raft = r
	s.store.SetProposer(r)
	r.Handle(port)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- port.Serve(ctx) }()
	s.close = func() {
		cancel()
		if err := <-done; err != nil {
			s.c.Errorf("port of %s: %v", s.id, err)
		}
	}
}

// kill ends a server without a word to the others.
func (s *server) kill() {
	if s.raft == nil {
		return
	}
	s.close()
	if err := s.raft.stop(); err != nil {
		s.c.Errorf("kill %s: %v", s.id, err)
	}
	s.raft = nil
}

func (c *cluster) restart(s *server) {
	s.kill()
	s.start()
}

// leader waits for a server that leads and is followed.
func (c *cluster) leader() *server {
	c.Helper()
	for {
		for _, s := range c.servers {
			if s.raft != nil && s.raft.IsLeader() && s.raft.raft.VerifyLeader().Error() == nil {
				return s
			}
		}
		c.pause("a leader")
	}
}

func (c *cluster) followers() (out []*server) {
	c.Helper()
	leader := c.leader()
	for _, s := range c.servers {
		if s != leader && s.raft != nil {
			out = append(out, s)
		}
	}
	return out
}

func (c *cluster) pause(waitingFor string) {
	c.Helper()
	select {
	case <-c.ctx.Done():
		c.Fatalf("%s: never", waitingFor)
	case <-time.After(5 * time.Millisecond):
	}
}

// write commits a small object and says whether that was acknowledged.
func (s *server) write(ctx context.Context, id string) error {
	cs := &store.ChangeSet{}
	cs.Put(&model.Config{Meta: model.Meta{ID: id, Name: id}, Data: []byte(s.id)})
	_, err := s.store.Commit(ctx, cs)
	return err
}

// mustWrite commits a small object, again if the lead was lost meanwhile, as on a busy machine it may.
func (s *server) mustWrite(id string) {
	s.c.Helper()
	for {
		err := s.write(s.c.ctx, id)
		if err == nil {
			return
		}
		if !fault.Is(err, fault.Unavailable) || s.c.ctx.Err() != nil {
			s.c.Fatal(err)
		}
	}
}

func (s *server) has(id string) bool {
	_, ok := store.Get[*model.Config](s.store.Snapshot(), id)
	return ok
}

func (s *server) wantAll(ids []string) {
	s.c.Helper()
	var missing []string
	for _, id := range ids {
		if !s.has(id) {
			missing = append(missing, id)
		}
	}
	if len(missing) > 0 {
		s.c.Errorf("%s lacks %d of %d acknowledged writes: %s", s.id, len(missing), len(ids), strings.Join(missing[:min(5, len(missing))], ", "))
	}
}

// settle waits until all servers that are up show the same.
func (c *cluster) settle() {
	c.Helper()
	for {
		var revisions []uint64
		for _, s := range c.servers {
			if s.raft != nil {
				revisions = append(revisions, s.store.Snapshot().Revision())
			}
		}
		slices.Sort(revisions)
		if revisions[0] == revisions[len(revisions)-1] {
			return
		}
		c.pause(fmt.Sprintf("one revision on all servers instead of %v", revisions))
	}
}

func TestEverybodyReadsWhatTheyWrote(t *testing.T) {
	c := newCluster(t, 3)
	var ids []string
	for i := range 30 {
		s := c.servers[i%3]
		id := fmt.Sprint("w", i)
		s.mustWrite(id)
		if !s.has(id) {
			t.Errorf("%s acknowledged %s and does not show it", s.id, id)
		}
		ids = append(ids, id)
	}
	c.settle()
	for _, s := range c.servers {
		s.wantAll(ids)
	}
	for _, s := range c.servers {
		id, address := s.raft.Leader()
		if leader := c.leader(); id != leader.id || address != leader.address {
			t.Errorf("%s believes that %s at %s leads, want %s", s.id, id, address, leader.id)
		}
		if list := s.raft.Servers(); len(list) != 3 || !list[0].Voter {
			t.Errorf("%s knows of the servers %+v", s.id, list)
		}
	}
	// What the state machine refuses is no failure of the replication, wherever it was asked.
	for _, s := range c.servers {
		cs := &store.ChangeSet{}
		cs.Expect(model.KindConfig, "w0", 0)
		cs.Delete(model.KindConfig, "w0")
		if _, err := s.store.Commit(c.ctx, cs); !fault.Is(err, fault.Conflict) {
			t.Errorf("an expectation that does not hold gave %v on %s", err, s.id)
		}
	}
}

// A read that was asked for after a write was acknowledged anywhere shows it.
func TestReadsAreLinearizableEverywhere(t *testing.T) {
	c := newCluster(t, 3)
	for i := range 60 {
		writer, reader := c.servers[i%3], c.servers[(i+1+i/3%2)%3]
		id := fmt.Sprint("w", i)
		writer.mustWrite(id)
		if err := reader.raft.Sync(c.ctx); err != nil {
			t.Fatal(err)
		}
		if !reader.has(id) {
			t.Fatalf("%s does not show %s, which %s had acknowledged", reader.id, id, writer.id)
		}
	}
	last := c.followers()[0]
	for _, s := range c.servers {
		if s != last {
			s.kill()
		}
	}
	ctx, cancel := context.WithTimeout(c.ctx, 2*time.Second)
	defer cancel()
	if err := last.raft.Sync(ctx); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without a quorum a linearizable read gave %v", err)
	}
}

func TestALostLeaderLosesNothingAcknowledged(t *testing.T) {
	c := newCluster(t, 3)
	old := c.leader()
	rest := c.followers()
	var mu sync.Mutex
	var acknowledged []string
	var after atomic.Int32 // acknowledged by the others since the leader was killed
	killed := make(chan struct{})
	ctx, stop := context.WithCancel(c.ctx)
	var writers sync.WaitGroup
	for _, s := range c.servers {
		for n := range 4 {
			writers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					id := fmt.Sprintf("%s-%d-%d", s.id, n, i)
					if err := s.write(ctx, id); err != nil {
						if s == old {
							return // it is the one that is killed
						}
						continue
					}
					mu.Lock()
					acknowledged = append(acknowledged, id)
					mu.Unlock()
					select {
					case <-killed:
						if s != old {
							after.Add(1)
						}
					default:
					}
				}
			})
		}
	}
	enough := func(n int) {
		for {
			mu.Lock()
			have := len(acknowledged)
			mu.Unlock()
			if have >= n {
				return
			}
			c.pause("writes are acknowledged")
		}
	}
	enough(300)
	old.kill()
	close(killed)
	for after.Load() < 300 {
		c.pause("writes are acknowledged without the lost leader")
	}
	stop()
	writers.Wait()
	c.settle()
	for _, s := range rest {
		s.wantAll(acknowledged)
	}
	if now := c.leader(); now == old {
		t.Errorf("%s leads, which was killed", now.id)
	}
	old.start()
	if err := old.raft.Sync(c.ctx); err != nil {
		t.Fatal(err)
	}
	// One proposal, and it shows all that was committed while it was away.
	old.mustWrite("back")
	old.wantAll(append(acknowledged, "back"))
}

func TestStateComesBackFromDisk(t *testing.T) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			c := newCluster(t, size)
			var ids []string
			for i := range 50 {
				ids = append(ids, fmt.Sprint("w", i))
				c.servers[i%size].mustWrite(ids[i])
			}
			revision := c.leader().store.Snapshot().Revision()
			for _, s := range c.servers {
				s.kill()
			}
			for _, s := range c.servers {
				s.start()
			}
			for _, s := range c.servers {
				if err := s.raft.Sync(c.ctx); err != nil {
					t.Fatal(err)
				}
			}
			c.leader()
			c.settle()
			for _, s := range c.servers {
				s.wantAll(ids)
				if got := s.store.Snapshot().Revision(); got != revision {
					t.Errorf("%s is at revision %d, want %d as before", s.id, got, revision)
				}
			}
			if err := c.servers[size-1].write(c.ctx, "more"); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestFollowersHearAtOnce: raft itself would tell them of a lone commit an hour later.
func TestFollowersHearAtOnce(t *testing.T) {
	c := newCluster(t, 3)
	c.settle()
	for _, s := range c.servers {
		s.kill()
	}
	c.commitTimeout = time.Hour
	for _, s := range c.servers {
		s.start()
	}
	missed := 0 // by one that was too far behind when it was told; the next entry tells it
	for i := range 20 {
		id := fmt.Sprint("w", i)
		c.servers[i%3].mustWrite(id)
		for _, s := range c.servers {
			for n := 1; !s.has(id); n++ {
				if n%100 == 0 {
					missed++
					c.servers[i%3].mustWrite(fmt.Sprint("next", missed))
				}
				c.pause(s.id + " hears of a commit")
			}
		}
	}
	if missed > 10 {
		t.Errorf("%d times a server was not told", missed)
	}
}

// compact takes a snapshot and keeps next to nothing of the log before it.
func (s *server) compact() {
	s.c.Helper()
	rc := s.raft.raft.ReloadableConfig()
	rc.TrailingLogs = 1
	if err := s.raft.raft.ReloadConfig(rc); err != nil {
		s.c.Fatal(err)
	}
	if err := s.raft.raft.Snapshot().Error(); err != nil {
		s.c.Fatalf("snapshot of %s: %v", s.id, err)
	}
}

func TestSnapshotsCarryTheState(t *testing.T) {
	c := newCluster(t, 1)
	var ids []string
	write := func(n int) {
		for range n {
			ids = append(ids, fmt.Sprint("w", len(ids)))
			c.servers[0].mustWrite(ids[len(ids)-1])
		}
	}
	write(100)
	c.servers[0].compact()
	write(10)
	if first, err := c.servers[0].raft.wal.FirstIndex(); err != nil || first < 50 {
		t.Fatalf("the log begins at %d, %v; want it cut, or this test proves nothing", first, err)
	}
	// From the snapshot and the log that follows it.
	c.restart(c.servers[0])
	if err := c.servers[0].raft.Sync(c.ctx); err != nil {
		t.Fatal(err)
	}
	c.servers[0].wantAll(ids)
	// A newcomer cannot get the beginning but as a snapshot.
	s := c.add()
	c.settle()
	s.wantAll(ids)
	watch := s.store.Watch(s.store.Snapshot().Revision())
	write(1)
	if b, err := watch.Next(c.ctx); err != nil || len(b.Changes) != 1 || b.Changes[0].ID != ids[len(ids)-1] {
		t.Errorf("after its restore the newcomer sees %+v, %v", b, err)
	}
	// So must one that was away for so long that the log was cut meanwhile.
	third := c.add()
	c.settle()
	third.kill()
	write(200)
	c.leader().compact()
	third.start()
	c.settle()
	third.wantAll(ids)
}

func TestWithoutAQuorumNothingIsAcknowledged(t *testing.T) {
	c := newCluster(t, 3)
	c.servers[0].mustWrite("before")
	c.settle()
	last := c.followers()[0]
	for _, s := range c.servers {
		if s != last {
			s.kill()
		}
	}
	ctx, cancel := context.WithTimeout(c.ctx, time.Second)
	defer cancel()
	if err := last.write(ctx, "lonely"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a write without a quorum gave %v", err)
	}
	if !last.has("before") || last.has("lonely") {
		t.Error("the one that is left shows what it should not, or not what it should")
	}
	for _, s := range c.servers {
		if s != last {
			s.start()
		}
	}
	last.mustWrite("after")
}

func TestWithoutForwardingOnlyTheLeaderWrites(t *testing.T) {
	c := newCluster(t, 3)
	s := c.followers()[0]
	s.raft.cfg.Calls = nil
	if err := s.write(c.ctx, "x"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a write on a follower gave %v", err)
	}
	if o := s.raft.ProposeHere(c.ctx, [][]byte{nil, nil}); len(o) != 2 || !o[0].NotTaken || !o[1].NotTaken {
		t.Errorf("proposals that only a follower may take gave %+v, want that they were not taken up", o)
	}
}

func TestServersLeaveAndHandOver(t *testing.T) {
	c := newCluster(t, 3)
	old := c.leader()
	other := c.followers()[0]
	if err := other.raft.RemoveServer(c.ctx, old.id); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a follower that removes a server gets %v", err)
	}
	// One that ends as it should leaves the others led at once.
	if err := old.raft.Shutdown(); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	old.close()
	old.raft = nil
	now := c.leader()
	if err := now.raft.RemoveServer(c.ctx, old.id); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.followers() {
		for len(s.raft.Servers()) != 2 {
			c.pause("the removed server is gone from the lists")
		}
	}
	c.followers()[0].mustWrite("two are enough")
}

// A server that is given its vote after it began to follow misses the leader as early as all others.
func TestWhoIsGivenAVoteMissesTheLeader(t *testing.T) {
	c := newCluster(t, 1)
	old := c.leader()
	c.patience = 20 * time.Second // that its process has ended is seen before
	for range 2 {
		s := c.newcomer()
		if err := old.raft.AddNonvoter(c.ctx, s.id, s.address); err != nil {
			t.Fatal(err)
		}
		old.mustWrite(s.id)
		for !s.has(s.id) {
			c.pause(s.id + " follows")
		}
	}
	for _, s := range c.servers[1:] {
		if err := old.raft.AddServer(c.ctx, s.id, s.address); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(2 * unvoted)
	old.kill()
	ended := time.Now()
	c.leader()
	if took := time.Since(ended); took >= c.patience {
		t.Errorf("another leads after %s, as if nobody had seen the leader's process end", took)
	}
}

// silence ends a server as if there was no telling what has become of it: its port goes on answering.
func (s *server) silence() {
	s.c.Helper()
	if err := s.raft.stop(); err != nil {
		s.c.Fatal(err)
	}
	s.raft = nil
	s.c.Cleanup(s.close)
}

// Who stands for election has the vote of another that does not miss the leader by itself yet.
func TestOneWhoStandsIsFollowed(t *testing.T) {
	c := newCluster(t, 2)
	old := c.leader()
	c.patience = 20 * time.Second
	c.add()
	time.Sleep(2 * unvoted)
	silent := time.Now()
	old.silence()
	c.leader()
	if took := time.Since(silent); took >= c.patience/2 {
		t.Errorf("another leads after %s, when the last one missed the leader", took)
	}
}

func TestWhoHesitatesDoesNotLeadWhereAnotherCan(t *testing.T) {
	led := 0
	for range 3 {
		c := newCluster(t, 3)
		time.Sleep(2 * unvoted)
		old := c.leader()
		hesitates := c.followers()[1] // which would lead otherwise
		hesitates.raft.Hesitate(true)
		old.silence()
		if c.leader() == hesitates {
			led++
		}
		hesitates.raft.Hesitate(false)
	}
	if led > 1 { // on a busy machine it may come late
		t.Errorf("it led %d times of 3", led)
	}
}

// The leader's work runs on one server at a time, knows everything acknowledged before, and has
// ended before it begins again.
func TestWorkOfTheLeader(t *testing.T) {
	c := newCluster(t, 3)
	var mu sync.Mutex
	var acknowledged []string
	working := map[string]int{}
	began := make(chan *server, 100)
	ctx, stop := context.WithCancel(c.ctx)
	var running sync.WaitGroup
	run := func(s *server, ctx context.Context) {
		r := s.raft
		running.Go(func() {
			err := r.RunAsLeader(ctx, func(ctx context.Context) error {
				mu.Lock()
				working[s.id]++
				if working[s.id] > 1 {
					t.Errorf("the work of %s began before its last had ended", s.id)
				}
				known := slices.Clone(acknowledged)
				mu.Unlock()
				s.wantAll(known)
				began <- s
				<-ctx.Done()
				time.Sleep(20 * time.Millisecond) // work does not end at once
				mu.Lock()
				working[s.id]--
				mu.Unlock()
				return ctx.Err()
			})
			if err != nil {
				t.Errorf("work of %s: %v", s.id, err)
			}
		})
	}
	contexts := map[*server]context.CancelFunc{}
	for _, s := range c.servers {
		sctx, cancel := context.WithCancel(ctx)
		contexts[s] = cancel
		run(s, sctx)
	}
	next := func() *server {
		select {
		case s := <-began:
			return s
		case <-c.ctx.Done():
			t.Fatal("the leader's work never began")
			return nil
		}
	}
	first := next()
	for i := range 20 {
		id := fmt.Sprint("w", i)
		c.servers[i%3].mustWrite(id)
		mu.Lock()
		acknowledged = append(acknowledged, id)
		mu.Unlock()
	}
	// Handed over: the work moves.
	if err := first.raft.raft.LeadershipTransfer().Error(); err != nil {
		t.Fatal(err)
	}
	second := next()
	if second == first {
		t.Errorf("after a transfer %s works again", first.id)
	}
	// Lost: it moves again.
	contexts[second]()
	second.kill()
	if third := next(); third == second {
		t.Errorf("the work is with %s, which was killed", third.id)
	}
	stop()
	running.Wait()
	mu.Lock()
	defer mu.Unlock()
	for id, n := range working {
		if n != 0 {
			t.Errorf("%s still works after its context ended", id)
		}
	}
}

func TestAnErrorOfTheLeadersWorkIsReported(t *testing.T) {
	c := newCluster(t, 1)
	broken := errors.New("broken")
	err := c.servers[0].raft.RunAsLeader(c.ctx, func(context.Context) error { return broken })
	if !errors.Is(err, broken) {
		t.Errorf("it ended with %v, want the work's error", err)
	}
}
