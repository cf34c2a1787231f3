// Program pair serves HTTP, says who it is, and asks its peer the same. It runs in a container and as
// a process of a host.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	name := os.Getenv("NAME")
	if len(os.Args) > 1 { // health check
		resp, err := http.Get("http://127.0.0.1:8080/")
		if err != nil || resp.StatusCode != http.StatusOK {
			os.Exit(1)
		}
		return
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		text, err := os.ReadFile("data/hello")
		fmt.Fprintf(w, "%s uid %d says %q %v", name, os.Getuid(), text, err)
	})
	client := &http.Client{Timeout: 2 * time.Second}
	http.HandleFunc("/peer", func(w http.ResponseWriter, r *http.Request) {
		resp, err := client.Get(os.Getenv("PEER"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		io.Copy(w, resp.Body)
	})
	go func() {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
		fmt.Println(name, "stops")
		os.Exit(0)
	}()
	fmt.Println(name, "serves")
	fmt.Fprintln(os.Stderr, http.ListenAndServe(":8080", nil))
	os.Exit(1)
}
