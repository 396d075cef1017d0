package e2e

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"

	"perdure/integration/services"
)

const unknownID = "inv_1aaaaaaaaaaa0000000000000000000012"

// badIDs are malformed invocation ids and what is wrong with them.
var badIDs = map[string]string{
	"nonsense":                               "bad format",
	"inv_nonsense":                           "unrecognized codec version",
	"inv_1x":                                 "bad length",
	"dp_1aaa":                                "id doesn't match the expected type",
	"inv_1aaaaaaaaaaa000000000000000000000-": "base62 decode error",
	"inv_1aaaaaaaaaaaZZZZZZZZZZZZZZZZZZZZZZ": "base62 decode error",
}

// end sends PATCH /invocations/{id}/{op}.
func (c *client) end(t testing.TB, id, op string) *answer {
	t.Helper()
	return c.adm(t, request{method: "PATCH", path: "/invocations/" + id + "/" + op})
}

func adminError(message string) string {
	b, _ := json.Marshal(map[string]any{"message": message, "restate_code": nil})
	return string(b)
}

var jsonType = map[string]string{"content-type": "application/json"}

func TestCancelRunsUserCode(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key, token := fresh(t), fresh(t)
		id := e.send(t, e.path("Blocker", key, "await"), token)
		e.awaitLines(t, token, 1)
		check(t, e.end(t, id, "cancel"), want{status: 202, empty: true})
		a := e.attach(t, id)
		check(t, a, want{status: 409, json: `{"code":409,"message":"…ancelled","source":"invocation"}`})
		equal(t, "lines", e.lines(t, token), []string{"enter", "cleanup"})
		check(t, e.end(t, id, "cancel"), want{status: 409, json: adminError("The invocation '" + id + "' was already completed."), header: jsonType})
		equal(t, "the key is free", call[string](t, e, e.path("Blocker", key, "free"), nil), "free")
	})
}

func TestCancelMayBeSurvived(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		token := fresh(t)
		id := e.send(t, e.path("Blocker", fresh(t), "swallow"), token)
		e.awaitLines(t, token, 1)
		check(t, e.end(t, id, "cancel"), want{status: 202, empty: true})
		equal(t, "result", decode[string](t, e.attach(t, id), 200), "survived 409")
	})
}

func TestCancelReachesCalledChildren(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key, token := fresh(t), fresh(t)
		id := e.send(t, e.path("Blocker", key, "tree"), token)
		e.awaitLines(t, token+"/called", 1)
		e.awaitLines(t, token+"/sent", 1)
		check(t, e.end(t, id, "cancel"), want{status: 202, empty: true})
		check(t, e.attach(t, id), want{status: 409, json: `{"code":409,"message":"…ancelled","source":"invocation"}`})
		equal(t, "called child", e.awaitLines(t, token+"/called", 2), []string{"enter", "cleanup"})
		equal(t, "called child's key is free", call[string](t, e, e.path("Blocker", key+"-called", "free"), nil), "free")
		equal(t, "sent child lives", e.lines(t, token+"/sent"), []string{"enter"})
	})
}

func TestCancelFromHandler(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		token := fresh(t)
		id := e.send(t, e.path("Blocker", fresh(t), "await"), token)
		e.awaitLines(t, token, 1)
		call[any](t, e, e.path("Caller", "cancel"), id)
		check(t, e.attach(t, id), want{status: 409, json: `{"code":409,"message":"…ancelled","source":"invocation"}`})
	})
}

func TestKillTree(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key, token := fresh(t), fresh(t)
		id := e.send(t, e.path("Blocker", key, "tree"), token)
		e.awaitLines(t, token+"/called", 1)
		e.awaitLines(t, token+"/sent", 1)
		check(t, e.end(t, id, "kill"), want{status: 200, empty: true})
		check(t, e.attach(t, id), want{status: 409, json: `{"code":409,"message":"killed","source":"invocation"}`})
		for _, k := range []string{key, key + "-called", key + "-sent"} {
			equal(t, "key "+k+" is free", call[string](t, e, e.path("Blocker", k, "free"), nil), "free")
		}
		equal(t, "no cleanup in the called child", e.lines(t, token+"/called"), []string{"enter"})
		check(t, e.end(t, id, "kill"), want{status: 409, json: adminError("The invocation '" + id + "' was already completed."), header: jsonType})
	})
}

func TestKillOfAWaitingCall(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key, token := fresh(t), fresh(t)
		result := e.later(t, e.path("Blocker", key, "hold"), token, "Idempotency-Key", token)
		e.awaitLines(t, token, 1)
		id := decode[sent](t, e.in(t, request{path: e.path("Blocker", key, "hold") + "/send", body: toJSON(t, token), header: map[string]string{"Idempotency-Key": token}}), 202).InvocationID
		check(t, e.end(t, id, "kill"), want{status: 200, empty: true})
		check(t, result(), want{status: 409, json: `{"code":409,"message":"killed","source":"invocation"}`,
			header: map[string]string{"x-restate-error-source": "invocation", "x-restate-id": id}})
		equal(t, "the key is free", call[string](t, e, e.path("Blocker", key, "free"), nil), "free")
		e.open(t, token)
	})
}

func TestEndInvocationsThatHaveNotStarted(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	key, token := fresh(t), fresh(t)
	holder := e.later(t, e.path("Blocker", key, "hold"), token)
	e.awaitLines(t, token, 1)
	for op, message := range map[string]string{"cancel": "canceled", "kill": "killed"} {
		waiting := e.later(t, e.path("Blocker", key, "hold"), fresh(t), "Idempotency-Key", token+op)
		poll(t, "the call is in the inbox", func() error {
			if a := e.in(t, request{method: "GET", path: "/restate/invocation" + e.path("Blocker", key, "hold", token+op) + "/output"}); a.status != 470 {
				return fmt.Errorf("%v", a)
			}
			return nil
		})
		a := e.in(t, request{path: e.path("Blocker", key, "hold") + "/send", body: toJSON(t, token), header: map[string]string{"Idempotency-Key": token + op}})
		check(t, a, want{status: 202, json: `{"invocationId":"<inv>","status":"PreviouslyAccepted"}`})
		inboxed := decode[sent](t, a, 202).InvocationID
		check(t, e.end(t, inboxed, op), want{status: 200, empty: true})
		check(t, waiting(), want{status: 409, json: fmt.Sprintf(`{"code":409,"message":%q,"source":"invocation"}`, message)})
		check(t, e.attach(t, inboxed), want{status: 404, json: `{"code":404,"message":"not found","source":"invocation"}`})
		check(t, e.in(t, request{method: "GET", path: "/restate/invocation/" + inboxed + "/output"}),
			want{status: 404, json: `{"code":404,"message":"invocation not found","source":"ingress"}`})
		check(t, e.end(t, inboxed, op), want{status: 404, json: adminError("The requested invocation '" + inboxed + "' does not exist")})

		a = e.in(t, request{path: e.path("Blocker", fresh(t), "hold") + "/send?delay=1h", body: toJSON(t, token)})
		scheduled := decode[sent](t, a, 202).InvocationID
		check(t, e.end(t, scheduled, op), want{status: 200, empty: true})
		check(t, e.end(t, scheduled, op), want{status: 404, json: adminError("The requested invocation '" + scheduled + "' does not exist")})
	}
	e.open(t, token)
	equal(t, "holder", decode[string](t, holder(), 200), "done")
}

func TestInvocationOperationsOnNothing(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	for _, op := range []string{"cancel", "kill", "purge", "purge-journal"} {
		check(t, e.end(t, unknownID, op), want{status: 404, json: adminError("The requested invocation '" + unknownID + "' does not exist"), header: jsonType})
		for id, reason := range badIDs {
			check(t, e.end(t, id, op), want{status: 400, json: adminError("The request field 'invocation_id' is invalid. Reason: " + reason), header: jsonType})
		}
	}
	check(t, e.adm(t, request{method: "GET", path: "/invocations/" + unknownID}), want{status: 405, empty: true, header: map[string]string{"allow": "<some>"}})
	for _, mode := range []string{"", "?mode=cancel", "?mode=kill", "?mode=purge", "?mode=Kill"} {
		check(t, e.adm(t, request{method: "DELETE", path: "/invocations/" + unknownID + mode}), want{status: 202, empty: true})
	}
	check(t, e.adm(t, request{method: "DELETE", path: "/invocations/" + unknownID + "?mode=nonsense"}), want{status: 400})
	check(t, e.adm(t, request{method: "DELETE", path: "/invocations/nonsense"}), want{status: 400,
		json: adminError("The request field 'invocation_id' is invalid. Reason: bad format"), header: jsonType})
}

func TestDeleteInvocation(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	token := fresh(t)
	id := e.send(t, e.path("Blocker", fresh(t), "await"), token)
	e.awaitLines(t, token, 1)
	check(t, e.adm(t, request{method: "DELETE", path: "/invocations/" + id + "?mode=kill"}), want{status: 202, empty: true})
	check(t, e.attach(t, id), want{status: 409, json: `{"code":409,"message":"killed","source":"invocation"}`})
}

func TestPurge(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	token := fresh(t)
	id := e.send(t, e.path("Blocker", fresh(t), "hold"), token)
	e.awaitLines(t, token, 1)
	for _, op := range []string{"purge", "purge-journal"} {
		check(t, e.end(t, id, op), want{status: 409, json: adminError("The invocation '" + id + "' is not yet completed."), header: jsonType})
	}
	e.open(t, token)
	equal(t, "result", decode[string](t, e.attach(t, id), 200), "done")
	check(t, e.end(t, id, "purge-journal"), want{status: 200, empty: true})
	equal(t, "result without journal", decode[string](t, e.attach(t, id), 200), "done")
	check(t, e.end(t, id, "purge"), want{status: 200, empty: true})
	poll(t, "purged", func() error {
		if a := e.attach(t, id); a.status != 404 {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
	check(t, e.end(t, id, "purge"), want{status: 404, json: adminError("The requested invocation '" + id + "' does not exist")})
}

func TestPurgedIdempotencyKeyIsFreeAgain(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	key, ik := fresh(t), fresh(t)
	add := func() (*answer, services.Added) {
		a := e.in(t, request{path: e.path("Counter", key, "add"), body: "1", header: map[string]string{"Idempotency-Key": ik}})
		return a, decode[services.Added](t, a, 200)
	}
	a, _ := add()
	check(t, e.end(t, a.header.Get("x-restate-id"), "purge"), want{status: 200, empty: true})
	poll(t, "the key is free", func() error {
		if _, got := add(); got.New != 2 {
			return fmt.Errorf("answered %+v", got)
		}
		return nil
	})
}

func TestRetentionExpires(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		ik := fresh(t)
		h := map[string]string{"Idempotency-Key": ik}
		a := e.in(t, request{path: e.path("Brief", "echo"), body: `"x"`, header: h})
		id := a.header.Get("x-restate-id")
		equal(t, "first", decode[string](t, a, 200), "x")
		poll(t, "the result is forgotten", func() error {
			if a := e.in(t, request{method: "GET", path: "/restate/invocation/" + id + "/output"}); a.status != 404 {
				return fmt.Errorf("%v", a)
			}
			return nil
		})
		a = e.in(t, request{path: e.path("Brief", "echo"), body: `"y"`, header: h})
		check(t, a, want{status: 200, json: `"y"`, header: map[string]string{"idempotency-expires": "-"}})
	})
}

// TestConcurrentAddsAreAllCounted guards the lock of a key under contention from ingress and services at once.
func TestConcurrentAddsAreAllCounted(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key := fresh(t)
		var wg sync.WaitGroup
		seen := make(chan int, 40)
		for range 40 {
			wg.Go(func() {
				a, err := e.try(t.Context(), e.ingress, request{path: e.path("Counter", key, "add"), body: "1"})
				if err != nil || a.status != 200 {
					t.Errorf("add: %v %v", a, err)
					return
				}
				var r services.Added
				if err := json.Unmarshal(a.body, &r); err != nil {
					t.Error(err)
				}
				seen <- r.New
			})
		}
		wg.Wait()
		close(seen)
		distinct := map[int]bool{}
		for n := range seen {
			distinct[n] = true
		}
		equal(t, "distinct answers", len(distinct), 40)
		equal(t, "count", call[int](t, e, e.path("Counter", key, "get"), nil), 40)
	})
}
