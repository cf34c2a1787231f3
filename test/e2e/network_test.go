//go:build e2e

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// matrix is an application of many networks: of both versions of IP and of one, chosen and given,
// with a way out and without, and of services on one and on several.
const matrix = `
x-probe: &probe {image: "probe:v1", stop_grace_period: 1s}
services:
  edge: {<<: *probe, scale: 3, networks: [front], ports: ["18070:8080", "18071:8080/udp"]}
  both: {<<: *probe, scale: 2, networks: {front: {aliases: [first]}, back: {aliases: [second]}}}
  deep: {<<: *probe, scale: 3, networks: [back], deploy: {endpoint_mode: dnsrr}}
  dark: {<<: *probe, scale: 2, networks: [inner, front]}
  last: {<<: *probe, networks: {inner: , own: {ipv4_address: 172.29.7.77, ipv6_address: "fd29:7::1:77"}}}
  peer: {<<: *probe, scale: 2, networks: [own]}
networks:
  front: {enable_ipv6: true}
  back: {driver_opts: {encrypted: "%t"}}
  inner: {internal: true, enable_ipv6: true}
  own: {enable_ipv6: true, ipam: {config: [{subnet: 172.29.7.0/24}, {subnet: "fd29:7::/64"}]}}
`

// probeImage makes the image of testdata/probe, as often as it is asked for.
var probeImage = sync.OnceValue(func() error {
	dir := filepath.Join(dataDir, "probe")
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "root", "probe"), "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	image := filepath.Join(dir, "image.tar")
	for _, args := range [][]string{
		{"image", "pack", "--name", "probe:v1", "--dir", filepath.Join(dir, "root"), "--entrypoint", "/probe", "-o", image}, {"image", "import", image},
	} {
		if out, err := run(args...); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
	}
	return nil
})

// deployText deploys an application that is taken away at the end.
func deployText(t *testing.T, app, text string) {
	t.Helper()
	if err := probeImage(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dataDir, app+".yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tutti(t, "rm", app) })
	tutti(t, "deploy", "-d", "-f", file, app)
	allWell(t, 60*time.Second)
}

// probed is an instance and where it is.
type probed struct {
	Name      string `json:"name"`
	Node      string `json:"node"`
	Workload  string `json:"workload"`
	Addresses []struct{ Network, IP, IP6 string }
}

func (p *probed) addresses() map[string][]string {
	out := map[string][]string{}
	for _, a := range p.Addresses {
		out[a.Network] = append(out[a.Network], a.IP)
		if a.IP6 != "" {
			out[a.Network] = append(out[a.Network], a.IP6)
		}
	}
	return out
}

// probe asks from an instance, and returns the answer to each question.
func probe(t *testing.T, app, instance, how string, whom []string) map[string]string {
	t.Helper()
	out := map[string]string{}
	if len(whom) == 0 {
		return out
	}
	text := tutti(t, append([]string{"exec", app + "/" + instance, "/probe", how}, whom...)...)
	for line := range strings.Lines(text) {
		who, answer, _ := strings.Cut(strings.TrimSpace(line), " ")
		out[who] = answer
	}
	return out
}

// TestEveryInstanceReachesItsNetworksAndNothingElse asks from each instance all addresses and names of
// all others, by connections of many packets and by datagrams.
func TestEveryInstanceReachesItsNetworksAndNothingElse(t *testing.T) {
	began := time.Now()
	_, err := os.Stat("/dev/net/tun") // or WireGuard in the kernel, which is not looked for
	deployText(t, "matrix", fmt.Sprintf(matrix, err == nil))
	t.Logf("one of the networks is encrypted: %t", err == nil)
	all := slices.DeleteFunc(query[[]probed](t, "ps", "matrix"), func(p probed) bool { return !strings.HasPrefix(p.Workload, "matrix/") })
	if len(all) != 13 {
		t.Fatalf("%d instances run, want 13: %+v", len(all), all)
	}
	networksOf, hosts := map[string]map[string]bool{}, map[string]bool{} // by workload
	for _, p := range all {
		networksOf[p.Workload] = map[string]bool{}
		hosts[p.Node] = true
		for n := range p.addresses() {
			networksOf[p.Workload][n] = true
		}
	}
	if len(hosts) < 2 {
		t.Errorf("all run on %v", hosts)
	}
	share := func(a, b string) bool {
		for n := range networksOf["matrix/"+a] {
			if networksOf["matrix/"+b][n] {
				return true
			}
		}
		return false
	}
	var wait sync.WaitGroup
	var mu sync.Mutex
	asked, answered := 0, 0
	some := make(chan struct{}, 3) // at a time
	for _, from := range all {
		wait.Go(func() {
			some <- struct{}{}
			defer func() { <-some }()
			own := from.addresses()
			reach, refuse, sizes := map[string]string{}, map[string]bool{}, map[string]string{}
			for _, to := range all {
				for network, list := range to.addresses() {
					for _, ip := range list {
						address := netip.AddrPortFrom(netip.MustParseAddr(ip), 8080).String()
						host := strings.ReplaceAll(to.Name, ".", "-")
						if own[network] == nil {
							refuse[address] = true
							continue
						}
						reach[address] = host
						sizes[address] = host + " 1300"
					}
				}
			}
			got := probe(t, "matrix", from.Name, "tcp", slices.Sorted(maps.Keys(reach)))
			// Two nodes that send each other the first of an encrypted network at once try it again after five seconds only, as WireGuard does.
			var silent []string
			for address, answer := range got {
				if strings.Contains(answer, "deadline") {
					silent = append(silent, address)
				}
			}
			if len(silent) > 0 {
				t.Logf("%s on %s had no answer from %v in time, and asks again", from.Name, from.Node, silent)
				maps.Copy(got, probe(t, "matrix", from.Name, "tcp", silent))
			}
			datagrams := probe(t, "matrix", from.Name, "udp", slices.Sorted(maps.Keys(reach)))
			wrong := probe(t, "matrix", from.Name, "tcp", slices.Sorted(maps.Keys(refuse)))
			var names []string
			for _, s := range []string{"edge", "both", "deep", "dark", "last", "peer"} {
				names = append(names, s, s+".matrix")
			}
			found := probe(t, "matrix", from.Name, "name", names)
			mu.Lock()
			defer mu.Unlock()
			asked, answered = asked+2*len(reach)+len(refuse)+len(names), answered+2*len(reach)
			for address, host := range reach {
				if !strings.HasPrefix(got[address], host+" ") {
					t.Errorf("%s on %s asks %s and gets %q, want %s", from.Name, from.Node, address, got[address], host)
				}
				if datagrams[address] != sizes[address] {
					t.Errorf("%s on %s sends a datagram to %s and gets %q, want %q", from.Name, from.Node, address, datagrams[address], sizes[address])
				}
			}
			for address := range refuse {
				if !strings.HasPrefix(wrong[address], "error:") || strings.Contains(wrong[address], "deadline") {
					t.Errorf("%s on %s asks %s, which is none of its business, and gets %q, want that it is refused", from.Name, from.Node, address, wrong[address])
				}
			}
			service := strings.Split(from.Name, ".")[0]
			for _, name := range names {
				s := strings.TrimSuffix(name, ".matrix")
				if answer := found[name]; share(service, s) == strings.HasPrefix(answer, "error:") {
					t.Errorf("%s looks up %s and gets %q, and they share a network: %v", from.Name, name, answer, share(service, s))
				}
			}
		})
	}
	wait.Wait()
	t.Logf("%d instances on %d hosts asked %d questions, of which %d were to be answered, after %s",
		len(all), len(hosts), asked, answered, time.Since(began).Round(10*time.Millisecond))

	// By name to what is behind it, over virtual IPs and by the instances' own addresses.
	for address, answer := range probe(t, "matrix", "edge.1", "tcp", []string{"edge:8080", "first:8080", "both:8080", "dark.1:8080"}) {
		if want := strings.Split(strings.Replace(address, "first", "both", 1), ":")[0]; !strings.HasPrefix(answer, strings.ReplaceAll(want, ".", "-")) {
			t.Errorf("%s answers %q", address, answer)
		}
	}
	// What was chosen.
	if got := probe(t, "matrix", "peer.1", "name", []string{"last.1"})["last.1"]; got != "172.29.7.77 fd29:7::1:77" {
		t.Errorf("last.1 is at %q", got)
	}
	// The mesh, on every host, from outside.
	for host := range hosts {
		url := fmt.Sprintf("http://%s:18070/", addressOf(t, host))
		eventually(t, 10*time.Second, url, func() error {
			text, err := get(url)
			if err == nil && !strings.HasPrefix(text, "edge-") {
				err = fmt.Errorf("it answers %.20q", text)
			}
			return err
		})
	}
}

// TestAHundredNetworks has instances on a hundred networks, each with one of its own and all with one
// that is on every network.
func TestAHundredNetworks(t *testing.T) {
	if err := probeImage(); err != nil {
		t.Fatal(err)
	}
	const services, each = 5, 20
	var b strings.Builder
	var networks []string
	fmt.Fprintln(&b, "services:")
	for s := range services {
		var mine []string
		for n := range each {
			mine = append(mine, fmt.Sprintf("n%d", s*each+n))
		}
		networks = append(networks, mine...)
		fmt.Fprintf(&b, "  s%d: {image: 'probe:v1', stop_grace_period: 1s, networks: [%s]}\n", s, strings.Join(mine, ", "))
	}
	fmt.Fprintf(&b, "  hub: {image: 'probe:v1', stop_grace_period: 1s, networks: [%s]}\nnetworks:\n", strings.Join(networks, ", "))
	for _, n := range networks {
		fmt.Fprintf(&b, "  %s: {}\n", n)
	}
	began := time.Now()
	deployText(t, "hundred", b.String())
	t.Logf("a hundred networks, six instances, one of them on all: ready after %s", time.Since(began).Round(10*time.Millisecond))
	var reach []string
	for _, p := range query[[]probed](t, "ps", "hundred") {
		if p.Workload == "hundred/hub" || p.Workload == "" {
			continue
		}
		var own []string
		for _, a := range p.Addresses {
			own = append(own, a.IP+":8080")
		}
		reach = append(reach, own...)
		others := []string{"s0.1:8080", "s1.1:8080", "s2.1:8080", "s3.1:8080", "s4.1:8080"}
		for address, answer := range probe(t, "hundred", p.Name, "tcp", append(others, "hub:8080")) {
			self := strings.TrimSuffix(address, ":8080") == p.Name
			if strings.HasPrefix(answer, "error:") != (!self && address != "hub:8080") {
				t.Errorf("%s asks %s and gets %q", p.Name, address, answer)
			}
		}
	}
	if len(reach) != services*each {
		t.Fatalf("%d addresses, want %d", len(reach), services*each)
	}
	for address, answer := range probe(t, "hundred", "hub.1", "tcp", reach) {
		if !strings.HasPrefix(answer, "s") {
			t.Errorf("hub asks %s and gets %q", address, answer)
		}
	}
}

// routed is two services behind one host, and a third behind another that has a certificate.
const routed = `
x-probe: &probe {image: "probe:v1", stop_grace_period: 5s, expose: ["8080"]}
services:
  web:
    <<: *probe
    scale: 3
    environment: {ROUND: "%d"}
    deploy: {update_config: {parallelism: 1, order: start-first}}
    x-tutti: {routes: [probe.test]}
  api: {<<: *probe, x-tutti: {routes: [{host: probe.test, path: /api, strip_path: true}]}}
  safe: {<<: *probe, x-tutti: {routes: [{host: safe.test, certificate: safe}]}}
secrets:
  safe: {file: %s}
`

// certificateFile makes a certificate for a host, with its key.
func certificateFile(t *testing.T, host string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dataDir, host+".pem")
	data := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestIngress asks every host for what is behind routes, also while services are scaled and updated: no
// request fails.
func TestIngress(t *testing.T) {
	file := certificateFile(t, "safe.test")
	deployText(t, "routed", fmt.Sprintf(routed, 1, file))
	hosts := query[[]hostState](t, "host", "ls")
	ask := func(scheme, address, host, path string) (string, *http.Response, error) {
		client := &http.Client{
			Timeout:       5 * time.Second,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{ServerName: host, InsecureSkipVerify: true}},
		}
		r, err := http.NewRequest("GET", scheme+"://"+address+path, nil)
		if err != nil {
			return "", nil, err
		}
		r.Host = host
		resp, err := client.Do(r)
		if err != nil {
			return "", nil, err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return string(text), resp, err
	}
	for _, h := range hosts {
		for _, c := range []struct{ scheme, host, path, begins string }{
			{"http", "probe.test", "/", "web-"}, {"http", "probe.test", "/api/x", "api-"}, {"https", "safe.test", "/", "safe-"},
		} {
			took := eventually(t, time.Minute, c.scheme+" "+c.host+c.path+" on "+h.Name, func() error {
				text, _, err := ask(c.scheme, h.Address, c.host, c.path)
				if err == nil && !strings.HasPrefix(text, c.begins) {
					err = fmt.Errorf("it answers %.40q", text)
				}
				return err
			})
			if took > 10*time.Second {
				t.Logf("%s %s%s on %s: only after %s", c.scheme, c.host, c.path, h.Name, took.Round(time.Millisecond))
			}
		}
		if _, resp, err := ask("http", h.Address, "safe.test", "/x"); err != nil || resp.Header.Get("Location") != "https://safe.test/x" {
			t.Errorf("without TLS %s answers %v, %v", h.Name, resp, err)
		}
		if _, resp, err := ask("http", h.Address, "nothing.test", "/"); err != nil || resp.StatusCode != http.StatusNotFound {
			t.Errorf("a host without routes gives %v, %v", resp, err)
		}
	}
	stop := make(chan struct{})
	var mu sync.Mutex
	asked, failures := 0, []string(nil)
	var clients sync.WaitGroup
	for _, h := range hosts {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
				text, resp, err := ask("http", h.Address, "probe.test", "/")
				if err == nil && (resp.StatusCode != 200 || !strings.HasPrefix(text, "web-")) {
					err = fmt.Errorf("%s: %.60q", resp.Status, text)
				}
				mu.Lock()
				if asked++; err != nil {
					failures = append(failures, h.Name+": "+err.Error())
				}
				mu.Unlock()
			}
		})
	}
	for _, change := range []func(){
		func() { tutti(t, "scale", "routed/web=5") },
		func() { tutti(t, "scale", "routed/web=1") },
		func() { tutti(t, "scale", "routed/web=3") },
		func() {
			path := filepath.Join(dataDir, "routed.yaml")
			if err := os.WriteFile(path, fmt.Appendf(nil, routed, 2, file), 0o644); err != nil {
				t.Fatal(err)
			}
			tutti(t, "deploy", "-d", "-f", path, "routed")
		},
	} {
		change()
		allWell(t, 60*time.Second)
	}
	close(stop)
	clients.Wait()
	t.Logf("%d requests while the service was scaled up and down and updated, %d failed", asked, len(failures))
	if len(failures) > 0 {
		t.Errorf("%d of %d requests failed: %s", len(failures), asked, strings.Join(failures[:min(5, len(failures))], "; "))
	}
}

// guarded is three services of which one is reached by another alone, and says nothing by itself.
const guarded = `
x-probe: &probe {image: "probe:v1", stop_grace_period: 1s}
services:
  web: {<<: *probe, scale: 2}
  api: {<<: *probe, scale: 2}
  db: {<<: *probe, scale: 2, ports: ["18072:8080"], x-tutti: {allow: [%s, {to: nobody}]}}
networks: {default: {enable_ipv6: true}}
`

// TestPolicies asks from every instance of three services each other one, before and after a policy is changed.
func TestPolicies(t *testing.T) {
	deployText(t, "guarded", fmt.Sprintf(guarded, "web"))
	check := func(allowed string) {
		t.Helper()
		all := query[[]probed](t, "ps", "guarded")
		eventually(t, 20*time.Second, "only "+allowed+" reaches db", func() error {
			for _, from := range all {
				service := strings.Split(from.Name, ".")[0]
				wants := map[string]bool{} // by address: reached
				for _, to := range all {
					for _, list := range to.addresses() {
						for _, ip := range list {
							other := strings.Split(to.Name, ".")[0]
							wants[netip.AddrPortFrom(netip.MustParseAddr(ip), 8080).String()] = from.Name == to.Name ||
								service != "db" && (other != "db" || service == allowed)
						}
					}
				}
				for address, answer := range probe(t, "guarded", from.Name, "tcp", slices.Sorted(maps.Keys(wants))) {
					if reached := !strings.HasPrefix(answer, "error:"); reached != wants[address] || strings.Contains(answer, "deadline") {
						return fmt.Errorf("%s on %s asks %s and gets %q, and is to reach it: %v", from.Name, from.Node, address, answer, wants[address])
					}
				}
			}
			return nil
		})
	}
	check("web")
	for args, reaches := range map[string]bool{"guarded/web guarded/db 8080": true, "guarded/api guarded/db 8080": false, "guarded/db guarded/web 8080": false, "10.209.0.1 guarded/db": false} {
		for _, command := range [][]string{{"explain", "net"}, {"net", "trace"}} {
			out, err := run(append(command, strings.Fields(args)...)...)
			if (err == nil) != reaches {
				t.Errorf("%v %s: %v, want that it reaches: %v\n%s", command, args, err, reaches, out)
			}
		}
	}
	for _, h := range query[[]hostState](t, "host", "ls") {
		if text, err := get("http://" + h.Address + ":18072/"); err == nil {
			t.Errorf("from outside, %s answers %q", h.Name, text)
		}
	}
	path := filepath.Join(dataDir, "guarded.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, guarded, "api, 10.209.0.0/16"), 0o644); err != nil {
		t.Fatal(err)
	}
	tutti(t, "deploy", "-d", "-f", path, "guarded")
	check("api")
	for _, h := range query[[]hostState](t, "host", "ls") {
		eventually(t, 10*time.Second, "from outside on "+h.Name, func() error {
			_, err := get("http://" + h.Address + ":18072/")
			return err
		})
	}
}
