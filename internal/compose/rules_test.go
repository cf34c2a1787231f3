package compose

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/schema"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/tutti-run/tutti/internal/fault"
)

// ruleAt finds the rule of a path such as services.*.ports.[].target; "anything" is what lies below
// a key whose content is free.
func ruleAt(path string) (r *rule, anything bool) {
	r = fileRules
	for _, part := range strings.Split(path, ".") {
		if part == "[]" {
			continue
		}
		if !r.opens() {
			return r, true
		}
		if part == "*" && r.each != nil {
			r = r.each
			continue
		}
		if r = r.below(part); r == nil {
			return nil, false
		}
	}
	return r, false
}

func TestTableHasEveryFieldOfAService(t *testing.T) {
	var fields func(typ reflect.Type) []string
	fields = func(typ reflect.Type) []string {
		var out []string
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			switch {
			case f.Anonymous && strings.Contains(options, "inline"):
				out = append(out, fields(f.Type)...)
			case name == "-", name == "#extensions", name == "name" && typ.Name() == "ServiceConfig":
			case name == "":
				t.Errorf("field %s has no name in YAML", f.Name)
			default:
				out = append(out, name)
			}
		}
		return out
	}
	all := fields(reflect.TypeOf(types.ServiceConfig{}))
	if len(all) < 90 {
		t.Fatalf("only %d fields were found", len(all))
	}
	for _, name := range all {
		if serviceRules[name] == nil {
			t.Errorf("the table says nothing about services.*.%s", name)
		}
	}
}

func TestTableHasEveryKeyOfTheSpecification(t *testing.T) {
	known := map[string]bool{}
	for _, p := range schema.AttributePaths() {
		path := string(p)
		known[strings.ReplaceAll(path, ".[]", "")] = true
		if r, _ := ruleAt(path); r == nil {
			t.Errorf("the table says nothing about %s", path)
		}
	}
	for path, r := range leaves() {
		if r.verdict == foreign == known[path] && !strings.Contains(path, ".driver_opts.") && !strings.Contains("."+path, "."+tuttiKey+".") {
			t.Errorf("%s is in the specification: %v; in the table: %v", path, known[path], r.verdict)
		}
	}
}

// leaves are the paths at which the table says what becomes of a key.
func leaves() map[string]*rule {
	out := map[string]*rule{}
	var walk func(path string, r *rule)
	walk = func(path string, r *rule) {
		if r.verdict != honoured || !r.opens() {
			out[path] = r
			return
		}
		if r.each != nil && (r.each.verdict == honoured || r.keys == nil) {
			walk(path+".*", r.each)
		}
		for key, sub := range r.keys {
			walk(strings.TrimPrefix(path+"."+key, "."), sub)
		}
	}
	walk("", fileRules)
	return out
}

// nest writes a path as YAML, one key per line, and returns the last one's line.
func nest(path, value string) (text string, line int) {
	parts := strings.Split(path, ".")
	if i := strings.Index(path, "driver_opts."); i >= 0 { // its names have dots
		parts = append(strings.Split(strings.TrimSuffix(path[:i], "."), "."), "driver_opts", path[i+len("driver_opts."):])
	}
	var b strings.Builder
	for i, p := range parts {
		fmt.Fprintf(&b, "%s%s:", strings.Repeat("  ", i), p)
		if i < len(parts)-1 {
			b.WriteString("\n")
		}
	}
	return b.String() + " " + value + "\n", len(parts)
}

func TestEachRefusedKeyIsRefusedByNameAndLine(t *testing.T) {
	t.Chdir(t.TempDir())
	count := 0
	for path, r := range leaves() {
		if r.verdict != refused && r.verdict != foreign {
			continue
		}
		count++
		path = strings.ReplaceAll(path, "*", "some")
		text, line := nest(path, "{}")
		if err := os.WriteFile("compose.yaml", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		src := readSources(&settings{files: []string{"compose.yaml"}, env: types.Mapping{}})
		want := fmt.Sprintf("compose.yaml:%d: %s: %s", line, path, r.says)
		if err := failure(src.notes); err == nil || !slices.Contains(sentences(err), want) {
			t.Errorf("error is %v\nwant %s", err, want)
		}
	}
	if count < 45 {
		t.Errorf("only %d refused keys were tried", count)
	}
}

func TestHarmlessValuesAreAccepted(t *testing.T) {
	t.Chdir(t.TempDir())
	for path, r := range leaves() {
		for _, value := range r.harmless {
			path := strings.ReplaceAll(path, "*", "some")
			text, _ := nest(path, fmt.Sprintf("%q", value))
			if err := os.WriteFile("compose.yaml", []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			src := readSources(&settings{files: []string{"compose.yaml"}, env: types.Mapping{}})
			for _, n := range src.notes {
				t.Errorf("%s: %q: %s", path, value, n.String())
			}
		}
	}
}

// effects has, for each honoured key, a service or a whole file with it, and without it where that
// is not just the image. The two must not give the same: a key that changes nothing was dropped.
var effects = map[string]struct{ with, without string }{
	"services.*.image":                                    {with: "image: other"},
	"services.*.command":                                  {with: "command: x"},
	"services.*.entrypoint":                               {with: "entrypoint: []"},
	"services.*.environment":                              {with: "environment: [A=b]"},
	"services.*.env_file.path":                            {with: "env_file: [{path: one.env}]"},
	"services.*.env_file.required":                        {with: "env_file: [{path: none.env, required: true}]", without: "env_file: [{path: none.env, required: false}]"},
	"services.*.env_file.format":                          {with: "env_file: [{path: one.env, format: raw}]", without: "env_file: [{path: one.env}]"},
	"services.*.label_file":                               {with: "label_file: one.env"},
	"services.*.labels":                                   {with: "labels: [a=b]"},
	"services.*.working_dir":                              {with: "working_dir: /x"},
	"services.*.user":                                     {with: "user: x"},
	"services.*.group_add":                                {with: "group_add: [x]"},
	"services.*.hostname":                                 {with: "hostname: x"},
	"services.*.domainname":                               {with: "domainname: x"},
	"services.*.extra_hosts":                              {with: "extra_hosts: ['a:1.2.3.4']"},
	"services.*.dns":                                      {with: "dns: 1.1.1.1"},
	"services.*.dns_search":                               {with: "dns_search: x"},
	"services.*.dns_opt":                                  {with: "dns_opt: [x]"},
	"services.*.init":                                     {with: "init: true"},
	"services.*.stop_signal":                              {with: "stop_signal: SIGINT"},
	"services.*.stop_grace_period":                        {with: "stop_grace_period: 1s"},
	"services.*.tty":                                      {with: "tty: true"},
	"services.*.stdin_open":                               {with: "stdin_open: true"},
	"services.*.restart":                                  {with: "restart: on-failure"},
	"services.*.scale":                                    {with: "scale: 2"},
	"services.*.x-tutti.kind":                             {with: "x-tutti: {kind: stateful}"},
	"services.*.x-tutti.start":                            {with: "x-tutti: {kind: stateful, start: parallel}", without: "x-tutti: {kind: stateful}"},
	"services.*.cap_add":                                  {with: "cap_add: [x]"},
	"services.*.cap_drop":                                 {with: "cap_drop: [x]"},
	"services.*.privileged":                               {with: "privileged: true"},
	"services.*.userns_mode":                              {with: "userns_mode: private"},
	"services.*.read_only":                                {with: "read_only: true"},
	"services.*.security_opt":                             {with: "security_opt: [no-new-privileges]"},
	"services.*.sysctls":                                  {with: "sysctls: [a=1]"},
	"services.*.shm_size":                                 {with: "shm_size: 1g"},
	"services.*.ulimits.*.soft":                           {with: "ulimits: {nofile: {soft: 5, hard: 9}}", without: "ulimits: {nofile: {soft: 4, hard: 9}}"},
	"services.*.ulimits.*.hard":                           {with: "ulimits: {nofile: {soft: 5, hard: 9}}", without: "ulimits: {nofile: {soft: 5, hard: 8}}"},
	"services.*.devices.source":                           {with: "devices: [{source: /dev/a, target: /dev/b, permissions: r}]", without: "devices: [{source: /dev/x, target: /dev/b, permissions: r}]"},
	"services.*.devices.target":                           {with: "devices: [{source: /dev/a, target: /dev/b, permissions: r}]", without: "devices: [{source: /dev/a, target: /dev/x, permissions: r}]"},
	"services.*.devices.permissions":                      {with: "devices: [{source: /dev/a, target: /dev/b, permissions: r}]", without: "devices: [{source: /dev/a, target: /dev/b, permissions: w}]"},
	"services.*.cpus":                                     {with: "cpus: 1"},
	"services.*.mem_limit":                                {with: "mem_limit: 1g"},
	"services.*.mem_reservation":                          {with: "mem_reservation: 1g"},
	"services.*.pids_limit":                               {with: "pids_limit: 5"},
	"services.*.oom_score_adj":                            {with: "oom_score_adj: 5"},
	"services.*.platform":                                 {with: "platform: linux/amd64"},
	"services.*.profiles":                                 {with: "profiles: [x]"},
	"services.*.network_mode":                             {with: "network_mode: host"},
	"services.*.tmpfs":                                    {with: "tmpfs: /x"},
	"services.*.container_name":                           {with: "container_name: xy"},
	"services.*.pull_policy":                              {with: "pull_policy: always"},
	"services.*.extends.service":                          {with: "extends: {service: other}"},
	"services.*.extends.file":                             {with: "extends: {service: base, file: base.yaml}"},
	"services.*.depends_on.*.condition":                   {with: "depends_on: {other: {condition: service_healthy}}", without: "depends_on: {other: {condition: service_started}}"},
	"services.*.depends_on.*.required":                    {with: "depends_on: {other: {condition: service_started, required: false}}", without: "depends_on: {other: {condition: service_started}}"},
	"services.*.depends_on.*.restart":                     {with: "depends_on: {other: {condition: service_started, restart: true}}", without: "depends_on: {other: {condition: service_started}}"},
	"services.*.healthcheck.test":                         {with: "healthcheck: {test: x}"},
	"services.*.healthcheck.disable":                      {with: "healthcheck: {disable: true}"},
	"services.*.healthcheck.interval":                     {with: "healthcheck: {test: x, interval: 5s}", without: "healthcheck: {test: x}"},
	"services.*.healthcheck.timeout":                      {with: "healthcheck: {test: x, timeout: 5s}", without: "healthcheck: {test: x}"},
	"services.*.healthcheck.retries":                      {with: "healthcheck: {test: x, retries: 5}", without: "healthcheck: {test: x}"},
	"services.*.healthcheck.start_period":                 {with: "healthcheck: {test: x, start_period: 5s}", without: "healthcheck: {test: x}"},
	"services.*.healthcheck.start_interval":               {with: "healthcheck: {test: x, start_interval: 5s}", without: "healthcheck: {test: x}"},
	"services.*.logging.driver":                           {with: "logging: {driver: syslog}"},
	"services.*.logging.options":                          {with: "logging: {options: {max-size: 1m}}", without: "logging: {}"},
	"services.*.secrets.source":                           {with: "secrets: [{source: s}]"},
	"services.*.secrets.target":                           {with: "secrets: [{source: s, target: x}]", without: "secrets: [s]"},
	"services.*.secrets.uid":                              {with: "secrets: [{source: s, uid: '5'}]", without: "secrets: [s]"},
	"services.*.secrets.gid":                              {with: "secrets: [{source: s, gid: '5'}]", without: "secrets: [s]"},
	"services.*.secrets.mode":                             {with: "secrets: [{source: s, mode: 0400}]", without: "secrets: [s]"},
	"services.*.configs.source":                           {with: "configs: [{source: c}]"},
	"services.*.configs.target":                           {with: "configs: [{source: c, target: x}]", without: "configs: [c]"},
	"services.*.configs.uid":                              {with: "configs: [{source: c, uid: '5'}]", without: "configs: [c]"},
	"services.*.configs.gid":                              {with: "configs: [{source: c, gid: '5'}]", without: "configs: [c]"},
	"services.*.configs.mode":                             {with: "configs: [{source: c, mode: 0400}]", without: "configs: [c]"},
	"services.*.ports.name":                               {with: "ports: [{target: 80, published: '80', name: x}]", without: "ports: ['80:80']"},
	"services.*.ports.target":                             {with: "ports: [{target: 80, published: '80'}]"},
	"services.*.ports.published":                          {with: "ports: [{target: 80, published: '81'}]", without: "ports: ['80:80']"},
	"services.*.ports.protocol":                           {with: "ports: [{target: 80, published: '80', protocol: udp}]", without: "ports: ['80:80']"},
	"services.*.ports.mode":                               {with: "ports: [{target: 80, published: '80', mode: host}]", without: "ports: ['80:80']"},
	"services.*.ports.host_ip":                            {with: "ports: [{target: 80, published: '80', host_ip: 127.0.0.1}]", without: "ports: ['80:80']"},
	"services.*.volumes.type":                             {with: "volumes: [{type: volume, target: /x}]"},
	"services.*.volumes.source":                           {with: "volumes: [{type: volume, target: /x, source: vol}]", without: "volumes: [/x]"},
	"services.*.volumes.target":                           {with: "volumes: [{type: volume, target: /y}]", without: "volumes: [/x]"},
	"services.*.volumes.read_only":                        {with: "volumes: [{type: volume, target: /x, read_only: true}]", without: "volumes: [/x]"},
	"services.*.volumes.bind.propagation":                 {with: "volumes: [{type: bind, source: /a, target: /x, bind: {propagation: shared}}]", without: "volumes: ['/a:/x']"},
	"services.*.volumes.bind.create_host_path":            {with: "volumes: [{type: bind, source: /a, target: /x, bind: {create_host_path: false}}]", without: "volumes: ['/a:/x']"},
	"services.*.volumes.volume.nocopy":                    {with: "volumes: [{type: volume, target: /x, volume: {nocopy: true}}]", without: "volumes: [/x]"},
	"services.*.volumes.volume.subpath":                   {with: "volumes: [{type: volume, target: /x, source: vol, volume: {subpath: a}}]", without: "volumes: ['vol:/x']"},
	"services.*.volumes.tmpfs.size":                       {with: "volumes: [{type: tmpfs, target: /x, tmpfs: {size: 1m}}]", without: "tmpfs: /x"},
	"services.*.volumes.tmpfs.mode":                       {with: "volumes: [{type: tmpfs, target: /x, tmpfs: {mode: 0700}}]", without: "tmpfs: /x"},
	"services.*.networks.*.aliases":                       {with: "networks: {n: {aliases: [x]}}", without: "networks: [n]"},
	"services.*.networks.*.ipv6_address":                  {with: "networks: {n: {ipv6_address: 'fd01::9:9'}}", without: "networks: [n]"},
	"services.*.networks.*.ipv4_address":                  {with: "networks: {n: {ipv4_address: 10.1.0.9}}", without: "networks: [n]"},
	"services.*.networks.*.priority":                      {with: "networks: {m: , n: {priority: 5}}", without: "networks: [m, n]"},
	"services.*.deploy.mode":                              {with: "deploy: {mode: global}"},
	"services.*.deploy.replicas":                          {with: "deploy: {replicas: 2}"},
	"services.*.deploy.labels":                            {with: "deploy: {labels: {a: b}}"},
	"services.*.deploy.endpoint_mode":                     {with: "deploy: {endpoint_mode: dnsrr}"},
	"services.*.deploy.restart_policy.condition":          {with: "deploy: {restart_policy: {condition: none}}"},
	"services.*.deploy.restart_policy.delay":              {with: "deploy: {restart_policy: {delay: 5s}}"},
	"services.*.deploy.restart_policy.max_attempts":       {with: "deploy: {restart_policy: {max_attempts: 5}}"},
	"services.*.deploy.restart_policy.window":             {with: "deploy: {restart_policy: {window: 5s}}"},
	"services.*.deploy.placement.constraints":             {with: "deploy: {placement: {constraints: [node.id==x]}}"},
	"services.*.deploy.placement.preferences.spread":      {with: "deploy: {placement: {preferences: [{spread: node.labels.x}]}}"},
	"services.*.deploy.placement.max_replicas_per_node":   {with: "deploy: {placement: {max_replicas_per_node: 1}}"},
	"services.*.deploy.resources.limits.cpus":             {with: "deploy: {resources: {limits: {cpus: '1'}}}"},
	"services.*.deploy.resources.limits.memory":           {with: "deploy: {resources: {limits: {memory: 1g}}}"},
	"services.*.deploy.resources.limits.pids":             {with: "deploy: {resources: {limits: {pids: 5}}}"},
	"services.*.deploy.resources.reservations.cpus":       {with: "deploy: {resources: {reservations: {cpus: '1'}}}"},
	"services.*.deploy.resources.reservations.memory":     {with: "deploy: {resources: {reservations: {memory: 1g}}}"},
	"services.*.deploy.rollback_config.parallelism":       {with: "deploy: {rollback_config: {parallelism: 2}}"},
	"services.*.deploy.rollback_config.delay":             {with: "deploy: {rollback_config: {delay: 2s}}"},
	"services.*.deploy.rollback_config.failure_action":    {with: "deploy: {rollback_config: {failure_action: continue}}"},
	"services.*.deploy.rollback_config.monitor":           {with: "deploy: {rollback_config: {monitor: 2s}}"},
	"services.*.deploy.rollback_config.max_failure_ratio": {with: "deploy: {rollback_config: {max_failure_ratio: 0.5}}"},
	"services.*.deploy.rollback_config.order":             {with: "deploy: {rollback_config: {order: stop-first}}"},
	"services.*.deploy.update_config.parallelism":         {with: "deploy: {update_config: {parallelism: 2}}"},
	"services.*.deploy.update_config.delay":               {with: "deploy: {update_config: {delay: 2s}}"},
	"services.*.deploy.update_config.failure_action":      {with: "deploy: {update_config: {failure_action: continue}}"},
	"services.*.deploy.update_config.monitor":             {with: "deploy: {update_config: {monitor: 2s}}"},
	"services.*.deploy.update_config.max_failure_ratio":   {with: "deploy: {update_config: {max_failure_ratio: 0.5}}"},
	"services.*.deploy.update_config.order":               {with: "deploy: {update_config: {order: stop-first}}"},
	reservedResource + "kind":                             {with: "deploy: {resources: {reservations: {generic_resources: [{discrete_resource_spec: {kind: a, value: 1}}]}}}"},
	reservedResource + "value":                            {with: "deploy: {resources: {reservations: {generic_resources: [{discrete_resource_spec: {kind: a, value: 2}}]}}}", without: "deploy: {resources: {reservations: {generic_resources: [{discrete_resource_spec: {kind: a, value: 1}}]}}}"},
	"name":                                                {with: "name: other\n" + someService, without: someService},
	"include.path":                                        {with: "include: [{path: base.yaml}]\n" + someService, without: someService},
	"include.env_file":                                    {with: "include: [{path: vars.yaml, env_file: one.env}]\n" + someService, without: "include: [vars.yaml]\n" + someService},
	"include.project_directory":                           {with: "include: [{path: vars.yaml, project_directory: sub}]\n" + someService, without: "include: [vars.yaml]\n" + someService},
	"networks.*.name":                                     {with: "networks: {default: {name: x}}\n" + someService, without: someService},
	"networks.*.external":                                 {with: "networks: {default: {external: true}}\n" + someService, without: someService},
	"networks.*.external.name":                            {with: "networks: {default: {external: {name: x}}}\n" + someService, without: someService},
	"networks.*.labels":                                   {with: "networks: {default: {labels: {a: b}}}\n" + someService, without: someService},
	"networks.*.internal":                                 {with: "networks: {default: {internal: true}}\n" + someService, without: someService},
	"networks.*.attachable":                               {with: "networks: {default: {attachable: true}}\n" + someService, without: someService},
	"networks.*.enable_ipv6":                              {with: "networks: {default: {enable_ipv6: true}}\n" + someService, without: someService},
	"networks.*.ipam.config.subnet":                       {with: "networks: {default: {ipam: {config: [{subnet: 10.2.0.0/24}]}}}\n" + someService, without: someService},
	"networks.*.driver_opts.parent":                       {with: "networks: {default: {driver: macvlan, driver_opts: {parent: eth1}, ipam: {config: [{subnet: 10.2.0.0/24}]}}}\n" + someService, without: "networks: {default: {driver: macvlan, driver_opts: {parent: eth0}, ipam: {config: [{subnet: 10.2.0.0/24}]}}}\n" + someService},
	"networks.*.driver_opts.macvlan_mode":                 {with: "networks: {default: {driver: macvlan, driver_opts: {parent: eth0, macvlan_mode: vepa}, ipam: {config: [{subnet: 10.2.0.0/24}]}}}\n" + someService, without: "networks: {default: {driver: macvlan, driver_opts: {parent: eth0}, ipam: {config: [{subnet: 10.2.0.0/24}]}}}\n" + someService},
	"networks.*.ipam.config.gateway":                      {with: "networks: {default: {driver: macvlan, driver_opts: {parent: eth0}, ipam: {config: [{subnet: 10.2.0.0/24, gateway: 10.2.0.9}]}}}\n" + someService, without: "networks: {default: {driver: macvlan, driver_opts: {parent: eth0}, ipam: {config: [{subnet: 10.2.0.0/24}]}}}\n" + someService},
	"networks.*.ipam.config.ip_range":                     {with: "networks: {default: {driver: macvlan, driver_opts: {parent: eth0}, ipam: {config: [{subnet: 10.2.0.0/24, ip_range: 10.2.0.128/25}]}}}\n" + someService, without: "networks: {default: {driver: macvlan, driver_opts: {parent: eth0}, ipam: {config: [{subnet: 10.2.0.0/24}]}}}\n" + someService},
	"networks.*.ipam.config.aux_addresses":                {with: "networks: {default: {driver: macvlan, driver_opts: {parent: eth0}, ipam: {config: [{subnet: 10.2.0.0/24, aux_addresses: {a: 10.2.0.7}}]}}}\n" + someService, without: "networks: {default: {driver: macvlan, driver_opts: {parent: eth0}, ipam: {config: [{subnet: 10.2.0.0/24}]}}}\n" + someService},
	"networks.*.driver_opts." + optionEncrypted:           {with: "networks: {default: {driver_opts: {encrypted: ''}}}\n" + someService, without: "networks: {default: {driver_opts: {encrypted: 'false'}}}\n" + someService},
	"networks.*.driver_opts." + optionMTU:                 {with: "networks: {default: {driver_opts: {" + optionMTU + ": '1400'}}}\n" + someService, without: someService},
	"volumes.*.name":                                      {with: "services: {a: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: {name: x}}\n", without: "services: {a: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: }\n"},
	"volumes.*.labels":                                    {with: "services: {a: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: {labels: {a: b}}}\n", without: "services: {a: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: }\n"},
	"volumes.*.external":                                  {with: "services: {a: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: {external: true}}\n", without: "services: {a: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: }\n"},
	"volumes.*.external.name":                             {with: "services: {a: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: {external: {name: x}}}\n", without: "services: {a: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: }\n"},
	"volumes.*.driver_opts.type":                          {with: "services: {a: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: {driver_opts: {type: tmpfs}}}\n", without: "services: {a: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: }\n"},
	"volumes.*.driver_opts.o":                             {with: "services: {a: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: {driver_opts: {o: ro}}}\n", without: "services: {a: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: }\n"},
	"volumes.*.driver_opts.device":                        {with: "services: {a: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: {driver_opts: {device: /x}}}\n", without: "services: {a: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: }\n"},
	"secrets.*.name":                                      {with: someSecret + "{file: one.env, name: x}}\n", without: someSecret + "{file: one.env}}\n"},
	"secrets.*.labels":                                    {with: someSecret + "{file: one.env, labels: {a: b}}}\n", without: someSecret + "{file: one.env}}\n"},
	"secrets.*.file":                                      {with: someSecret + "{file: one.env}}\n", without: someSecret + "{file: base.yaml}}\n"},
	"secrets.*.environment":                               {with: someSecret + "{environment: VALUE}}\n", without: someSecret + "{file: one.env}}\n"},
	"secrets.*.external":                                  {with: someSecret + "{external: true}}\n", without: someSecret + "{file: one.env}}\n"},
	"secrets.*.external.name":                             {with: someSecret + "{external: {name: x}}}\n", without: someSecret + "{external: true}}\n"},
	"configs.*.name":                                      {with: someConfig + "{content: a, name: x}}\n", without: someConfig + "{content: a}}\n"},
	"configs.*.labels":                                    {with: someConfig + "{content: a, labels: {a: b}}}\n", without: someConfig + "{content: a}}\n"},
	"configs.*.file":                                      {with: someConfig + "{file: one.env}}\n", without: someConfig + "{content: a}}\n"},
	"configs.*.environment":                               {with: someConfig + "{environment: VALUE}}\n", without: someConfig + "{content: a}}\n"},
	"configs.*.content":                                   {with: someConfig + "{content: b}}\n", without: someConfig + "{content: a}}\n"},
	"configs.*.external":                                  {with: someConfig + "{external: true}}\n", without: someConfig + "{content: a}}\n"},
	"configs.*.external.name":                             {with: someConfig + "{external: {name: x}}}\n", without: someConfig + "{external: true}}\n"},
}

const (
	reservedResource = "services.*.deploy.resources.reservations.generic_resources.discrete_resource_spec."
	someService      = "services: {a: {image: a}}\n"
	someSecret       = "services: {a: {image: a, secrets: [s]}}\nsecrets: {s: "
	someConfig       = "services: {a: {image: a, configs: [c]}}\nconfigs: {c: "
)

// withoutEffect are honoured keys that only document.
var withoutEffect = []string{"services.*.expose"}

func TestNoHonouredKeyIsDropped(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{
		"one.env": "A=\"b\"\n", "base.yaml": "services: {base: {image: base, user: them}}\n",
		"vars.yaml": "services: {base: {image: base, hostname: \"h${A:-}\", volumes: [\"./x:/x\"]}}\n", "sub/keep": "",
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	meaning := func(body string) string {
		if !strings.HasPrefix(body, "services:") && !strings.Contains(body, "\nservices:") {
			if !strings.Contains(body, "image:") {
				body = "image: a\n    " + body
			}
			body = "services:\n  some:\n    " + body + "\n  other: {image: o, user: me}\nsecrets: {s: {file: one.env}}\nconfigs: {c: {content: x}}\nvolumes: {vol: }\n" +
				"networks: {m: , n: {enable_ipv6: true, ipam: {config: [{subnet: 10.1.0.0/24}, {subnet: 'fd01::/64'}]}}}\n"
		}
		if err := os.WriteFile("compose.yaml", []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := settle(Options{Files: []string{"compose.yaml"}, Name: "", Environment: []string{"VALUE=v"}})
		if err != nil {
			t.Fatal(err)
		}
		r := load(t.Context(), s)
		for _, n := range r.notes {
			if !n.mild && n.kind != fault.Unsupported && !strings.Contains(n.text, "none.env") {
				t.Errorf("%s\n%s", body, n.String())
			}
		}
		r.notes = slices.DeleteFunc(r.notes, func(n note) bool { return n.mild && strings.Contains(n.text, "no service uses it") })
		var said []string
		for _, n := range inOrder(r.notes) {
			said = append(said, n.text)
		}
		data, err := json.Marshal([]any{r.out, said})
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	maps.Copy(effects, tuttiEffects)
	maps.Copy(effects, confineEffects)
	maps.Copy(effects, processEffects)
	maps.Copy(effects, policyEffects())
	tried := maps.Clone(effects)
	for path, r := range leaves() {
		if r.verdict != honoured || slices.Contains(withoutEffect, path) {
			continue
		}
		e, ok := effects[path]
		if !ok {
			t.Errorf("nothing shows that %s has an effect", path)
			continue
		}
		delete(tried, path)
		if e.without == "" {
			e.without = "image: a"
		}
		if meaning(e.with) == meaning(e.without) {
			t.Errorf("%s makes no difference:\n%s\n%s", path, e.with, e.without)
		}
	}
	for path := range tried {
		if r, _ := ruleAt(path); r == nil || r.verdict != honoured {
			t.Errorf("%s is not an honoured key", path)
		}
	}
}

func TestSuggestions(t *testing.T) {
	for key, want := range map[string]string{
		"enviroment": "; did you mean environment?", "imgae": "; did you mean image?", "Ports": "; did you mean ports?",
		"healthchecks": "; did you mean healthcheck?", "depend_on": "; did you mean depends_on?", "qqqqqqqqqqq": "", "q": "",
	} {
		if got := suggestion(key, serviceRules); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}

func TestCompatibilityPageNamesEveryKey(t *testing.T) {
	page, err := os.ReadFile("../../docs/compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## Compose files")
	section, _, _ = strings.Cut(section, "\n## ")
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(section, -1) {
		named[m[1]] = true
	}
	for path := range leaves() {
		short := strings.TrimPrefix(strings.ReplaceAll(path, ".*", ""), "services.")
		ok := false
		for p := short; !ok && p != ""; p = p[:max(0, strings.LastIndexByte(p, '.'))] {
			ok = named[p]
		}
		if !ok {
			t.Errorf("the page does not name %s", short)
		}
	}
}
