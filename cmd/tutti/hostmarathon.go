package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/api/access"
	"github.com/tutti-run/tutti/internal/node"
)

// passMarathon answers Marathon's API on this machine's loopback address, to its administrator, at the
// port at which virtual hosts answer it on theirs: it passes connections on to one that runs.
func (g *globals) passMarathon(ctx context.Context, log *slog.Logger) {
	for ctx.Err() == nil {
		if address := g.marathonAddress(); address != "" {
			inner, err := net.Listen("tcp4", address)
			if err != nil {
				log.Warn("Marathon's API cannot be answered on this machine's loopback address", "address", address, "error", err)
				return
			}
			l := access.Own(inner)
			defer context.AfterFunc(ctx, func() { l.Close() })()
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go g.passToHost(c)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// marathonAddress is where the hosts say that they answer Marathon's API, "" while none does on loopback.
func (g *globals) marathonAddress() string {
	hosts, err := g.machine("").List()
	if err != nil {
		return ""
	}
	for _, h := range hosts {
		data, err := os.ReadFile(node.MarathonURLFile(h.RunDir))
		if u, perr := url.Parse(strings.TrimSpace(string(data))); err == nil && perr == nil && u.Scheme == "http" {
			return u.Host
		}
	}
	return ""
}

func (g *globals) passToHost(from net.Conn) {
	defer from.Close()
	hosts, err := g.machine("").List()
	if err != nil {
		return
	}
	for _, h := range hosts {
		if !h.Running || h.Cut {
			continue
		}
		to, err := net.DialTimeout("unix", node.MarathonSocket(h.RunDir), time.Second)
		if err != nil {
			continue
		}
		defer to.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(to, from) // either end may go away at any time
			_ = to.(*net.UnixConn).CloseWrite()
		}()
		_, _ = io.Copy(from, to)
		from.Close()
		<-done
		return
	}
}
