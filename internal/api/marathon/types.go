package marathon

import "encoding/json"

// app is an app in the form that clients get: with its defaults, and without the forms that earlier
// versions of the API had, which decode turns into it.
type app struct {
	ID                         string               `json:"id"`
	AcceptedResourceRoles      []string             `json:"acceptedResourceRoles,omitempty"`
	Args                       []string             `json:"args,omitempty"`
	BackoffFactor              *float64             `json:"backoffFactor,omitempty"`
	BackoffSeconds             *int                 `json:"backoffSeconds,omitempty"`
	Check                      *check               `json:"check,omitempty"`
	Cmd                        *string              `json:"cmd,omitempty"`
	Constraints                [][]string           `json:"constraints,omitempty"`
	Container                  *container           `json:"container,omitempty"`
	Cpus                       *float64             `json:"cpus,omitempty"`
	Dependencies               []string             `json:"dependencies,omitempty"`
	Disk                       *float64             `json:"disk,omitempty"`
	Env                        map[string]envValue  `json:"env,omitempty"`
	Executor                   *string              `json:"executor,omitempty"`
	ExecutorResources          *resources           `json:"executorResources,omitempty"`
	Fetch                      []artifact           `json:"fetch,omitempty"`
	Gpus                       *int                 `json:"gpus,omitempty"`
	HealthChecks               []healthCheck        `json:"healthChecks,omitempty"`
	Instances                  *int                 `json:"instances,omitempty"`
	KillSelection              string               `json:"killSelection,omitempty"`
	Labels                     map[string]string    `json:"labels"`
	MaxLaunchDelaySeconds      *int                 `json:"maxLaunchDelaySeconds,omitempty"`
	Mem                        *float64             `json:"mem,omitempty"`
	Networks                   []network            `json:"networks,omitempty"`
	PortDefinitions            *[]portDefinition    `json:"portDefinitions,omitempty"`
	ReadinessChecks            []readinessCheck     `json:"readinessChecks,omitempty"`
	RequirePorts               *bool                `json:"requirePorts,omitempty"`
	Residency                  *residency           `json:"residency,omitempty"`
	ResourceLimits             *resourceLimits      `json:"resourceLimits,omitempty"`
	Role                       string               `json:"role,omitempty"`
	Secrets                    map[string]secretRef `json:"secrets,omitempty"`
	TaskKillGracePeriodSeconds *int                 `json:"taskKillGracePeriodSeconds,omitempty"`
	TTY                        *bool                `json:"tty,omitempty"`
	UnreachableStrategy        *unreachable         `json:"unreachableStrategy,omitempty"`
	UpgradeStrategy            *upgradeStrategy     `json:"upgradeStrategy,omitempty"`
	User                       *string              `json:"user,omitempty"`

	Version     string       `json:"version,omitempty"`
	VersionInfo *versionInfo `json:"versionInfo,omitempty"`
}

type versionInfo struct {
	LastScalingAt      string `json:"lastScalingAt"`
	LastConfigChangeAt string `json:"lastConfigChangeAt"`
}

// legacy are the forms of earlier versions of the API that are still accepted.
type legacy struct {
	Ports     *[]int     `json:"ports"`
	URIs      *[]string  `json:"uris"`
	IPAddress *ipAddress `json:"ipAddress"`
}

type ipAddress struct {
	Discovery *struct {
		Ports []struct {
			Number   int               `json:"number"`
			Name     string            `json:"name"`
			Protocol string            `json:"protocol"`
			Labels   map[string]string `json:"labels"`
		} `json:"ports"`
	} `json:"discovery"`
	Groups      []string          `json:"groups"`
	Labels      map[string]string `json:"labels"`
	NetworkName string            `json:"networkName"`
}

// readOnly are fields that answers have and requests may bring back; they say nothing there.
var readOnly = []string{
	"deployments", "lastTaskFailure", "readinessCheckResults", "tasks", "tasksHealthy", "tasksRunning", "tasksStaged", "tasksUnhealthy",
	"taskStats", "tasksStats", "versionInfo", "version",
}

// envValue is a text, or a reference to a secret.
type envValue struct {
	Value  string
	Secret string
}

func (e envValue) MarshalJSON() ([]byte, error) {
	if e.Secret != "" {
		return json.Marshal(map[string]string{"secret": e.Secret})
	}
	return json.Marshal(e.Value)
}

type secretRef struct {
	Source string `json:"source"`
}

type container struct {
	Type         string         `json:"type"`
	Docker       *dockerImage   `json:"docker,omitempty"`
	Volumes      []volume       `json:"volumes"`
	PortMappings *[]portMapping `json:"portMappings,omitempty"`
	LinuxInfo    *struct{}      `json:"linuxInfo,omitempty"`
}

type dockerImage struct {
	Image          string            `json:"image"`
	ForcePullImage bool              `json:"forcePullImage"`
	Privileged     bool              `json:"privileged"`
	Parameters     []dockerParameter `json:"parameters"`
	PullConfig     *struct {
		Secret string `json:"secret"`
	} `json:"pullConfig,omitempty"`

	// Of earlier versions.
	Network      string         `json:"network,omitempty"`
	PortMappings *[]portMapping `json:"portMappings,omitempty"`
	Credential   *struct {
		Principal string `json:"principal"`
		Secret    string `json:"secret"`
	} `json:"credential,omitempty"`
}

type dockerParameter struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

type portMapping struct {
	ContainerPort int               `json:"containerPort"`
	HostPort      *int              `json:"hostPort,omitempty"`
	Labels        map[string]string `json:"labels"`
	Name          string            `json:"name,omitempty"`
	NetworkNames  []string          `json:"networkNames,omitempty"`
	Protocol      string            `json:"protocol"`
	ServicePort   int               `json:"servicePort"`
}

type portDefinition struct {
	Labels   map[string]string `json:"labels"`
	Name     string            `json:"name,omitempty"`
	Port     int               `json:"port"`
	Protocol string            `json:"protocol"`
}

type network struct {
	Mode   string            `json:"mode"`
	Name   string            `json:"name,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
}

type volume struct {
	ContainerPath string            `json:"containerPath"`
	HostPath      string            `json:"hostPath,omitempty"`
	Mode          string            `json:"mode,omitempty"`
	Persistent    *persistentVolume `json:"persistent,omitempty"`
	External      *externalVolume   `json:"external,omitempty"`
	Secret        string            `json:"secret,omitempty"`
}

type persistentVolume struct {
	Type        string     `json:"type,omitempty"`
	Size        int64      `json:"size"`
	MaxSize     int64      `json:"maxSize,omitempty"`
	ProfileName string     `json:"profileName,omitempty"`
	Constraints [][]string `json:"constraints,omitempty"`
}

type externalVolume struct {
	Name     string         `json:"name,omitempty"`
	Provider string         `json:"provider,omitempty"`
	Size     int64          `json:"size,omitempty"`
	Options  map[string]any `json:"options,omitempty"`
	Shared   bool           `json:"shared,omitempty"`
}

type artifact struct {
	URI        string `json:"uri"`
	Extract    bool   `json:"extract"`
	Executable bool   `json:"executable"`
	Cache      bool   `json:"cache"`
	DestPath   string `json:"destPath,omitempty"`
}

type healthCheck struct {
	Protocol               string       `json:"protocol"`
	Command                *commandText `json:"command,omitempty"`
	Path                   *string      `json:"path,omitempty"`
	Port                   *int         `json:"port,omitempty"`
	PortIndex              *int         `json:"portIndex,omitempty"`
	GracePeriodSeconds     int          `json:"gracePeriodSeconds"`
	IntervalSeconds        int          `json:"intervalSeconds"`
	TimeoutSeconds         int          `json:"timeoutSeconds"`
	MaxConsecutiveFailures int          `json:"maxConsecutiveFailures"`
	DelaySeconds           int          `json:"delaySeconds"`
	IgnoreHTTP1xx          *bool        `json:"ignoreHttp1xx,omitempty"`
	IPProtocol             string       `json:"ipProtocol"`
}

type commandText struct {
	Value string `json:"value"`
}

type check struct {
	HTTP            json.RawMessage `json:"http,omitempty"`
	TCP             json.RawMessage `json:"tcp,omitempty"`
	Exec            json.RawMessage `json:"exec,omitempty"`
	IntervalSeconds int             `json:"intervalSeconds,omitempty"`
	TimeoutSeconds  int             `json:"timeoutSeconds,omitempty"`
	DelaySeconds    int             `json:"delaySeconds,omitempty"`
}

type readinessCheck struct {
	Name                    string `json:"name"`
	Protocol                string `json:"protocol"`
	Path                    string `json:"path"`
	PortName                string `json:"portName"`
	IntervalSeconds         int    `json:"intervalSeconds"`
	TimeoutSeconds          int    `json:"timeoutSeconds"`
	HTTPStatusCodesForReady []int  `json:"httpStatusCodesForReady"`
	PreserveLastResponse    bool   `json:"preserveLastResponse"`
}

type residency struct {
	RelaunchEscalationTimeoutSeconds int64  `json:"relaunchEscalationTimeoutSeconds"`
	TaskLostBehavior                 string `json:"taskLostBehavior"`
}

type resources struct {
	Cpus float64 `json:"cpus"`
	Mem  float64 `json:"mem"`
	Disk float64 `json:"disk"`
	Gpus int     `json:"gpus"`
}

// resourceLimits are numbers, or "unlimited".
type resourceLimits struct {
	Cpus any `json:"cpus,omitempty"`
	Mem  any `json:"mem,omitempty"`
}

type upgradeStrategy struct {
	MaximumOverCapacity   *float64 `json:"maximumOverCapacity"`
	MinimumHealthCapacity *float64 `json:"minimumHealthCapacity"`
}

// unreachable is {"inactiveAfterSeconds", "expungeAfterSeconds"}, or the word "disabled".
type unreachable struct {
	Disabled             bool
	InactiveAfterSeconds int64
	ExpungeAfterSeconds  int64
}

type unreachableSeconds struct {
	InactiveAfterSeconds int64 `json:"inactiveAfterSeconds"`
	ExpungeAfterSeconds  int64 `json:"expungeAfterSeconds"`
}

func (u unreachable) MarshalJSON() ([]byte, error) {
	if u.Disabled {
		return json.Marshal("disabled")
	}
	return json.Marshal(unreachableSeconds{u.InactiveAfterSeconds, u.ExpungeAfterSeconds})
}
