// Package million measures what a server's state costs when it is large: a million instances on
// 10,000 nodes. One process fills a store, as servers do, and leaves what it holds as the state of a
// server that does not run; another is that server: it starts, leads, hears of all nodes, takes in
// reports and writes a backup. The memory of each is its own.
package million

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/consensus"
	"github.com/tutti-run/tutti/internal/dispatch"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

const arg = "hold-a-state"

// What a server may take: there is no peer that holds the like in one process.
const (
	budget          = "the budget"
	budgetMegabytes = 2_000
	budgetSeconds   = 20
)

// found is what a process of ours tells. Memory is the resident set.
type found struct {
	FillSeconds    float64 `json:"fillSeconds"` // processor time, statuses included
	StateMB        float64 `json:"stateMB"`     // on disk
	ServingSeconds float64 `json:"servingSeconds"`
	ServingMB      float64 `json:"servingMB"` // at most, until it served
	RestMB         float64 `json:"restMB"`    // after a garbage collection, with the leader's work under way
	BusyMB         float64 `json:"busyMB"`    // at most
	ReportSeconds  float64 `json:"reportSeconds"`
	BackupSeconds  float64 `json:"backupSeconds"`
}

// Run measures memory and restart.
func Run(ctx context.Context, sheet *report.Sheet, brief bool) error {
	s := size{instances: 1_000_000, nodes: 10_000, workloads: 20_000}
	if brief {
		s = size{instances: 100_000, nodes: 1_000, workloads: 2_000}
	}
	dir, err := os.MkdirTemp("/var/tmp", "tutti-bench-")
	if err != nil {
		return fmt.Errorf("make a directory for the server: %w", err)
	}
	defer os.RemoveAll(dir)
	sheet.Say("filling a store with %s", s)
	var f found
	if _, err := apart(ctx, &f, "fill", dir, s); err != nil {
		return fmt.Errorf("fill a store: %w", err)
	}
	sheet.Say("filled in %.0f s of processor time, %.0f MB on disk; starting a server from that", f.FillSeconds, f.StateMB)
	var o found
	took, err := apart(ctx, &o, "serve", dir, s)
	if err != nil {
		return fmt.Errorf("start a server: %w", err)
	}
	sheet.Say("serving after %.1f s, %.1f s of processor time, %.0f MB at most; %d reports taken in in %.1f s, a backup written in %.1f s",
		took.Seconds(), o.ServingSeconds, o.ServingMB, s.instances/reportedPart, o.ReportSeconds, o.BackupSeconds)
	share := float64(s.instances) / 1_000_000
	return errors.Join(
		sheet.Add(report.Row{Name: "store/memory/" + s.String(), Value: o.BusyMB, Unit: "MB", Peer: budget, PeerValue: budgetMegabytes * share,
			Counted: fmt.Sprintf("largest resident set of a server that starts, leads, hears of all nodes, takes in %d reports on instances and writes a backup; %.0f MB after a garbage collection then", s.instances/reportedPart, o.RestMB)}),
		sheet.Add(report.Row{Name: "store/restart/" + s.String(), Value: took.Seconds(), Unit: "s", Peer: budget, PeerValue: budgetSeconds * share,
			Counted: fmt.Sprintf("from the start of a server's process, with a state of %.0f MB on disk, until it leads and a linearizable read by node is answered; %.1f s of processor time", f.StateMB, o.ServingSeconds)}),
	)
}

// apart runs a measurement in a process of its own and returns when it said that it serves.
func apart(ctx context.Context, out *found, what, path string, s size) (served time.Duration, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, self, arg, what, path, strconv.Itoa(s.instances), strconv.Itoa(s.nodes), strconv.Itoa(s.workloads))
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	in := bufio.NewReader(pipe)
	_, readErr := in.ReadString('\n') // it serves
	served = time.Since(began)
	rest, restErr := io.ReadAll(in)
	if err := errors.Join(readErr, restErr, cmd.Wait()); err != nil {
		return 0, err
	}
	return served, json.Unmarshal(rest, out)
}

// Reexec does what this program was started for by itself; it returns false when it was started by
// somebody else.
func Reexec(args []string) bool {
	if len(args) != 7 || args[1] != arg {
		return false
	}
	if err := child(args[2], args[3], args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func child(what, dir string, numbers []string) error {
	var n [3]int
	for i := range n {
		var err error
		if n[i], err = strconv.Atoi(numbers[i]); err != nil {
			return err
		}
	}
	s := size{instances: n[0], nodes: n[1], workloads: n[2]}
	var f found
	var err error
	switch what {
	case "fill":
		err = f.fill(s, dir)
	case "serve":
		err = f.serve(s, dir)
	default:
		err = fmt.Errorf("nothing is called %q", what)
	}
	return errors.Join(err, json.NewEncoder(os.Stdout).Encode(f))
}

// fill leaves the state of a server in the directory, and the authority of its cluster.
func (f *found) fill(s size, dir string) error {
	authority, err := wire.NewAuthority()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, caFile), append(authority.CertPEM, authority.KeyPEM...), 0o600); err != nil {
		return err
	}
	st := store.New(slog.New(slog.DiscardHandler))
	st.SetProposer(alone{st})
	before := processorTime()
	if err := s.fill(st, authority); err != nil {
		return err
	}
	f.FillSeconds = (processorTime() - before).Seconds()
	if err := s.look(st.Snapshot()); err != nil {
		return err
	}
	fmt.Println("filled")
	r, w := io.Pipe()
	go func() { w.CloseWithError(st.Snapshot().Write(w)) }()
	config := consensus.Config{NodeID: nodeID(0), Address: address, DataDir: server.StateDir(dir), Log: slog.New(slog.DiscardHandler)}
	if err := consensus.Begin(config, 100, 1, r); err != nil {
		return err
	}
	return filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && strings.HasSuffix(info.Name(), ".snapshot") {
			f.StateMB += float64(info.Size()) / 1e6
		}
		return err
	})
}

const (
	caFile  = "authority.pem"
	address = "127.0.0.1:0" // nobody else connects
	// reportedPart is the part of the instances on which nodes report anew.
	reportedPart = 5
	// leadFor is how long the server leads beyond that.
	leadFor = 10 * time.Second
)

// serve is a server's life.
func (f *found) serve(s size, dir string) error {
	server.BoundHeap()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	pem, err := os.ReadFile(filepath.Join(dir, caFile))
	if err != nil {
		return err
	}
	end := bytes.Index(pem, []byte("-----BEGIN EC"))
	authority, err := wire.LoadAuthority(pem[:end], pem[end:])
	if err != nil {
		return err
	}
	csr, key, err := wire.NewRequest()
	if err != nil {
		return err
	}
	cert, err := authority.Sign(csr, nodeID(0), wire.RoleServer)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	port, err := wire.Listen(address, &wire.Identity{NodeID: nodeID(0), Role: wire.RoleServer, CertPEM: cert, KeyPEM: key, CAPEM: authority.CertPEM}, log)
	if err != nil {
		return err
	}
	srv, err := server.New(server.Config{NodeID: nodeID(0), Name: "node-00000", Address: address, DataDir: dir, Port: port, Log: log})
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.Go(func() error { return port.Serve(ctx) })
	g.Go(func() error { return srv.Run(ctx) })
	g.Go(func() error { return s.beat(ctx, srv) })
	err = f.work(ctx, s, srv)
	cancel()
	return errors.Join(err, g.Wait(), srv.Shutdown())
}

// beat gives the signs of life of all nodes, as other servers pass them on.
func (s size) beat(ctx context.Context, srv *server.Server) error {
	beats := make([]dispatch.Beat, s.nodes)
	tick := time.NewTicker(dispatch.PaceFor(s.nodes).Beat)
	defer tick.Stop()
	for {
		revision := srv.Core().Store.Snapshot().Revision()
		for n := range beats {
			beats[n] = dispatch.Beat{NodeID: nodeID(n), Session: fmt.Sprint("session", n), Applied: revision}
		}
		srv.Tell(ctx, beats) // who does not lead yet says so
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// work is what the server has to do while it is looked at.
func (f *found) work(ctx context.Context, s size, srv *server.Server) error {
	if err := srv.Replication().Sync(ctx); err != nil {
		return err
	}
	st := srv.Core().Store
	if err := s.look(st.Snapshot()); err != nil {
		return err
	}
	f.ServingSeconds = processorTime().Seconds()
	fmt.Println("serving")
	var err error
	if f.ServingMB, err = largest(); err != nil {
		return err
	}
	began := time.Now()
	var cs store.ChangeSet
	for n := range s.instances / reportedPart {
		i := s.instance(n * reportedPart)
		cs.PutStatus(running(i, n))
		if cs.Len() == 500 || n == s.instances/reportedPart-1 {
			for { // a report may be made twice
				_, err := st.Commit(ctx, &cs)
				if err == nil {
					break
				}
				if !fault.Is(err, fault.Unavailable) {
					return err
				}
			}
			cs = store.ChangeSet{}
		}
	}
	f.ReportSeconds = time.Since(began).Seconds()
	began = time.Now()
	if err := srv.WriteBackup(io.Discard); err != nil {
		return err
	}
	f.BackupSeconds = time.Since(began).Seconds()
	time.Sleep(leadFor)
	for n := range store.List[*model.Node](st.Snapshot()) {
		if n.Status.State != model.NodeReady {
			return fmt.Errorf("node %s came to be %s: the figures are of another state", n.Name, n.Status.State)
		}
	}
	if f.BusyMB, err = largest(); err != nil {
		return err
	}
	debug.FreeOSMemory()
	f.RestMB = resident()
	return s.look(st.Snapshot())
}

// look reads by each index.
func (s size) look(snap *store.Snapshot) error {
	count := 0
	for range store.InstancesOnNode(snap, nodeID(7)) {
		count++
	}
	if want := s.instances / s.nodes; count != want || store.Count[*model.Instance](snap) != s.instances {
		return fmt.Errorf("%d instances on a node, want %d; %d in all, want %d", count, want, store.Count[*model.Instance](snap), s.instances)
	}
	return nil
}

// alone applies what is proposed at once, as a cluster of one server would.
type alone struct{ *store.Store }

func (a alone) Propose(_ context.Context, data []byte) (store.Result, error) {
	return a.Apply(data), nil
}

// largest returns the largest size that this process's resident set had, in MB.
func largest() (float64, error) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), "VmHWM:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0, errors.New("the kernel does not tell how large this process was")
	}
	n, err := strconv.ParseFloat(fields[0], 64)
	return n * 1024 / 1e6, err
}

// resident returns the size of this process's resident set in MB.
func resident() float64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(data)
	pages, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0
	}
	return float64(pages) * float64(os.Getpagesize()) / 1e6
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
