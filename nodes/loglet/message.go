package loglet

import (
	"perdure/control/cluster"
	"perdure/nodes/transport"
)

// TailRequest asks a loglet's sequencer for its committed tail. It is answered when the tail is
// above After, at the latest after some seconds.
type TailRequest struct {
	Loglet cluster.LogletID
	After  cluster.Offset
}

// TailReply answers a TailRequest.
type TailReply struct {
	// Tail is the committed tail.
	Tail cluster.Offset
	// Gone says that this life of the node does not sequence the loglet (any more): ask the log servers.
	Gone bool
}

// Service implements transport.Message.
func (*TailRequest) Service() transport.Service { return transport.Sequencer }

// Service implements transport.Message.
func (*TailReply) Service() transport.Service { return transport.Sequencer }
