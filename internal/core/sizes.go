package core

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// What is told of sizes.
type (
	TaskRef  = wire.TaskRef
	TaskSize = wire.TaskSize
)

// Sizes are how much files hold, in bytes, of what is known.
type Sizes struct {
	Tasks   map[TaskRef]TaskSize
	Volumes map[string]int64 // by ID
}

// sizesPatience is how long a node is waited for, which needs most of it to go through many files.
const sizesPatience = 30 * time.Second

// Sizes asks all nodes that have some of these tasks and volumes how much their files hold. Of what no node answers
// for in time, and of volumes that are mounted from elsewhere, there is nothing.
func (c *Core) Sizes(ctx context.Context, who Caller, tasks []TaskRef, volumes []string) (Sizes, error) {
	if _, err := c.begin(who, "look", ""); err != nil {
		return Sizes{}, err
	}
	snap := c.look(who)
	asked := map[string]*wire.SizesRequest{} // by node
	at := func(node string) *wire.SizesRequest {
		if asked[node] == nil {
			asked[node] = &wire.SizesRequest{}
		}
		return asked[node]
	}
	out := Sizes{Tasks: map[TaskRef]TaskSize{}, Volumes: map[string]int64{}}
	for _, t := range tasks {
		if i, ok := store.Get[*model.Instance](snap, t.Instance); ok && i.NodeID != "" {
			r := at(i.NodeID)
			r.Tasks = append(r.Tasks, t)
		}
	}
	for _, id := range volumes {
		v, ok := store.Get[*model.Volume](snap, id)
		switch {
		case !ok || v.Mounts():
		case v.NodeID == "":
			out.Volumes[id] = 0 // nothing has used it yet
		default:
			r := at(v.NodeID)
			r.Volumes = append(r.Volumes, id)
		}
	}
	var mu sync.Mutex
	together(ctx, maps.Keys(asked), usageAtOnce, sizesPatience, func(ctx context.Context, node string) {
		r := asked[node]
		reply, err := c.Remote.Sizes(ctx, node, *r)
		if err == nil && (len(reply.Tasks) != len(r.Tasks) || len(reply.Volumes) != len(r.Volumes)) {
			err = fault.New(fault.Internal, "node %s did not answer for all that it was asked for", node)
		}
		if err != nil {
			c.Log.Debug("sizes of files are not known", "node", node, "error", err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for n, size := range reply.Tasks {
			if size.Total != wire.UnknownSize {
				out.Tasks[r.Tasks[n]] = size
			}
		}
		for n, size := range reply.Volumes {
			if size != wire.UnknownSize {
				out.Volumes[r.Volumes[n]] = size
			}
		}
	})
	return out, ctx.Err()
}
