package invokers

import (
	"errors"
	"time"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
)

// keyed reports whether a target has a key.
func keyed(t *invocationpb.Target) bool { return schema.ServiceType(t.GetServiceType()).Keyed() }

// checkAccess checks that an invocation of target may use a command; the command's form was checked.
func checkAccess(target *invocationpb.Target, typ uint16) *failure {
	switch typ {
	case protocol.TypeSetState, protocol.TypeClearState, protocol.TypeClearAllState:
		if !keyed(target) {
			return precondition(typ, "this service type doesn't have state access")
		}
		if schema.HandlerType(target.GetHandlerType()) == schema.Shared {
			return precondition(typ, "this handler type cannot write state")
		}
	case protocol.TypeGetLazyState, protocol.TypeGetLazyStateKeys, protocol.TypeGetEagerState, protocol.TypeGetEagerStateKeys:
		if !keyed(target) {
			return precondition(typ, "this service type doesn't have state access")
		}
	case protocol.TypeGetPromise, protocol.TypePeekPromise, protocol.TypeCompletePromise:
		if schema.ServiceType(target.GetServiceType()) != schema.Workflow {
			return precondition(typ, "only Workflow services support it")
		}
	}
	return nil
}

func precondition(typ uint16, reason string) *failure {
	return newFailure(codePrecondition, "cannot process %s: %s", protocol.Name(typ), reason)
}

// resolveCallee finds whom a checked Call or OneWayCall calls, by the latest revision of the service.
func (p *Pool) resolveCallee(typ uint16, raw []byte) (*invocationpb.Effect_Callee, *failure) {
	c := protocol.CallOf(typ, raw)
	s := p.deps.Schema.Current()
	h, err := s.Handler(c.Service, c.Handler)
	if err != nil {
		return nil, newFailure(codeCalleeNotFound, "the service handler %s/%s was not found", c.Service, c.Handler)
	}
	if f := checkCall(typ, &c, h); f != nil {
		return nil, f
	}
	if d, err := s.Deployment(h.Deployment); err == nil && d.MaxProtocol < minVersion {
		return nil, newFailure(codeCalleeDeprecated,
			"the deployment of %s/%s speaks only versions of the service protocol below %d; register it again with a newer SDK", c.Service, c.Handler, minVersion)
	}
	id := ident.Invocation(ident.Target{
		Service: c.Service, Handler: c.Handler, Key: c.Key, Keyed: h.ServiceType.Keyed(),
		WorkflowRun: h.Type == schema.WorkflowRun, IdempotencyKey: c.IdempotencyKey,
	}, p.deps.NewID(p.deps.Now()))
	keep := h.Retention(c.IdempotencyKey != nil)
	return &invocationpb.Effect_Callee{
		InvocationId: id[:],
		Target: &invocationpb.Target{
			Service: c.Service, Handler: c.Handler, Key: c.Key,
			ServiceType: uint32(h.ServiceType), HandlerType: uint32(h.Type),
		},
		CompletionRetentionMs: uint64(keep.Completion / time.Millisecond),
		JournalRetentionMs:    uint64(keep.Journal / time.Millisecond),
	}, nil
}

func checkCall(typ uint16, c *protocol.Call, h *schema.Handler) *failure {
	switch {
	case c.Scope != nil || c.LimitKey != nil:
		return newFailure(codeFlowControl, "cannot process %s: scopes and limit keys need flow control, which is not enabled", protocol.Name(typ))
	case c.Key != "" && !h.ServiceType.Keyed():
		return precondition(typ, "the service "+c.Service+" has no keys, but the call has one")
	case c.IdempotencyKey != nil && *c.IdempotencyKey == "":
		return precondition(typ, "the idempotency key is empty")
	}
	return nil
}

var errNoAddress = errors.New("it has neither a URL nor a function; register it again")
