package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/node"
	"github.com/tutti-run/tutti/internal/provision"
)

// askAfter is how long work waits for a place before a host is asked for.
const askAfter = 5 * time.Second

// virtualHosts gives virtual hosts of this machine.
type virtualHosts struct {
	*globals
	*provision.Machine
}

// Hosts lists them, the founder first.
func (v *virtualHosts) Hosts() ([]provision.Host, error) {
	list, err := v.List()
	var out []provision.Host
	for i := range list {
		out = append(out, list[i].Host)
	}
	return out, err
}

// Add boots one more host, set up as the first one was, which joins as an agent.
func (v *virtualHosts) Add(ctx context.Context) (string, error) {
	list, err := v.List()
	if err != nil {
		return "", err
	}
	c := node.Config{}
	at := ""
	for i := range list {
		if i == 0 {
			data, err := os.ReadFile(filepath.Join(list[0].DataDir, "node.json"))
			if err != nil {
				return "", fmt.Errorf("read how %s is set up: %w", list[0].Name, err)
			}
			if err := json.Unmarshal(data, &c); err != nil {
				return "", fmt.Errorf("read how %s is set up: %w", list[0].Name, err)
			}
		}
		if h := &list[i]; h.Server && h.Running && !h.Cut {
			at = h.Address
		}
	}
	if at == "" {
		return "", fault.New(fault.Unavailable, "no server runs that a host could join")
	}
	client, err := v.connect(ctx)
	if err != nil {
		return "", err
	}
	defer client.Close()
	token, err := client.Token(ctx, false)
	if err != nil {
		return "", fmt.Errorf("get a join token: %w", err)
	}
	h, err := v.Machine.Add()
	if err != nil {
		return "", err
	}
	asAgent(&c, &h)
	c.JoinAddress, c.JoinToken = net.JoinHostPort(at, strconv.Itoa(c.Port)), token
	if err := v.Start(&h, c); err != nil {
		return "", errors.Join(err, v.Remove(ctx, h.Name))
	}
	return h.Name, nil
}

// asAgent makes a host's configuration of that of another one.
func asAgent(c *node.Config, h *provision.Host) {
	c.Name, c.Address, c.DataDir, c.RunDir, c.Cgroup = h.Name, h.Address, h.DataDir, h.RunDir, h.Cgroup()
	c.APIListen, c.DockerListen, c.MarathonListen, c.RegistryListen = "", "", "", "" // servers answer them
}

// growHosts asks for virtual hosts and gives them back, if there may be more or fewer of them.
func (g *globals) growHosts(ctx context.Context, log *slog.Logger) {
	hosts := &virtualHosts{g, g.machine("")}
	policy, ok, err := hosts.Policy()
	if err != nil {
		log.Error("it is not known how many hosts there may be", "error", err)
	}
	if !ok {
		return
	}
	growing := &provision.Growing{Provider: hosts, Policy: policy, Log: log}
	const every = time.Second
	tick := time.NewTicker(every)
	defer tick.Stop()
	failed := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch err := g.growOnce(ctx, growing); {
		case err == nil:
			failed = ""
		case ctx.Err() == nil && err.Error() != failed:
			failed = err.Error()
			log.Warn("hosts could not be looked after; it is tried again", "error", err)
		}
	}
}

// lookPatience is how long one look may take; hosts end and begin within.
const lookPatience = time.Minute

func (g *globals) growOnce(ctx context.Context, growing *provision.Growing) error {
	ctx, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	client, err := g.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	return growing.Look(ctx, client, time.Now())
}

// memoryShare is that of each of so many virtual hosts.
func memoryShare(hosts int) (model.Resources, error) {
	memory, err := node.TotalMemory()
	return model.Resources{MemoryBytes: memory / int64(hosts)}, err
}
