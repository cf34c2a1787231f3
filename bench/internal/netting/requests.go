package netting

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netns"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/balance/ingress"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// askNames asks for the address of a name, by several askers, and returns how many answers came in a
// second and how long each took.
func askNames(from netns.NsHandle, server, name string, span time.Duration) (rate float64, took []time.Duration, err error) {
	var q []byte
	q = append(q, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, byte(len(name)))
	q = append(append(q, name...), 0, 0, 1, 0, 1)
	var wait sync.WaitGroup
	var mu sync.Mutex
	began := time.Now()
	for range 8 {
		wait.Go(func() {
			var mine []time.Duration
			asked := inside(from, func() error {
				c, err := net.Dial("udp4", server)
				if err != nil {
					return err
				}
				defer c.Close()
				b, own := make([]byte, 512), bytes.Clone(q)
				for time.Since(began) < span {
					binary.BigEndian.PutUint16(own, uint16(len(mine)))
					sent := time.Now()
					if _, err := c.Write(own); err != nil {
						return err
					}
					if err := c.SetReadDeadline(sent.Add(2 * time.Second)); err != nil {
						return err
					}
					n, err := c.Read(b)
					if err != nil {
						return err
					}
					if n < 12 || b[3]&0xf != 0 || binary.BigEndian.Uint16(b[6:]) != 1 {
						return fmt.Errorf("%s gives %x", name, b[:n])
					}
					mine = append(mine, time.Since(sent))
				}
				return nil
			})
			mu.Lock()
			defer mu.Unlock()
			took, err = append(took, mine...), errors.Join(err, asked)
		})
	}
	wait.Wait()
	return float64(len(took)) / time.Since(began).Seconds(), took, err
}

const (
	backendPort = 9000
	nginxPort   = 9080
)

// nginxConfig is a server that answers at once, as an instance, or a proxy of one, as an ingress.
const nginxConfig = `
daemon off; worker_processes %s; pid %s/%[3]s.pid; error_log /dev/null;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 1000000;
  client_body_temp_path %[2]s/%[3]s-1; proxy_temp_path %[2]s/%[3]s-2; fastcgi_temp_path %[2]s/%[3]s-3; uwsgi_temp_path %[2]s/%[3]s-4; scgi_temp_path %[2]s/%[3]s-5;
  %[4]s
}
`

func startNginx(ns netns.NsHandle, dir, name, workers, body string) (pid int, stop func(), err error) {
	path := filepath.Join(dir, name+".conf")
	if err := os.WriteFile(path, fmt.Appendf(nil, nginxConfig, workers, dir, name, body), 0o600); err != nil {
		return 0, nil, err
	}
	cmd := exec.Command("nginx", "-p", dir, "-c", path)
	cmd.Stderr = os.Stderr
	if err := inside(ns, cmd.Start); err != nil {
		return 0, nil, fmt.Errorf("start nginx: %w", err)
	}
	return cmd.Process.Pid, func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() }, nil
}

// usedBy is the processor time that processes and their children have had so far.
func usedBy(pid int) (sum time.Duration, err error) {
	list := []string{strconv.Itoa(pid)}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		return 0, fmt.Errorf("read the processes below %d: %w", pid, err)
	}
	for _, id := range append(list, strings.Fields(string(children))...) {
		text, err := os.ReadFile("/proc/" + id + "/stat")
		if err != nil {
			return 0, fmt.Errorf("read the times of process %s: %w", id, err)
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest)
		for _, ticks := range f[11:13] { // of 10 ms: user and system
			n, err := strconv.Atoi(ticks)
			if err != nil {
				return 0, fmt.Errorf("read the times of process %s: %w", id, err)
			}
			sum += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return sum, nil
}

var (
	wrkRate = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)
	wrkTail = regexp.MustCompile(`99%\s+([0-9.]+)(us|ms|s)`)
	wrkBad  = regexp.MustCompile(`(?m)^\s*(Non-2xx.*|Socket errors.*)$`)
)

// loaded is what came of asking a server.
type loaded struct{ rate, p99, cpu []float64 } // requests a second; milliseconds; microseconds of processor time a request

// ask adds a round: asks as load does, and looks at what the server's processes used for it.
func (d *loaded) ask(from netns.NsHandle, pid int, url, host string, span time.Duration) error {
	before, err := usedBy(pid)
	if err != nil {
		return err
	}
	began := time.Now()
	rate, p99, err := load(from, url, host, span)
	if err != nil {
		return err
	}
	took := time.Since(began)
	after, err := usedBy(pid)
	if err != nil {
		return err
	}
	d.rate, d.p99 = append(d.rate, rate), append(d.p99, p99)
	d.cpu = append(d.cpu, float64((after-before).Microseconds())/(rate*took.Seconds()))
	return nil
}

// load asks for span with 32 connections, and returns the rate and the 99th percentile in milliseconds.
func load(from netns.NsHandle, url, host string, span time.Duration) (rate, p99 float64, err error) {
	var out []byte
	seconds := max(1, int(span.Seconds()))
	err = inside(from, func() (err error) {
		out, err = exec.Command("wrk", "-t1", "-c32", fmt.Sprintf("-d%ds", seconds), "--latency", "-H", "Host: "+host, url).CombinedOutput()
		return err
	})
	text := string(out)
	if err != nil {
		return 0, 0, fmt.Errorf("wrk %s: %w\n%s", url, err, text)
	}
	if bad := wrkBad.FindString(text); bad != "" {
		return 0, 0, fmt.Errorf("%s: %s", url, strings.TrimSpace(bad))
	}
	r, t := wrkRate.FindStringSubmatch(text), wrkTail.FindStringSubmatch(text)
	if r == nil || t == nil {
		return 0, 0, fmt.Errorf("wrk says\n%s", text)
	}
	rate, err1 := strconv.ParseFloat(r[1], 64)
	p99, err2 := strconv.ParseFloat(t[1], 64)
	return rate, p99 * map[string]float64{"us": 0.001, "ms": 1, "s": 1000}[t[2]], errors.Join(err1, err2)
}

// ingress asks the same small answer through the ingress and through nginx, in turns: both on the first
// node, the instance on the second, asked from outside.
func (l *lan) ingress(sheet *report.Sheet, dir string, span time.Duration) error {
	_, stop, err := startNginx(l.server, dir, "backend", "1", fmt.Sprintf(`server { listen %d; location / { return 200 "hello"; } }`, backendPort))
	if err != nil {
		return err
	}
	defer stop()
	proxy := fmt.Sprintf(`upstream i { server %s:%d; keepalive 64; keepalive_requests 1000000; }
  server { listen %d; server_name bench.test; location / { proxy_pass http://i; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Host $host; proxy_set_header X-Forwarded-Proto http; } }`,
		serverIP, backendPort, nginxPort)
	nginx, stopProxy, err := startNginx(l.a.ns, dir, "proxy", "auto", proxy)
	if err != nil {
		return err
	}
	defer stopProxy()
	version, err := exec.Command("nginx", "-v").CombinedOutput()
	if err != nil {
		return err
	}
	for _, services := range []int{1, 10000} {
		n := &wire.Network{}
		for s := range services {
			host := fmt.Sprintf("s%d.test", s)
			if s == 0 {
				host = "bench.test"
			}
			n.Services = append(n.Services, wire.NetworkService{
				ID: host, Name: host, Routes: []model.Route{{Host: host, Target: backendPort}},
				Endpoints: []wire.Endpoint{{Instance: "server", NodeID: "b", Addresses: []model.Address{{Network: "n", IP: serverIP}}}},
			})
		}
		p := ingress.New(filepath.Join(dir, fmt.Sprint("ingress", services)), "a", ":80", ":443", slog.New(slog.DiscardHandler))
		if err := inside(l.a.ns, func() error { return p.Sync(context.Background(), n) }); err != nil {
			return err
		}
		pid, running := p.Running()
		if !running {
			return errors.New("the ingress does not run")
		}
		var ours, theirs loaded
		const rounds = 3
		for range rounds {
			if err := errors.Join(
				ours.ask(l.outside, pid, "http://"+hostAddress(0)+"/", "bench.test", span/2),
				theirs.ask(l.outside, nginx, fmt.Sprintf("http://%s:%d/", hostAddress(0), nginxPort), "bench.test", span/2),
			); err != nil {
				return err
			}
		}
		const counted = "requests for five bytes over 32 connections that are kept, from outside through the first node to an instance on the second; the median of three rounds"
		peer := strings.TrimSpace(strings.TrimPrefix(string(version), "nginx version: "))
		if err := errors.Join(
			sheet.Add(report.Row{Name: fmt.Sprint("net/ingress/rate/", services), Value: median(ours.rate), Unit: "requests/s", Peer: peer, PeerValue: median(theirs.rate), Counted: counted}),
			sheet.Add(report.Row{Name: fmt.Sprint("net/ingress/p99/", services), Value: median(ours.p99), Unit: "ms", Peer: peer, PeerValue: median(theirs.p99), Counted: counted}),
			sheet.Add(report.Row{Name: fmt.Sprint("net/ingress/cpu/", services), Value: median(ours.cpu), Unit: "µs", Peer: peer, PeerValue: median(theirs.cpu), Counted: "processor time of the ingress or of nginx for one of these requests"}),
			p.Remove(context.Background()),
		); err != nil {
			return err
		}
	}
	return nil
}
