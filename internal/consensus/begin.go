package consensus

import (
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/tutti-run/tutti/internal/fault"
)

// keyTerm is where raft keeps its term.
var keyTerm = []byte("CurrentTerm")

// alone is the configuration of a cluster of this server.
func (c *Config) alone() raft.Configuration {
	return raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(c.NodeID), Address: raft.ServerAddress(c.Address)}}}
}

// offline opens log and snapshots of a server that does not run, for fn.
func (c *Config) offline(fn func(w *wal, s *snapshots) error) error {
	storage, err := c.storage()
	if err != nil {
		return err
	}
	w, err := storage.openLog(newHCLog(c.Log), func() uint64 { return 0 })
	if err != nil {
		return err
	}
	s, err := storage.openSnapshots()
	if err == nil {
		err = fn(w, s)
	}
	return errors.Join(err, w.Close())
}

// HasState reports whether a server that does not run has a log or a snapshot.
func HasState(c Config) (has bool, err error) {
	err = c.offline(func(w *wal, s *snapshots) error {
		has, err = raft.HasExistingState(w, w, s)
		return err
	})
	return has, err
}

// Begin makes a server that does not run and has no state the only one of a cluster that begins with
// a state, which was written by store.Snapshot. Index and term are beyond those that the cluster of
// the state had, so that servers which still have it are behind.
func Begin(c Config, index, term uint64, state io.Reader) error {
	return c.offline(func(w *wal, s *snapshots) error {
		has, err := raft.HasExistingState(w, w, s)
		if err != nil {
			return err
		}
		if has {
			return fault.New(fault.Conflict, "this server has a state already")
		}
		if err := w.SetUint64(keyTerm, term); err != nil {
			return fmt.Errorf("keep the term: %w", err)
		}
		sink, err := s.Create(raft.SnapshotVersionMax, index, term, c.alone(), 1, nil)
		if err != nil {
			return err
		}
		if _, err := io.Copy(sink, state); err != nil {
			return errors.Join(fmt.Errorf("write the state: %w", err), sink.Cancel())
		}
		return sink.Close()
	})
}

// Members returns the servers that one which does not run knew of last: those in its log may not
// have become it.
func Members(c Config) (out []Server, err error) {
	err = c.offline(func(w *wal, s *snapshots) error {
		config, err := newestConfiguration(w, s)
		for _, m := range config.Servers {
			out = append(out, Server{ID: string(m.ID), Address: string(m.Address), Voter: m.Suffrage == raft.Voter})
		}
		return err
	})
	return out, err
}

func newestConfiguration(w *wal, s *snapshots) (raft.Configuration, error) {
	first, err := w.FirstIndex()
	if err != nil {
		return raft.Configuration{}, err
	}
	last, err := w.LastIndex()
	if err != nil {
		return raft.Configuration{}, err
	}
	for i := last; i > 0 && i >= first; i-- {
		var l raft.Log
		if err := w.GetLog(i, &l); err != nil {
			return raft.Configuration{}, fmt.Errorf("read the log at %d: %w", i, err)
		}
		if l.Type == raft.LogConfiguration {
			return raft.DecodeConfiguration(l.Data), nil
		}
	}
	list, err := s.List()
	if err != nil || len(list) == 0 {
		return raft.Configuration{}, err
	}
	return list[0].Configuration, nil
}

// Recover makes a server that does not run the only one of its cluster, with all that its log holds,
// committed or not. The others must never come back with what they have: two clusters would go on.
func Recover(c Config) error {
	return c.offline(func(w *wal, s *snapshots) error {
		return raft.RecoverCluster(c.raftConfig(Storage{}), &machine{fsm: c.FSM}, w, w, s, nil, c.alone())
	})
}
