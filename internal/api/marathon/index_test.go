package marathon_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

// TestTheIndexHasWhatAWalkFinds changes apps through this API and beside it, and compares.
func TestTheIndexHasWhatAWalkFinds(t *testing.T) {
	h := newHouse(t)
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		path := fmt.Sprintf("/g%d/a%d", r.IntN(4), r.IntN(8))
		switch r.IntN(6) {
		case 0, 1:
			h.ask("PUT", "/v2/apps"+path, fmt.Sprintf(`{"cmd":"x","cpus":0.01,"mem":1,"instances":%d}`, r.IntN(3)))
		case 2:
			h.ask("DELETE", "/v2/apps"+path, "")
		case 3:
			_, err := h.core.Deploy(context.Background(), h.who, core.Deployment{Application: fmt.Sprintf("g%d", r.IntN(4)), KeepOthers: true, Workloads: []*model.Workload{{
				Meta: model.Meta{Name: fmt.Sprintf("B_%d", r.IntN(5))}, Type: model.ServiceWorkload, Template: model.Template{Tasks: []model.TaskSpec{{Name: "main", Image: "busybox"}}},
			}}})
			if err != nil {
				t.Fatal(err)
			}
		case 4:
			h.ask("DELETE", fmt.Sprintf("/v2/groups/g%d", r.IntN(4)), "")
		default:
			h.play()
		}
		for _, group := range []string{"/", "/g1", path} {
			got := h.api.Indexed(h.store.Snapshot(), model.DefaultNamespace, group)
			want := h.api.Walked(h.store.Snapshot(), model.DefaultNamespace, group)
			if slices.Sort(want); !slices.Equal(slices.Sorted(slices.Values(got)), want) {
				t.Fatalf("after %d changes, the index has below %s %v, and a walk finds %v", n+1, group, got, want)
			}
		}
	}
}

// TestAGroupGoesWithItsLastApp holds that no empty application is left.
func TestAGroupGoesWithItsLastApp(t *testing.T) {
	h := newHouse(t)
	apps := func() (out []string) {
		for a := range listOf[*model.Application](h) {
			out = append(out, a.Name)
		}
		return out
	}
	h.want("POST", "/v2/apps", `{"id":"/one/a","cmd":"x","cpus":0.1,"mem":16}`, 201)
	h.want("POST", "/v2/apps", `{"id":"/one/b","cmd":"x","cpus":0.1,"mem":16}`, 201)
	h.play()
	h.want("DELETE", "/v2/apps/one/a", "", 200)
	if got := apps(); len(got) != 1 {
		t.Errorf("there are %v", got)
	}
	h.want("DELETE", "/v2/apps/one/b", "", 200)
	if got := apps(); len(got) != 0 {
		t.Errorf("there are %v", got)
	}
}
