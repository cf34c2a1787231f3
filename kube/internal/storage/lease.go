package storage

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// maxLeaseSeconds is what etcd accepts, too.
const maxLeaseSeconds = 9_000_000_000

// LeaseGrant hands out a lease. A lease here is no more than a time to live, which is its number:
// every key that is put with it lives that long from then on. It is not kept anywhere, and all
// servers understand it.
func (s *Server) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	switch {
	case r.ID != 0:
		return nil, unsupported("choosing the number of a lease")
	case r.TTL <= 0 || r.TTL > maxLeaseSeconds:
		return nil, rpctypes.ErrGRPCLeaseTTLTooLarge
	}
	return &pb.LeaseGrantResponse{ID: leaseFor(r.TTL), TTL: r.TTL}, nil
}

func leaseFor(seconds int64) int64 { return seconds }

// milliseconds is how long a key lives that is put with a lease.
func milliseconds(lease int64) int64 { return lease * 1000 }
