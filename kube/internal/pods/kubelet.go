package pods

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// kubeletPort is the port that Nodes name. Nobody listens there: an API server reaches its Kubelet by
// Kubelet.Dial, whichever node it asks for.
const kubeletPort = 10250

// Kubelet answers what an API server asks of the kubelets of all nodes, for the API server of this
// process alone.
type Kubelet struct {
	client kubernetes.Interface
	tutti  Tutti
	log    *slog.Logger
	meter  *meter
	calls  chan net.Conn
	done   chan struct{}
}

// NewKubelet returns a Kubelet; Serve makes it answer.
func NewKubelet(c Config) (*Kubelet, error) {
	client, err := kubernetes.NewForConfig(rest.CopyConfig(c.Rest))
	if err != nil {
		return nil, fmt.Errorf("use the API server: %w", err)
	}
	return newKubelet(c, client), nil
}

func newKubelet(c Config, client kubernetes.Interface) *Kubelet {
	return &Kubelet{client: client, tutti: c.Tutti, log: c.Log, meter: &meter{tutti: c.Tutti, log: c.Log}, calls: make(chan net.Conn), done: make(chan struct{})}
}

// Dial connects to the Kubelet, whatever address is asked for. It is how the API server's client of
// kubelets is to dial: the connection does not leave the process.
func (k *Kubelet) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case k.calls <- there:
		return here, nil
	case <-k.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept, Close and Addr make it the listener of its own server.
func (k *Kubelet) Accept() (net.Conn, error) {
	select {
	case c := <-k.calls:
		return c, nil
	case <-k.done:
		return nil, net.ErrClosed
	}
}

// Close ends Dial and Accept.
func (k *Kubelet) Close() error {
	select {
	case <-k.done:
	default:
		close(k.done)
	}
	return nil
}

// Addr is nowhere.
func (k *Kubelet) Addr() net.Addr { return &net.UnixAddr{Name: "kubelet", Net: "pipe"} }

// Serve answers until ctx is done.
func (k *Kubelet) Serve(ctx context.Context) error {
	cert, err := selfSigned()
	if err != nil {
		return fmt.Errorf("make the certificate of the kubelet paths: %w", err)
	}
	s := &http.Server{Handler: k.Handler(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(k.log.Handler(), slog.LevelDebug)}
	defer context.AfterFunc(ctx, func() { k.Close(); s.Close() })()
	err = s.Serve(tls.NewListener(k, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}))
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// selfSigned is a certificate for a connection that stays within the process; it proves nothing.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubelet"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// Handler answers the kubelet paths.
func (k *Kubelet) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	k.metricsRoutes(mux)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", k.logs)
	for _, path := range []string{"/exec/{namespace}/{pod}/{container}", "/exec/{namespace}/{pod}/{uid}/{container}"} {
		mux.HandleFunc("GET "+path, k.exec)
		mux.HandleFunc("POST "+path, k.exec)
	}
	for _, path := range []string{"/attach/{namespace}/{pod}/{container}", "/attach/{namespace}/{pod}/{uid}/{container}"} {
		mux.HandleFunc("GET "+path, k.attach)
		mux.HandleFunc("POST "+path, k.attach)
	}
	mux.HandleFunc("POST /run/{namespace}/{pod}/{container}", k.run)
	for _, path := range []string{"/portForward/{namespace}/{pod}", "/portForward/{namespace}/{pod}/{uid}"} {
		mux.HandleFunc("GET "+path, k.portForward)
		mux.HandleFunc("POST "+path, k.portForward)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, r.URL.Path+" is not answered by Tutti's nodes", http.StatusNotFound)
	})
	return mux
}

// instance is that of the Pod that a request names.
func (k *Kubelet) instance(r *http.Request) (*model.Instance, error) {
	namespace, name := r.PathValue("namespace"), r.PathValue("pod")
	pod, err := k.client.CoreV1().Pods(namespace).Get(r.Context(), name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return instanceOf(r.Context(), k.tutti, pod, r.PathValue("container"))
}

// errEnough ends a watch of which the rest is not wanted.
var errEnough = errors.New("enough")

// eachInstance yields the instances that there are, until yield wants no more.
func eachInstance(ctx context.Context, t Tutti, yield func(*model.Instance) bool) error {
	err := t.Watch(ctx, func(s core.Seen) error {
		if s.Kind == "" || s.Instance != nil && !yield(s.Instance) { // all were told, or enough
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// instanceOf is the one that a container of a Pod is in.
func instanceOf(ctx context.Context, t Tutti, pod *corev1.Pod, container string) (found *model.Instance, err error) {
	of, workload := mirrorOf(pod), workloadOf(pod, container)
	err = eachInstance(ctx, t, func(i *model.Instance) bool {
		if i.ID == of || of == "" && i.WorkloadID == workload {
			found = i
		}
		return found == nil
	})
	if err == nil && found == nil {
		err = fault.New(fault.NotFound, "the pod has no instance")
	}
	return found, err
}

func fail(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	switch fault.KindOf(err) {
	case fault.NotFound:
		code = http.StatusNotFound
	case fault.Invalid:
		code = http.StatusBadRequest
	case fault.Unavailable:
		code = http.StatusServiceUnavailable
	}
	http.Error(w, err.Error(), code)
}

func (k *Kubelet) logs(w http.ResponseWriter, r *http.Request) {
	i, err := k.instance(r)
	if err != nil {
		fail(w, err)
		return
	}
	q := r.URL.Query()
	o := driver.LogOptions{Tail: -1, Run: -1, Follow: q.Get("follow") == "true"}
	if q.Get("previous") == "true" {
		o.Run = -2
	}
	if v := q.Get("tailLines"); v != "" {
		if o.Tail, err = strconv.Atoi(v); err != nil {
			http.Error(w, "tailLines="+v+" is not a number", http.StatusBadRequest)
			return
		}
	}
	if v := q.Get("sinceSeconds"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			http.Error(w, "sinceSeconds="+v+" is not a number", http.StatusBadRequest)
			return
		}
		o.Since = time.Now().Add(-time.Duration(n) * time.Second)
	}
	if v := q.Get("sinceTime"); v != "" {
		if o.Since, err = time.Parse(time.RFC3339, v); err != nil {
			http.Error(w, "sinceTime="+v+" is not a time", http.StatusBadRequest)
			return
		}
	}
	left := int64(-1)
	if v := q.Get("limitBytes"); v != "" {
		if left, err = strconv.ParseInt(v, 10, 64); err != nil {
			http.Error(w, "limitBytes="+v+" is not a number", http.StatusBadRequest)
			return
		}
	}
	stamps, only := q.Get("timestamps") == "true", q.Get("stream")
	flush := http.NewResponseController(w).Flush
	began := false
	begin := func() {
		if !began {
			began = true
			w.Header().Set("Content-Type", "text/plain")
			// Ended by the end of the connection: who hands this on over a WebSocket loses what is read together with an end.
			w.Header().Set("Transfer-Encoding", "identity")
			w.WriteHeader(http.StatusOK)
			_ = flush()
		}
	}
	if o.Follow {
		begin()
	}
	fresh := true // the next entry begins a line
	err = k.tutti.TaskLogs(r.Context(), i.ID, r.PathValue("container"), o, func(e driver.LogEntry) error {
		if only == "Stdout" && e.Stream != "stdout" || only == "Stderr" && e.Stream != "stderr" {
			return nil
		}
		begin()
		line := e.Line
		if stamps && fresh {
			line = append([]byte(e.Time.UTC().Format(time.RFC3339Nano)+" "), line...)
		}
		fresh = len(e.Line) > 0 && e.Line[len(e.Line)-1] == '\n'
		if left >= 0 {
			line = line[:min(int64(len(line)), left)]
			left -= int64(len(line))
		}
		if _, err := w.Write(line); err != nil {
			return err
		}
		if o.Follow {
			_ = flush()
		}
		if left == 0 {
			return errEnough
		}
		return nil
	})
	switch {
	case err == nil, errors.Is(err, errEnough):
		begin()
	case began, r.Context().Err() != nil:
	case o.Run == -2 && fault.Is(err, fault.NotFound):
		http.Error(w, fmt.Sprintf("previous terminated container %q in pod %q not found", r.PathValue("container"), r.PathValue("pod")), http.StatusBadRequest)
	default:
		fail(w, err)
	}
}

// How long a stream may idle, and how long one may take to be made.
const (
	streamIdle   = 4 * time.Hour
	streamCreate = 30 * time.Second
)

// task runs commands in, and attaches to, the task of one request.
type streamTask struct {
	k *Kubelet
	i *model.Instance
}

func sizes(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan driver.Size {
	if in == nil {
		return nil
	}
	out := make(chan driver.Size, 1)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case s, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- driver.Size{Rows: int(s.Height), Cols: int(s.Width)}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

func streamsOf(in io.Reader, out, errs io.WriteCloser) driver.Streams {
	s := driver.Streams{Stdin: in}
	if out != nil {
		s.Stdout = out
	}
	if errs != nil {
		s.Stderr = errs
	}
	return s
}

// ExecInContainer implements remotecommand.Executor.
func (t *streamTask) ExecInContainer(ctx context.Context, _, _, container string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := streamsOf(in, out, errs)
	s.Resize = sizes(ctx, resize)
	code, err := t.k.tutti.Exec(ctx, native.ExecRequest{Ref: t.i.ID, Task: container, Args: cmd, TTY: tty}, s)
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// AttachContainer implements remotecommand.Attacher.
func (t *streamTask) AttachContainer(ctx context.Context, _, _, container string, in io.Reader, out, errs io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := streamsOf(in, out, errs)
	s.Resize, s.FromStart = sizes(ctx, resize), true
	return t.k.tutti.Attach(ctx, t.i.ID, container, s)
}

// PortForward implements portforward.PortForwarder.
func (t *streamTask) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	return t.k.tutti.Dial(ctx, t.i.ID, int(port), driver.Streams{Stdin: stream, Stdout: stream})
}

// streaming returns the task whose streams a request is about, and which of them; ok is false when the
// request was answered with an error.
func (k *Kubelet) streaming(w http.ResponseWriter, r *http.Request) (t *streamTask, o *remotecommand.Options, ok bool) {
	i, err := k.instance(r)
	if err != nil {
		fail(w, err)
		return nil, nil, false
	}
	if o, err = remotecommand.NewOptions(r); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return nil, nil, false
	}
	return &streamTask{k, i}, o, true
}

func (k *Kubelet) exec(w http.ResponseWriter, r *http.Request) {
	t, o, ok := k.streaming(w, r)
	if !ok {
		return
	}
	remotecommand.ServeExec(w, r, t, r.PathValue("pod"), r.PathValue("uid"), r.PathValue("container"),
		r.Form["command"], o, streamIdle, streamCreate, remotecommand.SupportedStreamingProtocols)
}

func (k *Kubelet) attach(w http.ResponseWriter, r *http.Request) {
	t, o, ok := k.streaming(w, r)
	if !ok {
		return
	}
	remotecommand.ServeAttach(w, r, t, r.PathValue("pod"), r.PathValue("uid"), r.PathValue("container"),
		o, streamIdle, streamCreate, remotecommand.SupportedStreamingProtocols)
}

func (k *Kubelet) portForward(w http.ResponseWriter, r *http.Request) {
	i, err := k.instance(r)
	if err != nil {
		fail(w, err)
		return
	}
	o, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, &streamTask{k, i}, r.PathValue("pod"), r.PathValue("uid"), o, streamIdle, streamCreate, portforward.SupportedProtocols)
}

// run runs a command and answers with its output.
func (k *Kubelet) run(w http.ResponseWriter, r *http.Request) {
	i, err := k.instance(r)
	if err != nil {
		fail(w, err)
		return
	}
	_, err = k.tutti.Exec(r.Context(), native.ExecRequest{Ref: i.ID, Task: r.PathValue("container"), Args: r.URL.Query()["cmd"]}, driver.Streams{Stdout: w, Stderr: w})
	if err != nil {
		fail(w, err)
	}
}
