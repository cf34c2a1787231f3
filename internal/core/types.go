package core

import (
	"context"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
)

// Deployment is a whole application as desired. Its members refer to each other by name:
// Attachment.Network, Mount.Source of volumes, secrets and configs, Service.WorkloadID,
// Service.Networks and the keys of Service.Aliases hold "x" for this application's x and "/x"
// for an object outside any application; an ID stands for itself. Deploy turns names into IDs.
// With KeepOthers, Application may be empty: the members then belong to none.
type Deployment struct {
	Namespace   string            `json:"namespace,omitempty"`
	Application string            `json:"application"`
	Source      string            `json:"source,omitempty"`
	Workloads   []*model.Workload `json:"workloads,omitempty"`
	Services    []*model.Service  `json:"services,omitempty"`
	Networks    []*model.Network  `json:"networks,omitempty"`
	Volumes     []*model.Volume   `json:"volumes,omitempty"`
	Secrets     []SecretData      `json:"secrets,omitempty"`
	Configs     []*model.Config   `json:"configs,omitempty"`
	// Policies name networks as the other members do.
	Policies []*model.Policy `json:"policies,omitempty"`
	// Pulls say, by references of images as tasks have them, when a registry is asked what they mean now.
	Pulls map[string]PullPolicy `json:"pulls,omitempty"`
	// Logins are who asks registries for the images of workloads, by their names; they are kept with
	// them, encrypted. A workload that is not named keeps what it has.
	Logins map[string]image.Credentials `json:"logins,omitempty"`
	// KeepOthers leaves members that the application has and the deployment lacks.
	KeepOthers bool `json:"keepOthers,omitempty"`
	// Members adds to an application whose members come and go one by one: its version counts none
	// of it. It goes with KeepOthers.
	Members bool `json:"members,omitempty"`
	// NodesMayCome takes workloads that no node could run as of now, which wait. Others are refused.
	NodesMayCome bool `json:"nodesMayCome,omitempty"`
	// DryRun checks everything and changes nothing.
	DryRun bool `json:"dryRun,omitempty"`
}

// PullPolicy says when a registry is asked what the name of an image means. Whatever it means then is pinned
// in the revision.
type PullPolicy string

// The policies.
const (
	PullMissing PullPolicy = ""       // when the cluster has no image of that name
	PullAlways  PullPolicy = "always" // at every deployment
	PullNever   PullPolicy = "never"
	// PullNewest asks when the image came from a registry; when that does not answer, what is there is meant.
	PullNewest PullPolicy = "newest"
)

// Manifests are files of a language that a server reads, such as Marathon's; they become true together.
type Manifests struct {
	Files []Manifest `json:"files"`
	// KeepOthers and DryRun are as in Deployment.
	KeepOthers bool `json:"keepOthers,omitempty"`
	DryRun     bool `json:"dryRun,omitempty"`
}

// Manifest is a file, and what it is called in what is said of it.
type Manifest struct {
	Name string `json:"name"`
	Body []byte `json:"body"`
}

// ReadManifests makes what manifests say true, as Core.Deploy does of a deployment.
type ReadManifests func(ctx context.Context, who Caller, m Manifests) ([]DeployResult, error)

// Batch is what becomes true together: several applications, or parts of them.
type Batch struct {
	// Deployments may refer to what one of them, that is for no application, has outside any.
	Deployments []Deployment
	// Remove are workloads, by ID, that go, with the services that lead to them.
	Remove []string
	// Keys are what the adapter keeps of its own.
	Keys KeyChanges
}

// SecretData is a secret on its way in: the only form in which its content is readable.
type SecretData struct {
	model.Meta
	Data      []byte `json:"data"`
	Templated bool   `json:"templated,omitempty"`
	// For is the ID of the only workload whose tasks have folders of it, unless any may.
	For string `json:"for,omitempty"`
}

// DeployResult tells what a deployment changed.
type DeployResult struct {
	Application string   `json:"application"`
	Changes     []Change `json:"changes"`
	Warnings    []string `json:"warnings,omitempty"`
}

// Change is what became of one object.
type Change struct {
	Action string     `json:"action"` // created, updated, unchanged, removed
	Kind   model.Kind `json:"kind"`
	Name   string     `json:"name"`
	// Revision is that which a workload is to run from then on.
	Revision string `json:"revision,omitempty"`
}

// Found is what a reference means; exactly one field is set.
type Found struct {
	Application *model.Application `json:"application,omitempty"`
	Workload    *model.Workload    `json:"workload,omitempty"`
	Instance    *model.Instance    `json:"instance,omitempty"`
	Node        *model.Node        `json:"node,omitempty"`
}

// LogLine is a log entry and where it comes from.
type LogLine struct {
	Instance string `json:"instance"` // ID
	Name     string `json:"name"`     // "shop/web.1"
	Node     string `json:"node"`     // name
	Task     string `json:"task"`
	driver.LogEntry
}

// Explanation says why something is as it is.
type Explanation struct {
	Subject string   `json:"subject"`
	State   string   `json:"state"`
	Lines   []string `json:"lines,omitempty"`
	Advice  []string `json:"advice,omitempty"`
}

// ClusterStatus is the cluster on one screen.
type ClusterStatus struct {
	Healthy      bool      `json:"healthy"`
	Leader       string    `json:"leader"` // node name; empty: none
	Nodes        int       `json:"nodes"`
	NodesReady   int       `json:"nodesReady"`
	Servers      int       `json:"servers"`
	ServersReady int       `json:"serversReady"`
	Applications int       `json:"applications"`
	Workloads    int       `json:"workloads"`
	Instances    int       `json:"instances"` // wanted
	Running      int       `json:"running"`
	Ready        int       `json:"ready"`
	Pending      int       `json:"pending"`
	Revision     uint64    `json:"revision"`
	Problems     []Problem `json:"problems,omitempty"`
}

// Problem is something wrong and what to do about it.
type Problem struct {
	What   string `json:"what"`
	Advice string `json:"advice"`
}
