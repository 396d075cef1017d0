package keyspace

import (
	"fmt"

	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store/storepb"
)

// Result is what a completed invocation ended with; get reads the row that has it.
func Result(id ident.InvocationID, inv *storepb.Invocation, get func(key []byte) ([]byte, bool, error)) (*invocationpb.Result, error) {
	if inv.Failure != nil {
		return &invocationpb.Result{Kind: &invocationpb.Result_Failure{Failure: inv.Failure}}, nil
	}
	value, err := success(id, inv, get)
	if err != nil {
		return nil, fmt.Errorf("output of %s: %w", id, err)
	}
	return &invocationpb.Result{Kind: &invocationpb.Result_Success{Success: value}}, nil
}

func success(id ident.InvocationID, inv *storepb.Invocation, get func(key []byte) ([]byte, bool, error)) ([]byte, error) {
	if inv.OutputKept {
		v, ok, err := get(AppendOutput(nil, &id))
		if err != nil {
			return nil, err
		}
		var o storepb.Output
		if err := o.UnmarshalVT(v); err != nil || !ok {
			return nil, ErrCorrupt
		}
		return o.Value, nil
	}
	v, ok, err := get(AppendJournal(nil, &id, inv.Output-1))
	if err != nil {
		return nil, err
	}
	e, err := EntryOf(v)
	if err != nil || !ok {
		return nil, ErrCorrupt
	}
	var c protocolpb.OutputCommand
	if err := c.UnmarshalVT(e.Raw); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return c.GetValue().GetContent(), nil
}
