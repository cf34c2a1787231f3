// Package sim_test simulates whole clusters: real servers with their replication, their store and
// the leader's work, and real agents, on hosts whose network, disks, tasks and time are made up.
// A seed decides about everything that goes wrong. Everything happens in a bubble of its own time,
// so that a minute takes no time.
package sim_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/wire"
)

var (
	seeds   = flag.Int("seeds", 1, "how many different courses to simulate; with ten or more, those that once showed a fault, too")
	from    = flag.Int("from", 0, "the first of their seeds")
	only    = flag.Int("seed", -1, "simulate only the course of this seed, and tell all of it")
	verbose = flag.Bool("debug", false, "with -seed: tell what processes log for developers, too")
	shard   = flag.String("shard", "", "which share of the courses to simulate in this process, as 0/2")
	report  = flag.String("report", "", "where to write what was met, as JSON")
)

func logLevel() slog.Level {
	if *verbose {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// tally counts what was met.
type tally map[string]int

func (c *course) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tally[what]++
}

// TestSim simulates one cluster for each seed. The courses are shared out to processes with one
// processor each: a bubble is a world of its own, but chance is not, and one course must not
// disturb another's.
func TestSim(t *testing.T) {
	switch {
	case *only >= 0:
		t.Run(fmt.Sprint("seed=", *only), func(t *testing.T) { inBubble(t, uint64(*only)) })
	case *shard != "":
		runShard(t)
	default:
		met := runShards(t)
		wantMet(t, met)
	}
}

// regressions are courses that showed what was wrong, and is right since. They are simulated every
// time, whichever others are.
var regressions = []struct {
	seed int
	what string
}{
	{7, "a log that was cut at its end could not be opened again: raft-wal sealed the file without an index"},
	{46, "a log whose disk had been full took nothing more until its server was restarted"},
	{4012, "a log that was full when its server crashed, and whose next file was not begun, never took anything again"},
	{2016, "the same on a follower, which stayed behind for good"},
	{49, "what a leader had decided was passed on to the next one, which had decided otherwise: addresses were given out twice"},
	{93, "the same, through a connection that stalled: an instance was replaced twice"},
	{97, "the same, with a port of a host"},
	{134, "a snapshot said to be of an entry held what came after it, too, as the state had been recalled: others applied that twice"},
	{1005, "what a killed process had not synced counted after its restart, and was lost with the power"},
	{5564, "a read waited for ever for the word of a server that had been taken out, and so did the server's end"},
	{178, "a status that waited in a server without a leader replaced what the node had told since, for good"},
	{300, "a stateful slot was filled while an instance of a removed workload of the same name still wrote"},
}

// runShard simulates this process's share.
func runShard(t *testing.T) {
	var mine, all int
	if _, err := fmt.Sscanf(*shard, "%d/%d", &mine, &all); err != nil {
		t.Fatalf("shard %q: %v", *shard, err)
	}
	met := tally{}
	var share []int
	for seed := *from + mine; seed < *from+*seeds; seed += all {
		share = append(share, seed)
	}
	for i, r := range regressions {
		if *seeds >= 10 && i%all == mine {
			share = append(share, r.seed)
		}
	}
	for _, seed := range share {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			if c := inBubble(t, uint64(seed)); c != nil {
				for k, n := range c.tally {
					met[k] += n
				}
				met["courses"]++
			}
		})
	}
	data, err := json.Marshal(met)
	if err == nil {
		err = os.WriteFile(*report, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// stuckAfter is how long a course may take. Time stands still in a bubble while a goroutine waits
// for what does not come with time, such as a mutex.
const stuckAfter = time.Minute

func inBubble(t *testing.T, seed uint64) *course {
	keys := authority(t)
	cryptotest.SetGlobalRandom(t, seed) // identifiers are drawn from it
	stuck := time.AfterFunc(stuckAfter, func() {
		debug.SetTraceback("all")
		panic(fmt.Sprintf("the course of seed %d does not go on", seed))
	})
	defer stuck.Stop()
	return simulate(t, seed, keys)
}

// runShards has the courses simulated by as many processes as there are processors.
func runShards(t *testing.T) tally {
	n := min(runtime.GOMAXPROCS(0), *seeds)
	met := tally{}
	var mu sync.Mutex
	var all sync.WaitGroup
	dir := t.TempDir()
	began := time.Now()
	for i := range n {
		all.Go(func() {
			file := filepath.Join(dir, fmt.Sprint(i))
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSim$", "-test.timeout=0", "-seeds="+fmt.Sprint(*seeds),
				"-from="+fmt.Sprint(*from), "-shard="+fmt.Sprint(i, "/", n), "-report="+file)
			cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GOGC=200")
			out, err := cmd.CombinedOutput()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				const end = 100 << 10
				if len(out) > 2*end {
					out = bytes.Join([][]byte{out[:end], out[len(out)-end:]}, []byte("\n…\n"))
				}
				t.Errorf("%v\n%s", err, out)
			}
			data, err := os.ReadFile(file)
			share := tally{}
			if err == nil {
				err = json.Unmarshal(data, &share)
			}
			if err != nil {
				t.Errorf("no report of what was met: %v", err)
			}
			for k, n := range share {
				met[k] += n
			}
		})
	}
	all.Wait()
	t.Logf("%d courses in %s on %d processors; met:", met["courses"], time.Since(began).Round(time.Second), n)
	for _, k := range slices.Sorted(maps.Keys(met)) {
		t.Logf("%8d  %s", met[k], k)
	}
	return met
}

// wantMet makes sure that what can go wrong did go wrong, of enough courses.
func wantMet(t *testing.T, met tally) {
	if met["courses"] < 100 {
		return
	}
	for _, f := range mishaps {
		if met["fault: "+f.name] == 0 {
			t.Errorf("in %d courses there never was: %s", met["courses"], f.name)
		}
	}
	for _, what := range []string{
		"crashes in a write", "unsynced writes lost", "unsynced writes torn", "files lost", "refused for want of room", "slow writes",
		"messages lost", "messages repeated", "messages late", "messages cut off", "connections reset", "connections timed out",
		"leaderships handed over", "servers removed", "snapshots sent", "watch too old", "secrets given", "writers of slots",
	} {
		if met[what] == 0 {
			t.Errorf("in %d courses there never were: %s", met["courses"], what)
		}
	}
}

// collect counts what the network and the disks met.
func (c *course) collect() {
	n := c.net.Counts()
	for k, v := range map[string]int{
		"messages": n.Sent, "messages lost": n.Lost, "messages repeated": n.Repeated, "messages late": n.Late, "messages cut off": n.Cut,
		"connections reset": n.Resets, "connections timed out": n.TimedOut, "snapshots sent": c.exchange.Sent()["snapshot"],
	} {
		c.tally[k] += v
	}
	for _, h := range c.hosts {
		d := h.disk.Counts()
		for k, v := range map[string]int{
			"syncs": d.Syncs, "refused for want of room": d.Full, "slow writes": d.Slow,
			"unsynced writes lost": d.Lost, "unsynced writes torn": d.Torn, "unsynced writes kept": d.Kept, "files lost": d.Gone,
		} {
			c.tally[k] += v
		}
	}
	c.tally["revisions"] += int(c.watch.revision)
	c.tally["simulated seconds"] += int(time.Since(dawn).Seconds())
}

// commit returns what is tested.
var commit = sync.OnceValue(func() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
})

func replay(seed uint64) string {
	return fmt.Sprintf("go test ./test/sim -run TestSim -count=1 -args -seed=%d", seed)
}

// pki is who the hosts of all courses are: keys take a while to make.
type pki struct {
	authority       *wire.Authority
	servers, agents []*wire.Identity
}

const mostHosts = 8

var (
	pkiOnce sync.Once
	thePKI  *pki
)

// authority makes them once, in the time of bubbles, so that certificates are valid in them.
func authority(t *testing.T) *pki {
	pkiOnce.Do(func() {
		commit() // not in a bubble, which would wait for it
		t.Run("authority", func(t *testing.T) {
			cryptotest.SetGlobalRandom(t, 0)
			thePKI = makeAuthority(t)
		})
	})
	return thePKI
}

func makeAuthority(t *testing.T) *pki {
	p := &pki{}
	synctest.Test(t, func(t *testing.T) {
		var err error
		if p.authority, err = wire.NewAuthority(); err != nil {
			t.Fatal(err)
		}
		for k := range mostHosts {
			for role, list := range map[wire.Role]*[]*wire.Identity{wire.RoleServer: &p.servers, wire.RoleAgent: &p.agents} {
				csr, key, err := wire.NewRequest()
				if err != nil {
					t.Fatal(err)
				}
				id := fmt.Sprint("n", k)
				cert, err := p.authority.Sign(csr, id, role)
				if err != nil {
					t.Fatal(err)
				}
				*list = append(*list, &wire.Identity{NodeID: id, Role: role, CertPEM: cert, KeyPEM: key, CAPEM: p.authority.CertPEM})
			}
		}
	})
	return p
}
