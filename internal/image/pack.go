package image

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// PackOptions says what an image is made of.
type PackOptions struct {
	Name string
	Base string // an archive to build on; "" begins with nothing
	Dir  string // a root file system; "" for none
	// Add are further files, as they are to appear in the image.
	Add      []AddedFile
	Settings Settings
}

// AddedFile is one file or directory put into an image.
type AddedFile struct {
	Host string
	Path string
	Mode os.FileMode // 0: as on the host
}

// Pack writes a Docker archive of a new image. The same input gives the same bytes: entries are
// sorted and carry no times.
func Pack(w io.Writer, o PackOptions) error {
	tag, err := name.NewTag(o.Name)
	if err != nil {
		return fault.New(fault.Invalid, "image name %q: %w", o.Name, err)
	}
	img := v1.Image(empty.Image)
	if o.Base != "" {
		if img, err = tarball.ImageFromPath(o.Base, nil); err != nil {
			return fault.New(fault.Invalid, "read base image %s: %w", o.Base, err)
		}
	}
	layer, err := os.CreateTemp("", "tutti-layer-")
	if err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	if err := writeLayer(layer, &o); err != nil {
		return err
	}
	l, err := tarball.LayerFromFile(layer.Name(), tarball.WithCompression(compression.None))
	if err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	if img, err = mutate.AppendLayers(img, l); err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Created = "linux", runtime.GOARCH, v1.Time{Time: time.Unix(0, 0).UTC()}
	overlaySettings(&cf.Config, &o.Settings)
	for i := range cf.History {
		cf.History[i].Created = cf.Created
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return fmt.Errorf("pack image: %w", err)
	}
	if err := tarball.Write(tag, img, w); err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	return nil
}

func overlaySettings(c *v1.Config, s *Settings) {
	if len(s.Entrypoint) > 0 {
		c.Entrypoint, c.Cmd = s.Entrypoint, nil
	}
	if len(s.Cmd) > 0 {
		c.Cmd = s.Cmd
	}
	c.Env = append(c.Env, s.Env...)
	if s.User != "" {
		c.User = s.User
	}
	if s.WorkingDir != "" {
		c.WorkingDir = s.WorkingDir
	}
	if s.StopSignal != "" {
		c.StopSignal = s.StopSignal
	}
	for _, v := range s.Volumes {
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		c.Volumes[v] = struct{}{}
	}
	for _, p := range s.ExposedPorts {
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		if !strings.Contains(p, "/") {
			p += "/tcp"
		}
		c.ExposedPorts[p] = struct{}{}
	}
	for k, v := range s.Labels {
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		c.Labels[k] = v
	}
	if h := s.Health; h != nil {
		c.Healthcheck = &v1.HealthConfig{Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries, Test: healthTest(h)}
	}
}

func healthTest(p *model.Probe) []string {
	if p.Shell != "" {
		return []string{"CMD-SHELL", p.Shell}
	}
	return append([]string{"CMD"}, p.Exec...)
}

// writeLayer writes the tar of a layer: the directory first, then what is added to it.
func writeLayer(w io.Writer, o *PackOptions) error {
	tw := tar.NewWriter(w)
	seen := map[string]bool{}
	if o.Dir != "" {
		if err := addTree(tw, o.Dir, "", 0, seen); err != nil {
			return fmt.Errorf("pack directory %s: %w", o.Dir, err)
		}
	}
	added := slices.Clone(o.Add)
	slices.SortFunc(added, func(a, b AddedFile) int { return strings.Compare(a.Path, b.Path) })
	for _, a := range added {
		path := strings.Trim(filepath.Clean("/"+a.Path), "/")
		for i, c := range path { // parents that nothing else made
			if parent := path[:i]; c == '/' && !seen[parent] {
				seen[parent] = true
				if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: parent + "/", Mode: 0o755, Format: tar.FormatPAX}); err != nil {
					return err
				}
			}
		}
		if err := addTree(tw, a.Host, path, a.Mode, seen); err != nil {
			return fmt.Errorf("pack %s: %w", a.Host, err)
		}
	}
	return tw.Close()
}

func addTree(tw *tar.Writer, root, as string, mode os.FileMode, seen map[string]bool) error {
	links := map[uint64]string{} // inode → first name, for hard links
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		name := filepath.Join(as, rel)
		if name == "." || e.Type()&fs.ModeSocket != 0 {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		h.Name, h.Format = name, tar.FormatPAX
		h.ModTime, h.AccessTime, h.ChangeTime, h.Uname, h.Gname = time.Unix(0, 0), time.Time{}, time.Time{}, "", ""
		if mode != 0 && info.Mode().IsRegular() {
			h.Mode, h.Uid, h.Gid = int64(mode), 0, 0
		}
		st := info.Sys().(*syscall.Stat_t)
		if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
			h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		}
		if info.IsDir() {
			h.Name += "/"
			seen[name] = true
		} else if first, linked := links[st.Ino]; linked && info.Mode().IsRegular() {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return tw.WriteHeader(h)
		} else if st.Nlink > 1 {
			links[st.Ino] = name
		}
		if err := tw.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(tw, f)
		return err
	})
}
