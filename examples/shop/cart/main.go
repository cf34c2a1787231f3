// Cart keeps what shoppers have taken, in Redis, for a week.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sort"
	"strconv"
	"time"

	"encoding/json"

	"github.com/redis/go-redis/v9"

	"github.com/tutti-run/tutti/examples/shop/internal/kv"
	"github.com/tutti-run/tutti/examples/shop/internal/service"
	"github.com/tutti-run/tutti/examples/shop/internal/trade"
)

const (
	keepFor     = 7 * 24 * time.Hour
	mostLines   = 100
	maxSKUBytes = 64
)

func main() { service.Main("cart", run) }

func run(ctx context.Context, log *slog.Logger) error {
	client := kv.Open()
	defer client.Close()
	return service.Serve(ctx, log, routes(log, carts{client}))
}

type store interface {
	read(ctx context.Context, shopper string) (trade.Cart, error)
	set(ctx context.Context, shopper string, line trade.Line) error
	clear(ctx context.Context, shopper string) error
}

func routes(log *slog.Logger, carts store) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, do func(r *http.Request, shopper string) (int, string, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			shopper := r.PathValue("shopper")
			if !trade.IsID(shopper) {
				service.Refuse(w, http.StatusNotFound, "there is no such cart")
				return
			}
			if status, refusal, err := do(r, shopper); err != nil {
				log.Warn("cart not reached", "error", err)
				service.Refuse(w, http.StatusServiceUnavailable, "the carts are away")
				return
			} else if refusal != "" {
				service.Refuse(w, status, refusal)
				return
			}
			cart, err := carts.read(r.Context(), shopper)
			if err != nil {
				log.Warn("cart not read", "error", err)
				service.Refuse(w, http.StatusServiceUnavailable, "the carts are away")
				return
			}
			service.Answer(w, http.StatusOK, cart)
		})
	}
	handle("GET /carts/{shopper}", func(*http.Request, string) (int, string, error) { return 0, "", nil })
	handle("DELETE /carts/{shopper}", func(r *http.Request, shopper string) (int, string, error) {
		return 0, "", carts.clear(r.Context(), shopper)
	})
	handle("PUT /carts/{shopper}/{sku}", func(r *http.Request, shopper string) (int, string, error) {
		var line trade.Line
		if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 1<<10)).Decode(&line); err != nil {
			return http.StatusBadRequest, "the line is not JSON", nil
		}
		line.SKU = r.PathValue("sku")
		if line.Quantity < 0 || line.Quantity > trade.MostOfOne || line.SKU == "" || len(line.SKU) > maxSKUBytes {
			return http.StatusBadRequest, fmt.Sprintf("a quantity is between 0 and %d", trade.MostOfOne), nil
		}
		cart, err := carts.read(r.Context(), shopper)
		if err != nil {
			return 0, "", err
		}
		if len(cart.Lines) >= mostLines && cart.Quantity(line.SKU) == 0 {
			return http.StatusConflict, "the cart is full", nil
		}
		return 0, "", carts.set(r.Context(), shopper, line)
	})
	return mux
}

// carts are hashes in Redis: SKU → quantity.
type carts struct{ *redis.Client }

func key(shopper string) string { return "shop:cart:" + shopper }

func (c carts) read(ctx context.Context, shopper string) (trade.Cart, error) {
	fields, err := c.HGetAll(ctx, key(shopper)).Result()
	if err != nil {
		return trade.Cart{}, fmt.Errorf("read cart: %w", err)
	}
	cart := trade.Cart{Lines: make([]trade.Line, 0, len(fields))}
	for sku, text := range fields {
		quantity, err := strconv.Atoi(text)
		if err != nil {
			return trade.Cart{}, fmt.Errorf("read quantity of %s: %w", sku, err)
		}
		cart.Lines = append(cart.Lines, trade.Line{SKU: sku, Quantity: quantity})
	}
	sort.Slice(cart.Lines, func(i, j int) bool { return cart.Lines[i].SKU < cart.Lines[j].SKU })
	return cart, nil
}

func (c carts) set(ctx context.Context, shopper string, line trade.Line) error {
	_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
		if line.Quantity == 0 {
			p.HDel(ctx, key(shopper), line.SKU)
		} else {
			p.HSet(ctx, key(shopper), line.SKU, line.Quantity)
		}
		p.Expire(ctx, key(shopper), keepFor)
		return nil
	})
	if err != nil {
		return fmt.Errorf("write cart: %w", err)
	}
	return nil
}

func (c carts) clear(ctx context.Context, shopper string) error {
	if err := c.Del(ctx, key(shopper)).Err(); err != nil {
		return fmt.Errorf("empty cart: %w", err)
	}
	return nil
}
