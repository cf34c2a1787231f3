package agent

import (
	"context"
	"testing"
)

func TestTurnsAreBoundedAndGivenBack(t *testing.T) {
	all := newTurns()
	var ends []func()
	for range cap(all) {
		ends = append(ends, all.take(context.Background()))
	}
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan func())
	go func() { got <- all.take(ctx) }()
	select {
	case <-got:
		t.Fatal("there is one turn too many")
	default:
	}
	ends[0]()
	(<-got)()
	if len(all) != cap(all)-1 {
		t.Errorf("%d of %d turns are taken, want one to be free", len(all), cap(all))
	}
	for _, end := range ends[1:] {
		end()
	}
	for range cap(all) {
		defer all.take(ctx)()
	}
	cancel()
	all.take(ctx)() // who is to stop does not wait
	if len(all) != cap(all) {
		t.Errorf("%d of %d turns are taken: one that was not was given back", len(all), cap(all))
	}
}
