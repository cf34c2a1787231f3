package autoscale

import (
	"fmt"
	"slices"
	"time"
)

const (
	// hostPatience is how long a host that was asked for may take to be ready. Nothing else is decided
	// meanwhile; afterwards it only counts among those that are there.
	hostPatience = time.Minute
	// hostSettle is how long work has to find its place once all hosts are ready.
	hostSettle = 5 * time.Second
	// askAgainAfter and askAgainAtMost are how long an instance for which a host came, and which still
	// waits, asks for no other: twice as long each time.
	askAgainAfter, askAgainAtMost = time.Minute, time.Hour
)

// HostPolicy bounds how many hosts there are.
type HostPolicy struct {
	Min           int           `json:"min"`
	Max           int           `json:"max"`
	AskAfter      time.Duration `json:"askAfter"`      // how long work waits before a host is asked for
	GiveBackAfter time.Duration `json:"giveBackAfter"` // how long a host is empty before it is given back
}

// Demand is what a cluster says about its hosts.
type Demand struct {
	// Waiting are instances that find no place, and would if there were so many further hosts.
	Waiting []Waiting  `json:"waiting,omitempty"`
	Further int        `json:"further"`
	Hosts   []HostView `json:"hosts"`
}

// Waiting is an instance without a place.
type Waiting struct {
	Slot string `json:"slot"` // the same for all instances that take each other's place
	Name string `json:"name"`
}

// HostView is how a host is.
type HostView struct {
	Name   string `json:"name"`
	Server bool   `json:"server"`
	Ready  bool   `json:"ready"`
	// Open is whether it takes work; people close hosts with which they have plans.
	Open bool `json:"open"`
	// Empty is whether nothing would be missed with it: it has no instances but those that every host
	// has, and no volumes.
	Empty     bool `json:"empty"`
	Instances int  `json:"instances"` // not ended, of any kind
}

// HostInput is all that a decision about hosts rests on. Hosts are those of the provider, in the order
// in which they came; Past is that of the decision before.
type HostInput struct {
	Policy HostPolicy
	Hosts  []HostView
	Demand Demand
	Past   HostPast
	Now    time.Time
}

// HostPast is what is remembered from one decision to the next.
type HostPast struct {
	Waiting   map[string]time.Time // since when, by slot
	Asked     map[string]Asked     // by slot
	Empty     map[string]time.Time // since when, by host
	Unready   map[string]time.Time // since when, by host
	Unsettled time.Time            // when it was last waited for a host
}

// Asked is that a host was asked for an instance.
type Asked struct {
	At    time.Time
	Times int
}

// HostOutput is a decision: to ask for hosts, or to give one back, or neither.
type HostOutput struct {
	Ask      int
	GiveBack string
	Reason   string
	Past     HostPast
}

// NextHosts decides on hosts. More are asked for when instances have waited for a while that would find
// a place there, as many as they need. One that has been empty for a while is given back, the latest
// first, unless it is a server or as few are left as there must be.
func NextHosts(in HostInput) HostOutput {
	out := HostOutput{Past: in.remember()}
	past := &out.Past
	coming := false
	for i := range in.Hosts {
		h := &in.Hosts[i]
		coming = coming || !h.Ready && in.Now.Sub(past.Unready[h.Name]) < hostPatience
	}
	if coming {
		past.Unsettled = in.Now
	}
	if in.Now.Sub(past.Unsettled) < hostSettle {
		return out
	}
	var due []Waiting
	for _, w := range in.Demand.Waiting {
		if in.Now.Sub(past.Waiting[w.Slot]) >= in.Policy.AskAfter && in.Now.Sub(past.Asked[w.Slot].At) >= past.Asked[w.Slot].pause() {
			due = append(due, w)
		}
	}
	if len(due) > 0 {
		out.Ask = max(min(in.Demand.Further, len(due), in.Policy.Max-len(in.Hosts)), 0)
		if out.Ask == 0 {
			return out
		}
		longest := time.Duration(0)
		for _, w := range due {
			past.Asked[w.Slot] = Asked{in.Now, past.Asked[w.Slot].Times + 1}
			longest = max(longest, in.Now.Sub(past.Waiting[w.Slot]))
		}
		past.Unsettled = in.Now
		out.Reason = fmt.Sprintf("%s has waited for a place for %s", due[0].Name, longest.Round(time.Second))
		if len(due) > 1 {
			out.Reason = fmt.Sprintf("%d instances have waited for a place, the longest for %s, %s among them", len(due), longest.Round(time.Second), due[0].Name)
		}
		return out
	}
	if len(in.Hosts) <= in.Policy.Min {
		return out
	}
	for i := range slices.Backward(in.Hosts) {
		h := &in.Hosts[i]
		if since, ok := past.Empty[h.Name]; ok && in.Now.Sub(since) >= in.Policy.GiveBackAfter {
			out.GiveBack = h.Name
			out.Reason = fmt.Sprintf("it has had nothing to do for %s; of %d hosts at least %d stay", in.Now.Sub(since).Round(time.Second), len(in.Hosts), in.Policy.Min)
			return out
		}
	}
	return out
}

func (a Asked) pause() time.Duration {
	if a.Times == 0 {
		return 0
	}
	return min(askAgainAfter<<min(a.Times-1, 10), askAgainAtMost)
}

// remember takes over what still holds. That a host was asked for is forgotten once the instance waits no
// more: the host was of use. While no more hosts may come it is not known who waits.
func (in *HostInput) remember() HostPast {
	past := HostPast{Waiting: map[string]time.Time{}, Asked: map[string]Asked{}, Empty: map[string]time.Time{}, Unready: map[string]time.Time{}, Unsettled: in.Past.Unsettled}
	since := func(before map[string]time.Time, key string) time.Time {
		if t, ok := before[key]; ok {
			return t
		}
		return in.Now
	}
	for _, w := range in.Demand.Waiting {
		past.Waiting[w.Slot] = since(in.Past.Waiting, w.Slot)
	}
	for slot, a := range in.Past.Asked {
		_, waits := past.Waiting[slot]
		if (waits || len(in.Hosts) >= in.Policy.Max) && in.Now.Sub(a.At) < 2*askAgainAtMost {
			past.Asked[slot] = a
		}
	}
	for i := range in.Hosts {
		switch h := &in.Hosts[i]; {
		case !h.Ready:
			past.Unready[h.Name] = since(in.Past.Unready, h.Name)
		case h.Empty && h.Open && !h.Server:
			past.Empty[h.Name] = since(in.Past.Empty, h.Name)
		}
	}
	return past
}

// HostNews is what becomes of a provider's hosts.
type HostNews string

// A provider is asked for hosts, or refuses; a host is given back, or kept as it is needed after all.
const (
	HostAsked     HostNews = "host asked for"
	HostRefused   HostNews = "host refused"
	HostGivenBack HostNews = "host given back"
	HostKept      HostNews = "host kept"
)

// CheckHosts says what is wrong with a policy, "" when nothing is.
func CheckHosts(p HostPolicy) string {
	switch {
	case p.Min < 1 || p.Max < p.Min:
		return fmt.Sprintf("from %d to %d hosts: at least 1, and at most no fewer than at least, are accepted", p.Min, p.Max)
	case p.AskAfter < 0 || p.GiveBackAfter < time.Second:
		return fmt.Sprintf("an empty host is given back after %s: a second or more is accepted", p.GiveBackAfter)
	}
	return ""
}
