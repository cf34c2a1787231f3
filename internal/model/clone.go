package model

import (
	"maps"
	"slices"
)

// Clone methods return deep copies: nothing reachable from the copy is shared with the original.

func (m Meta) clone() Meta {
	m.Labels = maps.Clone(m.Labels)
	if m.Extensions != nil {
		ext := make(map[string][]byte, len(m.Extensions))
		for k, v := range m.Extensions {
			ext[k] = slices.Clone(v)
		}
		m.Extensions = ext
	}
	return m
}

func (r Resources) clone() Resources {
	r.Custom = maps.Clone(r.Custom)
	return r
}

// Clone returns a deep copy.
func (n *Node) Clone() *Node {
	c := *n
	c.Meta = n.Meta.clone()
	c.Taints = slices.Clone(n.Taints)
	c.Capacity = n.Capacity.clone()
	c.Reserved = n.Reserved.clone()
	c.Devices = cloneNames(n.Devices)
	c.Attributes, c.Lacks, c.Pressure = maps.Clone(n.Attributes), maps.Clone(n.Lacks), slices.Clone(n.Pressure)
	c.Certificate.Trusts = slices.Clone(n.Certificate.Trusts)
	return &c
}

// Clone returns a deep copy.
func (a *Application) Clone() *Application {
	c := *a
	c.Meta = a.Meta.clone()
	return &c
}

// Clone returns a deep copy.
func (w *Workload) Clone() *Workload {
	c := *w
	c.Meta = w.Meta.clone()
	c.Template = w.Template.Clone()
	c.DependsOn = slices.Clone(w.DependsOn)
	c.Plan.Canary = slices.Clone(w.Plan.Canary)
	c.Autoscale = w.Autoscale.Clone()
	c.Maintenance = slices.Clone(w.Maintenance)
	c.StopWithin = clonePointer(w.StopWithin)
	c.PullLogin = slices.Clone(w.PullLogin)
	c.Belongs, c.Followed = clonePointer(w.Belongs), clonePointer(w.Followed)
	return &c
}

// Clone returns a deep copy.
func (r *Revision) Clone() *Revision {
	c := *r
	c.Meta = r.Meta.clone()
	c.Template = r.Template.Clone()
	return &c
}

// Clone returns a deep copy.
func (i *Instance) Clone() *Instance {
	c := *i
	c.Meta = i.Meta.clone()
	c.Addresses = slices.Clone(i.Addresses)
	c.HostPorts = slices.Clone(i.HostPorts)
	c.Volumes = maps.Clone(i.Volumes)
	c.Devices = cloneNames(i.Devices)
	c.Status.Tasks = slices.Clone(i.Status.Tasks)
	c.StopWithin, c.Move = clonePointer(i.StopWithin), clonePointer(i.Move)
	return &c
}

func cloneNames(m map[string][]string) map[string][]string {
	out := maps.Clone(m)
	for k, v := range out {
		out[k] = slices.Clone(v)
	}
	return out
}

func clonePointer[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}

// Clone returns a deep copy.
func (s *Service) Clone() *Service {
	c := *s
	c.Meta = s.Meta.clone()
	if s.Aliases != nil {
		c.Aliases = make(map[string][]string, len(s.Aliases))
		for k, v := range s.Aliases {
			c.Aliases[k] = slices.Clone(v)
		}
	}
	c.Networks = slices.Clone(s.Networks)
	c.Backends, c.OutsideIPs = slices.Clone(s.Backends), slices.Clone(s.OutsideIPs)
	c.Ports = slices.Clone(s.Ports)
	c.Routes = cloneRoutes(s.Routes)
	c.Status.VirtualIPs = slices.Clone(s.Status.VirtualIPs)
	return &c
}

// Clone returns a deep copy.
func (n *Network) Clone() *Network {
	c := *n
	c.Meta = n.Meta.clone()
	c.Status.Blocks = slices.Clone(n.Status.Blocks)
	if n.Underlay != nil {
		u := *n.Underlay
		u.Reserved = slices.Clone(u.Reserved)
		c.Underlay = &u
	}
	return &c
}

// Clone returns a deep copy.
func (v *Volume) Clone() *Volume {
	c := *v
	c.Meta = v.Meta.clone()
	c.Options = maps.Clone(v.Options)
	return &c
}

// Clone returns a deep copy.
func (s *Secret) Clone() *Secret {
	c := *s
	c.Meta = s.Meta.clone()
	c.Sealed = slices.Clone(s.Sealed)
	return &c
}

// Clone returns a deep copy.
func (c *Config) Clone() *Config {
	d := *c
	d.Meta = c.Meta.clone()
	d.Data = slices.Clone(c.Data)
	return &d
}

// Clone returns a deep copy.
func (i *Image) Clone() *Image {
	c := *i
	c.Meta = i.Meta.clone()
	c.Status.Nodes = slices.Clone(i.Status.Nodes)
	c.Health = i.Health.Clone()
	c.Signed = slices.Clone(i.Signed)
	return &c
}

// Clone returns a deep copy.
func (e *Event) Clone() *Event {
	c := *e
	c.Meta = e.Meta.clone()
	return &c
}

// Clone returns a deep copy.
func (c *Cluster) Clone() *Cluster {
	d := *c
	d.Meta = c.Meta.clone()
	d.Namespaces = maps.Clone(c.Namespaces)
	for name, n := range d.Namespaces {
		n.Quota = n.Quota.clone()
		d.Namespaces[name] = n
	}
	d.Images = c.Images.clone()
	d.CACertificate = slices.Clone(c.CACertificate)
	d.CAKey = slices.Clone(c.CAKey)
	d.SecretKey = slices.Clone(c.SecretKey)
	d.Sealed = slices.Clone(c.Sealed)
	d.Removed = slices.Clone(c.Removed)
	if c.Retiring != nil {
		r := *c.Retiring
		r.Certificate, r.Cross = slices.Clone(r.Certificate), slices.Clone(r.Cross)
		d.Retiring = &r
	}
	return &d
}

// Clone returns a deep copy.
func (u *User) Clone() *User {
	c := *u
	c.Meta = u.Meta.clone()
	c.Grants = slices.Clone(u.Grants)
	c.Tokens = slices.Clone(u.Tokens)
	for i := range c.Tokens {
		c.Tokens[i].Hash = slices.Clone(c.Tokens[i].Hash)
	}
	return &c
}

// Clone returns a deep copy; nil gives nil.
func (p *Probe) Clone() *Probe {
	if p == nil {
		return nil
	}
	c := *p
	c.Exec = slices.Clone(p.Exec)
	if p.HTTP != nil {
		h := *p.HTTP
		h.Codes = slices.Clone(h.Codes)
		h.Headers = slices.Clone(h.Headers)
		c.HTTP = &h
	}
	c.GRPC, c.Grace = clonePointer(p.GRPC), clonePointer(p.Grace)
	return &c
}

// Clone returns a deep copy; nil gives nil.
func (h *Hook) Clone() *Hook {
	if h == nil {
		return nil
	}
	c := *h
	c.Exec = slices.Clone(h.Exec)
	if h.HTTP != nil {
		p := (&Probe{HTTP: h.HTTP}).Clone()
		c.HTTP = p.HTTP
	}
	return &c
}

// Clone returns a deep copy.
func (t Template) Clone() Template {
	t.InitTasks = cloneTasks(t.InitTasks)
	t.Tasks = cloneTasks(t.Tasks)
	t.Networks = slices.Clone(t.Networks)
	for i := range t.Networks {
		t.Networks[i].Aliases = slices.Clone(t.Networks[i].Aliases)
		if l := t.Networks[i].Link; l != nil {
			c := *l
			t.Networks[i].Link = &c
		}
	}
	t.DNS.Servers = slices.Clone(t.DNS.Servers)
	t.DNS.Search = slices.Clone(t.DNS.Search)
	t.DNS.Options = slices.Clone(t.DNS.Options)
	t.ExtraHosts = slices.Clone(t.ExtraHosts)
	t.Ports = slices.Clone(t.Ports)
	t.Sysctls = maps.Clone(t.Sysctls)
	t.Placement = t.Placement.clone()
	t.Sharing = clonePointer(t.Sharing)
	t.Labels = maps.Clone(t.Labels)
	return t
}

func (p Placement) clone() Placement {
	p.Constraints = slices.Clone(p.Constraints)
	for i := range p.Constraints {
		p.Constraints[i].Values = slices.Clone(p.Constraints[i].Values)
	}
	p.Prefer = slices.Clone(p.Prefer)
	for i := range p.Prefer {
		p.Prefer[i].Values = slices.Clone(p.Prefer[i].Values)
	}
	p.Spread = slices.Clone(p.Spread)
	p.Skew = slices.Clone(p.Skew)
	for i := range p.Skew {
		p.Skew[i].Groups = slices.Clone(p.Skew[i].Groups)
	}
	p.MaxPer = slices.Clone(p.MaxPer)
	p.Near = cloneAffinities(p.Near)
	p.Apart = cloneAffinities(p.Apart)
	p.Tolerations = slices.Clone(p.Tolerations)
	p.Platforms = slices.Clone(p.Platforms)
	return p
}

func cloneAffinities(list []Affinity) []Affinity {
	out := slices.Clone(list)
	for i := range out {
		out[i].Workloads, out[i].Groups = slices.Clone(out[i].Workloads), slices.Clone(out[i].Groups)
	}
	return out
}

func cloneTasks(tasks []TaskSpec) []TaskSpec {
	out := slices.Clone(tasks)
	for i := range out {
		out[i] = out[i].clone()
	}
	return out
}

func (t TaskSpec) clone() TaskSpec {
	t.Entrypoint = slices.Clone(t.Entrypoint)
	t.Args = slices.Clone(t.Args)
	t.Env = slices.Clone(t.Env)
	t.PlacedEnv = slices.Clone(t.PlacedEnv)
	t.Groups = slices.Clone(t.Groups)
	t.Mounts = slices.Clone(t.Mounts)
	t.Reserve = t.Reserve.clone()
	t.Limit = t.Limit.clone()
	t.Health = t.Health.Clone()
	t.Probes = slices.Clone(t.Probes)
	for i := range t.Probes {
		t.Probes[i] = *t.Probes[i].Clone()
	}
	t.Startup, t.Liveness, t.Readiness = t.Startup.Clone(), t.Liveness.Clone(), t.Readiness.Clone()
	t.AfterStart, t.BeforeStop = t.AfterStart.Clone(), t.BeforeStop.Clone()
	t.CapAdd = slices.Clone(t.CapAdd)
	t.CapDrop = slices.Clone(t.CapDrop)
	t.SecurityOpts = slices.Clone(t.SecurityOpts)
	if t.Log != nil {
		l := *t.Log
		t.Log = &l
	}
	t.Ulimits = slices.Clone(t.Ulimits)
	t.Tuning = t.Tuning.Clone()
	t.Artifacts = slices.Clone(t.Artifacts)
	if t.Umask != nil {
		umask := *t.Umask
		t.Umask = &umask
	}
	t.Devices = slices.Clone(t.Devices)
	t.Labels = maps.Clone(t.Labels)
	return t
}
