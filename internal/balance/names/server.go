package names

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/tutti-run/tutti/internal/balance/beside"
)

const (
	role = "tutti-names"
	ttl  = 5 // seconds: what a name means changes with what runs
)

// Reexec runs the responder when this program was started for that; main calls it first.
func Reexec(args []string) bool {
	dir, rest, ok := beside.Reexec(args, role)
	if !ok || len(rest) != 1 {
		return false
	}
	debug.SetGCPercent(30)
	if err := respond(dir, rest[0]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// responder is the process that answers.
type responder struct {
	zone      *zone
	upstreams atomic.Pointer[[]string] // of the host
	outside   *cache
}

func newResponder() *responder { return &responder{zone: newZone(), outside: newCache()} }

// respond answers until it is told to end.
func respond(dir, listen string) error {
	r, state := newResponder(), &journal{path: filepath.Join(dir, stateFile)}
	load := func() error {
		r.resolvers()
		return state.read(r.zone.apply)
	}
	if err := load(); err != nil {
		return err
	}
	failed, answering := make(chan error, 2), make(chan struct{})
	var both sync.WaitGroup
	both.Add(2)
	for _, network := range []string{"udp", "tcp"} {
		s := &dns.Server{Addr: listen, Net: network, Handler: r, ReadTimeout: 2 * time.Second, NotifyStartedFunc: both.Done}
		if network == "udp" {
			s.ReadTimeout = time.Hour // it only wakes for nothing
		}
		go func() { failed <- fmt.Errorf("answer names on %s: %w", listen, s.ListenAndServe()) }()
	}
	go func() { both.Wait(); close(answering) }()
	return beside.Serve(dir, answering, failed, func(string) string {
		if err := load(); err != nil {
			return err.Error() // what was known is still the best answer to others
		}
		return "ok"
	})
}

// resolvers looks up whom the host asks.
func (r *responder) resolvers() {
	var upstreams []string
	if conf, err := dns.ClientConfigFromFile("/etc/resolv.conf"); err == nil { // without one, there is nobody to ask
		for _, s := range conf.Servers {
			upstreams = append(upstreams, net.JoinHostPort(s, conf.Port))
		}
	}
	r.upstreams.Store(&upstreams)
}

// ServeDNS implements dns.Handler.
func (r *responder) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	network := w.LocalAddr().Network()
	m := r.answer(askerOf(w.RemoteAddr()), q, network)
	size := dns.MaxMsgSize
	if network == "udp" {
		size = dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
	}
	m.Truncate(size) // who gets a part only asks again over a connection
	w.WriteMsg(m)    // an asker that is gone asks again
}

func askerOf(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

func (r *responder) answer(asker netip.Addr, q *dns.Msg, network string) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	if len(q.Question) != 1 || q.Question[0].Qclass != dns.ClassINET {
		m.Rcode = dns.RcodeRefused
		return m
	}
	question := q.Question[0]
	if !r.fromZone(asker, strings.TrimSuffix(question.Name, "."), question, m) {
		return r.forward(asker, q, m, network)
	}
	r.followAliases(asker, question.Qtype, m, network)
	return m
}

// mostAliases is how many names in a row may stand for another.
const mostAliases = 8

// followAliases adds what the name means that the answer ends with, here or elsewhere.
func (r *responder) followAliases(asker netip.Addr, kind uint16, m *dns.Msg, network string) {
	for range mostAliases {
		if len(m.Answer) == 0 || kind == dns.TypeCNAME {
			return
		}
		alias, ok := m.Answer[len(m.Answer)-1].(*dns.CNAME)
		if !ok {
			return
		}
		q := new(dns.Msg)
		q.SetQuestion(alias.Target, kind)
		if r.fromZone(asker, strings.TrimSuffix(alias.Target, "."), q.Question[0], m) {
			continue
		}
		reply := new(dns.Msg)
		reply.SetReply(q)
		reply = r.forward(asker, q, reply, network)
		m.Answer, m.Rcode = append(m.Answer, reply.Answer...), reply.Rcode
		return
	}
}

// fromZone answers what the cluster knows, or alone could know. It reports false for names that others
// may know.
func (r *responder) fromZone(asker netip.Addr, name string, question dns.Question, m *dns.Msg) bool {
	z := r.zone
	z.mu.RLock()
	defer z.mu.RUnlock()
	head := dns.RR_Header{Name: question.Name, Class: dns.ClassINET, Ttl: ttl}
	if question.Qtype == dns.TypePTR {
		ip, ok := reversed(name)
		if ok = ok && z.reverse(ip) != ""; ok {
			head.Rrtype = dns.TypePTR
			m.Answer = append(m.Answer, &dns.PTR{Hdr: head, Ptr: z.reverse(ip) + suffixes[0] + "."})
		}
		return ok
	}
	var known bool
	if question.Qtype == dns.TypeSRV {
		known = r.services(asker, name, head, m)
	} else {
		a := z.lookup(asker, name)
		if known = a.known; a.alias != "" {
			head.Rrtype = dns.TypeCNAME
			m.Answer = append(m.Answer, &dns.CNAME{Hdr: head, Target: dns.Fqdn(a.alias)})
		}
		for _, i := range rand.Perm(len(a.addresses)) {
			if rr := record4or6(head, a.addresses[i]); question.Qtype == rr.Header().Rrtype || question.Qtype == dns.TypeANY {
				m.Answer = append(m.Answer, rr)
			}
		}
	}
	if known {
		return true
	}
	lower := strings.ToLower(name)
	host := plain(lower)
	for strings.HasPrefix(host, "_") { // port and protocol
		_, host, _ = strings.Cut(host, ".")
	}
	ours := !strings.Contains(host, ".")
	for _, s := range append(suffixes, kubeDomain, mesosTasks) {
		ours = ours || strings.HasSuffix(lower, s)
	}
	if !ours {
		return false
	}
	m.Rcode = dns.RcodeNameError
	if z.client(asker) == nil {
		m.Rcode = dns.RcodeServerFailure // an instance that is not known yet asks again, one that was told that there is no such name does not
	}
	return true
}

// services answers a question about ports, with the addresses of what it names.
func (r *responder) services(asker netip.Addr, name string, head dns.RR_Header, m *dns.Msg) bool {
	targets, known := r.zone.ports(asker, name)
	for _, i := range rand.Perm(len(targets)) {
		t := targets[i]
		head.Rrtype = dns.TypeSRV
		host := t.name + cmp.Or(t.domain, suffixes[0]) + "."
		m.Answer = append(m.Answer, &dns.SRV{Hdr: head, Priority: 0, Weight: 1, Port: uint16(t.port), Target: host})
		for _, ip := range t.addresses {
			rr := record4or6(dns.RR_Header{Name: host, Class: dns.ClassINET, Ttl: ttl}, ip)
			m.Extra = append(m.Extra, rr)
		}
	}
	return known
}

func record4or6(head dns.RR_Header, ip netip.Addr) dns.RR {
	if ip.Is4() {
		head.Rrtype = dns.TypeA
		return &dns.A{Hdr: head, A: ip.AsSlice()}
	}
	head.Rrtype = dns.TypeAAAA
	return &dns.AAAA{Hdr: head, AAAA: ip.AsSlice()}
}

func itoa(n int) string { return strconv.Itoa(n) }

// reversed reads "4.3.2.1.in-addr.arpa", or the 32 digits of an address of IPv6 in "ip6.arpa".
func reversed(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	if digits, six := strings.CutSuffix(name, ".ip6.arpa"); six {
		text := strings.ReplaceAll(digits, ".", "")
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != 16 || len(digits) != 63 {
			return netip.Addr{}, false
		}
		var ip [16]byte // the digits come from the end
		for i := range ip {
			ip[15-i] = b[i]>>4 | b[i]<<4
		}
		return netip.AddrFrom16(ip), true
	}
	labels := strings.Split(strings.TrimSuffix(name, ".in-addr.arpa"), ".")
	if len(labels) != 4 {
		return netip.Addr{}, false
	}
	ip, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
	return ip, err == nil
}

func (r *responder) forward(asker netip.Addr, q, m *dns.Msg, network string) *dns.Msg {
	var upstreams []string
	if host := r.upstreams.Load(); host != nil {
		upstreams = *host
	}
	r.zone.mu.RLock()
	if c := r.zone.client(asker); c != nil && len(c.DNS) > 0 {
		upstreams = nil
		for _, s := range c.DNS {
			upstreams = append(upstreams, net.JoinHostPort(s, "53"))
		}
	}
	r.zone.mu.RUnlock()
	key := strings.Join(upstreams, " ")
	if reply := r.outside.get(key, q, time.Now()); reply != nil {
		return reply
	}
	client := &dns.Client{Net: network, Timeout: 2 * time.Second}
	for _, u := range upstreams {
		if reply, _, err := client.Exchange(q, u); err == nil && reply.Rcode != dns.RcodeServerFailure && reply.Rcode != dns.RcodeRefused {
			r.outside.put(key, reply, time.Now())
			return reply
		}
	}
	m.Rcode = dns.RcodeServerFailure
	return m
}
