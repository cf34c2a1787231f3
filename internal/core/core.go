package core

import (
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tutti-run/tutti/internal/autoscale"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/trust"
	"github.com/tutti-run/tutti/internal/wire"
)

// Remote reaches into nodes.
type Remote interface {
	Logs(ctx context.Context, nodeID string, ref wire.TaskRef, o driver.LogOptions, yield func(driver.LogEntry) error) error
	Exec(ctx context.Context, nodeID string, ref wire.TaskRef, spec driver.ExecSpec, s driver.Streams) (int, error)
	Attach(ctx context.Context, nodeID string, ref wire.TaskRef, s driver.Streams) error
	Dial(ctx context.Context, nodeID, instance string, port int, s driver.Streams) error
	AccessLog(ctx context.Context, nodeID string, r wire.AccessRequest, yield func(driver.LogEntry) error) error
	Flows(ctx context.Context, nodeID string, span time.Duration) ([]wire.Flow, error)
	Counts(ctx context.Context, nodeID string) (wire.CountsReply, error)
	Try(ctx context.Context, nodeID string, r wire.TryRequest) (wire.TryReply, error)
	Signal(ctx context.Context, nodeID string, ref wire.TaskRef, signal int) error
	Pause(ctx context.Context, nodeID string, ref wire.TaskRef, pause bool) error
	Bound(ctx context.Context, nodeID string, ref wire.TaskRef, b model.Bounds) error
	Linked(ctx context.Context, nodeID, instance string, addresses []model.Address) error
	Stats(ctx context.Context, nodeID string, ref wire.TaskRef) (driver.Stats, error)
	Sizes(ctx context.Context, nodeID string, r wire.SizesRequest) (wire.SizesReply, error)
	Debug(ctx context.Context, nodeID string) (wire.NodeDebug, error)
	Processes(ctx context.Context, nodeID string, ref wire.TaskRef) ([]driver.Process, error)
	FileStat(ctx context.Context, nodeID string, r wire.FilesRequest) (wire.FileStat, error)
	FileChanges(ctx context.Context, nodeID string, ref wire.TaskRef) ([]wire.FileChange, error)
	ReadFiles(ctx context.Context, nodeID string, r wire.FilesRequest, w io.Writer) error
	WriteFiles(ctx context.Context, nodeID string, r wire.FilesRequest, archive io.Reader) error
	EnsureImage(ctx context.Context, nodeID, name, digest string) error
	RemoveImage(ctx context.Context, nodeID, name string) error
	RemoveVolume(ctx context.Context, nodeID, id string) error
	ReadVolume(ctx context.Context, nodeID string, v *model.Volume, w io.Writer) error
	WriteVolume(ctx context.Context, nodeID string, v *model.Volume, archive io.Reader) error
}

// Images is this server's own image store.
type Images interface {
	Import(ctx context.Context, r io.Reader, o image.ImportOptions) ([]image.Info, error)
	Ensure(ctx context.Context, name, digest string, progress func(image.Progress)) (image.Info, error)
	Describe(ctx context.Context, name, digest string) (image.Detail, error)
	Tag(ctx context.Context, name, digest, newName string) (image.Info, error)
	Pull(ctx context.Context, ref string, o image.PullOptions) (image.Info, error)
	Resolve(ctx context.Context, ref string, as image.Credentials) (image.Remote, error)
	Signatures(ctx context.Context, name, digest string, as image.Credentials) ([]image.Signature, error)
	Export(ctx context.Context, w io.Writer, names []string) error
	Push(ctx context.Context, name, digest string, c image.Credentials, progress func(image.Progress)) (ocispec.Descriptor, error)
}

// Servers tells of the cluster's servers.
type Servers interface {
	// Leader returns the ID of the leading server, "" when there is none.
	Leader() string
	Addresses() []wire.ServerAddress
	// Sync returns once this server's state shows all that was acknowledged anywhere before.
	Sync(ctx context.Context) error
	// Members returns all servers.
	Members() []Member
	// Promote lets a server have a vote, Demote takes it away, and Remove takes the server out.
	Promote(ctx context.Context, id string) error
	Demote(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	// WriteBackup writes a backup of the state as this server has it.
	WriteBackup(to io.Writer) error
}

// Member is a server as the replication knows it.
type Member struct {
	ID      string
	Address string // host:port
	Voter   bool
	Leader  bool
}

// Trust is who believes whom; see package trust.
type Trust interface {
	// SecretKey returns the key that encrypts secrets, unless this server is locked.
	SecretKey() ([]byte, error)
	JoinToken(server bool) (string, error)
	// Sealed reports whether every server is of a version that keeps keys sealed, and users.
	Sealed() bool
	Locked() bool
	View() (trust.View, error)
	RotateTokens(ctx context.Context, server, agent bool) error
	RotateAuthority(ctx context.Context, window time.Duration) error
	DropAuthority(ctx context.Context) error
	SetAutolock(ctx context.Context, on bool) (unlockKey string, err error)
	UnlockKey(ctx context.Context, rotate bool) (string, error)
	Unlock(ctx context.Context, unlockKey string) error
	IssueUser(u *model.User, csrPEM []byte, life time.Duration) (certPEM []byte, believe wire.Trust, err error)
}

// Deps is what Core works with.
type Deps struct {
	Store   *store.Store
	Trust   Trust
	Remote  Remote
	Images  Images
	Servers Servers
	NodeID  string // of this server
	// Demand says what further hosts like one would be good for.
	Demand func(snap *store.Snapshot, like *model.Node, most int) autoscale.Demand
	Audit  AuditLog // nil keeps none
	Log    *slog.Logger
}

// Core answers use cases. It is safe for concurrent use.
type Core struct {
	Deps
}

// New returns a Core.
func New(d Deps) *Core { return &Core{Deps: d} }

// Snapshot returns a consistent view of what the caller may see, for reading.
func (c *Core) Snapshot(who Caller) (*store.Snapshot, error) {
	if _, err := c.begin(who, "look", ""); err != nil {
		return nil, err
	}
	return c.look(who), nil
}

func namespaceOr(ns string) string {
	if ns == "" {
		return model.DefaultNamespace
	}
	return ns
}

// attempts bounds how often a use case starts over because somebody else, nodes that report
// included, changed the same objects meanwhile. Between two of them lies a pause of any length up to
// conflictPause times how many there were, so that rivals find their turns.
const (
	attempts      = 12
	conflictPause = 5 * time.Millisecond
)

// syncPatience is how long a use case waits for a leader, to find out what became of a change that was
// under way when the one before was lost.
const syncPatience = 10 * time.Second

// update decides on a fresh snapshot and commits, again when the snapshot was outrun, or when the change
// was lost with a leader.
func (c *Core) update(ctx context.Context, decide func(snap *store.Snapshot, cs *store.ChangeSet) error) error {
	for n := 1; ; n++ {
		cs := &store.ChangeSet{}
		if err := decide(c.Store.Snapshot(), cs); err != nil {
			return err
		}
		if cs.Len() == 0 {
			return nil
		}
		_, err := c.Store.Commit(ctx, cs)
		if err == nil || n == attempts {
			return err
		}
		switch {
		case fault.Is(err, fault.Conflict):
		case !fault.Is(err, fault.Unavailable) || ctx.Err() != nil:
			return err
		default:
			syncCtx, cancel := context.WithTimeout(ctx, syncPatience)
			syncErr := c.Servers.Sync(syncCtx)
			cancel()
			if syncErr != nil {
				return err
			}
			// What is not applied by now comes too late if it ever does: what it expects, or the name that
			// it takes, is not there any more once this has been decided anew.
			if applied, known := c.Store.Snapshot().Shows(cs); applied || !known {
				if applied {
					return nil
				}
				return err
			}
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(rand.N(time.Duration(n) * conflictPause)):
		}
	}
}

// put adds an object to the change set, on condition that nobody else changed it meanwhile.
func put(cs *store.ChangeSet, obj model.Object) {
	m := obj.GetMeta()
	cs.Expect(obj.Kind(), m.ID, m.Revision)
	cs.Put(obj)
}

func event(cs *store.ChangeSet, now time.Time, kind string, obj model.Object, message string) {
	cs.Put(model.NewEvent(now, kind, obj, message))
}
