package e2e

import (
	"fmt"
	"testing"

	"perdure/integration/services"
)

// info is what the server's own introspection shows of an invocation.
type info struct {
	ID, Target, Status, Deployment string
	InvokedBy                      string `json:"invoked_by"`
	InvokedByID                    string `json:"invoked_by_id"`
	Protocol                       int    `json:"protocol_version"`
	Attempts                       int
	NextAttemptAt                  string       `json:"next_attempt_at"`
	LastFailure                    *infoFailure `json:"last_failure"`
	WaitingFor                     *infoFuture  `json:"waiting_for"`
	Result                         *struct {
		Result, Message string
		Code            int
	}
	Journal []struct {
		Index      int
		Type, Name string
	}
	Events []struct {
		Type    string
		Failure *infoFailure
	}
}

type infoFailure struct {
	Code                int
	ErrorCode           string `json:"error_code"`
	Message, Stacktrace string
	Command             *struct {
		Index      int
		Type, Name string
	} `json:"related_command"`
}

type infoFuture struct {
	Combinator   string
	Completions  []int
	Signals      []int
	NamedSignals []string `json:"named_signals"`
	Nested       []infoFuture
}

// inspect reads what the server shows of an invocation; only Perdure shows it in this form.
func (c *client) inspect(t testing.TB, id string) info {
	t.Helper()
	return decode[info](t, c.adm(t, request{method: "GET", path: "/perdure/invocations/" + id}), 200)
}

// awaitStatus waits until an invocation has the status and returns what is shown of it then.
func (c *client) awaitStatus(t testing.TB, id, status string) (i info) {
	t.Helper()
	poll(t, id+" is "+status, func() error {
		if i = c.inspect(t, id); i.Status != status {
			return fmt.Errorf("it is %s: %+v", i.Status, i)
		}
		return nil
	})
	return i
}

// needPerdure ends a test of what only Perdure offers, on another server.
func needPerdure(t *testing.T) {
	t.Helper()
	if target.kind != "perdure" {
		t.Skipf("%s does not offer this", target.kind)
	}
}

func TestNextInspectInvocation(t *testing.T) {
	needPerdure(t)
	t.Parallel()
	e := goBidi(t)
	check(t, e.adm(t, request{method: "GET", path: "/perdure/invocations/" + unknownID}), want{status: 404, json: adminError("The requested invocation '" + unknownID + "' does not exist")})

	token, key := fresh(t), fresh(t)
	id := e.send(t, e.path("Failing", "pausing"), token)
	i := e.awaitStatus(t, id, "paused")
	if f := i.LastFailure; f == nil || f.Code != 500 || f.ErrorCode != "RT0007" || f.Message != "still failing: "+token {
		t.Errorf("last failure %+v", f)
	}
	equal(t, "target", i.Target, e.prefix+"Failing/pausing")
	if n := len(i.Events); n != 2 || i.Events[0].Type != "TransientError" || i.Events[1].Type != "Paused" || i.Events[1].Failure == nil {
		t.Errorf("events %+v", i.Events)
	}
	check(t, e.end(t, id, "kill"), want{status: 200})
	if i = e.inspect(t, id); i.Status != "completed" || i.Result == nil || i.Result.Result != "failure" || i.Result.Code != 409 || i.Result.Message != "killed" {
		t.Errorf("killed: %+v", i)
	}

	scheduled := decode[sent](t, e.in(t, request{path: e.path("Greeter", "greet") + "/send?delay=1h", body: `"x"`}), 202).InvocationID
	equal(t, "status", e.inspect(t, scheduled).Status, "scheduled")
	holder := e.later(t, e.path("Blocker", key, "hold"), token)
	e.awaitLines(t, token, 1)
	e.awaitStatus(t, e.send(t, e.path("Blocker", key, "free"), nil), "pending")
	e.open(t, token)
	equal(t, "holder", decode[string](t, holder(), 200), "done")

	a := e.in(t, request{path: e.path("Runner", "once"), body: toJSON(t, fresh(t))})
	decode[services.Executed](t, a, 200)
	i = e.inspect(t, a.header.Get("x-restate-id"))
	var types []string
	for _, j := range i.Journal {
		types = append(types, j.Type)
	}
	equal(t, "journal", types, []string{"Command: Input", "Command: Run", "Notification: Run", "Command: Output"})
	equal(t, "deployment", i.Deployment, e.id)
	equal(t, "invoked by", i.InvokedBy, "ingress")

	type list struct{ Invocations []info }
	l := decode[list](t, e.adm(t, request{method: "GET", path: "/perdure/invocations?status=scheduled&service=" + e.prefix + "Greeter&limit=1000"}), 200)
	found := false
	for _, i := range l.Invocations {
		found = found || i.ID == scheduled
		equal(t, "status in the list", i.Status, "scheduled")
	}
	equal(t, "the scheduled one is listed", found, true)
	check(t, e.adm(t, request{method: "GET", path: "/perdure/invocations?status=bogus"}), want{status: 400})
	check(t, e.end(t, scheduled, "kill"), want{status: 200})
}
