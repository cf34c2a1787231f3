package core

import (
	"context"
	"fmt"
	"io"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// Files names files of a task of an instance; a workload means its instance that runs, or else has
// kept its files, and no task the first.
type Files struct {
	Ref, Task, Path string
	// KeepKind and ToUser are for writing; see wire.FilesRequest.
	KeepKind, ToUser bool
}

// What is told of files.
type (
	FileStat   = wire.FileStat
	FileChange = wire.FileChange
)

// The kinds of changes.
const (
	FileAdded   = wire.FileAdded
	FileChanged = wire.FileChanged
	FileDeleted = wire.FileDeleted
)

// FileStat tells of a file of a task.
func (c *Core) FileStat(ctx context.Context, who Caller, f Files) (st FileStat, err error) {
	err = c.withFiles(who, "read files", f, func(node string, r wire.FilesRequest) error {
		st, err = c.Remote.FileStat(ctx, node, r)
		return err
	})
	return st, err
}

// ReadFiles writes the file or tree at a path to w as a tar archive, as the task sees it.
func (c *Core) ReadFiles(ctx context.Context, who Caller, f Files, w io.Writer) error {
	return c.withFiles(who, "read files", f, func(node string, r wire.FilesRequest) error {
		return c.Remote.ReadFiles(ctx, node, r, w)
	})
}

// ExportFiles writes the root file system of a task to w as a tar archive, without what is mounted into it.
func (c *Core) ExportFiles(ctx context.Context, who Caller, f Files, w io.Writer) error {
	return c.withFiles(who, "read files", f, func(node string, r wire.FilesRequest) error {
		r.What = wire.FilesRoot
		return c.Remote.ReadFiles(ctx, node, r, w)
	})
}

// WriteFiles unpacks a tar archive into the directory at a path.
func (c *Core) WriteFiles(ctx context.Context, who Caller, f Files, archive io.Reader) error {
	return c.withFiles(who, "write files", f, func(node string, r wire.FilesRequest) error {
		return c.Remote.WriteFiles(ctx, node, r, archive)
	})
}

// FileChanges lists what a task changed of its image's files.
func (c *Core) FileChanges(ctx context.Context, who Caller, f Files) (list []FileChange, err error) {
	err = c.withFiles(who, "read files", f, func(node string, r wire.FilesRequest) error {
		list, err = c.Remote.FileChanges(ctx, node, r.TaskRef)
		return err
	})
	return list, err
}

func (c *Core) withFiles(who Caller, use string, f Files, do func(node string, r wire.FilesRequest) error) (err error) {
	a, err := c.begin(who, use, fmt.Sprintf("%s: %s", f.Ref, f.Path))
	if err != nil {
		return err
	}
	defer a.end(&err)
	snap := c.look(who)
	found, err := find(snap, who.namespace(), f.Ref)
	if err == nil {
		err = a.about(found)
	}
	if err != nil {
		return err
	}
	if found.Instance == nil && found.Workload == nil {
		return fault.New(fault.Invalid, "%s is %s; name a workload or an instance", f.Ref, found.describe())
	}
	var best *model.Instance
	for _, i := range instancesOf(snap, found) {
		if i.NodeID == "" || i.Status.State == model.InstanceLost {
			continue
		}
		if best == nil || i.Status.State == model.InstanceRunning && best.Status.State != model.InstanceRunning {
			best = i
		}
	}
	if best == nil {
		return fault.New(fault.Unavailable, "%s has no files on any node yet; `tutti explain %s` says why", found.describe(), f.Ref)
	}
	return do(best.NodeID, wire.FilesRequest{
		TaskRef: wire.TaskRef{Instance: best.ID, Task: f.Task}, Path: f.Path, KeepKind: f.KeepKind, ToUser: f.ToUser,
	})
}
