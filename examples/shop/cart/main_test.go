package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/examples/shop/internal/trade"
)

type memory struct {
	cart trade.Cart
	err  error
}

func (m *memory) read(context.Context, string) (trade.Cart, error) { return m.cart, m.err }
func (m *memory) clear(context.Context, string) error              { m.cart = trade.Cart{}; return m.err }
func (m *memory) set(_ context.Context, _ string, line trade.Line) error {
	m.cart.Lines = append(m.cart.Lines, line)
	return m.err
}

func TestRoutes(t *testing.T) {
	m := &memory{}
	handler := routes(slog.New(slog.DiscardHandler), m)
	id := trade.NewID()
	ask := func(method, path, body string) (int, trade.Cart) {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		var cart trade.Cart
		_ = json.Unmarshal(w.Body.Bytes(), &cart)
		return w.Code, cart
	}
	want := trade.Cart{Lines: []trade.Line{{SKU: "harp", Quantity: 2}}}
	if status, cart := ask("PUT", "/carts/"+id+"/harp", `{"quantity": 2}`); status != 200 || !reflect.DeepEqual(cart, want) {
		t.Errorf("put: %d, %+v", status, cart)
	}
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/carts/" + id, "", 200},
		{"GET", "/carts/somebody", "", 404},
		{"PUT", "/carts/" + id + "/harp", `{"quantity": 100}`, 400},
		{"PUT", "/carts/" + id + "/harp", `{"quantity": -1}`, 400},
		{"PUT", "/carts/" + id + "/harp", `many`, 400},
		{"PUT", "/carts/" + id + "/" + strings.Repeat("x", 65), `{"quantity": 1}`, 400},
		{"DELETE", "/carts/" + id, "", 200},
	} {
		if status, _ := ask(c.method, c.path, c.body); status != c.status {
			t.Errorf("%s %s %s: %d, want %d", c.method, c.path, c.body, status, c.status)
		}
	}
	m.err = errors.New("connection refused")
	if status, _ := ask("GET", "/carts/"+id, ""); status != 503 {
		t.Errorf("redis away: %d", status)
	}
}
