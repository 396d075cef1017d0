package e2e

import (
	"encoding/json"
	"fmt"
	"reflect"
	"sort"
	"strings"
	"testing"
	"time"

	"perdure/integration/services"
)

func equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %#v, want %#v", what, got, want)
	}
}

func TestCall(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		equal(t, "greeting", call[string](t, e, e.path("Greeter", "greet"), "Ada"), "Hello, Ada!")
		a := e.in(t, request{path: e.path("Greeter", "nothing")})
		check(t, a, want{status: 200, empty: true, header: map[string]string{"x-restate-id": "<inv>"}})
		a = e.in(t, request{path: e.path("Greeter", "echo"), body: "\x00\x01\xff raw", header: map[string]string{"Content-Type": "application/octet-stream"}})
		check(t, a, want{status: 200, text: "\x00\x01\xff raw", header: map[string]string{"content-type": "application/octet-stream"}})
		id := e.in(t, request{path: e.path("Greeter", "id")})
		equal(t, "the id the handler sees", decode[string](t, id, 200), id.header.Get("x-restate-id"))
	})
}

func TestLargePayloads(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		const n = 2 << 20
		equal(t, "input length", call[int](t, e, e.path("Greeter", "length"), strings.Repeat("y", n)), n)
		equal(t, "output length", len(call[string](t, e, e.path("Greeter", "blob"), n)), n)
	})
}

func TestTerminalError(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		for _, f := range []services.Failure{
			{Code: 500, Message: "boom"},
			{Code: 418, Message: "teapot", Metadata: map[string]string{"reason": "tea", "k": "ü"}},
			{Code: 599, Message: "edge"},
			{Code: 400, Message: ""},
		} {
			w := map[string]any{"code": f.Code, "message": f.Message, "source": "invocation"}
			if f.Metadata != nil {
				w["metadata"] = f.Metadata
			}
			a := e.in(t, request{path: e.path("Failing", "terminal"), body: toJSON(t, f)})
			check(t, a, want{status: f.Code, json: toJSON(t, w), header: map[string]string{
				"content-type": "application/json", "x-restate-error-source": "invocation", "x-restate-id": "<inv>"}})
			equal(t, "the failure a caller catches", call[services.Failure](t, e, e.path("Failing", "caught"), f), f)
		}
	})
}

func TestTransientErrorIsRetried(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		equal(t, "attempts", call[int](t, e, e.path("Failing", "transient"), services.Flaky{Token: fresh(t), Failures: 3}), 4)
	})
}

func TestKillOnMaxAttempts(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		token := fresh(t)
		a := e.in(t, request{path: e.path("Failing", "killing"), body: toJSON(t, token)})
		check(t, a, want{status: 500, json: toJSON(t, map[string]any{"code": 500, "message": "…still failing: " + token, "source": "invocation", "...": ""}),
			header: map[string]string{"content-type": "application/json", "x-restate-error-source": "invocation", "x-restate-id": "<inv>"}})
		equal(t, "attempts", e.count(t, token), 2)
	})
}

func TestState(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key := fresh(t)
		on := func(h string) string { return e.path("Counter", key, h) }
		equal(t, "get of nothing", call[int](t, e, on("get"), nil), 0)
		equal(t, "keys of nothing", call[[]string](t, e, on("keys"), nil), []string{})
		for i := range 5 {
			equal(t, "add", call[services.Added](t, e, on("add"), 2), services.Added{Old: 2 * i, New: 2*i + 2})
		}
		equal(t, "get", call[int](t, e, on("get"), nil), 10)
		call[any](t, e, on("put"), map[string]string{"a": "1", "ключ": "2", "": "empty key", "z": ""})
		// The order of keys is the server's own when state is lazy, so only the set counts.
		keys := func() []string {
			k := call[[]string](t, e, on("keys"), nil)
			sort.Strings(k)
			return k
		}
		equal(t, "keys", keys(), []string{"", "a", "count", "z", "ключ"})
		equal(t, "read", call[string](t, e, on("read"), "ключ"), "2")
		equal(t, "an empty value", call[*string](t, e, on("read"), "z"), ptr(""))
		equal(t, "no value", call[*string](t, e, on("read"), "nope"), (*string)(nil))
		call[any](t, e, on("clear"), "count")
		equal(t, "after clear", call[int](t, e, on("get"), nil), 0)
		equal(t, "keys after clear", keys(), []string{"", "a", "z", "ключ"})
		call[any](t, e, on("mixed"), nil)
		equal(t, "keys after mixed", keys(), []string{"a", "c"})
		call[any](t, e, on("clearAll"), nil)
		equal(t, "keys after clearAll", call[[]string](t, e, on("keys"), nil), []string{})
	})
}

func ptr[T any](v T) *T { return &v }

func TestStateOutlivesFailure(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key := fresh(t)
		a := e.in(t, request{path: e.path("Counter", key, "addFail"), body: "7"})
		check(t, a, want{status: 418, json: `{"code":418,"message":"after the write","source":"invocation"}`})
		equal(t, "count after a terminal failure", call[int](t, e, e.path("Counter", key, "get"), nil), 7)
		equal(t, "count after a retry", call[int](t, e, e.path("Counter", key, "addRetry"), fresh(t)), 8)
		equal(t, "stored count", call[int](t, e, e.path("Counter", key, "get"), nil), 8)
	})
}

func TestStateIsPerKeyAndPerService(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key := fresh(t)
		call[any](t, e, e.path("Counter", key, "add"), 1)
		call[any](t, e, e.path("Counter", key+"x", "add"), 2)
		call[int](t, e, e.path("Fifo", key, "push"), "a")
		equal(t, "keys of the counter", call[[]string](t, e, e.path("Counter", key, "keys"), nil), []string{"count"})
		equal(t, "neighbour", call[int](t, e, e.path("Counter", key+"x", "get"), nil), 2)
	})
}

func TestRun(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		on := func(h string) string { return e.path("Runner", h) }
		token := fresh(t)
		equal(t, "once", call[services.Executed](t, e, on("once"), token), services.Executed{Value: "v-" + token, Executions: 1})
		token = fresh(t)
		equal(t, "not executed again by a replay", call[services.Executed](t, e, on("replayed"), token), services.Executed{Value: "v-" + token, Executions: 1})
		token = fresh(t)
		equal(t, "flaky", call[services.Executed](t, e, on("flaky"), services.Flaky{Token: token, Failures: 3}), services.Executed{Value: "v-" + token, Executions: 4})
		f := services.Failure{Code: 409, Message: "no way", Metadata: map[string]string{"a": "b"}}
		equal(t, "terminal", call[services.Failure](t, e, on("terminal"), f), f)
		token = fresh(t)
		got := call[services.Failure](t, e, on("exhausted"), token)
		if got.Code != 500 || !strings.Contains(got.Message, "execution 3 fails") {
			t.Errorf("exhausted: got %+v, want code 500 with the last failure", got)
		}
		equal(t, "executions of exhausted", e.count(t, token), 3)
		equal(t, "steps", call[int](t, e, on("steps"), 10), 45)
		equal(t, "parallel", call[int](t, e, on("parallel"), 10), 45)
	})
}

func TestSleep(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		t0 := time.Now()
		equal(t, "sleep", call[string](t, e, e.path("Sleeper", "sleep"), 300), "slept")
		if d := time.Since(t0); d < 300*time.Millisecond {
			t.Errorf("slept %v, want at least 300ms", d)
		}
		equal(t, "sleep of nothing", call[string](t, e, e.path("Sleeper", "sleep"), 0), "slept")
		equal(t, "parallel", call[int](t, e, e.path("Sleeper", "parallel"), []int{200, 10, 100}), 3)
		equal(t, "race", call[int](t, e, e.path("Sleeper", "race"), []int{3_600_000, 50, 3_600_000}), 1)
	})
}

func TestServiceCalls(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		on := func(h string) string { return e.path("Caller", h) }
		greet := services.Target{Service: e.prefix + "Greeter", Handler: "greet", Input: json.RawMessage(`"Bob"`)}
		equal(t, "call", call[services.Outcome](t, e, on("call"), greet), services.Outcome{Output: json.RawMessage(`"Hello, Bob!"`)})
		key := fresh(t)
		add := services.Target{Service: e.prefix + "Counter", Key: key, Handler: "add", Input: json.RawMessage(`3`)}
		equal(t, "object call", call[services.Outcome](t, e, on("call"), add), services.Outcome{Output: json.RawMessage(`{"old":0,"new":3}`)})
		equal(t, "chain", call[int](t, e, on("chain"), 5), 5)
		equal(t, "fan", call[int](t, e, on("fan"), 10), 10)
		h := services.Target{Service: e.prefix + "Greeter", Handler: "headers", Headers: map[string]string{"x-from": "caller"}}
		equal(t, "headers of a service call", call[services.Outcome](t, e, on("call"), h), services.Outcome{Output: json.RawMessage(`{"x-from":"caller"}`)})
		add.IdempotencyKey = fresh(t)
		ids := call[[]string](t, e, on("ids"), add)
		if ids[0] != ids[1] || ids[2] != ids[3] || ids[2] != `{"old":3,"new":6}` {
			t.Errorf("two calls with one idempotency key: got %q", ids)
		}
	})
}

func TestOneWayCalls(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key := fresh(t)
		call[any](t, e, e.path("Caller", "sends"), services.Target{Key: key, Input: json.RawMessage("8")})
		poll(t, "eight one-way adds", func() error {
			if n := call[int](t, e, e.path("Counter", key, "get"), nil); n != 8 {
				return fmt.Errorf("count is %d", n)
			}
			return nil
		})
		t0 := time.Now()
		id := call[string](t, e, e.path("Caller", "send"), services.Target{Service: e.prefix + "Counter", Key: key, Handler: "add", Input: json.RawMessage("5"), DelayMs: 400})
		// The caller has the id at once; the invocation itself is on its way to its partition.
		var result *answer
		poll(t, "the delayed send arrives", func() error {
			if result = e.attach(t, id); result.status == 404 {
				return fmt.Errorf("%v", result)
			}
			return nil
		})
		equal(t, "result of the delayed send", string(result.body), `{"old":8,"new":13}`)
		if d := time.Since(t0); d < 400*time.Millisecond {
			t.Errorf("a send delayed by 400ms ran after %v", d)
		}
	})
}

func TestSendToServiceThatIsPrivate(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		for svc, h := range map[string]string{"Private": "hello", "Half": "closed"} {
			for _, suffix := range []string{"", "/send"} {
				a := e.in(t, request{path: e.path(svc, h) + suffix, body: `"x"`})
				check(t, a, want{status: 400, json: `{"code":400,"message":"the invoked service is not public","source":"ingress"}`,
					header: map[string]string{"x-restate-error-source": "ingress", "content-type": "application/json"}})
			}
		}
		equal(t, "public handler", call[string](t, e, e.path("Half", "open"), "x"), "hello x")
		got := call[services.Outcome](t, e, e.path("Caller", "call"), services.Target{Service: e.prefix + "Private", Handler: "hello", Input: json.RawMessage(`"x"`)})
		equal(t, "call from a service", got, services.Outcome{Output: json.RawMessage(`"private hello to x"`)})
	})
}

// awakeableID waits until Awaiter/hold has published its awakeable.
func (e *endpoint) awakeableID(t testing.TB, key string) string {
	t.Helper()
	var id string
	poll(t, "awakeable of "+key, func() error {
		if id = call[string](t, e, e.path("Awaiter", key, "id"), nil); id == "" {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	if !placeholders["<sign>"].MatchString(id) {
		t.Errorf("awakeable id %q", id)
	}
	return id
}

func TestAwakeables(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		accepted := want{status: 202, empty: true}
		for name, c := range map[string]struct {
			complete func(key, id string)
			want     services.Outcome
		}{
			"ingress-resolve": {func(_, id string) {
				check(t, e.in(t, request{path: "/restate/awakeables/" + id + "/resolve", body: `"it"`}), accepted)
			}, services.Outcome{Output: json.RawMessage(`"it"`)}},
			"ingress-resolve-alias": {func(_, id string) {
				check(t, e.in(t, request{path: "/restate/a/" + id + "/resolve", body: `"it"`}), accepted)
			}, services.Outcome{Output: json.RawMessage(`"it"`)}},
			"ingress-reject": {func(_, id string) {
				check(t, e.in(t, request{path: "/restate/awakeables/" + id + "/reject", body: "no", header: map[string]string{"Content-Type": "text/plain"}}), accepted)
			}, services.Outcome{Failure: &services.Failure{Code: 500, Message: "no"}}},
			"handler-resolve": {func(key, id string) {
				call[any](t, e, e.path("Awaiter", key, "resolve"), services.Completion{ID: id, Value: "it"})
			}, services.Outcome{Output: json.RawMessage(`"it"`)}},
			"handler-reject": {func(key, id string) {
				call[any](t, e, e.path("Awaiter", key, "reject"), services.Completion{ID: id, Reason: "no"})
			}, services.Outcome{Failure: &services.Failure{Code: 500, Message: "no"}}},
		} {
			key := fresh(t)
			result := e.later(t, e.path("Awaiter", key, "hold"), nil)
			id := e.awakeableID(t, key)
			c.complete(key, id)
			equal(t, name, decode[services.Outcome](t, result(), 200), c.want)
			// Completing it once more is accepted and has no effect.
			check(t, e.in(t, request{path: "/restate/awakeables/" + id + "/resolve", body: `"again"`}), accepted)
		}
	})
}

func TestNamedSignals(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		for _, h := range []string{"resolve", "reject"} {
			id := e.send(t, e.path("Signaler", "wait"), "go")
			call[any](t, e, e.path("Signaler", h), services.Completion{ID: id, Name: "other", Value: "ignored", Reason: "ignored"})
			call[any](t, e, e.path("Signaler", h), services.Completion{ID: id, Name: "go", Value: "v", Reason: "no"})
			w := services.Outcome{Output: json.RawMessage(`"v"`)}
			if h == "reject" {
				w = services.Outcome{Failure: &services.Failure{Code: 500, Message: "no"}}
			}
			equal(t, h, decode[services.Outcome](t, e.attach(t, id), 200), w)
		}
	})
}

func TestExclusiveHandlersQueueInOrder(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key, token := fresh(t), fresh(t)
		first := e.later(t, e.path("Fifo", key, "holdPush"), token)
		e.awaitLines(t, token, 1)
		var ids []string
		wantList := []string{token}
		for i := range 10 {
			v := fmt.Sprint(i)
			ids = append(ids, e.send(t, e.path("Fifo", key, "push"), v))
			wantList = append(wantList, v)
		}
		// A shared handler gets in while the exclusive one holds the key, and sees what is committed.
		equal(t, "list while held", call[[]string](t, e, e.path("Fifo", key, "list"), nil), []string{})
		// Another key is free.
		equal(t, "push to another key", call[int](t, e, e.path("Fifo", key+"other", "push"), "x"), 1)
		e.open(t, token)
		equal(t, "first", decode[int](t, first(), 200), 1)
		for i, id := range ids {
			equal(t, "position", decode[int](t, e.attach(t, id), 200), i+2)
		}
		equal(t, "list", call[[]string](t, e, e.path("Fifo", key, "list"), nil), wantList)
	})
}

func TestSharedHandlersRunTogether(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key, token := fresh(t), fresh(t)
		var results []func() *answer
		for range 5 {
			results = append(results, e.later(t, e.path("Blocker", key, "holdShared"), token))
		}
		e.awaitLines(t, token, 5) // all are inside at the same time
		e.open(t, token)
		for _, r := range results {
			equal(t, "result", decode[string](t, r(), 200), "done")
		}
		l := e.lines(t, token)
		sort.Strings(l)
		equal(t, "lines", strings.Join(l, " "), "enter enter enter enter enter leave leave leave leave leave")
	})
}

func TestIdempotency(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key, ik := fresh(t), fresh(t)
		first := e.in(t, request{path: e.path("Counter", key, "add"), body: "1", header: map[string]string{"Idempotency-Key": ik}})
		check(t, first, want{status: 200, json: `{"old":0,"new":1}`, header: map[string]string{"x-restate-id": "<inv>", "idempotency-expires": "-"}})
		again := e.in(t, request{path: e.path("Counter", key, "add"), body: "1", header: map[string]string{"Idempotency-Key": ik}})
		check(t, again, want{status: 200, json: `{"old":0,"new":1}`, header: map[string]string{"x-restate-id": first.header.Get("x-restate-id"), "idempotency-expires": "<rfc3339o>"}})
		equal(t, "count", call[int](t, e, e.path("Counter", key, "get"), nil), 1)
		// The same key for another target is another invocation.
		other := e.in(t, request{path: e.path("Counter", key+"o", "add"), body: "1", header: map[string]string{"Idempotency-Key": ik}})
		if other.header.Get("x-restate-id") == first.header.Get("x-restate-id") {
			t.Errorf("two targets share %s", first.header.Get("x-restate-id"))
		}
		// A failure is kept as well.
		f := toJSON(t, services.Failure{Code: 409, Message: "kept", Metadata: map[string]string{"n": "1"}})
		for range 2 {
			a := e.in(t, request{path: e.path("Failing", "terminal"), body: f, header: map[string]string{"Idempotency-Key": ik}})
			check(t, a, want{status: 409, json: `{"code":409,"message":"kept","source":"invocation","metadata":{"n":"1"}}`})
		}
	})
}

func TestIdempotentCallersShareOneRun(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key, token, ik := fresh(t), fresh(t), fresh(t)
		var results []func() *answer
		for range 3 {
			results = append(results, e.later(t, e.path("Blocker", key, "hold"), token, "Idempotency-Key", ik))
		}
		e.awaitLines(t, token, 1)
		a := e.in(t, request{path: e.path("Blocker", key, "hold") + "/send", body: toJSON(t, token), header: map[string]string{"Idempotency-Key": ik}})
		s := decode[sent](t, a, 202)
		equal(t, "status of a later send", s.Status, "PreviouslyAccepted")
		e.open(t, token)
		for _, r := range results {
			got := r()
			equal(t, "result", decode[string](t, got, 200), "done")
			equal(t, "id", got.header.Get("x-restate-id"), s.InvocationID)
		}
		equal(t, "lines", e.lines(t, token), []string{"enter", "leave"})
	})
}
