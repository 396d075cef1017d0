package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"perdure/integration/scripted"
	"perdure/integration/services"
)

// ingressError is the body of an error that the ingress itself makes.
func ingressError(code int, message string) string {
	b, _ := json.Marshal(map[string]any{"code": code, "message": message, "source": "ingress"})
	return string(b)
}

const varyCORS = "origin, access-control-request-method, access-control-request-headers"

// fromIngress are the headers of every answer with an error of the ingress.
var fromIngress = map[string]string{"content-type": "application/json", "x-restate-error-source": "ingress", "x-restate-id": "-",
	"vary": varyCORS, "access-control-allow-credentials": "true"}

const (
	badPathCall       = "bad path, expected either /:service-name/:handler or /:object-name/:object-key/:handler"
	badPathInvocation = "bad path, expected either /restate/invocation/:invocation_id/output or /restate/invocation/:invocation_id/attach or /restate/invocation/:invocation_target/:idempotency_key/output or /restate/invocation/:invocation_target/:idempotency_key/attach"
	badPathWorkflow   = "bad path, expected either /restate/workflow/:workflow_name/:workflow_key/output or /restate/workflow/:workflow_name/:workflow_key/attach"
	badPathAwakeables = "bad path, expected either /restate/awakeables/:id/resolve or /restate/awakeables/:id/reject"
	badPathAPI        = "bad path, expected /restate/call/:service/:handler, /restate/send/:service/:handler, /restate/scope/:scope/call/:service/:handler, /restate/attach/:invocation_id, /restate/output/:invocation_id, or /restate/lookup"
)

func notRegistered(service string) string {
	return "service '" + service + "' not found, make sure to register the service before calling it."
}

func TestIngressErrors(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	greet := e.path("Greeter", "greet")
	const x = `"x"`
	text := map[string]string{"Content-Type": "text/plain"}
	for name, c := range map[string]struct {
		r       request
		code    int
		message string
	}{
		"root":                      {request{method: "GET", path: "/"}, 400, "bad path: /"},
		"one segment":               {request{method: "GET", path: "/x"}, 400, "bad path: /x"},
		"nine segments":             {request{method: "GET", path: "/a/b/c/d/e/f/g/h/i"}, 400, "bad path: /a/b/c/d/e/f/g/h/i"},
		"unknown service":           {request{path: "/NoSuch/h", body: x}, 404, notRegistered("NoSuch")},
		"unknown, many segments":    {request{path: "/NoSuch/b/c/d/e", body: x}, 404, notRegistered("NoSuch")},
		"unknown handler":           {request{path: e.path("Greeter", "nope"), body: x}, 404, "the service '" + e.prefix + "Greeter' exists, but the handler 'nope' was not found, check that the handler exists in the latest registered service version."},
		"object without key":        {request{method: "GET", path: e.path("Counter", "get")}, 400, badPathCall},
		"send to send":              {request{path: greet + "/send/send", body: x}, 400, badPathCall},
		"put":                       {request{method: "PUT", path: greet, body: x}, 405, "method not allowed"},
		"delete":                    {request{method: "DELETE", path: greet}, 405, "method not allowed"},
		"patch":                     {request{method: "PATCH", path: greet, body: x}, 405, "method not allowed"},
		"no content type":           {request{path: greet, header: map[string]string{"Content-Type": ""}}, 400, "input validation error: Empty content-type"},
		"get without content type":  {request{method: "GET", path: greet}, 400, "input validation error: Empty content-type"},
		"wrong content type":        {request{path: greet, body: x, header: text}, 400, "input validation error: Content-type 'text/plain' does not match 'application/json'"},
		"empty body":                {request{path: greet, header: map[string]string{"Content-Type": "application/json"}}, 400, "input validation error: Empty body not allowed"},
		"body where none may be":    {request{path: e.path("Greeter", "nothing"), body: x}, 400, `input validation error: Expected body and content-type to be empty, but wasn't with content-type 'Some("application/json")'`},
		"delay on a call":           {request{path: greet + "?delay=1s", body: x}, 400, "cannot use the delay query parameter with calls. The delay is supported only with sends"},
		"delay that is none":        {request{path: greet + "/send?delay=bogus", body: x}, 400, "bad delay query parameter, must be a ISO8601 duration: …"},
		"delay that is empty":       {request{path: greet + "/send?delay=", body: x}, 400, "bad delay query parameter, must be a ISO8601 duration: …"},
		"limit key header":          {request{path: greet, body: x, header: map[string]string{"x-restate-limit-key": "a"}}, 400, "limit-key requires a scope to be set"},
		"limit key query":           {request{path: greet + "?limit-key=a", body: x}, 400, "limit-key requires a scope to be set"},
		"limit key too deep":        {request{path: greet, body: x, header: map[string]string{"x-restate-limit-key": "a/b/c"}}, 400, "invalid limit-key: too many path components in the given limit-key (max 2)"},
		"scope":                     {request{path: "/restate/scope/sc/call" + greet, body: x}, 400, "scoped invocations require vqueues to be enabled"},
		"idempotent workflow":       {request{path: e.path("Flow", "k", "run"), body: x, header: map[string]string{"Idempotency-Key": "k"}}, 400, "cannot use the idempotency key with workflow handlers. The handler invocation will already be idempotent by the workflow key itself."},
		"openapi":                   {request{method: "GET", path: "/openapi"}, 400, "bad path: /openapi"},
		"below openapi":             {request{method: "GET", path: "/openapi/x"}, 404, "not found"},
		"restate":                   {request{method: "GET", path: "/restate"}, 400, "bad path: /restate"},
		"restate with slash":        {request{method: "GET", path: "/restate/"}, 400, "bad path: /restate"},
		"restate nothing":           {request{method: "GET", path: "/restate/nope"}, 404, "not found"},
		"restate call":              {request{path: "/restate/call"}, 400, badPathAPI},
		"restate call of nothing":   {request{path: "/restate/call/NoSuch", body: x}, 404, notRegistered("NoSuch")},
		"restate call to send":      {request{path: "/restate/call" + e.path("Counter", "k", "add") + "/send", body: "1"}, 400, badPathAPI},
		"health post":               {request{path: "/restate/health"}, 405, "method not allowed"},
		"invocation":                {request{method: "GET", path: "/restate/invocation"}, 400, badPathInvocation},
		"invocation id":             {request{method: "GET", path: "/restate/invocation/x"}, 400, badPathInvocation},
		"invocation nothing":        {request{method: "GET", path: "/restate/invocation/x/y"}, 404, "not found"},
		"invocation attach post":    {request{path: "/restate/invocation/" + unknownID + "/attach"}, 405, "method not allowed"},
		"invocation output unknown": {request{method: "GET", path: "/restate/invocation/" + unknownID + "/output"}, 404, "invocation not found"},
		"output unknown":            {request{method: "GET", path: "/restate/output/" + unknownID}, 404, "invocation not found"},
		"idempotent output unknown": {request{method: "GET", path: "/restate/invocation" + greet + "/unused/output"}, 404, "invocation not found"},
		"keyed output unknown":      {request{method: "GET", path: "/restate/invocation" + e.path("Counter", "k", "add", "unused") + "/output"}, 404, "invocation not found"},
		"attach by unknown service": {request{method: "GET", path: "/restate/invocation/NoSuch/add/unused/attach"}, 404, notRegistered("NoSuch")},
		"workflow":                  {request{method: "GET", path: "/restate/workflow/x"}, 400, badPathWorkflow},
		"workflow output unknown":   {request{method: "GET", path: "/restate/workflow" + e.path("Flow", "unused") + "/output"}, 404, "invocation not found"},
		"workflow of no service":    {request{method: "GET", path: "/restate/workflow/NoSuch/k/output"}, 404, "invocation not found"},
		"awakeables":                {request{path: "/restate/awakeables"}, 400, badPathAwakeables},
		"awakeable id":              {request{path: "/restate/awakeables/bad/resolve", body: x}, 400, "bad awakeable id 'bad': bad format"},
		"awakeable nothing":         {request{path: "/restate/awakeables/bad/nope", body: x}, 404, "not found"},
		"awakeable get":             {request{method: "GET", path: "/restate/awakeables/" + nobody + "/resolve"}, 405, "method not allowed"},
		"lookup get":                {request{method: "GET", path: "/restate/lookup"}, 405, "method not allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			check(t, e.in(t, c.r), want{status: c.code, json: ingressError(c.code, c.message), header: fromIngress})
		})
	}
}

// nobody is a well-formed awakeable id of an invocation that does not exist.
const nobody = "sign_1346YRn8WZVw6N44idZCnF_XEnJa1PJQoAAAAEQ"

func TestIngressBadInvocationIDs(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	for id, reason := range badIDs {
		for _, p := range []string{"/restate/invocation/" + id + "/attach", "/restate/invocation/" + id + "/output", "/restate/attach/" + id, "/restate/output/" + id} {
			check(t, e.in(t, request{method: "GET", path: p}), want{status: 400, json: ingressError(400, "bad invocation id '"+id+"': "+reason), header: fromIngress})
		}
	}
}

// TestAttachToNothing: unlike output, attach is answered by the layer of invocations.
func TestAttachToNothing(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	for _, p := range []string{"/restate/invocation/" + unknownID + "/attach", "/restate/attach/" + unknownID,
		"/restate/invocation" + e.path("Greeter", "greet", "unused") + "/attach", "/restate/workflow" + e.path("Flow", "unused") + "/attach"} {
		check(t, e.in(t, request{method: "GET", path: p}), want{status: 404, json: `{"code":404,"message":"not found","source":"invocation"}`,
			header: map[string]string{"content-type": "application/json", "x-restate-error-source": "invocation", "x-restate-id": "<inv>"}})
	}
}

func TestIngressAwakeablesOfNobody(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	for _, id := range []string{nobody, strings.Replace(nobody, "sign_1", "prom_1", 1)} {
		for _, p := range []string{"/restate/awakeables/", "/restate/a/"} {
			for _, op := range []string{"/resolve", "/reject"} {
				check(t, e.in(t, request{path: p + id + op, body: "x"}), want{status: 202, empty: true, header: map[string]string{"content-type": "-", "vary": varyCORS}})
			}
		}
	}
}

func TestIngressHealth(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	a := e.in(t, request{method: "GET", path: "/restate/health"})
	check(t, a, want{status: 200, json: `{"services":"<any>"}`, header: map[string]string{"content-type": "application/json", "vary": varyCORS}})
	got := decode[struct{ Services []string }](t, a, 200)
	have := map[string]bool{}
	for _, s := range got.Services {
		have[s] = true
	}
	for _, n := range services.Names {
		if !have[e.prefix+n] {
			t.Errorf("service %s is missing in %v", e.prefix+n, got.Services)
		}
	}
}

func TestIngressPaths(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	ok := want{status: 200, json: `"Hello, x!"`, header: map[string]string{"content-type": "application/json", "x-restate-id": "<inv>",
		"vary": varyCORS, "access-control-allow-credentials": "true", "access-control-allow-origin": "-"}}
	greet := e.path("Greeter", "greet")
	for _, p := range []string{greet, greet + "/", greet + "?unused=1", "/restate/call" + greet} {
		check(t, e.in(t, request{path: p, body: `"x"`}), ok)
	}
	check(t, e.in(t, request{path: greet, body: `"x"`, header: map[string]string{"Content-Type": "application/json; charset=utf-8"}}), ok)
	check(t, e.in(t, request{method: "GET", path: e.path("Greeter", "echo")}), want{status: 200, empty: true, header: map[string]string{"content-type": "application/octet-stream"}})
	accepted := want{status: 202, json: `{"invocationId":"<inv>","status":"Accepted"}`, header: map[string]string{"content-type": "application/json", "x-restate-id": "<inv>", "vary": varyCORS}}
	for _, p := range []string{greet + "/send", greet + "/send/", "/restate/send" + greet} {
		a := e.in(t, request{path: p, body: `"x"`})
		check(t, a, accepted)
		s := decode[sent](t, a, 202)
		equal(t, "id in the header", a.header.Get("x-restate-id"), s.InvocationID)
		equal(t, "result", decode[string](t, e.attach(t, s.InvocationID), 200), "Hello, x!")
	}
	key := fresh(t)
	check(t, e.in(t, request{path: "/restate/call" + e.path("Counter", key, "add"), body: "1"}), want{status: 200, json: `{"old":0,"new":1}`})
	check(t, e.in(t, request{path: "/restate/send" + e.path("Counter", key, "add"), body: "1"}), accepted)
	// An empty key is a key.
	check(t, e.in(t, request{path: "/" + e.prefix + "Counter//get"}), want{status: 200, json: "0"})
}

func TestKeysArePercentDecoded(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	base := fresh(t)
	for _, spelling := range [][2]string{{"%2Fb%20%C3%BC", "%2fb%20%c3%bc"}, {"a%2Bb", "a+b"}, {"a%7Eb", "a~b"}} {
		path := func(k string) string { return "/" + e.prefix + "Counter/" + base + k + "/add" }
		equal(t, spelling[0], call[services.Added](t, e, path(spelling[0]), 1), services.Added{Old: 0, New: 1})
		equal(t, spelling[1], call[services.Added](t, e, path(spelling[1]), 1), services.Added{Old: 1, New: 2})
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	notYet := want{status: 470, json: ingressError(470, "the invocation exists but has not completed yet"), header: fromIngress}
	t.Run("1h", func(t *testing.T) {
		t.Parallel()
		s := decode[sent](t, e.in(t, request{path: e.path("Greeter", "greet") + "/send?delay=1h", body: `"x"`}), 202)
		check(t, e.in(t, request{method: "GET", path: "/restate/invocation/" + s.InvocationID + "/output"}), notYet)
		check(t, e.end(t, s.InvocationID, "kill"), want{status: 200, empty: true})
	})
	for _, d := range []string{"300ms", "PT0.3S", "300%20milliseconds", "0s", "PT0S"} {
		t.Run(d, func(t *testing.T) {
			t.Parallel()
			t0 := time.Now()
			a := e.in(t, request{path: e.path("Greeter", "greet") + "/send?delay=" + d, body: `"x"`})
			if strings.HasPrefix(d, "0") || d == "PT0S" {
				decode[sent](t, a, 202)
				return
			}
			check(t, a, want{status: 202, json: `{"invocationId":"<inv>","executionTime":"<rfc3339n>","status":"Accepted"}`})
			s := decode[sent](t, a, 202)
			at, err := time.Parse(time.RFC3339Nano, s.ExecutionTime)
			if err != nil || at.Before(t0.Add(299*time.Millisecond)) || at.After(time.Now().Add(301*time.Millisecond)) {
				t.Errorf("execution time %s (%v), sent at %v", s.ExecutionTime, err, t0)
			}
			output := e.in(t, request{method: "GET", path: "/restate/invocation/" + s.InvocationID + "/output"})
			if output.status == 470 || time.Since(t0) < 300*time.Millisecond { // later it may have run
				check(t, output, notYet)
			}
			equal(t, "result", decode[string](t, e.attach(t, s.InvocationID), 200), "Hello, x!")
			if took := time.Since(t0); took < 300*time.Millisecond {
				t.Errorf("ran after %v", took)
			}
		})
	}
}

func TestForwardedHeaders(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	path := e.path("Greeter", "headers") + "?q=1&r=%20x"
	req, err := http.NewRequestWithContext(t.Context(), "POST", e.ingress+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{"X-Plain": {"a"}, "X-Twice": {"first", "second"}, "Idempotency-Key": {fresh(t)}, "Idempotency-Expires": {"1"},
		"Authorization": {"Bearer t"}, "User-Agent": {"agent"}, "Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
	resp, err := e.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got map[string]string
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	delete(got, "content-length") // whether an empty body has one is the client's affair
	equal(t, "headers", got, map[string]string{"x-restate-ingress-path": path, "x-plain": "a", "x-twice": "first", "authorization": "Bearer t",
		"user-agent": "agent", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
}

func TestCORS(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	a := e.in(t, request{method: "OPTIONS", path: e.path("Greeter", "greet"), header: map[string]string{"Origin": "http://o.example",
		"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,idempotency-key"}})
	check(t, a, want{status: 200, empty: true, header: map[string]string{"access-control-allow-origin": "http://o.example", "access-control-allow-methods": "POST",
		"access-control-allow-headers": "content-type,idempotency-key", "access-control-allow-credentials": "true", "vary": varyCORS}})
	a = e.in(t, request{method: "OPTIONS", path: e.path("Greeter", "greet")})
	check(t, a, want{status: 200, empty: true, header: map[string]string{"access-control-allow-origin": "-", "vary": varyCORS}})
	for _, path := range []string{e.path("Greeter", "greet"), "/NoSuch/h"} {
		a = e.in(t, request{path: path, body: `"x"`, header: map[string]string{"Origin": "http://o.example"}})
		equal(t, "origin", a.header.Get("access-control-allow-origin"), "http://o.example")
		equal(t, "credentials", a.header.Get("access-control-allow-credentials"), "true")
	}
}

func TestBodyLimit(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	// The announced length is enough: no body is sent.
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(e.ingress, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", e.path("Greeter", "echo"), 33<<20)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	equal(t, "status", resp.StatusCode, 413)
	equal(t, "content type", resp.Header.Get("content-type"), "text/plain; charset=utf-8")
	equal(t, "body", string(b), "length limit exceeded")
}

func TestInvalidFailureCodes(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	for _, c := range []struct{ code, status int }{{99, 500}, {1000, 500}, {0, 500}, {418, 418}, {999, 999}, {599, 599}} {
		a := e.in(t, request{path: e.path("Failing", "terminal"), body: toJSON(t, services.Failure{Code: c.code, Message: "m"})})
		check(t, a, want{status: c.status, json: fmt.Sprintf(`{"code":%d,"message":"m","source":"invocation"}`, c.code),
			header: map[string]string{"x-restate-error-source": "invocation"}})
	}
}

func TestAttachAndOutput(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key, token, ik := fresh(t), fresh(t), fresh(t)
		a := e.in(t, request{path: e.path("Blocker", key, "hold") + "/send", body: toJSON(t, token), header: map[string]string{"Idempotency-Key": ik}})
		id := decode[sent](t, a, 202).InvocationID
		e.awaitLines(t, token, 1)
		byKey := e.path("Blocker", key, "hold", ik)
		body := toJSON(t, map[string]string{"target": "idempotentInvocation", "service": e.prefix + "Blocker", "key": key, "handler": "hold", "idempotencyKey": ik})
		reads := func(op string) map[string]request {
			return map[string]request{
				op + " by id":       {method: "GET", path: "/restate/invocation/" + id + "/" + op},
				op + " by id, new":  {method: "GET", path: "/restate/" + op + "/" + id},
				op + " by key":      {method: "GET", path: "/restate/invocation" + byKey + "/" + op},
				op + " by key, new": {path: "/restate/" + op, body: body},
				op + " by id, post": {path: "/restate/" + op, body: toJSON(t, map[string]string{"target": "invocation", "invocationId": id})},
			}
		}
		for name, r := range reads("output") {
			t.Log(name)
			check(t, e.in(t, r), want{status: 470, json: ingressError(470, "the invocation exists but has not completed yet"), header: fromIngress})
		}
		waiting := map[string]func() *answer{}
		for name, r := range reads("attach") {
			waiting[name] = e.background(t, r)
		}
		e.open(t, token)
		for name, w := range waiting {
			t.Log(name)
			check(t, w(), want{status: 200, json: `"done"`, header: map[string]string{"content-type": "application/json", "x-restate-id": id}})
		}
		for _, op := range []string{"output", "attach"} {
			for name, r := range reads(op) {
				t.Log(name, "when completed")
				check(t, e.in(t, r), want{status: 200, json: `"done"`, header: map[string]string{"content-type": "application/json", "x-restate-id": id,
					"idempotency-expires": "<rfc3339o>"}})
			}
		}
		check(t, e.in(t, request{path: "/restate/lookup", body: body}), want{status: 200, json: toJSON(t, map[string]string{"invocationId": id}), header: jsonType})
	})
}

// TestLookupIsPure: ids follow from the target alone. The expected ones are known vectors, whatever the server.
func TestLookupIsPure(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	for body, id := range map[string]string{
		`{"target":"idempotentInvocation","service":"Svc","handler":"greet","idempotencyKey":"idem-1"}`:           "inv_12BbmfqHZ9cR0Uk5X6HJL2aSh1BUEzqNEQ",
		`{"target":"idempotentInvocation","service":"Svc2","handler":"greet","idempotencyKey":"myik"}`:            "inv_1kylDro75HNd3QSOSGcTLb6yW4voJfiFmt",
		`{"target":"idempotentInvocation","service":"Counter","key":"vk","handler":"add","idempotencyKey":"vi1"}`: "inv_15PfmMdSyug87D7OJUjeFntlmwU5ind3fs",
		`{"target":"workflow","workflowName":"Wf","workflowKey":"w1"}`:                                            "inv_12kpUQONmeFb2WqsVOkAjH4phS34cOyIC8",
		`{"target":"invocation","invocationId":"inv_1aaaaaaaaaaa0000000000000000000012"}`:                         unknownID,
	} {
		check(t, e.in(t, request{path: "/restate/lookup", body: body, header: map[string]string{"Content-Type": "text/plain"}}),
			want{status: 200, json: toJSON(t, map[string]string{"invocationId": id}), header: jsonType})
	}
	for name, body := range map[string]string{"truncated": "{", "no target": "{}", "unknown target": `{"target":"x"}`} {
		a := e.in(t, request{path: "/restate/lookup", body: body})
		if differs(t, "lookup-bad-body") {
			check(t, a, want{status: 500, json: ingressError(500, "cannot read body: invalid lookup body: …")})
			continue
		}
		t.Log(name)
		check(t, a, want{status: 400, json: ingressError(400, "…"), header: fromIngress})
	}
}

func TestIngressSpeaksHTTP2(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	var protos http.Protocols
	protos.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &protos}
	defer tr.CloseIdleConnections()
	for _, u := range []string{e.ingress + "/restate/health", e.admin + "/health"} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", u, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: tr, Timeout: patience}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
			t.Errorf("%s: %s over %s, want 200 over HTTP/2", u, resp.Status, resp.Proto)
		}
	}
}

// startScripted serves a scripted endpoint for one test.
func startScripted(t testing.TB, http1 bool) *scripted.Endpoint {
	t.Helper()
	s, err := scripted.Start(http1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close scripted endpoint: %v", err)
		}
	})
	return s
}

// TestInputAndOutputRules checks every form of input and output rule that a manifest can state.
func TestInputAndOutputRules(t *testing.T) {
	t.Parallel()
	s, svc := startScripted(t, false), "Rules"+strings.ReplaceAll(fresh(t), "-", "_")
	inputs := map[string]map[string]any{
		"anything":  nil,
		"none":      {"input": map[string]any{}},
		"any":       {"input": map[string]any{"contentType": "*/*"}},
		"required":  {"input": map[string]any{"required": true, "contentType": "application/json"}},
		"optional":  {"input": map[string]any{"required": false, "contentType": "application/json"}},
		"wild":      {"input": map[string]any{"required": true, "contentType": "text/*"}},
		"noOutput":  {"output": map[string]any{}},
		"outText":   {"output": map[string]any{"contentType": "text/plain"}},
		"outAlways": {"output": map[string]any{"contentType": "text/plain", "setContentTypeIfEmpty": true}},
	}
	var handlers []scripted.Handler
	for name, extra := range inputs {
		handlers = append(handlers, scripted.Handler{Name: name, Extra: extra})
		s.Handle(svc, name, func(a *scripted.Attempt) { a.Send(scripted.Output(string(a.Input())), scripted.End()) })
	}
	s.Discover(scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: svc, Handlers: handlers})})
	c := shared()
	if _, err := c.register(map[string]any{"uri": s.URL}); err != nil {
		t.Fatal(err)
	}
	const bad = "input validation error: "
	for _, tc := range []struct {
		handler, contentType, body string
		err                        string // "" for success
		out                        string // content type of a success, "-" for none
	}{
		{"anything", "", "", "", "-"},
		{"anything", "foo/bar", "x", "", "application/json"},
		{"none", "", "", "", "-"},
		{"none", "foo/bar", "x", bad + `Expected body and content-type to be empty, but wasn't with content-type 'Some("foo/bar")'`, ""},
		{"any", "foo/bar", "x", "", "application/json"},
		{"required", "application/json", "x", "", "application/json"},
		{"required", "application/json;charset=x", "x", "", "application/json"},
		{"required", "text/plain", "x", bad + "Content-type 'text/plain' does not match 'application/json'", ""},
		{"required", "", "", bad + "Empty content-type", ""},
		{"optional", "", "", "", "-"},
		{"optional", "application/json", "1", "", "application/json"},
		{"optional", "text/plain", "1", bad + "Content-type 'text/plain' does not match 'application/json'", ""},
		{"wild", "text/csv", "x", "", "application/json"},
		{"wild", "image/png", "x", bad + "Content-type 'image/png' does not match 'text/*'", ""},
		{"noOutput", "foo/bar", "x", "", "-"},
		{"outText", "foo/bar", "x", "", "text/plain"},
		{"outText", "", "", "", "-"},
		{"outAlways", "", "", "", "text/plain"},
	} {
		t.Run(tc.handler+"/"+tc.contentType+"/"+tc.body, func(t *testing.T) {
			a := c.in(t, request{path: "/" + svc + "/" + tc.handler, body: tc.body, header: map[string]string{"Content-Type": tc.contentType}})
			if tc.err != "" {
				check(t, a, want{status: 400, json: ingressError(400, tc.err), header: fromIngress})
				return
			}
			check(t, a, want{status: 200, text: tc.body, header: map[string]string{"content-type": tc.out, "x-restate-id": "<inv>"}})
		})
	}
}

// TestClientThatLeavesDoesNotStopTheInvocation: what was accepted runs, whether or not somebody waits for it.
func TestClientThatLeavesDoesNotStopTheInvocation(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	token, key := fresh(t), fresh(t)
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := e.try(ctx, e.ingress, request{path: e.path("Fifo", key, "holdPush"), body: toJSON(t, token)})
		left <- err
	}()
	e.awaitLines(t, token, 1)
	leave()
	if err := <-left; err == nil {
		t.Error("the call was answered before it could be")
	}
	e.open(t, token)
	poll(t, "the push", func() error {
		if l := call[[]string](t, e, e.path("Fifo", key, "list"), nil); len(l) != 1 {
			return fmt.Errorf("list is %v", l)
		}
		return nil
	})
}
