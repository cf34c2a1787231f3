package native

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/tutti-run/tutti/internal/autoscale"
	"github.com/tutti-run/tutti/internal/core"
)

// Paths for who provides hosts.
const (
	pathHostDemand = "/v1/hosts/demand" // ?like ?most → autoscale.Demand
	pathHostNews   = "/v1/hosts/news"   // POST HostNews
)

// HostNews is what becomes of a provider's hosts.
type HostNews struct {
	News autoscale.HostNews `json:"news"`
	Host string             `json:"host,omitempty"`
	Why  string             `json:"why"`
}

func (s *server) hostRoutes(mux *http.ServeMux) {
	c := s.Core
	mux.HandleFunc("GET "+pathHostDemand, read(s, func(ctx context.Context, who core.Caller, q query) (autoscale.Demand, error) {
		most, err := q.number("most", 1)
		if err != nil {
			return autoscale.Demand{}, err
		}
		return c.HostDemand(ctx, who, q.Get("like"), most)
	}))
	mux.HandleFunc("POST "+pathHostNews, change(s, func(ctx context.Context, who core.Caller, r HostNews) (done, error) {
		return done{}, c.TellHost(ctx, who, r.News, r.Host, r.Why)
	}))
}

// HostDemand says what up to so many further hosts like a node would be good for, and which are empty.
func (c *Client) HostDemand(ctx context.Context, like string, most int) (autoscale.Demand, error) {
	return get[autoscale.Demand](ctx, c, pathHostDemand, url.Values{"like": {like}, "most": {strconv.Itoa(most)}})
}

// TellHost makes an event of what becomes of a provider's hosts.
func (c *Client) TellHost(ctx context.Context, news autoscale.HostNews, host, why string) error {
	return postDone(ctx, c, pathHostNews, HostNews{news, host, why})
}
