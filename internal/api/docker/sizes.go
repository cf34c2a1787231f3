package docker

import (
	"context"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
)

// imageFacts remembers what does not change of images, by digest.
type imageFacts struct {
	mu sync.Mutex
	of map[string]imageFact
}

type imageFact struct {
	made   time.Time
	layers []image.Layer // as they are unpacked; none where they are not
	size   int64         // of all that is unpacked, or else of what is kept
}

// fact is what is known of an image, as far as this host can find out.
func (a *API) fact(ctx context.Context, img *model.Image) imageFact {
	a.facts.mu.Lock()
	f, ok := a.facts.of[img.Digest]
	a.facts.mu.Unlock()
	if ok {
		return f
	}
	f = imageFact{made: img.Created, size: img.SizeBytes}
	ctx, cancel := context.WithTimeout(ctx, imagePatience)
	defer cancel()
	d, err := a.Core.Images.Describe(ctx, img.Name, img.Digest)
	if err != nil {
		return f
	}
	if !d.Created.IsZero() {
		f.made = d.Created
	}
	if f.layers = d.Layers; len(f.layers) > 0 {
		f.size = sumOf(f.layers)
	}
	a.facts.mu.Lock()
	defer a.facts.mu.Unlock()
	if a.facts.of == nil || len(a.facts.of) > maxImages {
		a.facts.of = map[string]imageFact{}
	}
	a.facts.of[img.Digest] = f
	return f
}

func sumOf(layers []image.Layer) (bytes int64) {
	for _, l := range layers {
		bytes += l.SizeBytes
	}
	return bytes
}

// layered is what images take together: layers that several are made of count once.
type layered struct {
	total  int64
	images map[string]imageFact // by digest
	uses   map[string]int       // how many images have a layer
}

func (a *API) layered(ctx context.Context, list map[string]*model.Image) layered {
	l := layered{images: map[string]imageFact{}, uses: map[string]int{}}
	for digest, img := range list {
		f := a.fact(ctx, img)
		l.images[digest] = f
		if len(f.layers) == 0 {
			l.total += f.size
		}
		for _, layer := range f.layers {
			if l.uses[layer.ID]++; l.uses[layer.ID] == 1 {
				l.total += layer.SizeBytes
			}
		}
	}
	return l
}

// shared is how much of an image others are made of, too.
func (l *layered) shared(digest string) (bytes int64) {
	for _, layer := range l.images[digest].layers {
		if l.uses[layer.ID] > 1 {
			bytes += layer.SizeBytes
		}
	}
	return bytes
}

// sizes are how much is in the files of containers and volumes.
func (a *API) sizes(r *request, boxes []*box, volumes []*model.Volume) (core.Sizes, error) {
	var tasks []core.TaskRef
	for _, b := range boxes {
		if b.instance != nil {
			tasks = append(tasks, b.task())
		}
	}
	ids := make([]string, len(volumes))
	for n, v := range volumes {
		ids[n] = v.ID
	}
	return a.Core.Sizes(r.Context(), r.who, tasks, ids)
}
