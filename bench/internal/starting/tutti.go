package starting

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/oci"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
)

// tutti runs containers with the parts that a node's agent uses, in its order: network, files,
// root file system, container. What a container needs of the program itself (its supervisor, and
// the first steps within) the real one does.
type tutti struct {
	dir    string
	images *image.Store
	info   image.Info
	links  *overlay.Overlay
	driver driver.Driver

	mu      sync.Mutex
	address netip.Addr // given out last
}

var network = &model.Network{
	Meta:   model.Meta{ID: "net", Name: "net", Namespace: model.DefaultNamespace},
	Subnet: "10.210.0.0/16", Status: model.NetworkStatus{Subnet: "10.210.0.0/16"},
}

var quiet = slog.New(slog.DiscardHandler)

func newTutti(ctx context.Context, j job) (_ *tutti, err error) {
	if err := becomeTutti(j.Tutti); err != nil {
		return nil, err
	}
	dir := j.Dir
	t := &tutti{dir: dir, address: netip.MustParseAddr("10.210.0.9")}
	data, run := filepath.Join(dir, "tutti"), "/run/tutti"
	t.images, err = image.Open(image.Config{Root: filepath.Join(data, "images"), Mounts: filepath.Join(run, "rootfs"), Log: quiet})
	if err != nil {
		return nil, err
	}
	if err := t.importImage(ctx); err != nil {
		return nil, errors.Join(err, t.images.Close())
	}
	t.links, err = overlay.New(overlay.Config{NodeID: "node", HostAddress: netip.MustParseAddr(hostAddress), RunDir: run, Log: quiet})
	if err != nil {
		return nil, errors.Join(err, t.images.Close())
	}
	t.driver, err = oci.New(oci.Config{StateDir: filepath.Join(data, "tasks"), FilterDir: filepath.Join(data, "seccomp"), RunDir: filepath.Join(run, "tasks"), Log: quiet})
	if err != nil {
		return nil, errors.Join(err, t.images.Close())
	}
	return t, nil
}

// becomeTutti puts the real program in this one's place, in this mount namespace: the driver starts
// what its own process was started from.
func becomeTutti(program string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := unix.Mount(program, self, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("put %s in this program's place: %w", program, err)
	}
	return nil
}

func (t *tutti) importImage(ctx context.Context) error {
	path, err := archive(t.dir)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	infos, err := t.images.Import(ctx, f, image.ImportOptions{})
	if err != nil {
		return err
	}
	if len(infos) != 1 {
		return fmt.Errorf("%s holds %d images, not one", path, len(infos))
	}
	t.info = infos[0]
	return nil
}

func (t *tutti) close() error { return t.images.Close() }

func (t *tutti) nextAddress() netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.address = t.address.Next()
	return t.address
}

func (t *tutti) start(ctx context.Context, name string) error {
	ip := t.nextAddress()
	at, err := t.links.Attach(ctx, overlay.Attachment{Instance: name, Interfaces: []overlay.Interface{{Network: network, IP: ip}}})
	if err != nil {
		return err
	}
	mounts, err := t.files(name, ip)
	if err != nil {
		return err
	}
	root, err := t.images.Mount(ctx, name, t.info.Digest, nil)
	if err != nil {
		return err
	}
	return t.driver.Start(ctx, driver.Task{
		ID: name, Rootfs: root, Args: t.info.Config.Entrypoint, Env: []string{"PATH=/"}, Hostname: name,
		NetNS: at.NetNS, CgroupParent: cgroupParent + "/" + name, Mounts: mounts,
	})
}

// files are those that every container gets.
func (t *tutti) files(name string, ip netip.Addr) ([]driver.Mount, error) {
	dir := t.filesDir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var out []driver.Mount
	for file, text := range map[string]string{
		"hosts": "127.0.0.1\tlocalhost\n" + ip.String() + "\t" + name + "\n", "hostname": name + "\n", "resolv.conf": "nameserver " + overlay.GatewayAddress + "\n",
	} {
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return nil, err
		}
		out = append(out, driver.Mount{Type: "bind", Source: path, Target: "/etc/" + file})
	}
	return out, nil
}

func (t *tutti) filesDir(name string) string { return filepath.Join(t.dir, "tutti", "files", name) }

func (t *tutti) told(ctx context.Context, name string) (time.Time, error) {
	st, err := t.driver.Wait(ctx, name)
	if err != nil {
		return time.Time{}, err
	}
	if st.ExitCode != 0 {
		return time.Time{}, fmt.Errorf("container %s ended with code %d: %s", name, st.ExitCode, st.Error)
	}
	var text strings.Builder
	err = t.driver.Logs(ctx, name, driver.LogOptions{Tail: -1}, func(l driver.LogEntry) error {
		text.Write(l.Line)
		return nil
	})
	if err != nil {
		return time.Time{}, err
	}
	return parseTime(strings.TrimSpace(text.String()))
}

func (t *tutti) remove(ctx context.Context, name string) error {
	return errors.Join(t.driver.Remove(ctx, name), t.images.Unmount(ctx, name), t.links.Detach(ctx, name), os.RemoveAll(t.filesDir(name)))
}
