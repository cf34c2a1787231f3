package placing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/tutti-run/tutti/bench/internal/report"
)

const millionArg = "place-a-million"

// millionResult is what the process that places a million instances tells.
type millionResult struct {
	Instances int     `json:"instances"`
	Seconds   float64 `json:"seconds"` // processor time
	Megabytes float64 `json:"megabytes"`
}

// Reexec does what this program was started for by itself; it returns false when it was started
// by somebody else.
func Reexec(args []string) bool {
	if len(args) != 3 || args[1] != millionArg {
		return false
	}
	runtime.GOMAXPROCS(1)
	r, err := placeMillion(args[2])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func placeMillion(who string) (r millionResult, err error) {
	switch who {
	case "tutti":
		took, err := place(million)
		return millionResult{Instances: million.instances, Seconds: took.Seconds()}, err
	case "swarmkit":
		p, err := swarmKit(context.Background(), million, 20*time.Second)
		return millionResult{Instances: p.instances, Seconds: p.took.Seconds()}, err
	}
	return r, fmt.Errorf("nobody is called %q", who)
}

// compareMillion places a million instances on 100,000 nodes, each side in a fresh process.
func compareMillion(ctx context.Context, sheet *report.Sheet) error {
	sheet.Say("placing %s", million)
	own, err := million.apart(ctx, "tutti")
	if err != nil {
		return fmt.Errorf("place a million: %w", err)
	}
	sheet.Say("decided in %.1f s; the same by SwarmKit", own.Seconds)
	peer, err := million.apart(ctx, "swarmkit")
	if err != nil {
		return fmt.Errorf("place a million: SwarmKit: %w", err)
	}
	counted := peerResult{instances: peer.Instances}.counted(million)
	err = sheet.Add(report.Row{
		Name: "schedule/" + million.String(), Value: float64(own.Instances) / own.Seconds, Unit: "placements/s",
		Peer: swarmKitName, PeerValue: float64(peer.Instances) / peer.Seconds,
		Counted: fmt.Sprintf("Tutti: decided by schedule.Place in %.1f s, nothing committed; %s; processor time of one core", own.Seconds, counted),
	})
	return errors.Join(err, sheet.Add(report.Row{
		Name: "schedule/memory/" + million.String(), Value: own.Megabytes, Unit: "MB",
		Peer: swarmKitName, PeerValue: peer.Megabytes,
		Counted: "largest resident set of a process that holds nodes and requests and decides; " + counted,
	}))
}

// apart runs a measurement in a process of its own, whose memory it tells too.
func (s shape) apart(ctx context.Context, who string) (r millionResult, err error) {
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, self, millionArg, who)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("read its answer: %w", err)
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return r, errors.New("the system does not tell how much memory a process used")
	}
	r.Megabytes = float64(usage.Maxrss) / 1000
	return r, nil
}
