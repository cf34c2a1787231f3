package store

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store/tree"
)

// Restore replaces everything by a written snapshot, of this format or an older one. The revision
// never goes back: it becomes the larger of the snapshot's and the present one. Watchers are told
// to list again.
func (s *Store) Restore(r io.Reader) error {
	buf := bufio.NewReaderSize(r, 1<<20)
	dec := cbor.NewDecoder(buf)
	var h snapshotHeader
	if err := dec.Decode(&h); err != nil || h.Magic != snapshotMagic {
		return fault.New(fault.Invalid, "this is not a snapshot of Tutti's state")
	}
	var content restored
	var err error
	switch h.Version {
	case snapshotRows:
		content, err = readRows(dec)
	case snapshotBlocks:
		content, err = readBlocks(io.MultiReader(dec.Buffered(), buf), h.Revision)
	default:
		err = fault.New(fault.Unsupported, "snapshot of format %d; this version reads formats %d to %d", h.Version, snapshotRows, snapshotNewest)
	}
	if err != nil {
		return err
	}
	next := &state{revision: h.Revision, tables: map[model.Kind]*table{}}
	for kind, objects := range content.objects {
		if next.tables[kind], err = buildTable(kinds[kind], objects); err != nil {
			return err
		}
	}
	if next.keys, err = inOrder(content.keys, func(a, b *KeyValue) int { return strings.Compare(a.Key, b.Key) }); err != nil {
		return err
	}
	events := slices.Clone(content.objects[model.KindEvent])
	// By revision, then ID: the same order on every server, whatever happened before.
	slices.SortFunc(events, func(a, b *model.Meta) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), cmp.Compare(a.ID, b.ID))
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	next.revision = max(next.revision, s.state.Load().revision)
	s.events = make([]string, len(events))
	for i, e := range events {
		s.events[i] = e.ID
	}
	s.history.reset(next, s.state.Store)
	return nil
}

// restored is what a snapshot holds, in order.
type restored struct {
	objects map[model.Kind][]*model.Meta
	keys    []*KeyValue
}

// readRows reads what follows the header in format 1, which knew no keys.
func readRows(dec *cbor.Decoder) (restored, error) {
	out := restored{objects: map[model.Kind][]*model.Meta{}}
	var w words
	for {
		var row struct {
			Kind     model.Kind      `json:"k"`
			Revision uint64          `json:"r"`
			Object   cbor.RawMessage `json:"o"`
		}
		if err := dec.Decode(&row); err != nil {
			return out, errCutShort(err)
		}
		if row.Kind == "" {
			return out, nil
		}
		o, err := decodeRow(row.Kind, row.Revision, row.Object, &w)
		if err != nil {
			return out, err
		}
		out.objects[row.Kind] = append(out.objects[row.Kind], o)
	}
}

func errCutShort(err error) error {
	return fault.New(fault.Invalid, "the snapshot is cut short: %w", err)
}

func decodeRow(kind model.Kind, revision uint64, data []byte, w *words) (*model.Meta, error) {
	info, ok := kinds[kind]
	if !ok {
		return nil, fault.New(fault.Unsupported, "the snapshot holds objects of an unknown kind %q: a newer version wrote it", kind)
	}
	o, err := decodeObject(info, data)
	if err != nil {
		return nil, err
	}
	o.GetMeta().Revision = revision
	w.share(o)
	shareID(o)
	return o.GetMeta(), nil
}

// block is a content and, once done, what it holds.
type block struct {
	content []byte
	done    chan struct{}
	kind    model.Kind
	objects []*model.Meta
	keys    []*KeyValue
	end     *ending
	err     error
}

// ending is what the end of a snapshot says of all that came before.
type ending struct{ objects, keys, revision uint64 }

// readBlocks reads what follows the header in format 2. Blocks are decoded on all cores.
func readBlocks(r io.Reader, revision uint64) (restored, error) {
	out := restored{objects: map[model.Kind][]*model.Meta{}}
	workers := runtime.GOMAXPROCS(0)
	work, order := make(chan *block, 2*workers), make(chan *block, 2*workers)
	stop := make(chan struct{})
	var read sync.Pool // of *[]byte
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	for range workers {
		wg.Go(func() {
			var w words
			for b := range work {
				b.err = b.decode(&w)
				used := b.content // nothing that was decoded refers to it
				b.content = nil
				read.Put(&used)
				close(b.done)
			}
		})
	}
	var readErr error
	wg.Go(func() {
		defer close(order)
		defer close(work)
		for {
			content, err := readBlock(r, &read)
			if err != nil {
				readErr = err
				return
			}
			b, last := &block{content: content, done: make(chan struct{})}, content[0] == blockEnd
			for _, c := range []chan *block{work, order} {
				select {
				case c <- b:
				case <-stop:
					return
				}
			}
			if last {
				return
			}
		}
	})
	var objects, keys uint64
	for b := range order {
		<-b.done
		if b.err != nil {
			return out, b.err
		}
		if b.end != nil {
			if have := (ending{objects, keys, revision}); *b.end != have {
				return out, fault.New(fault.Invalid, "the snapshot is damaged: it holds %d objects and %d keys at revision %d, its end says %d and %d at %d",
					have.objects, have.keys, have.revision, b.end.objects, b.end.keys, b.end.revision)
			}
			return out, nil
		}
		if b.kind != "" {
			out.objects[b.kind] = append(out.objects[b.kind], b.objects...)
		}
		out.keys = append(out.keys, b.keys...)
		objects += uint64(len(b.objects))
		keys += uint64(len(b.keys))
	}
	return out, readErr // the reader has ended: it closed the channel
}

// readBlock returns the content of the next block, in memory of the pool if it has some.
func readBlock(r io.Reader, pool *sync.Pool) ([]byte, error) {
	var head [blockHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, errCutShort(err)
	}
	size := binary.LittleEndian.Uint32(head[:])
	if size == 0 || size > maxBlockBytes {
		return nil, fault.New(fault.Invalid, "the snapshot is damaged: a block of %d bytes", size)
	}
	var content []byte
	if used, ok := pool.Get().(*[]byte); ok {
		content = *used
	}
	content = slices.Grow(content[:0], int(size))[:size]
	if _, err := io.ReadFull(r, content); err != nil {
		return nil, errCutShort(err)
	}
	if crc32.Checksum(content, castagnoli) != binary.LittleEndian.Uint32(head[4:]) {
		return nil, fault.New(fault.Invalid, "the snapshot is damaged: a block has the wrong checksum")
	}
	return content, nil
}

func (b *block) decode(w *words) error {
	f := fields{rest: b.content[1:]}
	switch b.content[0] {
	case blockObjects:
		b.kind = model.Kind(f.bytes())
		for len(f.rest) > 0 && !f.short {
			revision, data := f.number(), f.bytes()
			if f.short {
				break
			}
			o, err := decodeRow(b.kind, revision, data, w)
			if err != nil {
				return err
			}
			b.objects = append(b.objects, o)
		}
	case blockKeys:
		for len(f.rest) > 0 && !f.short {
			b.keys = append(b.keys, &KeyValue{
				Key: string(f.bytes()), Value: copied(f.bytes()), Created: f.number(), Modified: f.number(), Version: f.number(),
				TTL: time.Duration(f.number()) * time.Millisecond,
			})
		}
	case blockEnd:
		b.end = &ending{f.number(), f.number(), f.number()}
	default:
		return fault.New(fault.Unsupported, "the snapshot holds blocks of an unknown sort %d: a newer version wrote it", b.content[0])
	}
	if f.short {
		return errCutShort(io.ErrUnexpectedEOF)
	}
	return nil
}

// inOrder makes a tree of what a snapshot must hold in order.
func inOrder[T any](items []T, compare func(a, b T) int) (tree.Tree[T], error) {
	t, ordered := tree.Build(items, compare)
	if !ordered {
		return t, fault.New(fault.Invalid, "the snapshot is damaged: what it holds is out of order")
	}
	return t, nil
}

// buildTable makes a table of objects that are in the order of their IDs.
func buildTable(info *kindInfo, objects []*model.Meta) (*table, error) {
	byID := func(a, b *model.Meta) int { return strings.Compare(a.ID, b.ID) }
	t := &table{}
	var errs [5]error
	var wg sync.WaitGroup
	wg.Go(func() { t.byID, errs[0] = inOrder(objects, byID) })
	grouped := func(to *tree.Tree[*model.Meta], err *error, groupOf func(*model.Meta) string) {
		wg.Go(func() {
			list := inGroups(objects, func(m *model.Meta) [2]string { return [2]string{groupOf(m)} })
			*to, *err = inOrder(list, func(a, b *model.Meta) int {
				return cmp.Or(strings.Compare(groupOf(a), groupOf(b)), byID(a, b))
			})
		})
	}
	if info.workload != nil {
		grouped(&t.byWorkload, &errs[1], info.workload)
	}
	if info.node != nil {
		grouped(&t.byNode, &errs[2], info.node)
	}
	wg.Go(func() {
		list := inGroups(objects, func(m *model.Meta) [2]string { return [2]string{m.Application, m.Namespace} })
		t.byApplication, errs[3] = inOrder(list, func(a, b *model.Meta) int {
			return then(inApplication(b.Namespace, b.Application), b.ID)(a)
		})
	})
	if !info.repeats {
		named := func(a, b *model.Meta) int {
			return atName(b.Namespace, b.Application, b.Name)(a)
		}
		t.byName, errs[4] = inOrder(slices.SortedFunc(slices.Values(objects), named), named)
	}
	wg.Wait()
	return t, errors.Join(errs[:]...)
}

// inGroups returns objects in the order of their groups, and within these in the given order.
func inGroups(objects []*model.Meta, groupOf func(*model.Meta) [2]string) []*model.Meta {
	groups := map[[2]string][]*model.Meta{}
	for _, o := range objects {
		g := groupOf(o)
		groups[g] = append(groups[g], o)
	}
	out := make([]*model.Meta, 0, len(objects))
	for _, g := range slices.SortedFunc(maps.Keys(groups), func(a, b [2]string) int {
		return cmp.Or(strings.Compare(a[0], b[0]), strings.Compare(a[1], b[1]))
	}) {
		out = append(out, groups[g]...)
	}
	return out
}
