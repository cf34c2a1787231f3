package compose

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// tuttiEffects are effects of the keys below x-tutti.
var tuttiEffects = map[string]struct{ with, without string }{
	ours + "spread.over":                 {with: "x-tutti: {spread: [node.labels.zone]}"},
	ours + "spread.max_skew":             {with: "x-tutti: {spread: [{over: node.labels.zone, max_skew: 2}]}", without: "x-tutti: {spread: [node.labels.zone]}"},
	ours + "spread.min_domains":          {with: "x-tutti: {spread: [{over: node.labels.zone, max_skew: 2, min_domains: 3}]}", without: "x-tutti: {spread: [{over: node.labels.zone, max_skew: 2}]}"},
	ours + "prefer.constraint":           {with: "x-tutti: {prefer: [node.labels.disk==ssd]}"},
	ours + "prefer.weight":               {with: "x-tutti: {prefer: [{constraint: node.labels.disk==ssd, weight: 5}]}", without: "x-tutti: {prefer: [node.labels.disk==ssd]}"},
	ours + "affinity.to":                 {with: "x-tutti: {affinity: [other]}"},
	ours + "affinity.within":             {with: "x-tutti: {affinity: [{to: other, within: node.labels.zone}]}", without: "x-tutti: {affinity: [other]}"},
	ours + "affinity.weight":             {with: "x-tutti: {affinity: [{to: other, weight: 5}]}", without: "x-tutti: {affinity: [other]}"},
	ours + "anti_affinity.to":            {with: "x-tutti: {anti_affinity: [other]}"},
	ours + "anti_affinity.within":        {with: "x-tutti: {anti_affinity: [{to: [other], within: node.labels.zone}]}", without: "x-tutti: {anti_affinity: [other]}"},
	ours + "anti_affinity.weight":        {with: "x-tutti: {anti_affinity: [{to: other, weight: 5}]}", without: "x-tutti: {anti_affinity: [other]}"},
	ours + "max_per":                     {with: "x-tutti: {max_per: {node.labels.rack: 2}}"},
	ours + "tolerations.key":             {with: "x-tutti: {tolerations: [gpu]}"},
	ours + "tolerations.value":           {with: "x-tutti: {tolerations: [gpu=a100]}", without: "x-tutti: {tolerations: [gpu]}"},
	ours + "tolerations.effect":          {with: "x-tutti: {tolerations: ['gpu:noSchedule']}", without: "x-tutti: {tolerations: [gpu]}"},
	ours + "priority":                    {with: "x-tutti: {priority: 5}"},
	ours + "strategy":                    {with: "x-tutti: {strategy: bin-pack}"},
	ours + "gang":                        {with: "x-tutti: {gang: true}"},
	ours + "class":                       {with: "x-tutti: {class: burstable}"},
	ours + "min_available":               {with: "x-tutti: {min_available: 1}"},
	ours + "rebalance":                   {with: "x-tutti: {rebalance: true}"},
	ours + "lost_after":                  {with: "x-tutti: {lost_after: 90s}"},
	ours + "maintenance.at":              {with: "x-tutti: {maintenance: [{at: '0 2 * * *', for: 1h}]}"},
	ours + "maintenance.time_zone":       {with: "x-tutti: {maintenance: [{at: '0 2 * * *', for: 1h, time_zone: Europe/Berlin}]}", without: "x-tutti: {maintenance: [{at: '0 2 * * *', for: 1h}]}"},
	ours + "maintenance.for":             {with: "x-tutti: {maintenance: [{at: '0 2 * * *', for: 2h}]}", without: "x-tutti: {maintenance: [{at: '0 2 * * *', for: 1h}]}"},
	ours + "autoscale.min":               {with: "x-tutti: {autoscale: {min: 2, max: 3}}", without: "x-tutti: {autoscale: {max: 3}}"},
	ours + "autoscale.max":               {with: "x-tutti: {autoscale: {max: 3}}"},
	ours + "autoscale.cpu":               {with: limits + "x-tutti: {autoscale: {max: 3, cpu: 70}}", without: limits + "x-tutti: {autoscale: {max: 3}}"},
	ours + "autoscale.memory":            {with: limits + "x-tutti: {autoscale: {max: 3, memory: 70}}", without: limits + "x-tutti: {autoscale: {max: 3}}"},
	ours + "autoscale.requests":          {with: "x-tutti: {routes: [{target: 80}], autoscale: {max: 3, requests: 20}}", without: "x-tutti: {routes: [{target: 80}], autoscale: {max: 3}}"},
	ours + "autoscale.down_after":        {with: "x-tutti: {autoscale: {max: 3, down_after: 1m}}", without: "x-tutti: {autoscale: {max: 3}}"},
	ours + "autoscale.prometheus.server": {with: "x-tutti: {autoscale: {max: 3, prometheus: [{server: 'http://p:9090', query: q, target: 5}]}}", without: "x-tutti: {autoscale: {max: 3}}"},
	ours + "autoscale.prometheus.query":  {with: "x-tutti: {autoscale: {max: 3, prometheus: [{server: 'http://p:9090', query: q2, target: 5}]}}", without: "x-tutti: {autoscale: {max: 3, prometheus: [{server: 'http://p:9090', query: q, target: 5}]}}"},
	ours + "autoscale.prometheus.target": {with: "x-tutti: {autoscale: {max: 3, prometheus: [{server: 'http://p:9090', query: q, target: 6}]}}", without: "x-tutti: {autoscale: {max: 3, prometheus: [{server: 'http://p:9090', query: q, target: 5}]}}"},
	ours + "autoscale.hours.at":          {with: "x-tutti: {autoscale: {max: 3, hours: [{at: '0 8 * * *', for: 1h, min: 2, max: 3}]}}", without: "x-tutti: {autoscale: {max: 3}}"},
	ours + "autoscale.hours.time_zone":   {with: "x-tutti: {autoscale: {max: 3, hours: [{at: '0 8 * * *', time_zone: Europe/Berlin, for: 1h, min: 2, max: 3}]}}", without: "x-tutti: {autoscale: {max: 3, hours: [{at: '0 8 * * *', for: 1h, min: 2, max: 3}]}}"},
	ours + "autoscale.hours.for":         {with: "x-tutti: {autoscale: {max: 3, hours: [{at: '0 8 * * *', for: 2h, min: 2, max: 3}]}}", without: "x-tutti: {autoscale: {max: 3, hours: [{at: '0 8 * * *', for: 1h, min: 2, max: 3}]}}"},
	ours + "autoscale.hours.min":         {with: "x-tutti: {autoscale: {max: 3, hours: [{at: '0 8 * * *', for: 1h, min: 3, max: 3}]}}", without: "x-tutti: {autoscale: {max: 3, hours: [{at: '0 8 * * *', for: 1h, min: 2, max: 3}]}}"},
	ours + "autoscale.hours.max":         {with: "x-tutti: {autoscale: {max: 3, hours: [{at: '0 8 * * *', for: 1h, min: 2, max: 4}]}}", without: "x-tutti: {autoscale: {max: 3, hours: [{at: '0 8 * * *', for: 1h, min: 2, max: 3}]}}"},
	ours + "rollout.canary.percent":      {with: "x-tutti: {rollout: {canary: [{percent: 10}]}}"},
	ours + "rollout.canary.hold":         {with: "x-tutti: {rollout: {canary: [{percent: 10, hold: 30s}]}}", without: "x-tutti: {rollout: {canary: [{percent: 10}]}}"},
	ours + "rollout.canary.manual":       {with: "x-tutti: {rollout: {canary: [{percent: 10, manual: true}]}}", without: "x-tutti: {rollout: {canary: [{percent: 10}]}}"},
	ours + "rollout.blue_green":          {with: "x-tutti: {rollout: {blue_green: true}}"},
	ours + "rollout.manual":              {with: "x-tutti: {rollout: {blue_green: true, manual: true}}", without: "x-tutti: {rollout: {blue_green: true}}"},
	ours + "rollout.domains":             {with: "x-tutti: {rollout: {domains: node.labels.ud}}"},
	ours + "rollout.max_surge":           {with: "x-tutti: {rollout: {max_surge: 2}}"},
	ours + "rollout.max_unavailable":     {with: "x-tutti: {rollout: {max_unavailable: 2}}"},
	ours + "balance.sticky":              {with: "x-tutti: {balance: {sticky: 3h}}"},
	ours + "balance.weight":              {with: "x-tutti: {balance: {weight: 10}}"},
	ours + "balance.local":               {with: "x-tutti: {balance: {local: prefer}}"},
	ours + "routes.host":                 {with: "x-tutti: {routes: [{host: a.example, target: 80}]}"},
	ours + "routes.path":                 {with: "x-tutti: {routes: [{path: /a, target: 80}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.exact":                {with: "x-tutti: {routes: [{path: /a, exact: true, target: 80}]}", without: "x-tutti: {routes: [{path: /a, target: 80}]}"},
	ours + "routes.headers":              {with: "x-tutti: {routes: [{headers: {X-A: b}, target: 80}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.target":               {with: "x-tutti: {routes: [{target: 81}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.protocol":             {with: "x-tutti: {routes: [{protocol: h2c, target: 80}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.weight":               {with: "x-tutti: {routes: [{weight: 5, target: 80}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.certificate":          {with: "x-tutti: {routes: [{host: a, certificate: s, target: 80}]}", without: "x-tutti: {routes: [{host: a, target: 80}]}"},
	ours + "routes.insecure":             {with: "x-tutti: {routes: [{insecure: true, target: 80}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.strip_path":           {with: "x-tutti: {routes: [{path: /a, strip_path: true, target: 80}]}", without: "x-tutti: {routes: [{path: /a, target: 80}]}"},
	ours + "routes.sticky":               {with: "x-tutti: {routes: [{sticky: true, target: 80}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.timeout":              {with: "x-tutti: {routes: [{timeout: 5s, target: 80}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.wait":                 {with: "x-tutti: {routes: [{wait: 5s, target: 80}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.retries":              {with: "x-tutti: {routes: [{retries: 0, target: 80}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.tls":                  {with: "x-tutti: {routes: [{host: a, tls: cluster, target: 80}]}", without: "x-tutti: {routes: [{host: a, target: 80}]}"},
	ours + "routes.acme.server":          {with: "x-tutti: {routes: [{host: a, tls: acme, acme: {server: 'https://ca.test/dir'}, target: 80}]}", without: "x-tutti: {routes: [{host: a, tls: acme, target: 80}]}"},
	ours + "routes.acme.email":           {with: "x-tutti: {routes: [{host: a, tls: acme, acme: {email: a@b}, target: 80}]}", without: "x-tutti: {routes: [{host: a, tls: acme, target: 80}]}"},
	ours + "routes.acme.authority":       {with: "x-tutti: {routes: [{host: a, tls: acme, acme: {authority: \"" + anAuthority() + "\"}, target: 80}]}", without: "x-tutti: {routes: [{host: a, tls: acme, target: 80}]}"},
	ours + "routes.basic_auth":           {with: "x-tutti: {routes: [{basic_auth: s, target: 80}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.redirect":             {with: "x-tutti: {routes: [{redirect: 'https://b{path}'}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.redirect_status":      {with: "x-tutti: {routes: [{redirect: 'https://b{path}', redirect_status: 301}]}", without: "x-tutti: {routes: [{redirect: 'https://b{path}'}]}"},
	ours + "routes.rate_limit.requests":  {with: "x-tutti: {routes: [{rate_limit: {requests: 5, burst: 9}, target: 80}]}", without: "x-tutti: {routes: [{rate_limit: {requests: 6, burst: 9}, target: 80}]}"},
	ours + "routes.rate_limit.per":       {with: "x-tutti: {routes: [{rate_limit: {requests: 5, per: 1m}, target: 80}]}", without: "x-tutti: {routes: [{rate_limit: {requests: 5}, target: 80}]}"},
	ours + "routes.rate_limit.burst":     {with: "x-tutti: {routes: [{rate_limit: {requests: 5, burst: 50}, target: 80}]}", without: "x-tutti: {routes: [{rate_limit: {requests: 5}, target: 80}]}"},
	ours + "routes.access_log":           {with: "x-tutti: {routes: [{access_log: true, target: 80}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.proxy_protocol":       {with: "x-tutti: {routes: [{proxy_protocol: 2, target: 80}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.max_body":             {with: "x-tutti: {routes: [{max_body: 10m, target: 80}]}", without: "x-tutti: {routes: [{target: 80}]}"},
	ours + "routes.max_requests":         {with: "x-tutti: {routes: [{max_requests: 10, target: 80}]}", without: "x-tutti: {routes: [{target: 80}]}"},

	ours + "parallelism":      {with: job + "x-tutti: {parallelism: 2}", without: job},
	ours + "backoff_limit":    {with: job + "x-tutti: {backoff_limit: 2}", without: job},
	ours + "deadline":         {with: job + "x-tutti: {deadline: 2m}", without: job},
	ours + "hugepages":        {with: "x-tutti: {hugepages: {2MB: 64m}}"},
	ours + "clocks.monotonic": {with: "x-tutti: {clocks: {monotonic: 72h}}"},
	ours + "clocks.boottime":  {with: "x-tutti: {clocks: {boottime: -90s}}", without: "x-tutti: {clocks: {}}"},
	ours + "indexed":          {with: job + "x-tutti: {indexed: true}", without: job},
	ours + "schedule":         {with: "x-tutti: {schedule: '@daily'}"},
	ours + "time_zone":        {with: "x-tutti: {schedule: '@daily', time_zone: Europe/Berlin}", without: "x-tutti: {schedule: '@daily'}"},
	ours + "overlap":          {with: "x-tutti: {schedule: '@daily', overlap: forbid}", without: "x-tutti: {schedule: '@daily'}"},
	ours + "start_within":     {with: "x-tutti: {schedule: '@daily', start_within: 1h}", without: "x-tutti: {schedule: '@daily'}"},
	ours + "keep_completed":   {with: "x-tutti: {schedule: '@daily', keep_completed: 1}", without: "x-tutti: {schedule: '@daily'}"},
	ours + "keep_failed":      {with: "x-tutti: {schedule: '@daily', keep_failed: 1}", without: "x-tutti: {schedule: '@daily'}"},
}

const (
	job    = "deploy: {mode: replicated-job}\n    "
	limits = "deploy: {resources: {limits: {cpus: '0.5', memory: 64M}}}\n    "
)

const ours = "services.*." + tuttiKey + "."

func TestConstraintOperators(t *testing.T) {
	for text, want := range map[string]model.Constraint{
		"node.labels.zone == east":         {Key: "node.labels.zone", Operator: model.Equal, Values: []string{"east"}},
		"node.labels.zone!=east":           {Key: "node.labels.zone", Operator: model.NotEqual, Values: []string{"east"}},
		"node.labels.zone =~ eu-.*":        {Key: "node.labels.zone", Operator: model.Matches, Values: []string{"eu-.*"}},
		"node.labels.zone !~ eu-.*":        {Key: "node.labels.zone", Operator: model.NotMatches, Values: []string{"eu-.*"}},
		"node.labels.cores >= 8":           {Key: "node.labels.cores", Operator: model.AtLeast, Values: []string{"8"}},
		"node.labels.cores<8.5":            {Key: "node.labels.cores", Operator: model.Less, Values: []string{"8.5"}},
		"node.attributes.kernel > v6.1":    {Key: "node.attributes.kernel", Operator: model.Greater, Values: []string{"v6.1"}},
		"node.labels.zone in (east, west)": {Key: "node.labels.zone", Operator: model.In, Values: []string{"east", "west"}},
		"node.role not in (manager)":       {Key: "node.role", Operator: model.NotIn, Values: []string{"server"}},
		"node.labels.gpu exists":           {Key: "node.labels.gpu", Operator: model.Exists},
		"node.labels.gpu not exists":       {Key: "node.labels.gpu", Operator: model.NotExists},
		"node.platform.arch == x86_64":     {Key: "node.platform.arch", Operator: model.Equal, Values: []string{"amd64"}},
	} {
		o := extraOf(t, "deploy: {placement: {constraints: ['"+text+"']}}")
		got := o.Template.Placement.Constraints
		if len(got) != 1 || got[0].Key != want.Key || got[0].Operator != want.Operator || !slices.Equal(got[0].Values, want.Values) {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
	}
}

// extraOf loads a file with one service that has a line of its own.
func extraOf(t *testing.T, line string) *model.Workload {
	t.Helper()
	t.Chdir(t.TempDir())
	text := "services:\n  some:\n    image: a\n    " + line + "\n"
	if err := os.WriteFile("compose.yaml", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p := mustLoad(t, Options{Files: []string{"compose.yaml"}, Name: "shop"})
	return p.Deployment.Workloads[0]
}

// TestOwnKeyIsRefusedByLine holds the texts of what can be wrong below x-tutti.
func TestOwnKeyIsRefusedByLine(t *testing.T) {
	for line, want := range map[string]string{
		"x-tutti: {sprad: [a]}":                                        "compose.yaml:4: services.some.x-tutti.sprad: there is no such key; did you mean spread?",
		"x-tutti: {spread: [{over: node.labels.a, skew: 1}]}":          "compose.yaml:4: services.some.x-tutti.spread.0.skew: there is no such key",
		"x-tutti: {strategy: binpack}":                                 `compose.yaml:4: services.some.x-tutti.strategy: "binpack" is none of balance, bin-pack and spread`,
		"x-tutti: {priority: high}":                                    "compose.yaml:4: services.some.x-tutti.priority: string is not what belongs here; a number is",
		"x-tutti: {affinity: [db]}":                                    "compose.yaml:4: services.some.x-tutti.affinity: there is no service db; one of another application is written APPLICATION/db",
		"x-tutti: {max_per: {node.labels.rack: 0}}":                    "compose.yaml:4: services.some.x-tutti.max_per: node.labels.rack: 0 is not a number from 1",
		"x-tutti: {rollout: {canary: [{percent: 50}, {percent: 20}]}}": "compose.yaml:4: services.some.x-tutti.rollout.canary: 20 percent: steps rise from 1 to 99",
		"x-tutti: {rollout: {manual: true}}":                           "compose.yaml:4: services.some.x-tutti.rollout.manual: it belongs to blue_green, or to a step of canary",
		"x-tutti: {rebalance: true}\n    deploy: {mode: global}":       "compose.yaml:4: services.some.x-tutti.rebalance: only services move whose new instance may start before the old one ends: no shared folder or volume, no port or address of the node, order start-first",
		"x-tutti: {schedule: often}":                                   `compose.yaml:4: services.some.x-tutti.schedule: "often" is not a schedule: five fields such as */5 * * * *, or @hourly, @daily, @weekly, @monthly and @yearly are accepted`,
		"x-tutti: {overlap: forbid}":                                   "compose.yaml:4: services.some.x-tutti.overlap: it has no effect without a schedule beside it",
		"x-tutti: {deadline: 5m}":                                      "compose.yaml:4: services.some.x-tutti.deadline: it is for jobs: write deploy.mode: replicated-job or global-job, or give a schedule",
		"x-tutti: {spread: [zone]}":                                    `compose.yaml:4: services.some.x-tutti.spread: nodes have no property "zone"; they have node.id, node.hostname, node.role, node.ip, node.platform.os, node.platform.arch, node.labels.NAME and node.attributes.NAME`,
		"x-tutti: {allow: [somme]}":                                    `compose.yaml:4: services.some.x-tutti.allow: there is no service "somme": give one of this file, "*" for all of them, APPLICATION/SERVICE, APPLICATION/*, namespace:NAME, network:NAME, an address, a range such as 10.20.0.0/16, anyone or nobody`,
		"x-tutti: {deny: [{from: some, ports: 80/http}]}":              `compose.yaml:4: services.some.x-tutti.deny.ports: "80/http" is no port: give one such as 5432, 53/udp or 8000-8010`,
		"x-tutti: {deny: [{ports: 80}]}":                               "compose.yaml:4: services.some.x-tutti.deny: an entry says either from whom connections come, or to whom they go: give from or to",
		"x-tutti: {allow: [some]}\n    network_mode: host":             "compose.yaml:4: services.some.x-tutti.allow: nothing can be allowed or denied: it has no network of its own",
		"deploy: {placement: {constraints: ['node.labels.a =~ (']}}":   "compose.yaml:4: services.some.deploy.placement.constraints: \"node.labels.a =~ (\": \"(\" is no regular expression (error parsing regexp: missing closing ): `(`)",
		"deploy: {placement: {constraints: ['node.labels.a > big']}}":  `compose.yaml:4: services.some.deploy.placement.constraints: "node.labels.a > big": "big" is neither a number nor a version such as v6.1`,
	} {
		t.Chdir(t.TempDir())
		if err := os.WriteFile("compose.yaml", []byte("services:\n  some:\n    image: a\n    "+line+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := Load(t.Context(), Options{Files: []string{"compose.yaml"}, Name: "shop"})
		if err == nil || !slices.Contains(sentences(err), want) {
			t.Errorf("%s: error is\n %v\nwant\n %s", line, err, want)
		}
	}
}

// anAuthority is a certificate in PEM, as it stands between double quotes.
func anAuthority() string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return strings.ReplaceAll(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), "\n", "\\n")
}
