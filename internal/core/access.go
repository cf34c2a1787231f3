package core

import (
	"fmt"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// Caller is who asks, through which API, and what they may do. Without grants that is nothing.
type Caller struct {
	Name string `json:"name"`
	Via  string `json:"via"`
	From string `json:"from,omitempty"` // address, or how else they came
	// Namespace is where what they name is meant to be; empty is the default one.
	Namespace string        `json:"namespace,omitempty"`
	Grants    []model.Grant `json:"-"`
}

// Local is who has the host itself, and so the whole cluster.
func Local(name, via string) Caller {
	return Caller{Name: name, Via: via, From: "local", Grants: []model.Grant{{Role: model.RoleAdmin}}}
}

// WholeCluster reports whether the caller may do everything everywhere.
func (w Caller) WholeCluster() bool { return w.has(model.RoleAdmin, "") }

func (w Caller) namespace() string { return namespaceOr(w.Namespace) }

// has reports whether the caller has the role in a namespace; in the whole cluster when that is empty.
func (w Caller) has(role model.Role, namespace string) bool {
	return slices.ContainsFunc(w.Grants, func(g model.Grant) bool {
		return g.Role.Includes(role) && (g.Namespace == "" || g.Namespace == namespace)
	})
}

// May reports whether the caller has a role in a namespace, or in the whole cluster when that is empty.
func (w Caller) May(role model.Role, namespace string) bool { return w.has(role, namespace) }

// requirement is what a use case asks of who calls it.
type requirement struct {
	role model.Role
	// cluster: in the whole cluster; otherwise in the namespace of what is looked at or changed.
	cluster bool
	// silent use cases change nothing and are not in the audit log.
	silent bool
}

// requirements is the one table of who may do what: every use case begins by asking it.
var requirements = map[string]requirement{
	"look": {role: model.RoleViewer, silent: true}, // lists, find, explain, status, events
	"logs": {role: model.RoleViewer, silent: true},

	"deploy":   {role: model.RoleOperator},
	"scale":    {role: model.RoleOperator},
	"restart":  {role: model.RoleOperator},
	"rollback": {role: model.RoleOperator},
	"remove":   {role: model.RoleOperator},
	"exec":     {role: model.RoleOperator},

	"start":           {role: model.RoleOperator},
	"lay out":         {role: model.RoleOperator},
	"end":             {role: model.RoleOperator},
	"stop":            {role: model.RoleOperator},
	"pause":           {role: model.RoleOperator},
	"bound":           {role: model.RoleOperator},
	"suspend":         {role: model.RoleOperator},
	"rename":          {role: model.RoleOperator},
	"signal":          {role: model.RoleOperator},
	"attach":          {role: model.RoleOperator},
	"dial":            {role: model.RoleOperator},
	"net trace":       {role: model.RoleOperator}, // it connects
	"read files":      {role: model.RoleOperator}, // secrets included
	"write files":     {role: model.RoleOperator},
	"rollout pause":   {role: model.RoleOperator},
	"rollout resume":  {role: model.RoleOperator},
	"rollout promote": {role: model.RoleOperator},
	"volume remove":   {role: model.RoleOperator},
	"volume backup":   {role: model.RoleOperator},
	"volume restore":  {role: model.RoleOperator},
	"network remove":  {role: model.RoleOperator},
	"file remove":     {role: model.RoleOperator},
	"file labels":     {role: model.RoleOperator},
	"workload labels": {role: model.RoleOperator},
	// What is told over and over of what another platform keeps; what people do to that is in its own log.
	"follow": {role: model.RoleAdmin, cluster: true, silent: true},
	// What other components keep, which may be anything, secrets as well.
	"keys read": {role: model.RoleKeys, cluster: true, silent: true},
	keysChange:  {role: model.RoleKeys, cluster: true},
	// With it what a component has sealed can be read.
	"component key": {role: model.RoleAdmin, cluster: true, silent: true},

	"node debug":        {role: model.RoleViewer, cluster: true},
	"node availability": {role: model.RoleOperator, cluster: true},
	"node labels":       {role: model.RoleOperator, cluster: true},
	"node taints":       {role: model.RoleOperator, cluster: true},
	"node overcommit":   {role: model.RoleOperator, cluster: true},
	"node reserve":      {role: model.RoleOperator, cluster: true},
	"node resources":    {role: model.RoleOperator, cluster: true},
	"image import":      {role: model.RoleOperator, cluster: true},
	"image push":        {role: model.RoleOperator, cluster: true},
	"image remove":      {role: model.RoleOperator, cluster: true},
	"image resolve":     {role: model.RoleOperator, silent: true}, // with logins of the cluster
	"registry list":     {role: model.RoleViewer, cluster: true, silent: true},
	"registry set":      {role: model.RoleAdmin, cluster: true},
	"registry login":    {role: model.RoleAdmin, cluster: true},
	"registry logout":   {role: model.RoleAdmin, cluster: true},
	"image policy":      {role: model.RoleAdmin, cluster: true},

	"host demand": {role: model.RoleViewer, cluster: true, silent: true},
	"host tell":   {role: model.RoleOperator, cluster: true},

	// It gives the whole cluster away.
	"node trust":     {role: model.RoleAdmin, cluster: true},
	"node remove":    {role: model.RoleAdmin, cluster: true},
	"server promote": {role: model.RoleAdmin, cluster: true},
	"server demote":  {role: model.RoleAdmin, cluster: true},
	"server remove":  {role: model.RoleAdmin, cluster: true},
	"backup":         {role: model.RoleAdmin, cluster: true}, // with the cluster's keys
	"namespace set":  {role: model.RoleAdmin, cluster: true},
	"token show":     {role: model.RoleAdmin, cluster: true},
	"token rotate":   {role: model.RoleAdmin, cluster: true},
	"ca show":        {role: model.RoleViewer, cluster: true, silent: true},
	"ca rotate":      {role: model.RoleAdmin, cluster: true},
	"ca drop":        {role: model.RoleAdmin, cluster: true},
	"autolock":       {role: model.RoleAdmin, cluster: true},
	"unlock key":     {role: model.RoleAdmin, cluster: true},
	"unlock":         {role: model.RoleAdmin, cluster: true},
	"user list":      {role: model.RoleAdmin, cluster: true, silent: true},
	"user create":    {role: model.RoleAdmin, cluster: true},
	"user grant":     {role: model.RoleAdmin, cluster: true},
	"user remove":    {role: model.RoleAdmin, cluster: true},
	"user token":     {role: model.RoleAdmin, cluster: true},
	"user cert":      {role: model.RoleAdmin, cluster: true},
	"user revoke":    {role: model.RoleAdmin, cluster: true},
	"audit":          {role: model.RoleAdmin, cluster: true, silent: true},
}

// act is one use case under way.
type act struct {
	core *Core
	who  Caller
	name string
	what string
	need requirement
}

// begin authorises a use case as far as that is possible before it is known what it is about: the
// caller has the role in the whole cluster, or in some namespace where that can be enough. What is
// refused is in the audit log as well. The end must be deferred.
func (c *Core) begin(who Caller, name, what string) (*act, error) {
	need, ok := requirements[name]
	if !ok {
		return nil, fmt.Errorf("use case %q has no requirement", name)
	}
	a := &act{core: c, who: who, name: name, what: what, need: need}
	allowed := who.has(need.role, "")
	if !need.cluster {
		allowed = allowed || slices.ContainsFunc(who.Grants, func(g model.Grant) bool { return g.Role.Includes(need.role) })
	}
	if !allowed {
		err := a.refusal("")
		a.end(&err)
		return nil, err
	}
	return a, nil
}

func (a *act) refusal(namespace string) error {
	where := "the whole cluster"
	if namespace != "" {
		where = "namespace " + namespace
	} else if !a.need.cluster {
		where = "any namespace"
	}
	return fault.New(fault.Forbidden, "%s may not do this: %s needs the role %s in %s", a.who.Name, a.name, a.need.role, where)
}

// in says whether the use case may be about what is in a namespace.
func (a *act) in(namespace string) error {
	if a.who.has(a.need.role, namespace) {
		return nil
	}
	return a.refusal(namespace)
}

// about is in for what a reference was found to mean. What is of no namespace, like a node, anybody
// who may look at all may look at.
func (a *act) about(f Found) error {
	switch {
	case f.Application != nil:
		return a.in(f.Application.Namespace)
	case f.Workload != nil:
		return a.in(f.Workload.Namespace)
	case f.Instance != nil:
		return a.in(f.Instance.Namespace)
	}
	return nil
}

// end writes a use case that may have changed something into the audit log, with how it ended.
func (a *act) end(err *error) {
	if a.need.silent || a.core.Audit == nil {
		return
	}
	e := AuditEntry{
		Time: time.Now().UTC(), User: a.who.Name, From: a.who.From, Via: a.who.Via, UseCase: a.name, What: a.what,
		Namespace: a.who.Namespace, Result: "done",
	}
	if *err != nil {
		e.Result, e.Error = fault.KindOf(*err).String(), clip((*err).Error(), 300)
	}
	a.core.Audit.Record(e)
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}

// sees reports whether the caller may see an object. What is of no namespace is seen by all who may see
// anything, but for the cluster's own settings and its users.
func (w Caller) sees(o model.Object) bool {
	switch o.Kind() {
	case model.KindCluster, model.KindUser:
		return w.has(model.RoleAdmin, "")
	}
	ns := o.GetMeta().Namespace
	return ns == "" || w.has(model.RoleViewer, ns)
}

// look returns what the caller may see of the present state.
func (c *Core) look(who Caller) *store.Snapshot {
	snap := c.Store.Snapshot()
	if who.has(model.RoleAdmin, "") {
		return snap
	}
	return snap.Only(who.sees)
}

// hostReach refuses a deployment that would reach out of its containers, to the node itself, to who has a
// role in namespaces only: there is no telling namespaces apart on the node.
func hostReach(who Caller, d *Deployment) error {
	if who.has(model.RoleOperator, "") {
		return nil
	}
	for _, v := range d.Volumes {
		if v.Mounts() {
			return fault.New(fault.Forbidden, "volume %s mounts something of its node: that needs the role %s in the whole cluster", v.Name, model.RoleOperator)
		}
	}
	for _, w := range d.Workloads {
		if why := reachesHost(&w.Template); why != "" {
			return fault.New(fault.Forbidden, "workload %s has %s: that needs the role %s in the whole cluster", w.Name, why, model.RoleOperator)
		}
	}
	return nil
}

func reachesHost(t *model.Template) string {
	switch {
	case t.HostNetwork:
		return "the node's network"
	case len(t.Sysctls) > 0:
		return "kernel settings"
	case t.HostPIDs:
		return "the node's processes"
	case t.HostIPC:
		return "the node's shared memory"
	case t.Shared().HostNames:
		return "the node's host name"
	case t.Shared().HostCgroups:
		return "the node's cgroups"
	}
	for _, task := range slices.Concat(t.InitTasks, t.Tasks) {
		switch {
		case task.Driver == "process":
			return "a process of the node, outside of any container"
		case task.Privileged:
			return "all privileges"
		case len(task.CapAdd) > 0:
			return "further capabilities"
		case len(task.Devices) > 0:
			return "devices of the node"
		case len(task.SecurityOpts) > 0:
			return "security options"
		case task.Tuning != nil && (len(task.Tuning.DeviceRules) > 0 || task.Tuning.Paths != nil || task.Tuning.NoOOMKill):
			return "rights that containers do not have"
		case slices.ContainsFunc(task.Mounts, func(m model.Mount) bool { return m.Type == model.MountBind }):
			return "a folder of the node"
		}
	}
	return ""
}
