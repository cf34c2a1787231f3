package compose

import (
	"fmt"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
)

// verdict is what becomes of a key.
type verdict int

const (
	honoured verdict = iota
	refused          // known to Compose, not built here
	foreign          // not in the Compose specification, though people may know it from elsewhere
	ignored          // without effect and without loss: worth a warning
)

// rule is what the table says about a key.
type rule struct {
	verdict verdict
	says    string // why, and what to write instead
	// harmless are values with which the key asks for what happens anyway.
	harmless []string
	// keys are those of a mapping, or of the mappings in a list; each is the rule of keys that
	// people name. Without both, anything may follow.
	keys keys
	each *rule
	// scalar looks at the short form of a mapping, and says what is wrong with it.
	scalar func(value string, say func(verdict, string))
}

type keys map[string]*rule

// well is the rule of a key that is honoured whatever its value.
var well = &rule{}

func within(k keys) *rule { return &rule{keys: k} }
func each(r *rule) *rule  { return &rule{each: r} }
func no(says string, harmless ...string) *rule {
	return &rule{verdict: refused, says: says, harmless: harmless}
}
func alien(says string) *rule { return &rule{verdict: foreign, says: says} }
func unheard(says string, harmless ...string) *rule {
	return &rule{verdict: ignored, says: says, harmless: harmless}
}

// opens reports whether the rule knows the keys below it.
func (r *rule) opens() bool { return r != nil && (r.keys != nil || r.each != nil) }

// below is the rule of a key, nil when the table does not have it.
func (r *rule) below(key string) *rule {
	if sub, ok := r.keys[key]; ok {
		return sub
	}
	return r.each
}

const (
	windowsOnly = "it is for Windows containers, which Tutti does not run"
	tooOld      = "it belongs to the first version of Compose files"
)

// fileRules is the table of all keys of a Compose file.
var fileRules = within(keys{
	"version":  unheard("it says nothing any more; remove it"),
	"name":     well,
	"include":  within(keys{"path": well, "env_file": well, "project_directory": well}),
	"services": each(within(serviceRules)),
	tuttiKey:   within(keys{"allow": within(talkRules), "deny": within(talkRules)}),
	"networks": each(within(networkRules)),
	"volumes": each(within(keys{
		"name": well, "external": within(keys{"name": well}), "labels": well,
		"driver": no("volumes of this driver are not supported yet; local ones are", "local", "default", ""),
		"driver_opts": {
			keys: keys{"type": well, "o": well, "device": well},
			each: no("this option of a volume driver is not supported; type, o and device are"),
		},
	})),
	"secrets": each(within(keys{
		"name": well, "external": within(keys{"name": well}), "labels": well, "file": well, "environment": well,
		"driver":          no("secrets are kept by Tutti itself; give file or environment"),
		"driver_opts":     no("secrets are kept by Tutti itself; give file or environment"),
		"template_driver": no("golang is the only template driver", "golang"),
	})),
	"configs": each(within(keys{
		"name": well, "external": within(keys{"name": well}), "labels": well, "file": well, "environment": well, "content": well,
		"template_driver": no("golang is the only template driver", "golang"),
	})),
	"models": no("AI models are not supported; run the model's server as a service"),
	"jobs":   no("the jobs section is not supported yet; write a service with deploy.mode: replicated-job"),
})

var networkRules = keys{
	"name": well, "external": within(keys{"name": well}), "labels": well, "internal": well, "attachable": well,
	"driver": no("networks of this driver are not supported; leave it out, or write overlay or bridge, which both give an overlay over all nodes, or macvlan",
		"overlay", "bridge", "macvlan", "default", ""),
	"driver_opts": {
		keys: keys{optionMTU: well, optionEncrypted: well, "parent": well, "macvlan_mode": well},
		each: no("this option of a network driver is not supported; " + optionMTU + " is, and encrypted, parent and macvlan_mode are"),
	},
	"enable_ipv4": no("networks are IPv4 networks", "true"),
	"enable_ipv6": well,
	"ipam": within(keys{
		"driver":  no("addresses are given out by Tutti itself", "default", ""),
		"options": no("addresses are given out by Tutti itself"),
		"config": within(keys{
			"subnet": well, "gateway": well, "ip_range": well, "aux_addresses": well,
		}),
	}),
}

const (
	optionMTU       = "com.docker.network.driver.mtu"
	optionEncrypted = "encrypted"
)

// serviceRules is the table of the keys of a service.
var serviceRules = keys{
	"image": well, "command": well, "entrypoint": well, "environment": well, "working_dir": well, "user": well, "group_add": well,
	"env_file": within(keys{"path": well, "required": well, "format": well}), "label_file": well, "labels": well,
	"hostname": well, "domainname": well, "extra_hosts": well, "dns": well, "dns_search": well, "dns_opt": well,
	"init": well, "stop_signal": well, "stop_grace_period": well, "tty": well, "stdin_open": well, "restart": well, "scale": well,
	"cap_add": well, "cap_drop": well, "privileged": well, "userns_mode": well, "read_only": well, "security_opt": well, "sysctls": well, "shm_size": well,
	"ulimits": each(within(keys{"soft": well, "hard": well})),
	"devices": within(keys{"source": well, "target": well, "permissions": well}),
	"runtime": well, "pid": well, "ipc": well, "uts": well, "cgroup": well,
	"cpuset": well, "cpu_shares": well, "cpu_quota": well, "cpu_period": well, "memswap_limit": well, "mem_swappiness": well, "oom_kill_disable": well,
	"device_cgroup_rules": well, "gpus": within(requestRules),
	"blkio_config": within(keys{
		"weight": well, "weight_device": within(keys{"path": well, "weight": well}), "device_read_bps": within(throttleRules), "device_write_bps": within(throttleRules),
		"device_read_iops": within(throttleRules), "device_write_iops": within(throttleRules),
	}),
	"cpus": well, "mem_limit": well, "mem_reservation": well, "pids_limit": well, "oom_score_adj": well,
	"platform": well, "profiles": well, "expose": well, "network_mode": well, "tmpfs": well, "container_name": well, "pull_policy": well,
	"extends":      within(keys{"service": well, "file": well}),
	"depends_on":   each(within(keys{"condition": well, "required": well, "restart": well})),
	"healthcheck":  within(keys{"test": well, "disable": well, "interval": well, "timeout": well, "retries": well, "start_period": well, "start_interval": well}),
	"logging":      within(keys{"driver": well, "options": well}),
	"secrets":      within(grantRules),
	"configs":      within(grantRules),
	"deploy":       within(deployRules),
	"ports":        {keys: portRules, scalar: checkShortPort},
	"volumes":      {keys: mountRules, scalar: checkShortVolume},
	"networks":     each(within(attachmentRules)),
	tuttiKey:       within(tuttiRules),
	"build":        no("building images is not supported yet; build and push the image, and name it in image"),
	"provider":     no("services that another program provides are not supported; declare an image"),
	"models":       no("AI models are not supported; run the model's server as a service"),
	"links":        no("services reach each other by name on every network that they share; give another name in networks.NAME.aliases"),
	"volumes_from": no("mount the same named volume in both services instead"),

	"external_links":     no("join the other application's network as an external one instead"),
	"pre_start":          no("hooks are not supported yet; use a service that others wait for with service_completed_successfully"),
	"post_start":         no("hooks are not supported yet"),
	"pre_stop":           no("hooks are not supported yet; let the program do it on its stop signal"),
	"annotations":        no("annotations are not supported; use labels"),
	"cpu_count":          no(windowsOnly),
	"cpu_percent":        no(windowsOnly),
	"cpu_rt_period":      no("real-time scheduling is not supported"),
	"cpu_rt_runtime":     no("real-time scheduling is not supported"),
	"cgroup_parent":      no("where control groups lie is Tutti's own affair"),
	"credential_spec":    no(windowsOnly),
	"isolation":          no(windowsOnly, "default"),
	"mac_address":        no("hardware addresses cannot be chosen"),
	"pull_refresh_after": no("images are looked up when the application is deployed, and pinned"),
	"storage_opt":        no("options of the image store are not supported"),
	"umask":              no("a umask cannot be set; let the image's entrypoint do it"),
	"use_api_socket":     no("the API's socket is not handed to containers", "false"),

	"attach":  unheard("it is about what a terminal shows; `tutti logs` shows every service", "true"),
	"develop": unheard("it is for development on one machine"),

	"net":           alien(tooOld + "; write network_mode"),
	"log_driver":    alien(tooOld + "; write logging.driver"),
	"log_opt":       alien(tooOld + "; write logging.options"),
	"dockerfile":    alien(tooOld + "; building images is not supported yet"),
	"volume_driver": alien(tooOld + "; write driver in the volume's own section"),
}

var requestRules = keys{
	"capabilities": well, "driver": well, "count": well, "device_ids": well, "options": no("options of devices are not supported"),
}

var throttleRules = keys{"path": well, "rate": well}

var grantRules = keys{"source": well, "target": well, "uid": well, "gid": well, "mode": well}

var portRules = keys{
	"name": well, "target": well, "published": well, "protocol": well, "mode": well, "host_ip": well,
	"app_protocol": unheard("it is a hint that nothing makes use of"),
}

var mountRules = keys{
	"type": well, "source": well, "target": well, "read_only": well,
	"consistency": unheard(consistencyText),
	"bind": within(keys{
		"propagation": well, "create_host_path": well,
		"selinux":   unheard(selinuxText),
		"recursive": well,
	}),
	"volume": within(keys{"nocopy": well, "subpath": well, "labels": no("labels belong to the volume's own section")}),
	"tmpfs":  within(keys{"size": well, "mode": well}),
	"image":  no("mounting images is not supported yet"),
}

const (
	consistencyText = "it is for desktops on which folders are shared with a virtual machine"
	selinuxText     = "containers are not confined by SELinux, so that nothing needs a label"
)

var attachmentRules = keys{
	"aliases": well, "ipv4_address": well, "ipv6_address": well, "priority": well,
	"driver_opts":            no("options of a network driver are not supported here"),
	"gw_priority":            no("a way out cannot be chosen: it is the first network, by priority and name, that is not internal"),
	"interface_name":         no("interfaces cannot be named: they are eth0, eth1 and so on"),
	"link_local_ips":         no("further addresses are not supported"),
	"mac_address":            no("hardware addresses cannot be chosen"),
	"use_service_name_alias": no("a service always has its name on its networks", "true"),
}

var deployRules = keys{
	"mode": well, "replicas": well, "labels": well, "endpoint_mode": well,
	"update_config":   within(updateRules),
	"rollback_config": within(updateRules),
	"restart_policy":  within(keys{"condition": well, "delay": well, "max_attempts": well, "window": well}),
	"placement":       within(keys{"constraints": well, "preferences": within(keys{"spread": well}), "max_replicas_per_node": well}),
	"resources": within(keys{
		"limits": within(keys{"cpus": well, "memory": well, "pids": well}),
		"reservations": within(keys{
			"cpus": well, "memory": well,
			"generic_resources": within(keys{"discrete_resource_spec": within(keys{"kind": well, "value": well})}),
			"devices":           within(requestRules),
		}),
	}),
}

var updateRules = keys{"parallelism": well, "delay": well, "failure_action": well, "monitor": well, "max_failure_ratio": well, "order": well}

func checkShortPort(value string, say func(verdict, string)) {
	if _, err := types.ParsePortConfig(value); err != nil {
		say(foreign, fmt.Sprintf("%q is not a port: write [HOST:]CONTAINER[/PROTOCOL], such as 8080:80 (%v)", value, err))
	}
}

// checkShortVolume looks at the options of SOURCE:TARGET:OPTIONS, of which compose-go passes over
// those that it does not know.
func checkShortVolume(value string, say func(verdict, string)) {
	parts := strings.Split(value, ":")
	if len(parts) > 3 {
		say(foreign, fmt.Sprintf("%q is not a volume: write [SOURCE:]TARGET[:OPTIONS], or its parts as source, target and so on", value))
	}
	if len(parts) != 3 {
		return
	}
	for _, option := range strings.Split(parts[2], ",") {
		switch option {
		case "ro", "rw", "nocopy", types.PropagationPrivate, types.PropagationRPrivate, types.PropagationShared,
			types.PropagationRShared, types.PropagationSlave, types.PropagationRSlave:
		case types.SELinuxShared, types.SELinuxPrivate:
			say(ignored, "option "+option+": "+selinuxText)
		case "cached", "delegated", "consistent":
			say(ignored, "option "+option+": "+consistencyText)
		default:
			say(foreign, fmt.Sprintf("there is no option %q of a volume", option))
		}
	}
}
