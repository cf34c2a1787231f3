// Web is the shop's front end: pages that the server renders, from what the catalogue, the cart
// and the orders services say. When one of them is away the page says so, within a second.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"

	"github.com/tutti-run/tutti/examples/shop/internal/call"
	"github.com/tutti-run/tutti/examples/shop/internal/service"
)

func main() { service.Main("web", run) }

func run(ctx context.Context, log *slog.Logger) error {
	sign, err := readSign(service.Setting("SHOP_CONFIG", "/etc/shop/shop.json"))
	if err != nil {
		return err
	}
	site, err := newSite(log, sign, backends{
		catalogue: call.New(service.Setting("CATALOGUE", "http://catalogue:8080")),
		cart:      call.New(service.Setting("CART", "http://cart:8080")),
		orders:    call.New(service.Setting("ORDERS", "http://orders:8080")),
	})
	if err != nil {
		return err
	}
	return service.Serve(ctx, log, site.routes())
}

// sign is what the shop says about itself. Title and banner come from the config file; version
// and colour from the image, so that one can see an update pass through.
type sign struct {
	Title   string `json:"title"`
	Banner  string `json:"banner"`
	Version string `json:"-"`
	Colour  string `json:"-"`
}

func readSign(file string) (sign, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return sign{}, fmt.Errorf("read the shop's config: %w", err)
	}
	s := sign{
		Version: service.Setting("SHOP_VERSION", "v1"),
		Colour:  service.Setting("SHOP_COLOUR", "teal"),
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return sign{}, fmt.Errorf("read the shop's config %s: %w", file, err)
	}
	return s, nil
}
