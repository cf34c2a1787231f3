package starting

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/node"
)

// API measures the Docker API of a node that is a whole cluster beside the Engine's.
func API(ctx context.Context, sheet *report.Sheet, brief bool) error {
	sheet.Say("making Docker Compose and the images of the shop")
	s, err := makeShop(ctx)
	if err != nil {
		return err
	}
	return measure(ctx, sheet, job{Group: "docker", Brief: brief, Shop: s})
}

// load says how much is asked of an API.
type load struct {
	standing int           // containers that run meanwhile
	clients  int           // at once
	reading  time.Duration // of each kind of request
	creating int           // containers
	running  int           // containers run to their end, in turn
	replicas int
}

func loadOf(brief bool) load {
	if brief {
		return load{standing: 10, clients: 8, reading: 2 * time.Second, creating: 40, running: 8, replicas: 20}
	}
	return load{standing: 50, clients: 8, reading: 5 * time.Second, creating: 200, running: 30, replicas: 100}
}

// answers is what an API made of a load.
type answers struct {
	kinds    []kind
	run      []time.Duration
	replicas time.Duration
	shop     time.Duration
}

// kind is one kind of request: how many a second, and how long each took.
type kind struct {
	name string
	rate float64
	took []time.Duration
}

func compareAPIs(ctx context.Context, sheet *report.Sheet, j job, e *engine) error {
	l := loadOf(j.Brief)
	sheet.Say("requests of the Docker API of Tutti")
	own, err := tuttiAPI(ctx, j, l)
	if err != nil {
		return fmt.Errorf("ask Tutti: %w", err)
	}
	sheet.Say("the same of Docker Engine")
	if err := e.call(ctx, http.MethodPost, "/swarm/init", map[string]any{"ListenAddr": hostAddress + ":2377", "AdvertiseAddr": hostAddress}, nil); err != nil {
		return err
	}
	peer, err := e.answer(ctx, l)
	if err == nil {
		peer.shop, err = e.bringUp(ctx, j.Shop)
	}
	if err != nil {
		return fmt.Errorf("ask Docker Engine: %w", err)
	}
	counted := fmt.Sprintf("%d clients over the Unix socket, %d containers running meanwhile; Tutti: one server, what is created is committed and on disk (fsync)", l.clients, l.standing)
	add := func(name, unit string, own, peer float64, counted string) {
		err = errors.Join(err, sheet.Add(report.Row{Name: name, Value: own, Unit: unit, Peer: e.name, PeerValue: peer, Counted: counted}))
	}
	for i, k := range own.kinds {
		add("docker/"+k.name, "requests/s", k.rate, peer.kinds[i].rate, counted)
		add("docker/"+k.name+"/p99", "ms", report.Percentile(k.took, 0.99), report.Percentile(peer.kinds[i].took, 0.99), counted)
	}
	for _, q := range []float64{0.5, 0.99} {
		add(fmt.Sprintf("docker/run-to-exit/p%.0f", q*100), "ms", report.Percentile(own.run, q), report.Percentile(peer.run, q),
			"create, start and wait until it has exited, one after the other, by one client; default network")
	}
	add(fmt.Sprintf("docker/service/%d-replicas", l.replicas), "s", own.replicas.Seconds(), peer.replicas.Seconds(),
		"from POST /services/create until all tasks are told to run, by the same requests")
	add("docker/compose-up/shop", "s", own.shop.Seconds(), peer.shop.Seconds(),
		"Docker Compose's up of examples/shop until its front page is answered, the images being there; one copy of web, as an Engine gives a port to one container")
	return err
}

// tuttiAPI runs a node and asks it.
func tuttiAPI(ctx context.Context, j job, l load) (a answers, err error) {
	n, err := startNode(ctx, j)
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	if err := n.importImage(ctx, j.Dir); err != nil {
		return a, fmt.Errorf("import the image: %w", err)
	}
	socket := node.DockerSocket(n.config.RunDir)
	side := &engine{name: "Tutti", socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: 100,
	}}}
	if a, err = side.answer(ctx, l); err == nil {
		a.shop, err = side.bringUp(ctx, j.Shop)
	}
	return a, err
}

// answer asks for everything and takes away what that made.
func (e *engine) answer(ctx context.Context, l load) (a answers, err error) {
	var standing []string
	for i := range l.standing {
		name := "standing-" + strconv.Itoa(i)
		if err := e.create(ctx, name, "sleep"); err != nil {
			return a, err
		}
		if err := e.call(ctx, http.MethodPost, "/containers/"+name+"/start", nil, nil); err != nil {
			return a, err
		}
		standing = append(standing, name)
	}
	get := func(path func(i int) string) func(i int) error {
		return func(i int) error {
			_, err := e.do(ctx, http.MethodGet, path(i), nil, "")
			return err
		}
	}
	until := time.Now().Add(l.reading)
	more := func(int) bool { return time.Now().Before(until) }
	for _, k := range []struct {
		name string
		ask  func(i int) error
	}{
		{"list", get(func(int) string { return "/containers/json" })},
		{"inspect", get(func(i int) string { return "/containers/" + standing[i%len(standing)] + "/json" })},
	} {
		until = time.Now().Add(l.reading)
		got, err := ask(k.name, l.clients, more, k.ask)
		if err != nil {
			return a, err
		}
		a.kinds = append(a.kinds, got)
	}
	created, err := ask("create", l.clients, func(i int) bool { return i < l.creating }, func(i int) error {
		return e.create(ctx, "created-"+strconv.Itoa(i), "sleep")
	})
	if err != nil {
		return a, err
	}
	a.kinds = append(a.kinds, created)
	for i := range l.creating {
		standing = append(standing, "created-"+strconv.Itoa(i))
	}
	for _, name := range standing {
		if err := e.remove(ctx, name); err != nil {
			return a, err
		}
	}
	for i := range l.running + 1 {
		took, err := e.runToExit(ctx, "run-"+strconv.Itoa(i))
		if err != nil {
			return a, err
		}
		if i > 0 { // the first one finds nothing warm
			a.run = append(a.run, took)
		}
	}
	a.replicas, err = e.service(ctx, l.replicas)
	return a, err
}

// ask makes requests by several clients at once, as long as there are more.
func ask(name string, clients int, more func(i int) bool, do func(i int) error) (kind, error) {
	k := kind{name: name}
	var mu sync.Mutex
	var failed error
	next := 0
	began := time.Now()
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				over := failed != nil || !more(i)
				mu.Unlock()
				if over {
					return
				}
				at := time.Now()
				err := do(i)
				took := time.Since(at)
				mu.Lock()
				failed = errors.Join(failed, err)
				k.took = append(k.took, took)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	k.rate = float64(len(k.took)) / time.Since(began).Seconds()
	return k, failed
}

func (e *engine) create(ctx context.Context, name string, args ...string) error {
	type create struct {
		Image string
		Cmd   []string
	}
	return e.call(ctx, http.MethodPost, "/containers/create?name="+name, create{imageName, args}, nil)
}

func (e *engine) runToExit(ctx context.Context, name string) (time.Duration, error) {
	began := time.Now()
	err := e.create(ctx, name)
	if err == nil {
		err = e.call(ctx, http.MethodPost, "/containers/"+name+"/start", nil, nil)
	}
	if err == nil {
		err = e.call(ctx, http.MethodPost, "/containers/"+name+"/wait", nil, nil)
	}
	took := time.Since(began)
	return took, errors.Join(err, e.remove(ctx, name))
}

// service runs replicas through the API and removes them.
func (e *engine) service(ctx context.Context, replicas int) (time.Duration, error) {
	type m map[string]any
	began := time.Now()
	err := e.call(ctx, http.MethodPost, "/services/create", m{
		"Name":         "bench",
		"TaskTemplate": m{"ContainerSpec": m{"Image": imageName, "Args": []string{"sleep"}}},
		"Mode":         m{"Replicated": m{"Replicas": replicas}},
	}, nil)
	if err != nil {
		return 0, err
	}
	err = await(ctx, replicas, func() (int, error) { return e.running(ctx) })
	took := time.Since(began)
	return took, errors.Join(err, e.call(ctx, http.MethodDelete, "/services/bench", nil, nil))
}
