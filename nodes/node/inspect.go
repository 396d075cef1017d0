package node

import (
	"context"
	"slices"
	"strings"
	"time"

	"perdure/control/admin"
	"perdure/control/cluster"
	"perdure/control/duration"
	"perdure/control/ident"
	"perdure/invokers"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/nodes/partition/store"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/worker"
)

// inspector shows invocations to operators: rows of the stores, and what the invokers know of them.
type inspector struct{ worker *worker.Worker }

var _ admin.Inspector = inspector{}

// Invocation implements admin.Inspector.
func (i inspector) Invocation(_ context.Context, id ident.InvocationID) (*admin.InvocationInfo, error) {
	st := i.worker.Store(id.PartitionKey())
	if st == nil {
		return nil, errNotHere
	}
	row, err := st.Invocation(id)
	if err != nil || row == nil {
		return nil, err
	}
	attempt, known := i.worker.Attempt(id)
	info := infoOf(id, row, attempt, known)
	info.Retention = &admin.RetentionInfo{Completion: spanText(row.CompletionRetentionMs), Journal: spanText(row.JournalRetentionMs)}
	info.Journal = make([]admin.EntryInfo, 0, row.Entries)
	err = st.Entries(id, func(e store.JournalEntry) error {
		info.Journal = append(info.Journal, entryInfo(&e))
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = st.Events(id, func(_ ident.InvocationID, _ uint32, e *storepb.Event) error {
		info.Events = append(info.Events, eventInfo(e))
		return nil
	})
	if err != nil {
		return nil, err
	}
	if info.LastFailure == nil && row.Status != storepb.Invocation_COMPLETED {
		info.LastFailure = lastFailure(info.Events)
	}
	return info, nil
}

// lastFailure is the newest failure among the events: what the invoker knew is lost when the invocation stops.
func lastFailure(events []admin.EventInfo) *admin.FailureInfo {
	for i := len(events) - 1; i >= 0; i-- {
		if f := events[i].Failure; f != nil {
			return f
		}
	}
	return nil
}

// Invocations implements admin.Inspector. It reads all rows of this node, and keeps the newest ones only.
func (i inspector) Invocations(ctx context.Context, q admin.InvocationQuery) ([]admin.InvocationInfo, error) {
	attempts := map[ident.InvocationID]invokers.Status{}
	i.worker.Attempts(func(s invokers.Status) bool {
		attempts[s.ID] = s
		return true
	})
	var all []admin.InvocationInfo
	err := i.worker.Stores(func(_ cluster.PartitionID, st *store.Store) error {
		return st.Invocations(func(id ident.InvocationID, row *storepb.Invocation) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			attempt, known := attempts[id]
			if !fits(&q, row, statusOf(row, attempt, known)) {
				return nil
			}
			all = append(all, *infoOf(id, row, attempt, known))
			if len(all) >= 2*q.Limit+1000 {
				all = newest(all, q.Limit)
			}
			return nil
		})
	})
	return newest(all, q.Limit), err
}

// newest are the n invocations that were created last, in that order.
func newest(all []admin.InvocationInfo, n int) []admin.InvocationInfo {
	slices.SortFunc(all, func(a, b admin.InvocationInfo) int {
		if c := strings.Compare(b.CreatedAt, a.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all[:min(n, len(all))]
}

func fits(q *admin.InvocationQuery, row *storepb.Invocation, status string) bool {
	t := row.Target
	return (len(q.Status) == 0 || slices.Contains(q.Status, status)) &&
		(q.Service == "" || q.Service == t.GetService()) && (q.Handler == "" || q.Handler == t.GetHandler()) && (q.Key == "" || q.Key == t.GetKey()) &&
		(q.Deployment.IsZero() || string(q.Deployment[:]) == string(row.DeploymentId))
}

// statusOf is the status that operators see: that of the row, and for a running invocation what the invoker does with it.
func statusOf(row *storepb.Invocation, attempt invokers.Status, known bool) string {
	switch row.Status {
	case storepb.Invocation_SCHEDULED:
		return admin.StatusScheduled
	case storepb.Invocation_INBOXED:
		return admin.StatusPending
	case storepb.Invocation_SUSPENDED:
		return admin.StatusSuspended
	case storepb.Invocation_PAUSED:
		return admin.StatusPaused
	case storepb.Invocation_COMPLETED:
		return admin.StatusCompleted
	}
	switch {
	case !known || attempt.Incarnation != row.Incarnation:
		return admin.StatusReady
	case attempt.InFlight:
		return admin.StatusRunning
	case attempt.RetryCount > 0:
		return admin.StatusBackingOff
	}
	return admin.StatusReady
}

func infoOf(id ident.InvocationID, row *storepb.Invocation, attempt invokers.Status, known bool) *admin.InvocationInfo {
	info := &admin.InvocationInfo{
		ID: id.String(), Target: targetText(row.Target), Status: statusOf(row, attempt, known), IdempotencyKey: row.IdempotencyKey,
		InvokedBy: strings.ToLower(row.Source.GetKind().String()), CreatedAt: timeText(row.CreatedAtMs), ModifiedAt: timeText(row.ModifiedAtMs),
		CompletedAt: timeText(row.CompletedAtMs), Deployment: deploymentText(row.DeploymentId), Protocol: row.ProtocolVersion,
		JournalLen: row.Entries, WaitingFor: futureInfo(row.Awaiting),
	}
	if row.Status == storepb.Invocation_SCHEDULED {
		info.ScheduledFor = timeText(row.ExecutionTimeMs)
	}
	if src := row.Source; src.GetInvocationId() != nil {
		info.InvokedByID = invocationText(src.InvocationId)
		if src.Target != nil {
			info.InvokedByName = targetText(src.Target)
		}
	}
	if row.Status == storepb.Invocation_COMPLETED {
		info.Result = &admin.ResultInfo{Result: "success"}
		if f := row.Failure; f != nil {
			info.Result = &admin.ResultInfo{Result: "failure", Code: f.Code, Message: f.Message}
		}
	}
	if known && row.Status == storepb.Invocation_INVOKED && attempt.Incarnation == row.Incarnation {
		info.Attempts, info.LastServer = attempt.RetryCount, attempt.LastServer
		info.LastAttemptAt, info.NextAttemptAt = momentText(attempt.LastStart), momentText(attempt.NextRetry)
		if !attempt.LastDeployment.IsZero() {
			info.LastDeployment = attempt.LastDeployment.String()
		}
		info.LastFailure = failureInfo(attempt.LastFailure)
		if info.WaitingFor == nil {
			info.WaitingFor = futureInfo(attempt.AwaitingOn)
		}
	}
	return info
}

func entryInfo(e *store.JournalEntry) admin.EntryInfo {
	info := admin.EntryInfo{Index: e.Index, Type: protocol.Label(e.Type), AppendedAt: timeText(e.AppendedAtMs), Size: len(e.Raw)}
	if protocol.IsCommand(e.Type) {
		info.Name = protocol.CommandName(e.Raw)
	}
	return info
}

func eventInfo(e *storepb.Event) admin.EventInfo {
	info := admin.EventInfo{At: timeText(e.AppendedAtMs), AfterEntry: e.AfterEntry}
	switch k := e.Kind.(type) {
	case *storepb.Event_TransientError:
		info.Type, info.Failure = "TransientError", failureInfo(k.TransientError)
	case *storepb.Event_Paused:
		info.Type, info.Failure = "Paused", failureInfo(k.Paused.GetLastFailure())
	case *storepb.Event_Suspended:
		info.Type, info.WaitingFor = "Suspended", futureInfo(k.Suspended.GetAwaiting())
	}
	return info
}

func failureInfo(f *invocationpb.Effect_AttemptFailed) *admin.FailureInfo {
	if f == nil {
		return nil
	}
	info := &admin.FailureInfo{Code: f.Code, ErrorCode: f.DocCode, Message: f.Message, Stacktrace: f.Stacktrace}
	if f.RelatedCommandIndex != nil || f.RelatedCommandName != nil || f.RelatedCommandType != nil {
		info.Command = &admin.CommandInfo{Index: f.GetRelatedCommandIndex(), Name: f.GetRelatedCommandName()}
		if t := f.GetRelatedCommandType(); t != 0 {
			info.Command.Type = strings.TrimPrefix(protocol.Label(uint16(t)), "Command: ")
		}
	}
	return info
}

// combinators are the names of how parts of a future are combined.
var combinators = map[invocationpb.Future_Combinator]string{
	invocationpb.Future_UNKNOWN:                       "Unknown",
	invocationpb.Future_FIRST_COMPLETED:               "FirstCompleted",
	invocationpb.Future_ALL_COMPLETED:                 "AllCompleted",
	invocationpb.Future_FIRST_SUCCEEDED_OR_ALL_FAILED: "FirstSucceededOrAllFailed",
	invocationpb.Future_ALL_SUCCEEDED_OR_FIRST_FAILED: "AllSucceededOrFirstFailed",
}

func futureInfo(f *invocationpb.Future) *admin.FutureInfo {
	if f == nil {
		return nil
	}
	info := &admin.FutureInfo{Combinator: combinators[f.Combinator], Completions: f.Completions, Signals: f.Signals, NamedSignals: f.NamedSignals}
	for _, n := range f.Nested {
		info.Nested = append(info.Nested, *futureInfo(n))
	}
	return info
}

func targetText(t *invocationpb.Target) string {
	if t.GetServiceType() > 1 {
		return t.GetService() + "/" + t.GetKey() + "/" + t.GetHandler()
	}
	return t.GetService() + "/" + t.GetHandler()
}

func deploymentText(raw []byte) string {
	var id ident.DeploymentID
	if copy(id[:], raw) == 0 {
		return ""
	}
	return id.String()
}

func invocationText(raw []byte) string {
	id, err := ident.InvocationIDFromBytes(raw)
	if err != nil {
		return ""
	}
	return id.String()
}

// timeText is a time in ms since the epoch as RFC 3339; 0 is no time.
func timeText(ms uint64) string {
	if ms == 0 {
		return ""
	}
	return momentText(time.UnixMilli(int64(ms)))
}

func momentText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000000000Z")
}

func spanText(ms uint64) string { return duration.Format(time.Duration(ms) * time.Millisecond) }
