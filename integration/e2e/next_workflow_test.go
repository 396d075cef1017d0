package e2e

import (
	"encoding/json"
	"fmt"
	"testing"

	"perdure/integration/services"
)

const already = `{"code":409,"message":"the workflow method was already invoked","source":"invocation"}`

func TestNextWorkflow(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key := fresh(t)
		on := func(h string) string { return e.path("Flow", key, h) }
		equal(t, "peek before", call[*string](t, e, on("peek"), nil), (*string)(nil))
		id := e.send(t, on("run"), "in")
		a := e.in(t, request{path: on("run") + "/send", body: `"other"`})
		check(t, a, want{status: 202, json: `{"invocationId":"` + id + `","status":"PreviouslyAccepted"}`})
		check(t, e.in(t, request{path: on("run"), body: `"other"`}), want{status: 409, json: already,
			header: map[string]string{"x-restate-error-source": "invocation", "x-restate-id": id}})
		poll(t, "stage waiting", func() error {
			if s := call[*string](t, e, on("stage"), nil); s == nil || *s != "waiting" {
				return fmt.Errorf("stage is %v", s)
			}
			return nil
		})
		check(t, e.in(t, request{method: "GET", path: "/restate/workflow" + e.path("Flow", key) + "/output"}),
			want{status: 470, json: ingressError(470, "the invocation exists but has not completed yet"), header: fromIngress})
		attached := e.background(t, request{method: "GET", path: "/restate/workflow" + e.path("Flow", key) + "/attach"})
		awaiting := e.later(t, on("await"), nil)
		call[any](t, e, on("finish"), "v")
		equal(t, "await", decode[string](t, awaiting(), 200), "v")
		check(t, attached(), want{status: 200, json: `"in:v"`, header: map[string]string{"x-restate-id": id}})
		equal(t, "by id", decode[string](t, e.attach(t, id), 200), "in:v")
		// The promise stays completed, the state stays, and the run cannot be repeated.
		for _, h := range []string{"finish", "fail"} {
			check(t, e.in(t, request{path: on(h), body: `"again"`}), want{status: 409, json: `{"code":409,"message":"promise was already completed","source":"invocation"}`})
		}
		equal(t, "peek", call[*string](t, e, on("peek"), nil), ptr("v"))
		equal(t, "await", call[string](t, e, on("await"), nil), "v")
		equal(t, "stage", call[*string](t, e, on("stage"), nil), ptr("done"))
		check(t, e.in(t, request{path: on("run"), body: `"other"`}), want{status: 409, json: already})
		lookup := toJSON(t, map[string]string{"target": "workflow", "workflowName": e.prefix + "Flow", "workflowKey": key})
		check(t, e.in(t, request{path: "/restate/lookup", body: lookup}), want{status: 200, json: `{"invocationId":"` + id + `"}`})
		for _, op := range []string{"attach", "output"} {
			check(t, e.in(t, request{method: "GET", path: "/restate/workflow" + e.path("Flow", key) + "/" + op}),
				want{status: 200, json: `"in:v"`, header: map[string]string{"x-restate-id": id, "idempotency-expires": "<rfc3339o>"}})
			check(t, e.in(t, request{path: "/restate/" + op, body: lookup}), want{status: 200, json: `"in:v"`})
		}
	})
}

func TestNextWorkflowPromiseRejected(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key := fresh(t)
		run := e.later(t, e.path("Flow", key, "run"), "in")
		call[any](t, e, e.path("Flow", key, "fail"), "no way")
		check(t, run(), want{status: 500, json: `{"code":500,"message":"no way","source":"invocation"}`})
	})
}

func TestNextWorkflowRetention(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key := fresh(t)
		on := func(h string) string { return e.path("BriefFlow", key, h) }
		run := e.later(t, on("run"), "in")
		poll(t, "the run waits", func() error {
			if s := call[*string](t, e, on("stage"), nil); s == nil {
				return fmt.Errorf("no stage yet")
			}
			return nil
		})
		call[any](t, e, on("finish"), "v")
		equal(t, "run", decode[string](t, run(), 200), "in:v")
		poll(t, "the run is forgotten", func() error {
			if a := e.in(t, request{method: "GET", path: "/restate/workflow" + e.path("BriefFlow", key) + "/output"}); a.status != 404 {
				return fmt.Errorf("%v", a)
			}
			return nil
		})
		// State and promises went with it, and the key can be used again.
		poll(t, "the state is gone", func() error {
			if s := call[*string](t, e, on("stage"), nil); s != nil {
				return fmt.Errorf("stage is %s", *s)
			}
			return nil
		})
		equal(t, "peek", call[*string](t, e, on("peek"), nil), (*string)(nil))
		run = e.later(t, on("run"), "again")
		poll(t, "the second run waits", func() error {
			if s := call[*string](t, e, on("stage"), nil); s == nil {
				return fmt.Errorf("no stage yet")
			}
			return nil
		})
		call[any](t, e, on("finish"), "w")
		equal(t, "second run", decode[string](t, run(), 200), "again:w")
	})
}

// Who waits for a promise when its workflow is forgotten is told that there will be none.
func TestNextWorkflowForgottenBeforeItsPromise(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key := fresh(t)
		on := func(h string) string { return e.path("Flow", key, h) }
		run := e.send(t, on("run"), "in")
		waiting := e.send(t, on("await"), nil)
		e.awaitEntry(t, waiting, "Command: GetPromise")
		e.stop(t, waiting)
		check(t, e.end(t, run, "kill"), want{status: 200, empty: true})
		check(t, e.end(t, run, "purge"), want{status: 200, empty: true})
		// A suspended invocation is not paused but left suspended: then it may have been told and be over by now.
		if a := e.end(t, waiting, "resume"); a.status == 409 {
			check(t, a, want{status: 409, json: adminError("The invocation '" + waiting + "' is completed, cannot be resumed.")})
		} else {
			check(t, a, want{status: 200, empty: true})
		}
		if differs(t, "forgotten-promise") {
			check(t, e.end(t, waiting, "kill"), want{status: 200, empty: true})
			return
		}
		check(t, e.attach(t, waiting), want{status: 410, json: `{"code":410,"message":"the workflow of the promise 'done' was forgotten","source":"invocation"}`})
	})
}

func TestNextAttachFromHandler(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		token := fresh(t)
		id := e.send(t, e.path("Blocker", fresh(t), "hold"), token)
		e.awaitLines(t, token, 1)
		attached := e.later(t, e.path("Caller", "attach"), id)
		e.open(t, token)
		equal(t, "running", decode[services.Outcome](t, attached(), 200), services.Outcome{Output: json.RawMessage(`"done"`)})
		equal(t, "completed", call[services.Outcome](t, e, e.path("Caller", "attach"), id), services.Outcome{Output: json.RawMessage(`"done"`)})
		equal(t, "unknown", call[services.Outcome](t, e, e.path("Caller", "attach"), unknownID), services.Outcome{Failure: &services.Failure{Code: 404, Message: "not found"}})
	})
}
