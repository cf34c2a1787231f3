package consensus

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/store"
)

// BenchmarkWrites has 256 writers write through three servers of this process, at the leader and at
// a follower, into stores and into state machines that do nothing. Beside the time it tells the
// processor time of all three for each write, which says more on a machine that has other things to
// do.
func BenchmarkWrites(b *testing.B) {
	var number atomic.Int64
	stores := func(s *server) error { return s.write(context.Background(), fmt.Sprint("o", number.Add(1))) }
	set := make([]byte, 160)
	inert := func(s *server) error {
		_, err := s.raft.Propose(context.Background(), set)
		return err
	}
	for _, into := range []struct {
		name  string
		fsm   func() FSM
		write func(*server) error
	}{{"store", nil, stores}, {"nothing", func() FSM { return &nothing{} }, inert}} {
		b.Run(into.name, func(b *testing.B) {
			c := newClusterOf(b, 3, into.fsm)
			b.Run("leader", func(b *testing.B) { benchmarkWrites(b, c.leader(), into.write) })
			b.Run("follower", func(b *testing.B) { benchmarkWrites(b, c.followers()[0], into.write) })
		})
	}
}

func benchmarkWrites(b *testing.B, s *server, write func(*server) error) {
	var before, after syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for range 256 {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := write(s); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
}

// nothing is a state machine that only counts.
type nothing struct{ revision atomic.Uint64 }

func (n *nothing) ApplyAll(sets [][]byte) []store.Result {
	out := make([]store.Result, len(sets))
	for i := range out {
		out[i].Revision = n.revision.Add(1)
	}
	return out
}

func (n *nothing) Snapshot() *store.Snapshot {
	return store.New(slog.New(slog.DiscardHandler)).Snapshot()
}
func (n *nothing) Restore(io.Reader) error { return nil }
