//go:build e2e

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	shopURL   = "http://127.0.0.1:8080/"
	composeIn = "../../examples/shop/"
)

var (
	program string // the built tutti
	dataDir string
	runDir  = "/run/tutti-e2e"
	// before is what the machine had before anything was brought up.
	before inventory
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) (code int) {
	fail := func(what string, err error) int {
		fmt.Fprintf(os.Stderr, "e2e: %s: %v\n", what, err)
		return 1
	}
	if os.Geteuid() != 0 {
		return fail("start", fmt.Errorf("containers and networks need root"))
	}
	var err error
	if program, err = filepath.Abs("../../bin/tutti"); err != nil {
		return fail("find bin/tutti", err)
	}
	if _, err := os.Stat(program); err != nil {
		return fail("find bin/tutti", fmt.Errorf("run `make build` first: %w", err))
	}
	if _, err := os.Stat("/sys/class/net/tutti-br"); err == nil {
		return fail("start", fmt.Errorf("virtual hosts run on this machine already; take them down first"))
	}
	if dataDir, err = os.MkdirTemp("/var/tmp", "tutti-e2e-"); err != nil {
		return fail("make a data directory", err)
	}
	defer os.RemoveAll(dataDir)
	if before, err = takeInventory(); err != nil {
		return fail("take stock", err)
	}
	defer func() {
		if code != 0 {
			printLogs()
		}
		if out, err := run("down", "--purge"); err != nil {
			code = fail("take the cluster down", fmt.Errorf("%w\n%s", err, out))
		}
	}()
	began := time.Now()
	hosts := cmp.Or(os.Getenv("E2E_HOSTS"), "3") // the tests of the network alone run on other numbers, too
	if out, err := run("up", "-d", "--hosts", hosts); err != nil {
		return fail("bring up "+hosts+" hosts", fmt.Errorf("%w\n%s", err, out))
	}
	fmt.Printf("e2e: %s hosts up after %s\n", hosts, time.Since(began).Round(time.Millisecond))
	began = time.Now()
	if err := importImages(); err != nil {
		return fail("make and import images", err)
	}
	fmt.Printf("e2e: images made and imported after %s\n", time.Since(began).Round(time.Millisecond))
	return m.Run()
}

func importImages() error {
	images := exec.Command("../../scripts/images.sh", "--import")
	images.Env = environment("TUTTI=" + program)
	if out, err := images.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// printLogs shows the end of what the hosts' nodes wrote.
func printLogs() {
	logs, err := filepath.Glob(filepath.Join(dataDir, "hosts", "*", "tutti.log"))
	if err != nil {
		return // the pattern is constant
	}
	logs = append(logs, filepath.Join(dataDir, "hosts", "ports.log"))
	for _, path := range logs {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(data)), "\n")
		fmt.Printf("--- the last lines of %s\n%s\n", path, strings.Join(lines[max(0, len(lines)-80):], "\n"))
	}
}

func environment(more ...string) []string {
	return append(append(os.Environ(), "TUTTI_DATA_DIR="+dataDir, "TUTTI_RUN_DIR="+runDir), more...)
}

// command is one of tutti, which has five minutes.
func command(args ...string) (cmd *exec.Cmd, cancel func()) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	cmd = exec.CommandContext(ctx, program, args...)
	cmd.Env = environment()
	return cmd, cancel
}

// run runs tutti and returns what it printed, standard error included.
func run(args ...string) (string, error) {
	cmd, cancel := command(args...)
	defer cancel()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// tutti runs a command that must succeed.
func tutti(t *testing.T, args ...string) string {
	t.Helper()
	out, err := run(args...)
	if err != nil {
		t.Fatalf("tutti %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// refused runs a command that must fail, with a sentence that says each of these.
func refused(t *testing.T, says []string, args ...string) string {
	t.Helper()
	out, err := run(args...)
	if err == nil {
		t.Fatalf("tutti %s succeeded:\n%s", strings.Join(args, " "), out)
	}
	for _, s := range says {
		if !strings.Contains(out, s) {
			t.Errorf("tutti %s does not say %q:\n%s", strings.Join(args, " "), s, out)
		}
	}
	return out
}

// output runs a command and returns what it prints, without what it remarks beside it.
func output(args ...string) ([]byte, error) {
	cmd, cancel := command(args...)
	defer cancel()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("tutti %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return out, nil
}

// query runs a command with JSON output.
func query[T any](t *testing.T, args ...string) T {
	t.Helper()
	v, err := tryQuery[T](args...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func tryQuery[T any](args ...string) (v T, err error) {
	out, err := output(append(args, "-o", "json")...)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(out, &v); err != nil {
		return v, fmt.Errorf("tutti %s: %w:\n%s", strings.Join(args, " "), err, out)
	}
	return v, nil
}

// instance is what the tests read of `tutti ps`.
type instance struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Node     string `json:"node"`
	Workload string `json:"workload"`
	Desired  string `json:"desired"`
	Current  bool   `json:"current"`
	Status   struct {
		State    string `json:"state"`
		Ready    bool   `json:"ready"`
		Restarts int    `json:"restarts"`
		Message  string `json:"message"`
		Tasks    []struct {
			Run      int    `json:"run"`
			PID      int    `json:"pid"`
			State    string `json:"state"`
			ExitCode int    `json:"exitCode"`
		} `json:"tasks"`
	} `json:"status"`
}

type hostState struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Running bool   `json:"running"`
	PID     int    `json:"pid"`
}

type nodeState struct {
	Name   string `json:"name"`
	Leader bool   `json:"leader"`
	Status struct {
		State string `json:"state"`
	} `json:"status"`
}

func instances(t *testing.T) []instance { t.Helper(); return query[[]instance](t, "ps") }

func hostsOf(list []instance, workload string) []string {
	var out []string
	for _, i := range list {
		if i.Workload == workload && i.Status.Ready {
			out = append(out, i.Node)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// eventually waits until check finds nothing wrong.
func eventually(t *testing.T, patience time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		err := check()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > patience {
			t.Fatalf("%s: not after %s: %v\n%s", what, patience, err, diagnosis())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func diagnosis() string {
	var b strings.Builder
	for _, args := range [][]string{{"status"}, {"ps"}, {"nodes"}} {
		out, err := run(args...)
		fmt.Fprintf(&b, "--- tutti %s (%v)\n%s", args[0], err, out)
	}
	return b.String()
}

// allWell waits until the cluster says so.
func allWell(t *testing.T, patience time.Duration) time.Duration {
	t.Helper()
	return eventually(t, patience, "the cluster is well", func() error {
		out, err := run("status")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// removeIfFailed takes an application away when the test fails before it did so itself, so that the
// tests after it find what they would have found.
func removeIfFailed(t *testing.T, app string) {
	t.Helper()
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		t.Log(diagnosis())
		if out, err := run("rm", "--volumes", app); err != nil {
			t.Logf("remove %s: %v\n%s", app, err, out)
		}
	})
}

// shopper is a person with a browser at one of the shop's addresses.
type shopper struct {
	t    *testing.T
	base string
	http *http.Client
}

func newShopper(t *testing.T, base string) *shopper {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &shopper{t: t, base: base, http: &http.Client{Jar: jar, Timeout: 10 * time.Second}}
}

func (s *shopper) read(resp *http.Response, err error) string {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%s answered %s: %s", resp.Request.URL, resp.Status, body)
	}
	return string(body)
}

func (s *shopper) get(path string) string { s.t.Helper(); return s.read(s.http.Get(s.base + path)) }

func (s *shopper) post(path string, form url.Values) string {
	s.t.Helper()
	return s.read(s.http.PostForm(s.base+path, form))
}
