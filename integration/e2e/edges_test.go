package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// edge is a request at the edge of an interface and its answer. With a difference, another server than Perdure answers
// with theirs instead.
type edge struct {
	name   string
	admin  bool
	r      request
	want   want
	differ string
	theirs want
}

// edges makes the requests, each as a test of its own.
func (c *client) edges(t *testing.T, cases []edge) {
	t.Helper()
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			w := tc.want
			if tc.differ != "" && differs(t, tc.differ) {
				w = tc.theirs
			}
			if tc.admin {
				check(t, c.adm(t, tc.r), w)
			} else {
				check(t, c.in(t, tc.r), w)
			}
		})
	}
}

// TestIngressEdges: what comparing the answers of both servers to hundreds of odd requests brought up.
func TestIngressEdges(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	call := func(service, handler, query, body string, header ...string) request {
		return request{path: e.path(service, handler) + query, body: body, header: pairs(header)}
	}
	json := []string{"Content-Type", "application/json"}
	refused := func(status int, message string) want {
		return want{status: status, json: ingressError(status, message), header: fromIngress}
	}
	accepted := want{status: 202, json: `{"invocationId":"<inv>","status":"Accepted","executionTime":"<rfc3339n>"}`}
	seen := func(headers string) want {
		return want{status: 200, json: `{"x-restate-ingress-path":"` + e.path("Greeter", "headers") + `","...":""` + headers + `}`}
	}
	e.edges(t, []edge{
		{name: "delay 0", r: call("Greeter", "greet", "/send?delay=0", `"x"`), want: accepted},
		{name: "delay with comma and space", r: call("Greeter", "greet", "/send?delay=1h,%2030m", `"x"`), want: accepted},
		{name: "delay with comma alone", r: call("Greeter", "greet", "/send?delay=1h,30m", `"x"`), want: refused(400, "bad delay query parameter, must be a ISO8601 duration: …")},
		{name: "delay in months", r: call("Greeter", "greet", "/send?delay=1%20month", `"x"`), want: refused(400, "bad delay query parameter, must be a ISO8601 duration: …")},
		{name: "parameters of the content type", r: call("Greeter", "echo", "", `"x"`, "Content-Type", "application/json; charset=utf-8"),
			want: refused(400, "input validation error: Content-type 'application/json; charset=utf-8' does not match 'application/octet-stream'")},
		{name: "content type in capitals", r: call("Greeter", "greet", "", `"x"`, "Content-Type", "Application/JSON"), want: want{status: 200, json: `"Hello, x!"`},
			differ: "content-type-case", theirs: refused(400, "input validation error: Content-type 'Application/JSON' does not match 'application/json'")},
		{name: "idempotency key in Latin-1", r: call("Greeter", "greet", "", `"x"`, append(json, "Idempotency-Key", "\xfc")...), want: refused(400, "…")},
		{name: "idempotency key in UTF-8", r: call("Greeter", "greet", "", `"x"`, append(json, "Idempotency-Key", "ü"+fresh(t))...), want: want{status: 200, json: `"Hello, x!"`},
			differ: "header-text", theirs: refused(400, "bad header idempotency-key: …")},
		{name: "header in UTF-8", r: call("Greeter", "headers", "", "", "X-Own", "ü"), want: seen(`,"x-own":"ü"`), differ: "header-text", theirs: refused(400, "bad header x-own: …")},
		{name: "forged path", r: call("Greeter", "headers", "", "", "X-Restate-Ingress-Path", "/forged"), want: seen(""),
			differ: "forged-path", theirs: want{status: 200, json: `{"x-restate-ingress-path":"/forged","...":""}`}},
		{name: "method of an unknown handler", r: request{method: "PUT", path: e.path("Greeter", "nope")}, want: refused(405, "method not allowed"),
			differ: "method-last", theirs: refused(404, "the service '"+e.prefix+"Greeter' exists, but the handler 'nope' was not found, check that the handler exists in the latest registered service version.")},
		{name: "method of a bad id", r: request{path: "/restate/invocation/bad/attach"}, want: refused(405, "method not allowed"),
			differ: "method-last", theirs: refused(400, "bad invocation id 'bad': bad format")},
		{name: "lookup of a string", r: request{path: "/restate/lookup", body: `"x"`}, want: refused(400, "cannot read body: invalid lookup body: invalid type: the request or a field is a JSON string"),
			differ: "lookup-bad-body", theirs: refused(500, "cannot read body: invalid lookup body: …")},
		{name: "lookup in a scope", r: request{path: "/restate/lookup", body: `{"target":"workflow","workflowName":"Wf","workflowKey":"w1","scope":"s"}`},
			want: refused(400, "scoped invocations require vqueues to be enabled"), differ: "scopes", theirs: want{status: 200, json: `{"invocationId":"<inv>"}`}},
		{name: "limit key without scope", r: call("Greeter", "greet", "?limit-key=a", `"x"`), want: refused(400, "limit-key requires a scope to be set")},
		{name: "limit key of three parts", r: call("Greeter", "greet", "?limit-key=a/b/c", `"x"`), want: refused(400, "invalid limit-key: too many path components in the given limit-key (max 2)")},
	})
	a := e.in(t, call("Greeter", "headers", "", "", "Te", "trailers", "Keep-Alive", "5"))
	forwarded := strings.Contains(string(a.body), `"te"`) || strings.Contains(string(a.body), `"keep-alive"`)
	equal(t, "headers of the connection reach the handler", forwarded, differs(t, "hop-by-hop"))
}

// TestAdminEdges is the same for the admin API.
func TestAdminEdges(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	text := func(status int, body string) want {
		return want{status: status, text: body, header: map[string]string{"content-type": "text/plain; charset=utf-8"}}
	}
	shape := func(why string) want {
		return text(422, "Failed to deserialize the JSON body into the target type: "+why+"…")
	}
	counter, greeter := e.prefix+"Counter", e.prefix+"Greeter"
	state := func(service, key, patch string) request {
		return request{path: "/services/" + service + "/state", body: `{"object_key":"` + key + `","new_state":` + patch + `}`}
	}
	key := fresh(t)
	e.edges(t, []edge{
		{name: "mode of nothing", admin: true, r: request{method: "DELETE", path: "/invocations/" + unknownID + "?mode="},
			want: text(400, "Failed to deserialize query string: mode: unknown variant ``, expected one of `Cancel`, `cancel`, `Kill`, `kill`, `Purge`, `purge`")},
		{name: "force of nothing", admin: true, r: request{method: "DELETE", path: "/deployments/" + e.id + "?force="},
			want: text(400, "Failed to deserialize query string: force: provided string was not `true` or `false`")},
		{name: "null", admin: true, r: request{method: "PATCH", path: "/services/" + greeter, body: "null"}, want: shape("invalid type: null, expected ")},
		{name: "boolean", admin: true, r: request{method: "PATCH", path: "/services/" + greeter, body: `{"public":"x"}`}, want: shape("public: invalid type: string")},
		{name: "retention 0", admin: true, r: request{method: "PATCH", path: "/services/" + e.prefix + "Brief", body: `{"journal_retention":"0"}`}, want: want{status: 200, json: `{"journal_retention":"0s","...":""}`}},
		{name: "state of bytes too large", admin: true, r: state(counter, key, `{"count":[300]}`), want: shape("")},
		{name: "state of a service", admin: true, r: state(greeter, key, `{}`), want: want{status: 400, json: adminError("Cannot modify state for service type Service")}},
		{name: "state in a scope", admin: true, r: request{path: "/services/" + counter + "/state", body: `{"object_key":"k","scope":"s","new_state":{}}`},
			want: want{status: 500, json: adminError("bad scope: scopes are not supported by this server")}, differ: "scopes", theirs: want{status: 202, empty: true}},
		{name: "options", admin: true, r: request{method: "OPTIONS", path: "/health"}, want: want{status: 204, empty: true}, differ: "options", theirs: want{status: 405, empty: true}},
		{name: "scheme", admin: true, r: request{path: "/deployments", body: `{"uri":"ftp://a"}`},
			want:   want{status: 400, json: adminError("The request field 'uri' is invalid. Reason: The provided uri has the scheme ftp, only http and https can be used.")},
			differ: "scheme", theirs: want{status: 500, json: metaError("META0003", "…")}},
		{name: "empty address", admin: true, r: request{path: "/deployments", body: `{"uri":""}`},
			want:   want{status: 400, json: adminError("The request field 'uri' is invalid. Reason: …")},
			differ: "bad-address", theirs: shape("data did not match any variant")},
		{name: "header that cannot be", admin: true, r: request{path: "/deployments", body: `{"uri":"http://127.0.0.1:1","additional_headers":{"a b":"c"}}`},
			want:   want{status: 400, json: adminError("The request field 'additional_headers' is invalid. Reason: …")},
			differ: "bad-address", theirs: shape("data did not match any variant")},
		{name: "user interface", admin: true, r: request{method: "GET", path: "/"}, want: want{status: 404, empty: true}, differ: "ui", theirs: want{status: 308, empty: true}},
		{name: "documentation", admin: true, r: request{method: "GET", path: "/services/" + greeter}, want: want{status: 200, json: `{"documentation":"","...":""}`}},
	})
	check(t, e.adm(t, state(counter, key, `{"count":"12"}`)), want{status: 202, empty: true})
	poll(t, "the state that was given as text", func() error {
		if n := call[int](t, e, e.path("Counter", key, "get"), nil); n != 12 {
			return fmt.Errorf("it is %d", n)
		}
		return nil
	})
}
