package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"perdure/control/admin"
	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers"
	"perdure/invokers/discovery"
	"perdure/nodes/partition/store"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
	"perdure/nodes/worker"
)

// discoverer gives the admin API discovery in its own terms.
type discoverer struct{ client *discovery.Client }

var _ admin.Discoverer = discoverer{}

// Discover implements admin.Discoverer.
func (d discoverer) Discover(ctx context.Context, addr schema.Address, headers map[string]string) (*schema.Discovered, error) {
	found, err := d.client.Discover(ctx, addr, headers)
	var e *discovery.Error
	if errors.As(err, &e) {
		return nil, &admin.DiscoveryError{Code: e.Code, Message: e.Message}
	}
	return found, err
}

// invocations carries the operator's verbs to the partitions.
type invocations struct{ worker *worker.Worker }

var _ admin.Invocations = invocations{}

// outcomes are the admin API's names of what a partition decided.
var outcomes = map[recordpb.Reply_Status]admin.Outcome{
	recordpb.Reply_OK:                admin.Done,
	recordpb.Reply_ACCEPTED:          admin.Accepted,
	recordpb.Reply_NOT_FOUND:         admin.NotFound,
	recordpb.Reply_ALREADY_COMPLETED: admin.AlreadyCompleted,
	recordpb.Reply_NOT_COMPLETED:     admin.NotCompleted,
	recordpb.Reply_STILL_RUNNING:     admin.StillRunning,
	recordpb.Reply_NOT_RUNNING:       admin.NotRunning,
	recordpb.Reply_NOT_STARTED:       admin.NotStarted,
	recordpb.Reply_DEPLOYMENT_FIXED:  admin.DeploymentFixed,
	recordpb.Reply_INPUT_GONE:        admin.InputGone,
	recordpb.Reply_UNSUPPORTED:       admin.Unsupported,
	recordpb.Reply_BAD_RANGE:         admin.BadRange,
}

func (i invocations) do(ctx context.Context, key cluster.PartitionKey, r *recordpb.Request) (admin.Outcome, error) {
	r.Id = make([]byte, 16)
	_, _ = rand.Read(r.Id) // never fails
	reply, err := i.worker.Do(ctx, key, r)
	if err != nil {
		return 0, err
	}
	o, ok := outcomes[reply.Status]
	if !ok {
		return 0, fmt.Errorf("the partition answered %s", reply.Status)
	}
	return o, nil
}

func (i invocations) terminate(ctx context.Context, id ident.InvocationID, mode recordpb.Terminate_Mode) (admin.Outcome, error) {
	return i.do(ctx, id.PartitionKey(), &recordpb.Request{Kind: &recordpb.Request_Terminate{Terminate: &recordpb.Terminate{InvocationId: id[:], Mode: mode}}})
}

// Cancel implements admin.Invocations.
func (i invocations) Cancel(ctx context.Context, id ident.InvocationID) (admin.Outcome, error) {
	return i.terminate(ctx, id, recordpb.Terminate_CANCEL)
}

// Kill implements admin.Invocations.
func (i invocations) Kill(ctx context.Context, id ident.InvocationID) (admin.Outcome, error) {
	return i.terminate(ctx, id, recordpb.Terminate_KILL)
}

// Purge implements admin.Invocations.
func (i invocations) Purge(ctx context.Context, id ident.InvocationID, journalOnly bool) (admin.Outcome, error) {
	return i.do(ctx, id.PartitionKey(), &recordpb.Request{Kind: &recordpb.Request_Purge{Purge: &recordpb.Purge{InvocationId: id[:], JournalOnly: journalOnly}}})
}

// Pause implements admin.Invocations.
func (i invocations) Pause(ctx context.Context, id ident.InvocationID) (admin.Outcome, error) {
	return i.do(ctx, id.PartitionKey(), &recordpb.Request{Kind: &recordpb.Request_Pause{Pause: &recordpb.Pause{InvocationId: id[:]}}})
}

// Resume implements admin.Invocations.
func (i invocations) Resume(ctx context.Context, id ident.InvocationID, pin *admin.Pin) (admin.Outcome, error) {
	r := &recordpb.Resume{InvocationId: id[:]}
	if pin != nil {
		r.DeploymentId, r.ProtocolVersion = pin.Deployment[:], pin.Protocol
	}
	return i.do(ctx, id.PartitionKey(), &recordpb.Request{Kind: &recordpb.Request_Resume{Resume: r}})
}

// RestartAsNew implements admin.Invocations.
func (i invocations) RestartAsNew(ctx context.Context, id, newID ident.InvocationID, from uint32, pin *admin.Pin) (admin.Outcome, error) {
	r := &recordpb.RestartAsNew{InvocationId: id[:], NewInvocationId: newID[:], From: from}
	if pin != nil {
		r.DeploymentId, r.ProtocolVersion = pin.Deployment[:], pin.Protocol
	}
	return i.do(ctx, id.PartitionKey(), &recordpb.Request{Kind: &recordpb.Request_RestartAsNew{RestartAsNew: r}})
}

// PatchState implements admin.Invocations.
func (i invocations) PatchState(ctx context.Context, p admin.StatePatch) error {
	_, err := i.do(ctx, ident.KeyPartition(p.Key), &recordpb.Request{Kind: &recordpb.Request_PatchState{PatchState: &recordpb.PatchState{
		Service: p.Service, Key: p.Key, Version: p.Version, State: p.State,
	}}})
	return err
}

// Describe implements admin.Invocations.
func (i invocations) Describe(ctx context.Context, id ident.InvocationID) (admin.Description, admin.Outcome, error) {
	st := i.worker.Store(id.PartitionKey())
	if st == nil {
		return admin.Description{}, 0, errNotHere
	}
	row, err := st.Invocation(id)
	switch {
	case err != nil:
		return admin.Description{}, 0, err
	case row == nil:
		return admin.Description{}, admin.NotFound, nil
	}
	d := admin.Description{Service: row.Target.GetService(), Protocol: row.ProtocolVersion}
	copy(d.Deployment[:], row.DeploymentId)
	return d, admin.Done, nil
}

var errNotAllHere = errors.New("not all partitions are open on this node now, and what they run on is not known; try again")

var errNotHere = errors.New("the partition of the invocation is not open on this node now; try again")

// Pinned implements admin.Invocations. An invocation whose last attempt went there counts too: it is pinned with its first
// progress, which may be on its way through the log. One that is over does not, although its attempt is forgotten only after
// the answer that says so.
func (i invocations) Pinned(ctx context.Context, dp ident.DeploymentID) (n int, err error) {
	var tried []ident.InvocationID
	i.worker.Attempts(func(s invokers.Status) bool {
		if s.LastDeployment == dp {
			tried = append(tried, s.ID)
		}
		return true
	})
	for _, id := range tried {
		st := i.worker.Store(id.PartitionKey())
		if st == nil {
			return 0, errNotAllHere
		}
		row, err := st.Invocation(id)
		switch {
		case err != nil:
			return 0, err
		case row != nil && row.Status != storepb.Invocation_COMPLETED:
			return 1, nil
		}
	}
	read := 0
	err = i.worker.Stores(func(_ cluster.PartitionID, st *store.Store) error {
		read++
		return st.Invocations(func(_ ident.InvocationID, row *storepb.Invocation) error {
			if row.Status != storepb.Invocation_COMPLETED && string(row.DeploymentId) == string(dp[:]) {
				n++
			}
			return ctx.Err()
		})
	})
	if err == nil && n == 0 && read < len(i.worker.Statuses()) {
		return 0, errNotAllHere // what a partition that starts again has pinned is not known
	}
	return n, err
}
