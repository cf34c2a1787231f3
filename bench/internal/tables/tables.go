// Package tables measures what tables of instances cost in memory and time, by the library that
// keeps them: our trees beside hashicorp/go-memdb and cilium/statedb, with the indexes that the
// store has. Each side is filled in a process of its own, so that nobody pays for another's heap.
package tables

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/model"
)

// side is a table under measurement.
type side interface {
	// write puts instances in, new or in place of older ones, and makes them visible.
	write(list []*model.Instance) error
	// get returns an instance, from a snapshot taken for it.
	get(id string) (*model.Instance, bool)
	// onNode counts the instances of a node, from a snapshot taken for it.
	onNode(node string) int
}

var sides = []struct {
	name string
	make func() (side, error)
}{
	{"Tutti's trees", newTrees},
	{"hashicorp/go-memdb 1.3.5", newMemDB},
	{"cilium/statedb 0.9.4", newStateDB},
}

const (
	arg       = "fill-a-table"
	batch     = 500     // instances in one transaction
	perNode   = 100     // instances
	perGroup  = 50      // instances of a workload
	lookups   = 200_000 // fewer of lists
	updates   = 200_000 // fewer of those alone
	workloads = "workload%016d"
)

// costs are of one operation in nanoseconds of processor time, the collector's included.
type costs struct {
	Insert      float64 `json:"insert"`
	Get         float64 `json:"get"`
	List        float64 `json:"list"`   // by node, all instances of it
	Update      float64 `json:"update"` // in a transaction with others
	UpdateAlone float64 `json:"updateAlone"`
	Bytes       float64 `json:"bytes"` // per instance, without the instance itself
}

// Run compares all sides.
func Run(ctx context.Context, sheet *report.Sheet, brief bool) error {
	many := 1_000_000
	if brief {
		many = 100_000
	}
	var all []costs
	for i, s := range sides {
		sheet.Say("%d instances in %s", many, s.name)
		c, err := apart(ctx, i, many)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		all = append(all, c)
	}
	var errs []error
	for i := 1; i < len(sides); i++ {
		for _, m := range []struct {
			what, unit, counted string
			of                  func(c costs) float64
		}{
			{"insert", "ns", "of 500 in one transaction, then visible", func(c costs) float64 { return c.Insert }},
			{"get by ID", "ns", "of a random one, from a snapshot taken for it", func(c costs) float64 { return c.Get }},
			{"list a node", "ns", "all 100 instances of a random one, from a snapshot taken for it", func(c costs) float64 { return c.List }},
			{"update", "ns", "of random ones, 500 in one transaction", func(c costs) float64 { return c.Update }},
			{"update alone", "ns", "of a random one in a transaction of its own", func(c costs) float64 { return c.UpdateAlone }},
			{"memory", "bytes", "for each instance, without the instance itself", func(c costs) float64 { return c.Bytes }},
		} {
			errs = append(errs, sheet.Add(report.Row{
				Name: fmt.Sprintf("tables/%s/%d instances", m.what, many), Value: m.of(all[0]), Unit: m.unit, Peer: sides[i].name, PeerValue: m.of(all[i]),
				Counted: m.counted + "; in order of ID and by application, workload and node; processor time with that of the garbage collector",
			}))
		}
	}
	return errors.Join(errs...)
}

func apart(ctx context.Context, side, many int) (c costs, err error) {
	self, err := os.Executable()
	if err != nil {
		return c, err
	}
	cmd := exec.CommandContext(ctx, self, arg, strconv.Itoa(side), strconv.Itoa(many))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(out, &c)
}

// Reexec does what this program was started for by itself; it returns false when it was started by
// somebody else.
func Reexec(args []string) bool {
	if len(args) != 4 || args[1] != arg {
		return false
	}
	which, err := strconv.Atoi(args[2])
	many, err2 := strconv.Atoi(args[3])
	if err = errors.Join(err, err2); err == nil {
		var c costs
		if c, err = measure(sides[which].make, many, lookups, updates); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(c)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func instance(n int) *model.Instance {
	w := n / perGroup
	return &model.Instance{
		Meta:       model.Meta{ID: fmt.Sprintf("%08x%016x", uint32(n)*2654435761, n), Namespace: "default", Application: fmt.Sprintf("app%d", w/4), Name: fmt.Sprintf("web.%d", n%perGroup)},
		WorkloadID: fmt.Sprintf(workloads, w), NodeID: node(n / perNode),
	}
}

func node(n int) string { return fmt.Sprintf("node%020d", n) }

func measure(create func() (side, error), many, lookups, updates int) (c costs, err error) {
	list := make([]*model.Instance, many)
	for i := range list {
		list[i] = instance(i)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	rnd.Shuffle(many, func(i, j int) { list[i], list[j] = list[j], list[i] }) // they come in no order
	before := heap()
	s, err := create()
	if err != nil {
		return c, err
	}
	c.Insert, err = each(many/batch, batch, func(n int) error { return s.write(list[n*batch : (n+1)*batch]) })
	if err != nil {
		return c, err
	}
	c.Bytes = float64(heap()-before) / float64(many)
	if c.Get, err = each(lookups, 1, func(int) error {
		id := list[rnd.IntN(many)].ID
		if i, ok := s.get(id); !ok || i.ID != id {
			return fmt.Errorf("instance %s is not found", id)
		}
		return nil
	}); err != nil {
		return c, err
	}
	if c.List, err = each(lookups/20, 1, func(int) error {
		if n := s.onNode(node(rnd.IntN(many / perNode))); n != perNode {
			return fmt.Errorf("%d instances are on a node, want %d", n, perNode)
		}
		return nil
	}); err != nil {
		return c, err
	}
	changed := func() *model.Instance {
		n := rnd.IntN(many)
		i := *list[n]
		i.Status.Restarts++
		list[n] = &i
		return &i
	}
	if c.Update, err = each(updates/batch, batch, func(int) error {
		some := make([]*model.Instance, batch)
		for i := range some {
			some[i] = changed()
		}
		return s.write(some)
	}); err != nil {
		return c, err
	}
	c.UpdateAlone, err = each(updates/4, 1, func(int) error { return s.write([]*model.Instance{changed()}) })
	return c, err
}

// each does something many times and returns the processor time of one part of it.
func each(times, parts int, do func(n int) error) (nanoseconds float64, err error) {
	began := processorTime()
	for n := range times {
		if err := do(n); err != nil {
			return 0, err
		}
	}
	return float64(processorTime()-began) / float64(times*parts), nil
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
