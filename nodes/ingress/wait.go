package ingress

import (
	"encoding/json"
	"errors"
	"net/http"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/nodes/record/recordpb"
)

// wait answers attach, output and lookup.
func (q *request) wait() error {
	id, err := q.target()
	if err != nil {
		return err
	}
	if q.rt.kind == routeLookup {
		return q.lookup(id)
	}
	req := q.newRequest()
	byID := &recordpb.Request_ById{InvocationId: id[:]}
	if q.rt.kind == routeAttach {
		req.Kind = &recordpb.Request_Attach{Attach: byID}
	} else {
		req.Kind = &recordpb.Request_GetOutput{GetOutput: byID}
	}
	reply, err := q.do(id.PartitionKey(), req, true)
	if err != nil {
		return err
	}
	if q.rt.kind == routeOutput {
		switch reply.Status {
		case recordpb.Reply_NOT_FOUND:
			return errInvocationNotFound
		case recordpb.Reply_NOT_READY:
			return errNotReady
		case recordpb.Reply_UNSUPPORTED:
			return errNoOutput
		}
	}
	return q.called(q.handlerOf(reply), id, reply)
}

// handlerOf is the handler whose output rule applies: the one that ran, as it is registered now. nil when unknown.
func (q *request) handlerOf(reply *recordpb.Reply) *schema.Handler {
	service, handler := q.rt.service, q.rt.handler
	if t := reply.Target; t != nil {
		service, handler = t.Service, t.Handler
	}
	h, err := q.s.Handler(service, handler)
	if err != nil {
		return nil
	}
	return h
}

// target is the id of the invocation that attach, output or lookup is about.
func (q *request) target() (ident.InvocationID, error) {
	switch {
	case q.rt.body:
		return q.bodyTarget()
	case q.rt.byWorkflow:
		return workflowID(q.rt.service, q.rt.key), nil
	case q.rt.byIdempotencyKey:
		return ident.Invocation(ident.Target{
			Service: q.rt.service, Handler: q.rt.handler, Key: q.rt.key, Keyed: q.rt.keyed, IdempotencyKey: &q.rt.idempotencyKey,
		}, ident.Random{}), nil
	}
	return parseInvocationID(q.rt.id)
}

func parseInvocationID(s string) (ident.InvocationID, error) {
	id, err := ident.ParseInvocationID(s)
	if err != nil {
		return id, badInvocationID(s, err)
	}
	return id, nil
}

func workflowID(name, key string) ident.InvocationID {
	return ident.Invocation(ident.Target{Service: name, Key: key, Keyed: true, WorkflowRun: true}, ident.Random{})
}

// bodyTarget reads the target from the request's body. It is derived from the names alone: whether they exist is not checked.
func (q *request) bodyTarget() (id ident.InvocationID, err error) {
	b, err := q.body()
	if err != nil {
		return id, err
	}
	var t struct {
		Target         string  `json:"target"`
		WorkflowName   *string `json:"workflowName"`
		WorkflowKey    *string `json:"workflowKey"`
		Service        *string `json:"service"`
		Key            *string `json:"key"`
		Handler        *string `json:"handler"`
		IdempotencyKey *string `json:"idempotencyKey"`
		InvocationID   *string `json:"invocationId"`
		Scope          *string `json:"scope"`
	}
	var mismatch *json.UnmarshalTypeError
	if err := json.Unmarshal(b, &t); errors.As(err, &mismatch) { // its text shows our types
		return id, badLookup(errors.New("invalid type: the request or a field is a JSON " + mismatch.Value))
	} else if err != nil {
		return id, badLookup(err)
	}
	if t.Scope != nil {
		if err := checkScope(*t.Scope); err != nil {
			return id, err
		}
		return id, errScopes
	}
	switch t.Target {
	case "workflow":
		if err := missing(field{"workflowName", t.WorkflowName}, field{"workflowKey", t.WorkflowKey}); err != nil {
			return id, err
		}
		return workflowID(*t.WorkflowName, *t.WorkflowKey), nil
	case "idempotentInvocation":
		if err := missing(field{"service", t.Service}, field{"handler", t.Handler}, field{"idempotencyKey", t.IdempotencyKey}); err != nil {
			return id, err
		}
		target := ident.Target{Service: *t.Service, Handler: *t.Handler, IdempotencyKey: t.IdempotencyKey}
		if t.Key != nil {
			target.Key, target.Keyed = *t.Key, true
		}
		return ident.Invocation(target, ident.Random{}), nil
	case "invocation":
		if err := missing(field{"invocationId", t.InvocationID}); err != nil {
			return id, err
		}
		return parseInvocationID(*t.InvocationID)
	case "":
		return id, badLookup(errors.New("missing field `target`"))
	}
	return id, badLookup(errors.New("unknown variant `" + t.Target + "`, expected one of `workflow`, `idempotentInvocation`, `invocation`"))
}

type field struct {
	name  string
	value *string
}

// missing names the first field without a value.
func missing(fields ...field) error {
	for _, f := range fields {
		if f.value == nil {
			return badLookup(errors.New("missing field `" + f.name + "`"))
		}
	}
	return nil
}

func (q *request) lookup(id ident.InvocationID) error {
	q.w.Header()["Content-Type"] = contentJSON
	q.ok(http.StatusOK, []byte(`{"invocationId":"`+id.String()+`"}`))
	return nil
}

// awakeable resolves or rejects a signal. Whether anybody waits for it is not checked.
func (q *request) awakeable() error {
	a, err := ident.ParseAwakeable(q.rt.id)
	if err != nil {
		return badAwakeableID(q.rt.id, err)
	}
	b, err := q.body()
	if err != nil {
		return err
	}
	if a.Old { // of a journal format that no invocation here has
		q.ok(http.StatusAccepted, nil)
		return nil
	}
	result := &invocationpb.Result{Kind: &invocationpb.Result_Success{Success: b}}
	if q.rt.reject {
		f := &invocationpb.Failure{Code: http.StatusInternalServerError, Message: text(b)}
		result.Kind = &invocationpb.Result_Failure{Failure: f}
	}
	req := q.newRequest()
	req.Kind = &recordpb.Request_Signal{Signal: &recordpb.Signal{
		InvocationId: a.Invocation[:], Id: &recordpb.Signal_Index{Index: a.Signal}, Result: result,
	}}
	if _, err := q.do(a.Invocation.PartitionKey(), req, true); err != nil {
		return err
	}
	q.ok(http.StatusAccepted, nil)
	return nil
}
