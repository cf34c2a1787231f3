package provision

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Port is a published port.
type Port struct {
	Protocol string // "tcp" or "udp"
	Number   int
}

func (p Port) String() string { return strconv.Itoa(p.Number) + "/" + p.Protocol }

func (m *Machine) portsFile() string { return filepath.Join(m.dataRoot(), "ports.pid") }

// StartPorts runs a process of this program with the arguments, which is to call ServePorts.
func (m *Machine) StartPorts(args []string) error {
	if _, ok := readProcess(m.portsFile()); ok {
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	out, err := os.OpenFile(filepath.Join(m.dataRoot(), "ports.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of the loopback ports: %w", err)
	}
	defer out.Close()
	cmd := &exec.Cmd{
		Path: exe, Args: append([]string{"tutti"}, args...), Dir: "/", Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GOMEMLIMIT=64MiB"},
		Stdout: out, Stderr: out, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the process for loopback ports: %w", err)
	}
	pid := cmd.Process.Pid
	go cmd.Wait() // only so that it leaves no zombie while this process lives
	return writeProcess(m.portsFile(), pid)
}

func (m *Machine) stopPorts() error {
	pid, ok := readProcess(m.portsFile())
	if !ok {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop the process for loopback ports: %w", err)
	}
	return os.Remove(m.portsFile())
}

// Targets chooses, for a connection, the hosts to try, in this order.
func (m *Machine) Targets() []string {
	all, err := m.List()
	if err != nil {
		return nil
	}
	var out []string
	for _, h := range all {
		if h.Running && !h.Cut && !h.Leaving {
			out = append(out, h.Address)
		}
	}
	return out
}

// ServePorts answers, on the machine's loopback address, every port that the cluster publishes,
// and passes connections on to a host that runs. ports is asked twice a second what is published.
// It blocks until ctx is done or the hosts are no more.
func (m *Machine) ServePorts(ctx context.Context, ports func(context.Context) ([]Port, error), log *slog.Logger) error {
	s := &portServer{machine: m, log: log, open: map[Port]io.Closer{}, failed: map[Port]bool{}}
	defer s.close()
	for m.Kept() { // also when the hosts' data was removed by other means than Down
		s.refreshTargets()
		wanted, err := ports(ctx)
		if err == nil { // without an answer, what is open stays open
			s.sync(wanted)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond):
		}
	}
	return nil
}

type portServer struct {
	machine *Machine
	log     *slog.Logger
	open    map[Port]io.Closer
	failed  map[Port]bool

	mu      sync.Mutex
	targets []string
	next    int
}

func (s *portServer) refreshTargets() {
	t := s.machine.Targets()
	s.mu.Lock()
	before := s.targets
	s.targets = t
	s.mu.Unlock()
	if !slices.Equal(before, t) {
		s.log.Info("hosts that answer", "hosts", t)
	}
}

// pick returns the hosts to try, another one first each time.
func (s *portServer) pick() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.targets) == 0 {
		return nil
	}
	s.next++
	n := s.next % len(s.targets)
	return append(append([]string{}, s.targets[n:]...), s.targets[:n]...)
}

func (s *portServer) sync(wanted []Port) {
	want := map[Port]bool{}
	for _, p := range wanted {
		want[p] = true
		if s.open[p] != nil {
			continue
		}
		c, err := s.listen(p)
		if err != nil {
			if !s.failed[p] {
				s.log.Warn("a published port cannot be answered on this machine's loopback address; each host's own address answers it", "port", p.String(), "error", err)
			}
			s.failed[p] = true
			continue
		}
		delete(s.failed, p)
		s.open[p] = c
		s.log.Info("published port answered", "port", p.String())
	}
	for p, c := range s.open {
		if !want[p] {
			c.Close()
			delete(s.open, p)
			s.log.Info("published port closed", "port", p.String())
		}
	}
}

func (s *portServer) close() {
	for _, c := range s.open {
		c.Close()
	}
}

func (s *portServer) listen(p Port) (io.Closer, error) {
	address := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(p.Number))
	if p.Protocol == "udp" {
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(address))
		if err != nil {
			return nil, err
		}
		go s.serveUDP(c, p.Number)
		return c, nil
	}
	l, err := net.Listen("tcp4", address.String())
	if err != nil {
		return nil, err
	}
	go s.serveTCP(l, p.Number)
	return l, nil
}

func (s *portServer) serveTCP(l net.Listener, port int) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // too many open files: wait for some to close
			time.Sleep(10 * time.Millisecond)
			continue
		}
		go s.passOn(c.(*net.TCPConn), port)
	}
}

const (
	// connectPatience is how long one host has to answer before the next is tried.
	connectPatience = 300 * time.Millisecond
	// connectTries bounds that: each try may be led to another instance, and what a host's death
	// leaves behind is gone within about two seconds.
	connectTries = 10
)

// toHost gives a connection up soon when its host no longer acknowledges, as after a power cut.
var toHost = net.Dialer{
	Timeout:         connectPatience,
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2},
	Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 2000)
		})
		return errors.Join(err, serr)
	},
}

func (s *portServer) passOn(from *net.TCPConn, port int) {
	defer from.Close()
	to := s.connect(port)
	if to == nil {
		_ = from.SetLinger(0) // a reset says that nobody answered
		return
	}
	defer to.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(to, from) // either end may go away at any time
		_ = to.CloseWrite()
	}()
	_, _ = io.Copy(from, to)
	_ = from.CloseWrite()
	<-done
}

// connect reaches the port on one host or another; nil when none lets it.
func (s *portServer) connect(port int) *net.TCPConn {
	for range connectTries {
		targets := s.pick()
		if len(targets) == 0 {
			time.Sleep(connectPatience) // one may be starting
			continue
		}
		c, err := toHost.Dial("tcp4", net.JoinHostPort(targets[0], strconv.Itoa(port)))
		if err == nil {
			return c.(*net.TCPConn)
		}
		if !isTimeout(err) {
			time.Sleep(10 * time.Millisecond) // refused at once: the next host may not
		}
	}
	return nil
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// serveUDP keeps one socket per asker, so that answers find their way back.
func (s *portServer) serveUDP(l *net.UDPConn, port int) {
	var mu sync.Mutex
	flows := map[netip.AddrPort]net.Conn{}
	buf := make([]byte, 64<<10)
	for {
		n, from, err := l.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		mu.Lock()
		c := flows[from]
		if c == nil && len(flows) < 4096 {
			if targets := s.pick(); len(targets) > 0 {
				if c, err = net.Dial("udp4", net.JoinHostPort(targets[0], strconv.Itoa(port))); err == nil {
					flows[from] = c
					go func() {
						answerUDP(l, c, from)
						mu.Lock()
						delete(flows, from)
						mu.Unlock()
						c.Close()
					}()
				}
			}
		}
		mu.Unlock()
		if c != nil {
			_, _ = c.Write(buf[:n]) // datagrams may get lost
		}
	}
}

// answerUDP sends answers back until none has come for half a minute.
func answerUDP(l *net.UDPConn, c net.Conn, to netip.AddrPort) {
	buf := make([]byte, 64<<10)
	for {
		if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return
		}
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := l.WriteToUDPAddrPort(buf[:n], to); err != nil {
			return
		}
	}
}
