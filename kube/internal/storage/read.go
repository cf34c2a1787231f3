package storage

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/store"
)

// streamPage is how many keys a piece of a streamed list has.
const streamPage = 500

// rangeOf returns the keys from one on and before another that a request means.
func rangeOf(key, end []byte) (from, to string) {
	from = Root + string(key)
	switch {
	case len(end) == 0:
		return from, from + "\x00"
	case len(end) == 1 && end[0] == 0:
		return from, store.PrefixEnd(Root)
	}
	return from, Root + string(end)
}

// Range reads a key or a range of them.
func (s *Server) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	switch {
	case len(r.Key) == 0:
		return nil, rpctypes.ErrGRPCEmptyKey
	case r.SortOrder != pb.RangeRequest_NONE && (r.SortOrder != pb.RangeRequest_ASCEND || r.SortTarget != pb.RangeRequest_KEY):
		return nil, unsupported("another order than that of the keys")
	case r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0:
		return nil, unsupported("choosing keys by their revisions")
	case r.Revision < 0:
		return nil, unsupported("a negative revision")
	case r.Revision > 0 && r.Revision < s.compacted.Load():
		return nil, rpctypes.ErrGRPCCompacted
	}
	from, to := rangeOf(r.Key, r.RangeEnd)
	list, err := s.Keys.Keys(ctx, core.KeyQuery{From: from, To: to, Limit: int(max(r.Limit, 0)), Revision: uint64(r.Revision), CountOnly: r.CountOnly})
	if err != nil {
		return nil, s.readFailure(ctx, r.Revision, err)
	}
	out := &pb.RangeResponse{
		Header: header(int64(list.Revision)), Count: int64(len(list.Keys) + list.Remaining),
		More: list.Remaining > 0 && !r.CountOnly, Kvs: make([]*mvccpb.KeyValue, len(list.Keys)),
	}
	for i := range list.Keys {
		out.Kvs[i] = keyValue(&list.Keys[i])
		if r.KeysOnly {
			out.Kvs[i].Value = nil
		}
	}
	return out, nil
}

// readFailure tells a revision that was not reached yet from a cluster that cannot be reached.
func (s *Server) readFailure(ctx context.Context, revision int64, err error) error {
	if revision > 0 && fault.Is(err, fault.Unavailable) {
		if now, nowErr := s.revision(ctx); nowErr == nil && now < revision {
			return rpctypes.ErrGRPCFutureRev
		}
	}
	return failure(err)
}

// RangeStream reads a range in pieces, all of one revision; only the last one has the counts.
func (s *Server) RangeStream(r *pb.RangeRequest, out grpc.ServerStreamingServer[pb.RangeStreamResponse]) error {
	if r.CountOnly {
		all, err := s.Range(out.Context(), r)
		if err != nil {
			return err
		}
		return out.Send(&pb.RangeStreamResponse{RangeResponse: all})
	}
	left, sent := r.Limit, int64(0)
	for {
		r.Limit = streamPage
		if left > 0 {
			r.Limit = min(left, streamPage)
		}
		page, err := s.Range(out.Context(), r)
		if err != nil {
			return err
		}
		n := int64(len(page.Kvs))
		sent, left = sent+n, left-n
		if !page.More || left == 0 {
			page.Count += sent - n
			return out.Send(&pb.RangeStreamResponse{RangeResponse: page})
		}
		r.Revision = page.Header.Revision
		r.Key = append(page.Kvs[n-1].Key, 0)
		if err := out.Send(&pb.RangeStreamResponse{RangeResponse: &pb.RangeResponse{Kvs: page.Kvs}}); err != nil {
			return err
		}
	}
}

// keyValue is a key as etcd tells of it.
func keyValue(k *core.Key) *mvccpb.KeyValue {
	if k == nil {
		return nil
	}
	return &mvccpb.KeyValue{
		Key: []byte(k.Key[len(Root):]), Value: k.Value, CreateRevision: int64(k.Created), ModRevision: int64(k.Modified),
		Version: int64(k.Version), Lease: leaseFor(k.TTLMilliseconds / 1000),
	}
}
