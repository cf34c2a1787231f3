//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// named is a service by virtual IP, one by names alone, who asks for them, and a task that sees its host's own addresses.
const named = `
x-probe: &probe {image: "probe:v1", stop_grace_period: 1s}
services:
  web:
    <<: *probe
    scale: 2
    networks: {front: {aliases: [www]}}
    ports: ["18073:8080", "127.0.0.1:18074:8080", "%s:18075:8080"]
  rr: {<<: *probe, scale: 2, networks: [front], deploy: {endpoint_mode: dnsrr}}
  asks: {<<: *probe, networks: [front]}
  seeks: {<<: *probe, networks: [front], dns_search: [web.named]}
  host: {<<: *probe, network_mode: host, deploy: {placement: {constraints: [node.hostname == host-1]}}}
networks: {front: {}}
`

// TestNamesOfEveryScheme looks up a service and its instances by every name that they have, and connects by it; and
// asks ports that are published on one address of hosts there, and elsewhere.
func TestNamesOfEveryScheme(t *testing.T) {
	second := addressOf(t, "host-2")
	deployText(t, "named", fmt.Sprintf(named, second))
	var web, rr []string
	for _, p := range query[[]probed](t, "ps", "named") {
		for _, a := range p.Addresses {
			switch p.Workload {
			case "named/web":
				web = append(web, a.IP)
			case "named/rr":
				rr = append(rr, a.IP)
			}
		}
	}
	virtual := ""
	for _, s := range query[[]struct {
		Name        string
		Application string
		Status      struct{ VirtualIPs []struct{ IP string } }
	}](t, "services") {
		if s.Application == "named" && s.Name == "web" && len(s.Status.VirtualIPs) == 1 {
			virtual = s.Status.VirtualIPs[0].IP
		}
	}
	if len(web) != 2 || len(rr) != 2 || virtual == "" {
		t.Fatalf("web is at %q and %q, rr at %q", web, virtual, rr)
	}
	slices.Sort(web)
	slices.Sort(rr)
	both, spread := strings.Join(web, " "), strings.Join(rr, " ")
	wants := map[string]string{
		"web": virtual, "web.named": virtual, "web.named.tutti": virtual, "web.internal": virtual, "www": virtual, "web.default.svc.cluster.local": virtual,
		"tasks.web": both, "tasks.web.named": both, "web.named.marathon.mesos": both,
		"rr": spread, "rr.named": spread, "tasks.rr": spread,
	}
	for _, p := range query[[]probed](t, "ps", "named") {
		if p.Workload == "named/web" {
			wants[p.Name], wants[p.Name+".named"] = p.Addresses[0].IP, p.Addresses[0].IP
		}
	}
	var names, connect []string
	for name := range wants {
		names, connect = append(names, name), append(connect, name+":8080")
	}
	for name, got := range probe(t, "named", "asks.1", "name", names) {
		if got != wants[name] {
			t.Errorf("%s is %q, want %q", name, got, wants[name])
		}
	}
	for name, got := range probe(t, "named", "asks.1", "tcp", connect) {
		if !strings.HasPrefix(got, "web-") && !strings.HasPrefix(got, "rr-") {
			t.Errorf("%s answers %q", name, got)
		}
	}
	if got := probe(t, "named", "seeks.1", "name", []string{"tasks"})["tasks"]; got != both {
		t.Errorf("in the search domain web.named tasks is %q, want %q", got, both)
	}
	const instances = "web.1.named.tutti.:8080 web.2.named.tutti.:8080"
	for name, got := range probe(t, "named", "asks.1", "srv", []string{"web", "_8080._tcp.web", "_8080._tcp.web.named.tutti", "_web.named._tcp.marathon.mesos"}) {
		fields := slices.Compact(strings.Fields(got))
		if strings.Join(fields, " ") != instances {
			t.Errorf("the ports of %s are %q, want %q", name, fields, instances)
		}
	}

	// Hosts themselves ask, whether they have an instance of it or not.
	for _, h := range query[[]hostState](t, "host", "ls") {
		eventually(t, 10*time.Second, virtual+" from "+h.Name, func() error {
			for range 6 { // one after the other may be led to another
				if err := dialFrom(h.PID, virtual+":8080"); err != nil {
					return err
				}
			}
			return nil
		})
	}

	// From outside 18074 is nobody's, and 18075 is the second host's.
	first := addressOf(t, "host-1")
	for address, answers := range map[string]bool{first + ":18073": true, second + ":18073": true, first + ":18074": false, second + ":18074": false, first + ":18075": false, second + ":18075": true} {
		eventually(t, 10*time.Second, address+" as published", func() error {
			text, err := get("http://" + address + "/")
			if answers != (err == nil && strings.HasPrefix(text, "web-")) {
				return fmt.Errorf("it answers %.20q, %v", text, err)
			}
			return nil
		})
	}
	inside := probe(t, "named", "host.1", "tcp", []string{"127.0.0.1:18073", "127.0.0.1:18074", second + ":18075", first + ":18075"})
	for address, got := range inside {
		if strings.HasPrefix(got, "web-") == (address == first+":18075") {
			t.Errorf("on a host %s answers %q", address, got)
		}
	}

	// What came is counted, by whichever host it came in.
	counts := query[struct {
		Services []struct {
			Service, Entrance           string
			Connections, Sent, Received uint64
		}
	}](t, "net", "counts", "named/web")
	sums := map[string]uint64{}
	for _, c := range counts.Services {
		if c.Service != "named/web" || c.Sent == 0 {
			t.Errorf("counted is %+v", c)
		}
		sums[c.Entrance] += c.Connections
	}
	for _, entrance := range []string{virtual, ":18073/tcp", "127.0.0.1:18074/tcp", second + ":18075/tcp"} {
		if sums[entrance] == 0 {
			t.Errorf("no connection was counted at %s: %v", entrance, sums)
		}
	}
}
