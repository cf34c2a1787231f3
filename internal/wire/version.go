package wire

import (
	"fmt"
	"net/http"

	"github.com/tutti-run/tutti/internal/fault"
)

// Versions of the protocol between nodes: the one that this program speaks, and the oldest that it
// understands. A program of the next version understands this one, so that nodes can be upgraded
// one after the other. The replication's is part of its name in the TLS handshake.
const (
	Protocol       = 1
	OldestProtocol = 1
)

const headerProtocol = "Tutti-Protocol"

// span is the versions that a node can deal with.
type span struct{ newest, oldest int }

var ownSpan = span{Protocol, OldestProtocol}

// tell marks a request.
func (s span) tell(h http.Header) { h.Set(headerProtocol, fmt.Sprintf("%d %d", s.newest, s.oldest)) }

// check refuses a request of a node that this one does not understand, or the other way round.
// Programs from before there was a mark speak version 1.
func (s span) check(h http.Header) error {
	peer := span{1, 1}
	if text := h.Get(headerProtocol); text != "" {
		if _, err := fmt.Sscanf(text, "%d %d", &peer.newest, &peer.oldest); err != nil || peer.oldest > peer.newest {
			return fault.New(fault.Invalid, "%s %q: two versions of the protocol between nodes are expected, the newest first", headerProtocol, text)
		}
	}
	if peer.newest < s.oldest || s.newest < peer.oldest {
		return fault.New(fault.Unsupported, "this node understands versions %d to %d of the protocol between nodes, the one that asks versions %d to %d: upgrade the older one, one version at a time",
			s.oldest, s.newest, peer.oldest, peer.newest)
	}
	return nil
}
