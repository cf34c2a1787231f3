package native

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/tutti-run/tutti/internal/core"
)

// metrics answers with what nodes counted, in the text format of Prometheus. The series of a
// node that did not answer have a gap, and tutti_nodes_silent counts it.
func (s *server) metrics(w http.ResponseWriter, r *http.Request) {
	counts, err := s.Core.NetCounts(r.Context(), callerOf(r), r.URL.Query().Get("ref"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	fmt.Fprint(w, metricsText(&counts)) // who has gone asks again
}

func metricsText(counts *core.NetCounts) string {
	var b strings.Builder
	all := counts.Services
	begin := func(name, help string) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s counter\n", name, help, name)
	}
	labels := func(c *core.ServiceCount) string {
		return fmt.Sprintf("namespace=%q,service=%q,entrance=%q,node=%q", c.Namespace, c.Service, c.Entrance, c.Node)
	}
	const connections, bytes, requests = "tutti_service_connections_total", "tutti_service_bytes_total", "tutti_service_requests_total"
	begin(connections, "Connections that came to an entrance of a service by a node.")
	for i := range all {
		if c := &all[i]; c.Entrance != core.EntranceIngress {
			fmt.Fprintf(&b, "%s{%s} %d\n", connections, labels(c), c.Connections)
		}
	}
	begin(bytes, "Bytes of such connections, packets' headers with them; sent is what came to the service.")
	for i := range all {
		if c := &all[i]; c.Entrance != core.EntranceIngress {
			fmt.Fprintf(&b, "%s{%s,direction=\"sent\"} %d\n%s{%s,direction=\"received\"} %d\n", bytes, labels(c), c.Sent, bytes, labels(c), c.Received)
		}
	}
	begin(requests, "Requests of HTTP that came to a service by its routes, by a node.")
	for i := range all {
		if c := &all[i]; c.Entrance == core.EntranceIngress {
			fmt.Fprintf(&b, "%s{namespace=%q,service=%q,node=%q} %d\n", requests, c.Namespace, c.Service, c.Node, c.Requests)
		}
	}
	fmt.Fprintf(&b, "# HELP tutti_nodes_silent Nodes whose counts are not known.\n# TYPE tutti_nodes_silent gauge\ntutti_nodes_silent %d\n", len(counts.Silent))
	return b.String()
}
