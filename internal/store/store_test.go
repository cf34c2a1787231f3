package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func commit(t *testing.T, s *store.Store, fill func(cs *store.ChangeSet)) uint64 {
	t.Helper()
	revision, err := tryCommit(s, fill)
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

func tryCommit(s *store.Store, fill func(cs *store.ChangeSet)) (uint64, error) {
	var cs store.ChangeSet
	fill(&cs)
	return s.Commit(context.Background(), &cs)
}

func get[T model.Object](t *testing.T, s *store.Store, id string) T {
	t.Helper()
	obj, ok := store.Get[T](s.Snapshot(), id)
	if !ok {
		t.Fatalf("%s does not exist", id)
	}
	return obj
}

func instance(id, workload, node string) *model.Instance {
	return &model.Instance{
		Meta:       model.Meta{ID: id, Namespace: "default", Application: "shop", Name: workload + ".1"},
		WorkloadID: workload, NodeID: node, Desired: model.DesiredRun,
		Status: model.InstanceStatus{State: model.InstancePending},
	}
}

func volume(id, name string) *model.Volume {
	return &model.Volume{Meta: model.Meta{ID: id, Namespace: "default", Name: name}}
}

func TestWritersOfDesiredAndObservedKeepOutOfEachOthersWay(t *testing.T) {
	s := newStore()
	commit(t, s, func(cs *store.ChangeSet) { cs.Put(instance("i1", "w1", "")) })
	stale := get[*model.Instance](t, s, "i1")

	commit(t, s, func(cs *store.ChangeSet) {
		c := stale.Clone()
		c.NodeID, c.Desired = "n1", model.DesiredDrain
		cs.Put(c)
	})
	commit(t, s, func(cs *store.ChangeSet) { // by somebody who has not seen the placement
		c := stale.Clone()
		c.Status.State, c.Status.Ready = model.InstanceRunning, true
		c.Status.Tasks = []model.TaskStatus{{Name: "main", PID: 7}}
		cs.PutStatus(c)
	})
	last := commit(t, s, func(cs *store.ChangeSet) { // by somebody who has not seen the status
		c := stale.Clone()
		c.NodeID, c.Desired, c.Cause = "n1", model.DesiredStop, "scaled down"
		cs.Put(c)
	})

	i := get[*model.Instance](t, s, "i1")
	if i.NodeID != "n1" || i.Desired != model.DesiredStop || i.Cause != "scaled down" {
		t.Errorf("the desired part was overwritten: %+v", i)
	}
	if i.Status.State != model.InstanceRunning || !i.Status.Ready || len(i.Status.Tasks) != 1 {
		t.Errorf("the status was overwritten: %+v", i.Status)
	}
	if i.Revision != last {
		t.Errorf("revision is %d, want that of the last change, %d", i.Revision, last)
	}
}

func TestStatusOfWhatIsGoneIsIgnored(t *testing.T) {
	s := newStore()
	commit(t, s, func(cs *store.ChangeSet) { cs.PutStatus(instance("i1", "w1", "n1")) })
	if _, ok := store.Get[*model.Instance](s.Snapshot(), "i1"); ok {
		t.Error("a status brought an instance to life")
	}
}

func TestTheEndOfAnInstanceIsFinal(t *testing.T) {
	s := newStore()
	i := instance("i1", "w1", "n1")
	commit(t, s, func(cs *store.ChangeSet) { cs.Put(i) })
	report := func(state model.InstanceState, message string) {
		c := i.Clone()
		c.Status = model.InstanceStatus{State: state, Message: message}
		commit(t, s, func(cs *store.ChangeSet) { cs.PutStatus(c) })
	}
	report(model.InstanceRunning, "")
	report(model.InstanceLost, "node n1 is down")
	report(model.InstanceLost, "node n1 was removed")
	report(model.InstanceRunning, "") // sent before it was given up
	report(model.InstanceCompleted, "stopped")
	if st := get[*model.Instance](t, s, "i1").Status; st.State != model.InstanceLost || st.Message != "node n1 was removed" {
		t.Errorf("status %+v", st)
	}
}

func TestAnEarlierStatusDoesNotReplaceALaterOne(t *testing.T) {
	s := newStore()
	i := instance("i1", "w1", "n1")
	commit(t, s, func(cs *store.ChangeSet) { cs.Put(i) })
	report := func(seq uint64, state model.InstanceState, message string) {
		c := i.Clone()
		c.Status = model.InstanceStatus{Seq: seq, State: state, Message: message}
		commit(t, s, func(cs *store.ChangeSet) { cs.PutStatus(c) })
	}
	want := func(message string) {
		t.Helper()
		if st := get[*model.Instance](t, s, "i1").Status; st.Message != message {
			t.Errorf("status %+v, want %q", st, message)
		}
	}
	report(2, model.InstanceRunning, "two")
	report(1, model.InstanceWaiting, "one") // it was under way for long
	want("two")
	report(2, model.InstanceRunning, "two again") // by the leader, which has it as it was
	want("two again")
	report(3, model.InstanceRunning, "three")
	report(2, model.InstanceLost, "its node is down")
	want("its node is down")
}

func TestObjectsWithoutStatusCannotBeWrittenAsStatus(t *testing.T) {
	s := newStore()
	commit(t, s, func(cs *store.ChangeSet) { cs.Put(volume("v1", "data")) })
	_, err := tryCommit(s, func(cs *store.ChangeSet) {
		v := volume("v1", "data")
		v.NodeID = "n1"
		cs.PutStatus(v)
	})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("error is %v, want invalid", err)
	}
	if v := get[*model.Volume](t, s, "v1"); v.NodeID != "" {
		t.Error("the volume was overwritten")
	}
}

func TestARefusedSetChangesNothing(t *testing.T) {
	s := newStore()
	before := commit(t, s, func(cs *store.ChangeSet) { cs.Put(volume("v1", "data")) })
	for name, c := range map[string]struct {
		kind fault.Kind
		fill func(cs *store.ChangeSet)
	}{
		"older revision": {fault.Conflict, func(cs *store.ChangeSet) {
			cs.Delete(model.KindVolume, "v1")
			cs.Put(volume("v2", "other"))
			cs.Expect(model.KindVolume, "v1", before+1)
		}},
		"must not exist": {fault.Conflict, func(cs *store.ChangeSet) {
			cs.Put(volume("v2", "other"))
			cs.Expect(model.KindVolume, "v1", 0)
		}},
		"must exist": {fault.Conflict, func(cs *store.ChangeSet) {
			cs.Put(volume("v2", "other"))
			cs.Expect(model.KindVolume, "v3", before)
		}},
		"name taken": {fault.Conflict, func(cs *store.ChangeSet) {
			cs.Put(volume("v2", "other"))
			cs.Put(volume("v3", "data"))
		}},
		"no ID": {fault.Invalid, func(cs *store.ChangeSet) {
			cs.Put(volume("v2", "other"))
			cs.Put(volume("", "nameless"))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tryCommit(s, c.fill)
			if fault.KindOf(err) != c.kind {
				t.Errorf("error is %v (%v), want %v", err, fault.KindOf(err), c.kind)
			}
			snap := s.Snapshot()
			if got := slices.Collect(store.List[*model.Volume](snap)); len(got) != 1 || got[0].ID != "v1" {
				t.Errorf("volumes are %v, want v1 alone", got)
			}
			if snap.Revision() != before {
				t.Errorf("revision is %d, want %d", snap.Revision(), before)
			}
		})
	}
}

func TestExpectationsAreOfTheStateBefore(t *testing.T) {
	s := newStore()
	before := commit(t, s, func(cs *store.ChangeSet) { cs.Put(volume("v1", "data")) })
	commit(t, s, func(cs *store.ChangeSet) {
		cs.Put(volume("v1", "data"))
		cs.Put(volume("v2", "other"))
		cs.Expect(model.KindVolume, "v1", before)
		cs.Expect(model.KindVolume, "v2", 0)
	})
}

func TestGarbageIsRefused(t *testing.T) {
	s := newStore()
	for _, data := range [][]byte{nil, {}, {0}, {0, 1}, {1}, {1, 0xff, 0xff}, {2, 99}, {2, 1}, {2, 1, 3, 118}, {2, 5, 200}, {2, 5, 0, 0, 0}} {
		if r := s.Apply(data); r.Err() == nil || r.Revision != 0 {
			t.Errorf("%v was applied: %+v", data, r)
		}
	}
}

func TestNamesAreUniqueWithinTheirApplication(t *testing.T) {
	s := newStore()
	named := func(id, ns, app, name string) *model.Workload {
		return &model.Workload{Meta: model.Meta{ID: id, Namespace: ns, Application: app, Name: name}}
	}
	commit(t, s, func(cs *store.ChangeSet) {
		cs.Put(named("w1", "default", "shop", "web"))
		cs.Put(named("w2", "default", "", "web"))
		cs.Put(named("w3", "other", "shop", "web"))
		cs.Put(named("w4", "default", "sho", "pweb"))
	})
	if _, err := tryCommit(s, func(cs *store.ChangeSet) { cs.Put(named("w5", "default", "shop", "web")) }); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second shop/web: %v", err)
	}
	commit(t, s, func(cs *store.ChangeSet) { // gone and made anew in one set
		cs.Delete(model.KindWorkload, "w1")
		cs.Put(named("w5", "default", "shop", "web"))
	})
	commit(t, s, func(cs *store.ChangeSet) { cs.Put(named("w5", "default", "shop", "front")) })
	commit(t, s, func(cs *store.ChangeSet) { cs.Put(named("w6", "default", "shop", "web")) }) // the name is free again
	snap := s.Snapshot()
	for name, id := range map[string]string{"web": "w6", "front": "w5"} {
		if w, ok := store.ByName[*model.Workload](snap, "default", "shop", name); !ok || w.ID != id {
			t.Errorf("%s is %v, want %s", name, w, id)
		}
	}
	if n := len(slices.Collect(store.ByApplication[*model.Workload](snap, "default", "shop"))); n != 2 {
		t.Errorf("shop has %d workloads, want 2", n)
	}
	// Instances may share a name while one replaces the other.
	commit(t, s, func(cs *store.ChangeSet) { cs.Put(instance("i1", "w6", "")); cs.Put(instance("i2", "w6", "")) })
}

func TestIndexesFollowChanges(t *testing.T) {
	s := newStore()
	commit(t, s, func(cs *store.ChangeSet) {
		cs.Put(instance("i1", "w1", ""))
		cs.Put(instance("i2", "w1", "n1"))
		cs.Put(instance("i3", "w10", "n10"))
	})
	old := s.Snapshot()
	commit(t, s, func(cs *store.ChangeSet) {
		cs.Put(instance("i1", "w1", "n1"))
		cs.Delete(model.KindInstance, "i2")
	})
	now := s.Snapshot()
	ids := func(list []*model.Instance) (out []string) {
		for _, i := range list {
			out = append(out, i.ID)
		}
		return out
	}
	for _, c := range []struct {
		what string
		got  []*model.Instance
		want []string
	}{
		{"workload before", slices.Collect(store.InstancesOfWorkload(old, "w1")), []string{"i1", "i2"}},
		{"unplaced before", slices.Collect(store.UnplacedInstances(old)), []string{"i1"}},
		{"node before", slices.Collect(store.InstancesOnNode(old, "n1")), []string{"i2"}},
		{"workload", slices.Collect(store.InstancesOfWorkload(now, "w1")), []string{"i1"}},
		{"unplaced", slices.Collect(store.UnplacedInstances(now)), nil},
		{"node", slices.Collect(store.InstancesOnNode(now, "n1")), []string{"i1"}},
		{"ID prefix", slices.Collect(store.ByIDPrefix[*model.Instance](now, "i")), []string{"i1", "i3"}},
	} {
		if got := ids(c.got); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

func TestTimesKeepTheirNanoseconds(t *testing.T) {
	s := newStore()
	at := time.Date(2026, 3, 1, 12, 0, 0, 123_456_789, time.FixedZone("", 3600))
	i := instance("i1", "w1", "n1")
	i.Created, i.Status.ReadySince = at, at.Add(time.Nanosecond)
	commit(t, s, func(cs *store.ChangeSet) { cs.Put(i) })
	check := func(where string, s *store.Store) {
		got := get[*model.Instance](t, s, "i1")
		if !got.Created.Equal(at) || got.Status.ReadySince.Sub(got.Created) != time.Nanosecond || !got.Status.Started.IsZero() {
			t.Errorf("%s: created %v, ready %v, started %v", where, got.Created, got.Status.ReadySince, got.Status.Started)
		}
	}
	check("applied", s)
	check("restored", restored(t, s, newStore()))
}

func written(t *testing.T, s *store.Store) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := s.Snapshot().Write(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// restored brings the state of one store into another.
func restored(t *testing.T, from, to *store.Store) *store.Store {
	t.Helper()
	if err := to.Restore(bytes.NewReader(written(t, from))); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestWatchersSeeEveryChangeInOrder(t *testing.T) {
	s := newStore()
	first := commit(t, s, func(cs *store.ChangeSet) { cs.Put(volume("v0", "v0")) })
	all, volumes, revisions := s.Watch(first), s.Watch(first, model.KindVolume), s.WatchRevisions(first)
	const n = 200
	go func() {
		for k := range n {
			if _, err := tryCommit(s, func(cs *store.ChangeSet) {
				cs.Put(instance(fmt.Sprintf("i%03d", k), "w1", "n1"))
				if k%2 == 1 {
					cs.Put(volume("v0", "v0"))
				}
			}); err != nil {
				t.Error(err)
			}
		}
	}()
	for k := range n {
		b, err := all.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if b.Revision != first+1+uint64(k) || len(b.Changes) != 1+k%2 || b.Changes[0].ID != fmt.Sprintf("i%03d", k) {
			t.Fatalf("batch %d is %+v", k, b)
		}
		if b.Changes[0].Old != nil || b.Changes[0].New.GetMeta().Revision != b.Revision {
			t.Fatalf("change %d is %+v", k, b.Changes[0])
		}
	}
	for k := range n / 2 {
		b, err := volumes.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if b.Revision != first+2+2*uint64(k) || len(b.Changes) != 1 || b.Changes[0].Kind != model.KindVolume || b.Changes[0].Old == nil {
			t.Fatalf("batch of volumes %d is %+v", k, b)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := all.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("nothing is left, but the error is %v", err)
	}
	last := commit(t, s, func(cs *store.ChangeSet) { cs.PutKey("k", nil, 0) })
	if _, err := all.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a key alone was changed, but the error is %v", err)
	}
	for revision := first + 1; revision <= last; revision++ {
		b, err := revisions.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if b.Revision != revision || len(b.Changes) == 0 && revision < last || revisions.Seen() != revision {
			t.Fatalf("the batch of revision %d is %+v", revision, b)
		}
	}
}

func TestASlowWatcherIsToldToListAgain(t *testing.T) {
	s := newStore()
	slow := s.Watch(0)
	touch := func() uint64 {
		return commit(t, s, func(cs *store.ChangeSet) { cs.Put(volume("v1", "v1")) })
	}
	touch()
	if b, err := slow.Next(t.Context()); err != nil || b.Revision != 1 {
		t.Fatalf("first batch: %+v, %v", b, err)
	}
	for range 70 {
		commit(t, s, func(cs *store.ChangeSet) { cs.PutKey("large", make([]byte, 1<<20), 0) })
	}
	touch()
	if _, err := s.KeysAt(1); !errors.Is(err, store.ErrTooOld) || s.Compacted() < 2 {
		t.Fatalf("the past is kept back to %d: %v", s.Compacted(), err)
	}
	if _, err := slow.Next(t.Context()); !errors.Is(err, store.ErrTooOld) {
		t.Fatalf("error is %v, want ErrTooOld", err)
	}
	fresh := s.Watch(s.Snapshot().Revision())
	want := touch()
	if b, err := fresh.Next(t.Context()); err != nil || b.Revision != want {
		t.Errorf("after listing again: %+v, %v", b, err)
	}
}

func TestRestoreTellsWatchersEvenWhenTheRevisionStays(t *testing.T) {
	s := newStore()
	commit(t, s, func(cs *store.ChangeSet) { cs.Put(volume("v1", "v1")) })
	backup := written(t, s)
	now := commit(t, s, func(cs *store.ChangeSet) { cs.Put(volume("v2", "v2")) })
	watcher := s.Watch(now)
	if err := s.Restore(bytes.NewReader(backup)); err != nil {
		t.Fatal(err)
	}
	if got := s.Snapshot().Revision(); got != now {
		t.Errorf("the revision went from %d to %d", now, got)
	}
	if _, ok := store.Get[*model.Volume](s.Snapshot(), "v2"); ok {
		t.Error("v2 outlived a state in which it is not")
	}
	if _, err := watcher.Next(t.Context()); !errors.Is(err, store.ErrTooOld) {
		t.Errorf("the watcher got %v, want ErrTooOld", err)
	}
	fresh := s.Watch(now)
	if next := commit(t, s, func(cs *store.ChangeSet) { cs.Put(volume("v3", "v3")) }); next != now+1 {
		t.Errorf("the next revision is %d, want %d", next, now+1)
	}
	if b, err := fresh.Next(t.Context()); err != nil || b.Revision != now+1 {
		t.Errorf("after listing again: %+v, %v", b, err)
	}
}

func TestDamagedSnapshotsLeaveTheStateAlone(t *testing.T) {
	s := newStore()
	for k := range 20 {
		commit(t, s, func(cs *store.ChangeSet) {
			id := fmt.Sprint("v", k)
			cs.Put(volume(id, id))
			cs.PutKey(id, []byte(id), 0)
		})
	}
	whole := written(t, s)
	other := newStore()
	commit(t, other, func(cs *store.ChangeSet) { cs.Put(volume("mine", "mine")) })
	for cut := range len(whole) - 1 {
		if err := other.Restore(bytes.NewReader(whole[:cut])); err == nil {
			t.Fatalf("the first %d of %d bytes were taken for a snapshot", cut, len(whole))
		}
	}
	for at := range whole {
		damaged := bytes.Clone(whole)
		damaged[at] ^= 4
		if err := other.Restore(bytes.NewReader(damaged)); err == nil {
			t.Fatalf("a snapshot with another byte at %d was taken for a whole one", at)
		}
	}
	if n := len(slices.Collect(store.List[*model.Volume](other.Snapshot()))); n != 1 {
		t.Errorf("%d volumes are left, want 1", n)
	}
}

// TestServersAgree applies one random log to two servers, one of which is restored from the
// other's snapshot now and then: they must give the same answers and hold the same state.
func TestServersAgree(t *testing.T) {
	for seed := range uint64(10) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		log := &recorder{}
		s, other := newStore(), newStore()
		log.Store = s
		s.SetProposer(log)
		for step := range 300 {
			revision := s.Snapshot().Revision()
			_, err := tryCommit(s, func(cs *store.ChangeSet) { randomChanges(rnd, s.Snapshot(), cs, step) })
			if now := s.Snapshot().Revision(); (err == nil) != (now == revision+1) {
				t.Fatalf("seed %d, step %d: error %v, revision from %d to %d", seed, step, err, revision, now)
			}
			if rnd.IntN(50) == 0 {
				other = restored(t, s, newStore())
			} else if got := other.Apply(log.data); got != log.result {
				t.Fatalf("seed %d, step %d: one server says %+v, the other %+v", seed, step, log.result, got)
			}
		}
		compareStores(t, s, other)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

type recorder struct {
	*store.Store
	data   []byte
	result store.Result
}

func (r *recorder) Propose(_ context.Context, data []byte) (store.Result, error) {
	r.data, r.result = data, r.Apply(data)
	return r.result, nil
}

func TestManySetsAtOnceAreLikeOneAfterTheOther(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 11))
		single, many := newStore(), newStore()
		log := &recorder{Store: single}
		single.SetProposer(log)
		one, all := single.Watch(0), many.Watch(0)
		var entries [][]byte
		var want []store.Result
		refused := 0
		for step := range 300 {
			_, err := tryCommit(single, func(cs *store.ChangeSet) {
				randomChanges(rnd, single.Snapshot(), cs, step)
				if rnd.IntN(5) == 0 { // refused after what comes before it was written
					cs.Put(volume("", "nameless"))
				}
			})
			if err != nil {
				refused++
			}
			entries, want = append(entries, log.data), append(want, log.result)
			if rnd.IntN(12) > 0 && step < 299 {
				continue
			}
			if got := many.ApplyAll(entries); !slices.Equal(got, want) {
				t.Fatalf("seed %d, step %d: at once %+v, one after the other %+v", seed, step, got, want)
			}
			entries, want = nil, nil
		}
		if refused < 30 {
			t.Errorf("seed %d: only %d sets were refused", seed, refused)
		}
		compareStores(t, single, many)
		a, b := drain(t, one), drain(t, all)
		if !slices.EqualFunc(a, b, func(a, b store.Batch) bool {
			return a.Revision == b.Revision && (len(a.Changes) == 0 && len(b.Changes) == 0 || reflect.DeepEqual(a.Changes, b.Changes))
		}) {
			t.Fatalf("seed %d: the watcher of sets one after the other and that of many at once do not see the same", seed)
		}
		if now := single.Snapshot().Revision(); one.Seen() != now || all.Seen() != now {
			t.Fatalf("seed %d: the watchers have seen all up to %d and %d, want %d", seed, one.Seen(), all.Seen(), now)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// drain returns all batches that are there.
func drain(t *testing.T, w *store.Watcher) (out []store.Batch) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for {
		b, err := w.Next(ctx)
		if errors.Is(err, context.Canceled) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
}

func randomChanges(rnd *rand.Rand, snap *store.Snapshot, cs *store.ChangeSet, step int) {
	for range 1 + rnd.IntN(4) {
		id := fmt.Sprint("x", rnd.IntN(12))
		at := time.Unix(int64(step), int64(rnd.IntN(1e9)))
		switch rnd.IntN(8) {
		case 0, 1:
			i := instance(id, fmt.Sprint("w", rnd.IntN(3)), fmt.Sprint("n", rnd.IntN(3)))
			i.Created, i.Status.Restarts = at, step
			cs.Put(i)
		case 2:
			i := instance(id, "", "")
			i.Status.State, i.Status.Finished = model.InstanceFailed, at
			cs.PutStatus(i)
		case 3:
			cs.Put(volume(id, fmt.Sprint("name", rnd.IntN(6))))
		case 4:
			cs.Delete([]model.Kind{model.KindInstance, model.KindVolume, model.KindEvent}[rnd.IntN(3)], id)
		case 5:
			var revision uint64
			if i, ok := store.Get[*model.Instance](snap, id); ok {
				revision = i.Revision
			}
			cs.Expect(model.KindInstance, id, revision+uint64(rnd.IntN(5)/4))
		default:
			cs.Put(&model.Event{Meta: model.Meta{ID: id, Name: id}, Time: at, Type: "something"})
		}
	}
}

func compareStores(t *testing.T, a, b *store.Store) {
	t.Helper()
	x, y := a.Snapshot(), b.Snapshot()
	if x.Revision() != y.Revision() {
		t.Errorf("revision %d against %d", x.Revision(), y.Revision())
	}
	compareTables[*model.Instance](t, x, y)
	compareTables[*model.Volume](t, x, y)
	compareTables[*model.Event](t, x, y)
}

func compareTables[T model.Object](t *testing.T, x, y *store.Snapshot) {
	t.Helper()
	a, b := slices.Collect(store.List[T](x)), slices.Collect(store.List[T](y))
	if len(a) != len(b) {
		t.Errorf("%T: %d against %d", a, len(a), len(b))
		return
	}
	for i := range a {
		if !reflect.DeepEqual(a[i], b[i]) {
			t.Errorf("%+v against %+v", a[i], b[i])
		}
	}
}

func TestEventsAreBoundedAlikeOnEveryServer(t *testing.T) {
	s := newStore()
	log := &recorder{Store: s}
	s.SetProposer(log)
	serial := 0
	add := func(n int) {
		commit(t, s, func(cs *store.ChangeSet) {
			for range n {
				serial++
				id := fmt.Sprintf("e%05d", (serial*7919)%100_003) // not in the order of time
				cs.Put(&model.Event{Meta: model.Meta{ID: id, Name: id}, Time: time.Unix(int64(serial), 0)})
			}
		})
	}
	count := func(s *store.Store) int { return len(slices.Collect(store.List[*model.Event](s.Snapshot()))) }
	for range 12 {
		add(900)
	}
	if n := count(s); n != 10_000 {
		t.Fatalf("%d events are kept, want 10000", n)
	}
	for e := range store.List[*model.Event](s.Snapshot()) {
		if e.Time.Unix() <= 10_800-10_000-900 {
			t.Fatalf("an event of %d is kept though newer ones gave way", e.Time.Unix())
		}
	}
	// One that is deleted or changed has to leave its place, on a restored server as on this one.
	var gone, changed *model.Event
	for e := range store.List[*model.Event](s.Snapshot()) {
		switch {
		case gone == nil || e.Time.Before(gone.Time):
			gone, changed = e, gone
		}
	}
	commit(t, s, func(cs *store.ChangeSet) {
		cs.Delete(model.KindEvent, gone.ID)
		if changed != nil {
			cs.Put(changed.Clone())
		}
	})
	other := restored(t, s, newStore())
	for range 3 {
		for range 5 {
			add(700)
			if got := other.Apply(log.data); got != log.result {
				t.Fatalf("one server says %+v, the other %+v", log.result, got)
			}
		}
		compareStores(t, s, other)
		if t.Failed() {
			return
		}
	}
}

func TestExpectationsAreNoChanges(t *testing.T) {
	var cs store.ChangeSet
	cs.Put(volume("v1", "v1"))
	cs.PutStatus(instance("i1", "w1", ""))
	cs.Delete(model.KindVolume, "v2")
	cs.Expect(model.KindVolume, "v1", 0)
	if cs.Len() != 3 {
		t.Errorf("the set counts %d changes, want 3", cs.Len())
	}
}

// A million instances are held at a time: a field more makes each of them 64 bytes larger, as the
// runtime's next size is. What few have goes behind a pointer.
func TestSizeOfInstances(t *testing.T) {
	if size := unsafe.Sizeof(model.Instance{}); size > 512 {
		t.Errorf("an instance takes %d bytes, which the runtime makes 576 of; up to 512 is wanted", size)
	}
	if size := unsafe.Sizeof(model.TaskStatus{}); size > 208 {
		t.Errorf("the status of a task takes %d bytes, want 208 at most", size)
	}
}
