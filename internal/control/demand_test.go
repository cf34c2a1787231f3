package control_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/control"
	"github.com/tutti-run/tutti/internal/model"
)

// TestDemand asks what further hosts would be good for, of work that finds no place for many reasons.
func TestDemand(t *testing.T) {
	const most = 8 << 30 // what a node of the tests has
	elsewhere := func(w *model.Workload) {
		w.Template.Placement.Constraints = []model.Constraint{{Key: "node.labels.disk", Operator: model.Equal, Values: []string{"ssd"}}}
	}
	for name, c := range map[string]struct {
		workloads []*model.Workload
		change    func(c *cluster)
		most      int
		further   int
		waiting   string
	}{
		"all has a place":          {workloads: []*model.Workload{workload("web", 2, reserves(most))}, most: 5},
		"one has none":             {workloads: []*model.Workload{workload("web", 3, reserves(most))}, most: 5, further: 1, waiting: "shop/web.3"},
		"five have none":           {workloads: []*model.Workload{workload("web", 7, reserves(most))}, most: 9, further: 5, waiting: "shop/web.3 shop/web.4 shop/web.5 shop/web.6 shop/web.7"},
		"two share a host":         {workloads: []*model.Workload{workload("api", 8, reserves(most/2))}, most: 9, further: 2, waiting: "shop/api.5 shop/api.6 shop/api.7 shop/api.8"},
		"more than there may be":   {workloads: []*model.Workload{workload("web", 5, reserves(most))}, most: 1, further: 1, waiting: "one of them"},
		"none may come":            {workloads: []*model.Workload{workload("web", 5, reserves(most))}},
		"a host is too small":      {workloads: []*model.Workload{workload("web", 1, reserves(most+1))}, most: 5},
		"no host has what it asks": {workloads: []*model.Workload{workload("web", 1, elsewhere)}, most: 5},
		"a label of the one it is like": {workloads: []*model.Workload{workload("web", 2, elsewhere, reserves(most))}, most: 5, change: func(c *cluster) {
			c.setNode("n00", func(n *model.Node) { n.Labels = map[string]string{"disk": "ssd"} })
		}},
		"a quota": {workloads: []*model.Workload{workload("web", 3, reserves(most))}, most: 5, change: func(c *cluster) {
			cl := get[*model.Cluster](c, model.ClusterID).Clone()
			cl.Namespaces = map[string]model.NamespaceShare{model.DefaultNamespace: {MaxInstances: 2}}
			c.put(cl)
		}},
		"nodes take no work": {workloads: []*model.Workload{workload("web", 1)}, most: 5, further: 1, waiting: "shop/web.1", change: func(c *cluster) {
			for _, id := range []string{"n00", "n01"} {
				c.setNode(id, func(n *model.Node) { n.Availability = model.Cordoned })
			}
		}},
		"a gang":               {workloads: []*model.Workload{workload("web", 4, reserves(most), gang)}, most: 5, further: 2, waiting: "shop/web.1 shop/web.2 shop/web.3 shop/web.4"},
		"a gang that is large": {workloads: []*model.Workload{workload("web", 4, reserves(most), gang)}, most: 1},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 2, func(cl *cluster) {
				if c.change != nil {
					c.change(cl)
				}
				cl.settle()
				cl.deploy(c.workloads...)
				cl.settle()
				d := control.Demand(cl.store.Snapshot(), get[*model.Node](cl, "n00"), c.most)
				var names []string
				for _, w := range d.Waiting {
					names = append(names, w.Name)
				}
				slices.Sort(names)
				got := strings.Join(names, " ")
				if c.waiting == "one of them" && len(names) == 1 {
					got = c.waiting
				}
				if d.Further != c.further || got != c.waiting {
					t.Errorf("%d further hosts for %q; want %d for %q", d.Further, got, c.further, c.waiting)
				}
			})
		})
	}
}

// TestEmptyHosts asks which hosts nothing would be missed with.
func TestEmptyHosts(t *testing.T) {
	inCluster(t, 4, func(c *cluster) {
		c.put(&model.Volume{Meta: model.Meta{ID: "data", Name: "data"}, NodeID: "n02"})
		c.deploy(workload("web", 1), workload("each", 0, kind(model.GlobalWorkload)))
		c.agents()
		c.settle()
		at := c.instances("web")[0].NodeID
		for _, h := range control.Demand(c.store.Snapshot(), get[*model.Node](c, "n00"), 0).Hosts {
			id := "n" + strings.TrimPrefix(h.Name, "node")
			if want := id != at && id != "n02"; h.Empty != want || !h.Ready || !h.Open || h.Instances == 0 {
				t.Errorf("%+v, with web on %s and a volume on n02", h, at)
			}
		}
	})
}

func gang(w *model.Workload) { w.Template.Placement.Gang = true }
