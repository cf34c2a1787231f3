package apiserver

import (
	"cmp"
	"crypto/x509/pkix"
	"encoding/base64"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/tutti-run/tutti/internal/atomicfile"
	"github.com/tutti-run/tutti/internal/fault"
)

// Config says what API server to run. It is what the command line says.
type Config struct {
	// Socket is where the local server of Tutti answers.
	Socket string
	// Name and Address are those of this host; the API is answered at Port of the address and of
	// 127.0.0.1.
	Name    string
	Address string
	Port    int
	// Dir is for keys and sockets of this process, which it makes anew; not on a disk.
	Dir string
	// ServicePool are the addresses of services, in CIDR form.
	ServicePool string
	// Domain is that of the cluster's names.
	Domain string
	// Lifeline ends the process when its standard input does, as it does with the process that
	// started it.
	Lifeline bool
	// Etcd is the URL of an etcd in place of Tutti's key space, for comparisons.
	Etcd string
	// Verbosity is that of Kubernetes' own log.
	Verbosity int
}

func parse(args []string) (*Config, error) {
	c := &Config{}
	f := flag.NewFlagSet("tutti-kube", flag.ContinueOnError)
	f.StringVar(&c.Socket, "socket", "/run/tutti/tutti.sock", "socket of this host's server")
	f.StringVar(&c.Name, "name", "", "name of this host (default: the host's)")
	f.StringVar(&c.Address, "address", "", "address of this host, at which the API is answered (required)")
	f.IntVar(&c.Port, "port", 6443, "port of the API")
	f.StringVar(&c.Dir, "dir", "/run/tutti/kubernetes", "directory for keys and sockets, which is made anew")
	f.StringVar(&c.ServicePool, "service-pool", "10.212.0.0/16", "addresses of services")
	f.StringVar(&c.Domain, "domain", "cluster.local", "domain of the cluster's names")
	f.BoolVar(&c.Lifeline, "lifeline", false, "end when standard input does")
	f.StringVar(&c.Etcd, "etcd", "", "URL of an etcd to keep everything in, instead of Tutti's key space: for comparisons only")
	f.IntVar(&c.Verbosity, "v", 0, "verbosity of the log")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fault.New(fault.Invalid, "%q: only flags are accepted", f.Arg(0))
	}
	if ip := net.ParseIP(c.Address); ip == nil || ip.To4() == nil {
		return nil, fault.New(fault.Invalid, "--address %q: an IPv4 address of this host is accepted", c.Address)
	}
	if c.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("find out this host's name: %w", err)
		}
		c.Name = name
	}
	return c, nil
}

// AdminKubeconfig is the name of the file in Dir with which the host's administrator uses the API.
const AdminKubeconfig = "admin.kubeconfig"

// preparedFile is there from when what one server does for all knows of all objects, and could begin at once.
const preparedFile = "prepared"

func (c *Config) path(name string) string { return filepath.Join(c.Dir, name) }

func (c *Config) url() string { return fmt.Sprintf("https://%s:%d", c.Address, c.Port) }

// issuer is whom tokens of service accounts name.
func (c *Config) issuer() string { return "https://kubernetes.default.svc." + c.Domain }

// writeFiles writes what Kubernetes reads from files: keys, certificates and configurations.
func (c *Config) writeFiles(keys *sharedKeys, sealing []byte) error {
	_, services, err := net.ParseCIDR(c.ServicePool)
	if err != nil {
		return fault.New(fault.Invalid, "--service-pool %q: a range of addresses such as 10.212.0.0/16 is accepted", c.ServicePool)
	}
	first := services.IP.To4()
	first = net.IPv4(first[0], first[1], first[2], first[3]+1) // Kubernetes' own service gets it
	serving, err := keys.CA.issue(pkix.Name{CommonName: "kube-apiserver"},
		[]string{"localhost", c.Name, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + c.Domain},
		[]net.IP{net.ParseIP(c.Address), net.IPv4(127, 0, 0, 1), first})
	if err != nil {
		return err
	}
	front, err := keys.FrontProxy.issue(pkix.Name{CommonName: "front-proxy-client"}, nil, nil)
	if err != nil {
		return err
	}
	kubelet, err := keys.CA.issue(pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}}, nil, nil)
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"ca.crt": keys.CA.Cert, "ca.key": keys.CA.Key, "serving.crt": serving.Cert, "serving.key": serving.Key,
		"front-proxy-ca.crt": keys.FrontProxy.Cert, "front-proxy.crt": front.Cert, "front-proxy.key": front.Key,
		"kubelet.crt": kubelet.Cert, "kubelet.key": kubelet.Key, "service-accounts.key": keys.ServiceAccounts,
		"egress.yaml":     []byte(fmt.Sprintf(egress, c.path("nodes.sock"))),
		"encryption.yaml": []byte(fmt.Sprintf(encryption, base64.StdEncoding.EncodeToString(sealing))),
	}
	for name, subject := range map[string]pkix.Name{
		AdminKubeconfig:          {CommonName: "tutti-admin", Organization: []string{"system:masters"}},
		"controllers.kubeconfig": {CommonName: "system:kube-controller-manager"},
	} {
		client, err := keys.CA.issue(subject, nil, nil)
		if err != nil {
			return err
		}
		if files[name], err = kubeconfig(c.url(), keys.CA.Cert, client); err != nil {
			return err
		}
	}
	for name, data := range files {
		if err := atomicfile.Write(c.path(name), data); err != nil {
			return err
		}
		if err := os.Chmod(c.path(name), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// encryption has Secrets sealed before they are stored; what was stored before is read all the same.
const encryption = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - secretbox:
      keys:
      - name: tutti
        secret: %s
  - identity: {}
`

func kubeconfig(url string, ca []byte, client pair) ([]byte, error) {
	k := clientcmdapi.NewConfig()
	k.Clusters["tutti"] = &clientcmdapi.Cluster{Server: url, CertificateAuthorityData: ca}
	k.AuthInfos["tutti"] = &clientcmdapi.AuthInfo{ClientCertificateData: client.Cert, ClientKeyData: client.Key}
	k.Contexts["tutti"] = &clientcmdapi.Context{Cluster: "tutti", AuthInfo: "tutti"}
	k.CurrentContext = "tutti"
	return clientcmd.Write(*k)
}

// serverArgs are those of kube-apiserver.
func (c *Config) serverArgs() []string {
	return []string{
		"--etcd-servers=" + cmp.Or(c.Etcd, "unix://"+c.path("etcd.sock")),
		"--encryption-provider-config=" + c.path("encryption.yaml"),
		"--advertise-address=" + c.Address, "--bind-address=" + c.Address, fmt.Sprintf("--secure-port=%d", c.Port),
		"--tls-cert-file=" + c.path("serving.crt"), "--tls-private-key-file=" + c.path("serving.key"),
		"--client-ca-file=" + c.path("ca.crt"),
		"--requestheader-client-ca-file=" + c.path("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + c.path("front-proxy.crt"), "--proxy-client-key-file=" + c.path("front-proxy.key"),
		"--kubelet-client-certificate=" + c.path("kubelet.crt"), "--kubelet-client-key=" + c.path("kubelet.key"),
		"--kubelet-preferred-address-types=InternalIP", "--egress-selector-config-file=" + c.path("egress.yaml"),
		"--service-account-issuer=" + c.issuer(), "--service-account-key-file=" + c.path("service-accounts.key"),
		"--service-account-signing-key-file=" + c.path("service-accounts.key"),
		"--service-cluster-ip-range=" + c.ServicePool,
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--endpoint-reconciler-type=lease", "--profiling=false", fmt.Sprintf("--v=%d", c.Verbosity),
	}
}

// leftOut are controllers that Kubernetes needs for nodes that are not Tutti's: what becomes of nodes,
// and of the pods on them, is the core's business.
var leftOut = []string{"node-ipam-controller", "node-lifecycle-controller", "persistentvolume-attach-detach-controller"}

// controllerQPS is how many requests a controller may make in a second; of 20, which is the default, many Pods
// would have to wait for each other. The API server of this process has bounds of its own.
const controllerQPS = 1000

// controllerArgs are those of kube-controller-manager.
func (c *Config) controllerArgs() []string {
	return []string{
		"--kubeconfig=" + c.path("controllers.kubeconfig"), "--authentication-kubeconfig=" + c.path("controllers.kubeconfig"),
		"--authorization-kubeconfig=" + c.path("controllers.kubeconfig"),
		"--client-ca-file=" + c.path("ca.crt"), "--requestheader-client-ca-file=" + c.path("front-proxy-ca.crt"),
		"--root-ca-file=" + c.path("ca.crt"), "--cluster-signing-cert-file=" + c.path("ca.crt"), "--cluster-signing-key-file=" + c.path("ca.key"),
		"--service-account-private-key-file=" + c.path("service-accounts.key"), "--use-service-account-credentials=true",
		"--service-cluster-ip-range=" + c.ServicePool, "--secure-port=0", "--profiling=false",
		"--controllers=*,-" + strings.Join(leftOut, ",-"),
		fmt.Sprintf("--kube-api-qps=%d", controllerQPS), fmt.Sprintf("--kube-api-burst=%d", 2*controllerQPS),
		"--leader-elect=false", // whose turn it is, the cluster's own leader says
		fmt.Sprintf("--v=%d", c.Verbosity),
	}
}
