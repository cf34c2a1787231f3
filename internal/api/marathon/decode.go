package marathon

import (
	"encoding/json"
	"slices"
)

// readApp reads an app from a request, over the present one where that is to be changed in part. The
// id and the version are the caller's business.
func readApp(o object, present *app, partial bool, p *problems) *app {
	o = o.without(readOnly...)
	given := o
	canonical(o, p)
	if partial && present != nil {
		o = over(present, o)
	}
	for name := range o {
		if o.isNull(name) {
			delete(o, name)
		}
	}
	a := &app{}
	o.into(a, "/", p)
	if present != nil && !partial && given["instances"] == nil {
		a.Instances = present.Instances
	}
	if len(p.details) > 0 {
		return a
	}
	a.fillIn()
	a.check(p)
	return a
}

// over is the present app with the given fields in place of its own, and without those that would
// contradict them.
func over(present *app, given object) object {
	out := object{}
	data, err := json.Marshal(present)
	if err != nil || json.Unmarshal(data, &out) != nil {
		return given
	}
	out = out.without(readOnly...)
	has := func(name string) bool { _, ok := given[name]; return ok && !given.isNull(name) }
	if has("cmd") {
		delete(out, "args")
	}
	if has("args") {
		delete(out, "cmd")
	}
	if has("networks") {
		delete(out, "portDefinitions")
	}
	if has("portDefinitions") && !has("networks") {
		delete(out, "networks")
	}
	for name, value := range given {
		out[name] = value
	}
	return out
}

// canonical turns the forms of earlier versions of the API into the present one.
func canonical(o object, p *problems) {
	var l legacy
	old := object{}
	for _, name := range []string{"ports", "uris", "ipAddress"} {
		if v, ok := o[name]; ok {
			old[name] = v
			delete(o, name)
		}
	}
	old.into(&l, "/", p)
	if l.URIs != nil && len(*l.URIs) > 0 {
		if !empty(o["fetch"]) {
			p.add("/uris", "may not be set in conjunction with fetch")
		}
		list := []artifact{}
		for _, uri := range *l.URIs {
			list = append(list, artifact{URI: uri, Extract: true})
		}
		o.set("fetch", list)
	}
	var c *container
	if raw, ok := o["container"]; ok && !o.isNull("container") {
		c = &container{}
		if !readPart(raw, c, "/container", p) {
			return
		}
	}
	networks := !empty(o["networks"])
	if c != nil && c.Docker != nil {
		canonicalDocker(o, c, networks, p)
	}
	if l.IPAddress != nil {
		canonicalAddress(o, c, l.IPAddress, networks, p)
	}
	if c != nil {
		o.set("container", c)
	}
	if l.Ports != nil {
		canonicalPorts(o, *l.Ports, p)
	}
}

func readPart(raw []byte, v any, path string, p *problems) bool {
	before := len(p.details)
	readInto(raw, v, path, p)
	return len(p.details) == before
}

func empty(raw []byte) bool {
	var v any
	return len(raw) == 0 || json.Unmarshal(raw, &v) != nil || saysNothing(v)
}

func canonicalDocker(o object, c *container, networks bool, p *problems) {
	d := c.Docker
	if d.Network != "" {
		if networks {
			p.add("/", "must not specify both container.docker.network and networks")
		}
		mode := map[string]string{"HOST": "host", "BRIDGE": "container/bridge", "USER": "container"}[d.Network]
		switch {
		case mode != "" && d.Network != "USER":
			o.set("networks", []network{{Mode: mode}})
		case d.Network == "USER" && empty(o["ipAddress"]) && !networks:
			o.set("networks", []network{{Mode: mode}})
		case d.Network == "NONE":
			p.refuse("/container/docker/network", "NONE, a container without a network,")
		case d.Network != "USER":
			p.add("/container/docker/network", "must be one of BRIDGE, HOST, NONE, USER")
		}
		d.Network = ""
	}
	if d.PortMappings != nil {
		if c.PortMappings != nil && len(*c.PortMappings) > 0 && len(*d.PortMappings) > 0 {
			p.add("/container", "must not specify both container.docker.portMappings and container.portMappings")
		}
		if len(*d.PortMappings) > 0 || c.PortMappings == nil {
			c.PortMappings = d.PortMappings
		}
		d.PortMappings = nil
	}
}

func canonicalAddress(o object, c *container, ip *ipAddress, networks bool, p *problems) {
	if networks {
		p.add("/", "must not specify both networks and ipAddress")
	}
	if len(ip.Groups) > 0 {
		p.refuse("/ipAddress/groups", "a group of addresses")
	}
	o.set("networks", []network{{Mode: "container", Name: ip.NetworkName, Labels: ip.Labels}})
	if ip.Discovery == nil || len(ip.Discovery.Ports) == 0 {
		return
	}
	if c == nil {
		p.refuse("/ipAddress/discovery", "discovery without a container")
		return
	}
	list := []portMapping{}
	for _, d := range ip.Discovery.Ports {
		m := portMapping{ContainerPort: d.Number, Name: d.Name, Protocol: d.Protocol, Labels: d.Labels}
		if m.Protocol == "" {
			m.Protocol = "tcp"
		}
		list = append(list, m)
	}
	c.PortMappings = &list
}

func canonicalPorts(o object, ports []int, p *problems) {
	var definitions []portDefinition
	if raw, ok := o["portDefinitions"]; ok && !empty(raw) {
		if json.Unmarshal(raw, &definitions) == nil && !slices.EqualFunc(definitions, ports, func(d portDefinition, n int) bool { return d.Port == n }) {
			p.add("/", "cannot specify both ports and port definitions")
		}
		return
	}
	if !hostNetwork(o) {
		if slices.ContainsFunc(ports, func(n int) bool { return n != 0 }) {
			return // they were service ports of the mappings, which have their own
		}
		return
	}
	definitions = []portDefinition{}
	for _, n := range ports {
		definitions = append(definitions, portDefinition{Port: n, Protocol: "tcp", Labels: map[string]string{}})
	}
	o.set("portDefinitions", definitions)
}

func hostNetwork(o object) bool {
	var list []network
	if json.Unmarshal(o["networks"], &list) != nil {
		return true
	}
	return len(list) == 0 || list[0].Mode == "host"
}

func or[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

// fillIn sets what is missing to its default.
func (a *app) fillIn() {
	or(&a.BackoffFactor, 1.15)
	or(&a.BackoffSeconds, 1)
	or(&a.MaxLaunchDelaySeconds, 300)
	or(&a.Cpus, 1)
	or(&a.Mem, 128)
	or(&a.Disk, 0)
	or(&a.Gpus, 0)
	or(&a.Instances, 1)
	or(&a.Executor, "")
	or(&a.RequirePorts, false)
	if a.Labels == nil {
		a.Labels = map[string]string{}
	}
	if a.KillSelection == "" {
		a.KillSelection = "YOUNGEST_FIRST"
	}
	if len(a.Networks) == 0 {
		a.Networks = []network{{Mode: "host"}}
	}
	resident := a.resident()
	if a.UpgradeStrategy == nil {
		a.UpgradeStrategy = &upgradeStrategy{}
	}
	health, over := 1.0, 1.0
	if resident {
		health, over = 0.5, 0
	}
	or(&a.UpgradeStrategy.MinimumHealthCapacity, health)
	or(&a.UpgradeStrategy.MaximumOverCapacity, over)
	if a.UnreachableStrategy == nil {
		a.UnreachableStrategy = &unreachable{Disabled: resident}
	}
	if a.onHost() {
		if a.PortDefinitions == nil {
			a.PortDefinitions = &[]portDefinition{{Name: "default", Protocol: "tcp", Labels: map[string]string{}}}
		}
		if a.Container != nil && a.Container.PortMappings != nil && len(*a.Container.PortMappings) == 0 {
			a.Container.PortMappings = nil
		}
		return
	}
	if a.PortDefinitions != nil && len(*a.PortDefinitions) == 0 {
		a.PortDefinitions = nil
	}
	if a.Container != nil {
		if a.Container.PortMappings == nil {
			a.Container.PortMappings = &[]portMapping{}
			if a.Networks[0].Mode == "container/bridge" { // elsewhere it would be no port at all
				*a.Container.PortMappings = []portMapping{{Name: "default", Protocol: "tcp", Labels: map[string]string{}}}
			}
		}
		if a.Networks[0].Mode == "container/bridge" {
			for i := range *a.Container.PortMappings {
				or(&(*a.Container.PortMappings)[i].HostPort, 0)
			}
		}
	}
}

func (a *app) onHost() bool { return len(a.Networks) == 0 || a.Networks[0].Mode == "host" }

// resident apps have volumes that stay where they are.
func (a *app) resident() bool {
	return a.Container != nil && slices.ContainsFunc(a.Container.Volumes, func(v volume) bool { return v.Persistent != nil })
}

func (a *app) image() string {
	if a.Container == nil || a.Container.Docker == nil {
		return ""
	}
	return a.Container.Docker.Image
}

func (a *app) mappings() []portMapping {
	if a.Container == nil || a.Container.PortMappings == nil {
		return nil
	}
	return *a.Container.PortMappings
}

func (a *app) definitions() []portDefinition {
	if a.PortDefinitions == nil {
		return nil
	}
	return *a.PortDefinitions
}

func (a *app) clone() *app {
	var c app
	data, err := json.Marshal(a)
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		panic("an app is plain data: " + err.Error())
	}
	return &c
}
