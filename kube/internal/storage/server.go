package storage

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
)

// Root is what keys of Kubernetes begin with in the key space.
const Root = "kubernetes:"

// version is that of etcd's API, as the API server asks for it to know what it can use.
const version = "3.7.0"

// maxMessageBytes bounds a message either way; a list of everything is one.
const maxMessageBytes = 1 << 30

// Keys is Tutti's key space. Reads are linearizable.
type Keys interface {
	Keys(ctx context.Context, q core.KeyQuery) (core.KeyList, error)
	ChangeKeys(ctx context.Context, k core.KeyChanges) (revision uint64, err error)
	WatchKeys(ctx context.Context, q core.KeyWatch, yield func(core.KeyEvent) error) error
}

// Deps is what a server works with.
type Deps struct {
	Keys Keys
	Log  *slog.Logger
	// ProgressEvery is how often a watch that asked for it is told how far it has come while there is
	// nothing else to tell; 0 is every five seconds.
	ProgressEvery time.Duration
}

// Server answers etcd's API.
type Server struct {
	pb.UnimplementedKVServer
	pb.UnimplementedWatchServer
	pb.UnimplementedLeaseServer
	pb.UnimplementedMaintenanceServer
	Deps
	feed *feed
	// compacted is the revision before which this server reads nothing any more. What the cluster
	// keeps of the past is its own business; this only makes refusals come as the client expects them.
	compacted atomic.Int64
}

// New builds a server; Serve makes it work.
func New(d Deps) *Server {
	if d.ProgressEvery == 0 {
		d.ProgressEvery = 5 * time.Second
	}
	return &Server{Deps: d, feed: newFeed(d.Keys, d.Log)}
}

// Serve answers who connects to the listener until ctx is done.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessageBytes), grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	pb.RegisterKVServer(g, s)
	pb.RegisterWatchServer(g, s)
	pb.RegisterLeaseServer(g, s)
	pb.RegisterMaintenanceServer(g, s)
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return s.feed.run(ctx) })
	work.Go(func() error {
		if err := g.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return err
		}
		return nil
	})
	work.Go(func() error {
		<-ctx.Done()
		g.Stop()
		return nil
	})
	return work.Wait()
}

// Status says which version of the API this is.
func (s *Server) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	revision, err := s.revision(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.StatusResponse{Header: header(revision), Version: version}, nil
}

func header(revision int64) *pb.ResponseHeader { return &pb.ResponseHeader{Revision: revision} }

// revision returns the revision of the last change that anybody was told of.
func (s *Server) revision(ctx context.Context) (int64, error) {
	list, err := s.Keys.Keys(ctx, core.KeyQuery{From: Root, To: Root, CountOnly: true})
	if err != nil {
		return 0, failure(err)
	}
	return int64(list.Revision), nil
}

// failure is an error as etcd's clients know it.
func failure(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	}
	switch fault.KindOf(err) {
	case fault.TooOld:
		return rpctypes.ErrGRPCCompacted
	case fault.Unavailable, fault.Exhausted:
		return status.Error(codes.Unavailable, err.Error())
	case fault.Invalid:
		return status.Error(codes.InvalidArgument, err.Error())
	case fault.Forbidden:
		return status.Error(codes.PermissionDenied, err.Error())
	case fault.Unsupported:
		return status.Error(codes.Unimplemented, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}

func unsupported(what string) error {
	return status.Error(codes.Unimplemented, what+" is not supported by Tutti's key space")
}
