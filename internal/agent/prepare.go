package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/userns"
	"github.com/tutti-run/tutti/internal/wire"
)

// ResolverAddress is where the names of the cluster are answered on every node.
const ResolverAddress = "169.254.1.1"

// prepared is an instance whose image, volumes, files and network are in place.
type prepared struct {
	template *model.Template
	hostname string
	netNS    string // path; "" for the host's
	address  netip.Addr
	ports    []model.HostPort
	images   map[string]*image.Info // by task
	digests  map[string]string      // by task
	rootfs   map[string]string      // by task
	mounts   map[string][]driver.Mount
	users    *userns.Users // nil: the node's
	files    string        // where hosts and resolver files of the instance are whose network it uses; "" for its own
}

// prepare is idempotent: what is in place already, also from before a restart of the agent, is
// taken over.
func (w *worker) prepare(ctx context.Context, as *wire.Assignment) (*prepared, error) {
	p := &prepared{
		template: as.Template, hostname: w.hostname(as), ports: as.Instance.HostPorts,
		images: map[string]*image.Info{}, digests: map[string]string{},
		rootfs: map[string]string{}, mounts: map[string][]driver.Mount{},
	}
	if err := w.attach(ctx, as, p); err != nil {
		return nil, err
	}
	if len(as.Template.Networks) > 0 {
		w.agent.awaitNetwork(ctx, w.id, as.Instance.Addresses)
	}
	files, err := w.writeFiles(as, p)
	if err != nil {
		return nil, fmt.Errorf("write hosts and resolver files: %w", err)
	}
	if as.Template.Shared().OfferIPC {
		shm, err := w.sharedMemory(as)
		if err != nil {
			return nil, err
		}
		files = append(files, shm)
	}
	secretDir, err := w.putSecrets(as)
	if err != nil {
		return nil, err
	}
	if as.Template.Shared().OnePIDs {
		if err := w.prepareHolder(p); err != nil {
			return nil, err
		}
	}
	all := slices.Concat(as.Template.InitTasks, as.Template.Tasks)
	for i := range all {
		t := &all[i]
		if w.agent.Drivers[driverName(t)] == nil {
			return nil, fault.New(fault.Unsupported, "node %s has no driver %q", w.agent.NodeName, driverName(t))
		}
		if driverName(t) == "process" {
			if err := w.prepareSandbox(ctx, t); err != nil {
				return nil, err
			}
			if p.netNS != "" {
				p.mounts[t.Name] = append(p.mounts[t.Name], processFiles(files)...)
			}
		} else {
			if err := w.prepareRoot(ctx, p, t); err != nil {
				return nil, err
			}
			p.mounts[t.Name] = append(p.mounts[t.Name], files...)
		}
		if err := w.prepareMounts(ctx, as, p, t, secretDir); err != nil {
			return nil, err
		}
		if at := t.LastWords.Path; at != "" {
			if err := w.emptyLastWords(t, w.adopted); err != nil {
				return nil, fmt.Errorf("make the file of last words: %w", err)
			}
			p.mounts[t.Name] = append(p.mounts[t.Name], driver.Mount{Type: "bind", Source: w.lastWordsFile(t), Target: at})
		}
	}
	return p, nil
}

// hostname is the template's, or the instance's name as a DNS label.
func (w *worker) hostname(as *wire.Assignment) string {
	if as.Template.PlacedHostname {
		return w.place(as.Instance, as.Template.Hostname)
	}
	if as.Template.Hostname != "" {
		return as.Template.Hostname
	}
	return strings.ReplaceAll(as.Instance.Name, ".", "-")
}

func (w *worker) attach(ctx context.Context, as *wire.Assignment, p *prepared) error {
	if as.Template.HostNetwork {
		return nil
	}
	if of := as.Template.Shared().NetworkOf; of != "" {
		other, theirs, err := w.awaitNetworkOf(ctx, as, of)
		if err != nil {
			return err
		}
		p.hostname, p.netNS, p.address, p.files = theirs.hostname, theirs.netNS, theirs.address, other.filesDir()
		return nil
	}
	at, err := w.attachment(as)
	if err != nil {
		return err
	}
	if len(at.Interfaces) > 0 {
		p.address = at.Interfaces[0].IP
	}
	end := w.agent.turns.take(ctx)
	got, err := w.agent.Links.Attach(ctx, at)
	end()
	if err != nil {
		return fmt.Errorf("attach instance to its networks: %w", err)
	}
	p.netNS = got.NetNS
	if as.Template.Shared().OwnUsers {
		if p.users, err = w.agent.users.Get(w.id); err != nil {
			return err
		}
	}
	w.setLinked(as.Instance.Addresses, nil)
	return nil
}

// attachment says how an assignment wants the instance to be connected.
func (w *worker) attachment(as *wire.Assignment) (overlay.Attachment, error) {
	at := overlay.Attachment{Instance: w.id, Sysctls: networkSysctls(as.Template.Sysctls), Isolated: as.Template.NoNetwork}
	if as.Template.Shared().OwnUsers {
		at.MakeNamespace = func(path string) error { return w.agent.users.Make(w.id, path) }
	}
	addresses, err := parseAddresses(as.Instance.Addresses)
	if err != nil {
		return at, err
	}
	for _, want := range as.Template.Networks {
		i := slices.IndexFunc(as.Networks, func(n *model.Network) bool { return n.ID == want.Network })
		ip, ok := addresses[want.Network]
		if i < 0 || !ok {
			return at, fault.New(fault.Unavailable, "no address on network %s was assigned yet", want.Network)
		}
		at.Interfaces = append(at.Interfaces, overlay.Interface{Network: as.Networks[i], IP: ip[0], IP6: ip[1]})
	}
	return at, nil
}

// networkSysctls are those that belong to a network namespace; the rest is the task's.
func networkSysctls(all map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range all {
		if strings.HasPrefix(k, "net.") {
			out[k] = v
		}
	}
	return out
}

func (w *worker) filesDir() string { return filepath.Join(w.agent.files(), w.id) }

// writeFiles makes /etc/hosts, /etc/hostname and /etc/resolv.conf.
func (w *worker) writeFiles(as *wire.Assignment, p *prepared) ([]driver.Mount, error) {
	dir := w.filesDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var mounts []driver.Mount
	if p.files != "" {
		for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
			mounts = append(mounts, driver.Mount{Type: "bind", Source: filepath.Join(p.files, name), Target: "/etc/" + name})
		}
		return mounts, nil
	}
	var hosts strings.Builder
	if title := as.Template.HostsTitle; title != "" {
		hosts.WriteString("# " + strings.ReplaceAll(title, "\n", " ") + "\n")
	}
	hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, e := range as.Template.ExtraHosts {
		address := e.Address
		if address == "host-gateway" {
			address = ResolverAddress // an address of this node on every node
		}
		fmt.Fprintf(&hosts, "%s\t%s\n", address, e.Name)
	}
	if p.address.IsValid() {
		hosts.WriteString(ownLine(as, p.address.String(), p.hostname))
	}
	resolv := "nameserver " + ResolverAddress + "\n"
	switch {
	case (as.Template.HostNetwork || as.Template.DNS.Direct) && len(as.Template.DNS.Servers) > 0:
		resolv = ""
		for _, server := range as.Template.DNS.Servers {
			resolv += "nameserver " + server + "\n"
		}
	case as.Template.HostNetwork:
		own, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		resolv = string(own)
	}
	if len(as.Template.DNS.Search) > 0 {
		resolv += "search " + strings.Join(as.Template.DNS.Search, " ") + "\n"
	}
	options := as.Template.DNS.Options
	if len(options) == 0 && !as.Template.HostNetwork && !as.Template.DNS.Direct {
		options = []string{"ndots:0"}
	}
	if len(options) > 0 {
		resolv += "options " + strings.Join(options, " ") + "\n"
	}

	for _, f := range []struct{ name, content string }{
		{"hosts", hosts.String()}, {"hostname", p.hostname + "\n"}, {"resolv.conf", resolv},
	} {
		path := filepath.Join(dir, f.name)
		// What runs has these files mounted, and may have changed them for itself.
		if _, err := os.Stat(path); err != nil || !w.adopted {
			if err := os.WriteFile(path, []byte(f.content), 0o644); err != nil {
				return nil, err
			}
		}
		mounts = append(mounts, driver.Mount{Type: "bind", Source: path, Target: "/etc/" + f.name})
	}
	return mounts, nil
}

// ownLine is the line of /etc/hosts about the instance itself.
func ownLine(as *wire.Assignment, address, hostname string) string {
	if as.Template.Domainname != "" {
		hostname += "." + as.Template.Domainname + " " + hostname
	}
	return fmt.Sprintf("%s\t%s\n", address, hostname)
}

// putSecrets writes the secrets and configs that the template mounts into memory-backed files
// and returns their directory; the file of a mount is named by secretFile.
func (w *worker) putSecrets(as *wire.Assignment) (string, error) {
	var files []secret.File
	for _, t := range slices.Concat(as.Template.InitTasks, as.Template.Tasks) {
		for i, m := range t.Mounts {
			var data []byte
			var ok bool
			if m.Folder != "" {
				continue
			}
			switch m.Type {
			case model.MountSecret:
				data, ok = as.Secrets[m.Source]
			case model.MountConfig:
				data, ok = as.Configs[m.Source]
			default:
				continue
			}
			name := secretFile(t.Name, i)
			if !ok {
				if m.Type == model.MountSecret && as.Secrets == nil && w.adopted {
					return w.agent.Secrets.Dir(w.id) // written by an earlier agent, which was told them
				}
				return "", fault.New(fault.Unavailable, "the content of %s %s has not reached node %s", m.Type, m.Source, w.agent.NodeName)
			}
			if as.Templated[m.Source] {
				var err error
				if data, err = w.fillInFile(as, &t, &m, data); err != nil {
					return "", err
				}
			}
			mode := os.FileMode(m.Mode)
			if mode == 0 {
				mode = 0o444
			}
			uid, err := numericID(m.UID, m.Target)
			if err != nil {
				return "", err
			}
			gid, err := numericID(m.GID, m.Target)
			if err != nil {
				return "", err
			}
			files = append(files, secret.File{Name: name, Data: data, UID: uid, GID: gid, Mode: mode})
		}
	}
	if err := w.putFolders(as); err != nil {
		return "", err
	}
	if len(files) == 0 {
		return "", nil
	}
	dir, err := w.agent.Secrets.Put(w.id, files)
	if err != nil {
		return "", fmt.Errorf("write secrets: %w", err)
	}
	return dir, nil
}

// putFolders lays out the secrets of which the template mounts folders.
func (w *worker) putFolders(as *wire.Assignment) error {
	w.folders.Lock()
	defer w.folders.Unlock()
	done := map[string]bool{}
	for _, t := range slices.Concat(as.Template.InitTasks, as.Template.Tasks) {
		for _, m := range t.Mounts {
			if m.Folder == "" || done[m.Source] {
				continue
			}
			done[m.Source] = true
			data, ok := as.Secrets[m.Source]
			if !ok && as.Secrets == nil && w.adopted {
				continue // laid out by an earlier agent, which was told them
			}
			if !ok {
				return fault.New(fault.Unavailable, "the content of %s %s has not reached node %s", m.Type, m.Source, w.agent.NodeName)
			}
			data, err := w.fillInFolders(as.Instance, data)
			if err != nil {
				return fmt.Errorf("fill in folders: %w", err)
			}
			if _, err := w.agent.Secrets.PutFolders(w.id, m.Source, data); err != nil {
				return fmt.Errorf("lay out folders: %w", err)
			}
		}
	}
	return nil
}

// followFolders lays out anew what the instance's folders hold, if it was told that.
func (w *worker) followFolders() {
	as, _, _ := w.desired()
	if as.Secrets == nil || as == w.followed {
		return
	}
	if err := w.putFolders(as); err != nil {
		w.log.Error("the content of folders could not be followed", "error", err)
		return
	}
	w.followed = as
}

// refind has a task's mounts of what is below folders lead to what is there by now: what was there when the mounts were
// prepared may have been replaced, and be gone.
func (w *worker) refind(t *model.TaskSpec, task *driver.Task) error {
	own := false
	for i := range t.Mounts {
		m := &t.Mounts[i]
		if m.Folder == "" || m.SubPath == "" {
			continue
		}
		source, err := w.folder(m)
		if err != nil {
			return err
		}
		if !own {
			task.Mounts, own = slices.Clone(task.Mounts), true
		}
		for k := range task.Mounts {
			if task.Mounts[k].Target == m.Target {
				task.Mounts[k].Source = source
			}
		}
	}
	return nil
}

// folder is where a folder of a secret is laid out.
func (w *worker) folder(m *model.Mount) (string, error) {
	dir, err := w.agent.Secrets.Dir(w.id)
	if err != nil {
		return "", err
	}
	at := filepath.Join(dir, m.Source+".d", m.Folder)
	if m.SubPath == "" {
		return at, nil
	}
	root, err := os.OpenRoot(at)
	if err != nil {
		return "", err
	}
	defer root.Close()
	if _, err := root.Stat(filepath.Clean(m.SubPath)); err != nil {
		return "", fault.New(fault.Unavailable, "sub-path %q of folder %s: %w", m.SubPath, m.Folder, err)
	}
	return filepath.EvalSymlinks(filepath.Join(at, filepath.Clean("/"+m.SubPath)))
}

func numericID(s, target string) (int, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0, fault.New(fault.Invalid, "owner %q of %s is not a number", s, target)
	}
	return n, nil
}

func secretFile(task string, mount int) string { return task + "." + strconv.Itoa(mount) }

func (w *worker) prepareRoot(ctx context.Context, p *prepared, t *model.TaskSpec) error {
	root, err := w.mountImage(ctx, t.Image, t.Digest, w.id+"."+t.Name, p)
	if err != nil {
		return err
	}
	p.images[t.Name], p.digests[t.Name], p.rootfs[t.Name] = &root.image, root.image.Digest, root.path
	return nil
}

// mounted is an image that is mounted.
type mounted struct {
	image image.Info
	path  string
}

// mountImage fetches an image and mounts it under a key.
func (w *worker) mountImage(ctx context.Context, name, digest, key string, p *prepared) (mounted, error) {
	var got fetched
	info, err := w.agent.Images.Ensure(ctx, name, digest, func(pr image.Progress) {
		w.set(func(st *model.InstanceStatus) {
			if st.State == model.InstancePreparing {
				st.Message = got.text(name, pr)
			}
		})
	})
	if err != nil {
		return mounted{}, err
	}
	if info.Elsewhere {
		return mounted{}, fault.New(fault.Unsupported, "image %s has nothing for the platform of this node, %s/%s", name, runtime.GOOS, runtime.GOARCH)
	}
	end := w.agent.turns.take(ctx)
	root, err := w.agent.Images.Mount(ctx, key, info.Digest, p.users)
	end()
	if err != nil {
		return mounted{}, fmt.Errorf("mount image %s: %w", name, err)
	}
	return mounted{info, root}, nil
}

// fetched is how far an image has come.
type fetched struct {
	mu    sync.Mutex
	blobs map[string]image.Progress
}

func (f *fetched) text(name string, pr image.Progress) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.blobs == nil {
		f.blobs = map[string]image.Progress{}
	}
	f.blobs[pr.Blob] = pr
	var have, all int64
	for _, b := range f.blobs {
		have, all = have+b.Bytes, all+b.Total
	}
	if all == 0 {
		return "fetching image " + name
	}
	return fmt.Sprintf("fetching image %s: %d of %d MB", name, have/1e6, (all+999_999)/1e6)
}

// free gives back what the instance used while it ran; logs and exit codes stay.
func (w *worker) free(ctx context.Context) {
	as, _, _ := w.desired()
	note := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			w.log.Error("instance could not be cleaned up", "what", what, "error", err)
		}
	}
	defer w.agent.turns.take(ctx)()
	note("network", w.agent.Links.Detach(ctx, w.id))
	for _, t := range slices.Concat(as.Template.InitTasks, as.Template.Tasks) {
		if driverName(&t) == "oci" {
			note("root file system", w.agent.Images.Unmount(ctx, w.id+"."+t.Name))
		}
		for i, m := range t.Mounts {
			if m.Type == model.MountImage {
				note("image", w.agent.Images.Unmount(ctx, imageMountKey(w.id, t.Name, i)))
			}
		}
	}
	note("users", w.agent.users.Release(w.id))
	note("secrets", w.agent.Secrets.Remove(w.id))
	note("shared memory", dropMount(filepath.Join(w.filesDir(), sharedMemoryDir)))
	note("files", os.RemoveAll(w.filesDir()))
}

// cleanUp removes everything that is left of an instance and forgets it.
func (w *worker) cleanUp(ctx context.Context) {
	w.mu.Lock()
	runs := w.runs
	as := w.assignment
	w.mu.Unlock()
	end := w.agent.turns.take(ctx)
	for _, t := range slices.Concat(as.Template.InitTasks, as.Template.Tasks) {
		for _, n := range runs[t.Name] {
			err := w.agent.Drivers[driverName(&t)].Remove(ctx, runID(w.id, t.Name, n))
			if err != nil && !fault.Is(err, fault.NotFound) {
				w.log.Error("run could not be removed", "run", n, "error", err)
			}
		}
	}
	end()
	w.free(ctx)
	if err := w.removeSandboxes(); err != nil {
		w.log.Error("sandboxes could not be removed", "error", err)
	}
	if err := w.agent.Volumes.RemoveOf(ctx, w.id); err != nil {
		w.log.Error("anonymous volumes could not be removed", "error", err)
	}
	if err := dropAssignment(w.agent.assignments(), w.id); err != nil {
		w.log.Error("assignment could not be dropped", "error", err)
	}
	w.agent.forget(w.id)
}
