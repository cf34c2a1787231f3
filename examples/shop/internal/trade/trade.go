// Package trade has the words that the shop's services say to each other in JSON.
package trade

import (
	"crypto/rand"
	"fmt"
	"regexp"
	"time"
)

// Product is a thing on the shelf. Picture names a drawing that the front end has.
type Product struct {
	SKU         string `json:"sku"`
	Name        string `json:"name"`
	Description string `json:"description"`
	Picture     string `json:"picture"`
	Cents       int    `json:"cents"`
}

// Shelf is the whole catalogue. Stale says that the database did not answer just now and that
// this is what it said before.
type Shelf struct {
	Products []Product `json:"products"`
	Stale    bool      `json:"stale,omitempty"`
}

// MostOfOne is the largest quantity of one product in a cart.
const MostOfOne = 99

// Line is how many of a product are wanted.
type Line struct {
	SKU      string `json:"sku"`
	Quantity int    `json:"quantity"`
}

// Cart is what a shopper has taken so far, ordered by SKU.
type Cart struct {
	Lines []Line `json:"lines"`
}

// Count is the number of things in the cart.
func (c Cart) Count() int {
	n := 0
	for _, line := range c.Lines {
		n += line.Quantity
	}
	return n
}

// Quantity is how many of that product are in the cart.
func (c Cart) Quantity(sku string) int {
	for _, line := range c.Lines {
		if line.SKU == sku {
			return line.Quantity
		}
	}
	return 0
}

// Wish asks for an order. The key makes it safe to ask twice: the same shopper and key is the same order.
type Wish struct {
	Key     string `json:"key"`
	Shopper string `json:"shopper"`
	Name    string `json:"name"`
	Lines   []Line `json:"lines"`
}

// The states of an order, in their order.
const (
	Placed  = "placed"
	Packed  = "packed"
	Shipped = "shipped"
)

// Order is a wish that was accepted and is in the database.
type Order struct {
	ID       string      `json:"id"`
	Name     string      `json:"name"`
	State    string      `json:"state"`
	Cents    int         `json:"cents"`
	Lines    []OrderLine `json:"lines,omitempty"`
	Placed   time.Time   `json:"placed"`
	Packed   *time.Time  `json:"packed,omitempty"`
	Shipped  *time.Time  `json:"shipped,omitempty"`
	PlacedBy string      `json:"placedBy"`           // instance of the orders service
	PackedBy string      `json:"packedBy,omitempty"` // instance of the worker
}

// OrderLine keeps name and price as they were when the order was placed.
type OrderLine struct {
	SKU      string `json:"sku"`
	Name     string `json:"name"`
	Cents    int    `json:"cents"` // of one
	Quantity int    `json:"quantity"`
}

// NewID makes an identity that nobody can guess.
func NewID() string { return rand.Text() }

var idShape = regexp.MustCompile(`^[A-Z2-7]{26}$`)

// IsID says whether text has the shape of what NewID makes.
func IsID(text string) bool { return idShape.MatchString(text) }

// Money writes cents as people do.
func Money(cents int) string { return fmt.Sprintf("€ %d.%02d", cents/100, cents%100) }
