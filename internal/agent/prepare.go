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
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/userns"
	"github.com/tutti-run/tutti/internal/volume"
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
	got, err := w.agent.Links.Attach(ctx, at)
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
	case as.Template.HostNetwork && len(as.Template.DNS.Servers) > 0:
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
	if len(options) == 0 && !as.Template.HostNetwork {
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
	var got fetched
	info, err := w.agent.Images.Ensure(ctx, t.Image, t.Digest, func(pr image.Progress) {
		w.set(func(st *model.InstanceStatus) {
			if st.State == model.InstancePreparing {
				st.Message = got.text(t.Image, pr)
			}
		})
	})
	if err != nil {
		return err
	}
	if info.Elsewhere {
		return fault.New(fault.Unsupported, "image %s has nothing for the platform of this node, %s/%s", t.Image, runtime.GOOS, runtime.GOARCH)
	}
	p.images[t.Name], p.digests[t.Name] = &info, info.Digest
	root, err := w.agent.Images.Mount(ctx, w.id+"."+t.Name, info.Digest, p.users)
	if err != nil {
		return fmt.Errorf("mount image %s: %w", t.Image, err)
	}
	p.rootfs[t.Name] = root
	return nil
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

// resolve turns a task of the template into what its driver runs.
func (w *worker) resolve(p *prepared, t *model.TaskSpec, id string) (driver.Task, error) {
	as, _, _ := w.desired()
	if _, ok := w.agent.Drivers[driverName(t)].(driver.Leaser); as.Instance.Leased && !ok {
		return driver.Task{}, fault.New(fault.Unsupported, "task %s: driver %q does not end tasks with the node's lease, as those of a stateful workload must; oci does", t.Name, driverName(t))
	}
	task := driver.Task{
		Leased: as.Instance.Leased,
		ID:     id, Rootfs: p.rootfs[t.Name], User: t.User, Groups: t.Groups, WorkingDir: t.WorkingDir,
		Hostname: p.hostname, Domainname: as.Template.Domainname, NetNS: p.netNS, Users: p.users,
		CgroupParent: w.cgroup(), Mounts: p.mounts[t.Name], Limit: t.Limit, Reserve: t.Reserve,
		CapAdd: t.CapAdd, CapDrop: t.CapDrop, Privileged: t.Privileged, ReadOnlyRoot: t.ReadOnlyRoot,
		SecurityOpts: t.SecurityOpts, Ulimits: t.Ulimits, Init: t.Init, Runtime: t.Runtime, Tuning: t.Tuning,
		TTY: t.TTY, Stdin: t.Stdin, ShmBytes: t.ShmBytes, OOMScoreAdjust: t.OOMScoreAdjust, Log: t.Log,
	}
	if task.Limit.Pids == 0 {
		task.Limit.Pids = w.agent.PidsPerTask
	}
	process := driverName(t) == "process"
	if process {
		task.Sandbox, task.Umask = w.sandbox(t), t.Umask
	}
	if len(as.Template.Sysctls) > 0 {
		task.Sysctls = map[string]string{}
		for k, v := range as.Template.Sysctls {
			// Those of a network of its own were set when that was made; a container sets them again.
			if !strings.HasPrefix(k, "net.") || p.netNS != "" && !process {
				task.Sysctls[k] = v
			}
		}
	}
	entrypoint, args, env := t.Entrypoint, t.Args, []string(nil)
	if info := p.images[t.Name]; info != nil {
		c := info.Config
		if entrypoint == nil {
			entrypoint = c.Entrypoint
			if args == nil {
				args = c.Cmd
			}
		}
		env = c.Env
		if task.User == "" {
			task.User = c.User
		}
		if task.WorkingDir == "" {
			task.WorkingDir = c.WorkingDir
		}
	}
	if user, _, _ := strings.Cut(task.User, ":"); t.NonRoot && (user == "" || user == "0" || user == "root") {
		return task, fault.New(fault.Invalid, "task %s: it must not run as root, and would: neither the workload nor image %s names another user", t.Name, t.Image)
	}
	task.HostPIDs, task.HostIPC = as.Template.HostPIDs, as.Template.HostIPC
	shared := as.Template.Shared()
	task.HostNames, task.HostCgroups, task.OwnCgroups = shared.HostNames, shared.HostCgroups, shared.OwnCgroups
	task.NoSharedMemory = shared.NoSharedMemory
	task.Args = slices.Concat(entrypoint, args)
	if t.PlacedArgs {
		task.Args = w.fillIn(as.Instance, t, id, task.Args)
	}
	if len(task.Args) == 0 {
		if process {
			return task, fault.New(fault.Invalid, "task %s: the workload does not say what to run", t.Name)
		}
		return task, fault.New(fault.Invalid, "task %s: neither the workload nor image %s says what to run", t.Name, t.Image)
	}
	defaults := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=" + p.hostname}
	if t.TTY {
		defaults = append(defaults, "TERM=xterm")
	}
	if as.Template.Indexed {
		defaults = append(defaults, "JOB_COMPLETION_INDEX="+strconv.Itoa(as.Instance.Slot-1))
	}
	defaults = append(defaults, deviceEnv(as.Instance, as.Template, t)...)
	task.Env = mergeEnv(defaults, env, w.placedEnv(as.Instance, t, id), t.Env)
	return task, nil
}

// mergeEnv joins NAME=value lists; of one name the last value counts, at its first place.
func mergeEnv(lists ...[]string) []string {
	var out []string
	at := map[string]int{}
	for _, list := range lists {
		for _, e := range list {
			name, _, _ := strings.Cut(e, "=")
			if i, ok := at[name]; ok {
				out[i] = e
				continue
			}
			at[name] = len(out)
			out = append(out, e)
		}
	}
	return out
}

func (w *worker) cgroup() string { return w.agent.CgroupParent + "/" + w.id }

// stopSignal is the task's, its image's, or SIGTERM.
func stopSignal(t *model.TaskSpec, info *image.Info) int {
	for _, name := range []string{t.StopSignal, imageStopSignal(info)} {
		if name == "" {
			continue
		}
		if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
			return n
		}
		upper := strings.ToUpper(name)
		if !strings.HasPrefix(upper, "SIG") {
			upper = "SIG" + upper
		}
		if n := unix.SignalNum(upper); n != 0 {
			return int(n)
		}
		if n, ok := realtimeSignal(upper); ok {
			return n
		}
	}
	return int(syscall.SIGTERM)
}

// realtimeSignal reads SIGRTMIN+n and SIGRTMAX-n, as systemd's images use them.
func realtimeSignal(name string) (int, bool) {
	const first, last = 34, 64 // as the C library counts them
	n, base := 0, 0
	switch {
	case strings.HasPrefix(name, "SIGRTMIN"):
		base, name = first, strings.TrimPrefix(name, "SIGRTMIN")
	case strings.HasPrefix(name, "SIGRTMAX"):
		base, name = last, strings.TrimPrefix(name, "SIGRTMAX")
	default:
		return 0, false
	}
	if name != "" {
		var err error
		if n, err = strconv.Atoi(name); err != nil {
			return 0, false
		}
	}
	return base + n, base+n >= first && base+n <= last
}

func imageStopSignal(info *image.Info) string {
	if info == nil {
		return ""
	}
	return info.Config.StopSignal
}

// free gives back what the instance used while it ran; logs and exit codes stay.
func (w *worker) free(ctx context.Context) {
	as, _, _ := w.desired()
	note := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			w.log.Error("instance could not be cleaned up", "what", what, "error", err)
		}
	}
	note("network", w.agent.Links.Detach(ctx, w.id))
	for _, t := range slices.Concat(as.Template.InitTasks, as.Template.Tasks) {
		if driverName(&t) == "oci" {
			note("root file system", w.agent.Images.Unmount(ctx, w.id+"."+t.Name))
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
	for _, t := range slices.Concat(as.Template.InitTasks, as.Template.Tasks) {
		for _, n := range runs[t.Name] {
			err := w.agent.Drivers[driverName(&t)].Remove(ctx, runID(w.id, t.Name, n))
			if err != nil && !fault.Is(err, fault.NotFound) {
				w.log.Error("run could not be removed", "run", n, "error", err)
			}
		}
	}
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
