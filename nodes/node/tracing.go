package node

import (
	"fmt"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/tracing"
	"perdure/nodes/partition/fsm"
)

// startTracing makes the tracer if spans are to be exported. It is stopped last, so that the last spans get out.
func (n *Node) startTracing() error {
	t := &n.cfg.Tracing
	if t.endpoint() == "" {
		return nil
	}
	tracer, err := tracing.New(tracing.Config{
		Endpoint: t.endpoint(), Headers: t.Headers, Version: n.version, Instance: n.cfg.ClusterName + "/" + n.cfg.NodeName,
	}, n.log)
	if err != nil {
		return fmt.Errorf("start tracing: %w", err)
	}
	n.tracer = tracer
	n.onStop("tracing", tracer.Shutdown)
	return nil
}

// traceEnd makes the span of the end of an invocation.
func (n *Node) traceEnd(id ident.InvocationID, e *fsm.Ended) {
	n.tracer.Ended(tracing.Invocation{
		ID: id, Service: e.Target.GetService(), Handler: e.Target.GetHandler(), Key: e.Target.GetKey(),
		Keyed:  schema.ServiceType(e.Target.GetServiceType()).Keyed(),
		Parent: tracing.Context{Parent: e.TraceParent, State: e.TraceState},
	}, e.Failed)
}
