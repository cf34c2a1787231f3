package storage

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
)

// progressID is the watch that answers to requests for progress are of.
const progressID = -1

// watches are those of one stream.
type watches struct {
	server *Server
	stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]

	mu   sync.Mutex // is held while something is sent
	all  map[int64]*watch
	last int64
}

// watch is one that runs.
type watch struct {
	*reader
	id     int64
	cancel context.CancelFunc
	prevKV bool
	// notify is set when the watch asked to be told how far it has come.
	notify bool
	sent   time.Time // when something was sent last
}

// Watch serves a stream of watches until the client ends it.
func (s *Server) Watch(stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	w := &watches{server: s, stream: stream, all: map[int64]*watch{}}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return w.notify(ctx) })
	requests := make(chan error, 1)
	go func() { requests <- w.receive(ctx, work) }() // ends with the stream
	work.Go(func() error {
		defer cancel()
		select {
		case err := <-requests:
			return err
		case <-ctx.Done():
			return nil
		}
	})
	return work.Wait()
}

func (w *watches) receive(ctx context.Context, work *errgroup.Group) error {
	for {
		r, err := w.stream.Recv()
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		switch u := r.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			err = w.create(ctx, work, u.CreateRequest)
		case *pb.WatchRequest_CancelRequest:
			err = w.end(u.CancelRequest.WatchId, &pb.WatchResponse{})
		case *pb.WatchRequest_ProgressRequest:
			err = w.progress()
		}
		if err != nil {
			return err
		}
	}
}

// create begins a watch.
func (w *watches) create(ctx context.Context, work *errgroup.Group, r *pb.WatchCreateRequest) error {
	s := w.server
	now, err := s.revision(ctx)
	if err != nil {
		return err
	}
	after := uint64(now)
	if r.StartRevision > 0 {
		after = uint64(r.StartRevision - 1)
	}
	from, to := rangeOf(r.Key, r.RangeEnd)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last++
	watchCtx, cancel := context.WithCancel(ctx)
	n := &watch{
		reader: &reader{from: from, to: to, wake: make(chan struct{}, 1)}, id: w.last, cancel: cancel,
		prevKV: r.PrevKv, notify: r.ProgressNotify, sent: time.Now(),
	}
	created := &pb.WatchResponse{Header: header(now), WatchId: n.id, Created: true}
	refused := ""
	switch {
	case len(r.Key) == 0 || r.WatchId != 0 || len(r.Filters) > 0:
		refused = "watches of no key, with a number of the client's choice or with filters are not supported by Tutti's key space"
	case r.StartRevision > 0 && r.StartRevision <= s.compacted.Load(): // what came before it is forgotten, too
		if err := w.stream.Send(created); err != nil {
			return err
		}
		return w.stream.Send(&pb.WatchResponse{Header: header(now), WatchId: n.id, Canceled: true, CompactRevision: s.compacted.Load()})
	}
	if refused != "" {
		created.Canceled, created.CancelReason = true, refused
		cancel()
		return w.stream.Send(created)
	}
	w.all[n.id] = n
	if err := w.stream.Send(created); err != nil {
		return err
	}
	work.Go(func() error { return w.run(watchCtx, n, after) })
	return nil
}

// run sends a watch what it is for until it is cancelled.
func (w *watches) run(ctx context.Context, n *watch, after uint64) error {
	feed := w.server.feed
	defer n.cancel()
	defer feed.leave(n.reader)
	err := feed.catchUp(ctx, n.reader, after, func(e core.KeyEvent) error { return w.send(n, []core.KeyEvent{e}) })
	for err == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-n.wake:
		}
		events, lost := feed.next(n.reader)
		if lost {
			err = fault.New(fault.TooOld, "changes were missed")
			break
		}
		err = w.send(n, events)
		feed.done(n.reader)
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case fault.Is(err, fault.TooOld):
		return w.end(n.id, &pb.WatchResponse{CompactRevision: int64(max(after, feed.position()))})
	}
	return failure(err)
}

// send sends events, those of one revision in one message.
func (w *watches) send(n *watch, events []core.KeyEvent) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(events) == 0 || w.all[n.id] == nil {
		return nil
	}
	n.sent = time.Now()
	const most = 256
	for len(events) > 0 {
		size := min(most, len(events))
		for size < len(events) && events[size].Revision == events[size-1].Revision {
			size++
		}
		out := &pb.WatchResponse{WatchId: n.id, Header: header(int64(events[size-1].Revision)), Events: make([]*mvccpb.Event, size)}
		for i, e := range events[:size] {
			out.Events[i] = n.event(e)
		}
		events = events[size:]
		if err := w.stream.Send(out); err != nil {
			return err
		}
	}
	return nil
}

func (n *watch) event(e core.KeyEvent) *mvccpb.Event {
	out := &mvccpb.Event{Kv: keyValue(e.New)}
	if e.New == nil {
		out.Type = mvccpb.Event_DELETE
		out.Kv = &mvccpb.KeyValue{Key: []byte(e.Old.Key[len(Root):]), ModRevision: int64(e.Revision)}
	}
	if n.prevKV {
		out.PrevKv = keyValue(e.Old)
	}
	return out
}

// end ends a watch and tells the client.
func (w *watches) end(id int64, why *pb.WatchResponse) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.all[id]
	if n == nil {
		return nil
	}
	delete(w.all, id)
	n.cancel()
	why.WatchId, why.Canceled = id, true
	why.Header = header(int64(w.server.feed.position()))
	return w.stream.Send(why)
}

// progress tells how far all watches of the stream have come, if none has something to be sent.
func (w *watches) progress() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	readers := make([]*reader, 0, len(w.all))
	for _, n := range w.all {
		readers = append(readers, n.reader)
	}
	if revision, ok := w.server.feed.progress(readers...); ok {
		return w.stream.Send(&pb.WatchResponse{Header: header(int64(revision)), WatchId: progressID})
	}
	return nil // the client asks again
}

// notify tells watches from time to time how far they have come.
func (w *watches) notify(ctx context.Context) error {
	every := w.server.ProgressEvery
	tick := time.NewTicker(every / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := w.notifyAll(every); err != nil {
			return err
		}
	}
}

func (w *watches) notifyAll(every time.Duration) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.all {
		if !n.notify || time.Since(n.sent) < every {
			continue
		}
		revision, ok := w.server.feed.progress(n.reader)
		if !ok {
			continue
		}
		n.sent = time.Now()
		if err := w.stream.Send(&pb.WatchResponse{Header: header(int64(revision)), WatchId: n.id}); err != nil {
			return err
		}
	}
	return nil
}
