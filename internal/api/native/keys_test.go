package native_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
)

func (h *house) putKey(key, value string, expect uint64) uint64 {
	h.t.Helper()
	revision, err := h.ChangeKeys(h.t.Context(), core.KeyChanges{
		Expect: map[string]uint64{key: expect}, Put: []core.KeyPut{{Key: key, Value: []byte(value), TTLMilliseconds: 60_000}},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return revision
}

func TestKeysAreWrittenOnCondition(t *testing.T) {
	h, ctx := newHouse(t), t.Context()
	first := h.putKey("/a/1", "one", 0)
	second := h.putKey("/a/1", "two", first)
	if _, err := h.ChangeKeys(ctx, core.KeyChanges{Expect: map[string]uint64{"/a/1": first}, Delete: []string{"/a/1"}}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a change of what was read before: %v, want conflict", err)
	}
	a, err := h.Key(ctx, "/a/1", 0)
	if err != nil || string(a.Key.Value) != "two" || a.Key.Created != first || a.Key.Modified != second || a.Key.Version != 2 || a.Key.TTLMilliseconds != 60_000 {
		t.Errorf("%+v, %v", a.Key, err)
	}
	if a, err = h.Key(ctx, "/a/1", first); err != nil || string(a.Key.Value) != "one" || a.Revision != first {
		t.Errorf("at revision %d: %+v, %v", first, a.Key, err)
	}
	for what, err := range map[string]error{
		"no key":      failed(h.Key(ctx, "/a/2", 0)),
		"before it":   failed(h.Key(ctx, "/a/1", first-1)),
		"the future":  failed(h.Key(ctx, "/a/1", second+5)),
		"nothing":     failed(h.ChangeKeys(ctx, core.KeyChanges{})),
		"no name":     failed(h.ChangeKeys(ctx, core.KeyChanges{Put: []core.KeyPut{{}}})),
		"no time":     failed(h.ChangeKeys(ctx, core.KeyChanges{Put: []core.KeyPut{{Key: "k", TTLMilliseconds: -1}}})),
		"no continue": failed(h.Keys(ctx, core.KeyQuery{Continue: "rubbish"})),
	} {
		want := map[string]fault.Kind{"no key": fault.NotFound, "before it": fault.NotFound, "the future": fault.Unavailable}[what]
		if want == fault.Internal {
			want = fault.Invalid
		}
		if fault.KindOf(err) != want || err == nil {
			t.Errorf("%s: %v (%v), want %v", what, err, fault.KindOf(err), want)
		}
	}
}

func failed[T any](_ T, err error) error { return err }

func TestPagesOfKeysAreOfOneRevision(t *testing.T) {
	h, ctx := newHouse(t), t.Context()
	var last uint64
	for n := range 25 {
		last = h.putKey(fmt.Sprintf("/a/%02d", n), "v", 0)
	}
	h.putKey("/b/1", "v", 0)
	last++
	var got []string
	q := core.KeyQuery{Prefix: "/a/", Limit: 10}
	for page := 0; ; page++ {
		list, err := h.Keys(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range list.Keys {
			got = append(got, k.Key)
		}
		if list.Revision != last || list.Remaining != 25-len(got) {
			t.Errorf("page %d: %d remain at revision %d, want %d at %d", page, list.Remaining, list.Revision, 25-len(got), last)
		}
		if list.Continue == "" {
			break
		}
		if _, err := h.ChangeKeys(ctx, core.KeyChanges{DeletePrefixes: []string{"/a/"}, Put: []core.KeyPut{{Key: "/a/00a"}}}); err != nil {
			t.Fatal(err)
		}
		q.Continue = list.Continue
	}
	if len(got) != 25 || got[0] != "/a/00" || got[24] != "/a/24" {
		t.Errorf("the pages hold %v", got)
	}
	part, err := h.Keys(ctx, core.KeyQuery{From: "/a/03", To: "/a/06", Revision: last, Limit: 2})
	if err != nil || len(part.Keys) != 2 || part.Keys[0].Key != "/a/03" || part.Remaining != 1 {
		t.Errorf("from one key on and before another: %+v, %v", part, err)
	}
	if rest, err := h.Keys(ctx, core.KeyQuery{From: "/a/03", To: "/a/06", Limit: 2, Continue: part.Continue}); err != nil || len(rest.Keys) != 1 || rest.Keys[0].Key != "/a/05" {
		t.Errorf("the rest: %+v, %v", rest, err)
	}
	if _, err := h.Keys(ctx, core.KeyQuery{Prefix: "/a/", From: "/a/03"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a prefix and a first key: %v, want invalid", err)
	}
	if n, err := h.Keys(ctx, core.KeyQuery{CountOnly: true, Revision: last}); err != nil || n.Remaining != 26 || len(n.Keys) != 0 {
		t.Errorf("%d keys are counted, %v", n.Remaining, err)
	}
}

func TestWatchingKeys(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	first := h.putKey("/a/1", "one", 0)
	h.putKey("/b/1", "other", 0)
	h.putKey("/a/1", "two", first)
	if _, err := h.ChangeKeys(ctx, core.KeyChanges{Delete: []string{"/a/1"}}); err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	var got []string
	err := h.WatchKeys(ctx, core.KeyWatch{Prefix: "/a/", After: first - 1, Progress: 100 * time.Millisecond}, func(e core.KeyEvent) error {
		value := func(k *core.Key) string {
			if k == nil {
				return "-"
			}
			return string(k.Value)
		}
		if e.Old != nil || e.New != nil || e.Revision < first || e.Revision == first+4 { // progress between the changes is told when they come slowly
			got = append(got, fmt.Sprintf("%d %s %s", e.Revision-first, value(e.Old), value(e.New)))
		}
		switch {
		case e.Revision == first+3 && e.New == nil && e.Old != nil:
			h.putKey("/b/2", "other", 0) // then there is only progress to tell
		case e.Revision == first+4:
			return enough
		}
		return nil
	})
	want := []string{fmt.Sprintf("%d - -", ^uint64(0)), "0 - one", "2 one two", "3 two -", "4 - -"}
	if !errors.Is(err, enough) || !slices.Equal(got, want) {
		t.Errorf("%v, %q, want %q", err, got, want)
	}
	for range 70 {
		if _, err := h.ChangeKeys(ctx, core.KeyChanges{Put: []core.KeyPut{{Key: "large", Value: make([]byte, 1<<20)}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.WatchKeys(ctx, core.KeyWatch{After: first}, func(core.KeyEvent) error { return nil }); !fault.Is(err, fault.TooOld) {
		t.Errorf("watching from long ago: %v, want too old", err)
	}
	if _, err := h.Keys(ctx, core.KeyQuery{Revision: first}); !fault.Is(err, fault.TooOld) {
		t.Errorf("listing of long ago: %v, want too old", err)
	}
}

func TestKeysOfComponentsStay(t *testing.T) {
	h := newHouse(t)
	first := must(h.ComponentKey(t.Context(), "one"))(t)
	if len(first) != 32 || !slices.Equal(first, must(h.ComponentKey(t.Context(), "one"))(t)) || slices.Equal(first, must(h.ComponentKey(t.Context(), "two"))(t)) {
		t.Error("a component has one key of its own")
	}
	if _, err := h.ComponentKey(t.Context(), ""); !fault.Is(err, fault.Invalid) {
		t.Errorf("no component: %v, want invalid", err)
	}
}
