package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// linked is on which networks an instance is by now.
type linked struct {
	addresses []model.Address
	err       error         // why they are not those that it should have
	changed   chan struct{} // closed and replaced when they did; nil before anybody waited
}

func (w *worker) setLinked(addresses []model.Address, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.linked.addresses = addresses
	}
	w.linked.err = err
	if w.linked.changed != nil {
		close(w.linked.changed)
		w.linked.changed = nil
	}
}

// Linked waits until an instance that is kept here has the addresses, no fewer and no others, and what leads to
// them is in force on this node.
func (a *Agent) Linked(ctx context.Context, instance string, addresses []model.Address) error {
	w, err := a.worker(instance)
	if err != nil {
		return err
	}
	for {
		w.mu.Lock()
		l := &w.linked
		done, why := slices.Equal(l.addresses, addresses), l.err
		if l.changed == nil {
			l.changed = make(chan struct{})
		}
		changed := l.changed
		w.mu.Unlock()
		if done && why == nil {
			a.awaitNetwork(ctx, instance, addresses)
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			if why != nil {
				return why
			}
			return fault.New(fault.Unavailable, "instance %s is not on its networks yet: %w", instance, ctx.Err())
		case <-changed:
		}
	}
}

// relinkAgain is after how long what could not be linked is tried once more.
const relinkAgain = time.Second

// followLinks puts the instance, whose tasks may be running, on the networks that it is assigned by now.
func (w *worker) followLinks(ctx context.Context) {
	as, _, _ := w.desired()
	w.mu.Lock()
	l := &w.linked
	same := as.Template.HostNetwork || l.err == nil && slices.Equal(l.addresses, as.Instance.Addresses)
	before := l.addresses
	w.mu.Unlock()
	if same {
		return
	}
	at, err := w.attachment(as)
	if err == nil {
		_, err = w.agent.Links.Attach(ctx, at)
	}
	if err == nil {
		err = w.renumberHosts(as, before)
	}
	if err != nil {
		w.log.Error("instance could not be put on its networks", "error", err)
		time.AfterFunc(relinkAgain, w.poke)
	}
	w.setLinked(as.Instance.Addresses, err)
}

// renumberHosts says the instance's own address anew in its /etc/hosts, in place, as it is mounted, and leaves alone
// what the instance wrote there.
func (w *worker) renumberHosts(as *wire.Assignment, before []model.Address) error {
	own := func(list []model.Address) string {
		if len(list) == 0 {
			return ""
		}
		return list[0].IP
	}
	was, is := own(before), own(as.Instance.Addresses)
	path := filepath.Join(w.filesDir(), "hosts")
	content, err := os.ReadFile(path)
	if was == is || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var out strings.Builder
	for line := range strings.Lines(string(content)) {
		if was == "" || !strings.HasPrefix(line, was+"\t") {
			out.WriteString(line)
		}
	}
	if is != "" {
		out.WriteString(ownLine(as, is, w.hostname(as)))
	}
	return os.WriteFile(path, []byte(out.String()), 0o644)
}
