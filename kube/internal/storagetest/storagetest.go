// Package storagetest makes clusters of one server for tests, in their process and with all parts but
// nodes that run something, and serves their key space as etcd.
package storagetest

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/wire"
	"github.com/tutti-run/tutti/kube/internal/storage"
)

// Etcd returns an endpoint for clients of etcd. Everything ends with the test.
func Etcd(t testing.TB, progressEvery time.Duration) (endpoint string) {
	t.Helper()
	keys := native.Dial(Cluster(t)).Linearizable()
	t.Cleanup(keys.Close)
	socket := shortPath(t)
	l := must(net.Listen("unix", socket))(t)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	s := storage.New(storage.Deps{Keys: keys, Log: slog.New(slog.DiscardHandler), ProgressEvery: progressEvery})
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return "unix://" + socket
}

// Cluster returns the socket of a cluster. Everything ends with the test.
func Cluster(t testing.TB) (socket string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	authority := must(wire.NewAuthority())(t)
	csr, key, err := wire.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert := must(authority.Sign(csr, "server-1", wire.RoleServer))(t)
	identity := &wire.Identity{NodeID: "server-1", Role: wire.RoleServer, CertPEM: cert, KeyPEM: key, CAPEM: authority.CertPEM}
	port := must(wire.Listen("127.0.0.1:0", identity, log))(t)
	s := must(server.New(server.Config{
		NodeID: "server-1", Name: "alpha", Address: port.Addr().String(), DataDir: t.TempDir(),
		Founding: authority, Founded: func() error { return nil }, AddressPool: "10.1.0.0/16", NodePool: "10.2.0.0/16",
		Port: port, Log: log,
	}))(t)
	socket = shortPath(t)
	l := must(native.Listen(socket))(t)
	ctx, cancel := context.WithCancel(context.Background())
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error { return port.Serve(ctx) })
	work.Go(func() error { return s.Run(ctx) })
	work.Go(func() error {
		return native.Serve(ctx, l, s.Answer(native.New(native.Deps{Core: s.Core(), NodeName: "alpha", Version: "test", Log: log})))
	})
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(work.Wait(), s.Shutdown()); err != nil {
			t.Error(err)
		}
	})
	if err := s.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	return socket
}

// shortPath is a path for a socket, of which the kernel takes 107 characters: tests with long names
// would have longer ones.
func shortPath(t testing.TB) string {
	t.Helper()
	dir := must(os.MkdirTemp("", "tutti-"))(t)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
