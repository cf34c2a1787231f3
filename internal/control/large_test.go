package control_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// What is decided for thousands of instances at once is made in change sets of a bounded size; one
// that fails half-way is continued, not repeated.
func TestManyDecisionsAreNoSingleChange(t *testing.T) {
	inCluster(t, 4, func(c *cluster) {
		const count = 2000
		watch := c.store.Watch(c.store.Snapshot().Revision())
		sent := 0
		c.setOutrun(func() bool { // called before each proposal: the third is refused
			sent++
			if sent == 3 {
				c.mu.Lock()
				c.refuse = 1
				c.mu.Unlock()
			}
			return sent == 3
		})
		c.deploy(workload("many", count))
		c.settle()
		instances := c.instances("many")
		if len(instances) != count {
			t.Fatalf("%d instances were made, want %d", len(instances), count)
		}
		if unplaced := slices.IndexFunc(instances, func(i *model.Instance) bool { return i.NodeID == "" }); unplaced >= 0 {
			t.Errorf("%s has no node", instances[unplaced].Name)
		}
		largest, sets := 0, 0
		ended, end := context.WithCancel(c.Context())
		end() // all that is asked for is there
		for {
			b, err := watch.Next(ended)
			if errors.Is(err, store.ErrTooOld) {
				t.Fatal(err)
			}
			if err != nil {
				break
			}
			sets++
			largest = max(largest, len(b.Changes))
		}
		if largest > 600 || sets < 2*count/500 {
			t.Errorf("%d change sets were made, the largest of %d changes; want at most about 500 in each", sets, largest)
		}
	})
}

// TestNoAddressBeforeItsBlock makes sure that at every moment each address is of a block that the
// network's status gives to the instance's node, though many change sets are under way at a time,
// and one is refused.
func TestNoAddressBeforeItsBlock(t *testing.T) {
	for refused := 1; refused <= 6; refused += 2 {
		inCluster(t, 4, func(c *cluster) {
			const count = 1200
			front := network("front")
			front.Subnet = "10.20.0.0/20" // with 48 blocks, twice what is needed
			c.put(front)
			c.settle()
			watch := c.store.Watch(c.store.Snapshot().Revision())
			sent := 0
			c.setOutrun(func() bool {
				if sent++; sent == refused {
					c.mu.Lock()
					c.refuse = 1
					c.mu.Unlock()
				}
				return sent >= refused
			})
			c.deploy(workload("many", count, joins("front")))
			c.settle()
			ended, end := context.WithCancel(c.Context())
			end()
			addresses := map[string]string{}
			var blocks []model.Block
			for {
				b, err := watch.Next(ended)
				if errors.Is(err, store.ErrTooOld) {
					t.Fatal(err)
				}
				if err != nil {
					break
				}
				for _, ch := range b.Changes {
					if n, ok := ch.New.(*model.Network); ok {
						blocks = n.Status.Blocks
					}
				}
				for _, ch := range b.Changes {
					i, ok := ch.New.(*model.Instance)
					if !ok || i.NodeID == "" {
						continue
					}
					ip := i.Addresses[0].IP
					if other := addresses[ip]; other != "" && other != i.ID {
						t.Fatalf("%s and %s have the address %s", i.ID, other, ip)
					}
					addresses[ip] = i.ID
					if !slices.ContainsFunc(blocks, func(b model.Block) bool {
						return b.NodeID == i.NodeID && netip.MustParsePrefix(b.CIDR).Contains(netip.MustParseAddr(ip))
					}) {
						t.Fatalf("%s has %s, which was of no block of %s then", i.Name, ip, i.NodeID)
					}
				}
			}
			if len(addresses) != count {
				t.Fatalf("%d addresses were given out, want %d", len(addresses), count)
			}
			told := 0
			for _, m := range c.events("instances placed") {
				var n, nodes int
				if _, err := fmt.Sscanf(m, "%d on %d nodes; the first: best of 4 nodes", &n, &nodes); err != nil || nodes != 4 {
					t.Errorf("an event says %q", m)
				}
				told += n
			}
			if told < count || len(c.events("instance placed")) != 0 {
				t.Errorf("events tell of %d placements, want %d", told, count)
			}
		})
	}
}
