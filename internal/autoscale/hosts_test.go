package autoscale

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

var bounds = HostPolicy{Min: 1, Max: 4, AskAfter: 5 * time.Second, GiveBackAfter: 2 * time.Minute}

func hostList(n int, change ...func(h []HostView)) []HostView {
	var out []HostView
	for i := range n {
		out = append(out, HostView{Name: fmt.Sprint("host-", i+1), Server: i == 0, Ready: true, Open: true, Instances: 1})
	}
	for _, c := range change {
		c(out)
	}
	return out
}

func empty(n ...int) func([]HostView) {
	return func(h []HostView) {
		for _, i := range n {
			h[i-1].Empty, h[i-1].Instances = true, 0
		}
	}
}

func TestNextHosts(t *testing.T) {
	ago := func(d time.Duration) time.Time { return noon.Add(-d) }
	waits := func(slots ...string) (out []Waiting) {
		for _, s := range slots {
			out = append(out, Waiting{Slot: s, Name: "shop/" + s})
		}
		return out
	}
	since := func(d time.Duration, keys ...string) map[string]time.Time {
		out := map[string]time.Time{}
		for _, k := range keys {
			out[k] = ago(d)
		}
		return out
	}
	long := since(10*time.Second, "a", "b", "c")
	unready := func(h []HostView) { h[1].Ready = false }
	for name, c := range map[string]struct {
		hosts    []HostView
		demand   Demand
		past     HostPast
		ask      int
		giveBack string
		says     string
	}{
		"nothing to do":                    {hosts: hostList(2)},
		"work waits, but not for long":     {hosts: hostList(1), demand: Demand{Waiting: waits("a"), Further: 1}},
		"work waits":                       {hosts: hostList(1), demand: Demand{Waiting: waits("a"), Further: 1}, past: HostPast{Waiting: long}, ask: 1, says: "shop/a has waited for a place for 10s"},
		"as many as it needs":              {hosts: hostList(1), demand: Demand{Waiting: waits("a", "b", "c"), Further: 2}, past: HostPast{Waiting: long}, ask: 2, says: "3 instances"},
		"no more than there may be":        {hosts: hostList(3), demand: Demand{Waiting: waits("a", "b", "c"), Further: 2}, past: HostPast{Waiting: long}, ask: 1},
		"as many as there may be":          {hosts: hostList(4), demand: Demand{Waiting: waits("a"), Further: 1}, past: HostPast{Waiting: long}},
		"no more than have waited":         {hosts: hostList(1), demand: Demand{Waiting: waits("a", "z"), Further: 2}, past: HostPast{Waiting: long}, ask: 1},
		"one is coming":                    {hosts: hostList(2, unready), demand: Demand{Waiting: waits("a"), Further: 1}, past: HostPast{Waiting: long}},
		"one has just come":                {hosts: hostList(2), demand: Demand{Waiting: waits("a"), Further: 1}, past: HostPast{Waiting: long, Unsettled: ago(2 * time.Second)}},
		"one does not come":                {hosts: hostList(2, unready), demand: Demand{Waiting: waits("a"), Further: 1}, past: HostPast{Waiting: long, Unready: since(2*time.Minute, "host-2")}, ask: 1},
		"one came for it a while ago":      {hosts: hostList(2), demand: Demand{Waiting: waits("a"), Further: 1}, past: HostPast{Waiting: long, Asked: map[string]Asked{"a": {ago(50 * time.Second), 1}}}},
		"one came for it long ago":         {hosts: hostList(2), demand: Demand{Waiting: waits("a"), Further: 1}, past: HostPast{Waiting: long, Asked: map[string]Asked{"a": {ago(70 * time.Second), 1}}}, ask: 1},
		"one came for it and was of use":   {hosts: hostList(2), demand: Demand{Waiting: waits("b"), Further: 1}, past: HostPast{Waiting: long, Asked: map[string]Asked{"a": {ago(time.Second), 1}}}, ask: 1},
		"two came for it long ago":         {hosts: hostList(2), demand: Demand{Waiting: waits("a"), Further: 1}, past: HostPast{Waiting: long, Asked: map[string]Asked{"a": {ago(70 * time.Second), 2}}}},
		"empty, but not for long":          {hosts: hostList(2, empty(2)), past: HostPast{Empty: since(time.Minute, "host-2")}},
		"empty":                            {hosts: hostList(2, empty(2)), past: HostPast{Empty: since(3*time.Minute, "host-2")}, giveBack: "host-2", says: "nothing to do for 3m0s; of 2 hosts at least 1 stay"},
		"the latest of those":              {hosts: hostList(3, empty(2, 3)), past: HostPast{Empty: since(3*time.Minute, "host-2", "host-3")}, giveBack: "host-3"},
		"never a server":                   {hosts: hostList(2, empty(1)), past: HostPast{Empty: since(3*time.Minute, "host-1")}},
		"never one below the least":        {hosts: hostList(1, empty(1), func(h []HostView) { h[0].Server = false }), past: HostPast{Empty: since(time.Hour, "host-1")}},
		"not what people have closed":      {hosts: hostList(2, empty(2), func(h []HostView) { h[1].Open = false }), past: HostPast{Empty: since(time.Hour, "host-2")}},
		"not while work waits":             {hosts: hostList(4, empty(4)), demand: Demand{Waiting: waits("a"), Further: 1}, past: HostPast{Waiting: long, Empty: since(time.Hour, "host-4")}},
		"though work waits for no use":     {hosts: hostList(4, empty(4)), demand: Demand{Waiting: waits("a"), Further: 1}, past: HostPast{Waiting: long, Asked: map[string]Asked{"a": {ago(time.Second), 1}}, Empty: since(time.Hour, "host-4")}, giveBack: "host-4"},
		"it was in use a moment ago":       {hosts: hostList(2, empty(2)), past: HostPast{}},
		"a host that is used by something": {hosts: hostList(2), past: HostPast{Empty: since(time.Hour, "host-2")}},
	} {
		t.Run(name, func(t *testing.T) {
			out := NextHosts(HostInput{Policy: bounds, Hosts: c.hosts, Demand: c.demand, Past: c.past, Now: noon})
			if out.Ask != c.ask || out.GiveBack != c.giveBack || !strings.Contains(out.Reason, c.says) || (out.Reason != "") != (out.Ask > 0 || out.GiveBack != "") {
				t.Errorf("got %d, %q, %q; want %d, %q, %q", out.Ask, out.GiveBack, out.Reason, c.ask, c.giveBack, c.says)
			}
		})
	}
}

// TestHostsFollowWork lets work of one instance a host come and go for hours. There are never more or
// fewer hosts than there may be, what waits gets a host, a host is given back only after it was empty
// throughout, and the number of changes is bounded by those of the work.
func TestHostsFollowWork(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 2))
		now, wanted, changes, raised, waiting := noon, 1, 0, 0, 0
		hosts := hostList(1)
		coming := map[string]time.Time{}
		used := map[string]time.Time{"host-1": now}
		var past HostPast
		for range 10_000 {
			now = now.Add(time.Second)
			if r.IntN(200) == 0 {
				next := 1 + r.IntN(6)
				raised += max(next-wanted, 0)
				wanted = next
			}
			placed := 0
			for i := range hosts {
				h := &hosts[i]
				h.Ready = !now.Before(coming[h.Name])
				h.Empty = !h.Ready || placed >= wanted
				if !h.Empty {
					placed++
					used[h.Name] = now
				}
			}
			var d Demand
			for n := placed; n < wanted; n++ {
				d.Waiting = append(d.Waiting, Waiting{Slot: fmt.Sprint(n), Name: fmt.Sprint(n)})
			}
			d.Further = min(len(d.Waiting), bounds.Max-len(hosts))
			if d.Further == 0 {
				d.Waiting = nil // as none may come, nobody is asked what it would be good for
			}
			out := NextHosts(HostInput{Policy: bounds, Hosts: hosts, Demand: d, Past: past, Now: now})
			past = out.Past
			if out.Ask > 0 && out.GiveBack != "" {
				t.Fatalf("seed %d: it asks and gives back at once", seed)
			}
			for range out.Ask {
				changes++
				name := fmt.Sprint("host-", seed, "-", changes)
				hosts = append(hosts, HostView{Name: name, Open: true})
				coming[name], used[name] = now.Add(time.Duration(1+r.IntN(20))*time.Second), now
			}
			for i := range hosts {
				if hosts[i].Name == out.GiveBack {
					changes++
					if hosts[i].Server || now.Sub(used[out.GiveBack]) < bounds.GiveBackAfter {
						t.Fatalf("seed %d: %s was given back %s after it was of use", seed, out.GiveBack, now.Sub(used[out.GiveBack]))
					}
					hosts = append(hosts[:i], hosts[i+1:]...)
					break
				}
			}
			if len(hosts) < bounds.Min || len(hosts) > bounds.Max {
				t.Fatalf("seed %d: %d hosts", seed, len(hosts))
			}
			if waiting++; len(d.Waiting) == 0 {
				waiting = 0
			}
			if waiting > 2*int(askAgainAtMost/time.Second) {
				t.Fatalf("seed %d: work has waited for %d looks though there may be more hosts", seed, waiting)
			}
		}
		if changes > 2*raised+2 {
			t.Errorf("seed %d: %d changes, while the work grew by %d", seed, changes, raised)
		}
	}
}

// TestHostsThatDoNotHelp lets an instance wait for ever, whatever comes: hosts come for it ever more
// rarely.
func TestHostsThatDoNotHelp(t *testing.T) {
	hosts, asked := hostList(1), 0
	var past HostPast
	for s := 0; s < 24*3600; s += 5 {
		d := Demand{Waiting: []Waiting{{Slot: "a", Name: "a"}}, Further: 1}
		out := NextHosts(HostInput{Policy: bounds, Hosts: hosts, Demand: d, Past: past, Now: noon.Add(time.Duration(s) * time.Second)})
		past = out.Past
		for range out.Ask {
			asked++
			hosts = append(hosts, HostView{Name: fmt.Sprint("host-", asked+1), Ready: true, Open: true, Empty: true})
		}
		if out.GiveBack != "" {
			hosts = hosts[:len(hosts)-1]
		}
	}
	if asked < 5 || asked > 32 {
		t.Errorf("within a day %d hosts were asked for; six in the first hour, and one in each further are what is meant", asked)
	}
}

func TestCheckHosts(t *testing.T) {
	for want, p := range map[string]HostPolicy{
		"":                        bounds,
		"from 0 to 3 hosts":       {Min: 0, Max: 3, GiveBackAfter: time.Minute},
		"from 3 to 2 hosts":       {Min: 3, Max: 2, GiveBackAfter: time.Minute},
		"is given back after 0s:": {Min: 1, Max: 2},
	} {
		if got := CheckHosts(p); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%+v: %q, want %q", p, got, want)
		}
	}
}
