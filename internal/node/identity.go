package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tutti-run/tutti/internal/atomicfile"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/wire"
)

// lockData makes sure that only one node works in a data directory. The lock ends with the file's
// closing, so at the latest with the process.
func lockData(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fault.New(fault.Conflict, "tutti runs already with the data directory %s; `tutti down` stops it", dir)
		}
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	return f, nil
}

// Running returns the process that works in a data directory; ok is false when none does.
func Running(dataDir string) (pid int, ok bool) {
	f, err := os.Open(filepath.Join(dataDir, "lock"))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil {
		return 0, false
	}
	_, err = fmt.Fscan(f, &pid)
	return pid, err == nil && pid > 1
}

// identity is who this node is and whom it knows.
type identity struct {
	*wire.Identity
	servers []wire.ServerAddress
	// founding is set while this node founds a cluster whose state does not hold it yet.
	founding *wire.Authority
	// joined is set when this very start led into a cluster.
	joined bool
}

func (c *Config) identityDir() string { return filepath.Join(c.DataDir, "identity") }

func (c *Config) serversFile() string { return filepath.Join(c.DataDir, "servers.json") }

func (c *Config) authorityFiles() (cert, key string) {
	return filepath.Join(c.identityDir(), "authority.crt"), filepath.Join(c.identityDir(), "authority.key")
}

// identify finds out who this node is: what it was before, a newcomer to a cluster, or the
// founder of one.
func (c *Config) identify(ctx context.Context) (*identity, error) {
	known, err := wire.LoadIdentity(c.identityDir())
	switch {
	case err == nil:
		if c.JoinToken != "" {
			c.Log.Info("this host is a member already; the join token is not needed")
		}
		return c.recall(known)
	case !fault.Is(err, fault.NotFound):
		return nil, err
	case c.JoinToken != "":
		return c.join(ctx)
	}
	return c.found()
}

// recall completes the identity of a node that is a member already.
func (c *Config) recall(known *wire.Identity) (*identity, error) {
	id := &identity{Identity: known}
	data, err := os.ReadFile(c.serversFile())
	if err == nil {
		err = json.Unmarshal(data, &id.servers)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the list of servers: %w", err)
	}
	certFile, keyFile := c.authorityFiles()
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return id, nil // the usual case: the cluster's state holds its authority
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("read the authority of the cluster being founded: %w", err)
	}
	id.founding, err = wire.LoadAuthority(cert, key)
	return id, err
}

// found makes a new authority, and a certificate for this node. The authority stays on disk until
// the cluster's state holds it.
func (c *Config) found() (*identity, error) {
	a, err := wire.NewAuthority()
	if err != nil {
		return nil, err
	}
	csr, key, err := wire.NewRequest()
	if err != nil {
		return nil, err
	}
	nodeID := model.NewID()
	cert, err := a.Issue(csr, wire.Holder{
		Name: nodeID, Role: wire.RoleServer, DNS: []string{c.Name}, IPs: []net.IP{net.ParseIP(c.Address)}, Life: c.CertificateLife,
	})
	if err != nil {
		return nil, err
	}
	certFile, keyFile := c.authorityFiles()
	if err := os.MkdirAll(c.identityDir(), 0o700); err != nil {
		return nil, fmt.Errorf("keep the new authority: %w", err)
	}
	for path, data := range map[string][]byte{keyFile: a.KeyPEM, certFile: a.CertPEM} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return nil, fmt.Errorf("keep the new authority: %w", err)
		}
	}
	id := &wire.Identity{NodeID: nodeID, Role: wire.RoleServer, CertPEM: cert, KeyPEM: key, CAPEM: a.CertPEM}
	return &identity{Identity: id, founding: a}, id.Save(c.identityDir())
}

// founded drops the authority from this node's disk: the cluster's state holds it now.
func (c *Config) founded() error {
	cert, key := c.authorityFiles()
	for _, path := range []string{cert, key} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("drop the authority from disk: %w", err)
		}
	}
	return nil
}

// joinPatience is how long a newcomer tries to reach a server that does not answer.
const joinPatience = 20 * time.Second

func (c *Config) join(ctx context.Context) (*identity, error) {
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	who := wire.Newcomer{NodeID: model.NewID(), Name: c.Name, Address: c.Address, Port: c.Port}
	for {
		joined, err := wire.Join(ctx, c.JoinAddress, c.JoinToken, who)
		if err == nil {
			if err := c.keep(joined); err != nil {
				return nil, err
			}
			return &identity{Identity: joined.Identity, servers: joined.Servers, joined: true}, nil
		}
		if !fault.Is(err, fault.Unavailable) {
			return nil, fmt.Errorf("join the cluster of %s: %w", c.JoinAddress, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("join the cluster of %s: %w", c.JoinAddress, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// keep writes down what a newcomer was given; the identity comes last, as it says that all is there.
func (c *Config) keep(joined *wire.Joined) error {
	if len(joined.Key) > 0 {
		keys, err := secret.LoadKeyFile(server.KeyFile(c.DataDir))
		if err == nil {
			err = keys.Keep(joined.Key)
		}
		if err != nil {
			return err
		}
	}
	if err := c.remember(joined.Servers); err != nil {
		return err
	}
	return joined.Save(c.identityDir())
}

// remember keeps the list of servers for the next start.
func (c *Config) remember(servers []wire.ServerAddress) error {
	data, err := json.Marshal(servers)
	if err != nil {
		return fmt.Errorf("keep the list of servers: %w", err)
	}
	if err := atomicfile.Write(c.serversFile(), data); err != nil {
		return fmt.Errorf("keep the list of servers: %w", err)
	}
	return nil
}
