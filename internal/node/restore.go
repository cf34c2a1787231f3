package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/backup"
	"github.com/tutti-run/tutti/internal/consensus"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/trust"
	"github.com/tutti-run/tutti/internal/wire"
)

// By how much a cluster that begins from a backup is beyond what was in it: more than can have
// happened since, so that nothing of the new one is taken for something of the old one.
const (
	raisedRevisions = 1_000_000_000
	raisedIndexes   = 1_000_000_000
	raisedTerms     = 1_000_000
)

// Restored tells what a restored cluster begins with.
type Restored struct {
	backup.Header
	Contents store.Contents
	NodeID   string // of this server
	Replaced bool   // it had a state, which was thrown away
}

// Restore makes this host, whose node must not run, the only server of a cluster that begins from a
// backup. It checks everything before it changes anything. Unless forced it refuses to throw away a
// state that is there, and when a server of the cluster answers.
func Restore(ctx context.Context, cfg Config, file string, force bool) (r Restored, err error) {
	lock, err := cfg.prepareOffline()
	if err != nil {
		return r, err
	}
	defer lock.Close()
	b, err := backup.Open(file)
	if err != nil {
		return r, err
	}
	defer b.Close()
	r.Header = b.Header
	state, err := os.CreateTemp(cfg.DataDir, "restore-")
	if err != nil {
		return r, fmt.Errorf("make room for the state: %w", err)
	}
	defer func() { err = errors.Join(err, state.Close(), os.Remove(state.Name())) }()
	s, err := restoredState(b, state)
	if err != nil {
		return r, err
	}
	snap := s.Snapshot()
	r.Contents = snap.Contents()
	cl, ok := store.Get[*model.Cluster](snap, model.ClusterID)
	if !ok {
		return r, fault.New(fault.Invalid, "the backup holds no cluster: it was made before one was founded")
	}
	id, fresh, err := cfg.restoredIdentity(s, cl, b.KeyFile)
	if err != nil {
		return r, err
	}
	r.NodeID = id.NodeID
	cc := cfg.consensusConfig(id.NodeID)
	had, err := consensus.HasState(cc)
	if err != nil && !force {
		return r, fmt.Errorf("look at the state that is there: %w", err)
	}
	r.Replaced = had || err != nil
	if r.Replaced && !force {
		return r, fault.New(fault.Conflict, "this server has a state in %s: `--force` throws it away", cc.DataDir)
	}
	if !force {
		if at := answering(ctx, id, serversOf(snap, id.NodeID)); at != "" {
			return r, fault.New(fault.Conflict, "the cluster runs: its server at %s answers. Stop all servers and remove what they have in server/ first; `--force` begins another cluster beside it", at)
		}
	}
	// Nothing was changed so far.
	if err := os.RemoveAll(cc.DataDir); err != nil {
		return r, fmt.Errorf("throw the old state away: %w", err)
	}
	if len(b.KeyFile) > 0 {
		if err := secret.ImportKeyFile(server.KeyFile(cfg.DataDir), b.KeyFile); err != nil {
			return r, err
		}
	}
	if fresh {
		if err := id.Save(cfg.identityDir()); err != nil {
			return r, err
		}
	}
	if _, err := state.Seek(0, io.SeekStart); err != nil {
		return r, fmt.Errorf("read the state: %w", err)
	}
	return r, consensus.Begin(cc, b.Index+raisedIndexes, b.Term+raisedTerms, state)
}

// Recover makes this server, whose node must not run, the only one of its cluster, from what it has
// itself. It refuses while a server answers that knows of a leader: then the quorum is not lost.
func Recover(ctx context.Context, cfg Config) (members []consensus.Server, err error) {
	lock, err := cfg.prepareOffline()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	id, err := wire.LoadIdentity(cfg.identityDir())
	if err != nil {
		return nil, err
	}
	if id.Role != wire.RoleServer {
		return nil, fault.New(fault.Invalid, "this node is no server: it has no state to go on from")
	}
	cc := cfg.consensusConfig(id.NodeID)
	has, err := consensus.HasState(cc)
	if err != nil {
		return nil, err
	}
	if !has {
		return nil, fault.New(fault.NotFound, "this server has no state in %s to go on from; `tutti restore` begins from a backup", cc.DataDir)
	}
	if members, err = consensus.Members(cc); err != nil {
		return nil, err
	}
	for _, m := range members {
		if m.ID == id.NodeID {
			continue
		}
		if leader, err := ask(ctx, id, m.Address); err == nil && leader != "" {
			return nil, fault.New(fault.Conflict, "the quorum is not lost: the server at %s follows a leader; start this node with `tutti up`, and it joins in", m.Address)
		}
	}
	return members, consensus.Recover(cc)
}

// prepareOffline makes sure that this node does not run and that its data can be read.
func (c *Config) prepareOffline() (*os.File, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	lock, err := lockData(c.DataDir)
	if err != nil {
		return nil, err
	}
	if err := c.checkFormat(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

func (c *Config) consensusConfig(nodeID string) consensus.Config {
	return consensus.Config{NodeID: nodeID, Address: c.wireAddress(), DataDir: server.StateDir(c.DataDir), FSM: store.New(c.Log), Log: c.Log}
}

// restoredState writes the state that the cluster begins with and returns it: that of the backup,
// with its revision raised. Of no node it is known whether it is there: they have a while to be heard.
func restoredState(b *backup.File, to io.Writer) (*store.Store, error) {
	pr, pw := io.Pipe()
	go func() {
		_, err := store.RaiseSnapshot(pw, b.State, raisedRevisions)
		pw.CloseWithError(err)
	}()
	s := store.New(slog.New(slog.DiscardHandler))
	err := s.Restore(pr)
	pr.CloseWithError(err) // ends the writer, if it has not ended
	if err != nil {
		return nil, fmt.Errorf("read the state in the backup: %w", err)
	}
	s.SetProposer(direct{s})
	cs := &store.ChangeSet{}
	now := time.Now()
	for n := range store.List[*model.Node](s.Snapshot()) {
		c := n.Clone()
		c.Status = model.NodeStatus{State: model.NodeUnknown, Since: now, Message: "not heard of yet since the cluster was restored"}
		cs.PutStatus(c)
	}
	if _, err := s.Commit(context.Background(), cs); err != nil {
		return nil, fmt.Errorf("prepare the state: %w", err)
	}
	return s, s.Snapshot().Write(to)
}

// direct is the replication of a store that nobody else has.
type direct struct{ store *store.Store }

func (d direct) Propose(_ context.Context, data []byte) (store.Result, error) {
	return d.store.ApplyAll([][]byte{data})[0], nil
}

// restoredIdentity returns who this node is in the restored cluster: who it was, if it was one of it,
// or else, freshly certified, the server of its name.
func (c *Config) restoredIdentity(s *store.Store, cl *model.Cluster, keyFile []byte) (id *wire.Identity, fresh bool, err error) {
	known, err := wire.LoadIdentity(c.identityDir())
	if err == nil {
		if known.Role != wire.RoleServer {
			return nil, false, fault.New(fault.Invalid, "this node is an agent of a cluster: a server is needed, or a host that was none")
		}
		if !believes(known.CAPEM, cl.CACertificate) {
			return nil, false, fault.New(fault.Conflict, "this node is of another cluster than the backup: `tutti down --purge` makes it forget that")
		}
		return known, false, nil
	}
	if !fault.Is(err, fault.NotFound) {
		return nil, false, err
	}
	var names []string
	var self *model.Node
	for n := range store.List[*model.Node](s.Snapshot()) {
		if n.Server {
			names = append(names, n.Name)
			if n.Name == c.Name {
				self = n
			}
		}
	}
	if self == nil {
		return nil, false, fault.New(fault.NotFound, "the backup knows no server %s: say by --name which of %s this host is to be", c.Name, strings.Join(names, ", "))
	}
	dir, err := os.MkdirTemp(c.DataDir, "restore-keys-")
	if err != nil {
		return nil, false, fmt.Errorf("make room for the key file: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "key")
	if len(keyFile) > 0 {
		if err := secret.ImportKeyFile(path, keyFile); err != nil {
			return nil, false, err
		}
	}
	keys, err := secret.LoadKeyFile(path)
	if err != nil {
		return nil, false, err
	}
	csr, key, err := wire.NewRequest()
	if err != nil {
		return nil, false, err
	}
	t := trust.New(trust.Deps{Store: s, Keys: keys, NodeID: self.ID, CertificateLife: c.CertificateLife, Log: c.Log})
	cert, err := t.Renew(context.Background(), wire.Peer{NodeID: self.ID, Role: wire.RoleServer}, wire.RenewRequest{CSR: csr})
	if err != nil {
		return nil, false, fmt.Errorf("certify this server: %w", err)
	}
	return &wire.Identity{
		NodeID: self.ID, Role: wire.RoleServer, CertPEM: cert.Cert, KeyPEM: key, CAPEM: cert.Trust.CA, CrossPEM: cert.Trust.Cross,
	}, true, nil
}

// believes reports whether a bundle of authorities has the one of a certificate.
func believes(bundle, certificate []byte) bool {
	have, err := wire.AuthorityHashes(bundle)
	if err != nil {
		return false
	}
	want, err := wire.AuthorityHashes(certificate)
	return err == nil && len(want) > 0 && slices.Contains(have, want[0])
}

// serversOf returns where the state's other servers were.
func serversOf(snap *store.Snapshot, self string) (addresses []string) {
	for n := range store.List[*model.Node](snap) {
		if n.Server && n.ID != self {
			addresses = append(addresses, n.WireAddress)
		}
	}
	return addresses
}

// askTimeout is how long a server may take to answer whether it is there.
const askTimeout = 2 * time.Second

// answering returns the address of a server that answers, "" when none does.
func answering(ctx context.Context, id *wire.Identity, addresses []string) string {
	for _, a := range addresses {
		if _, err := ask(ctx, id, a); err == nil {
			return a
		}
	}
	return ""
}

// ask asks a server for the ID of the leader that it follows.
func ask(ctx context.Context, id *wire.Identity, address string) (leader string, err error) {
	port, err := wire.Listen("127.0.0.1:0", id, slog.New(slog.DiscardHandler)) // for its client
	if err != nil {
		return "", err
	}
	ended, end := context.WithCancel(ctx)
	defer func() { end(); err = errors.Join(err, port.Serve(ended)) }() // which closes it
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return server.AskLeader(ctx, port.Client(), address)
}

// Configured reads the configuration of a node that was started from this data directory before;
// the zero Config when none was.
func Configured(dataDir string) (Config, error) {
	var c Config
	data, err := os.ReadFile(filepath.Join(dataDir, "node.json"))
	if errors.Is(err, os.ErrNotExist) {
		return c, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		return c, fmt.Errorf("read the node's configuration: %w", err)
	}
	return c, nil
}
