package marathon

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/cron"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// job is a job of Metronome in the form that clients get.
type job struct {
	ID          string            `json:"id"`
	Description string            `json:"description,omitempty"`
	Labels      map[string]string `json:"labels"`
	Run         jobRun            `json:"run"`
}

type jobRun struct {
	Cmd            *string              `json:"cmd,omitempty"`
	Args           []string             `json:"args,omitempty"`
	Cpus           *float64             `json:"cpus"`
	Mem            *float64             `json:"mem"`
	Disk           *float64             `json:"disk"`
	Gpus           *int                 `json:"gpus,omitempty"`
	User           string               `json:"user,omitempty"`
	Env            map[string]envValue  `json:"env"`
	Secrets        map[string]secretRef `json:"secrets"`
	Placement      jobPlacement         `json:"placement"`
	Artifacts      []artifact           `json:"artifacts"`
	MaxLaunchDelay *int                 `json:"maxLaunchDelay"`
	Docker         *jobDocker           `json:"docker,omitempty"`
	UCR            *jobUCR              `json:"ucr,omitempty"`
	Volumes        []volume             `json:"volumes"`
	Restart        jobRestart           `json:"restart"`
	Networks       []network            `json:"networks,omitempty"`

	TaskKillGracePeriodSeconds *float64 `json:"taskKillGracePeriodSeconds,omitempty"`
}

type jobPlacement struct {
	Constraints []jobConstraint `json:"constraints"`
}

type jobConstraint struct {
	Attribute string `json:"attribute"`
	Operator  string `json:"operator"`
	Value     string `json:"value,omitempty"`
}

type jobDocker struct {
	Image          string            `json:"image"`
	ForcePullImage bool              `json:"forcePullImage,omitempty"`
	Privileged     bool              `json:"privileged,omitempty"`
	Parameters     []dockerParameter `json:"parameters,omitempty"`
}

type jobUCR struct {
	Image struct {
		ID        string `json:"id"`
		Kind      string `json:"kind,omitempty"`
		ForcePull bool   `json:"forcePull,omitempty"`
	} `json:"image"`
	Privileged bool `json:"privileged,omitempty"`
}

type jobRestart struct {
	Policy                string `json:"policy"`
	ActiveDeadlineSeconds int    `json:"activeDeadlineSeconds,omitempty"`
}

type jobSchedule struct {
	ID                      string `json:"id"`
	Cron                    string `json:"cron"`
	TimeZone                string `json:"timezone"`
	StartingDeadlineSeconds int    `json:"startingDeadlineSeconds"`
	ConcurrencyPolicy       string `json:"concurrencyPolicy"`
	Enabled                 *bool  `json:"enabled"`
	NextRunAt               string `json:"nextRunAt,omitempty"`
}

// jobState is what is kept of a job.
type jobState struct {
	Job       *job           `json:"job"`
	Schedules []*jobSchedule `json:"schedules"`
}

var jobName = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

func (j *job) fillIn() {
	if j.Labels == nil {
		j.Labels = map[string]string{}
	}
	r := &j.Run
	or(&r.Cpus, 1)
	or(&r.Mem, 128)
	or(&r.Disk, 0)
	or(&r.MaxLaunchDelay, 3600)
	if r.Env == nil {
		r.Env = map[string]envValue{}
	}
	if r.Secrets == nil {
		r.Secrets = map[string]secretRef{}
	}
	if r.Placement.Constraints == nil {
		r.Placement.Constraints = []jobConstraint{}
	}
	if r.Artifacts == nil {
		r.Artifacts = []artifact{}
	}
	if r.Volumes == nil {
		r.Volumes = []volume{}
	}
	if r.Restart.Policy == "" {
		r.Restart.Policy = "NEVER"
	}
}

func (j *job) image() string {
	switch {
	case j.Run.Docker != nil:
		return j.Run.Docker.Image
	case j.Run.UCR != nil:
		return j.Run.UCR.Image.ID
	}
	return ""
}

func (j *job) check(p *problems) {
	r := &j.Run
	if !jobName.MatchString(j.ID) || model.CheckName(j.ID) != nil {
		p.add("/id", "must be of lower-case letters, digits, dashes and dots, and no longer than 63 characters")
	}
	if r.Docker != nil && r.UCR != nil {
		p.add("/run", "must have either docker or ucr")
	}
	hasCmd := r.Cmd != nil && *r.Cmd != ""
	if hasCmd && len(r.Args) > 0 || !hasCmd && len(r.Args) == 0 && j.image() == "" {
		p.add("/run", "Cmd, Args, Docker or UCR image must be specified, and not both of cmd and args")
	}
	atLeast(p, "/run/cpus", *r.Cpus, 0.001)
	atLeast(p, "/run/mem", *r.Mem, 0)
	atLeast(p, "/run/disk", *r.Disk, 0)
	atLeast(p, "/run/restart/activeDeadlineSeconds", float64(r.Restart.ActiveDeadlineSeconds), 0)
	oneOf(p, "/run/restart/policy", r.Restart.Policy, "NEVER", "ON_FAILURE")
	checkConstraints(p, "/run/placement/constraints", j.constraints())
	checkFetch(p, "/run/artifacts", r.Artifacts, j.image() != "")
	for name, v := range r.Env {
		if v.Secret != "" {
			p.refuse("/run/env/"+name, "a secret in the environment (mount it: a volume with \"secret\")")
		}
	}
	for i, v := range r.Volumes {
		at := fmt.Sprintf("/run/volumes(%d)", i)
		if v.HostPath == "" && v.Secret == "" {
			p.add(at, "must have one of hostPath and secret")
		}
		if v.Secret != "" && r.Secrets[v.Secret].Source == "" {
			p.add(at+"/secret", "volume.secret must refer to an existing secret")
		}
	}
	if r.Docker != nil {
		for i, param := range r.Docker.Parameters {
			if !knownParameter(param.Key) {
				p.refuse(fmt.Sprintf("/run/docker/parameters(%d)", i), "the parameter "+param.Key)
			}
		}
	}
	if len(r.Networks) > 0 {
		checkNetworks(p, r.Networks)
	}
}

// constraints are those of apps: EQ is IS.
func (j *job) constraints() (out [][]string) {
	for _, c := range j.Run.Placement.Constraints {
		op := c.Operator
		if op == "EQ" {
			op = "IS"
		}
		list := []string{c.Attribute, op}
		if c.Value != "" {
			list = append(list, c.Value)
		}
		out = append(out, list)
	}
	return out
}

func (s *jobSchedule) fillIn() {
	if s.TimeZone == "" {
		s.TimeZone = "UTC"
	}
	if s.StartingDeadlineSeconds == 0 {
		s.StartingDeadlineSeconds = 900
	}
	if s.ConcurrencyPolicy == "" {
		s.ConcurrencyPolicy = "ALLOW"
	}
	or(&s.Enabled, true)
	s.NextRunAt = ""
}

func (s *jobSchedule) check(p *problems, at string) {
	if !segment.MatchString(s.ID) || len(s.ID) > 63 {
		p.add(join(at, "id"), "must be of lower-case letters, digits and dashes")
	}
	if _, err := cron.Parse(s.Cron, s.TimeZone); err != nil {
		p.add(join(at, "cron"), err.Error())
	}
	oneOf(p, join(at, "concurrencyPolicy"), s.ConcurrencyPolicy, "ALLOW", "FORBID")
	atLeast(p, join(at, "startingDeadlineSeconds"), float64(s.StartingDeadlineSeconds), 1)
}

// jobsApplication holds what runs of jobs.
const jobsApplication = "jobs"

// jobWorkload is one run of a job, or with a schedule what starts them.
func jobWorkload(snap *store.Snapshot, j *job, name string, s *jobSchedule) *part {
	r := &j.Run
	w := &model.Workload{Meta: model.Meta{Name: name, Labels: j.Labels}, Type: model.JobWorkload, Count: 1}
	out := &part{workload: w}
	t := &w.Template
	task := model.TaskSpec{Name: taskName, User: r.User, NoHealth: true}
	t.StopGrace = killGrace
	if g := r.TaskKillGracePeriodSeconds; g != nil {
		t.StopGrace = seconds(*g)
	}
	if image := j.image(); image != "" {
		task.Image = image
		if r.Cmd != nil {
			task.Entrypoint, task.Args = []string{"/bin/sh", "-c", *r.Cmd}, []string{}
		} else if len(r.Args) > 0 {
			task.Args = r.Args
		}
		if d := r.Docker; d != nil {
			task.Privileged = d.Privileged
			if d.ForcePullImage {
				out.pull = append(out.pull, image)
			}
			for _, p := range d.Parameters {
				apply(&task, t, p)
			}
		} else if r.UCR.Image.ForcePull {
			out.pull = append(out.pull, image)
		}
	} else {
		task.Driver, task.Artifacts = "process", artifactsOf(r.Artifacts)
		task.Entrypoint, task.Args = commandOf(r.Cmd, r.Args)
	}
	task.Limit.MemoryBytes = int64(*r.Mem * mebibyte)
	task.Reserve = model.Resources{NanoCPUs: int64(*r.Cpus * 1e9), MemoryBytes: task.Limit.MemoryBytes, DiskBytes: int64(*r.Disk * mebibyte)}
	task.Env = append(task.Env, "METRONOME_JOB_ID="+j.ID)
	for _, name := range slices.Sorted(maps.Keys(r.Env)) {
		task.Env = append(task.Env, name+"="+r.Env[name].Value)
	}
	sandbox := "/mnt/mesos/sandbox"
	if task.Driver == "process" {
		sandbox = "{sandbox}"
	}
	task.PlacedEnv = []string{"HOST={node.address}", "MESOS_TASK_ID=" + j.ID + ".{instance.id}", "MESOS_SANDBOX=" + sandbox}
	for _, v := range r.Volumes {
		m := model.Mount{Type: model.MountBind, Source: v.HostPath, Target: v.ContainerPath, ReadOnly: v.Mode == "RO"}
		if v.Secret != "" {
			m.Type, m.Source = model.MountSecret, "/"+strings.TrimPrefix(r.Secrets[v.Secret].Source, "/")
		}
		task.Mounts = append(task.Mounts, m)
	}
	t.HostNetwork = len(r.Networks) == 0 || r.Networks[0].Mode == "host"
	if !t.HostNetwork {
		for _, n := range r.Networks {
			name := n.Name
			if name == "" {
				name = bridgeName
			}
			out.networks = append(out.networks, name)
			t.Networks = append(t.Networks, model.Attachment{Network: "/" + name})
		}
	}
	t.Placement = placement(snap, j.constraints(), nil)
	t.Restart = model.RestartPolicy{Condition: model.RestartNever}
	if r.Restart.Policy == "ON_FAILURE" {
		t.Restart = model.RestartPolicy{Condition: model.RestartOnFailure, Delay: time.Second, MaxDelay: time.Duration(*r.MaxLaunchDelay) * time.Second}
		w.Job.BackoffLimit = math.MaxInt32
		w.Job.Deadline = time.Duration(r.Restart.ActiveDeadlineSeconds) * time.Second
	}
	t.Tasks = []model.TaskSpec{task}
	if s != nil {
		w.Type, w.Suspended = model.CronWorkload, !*s.Enabled
		w.Cron = model.CronPolicy{
			Schedule: s.Cron, TimeZone: s.TimeZone, StartWithin: time.Duration(s.StartingDeadlineSeconds) * time.Second, Overlap: model.OverlapAllow,
			KeepCompleted: keptRuns, KeepFailed: keptRuns,
		}
		if s.ConcurrencyPolicy == "FORBID" {
			w.Cron.Overlap = model.OverlapForbid
		}
	}
	return out
}

// keptRuns is how many ended runs of a job are kept to look at.
const keptRuns = 10
