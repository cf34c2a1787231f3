// Package million measures what a server's state costs when it is large: a million instances on
// 10,000 nodes in the real store, filled as servers fill it, with the leader's work running on it.
// Each measurement is a process of its own, whose memory is its own.
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
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/control"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

const arg = "hold-a-state"

// What a server may take: there is no peer that holds the like in one process.
const (
	budget          = "the budget"
	budgetMegabytes = 2_000
	budgetSeconds   = 20
)

// found is what a process of ours tells.
type found struct {
	Instances    int     `json:"instances"`
	FillSeconds  float64 `json:"fillSeconds"`  // processor time, statuses included
	StateMB      float64 `json:"stateMB"`      // resident after a garbage collection
	LeaderMB     float64 `json:"leaderMB"`     // the largest while the leader's work had begun
	WriteSeconds float64 `json:"writeSeconds"` // of a snapshot
	SnapshotMB   float64 `json:"snapshotMB"`
}

// Run measures memory and restart.
func Run(ctx context.Context, sheet *report.Sheet, brief bool) error {
	s := size{instances: 1_000_000, nodes: 10_000, workloads: 20_000}
	if brief {
		s = size{instances: 100_000, nodes: 1_000, workloads: 2_000}
	}
	dir, err := os.MkdirTemp("/var/tmp", "tutti-bench-")
	if err != nil {
		return fmt.Errorf("make a directory for the snapshot: %w", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "snapshot")
	sheet.Say("filling a store with %s", s)
	var f found
	if _, err := apart(ctx, &f, "fill", path, s); err != nil {
		return fmt.Errorf("fill a store: %w", err)
	}
	sheet.Say("%.0f MB, %.0f MB on the leader; filled in %.0f s, snapshot of %.0f MB written in %.1f s; starting from that",
		f.StateMB, f.LeaderMB, f.FillSeconds, f.SnapshotMB, f.WriteSeconds)
	var o found
	took, err := apart(ctx, &o, "open", path, s)
	if err != nil {
		return fmt.Errorf("start from the snapshot: %w", err)
	}
	share := float64(s.instances) / 1_000_000
	return errors.Join(
		sheet.Add(report.Row{Name: "store/memory/" + s.String(), Value: f.LeaderMB, Unit: "MB", Peer: budget, PeerValue: budgetMegabytes * share,
			Counted: fmt.Sprintf("largest resident set of the state with the leader's work on it, history included; %.0f MB after a garbage collection, without that work", f.StateMB)}),
		sheet.Add(report.Row{Name: "store/memory-after-restart/" + s.String(), Value: o.LeaderMB, Unit: "MB", Peer: budget, PeerValue: budgetMegabytes * share,
			Counted: fmt.Sprintf("largest resident set of a process that reads the snapshot; %.0f MB after a garbage collection", o.StateMB)}),
		sheet.Add(report.Row{Name: "store/restart/" + s.String(), Value: took.Seconds(), Unit: "s", Peer: budget, PeerValue: budgetSeconds * share,
			Counted: fmt.Sprintf("from the start of a process, with a snapshot of %.0f MB on disk, until its store has answered a read by node", f.SnapshotMB)}),
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

func child(what, path string, numbers []string) error {
	var n [3]int
	for i := range n {
		var err error
		if n[i], err = strconv.Atoi(numbers[i]); err != nil {
			return err
		}
	}
	s := size{instances: n[0], nodes: n[1], workloads: n[2]}
	st := store.New(slog.New(slog.DiscardHandler))
	st.SetProposer(alone{st})
	f := found{Instances: s.instances}
	switch what {
	case "fill":
		before := processorTime()
		if err := s.fill(st); err != nil {
			return err
		}
		f.FillSeconds = (processorTime() - before).Seconds()
	case "open":
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(st.Restore(file), file.Close()); err != nil {
			return err
		}
	default:
		return fmt.Errorf("nothing is called %q", what)
	}
	if err := s.look(st.Snapshot()); err != nil {
		return err
	}
	fmt.Println("serving")
	if what == "fill" {
		if err := f.write(st, path); err != nil {
			return err
		}
	}
	largest := resident() // the operating system has given what the collector did not need
	debug.FreeOSMemory()
	f.StateMB = resident()
	if what == "fill" {
		var err error
		if largest, err = lead(st); err != nil {
			return err
		}
	}
	f.LeaderMB = largest
	runtime.KeepAlive(st)
	return json.NewEncoder(os.Stdout).Encode(f)
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

func (f *found) write(st *store.Store, path string) error {
	began := time.Now()
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(st.Snapshot().Write(file), file.Sync(), file.Close()); err != nil {
		return err
	}
	f.WriteSeconds = time.Since(began).Seconds()
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	f.SnapshotMB = float64(info.Size()) / 1e6
	return nil
}

// lead runs the leader's work for a while and returns the largest resident set.
func lead(st *store.Store) (megabytes float64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	c := control.New(control.Deps{Store: st, Sessions: everybody{}, Log: slog.New(slog.DiscardHandler)})
	go func() { done <- c.Run(ctx) }()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		megabytes = max(megabytes, resident())
		select {
		case <-tick.C:
		case err := <-done:
			return megabytes, err
		}
	}
}

// everybody says that all nodes are alive and have all in force.
type everybody struct{}

func (everybody) Applied(string) uint64      { return 1 << 60 }
func (everybody) Live(string) bool           { return true }
func (everybody) Fence(string) time.Duration { return 0 }

// alone applies what is proposed at once, as a cluster of one server would.
type alone struct{ *store.Store }

func (a alone) Propose(_ context.Context, data []byte) (store.Result, error) {
	return a.Apply(data), nil
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
