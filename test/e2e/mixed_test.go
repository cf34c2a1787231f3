//go:build e2e

package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// mixed is an application of a container and plain processes of the hosts.
const mixed = `
services:
  box:
    image: pair:v1
    environment: {NAME: box, PEER: "http://plain:8080"}
    ports: ["18090:8080"]
    healthcheck: {test: [CMD, /pair, check], interval: 1s}
  plain:
    command: ["./pair"]
    user: "65534:65534"
    environment: {NAME: plain, PEER: "http://box:8080"}
    networks: [default]
    ports: ["18091:8080"]
    healthcheck: {test: [CMD, ./pair, check], interval: 1s}
    stop_grace_period: 5s
    deploy:
      replicas: 3
      resources: {limits: {memory: 64M, pids: 40}}
    x-tutti:
      process: true
      artifacts:
        - {source: "file://%s", sha256: %x}
  bare:
    command: [sh, -c, 'echo on $$(readlink /proc/self/ns/net); echo oops >&2; exec sleep 1000']
    x-tutti: {process: true}
`

func get(url string) (string, error) {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return string(text), err
}

// pairImage builds the program, and makes an image and an archive of it.
func pairImage(t *testing.T) (archive string, digest [32]byte) {
	t.Helper()
	dir := filepath.Join(dataDir, "pair")
	if err := os.MkdirAll(filepath.Join(dir, "root", "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "root", "pair"), "./testdata/pair")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "root", "data", "hello"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "image.tar")
	tutti(t, "image", "pack", "--name", "pair:v1", "--dir", filepath.Join(dir, "root"), "--entrypoint", "/pair", "-o", image)
	tutti(t, "image", "import", image)
	archive = filepath.Join(dir, "pair.tar.gz")
	if out, err := exec.Command("tar", "-C", filepath.Join(dir, "root"), "-czf", archive, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	return archive, sha256.Sum256(data)
}

// TestContainersAndProcesses has a container and processes of the hosts talk to each other, and treats
// both alike.
func TestContainersAndProcesses(t *testing.T) {
	archive, digest := pairImage(t)
	file := filepath.Join(dataDir, "mixed.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, mixed, archive, digest), 0o644); err != nil {
		t.Fatal(err)
	}
	removeIfFailed(t, "mixed")
	tutti(t, "deploy", "-d", "-f", file, "mixed")
	allWell(t, 30*time.Second)
	for url, want := range map[string]string{
		"http://127.0.0.1:18090/":     `box uid 0 says "hello" <nil>`,
		"http://127.0.0.1:18090/peer": `plain uid 65534 says "hello" <nil>`,
		"http://127.0.0.1:18091/":     `plain uid 65534 says "hello" <nil>`,
		"http://127.0.0.1:18091/peer": `box uid 0 says "hello" <nil>`,
	} {
		eventually(t, 10*time.Second, url, func() error {
			got, err := get(url)
			if err == nil && got != want {
				err = fmt.Errorf("got %q, want %q", got, want)
			}
			return err
		})
	}
	if hosts := hostsOf(instances(t), "mixed/plain"); len(hosts) != 3 {
		t.Errorf("three processes run on %v", hosts)
	}
	if out := tutti(t, "logs", "mixed/plain.1"); !strings.Contains(out, "plain serves") {
		t.Errorf("logs say %q", out)
	}
	if out := tutti(t, "logs", "mixed/bare.1"); !strings.Contains(out, "on net:[") || !strings.Contains(out, "oops") {
		t.Errorf("logs say %q", out)
	}
	if out := tutti(t, "exec", "mixed/plain.1", "sh", "-c", "id -u; cat data/hello"); !strings.Contains(out, "65534\nhello") {
		t.Errorf("exec says %q", out)
	}
	if out := tutti(t, "explain", "mixed/plain"); !strings.Contains(out, "plain") {
		t.Errorf("explain says %q", out)
	}

	// Both are looked at, and held, alike.
	for _, ref := range []string{"mixed/box.1", "mixed/plain.1"} {
		if out := tutti(t, "stats", ref); !strings.Contains(out, ref) {
			t.Errorf("stats say %q", out)
		}
		if out := tutti(t, "top", ref); !strings.Contains(out, "pair") {
			t.Errorf("top says %q", out)
		}
		tutti(t, "pause", ref)
		eventually(t, 5*time.Second, ref+" is paused", func() error {
			if out := tutti(t, "ps", "mixed"); !strings.Contains(out, "paused") {
				return errors.New(out)
			}
			return nil
		})
		refused(t, []string{"is paused"}, "exec", ref, "/pair", "check")
		tutti(t, "unpause", ref)
		allWell(t, 10*time.Second)
	}

	// The node's own process dies: the processes go on, and are found again.
	i := slices.IndexFunc(instances(t), func(i instance) bool { return i.Workload == "mixed/plain" })
	one := instances(t)[i]
	nodeProcessRestarts(t, one.Node)
	eventually(t, 30*time.Second, one.Node+" is reached again", func() error { // for a moment the cluster has not noticed that it was away
		_, err := run("exec", "mixed/"+one.Name, "true")
		return err
	})
	allWell(t, 30*time.Second)
	again := instances(t)
	j := slices.IndexFunc(again, func(i instance) bool { return i.ID == one.ID })
	if j < 0 || again[j].Status.Tasks[0].PID != one.Status.Tasks[0].PID || again[j].Status.Restarts != 0 {
		t.Errorf("the process was %+v, and is %+v", one, again)
	}
	// One that is killed is started again.
	tutti(t, "exec", "mixed/"+one.Name, "sh", "-c", fmt.Sprint("kill -9 ", one.Status.Tasks[0].PID))
	eventually(t, 20*time.Second, "the killed process runs again", func() error {
		for _, i := range instances(t) {
			if i.ID == one.ID && i.Status.Ready && i.Status.Tasks[0].Run > 1 {
				return nil
			}
		}
		return errors.New("not yet")
	})
	tutti(t, "rm", "mixed")
	eventually(t, 20*time.Second, "nothing is left of the processes", func() error {
		if out, err := exec.Command("pgrep", "-x", "pair").Output(); err == nil {
			return fmt.Errorf("processes %s are left", out)
		}
		left, err := filepath.Glob(filepath.Join(dataDir, "hosts", "*", "*", "sandboxes", "*"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%v are left", left)
		}
		return err
	})
	allWell(t, 10*time.Second)
}

// burner is a service whose instances use all processors that they may have while a file exists.
const burner = `
services:
  burner:
    command: [sh, -c, 'while :; do [ -e %s ] || sleep 0.2; done']
    deploy:
      resources: {limits: {cpus: "0.2"}}
    x-tutti:
      process: true
      autoscale: {max: 3, cpu: 50, down_after: 10s}
`

// TestAServiceFollowsItsLoad has the cluster add instances under load, and take them away afterwards.
func TestAServiceFollowsItsLoad(t *testing.T) {
	load, file := filepath.Join(dataDir, "load"), filepath.Join(dataDir, "burner.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, burner, load), 0o644); err != nil {
		t.Fatal(err)
	}
	removeIfFailed(t, "scaled")
	tutti(t, "deploy", "-f", file, "scaled")
	run := func(count int, when string) {
		took := eventually(t, 90*time.Second, fmt.Sprintf("%d instances run %s", count, when), func() error {
			ready := 0
			for _, i := range instances(t) {
				if i.Workload == "scaled/burner" && i.Status.Ready {
					ready++
				}
			}
			if ready != count {
				return fmt.Errorf("%d do", ready)
			}
			return nil
		})
		t.Logf("%d instances %s after %s", count, when, took.Round(100*time.Millisecond))
	}
	run(1, "at first")
	if err := os.WriteFile(load, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	run(3, "under load")
	if out := tutti(t, "events", "--since", "5m"); !strings.Contains(out, "cpu is at") {
		t.Errorf("events say %q", out)
	}
	if err := os.Remove(load); err != nil {
		t.Fatal(err)
	}
	run(1, "at rest")
	tutti(t, "rm", "scaled")
	allWell(t, 20*time.Second)
}
