package marathon

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const cmdSentence = "AppDefinition must either contain one of 'cmd' or 'args', and/or a 'container'."

var operators = []string{"UNIQUE", "CLUSTER", "GROUP_BY", "LIKE", "UNLIKE", "MAX_PER", "IS"}

var protocols = []string{"HTTP", "HTTPS", "TCP", "COMMAND", "MESOS_TCP", "MESOS_HTTP", "MESOS_HTTPS"}

// check says what is wrong with an app, and what of it is not honoured.
func (a *app) check(p *problems) {
	hasCmd, hasArgs := a.Cmd != nil && *a.Cmd != "", len(a.Args) > 0
	switch {
	case a.Cmd != nil && *a.Cmd == "":
		p.add("/cmd", "must not be an empty string")
	case hasCmd && hasArgs, !hasCmd && !hasArgs && a.image() == "":
		p.add("/", cmdSentence)
	}
	atLeast(p, "/cpus", *a.Cpus, 0.001)
	atLeast(p, "/mem", *a.Mem, 0)
	atLeast(p, "/disk", *a.Disk, 0)
	atLeast(p, "/gpus", float64(*a.Gpus), 0)
	atLeast(p, "/instances", float64(*a.Instances), 0)
	atLeast(p, "/backoffFactor", *a.BackoffFactor, 1)
	atLeast(p, "/backoffSeconds", float64(*a.BackoffSeconds), 0)
	atLeast(p, "/maxLaunchDelaySeconds", float64(*a.MaxLaunchDelaySeconds), 0)
	if a.TaskKillGracePeriodSeconds != nil {
		atLeast(p, "/taskKillGracePeriodSeconds", float64(*a.TaskKillGracePeriodSeconds), 0)
	}
	if *a.Instances > 1_000_000 {
		p.add("/instances", "must be less than or equal to 1000000")
	}
	between(p, "/upgradeStrategy/minimumHealthCapacity", *a.UpgradeStrategy.MinimumHealthCapacity)
	between(p, "/upgradeStrategy/maximumOverCapacity", *a.UpgradeStrategy.MaximumOverCapacity)
	if u := a.UnreachableStrategy; !u.Disabled {
		atLeast(p, "/unreachableStrategy/inactiveAfterSeconds", float64(u.InactiveAfterSeconds), 0)
		if u.InactiveAfterSeconds > u.ExpungeAfterSeconds {
			p.add("/unreachableStrategy", "inactiveAfterSeconds must be less than or equal to expungeAfterSeconds")
		}
	}
	oneOf(p, "/killSelection", a.KillSelection, "YOUNGEST_FIRST", "OLDEST_FIRST")
	if a.Labels["MARATHON_SINGLE_INSTANCE_APP"] == "true" {
		if *a.Instances > 1 {
			p.add("/instances", "Single instance app may only have one instance")
		}
		if *a.UpgradeStrategy.MinimumHealthCapacity != 0 || *a.UpgradeStrategy.MaximumOverCapacity != 0 {
			p.add("/upgradeStrategy", "must be 0 for single instance apps")
		}
	}
	if *a.Executor != "" && *a.Executor != "//cmd" {
		p.refuse("/executor", "an executor of one's own")
	}
	if a.Check != nil {
		p.refuse("/check", "a check that only tells (give a health check)")
	}
	if a.Role != "" && a.Role != "*" {
		p.refuse("/role", "a role other than *")
	}
	if r := a.Residency; r != nil && oneOf(p, "/residency/taskLostBehavior", r.TaskLostBehavior, "WAIT_FOREVER", "RELAUNCH_AFTER_TIMEOUT") && r.TaskLostBehavior != "WAIT_FOREVER" {
		p.refuse("/residency/taskLostBehavior", "leaving the volumes of a lost task behind")
	}
	checkConstraints(p, "/constraints", a.Constraints)
	for i, d := range a.Dependencies {
		if _, ok := resolvePath(parentOf(a.ID), d); !ok {
			p.add(fmt.Sprintf("/dependencies(%d)", i), idSentence)
		}
	}
	a.checkNetworks(p)
	a.checkPorts(p)
	a.checkContainer(p)
	a.checkHealth(p)
	a.checkSecrets(p)
	checkFetch(p, "/fetch", a.Fetch, a.image() != "")
	if l := a.ResourceLimits; l != nil {
		limitOf(p, "/resourceLimits/cpus", l.Cpus, *a.Cpus)
		limitOf(p, "/resourceLimits/mem", l.Mem, *a.Mem)
	}
}

func atLeast(p *problems, path string, n, least float64) {
	if n < least {
		p.add(path, "must be greater than or equal to "+strconv.FormatFloat(least, 'g', -1, 64))
	}
}

func between(p *problems, path string, n float64) {
	if n < 0 || n > 1 {
		p.add(path, "is not between 0.0 and 1.0")
	}
}

func oneOf(p *problems, path, value string, accepted ...string) bool {
	if slices.Contains(accepted, value) {
		return true
	}
	p.add(path, fmt.Sprintf("%q must be one of %s", value, strings.Join(accepted, ", ")))
	return false
}

func limitOf(p *problems, path string, v any, requested float64) (limit float64, bounded bool) {
	switch x := v.(type) {
	case nil:
	case string:
		if x != "unlimited" {
			p.add(path, fmt.Sprintf("'%s' is an invalid resource limit. It must be 'unlimited' or a number", x))
		}
	case float64:
		if x < requested {
			p.add(path, fmt.Sprintf("resource limit must be greater than or equal to requested resource (%g)", requested))
		}
		return x, true
	default:
		p.add(path, "must be 'unlimited' or a number")
	}
	return 0, false
}

func checkConstraints(p *problems, path string, list [][]string) {
	for i, c := range list {
		at := fmt.Sprintf("%s(%d)", path, i)
		if len(c) < 2 || len(c) > 3 {
			p.add(at, "each constraint must have either 2 or 3 fields")
			continue
		}
		if !oneOf(p, at, c[1], operators...) {
			continue
		}
		value, given := "", len(c) == 3
		if given {
			value = c[2]
		}
		switch c[1] {
		case "UNIQUE":
			if given && value != "" {
				p.add(at, "Value specified but not used")
			}
		case "GROUP_BY":
			if n, err := strconv.Atoi(value); given && value != "" && (err != nil || n < 1) {
				p.add(at, "Value was specified but is not a number")
			}
		case "MAX_PER":
			if n, err := strconv.Atoi(value); err != nil || n < 1 {
				p.add(at, "A numeric value must be specified for MAX_PER")
			}
		case "LIKE", "UNLIKE":
			if value == "" {
				p.add(at, "A regular expression value must be provided")
			} else if _, err := regexp.Compile(value); err != nil {
				p.add(at, "'"+value+"' is not a valid regular expression: "+err.Error())
			}
		case "IS":
			if value == "" {
				p.add(at, "A value must be provided for IS")
			}
		}
	}
}

func (a *app) checkNetworks(p *problems) { checkNetworks(p, a.Networks) }

func checkNetworks(p *problems, list []network) {
	for i, n := range list {
		at := fmt.Sprintf("/networks(%d)", i)
		if !oneOf(p, at+"/mode", n.Mode, "host", "container", "container/bridge") {
			return
		}
		if n.Mode != list[0].Mode || n.Mode != "container" && len(list) > 1 {
			p.add("/networks", "Host networks cannot be combined with others, and there is at most one bridge network")
		}
		switch {
		case n.Mode == "container" && n.Name == "":
			p.add(at+"/name", "must not be empty: there is no default network")
		case n.Mode != "container" && n.Name != "":
			p.add(at+"/name", "is allowed for container networks only")
		}
	}
}

func (a *app) checkPorts(p *problems) {
	if a.onHost() && len(a.mappings()) > 0 {
		p.add("/", "portMappings are not allowed with host-networking")
	}
	if !a.onHost() && len(a.definitions()) > 0 {
		p.add("/", "portDefinitions are only allowed with host-networking")
	}
	names, numbers := map[string]bool{}, map[int]bool{}
	port := func(at string, n int) {
		if n < 0 || n > 65535 {
			p.add(at, "must be between 0 and 65535")
		}
	}
	for i, d := range a.definitions() {
		at := fmt.Sprintf("/portDefinitions(%d)", i)
		port(at+"/port", d.Port)
		if d.Name != "" && names[d.Name] {
			p.add("/portDefinitions", "Port names must be unique.")
		}
		if d.Port != 0 && numbers[d.Port] {
			p.add("/portDefinitions", "Ports must be unique.")
		}
		names[d.Name], numbers[d.Port] = true, true
		protocol(p, at, d.Protocol)
		for name := range d.Labels {
			if strings.HasPrefix(name, "VIP_") {
				p.refuse(at+"/labels/"+name, "a virtual IP of an app on the host's network")
			}
		}
	}
	for i, m := range a.mappings() {
		at := fmt.Sprintf("/container/portMappings(%d)", i)
		port(at+"/containerPort", m.ContainerPort)
		port(at+"/servicePort", m.ServicePort)
		if m.HostPort != nil {
			port(at+"/hostPort", *m.HostPort)
		}
		if m.Name != "" && names[m.Name] {
			p.add("/container/portMappings", "Port names must be unique.")
		}
		names[m.Name] = true
		protocol(p, at, m.Protocol)
		if len(m.NetworkNames) > 0 && len(a.Networks) > 1 {
			p.refuse(at+"/networkNames", "a port on one network of several")
		}
		if m.ContainerPort == 0 && m.HostPort == nil {
			p.add(at+"/containerPort", "must not be 0 without a hostPort")
		}
		for name, text := range m.Labels {
			if strings.HasPrefix(name, "VIP_") {
				checkVIP(p, at+"/labels/"+name, text, m.ContainerPort)
			}
		}
	}
}

func protocol(p *problems, at, text string) {
	if text == "udp,tcp" || text == "tcp,udp" {
		p.refuse(at+"/protocol", "one port for both protocols (give two)")
		return
	}
	oneOf(p, at+"/protocol", text, "tcp", "udp")
}

// checkVIP looks at "/shop/web:8080": a name and a port.
func checkVIP(p *problems, at, text string, containerPort int) {
	name, port, _ := strings.Cut(text, ":")
	n, err := strconv.Atoi(port)
	switch {
	case err != nil || strings.Trim(name, "/") == "":
		p.add(at, fmt.Sprintf("%q is not NAME:PORT", text))
	case isAddress(name):
		p.refuse(at, "a virtual IP with an address of one's own (give a name)")
	case n < 1 || n > 65535:
		p.add(at, fmt.Sprintf("port %d is not between 1 and 65535", n))
	case containerPort == 0:
		p.refuse(at, "a virtual IP of a container port that is chosen with the host port")
	}
}

func isAddress(name string) bool { _, err := netip.ParseAddr(name); return err == nil }

func (a *app) checkContainer(p *problems) {
	c := a.Container
	if c == nil {
		if !a.onHost() {
			p.add("/container", "is needed for a network other than the host's: {\"type\": \"MESOS\"} will do")
		}
		return
	}
	oneOf(p, "/container/type", c.Type, "DOCKER", "MESOS")
	if c.Type == "DOCKER" && c.Docker == nil {
		p.add("/container/docker", "not defined")
	}
	if c.LinuxInfo != nil {
		p.refuse("/container/linuxInfo", "linuxInfo")
	}
	if d := c.Docker; d != nil {
		if d.Image == "" {
			p.add("/container/docker/image", "must not be empty")
		}
		if d.Credential != nil {
			p.add("/container/docker/credential", "must be empty")
		}
		if d.PullConfig != nil {
			p.refuse("/container/docker/pullConfig", "a pullConfig (import the image, or log in on the servers)")
		}
		for i, param := range d.Parameters {
			if !knownParameter(param.Key) {
				p.refuse(fmt.Sprintf("/container/docker/parameters(%d)", i), "the parameter "+param.Key)
			}
		}
	}
	for i, v := range c.Volumes {
		a.checkVolume(p, fmt.Sprintf("/container/volumes(%d)", i), v)
	}
}

func (a *app) checkVolume(p *problems, at string, v volume) {
	if v.ContainerPath == "" {
		p.add(at+"/containerPath", "must not be empty")
	}
	kinds := 0
	for _, given := range []bool{v.HostPath != "", v.Persistent != nil, v.External != nil, v.Secret != ""} {
		if given {
			kinds++
		}
	}
	if kinds != 1 {
		p.add(at, "must have one of hostPath, persistent, external and secret")
	}
	if v.Secret == "" {
		oneOf(p, at+"/mode", v.Mode, "RO", "RW")
	}
	switch {
	case v.External != nil:
		p.refuse(at+"/external", "an external volume")
	case v.Persistent != nil:
		if strings.Contains(v.ContainerPath, "/") {
			p.add(at+"/containerPath", "value must not contain \"/\"")
		}
		if v.Persistent.Size <= 0 {
			p.add(at+"/persistent/size", "must be greater than 0")
		}
		if v.Persistent.Type != "" && v.Persistent.Type != "root" || v.Persistent.ProfileName != "" || len(v.Persistent.Constraints) > 0 || v.Persistent.MaxSize > 0 {
			p.refuse(at+"/persistent", "a disk other than the root disk")
		}
	case v.HostPath != "" && !strings.HasPrefix(v.HostPath, "/") && a.persistent(v.HostPath) < 0:
		p.refuse(at+"/hostPath", "a host path that is relative to the sandbox, and is no persistent volume,")
	case v.Secret != "" && a.Secrets[v.Secret].Source == "":
		p.add(at+"/secret", "volume.secret must refer to an existing secret")
	}
}

func (a *app) ports() int {
	if a.onHost() {
		return len(a.definitions())
	}
	return len(a.mappings())
}

func (a *app) checkHealth(p *problems) {
	for i := range a.HealthChecks {
		h := &a.HealthChecks[i]
		at := fmt.Sprintf("/healthChecks(%d)", i)
		if !oneOf(p, at+"/protocol", h.Protocol, protocols...) {
			continue
		}
		for name, n := range map[string]int{"gracePeriodSeconds": h.GracePeriodSeconds, "intervalSeconds": h.IntervalSeconds, "timeoutSeconds": h.TimeoutSeconds, "maxConsecutiveFailures": h.MaxConsecutiveFailures, "delaySeconds": h.DelaySeconds} {
			atLeast(p, at+"/"+name, float64(n), 0)
		}
		if h.IPProtocol != "IPv4" {
			p.refuse(at+"/ipProtocol", h.IPProtocol)
		}
		if h.Protocol == "COMMAND" {
			if h.Command == nil || h.Command.Value == "" {
				p.add(at+"/command", "not defined")
			}
			continue
		}
		if h.Command != nil {
			p.add(at+"/command", "must be empty")
		}
		if h.Port != nil && h.PortIndex != nil {
			p.add(at, "HealthCheck must specify either a port or a portIndex")
		}
		if h.Port == nil {
			or(&h.PortIndex, 0)
			if *h.PortIndex < 0 || *h.PortIndex >= a.ports() {
				p.add(at, "Health check port indices must address an element of the ports array or container port mappings.")
			}
		}
	}
	for i := range a.ReadinessChecks {
		r := &a.ReadinessChecks[i]
		at := fmt.Sprintf("/readinessChecks(%d)", i)
		oneOf(p, at+"/protocol", r.Protocol, "HTTP", "HTTPS")
		if r.TimeoutSeconds >= r.IntervalSeconds {
			p.add(at+"/timeoutSeconds", fmt.Sprintf("got %d, expected less than %d", r.TimeoutSeconds, r.IntervalSeconds))
		}
		if a.portNamed(r.PortName) < 0 {
			p.add(at+"/portName", "No port definition reference for portName "+r.PortName)
		}
	}
}

// portNamed is the index of the port of a name, -1 when there is none.
func (a *app) portNamed(name string) int {
	if a.onHost() {
		return slices.IndexFunc(a.definitions(), func(d portDefinition) bool { return d.Name == name })
	}
	return slices.IndexFunc(a.mappings(), func(m portMapping) bool { return m.Name == name })
}

func (a *app) checkSecrets(p *problems) {
	for name, v := range a.Env {
		if v.Secret == "" {
			continue
		}
		if a.Secrets[v.Secret].Source == "" {
			p.add("/env/"+name+"/secret", "references an undefined secret")
			continue
		}
		p.refuse("/env/"+name, "a secret in the environment (mount it: a volume with \"secret\")")
	}
	for name, s := range a.Secrets {
		if s.Source == "" {
			p.add("/secrets/"+name+"/source", "must not be empty")
		}
	}
}

func checkFetch(p *problems, path string, list []artifact, contained bool) {
	for i, f := range list {
		at := fmt.Sprintf("%s(%d)", path, i)
		switch {
		case contained:
			p.refuse(at, "fetching into a container (put it into the image, or mount a volume)")
		case !strings.HasPrefix(f.URI, "http://") && !strings.HasPrefix(f.URI, "https://") && !strings.HasPrefix(f.URI, "file:///"):
			if strings.HasPrefix(f.URI, "/") {
				continue
			}
			p.refuse(at+"/uri", fmt.Sprintf("%q, which is no URL that begins with https://, http:// or file:///,", f.URI))
		case f.Extract && foreignArchive(f.URI):
			p.refuse(at+"/extract", "unpacking this kind of archive (tar, tar.gz, tgz, tar.zst and zip are unpacked)")
		}
	}
}

var unknownArchive = regexp.MustCompile(`\.(tbz2|tar\.bz2|txz|tar\.xz|gz|bz2|xz|7z)(\?.*)?(#.*)?$`)

// foreignArchive reports whether a URI is of an archive that is not unpacked here.
func foreignArchive(uri string) bool {
	uri = strings.ToLower(uri)
	return unknownArchive.MatchString(uri) && !strings.Contains(uri, ".tar.gz")
}
