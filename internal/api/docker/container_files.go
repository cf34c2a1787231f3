package docker

import (
	"bufio"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/moby/moby/api/types/container"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// filesOf finds the container of a request, and says which files of it are meant.
func (a *API) filesOf(r *request) (*box, core.Files, error) {
	b, err := a.box(r)
	if err != nil {
		return nil, core.Files{}, err
	}
	if b, err = a.laidOut(r, b); err != nil {
		return nil, core.Files{}, err
	}
	return b, core.Files{Ref: b.instance.ID, Task: b.spec().Name, Path: r.query.Get("path")}, nil
}

// laidOut gives a container that was never started a node, and files there.
func (a *API) laidOut(r *request, b *box) (*box, error) {
	there := func(b *box) bool {
		return b.instance != nil && b.instance.NodeID != "" && b.instance.Status.State != model.InstancePending && b.instance.Status.State != model.InstancePreparing
	}
	if b.made == nil || there(b) {
		return b, nil
	}
	for b.workload.Suspended && b.workload.Starts == 0 && !b.workload.LaidOut {
		err := a.Core.LayOut(r.Context(), r.who, b.workload.ID, true)
		if err != nil && !fault.Is(err, fault.Conflict) {
			return nil, err
		}
		if b = a.boxByID(a.snapshot(), b.id); b == nil {
			return nil, fault.New(fault.NotFound, "No such container: %s", r.vars["name"])
		}
	}
	var last *box
	for {
		ctx, cancel := context.WithTimeout(r.Context(), unplacedFor)
		err := a.await(ctx, b.id, func(now *box) bool { last = now; return now == nil || there(now) })
		cancel()
		switch {
		case err == nil && last == nil:
			return nil, fault.New(fault.NotFound, "No such container: %s", r.vars["name"])
		case err == nil && last.instance.Status.State.Final():
			return nil, fault.New(fault.Unavailable, "container %s has no files: %s", b.name, last.instance.Status.Message)
		case err == nil:
			return last, nil
		case r.Context().Err() != nil || !errors.Is(err, context.DeadlineExceeded):
			return nil, err
		case last.instance != nil && last.instance.NodeID == "" && last.instance.Reason != "":
			if err := a.Core.LayOut(context.WithoutCancel(r.Context()), r.who, b.workload.ID, false); err != nil && !fault.Is(err, fault.Conflict) {
				return nil, err
			}
			return nil, fault.New(fault.Conflict, "container %s has no files before it has a node, and no node can run it: %s", b.name, last.instance.Reason)
		}
	}
}

func archivePath(r *request) error {
	if r.query.Get("path") == "" {
		return fault.New(fault.Invalid, "missing parameter: path") // the Engine's words
	}
	return nil
}

// stat tells of a path in the header that clients of `docker cp` read.
func (a *API) stat(w http.ResponseWriter, r *request) (core.Files, error) {
	if err := archivePath(r); err != nil {
		return core.Files{}, err
	}
	_, f, err := a.filesOf(r)
	if err != nil {
		return f, err
	}
	st, err := a.Core.FileStat(r.Context(), r.who, f)
	if err != nil {
		return f, notThere(err, r, f.Path)
	}
	data, err := json.Marshal(container.PathStat{
		Name: st.Name, Size: st.Size, Mode: fs.FileMode(st.Mode), Mtime: st.ModTime, LinkTarget: st.LinkTarget,
	})
	if err != nil {
		return f, fault.New(fault.Internal, "tell of %s: %w", f.Path, err)
	}
	w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(data))
	return f, nil
}

func notThere(err error, r *request, path string) error {
	if fault.Is(err, fault.NotFound) && strings.HasPrefix(err.Error(), "no such file") {
		return fault.New(fault.NotFound, "Could not find the file %s in container %s", path, r.vars["name"])
	}
	return err
}

func (a *API) archiveStat(w http.ResponseWriter, r *request) error {
	if _, err := a.stat(w, r); err != nil {
		return err
	}
	return done(w, http.StatusOK)
}

func (a *API) archiveRead(w http.ResponseWriter, r *request) error {
	f, err := a.stat(w, r)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-tar")
	return a.tarOut(w, r, func(w io.Writer) error { return a.Core.ReadFiles(r.Context(), r.who, f, w) })
}

func (a *API) containerExport(w http.ResponseWriter, r *request) error {
	_, f, err := a.filesOf(r)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	return a.tarOut(w, r, func(w io.Writer) error { return a.Core.ExportFiles(r.Context(), r.who, f, w) })
}

// tarOut answers with an archive. Once that has begun, an error cuts the connection: an archive that
// merely ended would look whole.
func (a *API) tarOut(w http.ResponseWriter, r *request, write func(io.Writer) error) error {
	out := &begunWriter{w: w}
	err := write(out)
	if err == nil || !out.begun {
		return err
	}
	if r.Context().Err() == nil {
		a.Log.Warn("an archive was cut short", "path", r.URL.Path, "error", err)
	}
	panic(http.ErrAbortHandler)
}

type begunWriter struct {
	w     io.Writer
	begun bool
}

func (b *begunWriter) Write(p []byte) (int, error) {
	b.begun = true
	return b.w.Write(p)
}

func (a *API) archiveWrite(w http.ResponseWriter, r *request) error {
	if err := archivePath(r); err != nil {
		return err
	}
	_, f, err := a.filesOf(r)
	if err != nil {
		return err
	}
	f.KeepKind, f.ToUser = r.flag("noOverwriteDirNonDir"), r.flag("copyUIDGID")
	archive, err := decompressed(r.Body)
	if err != nil {
		return err
	}
	defer archive.Close()
	if err := a.Core.WriteFiles(r.Context(), r.who, f, archive); err != nil {
		return notThere(err, r, f.Path)
	}
	return done(w, http.StatusOK)
}

func (a *API) containerChanges(w http.ResponseWriter, r *request) error {
	b, err := a.box(r)
	if err != nil {
		return err
	}
	out := []container.FilesystemChange{}
	if b.instance == nil || b.instance.NodeID == "" {
		return answer(w, http.StatusOK, out) // it has changed nothing yet
	}
	list, err := a.Core.FileChanges(r.Context(), r.who, core.Files{Ref: b.instance.ID, Task: b.spec().Name})
	if err != nil {
		return err
	}
	kinds := map[any]container.ChangeType{
		core.FileAdded: container.ChangeAdd, core.FileChanged: container.ChangeModify, core.FileDeleted: container.ChangeDelete,
	}
	for _, c := range list {
		out = append(out, container.FilesystemChange{Path: path.Clean(c.Path), Kind: kinds[c.Kind]})
	}
	return answer(w, http.StatusOK, out)
}

// decompressed reads an archive that may be compressed, as its first bytes tell.
func decompressed(body io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReader(body)
	head, _ := in.Peek(6) // a short one is no archive, which is found out later
	switch text := string(head); {
	case strings.HasPrefix(text, "\x1f\x8b"):
		r, err := gzip.NewReader(in)
		if err != nil {
			return nil, fault.New(fault.Invalid, "read the archive: %w", err)
		}
		return r, nil
	case strings.HasPrefix(text, "BZh"):
		return io.NopCloser(bzip2.NewReader(in)), nil
	case strings.HasPrefix(text, "\x28\xb5\x2f\xfd"):
		r, err := zstd.NewReader(in, zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return nil, fault.New(fault.Invalid, "read the archive: %w", err)
		}
		return r.IOReadCloser(), nil
	case strings.HasPrefix(text, "\xfd7zXZ\x00"):
		return nil, notHonoured("an archive's compression", "xz")
	}
	return io.NopCloser(in), nil
}
