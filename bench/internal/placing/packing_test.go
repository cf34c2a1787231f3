package placing

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// All who pack use as many servers as there must be, and no more than there are items.
func TestPacking(t *testing.T) {
	for _, m := range mixes {
		rng := rand.New(rand.NewPCG(3, 4))
		var items []item
		var sum item
		for range 200 {
			i := m.draw(rng)
			if i.cpu <= 0 || i.cpu > 1 || i.memory <= 0 || i.memory > 1 {
				t.Fatalf("%s: a server has no room for %+v", m.name, i)
			}
			items, sum = append(items, i), item{sum.cpu + i.cpu, sum.memory + i.memory}
		}
		binPack, err := pack(items, model.BinPack)
		if err != nil {
			t.Fatal(err)
		}
		least := int(math.Ceil(max(sum.cpu, sum.memory) - 1e-9))
		for name, servers := range map[string]int{
			"first fit": inTurn(items, func(item, *item) float64 { return 0 }), "dot product": dotProduct(items), "Tutti": binPack,
		} {
			if servers < least || servers > len(items) {
				t.Errorf("%s: %s uses %d servers for %d items that need %d", m.name, name, servers, len(items), least)
			}
		}
		t.Log(m.name, least, inTurn(items, func(item, *item) float64 { return 0 }), dotProduct(items), binPack)
	}
}
