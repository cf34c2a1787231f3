// Migrate makes the shop's tables and fills the shelf, once: the services that need them depend
// on its success. It can run again at any time.
package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tutti-run/tutti/examples/shop/internal/database"
	"github.com/tutti-run/tutti/examples/shop/internal/service"
	"github.com/tutti-run/tutti/examples/shop/internal/trade"
)

//go:embed schema.sql
var schema string

//go:embed products.json
var products []byte

const (
	patience   = time.Minute // for a database that is away
	tryEvery   = 500 * time.Millisecond
	oneAtATime = 7283001 // the advisory lock's number: any, as long as it is always the same
)

func main() { service.Main("migrate", run) }

func run(ctx context.Context, log *slog.Logger) error {
	shelf, err := readProducts()
	if err != nil {
		return err
	}
	db, err := database.Open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := db.Do(ctx, func(ctx context.Context, tx pgx.Tx) error { return migrate(ctx, tx, shelf) })
		if err == nil {
			log.Info("tables ready", "products", len(shelf))
			return nil
		}
		if !database.Away(err) {
			return fmt.Errorf("make tables: %w", err)
		}
		log.Warn("database is away", "error", err)
		select {
		case <-ctx.Done():
			return fmt.Errorf("make tables: %w", err)
		case <-time.After(tryEvery):
		}
	}
}

func readProducts() (shelf []trade.Product, err error) {
	if err := json.Unmarshal(products, &shelf); err != nil {
		return nil, fmt.Errorf("read products: %w", err)
	}
	return shelf, nil
}

func migrate(ctx context.Context, tx pgx.Tx, shelf []trade.Product) error {
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, oneAtATime); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, schema); err != nil {
		return err
	}
	for position, p := range shelf {
		if _, err := tx.Exec(ctx, `INSERT INTO products (sku, position, name, description, picture, cents) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (sku) DO UPDATE SET position = excluded.position, name = excluded.name, description = excluded.description, picture = excluded.picture, cents = excluded.cents`,
			p.SKU, position, p.Name, p.Description, p.Picture, p.Cents); err != nil {
			return fmt.Errorf("put %s on the shelf: %w", p.SKU, err)
		}
	}
	return nil
}
