package dispatch

import (
	"bytes"
	"log/slog"
	"sync"

	"github.com/tutti-run/tutti/internal/wire"
)

// session is one connected agent. What is to be written is noted, not queued: however slow the
// agent is, there is one note of each kind, and it holds up nobody. A goroutine writes as long as
// there are notes.
type session struct {
	sessions *Sessions
	nodeID   string
	stream   *wire.Stream
	log      *slog.Logger
	closed   bool   // guarded by Sessions.mu, and so is
	applied  uint64 // what the agent has in force, as it said last

	mu      sync.Mutex
	todo    work
	writing bool
	blocked bool // todo waits until the store was followed further
	ended   bool // nothing more is written
	writer  sync.WaitGroup

	// What follows is the writer's; failed is read by others too, under mu.

	from     uint64            // nothing older is told, however busy this server is
	full     bool              // the next assignments are told as a whole
	sent     map[string]string // instance → key of the assignment that the agent has
	revision uint64            // as of which the network state that the agent has is right; 0: none
	servers  []wire.ServerAddress
	trust    wire.Trust
	failed   map[string]string // why instances cannot be assigned, as it was logged
}

// work is what is to be written to an agent.
type work struct {
	assign  bool // assignments may have changed
	network bool // the network state has changed, or whom to believe
	told    bool // the agent is to know at once as of which revision its network state is right
	retell  bool
	anew    bool // the agent lost track
	lease   *wire.Lease
	leaseAt uint64 // revision that the agent must know of before
}

func (w *work) add(other work) {
	w.assign, w.network = w.assign || other.assign, w.network || other.network
	w.told, w.retell, w.anew = w.told || other.told, w.retell || other.retell, w.anew || other.anew
	if w.lease == nil {
		w.lease, w.leaseAt = other.lease, other.leaseAt
	}
}

// poke notes work.
func (sess *session) poke(note func(*work)) {
	sess.mu.Lock()
	defer sess.mu.Unlock()
	note(&sess.todo)
	sess.blocked = false
	if !sess.writing && !sess.ended {
		sess.writing = true
		sess.writer.Go(sess.write)
	}
}

// awaits reports whether the session has work that could not be done so far: because the store was
// not followed far enough, or, where other objects than instances have changed, because something
// was missing for an assignment.
func (sess *session) awaits(others bool) bool {
	sess.mu.Lock()
	defer sess.mu.Unlock()
	return sess.blocked || others && len(sess.failed) > 0
}

// end returns once nothing more is written.
func (sess *session) end() {
	sess.mu.Lock()
	sess.ended = true
	sess.mu.Unlock()
	sess.writer.Wait()
}

func (sess *session) write() {
	for {
		// Read before the notes: all changes up to there have left theirs.
		settled := sess.sessions.settled.Load()
		followed := sess.sessions.followed.Load()
		sess.mu.Lock()
		w := sess.todo
		if w == (work{}) || sess.blocked || sess.ended {
			sess.writing = false
			sess.mu.Unlock()
			return
		}
		sess.todo = work{}
		sess.mu.Unlock()
		rest, err := sess.send(w, followed, settled)
		if err != nil {
			sess.log.Debug("nothing more can be written to the node", "error", err)
			sess.mu.Lock()
			sess.writing, sess.ended = false, true
			sess.mu.Unlock()
			sess.stream.Close() // ends the reader
			return
		}
		if rest != (work{}) {
			sess.mu.Lock()
			sess.todo.add(rest)
			// Who follows the store looks at blocked sessions after it has moved on.
			sess.blocked = sess.sessions.followed.Load() == followed
			sess.mu.Unlock()
		}
	}
}

// send does work, and returns what cannot be done until the store was followed further.
func (sess *session) send(w work, followed, settled uint64) (rest work, err error) {
	if followed < sess.from || followed == 0 {
		return w, nil
	}
	if w.anew {
		sess.full, sess.sent, sess.revision = true, map[string]string{}, 0
	}
	// The network comes first, so that an instance finds the way to its peers when it starts.
	if w.network {
		if err := sess.sendTrust(); err != nil {
			return rest, err
		}
		if err := sess.sendNetwork(w.told); err != nil {
			return rest, err
		}
	} else {
		sess.revision = max(sess.revision, settled) // or there would be a note
	}
	if w.assign {
		assign, err := sess.sessions.assignments(sess.sessions.Store.Snapshot(), sess)
		if err != nil {
			return rest, err
		}
		if sess.full || len(assign.Put) > 0 || len(assign.Remove) > 0 {
			assign.Full, sess.full = sess.full, false
			if err := sess.stream.Send(wire.ServerMessage{Assign: assign}); err != nil {
				return rest, err
			}
		}
	}
	if w.retell {
		if err := sess.stream.Send(wire.ServerMessage{Retell: true}); err != nil {
			return rest, err
		}
	}
	if w.lease == nil {
		return rest, nil
	}
	if followed < w.leaseAt {
		return work{lease: w.lease, leaseAt: w.leaseAt}, nil
	}
	w.lease.Network = sess.revision
	if err := sess.stream.Send(wire.ServerMessage{Lease: w.lease}); err != nil {
		return rest, err
	}
	return rest, sess.sendServers()
}

func (sess *session) sendNetwork(told bool) error {
	messages, now, err := sess.sessions.network.since(sess.revision)
	if err != nil {
		return err
	}
	if len(messages) == 0 && told && now > sess.revision {
		m := wire.ServerMessage{Network: &wire.Network{Revision: now, Since: sess.revision}} // nothing changed
		if err := sess.stream.Send(m); err != nil {
			return err
		}
	}
	for _, m := range messages {
		if err := sess.stream.Send(m); err != nil {
			return err
		}
	}
	sess.revision = now
	return nil
}

func (sess *session) sendTrust() error {
	if sess.sessions.Trust == nil {
		return nil
	}
	now := sess.sessions.Trust()
	if bytes.Equal(now.CA, sess.trust.CA) && bytes.Equal(now.Cross, sess.trust.Cross) {
		return nil
	}
	sess.trust = now
	return sess.stream.Send(wire.ServerMessage{Trust: &now})
}

func (sess *session) sendServers() error {
	s := sess.sessions
	s.mu.Lock()
	now := s.servers
	s.mu.Unlock()
	if len(now) == 0 || sameAddresses(sess.servers, now) {
		return nil
	}
	sess.servers = now
	return sess.stream.Send(wire.ServerMessage{Servers: now})
}
