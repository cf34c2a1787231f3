package control_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/control"
	"github.com/tutti-run/tutti/internal/store"
)

// keySpace is a store whose leader expires keys.
type keySpace struct {
	*cluster
	end func()
}

func inKeySpace(t *testing.T, test func(k *keySpace)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{T: t, store: store.New(slog.New(slog.DiscardHandler))}
		c.store.SetProposer(c)
		k := &keySpace{cluster: c}
		k.lead()
		defer func() { k.end() }()
		test(k)
	})
}

// lead makes another leader take over.
func (k *keySpace) lead() {
	if k.end != nil {
		k.end()
	}
	ctx, cancel := context.WithCancel(k.Context())
	done := make(chan error, 1)
	x := &control.Expiry{Store: k.store, Log: slog.New(slog.DiscardHandler)}
	go func() { done <- x.Run(ctx) }()
	k.end = func() {
		cancel()
		if err := <-done; err != nil {
			k.Errorf("expiry ended with %v", err)
		}
	}
	synctest.Wait()
}

func (k *keySpace) putFor(key string, ttl time.Duration) {
	k.Helper()
	k.commit(func(cs *store.ChangeSet) { cs.PutKey(key, nil, ttl) })
	synctest.Wait()
}

func (k *keySpace) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (k *keySpace) want(keys ...string) {
	k.Helper()
	have := k.store.Snapshot().Keys()
	for _, key := range keys {
		if _, ok := have.Get(key); !ok {
			k.Errorf("key %s is gone", key)
		}
	}
	if have.Len() != len(keys) {
		k.Errorf("%d keys are there, want %v", have.Len(), keys)
	}
}

func TestKeysExpire(t *testing.T) {
	inKeySpace(t, func(k *keySpace) {
		k.putFor("for ever", 0)
		k.putFor("short", time.Second)
		k.putFor("long", time.Minute)
		k.pass(time.Second - time.Millisecond)
		k.want("for ever", "short", "long")
		k.pass(time.Millisecond)
		k.want("for ever", "long")
		k.pass(time.Hour)
		k.want("for ever")
	})
}

func TestAKeyLivesOnWhenItIsWritten(t *testing.T) {
	inKeySpace(t, func(k *keySpace) {
		k.putFor("lease", time.Second)
		for range 5000 { // many times: what has passed must not pile up
			k.pass(900 * time.Millisecond)
			k.putFor("lease", time.Second)
		}
		k.pass(999 * time.Millisecond)
		k.want("lease")
		k.putFor("lease", 0)
		k.pass(time.Hour)
		k.want("lease")
		k.putFor("lease", time.Second)
		k.commit(func(cs *store.ChangeSet) { cs.DeleteKey("lease") })
		k.pass(500 * time.Millisecond)
		k.putFor("lease", time.Second) // another of the same name
		k.pass(800 * time.Millisecond)
		k.want("lease")
		k.pass(200 * time.Millisecond)
		k.want()
	})
}

func TestANewLeaderGivesKeysTheirFullTime(t *testing.T) {
	inKeySpace(t, func(k *keySpace) {
		k.putFor("lease", 10*time.Second)
		for range 5 {
			k.pass(9 * time.Second)
			k.lead()
		}
		k.pass(10*time.Second - time.Millisecond)
		k.want("lease")
		k.pass(time.Millisecond)
		k.want()
	})
}

func TestAKeyWrittenAtTheLastMomentStays(t *testing.T) {
	inKeySpace(t, func(k *keySpace) {
		k.putFor("lease", time.Second)
		k.setOutrun(func() bool { // between the leader's decision and its change
			var cs store.ChangeSet
			cs.PutKey("lease", []byte("mine"), time.Second)
			_, err := k.store.Commit(t.Context(), &cs)
			return err == nil
		})
		k.pass(1500 * time.Millisecond)
		k.wantOutrun()
		k.want("lease")
		k.pass(time.Second)
		k.want()
	})
}

func TestExpiryIsTriedAgainWithoutQuorum(t *testing.T) {
	inKeySpace(t, func(k *keySpace) {
		for n := range 3000 {
			k.putFor(fmt.Sprint("k", n), time.Second)
		}
		k.mu.Lock()
		k.refuse = 7
		k.mu.Unlock()
		k.pass(1100 * time.Millisecond)
		if k.store.Snapshot().Keys().Len() != 3000 {
			t.Error("keys are gone without a quorum")
		}
		k.pass(time.Second)
		k.want()
	})
}

func TestExpiryGoesOnAfterItFellBehind(t *testing.T) {
	inKeySpace(t, func(k *keySpace) {
		k.putFor("lease", 10*time.Second)
		k.pass(5 * time.Second)
		// More than is kept, before the watcher gets to run.
		k.commit(func(cs *store.ChangeSet) { cs.PutKey("other", nil, 10*time.Second) })
		for range 70 {
			k.commit(func(cs *store.ChangeSet) { cs.PutKey("large", make([]byte, 1<<20), 0) })
		}
		if k.store.Compacted() == 0 {
			t.Fatal("all changes are kept")
		}
		k.pass(5 * time.Second)
		k.want("other", "large")
		k.pass(5 * time.Second)
		k.want("large")
	})
}
