package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/volume"
	"github.com/tutti-run/tutti/internal/wire"
)

// prepareMounts resolves a task's mounts to paths on this host, those that its image declares
// as volumes included.
func (w *worker) prepareMounts(ctx context.Context, as *wire.Assignment, p *prepared, t *model.TaskSpec, secretDir string) error {
	covered := map[string]bool{}
	for i, m := range t.Mounts {
		covered[filepath.Clean(m.Target)] = true
		dm := driver.Mount{Type: "bind", Target: m.Target, ReadOnly: m.ReadOnly, Propagation: m.Propagation, Recursion: m.Recursion}
		switch m.Type {
		case model.MountTmpfs:
			dm = driver.Mount{Type: "tmpfs", Target: m.Target, ReadOnly: m.ReadOnly, SizeBytes: m.SizeBytes, Mode: m.Mode, Options: m.Options}
		case model.MountBind:
			if m.Placed {
				m.Source, m.Target = w.place(as.Instance, m.Source), w.place(as.Instance, m.Target)
				dm.Target = m.Target
			}
			if err := w.bindSource(&m); err != nil {
				return err
			}
			dm.Source = m.Source
			if m.SubPath != "" {
				sub, err := within(m.Source, m.SubPath)
				if err != nil {
					return fmt.Errorf("sub-path %q of %s: %w", m.SubPath, m.Source, err)
				}
				dm.Source = sub
			}
		case model.MountVolume:
			path, err := w.volume(ctx, as, p, t, &m, i)
			if err != nil {
				return err
			}
			dm.Source = path
		case model.MountImage:
			dm.ReadOnly = true
			at, err := w.imageMount(ctx, p, t, &m, i)
			if err != nil {
				return err
			}
			dm.Source = at
		case model.MountSecret, model.MountConfig:
			dm.ReadOnly = true
			if m.Folder == "" {
				dm.Source = filepath.Join(secretDir, secretFile(t.Name, i))
				break
			}
			at, err := w.folder(&m)
			if err != nil {
				return err
			}
			dm.Source = at
		default:
			return fault.New(fault.Unsupported, "mount type %q of %s", m.Type, m.Target)
		}
		p.mounts[t.Name] = append(p.mounts[t.Name], dm)
	}
	if info := p.images[t.Name]; info != nil {
		for i, target := range slices.Sorted(slices.Values(info.Config.Volumes)) {
			if covered[filepath.Clean(target)] {
				continue
			}
			m := model.Mount{Type: model.MountVolume, Target: target}
			path, err := w.volume(ctx, as, p, t, &m, 1000+i)
			if err != nil {
				return err
			}
			p.mounts[t.Name] = append(p.mounts[t.Name], driver.Mount{Type: "bind", Source: path, Target: target})
		}
	}
	return nil
}

// volume returns the host path of a volume mount. An anonymous volume lives as long as the
// instance.
func (w *worker) volume(ctx context.Context, as *wire.Assignment, p *prepared, t *model.TaskSpec, m *model.Mount, index int) (string, error) {
	var v *model.Volume
	if m.Source == "" {
		v = &model.Volume{Meta: model.Meta{ID: w.anonymous(t.Name, index), Name: "anonymous"}}
		if m.Memory {
			v.Driver = volume.InMemory
			if m.SizeBytes > 0 {
				v.Options = map[string]string{"size": strconv.FormatInt(m.SizeBytes, 10)}
			}
		}
		if m.Share != "" {
			v.ID = w.id + "--" + m.Share
		}
	} else {
		i := slices.IndexFunc(as.Volumes, func(v *model.Volume) bool { return v.ID == m.Source })
		if i < 0 {
			return "", fault.New(fault.NotFound, "volume %s of mount %s does not exist", m.Source, m.Target)
		}
		v = as.Volumes[i]
	}
	path, err := w.agent.Volumes.Ensure(ctx, v)
	if err != nil {
		return "", err
	}
	if m.Source == "" || m.Mode != 0 || m.GID != "" {
		if err := ownVolumeRoot(path, m); err != nil {
			return "", fmt.Errorf("set mode and group of volume %s: %w", v.ID, err)
		}
	}
	if root := p.rootfs[t.Name]; root != "" && !m.NoCopy && !m.ReadOnly {
		first, _ := p.users.Outside(0) // there is always a user 0
		if err := w.agent.Volumes.Fill(ctx, path, root, m.Target, uint32(first)); err != nil {
			return "", fmt.Errorf("fill volume %s from the image: %w", v.Name, err)
		}
	}
	sub, err := within(path, m.SubPath)
	if err != nil {
		return "", fmt.Errorf("sub-path %q of volume %s: %w", m.SubPath, v.Name, err)
	}
	return sub, nil
}

// imageMount makes what an image holds visible on this host.
func (w *worker) imageMount(ctx context.Context, p *prepared, t *model.TaskSpec, m *model.Mount, index int) (string, error) {
	root, err := w.mountImage(ctx, m.Source, m.Content, imageMountKey(w.id, t.Name, index), p)
	if err != nil || m.SubPath == "" {
		return root.path, err
	}
	tree, err := os.OpenRoot(root.path)
	if err != nil {
		return "", err
	}
	defer tree.Close()
	sub := strings.TrimPrefix(filepath.Clean("/"+m.SubPath), "/")
	if _, err := tree.Stat(sub); err != nil { // keeps symlinks from leading out of it
		return "", fault.New(fault.Unavailable, "sub-path %q of image %s: %w", m.SubPath, m.Source, err)
	}
	return filepath.EvalSymlinks(filepath.Join(root.path, sub))
}

func imageMountKey(instance, task string, index int) string {
	return instance + "." + task + ".mount" + strconv.Itoa(index)
}

// within is a path in a directory, made a directory if there is nothing.
func within(dir, sub string) (string, error) {
	rel := strings.TrimPrefix(filepath.Clean("/"+sub), "/")
	if rel == "" {
		return dir, nil
	}
	root, err := os.OpenRoot(dir) // keeps symlinks from leading out of it
	if err != nil {
		return "", err
	}
	defer root.Close()
	if _, err := root.Stat(rel); err != nil {
		if err := root.MkdirAll(rel, 0o755); err != nil {
			return "", err
		}
	}
	return filepath.Join(dir, rel), nil
}

// bindSource checks that what is to be bound is there, or makes it where that is wanted.
func (w *worker) bindSource(m *model.Mount) error {
	st, err := os.Stat(m.Source)
	switch {
	case os.IsNotExist(err) && m.CreateHostPath:
		if err := os.MkdirAll(m.Source, 0o755); err != nil {
			return fmt.Errorf("make bind source: %w", err)
		}
		return nil
	case os.IsNotExist(err) && m.HostKind == "fileOrCreate":
		f, err := os.OpenFile(m.Source, os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("make bind source: %w", err)
		}
		return f.Close()
	case err != nil:
		return fault.New(fault.Invalid, "bind source %s does not exist on node %s", m.Source, w.agent.NodeName)
	}
	mode := st.Mode()
	is := map[string]bool{
		"": true, "directory": mode.IsDir(), "file": mode.IsRegular(), "fileOrCreate": mode.IsRegular(), "socket": mode&os.ModeSocket != 0,
		"charDevice": mode&os.ModeCharDevice != 0, "blockDevice": mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0,
	}
	if !is[m.HostKind] {
		return fault.New(fault.Invalid, "bind source %s on node %s is not of kind %s", m.Source, w.agent.NodeName, m.HostKind)
	}
	return nil
}

// ownVolumeRoot gives the root of a volume its mode, and the group that may write to it.
func ownVolumeRoot(path string, m *model.Mount) error {
	mode := os.FileMode(m.Mode)
	if m.GID != "" {
		gid, err := numericID(m.GID, m.Target)
		if err != nil {
			return err
		}
		if err := os.Chown(path, -1, gid); err != nil {
			return err
		}
		mode |= os.ModeSetgid | 0o775
	}
	if mode == 0 {
		return nil
	}
	return os.Chmod(path, mode)
}

func (w *worker) anonymous(task string, index int) string {
	return w.id + "-" + task + "-" + strconv.Itoa(index)
}
