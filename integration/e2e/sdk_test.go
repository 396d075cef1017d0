package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	restate "github.com/restatedev/sdk-go"
	"github.com/restatedev/sdk-go/ingress"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"perdure/integration/harness"
	"perdure/integration/services"
)

// These tests go through what the SDKs offer and no other test uses.

var uuid4 = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func TestRandomnessIsReplayed(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		token := fresh(t)
		if got := call[string](t, e, e.path("Extras", "random"), token); !uuid4.MatchString(got) {
			t.Errorf("%q is no UUID", got)
		}
		l := e.lines(t, token)
		if len(l) != 2 || l[0] != l[1] {
			t.Errorf("two attempts drew %q", l)
		}
		other := fresh(t)
		call[string](t, e, e.path("Extras", "random"), other)
		if o := e.lines(t, other); o[0] == l[0] {
			t.Errorf("two invocations drew %q", l[0])
		}
	})
}

func TestExtras(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		equal(t, "a wait with a limit", call[string](t, e, e.path("Extras", "timeout"), 30), "timeout")
		poll(t, "a step that may fail for 150 ms is executed more than once", func() error { // unless the first takes so long
			token, begin := fresh(t), time.Now()
			f := call[services.Failure](t, e, e.path("Extras", "giveUp"), token)
			n, d := e.count(t, token), time.Since(begin)
			if w := fmt.Sprintf("execution %d fails", n); f.Code != 500 || !strings.Contains(f.Message, w) || d < 150*time.Millisecond {
				t.Errorf("given up after %d executions in %v: %+v", n, d, f)
			}
			if n < 2 {
				return errors.New("it was executed once")
			}
			return nil
		})
		equal(t, "a workflow", call[services.Outcome](t, e, e.path("Extras", "flow"), fresh(t)), services.Outcome{Output: json.RawMessage(`"in:v"`)})
		key := fresh(t)
		o := call[services.Outcome](t, e, e.path("Extras", "cancelled"), services.Target{Service: e.prefix + "Blocker", Key: key, Handler: "await", Input: json.RawMessage(`"` + key + `"`)})
		if o.Failure == nil || o.Failure.Code != 409 {
			t.Errorf("cancelled by a handler: %+v", o)
		}
		equal(t, "body", call[string](t, e, e.path("Extras", "body"), "x"), `"x"`)
		wantKey := ""
		if version7() && !differs(t, "v7-key") {
			wantKey = key
		}
		equal(t, "the idempotency key that the handler sees", call[string](t, e, e.path("Extras", "key"), nil, "Idempotency-Key", key), wantKey)
	})
}

func TestGoCodecsAndMethods(t *testing.T) {
	eachOf(t, func(v *variant) bool { return v.node == "" }, func(t *testing.T, e *endpoint) {
		in, err := proto.Marshal(wrapperspb.String("x"))
		if err != nil {
			t.Fatal(err)
		}
		binary := map[string]string{"Content-Type": "application/proto"}
		a := e.in(t, request{path: e.path("Golang", "proto"), body: string(in), header: binary})
		var out wrapperspb.StringValue
		if err := proto.Unmarshal(a.body, &out); err != nil || out.GetValue() != "proto x" || a.header.Get("Content-Type") != "application/proto" {
			t.Errorf("protobuf: %v, %v", a, err)
		}
		check(t, e.in(t, request{path: e.path("Golang", "proto"), body: "{}"}), want{status: 400})
		equal(t, "protobuf as JSON", call[string](t, e, e.path("Golang", "protoJSON"), "x"), "proto x")
		equal(t, "a call in protobuf", call[string](t, e, e.path("Golang", "callProto"), "y"), "proto y")
		equal(t, "a typed call", call[string](t, e, e.path("Golang", "typed"), "Ada"), "Hello, Ada!")
		key := fresh(t)
		for i, v := range []string{"a", "b"} {
			equal(t, "append", call[int](t, e, e.path("Reflected", key, "Append"), v), i+1)
		}
		equal(t, "joined", call[string](t, e, e.path("Reflected", key, "Joined"), nil), "a b")
		check(t, e.in(t, request{path: e.path("Reflected", key, "Reset")}), want{status: 200, empty: true})
		equal(t, "joined after reset", call[string](t, e, e.path("Reflected", key, "Joined"), nil), "")
	})
}

func onNode(v *variant) bool { return v.node != "" }

func TestTypeScript(t *testing.T) {
	eachOf(t, onNode, func(t *testing.T, e *endpoint) { e.typeScript(t, version7()) })
}

// TestNextV7TypeScript is TestTypeScript in version 7 of the service protocol, where handlers may say more.
func TestNextV7TypeScript(t *testing.T) {
	t.Parallel()
	needNode(t)
	if target.server == nil {
		t.Skip("the server under test was started by somebody else, so nobody can switch version 7 on")
	}
	s := harness.Start(t, target.kind, map[string]string{"EXPERIMENTAL_ENABLE_PROTOCOL_V7": "true"})
	c := newClient(s.Ingress(), s.Admin())
	if err := settle(c); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"bidi", "rr"} {
		ts, err := services.StartTypeScript(t.Context(), mode, mode == "rr")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(ts.Close)
		id, err := c.register(map[string]any{"uri": ts.URL})
		if err != nil {
			t.Fatal(err)
		}
		e := &endpoint{client: c, prefix: mode, id: id}
		t.Run(mode, func(t *testing.T) { t.Parallel(); e.typeScript(t, true) })
	}
}

// typeScript runs what only the TypeScript SDK offers.
func (e *endpoint) typeScript(t *testing.T, v7 bool) {
	for name, f := range map[string]func(*testing.T){
		"combinators": e.tsCombinators, "pause": e.tsPause, "mismatch": func(t *testing.T) { e.tsMismatch(t, v7) },
		"cancellation": e.tsCancellation, "errors": e.tsErrors, "clients": e.tsClients,
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); f(t) })
	}
}

func (e *endpoint) tsPath(handler string) string { return e.path("TypeScript", handler) }

func (e *endpoint) tsCombinators(t *testing.T) {
	for how, c := range map[string]struct {
		awakeables string // +N resolves with vN, -N rejects with no, in this order
		want       string
	}{
		"all":      {"+1 +0 +2", `["v0","v1","v2"]`},
		"any":      {"-0 +2", `"v2"`},
		"race":     {"-1", `"500 no"`},
		"settled":  {"-0 +2 +1", `["no","v1","v2"]`},
		"nested":   {"+2 -0 +1", `["v1","v2"]`},
		"deep":     {"-1 +2 +0", `["v0","v2"]`},
		"mapped":   {"+1 -0", `["no","v1","now"]`},
		"rejected": {"+0", `"v0"`},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			token := fresh(t)
			result := e.later(t, e.tsPath("combine"), map[string]string{"token": token, "how": how})
			ids := strings.Fields(e.awaitLines(t, token, 1)[0])
			for _, a := range strings.Fields(c.awakeables) {
				id, n := ids[a[1]-'0'], a[1:]
				r := request{path: "/restate/awakeables/" + id + "/resolve", body: `"v` + n + `"`}
				if a[0] == '-' {
					r = request{path: "/restate/awakeables/" + id + "/reject", body: "no", header: map[string]string{"Content-Type": "text/plain"}}
				}
				check(t, e.in(t, r), want{status: 202})
			}
			check(t, result(), want{status: 200, json: c.want})
		})
	}
	t.Run("one fails", func(t *testing.T) {
		t.Parallel()
		token := fresh(t)
		result := e.later(t, e.tsPath("combine"), map[string]string{"token": token, "how": "all"})
		id := strings.Fields(e.awaitLines(t, token, 1)[0])[1]
		check(t, e.in(t, request{path: "/restate/awakeables/" + id + "/reject", body: "no", header: map[string]string{"Content-Type": "text/plain"}}), want{status: 202})
		check(t, result(), want{status: 200, json: `"500 no"`})
	})
}

// tsPause: an invocation whose step wants to pause is paused, also before version 7.
func (e *endpoint) tsPause(t *testing.T) {
	token := fresh(t)
	id := e.send(t, e.tsPath("pause"), token)
	e.becomes(t, id, "paused")
	equal(t, "attempts", e.count(t, token), 1)
	check(t, e.end(t, id, "resume"), want{status: 200, empty: true})
	equal(t, "result", decode[string](t, e.attach(t, id), 200), "resumed")
	equal(t, "attempts", e.count(t, token), 2)

	late, begin := fresh(t), time.Now()
	equal(t, "retried later", call[string](t, e, e.tsPath("retryAfter"), late), "done")
	if d := time.Since(begin); d < 400*time.Millisecond || e.count(t, late) != 2 {
		t.Errorf("%d attempts in %v, want a second one after 400 ms", e.count(t, late), d)
	}
}

// tsMismatch: what becomes of an invocation whose code does something else in the second attempt is up to the handler in
// version 7.
func (e *endpoint) tsMismatch(t *testing.T, v7 bool) {
	retried := func(id, token string) {
		poll(t, id+" is retried", func() error {
			if n := e.count(t, token); n < 4 {
				return fmt.Errorf("%d attempts", n)
			}
			return nil
		})
		check(t, e.end(t, id, "kill"), want{status: 200, empty: true})
	}
	for handler, over := range map[string]func(id, token string){
		"mismatchRetry": retried,
		"mismatchPause": func(id, _ string) {
			e.becomes(t, id, "paused")
			check(t, e.end(t, id, "kill"), want{status: 200, empty: true})
		},
		"mismatchFail": func(id, _ string) {
			check(t, e.attach(t, id), want{status: 570, json: `{"code":570,"message":"…","source":"invocation"}`})
		},
	} {
		token := fresh(t)
		id := e.send(t, e.tsPath(handler), token)
		if !v7 {
			over = retried
		}
		over(id, token)
	}
}

// tsCancellation: a handler may be told of its cancellation instead of failing, and cancel its calls itself.
func (e *endpoint) tsCancellation(t *testing.T) {
	token := fresh(t)
	id := e.send(t, e.tsPath("explicit"), token)
	e.awaitLines(t, token, 1)
	e.awaitLines(t, token+"/called", 1)
	check(t, e.end(t, id, "cancel"), want{status: 202, empty: true})
	check(t, e.attach(t, id), want{status: 200, json: `{"first":"cancelled","same":true,"cancelled":1,"code":409}`})
	equal(t, "what was called", e.lines(t, token+"/called"), []string{"enter", "cleanup"})
}

func (e *endpoint) tsErrors(t *testing.T) {
	failed := services.Outcome{Failure: &services.Failure{Code: 418, Message: "teapot"}}
	type reason struct {
		ID      string `json:"id"`
		Name    string `json:"name,omitempty"`
		Code    int    `json:"code"`
		Message string `json:"message"`
	}
	key := fresh(t)
	held := e.later(t, e.path("Awaiter", key, "hold"), nil)
	call[any](t, e, e.tsPath("reject"), reason{ID: e.awakeableID(t, key), Code: 418, Message: "teapot"})
	equal(t, "awakeable", decode[services.Outcome](t, held(), 200), failed)
	id := e.send(t, e.path("Signaler", "wait"), "go")
	call[any](t, e, e.tsPath("reject"), reason{ID: id, Name: "go", Code: 418, Message: "teapot"})
	equal(t, "signal", decode[services.Outcome](t, e.attach(t, id), 200), failed)
	check(t, e.in(t, request{path: e.tsPath("asTerminal")}), want{status: 416, json: `{"code":416,"message":"out of range","source":"invocation"}`})
}

func (e *endpoint) tsClients(t *testing.T) {
	equal(t, "clients", call[string](t, e, e.tsPath("clients"), fresh(t)), "Hello, Ada! 3")
	dates := call[[]any](t, e, e.tsPath("date"), nil)
	if then, now := dates[0].(float64), dates[1].(float64); then > now {
		t.Errorf("the time of a replayed step is %v, after %v", then, now)
	}
	if _, err := time.Parse(time.RFC3339, dates[2].(string)); err != nil {
		t.Error(err)
	}
}

// TestTypeScriptIngressClient uses each part of the client's interface once. It sends a content type even without content,
// which handlers of the Go SDK refuse, so it is for those of its own SDK.
func TestTypeScriptIngressClient(t *testing.T) {
	t.Parallel()
	needNode(t)
	e := variants[slices.IndexFunc(variants, onNode)].on(t)
	out, err := services.RunTypeScriptClient(t.Context(), e.ingress, e.prefix, fresh(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := matchJSON(out, `{
		"call":"Hello, Ada!","header":"ts",
		"idempotent":[{"old":0,"new":1},{"old":0,"new":1},1],
		"sent":["Accepted","PreviouslyAccepted",true,true],"attached":"Hello, Bob!",
		"failure":{"status":418,"body":{"code":418,"message":"teapot","source":"invocation","metadata":{"a":"b"}}},
		"unknown":{"status":404,"body":{"code":404,"message":"…not found…","source":"ingress"}},
		"submitted":["Accepted","PreviouslyAccepted"],"early":false,"result":"in:v","output":{"ready":true,"result":"in:v"},"submission":"in:v",
		"resolved":{"output":"it"},"rejected":{"failure":{"code":500,"message":"no"}},
		"generic":"bytes","genericSend":"Accepted","scoped":"scoped invocations require vqueues to be enabled"
	}`); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestGoIngressClient uses each part of the Go client's interface once.
func TestGoIngressClient(t *testing.T) {
	t.Parallel()
	e, ctx := goBidi(t), t.Context()
	c := ingress.NewClient(e.ingress, ingress.WithHttpClient(e.http), ingress.WithAuthKey("a key"))
	key := fresh(t)
	must := func(what string, got, want any, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		equal(t, what, got, want)
	}
	s, err := ingress.Service[string, string](c, e.prefix+"Greeter", "greet").Request(ctx, "Ada")
	must("call", s, "Hello, Ada!", err)
	h, err := ingress.Service[restate.Void, map[string]string](c, e.prefix+"Greeter", "headers").Request(ctx, restate.Void{}, restate.WithHeaders(map[string]string{"x-a": "b"}))
	must("header", h["x-a"]+" "+h["authorization"], "b Bearer a key", err)
	add := ingress.Object[int, services.Added](c, e.prefix+"Counter", key, "add")
	for range 2 {
		n, err := add.Request(ctx, 2, restate.WithIdempotencyKey(key))
		must("idempotent", n, services.Added{Old: 0, New: 2}, err)
	}
	n, err := ingress.ObjectInvocationByIdempotencyKey[services.Added](c, e.prefix+"Counter", key, "add", key).Output(ctx)
	must("output by idempotency key", n, services.Added{Old: 0, New: 2}, err)
	simple, err := ingress.ObjectSend[int](c, e.prefix+"Counter", key, "add").Send(ctx, 3)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "status", simple.Status(), "Accepted")
	n, err = ingress.InvocationById[services.Added](c, simple.Id()).Attach(ctx)
	must("attach by id", n, services.Added{Old: 2, New: 5}, err)

	sent, err := ingress.Service[string, string](c, e.prefix+"Greeter", "greet").Send(ctx, "Bob", restate.WithDelay(time.Hour), restate.WithIdempotencyKey(key))
	if err != nil {
		t.Fatal(err)
	}
	var early *ingress.InvocationNotReadyError
	poll(t, "the delayed send arrives", func() error {
		if _, err := sent.Output(ctx); !errors.As(err, &early) {
			return fmt.Errorf("output: %v", err)
		}
		return nil
	})
	_, err = ingress.ServiceInvocationByIdempotencyKey[string](c, e.prefix+"Greeter", "greet", key).Output(ctx)
	if !errors.As(err, &early) {
		t.Errorf("output by idempotency key: %v", err)
	}
	check(t, e.end(t, sent.Id(), "cancel"), want{status: 200})
	var none *ingress.InvocationNotFoundError
	if _, err := sent.Output(ctx); !errors.As(err, &none) {
		t.Errorf("output of what was cancelled: %v", err)
	}

	run := ingress.Workflow[string, string](c, e.prefix+"Flow", key, "run")
	wf, err := run.Send(ctx, "in")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ingress.Workflow[string, restate.Void](c, e.prefix+"Flow", key, "finish").Request(ctx, "v"); err != nil {
		t.Error(err)
	}
	s, err = wf.Attach(ctx)
	must("workflow", s, "in:v", err)
	s, err = ingress.WorkflowHandle[string](c, e.prefix+"Flow", key).Attach(ctx)
	must("workflow by key", s, "in:v", err)
	twice, err := ingress.WorkflowSend[string](c, e.prefix+"Flow", key, "run").Send(ctx, "in")
	if err != nil || twice.Status() != "PreviouslyAccepted" || twice.Id() != wf.Id() {
		t.Errorf("workflow twice: %v, %v", twice, err)
	}
	var failed ingress.Error
	if _, err := run.Request(ctx, "in"); !errors.As(err, &failed) || failed.Code() != 409 || failed.Message() != "the workflow method was already invoked" || !failed.IsInvocationError() {
		t.Errorf("workflow called twice: %v", err)
	}
	if _, err := ingress.ServiceSend[string](c, e.prefix+"Nothing", "x").Send(ctx, ""); !errors.As(err, &failed) || failed.Code() != 404 || failed.IsInvocationError() {
		t.Errorf("unknown service: %v", err)
	}
}
