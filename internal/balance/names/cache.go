package names

import (
	"sync"
	"time"

	"github.com/miekg/dns"
)

// cache keeps answers from outside for as long as they say, a few minutes at most, per set of resolvers.
type cache struct {
	mu   sync.Mutex
	kept map[asked]kept
}

type asked struct {
	upstreams, name string
	kind            uint16
}

type kept struct {
	reply        *dns.Msg
	since, until time.Time
}

const (
	mostKept     = 4096
	longestKept  = 5 * time.Minute
	longestNoKep = 30 * time.Second // that there is no such name
)

func newCache() *cache { return &cache{kept: map[asked]kept{}} }

// get returns an answer to the question, with the time that is left to it.
func (c *cache) get(upstreams string, q *dns.Msg, now time.Time) *dns.Msg {
	c.mu.Lock()
	k, ok := c.kept[asked{upstreams, q.Question[0].Name, q.Question[0].Qtype}]
	c.mu.Unlock()
	if !ok || !now.Before(k.until) {
		return nil
	}
	m := k.reply.Copy()
	m.Id = q.Id
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT {
				h.Ttl -= min(h.Ttl, uint32(now.Sub(k.since)/time.Second))
			}
		}
	}
	return m
}

// put keeps an answer, if it is complete and says for how long it holds.
func (c *cache) put(upstreams string, reply *dns.Msg, now time.Time) {
	if len(reply.Question) != 1 || reply.Truncated || reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError {
		return
	}
	holds := longestKept
	for _, rr := range reply.Answer {
		holds = min(holds, time.Duration(rr.Header().Ttl)*time.Second)
	}
	if len(reply.Answer) == 0 {
		holds = 0
		for _, rr := range reply.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				holds = min(longestNoKep, time.Duration(min(soa.Minttl, soa.Hdr.Ttl))*time.Second)
			}
		}
	}
	if holds <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.kept) >= mostKept {
		for key, k := range c.kept { // what has ended, and otherwise any
			if !now.Before(k.until) || len(c.kept) >= mostKept {
				delete(c.kept, key)
			}
		}
	}
	key := asked{upstreams, reply.Question[0].Name, reply.Question[0].Qtype}
	c.kept[key] = kept{reply: reply.Copy(), since: now, until: now.Add(holds)}
}
