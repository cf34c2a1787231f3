package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/examples/shop/internal/trade"
)

func TestShelf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away := errors.New("away")
		var err error
		takes, reads := time.Duration(0), 0
		s := newShelf(slog.New(slog.DiscardHandler), time.Now, func(context.Context) ([]trade.Product, error) {
			reads++
			said := err
			time.Sleep(takes)
			return []trade.Product{{SKU: "harp"}}, said
		})
		check := func(when string, wantReads, wantProducts int, wantStale bool, wantErr error) {
			t.Helper()
			synctest.Wait() // what a sleep just woke beside the test has run
			began := time.Now()
			products, stale, err := s.Products(t.Context())
			took := time.Since(began)
			synctest.Wait()
			if reads != wantReads || len(products) != wantProducts || stale != wantStale || !errors.Is(err, wantErr) {
				t.Errorf("%s: reads %d, products %v, stale %v, error %v", when, reads, products, stale, err)
			}
			if stale && reads > 3 && took > 0 {
				t.Errorf("%s: waited %v for a database that is away", when, took)
			}
		}
		err = away
		check("never read", 1, 0, false, away)
		err = nil
		check("read at last", 2, 1, false, nil)
		check("still fresh", 2, 1, false, nil)
		time.Sleep(2 * freshFor)
		err, takes = away, 400*time.Millisecond
		check("database goes away", 3, 1, true, nil)
		check("left alone", 3, 1, true, nil)
		time.Sleep(2 * retryAfter)
		check("asked again beside", 4, 1, true, nil)
		err = nil
		time.Sleep(2 * retryAfter)
		check("comes back beside", 5, 1, true, nil)
		time.Sleep(takes)
		check("is back", 5, 1, false, nil)
	})
}
