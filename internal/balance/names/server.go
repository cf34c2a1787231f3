package names

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/atomicfile"
	"github.com/tutti-run/tutti/internal/wire"
)

const (
	reexecArg = "tutti-names"
	ttl       = 5 // seconds: what a name means changes with what runs
	stateFile = "names.json"
	lockFile  = "names.lock"
)

// Reexec runs the responder when this program was started for that; main calls it first.
func Reexec(args []string) bool {
	if len(args) != 4 || args[1] != reexecArg {
		return false
	}
	debug.SetGCPercent(30)
	if err := respond(args[2], args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// responder is the process that answers.
type responder struct {
	zone      atomic.Pointer[zone]
	upstreams atomic.Pointer[[]string] // of the host
}

// respond answers until it is told to end. File descriptor 4 tells the agent that it does.
func respond(dir, listen string) error {
	ready := os.NewFile(4, "ready")
	defer ready.Close()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM)
	r := &responder{}
	if err := r.load(dir); err != nil {
		return err
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGPIPE)
	failed := make(chan error, 2)
	answering := make(chan struct{}, 2)
	for _, network := range []string{"udp", "tcp"} {
		s := &dns.Server{
			Addr: listen, Net: network, Handler: r, ReadTimeout: 2 * time.Second,
			NotifyStartedFunc: func() { answering <- struct{}{} },
		}
		go func() { failed <- s.ListenAndServe() }()
	}
	for n := 0; ; {
		select {
		case err := <-failed:
			return fmt.Errorf("answer names on %s: %w", listen, err)
		case <-answering:
			if n++; n == 2 {
				if _, err := ready.WriteString("ok"); err != nil {
					fmt.Fprintln(os.Stderr, err) // the agent has gone, and another will find this process
				}
				ready.Close()
			}
		case s := <-signals:
			if s == syscall.SIGTERM {
				return nil
			}
			if err := r.load(dir); err != nil {
				fmt.Fprintln(os.Stderr, err) // what was known is still the best answer
			}
		}
	}
}

func (r *responder) load(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return fmt.Errorf("read names: %w", err)
	}
	var n wire.Network
	if err := json.Unmarshal(data, &n); err != nil {
		return fmt.Errorf("read names: %w", err)
	}
	r.zone.Store(newZone(&n))
	var upstreams []string
	if conf, err := dns.ClientConfigFromFile("/etc/resolv.conf"); err == nil { // without one, there is nobody to ask
		for _, s := range conf.Servers {
			upstreams = append(upstreams, net.JoinHostPort(s, conf.Port))
		}
	}
	r.upstreams.Store(&upstreams)
	return nil
}

// ServeDNS implements dns.Handler.
func (r *responder) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := r.answer(askerOf(w.RemoteAddr()), q, w.LocalAddr().Network())
	w.WriteMsg(m) // an asker that is gone asks again
}

func askerOf(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

func (r *responder) answer(asker netip.Addr, q *dns.Msg, network string) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	if len(q.Question) != 1 || q.Question[0].Qclass != dns.ClassINET {
		m.Rcode = dns.RcodeRefused
		return m
	}
	z, question := r.zone.Load(), q.Question[0]
	name := strings.TrimSuffix(question.Name, ".")
	head := dns.RR_Header{Name: question.Name, Class: dns.ClassINET, Ttl: ttl}
	if question.Qtype == dns.TypePTR {
		if ip, ok := reversed(name); ok && z.reverse[ip] != "" {
			head.Rrtype = dns.TypePTR
			m.Answer = append(m.Answer, &dns.PTR{Hdr: head, Ptr: z.reverse[ip] + suffixes[0] + "."})
			return m
		}
	}
	found := z.lookup(asker, name)
	if found.known {
		if question.Qtype == dns.TypeA || question.Qtype == dns.TypeANY {
			head.Rrtype = dns.TypeA
			for _, i := range rand.Perm(len(found.addresses)) {
				m.Answer = append(m.Answer, &dns.A{Hdr: head, A: found.addresses[i].AsSlice()})
			}
		}
		return m
	}
	ours := !strings.Contains(name, ".")
	for _, s := range suffixes {
		ours = ours || strings.HasSuffix(strings.ToLower(name), s)
	}
	if ours {
		m.Rcode = dns.RcodeNameError
		return m
	}
	return r.forward(asker, q, m, network)
}

// reversed reads "4.3.2.1.in-addr.arpa".
func reversed(name string) (netip.Addr, bool) {
	labels := strings.Split(strings.TrimSuffix(strings.ToLower(name), ".in-addr.arpa"), ".")
	if len(labels) != 4 {
		return netip.Addr{}, false
	}
	ip, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
	return ip, err == nil
}

func (r *responder) forward(asker netip.Addr, q, m *dns.Msg, network string) *dns.Msg {
	var upstreams []string
	if host := r.upstreams.Load(); host != nil {
		upstreams = *host
	}
	if c := r.zone.Load().clients[asker]; c != nil && len(c.upstreams) > 0 {
		upstreams = nil
		for _, s := range c.upstreams {
			upstreams = append(upstreams, net.JoinHostPort(s, "53"))
		}
	}
	client := &dns.Client{Net: network, Timeout: 2 * time.Second}
	for _, u := range upstreams {
		if reply, _, err := client.Exchange(q, u); err == nil {
			return reply
		}
	}
	m.Rcode = dns.RcodeServerFailure
	return m
}

// Process keeps one responder running on this node.
type Process struct {
	Dir    string // state and lock
	Listen string // host:port
	Log    *slog.Logger
}

// Sync writes what should be answered, and makes sure that somebody answers.
func (p *Process) Sync(ctx context.Context, n *wire.Network) error {
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return fmt.Errorf("write names: %w", err)
	}
	data, err := json.Marshal(&wire.Network{Instances: n.Instances, Services: n.Services})
	if err != nil {
		return fmt.Errorf("write names: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(p.Dir, stateFile), data); err != nil {
		return fmt.Errorf("write names: %w", err)
	}
	if pid, running := p.running(); running {
		if err := syscall.Kill(pid, syscall.SIGHUP); err == nil {
			return nil
		}
	}
	return p.start()
}

// running returns the responder that holds the lock.
func (p *Process) running() (int, bool) {
	f, err := os.OpenFile(filepath.Join(p.Dir, lockFile), os.O_RDWR, 0)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		return 0, false
	}
	var b [16]byte
	n, _ := f.ReadAt(b[:], 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return pid, err == nil && pid > 1
}

func (p *Process) start() error {
	lock, err := os.OpenFile(filepath.Join(p.Dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("start the names responder: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("start the names responder: another one holds its lock: %w", err)
	}
	if err := lock.Truncate(0); err != nil { // not before: the other one's number is in it
		return fmt.Errorf("start the names responder: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start the names responder: %w", err)
	}
	errorLog, err := os.OpenFile(filepath.Join(p.Dir, "names.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("start the names responder: %w", err)
	}
	defer errorLog.Close()
	ready, child, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the names responder: %w", err)
	}
	defer ready.Close()
	cmd := &exec.Cmd{
		Path: exe, Args: []string{"tutti", reexecArg, p.Dir, p.Listen}, Dir: "/", Env: []string{"GOMEMLIMIT=64MiB"},
		Stderr: errorLog, ExtraFiles: []*os.File{lock, child}, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = cmd.Start()
	child.Close()
	if err != nil {
		return fmt.Errorf("start the names responder: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait() // so that it leaves no zombie while this agent lives
		close(ended)
	}()
	giveUp := func(err error) error { // and leave nothing that seems to answer
		err = errors.Join(fmt.Errorf("start the names responder: %w", err), cmd.Process.Kill())
		<-ended
		return err
	}
	if _, err := fmt.Fprintf(lock, "%d\n", cmd.Process.Pid); err != nil {
		return giveUp(err)
	}
	if err := ready.SetReadDeadline(time.Now().Add(startPatience)); err != nil {
		return giveUp(err)
	}
	answer, err := io.ReadAll(ready)
	if err != nil {
		return giveUp(fmt.Errorf("it does not begin to answer: %w", err))
	}
	if string(answer) != "ok" {
		<-ended
		reason, err := os.ReadFile(errorLog.Name())
		return errors.Join(fmt.Errorf("the names responder ended: %s", strings.TrimSpace(string(reason))), err)
	}
	p.Log.Info("names responder started", "pid", cmd.Process.Pid, "listen", p.Listen)
	return nil
}

// startPatience is how long a responder may take to begin.
const startPatience = 10 * time.Second

// Keep starts the responder again if it has ended; before the first Sync there is none to keep.
func (p *Process) Keep(ctx context.Context) error {
	if _, running := p.running(); running {
		return nil
	}
	if _, err := os.Stat(filepath.Join(p.Dir, stateFile)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	p.Log.Warn("the names responder has ended, and is started again")
	return p.start()
}

// Remove stops the responder.
func (p *Process) Remove(ctx context.Context) error {
	if pid, running := p.running(); running {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop the names responder: %w", err)
		}
	}
	return nil
}
