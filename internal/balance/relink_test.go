package balance

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/tutti-run/tutti/internal/model"
)

// TestLinksChangeUnderARunningInstance: it joins and leaves networks in the namespace that it has, and reaches
// others by what it has then.
func TestLinksChangeUnderARunningInstance(t *testing.T) {
	l := newLAN(t)
	l.state.Networks = []*model.Network{network("front", "10.99.1.0/24", false), network("back", "10.99.2.0/24", false)}
	peer := l.attach(l.b, "peer", "front=10.99.1.18", "back=10.99.2.18")
	box := l.attach(l.a, "box", "front=10.99.1.2")
	l.serve(peer, ":80", "peer")
	l.serve(box, ":80", "box")
	l.sync()
	l.want(box, "10.99.1.18:80", "peer 10.99.1.2")
	change := func(addresses ...string) {
		t.Helper()
		for i := range l.state.Instances {
			if l.state.Instances[i].ID == "box" {
				l.state.Instances[i].Addresses = at(addresses...)
			}
		}
		if now := l.link(l.a, "box", addresses...); now.UniqueId() != box.UniqueId() {
			t.Fatal("it got another namespace")
		}
		l.sync()
		links := 0
		l.in(box, func() error {
			list, err := netlink.LinkList()
			for _, link := range list {
				if strings.HasPrefix(link.Attrs().Name, "eth") {
					links++
				}
			}
			return err
		})
		if links != len(addresses) {
			t.Errorf("with %v it has %d links", addresses, links)
		}
	}
	change("front=10.99.1.2", "back=10.99.2.2")
	l.want(box, "10.99.2.18:80", "peer 10.99.2.2")
	change("back=10.99.2.2") // leaves the one that led out
	l.want(box, "10.99.2.18:80", "peer 10.99.2.2")
	l.refused(box, "10.99.1.18:80")
	change("back=10.99.2.2", "front=10.99.1.9")
	l.want(peer, "10.99.1.9:80", "box 10.99.1.18")
	change("front=10.99.1.9")
	l.want(box, "10.99.1.18:80", "peer 10.99.1.9")
	change()
}
