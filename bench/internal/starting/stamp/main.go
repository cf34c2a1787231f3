// Command stamp is what runs in containers: its first act is to tell the time. With an argument it
// then sleeps until it is ended.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	fmt.Println(time.Now().UnixNano())
	if len(os.Args) > 1 {
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
		<-end
	}
}
