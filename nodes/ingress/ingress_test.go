package ingress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/nodes/record/recordpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// partitions answers requests with a function and records them.
type partitions struct {
	mu   sync.Mutex
	seen []*recordpb.Request
	keys []cluster.PartitionKey
	do   func(ctx context.Context, req *recordpb.Request) (*recordpb.Reply, error)
}

func (p *partitions) Do(ctx context.Context, key cluster.PartitionKey, req *recordpb.Request) (*recordpb.Reply, error) {
	p.mu.Lock()
	p.seen, p.keys = append(p.seen, req), append(p.keys, key)
	p.mu.Unlock()
	return p.do(ctx, req)
}

func (p *partitions) last(t testing.TB) (*recordpb.Request, cluster.PartitionKey) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.seen) == 0 {
		t.Fatal("no request reached a partition")
	}
	return p.seen[len(p.seen)-1], p.keys[len(p.keys)-1]
}

func (p *partitions) invocation(t testing.TB) *invocationpb.Invocation {
	t.Helper()
	req, _ := p.last(t)
	return req.GetInvoke().GetInvocation()
}

type fixed struct{ s *schema.Schema }

func (f fixed) Current() *schema.Schema { return f.s }

func ptr[T any](v T) *T { return &v }

func registered() *schema.Schema {
	json := schema.InputRule{ContentType: "application/json"}
	out := schema.OutputRule{ContentType: "application/json"}
	h := func(name string, t schema.HandlerType) schema.Handler {
		return schema.Handler{Name: name, Type: t, Input: json, Output: out}
	}
	priv := h("priv", schema.Shared)
	priv.Overrides.Public = ptr(false)
	brief := h("brief", schema.Shared)
	brief.Overrides.IdempotencyRetention = ptr(time.Duration(0))
	raw := schema.Handler{Name: "raw", Type: schema.Shared, Input: schema.InputRule{Any: true},
		Output: schema.OutputRule{ContentType: "application/octet-stream", SetIfEmpty: true}}
	mute := schema.Handler{Name: "mute", Type: schema.Shared, Input: schema.InputRule{Any: true}}
	d := &schema.Deployment{
		ID: ident.DeploymentID{15: 1}, CreatedMs: 1, ProtocolType: schema.BidiStream, MinProtocol: 5, MaxProtocol: 7,
		Address: schema.Address{HTTP: &schema.HTTPAddress{URI: "http://h:1/", Version: schema.HTTP2}},
		Services: []schema.ServiceRevision{
			{Name: "Obj", Type: schema.VirtualObject, Revision: 1, Handlers: []schema.Handler{h("add", schema.Exclusive), h("get", schema.Shared)}},
			{Name: "Priv", Type: schema.Service, Revision: 1, Overrides: schema.Overrides{Public: ptr(false)}, Handlers: []schema.Handler{h("x", schema.Shared)}},
			{Name: "Svc", Type: schema.Service, Revision: 1, Handlers: []schema.Handler{brief, h("greet", schema.Shared), mute, priv, raw}},
			{Name: "Wf", Type: schema.Workflow, Revision: 1, Handlers: []schema.Handler{h("run", schema.WorkflowRun), h("sig", schema.Shared)}},
		},
	}
	return schema.New(1, schema.DefaultDefaults(), []*schema.Deployment{d})
}

var clock = time.Date(2026, 11, 25, 14, 0, 0, 5e6, time.UTC)

func newIngress(t testing.TB, p Partitions, change func(*Config)) *Ingress {
	t.Helper()
	cfg := DefaultConfig()
	cfg.RetryMin, cfg.RetryMax = time.Millisecond, 2*time.Millisecond
	if change != nil {
		change(&cfg)
	}
	i, err := New(cfg, Deps{
		Partitions: p, Schemas: fixed{registered()}, Metrics: prometheus.NewRegistry(),
		Now: func() time.Time { return clock },
	})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// serve runs a real server, so that the parsing of net/http is part of the test.
func serve(t testing.TB, i *Ingress) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, i, l)
	return l.Addr().String()
}

func serveOn(t testing.TB, i *Ingress, l net.Listener) {
	srv := i.Server()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		i.Drain()
		_ = srv.Close()
		<-done
	})
}

// memory is a listener whose connections are pipes. With it a server runs in a bubble: only waiting takes time there, so that
// limits of time are the real ones and nothing else uses them up, however busy the machine is.
type memory struct {
	conns chan net.Conn
	gone  chan struct{}
	once  sync.Once
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.gone:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error   { m.once.Do(func() { close(m.gone) }); return nil }
func (m *memory) Addr() net.Addr { return &net.UnixAddr{Name: "memory"} }

func (m *memory) dial(t testing.TB) net.Conn {
	ours, theirs := net.Pipe()
	m.conns <- theirs
	t.Cleanup(func() { ours.Close() })
	return ours
}

// serveInMemory runs a real server in the bubble of the caller.
func serveInMemory(t testing.TB, i *Ingress) *memory {
	t.Helper()
	m := &memory{conns: make(chan net.Conn), gone: make(chan struct{})}
	serveOn(t, i, m)
	return m
}

// answerTo sends a request as it is.
func answerTo(t testing.TB, conn net.Conn, request string) *http.Response {
	t.Helper()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%.40q: %v", request, err)
	}
	return r
}

// exchange sends a request line by line over a connection of its own, with the body as two chunks if a header says so.
func exchange(t testing.TB, addr, method, uri, body string, headers ...string) *http.Response {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n", method, uri)
	if slices.Contains(headers, chunked) {
		chunks := ""
		for _, piece := range []string{body[:len(body)/2], body[len(body)/2:]} {
			if piece != "" { // an empty chunk is the end
				chunks += fmt.Sprintf("%x\r\n%s\r\n", len(piece), piece)
			}
		}
		body = chunks + "0\r\n\r\n"
	} else if body != "" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
	}
	for _, h := range headers {
		b.WriteString(h + "\r\n")
	}
	b.WriteString("\r\n" + body)
	var sent sync.WaitGroup
	sent.Go(func() { _, _ = io.WriteString(c, b.String()) }) // what was refused is not read to its end
	defer sent.Wait()
	defer c.Close()
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body = io.NopCloser(strings.NewReader(string(data)))
	return resp
}

func bodyOf(t testing.TB, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func success(b string) *recordpb.Reply {
	return &recordpb.Reply{Result: &invocationpb.Result{Kind: &invocationpb.Result_Success{Success: []byte(b)}}}
}

func failure(code uint32, msg string, meta ...*invocationpb.Header) *recordpb.Reply {
	return &recordpb.Reply{Result: &invocationpb.Result{Kind: &invocationpb.Result_Failure{
		Failure: &invocationpb.Failure{Code: code, Message: msg, Metadata: meta},
	}}}
}

func status(s recordpb.Reply_Status) *recordpb.Reply { return &recordpb.Reply{Status: s} }

const (
	jsonType  = "Content-Type: application/json"
	chunked   = "Transfer-Encoding: chunked"
	someID    = "inv_12BbmfqHZ9cR0Uk5X6HJL2aSh1BUEzqNEQ"
	awakeable = "sign_1346YRn8WZVw6N44idZCnF_XEnJa1PJQoAAAAEQ"
	w1        = "inv_12kpUQONmeFb2WqsVOkAjH4phS34cOyIC8" // workflow Wf, key w1
	apiPath   = "bad path, expected /restate/call/:service/:handler, /restate/send/:service/:handler, /restate/scope/:scope/call/:service/:handler, /restate/attach/:invocation_id, /restate/output/:invocation_id, or /restate/lookup"
	callPath  = "bad path, expected either /:service-name/:handler or /:object-name/:object-key/:handler"
)

func TestRefusals(t *testing.T) {
	p := &partitions{do: func(context.Context, *recordpb.Request) (*recordpb.Reply, error) {
		return nil, errors.New("must not be reached")
	}}
	addr := serve(t, newIngress(t, p, nil))
	for _, c := range []struct {
		method, uri, body string
		headers           []string
		code              int
		message           string
	}{
		{"GET", "/", "", nil, 400, "bad path: /"},
		{"GET", "/Svc", "", nil, 400, "bad path: /Svc"},
		{"GET", "/restate", "", nil, 400, "bad path: /restate"},
		{"GET", "/restate/", "", nil, 400, "bad path: /restate"},
		{"POST", "/restate/call", "", nil, 400, apiPath},
		{"POST", "/restate/call/Nope", "", nil, 404, "service 'Nope' not found, make sure to register the service before calling it."},
		{"GET", "/restate/invocation", "", nil, 400, "bad path, expected either /restate/invocation/:invocation_id/output or /restate/invocation/:invocation_id/attach or /restate/invocation/:invocation_target/:idempotency_key/output or /restate/invocation/:invocation_target/:idempotency_key/attach"},
		{"GET", "/restate/invocation/x/y", "", nil, 404, "not found"},
		{"POST", "/restate/awakeables", "", nil, 400, "bad path, expected either /restate/awakeables/:id/resolve or /restate/awakeables/:id/reject"},
		{"GET", "/openapi", "", nil, 400, "bad path: /openapi"},
		{"GET", "/a/b/c/d/e/f/g/h", "", nil, 400, "bad path: /a/b/c/d/e/f/g/h"},
		{"GET", "/openapi/x", "", nil, 404, "not found"},
		{"GET", "/restate/nope", "", nil, 404, "not found"},
		{"GET", "/restate/nope/x/y", "", nil, 404, "not found"},
		{"GET", "/Nope/x", "", nil, 404, "service 'Nope' not found, make sure to register the service before calling it."},
		{"GET", "//Nope/x", "", nil, 404, "service 'Nope' not found, make sure to register the service before calling it."},
		{"PUT", "/Nope/x", "", nil, 404, "service 'Nope' not found, make sure to register the service before calling it."},
		{"GET", "/Svc/nope", "", nil, 404, "the service 'Svc' exists, but the handler 'nope' was not found, check that the handler exists in the latest registered service version."},
		{"GET", "/Obj/k/nope", "", nil, 404, "the service 'Obj' exists, but the handler 'nope' was not found, check that the handler exists in the latest registered service version."},
		{"GET", "/Obj/nope", "", nil, 400, callPath},
		{"GET", "/Svc/k/greet", "", nil, 400, callPath},
		{"GET", "/Svc/greet/send/x", "", nil, 400, callPath},
		{"GET", "/Obj/a%ffb/get", "", nil, 400, "bad path, cannot decode key: it is not UTF-8"},
		{"POST", "/Svc/greet", `"x"`, []string{jsonType, "X-Name: caf\xe9"}, 400, "bad header x-name: its value is not UTF-8"},
		{"POST", "/Svc/greet/send", `"x"`, []string{jsonType, "Tracestate: \xff"}, 400, "bad header tracestate: its value is not UTF-8"},
		{"PUT", "/Svc/greet", `"x"`, []string{jsonType}, 405, "method not allowed"},
		{"BREW", "/Svc/greet", "", nil, 405, "method not allowed"},
		{"DELETE", "/restate/call/Svc/greet", "", nil, 405, "method not allowed"},
		{"GET", "/Svc/priv", "", nil, 400, "the invoked service is not public"},
		{"GET", "/Svc/priv/send", "", nil, 400, "the invoked service is not public"},
		{"GET", "/Priv/x", "", nil, 400, "the invoked service is not public"},
		{"POST", "/Svc/greet", `"x"`, []string{"Content-Type: text/plain"}, 400, "input validation error: Content-type 'text/plain' does not match 'application/json'"},
		{"POST", "/Svc/greet", `"x"`, nil, 400, "input validation error: Empty content-type"},
		{"POST", "/Svc/greet/send?delay=bogus", `"x"`, []string{jsonType}, 400, "bad delay query parameter, must be a ISO8601 duration: expected duration to start with a unit value (a decimal integer) after an optional sign, but no integer was found"},
		{"POST", "/Svc/greet/send?delay=-1s", `"x"`, []string{jsonType}, 400, "bad delay query parameter, must be a ISO8601 duration: negative signed durations cannot be converted to an unsigned duration"},
		{"POST", "/Svc/greet?delay=1s", `"x"`, []string{jsonType}, 400, "cannot use the delay query parameter with calls. The delay is supported only with sends"},
		{"POST", "/restate/call/Svc/greet?delay=1s", `"x"`, []string{jsonType}, 400, "cannot use the delay query parameter with calls. The delay is supported only with sends"},
		{"POST", "/Svc/greet?limit-key=a", `"x"`, []string{jsonType}, 400, "limit-key requires a scope to be set"},
		{"POST", "/Svc/greet", `"x"`, []string{jsonType, "x-restate-limit-key: a/b/c"}, 400, "invalid limit-key: too many path components in the given limit-key (max 2)"},
		{"POST", "/Wf/w1/run", `"x"`, []string{jsonType, "Idempotency-Key: k"}, 400, "cannot use the idempotency key with workflow handlers. The handler invocation will already be idempotent by the workflow key itself."},
		{"GET", "/restate/call/Svc", "", nil, 400, apiPath},
		{"GET", "/restate/call/Svc/greet/send", "", nil, 400, apiPath},
		{"GET", "/restate/call/Obj/k/add/x", "", nil, 400, apiPath},
		{"GET", "/restate/call/Obj/nope", "", nil, 400, apiPath},
		{"GET", "/restate/scope/s1", "", nil, 400, apiPath},
		{"GET", "/restate/scope/s1/foo/Svc/greet", "", nil, 400, apiPath},
		{"GET", "/restate/attach/" + someID + "/x", "", nil, 400, apiPath},
		{"GET", "/restate/scope/s1/call/Svc/greet", "", nil, 400, "scoped invocations require vqueues to be enabled"},
		{"GET", "/restate/scope//call/Svc/greet", "", nil, 400, "bad scope value: value cannot be empty"},
		{"GET", "/restate/scope/s%201/call/Svc/greet", "", nil, 400, "bad scope value: value contains characters outside the allowed set [a-zA-Z0-9_.-]"},
		{"GET", "/restate/scope/" + strings.Repeat("a", 44) + "/call/Svc/greet", "", nil, 400, "bad scope value: value too long: 44 bytes (max 36)"},
		{"GET", "/restate/workflow/Wf", "", nil, 400, "bad path, expected either /restate/workflow/:workflow_name/:workflow_key/output or /restate/workflow/:workflow_name/:workflow_key/attach"},
		{"GET", "/restate/workflow/Wf/w1", "", nil, 400, "bad path, expected either /restate/workflow/:workflow_name/:workflow_key/output or /restate/workflow/:workflow_name/:workflow_key/attach"},
		{"GET", "/restate/workflow/Wf/w1/foo", "", nil, 404, "not found"},
		{"POST", "/restate/workflow/Wf/w1/output", "", nil, 405, "method not allowed"},
		{"GET", "/restate/invocation/" + someID, "", nil, 400, "bad path, expected either /restate/invocation/:invocation_id/output or /restate/invocation/:invocation_id/attach or /restate/invocation/:invocation_target/:idempotency_key/output or /restate/invocation/:invocation_target/:idempotency_key/attach"},
		{"GET", "/restate/invocation/" + someID + "/foo", "", nil, 404, "not found"},
		{"POST", "/restate/invocation/" + someID + "/output", "", nil, 405, "method not allowed"},
		{"GET", "/restate/invocation/bad/output", "", nil, 400, "bad invocation id 'bad': bad format"},
		{"GET", "/restate/invocation/Nope/nope/kx/attach", "", nil, 404, "service 'Nope' not found, make sure to register the service before calling it."},
		{"GET", "/restate/output/bad", "", nil, 400, "bad invocation id 'bad': bad format"},
		{"GET", "/restate/output", "", nil, 405, "method not allowed"},
		{"POST", "/restate/output/" + someID, "", nil, 405, "method not allowed"},
		{"GET", "/restate/lookup", "", nil, 405, "method not allowed"},
		{"POST", "/restate/lookup", `{"target":"workflow","workflowName":"Wf"}`, nil, 400, "cannot read body: invalid lookup body: missing field `workflowKey`"},
		{"POST", "/restate/lookup", `{"target":"x"}`, nil, 400, "cannot read body: invalid lookup body: unknown variant `x`, expected one of `workflow`, `idempotentInvocation`, `invocation`"},
		{"POST", "/restate/lookup", `[]`, nil, 400, "cannot read body: invalid lookup body: invalid type: the request or a field is a JSON array"},
		{"POST", "/restate/lookup", `{"target":5}`, nil, 400, "cannot read body: invalid lookup body: invalid type: the request or a field is a JSON number"},
		{"POST", "/restate/lookup", `{}`, nil, 400, "cannot read body: invalid lookup body: missing field `target`"},
		{"POST", "/restate/lookup", `{"target":"workflow","workflowName":"Wf","workflowKey":"w","scope":"s"}`, nil, 400, "scoped invocations require vqueues to be enabled"},
		{"POST", "/restate/awakeables/bad/resolve", "", nil, 400, "bad awakeable id 'bad': bad format"},
		{"POST", "/restate/a/" + awakeable + "/foo", "", nil, 404, "not found"},
		{"GET", "/restate/a/" + awakeable + "/resolve", "", nil, 405, "method not allowed"},
		{"GET", "/restate/a/x", "", nil, 400, "bad path, expected either /restate/awakeables/:id/resolve or /restate/awakeables/:id/reject"},
		{"POST", "/restate/health", "", nil, 405, "method not allowed"},
	} {
		r := exchange(t, addr, c.method, c.uri, c.body, c.headers...)
		want := fmt.Sprintf(`{"code":%d,"message":%s,"source":"ingress"}`, c.code, quote(c.message))
		if got := bodyOf(t, r); r.StatusCode != c.code || got != want {
			t.Errorf("%s %s: %d %s\nwant %s", c.method, c.uri, r.StatusCode, got, want)
		}
		for name, v := range map[string]string{
			"Content-Type": "application/json", "X-Restate-Error-Source": "ingress", "X-Restate-Id": "",
			"Vary": "origin, access-control-request-method, access-control-request-headers", "Access-Control-Allow-Credentials": "true",
		} {
			if got := r.Header.Get(name); got != v {
				t.Errorf("%s %s: header %s is %q, want %q", c.method, c.uri, name, got, v)
			}
		}
	}
}

func quote(s string) string { return string(marshal(s)) }

func TestAnswers(t *testing.T) {
	idempotent := func(r *recordpb.Reply) *recordpb.Reply { r.ExpiresAtMs = uint64(clock.UnixMilli()); return r }
	target := func(r *recordpb.Reply, service, handler string) *recordpb.Reply {
		r.Target = &invocationpb.Target{Service: service, Handler: handler}
		return r
	}
	anyID := "*"
	for _, c := range []struct {
		name, method, uri, body string
		headers                 []string
		reply                   *recordpb.Reply
		code                    int
		want, contentType       string
		id                      string // x-restate-id
		more                    map[string]string
	}{
		{"call", "POST", "/Svc/greet", `"x"`, []string{jsonType}, success(`"hi"`), 200, `"hi"`, "application/json", anyID, nil},
		{"call with trailing slash", "POST", "/Svc/greet/", `"x"`, []string{jsonType}, success(`"hi"`), 200, `"hi"`, "application/json", anyID, nil},
		{"call without body", "GET", "/Svc/greet", "", nil, success(`"hi"`), 200, `"hi"`, "application/json", anyID, nil},
		{"call with explicit path", "POST", "/restate/call/Obj/k/add", "1", []string{jsonType}, success(`1`), 200, `1`, "application/json", anyID, nil},
		{"call with media type parameters", "POST", "/Svc/greet", `"x"`, []string{jsonType + "; charset=utf-8"}, success(`"hi"`), 200, `"hi"`, "application/json", anyID, nil},
		{"empty output", "POST", "/Svc/greet", "", nil, success(``), 200, ``, "", anyID, map[string]string{"Content-Length": "0"}},
		{"empty output with content type", "POST", "/Svc/raw", "", nil, success(``), 200, ``, "application/octet-stream", anyID, nil},
		{"output without content type", "POST", "/Svc/mute", "", nil, success(`<html>`), 200, `<html>`, "", anyID, nil},
		{"large output", "POST", "/Svc/raw", "z", nil, success(strings.Repeat("a", 10000)), 200, strings.Repeat("a", 10000), "application/octet-stream", anyID, map[string]string{"Content-Length": "10000"}},
		{"terminal failure", "POST", "/Svc/greet", "", nil, failure(418, "no <tea>"), 418, `{"code":418,"message":"no <tea>","source":"invocation"}`, "application/json", anyID, map[string]string{"X-Restate-Error-Source": "invocation"}},
		{"failure code that is no status", "POST", "/Svc/greet", "", nil, failure(4242, "x"), 500, `{"code":4242,"message":"x","source":"invocation"}`, "application/json", anyID, nil},
		{"failure code of an interim answer", "POST", "/Svc/greet", "", nil, failure(100, "x"), 500, `{"code":100,"message":"x","source":"invocation"}`, "application/json", anyID, nil},
		{"failure with metadata", "POST", "/Svc/greet", "", nil, failure(500, "x", &invocationpb.Header{Key: "a", Value: "b"}), 500, `{"code":500,"message":"x","source":"invocation","metadata":{"a":"b"}}`, "application/json", anyID, nil},
		{"replayed result", "POST", "/Svc/greet", "", []string{"Idempotency-Key: k1"}, idempotent(success(`1`)), 200, `1`, "application/json", "inv_1gf3qgbvqBGZ2Ivia3jbQkIOkcWr0iLziz", map[string]string{"Idempotency-Expires": "2026-11-25T14:00:00.005+00:00"}},
		{"workflow called again", "POST", "/Wf/w1/run", "", nil, status(recordpb.Reply_PREVIOUSLY_ACCEPTED), 409, `{"code":409,"message":"the workflow method was already invoked","source":"invocation"}`, "application/json", w1, nil},
		{"send", "POST", "/Svc/greet/send", "", []string{"Idempotency-Key: k1"}, status(recordpb.Reply_ACCEPTED), 202, `{"invocationId":"inv_1gf3qgbvqBGZ2Ivia3jbQkIOkcWr0iLziz","status":"Accepted"}`, "application/json", "inv_1gf3qgbvqBGZ2Ivia3jbQkIOkcWr0iLziz", nil},
		{"send with GET", "GET", "/restate/send/Wf/w1/run", "", nil, status(recordpb.Reply_ACCEPTED), 202, `{"invocationId":"` + w1 + `","status":"Accepted"}`, "application/json", w1, nil},
		{"send again", "POST", "/Wf/w1/run/send", "", nil, status(recordpb.Reply_PREVIOUSLY_ACCEPTED), 202, `{"invocationId":"` + w1 + `","status":"PreviouslyAccepted"}`, "application/json", w1, nil},
		{"delayed send", "POST", "/Wf/w1/run/send?delay=PT1S", "", nil, status(recordpb.Reply_ACCEPTED), 202, `{"invocationId":"` + w1 + `","executionTime":"2026-11-25T14:00:01.005000000Z","status":"Accepted"}`, "application/json", w1, nil},
		{"send delayed by nothing", "POST", "/Wf/w1/run/send?a=b&delay=0s", "", nil, status(recordpb.Reply_ACCEPTED), 202, `{"invocationId":"` + w1 + `","executionTime":"2026-11-25T14:00:00.005000000Z","status":"Accepted"}`, "application/json", w1, nil},
		{"delayed send again", "POST", "/Wf/w1/run/send?delay=1h%2030m", "", nil, &recordpb.Reply{Status: recordpb.Reply_PREVIOUSLY_ACCEPTED, ExecutionTimeMs: uint64(clock.UnixMilli())}, 202, `{"invocationId":"` + w1 + `","executionTime":"2026-11-25T14:00:00.005000000Z","status":"PreviouslyAccepted"}`, "application/json", w1, nil},
		{"attach by id", "GET", "/restate/invocation/" + someID + "/attach", "", nil, target(success(`1`), "Svc", "raw"), 200, `1`, "application/octet-stream", someID, nil},
		{"attach by id, short", "GET", "/restate/attach/" + someID, "", nil, success(`1`), 200, `1`, "application/json", someID, nil},
		{"attach by id, unknown", "GET", "/restate/attach/" + someID, "", nil, status(recordpb.Reply_NOT_FOUND), 404, `{"code":404,"message":"not found","source":"invocation"}`, "application/json", someID, nil},
		{"output by id", "GET", "/restate/invocation/" + someID + "/output", "", nil, idempotent(success(`1`)), 200, `1`, "application/json", someID, map[string]string{"Idempotency-Expires": "2026-11-25T14:00:00.005+00:00"}},
		{"output by id, unknown", "GET", "/restate/output/" + someID, "", nil, status(recordpb.Reply_NOT_FOUND), 404, `{"code":404,"message":"invocation not found","source":"ingress"}`, "application/json", "", nil},
		{"output not ready", "GET", "/restate/workflow/Wf/w1/output", "", nil, status(recordpb.Reply_NOT_READY), 470, `{"code":470,"message":"the invocation exists but has not completed yet","source":"ingress"}`, "application/json", "", nil},
		{"output is a failure", "GET", "/restate/workflow/Wf/w1/output", "", nil, failure(409, "killed"), 409, `{"code":409,"message":"killed","source":"invocation"}`, "application/json", w1, nil},
		{"attach by workflow", "GET", "/restate/workflow/Wf/w1/attach", "", nil, target(success(`1`), "Wf", "run"), 200, `1`, "application/json", w1, nil},
		{"attach by idempotency key", "GET", "/restate/invocation/Svc/greet/k1/attach", "", nil, success(`1`), 200, `1`, "application/json", "inv_1gf3qgbvqBGZ2Ivia3jbQkIOkcWr0iLziz", nil},
		{"output by encoded idempotency key", "GET", "/restate/invocation/Svc/greet/%6b1/output", "", nil, success(`1`), 200, `1`, "application/json", "inv_1gf3qgbvqBGZ2Ivia3jbQkIOkcWr0iLziz", nil},
		{"attach by object's idempotency key", "GET", "/restate/invocation/Counter/vk/add/vi1/attach", "", nil, nil, 404, `{"code":404,"message":"service 'Counter' not found, make sure to register the service before calling it.","source":"ingress"}`, "application/json", "", nil},
		{"lookup workflow", "POST", "/restate/lookup", `{"target":"workflow","workflowName":"Wf","workflowKey":"w1"}`, nil, nil, 200, `{"invocationId":"` + w1 + `"}`, "application/json", "", nil},
		{"lookup idempotent", "POST", "/restate/lookup", `{"target":"idempotentInvocation","service":"Counter","key":"vk","handler":"add","idempotencyKey":"vi1"}`, nil, nil, 200, `{"invocationId":"inv_15PfmMdSyug87D7OJUjeFntlmwU5ind3fs"}`, "application/json", "", nil},
		{"attach with body", "POST", "/restate/attach", `{"target":"invocation","invocationId":"` + someID + `"}`, nil, success(`1`), 200, `1`, "application/json", someID, nil},
		{"output with body", "POST", "/restate/output", `{"target":"workflow","workflowName":"Wf","workflowKey":"w1"}`, nil, status(recordpb.Reply_NOT_READY), 470, `{"code":470,"message":"the invocation exists but has not completed yet","source":"ingress"}`, "application/json", "", nil},
		{"resolve", "POST", "/restate/awakeables/" + awakeable + "/resolve", "x", nil, status(recordpb.Reply_NOT_FOUND), 202, ``, "", "", nil},
		{"reject", "POST", "/restate/a/" + awakeable + "/reject", "x", nil, status(recordpb.Reply_OK), 202, ``, "", "", nil},
		{"old awakeable", "POST", "/restate/a/prom" + awakeable[4:] + "/reject", "x", nil, nil, 202, ``, "", "", nil},
		{"health", "GET", "/restate/health", "", nil, nil, 200, `{"services":["Obj","Priv","Svc","Wf"]}`, "application/json", "", nil},
		{"health and more", "GET", "/restate/health/x", "", nil, nil, 200, `{"services":["Obj","Priv","Svc","Wf"]}`, "application/json", "", nil},
		{"origin", "POST", "/Svc/greet", "", []string{"Origin: http://a"}, success(`1`), 200, `1`, "application/json", anyID, map[string]string{"Access-Control-Allow-Origin": "http://a"}},
		{"preflight", "OPTIONS", "/Svc/greet", "", []string{"Origin: http://a", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x-foo"}, nil, 200, ``, "", "", map[string]string{
			"Access-Control-Allow-Origin": "http://a", "Access-Control-Allow-Methods": "POST", "Access-Control-Allow-Headers": "x-foo", "Access-Control-Allow-Credentials": "true",
			"Vary": "origin, access-control-request-method, access-control-request-headers"}},
		{"absolute form", "POST", "http://other/Svc/greet?a=b", "", nil, success(`1`), 200, `1`, "application/json", anyID, nil},
		{"nonsense from the partition", "POST", "/Svc/greet", "", nil, status(recordpb.Reply_BAD_RANGE), 500, `{"code":500,"message":"internal error: the partition answered BAD_RANGE","source":"ingress"}`, "application/json", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &partitions{do: func(context.Context, *recordpb.Request) (*recordpb.Reply, error) {
				if c.reply == nil {
					return nil, errors.New("must not be reached")
				}
				return c.reply, nil
			}}
			r := exchange(t, serve(t, newIngress(t, p, nil)), c.method, c.uri, c.body, c.headers...)
			if got := bodyOf(t, r); r.StatusCode != c.code || got != c.want {
				t.Errorf("%d %s\nwant %d %s", r.StatusCode, got, c.code, c.want)
			}
			if got := r.Header.Get("Content-Type"); got != c.contentType {
				t.Errorf("content type %q, want %q", got, c.contentType)
			}
			id := r.Header.Get("X-Restate-Id")
			if c.id == anyID {
				if _, err := ident.ParseInvocationID(id); err != nil {
					t.Errorf("x-restate-id %q: %v", id, err)
				}
			} else if id != c.id {
				t.Errorf("x-restate-id %q, want %q", id, c.id)
			}
			for name, v := range c.more {
				if got := r.Header.Get(name); got != v {
					t.Errorf("header %s is %q, want %q", name, got, v)
				}
			}
		})
	}
}

func accept(context.Context, *recordpb.Request) (*recordpb.Reply, error) {
	return success("1"), nil
}

func TestInvocationOfACall(t *testing.T) {
	p := &partitions{do: accept}
	addr := serve(t, newIngress(t, p, nil))
	exchange(t, addr, "POST", "/Obj/a%20b%2Fc/add?x=1&y", "7", jsonType, "Idempotency-Key: ik", "X-Foo: 1", "X-Foo: 2", "Upgrade: h2c",
		"X-Restate-Ingress-Path: /forged", "Idempotency-Expires: never", "Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Tracestate: a=b")
	req, key := p.last(t)
	inv := req.GetInvoke().GetInvocation()
	id, err := ident.InvocationIDFromBytes(inv.Id)
	if err != nil {
		t.Fatal(err)
	}
	want := ident.Invocation(ident.Target{Service: "Obj", Handler: "add", Key: "a b/c", Keyed: true, IdempotencyKey: ptr("ik")}, ident.Random{})
	if id != want || key != id.PartitionKey() {
		t.Errorf("id %s at %x, want %s", id, key, want)
	}
	if tg := inv.Target; tg.Service != "Obj" || tg.Handler != "add" || tg.Key != "a b/c" || tg.ServiceType != 2 || tg.HandlerType != 2 {
		t.Errorf("target %v", tg)
	}
	if string(inv.Argument) != "7" || inv.GetIdempotencyKey() != "ik" || !req.GetInvoke().WaitOutput || inv.Source.Kind != invocationpb.Source_INGRESS {
		t.Errorf("invocation %v", inv)
	}
	if inv.CompletionRetentionMs != 86400000 || inv.JournalRetentionMs != 86400000 || inv.ExecutionTimeMs != 0 {
		t.Errorf("times %v", inv)
	}
	if len(req.Id) != 16 || string(req.Id) != string(inv.RequestId) {
		t.Errorf("request id %x, of the invocation %x", req.Id, inv.RequestId)
	}
	if inv.TraceParent != "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" || inv.TraceState != "a=b" {
		t.Errorf("trace %q %q", inv.TraceParent, inv.TraceState)
	}
	var got []string
	for _, h := range inv.Headers {
		got = append(got, h.Key+": "+h.Value)
	}
	wantHeaders := "x-restate-ingress-path: /Obj/a%20b%2Fc/add?x=1&y|content-length: 1|content-type: application/json|" +
		"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01|tracestate: a=b|x-foo: 1"
	if s := strings.Join(got, "|"); s != wantHeaders {
		t.Errorf("headers\n%s\nwant\n%s", s, wantHeaders)
	}
}

func TestIdempotencyKeysThatAreInvented(t *testing.T) {
	p := &partitions{do: accept}
	addr := serve(t, newIngress(t, p, nil))
	for _, c := range []struct {
		uri     string
		invents bool
	}{{"/Svc/greet", true}, {"/Obj/k/add", true}, {"/Obj/k/get", true}, {"/Wf/w1/run", false}, {"/Wf/w1/sig", false}} {
		exchange(t, addr, "POST", c.uri, "")
		inv := p.invocation(t)
		if got := inv.IdempotencyKey != nil; got != c.invents {
			t.Errorf("%s: invented %v", c.uri, got)
		}
		if c.invents && len(inv.GetIdempotencyKey()) != 26 {
			t.Errorf("%s: key %q is no ULID", c.uri, inv.GetIdempotencyKey())
		}
	}
	exchange(t, addr, "POST", "/Svc/greet", "", "Idempotency-Key:")
	if inv := p.invocation(t); inv.IdempotencyKey == nil || inv.GetIdempotencyKey() != "" {
		t.Errorf("the empty key is a key, got %v", inv.IdempotencyKey)
	}
	addr = serve(t, newIngress(t, p, func(c *Config) { c.NoAutoIdempotency = true }))
	exchange(t, addr, "POST", "/Svc/greet", "")
	if inv := p.invocation(t); inv.IdempotencyKey != nil {
		t.Errorf("invented %q although switched off", inv.GetIdempotencyKey())
	}
}

func TestSignalOfAnAwakeable(t *testing.T) {
	p := &partitions{do: accept}
	addr := serve(t, newIngress(t, p, nil))
	a, err := ident.ParseAwakeable(awakeable)
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, addr, "POST", "/restate/awakeables/"+awakeable+"/resolve", "\x00\xff")
	req, key := p.last(t)
	s := req.GetSignal()
	if key != a.Invocation.PartitionKey() || string(s.InvocationId) != string(a.Invocation[:]) || s.GetIndex() != 17 || string(s.Result.GetSuccess()) != "\x00\xff" {
		t.Errorf("resolve: %v at %x", s, key)
	}
	exchange(t, addr, "POST", "/restate/awakeables/"+awakeable+"/reject", "why\xff")
	req, _ = p.last(t)
	if f := req.GetSignal().Result.GetFailure(); f.GetCode() != 500 || f.GetMessage() != "why\uFFFD" {
		t.Errorf("reject: %v", f)
	}
}

// tryError is an error of a partition.
type tryError struct{ safe bool }

func (e tryError) Error() string { return "leader moved" }
func (e tryError) Safe() bool    { return e.safe }

func TestRetries(t *testing.T) {
	for _, c := range []struct {
		name, uri string
		err       error
		retried   bool
	}{
		{"not the leader, result not kept", "/Svc/brief", tryError{true}, true},
		{"outcome unknown, result not kept", "/Svc/brief", tryError{false}, false},
		{"outcome unknown, result kept", "/Svc/greet", tryError{false}, true},
		{"unclassified error, result kept", "/Svc/greet", errors.New("broken"), true},
		{"workflow", "/Wf/w1/run", tryError{false}, true},
		{"shared handler of a workflow", "/Wf/w1/sig", tryError{false}, true},
		{"attach", "/restate/attach/" + someID, tryError{false}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			tries := 0
			p := &partitions{do: func(context.Context, *recordpb.Request) (*recordpb.Reply, error) {
				if tries++; tries < 4 {
					return nil, fmt.Errorf("ask leader: %w", c.err)
				}
				return success("1"), nil
			}}
			r := exchange(t, serve(t, newIngress(t, p, nil)), "GET", c.uri, "")
			if c.retried {
				if r.StatusCode != 200 || len(p.seen) != 4 {
					t.Fatalf("%d after %d tries", r.StatusCode, len(p.seen))
				}
				for _, req := range p.seen[1:] {
					if req != p.seen[0] {
						t.Error("a repeated try is another request")
					}
				}
				return
			}
			want := `{"code":503,"message":"internal routing error: ask leader: leader moved","source":"ingress"}`
			if got := bodyOf(t, r); r.StatusCode != 503 || got != want || len(p.seen) != 1 {
				t.Errorf("%d %s after %d tries", r.StatusCode, got, len(p.seen))
			}
		})
	}
}

func TestClientThatGoesAwayEndsItsRequest(t *testing.T) {
	started, ended := make(chan struct{}), make(chan error, 1)
	p := &partitions{do: func(ctx context.Context, _ *recordpb.Request) (*recordpb.Reply, error) {
		close(started)
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	}}
	addr := serve(t, newIngress(t, p, nil))
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "POST /Svc/greet HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n1")
	<-started
	c.Close()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the request still waits")
	}
}

func TestDrainAnswersThoseWhoWait(t *testing.T) {
	started := make(chan struct{})
	p := &partitions{do: func(ctx context.Context, _ *recordpb.Request) (*recordpb.Reply, error) {
		close(started)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	i := newIngress(t, p, nil)
	addr := serve(t, i)
	go func() {
		<-started
		i.Drain()
	}()
	r := exchange(t, addr, "POST", "/Svc/greet", "")
	want := `{"code":503,"message":"internal routing error: this node is shutting down. The invocation continues; retry to get its result.","source":"ingress"}`
	if got := bodyOf(t, r); r.StatusCode != 503 || got != want {
		t.Errorf("%d %s", r.StatusCode, got)
	}
}

func TestBodyLimit(t *testing.T) {
	p := &partitions{do: accept}
	addr := serve(t, newIngress(t, p, func(c *Config) { c.RequestSizeLimit = 8 }))
	if r := exchange(t, addr, "POST", "/Svc/raw", "12345678"); r.StatusCode != 200 {
		t.Errorf("at the limit: %d", r.StatusCode)
	}
	r := exchange(t, addr, "POST", "/Svc/raw", "123456789")
	if got := bodyOf(t, r); r.StatusCode != 413 || got != "length limit exceeded" || r.Header.Get("Content-Type") != "text/plain; charset=utf-8" || r.Header.Get("Vary") != "" {
		t.Errorf("announced: %d %s %v", r.StatusCode, got, r.Header)
	}
	r = exchange(t, addr, "POST", "/Svc/raw", "123456789", chunked)
	if got := bodyOf(t, r); r.StatusCode != 413 || got != `{"code":413,"message":"cannot read body: LengthLimitError","source":"ingress"}` {
		t.Errorf("chunked: %d %s", r.StatusCode, got)
	}
}

func TestSilentBodyTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		conn := serveInMemory(t, newIngress(t, &partitions{do: accept}, nil)).dial(t)
		r := answerTo(t, conn, "POST /Svc/raw HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n")
		if got := bodyOf(t, r); r.StatusCode != 408 || got != `{"code":408,"message":"cannot read body: the client sent nothing for too long","source":"ingress"}` {
			t.Errorf("%d %s", r.StatusCode, got)
		}
		if d := time.Since(began); d != DefaultConfig().BodyTimeout {
			t.Errorf("answered after %s", d)
		}
	})
}

// What is refused, or answered without its body, is answered although the rest of the body never comes: the server would
// wait for it to keep the connection.
func TestAnswerDoesNotWaitForTheRestOfTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := serveInMemory(t, newIngress(t, &partitions{do: accept}, nil))
		for _, c := range []struct {
			request string
			code    int
		}{
			{"POST /Nope/x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n", 404},
			{"POST /Nope/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", 404},
			{"POST /Svc/raw HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n1234", 408},
			{"POST /Svc/raw HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n", 408},
			{"OPTIONS /Svc/raw HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n", 200},
			{"GET /restate/health HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n", 200},
			{"GET /restate/attach/" + someID + " HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n", 200},
		} {
			began := time.Now()
			if r := answerTo(t, l.dial(t), c.request); r.StatusCode != c.code {
				t.Errorf("%.40q: %d, want %d", c.request, r.StatusCode, c.code)
			}
			if d := time.Since(began); d > DefaultConfig().BodyTimeout {
				t.Errorf("%.40q: answered after %s", c.request, d)
			}
		}
	})
}

// The time limit for the body does not end a call that waits for its result.
func TestWaitingOutlastsTheLimitOfTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &partitions{do: func(ctx context.Context, _ *recordpb.Request) (*recordpb.Reply, error) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(10 * DefaultConfig().BodyTimeout):
				return success("1"), nil
			}
		}}
		l := serveInMemory(t, newIngress(t, p, nil))
		for _, http2 := range []bool{false, true} {
			protocols := new(http.Protocols)
			protocols.SetHTTP1(!http2)
			protocols.SetUnencryptedHTTP2(http2)
			tr := &http.Transport{Protocols: protocols, DialContext: func(context.Context, string, string) (net.Conn, error) { return l.dial(t), nil }}
			defer tr.CloseIdleConnections()
			for _, body := range []string{"", "x", strings.Repeat("x", 3*smallRequest)} {
				r, err := (&http.Client{Transport: tr}).Post("http://memory/Svc/raw", "text/plain", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				if got := bodyOf(t, r); r.StatusCode != 200 || got != "1" {
					t.Errorf("%s with %d bytes: %d %s", r.Proto, len(body), r.StatusCode, got)
				}
				r.Body.Close()
			}
		}
	})
}

// A large body may take long, as long as it comes.
func TestSlowBodyIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const piece, pieces = smallRequest / 4, 30
		p := &partitions{do: accept}
		conn := serveInMemory(t, newIngress(t, p, nil)).dial(t)
		fmt.Fprintf(conn, "POST /Svc/raw HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n", piece*pieces)
		for range pieces {
			<-time.After(DefaultConfig().BodyTimeout / 2)
			if _, err := conn.Write(make([]byte, piece)); err != nil {
				t.Fatal(err)
			}
		}
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := bodyOf(t, r); r.StatusCode != 200 || len(p.invocation(t).Argument) != piece*pieces {
			t.Errorf("%d %s", r.StatusCode, got)
		}
	})
}

// Announcing a large body takes no memory, sending it does, and all of it is accounted for.
func TestMemoryComesWithTheBody(t *testing.T) {
	read := func(sent int, n int64) ([]byte, int64) {
		taken := int64(0)
		b, err := readGrowing(strings.NewReader(strings.Repeat("x", sent)), n, func(n int64) error { taken += n; return nil })
		if err != nil {
			t.Fatal(err)
		}
		return b, taken
	}
	for _, sent := range []int{0, 10, 4 << 10, 5 << 10, 5 * smallRequest} {
		if b, taken := read(sent, 32<<20); len(b) != sent || cap(b) > max(4<<10, 2*sent) || int64(cap(b)) != taken {
			t.Errorf("%d bytes: %d in %d, taken %d", sent, len(b), cap(b), taken)
		}
	}
	if b, taken := read(200_000, 150_000); len(b) != 150_000 || cap(b) != 150_000 || taken != 150_000 {
		t.Errorf("%d in %d, taken %d", len(b), cap(b), taken)
	}
}

// A body whose length is not announced may be as large as one whose length is, also where the memory is just enough for it.
func TestLargestBodyWithoutLength(t *testing.T) {
	const limit = 3 * smallRequest
	p := &partitions{do: func(context.Context, *recordpb.Request) (*recordpb.Reply, error) { return success("1"), nil }}
	addr := serve(t, newIngress(t, p, func(c *Config) { c.RequestSizeLimit, c.RequestMemory = limit, limit }))
	for size, want := range map[int]int{limit - 1: 200, limit: 200, limit + 1: 413} {
		r := exchange(t, addr, "POST", "/Svc/raw", strings.Repeat("x", size), chunked)
		if got := bodyOf(t, r); r.StatusCode != want {
			t.Errorf("%d bytes: %d %s, want %d", size, r.StatusCode, got, want)
		}
	}
}

// Bodies of requests that wait count, however many connections they come over; what they took is given back.
func TestMemoryOfAllBodiesIsLimited(t *testing.T) {
	const limit = 3 * smallRequest
	release := make(chan struct{})
	arrived := make(chan struct{}, 3)
	p := &partitions{do: func(context.Context, *recordpb.Request) (*recordpb.Reply, error) {
		arrived <- struct{}{}
		<-release
		return success("1"), nil
	}}
	i := newIngress(t, p, func(c *Config) { c.RequestSizeLimit, c.RequestMemory = limit, limit })
	addr := serve(t, i)
	answers := make(chan int, 3)
	call := func(size int) {
		answers <- exchange(t, addr, "POST", "/Svc/raw", strings.Repeat("x", size)).StatusCode
	}
	for range 2 {
		go call(smallRequest)
		<-arrived
	}
	for _, size := range []int{smallRequest + 1, 3 * smallRequest} { // one counts as it is read
		r := exchange(t, addr, "POST", "/Svc/raw", strings.Repeat("x", size))
		if got := bodyOf(t, r); r.StatusCode != 429 || !strings.Contains(got, "overloaded") || r.Header.Get("Retry-After") == "" {
			t.Errorf("%d bytes: %d %s", size, r.StatusCode, got)
		}
	}
	go call(smallRequest) // what was refused took nothing away
	<-arrived
	if r := exchange(t, addr, "POST", "/Svc/raw", "x"); r.StatusCode != 429 {
		t.Errorf("one byte more: %d", r.StatusCode)
	}
	close(release)
	for range 3 {
		if code := <-answers; code != 200 {
			t.Errorf("within the limit: %d", code)
		}
	}
	for deadline := time.Now().Add(time.Minute); i.bodies.Load() != 0; { // an answer is there before its request has ended
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes were not given back", i.bodies.Load())
		}
		<-time.After(time.Millisecond)
	}
}

// A client that asks for big results and never reads them must not keep them in memory.
func TestClientThatDoesNotReadIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIngress(t, &partitions{do: func(context.Context, *recordpb.Request) (*recordpb.Reply, error) {
			return success(strings.Repeat("x", 32<<20)), nil
		}}, nil)
		conn := serveInMemory(t, i).dial(t)
		if _, err := io.WriteString(conn, "POST /Svc/raw HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		<-time.After(DefaultConfig().BodyTimeout)
		synctest.Wait()
		if n := i.inflight.Load(); n > 0 {
			t.Error("the request still waits for its client")
		}
	})
}

// A client that reads slowly, or asks again later on the same connection, is served.
func TestSlowClientGetsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 8 << 20
		limit := DefaultConfig().BodyTimeout
		conn := serveInMemory(t, newIngress(t, &partitions{do: func(context.Context, *recordpb.Request) (*recordpb.Reply, error) {
			return success(strings.Repeat("x", size)), nil
		}}, nil)).dial(t)
		r := bufio.NewReader(conn)
		for range 2 {
			if _, err := io.WriteString(conn, "POST /Svc/raw HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for buf := make([]byte, sendAtOnce); err == nil; <-time.After(limit / 2) {
				var m int
				m, err = io.ReadFull(resp.Body, buf)
				n += m
			}
			if n != size {
				t.Errorf("got %d bytes", n)
			}
			<-time.After(limit + time.Second) // the deadline of the first answer is over when the second one comes
		}
	})
}

// A name that is too long for the rows that are found by it is refused before anything is made of it.
func TestLongNames(t *testing.T) {
	p := &partitions{do: accept}
	addr := serve(t, newIngress(t, p, func(c *Config) { c.MaxHeaderBytes = 1 << 20 }))
	for _, c := range []struct {
		method, uri, header string
		code                int
	}{
		{"POST", "/Obj/" + strings.Repeat("k", ident.MaxName) + "/add", "X-Long: no", 200},
		{"POST", "/Obj/" + strings.Repeat("k", ident.MaxName+1) + "/add", "X-Long: no", 400},
		{"POST", "/Obj/" + strings.Repeat("%6b", ident.MaxName+1) + "/add/send", "X-Long: no", 400},
		{"POST", "/Obj/k/add", "Idempotency-Key: " + strings.Repeat("k", ident.MaxName), 200},
		{"POST", "/Obj/k/add", "Idempotency-Key: " + strings.Repeat("k", ident.MaxName+1), 400},
		{"GET", "/restate/workflow/Wf/" + strings.Repeat("k", ident.MaxName+1) + "/output", "X-Long: no", 400},
	} {
		r := exchange(t, addr, c.method, c.uri, "1", jsonType, c.header)
		got := bodyOf(t, r)
		if r.StatusCode != c.code || c.code == 400 && !strings.Contains(got, "longer than 65536 bytes") {
			t.Errorf("%.30s, %.30s: %d %s", c.uri, c.header, r.StatusCode, got)
		}
	}
}

func TestOverload(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	p := &partitions{do: func(context.Context, *recordpb.Request) (*recordpb.Reply, error) {
		close(started)
		<-release
		return success("1"), nil
	}}
	addr := serve(t, newIngress(t, p, func(c *Config) { c.ConcurrentRequests = 1 }))
	first := make(chan int)
	go func() { first <- exchange(t, addr, "POST", "/Svc/greet", "").StatusCode }()
	<-started
	r := exchange(t, addr, "POST", "/Svc/greet", "")
	if got := bodyOf(t, r); r.StatusCode != 429 || got != `{"code":429,"message":"too many requests, the ingress is overloaded. Retry later.","source":"ingress"}` || r.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", r.StatusCode, got)
	}
	close(release)
	if got := <-first; got != 200 {
		t.Errorf("the first one: %d", got)
	}
}

func TestHTTP2WithoutTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &partitions{do: accept}
		l := serveInMemory(t, newIngress(t, p, nil))
		protocols := new(http.Protocols)
		protocols.SetUnencryptedHTTP2(true)
		tr := &http.Transport{Protocols: protocols, DialContext: func(context.Context, string, string) (net.Conn, error) { return l.dial(t), nil }}
		defer tr.CloseIdleConnections()
		r, err := (&http.Client{Transport: tr}).Post("http://memory/Obj/a%20b/add?q=%20", "application/json", strings.NewReader("1"))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if got := bodyOf(t, r); r.ProtoMajor != 2 || r.StatusCode != 200 || got != "1" {
			t.Errorf("%s %d %s", r.Proto, r.StatusCode, got)
		}
		inv := p.invocation(t)
		if inv.Target.Key != "a b" || inv.Headers[0].Value != "/Obj/a%20b/add?q=%20" {
			t.Errorf("%v", inv)
		}
	})
}

func TestConfigValidate(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"request size": func(c *Config) { c.RequestSizeLimit = 0 }, "concurrent": func(c *Config) { c.ConcurrentRequests = -1 },
		"retry": func(c *Config) { c.RetryMax = 1 }, "idle": func(c *Config) { c.IdleTimeout = 0 },
		"header limit": func(c *Config) { c.MaxHeaderBytes = 1 }, "stream limit": func(c *Config) { c.MaxConcurrentStreams = 0 },
		"request memory": func(c *Config) { c.RequestMemory = 1 },
	} {
		c := DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever the path, the parser answers with a route or an error, and what it decodes is UTF-8.
func FuzzParsePath(f *testing.F) {
	s := registered()
	for _, p := range []string{"/Svc/greet", "/Obj/a%20b/add/send", "/restate/call/Obj/%/get", "/restate/invocation/Svc/greet/k/attach",
		"/restate/workflow/Wf/%c3%a9/output", "/restate/scope/s/call/Svc/greet", "//", "/restate/a/x/resolve"} {
		f.Add("POST", p)
		f.Add("GET", p)
	}
	f.Fuzz(func(t *testing.T, method, path string) {
		r, err := parsePath(method, path, s)
		if err != nil {
			if ref := refusalOf(err); ref.status < 400 || ref.status > 499 {
				t.Fatalf("%q: %d %v", path, ref.status, err)
			}
			return
		}
		if r.kind == 0 {
			t.Fatalf("%q has no kind", path)
		}
		if again, err := decodeKey(strings.ReplaceAll(r.key, "%", "%25")); err != nil || again != r.key {
			t.Fatalf("%q: key %q decodes to %q, %v", path, r.key, again, err)
		}
	})
}

func FuzzLookupBody(f *testing.F) {
	f.Add(`{"target":"workflow","workflowName":"Wf","workflowKey":"w1"}`)
	f.Add(`{"target":"invocation","invocationId":"` + someID + `"}`)
	i := newIngress(f, &partitions{do: accept}, nil)
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest("POST", "/restate/lookup", strings.NewReader(body))
		w := httptest.NewRecorder()
		i.Handler().ServeHTTP(w, r)
		if w.Code != 200 && w.Code != 400 {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}
