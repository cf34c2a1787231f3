package main

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/files"
)

func copyCommand(g *globals) *cobra.Command {
	var task string
	cmd := &cobra.Command{
		Use: "cp REF:PATH LOCAL | LOCAL REF:PATH", Short: "Copy files into or out of an instance",
		Long: "Copy a file or a tree out of an instance or into one, wherever that is; a workload stands for an\n" +
			"instance that runs. Into a directory that is there it goes under its own name, and what ends in /.\n" +
			"is the content of a directory. - is a tar archive on the standard input or output. A local path\n" +
			"that has a colon begins with ./ or /.",
		Example: "  tutti cp shop/web.1:/etc/shop.json .\n  tutti cp ./site shop/web.1:/var/www\n  tutti cp shop/db:/var/lib/data - | gzip > data.tar.gz",
		Args:    arguments(2, 2, "where from, and where to"),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, out := remotePath(args[0])
			to, in := remotePath(args[1])
			from.Task, to.Task = task, task
			switch {
			case out && in:
				return usagef("both are in instances: copy by way of a local path")
			case !out && !in:
				return usagef("neither is in an instance: write one as REF:PATH")
			}
			return g.with(cmd.Context(), func(c *native.Client) error {
				if out {
					return copyOut(cmd.Context(), c, from, args[1], cmd.OutOrStdout())
				}
				return copyIn(cmd.Context(), c, args[0], to, cmd.InOrStdin())
			})
		},
	}
	cmd.Flags().StringVar(&task, "task", "", "task of the instance (the first)")
	return cmd
}

// remotePath splits REF:PATH; ok is false for a local path.
func remotePath(arg string) (f core.Files, ok bool) {
	if strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".") || arg == "-" {
		return f, false
	}
	ref, at, ok := strings.Cut(arg, ":")
	return core.Files{Ref: ref, Path: at}, ok && ref != "" && at != ""
}

func isContent(p string) bool { return p == "." || strings.HasSuffix(p, "/.") }

func copyOut(ctx context.Context, c *native.Client, from core.Files, to string, stdout io.Writer) error {
	if to == "-" {
		return c.ReadFiles(ctx, from, stdout)
	}
	st, err := c.FileStat(ctx, from)
	if err != nil {
		return err
	}
	dir, top := to, ""
	info, err := os.Stat(to)
	switch {
	case err == nil && info.IsDir():
	case err == nil && fs.FileMode(st.Mode).IsDir():
		return fault.New(fault.Invalid, "%s is a file, and %s a directory", to, from.Path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case isContent(from.Path):
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
	default:
		dir, top = filepath.Dir(filepath.Clean(to)), filepath.Base(to)
	}
	root, err := files.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return pipe(
		func(w io.Writer) error { return c.ReadFiles(ctx, from, w) },
		func(r io.Reader) error {
			return root.Unpack(ctx, r, "/", files.UnpackOptions{KeepKind: true, Owner: &files.Owner{UID: os.Getuid(), GID: os.Getgid()}})
		}, top)
}

func copyIn(ctx context.Context, c *native.Client, from string, to core.Files, stdin io.Reader) error {
	if from == "-" {
		return c.WriteFiles(ctx, to, stdin)
	}
	at, err := filepath.Abs(from)
	if err != nil {
		return err
	}
	info, err := os.Lstat(at)
	if err != nil {
		return err
	}
	name, parent := filepath.Base(at), filepath.Dir(at)
	if isContent(from) {
		name, parent = "/.", at
	}
	top := ""
	behind := to
	behind.Path = strings.TrimSuffix(to.Path, "/") + "/."
	switch _, err := c.FileStat(ctx, behind); {
	case err == nil:
		to = behind
	case fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid) && !info.IsDir(): // it is not there, or a file that is replaced
		to.Path, top = path.Dir(path.Clean("/"+to.Path)), path.Base(to.Path)
	case fault.Is(err, fault.Invalid):
		return fault.New(fault.Invalid, "%s is a directory, and %s:%s is not", from, to.Ref, to.Path)
	default:
		return err
	}
	root, err := files.Open(parent)
	if err != nil {
		return err
	}
	defer root.Close()
	return pipe(
		func(w io.Writer) error { return root.Pack(ctx, w, name) },
		func(r io.Reader) error { return c.WriteFiles(ctx, to, r) }, top)
}

// pipe joins both ends; a top takes the place of the first element of all names on the way.
func pipe(write func(io.Writer) error, read func(io.Reader) error, top string) error {
	pr, pw := io.Pipe()
	wrote := make(chan error, 1)
	go func() {
		var err error
		if top == "" {
			err = write(pw)
		} else {
			err = renamed(write, pw, top)
		}
		pw.CloseWithError(err)
		wrote <- err
	}()
	err := read(pr)
	pr.CloseWithError(errReaderGone)
	if werr := <-wrote; werr != nil && !errors.Is(werr, errReaderGone) {
		return werr
	}
	return err
}

var errReaderGone = errors.New("nobody reads any more")

func renamed(write func(io.Writer) error, w io.Writer, top string) error {
	pr, pw := io.Pipe()
	wrote := make(chan error, 1)
	go func() {
		err := write(pw)
		pw.CloseWithError(err)
		wrote <- err
	}()
	err := rename(tar.NewReader(pr), tar.NewWriter(w), top)
	pr.CloseWithError(errReaderGone)
	if werr := <-wrote; werr != nil && !errors.Is(werr, errReaderGone) {
		return werr
	}
	return err
}

func rename(in *tar.Reader, out *tar.Writer, top string) error {
	change := func(name string) string {
		_, rest, below := strings.Cut(name, "/")
		if !below {
			return top
		}
		return top + "/" + rest
	}
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err != nil {
			return err
		}
		h.Name = change(h.Name)
		if h.Typeflag == tar.TypeLink {
			h.Linkname = change(h.Linkname)
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
}
