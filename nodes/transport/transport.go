// Package transport carries messages between nodes. A message is a plain struct with a fixed wire
// form, passed by pointer; whoever receives one must not change it, because a local destination is
// handed the very same struct. Every call is asynchronous: the answer comes by callback, at most
// once, on a goroutine of the transport or of the answering component.
//
// The package has the routing of one node (Node) and the in-process twin of a whole network with
// fault knobs (Mem). It knows nothing of the meaning of messages; retries, timeouts and duplicate
// suppression belong to the components, because only they know what is safe to repeat.
package transport

import (
	"errors"

	"perdure/control/cluster"
)

// Service names the component of a node that answers a message.
type Service uint8

// The services of a node.
const (
	// LogServer stores and serves the records of loglets.
	LogServer Service = 1
	// Sequencer answers for the loglets that this life of the node orders.
	Sequencer Service = 2

	services = 3
)

// Message is a request or an answer. Implementations are pointers to plain structs.
type Message interface {
	// Service is the component that answers the message or, for an answer, gave it.
	Service() Service
}

// ReplyFunc receives the answer of a call: exactly one of the arguments is set. It must not block.
type ReplyFunc func(Message, error)

// Handler answers the requests of one service. It must not block: slow work is handed to another
// goroutine, which calls reply later. Calling reply a second time has no effect.
type Handler func(from cluster.GenNodeID, m Message, reply ReplyFunc)

// Errors of a call. They tell whether the request can have had an effect.
var (
	// ErrUnreachable means that the request was not sent: repeating it elsewhere is safe.
	ErrUnreachable = errors.New("node is unreachable, the request was not sent")
	// ErrConnectionLost means that the request was sent and its answer is lost: outcome unknown.
	ErrConnectionLost = errors.New("connection lost before the answer came, the outcome is unknown")
	// ErrNoService means that the node is there but does not run the service: the request had no effect.
	ErrNoService = errors.New("node does not run the service, the request had no effect")
)

// Caller sends requests to nodes.
type Caller interface {
	// Call sends m to the node and returns without waiting. done is called at most once; it is
	// never called when the network loses the request or the answer silently, so a caller that
	// needs an end keeps a deadline of its own. done may run before Call returns only when the
	// request could not be sent or the destination is local and answered at once.
	Call(to cluster.NodeID, m Message, done ReplyFunc)
}
