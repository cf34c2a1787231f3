package pods

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/tutti-run/tutti/internal/model"
)

// read reads a manifest.
func read[T any](t *testing.T, text string) *T {
	t.Helper()
	out := new(T)
	if err := yaml.UnmarshalStrict([]byte(text), out); err != nil {
		t.Fatal(err)
	}
	return out
}

// same compares as JSON.
func same(t *testing.T, what string, got any, want string) {
	t.Helper()
	data, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	wanted, err := yaml.YAMLToJSON([]byte(want))
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if err := json.Unmarshal(data, &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(wanted, &b); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("%s is\n%s\nwant\n%s", what, data, wanted)
	}
}

func TestServices(t *testing.T) {
	slice := read[discoveryv1.EndpointSlice](t, `
addressType: IPv4
metadata: {name: web-x, labels: {kubernetes.io/service-name: web}}
ports: [{name: http, port: 8080, protocol: TCP}, {name: dns, port: 5353, protocol: UDP}]
endpoints: [{addresses: [10.244.0.9], conditions: {ready: true}}, {addresses: [10.244.0.8], conditions: {ready: false}}]`)
	for name, c := range map[string]struct{ in, want string }{
		"named ports, several protocols, addresses from outside": {`
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.212.0.7
  externalIPs: [192.0.2.9]
  externalTrafficPolicy: Local
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  ports: [{name: http, port: 80, targetPort: web, nodePort: 30080, protocol: TCP}, {name: dns, port: 53, targetPort: 5353, protocol: UDP}]`, `
{direct: true, virtualIP: 10.212.0.7, networks: [kubernetes-pods], outsideIPs: [192.0.2.9], backends: [{address: 10.244.0.9}],
 balance: {sticky: 60000000000, outside: only},
 ports: [{name: http, protocol: tcp, target: 8080, virtual: 80, published: 30080}, {name: dns, protocol: udp, target: 5353, virtual: 53}]}`},
		"local within the cluster, and those that are not ready": {`
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.212.0.7, internalTrafficPolicy: Local, publishNotReadyAddresses: true}`, `
{direct: true, virtualIP: 10.212.0.7, networks: [kubernetes-pods], balance: {local: only, outside: any}, backends: [{address: 10.244.0.8}, {address: 10.244.0.9}]}`},
		"headless": {`
metadata: {name: web, namespace: shop}
spec: {clusterIP: None}`, `{direct: true, dnsRoundRobin: true, networks: [kubernetes-pods], backends: [{address: 10.244.0.9}]}`},
		"another name": {`
metadata: {name: web, namespace: shop}
spec: {type: ExternalName, externalName: db.example.com.}`, `{direct: true, networks: [kubernetes-pods], externalName: db.example.com}`},
	} {
		got, odd := serviceOf(read[corev1.Service](t, c.in), []*discoveryv1.EndpointSlice{slice})
		if odd != "" {
			t.Errorf("%s: %s", name, odd)
		}
		got.Meta = model.Meta{}
		data, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		var plain map[string]any
		if err := json.Unmarshal(data, &plain); err != nil {
			t.Fatal(err)
		}
		for _, k := range []string{"id", "namespace", "name", "created", "revision", "workloadID", "status", "application"} {
			delete(plain, k)
		}
		same(t, name, plain, c.want)
	}
}

// TestPortsThatDiffer: a service leads to each endpoint at the ports that its slices tell of it, and by a port that they do not
// tell of to none.
func TestPortsThatDiffer(t *testing.T) {
	slices := func(texts ...string) (out []*discoveryv1.EndpointSlice) {
		for _, text := range texts {
			out = append(out, read[discoveryv1.EndpointSlice](t, "addressType: IPv4\n"+text))
		}
		return out
	}
	for name, c := range map[string]struct {
		slices    []*discoveryv1.EndpointSlice
		more      string // of the Service
		want, odd string
	}{
		"one port each, of one pod": {slices(`
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.0.9]}]`, `
ports: [{name: admin, port: 9090}]
endpoints: [{addresses: [10.244.0.9]}]`), "", `
{backends: [{address: 10.244.0.9}], ports: [{name: http, protocol: tcp, target: 8080, virtual: 80}, {name: admin, protocol: tcp, target: 9090, virtual: 81}]}`, ""},
		"one port each, of two": {slices(`
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.0.9]}]`, `
ports: [{name: admin, port: 9090}, {name: unknown, port: 1}]
endpoints: [{addresses: [10.244.0.8]}]`), "", `
{backends: [{address: 10.244.0.8, targets: {admin: 9090}}, {address: 10.244.0.9, targets: {http: 8080}}],
 ports: [{name: http, protocol: tcp, target: 8080, virtual: 80}, {name: admin, protocol: tcp, target: 9090, virtual: 81}]}`, ""},
		"another number on some": {slices(`
ports: [{name: http, port: 8081}, {name: admin, port: 9090}]
endpoints: [{addresses: [10.244.0.7]}]`, `
ports: [{name: http, port: 8080}, {name: admin, port: 9090}]
endpoints: [{addresses: [10.244.0.8]}, {addresses: [10.244.0.9]}]`), "", `
{backends: [{address: 10.244.0.7, targets: {http: 8081, admin: 9090}}, {address: 10.244.0.8}, {address: 10.244.0.9}],
 ports: [{name: http, protocol: tcp, target: 8080, virtual: 80}, {name: admin, protocol: tcp, target: 9090, virtual: 81}]}`, ""},
		"two numbers on one": {slices(`
ports: [{name: http, port: 8081}, {name: admin, port: 9090}]
endpoints: [{addresses: [10.244.0.9]}]`, `
ports: [{name: http, port: 8082}, {name: admin, port: 9090}]
endpoints: [{addresses: [10.244.0.9]}]`), "sessionAffinity: ClientIP", `
{balance: {sticky: 10800000000000}, backends: [{address: 10.244.0.9}, {address: 10.244.0.9, targets: {http: 8082, admin: 9090}}],
 ports: [{name: http, protocol: tcp, target: 8081, virtual: 80}, {name: admin, protocol: tcp, target: 9090, virtual: 81}]}`, "those with 8081 are led to"},
	} {
		got, odd := serviceOf(read[corev1.Service](t, `
metadata: {name: web}
spec: {clusterIP: 10.212.0.7, ports: [{name: http, port: 80}, {name: admin, port: 81}], `+c.more+`}`), c.slices)
		if !strings.Contains(odd, c.odd) || c.odd == "" && odd != "" {
			t.Errorf("%s: it is said %q", name, odd)
		}
		shown := map[string]any{"backends": got.Backends, "ports": got.Ports}
		if got.Balance.Sticky > 0 {
			shown["balance"] = got.Balance
		}
		same(t, name, shown, c.want)
	}
}

func TestAddresses(t *testing.T) {
	pool, err := readAddresses("192.0.2.8/30, 192.0.2.20-192.0.2.21\n192.0.2.30")
	if err != nil {
		t.Fatal(err)
	}
	taken := map[string]bool{}
	var got []string
	for {
		ip, err := choose(pool, taken, "")
		if err != nil {
			if !strings.Contains(err.Error(), "are taken") {
				t.Error(err)
			}
			break
		}
		taken[ip] = true
		got = append(got, strings.TrimPrefix(ip, "192.0.2."))
	}
	if strings.Join(got, " ") != "8 9 10 11 20 21 30" {
		t.Errorf("the pool has %v", got)
	}
	if ip, err := choose(pool, nil, "192.0.2.21"); ip != "192.0.2.21" || err != nil {
		t.Errorf("what is wanted gives %s, %v", ip, err)
	}
	for wanted, why := range map[string]string{"192.0.2.21": "another service", "192.0.2.22": "none of those", "x": "none of those"} {
		if _, err := choose(pool, taken, wanted); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s gives %v", wanted, err)
		}
	}
	if _, err := choose(nil, nil, ""); err == nil || !strings.Contains(err.Error(), "kube-system/"+addressesMap) {
		t.Errorf("without a pool there is %v", err)
	}
	for _, bad := range []string{"192.0.2.9-192.0.2.8", "fd00::/64", "192.0.2", "a-b"} {
		if _, err := readAddresses(bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s gives %v", bad, err)
		}
	}
}

func TestIngresses(t *testing.T) {
	web := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"}}
	ingress := read[networkingv1.Ingress](t, `
metadata: {name: front, namespace: shop}
spec:
  defaultBackend: {service: {name: web, port: {number: 80}}}
  tls:
  - {hosts: ["shop.example.com"], secretName: exact}
  - {hosts: ["*.example.com"], secretName: wild}
  - {secretName: nobody}
  rules:
  - host: Shop.example.com
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}
      - {path: /only, pathType: Exact, backend: {service: {name: web, port: {number: 80}}}}
      - {path: /other, pathType: Prefix, backend: {service: {name: other, port: {number: 80}}}}
      - {path: /none, pathType: Prefix, backend: {service: {name: web, port: {name: none}}}}
      - {path: /thing, pathType: Prefix, backend: {resource: {kind: Bucket, name: b}}}
  - host: blog.example.com
    http: {paths: [{path: /a/, pathType: ImplementationSpecific, backend: {service: {name: web, port: {number: 80}}}}]}
  - host: "*.example.org"
  - http: {paths: [{path: /any, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}`)
	got := routesTo(web, []*networkingv1.Ingress{ingress}, func(p networkingv1.ServiceBackendPort) int {
		if p.Name == "http" || p.Number == 80 {
			return 8080
		}
		return 0
	})
	same(t, "the routes", got.routes, `
- {target: 8080}
- {host: shop.example.com, target: 8080, certificate: exact}
- {host: shop.example.com, path: /only, exact: true, target: 8080, certificate: exact}
- {host: blog.example.com, path: /a/, target: 8080, certificate: wild}
- {host: "*.example.org", target: 8080}
- {path: /any, target: 8080}`)
	for i := range got.routes {
		if err := got.routes[i].Check(); err != nil {
			t.Error(err)
		}
	}
	if !slices.Equal(got.secrets, []string{"exact", "wild"}) {
		t.Errorf("the secrets are %v", got.secrets)
	}
	if odd := unled(ingress); len(odd) != 2 || !strings.Contains(odd[0], "/thing") || !strings.Contains(odd[1], "no host") {
		t.Errorf("what is not led is %v", odd)
	}
}

// here are two namespaces with a few Pods.
func here() *neighbours {
	pod := func(namespace, name string, port int32, with map[string]string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID("uid-" + name), Labels: with},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "sql", ContainerPort: port}}}}},
		}
	}
	all := []*corev1.Pod{
		pod("shop", "db1", 5432, map[string]string{"app": "db"}), pod("shop", "db2", 6432, map[string]string{"app": "db"}),
		pod("shop", "db3", 5432, map[string]string{"app": "db"}), pod("bank", "db4", 5433, map[string]string{"app": "db"}),
	}
	spaces := map[string]labels.Set{"shop": {"team": "a"}, "bank": {"team": "b"}, "lab": {"team": "b"}}
	return &neighbours{
		namespaces: func(s labels.Selector) (out []string) {
			for name, have := range spaces {
				if s.Matches(have) {
					out = append(out, name)
				}
			}
			return out
		},
		pods: func(namespaces []string, s labels.Selector) (out []*corev1.Pod) {
			for _, p := range all {
				if (namespaces == nil || slices.Contains(namespaces, p.Namespace)) && s.Matches(labels.Set(p.Labels)) {
					out = append(out, p)
				}
			}
			return out
		},
	}
}

func TestNetworkPolicies(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"nothing comes in": {`
metadata: {name: p, namespace: shop}
spec: {podSelector: {}}`, `
- {subject: {application: kubernetes}, isolateIn: true}`},
		"nothing goes out": {`
metadata: {name: p, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Egress]}`, `
- {subject: {application: kubernetes, labels: {app: db}}, isolateOut: true}`},
		"peers and ports": {`
metadata: {name: p, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [x, y]}, {key: app, operator: Exists}]}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: web}}
    - namespaceSelector: {matchLabels: {team: b}}
    - {namespaceSelector: {}, podSelector: {matchLabels: {app: spy}}}
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
    ports: [{port: 80}, {port: 8000, endPort: 8010, protocol: UDP}, {protocol: SCTP}]
  - from: [{namespaceSelector: {matchLabels: {team: nobody}}}]
  - ports: [{port: 443}]
  egress: [{}]`, `
- subject: {application: kubernetes, expressions: [{key: tier, operator: notIn, values: [x, y]}, {key: app, operator: exists}]}
  isolateIn: true
  isolateOut: true
  rules:
  - direction: in
    peers:
    - selector: {application: kubernetes, labels: {app: web}}
    - selector: {application: kubernetes, namespace: bank}
    - selector: {application: kubernetes, namespace: lab}
    - selector: {application: kubernetes, namespace: "*", labels: {app: spy}}
    - {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
    ports: [{protocol: tcp, from: 80}, {protocol: udp, from: 8000, to: 8010}, {protocol: sctp}]
  - {direction: in, ports: [{protocol: tcp, from: 443}]}
  - {direction: out}`},
		"ports by name": {`
metadata: {name: p, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {}}], ports: [{port: sql}, {port: 22}]}]
  egress: [{to: [{namespaceSelector: {matchLabels: {team: b}}}], ports: [{port: sql}]}]
  policyTypes: [Ingress, Egress]`, `
- subject: {application: kubernetes, labels: {app: db}}
  isolateIn: true
  isolateOut: true
  rules:
  - {direction: in, peers: [{selector: {application: kubernetes}}], ports: [{protocol: tcp, from: 22}]}
  - direction: out
    peers: [{selector: {application: kubernetes, namespace: "*", expressions: [{key: kubernetes.io/pod.uid, operator: in, values: [uid-db4]}]}}]
    ports: [{protocol: tcp, from: 5433}]
- subject: {application: kubernetes, expressions: [{key: kubernetes.io/pod.uid, operator: in, values: [uid-db1, uid-db3]}]}
  rules: [{direction: in, peers: [{selector: {application: kubernetes}}], ports: [{protocol: tcp, from: 5432}]}]
- subject: {application: kubernetes, expressions: [{key: kubernetes.io/pod.uid, operator: in, values: [uid-db2]}]}
  rules: [{direction: in, peers: [{selector: {application: kubernetes}}], ports: [{protocol: tcp, from: 6432}]}]`},
	} {
		got, err := policiesOf(read[networkingv1.NetworkPolicy](t, c.in), here())
		if err != nil {
			t.Fatal(err)
		}
		type policy struct {
			Subject    model.Selector     `json:"subject"`
			IsolateIn  bool               `json:"isolateIn,omitempty"`
			IsolateOut bool               `json:"isolateOut,omitempty"`
			Rules      []model.PolicyRule `json:"rules,omitempty"`
		}
		var plain []policy
		for _, p := range got {
			if err := p.Check(); err != nil || p.Labels[policyLabel] != "p" {
				t.Errorf("%s: %v, labels %v", name, err, p.Labels)
			}
			plain = append(plain, policy{p.Subject, p.IsolateIn, p.IsolateOut, p.Rules})
		}
		same(t, name, plain, c.want)
	}
}
