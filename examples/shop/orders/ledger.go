package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/tutti-run/tutti/examples/shop/internal/database"
	"github.com/tutti-run/tutti/examples/shop/internal/trade"
)

// ledger keeps orders in PostgreSQL.
type ledger struct {
	db *database.Database
	by string // this instance
}

const columns = `id, name, state, cents, placed_at, packed_at, shipped_at, placed_by, packed_by`

func scan(row pgx.Row) (order trade.Order, err error) {
	err = row.Scan(&order.ID, &order.Name, &order.State, &order.Cents, &order.Placed, &order.Packed, &order.Shipped, &order.PlacedBy, &order.PackedBy)
	return order, err
}

// place writes the order unless this shopper has placed one with this key before, and returns it.
func (l *ledger) place(ctx context.Context, wish trade.Wish) (order trade.Order, isNew bool, err error) {
	id := trade.NewID()[:10]
	err = l.db.Do(ctx, func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `INSERT INTO orders (id, shopper, key, name, placed_by) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (shopper, key) DO NOTHING`,
			id, wish.Shopper, wish.Key, wish.Name, l.by)
		if err != nil {
			return err
		}
		isNew = tag.RowsAffected() == 1
		if isNew {
			if err := writeLines(ctx, tx, id, wish.Lines); err != nil {
				return err
			}
		}
		order, err = scan(tx.QueryRow(ctx, `SELECT `+columns+` FROM orders WHERE shopper = $1 AND key = $2`, wish.Shopper, wish.Key))
		return err
	})
	if err != nil {
		return trade.Order{}, false, fmt.Errorf("place order: %w", err)
	}
	return order, isNew, nil
}

// writeLines takes names and prices from the products as they are now.
func writeLines(ctx context.Context, tx pgx.Tx, id string, lines []trade.Line) error {
	skus, quantities := make([]string, len(lines)), make([]int, len(lines))
	for i, line := range lines {
		skus[i], quantities[i] = line.SKU, line.Quantity
	}
	tag, err := tx.Exec(ctx, `INSERT INTO order_lines (order_id, sku, name, cents, quantity)
		SELECT $1, p.sku, p.name, p.cents, w.quantity FROM unnest($2::text[], $3::int[]) AS w (sku, quantity) JOIN products p USING (sku)`, id, skus, quantities)
	if err != nil {
		return err
	}
	if int(tag.RowsAffected()) != len(lines) {
		return fmt.Errorf("the order names a product that is not on the shelf: %w", errNone)
	}
	_, err = tx.Exec(ctx, `UPDATE orders SET cents = (SELECT sum(cents * quantity) FROM order_lines WHERE order_id = $1) WHERE id = $1`, id)
	return err
}

// list is a shopper's latest fifty orders, the newest first, without their lines.
func (l *ledger) list(ctx context.Context, shopper string) (orders []trade.Order, err error) {
	err = l.db.Do(ctx, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT `+columns+` FROM orders WHERE shopper = $1 ORDER BY placed_at DESC LIMIT 50`, shopper)
		if err != nil {
			return err
		}
		orders, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (trade.Order, error) { return scan(row) })
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list orders: %w", err)
	}
	return orders, nil
}

func (l *ledger) read(ctx context.Context, shopper, id string) (order trade.Order, err error) {
	err = l.db.Do(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var err error
		order, err = scan(tx.QueryRow(ctx, `SELECT `+columns+` FROM orders WHERE shopper = $1 AND id = $2`, shopper, id))
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("order %s: %w", id, errNone)
		}
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT sku, name, cents, quantity FROM order_lines WHERE order_id = $1 ORDER BY sku`, id)
		if err != nil {
			return err
		}
		order.Lines, err = pgx.CollectRows(rows, pgx.RowToStructByPos[trade.OrderLine])
		return err
	})
	if err != nil {
		return trade.Order{}, fmt.Errorf("read order: %w", err)
	}
	for _, at := range []*time.Time{&order.Placed, order.Packed, order.Shipped} {
		if at != nil {
			*at = at.UTC()
		}
	}
	return order, nil
}
