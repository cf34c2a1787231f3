package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/atomicfile"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/node"
)

func kubernetesCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kubernetes",
		Short: "Have servers answer Kubernetes' API, or not, and tell how they do",
		Long: "While it is enabled, every server runs one process more, tutti-kube, which is found beside tutti or where\n" +
			"--kubernetes-binary of `tutti up` says, and answers at port 6443 of its address and of 127.0.0.1.\n" +
			"What was stored stays when it is disabled.",
		Example: "  tutti kubernetes enable\n  eval $(tutti env)\n  kubectl get namespaces",
	}
	cmd.AddCommand(
		&cobra.Command{
			Use: "enable", Short: "Have all servers answer Kubernetes' API", Args: noArguments(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				return g.enableKubernetes(cmd.Context(), cmd.OutOrStdout())
			},
		},
		&cobra.Command{
			Use: "disable", Short: "End that; what was stored stays", Args: noArguments(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				return g.doing(cmd, "Kubernetes' API is answered no more", func(ctx context.Context, c *native.Client) error {
					return switchKubernetes(ctx, c, "off")
				})
			},
		},
		kubernetesStatusCommand(g))
	return cmd
}

func switchKubernetes(ctx context.Context, c *native.Client, to string) error {
	_, err := c.ChangeKeys(ctx, core.KeyChanges{Put: []core.KeyPut{{Key: node.KubernetesKey, Value: []byte(to)}}})
	return err
}

// kubernetesPatience is how long API servers may take until they answer.
const kubernetesPatience = 2 * time.Minute

// enableKubernetes has all servers answer Kubernetes' API, and waits until one of this machine does.
func (g *globals) enableKubernetes(ctx context.Context, out io.Writer) error {
	began := time.Now()
	return g.with(ctx, func(c *native.Client) error {
		if err := switchKubernetes(ctx, c, node.KubernetesOn); err != nil {
			return err
		}
		if g.Host != "" {
			return hint(out, "servers answer Kubernetes' API in a moment")
		}
		why := "no server has tried yet"
		for time.Since(began) < kubernetesPatience {
			list, err := kubernetesServers(ctx, c, filepath.Dir(c.Socket()))
			if err != nil {
				return err
			}
			for _, s := range list {
				if s.Ready {
					return hint(out, fmt.Sprintf("Kubernetes' API is answered after %s: `eval $(tutti env)`, then kubectl.", time.Since(began).Round(10*time.Millisecond)))
				}
				why = s.Name + ": " + s.Why
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
		}
		return fault.New(fault.Unavailable, "Kubernetes' API is not answered after %s (%s); kubernetes.log and tutti.log in the data directory of servers tell more", kubernetesPatience, why)
	})
}

// kubernetesServer is how one API server is.
type kubernetesServer struct {
	Name  string `json:"name"`
	URL   string `json:"url"`
	Ready bool   `json:"ready"`
	Why   string `json:"why,omitempty"`
}

// kubernetesServers asks each server's API server whether it is ready. The authority is that of the
// server with a run directory.
func kubernetesServers(ctx context.Context, c *native.Client, runDir string) ([]kubernetesServer, error) {
	servers, err := c.Servers(ctx)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if ca, err := os.ReadFile(filepath.Join(node.KubernetesDir(runDir), "ca.crt")); err == nil {
		pool.AppendCertsFromPEM(ca)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: 3 * time.Second}
	var out []kubernetesServer
	for _, s := range servers {
		host, _, err := net.SplitHostPort(s.Address)
		if err != nil {
			return nil, fmt.Errorf("read the address of %s: %w", s.Name, err)
		}
		k := kubernetesServer{Name: s.Name, URL: "https://" + net.JoinHostPort(host, strconv.Itoa(node.KubernetesPort))}
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, k.URL+"/readyz", nil)
		if err != nil {
			return nil, err
		}
		switch answer, err := client.Do(r); {
		case err != nil:
			k.Why = err.Error()
		case answer.StatusCode != http.StatusOK:
			k.Why = "it says " + answer.Status
			answer.Body.Close()
		default:
			k.Ready = true
			answer.Body.Close()
		}
		out = append(out, k)
	}
	return out, nil
}

// passedOn is where, on a machine with virtual hosts, Kubernetes' API is answered by whichever of them does.
var passedOn = net.JoinHostPort("127.0.0.1", strconv.Itoa(node.KubernetesPort))

// kubeconfig returns the path of the file with which kubectl talks to a server, "" where there is none. On a
// machine with virtual hosts it is one of this machine's, which outlives any of them.
func (g *globals) kubeconfig(ctx context.Context, runDir string) (string, error) {
	path := node.Kubeconfig(runDir)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil || runDir == filepath.Clean(g.RunDir) || !passesOn(ctx, runDir) {
		return path, err
	}
	data = kubernetesServerLine.ReplaceAll(data, []byte("${1}https://"+passedOn))
	path = filepath.Join(filepath.Dir(runDir), "kubeconfig") // which goes with the hosts
	if err := atomicfile.Write(path, data); err != nil {
		return "", err
	}
	return path, os.Chmod(path, 0o600)
}

var kubernetesServerLine = regexp.MustCompile(`(?m)^(\s*server: )\S+$`)

// passesOn reports whether this machine passes on to API servers of the cluster that has the server with
// that run directory. The ports of hosts that have just started are opened within a moment.
func passesOn(ctx context.Context, runDir string) bool {
	pool := x509.NewCertPool()
	ca, err := os.ReadFile(filepath.Join(node.KubernetesDir(runDir), "ca.crt"))
	if err != nil || !pool.AppendCertsFromPEM(ca) {
		return false
	}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: time.Second}, Config: &tls.Config{RootCAs: pool}}
	for range 15 {
		c, err := dialer.DialContext(ctx, "tcp4", passedOn)
		if err == nil {
			c.Close()
			return true
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(100 * time.Millisecond):
		}
	}
	return false
}

func kubernetesStatusCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Tell whether servers answer Kubernetes' API", Args: noArguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				on, err := c.Key(cmd.Context(), node.KubernetesKey, 0)
				if err != nil && !fault.Is(err, fault.NotFound) {
					return err
				}
				if err != nil || string(on.Key.Value) != node.KubernetesOn {
					if g.structured() {
						return g.print(cmd.OutOrStdout(), []kubernetesServer{}, nil)
					}
					return hint(cmd.OutOrStdout(), "Kubernetes' API is off: `tutti kubernetes enable`")
				}
				list, err := kubernetesServers(cmd.Context(), c, filepath.Dir(c.Socket()))
				if err != nil {
					return err
				}
				return g.print(cmd.OutOrStdout(), list, func() *table {
					t := newTable("SERVER", "STATE", "URL", "WHY")
					for _, s := range list {
						state := "ready"
						if !s.Ready {
							state = "not ready"
						}
						t.add(s.Name, state, s.URL, orDash(s.Why))
					}
					return t
				})
			})
		},
	}
}
