package core_test

import (
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/core"
)

func TestANodesClockIsComparedWithTheServers(t *testing.T) {
	b := newBench(t)
	d, err := b.NodeDebug(t.Context(), core.Local("root", "test"), "node-n1")
	if err != nil {
		t.Fatal(err)
	}
	if off := d.Clock.Ahead - time.Minute; off.Abs() > d.Clock.Within+time.Second || d.Kernel == "" {
		t.Errorf("a clock that is a minute ahead is said to be %s ahead, give or take %s", d.Clock.Ahead, d.Clock.Within)
	}
	if _, err := b.NodeDebug(t.Context(), core.Local("root", "test"), "nobody"); err == nil {
		t.Error("a node that is not there said how it is")
	}
}
