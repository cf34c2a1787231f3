package pods

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// ServeConnect answers, at a listener of this host alone, HTTP's CONNECT: what the API server opens
// towards the cluster goes this way. Connections to kubelets end at the Kubelet, others lead on.
func (k *Kubelet) ServeConnect(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		go k.connect(ctx, c)
	}
}

// dialPatience is how long a connection that leads on may take to be made.
const dialPatience = 10 * time.Second

func (k *Kubelet) connect(ctx context.Context, from net.Conn) {
	defer from.Close()
	in := bufio.NewReader(from)
	r, err := http.ReadRequest(in)
	if err != nil || r.Method != http.MethodConnect {
		_, _ = io.WriteString(from, "HTTP/1.1 405 Method Not Allowed\r\n\r\n")
		return
	}
	dialCtx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	var to net.Conn
	if strings.HasSuffix(r.Host, ":"+strconv.Itoa(kubeletPort)) || r.Host == metricsHost+":443" {
		to, err = k.Dial(dialCtx, "tcp", r.Host)
	} else {
		to, err = new(net.Dialer).DialContext(dialCtx, "tcp", r.Host)
	}
	if err != nil {
		_, _ = io.WriteString(from, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		return
	}
	defer to.Close()
	if _, err := io.WriteString(from, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { errors.Join(from.Close(), to.Close()) })()
	done := make(chan struct{}, 2)
	pass := func(to io.Writer, from io.Reader) {
		_, _ = io.Copy(to, from) // either end closes both
		done <- struct{}{}
	}
	go pass(to, in)
	go pass(from, to)
	<-done
}
