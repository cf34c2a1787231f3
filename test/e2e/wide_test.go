//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

type serverState struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"`
	State   string `json:"state"`
}

// TestFiveServers: of five servers two lose their power at once and are removed in time, so that the
// three that are left can lose another one; that one comes back under another address, and the removed
// ones join again by themselves. Writers write all the time, and nothing acknowledged is lost.
func TestFiveServers(t *testing.T) {
	tutti(t, "down", "--purge")
	tutti(t, "up", "-d", "--hosts", "5", "--servers", "5", "--remove-dead-servers", "4s")
	want := func(what string, voters int) time.Duration {
		t.Helper()
		return eventually(t, 60*time.Second, what, func() error {
			list, err := tryQuery[[]serverState]("server", "ls")
			if err != nil {
				return err
			}
			ready := 0
			for _, s := range list {
				if s.Voter && s.State == "ready" {
					ready++
				}
			}
			if len(list) != voters || ready != voters {
				return fmt.Errorf("servers are %+v", list)
			}
			return nil
		})
	}
	want("five servers vote", 5)

	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	var writers []*writer
	for n, host := range []string{"host-1", "host-2"} {
		w := &writer{server: host, number: n}
		writers = append(writers, w)
		running.Go(func() { w.run(ctx) })
	}
	defer running.Wait()
	defer stop()
	nextAck(t, time.Now(), writers)
	kill := func(hosts ...string) {
		t.Helper()
		for _, host := range hosts {
			tutti(t, "host", "kill", host)
		}
		t.Logf("%s lost their power: the next write was acknowledged after %s", strings.Join(hosts, " and "), nextAck(t, time.Now(), writers).Round(time.Millisecond))
	}
	kill("host-4", "host-5")
	t.Logf("the dead servers were removed %s later", want("both dead servers are removed", 3).Round(10*time.Millisecond))
	kill("host-3")

	const moved = "10.209.0.113"
	readdress(t, "host-3", moved)
	tutti(t, "host", "start", "host-3")
	want("host-3 is back", 3)
	eventually(t, 30*time.Second, "its new address is known", func() error {
		list, err := tryQuery[[]serverState]("server", "ls")
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(list, func(s serverState) bool {
			return s.Name == "host-3" && strings.HasPrefix(s.Address, moved+":")
		}) {
			return fmt.Errorf("servers are %+v", list)
		}
		return nil
	})
	tutti(t, "host", "start", "host-4")
	tutti(t, "host", "start", "host-5")
	t.Logf("removed servers vote again %s after they got power", want("five servers vote again", 5).Round(10*time.Millisecond))
	stop()
	running.Wait()
	all := acknowledged(writers)
	for _, host := range []string{"host-1", "host-3", "host-5"} {
		wantKeys(t, all, host)
	}
	t.Logf("%d writes acknowledged, all of them there", len(all))
	allWell(t, 30*time.Second)
}

// readdress gives a host that is off another address, as a new lease of its address would.
func readdress(t *testing.T, host, address string) {
	t.Helper()
	change := func(file string, do func(map[string]any)) {
		t.Helper()
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var v map[string]any
		if err := json.Unmarshal(data, &v); err != nil {
			t.Fatal(err)
		}
		do(v)
		if data, err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	change(filepath.Join(dataDir, "hosts", "hosts.json"), func(v map[string]any) {
		for _, h := range v["hosts"].([]any) {
			if h := h.(map[string]any); h["name"] == host {
				h["address"] = address
			}
		}
	})
	change(filepath.Join(hostData(host), "node.json"), func(v map[string]any) {
		if v["address"] == nil {
			t.Fatalf("%s is not told its address: %v", host, v)
		}
		v["address"] = address
	})
}
