package storage

import (
	"bytes"
	"cmp"
	"context"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
)

// Put writes a key.
func (s *Server) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	out, err := s.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: r}}}})
	if err != nil {
		return nil, err
	}
	answer := out.Responses[0].GetResponsePut()
	answer.Header = out.Header
	return answer, nil
}

// DeleteRange deletes a key. (Ranges of keys are deleted by nobody.)
func (s *Server) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	for {
		k, revision, err := s.read(ctx, r.Key)
		if err != nil {
			return nil, err
		}
		if k == nil {
			return &pb.DeleteRangeResponse{Header: header(revision)}, nil
		}
		out, err := s.Txn(ctx, &pb.TxnRequest{
			Compare: []*pb.Compare{{Key: r.Key, Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: int64(k.Modified)}}},
			Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r}}},
		})
		if err != nil {
			return nil, err
		}
		if out.Succeeded {
			answer := out.Responses[0].GetResponseDeleteRange()
			answer.Header = out.Header
			return answer, nil
		}
	}
}

// Txn does one of two things, as comparisons of keys say. Each of the two is either changes of
// keys, which happen as a whole, or reads.
func (s *Server) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	success, err := changesOf(r.Success)
	if err != nil {
		return nil, err
	}
	failed, err := changesOf(r.Failure)
	if err != nil {
		return nil, err
	}
	// A change on condition that keys were last written at some revisions, by far the most frequent
	// request, is tried without a look at them.
	look := success == nil
	for {
		expect, holds := revisionsOf(r.Compare), true
		if look || expect == nil {
			if expect, holds, err = s.compare(ctx, r.Compare); err != nil {
				return nil, err
			}
		}
		ops, changes := r.Success, success
		if !holds {
			ops, changes = r.Failure, failed
		}
		if changes == nil {
			return s.reads(ctx, holds, ops)
		}
		changes.Expect = expect
		revision, err := s.Keys.ChangeKeys(ctx, *changes)
		switch {
		case err == nil:
			return &pb.TxnResponse{Header: header(int64(revision)), Succeeded: holds, Responses: changed(ops)}, nil
		case !fault.Is(err, fault.Conflict):
			return nil, failure(err)
		case !look && failed == nil && revisionsOf(r.Compare) != nil:
			return s.reads(ctx, false, r.Failure)
		}
		look = true // also if somebody changed what was looked at
	}
}

// changesOf returns the changes that operations are, nil when they are reads.
func changesOf(ops []*pb.RequestOp) (*core.KeyChanges, error) {
	var out core.KeyChanges
	for _, op := range ops {
		switch r := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
		case *pb.RequestOp_RequestPut:
			p := r.RequestPut
			if len(p.Key) == 0 {
				return nil, rpctypes.ErrGRPCEmptyKey
			}
			if p.PrevKv || p.IgnoreValue || p.IgnoreLease {
				return nil, unsupported("a put that depends on what was there")
			}
			out.Put = append(out.Put, core.KeyPut{Key: Root + string(p.Key), Value: p.Value, TTLMilliseconds: milliseconds(p.Lease)})
		case *pb.RequestOp_RequestDeleteRange:
			d := r.RequestDeleteRange
			if len(d.Key) == 0 {
				return nil, rpctypes.ErrGRPCEmptyKey
			}
			if len(d.RangeEnd) > 0 || d.PrevKv {
				return nil, unsupported("deleting a range, or telling what was deleted")
			}
			out.Delete = append(out.Delete, Root+string(d.Key))
		default:
			return nil, unsupported("a transaction within another")
		}
	}
	switch n := len(out.Put) + len(out.Delete); {
	case n == 0:
		return nil, nil
	case n < len(ops):
		return nil, unsupported("a transaction that reads and changes at once")
	}
	return &out, nil
}

// changed are the answers to operations that were done.
func changed(ops []*pb.RequestOp) []*pb.ResponseOp {
	out := make([]*pb.ResponseOp, len(ops))
	for i, op := range ops {
		if op.GetRequestPut() != nil {
			out[i] = &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}}
		} else {
			out[i] = &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{Deleted: 1}}}
		}
	}
	return out
}

// reads answers a transaction that came to reads.
func (s *Server) reads(ctx context.Context, holds bool, ops []*pb.RequestOp) (*pb.TxnResponse, error) {
	out := &pb.TxnResponse{Succeeded: holds}
	for _, op := range ops {
		r := op.GetRequestRange()
		if out.Header != nil && r.Revision == 0 {
			r.Revision = out.Header.Revision // all of them read the same state
		}
		answer, err := s.Range(ctx, r)
		if err != nil {
			return nil, err
		}
		if out.Header == nil {
			out.Header = answer.Header
		}
		out.Responses = append(out.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: answer}})
	}
	if out.Header == nil {
		revision, err := s.revision(ctx)
		if err != nil {
			return nil, err
		}
		out.Header = header(revision)
	}
	return out, nil
}

// revisionsOf returns the revisions at which keys must have been written last, if that is all that
// is compared; otherwise nil.
func revisionsOf(all []*pb.Compare) map[string]uint64 {
	out := make(map[string]uint64, len(all))
	for _, c := range all {
		key := Root + string(c.Key)
		at, twice := out[key]
		if c.Target != pb.Compare_MOD || c.Result != pb.Compare_EQUAL || len(c.RangeEnd) > 0 || twice && at != uint64(c.GetModRevision()) {
			return nil
		}
		out[key] = uint64(c.GetModRevision())
	}
	return out
}

// compare says whether comparisons hold, and what to expect of keys so that a change happens only
// while that is so.
func (s *Server) compare(ctx context.Context, all []*pb.Compare) (expect map[string]uint64, holds bool, err error) {
	expect, holds = map[string]uint64{}, true
	for _, c := range all {
		if len(c.RangeEnd) > 0 {
			return nil, false, unsupported("a comparison of a range")
		}
		k, _, err := s.read(ctx, c.Key)
		if err != nil {
			return nil, false, err
		}
		if k == nil {
			k = &core.Key{}
		}
		expect[Root+string(c.Key)] = k.Modified
		order := 0
		switch c.Target {
		case pb.Compare_MOD:
			order = cmp.Compare(int64(k.Modified), c.GetModRevision())
		case pb.Compare_CREATE:
			order = cmp.Compare(int64(k.Created), c.GetCreateRevision())
		case pb.Compare_VERSION:
			order = cmp.Compare(int64(k.Version), c.GetVersion())
		case pb.Compare_VALUE:
			if k.Created == 0 { // nothing compares to no value
				holds = false
				continue
			}
			order = bytes.Compare(k.Value, c.GetValue())
		default:
			return nil, false, unsupported("a comparison of leases")
		}
		switch c.Result {
		case pb.Compare_EQUAL:
			holds = holds && order == 0
		case pb.Compare_NOT_EQUAL:
			holds = holds && order != 0
		case pb.Compare_GREATER:
			holds = holds && order > 0
		case pb.Compare_LESS:
			holds = holds && order < 0
		}
	}
	return expect, holds, nil
}

// read returns a key, nil when it does not exist, and the revision at which that is so.
func (s *Server) read(ctx context.Context, key []byte) (*core.Key, int64, error) {
	from, to := rangeOf(key, nil)
	list, err := s.Keys.Keys(ctx, core.KeyQuery{From: from, To: to})
	if err != nil {
		return nil, 0, failure(err)
	}
	if len(list.Keys) == 0 {
		return nil, int64(list.Revision), nil
	}
	return &list.Keys[0], int64(list.Revision), nil
}

// Compact makes reads of revisions before one fail.
func (s *Server) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	now, err := s.revision(ctx)
	if err != nil {
		return nil, err
	}
	if r.Revision > now {
		return nil, rpctypes.ErrGRPCFutureRev
	}
	if !raise(&s.compacted, r.Revision) {
		return nil, rpctypes.ErrGRPCCompacted
	}
	return &pb.CompactionResponse{Header: header(now)}, nil
}

// raise makes a number larger; it returns false when it is that large already.
func raise(n *atomic.Int64, to int64) bool {
	for {
		old := n.Load()
		if old >= to {
			return false
		}
		if n.CompareAndSwap(old, to) {
			return true
		}
	}
}
