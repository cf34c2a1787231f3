package server

import (
	"context"
	"io"
	"path/filepath"
	"time"

	"github.com/tutti-run/tutti/internal/backup"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// WriteBackup implements core.Servers: the state as this server has it now.
func (s *Server) WriteBackup(to io.Writer) error {
	snap := s.store.Snapshot()
	cl, ok := store.Get[*model.Cluster](snap, model.ClusterID)
	if !ok {
		return fault.New(fault.Unavailable, "the cluster is still being set up: there is nothing to back up yet")
	}
	h := backup.Header{Version: s.cfg.Version, Cluster: ClusterName(cl), Server: s.cfg.Name, Revision: snap.Revision(), Time: time.Now().UTC()}
	h.Index, h.Term = s.raft.Position()
	key, err := secret.ExportKeyFile(KeyFile(s.cfg.DataDir))
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	h.KeyFile = key
	return backup.Write(to, h, snap.Write)
}

// StateDir is where a server keeps log and snapshots, KeyFile its key file.
func StateDir(dataDir string) string { return filepath.Join(dataDir, "server") }

// KeyFile returns the path of a server's key file: what a backup must hold beside the state. See
// secret.ExportKeyFile and secret.ImportKeyFile.
func KeyFile(dataDir string) string { return filepath.Join(dataDir, "identity", "cluster.key") }

// AskLeader asks the server at an address for the ID of the leader that it follows, which may be
// itself; it is empty when it knows of none.
func AskLeader(ctx context.Context, c *wire.Client, address string) (string, error) {
	r, err := wire.Call[wire.Empty, leaderAnswer](ctx, c, address, pathLeader, wire.Empty{})
	return r.Leader, err
}

type leaderAnswer struct {
	Leader string `json:"leader,omitempty"` // ID
}

// ClusterName identifies a cluster, by the hash of its authority's certificate.
func ClusterName(cl *model.Cluster) string {
	hashes, err := wire.AuthorityHashes(cl.CACertificate)
	if err != nil || len(hashes) == 0 {
		return ""
	}
	return hashes[0]
}
