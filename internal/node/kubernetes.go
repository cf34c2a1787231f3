package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/store"
)

// KubernetesKey is the key that says whether servers answer Kubernetes' API: KubernetesOn, or anything
// else for no.
const (
	KubernetesKey = "tutti:kubernetes"
	KubernetesOn  = "on"
)

// KubernetesPort is where servers answer Kubernetes' API.
const KubernetesPort = 6443

// kubernetesProgram is the program's name beside this one.
const kubernetesProgram = "tutti-kube"

// KubernetesDir returns the directory in which a server with that run directory keeps what belongs to
// Kubernetes' API, Kubeconfig the file with which the host's administrator uses it.
func KubernetesDir(runDir string) string { return filepath.Join(runDir, "kubernetes") }

// Kubeconfig returns the path of that file.
func Kubeconfig(runDir string) string {
	return filepath.Join(KubernetesDir(runDir), "admin.kubeconfig")
}

// FindKubernetes returns the path of the program that answers Kubernetes' API: the one given or, without,
// the one beside this program.
func FindKubernetes(given string) (string, error) {
	path := given
	if path == "" {
		exe, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find this program: %w", err)
		}
		path = filepath.Join(filepath.Dir(exe), kubernetesProgram)
	}
	switch info, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return "", fault.New(fault.NotFound, "%s does not exist: Kubernetes' API is answered by a program of its own, beside tutti or where --kubernetes-binary says (`make build-kube` makes it)", path)
	case err != nil:
		return "", fmt.Errorf("find the program for Kubernetes' API: %w", err)
	case info.IsDir() || info.Mode()&0o111 == 0:
		return "", fault.New(fault.Invalid, "%s is not a program", path)
	}
	return path, nil
}

// kubernetes keeps one process with Kubernetes' API running beside a server, while the cluster wants
// one. The process ends with this one: both are of the same version at all times.
type kubernetes struct {
	cfg   *Config
	store *store.Store
	// hesitate says whether the server should rather not lead: who leads runs the controllers, too, and a process that has just begun
	// does not know of all objects yet.
	hesitate func(bool)
	log      *slog.Logger
}

const (
	// A process that ended is started again after restartAfter, twice as long each time, up to
	// restartAtMost; one that ran for settledAfter begins anew.
	restartAfter, restartAtMost = time.Second, 30 * time.Second
	settledAfter                = time.Minute
	// kubernetesEnds is how long the process has to end by itself.
	kubernetesEnds = 8 * time.Second
	// maxKubernetesLog is how large its log may be when a process begins another.
	maxKubernetesLog = 16 << 20
	// kubernetesPrepared is the file by which the process says that it knows of all objects. It is looked for every preparedEvery.
	kubernetesPrepared = "prepared"
	preparedEvery      = 500 * time.Millisecond
)

// wanted reports whether the cluster answers Kubernetes' API, and as of which revision.
func (k *kubernetes) wanted() (bool, uint64) {
	keys := k.store.Snapshot().Keys()
	kv, ok := keys.Get(KubernetesKey)
	return ok && string(kv.Value) == KubernetesOn, keys.Revision()
}

// run starts and ends the process as the cluster wants it, until ctx is done.
func (k *kubernetes) run(ctx context.Context) error {
	var end func()
	defer func() {
		if end != nil {
			end()
		}
	}()
	for {
		on, revision := k.wanted()
		switch {
		case on && end == nil:
			end = k.begin(ctx)
		case !on && end != nil:
			end()
			end = nil
			k.hesitate(false)
			k.log.Info("Kubernetes' API is answered no more")
		}
		watch := k.store.WatchKeys(revision, KubernetesKey, KubernetesKey+"\x00")
		if _, err := watch.Next(ctx); err != nil && ctx.Err() != nil {
			return nil
		} // missed changes are seen by looking again
	}
}

// begin keeps a process running; the function that it returns ends that.
func (k *kubernetes) begin(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.keep(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func (k *kubernetes) keep(ctx context.Context) {
	pause := restartAfter
	k.hesitate(true)
	for ctx.Err() == nil {
		began := time.Now()
		err := k.once(ctx)
		k.hesitate(true)
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > settledAfter {
			pause = restartAfter
		}
		k.log.Error("Kubernetes' API server ended and is started again", "error", err, "after", pause, "log", k.logFile())
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, restartAtMost)
	}
	if err := os.RemoveAll(KubernetesDir(k.cfg.RunDir)); err != nil {
		k.log.Warn("what belongs to Kubernetes' API cannot be removed", "error", err)
	}
}

func (k *kubernetes) logFile() string { return filepath.Join(k.cfg.DataDir, "kubernetes.log") }

// once runs the process to its end.
func (k *kubernetes) once(ctx context.Context) error {
	program, err := FindKubernetes(k.cfg.KubernetesBinary)
	if err != nil {
		return err
	}
	path := k.logFile()
	if info, err := os.Stat(path); err == nil && info.Size() > maxKubernetesLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return fmt.Errorf("put the log aside: %w", err)
		}
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer out.Close()
	// Its input ends when this process does, however that happens.
	input, lifeline, err := os.Pipe()
	if err != nil {
		return err
	}
	defer lifeline.Close()
	cmd := exec.Command(program, "--lifeline", "--socket", Socket(k.cfg.RunDir), "--name", k.cfg.Name, "--address", k.cfg.Address,
		"--port", fmt.Sprint(KubernetesPort), "--dir", KubernetesDir(k.cfg.RunDir))
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "HOME=/root")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	prepared := filepath.Join(KubernetesDir(k.cfg.RunDir), kubernetesPrepared)
	if err := os.RemoveAll(prepared); err != nil {
		return fmt.Errorf("forget the process before: %w", err)
	}
	err = cmd.Start()
	input.Close()
	if err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	k.log.Info("Kubernetes' API server starts", "program", program, "pid", cmd.Process.Pid, "port", KubernetesPort, "log", path)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(preparedEvery)
	defer tick.Stop()
	for running := true; running; {
		select {
		case err := <-ended:
			return errors.Join(err, lastLine(path))
		case <-tick.C:
			if _, err := os.Stat(prepared); err == nil {
				k.hesitate(false)
				tick.Stop()
			}
		case <-ctx.Done():
			running = false
		}
	}
	lifeline.Close()
	select {
	case <-ended:
	case <-time.After(kubernetesEnds):
		k.log.Warn("Kubernetes' API server does not end by itself and is killed", "pid", cmd.Process.Pid)
		if err := cmd.Process.Kill(); err != nil {
			return err
		}
		<-ended
	}
	return nil
}

// lastLine is what a log says at its end.
func lastLine(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	const tail = 2048
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	data := make([]byte, min(size, tail))
	if _, err := f.ReadAt(data, size-int64(len(data))); err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return errors.New(lines[len(lines)-1])
}
