// Package trusttest founds clusters for the tests of other packages.
package trusttest

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/trust"
	"github.com/tutti-run/tutti/internal/wire"
)

// Found puts the cluster's own object, with real keys, into the store.
func Found(t testing.TB, s *store.Store) *trust.Trust {
	t.Helper()
	keys, err := secret.LoadKeyFile(filepath.Join(t.TempDir(), "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := wire.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	tr := trust.New(trust.Deps{
		Store: s, Keys: keys, NodeID: "n1", Log: slog.New(slog.DiscardHandler),
		Addresses: func() []wire.ServerAddress { return nil },
	})
	cl := &model.Cluster{Meta: model.Meta{ID: model.ClusterID, Name: model.ClusterID}}
	if err := tr.Found(cl, a); err != nil {
		t.Fatal(err)
	}
	cs := &store.ChangeSet{}
	cs.Put(cl)
	if _, err := s.Commit(t.Context(), cs); err != nil {
		t.Fatal(err)
	}
	return tr
}
