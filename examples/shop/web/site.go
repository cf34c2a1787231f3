package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/tutti-run/tutti/examples/shop/internal/call"
	"github.com/tutti-run/tutti/examples/shop/internal/service"
	"github.com/tutti-run/tutti/examples/shop/internal/trade"
)

// Headers that tell what a page's footer tells.
const (
	versionHeader   = "X-Shop-Version"
	catalogueHeader = "X-Shop-Catalogue"
)

// asker asks one service; *call.Client is one.
type asker interface {
	Ask(ctx context.Context, method, path string, in, out any) (call.Source, error)
}

type backends struct{ catalogue, cart, orders asker }

type site struct {
	log      *slog.Logger
	sign     sign
	back     backends
	pages    pages
	instance string
}

func newSite(log *slog.Logger, sign sign, back backends) (*site, error) {
	pages, err := parsePages()
	if err != nil {
		return nil, err
	}
	return &site{log: log, sign: sign, back: back, pages: pages, instance: service.Instance()}, nil
}

func (s *site) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.home)
	mux.HandleFunc("GET /cart", s.cart)
	mux.HandleFunc("POST /cart", s.changeCart)
	mux.HandleFunc("POST /checkout", s.checkout)
	mux.HandleFunc("GET /orders", s.orders)
	mux.HandleFunc("GET /orders/{order}", s.order)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.show(w, http.StatusNotFound, "trouble", s.view(r, "Not found").notice("There is nothing here. The shop is one page back."))
	})
	return mux
}

// view is what every page is made from.
type view struct {
	Sign      sign
	Page      string // its title
	Instance  string
	Catalogue call.Source
	Notices   []string
	Refresh   bool // look again in a second

	Products []trade.Product
	Cart     trade.Cart
	Lines    []cartLine
	Total    int
	Key      string // of the order that the checkout form would place
	Orders   []trade.Order
	Order    trade.Order
}

type cartLine struct {
	trade.Product
	Quantity int
}

func (v *view) notice(sentence string) *view {
	v.Notices = append(v.Notices, sentence)
	return v
}

func (s *site) view(_ *http.Request, page string) *view {
	return &view{Sign: s.sign, Page: page, Instance: s.instance}
}

// shop is a view with the products and the shopper's cart in it, asked for side by side. When
// the catalogue is away, ok is false; when the cart is, the page does without.
func (s *site) shop(r *http.Request, page string) (v *view, ok bool) {
	v = s.view(r, page)
	var shelf trade.Shelf
	var shelfErr, cartErr error
	var asked sync.WaitGroup
	asked.Go(func() { v.Catalogue, shelfErr = s.back.catalogue.Ask(r.Context(), "GET", "/products", nil, &shelf) })
	if shopper := shopperOf(r); shopper != "" {
		asked.Go(func() { _, cartErr = s.back.cart.Ask(r.Context(), "GET", "/carts/"+shopper, nil, &v.Cart) })
	}
	asked.Wait()
	v.Products = shelf.Products
	if shelfErr != nil {
		s.log.Warn("catalogue not reached", "error", shelfErr)
		v.notice("The shelves are out of reach for a moment. Please try again shortly.")
	}
	if shelf.Stale {
		v.notice("The database is away for a moment: names and prices are as we last saw them.")
	}
	if cartErr != nil {
		s.log.Warn("cart not reached", "error", cartErr)
		v.notice("Your cart is out of reach for a moment. Nothing in it is lost.")
	}
	for _, p := range v.Products {
		if n := v.Cart.Quantity(p.SKU); n > 0 {
			v.Lines = append(v.Lines, cartLine{p, n})
			v.Total += n * p.Cents
		}
	}
	return v, shelfErr == nil
}

// show renders a page whole before a byte of it is sent.
func (s *site) show(w http.ResponseWriter, status int, page string, v *view) {
	var body bytes.Buffer
	if err := s.pages.render(&body, page, v); err != nil {
		s.log.Error("page not rendered", "page", page, "error", err)
		http.Error(w, "the page could not be made", http.StatusInternalServerError)
		return
	}
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	header.Set(versionHeader, s.sign.Version)
	if v.Catalogue.Instance != "" {
		header.Set(catalogueHeader, v.Catalogue.Instance)
	}
	if status == http.StatusServiceUnavailable {
		header.Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	_, _ = w.Write(body.Bytes()) // a reader that has gone needs no page
}

func (s *site) home(w http.ResponseWriter, r *http.Request) {
	v, ok := s.shop(r, "")
	status := http.StatusOK
	if !ok {
		status = http.StatusServiceUnavailable
	}
	s.show(w, status, "home", v)
}

func (s *site) cart(w http.ResponseWriter, r *http.Request) {
	v, ok := s.shop(r, "Your cart")
	v.Key = trade.NewID()
	status := http.StatusOK
	if !ok {
		status = http.StatusServiceUnavailable
	}
	s.show(w, status, "cart", v)
}

// changeCart sets the quantity of a product; or, with add, that many more than there are.
func (s *site) changeCart(w http.ResponseWriter, r *http.Request) {
	shopper := s.welcome(w, r)
	sku, back := r.PostFormValue("sku"), "/cart"
	var quantity int
	if _, err := fmt.Sscan(r.PostFormValue("quantity"), &quantity); err != nil || sku == "" {
		s.trouble(w, r, http.StatusBadRequest, "That was no quantity.")
		return
	}
	path := "/carts/" + shopper
	if r.PostFormValue("add") != "" {
		back = "/#" + sku
		var cart trade.Cart
		if _, err := s.back.cart.Ask(r.Context(), "GET", path, nil, &cart); err != nil {
			s.unreached(w, r, "cart", err)
			return
		}
		quantity = min(quantity+cart.Quantity(sku), trade.MostOfOne)
	}
	if _, err := s.back.cart.Ask(r.Context(), "PUT", path+"/"+escape(sku), trade.Line{Quantity: quantity}, nil); err != nil {
		s.unreached(w, r, "cart", err)
		return
	}
	http.Redirect(w, r, back, http.StatusSeeOther)
}

// checkout places the order and empties the cart. The form's key makes a second click the same order.
func (s *site) checkout(w http.ResponseWriter, r *http.Request) {
	shopper := s.welcome(w, r)
	wish := trade.Wish{Key: r.PostFormValue("key"), Shopper: shopper, Name: r.PostFormValue("name")}
	var cart trade.Cart
	if _, err := s.back.cart.Ask(r.Context(), "GET", "/carts/"+shopper, nil, &cart); err != nil {
		s.unreached(w, r, "cart", err)
		return
	}
	wish.Lines = cart.Lines
	if len(wish.Lines) == 0 { // perhaps the second click
		http.Redirect(w, r, "/orders", http.StatusSeeOther)
		return
	}
	var order trade.Order
	if _, err := s.back.orders.Ask(r.Context(), "POST", "/orders", wish, &order); err != nil {
		s.unreached(w, r, "orders", err)
		return
	}
	if _, err := s.back.cart.Ask(r.Context(), "DELETE", "/carts/"+shopper, nil, nil); err != nil {
		s.log.Warn("cart not emptied", "error", err) // the order stands all the same
	}
	http.Redirect(w, r, "/orders/"+escape(order.ID), http.StatusSeeOther)
}

func (s *site) orders(w http.ResponseWriter, r *http.Request) {
	v, _ := s.shop(r, "Your orders")
	if shopper := shopperOf(r); shopper != "" {
		if _, err := s.back.orders.Ask(r.Context(), "GET", "/shoppers/"+shopper+"/orders", nil, &v.Orders); err != nil {
			s.log.Warn("orders not reached", "error", err)
			s.show(w, http.StatusServiceUnavailable, "trouble", v.notice("The order book is out of reach for a moment. Your orders are safe."))
			return
		}
	}
	for _, order := range v.Orders {
		v.Refresh = v.Refresh || order.State != trade.Shipped
	}
	s.show(w, http.StatusOK, "orders", v)
}

func (s *site) order(w http.ResponseWriter, r *http.Request) {
	v, _ := s.shop(r, "Your order")
	shopper := shopperOf(r)
	if shopper == "" {
		s.trouble(w, r, http.StatusNotFound, "There is no such order.")
		return
	}
	if _, err := s.back.orders.Ask(r.Context(), "GET", "/shoppers/"+shopper+"/orders/"+escape(r.PathValue("order")), nil, &v.Order); err != nil {
		s.unreached(w, r, "orders", err)
		return
	}
	v.Refresh = v.Order.State != trade.Shipped
	s.show(w, http.StatusOK, "order", v)
}

// unreached answers for a service that refused or is away.
func (s *site) unreached(w http.ResponseWriter, r *http.Request, name string, err error) {
	if refusal := (*call.Refusal)(nil); errors.As(err, &refusal) {
		s.trouble(w, r, refusal.Status, "That did not work: "+refusal.Sentence+".")
		return
	}
	s.log.Warn("service not reached", "asked", name, "error", err)
	s.trouble(w, r, http.StatusServiceUnavailable, "That part of the shop is out of reach for a moment. Please go back and try again.")
}

func (s *site) trouble(w http.ResponseWriter, r *http.Request, status int, sentence string) {
	s.show(w, status, "trouble", s.view(r, "Sorry").notice(sentence))
}

const shopperCookie = "shopper"

// shopperOf is the shopper's identity, or empty for one who has taken nothing yet.
func shopperOf(r *http.Request) string {
	cookie, err := r.Cookie(shopperCookie)
	if err != nil || !trade.IsID(cookie.Value) {
		return ""
	}
	return cookie.Value
}

// welcome is the shopper's identity, a new one if need be.
func (s *site) welcome(w http.ResponseWriter, r *http.Request) string {
	if shopper := shopperOf(r); shopper != "" {
		return shopper
	}
	shopper := trade.NewID()
	http.SetCookie(w, &http.Cookie{Name: shopperCookie, Value: shopper, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int((365 * 24 * time.Hour).Seconds())})
	return shopper
}
