package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/node"
)

// globals are the flags that every command has.
type globals struct {
	// RunDir holds what lives until the host restarts, sockets among them.
	RunDir string
	// DataDir holds what must survive that; only commands that run a host use it.
	DataDir string
	// Output is table, json or yaml.
	Output string
	// Host is a server that is reached over the network, https://ADDRESS:PORT; empty is one of this host.
	Host string
	// Token and CertPath are what is shown there: a user's token, or a directory with cert.pem, key.pem
	// and ca.pem.
	Token, CertPath string
	// Namespace is where names are meant to be; empty is the default one.
	Namespace string
}

const (
	envRunDir      = "TUTTI_RUN_DIR"
	envDataDir     = "TUTTI_DATA_DIR"
	envHost        = "TUTTI_HOST"
	envToken       = "TUTTI_TOKEN"
	envCertPath    = "TUTTI_CERT_PATH"
	envNamespace   = "TUTTI_NAMESPACE"
	defaultRunDir  = "/run/tutti"
	defaultDataDir = node.DefaultDataDir
	socketName     = "tutti.sock"
)

var outputs = []string{"table", "json", "yaml"}

func (g *globals) bind(f *pflag.FlagSet) {
	f.StringVar(&g.RunDir, "run-dir", cmp.Or(os.Getenv(envRunDir), defaultRunDir), "where the sockets of hosts are (environment: "+envRunDir+")")
	f.StringVar(&g.DataDir, "data-dir", cmp.Or(os.Getenv(envDataDir), defaultDataDir), "where a host keeps its data (environment: "+envDataDir+")")
	f.StringVar(&g.Host, "host", os.Getenv(envHost), "a server to ask over the network, https://ADDRESS:PORT (environment: "+envHost+")")
	f.StringVar(&g.CertPath, "cert", os.Getenv(envCertPath), "directory with cert.pem, key.pem and ca.pem of `tutti user cert` (environment: "+envCertPath+")")
	f.StringVar(&g.Namespace, "namespace", os.Getenv(envNamespace), "where names are meant to be (environment: "+envNamespace+")")
	g.Token = os.Getenv(envToken)
	g.Output = outputs[0]
	f.VarP((*outputFlag)(&g.Output), "output", "o", "how to print: table, json or yaml")
}

// outputFlag accepts one of outputs.
type outputFlag string

func (o *outputFlag) String() string { return string(*o) }
func (o *outputFlag) Type() string   { return "format" }
func (o *outputFlag) Set(s string) error {
	if !slices.Contains(outputs, s) {
		return errors.New("table, json and yaml are accepted")
	}
	*o = outputFlag(s)
	return nil
}

// pingTimeout is how long a host may take to say who it is; one that is stopped says nothing.
const pingTimeout = 2 * time.Second

// sockets lists the sockets that there may be: the host's own, then those of virtual hosts.
func (g *globals) sockets() []string {
	virtual, err := filepath.Glob(filepath.Join(g.RunDir, "hosts", "*", socketName))
	if err != nil {
		virtual = nil // the pattern is malformed: the directory has an odd name, and no virtual hosts
	}
	return append([]string{filepath.Join(g.RunDir, socketName)}, virtual...)
}

// connect returns a client for the server of --host or, without it, for one of the cluster that runs on this
// host: the first that answers and knows
// of a leader or, failing that, the first that answers.
func (g *globals) connect(ctx context.Context) (*native.Client, error) {
	if g.Host != "" {
		return g.dialRemote()
	}
	c, err := g.connectHere(ctx)
	if err == nil {
		c.In(g.Namespace)
	}
	return c, err
}

// dialRemote returns a client for the server that --host names.
func (g *globals) dialRemote() (*native.Client, error) {
	r := native.Remote{URL: g.Host, Token: g.Token, Namespace: g.Namespace}
	if g.CertPath != "" {
		for name, to := range map[string]*[]byte{"cert.pem": &r.CertPEM, "key.pem": &r.KeyPEM, "ca.pem": &r.CAPEM} {
			data, err := os.ReadFile(filepath.Join(g.CertPath, name))
			if err != nil && (name == "ca.pem" || g.Token == "" || !errors.Is(err, fs.ErrNotExist)) {
				return nil, fmt.Errorf("read the certificate: %w", err)
			}
			*to = data
		}
	}
	if g.Token == "" && g.CertPath == "" {
		return nil, fault.New(fault.Invalid, "who asks %s? Set %s to a token of `tutti user token`, or --cert to a directory of `tutti user cert`", g.Host, envToken)
	}
	return native.DialRemote(r)
}

func (g *globals) connectHere(ctx context.Context) (*native.Client, error) {
	var leaderless *native.Client
	var refusal error
	for _, path := range g.sockets() {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		c := native.Dial(path)
		p, err := ping(ctx, c)
		switch {
		case err == nil && p.Leader != "":
			return c, nil
		case err == nil && leaderless == nil:
			leaderless = c
			continue
		case err != nil && worthMore(err, refusal):
			refusal = err
		}
		c.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	switch {
	case leaderless != nil:
		return leaderless, nil
	case refusal == nil:
		return nil, fault.New(fault.Unavailable, "no cluster runs on this host: start one with `tutti up`")
	case errors.Is(refusal, fs.ErrPermission):
		return nil, fault.New(fault.Forbidden, "the cluster's socket may be opened by its owner only: run this as root")
	case fault.Is(refusal, fault.Unavailable):
		return nil, fault.New(fault.Unavailable, "no server of the cluster answers on this host, start it with `tutti up`: %w", refusal)
	}
	return nil, refusal
}

func ping(ctx context.Context, c *native.Client) (native.Ping, error) {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	p, err := c.Ping(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fault.New(fault.Unavailable, "%s does not answer within %s", c.Socket(), pingTimeout)
	}
	return p, err
}

// worthMore prefers what a host says over there being nobody to say anything.
func worthMore(err, than error) bool {
	weight := func(err error) int {
		switch {
		case err == nil:
			return 0
		case !fault.Is(err, fault.Unavailable):
			return 3
		case errors.Is(err, fs.ErrPermission):
			return 2
		}
		return 1
	}
	return weight(err) > weight(than)
}

// with connects, runs fn and disconnects.
func (g *globals) with(ctx context.Context, fn func(c *native.Client) error) error {
	c, err := g.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	err = fn(c)
	if why := c.Stale(); why != "" {
		fmt.Fprintln(os.Stderr, "tutti: "+why)
	}
	return err
}
