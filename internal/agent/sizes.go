package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/files"
	"github.com/tutti-run/tutti/internal/wire"
)

const (
	// sizesAtOnce is how many trees of files are gone through at a time, whoever asks.
	sizesAtOnce = 4
	// sizesWithin is how long a node takes to answer: what is not known by then is said to be unknown.
	sizesWithin = 20 * time.Second
	// A figure is given again for sizeWorth times as long as it took to find it out, and no longer than sizeKept.
	sizeWorth = 10
	sizeKept  = time.Minute
)

// sizes are how much files hold, as far as that was found out. Going through files costs as much as there are of
// them, so that few do at a time, those who ask for the same together, and what took long is not found out anew at once.
type sizes struct {
	once singleflight.Group
	room chan struct{}
	mu   sync.Mutex
	of   map[string]sized
}

type sized struct {
	bytes int64
	until time.Time // when it is found out anew
}

func newSizes() *sizes {
	return &sizes{room: make(chan struct{}, sizesAtOnce), of: map[string]sized{}}
}

// below adds up the files below a directory.
func (s *sizes) below(ctx context.Context, dir string) (int64, error) {
	for {
		if bytes, ok := s.known(dir); ok {
			return bytes, nil
		}
		v, err, shared := s.once.Do(dir, func() (any, error) {
			select {
			case s.room <- struct{}{}:
				defer func() { <-s.room }()
			case <-ctx.Done():
				return int64(0), ctx.Err()
			}
			root, err := files.Open(dir)
			if err != nil {
				return int64(0), err
			}
			defer root.Close()
			began := time.Now()
			bytes, err := root.Size(ctx)
			if err == nil {
				s.keep(dir, bytes, time.Since(began))
			}
			return bytes, err
		})
		if err == nil {
			return v.(int64), nil
		}
		// Another caller's patience is not this one's.
		if gaveUp := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded); !shared || !gaveUp || ctx.Err() != nil {
			return 0, err
		}
	}
}

func (s *sizes) known(dir string) (int64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.of[dir]
	return e.bytes, ok && time.Now().Before(e.until)
}

func (s *sizes) keep(dir string, bytes int64, took time.Duration) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for other, e := range s.of {
		if now.After(e.until) {
			delete(s.of, other)
		}
	}
	s.of[dir] = sized{bytes, now.Add(min(sizeWorth*took, sizeKept))}
}

// Sizes tells how much files of tasks and volumes hold, of each in the order in which they were asked for. Of what is
// not here, or takes too long, it says that it is unknown.
func (a *Agent) Sizes(ctx context.Context, r wire.SizesRequest) (wire.SizesReply, error) {
	ctx, cancel := context.WithTimeout(ctx, sizesWithin)
	defer cancel()
	select {
	case <-a.adopted:
	case <-ctx.Done():
	}
	out := wire.SizesReply{Tasks: make([]wire.TaskSize, len(r.Tasks)), Volumes: make([]int64, len(r.Volumes))}
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(sizesAtOnce, len(r.Tasks)+len(r.Volumes)) {
		wg.Go(func() {
			for n := range next {
				if n < len(r.Tasks) {
					out.Tasks[n] = a.taskSize(ctx, r.Tasks[n])
					continue
				}
				n -= len(r.Tasks)
				out.Volumes[n] = a.volumeSize(ctx, r.Volumes[n])
			}
		})
	}
	for n := range len(r.Tasks) + len(r.Volumes) {
		next <- n
	}
	close(next)
	wg.Wait()
	return out, nil
}

func (a *Agent) taskSize(ctx context.Context, ref wire.TaskRef) wire.TaskSize {
	unknown := wire.TaskSize{Written: wire.UnknownSize, Total: wire.UnknownSize}
	if ctx.Err() != nil {
		return unknown
	}
	w, err := a.worker(ref.Instance)
	if err != nil {
		return unknown
	}
	w.mu.Lock()
	t, err := w.task(ref.Task)
	w.mu.Unlock()
	if err != nil {
		return unknown
	}
	dir, below := w.sandbox(t), int64(0)
	if driverName(t) != "process" {
		if dir, below, err = a.Images.Written(ctx, w.id+"."+t.Name); err != nil {
			if fault.Is(err, fault.NotFound) {
				return wire.TaskSize{} // it has none yet, or none any more
			}
			return unknown
		}
	}
	written, err := a.sizes.below(ctx, dir)
	if err != nil {
		return unknown
	}
	return wire.TaskSize{Written: written, Total: below + written}
}

func (a *Agent) volumeSize(ctx context.Context, id string) int64 {
	dir, err := a.Volumes.Held(id)
	if err != nil {
		return wire.UnknownSize
	}
	bytes, err := a.sizes.below(ctx, dir)
	if err != nil {
		return wire.UnknownSize
	}
	return bytes
}
