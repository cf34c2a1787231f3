package docker_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// serve answers at a Unix socket, as a node does, until the test ends. It returns how to connect.
func (h *house) serve() func() net.Conn {
	h.t.Helper()
	dir, err := os.MkdirTemp("", "docker") // a short path, as sockets need
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		h.t.Fatal(err)
	}
	server := &http.Server{Handler: h.api, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l) // it ends with the test
	}()
	h.t.Cleanup(func() {
		server.Close()
		<-ended
	})
	return func() net.Conn {
		c, err := net.Dial("unix", socket)
		if err != nil {
			h.t.Fatal(err)
		}
		return c
	}
}

// runs makes a container that runs.
func (h *house) runs(name string) {
	h.t.Helper()
	h.want("POST", "/containers/create?name="+name, `{"Image":"busybox:1","OpenStdin":true}`, 201)
	w, _ := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, "containers", name)
	i := &model.Instance{Meta: model.Meta{ID: model.NewID(), Namespace: w.Namespace, Application: w.Application, Name: name + ".1", Created: time.Now()},
		WorkloadID: w.ID, RevisionID: w.RevisionID, Slot: 1, NodeID: "n1", Desired: model.DesiredRun}
	h.put(i)
	i = i.Clone()
	i.Status = model.InstanceStatus{State: model.InstanceRunning, Tasks: []model.TaskStatus{{Name: "main", Run: 1, State: "running", Started: time.Now()}}}
	cs := &store.ChangeSet{}
	cs.PutStatus(i)
	if _, err := h.store.Commit(context.Background(), cs); err != nil {
		h.t.Fatal(err)
	}
}

// change changes the workload of a container in place.
func (h *house) change(name string, how func(*model.Workload)) {
	h.t.Helper()
	w, _ := store.ByName[*model.Workload](h.store.Snapshot(), model.DefaultNamespace, "containers", name)
	w = w.Clone()
	how(w)
	h.put(w)
}

// TestNonsenseIsRefusedCleanly holds that versions, bodies and upgrades that mean nothing get an answer of the
// Engine's form, and that none of them takes the server with it.
func TestNonsenseIsRefusedCleanly(t *testing.T) {
	h := newHouse(t)
	h.runs("web")
	dial := h.serve()
	for _, c := range []struct {
		request string
		status  string
	}{
		{"GET /v/info HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		{"GET /v../info HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"GET /v1.24.5.6.7/_ping HTTP/1.1\r\nHost: x\r\n\r\n", "200"},
		{"GET /v99999999999999999999.1/info HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"GET /v1.-1/info HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		{"GET /v1.41/v1.41/info HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		{"GET /%2e%2e/info HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		{"GET /containers/%00/json HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		{"FETCH /info HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		{"GET /info HTTP/1.1\r\n\r\n", "400"},
		{"nonsense\r\n\r\n", "400"},
		{"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nnull", "400"},
		{"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]", "400"},
		{"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", "400"},
		{"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "400"},
		{"POST /containers/nosuch/attach?stream=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", "404"},
		{"POST /containers/web/attach?stream=1&detachKeys=nonsense HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", "400"},
		{"POST /containers/web/attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: nonsense\r\n\r\n", "200"},
		{"POST /exec/nosuch/start HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}", "404"},
		{"GET /containers/web/attach/ws HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"GET /containers/web/logs HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"POST /session HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", "501"},
	} {
		conn := dial()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.WriteString(conn, c.request); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		if !strings.HasPrefix(line, "HTTP/1.1 "+c.status) {
			t.Errorf("%q is answered with %q, %v; want %s", c.request, line, err, c.status)
		}
		conn.Close()
	}
}

// TestABodyWithoutEnd holds that what is sent for ever is refused once it is too long, and that the client is cut off.
func TestABodyWithoutEnd(t *testing.T) {
	h := newHouse(t)
	dial := h.serve()
	for _, path := range []string{"/containers/create", "/services/create", "/networks/create", "/exec/x/start", "/swarm/update?version=1"} {
		conn := dial()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n", path)
		sent, piece := 0, append([]byte("10000\r\n"), append([]byte(strings.Repeat(" ", 1<<16)), "\r\n"...)...)
		answered := make(chan string, 1)
		go func() {
			line, _ := bufio.NewReader(conn).ReadString('\n')
			answered <- line
		}()
		for sent < 64<<20 {
			n, err := conn.Write(piece)
			sent += n
			if err != nil {
				break
			}
		}
		if line := <-answered; !strings.HasPrefix(line, "HTTP/1.1 4") {
			t.Errorf("%s: after %d bytes the answer is %q", path, sent, line)
		}
		if sent >= 64<<20 {
			t.Errorf("%s: %d bytes were taken", path, sent)
		}
		conn.Close()
	}
}

// busy plays a node whose containers talk without end, or say nothing at all, as long as they are listened to.
type busy struct {
	house
	open atomic.Int64
}

func (b *busy) Attach(ctx context.Context, _ string, _ wire.TaskRef, s driver.Streams) error {
	b.open.Add(1)
	defer b.open.Add(-1)
	if s.Stdin != nil {
		go func() { _, _ = io.Copy(io.Discard, s.Stdin) }() // it ends with the connection
	}
	if s.Stdout != nil {
		_, _ = s.Stdout.Write([]byte("said once\n"))
	}
	<-ctx.Done()
	return ctx.Err()
}

func (b *busy) Logs(ctx context.Context, _ string, _ wire.TaskRef, o driver.LogOptions, yield func(driver.LogEntry) error) error {
	b.open.Add(1)
	defer b.open.Add(-1)
	for o.Follow && ctx.Err() == nil {
		if err := yield(driver.LogEntry{Time: time.Now(), Stream: "stdout", Line: []byte(strings.Repeat("x", 1000) + "\n")}); err != nil {
			return err
		}
	}
	return nil
}

func (b *busy) Stats(context.Context, string, wire.TaskRef) (driver.Stats, error) {
	return driver.Stats{Time: time.Now(), MemoryBytes: 1}, nil
}

// TestNothingLeaks holds that of hundreds of clients, those that read slowly, or not at all, and those that are cut off included,
// nothing is left once they are gone: neither goroutines nor file descriptors.
func TestNothingLeaks(t *testing.T) {
	b := &busy{house: *newHouse(t)}
	b.answer(b)
	b.run()
	b.runs("web")
	dial := b.serve()
	settled := func() (goroutines, files int) {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(list)
	}
	goroutines, files := settled()
	const each = 40
	requests := []string{
		"GET /events HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /containers/web/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /containers/web/stats HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /containers/web/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
		"POST /containers/web/attach?stream=1&stdout=1&stdin=1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
		"POST /containers/web/wait HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"Image\"",
	}
	var conns []net.Conn
	for _, text := range requests {
		for range each {
			c := dial()
			conns = append(conns, c)
			if _, err := io.WriteString(c, text); err != nil {
				t.Fatal(err)
			}
		}
	}
	await := func(what string, enough func() bool) {
		t.Helper()
		for until := time.Now().Add(time.Minute); !enough(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(until) {
				g, f := settled()
				buf := make([]byte, 1<<20)
				t.Fatalf("%s: %d goroutines and %d files are there, %d and %d were before; %d streams are open\n%.20000s", what, g, f, goroutines, files, b.open.Load(), buf[:runtime.Stack(buf, true)])
			}
		}
	}
	await("the streams are open", func() bool { return b.open.Load() == 3*each })
	// Others are not held up by those that do not read.
	var list []json.RawMessage
	if err := json.Unmarshal([]byte(b.want("GET", "/containers/json", "", 200)), &list); err != nil || len(list) != 1 {
		t.Errorf("meanwhile the list is %s, %v", list, err)
	}
	var wg sync.WaitGroup
	for n, c := range conns {
		wg.Go(func() {
			if n%2 == 0 { // some of what came, and then no more
				_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				_, _ = io.ReadFull(c, make([]byte, 100))
			}
			c.Close()
		})
	}
	wg.Wait()
	await("all are gone", func() bool {
		g, f := settled()
		return g <= goroutines && f <= files && b.open.Load() == 0
	})
}

// room plays a container in which several talk: what one of them says all hear, and it notes when its input ends.
type room struct {
	house
	mu     sync.Mutex
	heard  []io.Writer
	ended  atomic.Int64 // inputs that came to their end
	inside atomic.Int64
}

func (m *room) Attach(ctx context.Context, _ string, _ wire.TaskRef, s driver.Streams) error {
	m.mu.Lock()
	m.heard = append(m.heard, s.Stdout)
	m.mu.Unlock()
	m.inside.Add(1)
	defer m.inside.Add(-1)
	go func() {
		buf := make([]byte, 100)
		for {
			n, err := s.Stdin.Read(buf)
			m.mu.Lock()
			for _, w := range m.heard {
				_, _ = w.Write(buf[:n]) // who has left hears no more
			}
			m.mu.Unlock()
			if errors.Is(err, io.EOF) {
				m.ended.Add(1)
			}
			if err != nil {
				return
			}
		}
	}()
	<-ctx.Done()
	return ctx.Err()
}

// TestSeveralAreAttached holds that all who are attached to a terminal hear what comes, that each leaves by the keys that
// it chose and the others stay, and that the container's input has no end by that; nor by the connection's.
func TestSeveralAreAttached(t *testing.T) {
	m := &room{house: *newHouse(t)}
	m.answer(m)
	m.runs("web")
	m.change("web", func(w *model.Workload) { w.Template.Tasks[0].TTY = true })
	dial := m.serve()
	attach := func(keys string) net.Conn {
		c := dial()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprintf(c, "POST /containers/web/attach?stream=1&stdout=1&stdin=1&detachKeys=%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n", keys)
		return c
	}
	var conns []net.Conn
	for _, keys := range []string{"", "ctrl-a", "a,b", "ctrl-@,x", "ctrl-_"} {
		conns = append(conns, attach(keys))
	}
	await := func(what string, enough func() bool) {
		t.Helper()
		for until := time.Now().Add(time.Minute); !enough(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(until) {
				t.Fatal(what)
			}
		}
	}
	await("not all are attached", func() bool { return m.inside.Load() == int64(len(conns)) })
	readers := make([]*bufio.Reader, len(conns))
	for n, c := range conns {
		readers[n] = bufio.NewReader(c)
		for { // the answer's head
			line, err := readers[n].ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if line == "\r\n" {
				break
			}
		}
	}
	hear := func(from int, text string) {
		t.Helper()
		for n := from; n < len(conns); n++ {
			got := make([]byte, len(text))
			if _, err := io.ReadFull(readers[n], got); err != nil || string(got) != text {
				t.Errorf("client %d hears %q, %v; want %q", n, got, err, text)
			}
		}
	}
	fmt.Fprint(conns[0], "hello")
	hear(0, "hello")
	for n, keys := range []string{"\x10\x11", "\x01", "ab", "\x00x"} {
		fmt.Fprint(conns[n], "bye"+keys)
		hear(n, "bye")
		if rest, err := io.ReadAll(readers[n]); err != nil || len(rest) > 0 {
			t.Errorf("client %d has left, and hears %q, %v", n, rest, err)
		}
		await("one who has left is attached", func() bool { return m.inside.Load() == int64(len(conns)-n-1) })
	}
	if half, ok := conns[4].(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	await("one whose input has ended is attached", func() bool { return m.inside.Load() == 0 })
	if n := m.ended.Load(); n != 0 {
		t.Errorf("the input of the container came to an end %d times", n)
	}
	for _, c := range conns {
		c.Close()
	}
}

// TestAttachingByWebSocket holds that what a container says comes over a WebSocket, and that the stream ends with the client.
func TestAttachingByWebSocket(t *testing.T) {
	b := &busy{house: *newHouse(t)}
	b.answer(b)
	b.runs("web")
	conn := b.serve()()
	config, err := websocket.NewConfig("ws://docker/containers/web/attach/ws?stream=1&stdout=1&stdin=1", "http://docker")
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	ws, err := websocket.NewClient(config, conn)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10)
	if _, err := io.ReadFull(ws, got); err != nil || string(got) != "said once\n" {
		t.Errorf("what came is %q, %v", got, err)
	}
	ws.Close()
	for until := time.Now().Add(time.Minute); b.open.Load() != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the stream is open though the client has gone")
		}
	}
}
