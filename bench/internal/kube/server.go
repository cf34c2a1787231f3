package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tutti-run/tutti/internal/image"
)

const imageName = "bench-pause:v1"

// process is a program that was started.
type process struct {
	cmd *exec.Cmd
	log string
}

func start(cmd *exec.Cmd, log string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return &process{cmd: cmd, log: log}, nil
}

func (p *process) end() error {
	err := p.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	_ = p.cmd.Wait() // how it ends does not matter
	return err
}

// memory is what processes have resident, in MB.
func memory(list []*process) (float64, error) {
	sum := 0
	for _, p := range list {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
		if err != nil {
			return 0, err
		}
		m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(data)
		if m == nil {
			return 0, fmt.Errorf("process %d says nothing of its memory", p.cmd.Process.Pid)
		}
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return float64(sum) / 1024, nil
}

// cluster is a Tutti of one host.
type cluster struct {
	dir, bin, address string
	env               []string
}

// up starts it, with the image that pods are of.
func up(ctx context.Context, dir string) (_ *cluster, err error) {
	bin, err := filepath.Abs("../bin")
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"tutti", "tutti-kube"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return nil, fmt.Errorf("%w: `make build build-kube` makes it", err)
		}
	}
	address, err := ownAddress()
	if err != nil {
		return nil, err
	}
	t := &cluster{dir: dir, bin: bin, address: address, env: append(os.Environ(), "TUTTI_DATA_DIR="+filepath.Join(dir, "data"), "TUTTI_RUN_DIR="+filepath.Join(dir, "run"))}
	root := filepath.Join(dir, "image")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(root, "pause"), "./internal/kube/pause")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the containers' program: %w\n%s", err, out)
	}
	archive, err := os.Create(filepath.Join(dir, "image.tar"))
	if err != nil {
		return nil, err
	}
	err = image.Pack(archive, image.PackOptions{Name: imageName, Dir: root, Settings: image.Settings{Entrypoint: []string{"/pause"}}})
	if err = errors.Join(err, archive.Close()); err != nil {
		return nil, err
	}
	if err := t.tutti(ctx, "up", "-d", "--port", "7496", "--address", address, "--marathon-listen", "", "--name", "bench"); err != nil {
		return nil, err
	}
	return t, t.tutti(ctx, "image", "import", archive.Name())
}

func (t *cluster) tutti(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(t.bin, "tutti"), args...)
	cmd.Env = t.env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("tutti %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (t *cluster) down() error { return t.tutti(context.Background(), "down", "--purge") }

// ownAddress is one of this machine's, other than loopback.
func ownAddress() (string, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String(), nil
		}
	}
	return "", errors.New("this machine has no IPv4 address but loopback")
}

// server is an API server with its controllers.
type server struct {
	*process
	client *http.Client
	url    string
	config string
}

// serve starts one; with etcd it is on that.
func (t *cluster) serve(ctx context.Context, name, etcd string) (*server, error) {
	const port = "16443"
	dir := filepath.Join(t.dir, "kube-"+name)
	args := []string{"--socket", filepath.Join(t.dir, "run", "tutti.sock"), "--name", "bench", "--address", t.address, "--port", port, "--dir", dir}
	if etcd != "" {
		args = append(args, "--etcd", etcd)
	}
	p, err := start(exec.CommandContext(ctx, filepath.Join(t.bin, "tutti-kube"), args...), filepath.Join(t.dir, "kube-"+name+".log"))
	if err != nil {
		return nil, err
	}
	return &server{process: p, url: "https://127.0.0.1:" + port, config: filepath.Join(dir, "admin.kubeconfig")}, nil
}

// failure is an error with what the process said last.
func (s *server) failure(err error) error {
	data, rerr := os.ReadFile(s.log)
	if rerr != nil {
		return errors.Join(err, rerr)
	}
	return fmt.Errorf("%w; its log ends with:\n%s", err, data[max(0, len(data)-2000):])
}

var inKubeconfig = regexp.MustCompile(`(?m)^\s*(certificate-authority-data|client-certificate-data|client-key-data): (\S+)$`)

// connect makes the client, once there are certificates.
func (s *server) connect() error {
	data, err := os.ReadFile(s.config)
	if err != nil {
		return err
	}
	found := map[string][]byte{}
	for _, m := range inKubeconfig.FindAllSubmatch(data, -1) {
		if found[string(m[1])], err = base64.StdEncoding.DecodeString(string(m[2])); err != nil {
			return err
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(found["certificate-authority-data"])
	pair, err := tls.X509KeyPair(found["client-certificate-data"], found["client-key-data"])
	if err != nil {
		return err
	}
	s.client = &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}, MaxIdleConnsPerHost: 64,
	}}
	return nil
}

func (s *server) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		err := error(nil)
		if s.client == nil {
			err = s.connect()
		}
		if err == nil {
			if err = s.ask(ctx, http.MethodGet, "/readyz", nil, nil); err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return s.failure(fmt.Errorf("the API server is not ready: %w", err))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// awaitAccount waits until pods can be made, and nodes are there.
func (s *server) awaitAccount(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := s.ask(ctx, http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/default", nil, nil)
		if err == nil {
			err = s.ask(ctx, http.MethodGet, "/api/v1/nodes/bench", nil, nil)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return s.failure(fmt.Errorf("controllers and nodes are not there: %w", err))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *server) ask(ctx context.Context, method, path string, body []byte, into any) error {
	r, err := http.NewRequestWithContext(ctx, method, s.url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := s.client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode >= 300 {
		return fmt.Errorf("%s %s is answered with %s: %s", method, path, answer.Status, data[:min(len(data), 500)])
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(data, into)
}

// watching notes when pods were first said to run.
type watching struct {
	end  context.CancelFunc
	done chan struct{}
	mu   sync.Mutex
	at   map[string]time.Time
	news chan struct{}
	err  error
}

// watchPods follows the pods, anew when the API server ends a watch.
func (s *server) watchPods(ctx context.Context) *watching {
	ctx, cancel := context.WithCancel(ctx)
	w := &watching{end: cancel, done: make(chan struct{}), at: map[string]time.Time{}, news: make(chan struct{}, 1)}
	go func() {
		defer close(w.done)
		for ctx.Err() == nil {
			if err := s.watchOnce(ctx, w); err != nil {
				w.note("", false, err)
				return
			}
		}
	}()
	return w
}

func (w *watching) close() {
	w.end()
	<-w.done
}

func (w *watching) note(name string, running bool, err error) {
	w.mu.Lock()
	if _, known := w.at[name]; !known && running {
		w.at[name] = time.Now()
	}
	w.err = err
	w.mu.Unlock()
	select {
	case w.news <- struct{}{}:
	default:
	}
}

func (s *server) watchOnce(ctx context.Context, w *watching) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/api/v1/namespaces/default/pods?watch=true", nil)
	if err != nil {
		return err
	}
	answer, err := s.client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	in := json.NewDecoder(answer.Body)
	for {
		var event struct {
			Type   string
			Object struct {
				Message  string
				Metadata struct{ Name string }
				Status   json.RawMessage
			}
		}
		if err := in.Decode(&event); err != nil {
			return nil // it was ended
		}
		var status struct{ Phase string }
		switch {
		case event.Type == "ERROR" && strings.Contains(event.Object.Message, "too old"):
			return nil
		case event.Type == "ERROR":
			return fmt.Errorf("watch pods: %s", event.Object.Message)
		case len(event.Object.Status) > 0:
			if err := json.Unmarshal(event.Object.Status, &status); err != nil {
				return err
			}
		}
		w.note(event.Object.Metadata.Name, status.Phase == "Running", nil)
	}
}

// running waits until a pod runs, and says since when.
func (w *watching) running(ctx context.Context, name string) (time.Time, error) {
	for {
		w.mu.Lock()
		at, ok := w.at[name]
		err := w.err
		w.mu.Unlock()
		switch {
		case ok:
			return at, nil
		case err != nil:
			return at, fmt.Errorf("watch pods: %w", err)
		}
		select {
		case <-ctx.Done():
			return at, fmt.Errorf("wait for pod %s to run: %w", name, ctx.Err())
		case <-w.news:
		}
	}
}

// etcd is the peer's storage: one member with its default durability.
type etcd struct {
	*process
	url, version string
}

func startEtcd(ctx context.Context, dir string) (*etcd, error) {
	path, err := exec.LookPath("etcd")
	if err != nil {
		return nil, errors.New("etcd, the peer, is not installed: bench/needs.sh kube installs it")
	}
	said, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("ask etcd for its version: %w", err)
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(string(said), "etcd Version: "), "\n")
	const client, peer = "http://127.0.0.1:12379", "http://127.0.0.1:12380"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	p, err := start(exec.CommandContext(ctx, path, "--name", "m0", "--data-dir", filepath.Join(dir, "data"), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "m0="+peer, "--log-level", "error"), filepath.Join(dir, "etcd.log"))
	if err != nil {
		return nil, err
	}
	e := &etcd{process: p, url: client, version: "etcd " + version}
	for range 300 {
		answer, err := http.Get(client + "/health")
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return e, nil
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, errors.Join(errors.New("etcd does not begin"), e.end())
}
