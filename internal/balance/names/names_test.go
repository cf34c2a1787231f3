package names

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

func TestMain(m *testing.M) {
	if Reexec(os.Args) {
		return
	}
	os.Exit(m.Run())
}

func at(pairs ...string) (out []model.Address) {
	for _, p := range pairs {
		n, ip, _ := strings.Cut(p, "=")
		out = append(out, model.Address{Network: n, IP: ip})
	}
	return out
}

func zoneOf(n *wire.Network) *zone {
	z := newZone()
	z.apply(n)
	return z
}

// shop is two networks with a service in front, one behind, and one that is spread by names.
func shop() *wire.Network {
	return &wire.Network{
		Instances: []wire.NetworkInstance{
			{ID: "w1", Name: "web.1", Application: "shop", Workload: "web", WorkloadID: "web", Serves: true, Addresses: at("front=10.1.0.11", "back=10.2.0.11"), Aliases: map[string][]string{"front": {"www", "Blue"}}},
			{ID: "w2", Name: "web.2", Application: "shop", Workload: "web", WorkloadID: "web", Serves: true, Addresses: at("front=10.1.0.12", "back=10.2.0.12"), DNS: []string{"192.0.2.53"}},
			{ID: "d1", Name: "db.1", Application: "shop", Workload: "db", Namespace: "default", WorkloadID: "db", Serves: true, Addresses: at("back=10.2.0.21")},
			{ID: "d2", Name: "db.2", Application: "shop", Workload: "db", Namespace: "default", WorkloadID: "db", Addresses: at("back=10.2.0.22")},
			{ID: "p1", Name: "proxy.1", Application: "edge", Workload: "proxy", Addresses: at("front=10.1.0.31")},
			{ID: "m1", Name: "cam.1", Application: "lan", Workload: "cam", WorkloadID: "cam", Serves: true, Addresses: at("hosts=192.168.1.9")},
			{ID: "m2", Name: "cam.2", Application: "lan", Workload: "cam", WorkloadID: "cam", Serves: true, Addresses: at("hosts=192.168.1.10")},
			{ID: "o1", Name: "lone", Workload: "lone", Addresses: at("other=10.3.0.41", "broken=x")},
		},
		Services: []wire.NetworkService{
			{ID: "web", Name: "web", Application: "shop", VirtualIPs: at("front=10.1.0.2", "back=10.2.0.2"), Aliases: map[string][]string{"front": {"shop.example"}}},
			{ID: "db", Name: "db", Application: "shop", Namespace: "default", WorkloadID: "db", VirtualIPs: at("back=10.2.0.3"), Ports: []model.ServicePort{
				{Name: "SQL", Protocol: "tcp", Target: 5432, Virtual: 15432}, {Protocol: "udp", Target: 53},
			}},
			{ID: "rr", Name: "spread", Application: "shop", WorkloadID: "web", RoundRobin: true, VirtualIPs: at("front=10.1.0.4"), Ports: []model.ServicePort{{Name: "http", Protocol: "tcp", Target: 80}}, Aliases: map[string][]string{"front": {"web-front-shop.marathon.mesos"}}},
			{ID: "cam", Name: "cam", Application: "lan", WorkloadID: "cam", OnHosts: []string{"hosts"}, Aliases: map[string][]string{"hosts": {"eye"}}},
			{ID: "idle", Name: "idle", Application: "shop", RoundRobin: true, VirtualIPs: at("front=10.1.0.5")},
		},
	}
}

const (
	webAsks   = "10.1.0.11" // by its address in front
	webBehind = "10.2.0.12"
	dbAsks    = "10.2.0.21"
	proxyAsks = "10.1.0.31"
	loneAsks  = "10.3.0.41"
	stranger  = "192.0.2.1"
)

func TestNamesAsTheAskersNetworksSeeThem(t *testing.T) {
	z := zoneOf(shop())
	for _, c := range []struct {
		asker, name, want string // want is "unknown" when nothing here has the name
	}{
		{webAsks, "web", "10.1.0.2"},
		{"192.168.1.9", "cam", "192.168.1.9 192.168.1.10"}, // on a network of hosts there is no virtual IP
		{"192.168.1.9", "eye", "192.168.1.9 192.168.1.10"},
		{webAsks, "cam", "unknown"},
		{webAsks, "WEB", "10.1.0.2"},
		{webAsks, "web.shop", "10.1.0.2"},
		{webAsks, "web.shop.tutti", "10.1.0.2"},
		{webAsks, "web.internal", "10.1.0.2"},
		{webBehind, "web", "10.1.0.2"}, // its own networks, in their order, however it asks
		{dbAsks, "web", "10.2.0.2"},    // on the network that they share
		{proxyAsks, "web", "10.1.0.2"},
		{proxyAsks, "shop.example", "10.1.0.2"},
		{dbAsks, "shop.example", "unknown"}, // an alias on another network
		{proxyAsks, "db", "unknown"},
		{webAsks, "db", "10.2.0.3"},
		{loneAsks, "web", "unknown"},
		{loneAsks, "lone", "10.3.0.41"},
		{webAsks, "web.1", "10.1.0.11"},
		{dbAsks, "web.1.shop", "10.2.0.11"},
		{proxyAsks, "www", "10.1.0.11"},
		{proxyAsks, "blue", "10.1.0.11"},
		{dbAsks, "www", "unknown"},
		{proxyAsks, "tasks.web", "10.1.0.11 10.1.0.12"},
		{dbAsks, "tasks.web.shop", "10.2.0.11 10.2.0.12"},
		{dbAsks, "tasks.db", "10.2.0.21"},
		{proxyAsks, "tasks.db", "unknown"},
		{proxyAsks, "spread", "10.1.0.11 10.1.0.12"},
		{proxyAsks, "idle", ""},
		{dbAsks, "spread", "unknown"},
		{stranger, "web", "unknown"},  // none of its business
		{dbAsks, "db.2", "10.2.0.22"}, // an instance is reached by its name, also while it does not serve
		{dbAsks, "db.default.svc.cluster.local", "10.2.0.3"},
		{dbAsks, "db.2.db.default.svc.cluster.local", "10.2.0.22"},
		{dbAsks, "db.other.svc.cluster.local", "unknown"},
		{dbAsks, "default.svc.cluster.local", "unknown"},
		{proxyAsks, "db.default.svc.cluster.local", "unknown"},
		{webBehind, "10-2-0-21.default.pod.cluster.local", "10.2.0.21"},
		{proxyAsks, "10-2-0-21.default.pod.cluster.local", "unknown"},
		{proxyAsks, "spread.shop.marathon.mesos", "10.1.0.11 10.1.0.12"},
		{dbAsks, "db.shop.marathon.mesos", "10.2.0.21"},
		{proxyAsks, "web-front-shop.marathon.mesos", "10.1.0.11 10.1.0.12"}, // what a service is also called
		{dbAsks, "web-front-shop.marathon.mesos", "unknown"},
		{stranger, "nothing", "unknown"},
		{webAsks, "example.org", "unknown"},
	} {
		got := z.lookup(netip.MustParseAddr(c.asker), c.name)
		text := "unknown"
		if got.known {
			text = strings.Trim(fmt.Sprint(got.addresses), "[]")
		}
		if text != c.want {
			t.Errorf("%s asks for %s and gets %q, want %q", c.asker, c.name, text, c.want)
		}
	}
}

func TestPorts(t *testing.T) {
	r := responderFor(shop())
	for question, want := range map[string]string{
		"_http._tcp.spread.":                        "web.1.shop.tutti.:80 web.2.shop.tutti.:80",
		"_80._tcp.spread.shop.tutti.":               "web.1.shop.tutti.:80 web.2.shop.tutti.:80",
		"spread.":                                   "web.1.shop.tutti.:80 web.2.shop.tutti.:80",
		"_spread._tcp.marathon.mesos.":              "web.1.shop.tutti.:80 web.2.shop.tutti.:80",
		"_spread.shop._tcp.marathon.mesos.":         "web.1.shop.tutti.:80 web.2.shop.tutti.:80",
		"_http._udp.spread.":                        "",
		"_sql._tcp.db.":                             "db.1.shop.tutti.:5432",
		"db.":                                       "db.1.shop.tutti.:53 db.1.shop.tutti.:5432",
		"_sql._tcp.db.default.svc.cluster.local.":   "db.default.svc.cluster.local.:15432",
		"_sql._tcp.db.elsewhere.svc.cluster.local.": "NXDOMAIN",
		"_sql._tcp.nothing.":                        "NXDOMAIN",
	} {
		m := ask(r, webAsks, question, dns.TypeSRV)
		var got []string
		for _, rr := range m.Answer {
			s := rr.(*dns.SRV)
			got = append(got, fmt.Sprint(s.Target, ":", s.Port))
			if !slices.ContainsFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Name == s.Target }) {
				t.Errorf("%s names %s without its address", question, s.Target)
			}
		}
		slices.Sort(got)
		if m.Rcode != dns.RcodeSuccess {
			got = []string{dns.RcodeToString[m.Rcode]}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s gives %v, want %s", question, got, want)
		}
	}
}

// TestNamesOfAddresses that a service leads to wherever they are: each has one below the service's, its own or by what it is.
func TestNamesOfAddresses(t *testing.T) {
	n := shop()
	n.Services = append(n.Services, wire.NetworkService{
		ID: "head", Name: "head", Namespace: "default", Direct: true, RoundRobin: true, VirtualIPs: at("front=10.1.0.6"),
		Backends: []model.Backend{{Address: "10.1.0.11", Name: "blue"}, {Address: "10.1.0.12"}}, Ports: []model.ServicePort{{Name: "http", Protocol: "tcp", Target: 80}},
	})
	r := responderFor(n)
	var got []string
	m := ask(r, proxyAsks, "_http._tcp.head.default.svc.cluster.local.", dns.TypeSRV)
	for _, rr := range m.Answer {
		s := rr.(*dns.SRV)
		got = append(got, fmt.Sprint(s.Target, ":", s.Port))
		if a := ask(r, proxyAsks, s.Target, dns.TypeA); len(a.Answer) != 1 || len(m.Extra) != 2 {
			t.Errorf("the name %s means %v; the answer came with %v", s.Target, a.Answer, m.Extra)
		}
	}
	slices.Sort(got)
	if want := "10-1-0-12.head.default.svc.cluster.local.:80 blue.head.default.svc.cluster.local.:80"; strings.Join(got, " ") != want {
		t.Errorf("its ports are at %v, want %s", got, want)
	}
	for _, none := range []string{"10-1-0-11.head.default.svc.cluster.local.", "blue.head.other.svc.cluster.local."} {
		if a := ask(r, proxyAsks, none, dns.TypeA); a.Rcode != dns.RcodeNameError {
			t.Errorf("%s means %v", none, a.Answer)
		}
	}
}

// Two applications have a service of one name on a network: each means its own, and others both.
func TestOneNameTwice(t *testing.T) {
	n := shop()
	n.Services = append(n.Services, wire.NetworkService{ID: "web2", Name: "web", Application: "edge", VirtualIPs: at("front=10.1.0.9")})
	n.Instances = append(n.Instances, wire.NetworkInstance{ID: "x", Name: "x.1", Application: "third", Addresses: at("front=10.1.0.41")})
	z := zoneOf(n)
	for asker, want := range map[string]string{webAsks: "[10.1.0.2]", proxyAsks: "[10.1.0.9]", "10.1.0.41": "[10.1.0.2 10.1.0.9]"} {
		if got := fmt.Sprint(z.lookup(netip.MustParseAddr(asker), "web").addresses); got != want {
			t.Errorf("to %s web means %s, want %s", asker, got, want)
		}
	}
}

// A zone that follows the state by differences is the same as one that is told it whole.
func TestDifferencesLeadToTheSameZone(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	state := func() *wire.Network {
		n := &wire.Network{}
		for i := range 8 {
			if random.IntN(3) > 0 {
				n.Instances = append(n.Instances, wire.NetworkInstance{
					ID: fmt.Sprint("i", i), Name: fmt.Sprint("w.", i), Application: "app", Workload: "w", WorkloadID: fmt.Sprint("w", i%2),
					Serves: random.IntN(2) == 0, Addresses: at(fmt.Sprint("n", random.IntN(2), "=10.0.0.", i+1+random.IntN(2)*100)), Aliases: map[string][]string{"n0": {"also"}},
				})
			}
		}
		for i := range 4 {
			if random.IntN(3) > 0 {
				n.Services = append(n.Services, wire.NetworkService{ID: fmt.Sprint("s", i), Name: "s", Application: fmt.Sprint("a", i%2), WorkloadID: fmt.Sprint("w", i%2), VirtualIPs: at(fmt.Sprint("n", i%2, "=10.0.1.", i))})
			}
		}
		return n
	}
	dir := t.TempDir()
	writer, reader := &journal{path: filepath.Join(dir, stateFile)}, &journal{path: filepath.Join(dir, stateFile)}
	followed, before := newZone(), map[string]string{}
	for step := range 200 {
		n, changed := state(), &wire.Changes{Instances: map[string]bool{}, Services: map[string]bool{}}
		now := map[string]string{}
		for _, i := range n.Instances {
			now[i.ID] = fmt.Sprint(i)
		}
		for _, s := range n.Services {
			now[s.ID] = fmt.Sprint(s)
		}
		for _, m := range []map[string]string{now, before} {
			for id := range m {
				switch {
				case now[id] == before[id]:
				case id[0] == 's':
					changed.Services[id] = true
				default:
					changed.Instances[id] = true
				}
			}
		}
		if before = now; step%70 > 0 {
			n.Changes = changed
		}
		if err := writer.write(n); err != nil {
			t.Fatal(err)
		}
		if random.IntN(3) == 0 {
			continue // the responder reads less often than the agent writes
		}
		if err := reader.read(followed.apply); err != nil {
			t.Fatal(err)
		}
		whole := zoneOf(n)
		for _, z := range []*zone{whole, followed} {
			for p := range z.names {
				slices.SortFunc(z.names[p], func(a, b record) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
			}
		}
		if a, b := fmt.Sprint(whole.names, whole.serving, len(whole.owners)), fmt.Sprint(followed.names, followed.serving, len(followed.owners)); a != b {
			t.Fatalf("after step %d the zone is\n%s\nwant\n%s", step, b, a)
		}
	}
}

func TestCache(t *testing.T) {
	c, now := newCache(), time.Unix(1000, 0)
	q := new(dns.Msg).SetQuestion("example.org.", dns.TypeA)
	reply := new(dns.Msg).SetReply(q)
	reply.Answer = append(reply.Answer, &dns.A{Hdr: dns.RR_Header{Name: "example.org.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(203, 0, 113, 7)})
	c.put("u", reply, now)
	again := new(dns.Msg).SetQuestion("example.org.", dns.TypeA)
	m := c.get("u", again, now.Add(20*time.Second))
	if m == nil || m.Id != again.Id || m.Answer[0].Header().Ttl != 40 || reply.Answer[0].Header().Ttl != 60 {
		t.Errorf("after 20s of 60 the answer is %v", m)
	}
	if c.get("u", again, now.Add(time.Minute)) != nil || c.get("other", again, now) != nil || c.get("u", new(dns.Msg).SetQuestion("example.org.", dns.TypeAAAA), now) != nil {
		t.Error("an answer is given that does not hold, or to another question")
	}
	refused := new(dns.Msg).SetRcode(q, dns.RcodeNameError)
	c.put("n", refused, now)
	if c.get("n", again, now) != nil {
		t.Error("an answer that does not say how long it holds was kept")
	}
	refused.Ns = append(refused.Ns, &dns.SOA{Hdr: dns.RR_Header{Name: "org.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 900}, Minttl: 10})
	c.put("n", refused, now)
	if m := c.get("n", again, now.Add(9*time.Second)); m == nil || m.Rcode != dns.RcodeNameError {
		t.Errorf("that there is no such name is %v", m)
	}
	if c.get("n", again, now.Add(10*time.Second)) != nil {
		t.Error("that there is no such name was kept for too long")
	}
	for i := range 3 * mostKept {
		q := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.", i), dns.TypeA)
		r := new(dns.Msg).SetReply(q)
		r.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(203, 0, 113, 7)}}
		c.put("u", r, now)
	}
	if len(c.kept) > mostKept {
		t.Errorf("%d answers are kept, more than %d", len(c.kept), mostKept)
	}
}

// A service's name means its virtual IP, also where an instance was given that alias.
func TestServicesComeBeforeAliases(t *testing.T) {
	n := shop()
	n.Instances[3].Aliases = map[string][]string{"front": {"web"}}
	if got := zoneOf(n).lookup(netip.MustParseAddr(webAsks), "web"); fmt.Sprint(got.addresses) != "[10.1.0.2]" {
		t.Errorf("web means %v", got.addresses)
	}
}

func responderFor(n *wire.Network, upstreams ...string) *responder {
	r := newResponder()
	r.zone.apply(n)
	r.upstreams.Store(&upstreams)
	return r
}

func ask(r *responder, asker, name string, kind uint16) *dns.Msg {
	return r.answer(netip.MustParseAddr(asker), new(dns.Msg).SetQuestion(name, kind), "udp")
}

func TestAnswers(t *testing.T) {
	r := responderFor(shop())
	m := ask(r, proxyAsks, "Tasks.Web.", dns.TypeA)
	var got []string
	for _, rr := range m.Answer {
		a, ok := rr.(*dns.A)
		if !ok || a.Hdr.Name != "Tasks.Web." || a.Hdr.Ttl != ttl {
			t.Fatalf("an answer is %v", rr)
		}
		got = append(got, a.A.String())
	}
	slices.Sort(got)
	if m.Rcode != dns.RcodeSuccess || !m.Response || !m.RecursionAvailable || !slices.Equal(got, []string{"10.1.0.11", "10.1.0.12"}) {
		t.Errorf("the answer is %v", m)
	}
	// A name that exists has no IPv6 address, which is not the same as not existing.
	if m := ask(r, proxyAsks, "web.", dns.TypeAAAA); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 0 {
		t.Errorf("IPv6 of a name that exists is %v", m)
	}
	for _, name := range []string{"nothing.", "nothing.tutti.", "web.shop.internal."} {
		want := dns.RcodeNameError
		if name == "web.shop.internal." {
			want = dns.RcodeSuccess
		}
		if m := ask(r, proxyAsks, name, dns.TypeA); m.Rcode != want {
			t.Errorf("%s gives %v, want %s", name, m, dns.RcodeToString[want])
		}
	}
	// Outside names need somebody to ask.
	if m := ask(r, proxyAsks, "example.org.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("without a resolver, an outside name gives %v", m)
	}
	for addr, want := range map[string]string{"11.0.1.10.in-addr.arpa.": "web.1.shop.tutti.", "41.0.3.10.IN-ADDR.arpa.": "lone.tutti."} {
		m := ask(r, proxyAsks, addr, dns.TypePTR)
		if len(m.Answer) != 1 || m.Answer[0].(*dns.PTR).Ptr != want {
			t.Errorf("the name of %s is %v, want %s", addr, m.Answer, want)
		}
	}
	chaos := new(dns.Msg).SetQuestion("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	if m := r.answer(netip.MustParseAddr(proxyAsks), chaos, "udp"); m.Rcode != dns.RcodeRefused {
		t.Errorf("another class gives %v", m)
	}
	if m := r.answer(netip.MustParseAddr(proxyAsks), new(dns.Msg), "udp"); m.Rcode != dns.RcodeRefused {
		t.Errorf("no question gives %v", m)
	}
}

// upstream answers every name with its own address.
func upstream(t *testing.T, network string) (address string) {
	t.Helper()
	s := &dns.Server{Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(203, 0, 113, 7)})
		if err := w.WriteMsg(m); err != nil {
			t.Error(err)
		}
	})}
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.PacketConn, address = c, c.LocalAddr().String()
	} else {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.Listener, address = l, l.Addr().String()
	}
	started := make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return address
}

func TestOutsideNamesAreAskedOutside(t *testing.T) {
	gone, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for _, network := range []string{"udp", "tcp"} {
		r := responderFor(shop(), gone.LocalAddr().String(), upstream(t, network))
		q := new(dns.Msg).SetQuestion("example.org.", dns.TypeA)
		m := r.answer(netip.MustParseAddr(webAsks), q, network)
		if m.Id != q.Id || len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "203.0.113.7" {
			t.Errorf("over %s an outside name gives %v", network, m)
		}
		if m := r.answer(netip.MustParseAddr(webAsks), new(dns.Msg).SetQuestion("web.", dns.TypeA), network); m.Answer[0].(*dns.A).A.String() != "10.1.0.2" {
			t.Errorf("a name of the cluster was asked outside: %v", m)
		}
	}
}

// query asks a responder over the network.
func query(listen, name string) (string, error) {
	m, _, err := (&dns.Client{Timeout: time.Second}).Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), listen)
	if err != nil {
		return "", err
	}
	if len(m.Answer) == 0 {
		return dns.RcodeToString[m.Rcode], nil
	}
	return m.Answer[0].(*dns.A).A.String(), nil
}

// ownPort takes a port that no other program is given while the test has let go of it: one below those that the kernel
// hands out by itself, free for UDP and TCP.
func ownPort(t *testing.T) net.PacketConn {
	t.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(20000))
		stream, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		packets, err := net.ListenPacket("udp", address)
		if cerr := stream.Close(); cerr != nil {
			t.Fatal(cerr)
		}
		if err == nil {
			return packets
		}
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil
}

func TestTheResponderOutlivesItsAgent(t *testing.T) {
	port := ownPort(t)
	listen := port.LocalAddr().String()
	p := New(filepath.Join(t.TempDir(), "names"), listen, slog.New(slog.DiscardHandler))
	n := &wire.Network{Instances: []wire.NetworkInstance{
		{ID: "me", Name: "me", Workload: "me", Addresses: at("net=127.0.0.1")}, // this test asks as an instance
		{ID: "a", Name: "peer", Workload: "peer", Addresses: at("net=10.1.0.1")},
	}}
	ctx := t.Context()
	if err := p.Keep(ctx); err != nil {
		t.Errorf("keeping what was never begun: %v", err)
	}
	if err := p.Sync(ctx, n); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("an address that is taken gives %v, want that it says so", err)
	}
	if err := port.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Sync(ctx, n); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
	want := func(name, address string) {
		t.Helper()
		var got string
		var err error
		if got, err = query(listen, name); err != nil || got != address {
			t.Fatalf("%s gives %q, %v; want %s", name, got, err, address)
		}
	}
	if got, err := query(listen, "peer."); err != nil || got != "10.1.0.1" { // at once, when Sync is done
		t.Errorf("peer gives %q, %v", got, err)
	}
	first, running := p.Running()
	if !running {
		t.Fatal("no responder runs")
	}
	// Another agent finds it, and tells it what is new.
	p = New(p.Dir, listen, p.Log)
	n.Instances[1].Addresses = at("net=10.1.0.2")
	if err := p.Sync(ctx, n); err != nil {
		t.Fatal(err)
	}
	want("peer.", "10.1.0.2")
	if now, _ := p.Running(); now != first {
		t.Errorf("responder %d took the place of %d", now, first)
	}
	if err := p.Keep(ctx); err != nil {
		t.Error(err)
	}
	// If it dies, it is started again.
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for { // the kernel needs a moment to let go of its lock
		if _, running := p.Running(); !running {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := p.Keep(ctx); err != nil {
		t.Fatal(err)
	}
	want("peer.", "10.1.0.2")
	if now, running := p.Running(); !running || now == first {
		t.Errorf("responder %d runs: %v", now, running)
	}
}

// TestNamesThatStandForOthers are answered with what they stand for, and what that means here or elsewhere.
func TestNamesThatStandForOthers(t *testing.T) {
	n := shop()
	for name, other := range map[string]string{"far": "example.org", "near": "web.tutti", "round": "round.default.svc.cluster.local"} {
		n.Services = append(n.Services, wire.NetworkService{
			ID: name, Name: name, Namespace: "default", Direct: true, ExternalName: other, VirtualIPs: at("front=10.1.0.9"),
		})
	}
	r := responderFor(n, upstream(t, "udp"))
	for _, c := range []struct {
		name string
		kind uint16
		want string
	}{
		{"far.default.svc.cluster.local.", dns.TypeA, "example.org. 203.0.113.7"},
		{"far.default.svc.cluster.local.", dns.TypeCNAME, "example.org."},
		{"near.default.svc.cluster.local.", dns.TypeA, "web.tutti. 10.1.0.2"},
		{"near.default.svc.cluster.local.", dns.TypeAAAA, "web.tutti."},
		{"round.default.svc.cluster.local.", dns.TypeA, strings.Repeat("round.default.svc.cluster.local. ", mostAliases+1)},
	} {
		m := ask(r, webAsks, c.name, c.kind)
		var got []string
		for _, rr := range m.Answer {
			switch rr := rr.(type) {
			case *dns.CNAME:
				got = append(got, rr.Target)
			case *dns.A:
				got = append(got, rr.A.String())
			}
		}
		if m.Rcode != dns.RcodeSuccess || strings.Join(got, " ") != strings.TrimSpace(c.want) {
			t.Errorf("%s of kind %s gives %v", c.name, dns.TypeToString[c.kind], m)
		}
	}
}
