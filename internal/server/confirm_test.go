package server

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
)

// TestConfirm asks for what others say of terms: a majority must know of no later one than that in
// which this server leads.
func TestConfirm(t *testing.T) {
	away := uint64(0) // does not answer
	for _, c := range []struct {
		name   string
		leads  bool
		others []uint64
		ok     bool
	}{
		{"alone", true, nil, true},
		{"of three, one is enough", true, []uint64{7, away}, true},
		{"of three, none is too few", true, []uint64{away, away}, false},
		{"replaced while it was stopped", true, []uint64{8, 8}, false},
		{"of five, two", true, []uint64{7, 7, 8, away}, true},
		{"of five, one", true, []uint64{7, 8, away, 8}, false},
		{"leads no more", false, []uint64{7, 7}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				names := []string{"b", "c", "d", "e"}[:len(c.others)]
				says := map[string]uint64{}
				for k, n := range names {
					says[n] = c.others[k]
				}
				f := &confirmer{
					term:   func() (uint64, bool) { return 7, c.leads },
					voters: func() []string { return names },
					ask: func(ctx context.Context, address string) (uint64, error) {
						if says[address] == away {
							<-ctx.Done()
							return 0, ctx.Err()
						}
						return says[address], nil
					},
				}
				if err := f.confirm(t.Context()); (err == nil) != c.ok || err != nil && !fault.Is(err, fault.Unavailable) {
					t.Errorf("it is confirmed with %v", err)
				}
			})
		})
	}
}

// TestConfirmAsksAnew: an answer that was on its way before does not count, and those who come while
// a round is under way share the next.
func TestConfirmAsksAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rounds, term atomic.Int64
		term.Store(7)
		f := &confirmer{
			term:   func() (uint64, bool) { return 7, true },
			voters: func() []string { return []string{"b"} },
			ask: func(context.Context, string) (uint64, error) {
				said := uint64(term.Load()) // as of when it is asked
				rounds.Add(1)
				time.Sleep(100 * time.Millisecond)
				return said, nil
			},
		}
		first := make(chan error, 1)
		go func() { first <- f.confirm(t.Context()) }()
		synctest.Wait()
		term.Store(8) // another is elected
		later := make(chan error, 5)
		for range 5 {
			go func() { later <- f.confirm(t.Context()) }()
		}
		if err := <-first; err != nil {
			t.Errorf("who asked before gets %v", err)
		}
		for range 5 {
			if err := <-later; err == nil {
				t.Error("an answer of before was taken for one of now")
			}
		}
		if n := rounds.Load(); n != 2 {
			t.Errorf("there were %d rounds, want two", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := f.confirm(ctx); err == nil || !errors.Is(err, context.Canceled) {
			t.Errorf("who waits no longer gets %v", err)
		}
		time.Sleep(time.Second)
	})
}
