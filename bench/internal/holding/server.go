package holding

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/wire"
)

const serverArg = "tutti-bench-sessions-server"

// Reexec does what this program was started for by itself; it returns false when it was started
// by somebody else.
func Reexec(args []string) bool {
	if len(args) != 3 || args[1] != serverArg {
		return false
	}
	if err := serve(args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
	return true
}

// part is what a server process is told, in a file.
type part struct {
	Identity *wire.Identity
	DataDir  string
	CAKeyPEM []byte // of one that founds
	Key      []byte // of one that joined; see wire.Joined
	Known    []wire.ServerAddress
}

// serve is the life of a server process; it says its address when it can be reached.
func serve(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var p part
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	if err := allowFiles(10_000); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	port, err := wire.Listen("127.0.0.1:0", p.Identity, log)
	if err != nil {
		return err
	}
	var founding *wire.Authority
	if len(p.CAKeyPEM) > 0 {
		if founding, err = wire.LoadAuthority(p.Identity.CAPEM, p.CAKeyPEM); err != nil {
			return err
		}
	}
	keys, err := secret.LoadKeyFile(filepath.Join(p.DataDir, "cluster.key"))
	if err == nil && len(p.Key) > 0 {
		err = keys.Keep(p.Key)
	}
	if err != nil {
		return err
	}
	portCtx, closePort := context.WithCancel(context.Background())
	var g errgroup.Group
	defer func() { closePort(); g.Wait() }()
	s, err := server.New(server.Config{
		NodeID: p.Identity.NodeID, Name: p.Identity.NodeID, Address: port.Addr().String(), DataDir: p.DataDir,
		Founding: founding, Founded: func() error { return nil }, AddressPool: "10.210.0.0/16", NodePool: "10.128.0.0/14",
		Known: p.Known, Port: port, Keys: keys, Log: log,
	})
	if err != nil {
		return err
	}
	g.Go(func() error { return port.Serve(portCtx) })
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	if err := s.Begin(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	said := []any{port.Addr()}
	for _, role := range []bool{true, false} {
		if founding == nil {
			break
		}
		token, err := s.Core().JoinToken(ctx, core.Local("bench", "bench"), role)
		if err != nil {
			return err
		}
		said = append(said, token)
	}
	fmt.Println(said...)
	return errors.Join(<-ran, s.Shutdown())
}

// cluster is the server processes.
type cluster struct {
	addresses []string
	processes []*exec.Cmd
	// serverToken and agentToken admit hosts.
	serverToken, agentToken string
}

func startCluster(ctx context.Context, dir string) (_ *cluster, err error) {
	c := &cluster{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	for k := range servers {
		if err := c.start(ctx, dir, k); err != nil {
			return nil, fmt.Errorf("start server %d: %w", k+1, err)
		}
	}
	return c, nil
}

// found makes the identity of the first server.
func found(id string) (*part, error) {
	authority, err := wire.NewAuthority()
	if err != nil {
		return nil, err
	}
	csr, key, err := wire.NewRequest()
	if err != nil {
		return nil, err
	}
	cert, err := authority.Sign(csr, id, wire.RoleServer)
	if err != nil {
		return nil, err
	}
	identity := &wire.Identity{NodeID: id, Role: wire.RoleServer, CertPEM: cert, KeyPEM: key, CAPEM: authority.CertPEM}
	return &part{Identity: identity, CAKeyPEM: authority.KeyPEM}, nil
}

// join admits a host, as any host is admitted.
func (c *cluster) join(ctx context.Context, id, address, token string) (*wire.Joined, error) {
	joined, err := wire.Join(ctx, address, token, wire.Newcomer{NodeID: id, Name: id, Address: "192.0.2.1", Port: 7400})
	if err != nil {
		return nil, fmt.Errorf("join %s: %w", id, err)
	}
	return joined, nil
}

func (c *cluster) start(ctx context.Context, dir string, k int) error {
	id := "server-" + strconv.Itoa(k+1)
	p, err := found(id)
	if k > 0 {
		var joined *wire.Joined
		if joined, err = c.join(ctx, id, c.addresses[0], c.serverToken); err == nil {
			p = &part{Identity: joined.Identity, Key: joined.Key}
		}
	}
	if err != nil {
		return err
	}
	p.DataDir = filepath.Join(dir, id)
	for n, a := range c.addresses {
		p.Known = append(p.Known, wire.ServerAddress{ID: "server-" + strconv.Itoa(n+1), Address: a})
	}
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, id+".json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, serverArg, path)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.processes = append(c.processes, cmd)
	said := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		said <- strings.TrimSpace(line)
		io.Copy(io.Discard, out)
	}()
	select {
	case line := <-said:
		words := strings.Fields(line)
		if len(words) == 0 {
			return errors.New("it ended early")
		}
		c.addresses = append(c.addresses, words[0])
		if len(words) == 3 {
			c.serverToken, c.agentToken = words[1], words[2]
		}
		return nil
	case <-time.After(10 * time.Second):
		return errors.New("it does not say its address")
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *cluster) stop() error {
	var errs []error
	for _, p := range c.processes {
		errs = append(errs, p.Process.Signal(syscall.SIGTERM))
	}
	for _, p := range c.processes {
		kill := time.AfterFunc(10*time.Second, func() { p.Process.Kill() })
		errs = append(errs, p.Wait())
		kill.Stop()
	}
	return errors.Join(errs...)
}

// usage is what all servers have used.
type usage struct {
	cpu float64 // seconds
	rss int64   // bytes
}

func (c *cluster) usage() (u usage, err error) {
	for _, p := range c.processes {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
		if err != nil {
			return u, fmt.Errorf("read what a server uses: %w", err)
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, k := range []int{11, 12} { // utime and stime, in ticks of a hundredth of a second
			n, err := strconv.ParseFloat(fields[k], 64)
			if err != nil {
				return u, fmt.Errorf("read what a server uses: %w", err)
			}
			u.cpu += n / 100
		}
		pages, err := strconv.ParseInt(fields[21], 10, 64)
		if err != nil {
			return u, fmt.Errorf("read what a server uses: %w", err)
		}
		u.rss += pages * int64(os.Getpagesize())
	}
	return u, nil
}
