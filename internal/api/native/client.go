package native

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// Client calls the API at a socket. It is safe for concurrent use. Its errors carry the kinds of
// the server's, and fault.Unavailable when the server cannot be reached.
type Client struct {
	socket       string // or, over the network, the address
	scheme, host string
	token        string
	namespace    string
	transport    *http.Transport
	stale        *atomic.Pointer[string]
	// consistency is asked for with every read, if set.
	consistency string
}

// Hasty returns a client like this one whose reads are answered at once from what the server has, as
// old as that may be.
func (c *Client) Hasty() *Client {
	out := *c
	out.consistency = "stale"
	return &out
}

// Linearizable returns a client like this one whose reads show all that was acknowledged anywhere
// before, or fail.
func (c *Client) Linearizable() *Client {
	out := *c
	out.consistency = "linearizable"
	return &out
}

// Stale says why an answer so far may be out of date, "" when none may be.
func (c *Client) Stale() string {
	if s := c.stale.Load(); s != nil {
		return *s
	}
	return ""
}

// Dial returns a client for the socket. It does not connect yet; see Ping.
func Dial(socketPath string) *Client {
	c := newClient(socketPath)
	c.scheme, c.host = "http", "tutti"
	c.transport.Protocols.SetUnencryptedHTTP2(true)
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	c.transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "unix", socketPath)
	}
	return c
}

func newClient(at string) *Client {
	return &Client{socket: at, stale: new(atomic.Pointer[string]), transport: &http.Transport{
		Protocols:          new(http.Protocols),
		DisableCompression: true,
		DialContext:        (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		HTTP2:              &http.HTTP2Config{MaxReceiveBufferPerConnection: 16 << 20, MaxReceiveBufferPerStream: 4 << 20},
	}}
}

// In makes the client mean names to be in a namespace; empty is the default one.
func (c *Client) In(namespace string) { c.namespace = namespace }

func errHost(given string) error {
	return fault.New(fault.Invalid, "host %q: https://ADDRESS:PORT is accepted", given)
}

// Socket is the path, or the address, that the client was made for.
func (c *Client) Socket() string { return c.socket }

// Close gives up idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// do sends a request and returns an answer that succeeded; its body is to be closed.
func (c *Client) do(ctx context.Context, method, path string, q url.Values, body io.Reader, media string) (*http.Response, error) {
	if c.consistency != "" && method == http.MethodGet {
		q = maps.Clone(q)
		if q == nil {
			q = url.Values{}
		}
		q.Set("consistency", c.consistency)
	}
	u := url.URL{Scheme: c.scheme, Host: c.host, Path: path, RawQuery: q.Encode()}
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fault.New(fault.Invalid, "call %s: %w", path, err)
	}
	if media != "" {
		r.Header.Set("Content-Type", media)
	}
	if path == pathInstances { // the longest of all lists
		r.Header.Set("Accept", wire.MediaCBOR)
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	if c.namespace != "" {
		r.Header.Set(headerNamespace, c.namespace)
	}
	resp, err := c.transport.RoundTrip(r)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fault.New(fault.Unavailable, "reach %s: %w", c.socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, responseError(resp)
	}
	if why := resp.Header.Get(HeaderStale); why != "" && path != pathPing {
		c.stale.Store(&why)
	}
	return resp, nil
}

func (c *Client) value(ctx context.Context, method, path string, q url.Values, body io.Reader, media string, out any) error {
	resp, err := c.do(ctx, method, path, q, body, media)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") == wire.MediaCBOR {
		var data []byte
		if data, err = io.ReadAll(resp.Body); err == nil {
			err = wire.Unmarshal(data, out)
		}
	} else {
		err = json.NewDecoder(resp.Body).Decode(out)
	}
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fault.New(fault.Unavailable, "read the answer of %s: %w", path, err)
	}
	return nil
}

func get[T any](ctx context.Context, c *Client, path string, q url.Values) (T, error) {
	var out T
	err := c.value(ctx, http.MethodGet, path, q, nil, "", &out)
	return out, err
}

func post[T any](ctx context.Context, c *Client, path string, req any) (T, error) {
	var out T
	body, err := json.Marshal(req)
	if err != nil {
		return out, fault.New(fault.Invalid, "encode the request of %s: %w", path, err)
	}
	err = c.value(ctx, http.MethodPost, path, nil, bytes.NewReader(body), mediaJSON, &out)
	return out, err
}

func postDone(ctx context.Context, c *Client, path string, req any) error {
	_, err := post[done](ctx, c, path, req)
	return err
}

// Ping says who answers, and whether that server knows of a leader.
func (c *Client) Ping(ctx context.Context) (Ping, error) { return get[Ping](ctx, c, pathPing, nil) }

// Status sums the cluster up.
func (c *Client) Status(ctx context.Context) (core.ClusterStatus, error) {
	return get[core.ClusterStatus](ctx, c, pathStatus, nil)
}

// Deploy makes or changes an application; see core.Core.Deploy.
func (c *Client) Deploy(ctx context.Context, d core.Deployment) (core.DeployResult, error) {
	return post[core.DeployResult](ctx, c, pathDeploy, d)
}

// DeployManifests makes what files of a language say true; see core.ReadManifests.
func (c *Client) DeployManifests(ctx context.Context, language string, m core.Manifests) ([]core.DeployResult, error) {
	return post[[]core.DeployResult](ctx, c, strings.Replace(pathManifests, "{language}", language, 1), m)
}

// Applications lists all.
func (c *Client) Applications(ctx context.Context) ([]ApplicationView, error) {
	return get[[]ApplicationView](ctx, c, pathApplications, nil)
}

// Workloads lists those of an application, or all when it is empty.
func (c *Client) Workloads(ctx context.Context, application string) ([]WorkloadView, error) {
	return get[[]WorkloadView](ctx, c, pathWorkloads, url.Values{"application": {application}})
}

// Instances lists those chosen.
func (c *Client) Instances(ctx context.Context, choice InstanceChoice) ([]InstanceView, error) {
	return get[[]InstanceView](ctx, c, pathInstances, url.Values{
		"ref": {choice.Ref}, "application": {choice.Application}, "ended": {strconv.FormatBool(choice.Ended)},
	})
}

// Nodes lists all.
func (c *Client) Nodes(ctx context.Context) ([]NodeView, error) {
	return get[[]NodeView](ctx, c, pathNodes, nil)
}

// Services lists all.
func (c *Client) Services(ctx context.Context) ([]model.Service, error) {
	return get[[]model.Service](ctx, c, pathServices, nil)
}

// Networks lists all.
func (c *Client) Networks(ctx context.Context) ([]model.Network, error) {
	return get[[]model.Network](ctx, c, pathNetworks, nil)
}

// Volumes lists all.
func (c *Client) Volumes(ctx context.Context) ([]model.Volume, error) {
	return get[[]model.Volume](ctx, c, pathVolumes, nil)
}

// Images lists what the cluster keeps.
func (c *Client) Images(ctx context.Context) ([]ImageView, error) {
	return get[[]ImageView](ctx, c, pathImages, nil)
}

// Find says what a reference means; see core.Core.Find.
func (c *Client) Find(ctx context.Context, ref string) (core.Found, error) {
	return get[core.Found](ctx, c, pathFind, url.Values{"ref": {ref}})
}

// Explain says why something is as it is.
func (c *Client) Explain(ctx context.Context, ref string) (core.Explanation, error) {
	return get[core.Explanation](ctx, c, pathExplain, url.Values{"ref": {ref}})
}

// Reach says whether and how one end reaches another.
func (c *Client) Reach(ctx context.Context, q core.ReachQuestion) (core.ReachAnswer, error) {
	return post[core.ReachAnswer](ctx, c, pathReach, q)
}

// NetMap says who talks to whom.
func (c *Client) NetMap(ctx context.Context, q core.NetMapQuestion) (core.NetMap, error) {
	v := url.Values{}
	if q.Ref != "" {
		v.Set("ref", q.Ref)
	}
	if q.For > 0 {
		v.Set("for", q.For.String())
	}
	if q.Instances {
		v.Set("instances", "true")
	}
	return get[core.NetMap](ctx, c, pathNetMap, v)
}

// NetCounts says what came to services so far.
func (c *Client) NetCounts(ctx context.Context, ref string) (core.NetCounts, error) {
	v := url.Values{}
	if ref != "" {
		v.Set("ref", ref)
	}
	return get[core.NetCounts](ctx, c, pathNetCounts, v)
}

// Policies lists all.
func (c *Client) Policies(ctx context.Context) ([]model.Policy, error) {
	return get[[]model.Policy](ctx, c, pathPolicies, nil)
}

// Token returns the token with which a host joins, as a server or as an agent only.
func (c *Client) Token(ctx context.Context, server bool) (string, error) {
	t, err := get[Token](ctx, c, pathToken, url.Values{"server": {strconv.FormatBool(server)}})
	return t.Token, err
}

// Scale sets the count of a workload.
func (c *Client) Scale(ctx context.Context, ref string, count int) error {
	return postDone(ctx, c, pathScale, Scale{Ref: ref, Count: count})
}

// Restart replaces all instances of a workload as its update policy says.
func (c *Client) Restart(ctx context.Context, ref string) error {
	return postDone(ctx, c, pathRestart, Ref{ref})
}

// Rollback returns a workload to the revision before the present one.
func (c *Client) Rollback(ctx context.Context, ref string) error {
	return postDone(ctx, c, pathRollback, Ref{ref})
}

// Remove removes an application or a workload. With volumes it returns once instances and data
// are gone; otherwise when it is decided.
func (c *Client) Remove(ctx context.Context, ref string, volumes bool) error {
	return postDone(ctx, c, pathRemove, Remove{Ref: ref, Volumes: volumes})
}

// SetAvailability makes a node take work, take no new work, or give up what it has.
func (c *Client) SetAvailability(ctx context.Context, node string, a model.Availability) error {
	return postDone(ctx, c, pathAvailability, Availability{Ref: node, Availability: a})
}

// LabelNode sets and removes labels of a node.
func (c *Client) LabelNode(ctx context.Context, node string, set map[string]string, remove []string) error {
	return postDone(ctx, c, pathLabels, Labels{Ref: node, Set: set, Remove: remove})
}

// RemoveNode forgets a node that is down.
func (c *Client) RemoveNode(ctx context.Context, node string) error {
	return postDone(ctx, c, pathRemoveNode, Ref{node})
}

// Servers lists the cluster's servers.
func (c *Client) Servers(ctx context.Context) ([]core.ServerView, error) {
	return get[[]core.ServerView](ctx, c, pathServers, nil)
}

// Backup writes a backup of the cluster's state; a stale one is what the server has, whether a
// majority is there or not. It is whole if backup.Open finds it so.
func (c *Client) Backup(ctx context.Context, to io.Writer, stale bool) error {
	if !stale {
		c = c.Linearizable()
	}
	resp, err := c.do(ctx, http.MethodGet, pathBackup, nil, nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(to, resp.Body); err != nil {
		return fault.New(fault.Unavailable, "the backup was not finished: %w", err)
	}
	return nil
}

// PromoteServer lets a server have a vote, once it has caught up.
func (c *Client) PromoteServer(ctx context.Context, node string) error {
	return postDone(ctx, c, pathPromote, Ref{node})
}

// DemoteServer takes a server's vote.
func (c *Client) DemoteServer(ctx context.Context, node string) error {
	return postDone(ctx, c, pathDemote, Ref{node})
}

// RemoveServer takes out a server that is down.
func (c *Client) RemoveServer(ctx context.Context, node string) error {
	return postDone(ctx, c, pathRemoveServer, Ref{node})
}

// ImportImage takes an image archive, as r gives it, into the cluster. A name replaces that of
// the archive's only image.
func (c *Client) ImportImage(ctx context.Context, r io.Reader, name string) ([]image.Info, error) {
	var out []image.Info
	q := url.Values{}
	if name != "" {
		q.Set("name", name)
	}
	// The body is hidden from what would close it: the caller opened it.
	err := c.value(ctx, http.MethodPost, pathImages, q, io.NopCloser(r), "application/x-tar", &out)
	return out, err
}

// RemoveImage makes the cluster forget an image that no workload uses.
func (c *Client) RemoveImage(ctx context.Context, name string) error {
	return postDone(ctx, c, pathRemoveImage, Ref{name})
}

// Logs yields log lines until there are no more, the context is done (which is no error) or
// yield returns one.
func (c *Client) Logs(ctx context.Context, ref string, o driver.LogOptions, yield func(core.LogLine) error) error {
	return readLines(ctx, c, pathLogs, logQuery(ref, o), yield)
}

// NetLog yields what the ingresses of all nodes wrote down of a reference, or of everything; it ends as Logs does.
func (c *Client) NetLog(ctx context.Context, ref string, o driver.LogOptions, yield func(core.AccessLine) error) error {
	return readLines(ctx, c, pathNetLog, logQuery(ref, o), yield)
}

func logQuery(ref string, o driver.LogOptions) url.Values {
	q := url.Values{"ref": {ref}, "follow": {strconv.FormatBool(o.Follow)}, "tail": {strconv.Itoa(o.Tail)}}
	setTime(q, "since", o.Since)
	setTime(q, "until", o.Until)
	return q
}

// Events yields what happened since a time, and goes on when following; it ends as Logs does.
func (c *Client) Events(ctx context.Context, since time.Time, follow bool, yield func(model.Event) error) error {
	q := url.Values{"follow": {strconv.FormatBool(follow)}}
	setTime(q, "since", since)
	return readLines(ctx, c, pathEvents, q, yield)
}

func setTime(q url.Values, name string, t time.Time) {
	if !t.IsZero() {
		q.Set(name, t.UTC().Format(time.RFC3339Nano))
	}
}

// errorLine is how a line begins that ends a stream with an error; no value begins so.
var errorLine = []byte(`{"error":`)

func readLines[T any](ctx context.Context, c *Client, path string, q url.Values, yield func(T) error) error {
	return readLinesOf(ctx, c, http.MethodGet, path, q, nil, yield)
}

func readLinesOf[T any](ctx context.Context, c *Client, method, path string, q url.Values, body io.Reader, yield func(T) error) error {
	media := ""
	if body != nil {
		media = mediaJSON
	}
	resp, err := c.do(ctx, method, path, q, body, media)
	if err != nil {
		return unlessDone(ctx, err)
	}
	defer resp.Body.Close()
	in := json.NewDecoder(resp.Body)
	for {
		var raw json.RawMessage
		if err := in.Decode(&raw); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return unlessDone(ctx, fault.New(fault.Unavailable, "the connection to the server broke: %w", err))
		}
		if bytes.HasPrefix(raw, errorLine) {
			var body errorBody
			if err := json.Unmarshal(raw, &body); err != nil {
				return fault.New(fault.Internal, "read the end of the stream: %w", err)
			}
			return body.asError()
		}
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return fault.New(fault.Internal, "read a line of %s: %w", path, err)
		}
		if err := yield(v); err != nil {
			return err
		}
	}
}

func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
