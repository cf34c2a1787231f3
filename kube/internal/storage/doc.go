// Package storage keeps what a Kubernetes API server stores in Tutti's replicated key space.
//
// It speaks the part of etcd's API that the API server uses: reads at a revision, changes on
// condition, watches from a revision, leases. So the API server's own storage code runs as it is,
// with everything that stands on it (its cache, paging, port and address allocators, the lists of
// endpoints of the API servers), and only what lies beneath etcd's API is ours.
//
//	API server ─► gRPC over a Unix socket ─► Server ─► /v1/keys of the local server ─► consensus
//
// Keys are kept below Root, so that other users of the key space are not in the way. Revisions are
// the cluster's: they also move with what is none of Kubernetes'.
//
// One feed watches all keys below Root and hands changes to those watches that they are for; a
// watch that begins before what the feed still has first follows the key space by itself.
package storage
