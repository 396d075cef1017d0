package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// buffer is safe to write from the program and read from the test at once.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// exec runs a command line against servers that the environment names.
func exec(t *testing.T, env []string, stdin string, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e buffer
	a := &app{in: strings.NewReader(stdin), out: &o, err: &e, env: env}
	code = a.run(context.Background(), args)
	return code, o.String(), e.String()
}

// request is what a fake server saw.
type request struct {
	method, uri, body string
	header            http.Header
}

// fakeServer answers each request the same way and remembers the last one.
func fakeServer(t *testing.T, status int, header map[string]string, body string) (env []string, last func() request) {
	t.Helper()
	var mu sync.Mutex
	var seen request
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		mu.Lock()
		seen = request{r.Method, r.RequestURI, string(data), r.Header.Clone()}
		mu.Unlock()
		for k, v := range header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(s.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return []string{"PERDURE_ADMIN_URL=" + s.URL, "PERDURE_INGRESS_URL=" + s.URL + "/", "PERDURE_TOKEN=t0ken"}, func() request {
		mu.Lock()
		defer mu.Unlock()
		return seen
	}
}

func TestUsageMistakesExitWithTwo(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"foo", `unknown command "foo"`},
		{"server --bogus", "unknown flag: --bogus"},
		{"server extra", "unknown command"},
		{"server --set nonsense", "write it as KEY=VALUE"},
		{"deployments", "perdure: deployments needs one of: get, list, register, remove"},
		{"deployments publish", `there is no "publish"`},
		{"deployments register", "needs one URL or --lambda ARN"},
		{"deployments register http://a --lambda arn:b", "needs one URL or --lambda ARN"},
		{"deployments register ftp://a", "is no URL that can be used"},
		{"deployments register http://a --metadata x", "write it as name=value"},
		{"deployments register http://a --assume-role-arn x", "makes no sense for a URL"},
		{"deployments register http://a --concurrency 3", "--concurrency makes no sense for a URL"},
		{"deployments register arn:aws:lambda:x --concurrency -1", "must be at least 1"},
		{"deployments register arn:aws:lambda:x --use-http1.1", "makes no sense for a Lambda function"},
		{"deployments get", "get needs the id of one deployment, got 0 arguments\nRun 'perdure deployments get --help'"},
		{"invoke", "needs one target"},
		{"invoke Greeter", "is no target"},
		{"invoke Greeter/Greet --json nope", "that is not JSON"},
		{"invoke Greeter/Greet --delay 1s", "--delay needs --send"},
		{"invocations cancel", "cancel needs the id of at least one invocation"},
		{"invocations get inv_1 inv_2", "get needs the id of one invocation, got 2"},
		{"doctor inv_1 inv_2", "doctor needs no id, or that of one invocation"},
		{"health --admin-url ftp://x", "--admin-url: \"ftp://x\" is no URL"},
	} {
		code, _, errs := exec(t, nil, "", strings.Fields(c.args)...)
		if code != 2 || !strings.Contains(errs, c.want) || strings.Count(errs, "\n") != 2 {
			t.Errorf("%s: exit %d, said %q; want %q", c.args, code, errs, c.want)
		}
	}
}

const registered = `{"id":"dp_1","services":[{"name":"Greeter","ty":"Service","revision":3,"public":true,"handlers":[{"name":"Greet"},{"name":"Wave"}]},
 {"name":"Counter","ty":"VirtualObject","revision":1,"public":false,"handlers":[{"name":"Add"}]}]}`

func TestRegister(t *testing.T) {
	env, last := fakeServer(t, 201, nil, registered)
	code, out, errs := exec(t, env, "", "deployments", "register", "localhost:9080", "--breaking", "--use-http1.1",
		"--extra-header", "authorization=Bearer a=b", "--metadata", "commit=abc", "--metadata", "by=me")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, errs)
	}
	want := "Registered deployment dp_1:\n" +
		"SERVICE  TYPE           REVISION  ACCESS   HANDLERS\n" +
		"Counter  VirtualObject  1         private  Add\n" +
		"Greeter  Service        3         public   Greet, Wave\n"
	if out != want {
		t.Errorf("said\n%s\nwant\n%s", out, want)
	}
	r := last()
	if r.method != "POST" || r.uri != "/deployments" || r.header.Get("Authorization") != "Bearer t0ken" || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("asked %+v", r)
	}
	sameJSON(t, r.body, `{"uri":"http://localhost:9080","use_http_11":true,"force":false,"breaking":true,"dry_run":false,
		"additional_headers":{"authorization":"Bearer a=b"},"metadata":{"commit":"abc","by":"me"}}`)
}

func TestRegisterLambda(t *testing.T) {
	env, last := fakeServer(t, 200, nil, registered)
	for _, args := range [][]string{{"--lambda", "arn:aws:lambda:x"}, {"arn:aws:lambda:x"}} {
		code, out, _ := exec(t, env, "", append([]string{"deployments", "register", "--dry-run", "--assume-role-arn", "arn:r"}, args...)...)
		if code != 0 || !strings.HasPrefix(out, "This would be registered") {
			t.Errorf("exit %d, said %s", code, out)
		}
		sameJSON(t, last().body, `{"arn":"arn:aws:lambda:x","assume_role_arn":"arn:r","force":false,"breaking":false,"dry_run":true}`)
	}
}

func TestRegisterConcurrency(t *testing.T) {
	env, last := fakeServer(t, 200, nil, registered)
	if code, _, errs := exec(t, env, "", "deployments", "register", "arn:aws:lambda:x", "--concurrency", "5", "--metadata", "by=me"); code != 0 {
		t.Errorf("exit %d, said %s", code, errs)
	}
	sameJSON(t, last().body, `{"arn":"arn:aws:lambda:x","force":false,"breaking":false,"dry_run":false,"metadata":{"by":"me","lambda.concurrency":"5"}}`)
}

func TestRegisterSaysWhatHappened(t *testing.T) {
	env, _ := fakeServer(t, 200, nil, registered)
	for _, c := range []struct{ flag, want string }{{"--force", "Overwrote deployment dp_1"}, {"--force=false", "Nothing changed"}} {
		if _, out, _ := exec(t, env, "", "deployments", "register", "http://a:1", c.flag); !strings.HasPrefix(out, c.want) {
			t.Errorf("%s: said %s", c.flag, out)
		}
	}
}

func sameJSON(t *testing.T, got, want string) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Errorf("%q: %v", got, err)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	gb, _ := json.Marshal(g)
	wb, _ := json.Marshal(w)
	if !bytes.Equal(gb, wb) {
		t.Errorf("got %s, want %s", gb, wb)
	}
}

func TestListsAndGets(t *testing.T) {
	deployment := `{"id":"dp_1","uri":"http://a:1/","http_version":"HTTP/2.0","protocol_type":"BidiStream","created_at":"2026-01-01T00:00:00Z",
		"sdk_version":"sdk/1","min_protocol_version":5,"max_protocol_version":6,"services":[{"name":"Greeter","revision":2,"ty":"Service","public":true,"handlers":[]}]}`
	for _, c := range []struct {
		args, body, uri string
		want            []string
	}{
		{"deployments list", `{"deployments":[` + deployment + `]}`, "/deployments", []string{"DEPLOYMENT", "dp_1", "http://a:1/", "HTTP/2.0 BidiStream", "Greeter@2"}},
		{"deployments list", `{"deployments":[]}`, "/deployments", []string{"There are no deployments yet"}},
		{"dp get dp_1", deployment, "/deployments/dp_1", []string{"sdk/1, service protocol 5 to 6", "Greeter"}},
		{"services list", `{"services":[{"name":"Greeter","ty":"Service","revision":1,"public":true,"handlers":[{"name":"Greet"}]}]}`, "/services", []string{"Greeter", "Greet"}},
		{"services list", `{"services":[]}`, "/services", []string{"There are no services yet"}},
	} {
		env, last := fakeServer(t, 200, nil, c.body)
		code, out, errs := exec(t, env, "", strings.Fields(c.args)...)
		if code != 0 || last().uri != c.uri || last().method != "GET" {
			t.Errorf("%s: exit %d, asked %s, %s", c.args, code, last().uri, errs)
		}
		for _, w := range c.want {
			if !strings.Contains(out, w) {
				t.Errorf("%s: said %q, want %q", c.args, out, w)
			}
		}
		_, out, _ = exec(t, env, "", append(strings.Fields(c.args), "--json")...)
		sameJSON(t, out, c.body)
	}
}

func TestRemove(t *testing.T) {
	env, last := fakeServer(t, 202, nil, "")
	code, out, _ := exec(t, env, "", "deployments", "remove", "dp_1", "--force")
	if r := last(); code != 0 || out != "Removed dp_1\n" || r.method != "DELETE" || r.uri != "/deployments/dp_1?force=true" {
		t.Errorf("exit %d, said %q, asked %+v", code, out, r)
	}
	env, _ = fakeServer(t, 501, nil, "")
	code, _, errs := exec(t, env, "", "deployments", "remove", "dp_1")
	if code != 1 || !strings.Contains(errs, "--force removes it all the same") {
		t.Errorf("exit %d, said %q", code, errs)
	}
}

func TestInvoke(t *testing.T) {
	for _, c := range []struct {
		args  []string
		stdin string
		uri   string
		body  string
	}{
		{[]string{"Greeter/Greet", "--json", `"Ada"`}, "", "/restate/call/Greeter/Greet", `"Ada"`},
		{[]string{"Greeter/Greet"}, "", "/restate/call/Greeter/Greet", ""},
		{[]string{"Counter/a/b c/Add", "--json", "-"}, "7", "/restate/call/Counter/a%2Fb%20c/Add", "7"},
		{[]string{"Counter/Add/Add"}, "", "/restate/call/Counter/Add/Add", ""},
	} {
		env, last := fakeServer(t, 200, map[string]string{"x-restate-id": "inv_1"}, `"hello"`)
		code, out, errs := exec(t, env, c.stdin, append([]string{"invoke", "--idempotency-key", "k", "--header", "x-a=b"}, c.args...)...)
		r := last()
		if code != 0 || out != "\"hello\"\n" || r.uri != c.uri || r.body != c.body || r.header.Get("Idempotency-Key") != "k" || r.header.Get("X-A") != "b" {
			t.Errorf("%v: exit %d, said %q %s, asked %+v", c.args, code, out, errs, r)
		}
		if got := r.header.Get("Content-Type"); (got == "application/json") != (c.body != "") {
			t.Errorf("%v: content type %q", c.args, got)
		}
		_, out, _ = exec(t, env, c.stdin, append([]string{"invoke", "--json-output"}, c.args...)...)
		sameJSON(t, out, `{"invocationId":"inv_1","result":"hello"}`)
	}
}

// What the API answers without words is explained.
func TestRemovalThatIsRefused(t *testing.T) {
	env, _ := fakeServer(t, 501, nil, "")
	if code, _, errs := exec(t, env, "", "deployments", "remove", "dp_1"); code != 1 || !strings.Contains(errs, "dp_1 is not removed: ") || !strings.Contains(errs, "--force removes it") {
		t.Errorf("exit %d, said %q", code, errs)
	}
}

func TestRegisteringNothingIsTold(t *testing.T) {
	env, _ := fakeServer(t, 201, nil, `{"id":"dp_1","services":[]}`)
	if code, out, _ := exec(t, env, "", "deployments", "register", "http://a"); code != 0 || !strings.Contains(out, "It serves nothing") {
		t.Errorf("exit %d, said %q", code, out)
	}
}

func TestInvokeSend(t *testing.T) {
	env, last := fakeServer(t, 202, nil, `{"invocationId":"inv_1","status":"Accepted"}`)
	code, out, _ := exec(t, env, "", "invoke", "Greeter/Greet", "--send", "--delay", "1h 30m")
	if code != 0 || !strings.HasPrefix(out, "Accepted inv_1\n") || last().uri != "/restate/send/Greeter/Greet?delay=1h+30m" {
		t.Errorf("exit %d, said %q, asked %s", code, out, last().uri)
	}
}

func TestOperations(t *testing.T) {
	env, last := fakeServer(t, 200, nil, `{"new_invocation_id":"inv_9"}`)
	for _, op := range operations {
		code, out, _ := exec(t, env, "", "invocations", op.name, "inv_1", "inv/2")
		method, uri, said := "PATCH", "/invocations/inv%2F2/"+op.name, op.done+" inv_1\n"+op.done+" inv/2\n"
		switch op.name {
		case "pause": // it looks afterwards what became of the invocation
			method, uri = "GET", "/perdure/invocations/inv%2F2"
		case "restart-as-new":
			said = "Restarted inv_1 as inv_9\nRestarted inv/2 as inv_9\n"
		}
		if r := last(); code != 0 || out != said || r.method != method || r.uri != uri {
			t.Errorf("%s: exit %d, said %q, asked %+v", op.name, code, out, r)
		}
	}
	for args, want := range map[string]string{
		"resume inv_1 --deployment latest":                "/invocations/inv_1/resume?deployment=latest",
		"restart-as-new inv_1 --from 3 --deployment dp_1": "/invocations/inv_1/restart-as-new?deployment=dp_1&from=3",
		"restart-as-new inv/1 --deployment keep --json":   "/invocations/inv%2F1/restart-as-new?deployment=keep",
		"purge inv_1 --journal":                           "/invocations/inv_1/purge-journal",
	} {
		code, out, errs := exec(t, env, "", append([]string{"inv"}, strings.Fields(args)...)...)
		if r := last(); code != 0 || r.uri != want {
			t.Errorf("%s: exit %d, said %s, asked %+v", args, code, errs, r)
		}
		if strings.Contains(args, "--journal") && out != "Purged the journal of inv_1\n" {
			t.Errorf("%s: said %q", args, out)
		}
		if strings.Contains(args, "--json") && !strings.Contains(out, `"new_invocation_id": "inv_9"`) {
			t.Errorf("%s: said %s", args, out)
		}
	}
	env, _ = fakeServer(t, 200, nil, `{"status":"suspended"}`)
	if _, out, _ := exec(t, env, "", "inv", "pause", "inv_1"); out != "Nothing to pause, it is suspended: inv_1\n" {
		t.Errorf("said %q", out)
	}
	env, _ = fakeServer(t, 200, nil, "{}")
	if code, out, errs := exec(t, env, "", "inv", "restart-as-new", "inv_1"); code != 1 || out != "" || !strings.Contains(errs, "does not tell the id") {
		t.Errorf("exit %d, said %q and %q", code, out, errs)
	}
	env, _ = fakeServer(t, 202, nil, "")
	if _, out, _ := exec(t, env, "", "inv", "cancel", "inv_1"); out != "Accepted: cancel inv_1\n" {
		t.Errorf("said %q", out)
	}
}

func TestErrorsAreInPlainWords(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		want   string
	}{
		{404, `{"message":"The requested invocation 'inv_1' does not exist","restate_code":null}`, "kill inv_1: The requested invocation 'inv_1' does not exist (HTTP 404)"},
		{500, `{"message":"cannot reach it","restate_code":"META0003"}`, "[META0003] cannot reach it (HTTP 500)"},
		{500, `{"message":"[META0003] cannot reach it","restate_code":"META0003"}`, ": [META0003] cannot reach it (HTTP 500)"},
		{500, `{"message":"[META0003] [META0003] cannot reach it","restate_code":"META0003"}`, ": [META0003] cannot reach it (HTTP 500)"},
		{400, "Invalid URL: bad id", "Invalid URL: bad id (HTTP 400)"},
		{401, "", "pass --token or set PERDURE_TOKEN"},
		{503, "", "try again in a moment"},
		{302, "", "(HTTP 302)"},
	} {
		env, _ := fakeServer(t, c.status, nil, c.body)
		code, _, errs := exec(t, env, "", "invocations", "kill", "inv_1")
		if code != 1 || !strings.Contains(errs, c.want) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%d: exit %d, said %q, want %q", c.status, code, errs, c.want)
		}
	}
}

func TestWrongServerIsNamed(t *testing.T) {
	env, _ := fakeServer(t, 200, nil, "<html>")
	if code, _, errs := exec(t, env, "", "services", "list"); code != 1 || !strings.Contains(errs, "is no admin API of Perdure") {
		t.Errorf("exit %d, said %q", code, errs)
	}
	if code, _, errs := exec(t, env, "", "invoke", "A/b", "--send"); code != 1 || !strings.Contains(errs, "is no ingress of Perdure") {
		t.Errorf("exit %d, said %q", code, errs)
	}
}

func TestUnreachableServer(t *testing.T) {
	// Nobody gets port 1 by asking for a free one, as somebody could that of a listener which was just closed.
	code, _, errs := exec(t, nil, "", "services", "list", "--admin-url", "http://user:hunter2@127.0.0.1:1")
	if code != 1 || !strings.Contains(errs, "is it running (perdure server)") || strings.Contains(errs, "hunter2") {
		t.Errorf("exit %d, said %q", code, errs)
	}
}

func TestHealth(t *testing.T) {
	env, _ := fakeServer(t, 200, map[string]string{"Server": "perdure/v3"}, `{"version":"1.7.12","services":["Greeter"]}`)
	code, out, _ := exec(t, env, "", "health")
	if code != 0 || !strings.Contains(out, "perdure v3, speaks the admin API of Restate 1.7.12") || !strings.Contains(out, "services: Greeter") {
		t.Errorf("exit %d, said %q", code, out)
	}
	env, _ = fakeServer(t, 503, nil, "")
	code, out, errs := exec(t, env, "", "health", "--json")
	if code != 1 || strings.Count(out, `"ok": false`) != 2 || errs != "" {
		t.Errorf("exit %d, said %q %q", code, out, errs)
	}
}

func TestVersion(t *testing.T) {
	for _, arg := range []string{"version", "--version"} {
		if code, out, _ := exec(t, nil, "", arg); code != 0 || out != "perdure dev\n" {
			t.Errorf("%s: exit %d, said %q", arg, code, out)
		}
	}
}

func TestDoctor(t *testing.T) {
	const well = `{"healthy":true,"invocations":{"suspended":3,"running":1},"waits_for":{"timer":3,"attempt":1},"problems":[],"problems_total":0,"partitions":2,"took_ms":1}`
	env, last := fakeServer(t, 200, nil, well)
	code, out, errs := exec(t, env, "", "doctor")
	if code != 0 || !strings.Contains(out, "Nothing is stuck") || !strings.Contains(out, "sleep or are delayed") || last().uri != "/perdure/doctor" {
		t.Errorf("doctor: code %d, asked %s\n%s%s", code, last().uri, out, errs)
	}
	env, _ = fakeServer(t, 200, nil, `{"healthy":true,"invocations":{"paused":1},"waits_for":{"operator":1,"retry":2}}`)
	if code, out, _ := exec(t, env, "", "doctor"); code != 0 || !strings.Contains(out, "but 1 will only go on when an operator has acted") || !strings.Contains(out, "perdure invocations list --status backing-off\n") {
		t.Errorf("doctor with a paused one: code %d\n%s", code, out)
	}
	env, _ = fakeServer(t, 200, nil, `{"healthy":true,"notes":["The clock is behind."]}`)
	if code, out, _ := exec(t, env, "", "doctor"); code != 0 || !strings.Contains(out, "\nThe clock is behind.\n\nNothing is stuck") {
		t.Errorf("doctor with a note: code %d\n%s", code, out)
	}
	env, _ = fakeServer(t, 200, nil, `{"healthy":false,"unexamined":{"3":"it has no leader"}}`)
	if code, out, _ := exec(t, env, "", "doctor"); code != 1 || out != "0 partitions examined\n\npartition 3 was not examined: it has no leader\nNothing is stuck in those that were.\n" {
		t.Errorf("doctor without a partition: code %d\n%s", code, out)
	}
	env, _ = fakeServer(t, 200, nil, `{"healthy":false,"problems_total":1,"problems":[{"id":"inv_1","target":"S/h","status":"suspended","problem":"it waits for nothing"}]}`)
	if code, out, _ := exec(t, env, "", "doctor"); code != 1 || !strings.Contains(out, "1 are stuck") || !strings.Contains(out, "inv_1  S/h  suspended\n  it waits for nothing") {
		t.Errorf("doctor with a problem: code %d\n%s", code, out)
	}
	env, last = fakeServer(t, 200, nil, `{"id":"inv_1","target":"S/h","status":"suspended","since":"2026-11-23T05:01:00Z","waits":[{"reason":"timer","text":"its sleep"},{"reason":"signal","text":"a signal"}],
		"needs":"it goes on with the first of them","chain":[{"id":"inv_2","target":"T/h","status":"running","text":"attempt 1 runs"}]}`)
	code, out, _ = exec(t, env, "", "doctor", "inv_1")
	if code != 0 || last().uri != "/perdure/doctor/inv_1" || !strings.Contains(out, "it goes on with the first of them:\n  - its sleep\n  - a signal") || !strings.Contains(out, "which is inv_2  T/h, running\n  attempt 1 runs") {
		t.Errorf("doctor of one: code %d, asked %s\n%s", code, last().uri, out)
	}
	if code, out, _ := exec(t, env, "", "doctor", "inv_1", "--json"); code != 0 || !json.Valid([]byte(out)) {
		t.Errorf("doctor --json: code %d\n%s", code, out)
	}
}
