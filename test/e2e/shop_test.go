//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestShop is the life of the example application, in the order in which a person would try it.
// A step builds on those before it.
func TestShop(t *testing.T) {
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Deploy", deployShop},
		{"EveryHostServesIt", everyHostServes},
		{"ApartByNetwork", databaseIsApart},
		{"OrderSurvivesRestarts", orderSurvivesRestarts},
		{"WrongInputIsRefused", wrongInput},
		{"RollingUpdate", rollingUpdate},
		{"BadUpdateRollsBack", badUpdate},
		{"NodeProcessKilled", nodeProcessKilled},
		{"HostKilled", hostKilled},
		{"LeaderKilled", leaderKilled},
		{"HostCutOff", hostCut},
		{"EverythingKilledAndBack", everythingKilled},
		{"Remove", removeShop},
	} {
		if !t.Run(step.name, step.run) {
			t.Fatalf("step %s failed: those after it build on it\n%s", step.name, diagnosis())
		}
	}
}

func deployShop(t *testing.T) {
	began := time.Now()
	out := tutti(t, "deploy", "-f", composeIn+"compose.yaml", "shop")
	t.Logf("deployed after %s", time.Since(began).Round(10*time.Millisecond))
	if !strings.Contains(out, "8 workloads") {
		t.Errorf("deploy does not sum up:\n%s", out)
	}
	allWell(t, 10*time.Second)
	again := tutti(t, "deploy", "-f", composeIn+"compose.yaml", "shop")
	if strings.Contains(again, "created") || strings.Contains(again, "updated") {
		t.Errorf("the same file again changes something:\n%s", again)
	}
}

func everyHostServes(t *testing.T) {
	used := map[string]bool{}
	for _, i := range instances(t) {
		used[i.Node] = true
	}
	for _, h := range query[[]hostState](t, "host", "ls") {
		if !used[h.Name] {
			t.Errorf("%s runs nothing", h.Name)
		}
		page := newShopper(t, "http://"+h.Address+":8080").get("/")
		if !strings.Contains(page, "Tutti Music") {
			t.Errorf("%s answers with another page:\n%s", h.Name, page)
		}
	}
	newShopper(t, strings.TrimSuffix(shopURL, "/")).get("/")
}

// databaseIsApart: the front end finds neither the database's name nor its address.
func databaseIsApart(t *testing.T) {
	var address string
	for _, i := range query[[]struct {
		Name      string                `json:"name"`
		Addresses []struct{ IP string } `json:"addresses"`
	}](t, "ps") {
		if strings.HasPrefix(i.Name, "postgres.") {
			address = i.Addresses[0].IP
		}
	}
	if address == "" {
		t.Fatal("postgres has no address")
	}
	// What orders reaches, web does not. Neither image has more than its one program, so the
	// database's own client is used, in the network of the instance asked about.
	probe := func(instanceName string) error {
		pid := mainPID(t, instanceName)
		return dialFrom(pid, address+":5432")
	}
	if err := probe("orders.1"); err != nil {
		t.Errorf("orders does not reach the database: %v", err)
	}
	if err := probe("web.1"); err == nil {
		t.Error("web reaches the database, which is on another network")
	}
}

func orderSurvivesRestarts(t *testing.T) {
	s := newShopper(t, strings.TrimSuffix(shopURL, "/"))
	sku := regexp.MustCompile(`name="sku" value="([^"]+)"`).FindStringSubmatch(s.get("/"))
	if sku == nil {
		t.Fatal("the front page offers nothing")
	}
	s.post("/cart", url.Values{"sku": {sku[1]}, "quantity": {"2"}, "add": {"1"}})
	key := regexp.MustCompile(`name="key" value="([^"]+)"`).FindStringSubmatch(s.get("/cart"))
	if key == nil {
		t.Fatal("the cart has no checkout")
	}
	name := "Clara " + key[1][:6]
	s.post("/checkout", url.Values{"key": {key[1]}, "name": {name}})
	inDatabase := func() error {
		out, err := run("exec", "shop/postgres", "psql", "-U", "shop", "-tAc", "select count(*) from orders where name = '"+name+"'")
		if err != nil || strings.TrimSpace(out) != "1" {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	}
	eventually(t, 10*time.Second, "the order is in the database", inDatabase)
	before := runs(t)
	for _, w := range []string{"web", "catalogue", "cart", "orders", "worker", "redis", "postgres"} {
		tutti(t, "restart", "shop/"+w)
	}
	took := eventually(t, 2*time.Minute, "every container is another one", func() error {
		for id := range runs(t) {
			if before[id] {
				return fmt.Errorf("instance %s is still there", id)
			}
		}
		return nil
	})
	allWell(t, 30*time.Second)
	t.Logf("all containers replaced after %s", took.Round(100*time.Millisecond))
	eventually(t, 20*time.Second, "the order is in the database", inDatabase)
	if page := s.get("/orders"); !strings.Contains(page, name) && !strings.Contains(page, "Order") {
		t.Errorf("the shopper does not see the order:\n%s", page)
	}
}

// runs returns the IDs of all instances that run a service.
func runs(t *testing.T) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	for _, i := range instances(t) {
		if i.Status.State != "completed" && i.Status.State != "failed" && i.Status.State != "lost" && i.Workload != "shop/migrate" {
			out[i.ID] = true
		}
	}
	return out
}

func wrongInput(t *testing.T) {
	before := runs(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	unknown := write("unknown.yaml", "services:\n  web:\n    image: redis:7\n    replicsa: 3\n")
	refused(t, []string{"unknown.yaml:4", "replicsa"}, "deploy", "-f", unknown, "wrong")
	missing := write("missing.yaml", "services:\n  web:\n    image: no-such-image:1\n")
	refused(t, []string{"web", "no-such-image"}, "deploy", "-f", missing, "wrong")
	impossible := write("impossible.yaml", "services:\n  web:\n    image: redis:7\n    deploy:\n      placement:\n        constraints: [node.labels.disk == floppy]\n")
	refused(t, []string{"web", "disk"}, "deploy", "-f", impossible, "wrong")
	taken := write("taken.yaml", "services:\n  web:\n    image: redis:7\n    ports: [\"8080:6379\"]\n")
	refused(t, []string{"8080", "shop/web"}, "deploy", "-f", taken, "wrong")
	refused(t, []string{"already"}, "up", "-d", "--hosts", "3")
	refused(t, []string{"already"}, "up", "-d")
	refused(t, []string{"nothing-here"}, "explain", "nothing-here")
	after := runs(t)
	if len(before) != len(after) {
		t.Errorf("refusals changed what runs: %d instances before, %d after", len(before), len(after))
	}
	for id := range before {
		if !after[id] {
			t.Errorf("instance %s ended over a refusal", id)
		}
	}
	newShopper(t, strings.TrimSuffix(shopURL, "/")).get("/")
}

func rollingUpdate(t *testing.T) {
	l := startLoad(t, shopURL)
	time.Sleep(time.Second)
	began := time.Now()
	tutti(t, "deploy", "-f", composeIn+"compose.yaml", "-f", composeIn+"compose.v2.yaml", "shop")
	took := time.Since(began)
	time.Sleep(3 * time.Second)
	o := l.stop()
	t.Logf("rolled out after %s: %s; answers by version %v", took.Round(100*time.Millisecond), o, o.versions)
	o.noneFailed(t, "a rolling update")
	if o.versions["v1"] == 0 || o.versions["v2"] == 0 {
		t.Errorf("answers by version: %v", o.versions)
	}
	if resp, err := http.Get(shopURL); err != nil || resp.Header.Get("X-Shop-Version") != "v2" {
		t.Errorf("after the update: %v, %v", resp, err)
	}
}

func badUpdate(t *testing.T) {
	l := startLoad(t, shopURL)
	time.Sleep(time.Second)
	began := time.Now()
	out := refused(t, []string{"web"}, "deploy", "-f", composeIn+"compose.yaml", "-f", composeIn+"compose.bad.yaml", "shop")
	took := time.Since(began)
	eventually(t, 30*time.Second, "only the good version runs", func() error {
		ready := 0
		for _, i := range instances(t) {
			if i.Workload != "shop/web" || i.Desired != "run" {
				continue
			}
			if !i.Current || !i.Status.Ready {
				return fmt.Errorf("%s is of another revision or not ready", i.Name)
			}
			ready++
		}
		if ready != 3 {
			return fmt.Errorf("%d of 3 ready", ready)
		}
		return nil
	})
	o := l.stop()
	t.Logf("stopped and rolled back after %s: %s", took.Round(100*time.Millisecond), o)
	o.noneFailed(t, "an update that was rolled back")
	if o.versions["bad"] > 0 {
		t.Errorf("%d answers from instances that never got healthy", o.versions["bad"])
	}
	if !strings.Contains(out, "roll") {
		t.Errorf("deploy does not say that it was rolled back:\n%s", out)
	}
	// Status goes on telling of it until the next update.
	tutti(t, "deploy", "-f", composeIn+"compose.yaml", "shop")
	allWell(t, 10*time.Second)
}

// nodeProcessKilled: the Tutti process of a host is killed alone. Its containers go on, and what
// ended meanwhile is known after its return.
func nodeProcessKilled(t *testing.T) {
	const host = "host-2"
	mine := map[string]int{}
	for _, i := range instances(t) {
		if i.Node == host && i.Status.Ready {
			mine[i.ID] = i.Status.Restarts
		}
	}
	if len(mine) == 0 {
		t.Fatalf("%s runs nothing", host)
	}
	hostPID := pidOf(t, host)
	containers := firstPIDs(t, hostPID)
	if len(containers) < len(mine) {
		t.Fatalf("%d containers run on %s, the cluster knows of %d", len(containers), host, len(mine))
	}
	l := startLoad(t, shopURL)
	time.Sleep(500 * time.Millisecond)
	nodePID := nodeProcess(t, hostPID)
	if err := syscall.Kill(nodePID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	took := eventually(t, 20*time.Second, "the node's process is back", func() error {
		if p, err := findNodeProcess(hostPID); err != nil || p == nodePID {
			return fmt.Errorf("process %d, %v", p, err)
		}
		return nil
	})
	allWell(t, 20*time.Second)
	time.Sleep(time.Second)
	o := l.stop()
	t.Logf("the node's process was back after %s: %s", took.Round(10*time.Millisecond), o)
	o.noneFailed(t, "the absence of nothing but a Tutti process")
	for _, pid := range containers {
		if syscall.Kill(pid, 0) != nil {
			t.Errorf("container process %d ended with the node's process", pid)
		}
	}
	for _, i := range instances(t) {
		if restarts, ok := mine[i.ID]; ok {
			if !i.Status.Ready || i.Status.Restarts != restarts {
				t.Errorf("%s was not adopted as it was: %+v", i.Name, i.Status)
			}
			delete(mine, i.ID)
		}
	}
	for id := range mine {
		t.Errorf("instance %s was replaced", id)
	}
}

func hostKilled(t *testing.T) {
	allWell(t, 20*time.Second)
	killAndWatch(t, hostToKill(t, false))
}

func leaderKilled(t *testing.T) { killAndWatch(t, hostToKill(t, true)) }

// hostToKill returns a host that runs parts of the shop but not the database; the leader, or one
// that does not lead. The leader is made to lie elsewhere than the database by waiting for it.
func hostToKill(t *testing.T, leader bool) string {
	t.Helper()
	list := instances(t)
	database := hostsOf(list, "shop/postgres")
	for range 10 {
		for _, n := range query[[]nodeState](t, "nodes") {
			if n.Leader == leader && !slices.Contains(database, n.Name) {
				return n.Name
			}
		}
		// The leader lies with the database: let another one lead.
		for _, n := range query[[]nodeState](t, "nodes") {
			if n.Leader {
				if err := syscall.Kill(nodeProcess(t, pidOf(t, n.Name)), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		time.Sleep(3 * time.Second)
		allWell(t, 20*time.Second)
	}
	t.Fatal("no such host")
	return ""
}

// killAndWatch cuts a host's power under load, then brings it back.
func killAndWatch(t *testing.T, host string) {
	t.Helper()
	lost := map[string]bool{}
	for _, i := range instances(t) {
		if i.Node == host && i.Status.Ready {
			lost[i.Workload] = true
		}
	}
	if len(lost) == 0 {
		t.Fatalf("%s runs nothing", host)
	}
	l := startLoad(t, shopURL)
	time.Sleep(time.Second)
	began := time.Now()
	tutti(t, "host", "kill", host)
	wanted := map[string]int{"shop/web": 3, "shop/catalogue": 2, "shop/cart": 2, "shop/orders": 2, "shop/worker": 2, "shop/redis": 1}
	replaced := eventually(t, 60*time.Second, "everything runs elsewhere", func() error {
		list, err := tryQuery[[]instance]("ps")
		if err != nil {
			return err
		}
		have := map[string]int{}
		for _, i := range list {
			if i.Status.Ready && i.Node != host {
				have[i.Workload]++
			}
		}
		for w, n := range wanted {
			// A volume lives on its host: what uses it waits there.
			if have[w] < n && !(w == "shop/redis" && lost[w]) {
				return fmt.Errorf("%s: %d of %d ready", w, have[w], n)
			}
		}
		return nil
	})
	_ = replaced
	took := time.Since(began)
	time.Sleep(2 * time.Second)
	o := l.stop()
	t.Logf("%s lost %d workloads' instances; all replaced and serving after %s (budget 3 s): %s", host, len(lost), took.Round(10*time.Millisecond), o)
	tutti(t, "host", "start", host)
	back := allWell(t, 60*time.Second)
	t.Logf("%s was a member again after %s", host, back.Round(10*time.Millisecond))
	useAgain(t, host)
}

// useAgain replaces the front end's instances and wants one of them on the host.
func useAgain(t *testing.T, host string) {
	t.Helper()
	tutti(t, "restart", "shop/web")
	eventually(t, 30*time.Second, "the host is used again", func() error {
		if !slices.Contains(hostsOf(instances(t), "shop/web"), host) {
			return fmt.Errorf("web runs on %v", hostsOf(instances(t), "shop/web"))
		}
		return nil
	})
	allWell(t, 30*time.Second)
}

func hostCut(t *testing.T) {
	host := hostToKill(t, false)
	if !slices.Contains(hostsOf(instances(t), "shop/web"), host) {
		t.Fatalf("%s runs no front end", host)
	}
	l := startLoad(t, shopURL)
	time.Sleep(time.Second)
	tutti(t, "host", "cut", host)
	took := eventually(t, 60*time.Second, "the cut-off host's work runs elsewhere", func() error {
		list, err := tryQuery[[]instance]("ps")
		if err != nil {
			return err
		}
		n, stale := 0, 0
		for _, i := range list {
			switch {
			case i.Node == host && i.Status.Ready:
				stale++
			case i.Workload == "shop/web" && i.Status.Ready:
				n++
			}
		}
		if n < 3 || stale > 0 {
			return fmt.Errorf("%d of 3 ready, %d still counted on %s", n, stale, host)
		}
		return nil
	})
	o := l.stop()
	t.Logf("cut off; replaced after %s: %s", took.Round(10*time.Millisecond), o)
	tutti(t, "host", "heal", host)
	t.Logf("well again %s after healing", allWell(t, 60*time.Second).Round(10*time.Millisecond))
	eventually(t, 20*time.Second, "what was replaced has ended on the healed host", func() error {
		n := 0
		for _, pid := range firstPIDs(t, pidOf(t, host)) {
			if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.TrimSpace(string(name)) == "web" {
				n++
			}
		}
		have := 0
		for _, i := range instances(t) {
			if i.Node == host && i.Workload == "shop/web" && i.Status.Ready {
				have++
			}
		}
		if n != have {
			return fmt.Errorf("%d web processes run there, the cluster knows of %d", n, have)
		}
		return nil
	})
	useAgain(t, host)
}

// shopAnswers waits until a customer would get the front page.
func shopAnswers(t *testing.T) time.Duration {
	t.Helper()
	return eventually(t, time.Minute, "the shop answers", func() error {
		resp, err := http.Get(shopURL)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %s", resp.Status)
		}
		return nil
	})
}

// everythingKilled is a power cut of all hosts at once.
func everythingKilled(t *testing.T) {
	hosts := query[[]hostState](t, "host", "ls")
	for _, h := range hosts {
		if err := syscall.Kill(h.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 10*time.Second, "all hosts are off", func() error {
		for _, h := range query[[]hostState](t, "host", "ls") {
			if h.Running {
				return fmt.Errorf("%s runs", h.Name)
			}
		}
		return nil
	})
	for _, h := range hosts {
		tutti(t, "host", "start", h.Name)
	}
	t.Logf("all hosts were killed; the shop was back after %s", shopAnswers(t).Round(10*time.Millisecond))
	allWell(t, time.Minute)
	out := tutti(t, "exec", "shop/postgres", "psql", "-U", "shop", "-tAc", "select count(*) from orders")
	if strings.TrimSpace(out) == "0" {
		t.Error("the orders are gone")
	}
}

func removeShop(t *testing.T) {
	tutti(t, "rm", "shop", "--volumes")
	eventually(t, 30*time.Second, "nothing of it is left", func() error {
		if list := instances(t); len(list) > 0 {
			return fmt.Errorf("%d instances are left", len(list))
		}
		for _, h := range query[[]hostState](t, "host", "ls") {
			if n := len(containerPIDs(t, h.PID)); n > 0 {
				return fmt.Errorf("%d processes are left on %s", n, h.Name)
			}
		}
		return nil
	})
}

// TestDownLeavesNothing comes last: it takes the cluster down, twice, after everything was killed.
func TestDownLeavesNothing(t *testing.T) {
	tutti(t, "deploy", "-f", composeIn+"compose.yaml", "shop")
	for _, h := range query[[]hostState](t, "host", "ls") {
		if err := syscall.Kill(h.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 2 {
		began := time.Now()
		tutti(t, "down")
		t.Logf("down took %s", time.Since(began).Round(10*time.Millisecond))
		after, err := takeInventory()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range before.difference(after) {
			t.Errorf("after down number %d: %s", n+1, d)
		}
	}
	tutti(t, "up", "-d", "--hosts", "3")
	t.Logf("up again; the shop answers after %s", shopAnswers(t).Round(10*time.Millisecond))
	allWell(t, time.Minute)
	began := time.Now()
	tutti(t, "down", "--purge")
	t.Logf("down of running hosts took %s", time.Since(began).Round(10*time.Millisecond))
	after, err := takeInventory()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range before.difference(after) {
		t.Errorf("after the last down: %s", d)
	}
}
