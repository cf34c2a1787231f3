package starting

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tutti-run/tutti/bench/internal/report"
)

// stay says how much stands, and for how long it is looked at.
type stay struct {
	idle    time.Duration // of a node without containers, before it is looked at
	looked  time.Duration // for so long
	running int           // containers whose cost is compared
	watched time.Duration // while they run
	many    int           // containers with which a node is still to answer
	asked   int           // times
}

func stayOf(brief bool) stay {
	if brief {
		return stay{idle: 20 * time.Second, looked: 10 * time.Second, running: 20, watched: 5 * time.Second, many: 40, asked: 10}
	}
	return stay{idle: 10 * time.Minute, looked: 2 * time.Minute, running: 100, watched: 20 * time.Second, many: 500, asked: 40}
}

// standing is what was found.
type standing struct {
	pss, cpu float64 // beside each container: MB, and millionths of a core
}

const (
	megabyte  = 1e6
	clockTick = 10 * time.Millisecond // of /proc, on every platform that Go knows
)

// process is one of those in this process namespace.
type process struct {
	pid  int
	args []string
}

func processes() []process {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil // the pattern is constant
	}
	var out []process
	for _, file := range files {
		text, err := os.ReadFile(file)
		pid, perr := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil && perr == nil && len(text) > 0 {
			out = append(out, process{pid, strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")})
		}
	}
	return out
}

// which chooses processes: those beside tasks, or Tutti's others, which are a node's own.
func which(beside bool) []process {
	var out []process
	for _, p := range processes() {
		if len(p.args) < 2 || !strings.HasPrefix(filepath.Base(p.args[0]), "tutti") {
			continue
		}
		if strings.HasSuffix(p.args[1], "supervise") == beside {
			out = append(out, p)
		}
	}
	return out
}

func shims() []process {
	var out []process
	for _, p := range processes() {
		if strings.Contains(p.args[0], "containerd-shim") {
			out = append(out, p)
		}
	}
	return out
}

// field reads a line of a file of /proc that is counted in kB, in bytes.
func field(file, name string) float64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0 // it has ended
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name {
			kib, _ := strconv.ParseFloat(f[1], 64) // the kernel's own
			return kib * 1024
		}
	}
	return 0
}

// costs adds up what processes take: proportional and resident memory in bytes, and processor time so far.
func costs(list []process) (pss, rss float64, cpu time.Duration) {
	for _, p := range list {
		dir := "/proc/" + strconv.Itoa(p.pid)
		pss += field(dir+"/smaps_rollup", "Pss:")
		rss += field(dir+"/status", "VmRSS:")
		text, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		if f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:])); len(f) > 12 {
			user, _ := strconv.ParseInt(f[11], 10, 64)
			system, _ := strconv.ParseInt(f[12], 10, 64)
			cpu += time.Duration(user+system) * clockTick
		}
	}
	return pss, rss, cpu
}

// share is how much of a core processes use for a while.
func share(ctx context.Context, list func() []process, during time.Duration) (float64, error) {
	_, _, before := costs(list())
	began := time.Now()
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(during):
	}
	_, _, after := costs(list())
	return float64(after-before) / float64(time.Since(began)), nil
}

// tuttiStanding runs a node, idle and with containers, and adds what no peer has.
func tuttiStanding(ctx context.Context, sheet *report.Sheet, j job) (s standing, err error) {
	y := stayOf(j.Brief)
	n, err := startNode(ctx, j)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	sheet.Say("a node of Tutti without containers, for %s", y.idle)
	own := func() []process { return which(false) }
	select {
	case <-ctx.Done():
		return s, ctx.Err()
	case <-time.After(y.idle):
	}
	idle, err := share(ctx, own, y.looked)
	if err != nil {
		return s, err
	}
	_, rss, _ := costs(own())
	counted := fmt.Sprintf("a cluster of one after %s without containers: all processes of Tutti, the responders for names and requests included", y.idle)
	_, server, _ := costs([]process{{pid: n.cmd.Process.Pid}})
	err = errors.Join(
		sheet.AddAlone("standing/idle/rss", rss/megabyte, "MB", counted+"; budget 64"),
		sheet.AddAlone("standing/idle/rss-of-the-node", server/megabyte, "MB", "the node's process alone of that"),
		sheet.AddAlone("standing/idle/cpu", max(idle*100, 0.001), "% of a core", fmt.Sprintf("%s, over %s; budget 1", counted, y.looked)),
	)
	if err != nil {
		return s, err
	}
	if err := n.importImage(ctx, j.Dir); err != nil {
		return s, fmt.Errorf("import the image: %w", err)
	}
	sheet.Say("%d containers by Tutti", y.running)
	if err := n.deploy(ctx, j, y.running); err != nil {
		return s, err
	}
	beside := func() []process { return which(true) }
	used, err := share(ctx, beside, y.watched)
	if err != nil {
		return s, err
	}
	pss, _, _ := costs(beside())
	s = standing{pss: pss / megabyte / float64(y.running), cpu: used * 1e6 / float64(y.running)}
	sheet.Say("%d containers by Tutti", y.many)
	if err := n.deploy(ctx, j, y.many); err != nil {
		return s, err
	}
	var took []time.Duration
	for range y.asked {
		began := time.Now()
		ps := exec.CommandContext(ctx, j.Tutti, "ps", "--run-dir", n.config.RunDir, "--data-dir", n.config.DataDir)
		if out, err := ps.CombinedOutput(); err != nil {
			return s, fmt.Errorf("tutti ps: %w\n%s", err, out)
		}
		took = append(took, time.Since(began))
	}
	busy, err := share(ctx, own, y.watched)
	if err != nil {
		return s, err
	}
	pss, _, _ = costs(beside())
	_, server, _ = costs([]process{{pid: n.cmd.Process.Pid}})
	_, rss, _ = costs(own())
	counted = fmt.Sprintf("%d containers run on one node", y.many)
	err = errors.Join(
		sheet.AddAlone(fmt.Sprintf("standing/%d/ps/p50", y.many), report.Percentile(took, 0.5), "ms", counted+"; `tutti ps`, from the start of the command to its end; budget 100"),
		sheet.AddAlone(fmt.Sprintf("standing/%d/ps/p99", y.many), report.Percentile(took, 0.99), "ms", "the same"),
		sheet.AddAlone(fmt.Sprintf("standing/%d/rss-of-the-node", y.many), server/megabyte, "MB", counted+"; the node's process; budget 300"),
		sheet.AddAlone(fmt.Sprintf("standing/%d/rss", y.many), rss/megabyte, "MB", counted+"; all processes of Tutti but those beside tasks"),
		sheet.AddAlone(fmt.Sprintf("standing/%d/beside-tasks/pss", y.many), pss/megabyte, "MB", counted+"; all the supervisors together"),
		sheet.AddAlone(fmt.Sprintf("standing/%d/cpu", y.many), max(busy*100, 0.001), "% of a core", counted+"; all processes of Tutti but those beside tasks"),
	)
	return s, errors.Join(err, n.client.Remove(ctx, "bench", true))
}

// deploy runs so many containers, each a service's replica, and returns once all do.
func (n *tuttiNode) deploy(ctx context.Context, j job, replicas int) error {
	file := filepath.Join(j.Dir, "compose.yaml")
	text := "services:\n  web:\n    image: " + imageName + "\n    command: [\"sleep\"]\n    deploy:\n      replicas: " + strconv.Itoa(replicas) + "\n" +
		"networks:\n  default:\n    ipam: {config: [{subnet: 10.210.8.0/21}]}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, j.Tutti, "deploy", "-d", "-f", file, "bench", "--run-dir", n.config.RunDir, "--data-dir", n.config.DataDir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("deploy: %w\n%s", err, out)
	}
	return await(ctx, replicas, func() (int, error) { return n.running(ctx) })
}

// compareStanding runs as many containers by Docker Engine.
func compareStanding(ctx context.Context, sheet *report.Sheet, j job, own standing, e *engine) error {
	y := stayOf(j.Brief)
	sheet.Say("%d containers by Docker Engine", y.running)
	for i := range y.running {
		name := "standing-" + strconv.Itoa(i)
		if err := e.create(ctx, name, "sleep"); err != nil {
			return err
		}
		if err := e.call(ctx, http.MethodPost, "/containers/"+name+"/start", nil, nil); err != nil {
			return err
		}
	}
	used, err := share(ctx, shims, y.watched)
	if err != nil {
		return err
	}
	pss, _, _ := costs(shims())
	counted := fmt.Sprintf("%d containers that do nothing; what runs beside each: Tutti's supervisor, containerd's shim", y.running)
	add := func(name, unit string, own, peer float64) error {
		return sheet.Add(report.Row{Name: name, Value: max(own, 0.001), Unit: unit, Peer: e.name, PeerValue: max(peer, 0.001), Counted: counted})
	}
	return errors.Join(
		add("standing/beside-a-container/pss", "MB", own.pss, pss/megabyte/float64(y.running)),
		add("standing/beside-a-container/cpu", "millionths of a core", own.cpu, used*1e6/float64(y.running)),
	)
}
