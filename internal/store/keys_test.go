package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// naive is the key space as simple as can be: everything at every revision.
type naive struct {
	at      []map[string]store.KeyValue // by revision
	changes [][]naiveChange             // of each revision
}

type naiveChange struct {
	key      string
	old, now *store.KeyValue
}

// naiveSet is a change set with what the model must do for it.
type naiveSet struct {
	cs    store.ChangeSet
	apply func(m map[string]store.KeyValue, revision uint64) ([]naiveChange, bool)
}

func randomSet(rnd *rand.Rand, m map[string]store.KeyValue) *naiveSet {
	s := &naiveSet{}
	var steps []func(m map[string]store.KeyValue, revision uint64) []naiveChange
	refused := false
	key := func() string { return fmt.Sprintf("/%c/%02d", 'a'+rnd.IntN(3), rnd.IntN(40)) }
	remove := func(m map[string]store.KeyValue, k string) (out []naiveChange) {
		if old, ok := m[k]; ok {
			delete(m, k)
			out = append(out, naiveChange{key: k, old: &old})
		}
		return out
	}
	for range rnd.IntN(5) {
		k := key()
		switch rnd.IntN(9) {
		case 0, 1, 2, 3:
			value, ttl := fmt.Sprint(rnd.IntN(1000)), time.Duration(rnd.IntN(3))*time.Second
			s.cs.PutKey(k, []byte(value), ttl)
			steps = append(steps, func(m map[string]store.KeyValue, revision uint64) []naiveChange {
				kv := store.KeyValue{Key: k, Value: []byte(value), Created: revision, Modified: revision, Version: 1, TTL: ttl}
				c := naiveChange{key: k, now: &kv}
				if old, ok := m[k]; ok {
					kv.Created, kv.Version, c.old = old.Created, old.Version+1, &old
				}
				m[k] = kv
				return []naiveChange{c}
			})
		case 4:
			s.cs.DeleteKey(k)
			steps = append(steps, func(m map[string]store.KeyValue, _ uint64) []naiveChange { return remove(m, k) })
		case 5:
			if rnd.IntN(4) > 0 {
				continue
			}
			from, to := k, store.PrefixEnd(k[:3])
			s.cs.DeleteKeys(from, to)
			steps = append(steps, func(m map[string]store.KeyValue, _ uint64) (out []naiveChange) {
				for _, k := range slices.Sorted(maps.Keys(m)) {
					if from <= k && k < to {
						out = append(out, remove(m, k)...)
					}
				}
				return out
			})
		case 6, 7:
			revision := m[k].Modified + uint64(rnd.IntN(8)/7)
			s.cs.ExpectKey(k, revision)
			refused = refused || m[k].Modified != revision
		default:
			revision := m[k].Modified + uint64(rnd.IntN(2))
			s.cs.DeleteKeyIf(k, revision)
			steps = append(steps, func(m map[string]store.KeyValue, _ uint64) []naiveChange {
				if m[k].Modified != revision {
					return nil
				}
				return remove(m, k)
			})
		}
	}
	if rnd.IntN(6) == 0 { // objects and keys in one set
		s.cs.Put(volume("v1", "data"))
	}
	if rnd.IntN(15) == 0 { // refused half-way
		s.cs.Put(volume("v2", "data"))
		s.cs.Put(volume("v3", "data"))
		refused = true
	}
	s.apply = func(m map[string]store.KeyValue, revision uint64) (out []naiveChange, ok bool) {
		if refused {
			return nil, false
		}
		for _, step := range steps {
			out = append(out, step(m, revision)...)
		}
		return out, true
	}
	return s
}

// encodedSet returns what would be replicated.
func encodedSet(cs *store.ChangeSet) []byte {
	log := &recorder{Store: newStore()}
	log.SetProposer(log)
	_, _ = log.Commit(context.Background(), cs)
	return log.data
}

func TestKeysAreLikeTheNaiveModel(t *testing.T) {
	for seed := range uint64(12) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		m := naive{at: []map[string]store.KeyValue{{}}, changes: [][]naiveChange{nil}}
		s := newStore()
		watches := map[*store.Watcher]string{}
		floor := uint64(0)
		for step := range 250 {
			var entries [][]byte
			var want []bool
			for range 1 + rnd.IntN(4) {
				now := maps.Clone(m.at[len(m.at)-1])
				set := randomSet(rnd, now)
				revision := uint64(len(m.at))
				entries = append(entries, encodedSet(&set.cs))
				changes, ok := set.apply(now, revision)
				if ok {
					m.at, m.changes = append(m.at, now), append(m.changes, changes)
				}
				want = append(want, ok)
			}
			for i, r := range s.ApplyAll(entries) {
				if (r.Error == "") != want[i] {
					t.Fatalf("seed %d, step %d, set %d: %+v, the model says %v", seed, step, i, r, want[i])
				}
			}
			now := uint64(len(m.at) - 1)
			if got := s.Snapshot().Revision(); got != now {
				t.Fatalf("seed %d: revision %d, want %d", seed, got, now)
			}
			m.compare(t, s.Snapshot().Keys(), now)
			for range 2 {
				revision := floor + rnd.Uint64N(now-floor+1)
				past, err := s.KeysAt(revision)
				if err != nil {
					t.Fatalf("seed %d: keys at %d of %d: %v", seed, revision, now, err)
				}
				m.compare(t, past, revision)
				m.comparePages(t, rnd, past, revision)
			}
			prefix := []string{"", "/a/", "/b/1", "/c/07"}[rnd.IntN(4)]
			from := floor + rnd.Uint64N(now-floor+1)
			m.compareWatch(t, s.WatchKeys(from, prefix, store.PrefixEnd(prefix)), prefix, from)
			if rnd.IntN(10) == 0 {
				watches[s.WatchKeys(now, prefix, store.PrefixEnd(prefix))] = prefix
			}
			for w, prefix := range watches {
				if rnd.IntN(4) == 0 {
					m.compareWatch(t, w, prefix, w.Seen())
				}
			}
			if rnd.IntN(60) == 0 {
				s, floor, watches = restored(t, s, newStore()), now, map[*store.Watcher]string{}
				if now > 0 {
					if _, err := s.KeysAt(now - 1); !errors.Is(err, store.ErrTooOld) {
						t.Fatalf("before a restore: %v, want ErrTooOld", err)
					}
				}
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
		if _, err := s.KeysAt(uint64(len(m.at))); !fault.Is(err, fault.Unavailable) {
			t.Errorf("keys of the future: %v, want unavailable", err)
		}
	}
}

func same(a *store.KeyValue, b *store.KeyValue) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return a.Key == b.Key && bytes.Equal(a.Value, b.Value) && a.Created == b.Created && a.Modified == b.Modified && a.Version == b.Version && a.TTL == b.TTL
}

func (m *naive) compare(t *testing.T, got store.Keys, revision uint64) {
	t.Helper()
	want := m.at[revision]
	if got.Revision() != revision || got.Len() != len(want) {
		t.Fatalf("%d keys at revision %d, want %d at %d", got.Len(), got.Revision(), len(want), revision)
	}
	for kv := range got.Range("", "") {
		if w, ok := want[kv.Key]; !ok || !same(kv, &w) {
			t.Fatalf("at revision %d: %+v, want %+v", revision, kv, w)
		}
	}
	for k, w := range want {
		if kv, ok := got.Get(k); !ok || !same(kv, &w) {
			t.Fatalf("at revision %d: %+v, want %+v", revision, kv, w)
		}
	}
}

func (m *naive) comparePages(t *testing.T, rnd *rand.Rand, keys store.Keys, revision uint64) {
	t.Helper()
	prefix := []string{"", "/a/", "/b/2"}[rnd.IntN(3)]
	var want, got []string
	for _, k := range slices.Sorted(maps.Keys(m.at[revision])) {
		if strings.HasPrefix(k, prefix) {
			want = append(want, k)
		}
	}
	for from := prefix; ; from = got[len(got)-1] + "\x00" {
		size := len(got)
		for kv := range keys.Range(from, store.PrefixEnd(prefix)) {
			if got = append(got, kv.Key); len(got) == size+7 {
				break
			}
		}
		if len(got) == size {
			break
		}
	}
	if !slices.Equal(got, want) || keys.Count(prefix, store.PrefixEnd(prefix)) != len(want) {
		t.Fatalf("at revision %d below %q: %v, want %v", revision, prefix, got, want)
	}
}

func (m *naive) compareWatch(t *testing.T, w *store.Watcher, prefix string, from uint64) {
	t.Helper()
	got := drain(t, w)
	for revision := from + 1; revision < uint64(len(m.changes)); revision++ {
		var want []naiveChange
		for _, c := range m.changes[revision] {
			if strings.HasPrefix(c.key, prefix) {
				want = append(want, c)
			}
		}
		if len(want) == 0 {
			continue
		}
		if len(got) == 0 || got[0].Revision != revision || len(got[0].Keys) != len(want) || len(got[0].Changes) != 0 {
			t.Fatalf("watching %q from %d: no %v at %d in %+v", prefix, from, want, revision, got)
		}
		for i, c := range got[0].Keys {
			if c.Key() != want[i].key || !same(c.Old, want[i].old) || !same(c.New, want[i].now) {
				t.Fatalf("watching %q: %+v, want %+v", prefix, c, want[i])
			}
		}
		got = got[1:]
	}
	if len(got) > 0 {
		t.Fatalf("watching %q from %d: %+v too many", prefix, from, got)
	}
	if w.Seen() != uint64(len(m.changes)-1) {
		t.Fatalf("seen up to %d, want %d", w.Seen(), len(m.changes)-1)
	}
}

func TestThePastIsReadAcrossManyRevisions(t *testing.T) {
	s := newStore()
	const revisions = 5000
	for k := range revisions {
		commit(t, s, func(cs *store.ChangeSet) { cs.PutKey(fmt.Sprint("k", k%100), fmt.Append(nil, k+1), 0) })
	}
	for revision := uint64(1); revision <= revisions; revision += 37 {
		keys, err := s.KeysAt(revision)
		if err != nil {
			t.Fatal(err)
		}
		if want := min(revision, 100); uint64(keys.Len()) != want {
			t.Fatalf("%d keys at revision %d, want %d", keys.Len(), revision, want)
		}
		for kv := range keys.Range("", "") {
			if string(kv.Value) != fmt.Sprint(kv.Modified) || kv.Modified > revision || kv.Modified+100 <= revision {
				t.Fatalf("at revision %d: %+v", revision, kv)
			}
		}
	}
}

func TestKeysThatCannotBe(t *testing.T) {
	s := newStore()
	for what, fill := range map[string]func(cs *store.ChangeSet){
		"no key":     func(cs *store.ChangeSet) { cs.PutKey("", nil, 0) },
		"zero byte":  func(cs *store.ChangeSet) { cs.PutKey("a\x00b", nil, 0) },
		"long key":   func(cs *store.ChangeSet) { cs.PutKey(strings.Repeat("k", store.MaxKeyBytes+1), nil, 0) },
		"long value": func(cs *store.ChangeSet) { cs.PutKey("k", make([]byte, store.MaxValueBytes+1), 0) },
		"no time":    func(cs *store.ChangeSet) { cs.PutKey("k", nil, time.Microsecond) },
	} {
		if _, err := tryCommit(s, fill); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want invalid", what, err)
		}
	}
}

func TestPrefixEnd(t *testing.T) {
	for prefix, want := range map[string]string{"": "", "a": "b", "/a/": "/a0", "a\xff": "b", "\xff\xff": ""} {
		if got := store.PrefixEnd(prefix); got != want {
			t.Errorf("behind %q is %q, want %q", prefix, got, want)
		}
	}
}

// TestFormatsBeforeAreStillRead makes a change set and a snapshot as format 1 had them.
func TestFormatsBeforeAreStillRead(t *testing.T) {
	codec, err := cbor.EncOptions{Time: cbor.TimeRFC3339NanoUTC}.EncMode()
	if err != nil {
		t.Fatal(err)
	}
	object, err := codec.Marshal(volume("v1", "data"))
	if err != nil {
		t.Fatal(err)
	}
	set, err := codec.Marshal([]map[string]any{
		{"t": 4, "k": "volume", "i": "v1", "r": 0},
		{"t": 1, "k": "volume", "i": "v1", "o": cbor.RawMessage(object)},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := newStore()
	if r := s.Apply(append([]byte{1}, set...)); r.Err() != nil {
		t.Fatal(r.Err())
	}
	if r := s.Apply(append([]byte{1}, set...)); !fault.Is(r.Err(), fault.Conflict) {
		t.Errorf("the expectation of a set of format 1: %v", r.Err())
	}
	if v := get[*model.Volume](t, s, "v1"); v.Name != "data" || v.Revision != 1 {
		t.Errorf("%+v", v)
	}

	var snapshot bytes.Buffer
	enc := codec.NewEncoder(&snapshot)
	for _, row := range []any{
		map[string]any{"magic": "TUTTI-STATE", "version": 1, "revision": 9},
		map[string]any{"k": "volume", "r": 7, "o": cbor.RawMessage(object)},
		map[string]any{"k": "", "r": 0, "o": nil},
	} {
		if err := enc.Encode(row); err != nil {
			t.Fatal(err)
		}
	}
	s = newStore()
	if err := s.Restore(&snapshot); err != nil {
		t.Fatal(err)
	}
	if v := get[*model.Volume](t, s, "v1"); v.Name != "data" || v.Revision != 7 || s.Snapshot().Revision() != 9 {
		t.Errorf("%+v at revision %d", v, s.Snapshot().Revision())
	}
}

func TestAFormatOfTheFutureStopsTheServer(t *testing.T) {
	s := newStore()
	defer func() {
		if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "upgrade this server") {
			t.Errorf("it went on, or did not say why: %v", p)
		}
	}()
	s.Apply([]byte{3, 1, 2, 3})
}

func TestARaisedSnapshotContinuesAtHigherRevisions(t *testing.T) {
	s := newStore()
	old := commit(t, s, func(cs *store.ChangeSet) { cs.PutKey("k", []byte("v"), time.Minute); cs.Put(volume("v1", "data")) })
	var raised bytes.Buffer
	contents, err := store.RaiseSnapshot(&raised, bytes.NewReader(written(t, s)), 1_000_000)
	if err != nil || contents.Revision != old+1_000_000 || contents.Keys != 1 || contents.Objects[model.KindVolume] != 1 {
		t.Fatalf("%+v, %v", contents, err)
	}
	if checked, err := store.CheckSnapshot(bytes.NewReader(raised.Bytes())); err != nil || checked.Revision != contents.Revision {
		t.Fatalf("%+v, %v", checked, err)
	}
	other := newStore()
	if err := other.Restore(&raised); err != nil {
		t.Fatal(err)
	}
	if kv, ok := other.Snapshot().Keys().Get("k"); !ok || kv.Modified != old || kv.TTL != time.Minute {
		t.Errorf("%+v", kv)
	}
	if _, err := other.WatchKeys(old+5, "", "").Next(t.Context()); !errors.Is(err, store.ErrTooOld) {
		t.Errorf("watching from a revision of the time lost: %v, want ErrTooOld", err)
	}
	if next := commit(t, other, func(cs *store.ChangeSet) { cs.PutKey("k", nil, 0) }); next != old+1_000_001 {
		t.Errorf("the next revision is %d", next)
	}
}
