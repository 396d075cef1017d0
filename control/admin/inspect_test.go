package admin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"perdure/control/ident"
)

// inspector answers with what is set and records what it was asked for.
type inspector struct {
	info  *InvocationInfo
	err   error
	query InvocationQuery
}

func (i *inspector) Invocation(context.Context, ident.InvocationID) (*InvocationInfo, error) {
	return i.info, i.err
}

func (i *inspector) Invocations(_ context.Context, q InvocationQuery) ([]InvocationInfo, error) {
	i.query = q
	if i.info == nil {
		return nil, i.err
	}
	return []InvocationInfo{*i.info}, i.err
}

func TestInspectInvocation(t *testing.T) {
	f := setup(t, nil)
	f.ins.info = &InvocationInfo{
		ID: unknownInv, Target: "S/h", Status: StatusBackingOff, InvokedBy: "ingress", CreatedAt: "a", ModifiedAt: "b", Attempts: 2,
		LastFailure: &FailureInfo{Code: 500, ErrorCode: "RT0007", Message: "boom", Command: &CommandInfo{Index: 1, Type: "Run", Name: "step"}},
		JournalLen:  1, Journal: []EntryInfo{{Type: "Command: Input", AppendedAt: "a", Size: 3}},
	}
	f.expect(f.request("GET", "/perdure/invocations/"+unknownInv, ""), 200, `{"id":"`+unknownInv+`","target":"S/h","status":"backing-off","invoked_by":"ingress",
		"created_at":"a","modified_at":"b","attempts":2,"last_failure":{"code":500,"error_code":"RT0007","message":"boom","related_command":{"index":1,"type":"Run","name":"step"}},
		"journal_size":1,"journal":[{"index":0,"type":"Command: Input","appended_at":"a","size":3}]}`)
	f.ins.info = nil
	f.expect(f.request("GET", "/perdure/invocations/"+unknownInv, ""), 404, `{"message":"The requested invocation '`+unknownInv+`' does not exist","restate_code":null}`)
	f.expect(f.request("GET", "/perdure/invocations/bad", ""), 400, `{"message":"The request field 'invocation_id' is invalid. Reason: bad format","restate_code":null}`)
	f.ins.err = errors.New("no leader")
	if w := f.request("GET", "/perdure/invocations/"+unknownInv, ""); w.Code != 503 {
		t.Errorf("without a leader: %d %s", w.Code, w.Body)
	}
}

func TestListInvocations(t *testing.T) {
	f := setup(t, nil)
	f.expect(f.request("GET", "/perdure/invocations", ""), 200, `{"invocations":[]}`)
	if q := fmt.Sprint(f.ins.query); q != fmt.Sprint(InvocationQuery{Limit: defaultListed}) {
		t.Errorf("asked for %s", q)
	}
	f.request("GET", "/perdure/invocations?status=paused,ready&status=running&service=S&handler=h&key=k&limit=7&deployment="+unknownDp, "")
	q := f.ins.query
	if strings.Join(q.Status, " ") != "paused ready running" || q.Service != "S" || q.Handler != "h" || q.Key != "k" || q.Limit != 7 || q.Deployment.String() != unknownDp {
		t.Errorf("asked for %+v", q)
	}
	for _, bad := range []string{"status=nonsense", "status=", "limit=0", "limit=1001", "limit=x", "deployment=x"} {
		if w := f.request("GET", "/perdure/invocations?"+bad, ""); w.Code != 400 || !strings.Contains(w.Body.String(), `"message"`) {
			t.Errorf("%s: %d %s", bad, w.Code, w.Body)
		}
	}
}
