// Orders accepts orders into PostgreSQL and tells the worker through Redis. An order is accepted
// once the database has it; when Redis is away the worker finds it by itself.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/tutti-run/tutti/examples/shop/internal/database"
	"github.com/tutti-run/tutti/examples/shop/internal/kv"
	"github.com/tutti-run/tutti/examples/shop/internal/service"
	"github.com/tutti-run/tutti/examples/shop/internal/trade"
)

const (
	tellTimeout  = 300 * time.Millisecond
	maxNameRunes = 60
	maxLines     = 100
)

func main() { service.Main("orders", run) }

func run(ctx context.Context, log *slog.Logger) error {
	db, err := database.Open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	client := kv.Open()
	defer client.Close()
	tell := func(ctx context.Context, id string) error { return client.RPush(ctx, kv.Jobs, id).Err() }
	return service.Serve(ctx, log, routes(log, &ledger{db: db, by: service.Instance()}, tell))
}

// errNone says that there is no such order or product.
var errNone = errors.New("there is no such thing")

type book interface {
	place(ctx context.Context, wish trade.Wish) (order trade.Order, isNew bool, err error)
	list(ctx context.Context, shopper string) ([]trade.Order, error)
	read(ctx context.Context, shopper, id string) (trade.Order, error)
}

func routes(log *slog.Logger, orders book, tell func(ctx context.Context, id string) error) http.Handler {
	mux := http.NewServeMux()
	fail := func(w http.ResponseWriter, err error) {
		if errors.Is(err, errNone) {
			service.Refuse(w, http.StatusNotFound, err.Error())
			return
		}
		log.Warn("orders not reached", "error", err)
		service.Refuse(w, http.StatusServiceUnavailable, "the order book is away")
	}
	mux.HandleFunc("POST /orders", func(w http.ResponseWriter, r *http.Request) {
		var wish trade.Wish
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&wish); err != nil {
			service.Refuse(w, http.StatusBadRequest, "the order is not JSON")
			return
		}
		if refusal := check(&wish); refusal != "" {
			service.Refuse(w, http.StatusBadRequest, refusal)
			return
		}
		order, isNew, err := orders.place(r.Context(), wish)
		if err != nil {
			fail(w, err)
			return
		}
		if isNew {
			log.Info("order placed", "order", order.ID, "cents", order.Cents)
			ctx, cancel := context.WithTimeout(r.Context(), tellTimeout)
			defer cancel()
			if err := tell(ctx, order.ID); err != nil {
				log.Warn("worker not told; it will find the order", "order", order.ID, "error", err)
			}
		}
		service.Answer(w, http.StatusOK, order)
	})
	mux.HandleFunc("GET /shoppers/{shopper}/orders", func(w http.ResponseWriter, r *http.Request) {
		list, err := orders.list(r.Context(), r.PathValue("shopper"))
		if err != nil {
			fail(w, err)
			return
		}
		service.Answer(w, http.StatusOK, list)
	})
	mux.HandleFunc("GET /shoppers/{shopper}/orders/{order}", func(w http.ResponseWriter, r *http.Request) {
		order, err := orders.read(r.Context(), r.PathValue("shopper"), r.PathValue("order"))
		if err != nil {
			fail(w, err)
			return
		}
		service.Answer(w, http.StatusOK, order)
	})
	return mux
}

// check says, in a sentence, what is wrong with a wish, or nothing.
func check(wish *trade.Wish) string {
	wish.Name = strings.Join(strings.Fields(wish.Name), " ")
	switch {
	case !trade.IsID(wish.Key) || !trade.IsID(wish.Shopper):
		return "the order lacks its key or its shopper"
	case wish.Name == "":
		return "the order needs a name"
	case len([]rune(wish.Name)) > maxNameRunes:
		return "the name is too long"
	case len(wish.Lines) == 0:
		return "the cart is empty"
	case len(wish.Lines) > maxLines:
		return "the order is too long"
	}
	seen := map[string]bool{}
	for _, line := range wish.Lines {
		if line.Quantity < 1 || line.Quantity > trade.MostOfOne || seen[line.SKU] {
			return "a quantity in the order is wrong"
		}
		seen[line.SKU] = true
	}
	return ""
}
