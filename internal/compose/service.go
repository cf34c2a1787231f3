package compose

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
)

// defaultStopGrace is how long tasks have to end by themselves, as in Docker.
const defaultStopGrace = 10 * time.Second

// one is the translation of one service.
type one struct {
	*translation
	*types.ServiceConfig
	deploy *types.DeployConfig // never nil
	path   string
	w      *model.Workload
	svc    *model.Service

	isProcess bool // of the host, not a container
}

func (t *translation) service(s *types.ServiceConfig) {
	o := &one{translation: t, ServiceConfig: s, deploy: s.Deploy, path: "services." + s.Name}
	if o.deploy == nil {
		o.deploy = &types.DeployConfig{}
	}
	if err := model.CheckName(s.Name); err != nil {
		o.invalid("", "name %v", err)
	}
	o.w = &model.Workload{Meta: model.Meta{Name: s.Name, Labels: o.deploy.Labels}}
	o.svc = &model.Service{Meta: model.Meta{Name: s.Name, Labels: maps.Clone(o.deploy.Labels)}, WorkloadID: s.Name}
	extra := o.readExtras()
	o.kind()
	o.extraKind(&extra)
	o.stateful(&extra)
	o.template()
	o.extraJob(&extra)
	o.process(&extra)
	o.extraTuning(&extra, &o.w.Template.Tasks[0])
	o.placement()
	o.extraPlacement(&extra)
	o.restart()
	o.networks()
	o.ports()
	o.extraBalance(&extra)
	o.extraRoutes(&extra)
	o.extraPolicy(&extra)
	o.updates()
	o.extraRollout(&extra)
	o.extraRebalance(&extra)
	o.extraAutoscale(&extra)
	o.extraPatience(&extra)
	o.dependsOn()
	o.hints()
	t.out.Workloads = append(t.out.Workloads, o.w)
	if o.isService() {
		t.out.Services = append(t.out.Services, o.svc)
	}
}

// isService reports whether others could reach the service: it has a network, and goes on running
// or has a published port all the same.
func (o *one) isService() bool {
	return len(o.svc.Networks) > 0 && (!o.w.Type.Ends() || len(o.svc.Ports) > 0)
}

func (o *one) sub(key string) string {
	if key == "" {
		return o.path
	}
	return o.path + "." + key
}

func (o *one) invalid(key, format string, args ...any) {
	o.translation.invalid(o.sub(key), format, args...)
}

func (o *one) unsupported(key, format string, args ...any) {
	o.translation.unsupported(o.sub(key), format, args...)
}

func (o *one) warn(key, format string, args ...any) {
	o.translation.warn(o.sub(key), format, args...)
}

// at notes a problem with the item of a list that has all the words.
func (o *one) at(kind fault.Kind, key string, words []string, format string, args ...any) {
	o.note(o.src.item(o.sub(key), words...), o.sub(key), kind, false, format, args...)
}

// kind decides how instances come and go, and how many there are.
func (o *one) kind() {
	waiter := o.ends[o.Name]
	switch o.deploy.Mode {
	case "", "replicated":
		o.w.Type = model.ServiceWorkload
		if waiter != "" {
			o.w.Type = model.JobWorkload
		}
	case "replicated-job":
		o.w.Type = model.JobWorkload
	case "global":
		o.w.Type = model.GlobalWorkload
		if waiter != "" {
			o.invalid("deploy.mode", "a global service never completes, which %s waits for", waiter)
		}
	case "global-job":
		o.w.Type = model.GlobalJobWorkload
	default:
		o.invalid("deploy.mode", "%q is none of replicated, global, replicated-job and global-job", o.deploy.Mode)
	}
	if o.Scale != nil && o.deploy.Replicas != nil && *o.Scale != *o.deploy.Replicas {
		o.invalid("scale", "deploy.replicas says %d; keep one of them", *o.deploy.Replicas)
	}
	count := 1
	for _, n := range []*int{o.deploy.Replicas, o.Scale} {
		if n != nil {
			count = *n
		}
	}
	if count < 0 {
		o.invalid("deploy.replicas", "%d is negative", count)
	}
	if !o.w.Type.PerNode() {
		o.w.Count = count
	} else if o.deploy.Replicas != nil || o.Scale != nil {
		o.invalid("deploy.replicas", "a global service runs once on every node")
	}
}

// networks attaches the service. The first network, by priority and then by name, is where
// published ports lead.
func (o *one) networks() {
	t := &o.w.Template
	switch o.NetworkMode {
	case "":
	case "host":
		t.HostNetwork = true
	case "none":
		t.NoNetwork = true
	default:
		o.unsupported("network_mode", "%q is not supported; host and none are, and networks otherwise", o.NetworkMode)
		return
	}
	if o.NetworkMode != "" {
		if len(o.Networks) > 0 {
			o.invalid("network_mode", "it excludes networks; keep one of them")
		}
		o.ownNetworkOnly()
		return
	}
	for _, key := range o.NetworksByPriority() {
		at := o.src.item(o.sub("networks"), key)
		ref, ok := o.ref("networks", key, at, o.sub("networks"))
		if !ok {
			continue
		}
		a := model.Attachment{Network: ref}
		var aliases []string
		if o.ContainerName != "" && o.ContainerName != o.Name {
			aliases = append(aliases, o.ContainerName)
		}
		if c := o.Networks[key]; c != nil {
			aliases = append(aliases, c.Aliases...)
			a.Address, a.Address6 = o.address(key, c.Ipv4Address, false), o.address(key, c.Ipv6Address, true)
		}
		slices.Sort(aliases)
		aliases = slices.Compact(aliases)
		o.svc.Networks = append(o.svc.Networks, ref)
		switch {
		case len(aliases) == 0:
		case o.w.Type.Ends() && len(o.Ports) == 0: // it has no service
			a.Aliases = aliases
		default:
			if o.svc.Aliases == nil {
				o.svc.Aliases = map[string][]string{}
			}
			o.svc.Aliases[ref] = aliases
		}
		t.Networks = append(t.Networks, a)
	}
}

// ownNetworkOnly refuses what has no meaning without a network of the application's.
func (o *one) ownNetworkOnly() {
	for key, given := range map[string]bool{"ports": len(o.Ports) > 0, "dns": len(o.DNS) > 0} {
		if given {
			o.invalid(key, "it has no effect with network_mode: %s; remove it", o.NetworkMode)
		}
	}
	for name := range o.Sysctls {
		if o.NetworkMode == "host" && isNetworkSysctl(name) {
			o.at(fault.Invalid, "sysctls", []string{name}, "%s would be the node's own with network_mode: host", name)
		}
	}
}

// address checks a fixed address.
func (o *one) address(network, address string, six bool) string {
	if address == "" {
		return ""
	}
	key, version := "networks."+network+".ipv4_address", "IPv4"
	if six {
		key, version = "networks."+network+".ipv6_address", "IPv6"
	}
	ip, err := netip.ParseAddr(address)
	if err != nil || ip.Is4() == six || ip.Is4In6() {
		o.invalid(key, "%q is not an %s address", address, version)
		return ""
	}
	if o.w.Count > 1 || o.w.Type.PerNode() {
		o.invalid(key, "several instances cannot share one address")
	}
	n := o.project.Networks[network]
	if n.External {
		return address
	}
	for _, pool := range n.Ipam.Config {
		if pool == nil {
			continue
		}
		subnet, err := netip.ParsePrefix(pool.Subnet)
		if err != nil || subnet.Addr().Is4() == six {
			continue
		}
		if !subnet.Contains(ip) {
			o.invalid(key, "%s is not in %s, the subnet of %s", address, subnet, network)
		}
		return address
	}
	o.invalid(key, "an address can be chosen only where networks.%s.ipam.config gives the subnet", network)
	return address
}

func (o *one) ports() {
	switch o.deploy.EndpointMode {
	case "", "vip":
	case "dnsrr":
		o.svc.DNSRoundRobin = true
	default:
		o.invalid("deploy.endpoint_mode", "%q is neither vip nor dnsrr", o.deploy.EndpointMode)
	}
	for i := range o.Ports {
		if p, ok := o.port(&o.Ports[i]); ok {
			o.svc.Ports = append(o.svc.Ports, p)
		}
	}
}

func (o *one) port(p *types.ServicePortConfig) (out model.ServicePort, ok bool) {
	target := strconv.Itoa(int(p.Target))
	words := []string{target, p.Published}
	out = model.ServicePort{Name: p.Name, Protocol: cmp.Or(p.Protocol, "tcp"), Target: int(p.Target)}
	if out.Target < 1 || out.Target > 65535 {
		o.at(fault.Invalid, "ports", words, "target is a port between 1 and 65535")
		return out, false
	}
	switch out.Protocol {
	case "tcp", "udp", "sctp":
	default:
		o.at(fault.Invalid, "ports", words, "protocol %q is none of tcp, udp and sctp", out.Protocol)
		return out, false
	}
	if p.HostIP != "" {
		ip, err := netip.ParseAddr(p.HostIP)
		if err != nil {
			o.at(fault.Invalid, "ports", append(words, p.HostIP), "host_ip %q is no IP address", p.HostIP)
			return out, false
		}
		if !ip.IsUnspecified() && !ip.Unmap().Is4() {
			o.at(fault.Unsupported, "ports", append(words, p.HostIP),
				"publishing on %s alone is not supported, as it is of IPv6: leave it out, or give an address of IPv4", p.HostIP)
			return out, false
		}
		out.HostIP = model.OneHostIP(p.HostIP)
	}
	switch p.Mode {
	case "", "ingress":
	case "host":
		out.HostMode = true
	default:
		o.at(fault.Invalid, "ports", words, "mode %q is neither ingress nor host", p.Mode)
		return out, false
	}
	if p.Published == "" {
		o.at(fault.Unsupported, "ports", words,
			"a port that is chosen by chance is not supported; write the published one too, as in 8080:%s, or expose if only other services need it", target)
		return out, false
	}
	n, err := strconv.Atoi(p.Published)
	if err != nil || n < 1 || n > 65535 {
		o.at(fault.Unsupported, "ports", words, "published %q is not one port between 1 and 65535", p.Published)
		return out, false
	}
	out.Published = n
	if other := o.taken(&out); other != "" {
		o.at(fault.Invalid, "ports", words, "service %s publishes %d/%s already", other, n, out.Protocol)
	}
	return out, true
}

// taken returns the service that publishes a port on all nodes already, and otherwise takes note.
func (o *one) taken(p *model.ServicePort) string {
	if p.HostMode {
		return ""
	}
	key := fmt.Sprintf("ports.%d/%s", p.Published, p.Protocol)
	other := o.used[key]
	o.used[key] = o.Name
	return other
}

func (o *one) dependsOn() {
	conditions := map[string]model.DependencyCondition{
		"":                            model.DependencyStarted,
		types.ServiceConditionStarted: model.DependencyStarted,
		types.ServiceConditionHealthy: model.DependencyHealthy,
		types.ServiceConditionCompletedSuccessfully: model.DependencyCompleted,
	}
	for _, name := range slices.Sorted(maps.Keys(o.DependsOn)) {
		d := o.DependsOn[name]
		o.w.DependsOn = append(o.w.DependsOn, model.Dependency{
			Workload: name, Condition: conditions[d.Condition], Optional: !d.Required, Restart: d.Restart,
		})
	}
}

// pull says when the registry of the service's image is asked.
func (o *one) pull(policy core.PullPolicy) {
	if o.out.Pulls == nil {
		o.out.Pulls = map[string]core.PullPolicy{}
	}
	if before, ok := o.out.Pulls[o.Image]; ok && before != policy {
		o.invalid("pull_policy", "another service with the same image says %s", before)
	}
	o.out.Pulls[o.Image] = policy
}

// hints are keys that ask for what Tutti does in its own way.
func (o *one) hints() {
	if o.ContainerName != "" {
		if o.w.Count > 1 || o.w.Type.PerNode() {
			o.invalid("container_name", "several instances cannot share one name; remove it")
		} else {
			o.warn("container_name", "the instance is called %s; %s is kept as a name on its networks", o.first(), o.ContainerName)
		}
	}
	switch o.PullPolicy {
	case "", types.PullPolicyMissing, types.PullPolicyIfNotPresent:
	case types.PullPolicyAlways:
		o.pull(core.PullAlways)
	case types.PullPolicyNever:
		o.pull(core.PullNever)
	default:
		o.unsupported("pull_policy", "%q is not supported: an image is looked up when the application is deployed, and pinned; missing, always and never are accepted", o.PullPolicy)
	}
	if l := o.Logging; l != nil && (l.Driver != "" || len(l.Options) > 0) {
		policy, unused, err := LogPolicy(l.Driver, l.Options)
		switch {
		case fault.Is(err, fault.Unsupported):
			o.unsupported("logging.driver", "%q is not supported: json-file, local and none are", l.Driver)
		case err != nil:
			o.invalid("logging.options", "%v", err)
		case len(unused) > 0:
			o.warn("logging.options", "%s: ignored, as nothing is added to lines of logs", strings.Join(unused, ", "))
		}
		for i := range o.w.Template.Tasks {
			o.w.Template.Tasks[i].Log = policy
		}
	}
	if o.isProcess {
		return
	}
	if o.Image == "" {
		if o.Build == nil && o.Provider == nil {
			o.invalid("", "it has no image")
		}
	} else if _, err := image.Normalize(o.Image); err != nil {
		o.invalid("image", "%v", err)
	}
}

func durationOf(d *types.Duration, otherwise time.Duration) time.Duration {
	if d == nil {
		return otherwise
	}
	return time.Duration(*d)
}
