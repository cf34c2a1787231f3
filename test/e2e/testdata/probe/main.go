// Program probe serves HTTP and datagrams, on both versions of IP, and says who it is and whom it
// sees. With arguments it asks others, all at the same time, and prints a line for each question:
//
//	probe tcp HOST:PORT …    who answers, and how many bytes come along
//	probe udp HOST:PORT …    the same by a datagram that fills a packet
//	probe name NAME …        the addresses
//	probe srv NAME …         the hosts and ports
//
// As a server it also asks for others what they may not be asked from outside: /load/start?url=URL asks for URL
// fifty times a second until /load/stop, which tells of every request.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// body comes with every answer: many packets of the largest size.
var body = bytes.Repeat([]byte("tutti"), 60_000)

const datagram = 1300

func main() {
	if len(os.Args) > 1 {
		ask(os.Args[1], os.Args[2:])
		return
	}
	name, err := os.Hostname()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go datagrams(name)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintln(w, name, host)
		w.Write(body)
	})
	http.HandleFunc("/who", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, name, os.Getenv("ROUND")) })
	l := &load{}
	http.HandleFunc("/load/start", func(w http.ResponseWriter, r *http.Request) { l.start(r.FormValue("url")) })
	http.HandleFunc("/load/stop", func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewEncoder(w).Encode(l.stop()); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	})
	server := &http.Server{Addr: ":8080"}
	ended := make(chan struct{})
	go func() {
		<-stop
		// A connection that was accepted just now is not known to the server yet, and Shutdown would not wait for it.
		time.Sleep(300 * time.Millisecond)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // unless whoever stopped it is less patient
		defer cancel()
		server.Shutdown(ctx)
		close(ended)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-ended
}

// load asks for one page at a steady rate, each time on a connection of its own.
type load struct {
	mu      sync.Mutex
	answers []answer
	end     chan struct{}
	all     sync.WaitGroup
}

type answer struct {
	Asked  time.Time `json:"asked"`
	At     time.Time `json:"at"`
	Status int       `json:"status"`
	Error  string    `json:"error,omitempty"`
}

func (l *load) start(url string) {
	l.stop()
	end := make(chan struct{})
	l.mu.Lock()
	l.answers, l.end = nil, end
	l.mu.Unlock()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	l.all.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				l.all.Go(func() { l.ask(client, url) })
			}
		}
	})
}

func (l *load) ask(client *http.Client, url string) {
	a := answer{Asked: time.Now()}
	resp, err := client.Get(url)
	if err == nil {
		a.Status = resp.StatusCode
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	if a.At = time.Now(); err != nil {
		a.Error = err.Error()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answers = append(l.answers, a)
}

// stop ends it, if it goes on, and returns what came.
func (l *load) stop() []answer {
	l.mu.Lock()
	if l.end != nil {
		close(l.end)
		l.end = nil
	}
	l.mu.Unlock()
	l.all.Wait()
	return l.answers
}

func datagrams(name string) {
	conn, err := net.ListenPacket("udp", ":8080")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	b := make([]byte, 65536)
	for {
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		conn.WriteTo(fmt.Appendf(nil, "%s %d", name, n), from)
	}
}

func ask(how string, whom []string) {
	answers := make([]string, len(whom))
	var wait sync.WaitGroup
	for i, w := range whom {
		wait.Go(func() {
			answer, err := map[string]func(string) (string, error){"tcp": tcp, "udp": udp, "name": lookup, "srv": ports}[how](w)
			if err != nil {
				answer = "error: " + strings.ReplaceAll(err.Error(), "\n", " ")
			}
			answers[i] = answer
		})
	}
	wait.Wait()
	for i, w := range whom {
		fmt.Println(w, answers[i])
	}
}

func tcp(address string) (string, error) {
	client := &http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + address + "/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	who, rest, _ := bytes.Cut(got, []byte("\n"))
	if !bytes.Equal(rest, body) {
		return "", fmt.Errorf("%d bytes came, want %d", len(rest), len(body))
	}
	return string(who), nil
}

func udp(address string) (string, error) {
	c, err := net.Dial("udp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	b := make([]byte, 100)
	for range 3 { // one may get lost
		if _, err = c.Write(make([]byte, datagram)); err != nil {
			return "", err
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		var n int
		if n, err = c.Read(b); err == nil {
			return string(b[:n]), nil
		}
	}
	return "", err
}

func lookup(name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	list, err := net.DefaultResolver.LookupHost(ctx, name)
	slices.Sort(list)
	return strings.Join(list, " "), err
}

func ports(name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, records, err := net.DefaultResolver.LookupSRV(ctx, "", "", name)
	var list []string
	for _, r := range records {
		list = append(list, fmt.Sprint(r.Target, ":", r.Port))
	}
	slices.Sort(list)
	return strings.Join(list, " "), err
}
