package core

import (
	"context"
	"iter"
	"sync"
	"time"
)

// together has all asked, so many at a time and each with so much patience, and returns once that is done.
func together[T any](ctx context.Context, all iter.Seq[T], most int, patience time.Duration, ask func(ctx context.Context, one T)) {
	room := make(chan struct{}, most)
	var wg sync.WaitGroup
	for one := range all {
		wg.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			ask(ctx, one)
		})
	}
	wg.Wait()
}
