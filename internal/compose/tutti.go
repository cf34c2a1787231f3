package compose

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/autoscale"
	"github.com/tutti-run/tutti/internal/cron"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// tuttiKey is the key of a service under which people ask for what Compose has no word for.
const tuttiKey = "x-tutti"

// tuttiRules is the table of its keys.
var tuttiRules = keys{
	"spread":        within(keys{"over": well, "max_skew": well, "min_domains": well}),
	"prefer":        within(keys{"constraint": well, "weight": well}),
	"affinity":      within(affinityRules),
	"anti_affinity": within(affinityRules),
	"max_per":       well,
	"tolerations":   within(keys{"key": well, "value": well, "effect": well}),
	"priority":      well,
	"strategy":      well,
	"gang":          well,
	"class":         well,
	"min_available": well,
	"rebalance":     well,
	"lost_after":    well,
	"maintenance":   within(keys{"at": well, "time_zone": well, "for": well}),
	"autoscale": within(keys{
		"min": well, "max": well, "cpu": well, "memory": well, "requests": well, "down_after": well,
		"prometheus": within(keys{"server": well, "query": well, "target": well}),
		"hours":      within(keys{"at": well, "time_zone": well, "for": well, "min": well, "max": well}),
	}),

	"rollout": within(keys{
		"canary": within(keys{"percent": well, "hold": well, "manual": well}), "blue_green": well, "manual": well, "domains": well,
		"max_surge": well, "max_unavailable": well,
	}),

	"balance": within(keys{"sticky": well, "local": well, "weight": well}),
	"routes": within(keys{
		"host": well, "path": well, "exact": well, "headers": well, "target": well, "protocol": well, "weight": well, "certificate": well,
		"insecure": well, "strip_path": well, "sticky": well, "timeout": well, "wait": well, "retries": well,
		"tls": well, "acme": within(keys{"server": well, "email": well, "authority": well}), "basic_auth": well,
		"redirect": well, "redirect_status": well, "rate_limit": within(keys{"requests": well, "per": well, "burst": well}),
		"max_body": well, "max_requests": well, "proxy_protocol": well, "access_log": well,
	}),

	"allow": within(talkRules), "deny": within(talkRules),

	"parallelism": well, "backoff_limit": well, "deadline": well, "indexed": well,
	"kind": well, "start": well,
	"schedule": well, "time_zone": well, "overlap": well, "start_within": well, "keep_completed": well, "keep_failed": well,

	"hugepages": well,
	"clocks":    within(keys{"monotonic": well, "boottime": well}),

	"process":   well,
	"artifacts": within(artifactRules),
	"umask":     well,
}

var affinityRules = keys{"to": well, "within": well, "weight": well}

// extras are the values of the key. Entries of lists may have a short form, a single text.
type extras struct {
	Spread       []spreadEntry   `json:"spread"`
	Prefer       []preferEntry   `json:"prefer"`
	Affinity     []affinityEntry `json:"affinity"`
	AntiAffinity []affinityEntry `json:"anti_affinity"`
	MaxPer       map[string]int  `json:"max_per"`
	Tolerations  []tolerated     `json:"tolerations"`
	Priority     int             `json:"priority"`
	Strategy     string          `json:"strategy"`
	Gang         bool            `json:"gang"`
	Class        string          `json:"class"`
	MinAvailable int             `json:"min_available"`
	Rebalance    bool            `json:"rebalance"`
	LostAfter    string          `json:"lost_after"`
	Maintenance  []windowEntry   `json:"maintenance"`
	Autoscale    *autoscaleEntry `json:"autoscale"`

	Rollout struct {
		Canary         []canaryEntry `json:"canary"`
		BlueGreen      bool          `json:"blue_green"`
		Manual         bool          `json:"manual"`
		Domains        string        `json:"domains"`
		MaxSurge       int           `json:"max_surge"`
		MaxUnavailable int           `json:"max_unavailable"`
	} `json:"rollout"`

	Balance struct {
		Sticky string `json:"sticky"`
		Local  string `json:"local"`
		Weight *int   `json:"weight"`
	} `json:"balance"`

	Routes []routeEntry `json:"routes"`

	talk

	Parallelism  int    `json:"parallelism"`
	BackoffLimit int    `json:"backoff_limit"`
	Deadline     string `json:"deadline"`
	Indexed      bool   `json:"indexed"`

	Kind  string `json:"kind"`
	Start string `json:"start"`

	Schedule      string `json:"schedule"`
	TimeZone      string `json:"time_zone"`
	Overlap       string `json:"overlap"`
	StartWithin   string `json:"start_within"`
	KeepCompleted int    `json:"keep_completed"`
	KeepFailed    int    `json:"keep_failed"`

	HugePages map[string]any `json:"hugepages"`
	Clocks    *struct {
		Monotonic string `json:"monotonic"`
		Boottime  string `json:"boottime"`
	} `json:"clocks"`

	Process   bool            `json:"process"`
	Artifacts []artifactEntry `json:"artifacts"`
	Umask     string          `json:"umask"`
}

type spreadEntry struct {
	Over       string `json:"over"`
	MaxSkew    int    `json:"max_skew"`
	MinDomains int    `json:"min_domains"`
}

type preferEntry struct {
	Constraint string `json:"constraint"`
	Weight     int    `json:"weight"`
}

type affinityEntry struct {
	To     texts  `json:"to"`
	Within string `json:"within"`
	Weight int    `json:"weight"`
}

type canaryEntry struct {
	Percent int    `json:"percent"`
	Hold    string `json:"hold"`
	Manual  bool   `json:"manual"`
}

type autoscaleEntry struct {
	Min        *int         `json:"min"`
	Max        int          `json:"max"`
	CPU        float64      `json:"cpu"`
	Memory     float64      `json:"memory"`
	Requests   float64      `json:"requests"`
	DownAfter  string       `json:"down_after"`
	Prometheus []queryEntry `json:"prometheus"`
	Hours      []hoursEntry `json:"hours"`
}

type queryEntry struct {
	Server string  `json:"server"`
	Query  string  `json:"query"`
	Target float64 `json:"target"`
}

type hoursEntry struct {
	At       string `json:"at"`
	TimeZone string `json:"time_zone"`
	For      string `json:"for"`
	Min      int    `json:"min"`
	Max      int    `json:"max"`
}

type windowEntry struct {
	At       string `json:"at"`
	TimeZone string `json:"time_zone"`
	For      string `json:"for"`
}

type tolerated struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Effect string `json:"effect"`
}

// texts are one or a list.
type texts []string

func (w *texts) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*w = texts{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(w))
}

// short reads an entry that is a text by itself; false: it is a mapping.
func short(data []byte, to *string) bool { return json.Unmarshal(data, to) == nil }

func (e *spreadEntry) UnmarshalJSON(data []byte) error {
	type plain spreadEntry
	if short(data, &e.Over) {
		return nil
	}
	return json.Unmarshal(data, (*plain)(e))
}

func (e *preferEntry) UnmarshalJSON(data []byte) error {
	type plain preferEntry
	if e.Weight = 1; short(data, &e.Constraint) {
		return nil
	}
	return json.Unmarshal(data, (*plain)(e))
}

func (e *affinityEntry) UnmarshalJSON(data []byte) error {
	type plain affinityEntry
	var one string
	if short(data, &one) {
		e.To = texts{one}
		return nil
	}
	return json.Unmarshal(data, (*plain)(e))
}

func (e *tolerated) UnmarshalJSON(data []byte) error {
	type plain tolerated
	var one string
	if !short(data, &one) {
		return json.Unmarshal(data, (*plain)(e))
	}
	one, e.Effect, _ = strings.Cut(one, ":")
	e.Key, e.Value, _ = strings.Cut(one, "=")
	return nil
}

// kindNames are what people call the types of values.
var kindNames = map[reflect.Kind]string{
	reflect.Int: "a number", reflect.String: "a text", reflect.Bool: "true or false", reflect.Slice: "a list", reflect.Map: "a mapping", reflect.Struct: "a mapping",
}

// readExtras decodes the service's own key; what is wrong with it is noted.
func (o *one) readExtras() (x extras) {
	raw, ok := o.Extensions[tuttiKey]
	if !ok || raw == nil {
		return x
	}
	data, err := json.Marshal(raw)
	if err == nil {
		err = json.NewDecoder(bytes.NewReader(data)).Decode(&x)
	}
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong):
		key := tuttiKey
		if wrong.Field != "" {
			key += "." + wrong.Field
		}
		o.invalid(key, "%s is not what belongs here; %s is", wrong.Value, kindNames[wrong.Type.Kind()])
	case err != nil:
		o.invalid(tuttiKey, "%v", err)
	}
	return x
}

// extraKind makes a cron workload of a service with a schedule, which otherwise is as deploy.mode says.
func (o *one) extraKind(x *extras) {
	if x.Schedule == "" {
		for key, given := range map[string]bool{
			"time_zone": x.TimeZone != "", "overlap": x.Overlap != "", "start_within": x.StartWithin != "",
			"keep_completed": x.KeepCompleted != 0, "keep_failed": x.KeepFailed != 0,
		} {
			if given {
				o.invalid(tuttiKey+"."+key, "it has no effect without a schedule beside it")
			}
		}
		return
	}
	switch {
	case o.w.Type.PerNode():
		o.unsupported(tuttiKey+".schedule", "what runs on every node cannot be scheduled yet; leave deploy.mode out")
	case o.ends[o.Name] != "":
		o.invalid(tuttiKey+".schedule", "%s waits for it to complete, which a schedule never does", o.ends[o.Name])
	}
	o.w.Type = model.CronWorkload
	if _, err := cron.Parse(x.Schedule, x.TimeZone); err != nil {
		o.invalid(tuttiKey+".schedule", "%v", err)
	}
	o.w.Cron = model.CronPolicy{
		Schedule: x.Schedule, TimeZone: x.TimeZone, StartWithin: o.duration("start_within", x.StartWithin),
		Overlap:       choice(o, "overlap", x.Overlap, map[string]model.CronOverlap{"allow": "", "forbid": model.OverlapForbid, "replace": model.OverlapReplace}),
		KeepCompleted: o.count("keep_completed", x.KeepCompleted), KeepFailed: o.count("keep_failed", x.KeepFailed),
	}
}

func (o *one) extraJob(x *extras) {
	o.w.Job = model.JobPolicy{
		Parallelism: o.count("parallelism", x.Parallelism), BackoffLimit: o.count("backoff_limit", x.BackoffLimit), Deadline: o.duration("deadline", x.Deadline),
	}
	o.w.Template.Indexed = x.Indexed
	if o.w.Type.Ends() {
		return
	}
	for key, given := range map[string]bool{"parallelism": x.Parallelism != 0, "backoff_limit": x.BackoffLimit != 0, "deadline": x.Deadline != "", "indexed": x.Indexed} {
		if given {
			o.invalid(tuttiKey+"."+key, "it is for jobs: write deploy.mode: replicated-job or global-job, or give a schedule")
		}
	}
}

// extraRebalance reads whether instances may move; updates has decided the order.
func (o *one) extraRebalance(x *extras) {
	if o.w.Rebalance = x.Rebalance; x.Rebalance && (o.w.Type != model.ServiceWorkload || o.safeOrder() != model.StartFirst || o.w.Update.Order != model.StartFirst) {
		o.invalid(tuttiKey+".rebalance", "only services move whose new instance may start before the old one ends: no shared folder or volume, no port or address of the node, order start-first")
	}
}

// extraPatience reads for how long an instance is waited for whose node is silent, and when instances move.
func (o *one) extraPatience(x *extras) {
	given := map[string]bool{"lost_after": x.LostAfter != "", "maintenance": len(x.Maintenance) > 0}
	for key := range given {
		if given[key] && o.w.Type.Ends() {
			o.invalid(tuttiKey+"."+key, "it is for services; this is of kind %s", o.w.Type)
			return
		}
	}
	switch x.LostAfter {
	case "never":
		o.w.Unreachable.Never = true
	default:
		o.w.Unreachable.ReplaceAfter = o.duration("lost_after", x.LostAfter)
	}
	for _, e := range x.Maintenance {
		w := model.Window{At: e.At, TimeZone: e.TimeZone, For: o.duration("maintenance", e.For)}
		if why := cron.CheckWindow(&w); why != "" {
			o.invalid(tuttiKey+".maintenance", "%s", why)
		}
		o.w.Maintenance = append(o.w.Maintenance, w)
	}
}

// wakeWait is how long a request waits for a service that may have been scaled to zero, unless the route says.
const wakeWait = time.Minute

// extraAutoscale reads between which bounds, and by what, the cluster chooses the count.
func (o *one) extraAutoscale(x *extras) {
	e := x.Autoscale
	if e == nil {
		return
	}
	key := tuttiKey + ".autoscale"
	if o.w.Type != model.ServiceWorkload {
		o.invalid(key, "only services are scaled, and this is of kind %s", o.w.Type)
		return
	}
	a := &model.Autoscale{Min: 1, Max: e.Max, DownAfter: o.duration("autoscale.down_after", e.DownAfter)}
	if e.Min != nil {
		a.Min = *e.Min
	}
	for kind, target := range map[model.ScaleMetricKind]float64{model.ScaleCPU: e.CPU, model.ScaleMemory: e.Memory} {
		if target == 0 {
			continue
		}
		if !autoscale.Measurable(&o.w.Template, kind) {
			o.invalid(key+"."+string(kind), "percent of what? Give the service a limit or a reservation of it below deploy.resources")
		}
		a.Metrics = append(a.Metrics, model.ScaleMetric{Kind: kind, Target: target})
	}
	slices.SortFunc(a.Metrics, func(a, b model.ScaleMetric) int { return strings.Compare(string(a.Kind), string(b.Kind)) })
	if e.Requests != 0 {
		a.Metrics = append(a.Metrics, model.ScaleMetric{Kind: model.ScaleRequests, Target: e.Requests})
		if len(o.svc.Routes) == 0 {
			o.invalid(key+".requests", "requests are counted where hosts lead them to the service: give it routes, below x-tutti")
		}
		for i := range o.svc.Routes { // the request that wakes a service waits for it
			if r := &o.svc.Routes[i]; a.Min == 0 && r.Wait == 0 {
				r.Wait = wakeWait
			}
		}
	}
	for _, q := range e.Prometheus {
		a.Metrics = append(a.Metrics, model.ScaleMetric{Kind: model.ScalePrometheus, Target: q.Target, Server: q.Server, Query: q.Query})
	}
	for _, h := range e.Hours {
		a.Hours = append(a.Hours, model.ScaleHours{At: h.At, TimeZone: h.TimeZone, For: o.duration("autoscale.hours", h.For), Min: h.Min, Max: h.Max})
	}
	if why := autoscale.Check(a); why != "" {
		o.invalid(key, "%s", why)
	}
	o.w.Autoscale = a
	o.w.Count = min(max(o.w.Count, a.Min), max(a.Max, a.Min))
}

// extraBalance reads which instances get connections; networks has attached the service.
func (o *one) extraBalance(x *extras) {
	o.svc.Balance = model.Balancing{
		Sticky: o.duration("balance.sticky", x.Balance.Sticky),
		Local:  choice(o, "balance.local", x.Balance.Local, map[string]model.LocalPolicy{"any": "", "prefer": model.LocalPrefer, "only": model.LocalOnly}),
	}
	weight := x.Balance.Weight
	if weight != nil {
		o.w.Template.Weight = *weight
	}
	if o.svc.Balance == (model.Balancing{}) && weight == nil {
		return
	}
	switch {
	case weight != nil && (*weight < 1 || *weight > model.MostWeight):
		o.invalid(tuttiKey+".balance.weight", "%d is not between 1 and %d; others have %d when nothing is said", *weight, model.MostWeight, model.FullWeight)
	case !o.isService():
		o.invalid(tuttiKey+".balance", "nothing is balanced: it has no network that others could reach it on")
	case o.svc.DNSRoundRobin && len(o.svc.Ports) == 0:
		o.invalid(tuttiKey+".balance", "with deploy.endpoint_mode: dnsrr it is the client that chooses")
	case o.svc.Balance.Sticky > 0 && o.svc.Balance.Sticky < time.Second:
		o.invalid(tuttiKey+".balance.sticky", "%s is less than a second", o.svc.Balance.Sticky)
	}
}

// extraRollout reads how a new revision reaches the instances; updates has read the rest.
func (o *one) extraRollout(x *extras) {
	r, key := &x.Rollout, tuttiKey+".rollout"
	asked := len(r.Canary) > 0 || r.BlueGreen || r.Manual || r.Domains != "" || r.MaxSurge != 0 || r.MaxUnavailable != 0
	switch {
	case !asked:
		return
	case o.w.Type.Ends():
		o.invalid(key, "a job is not updated step by step: it runs again when its definition changed")
	case r.BlueGreen && (len(r.Canary) > 0 || r.Domains != "" || r.MaxSurge != 0 || r.MaxUnavailable != 0):
		o.invalid(key+".blue_green", "it brings up all instances at once: canary, domains, max_surge and max_unavailable have no place beside it")
	case r.BlueGreen && (o.w.Type != model.ServiceWorkload || o.safeOrder() == model.StopFirst):
		o.invalid(key+".blue_green", "two instances at once would be in each other's way: it shares a folder, a volume, a port or an address, or runs on every node")
	case r.Manual && !r.BlueGreen:
		o.invalid(key+".manual", "it belongs to blue_green, or to a step of canary")
	case r.MaxSurge > 0 && o.w.Type.PerNode():
		o.invalid(key+".max_surge", "a global service stops the old instance of a node first")
	}
	o.w.Plan = model.RolloutPlan{BlueGreen: r.BlueGreen, Manual: r.Manual}
	last := 0
	for _, s := range r.Canary {
		if s.Percent <= last || s.Percent > 99 {
			o.invalid(key+".canary", "%d percent: steps rise from 1 to 99", s.Percent)
		}
		last = s.Percent
		o.w.Plan.Canary = append(o.w.Plan.Canary, model.CanaryStep{Percent: s.Percent, Hold: o.duration("rollout.canary", s.Hold), Manual: s.Manual})
	}
	if r.Domains != "" && o.nodeKey(key+".domains", r.Domains) {
		o.w.Plan.Domains = r.Domains
	}
	o.w.Update.MaxSurge, o.w.Update.MaxUnavailable = o.count("rollout.max_surge", r.MaxSurge), o.count("rollout.max_unavailable", r.MaxUnavailable)
}

func (o *one) count(key string, n int) int {
	if n < 0 {
		o.invalid(tuttiKey+"."+key, "%d is negative", n)
	}
	return n
}

func (o *one) duration(key, text string) time.Duration {
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		o.invalid(tuttiKey+"."+key, "%q is not a duration such as 90s, 10m or 1h30m", text)
	}
	return d
}

func (o *one) extraPlacement(x *extras) {
	p := &o.w.Template.Placement
	at := func(key, format string, args ...any) { o.invalid(tuttiKey+"."+key, format, args...) }
	for _, s := range x.Spread {
		if !o.nodeKey(tuttiKey+".spread", s.Over) {
			continue
		}
		switch {
		case s.MaxSkew < 0 || s.MinDomains < 0:
			at("spread", "%s: max_skew and min_domains count from 1", s.Over)
		case s.MaxSkew > 0:
			p.Skew = append(p.Skew, model.Skew{Key: s.Over, Max: s.MaxSkew, MinDomains: s.MinDomains})
		case s.MinDomains > 0:
			at("spread", "%s: min_domains needs max_skew beside it", s.Over)
		default:
			p.Spread = append(p.Spread, s.Over)
		}
	}
	for _, e := range x.Prefer {
		c, ok := o.constraint(tuttiKey+".prefer", e.Constraint)
		if ok && (e.Weight == 0 || e.Weight < -100 || e.Weight > 100) {
			at("prefer", "%q: weight %d is not between 1 and 100, or -100 and -1", e.Constraint, e.Weight)
		}
		if ok {
			p.Prefer = append(p.Prefer, model.Preference{Constraint: c, Weight: e.Weight})
		}
	}
	p.Near = o.affinities("affinity", x.Affinity)
	p.Apart = o.affinities("anti_affinity", x.AntiAffinity)
	for _, key := range slices.Sorted(maps.Keys(x.MaxPer)) {
		if n := x.MaxPer[key]; n < 1 {
			at("max_per", "%s: %d is not a number from 1", key, n)
		} else if o.nodeKey(tuttiKey+".max_per", key) {
			p.MaxPer = append(p.MaxPer, model.MaxPer{Key: key, Max: n})
		}
	}
	for _, t := range x.Tolerations {
		switch t.Effect {
		case "", "noSchedule", "preferNoSchedule", "noExecute":
			p.Tolerations = append(p.Tolerations, model.Toleration(t))
		default:
			at("tolerations", "effect %q is none of noSchedule, preferNoSchedule and noExecute", t.Effect)
		}
	}
	p.Priority, p.Gang = x.Priority, x.Gang
	p.Strategy = choice(o, "strategy", x.Strategy, map[string]model.Strategy{"spread": "", "bin-pack": model.BinPack, "balance": model.Balance})
	p.Class = choice(o, "class", x.Class, map[string]model.ResourceClass{"guaranteed": "", "burstable": model.Burstable, "best-effort": model.BestEffort})
	o.w.MinAvailable = o.count("min_available", x.MinAvailable)
	if x.Gang && o.w.Type == model.GlobalWorkload {
		at("gang", "a global service has no gang: each node runs its own instance")
	}
}

// affinities reads affinity or anti_affinity. A service is one of this file, or APPLICATION/SERVICE.
func (o *one) affinities(key string, list []affinityEntry) (out []model.Affinity) {
	at := func(format string, args ...any) { o.invalid(tuttiKey+"."+key, format, args...) }
	for _, e := range list {
		if e.Within != "" && !o.nodeKey(tuttiKey+"."+key, e.Within) {
			continue
		}
		if e.Weight < 0 || e.Weight > 100 {
			at("weight %d is not between 1 and 100; without it, it must hold", e.Weight)
		}
		for _, to := range e.To {
			if _, known := o.project.Services[to]; !known && !strings.Contains(to, "/") {
				o.at(fault.Invalid, tuttiKey+"."+key, []string{to}, "there is no service %s; one of another application is written APPLICATION/%s", to, to)
			}
		}
		if slices.Equal(e.To, texts{o.Name}) {
			e.To = nil // to its own instances
		}
		out = append(out, model.Affinity{Workloads: e.To, Key: e.Within, Weight: e.Weight})
	}
	return out
}

// choice turns a word into what it stands for; "" is the first of all.
func choice[T ~string](o *one, key, word string, meanings map[string]T) T {
	v, ok := meanings[word]
	if word != "" && !ok {
		o.invalid(tuttiKey+"."+key, "%q is none of %s", word, listed(slices.Sorted(maps.Keys(meanings))))
	}
	return v
}

func listed(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return fmt.Sprintf("%s and %s", strings.Join(words[:len(words)-1], ", "), words[len(words)-1])
}
