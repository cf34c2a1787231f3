package placing

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/tutti-run/tutti/bench/internal/report"
)

// kubernetes is the scheduler of Kubernetes as a library, in a program of its own: it is built in the
// module kube/, as this one should not need Kubernetes.
type kubernetes struct{ program string }

// buildKubernetes builds the program, which takes minutes where nothing of Kubernetes was built before.
func buildKubernetes(ctx context.Context) (k kubernetes, err error) {
	dir, err := os.MkdirTemp("", "tutti-bench-")
	if err != nil {
		return k, err
	}
	k.program = filepath.Join(dir, "schedulerpeer")
	out, err := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join("..", "kube"), "-o", k.program, "./internal/schedulerpeer").CombinedOutput()
	if err != nil {
		k.remove()
		return k, fmt.Errorf("build the scheduler of Kubernetes: %w: %s", err, bytes.TrimSpace(out))
	}
	return k, nil
}

func (k kubernetes) remove() { _ = os.RemoveAll(filepath.Dir(k.program)) } // nothing is lost with it

// takes reports whether Kubernetes' scheduler is asked about a shape.
func (k kubernetes) takes(s shape) bool {
	switch s.kind {
	case basic, spread, constrained, apart, even, near:
		return k.program != "" && s.nodes <= 5_000 && s.workloads <= 10
	}
	return false
}

// kubernetesPods is how many pods its scheduler is given at most: it does not come so far.
const kubernetesPods = 20_000

// compareKubernetes lets Kubernetes decide as much of a shape as it can in a while, beside Tutti's
// rate.
func (r *run) compareKubernetes(ctx context.Context, s shape, rate float64) error {
	r.sheet.Say("the same by Kubernetes' scheduler")
	given := s.fewer(min(s.instances, kubernetesPods))
	asked, err := json.Marshal(map[string]any{
		"Kind": s.kind, "Nodes": given.nodes, "Workloads": given.workloads, "Instances": given.instances,
		"NodeMilliCPUs": int64(nodeNanoCPUs / 1e6), "NodeMemory": int64(nodeMemory), "MilliCPUs": s.cpusOf() / 1e6, "Memory": int64(instanceMemory),
		"Zones": zones, "SSDEvery": ssdEvery, "Patience": 2 * time.Second,
	})
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, r.kubernetes.program)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(asked), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("kubernetes' scheduler: %w", err)
	}
	var got struct {
		Instances int     `json:"instances"`
		Seconds   float64 `json:"seconds"`
		Version   string  `json:"version"`
	}
	if err := json.Unmarshal(out, &got); err != nil {
		return fmt.Errorf("read the answer of Kubernetes' scheduler: %w", err)
	}
	return r.sheet.Add(report.Row{
		Name: "schedule/" + s.String(), Value: rate, Unit: "placements/s",
		Peer: "Kubernetes scheduler " + got.Version, PeerValue: float64(got.Instances) / got.Seconds,
		Counted: fmt.Sprintf("Tutti: decided by schedule.Place, nothing committed; Kubernetes: the first %d of the pods decided by its default profile, which looks at a sample of the nodes, and assumed in its cache, without API server and queue; processor time of one core",
			got.Instances),
	})
}
