package control_test

import (
	"context"
	"errors"
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
