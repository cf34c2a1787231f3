package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/examples/shop/internal/trade"
)

type memory struct {
	placed map[string]bool
	err    error
}

func (m *memory) place(_ context.Context, wish trade.Wish) (trade.Order, bool, error) {
	if m.err != nil {
		return trade.Order{}, false, m.err
	}
	isNew := !m.placed[wish.Key]
	m.placed[wish.Key] = true
	return trade.Order{ID: "ONE", Name: wish.Name}, isNew, nil
}
func (m *memory) list(context.Context, string) ([]trade.Order, error) { return nil, m.err }
func (m *memory) read(_ context.Context, _, id string) (trade.Order, error) {
	return trade.Order{ID: id}, m.err
}

func TestRoutes(t *testing.T) {
	m := &memory{placed: map[string]bool{}}
	told := 0
	handler := routes(slog.New(slog.DiscardHandler), m, func(context.Context, string) error {
		told++
		return errors.New("redis is away")
	})
	ask := func(method, path, body string) (int, string) {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		return w.Code, w.Body.String()
	}
	wish := trade.Wish{Key: trade.NewID(), Shopper: trade.NewID(), Name: " Clara   Schumann ", Lines: []trade.Line{{SKU: "harp", Quantity: 1}}}
	body, err := json.Marshal(wish)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if status, text := ask("POST", "/orders", string(body)); status != 200 || !strings.Contains(text, `"Clara Schumann"`) {
			t.Errorf("place: %d %s", status, text)
		}
	}
	if told != 1 {
		t.Errorf("the worker was told %d times of one order", told)
	}
	if status, _ := ask("POST", "/orders", "{"); status != 400 {
		t.Errorf("no JSON: %d", status)
	}
	m.err = fmt.Errorf("order x: %w", errNone)
	if status, _ := ask("GET", "/shoppers/a/orders/x", ""); status != 404 {
		t.Errorf("no such order: %d", status)
	}
	m.err = errors.New("connection refused")
	for _, path := range []string{"/shoppers/a/orders/x", "/shoppers/a/orders"} {
		if status, _ := ask("GET", path, ""); status != 503 {
			t.Errorf("database away, %s: %d", path, status)
		}
	}
}

func TestCheck(t *testing.T) {
	good := func() trade.Wish {
		return trade.Wish{Key: trade.NewID(), Shopper: trade.NewID(), Name: "Clara", Lines: []trade.Line{{SKU: "harp", Quantity: 1}}}
	}
	wish := good()
	if said := check(&wish); said != "" {
		t.Error(said)
	}
	for name, spoil := range map[string]func(*trade.Wish){
		"no key":         func(w *trade.Wish) { w.Key = "" },
		"no shopper":     func(w *trade.Wish) { w.Shopper = "x" },
		"no name":        func(w *trade.Wish) { w.Name = " \n" },
		"long name":      func(w *trade.Wish) { w.Name = strings.Repeat("é", maxNameRunes+1) },
		"no lines":       func(w *trade.Wish) { w.Lines = nil },
		"many lines":     func(w *trade.Wish) { w.Lines = make([]trade.Line, maxLines+1) },
		"none of one":    func(w *trade.Wish) { w.Lines[0].Quantity = 0 },
		"too many":       func(w *trade.Wish) { w.Lines[0].Quantity = trade.MostOfOne + 1 },
		"the same twice": func(w *trade.Wish) { w.Lines = append(w.Lines, w.Lines[0]) },
	} {
		wish := good()
		spoil(&wish)
		if check(&wish) == "" {
			t.Errorf("%s: accepted", name)
		}
	}
}
