// Worker packs and ships orders. Redis tells it at once which; and now and then it looks into
// PostgreSQL for orders that nobody told it of or whose worker died. Each step happens once,
// however many workers try.
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
	"github.com/redis/go-redis/v9"

	"github.com/tutti-run/tutti/examples/shop/internal/database"
	"github.com/tutti-run/tutti/examples/shop/internal/kv"
	"github.com/tutti-run/tutti/examples/shop/internal/service"
)

const (
	packTakes  = time.Second
	shipTakes  = 1500 * time.Millisecond
	atOnce     = 16                     // orders
	sweepEvery = 3 * time.Second        // for orders left behind
	leftBehind = "6 seconds"            // without progress
	listen     = time.Second            // for one job, before looking whether to leave
	pause      = 500 * time.Millisecond // when Redis is away
)

func main() { service.Main("worker", run) }

func run(ctx context.Context, log *slog.Logger) error {
	db, err := database.Open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	client := kv.Open()
	defer client.Close()

	w := &worker{log: log, db: db, redis: client, by: service.Instance(), busy: map[string]bool{}}
	var loops sync.WaitGroup
	loops.Go(func() { w.hear(ctx) })
	loops.Go(func() { w.sweep(ctx) })
	err = service.Serve(ctx, log, http.NotFoundHandler())
	loops.Wait()
	return err
}

type worker struct {
	log   *slog.Logger
	db    *database.Database
	redis *redis.Client
	by    string
	jobs  sync.WaitGroup

	mu   sync.Mutex
	busy map[string]bool // orders under way here
}

// hear takes jobs from Redis until ctx ends, and then waits for the orders under way.
func (w *worker) hear(ctx context.Context) {
	defer w.jobs.Wait()
	away := false
	for ctx.Err() == nil {
		if w.full() {
			sleep(ctx, 50*time.Millisecond)
			continue
		}
		job, err := w.redis.BLPop(ctx, listen, kv.Jobs).Result()
		switch {
		case err == nil && len(job) == 2:
			w.begin(ctx, job[1])
		case errors.Is(err, redis.Nil) || ctx.Err() != nil:
		default:
			if !away {
				w.log.Warn("redis went away", "error", err)
			}
			away = true
			sleep(ctx, pause)
			continue
		}
		if away {
			away = false
			w.log.Info("redis came back")
		}
	}
}

// sweep begins orders that were left behind, until ctx ends.
func (w *worker) sweep(ctx context.Context) {
	away := false
	for ctx.Err() == nil {
		var ids []string
		err := w.db.Do(ctx, func(ctx context.Context, tx pgx.Tx) error {
			rows, err := tx.Query(ctx, `SELECT id FROM orders WHERE state <> 'shipped' AND changed_at < now() - $1::interval ORDER BY changed_at LIMIT $2`, leftBehind, atOnce)
			if err != nil {
				return err
			}
			ids, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		})
		if ctx.Err() != nil {
			return
		}
		if away != (err != nil) {
			if away = err != nil; away {
				w.log.Warn("orders left behind not looked for", "error", err)
			} else {
				w.log.Info("database came back")
			}
		}
		for _, id := range ids {
			w.begin(ctx, id)
		}
		sleep(ctx, sweepEvery)
	}
}

func (w *worker) full() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.busy) >= atOnce
}

// begin works on an order beside, unless this worker already does or has its hands full: then
// a sweep finds it later.
func (w *worker) begin(ctx context.Context, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy[id] || len(w.busy) >= atOnce {
		return
	}
	w.busy[id] = true
	w.jobs.Go(func() {
		if err := w.work(ctx, id); err != nil && ctx.Err() == nil {
			w.log.Warn("order left for later", "order", id, "error", err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.busy, id)
	})
}

// work takes an order from where it is to shipped. When ctx ends it leaves the order as it is:
// another worker finds it.
func (w *worker) work(ctx context.Context, id string) error {
	sleep(ctx, packTakes)
	if err := w.advance(ctx, id, "packed", `UPDATE orders SET state = 'packed', packed_at = now(), changed_at = now(), packed_by = $2 WHERE id = $1 AND state = 'placed'`, w.by); err != nil {
		return err
	}
	sleep(ctx, shipTakes)
	return w.advance(ctx, id, "shipped", `UPDATE orders SET state = 'shipped', shipped_at = now(), changed_at = now() WHERE id = $1 AND state = 'packed'`)
}

func (w *worker) advance(ctx context.Context, id, state, statement string, more ...any) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var changed int64
	err := w.db.Do(ctx, func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, statement, append([]any{id}, more...)...)
		changed = tag.RowsAffected()
		return err
	})
	if err != nil {
		return fmt.Errorf("mark order %s as %s: %w", id, state, err)
	}
	if changed == 1 {
		w.log.Info("order advanced", "order", id, "state", state)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
