package artifact

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/klauspost/compress/zstd"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// maxEntries bounds what one archive makes.
const maxEntries = 1 << 20

// placing writes below a directory. The root refuses every name, and every link on the way to it,
// that leads out.
type placing struct {
	root     *os.Root
	uid, gid int
	left     int64 // bytes that may still be written
	entries  int
}

func (p *placing) unpack(ctx context.Context, f *os.File, format, target string) error {
	if format == model.ArtifactZip {
		return p.unzip(ctx, f, target)
	}
	var r io.Reader = f
	switch format {
	case model.ArtifactTarGzip:
		z, err := gzip.NewReader(f)
		if err != nil {
			return fault.New(fault.Invalid, "it is not compressed by gzip: %w", err)
		}
		defer z.Close()
		r = z
	case model.ArtifactTarZstd:
		z, err := zstd.NewReader(f, zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return fault.New(fault.Invalid, "it is not compressed by zstd: %w", err)
		}
		defer z.Close()
		r = z
	}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = p.count(ctx)
		}
		if err != nil {
			return fault.New(fault.Invalid, "read the archive: %w", err)
		}
		name, err := inside(target, h.Name)
		if err != nil {
			return err
		}
		mode := fs.FileMode(h.Mode) & fs.ModePerm
		switch h.Typeflag {
		case tar.TypeDir:
			err = p.dir(name, mode|0o700)
		case tar.TypeReg:
			err = p.file(name, tr, mode)
		case tar.TypeSymlink:
			err = p.symlink(name, h.Linkname)
		case tar.TypeLink:
			var old string
			if old, err = inside(target, h.Linkname); err == nil {
				err = p.hardLink(old, name)
			}
		case tar.TypeXGlobalHeader:
		default:
			err = fault.New(fault.Invalid, "archive entry %q is neither a file, a directory nor a link", h.Name)
		}
		if err != nil {
			return err
		}
	}
}

func (p *placing) unzip(ctx context.Context, f *os.File, target string) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	z, err := zip.NewReader(f, st.Size())
	if err != nil {
		return fault.New(fault.Invalid, "read the archive: %w", err)
	}
	for _, e := range z.File {
		if err := p.count(ctx); err != nil {
			return fault.New(fault.Invalid, "read the archive: %w", err)
		}
		name, err := inside(target, e.Name)
		if err != nil {
			return err
		}
		if err := p.zipped(e, name); err != nil {
			return err
		}
	}
	return nil
}

func (p *placing) zipped(e *zip.File, name string) error {
	mode := e.Mode()
	if mode.IsDir() {
		return p.dir(name, mode.Perm()|0o700)
	}
	if !mode.IsRegular() && mode.Type() != fs.ModeSymlink {
		return fault.New(fault.Invalid, "archive entry %q is neither a file, a directory nor a link", e.Name)
	}
	r, err := e.Open()
	if err != nil {
		return fault.New(fault.Invalid, "read the archive: %w", err)
	}
	defer r.Close()
	if mode.IsRegular() {
		return p.file(name, r, mode.Perm())
	}
	link, err := io.ReadAll(io.LimitReader(r, 4097))
	if err != nil || len(link) > 4096 {
		return fault.New(fault.Invalid, "archive entry %q is no link that could be read", e.Name)
	}
	return p.symlink(name, string(link))
}

func (p *placing) count(ctx context.Context) error {
	if p.entries++; p.entries > maxEntries {
		return fmt.Errorf("it has more than %d entries", maxEntries)
	}
	return ctx.Err()
}

// inside is the place of an archive's entry; one that is meant for elsewhere is refused, not bent.
func inside(target, name string) (string, error) {
	clean := path.Clean(name)
	if clean == "." {
		return target, nil
	}
	if !filepath.IsLocal(clean) {
		return "", fault.New(fault.Invalid, "archive entry %q leads out of the sandbox", name)
	}
	return path.Join(target, clean), nil
}

// in says what was done to what, when it failed. What the root refuses is the archive's fault.
func in(what, name string, err error) error {
	if err == nil {
		return nil
	}
	return fault.New(fault.Invalid, "%s %q: %w", what, name, err)
}

func (p *placing) dir(name string, mode fs.FileMode) error {
	if name == "." {
		return nil // the sandbox itself
	}
	if err := p.parents(name); err != nil {
		return err
	}
	err := p.root.Mkdir(name, mode)
	if errors.Is(err, fs.ErrExist) {
		if st, serr := p.root.Lstat(name); serr == nil && st.IsDir() {
			err = nil
		}
	}
	if err == nil {
		err = errors.Join(p.root.Chmod(name, mode), p.root.Lchown(name, p.uid, p.gid))
	}
	return in("make directory", name, err)
}

// parents makes the directories above a name that no entry of the archive made.
func (p *placing) parents(name string) error {
	above := path.Dir(name)
	if above == "." {
		return nil
	}
	if st, err := p.root.Stat(above); err == nil && st.IsDir() {
		return nil
	}
	return p.dir(above, 0o755)
}

func (p *placing) file(name string, r io.Reader, mode fs.FileMode) error {
	if err := p.clear(name); err != nil {
		return err
	}
	f, err := p.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return in("make file", name, err)
	}
	n, err := io.Copy(f, io.LimitReader(r, p.left+1))
	if p.left -= n; err == nil && p.left < 0 {
		err = fmt.Errorf("more than %d bytes are unpacked", int64(maxBytes))
	}
	// The mode last: a change of owner drops bits of it, and the umask did.
	err = errors.Join(err, f.Chown(p.uid, p.gid), f.Chmod(mode), f.Close())
	return in("write file", name, err)
}

// clear makes room for an entry: what is there is replaced, never written through.
func (p *placing) clear(name string) error {
	if name == "." {
		return fault.New(fault.Invalid, "the sandbox itself cannot be replaced")
	}
	if err := p.parents(name); err != nil {
		return err
	}
	if err := p.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return in("replace", name, err)
	}
	return nil
}

func (p *placing) symlink(name, to string) error {
	if filepath.IsAbs(to) || !filepath.IsLocal(path.Join(path.Dir(name), to)) {
		return fault.New(fault.Invalid, "link %q leads to %q, out of the sandbox", name, to)
	}
	if err := p.clear(name); err != nil {
		return err
	}
	return in("make link", name, errors.Join(p.root.Symlink(to, name), p.root.Lchown(name, p.uid, p.gid)))
}

func (p *placing) hardLink(old, name string) error {
	st, err := p.root.Lstat(old)
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("only files can have another name")
	}
	if err != nil {
		return in("make link", name, err)
	}
	if err := p.clear(name); err != nil {
		return err
	}
	return in("make link", name, p.root.Link(old, name))
}
