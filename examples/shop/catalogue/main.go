// Catalogue answers what is on the shelf, from PostgreSQL. While the database is away it
// answers what it saw last, and says so.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tutti-run/tutti/examples/shop/internal/database"
	"github.com/tutti-run/tutti/examples/shop/internal/service"
	"github.com/tutti-run/tutti/examples/shop/internal/trade"
)

func main() { service.Main("catalogue", run) }

func run(ctx context.Context, log *slog.Logger) error {
	db, err := database.Open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	shelf := newShelf(log, time.Now, func(ctx context.Context) ([]trade.Product, error) { return read(ctx, db) })
	return service.Serve(ctx, log, routes(log, shelf))
}

func routes(log *slog.Logger, shelf *shelf) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /products", func(w http.ResponseWriter, r *http.Request) {
		products, stale, err := shelf.Products(r.Context())
		if err != nil {
			log.Warn("products not read", "error", err)
			service.Refuse(w, http.StatusServiceUnavailable, "the database is away")
			return
		}
		service.Answer(w, http.StatusOK, trade.Shelf{Products: products, Stale: stale})
	})
	return mux
}

func read(ctx context.Context, db *database.Database) (products []trade.Product, err error) {
	err = db.Do(ctx, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT sku, name, description, picture, cents FROM products ORDER BY position, sku`)
		if err != nil {
			return err
		}
		products, err = pgx.CollectRows(rows, pgx.RowToStructByPos[trade.Product])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read products: %w", err)
	}
	return products, nil
}

// How long the shelf is taken for unchanged, and how long a database that did not answer is left alone.
const (
	freshFor   = time.Second
	retryAfter = time.Second
)

// shelf remembers the products that were read last.
type shelf struct {
	log  *slog.Logger
	now  func() time.Time
	read func(context.Context) ([]trade.Product, error)

	mu       sync.Mutex
	products []trade.Product // nil: never read
	asked    time.Time       // when the last read ended
	failed   error           // how, unless well
	reading  chan struct{}   // closed when the read under way has ended; nil: none
}

func newShelf(log *slog.Logger, now func() time.Time, read func(context.Context) ([]trade.Product, error)) *shelf {
	return &shelf{log: log, now: now, read: read}
}

var errEmpty = errors.New("no products were read yet")

// Products is what is on the shelf. Stale says that the database is away and this is what it
// said before; an error, that it never said anything.
func (s *shelf) Products(ctx context.Context) (products []trade.Product, stale bool, err error) {
	s.mu.Lock()
	if age := s.now().Sub(s.asked); s.reading == nil && !s.asked.IsZero() &&
		((s.failed == nil && age < freshFor) || (s.failed != nil && s.products != nil && age < retryAfter)) {
		defer s.mu.Unlock()
		return s.products, s.failed != nil, nil
	}
	if s.reading == nil {
		done := make(chan struct{})
		s.reading = done
		go s.refresh(context.WithoutCancel(ctx), done)
	}
	done := s.reading
	if s.products != nil && s.failed != nil {
		defer s.mu.Unlock() // it was away and is being asked again: who asks need not wait for that
		return s.products, true, nil
	}
	s.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.products != nil:
		return s.products, s.failed != nil, nil
	case s.failed != nil:
		return nil, false, s.failed
	}
	return nil, false, errEmpty
}

func (s *shelf) refresh(ctx context.Context, done chan struct{}) {
	products, err := s.read(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.failed == nil {
		s.log.Warn("database went away", "error", err)
	}
	if err == nil && s.failed != nil {
		s.log.Info("database came back")
	}
	if err == nil {
		s.products = products
	}
	s.failed, s.asked, s.reading = err, s.now(), nil
	close(done)
}
