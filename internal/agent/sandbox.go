package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/users"
	"github.com/tutti-run/tutti/internal/model"
)

// A process of the host has a directory of its own, its sandbox: where it starts, and where its
// artifacts are. It lives as long as the instance is known here, as logs do.

func (w *worker) sandbox(t *model.TaskSpec) string {
	return filepath.Join(w.agent.SandboxDir, w.id, t.Name)
}

// prepareSandbox makes a process's directory and fills it, once.
func (w *worker) prepareSandbox(ctx context.Context, t *model.TaskSpec) error {
	dir := w.sandbox(t)
	filled := dir + ".filled"
	if _, err := os.Stat(filled); err == nil {
		return nil
	}
	u, err := users.Lookup("/", t.User, t.Groups)
	if err != nil {
		return err
	}
	uid, gid := int(u.UID), int(u.GID)
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return fmt.Errorf("make the sandbox of %s: %w", t.Name, err)
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chown(dir, uid, gid)); err != nil {
		return fmt.Errorf("make the sandbox of %s: %w", t.Name, err)
	}
	if len(t.Artifacts) > 0 {
		w.set(func(st *model.InstanceStatus) {
			if st.State == model.InstancePreparing {
				st.Message = "fetching artifacts"
			}
		})
		if err := w.agent.Artifacts.Place(ctx, dir, uid, gid, t.Artifacts); err != nil {
			return err
		}
	}
	return os.WriteFile(filled, nil, 0o600)
}

// processFiles are the files of an instance that a process of the host sees in place of the host's:
// with a network of its own, names are to be looked up there. A host without such a file has no
// place for it.
func processFiles(files []driver.Mount) []driver.Mount {
	return slices.DeleteFunc(slices.Clone(files), func(m driver.Mount) bool {
		_, err := os.Stat(m.Target)
		return m.Target == "/etc/hostname" || err != nil
	})
}

func (w *worker) removeSandboxes() error {
	return os.RemoveAll(filepath.Join(w.agent.SandboxDir, w.id))
}

// sweepSandboxes removes those of instances that this agent no longer knows.
func (a *Agent) sweepSandboxes(known map[string]bool) error {
	entries, err := os.ReadDir(a.SandboxDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		if !known[e.Name()] {
			errs = append(errs, os.RemoveAll(filepath.Join(a.SandboxDir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
