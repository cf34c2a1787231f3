// Program probe serves HTTP and datagrams, on both versions of IP, and says who it is and whom it
// sees. With arguments it asks others, all at the same time, and prints a line for each question:
//
//	probe tcp HOST:PORT …    who answers, and how many bytes come along
//	probe udp HOST:PORT …    the same by a datagram that fills a packet
//	probe name NAME …        the addresses
package main

import (
	"bytes"
	"context"
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
	go func() { <-stop; os.Exit(0) }()
	go datagrams(name)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintln(w, name, host)
		w.Write(body)
	})
	fmt.Fprintln(os.Stderr, http.ListenAndServe(":8080", nil))
	os.Exit(1)
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
			answer, err := map[string]func(string) (string, error){"tcp": tcp, "udp": udp, "name": lookup}[how](w)
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
