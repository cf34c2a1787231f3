package provision

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/autoscale"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// made is a provider and its cluster in memory. Hosts are members, and ready, once added; they are down
// once stopped.
type made struct {
	hosts   []Host
	members []autoscale.HostView
	waiting []autoscale.Waiting
	refuse  error
	did     []string
}

func (m *made) note(format string, args ...any) { m.did = append(m.did, fmt.Sprintf(format, args...)) }

func (m *made) Hosts() ([]Host, error) { return slices.Clone(m.hosts), nil }

func (m *made) Add(context.Context) (string, error) {
	if m.refuse != nil {
		return "", m.refuse
	}
	name := fmt.Sprint("host-", len(m.hosts)+1)
	m.hosts = append(m.hosts, Host{Name: name, Server: len(m.hosts) == 0})
	m.members = append(m.members, autoscale.HostView{Name: name, Server: len(m.hosts) == 1, Ready: true, Open: true, Empty: true, Instances: 1})
	m.note("add %s", name)
	return name, nil
}

func (m *made) SetLeaving(name string, leaving bool) error {
	m.note("leaving %s %t", name, leaving)
	m.hosts[slices.IndexFunc(m.hosts, func(h Host) bool { return h.Name == name })].Leaving = leaving
	return nil
}

func (m *made) Stop(_ context.Context, name string) error {
	m.note("stop %s", name)
	if h := m.member(name); h != nil {
		h.Ready, h.Open = false, false
	}
	return nil
}

func (m *made) Remove(_ context.Context, name string) error {
	m.note("remove %s", name)
	m.hosts = slices.DeleteFunc(m.hosts, func(h Host) bool { return h.Name == name })
	return nil
}

func (m *made) member(name string) *autoscale.HostView {
	if n := slices.IndexFunc(m.members, func(h autoscale.HostView) bool { return h.Name == name }); n >= 0 {
		return &m.members[n]
	}
	return nil
}

func (m *made) HostDemand(_ context.Context, _ string, most int) (autoscale.Demand, error) {
	return autoscale.Demand{Waiting: m.waiting, Further: min(len(m.waiting), most), Hosts: slices.Clone(m.members)}, nil
}

func (m *made) TellHost(_ context.Context, news autoscale.HostNews, host, why string) error {
	m.note("%s %s: %s", news, host, why)
	return nil
}

func (m *made) SetAvailability(_ context.Context, node string, a model.Availability) error {
	h := m.member(node)
	if h == nil {
		return fault.New(fault.NotFound, "there is no %s", node)
	}
	m.note("%s %s", a, node)
	if h.Open = a == model.Active; a == model.Draining {
		h.Instances = 0
	}
	return nil
}

func (m *made) RemoveNode(_ context.Context, node string) error {
	m.note("forget %s", node)
	m.members = slices.DeleteFunc(m.members, func(h autoscale.HostView) bool { return h.Name == node })
	return nil
}

// look lets so many seconds pass, with a look in each.
func (m *made) look(t *testing.T, g *Growing, seconds int, now *time.Time) {
	t.Helper()
	for range seconds {
		*now = now.Add(time.Second)
		if err := g.Look(t.Context(), m, *now); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *made) want(t *testing.T, want ...string) {
	t.Helper()
	if got := strings.Join(m.did, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("it did\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	m.did = nil
}

func newMade(t *testing.T, hosts int) (*made, *Growing) {
	m := &made{}
	for range hosts {
		if _, err := m.Add(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	m.did = nil
	return m, &Growing{Provider: m, Log: slog.New(slog.DiscardHandler),
		Policy: autoscale.HostPolicy{Min: 1, Max: 3, AskAfter: 5 * time.Second, GiveBackAfter: time.Minute}}
}

func TestAHostComesAndGoes(t *testing.T) {
	m, g := newMade(t, 1)
	now := time.Unix(1e9, 0)
	m.waiting = []autoscale.Waiting{{Slot: "a", Name: "shop/web.2"}}
	m.look(t, g, 6, &now)
	m.want(t, "host asked for : 1 further: shop/web.2 has waited for a place for 5s", "add host-2")
	m.waiting, m.member("host-2").Empty = nil, false
	m.look(t, g, 300, &now)
	m.want(t)
	m.member("host-2").Empty = true
	m.look(t, g, 80, &now)
	m.want(t, "host given back host-2: it has had nothing to do for 1m0s; of 2 hosts at least 1 stay", "leaving host-2 true",
		"cordoned host-2", "draining host-2", "stop host-2", "stop host-2", "forget host-2", "remove host-2")
}

func TestAHostIsKeptWhenWorkComes(t *testing.T) {
	m, g := newMade(t, 2)
	now := time.Unix(1e9, 0)
	for len(m.did) == 0 {
		m.look(t, g, 1, &now)
	}
	m.member("host-2").Empty = false
	m.look(t, g, 100, &now)
	m.want(t, "host given back host-2: it has had nothing to do for 1m0s; of 2 hosts at least 1 stay", "leaving host-2 true",
		"active host-2", "leaving host-2 false", "host kept host-2: work came while it was being given back")
}

// TestGivingBackGoesOn begins anew after every step, as after crashes.
func TestGivingBackGoesOn(t *testing.T) {
	m, g := newMade(t, 2)
	m.hosts[1].Leaving = true
	now := time.Unix(1e9, 0)
	for range 10 {
		m.look(t, &Growing{Provider: m, Policy: g.Policy, Log: g.Log}, 1, &now)
	}
	m.want(t, "cordoned host-2", "draining host-2", "stop host-2", "stop host-2", "forget host-2", "remove host-2")
	m, g = newMade(t, 2)
	m.hosts[1].Leaving, m.members = true, m.members[:1] // it is forgotten, and is there still
	m.look(t, g, 3, &now)
	m.want(t, "remove host-2")
}

func TestAProviderThatRefuses(t *testing.T) {
	m, g := newMade(t, 1)
	now := time.Unix(1e9, 0)
	m.refuse, m.waiting = errors.New("no room in the rack"), []autoscale.Waiting{{Slot: "a", Name: "shop/web.2"}}
	m.look(t, g, 60, &now)
	m.want(t, "host asked for : 1 further: shop/web.2 has waited for a place for 5s", "host refused : no room in the rack")
}
