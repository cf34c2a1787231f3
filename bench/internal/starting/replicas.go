package starting

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/node"
)

const (
	// lookEvery is how often each side is asked how many replicas run.
	lookEvery = 100 * time.Millisecond
	patience  = 3 * time.Minute
)

// compareReplicas measures a service until all its replicas run: by a Tutti node that is a whole
// cluster, then by Docker Engine as the only member of a swarm.
func compareReplicas(ctx context.Context, sheet *report.Sheet, j job, e *engine) error {
	replicas := 100
	if j.Brief {
		replicas = 20
	}
	sheet.Say("a service of %d replicas by Tutti", replicas)
	own, err := tuttiReplicas(ctx, j, replicas)
	if err != nil {
		return fmt.Errorf("replicas by Tutti: %w", err)
	}
	sheet.Say("all run after %s; the same by Docker Swarm", own.Round(time.Millisecond))
	peer, err := e.replicas(ctx, replicas)
	if err != nil {
		return fmt.Errorf("replicas by Docker Swarm: %w", err)
	}
	return sheet.Add(report.Row{
		Name: fmt.Sprintf("replicas/%d/all-running", replicas), Value: own.Seconds(), Unit: "s",
		Peer: e.name + " (Swarm)", PeerValue: peer.Seconds(),
		Counted: "from the request until every replica is reported to run, on one host, the image being there; " +
			"Tutti: `tutti deploy` of a Compose file, with a network, a virtual IP and addresses; Swarm: service create through its API, default bridge",
	})
}

// tuttiReplicas runs a node, deploys the service, and ends all of it.
func tuttiReplicas(ctx context.Context, j job, replicas int) (took time.Duration, err error) {
	n, err := startNode(ctx, j)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	if err := n.importImage(ctx, j.Dir); err != nil {
		return 0, fmt.Errorf("import the image: %w", err)
	}
	file := filepath.Join(j.Dir, "compose.yaml")
	text := "services:\n  web:\n    image: " + imageName + "\n    command: [\"sleep\"]\n    deploy:\n      replicas: " + strconv.Itoa(replicas) + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return 0, err
	}
	began := time.Now()
	deploy := exec.CommandContext(ctx, j.Tutti, "deploy", "-d", "-f", file, "bench", "--run-dir", n.config.RunDir, "--data-dir", n.config.DataDir)
	if out, err := deploy.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("deploy: %w\n%s", err, out)
	}
	err = await(ctx, replicas, func() (int, error) { return n.running(ctx) })
	took = time.Since(began)
	return took, errors.Join(err, n.client.Remove(ctx, "bench", true))
}

// await looks until as many run as are wanted.
func await(ctx context.Context, wanted int, running func() (int, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		have, err := running()
		if err != nil {
			return err
		}
		if have >= wanted {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s, %d of %d run", patience, have, wanted)
		case <-time.After(lookEvery):
		}
	}
}

// tuttiNode is a cluster of one node, a process of the real program.
type tuttiNode struct {
	config node.Config
	cmd    *exec.Cmd
	log    string
	client *native.Client
}

// startNode returns once the node is ready.
func startNode(ctx context.Context, j job) (*tuttiNode, error) {
	data := filepath.Join(j.Dir, "node")
	n := &tuttiNode{
		config: node.Config{ // as `tutti up` makes it
			Name: "bench", DataDir: data, RunDir: "/run/bench-tutti", Address: hostAddress, Cgroup: cgroupParent + "/tutti",
			MarathonListen: node.DefaultMarathonListen, RegistryListen: node.DefaultRegistryListen,
		},
		log: filepath.Join(j.Dir, "node.log"),
	}
	text, err := json.Marshal(n.config)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(j.Dir, "node.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(n.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	n.cmd = exec.Command(j.Tutti, "serve", file)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err := n.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a node: %w", err)
	}
	n.client = native.Dial(node.Socket(n.config.RunDir))
	if err := n.ready(ctx); err != nil {
		return nil, errors.Join(err, n.stop())
	}
	return n, nil
}

func (n *tuttiNode) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		st, err := n.client.Status(ctx)
		if err == nil && st.NodesReady == 1 {
			return nil
		}
		select {
		case <-ctx.Done():
			said, rerr := os.ReadFile(n.log)
			return errors.Join(fmt.Errorf("the node is not ready: %w\n%s", err, said[max(0, len(said)-2000):]), rerr)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (n *tuttiNode) importImage(ctx context.Context, dir string) error {
	path, err := archive(dir)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = n.client.ImportImage(ctx, f, "")
	return err
}

func (n *tuttiNode) running(ctx context.Context) (int, error) {
	list, err := n.client.Instances(ctx, native.InstanceChoice{})
	count := 0
	for i := range list {
		if list[i].Status.State == model.InstanceRunning {
			count++
		}
	}
	return count, err
}

// stop waits until everything of the service has gone, so that it is no burden to who follows, and
// ends the node.
func (n *tuttiNode) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		list, err := n.client.Instances(ctx, native.InstanceChoice{})
		if err != nil || len(list) == 0 {
			break
		}
		time.Sleep(lookEvery)
	}
	n.client.Close()
	err := n.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(20*time.Second, func() { n.cmd.Process.Kill() })
	defer kill.Stop()
	n.cmd.Wait() // how it ends is of no interest
	return err
}

// replicas makes the Engine a swarm and runs a service in it.
func (e *engine) replicas(ctx context.Context, replicas int) (time.Duration, error) {
	type m map[string]any
	if err := e.call(ctx, http.MethodPost, "/swarm/init", m{"ListenAddr": hostAddress + ":2377", "AdvertiseAddr": hostAddress}, nil); err != nil {
		return 0, err
	}
	service := m{
		"Name":         "bench",
		"TaskTemplate": m{"ContainerSpec": m{"Image": imageName, "Args": []string{"sleep"}}},
		"Mode":         m{"Replicated": m{"Replicas": replicas}},
	}
	began := time.Now()
	if err := e.call(ctx, http.MethodPost, "/services/create", service, nil); err != nil {
		return 0, err
	}
	err := await(ctx, replicas, func() (int, error) { return e.running(ctx) })
	return time.Since(began), err
}

func (e *engine) running(ctx context.Context) (int, error) {
	var tasks []struct{ Status struct{ State string } }
	if err := e.call(ctx, http.MethodGet, "/tasks", nil, &tasks); err != nil {
		return 0, err
	}
	count := 0
	for _, t := range tasks {
		if t.Status.State == "running" {
			count++
		}
	}
	return count, nil
}
