package store_test

import (
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// BenchmarkApply reports the processor time, the garbage collector's included, that applying one
// change set takes: a put of 128 bytes to one of many keys, 64 in a batch, or the status of an
// instance.
func BenchmarkApply(b *testing.B) {
	value := make([]byte, 128)
	key := func(k int) string { return fmt.Sprintf("/registry/pods/default/web-%08x", uint32(k)*2654435761) }
	for _, keys := range []int{1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("key of %d", keys), func(b *testing.B) {
			benchmarkApply(b, keys, 64, func(cs *store.ChangeSet, k int) { cs.PutKey(key(k), value, 0) })
		})
	}
	b.Run("status of 100000", func(b *testing.B) {
		benchmarkApply(b, 100_000, 64, func(cs *store.ChangeSet, k int) {
			i := instance(fmt.Sprintf("%024x", uint32(k)*2654435761), fmt.Sprint("w", k%100), fmt.Sprint("n", k%1000))
			i.Status.State = model.InstanceRunning
			cs.Put(i)
		})
	})
}

func benchmarkApply(b *testing.B, many, batch int, fill func(cs *store.ChangeSet, k int)) {
	s := newStore()
	rnd := rand.New(rand.NewPCG(1, 2))
	encoded := func(k int) []byte {
		log := &recorder{Store: newStore()}
		log.Store.SetProposer(log)
		if _, err := tryCommit(log.Store, func(cs *store.ChangeSet) { fill(cs, k) }); err != nil {
			b.Fatal(err)
		}
		return log.data
	}
	var entries [][]byte
	for k := range many {
		entries = append(entries, encoded(k))
	}
	for k := 0; k < many; k += batch {
		s.ApplyAll(entries[k:min(k+batch, many)])
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := processorTime()
	next := make([][]byte, batch)
	for n := 0; n < b.N; n += batch {
		for i := range next {
			next[i] = entries[rnd.IntN(many)]
		}
		for _, r := range s.ApplyAll(next) {
			if r.Error != "" {
				b.Fatal(r.Error)
			}
		}
	}
	b.ReportMetric(float64(processorTime()-before)/float64(b.N), "cpu-ns/op")
}

func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
