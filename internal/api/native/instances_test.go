package native_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func TestWatchTellsWhatThereIsAndThenWhatChanges(t *testing.T) {
	h := newHouse(t)
	h.shop()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	enough := errors.New("enough")
	kinds := map[model.Kind]int{}
	err := h.Watch(ctx, func(s core.Seen) error {
		kinds[s.Kind]++
		switch {
		case s.Kind == "": // everything was told: now it changes
			h.put(&model.Node{Meta: model.Meta{ID: "node2", Name: "beta"}})
		case s.Node != nil && s.Node.Name == "beta":
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Errorf("the watch ended with %v", err)
	}
	if kinds[model.KindNode] != 2 || kinds[model.KindInstance] != 1 || kinds[model.KindService] != 1 || kinds[""] != 1 {
		t.Errorf("it told of %v", kinds)
	}
}

func TestDialing(t *testing.T) {
	h := newHouse(t)
	h.shop()
	var out bytes.Buffer
	if err := h.Dial(t.Context(), "instance1", 8080, driver.Streams{Stdout: &out}); err != nil || out.String() != "port 8080" {
		t.Errorf("dialing brought %q, %v", out.String(), err)
	}
	if err := h.Dial(t.Context(), "nobody", 8080, driver.Streams{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("dialing nobody brought %v", err)
	}
}

func TestAWorkloadIsRemovedByItsID(t *testing.T) {
	h := newHouse(t)
	h.shop()
	grace := int64(1500)
	if err := h.RemoveWorkload(t.Context(), native.RemoveWorkload{ID: "workload1", GraceMilliseconds: &grace}); err != nil {
		t.Fatal(err)
	}
	list, err := h.Instances(t.Context(), native.InstanceChoice{})
	if err != nil || len(list) != 1 || list[0].Desired != model.DesiredRemove || *list[0].StopWithin != 1500*time.Millisecond {
		t.Errorf("instances are %+v, %v", list, err)
	}
}
