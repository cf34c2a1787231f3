package compose

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// translation turns a project into a deployment. What it cannot turn is in its notes; it goes on
// after each, so that all are found.
type translation struct {
	project *types.Project
	src     *sources
	out     core.Deployment
	notes   []note

	refs map[string]string // section + "." + key → how a deployment refers to it
	used map[string]string // section + "." + name → the key that has it
	ends map[string]string // services that must complete, and one that waits for it
}

func translate(p *types.Project, src *sources) *translation {
	t := &translation{
		project: p, src: src, out: core.Deployment{Application: p.Name, Source: "compose"},
		refs: map[string]string{}, used: map[string]string{}, ends: map[string]string{},
	}
	t.checkName()
	t.checkUnused()
	t.resolveFiles()
	t.networks()
	t.volumes()
	t.secrets()
	t.configs()
	t.dependencies()
	for _, name := range slices.Sorted(maps.Keys(t.project.Services)) {
		s := t.project.Services[name]
		t.service(&s)
	}
	t.filePolicy()
	return t
}

func (t *translation) note(at place, path string, kind fault.Kind, mild bool, format string, args ...any) {
	t.notes = append(t.notes, note{place: at, path: path, kind: kind, mild: mild, text: fmt.Sprintf(format, args...)})
}

// invalid notes what can never work, at a path of the project.
func (t *translation) invalid(path, format string, args ...any) {
	t.note(t.src.where(path), path, fault.Invalid, false, format, args...)
}

// unsupported notes what Compose knows and Tutti does not do.
func (t *translation) unsupported(path, format string, args ...any) {
	t.note(t.src.where(path), path, fault.Unsupported, false, format, args...)
}

// warn notes what is worth knowing.
func (t *translation) warn(path, format string, args ...any) {
	t.note(t.src.where(path), path, fault.Invalid, true, format, args...)
}

func (t *translation) checkName() {
	if t.project.Name == "" {
		t.invalid("name", "the project has no name: give it one here")
		return
	}
	at := t.src.where("name")
	if at.node != nil {
		if said := at.file.text(at.node); said != t.project.Name && loader.NormalizeProjectName(said) == t.project.Name {
			t.warn("name", "the application is called %s: names have small letters, digits, '-' and '_' only", t.project.Name)
		}
	}
	if err := model.CheckName(t.project.Name); err != nil {
		t.invalid("name", "project name %v", err)
	}
}

// checkUnused warns of members that nothing uses, not even a service of another profile.
func (t *translation) checkUnused() {
	all := t.project.AllServices()
	for section, members := range map[string][]string{
		"networks": t.project.NetworkNames(), "volumes": t.project.VolumeNames(),
		"secrets": t.project.SecretNames(), "configs": t.project.ConfigNames(),
	} {
		for _, m := range members {
			if !usedBy(all, section, m) {
				t.warn(section+"."+m, "no service uses it; it is not made")
			}
		}
	}
	secrets := t.project.Secrets
	t.project = t.project.WithoutUnnecessaryResources()
	for _, s := range t.project.Services { // of which the parser knows nothing
		for _, key := range routeSecretsOf(&s) {
			if c, ok := secrets[key]; ok {
				if t.project.Secrets == nil {
					t.project.Secrets = types.Secrets{}
				}
				t.project.Secrets[key] = c
			}
		}
	}
	if len(t.project.Services) == 0 {
		t.invalid("services", "there is no service to run%s", inProfiles(t.project))
	}
}

func inProfiles(p *types.Project) string {
	if len(p.DisabledServices) == 0 {
		return ""
	}
	return " without one of their profiles"
}

// resolveFiles reads the services' env_file and label_file.
func (t *translation) resolveFiles() {
	complete := true
	for name, s := range t.project.Services {
		for _, f := range s.EnvFiles {
			if bool(f.Required) && !isFile(f.Path) {
				complete = false
				t.note(t.src.item("services."+name+".env_file", t.src.display(f.Path)), "services."+name+".env_file", fault.Invalid, false,
					"there is no file %s", t.src.display(f.Path))
			}
		}
		for _, f := range s.LabelFiles {
			if !isFile(f) {
				complete = false
				t.invalid("services."+name+".label_file", "there is no file %s", t.src.display(f))
			}
		}
	}
	if !complete {
		return
	}
	knowRaw()
	var p *types.Project
	var err error
	t.src.hearVariables("an env_file or label_file", func() {
		if p, err = t.project.WithServicesEnvironmentResolved(true); err == nil {
			p, err = p.WithServicesLabelsResolved(true)
		}
	})
	if err != nil {
		t.notes = append(t.notes, t.src.explain(err)...)
		return
	}
	t.project = p
}

// member names an object of the application: as in the file, unless it has a name of its own there,
// which compose-go completes by the project's.
func (t *translation) member(section, key, name string) string {
	path := section + "." + key
	if name == "" || name == t.project.Name+"_"+key {
		name = key
	}
	if err := model.CheckName(name); err != nil {
		t.invalid(path, "name %v", err)
	}
	if other, taken := t.used[section+"."+name]; taken {
		t.invalid(path, "%s has the name %s already", other, name)
	}
	t.used[section+"."+name] = key
	t.refs[path] = name
	return name
}

// outside notes that a key stands for an object that exists already, outside any application.
func (t *translation) outside(section, key, name string) {
	if name == "" {
		name = key
	}
	t.refs[section+"."+key] = "/" + name
}

// ref is how a deployment refers to the member of a section that a service names; ok is false when
// there is none.
func (t *translation) ref(section, key string, at place, path string) (ref string, ok bool) {
	ref, ok = t.refs[section+"."+key]
	if !ok {
		t.note(at, path, fault.Invalid, false, "%s has no %s", section, key)
	}
	return ref, ok
}

func (t *translation) networks() {
	for _, key := range slices.Sorted(maps.Keys(t.project.Networks)) {
		n := t.project.Networks[key]
		if n.External {
			switch n.Name {
			case "host", "none", "bridge":
				t.unsupported("networks."+key, "it stands for a network of the Docker Engine; write network_mode: host or none in the service instead")
			}
			t.outside("networks", key, n.Name)
			continue
		}
		t.out.Networks = append(t.out.Networks, t.network(key, &n))
	}
}

func (t *translation) network(key string, n *types.NetworkConfig) *model.Network {
	path := "networks." + key
	out := &model.Network{
		Meta:   model.Meta{Name: t.member("networks", key, n.Name), Labels: n.Labels},
		Driver: model.DriverOverlay, Internal: n.Internal, Attachable: n.Attachable,
	}
	if n.Driver == model.DriverMacvlan {
		out.Driver, out.Underlay = n.Driver, &model.Underlay{Parent: n.DriverOpts["parent"], Mode: n.DriverOpts["macvlan_mode"]}
	}
	for _, option := range []string{"parent", "macvlan_mode"} {
		if _, said := n.DriverOpts[option]; said && out.Underlay == nil {
			t.unsupported(path+".driver_opts."+option, "it is not an option of this network's driver, %s", out.Driver)
		}
	}
	if text, ok := n.DriverOpts[optionMTU]; ok {
		mtu, err := strconv.Atoi(text)
		if err != nil || mtu < 576 || mtu > 65535 {
			t.invalid(path+".driver_opts."+optionMTU, "%q is not a packet size between 576 and 65535", text)
		}
		out.MTU = mtu
	}
	if text, ok := n.DriverOpts[optionEncrypted]; ok {
		said, err := encrypted(text)
		if err != nil {
			t.invalid(path+".driver_opts."+optionEncrypted, "%v", err)
		}
		out.Encrypted = said
	}
	out.IPv6 = n.EnableIPv6 != nil && *n.EnableIPv6
	for _, pool := range n.Ipam.Config {
		if pool == nil || pool.Subnet == "" {
			continue
		}
		at := t.src.item(path+".ipam.config", pool.Subnet)
		sub := path + ".ipam.config.subnet"
		if out.Underlay != nil {
			t.onHosts(at, sub, out, pool)
			continue
		}
		for key, said := range map[string]bool{"gateway": pool.Gateway != "", "ip_range": pool.IPRange != "", "aux_addresses": len(pool.AuxiliaryAddresses) > 0} {
			if said {
				t.note(at, path+".ipam.config."+key, fault.Unsupported, false, "%s", overlayOnly[key])
			}
		}
		prefix, err := netip.ParsePrefix(pool.Subnet)
		six := err == nil && prefix.Addr().Is6()
		switch {
		case six && out.Subnet6 != "" || !six && out.Subnet != "":
			t.note(at, sub, fault.Unsupported, false, "a network has one subnet of each version of IP")
		case six && !out.IPv6:
			t.note(at, sub, fault.Invalid, false, "a subnet of IPv6 needs enable_ipv6: true")
		case six:
			if _, err := model.ParseSubnet6(pool.Subnet); err != nil {
				t.note(at, sub, fault.Invalid, false, "%v", err)
			}
			out.Subnet6 = pool.Subnet
		case err != nil || !prefix.Addr().Is4() || prefix.Bits() > 28:
			t.note(at, sub, fault.Invalid, false, "%q: an IPv4 range such as 10.20.0.0/16, of /28 or larger, is accepted", pool.Subnet)
		default:
			out.Subnet = pool.Subnet
		}
	}
	if out.Underlay != nil {
		if err := out.CheckUnderlay(); err != nil {
			t.invalid(path, "%v", err)
		}
	}
	return out
}

// encrypted reads the option of that name, which is said by being there.
func encrypted(text string) (bool, error) {
	if text == "" {
		return true, nil
	}
	said, err := strconv.ParseBool(text)
	if err != nil {
		return false, fmt.Errorf("%q is neither true nor false, nor empty, which is true", text)
	}
	return said, nil
}

// overlayOnly is why an overlay network does not have what networks of hosts have.
var overlayOnly = map[string]string{
	"gateway":       "a gateway cannot be chosen: instances reach the outside through their own node",
	"ip_range":      "a range within the subnet is not supported; give a smaller subnet",
	"aux_addresses": "reserved addresses are not supported; give a smaller subnet",
}

// onHosts reads what a network of hosts has of addresses.
func (t *translation) onHosts(at place, path string, out *model.Network, pool *types.IPAMPool) {
	if out.Subnet != "" {
		t.note(at, path, fault.Unsupported, false, "a network of driver %s has one subnet", out.Driver)
		return
	}
	out.Subnet, out.Gateway, out.Underlay.Range = pool.Subnet, pool.Gateway, pool.IPRange
	for _, name := range slices.Sorted(maps.Keys(pool.AuxiliaryAddresses)) {
		out.Underlay.Reserved = append(out.Underlay.Reserved, pool.AuxiliaryAddresses[name])
	}
}

func (t *translation) volumes() {
	for _, key := range slices.Sorted(maps.Keys(t.project.Volumes)) {
		v := t.project.Volumes[key]
		if v.External {
			t.outside("volumes", key, v.Name)
			continue
		}
		t.out.Volumes = append(t.out.Volumes, &model.Volume{
			Meta: model.Meta{Name: t.member("volumes", key, v.Name), Labels: v.Labels}, Driver: "local", Options: v.DriverOpts,
		})
	}
}

func (t *translation) secrets() {
	for _, key := range slices.Sorted(maps.Keys(t.project.Secrets)) {
		s := types.FileObjectConfig(t.project.Secrets[key])
		if s.External {
			t.outside("secrets", key, s.Name)
			continue
		}
		t.out.Secrets = append(t.out.Secrets, core.SecretData{
			Meta: model.Meta{Name: t.member("secrets", key, s.Name), Labels: s.Labels}, Data: t.content("secrets."+key, &s), Templated: s.TemplateDriver != "",
		})
	}
}

func (t *translation) configs() {
	for _, key := range slices.Sorted(maps.Keys(t.project.Configs)) {
		c := types.FileObjectConfig(t.project.Configs[key])
		if c.External {
			t.outside("configs", key, c.Name)
			continue
		}
		t.out.Configs = append(t.out.Configs, &model.Config{
			Meta: model.Meta{Name: t.member("configs", key, c.Name), Labels: c.Labels}, Data: t.content("configs."+key, &c), Templated: c.TemplateDriver != "",
		})
	}
}

// content is what a secret or config holds.
func (t *translation) content(path string, f *types.FileObjectConfig) []byte {
	switch {
	case f.File != "":
		data, err := os.ReadFile(f.File)
		if err != nil {
			t.invalid(path+".file", "cannot read %s: %s", t.src.display(f.File), reason(err))
		}
		return data
	case f.Environment != "" && f.Content == "":
		value, ok := t.project.Environment[f.Environment]
		if !ok {
			t.invalid(path+".environment", "variable %s is not set", f.Environment)
		}
		return []byte(value)
	case f.Environment == "" && f.Content == "":
		if at := t.src.places[path+".content"]; len(at) == 0 {
			t.invalid(path, "nothing says what it holds: give file or environment, or external: true")
		}
	}
	return []byte(f.Content)
}

// dependencies checks what services wait for, and finds those that must complete.
func (t *translation) dependencies() {
	for _, name := range slices.Sorted(maps.Keys(t.project.Services)) {
		for dep, d := range t.project.Services[name].DependsOn {
			path := "services." + name + ".depends_on"
			at := t.src.item(path, dep)
			if _, ok := t.project.Services[dep]; !ok {
				switch other, disabled := t.project.DisabledServices[dep]; {
				case !d.Required:
				case disabled:
					t.note(at, path, fault.Invalid, false, "service %s is not enabled: it needs one of the profiles %v", dep, other.Profiles)
				default:
					t.note(at, path, fault.Invalid, false, "there is no service %s", dep)
				}
				continue
			}
			if d.Condition == types.ServiceConditionCompletedSuccessfully && (t.ends[dep] == "" || name < t.ends[dep]) {
				t.ends[dep] = name
			}
			if d.Restart && len(t.src.places[path+"."+dep+".restart"]) > 0 {
				t.note(at, path, fault.Invalid, true, "restart has no effect yet: a service is not restarted when %s was updated", dep)
			}
		}
	}
	t.checkCircles()
}

// checkCircles finds services that wait for each other.
func (t *translation) checkCircles() {
	done := map[string]bool{}
	var visit func(way []string, name string)
	visit = func(way []string, name string) {
		if i := slices.Index(way, name); i >= 0 {
			t.invalid("services."+name+".depends_on", "services wait for each other in a circle: %s", strings.Join(append(way[i:], name), ", "))
			return
		}
		if done[name] {
			return
		}
		way = append(slices.Clone(way), name)
		for _, dep := range slices.Sorted(maps.Keys(t.project.Services[name].DependsOn)) {
			visit(way, dep)
		}
		done[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(t.project.Services)) {
		visit(nil, name)
	}
}
