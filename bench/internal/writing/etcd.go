package writing

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// etcdName is the peer with its version, once that is known.
var etcdName = "etcd"

// etcd is some members as processes, with their default durability.
type etcd struct {
	members []*exec.Cmd
	logs    []string
	urls    []string // for clients
	leader  string   // among them
	clients []*clientv3.Client
}

func (e *etcd) size() int { return len(e.members) }

// etcdPorts finds ports that are free now.
func etcdPorts(n int) ([]string, error) {
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close()
		out = append(out, "http://"+l.Addr().String())
	}
	return out, nil
}

// startEtcd returns once the members have a leader.
func startEtcd(ctx context.Context, dir string, members int) (_ *etcd, err error) {
	path, err := exec.LookPath("etcd")
	if err != nil {
		return nil, errors.New("etcd, the peer, is not installed: bench/needs.sh store installs it")
	}
	ports, err := etcdPorts(2 * members)
	if err != nil {
		return nil, err
	}
	e := &etcd{urls: ports[:members]}
	peers := ports[members:]
	defer func() {
		if err != nil {
			err = errors.Join(err, e.stop())
		}
	}()
	var initial []string
	for i := range members {
		initial = append(initial, "m"+strconv.Itoa(i)+"="+peers[i])
	}
	for i := range members {
		name := "m" + strconv.Itoa(i)
		cmd := exec.Command(path, "--name", name, "--data-dir", filepath.Join(dir, fmt.Sprintf("etcd-%d", members), name),
			"--listen-client-urls", e.urls[i], "--advertise-client-urls", e.urls[i],
			"--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-token", "bench", "--log-level", "error")
		if err := e.start(cmd, filepath.Join(dir, fmt.Sprintf("etcd-%d-%s.log", members, name))); err != nil {
			return nil, err
		}
	}
	return e, e.findLeader(ctx)
}

// start runs a member that ends with this program, whatever happens to it.
func (e *etcd) start(cmd *exec.Cmd, log string) error {
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	e.members, e.logs = append(e.members, cmd), append(e.logs, log)
	return nil
}

func (e *etcd) dial(urls ...string) (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{Endpoints: urls, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd: %w", err)
	}
	e.clients = append(e.clients, c)
	return c, nil
}

func (e *etcd) findLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c, err := e.dial(e.urls...)
	if err != nil {
		return err
	}
	for {
		for _, url := range e.urls {
			st, err := c.Status(ctx, url)
			if err == nil && st.Leader != 0 && st.Leader == st.Header.MemberId {
				e.leader, etcdName = url, "etcd "+st.Version
				return nil
			}
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("etcd has no leader:\n%s", e.lastWords())
		}
	}
}

// lastWords are what members have logged.
func (e *etcd) lastWords() string {
	var b strings.Builder
	for _, path := range e.logs {
		if data, err := os.ReadFile(path); err == nil {
			b.Write(data[max(0, len(data)-1000):])
		}
	}
	return b.String()
}

// connections is how many a number of writers share: one for each, up to as many as were found
// to be best for etcd on two cores.
func connections(writers int) int { return min(writers, 8) }

// writer returns a write through the leader, which spares etcd the way through a follower.
func (e *etcd) writer(ctx context.Context, writers int) (write, error) {
	clients := make([]*clientv3.Client, connections(writers))
	for i := range clients {
		var err error
		if clients[i], err = e.dial(e.leader); err != nil {
			return nil, err
		}
	}
	text := string(value)
	return func(ctx context.Context, number int) error {
		_, err := clients[number%len(clients)].Put(ctx, "object-"+strconv.Itoa(number), text)
		return err
	}, nil
}

// stop ends the members; nothing of them is needed any more.
func (e *etcd) stop() error {
	var errs []error
	for _, c := range e.clients {
		errs = append(errs, c.Close())
	}
	for _, cmd := range slices.Backward(e.members) {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("end etcd: %w", err))
		}
		cmd.Wait() // killed: that is what it says
	}
	return errors.Join(errs...)
}
