package admin

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"perdure/control/ident"
	"perdure/control/metadata"
	"perdure/control/registry"
	"perdure/control/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// discoverer answers with a manifest or an error.
type discoverer struct {
	mu       sync.Mutex
	services string
	max      int
	mode     string
	err      error
	calls    []string
}

func (d *discoverer) Discover(_ context.Context, addr schema.Address, headers map[string]string) (*schema.Discovered, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, fmt.Sprintf("%s %v", addr, headers))
	if d.err != nil {
		return nil, d.err
	}
	m, err := schema.DecodeManifest(fmt.Appendf(nil, `{"protocolMode":"%s","minProtocolVersion":5,"maxProtocolVersion":%d,"lambdaCompression":"zstd","services":[%s]}`, d.mode, d.max, d.services))
	if err != nil {
		return nil, &DiscoveryError{Message: err.Error()}
	}
	f := &schema.Discovered{Manifest: m, SDKVersion: "sdk/1"}
	if addr.HTTP != nil {
		f.HTTPVersion = schema.HTTP2
	}
	return f, nil
}

// invocations answers every operation with the outcome that is set, and records what was asked.
type invocations struct {
	mu      sync.Mutex
	outcome Outcome
	err     error
	pinned  int
	desc    Description
	log     []string
	state   *StatePatch
}

func (f *invocations) do(format string, args ...any) (Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf(format, args...))
	return f.outcome, f.err
}

func (f *invocations) Cancel(_ context.Context, id ident.InvocationID) (Outcome, error) {
	return f.do("cancel %s", id)
}
func (f *invocations) Kill(_ context.Context, id ident.InvocationID) (Outcome, error) {
	return f.do("kill %s", id)
}
func (f *invocations) Purge(_ context.Context, id ident.InvocationID, journalOnly bool) (Outcome, error) {
	return f.do("purge %s %v", id, journalOnly)
}
func (f *invocations) Pause(_ context.Context, id ident.InvocationID) (Outcome, error) {
	return f.do("pause %s", id)
}
func (f *invocations) Resume(_ context.Context, id ident.InvocationID, pin *Pin) (Outcome, error) {
	return f.do("resume %s %s", id, show(pin))
}
func (f *invocations) RestartAsNew(_ context.Context, id, newID ident.InvocationID, from uint32, pin *Pin) (Outcome, error) {
	if id == newID || id.PartitionKey() != newID.PartitionKey() {
		return 0, errors.New("the new id is in another partition")
	}
	return f.do("restart %s %d %s", id, from, show(pin))
}
func (f *invocations) Describe(context.Context, ident.InvocationID) (Description, Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.outcome == NotFound {
		return Description{}, NotFound, f.err
	}
	return f.desc, Done, f.err
}
func (f *invocations) PatchState(_ context.Context, p StatePatch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = &p
	return f.err
}
func (f *invocations) Pinned(context.Context, ident.DeploymentID) (int, error) {
	return f.pinned, f.err
}

func show(p *Pin) string {
	if p == nil {
		return "-"
	}
	return fmt.Sprintf("%s v%d", p.Deployment, p.Protocol)
}

type cluster struct{ err error }

func (c cluster) Health(context.Context) (Health, error) {
	return Health{"localcluster", []uint32{1}}, c.err
}

var clock = time.Date(2026, 11, 23, 5, 1, 0, 274e6, time.UTC)

type fixture struct {
	t   testing.TB
	a   *Admin
	reg *registry.Registry
	dis *discoverer
	inv *invocations
	ins *inspector
}

const counter = `{"name":"Counter","ty":"VIRTUAL_OBJECT","handlers":[{"name":"add"},{"name":"get","ty":"SHARED"}]}`

func setup(t testing.TB, change func(*Config)) *fixture {
	t.Helper()
	cfg := DefaultConfig()
	if change != nil {
		change(&cfg)
	}
	f := &fixture{t: t, reg: registry.New(metadata.NewMemory(), schema.DefaultDefaults(), nil),
		dis: &discoverer{services: counter, max: 6, mode: "BIDI_STREAM"}, inv: &invocations{outcome: Done}, ins: &inspector{}}
	n := byte(0)
	a, err := New(cfg, Deps{Registry: f.reg, Discoverer: f.dis, Invocations: f.inv, Inspector: f.ins, Cluster: cluster{}, Metrics: prometheus.NewRegistry(),
		Now: func() time.Time { return clock }, Rand: func(b []byte) { n++; clear(b); b[len(b)-1] = n }})
	if err != nil {
		t.Fatal(err)
	}
	f.a = a
	return f
}

func (f *fixture) request(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	f.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	f.a.Handler().ServeHTTP(w, r)
	return w
}

// expect checks status, content type and body. A body that begins with { is JSON that must be equal; <dp> and <inv> stand for
// any id. Any other body is text, where … stands for anything.
func (f *fixture) expect(w *httptest.ResponseRecorder, status int, want string) {
	f.t.Helper()
	got := w.Body.String()
	contentType := ""
	switch {
	case want == "":
		if got != "" {
			f.t.Errorf("there is a body: %s", got)
		}
	case want[0] == '{':
		contentType = "application/json"
		got = regexp.MustCompile(`dp_1[0-9A-Za-z]{22}`).ReplaceAllString(got, "<dp>")
		if !equalJSON(f.t, got, want) {
			f.t.Errorf("body\n%s\nwant\n%s", got, want)
		}
	default:
		contentType = "text/plain; charset=utf-8"
		pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(want), "…", ".*") + "$"
		if !regexp.MustCompile(pattern).MatchString(got) {
			f.t.Errorf("body %q, want %q", got, want)
		}
	}
	if w.Code != status {
		f.t.Errorf("status %d, want %d: %s", w.Code, status, got)
	}
	if got := w.Header().Get("Content-Type"); got != contentType {
		f.t.Errorf("content type %q, want %q", got, contentType)
	}
	if vary := w.Header().Get("Vary"); (vary == "accept-encoding") != (want != "") {
		f.t.Errorf("vary is %q", vary)
	}
}

func equalJSON(t testing.TB, a, b string) bool {
	t.Helper()
	var x, y any
	if err := json.Unmarshal([]byte(a), &x); err != nil {
		t.Fatalf("%v in %s", err, a)
	}
	if err := json.Unmarshal([]byte(b), &y); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	m, _ := json.Marshal(x)
	n, _ := json.Marshal(y)
	return bytes.Equal(m, n)
}

func message(code, text string) string {
	b := errorBody{Message: text}
	if code != "" {
		b.Code = &code
	}
	j, _ := json.Marshal(b)
	return string(j)
}

const (
	uri         = `"uri":"http://h:9080"`
	retry       = `{"initial_interval":"500ms","exponentiation_factor":2,"max_attempts":70,"max_interval":"1m","on_max_attempts":"Pause"}`
	counterJSON = `{"name":"Counter","ty":"VirtualObject","handlers":[
		{"name":"add","ty":"Exclusive","public":true,"input_description":"*/*","output_description":"application/json","retry_policy":{"max_attempts":null}},
		{"name":"get","ty":"Shared","public":true,"input_description":"*/*","output_description":"application/json","retry_policy":{"max_attempts":null}}],
		"deployment_id":"<dp>","revision":%d,"public":true,"idempotency_retention":"1d","journal_retention":"1d","inactivity_timeout":"1m","abort_timeout":"10m",
		"enable_lazy_state":false,"retry_policy":` + retry + `}`
	unknownDp  = "dp_127ZEDk7K2u4Rqffzkbe5sB"
	unknownInv = "inv_12BbmfqHZ9cR0Uk5X6HJL2aSh1BUEzqNEQ"
)

func registered(revision int) string {
	return `{"id":"<dp>","services":[` + fmt.Sprintf(counterJSON, revision) + `],"min_protocol_version":5,"max_protocol_version":6,"sdk_version":"sdk/1"}`
}

func detail(revision int, extra string) string {
	return `{"id":"<dp>","uri":"http://h:9080/","protocol_type":"BidiStream","http_version":"HTTP/2.0",` + extra + `"created_at":"2026-11-23T05:01:00.274000000Z",
		"min_protocol_version":5,"max_protocol_version":6,"sdk_version":"sdk/1","services":[` + fmt.Sprintf(counterJSON, revision) + `]}`
}

func (f *fixture) register(body string) string {
	f.t.Helper()
	w := f.request("POST", "/deployments", body)
	if w.Code != 201 && w.Code != 200 {
		f.t.Fatalf("%d %s", w.Code, w.Body)
	}
	return strings.TrimPrefix(w.Header().Get("Location"), "deployments/")
}

func TestRegister(t *testing.T) {
	f := setup(t, nil)
	w := f.request("POST", "/deployments", `{`+uri+`,"dry_run":true}`)
	f.expect(w, 201, registered(1))
	if !strings.HasPrefix(w.Header().Get("Location"), "deployments/dp_1") {
		t.Errorf("location %q", w.Header().Get("Location"))
	}
	if f.reg.Current().Version() != 0 {
		t.Fatal("a dry run changed the schema")
	}
	f.expect(f.request("POST", "/deployments", `{`+uri+`,"additional_headers":{"X-A":"1"},"metadata":{"m":"n"}}`), 201, registered(1))
	if got := f.dis.calls[1]; got != "http://h:9080/ map[x-a:1]" {
		t.Errorf("discovered %s", got)
	}
	id := f.register(`{` + uri + `}`)
	if len(f.dis.calls) != 2 {
		t.Error("an unchanged deployment was discovered again")
	}
	f.expect(f.request("POST", "/v3/deployments", `{`+uri+`,"dry_run":true}`), 200, registered(1))
	f.expect(f.request("GET", "/deployments/"+id, ""), 200, detail(1, `"additional_headers":{"x-a":"1"},"metadata":{"m":"n"},`))
	f.expect(f.request("GET", "/deployments", ""), 200, `{"deployments":[{"id":"<dp>","uri":"http://h:9080/","protocol_type":"BidiStream","http_version":"HTTP/2.0",
		"additional_headers":{"x-a":"1"},"metadata":{"m":"n"},"created_at":"2026-11-23T05:01:00.274000000Z","min_protocol_version":5,"max_protocol_version":6,"sdk_version":"sdk/1",
		"services":[{"name":"Counter","revision":1}]}]}`)
	f.expect(f.request("POST", "/deployments", `{`+uri+`,"force":true}`), 200, registered(2))
	f.expect(f.request("GET", "/v4/deployments/"+id, ""), 200, detail(2, ""))
}

func TestRegisterVersion2(t *testing.T) {
	f := setup(t, nil)
	f.expect(f.request("POST", "/v2/deployments", `{`+uri+`}`), 201, registered(1))
	f.expect(f.request("POST", "/v2/deployments", `{`+uri+`}`), 201, registered(2))
	f.expect(f.request("POST", "/v2/deployments", `{`+uri+`,"force":false}`), 409, message("", "Conflict: deployment <dp> already exists"))
	id := f.register(`{` + uri + `}`)
	f.expect(f.request("PUT", "/v2/deployments/"+id, `{}`), 200, detail(2, ""))
	f.expect(f.request("PUT", "/v3/deployments/"+id, `{}`), 405, message("", "PUT deployment is deprecated, use PATCH instead"))
}

func TestRegisterLambda(t *testing.T) {
	f := setup(t, nil)
	const arn = "arn:aws:lambda:eu-central-1:123456789012:function:f:1"
	f.expect(f.request("POST", "/deployments", `{"arn":"`+arn+`"}`), 500, message("META0015", "[META0015] [META0015] the deployment announces bidirectional streaming, which AWS Lambda does not support. Configure the SDK's endpoint for Lambda."))
	f.dis.mode, f.dis.services = "REQUEST_RESPONSE", ""
	id := f.register(`{"arn":"` + arn + `","assume_role_arn":"role"}`)
	f.expect(f.request("GET", "/deployments/"+id, ""), 200, `{"id":"<dp>","arn":"`+arn+`","assume_role_arn":"role","compression":"Zstd","created_at":"2026-11-23T05:01:00.274000000Z",
		"min_protocol_version":5,"max_protocol_version":6,"sdk_version":"sdk/1","services":[]}`)
	f.expect(f.request("PATCH", "/deployments/"+id, `{"use_http_11":true}`), 400, message("", "cannot update the deployment, as the deployment type is lambda while the update options are for type http"))
	f.expect(f.request("PATCH", "/deployments/"+id, `{"assume_role_arn":"other"}`), 200, `{"id":"<dp>","arn":"`+arn+`","assume_role_arn":"other","compression":"Zstd","created_at":"2026-11-23T05:01:00.274000000Z",
		"min_protocol_version":5,"max_protocol_version":6,"sdk_version":"sdk/1","services":[]}`)
}

func TestRegisterRefuses(t *testing.T) {
	absolute := func(s string) string {
		return message("", "The request field 'uri' is invalid. Reason: The provided uri "+s+" is not absolute, only absolute URIs can be used.")
	}
	const shape = "Failed to deserialize the JSON body into the target type: …"
	for _, c := range []struct {
		body, contentType string
		code              int
		want              string
	}{
		{"{", "", 400, "Failed to parse the request body as JSON: …"}, {"", "application/json", 400, "Failed to parse the request body as JSON: …"},
		{"[]", "", 422, shape}, {"{}", "", 422, shape}, {`{"uri":1}`, "", 422, shape}, {`{"uri":"not a uri"}`, "", 422, shape},
		{`{` + uri + `}`, "text/plain", 415, "Expected request with `Content-Type: application/json`"},
		{`{"uri":"127.0.0.1:1"}`, "", 400, absolute("127.0.0.1:1")}, {`{"uri":"/x"}`, "", 400, absolute("/x")},
		{`{"uri":"ftp://h/"}`, "", 400, message("", "The request field 'uri' is invalid. Reason: The provided uri has the scheme ftp, only http and https can be used.")},
		{`{"uri":"http://u:p@h/"}`, "", 400, message("", "The request field 'uri' is invalid. Reason: The provided uri has a user name or password. Put credentials into additional_headers.")},
		{`{"arn":"nope"}`, "", 400, message("", "The request field 'arn' is invalid. Reason: A qualified ARN must have 8 components delimited by `:`")},
		{`{` + uri + `,"auth":{"GoogleIdToken":{}}}`, "", 400, message("", "The request field 'auth' is invalid. Reason: this server cannot obtain identity tokens, put an authorization header into additional_headers")},
		{`{` + uri + `,"additional_headers":{"a b":"c"}}`, "", 400, message("", "The request field 'additional_headers' is invalid. Reason: a header cannot have the name 'a b'")},
		{`{` + uri + `,"additional_headers":{"a":"c\r\nd: e"}}`, "", 400, message("", "The request field 'additional_headers' is invalid. Reason: the value of the header 'a' has characters that a header cannot have")},
		{`{` + uri + `,"additional_headers":{"Connection":"close"}}`, "", 400, message("", "The request field 'additional_headers' is invalid. Reason: the header 'Connection' is about a connection or about how a body is sent over it, which the server decides itself; a service would refuse the request, or misread it")},
	} {
		f := setup(t, nil)
		var headers []string
		if c.contentType != "" {
			headers = append(headers, "Content-Type: "+c.contentType)
		}
		f.expect(f.request("POST", "/deployments", c.body, headers...), c.code, c.want)
		if len(f.dis.calls) != 0 {
			t.Errorf("%s was discovered", c.body)
		}
	}
}

func TestRegisterFailsToDiscover(t *testing.T) {
	for _, c := range []struct {
		err      error
		services string
		code     int
		want     string
	}{
		{&DiscoveryError{"META0003", "got status code '404'"}, "", 500, message("META0003", "[META0003] [META0003] got status code '404'")},
		{&DiscoveryError{"", "cannot be decoded"}, "", 500, message("", "cannot be decoded")},
		{fmt.Errorf("discover: %w", context.DeadlineExceeded), "", 500, message("", "discover: context deadline exceeded")},
		{nil, `{"name":"a/b","ty":"SERVICE","handlers":[]}`, 500, message("", `decode manifest: service name "a/b" doesn't match ^([a-zA-Z]|_[a-zA-Z0-9])[a-zA-Z0-9._-]*$`)},
		{nil, `{"name":"ReStateX","ty":"SERVICE","handlers":[]}`, 400, message("META0005", "[META0005] cannot insert/modify service 'ReStateX' as it contains a reserved name")},
		{nil, `{"name":"A","ty":"SERVICE","handlers":[{"name":"h","ty":"EXCLUSIVE"}]}`, 400, message("", "invalid combination of service type and handler type '(Service, Some(Exclusive))'")},
	} {
		f := setup(t, nil)
		f.dis.err, f.dis.services = c.err, c.services
		f.expect(f.request("POST", "/deployments", `{`+uri+`}`), c.code, c.want)
		if f.reg.Current().Version() != 0 {
			t.Error("the schema changed")
		}
	}
	f := setup(t, nil)
	f.register(`{` + uri + `}`)
	f.dis.services = `{"name":"Counter","ty":"SERVICE","handlers":[]}`
	f.expect(f.request("POST", "/deployments", `{"uri":"http://h:2"}`), 409, message("META0006", "[META0006] detected a new service revision for 'Counter' changing the service type from previous revision. Service type cannot be changed across revisions."))
	f.dis.max = 4
	f.expect(f.request("POST", "/deployments", `{"uri":"http://h:2","breaking":true}`), 500, message("META0013", "[META0013] [META0013] received a bad response from the SDK: Expected min protocol version to be <= max protocol version. Received min protocol version '5', max protocol version '4'"))
	f.dis.max = 6
	if w := f.request("POST", "/deployments", `{"uri":"http://h:2","breaking":true}`); w.Code != 201 {
		t.Errorf("breaking: %d %s", w.Code, w.Body)
	}
}

func TestUpdateDeployment(t *testing.T) {
	f := setup(t, nil)
	id := f.register(`{` + uri + `,"additional_headers":{"a":"b"}}`)
	old := `"additional_headers":{"a":"b"},`
	f.expect(f.request("PATCH", "/deployments/"+id, `{}`), 200, detail(1, old))
	if len(f.dis.calls) != 1 {
		t.Error("nothing to change was discovered")
	}
	f.expect(f.request("PATCH", "/deployments/"+id, `{"additional_headers":{"X":"y"},"dry_run":true}`), 200, detail(1, `"additional_headers":{"x":"y"},`))
	f.expect(f.request("GET", "/deployments/"+id, ""), 200, detail(1, old))
	moved := strings.Replace(detail(1, old), "h:9080", "h:2", 1)
	f.expect(f.request("PATCH", "/deployments/"+id, `{"uri":"http://h:2"}`), 200, moved)
	f.dis.services = strings.Replace(counter, `,{"name":"get","ty":"SHARED"}`, "", 1)
	f.expect(f.request("PATCH", "/deployments/"+id, `{"additional_headers":{"a":"b"}}`), 200, moved)
	w := f.request("PATCH", "/deployments/"+id, `{"overwrite":true}`)
	if strings.Contains(w.Body.String(), `"get"`) || w.Code != 200 {
		t.Errorf("overwrite: %d %s", w.Code, w.Body)
	}
	f.expect(f.request("PATCH", "/deployments/"+id, `{"assume_role_arn":"x"}`), 400, message("", "cannot update the deployment, as the deployment type is http while the update options are for type lambda"))
	f.expect(f.request("PATCH", "/deployments/"+id, `{"uri":"zzz"}`), 400, message("", "The request field 'uri' is invalid. Reason: The provided uri zzz is not absolute, only absolute URIs can be used."))
	f.dis.max = 5
	f.expect(f.request("PATCH", "/deployments/"+id, `{"use_http_11":true}`), 400, message("META0016", "[META0016] an update deployment operation must provide an endpoint with the same services and handlers. The update tried to change the supported protocol versions from 5..=6 to 5..=5"))
	f.expect(f.request("PATCH", "/deployments/"+unknownDp, `{}`), 404, message("", "The requested deployment '<dp>' does not exist"))
}

func TestDeleteDeployment(t *testing.T) {
	f := setup(t, nil)
	id := f.register(`{` + uri + `}`)
	path := "/deployments/" + id
	f.expect(f.request("DELETE", path, ""), 501, "") // serves new invocations
	f.register(`{"uri":"http://h:2"}`)
	f.inv.pinned = 1
	f.expect(f.request("DELETE", path, ""), 501, "") // something is pinned
	f.inv.err = errors.New("no leader")
	f.expect(f.request("DELETE", path, ""), 503, message("", "Error when routing the request internally. Reason: no leader"))
	f.inv.err, f.inv.pinned = nil, 0
	f.expect(f.request("DELETE", path, ""), 202, "")
	f.expect(f.request("DELETE", path, ""), 501, "")
	f.expect(f.request("DELETE", path+"?force=true", ""), 404, message("", "not found in the schema registry: deployment with id '<dp>'"))
	id = f.register(`{"uri":"http://h:2"}`)
	f.expect(f.request("DELETE", "/deployments/"+id+"?force=maybe", ""), 400, "Failed to deserialize query string: force: …")
	f.expect(f.request("DELETE", "/deployments/"+id+"?force=", ""), 400, "Failed to deserialize query string: force: …")
	f.expect(f.request("DELETE", "/deployments/"+id+"?force=true", ""), 202, "")
	f.expect(f.request("GET", "/deployments/"+id, ""), 404, message("", "The requested deployment '<dp>' does not exist"))
	f.expect(f.request("GET", "/services", ""), 200, `{"services":[]}`)
}

func TestServices(t *testing.T) {
	f := setup(t, nil)
	f.dis.services = counter + `,{"name":"W","ty":"WORKFLOW","handlers":[{"name":"run","ty":"WORKFLOW","documentation":"d","metadata":{"a":"b"},"inactivityTimeout":1500,
		"retryPolicyMaxAttempts":3,"retryPolicyOnMaxAttempts":"KILL","input":{"required":true,"contentType":"application/json","jsonSchema":{"title":"T"}},"output":{"contentType":"text/plain","setContentTypeIfEmpty":true}}]},
		{"name":"S","ty":"SERVICE","handlers":[{"name":"h","input":{},"output":{}},{"name":"z","input":{"required":true}}]}`
	f.register(`{` + uri + `}`)
	f.expect(f.request("GET", "/services/Counter", ""), 200, fmt.Sprintf(counterJSON, 1))
	f.expect(f.request("GET", "/v2/services/W/handlers/run", ""), 200, `{"name":"run","ty":"Workflow","documentation":"d","metadata":{"a":"b"},"inactivity_timeout":"1s 500ms","public":true,
		"input_description":"JSON 'T'","output_description":"optional text/plain","input_json_schema":{"title":"T"},"retry_policy":{"max_attempts":3,"on_max_attempts":"Kill"}}`)
	f.expect(f.request("GET", "/services/S/handlers", ""), 200, `{"handlers":[
		{"name":"h","public":true,"input_description":"none","output_description":"none","retry_policy":{"max_attempts":null}},
		{"name":"z","public":true,"input_description":"<invalid rules>","output_description":"application/json","retry_policy":{"max_attempts":null}}]}`)
	f.expect(f.request("GET", "/services/S/handlers/x", ""), 404, message("", "The requested handler 'x' on service 'S' does not exist"))
	for _, p := range []string{"/services/N", "/services/N/handlers", "/services/N/openapi"} {
		f.expect(f.request("GET", p, ""), 404, message("", "The requested service 'N' does not exist"))
	}
	f.expect(f.request("GET", "/services/N/handlers/x", ""), 404, message("", "The requested handler 'x' on service 'N' does not exist"))
	w := f.request("GET", "/services/W/openapi", "")
	if !strings.Contains(w.Body.String(), `"http://127.0.0.1:8080/"`) || !strings.Contains(w.Body.String(), "/restate/workflow/W/{key}/attach") {
		t.Errorf("openapi: %d %s", w.Code, w.Body)
	}
	if w = f.request("GET", "/services", ""); !strings.HasPrefix(w.Body.String(), `{"services":[{"name":"Counter"`) {
		t.Errorf("list: %s", w.Body)
	}
	if w = f.request("HEAD", "/services", ""); w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Content-Length") == "0" {
		t.Errorf("head: %d %q %v", w.Code, w.Body, w.Header())
	}
}

func TestModifyService(t *testing.T) {
	f := setup(t, nil)
	f.dis.services = counter + `,{"name":"W","ty":"WORKFLOW","handlers":[{"name":"run","ty":"WORKFLOW"}]}`
	f.register(`{` + uri + `}`)
	f.expect(f.request("PATCH", "/services/Counter", `{}`), 200, fmt.Sprintf(counterJSON, 1))
	f.expect(f.request("PATCH", "/services/Counter", `{"unknown":1,"public":null}`), 200, fmt.Sprintf(counterJSON, 1))
	changed := strings.NewReplacer(`"idempotency_retention":"1d"`, `"idempotency_retention":"2h"`, `"journal_retention":"1d"`, `"journal_retention":"1h"`,
		`"inactivity_timeout":"1m"`, `"inactivity_timeout":"5m"`, `"abort_timeout":"10m"`, `"abort_timeout":"1h 30m"`, `"public":true`, `"public":false`).Replace(fmt.Sprintf(counterJSON, 1))
	f.expect(f.request("PATCH", "/services/Counter", `{"public":false,"idempotency_retention":"2h","journal_retention":"PT1H","inactivity_timeout":"5m","abort_timeout":"1h 30m"}`), 200, changed)
	f.expect(f.request("GET", "/services/Counter", ""), 200, changed)
	w := f.request("PATCH", "/services/W", `{"workflow_completion_retention":"2h"}`)
	if !strings.Contains(w.Body.String(), `"workflow_completion_retention":"2h"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	f.expect(f.request("PATCH", "/services/Counter", `{"workflow_completion_retention":"2h"}`), 400, message("", "modifying retention time for service type VirtualObject is unsupported"))
	f.expect(f.request("PATCH", "/services/Counter", `{"idempotency_retention":"bogus"}`), 422, "Failed to deserialize the JSON body into the target type: idempotency_retention: …")
	for body, why := range map[string]string{`{"public":"x"}`: "public: invalid type: string, expected a boolean", `{"idempotency_retention":5}`: "idempotency_retention: invalid type: number, expected a string",
		`[]`: "invalid type: array, expected an object", `null`: "invalid type: null, expected an object"} {
		f.expect(f.request("PATCH", "/services/Counter", body), 422, "Failed to deserialize the JSON body into the target type: "+why)
	}
	f.expect(f.request("PATCH", "/services/N", `{}`), 404, message("", "The requested service 'N' does not exist"))
	f.expect(f.request("PATCH", "/services/N", `{"public":true}`), 404, message("", "not found in the schema registry: service with name 'N'"))
}

func TestPatchState(t *testing.T) {
	f := setup(t, nil)
	f.dis.services = counter + `,{"name":"S","ty":"SERVICE","handlers":[]}`
	f.register(`{` + uri + `}`)
	f.expect(f.request("POST", "/services/Counter/state", `{"object_key":"k","version":"v","new_state":{"a":[ 0 ,255],"b":[]}}`), 202, "")
	if p := f.inv.state; p.Service != "Counter" || p.Key != "k" || *p.Version != "v" || string(p.State["a"]) != "\x00\xff" || p.State["b"] == nil || len(p.State) != 2 {
		t.Errorf("%+v", p)
	}
	f.expect(f.request("POST", "/services/Counter/state", `{"object_key":"k","new_state":{"a":"t\u00e4xt"}}`), 202, "")
	if p := f.inv.state; string(p.State["a"]) != "täxt" {
		t.Errorf("from a string: %+v", p)
	}
	long := strings.Repeat("k", 64<<10+1)
	const tooLong = " is invalid. Reason: a key is 65537 bytes long, at most 65536 are allowed"
	f.expect(f.request("POST", "/services/Counter/state", `{"object_key":"`+long+`","new_state":{}}`), 400, message("", "The request field 'object_key'"+tooLong))
	f.expect(f.request("POST", "/services/Counter/state", `{"object_key":"k","new_state":{"`+long+`":[1]}}`), 400, message("", "The request field 'new_state'"+tooLong))
	f.expect(f.request("POST", "/services/N/state", `{"object_key":"k","new_state":{}}`), 202, "")
	f.expect(f.request("POST", "/services/N/state", `{"object_key":"k","new_state":{"a":[1]}}`), 404, message("", "The requested service 'N' does not exist"))
	f.expect(f.request("POST", "/services/S/state", `{"object_key":"k","new_state":{}}`), 400, message("", "Cannot modify state for service type Service"))
	f.expect(f.request("POST", "/services/Counter/state", `{"object_key":"k","scope":"s","new_state":{}}`), 500, message("", "bad scope: scopes are not supported by this server"))
	for _, body := range []string{`{"object_key":"k"}`, `{"new_state":{}}`, `{"object_key":"k","new_state":{"a":[256]}}`, `{"object_key":"k","new_state":{"a":[-1]}}`,
		`{"object_key":"k","new_state":{"a":[1.5]}}`, `{"object_key":"k","new_state":{"a":true}}`, `{"object_key":"k","new_state":{"a":[[1]]}}`} {
		f.expect(f.request("POST", "/services/Counter/state", body), 422, "Failed to deserialize the JSON body into the target type: …")
	}
	f.inv.err = errors.New("no leader")
	f.expect(f.request("POST", "/services/Counter/state", `{"object_key":"k","new_state":{}}`), 503, message("", "Error when routing the request internally. Reason: no leader"))
}

func TestInvocationOutcomes(t *testing.T) {
	id := unknownInv
	for _, c := range []struct {
		verb    string
		outcome Outcome
		code    int
		text    string
	}{
		{"cancel", Done, 200, ""}, {"cancel", Accepted, 202, ""}, {"kill", Done, 200, ""}, {"kill", Accepted, 200, ""}, {"purge", Done, 200, ""},
		{"purge-journal", Done, 200, ""}, {"pause", Done, 200, ""}, {"pause", Accepted, 202, ""}, {"resume", Done, 200, ""},
		{"cancel", NotFound, 404, "The requested invocation '%s' does not exist"}, {"resume", NotFound, 404, "The requested invocation '%s' does not exist"},
		{"restart-as-new", NotFound, 404, "The requested invocation '%s' does not exist"},
		{"kill", AlreadyCompleted, 409, "The invocation '%s' was already completed."}, {"resume", AlreadyCompleted, 409, "The invocation '%s' is completed, cannot be resumed."},
		{"purge", NotCompleted, 409, "The invocation '%s' is not yet completed."}, {"purge-journal", NotCompleted, 409, "The invocation '%s' is not yet completed."},
		{"pause", NotRunning, 409, "The invocation '%s' is not running, cannot be paused."},
		{"resume", NotStarted, 425, "The invocation '%s' is either inboxed or scheduled, cannot be resumed."},
		{"resume", DeploymentFixed, 409, "The invocation '%s' is still running or the deployment id is not pinned yet, deployment id cannot be changed."},
		{"restart-as-new", StillRunning, 409, "The invocation '%s' is still running."},
		{"restart-as-new", NotStarted, 425, "The invocation '%s' cannot be restarted because it's not running yet."},
		{"restart-as-new", InputGone, 410, "The invocation '%s' cannot be restarted because the input is not available. This indicates that the journal was already purged, or not retained at all."},
		{"restart-as-new", Unsupported, 422, "Restarting the invocation '%s' is not supported. Restarting workflows is not supported, and restarting invocations created using the old service protocol."},
		{"restart-as-new", BadRange, 400, "The prefix of the journal '%s' up to 'from' (included) contains some Commands without respective Completions."},
		{"restart-as-new", 99, 500, "The partition gave an unknown answer for the invocation '%s'."},
	} {
		f := setup(t, nil)
		f.inv.outcome = c.outcome
		want := ""
		if c.text != "" {
			want = message("", fmt.Sprintf(c.text, id))
		}
		f.expect(f.request("PATCH", "/invocations/"+id+"/"+c.verb, ""), c.code, want)
	}
	f := setup(t, nil)
	for _, v := range verbs {
		f.expect(f.request("PATCH", "/invocations/bad/"+v.name, ""), 400, message("", "The request field 'invocation_id' is invalid. Reason: bad format"))
	}
	if len(f.inv.log) != 0 {
		t.Errorf("%v", f.inv.log)
	}
	f.inv.err = errors.New("no leader")
	f.expect(f.request("PATCH", "/invocations/"+id+"/kill", ""), 503, message("", "Error when routing the request internally. Reason: no leader"))
}

func TestDeleteInvocation(t *testing.T) {
	f := setup(t, nil)
	f.inv.outcome = NotFound
	for _, mode := range []string{"", "?mode=cancel", "?mode=Kill", "?mode=purge"} {
		f.expect(f.request("DELETE", "/invocations/"+unknownInv+mode, ""), 202, "")
	}
	want := []string{"cancel " + unknownInv, "cancel " + unknownInv, "kill " + unknownInv, "purge " + unknownInv + " false"}
	if !slices.Equal(f.inv.log, want) {
		t.Errorf("%v", f.inv.log)
	}
	f.expect(f.request("DELETE", "/invocations/"+unknownInv+"?mode=", ""), 400, "Failed to deserialize query string: mode: unknown variant ``, …")
	f.expect(f.request("DELETE", "/invocations/"+unknownInv+"?mode=foo", ""), 400, "Failed to deserialize query string: mode: unknown variant `foo`, expected one of `Cancel`, `cancel`, `Kill`, `kill`, `Purge`, `purge`")
	f.expect(f.request("DELETE", "/invocations/bad", ""), 400, message("", "The request field 'invocation_id' is invalid. Reason: bad format"))
	f.expect(f.request("GET", "/invocations/"+unknownInv, ""), 405, "")
}

func TestChoiceOfDeployment(t *testing.T) {
	f := setup(t, nil)
	first := f.register(`{` + uri + `}`)
	f.dis.max = 7
	second := f.register(`{"uri":"http://h:2"}`)
	firstID, err := ident.ParseDeploymentID(first)
	if err != nil {
		t.Fatal(err)
	}
	f.inv.desc = Description{"Counter", firstID, 5}
	path := "/invocations/" + unknownInv
	for _, c := range []struct{ query, want string }{
		{"/resume", "resume - "}, {"/resume?deployment=keep", "resume -"}, {"/resume?deployment=Latest", "resume " + second + " v5"},
		{"/resume?deployment=" + first, "resume " + first + " v5"},
		{"/restart-as-new", "restart 0 -"}, {"/restart-as-new?deployment=latest", "restart 0 -"}, {"/restart-as-new?from=3", "restart 3 " + first + " v5"},
		{"/restart-as-new?deployment=keep", "restart 0 " + first + " v5"}, {"/restart-as-new?from=2&deployment=" + second, "restart 2 " + second + " v5"},
	} {
		w := f.request("PATCH", path+c.query, "")
		if w.Code != 200 {
			t.Errorf("%s: %d %s", c.query, w.Code, w.Body)
		}
		got := strings.Replace(f.inv.log[len(f.inv.log)-1], unknownInv+" ", "", 1)
		if got != strings.TrimSpace(c.want) {
			t.Errorf("%s: %q, want %q", c.query, got, c.want)
		}
	}
	f.expect(f.request("PATCH", path+"/resume?deployment="+unknownDp, ""), 400, message("", "The given deployment was not found when trying to resume the invocation '"+unknownInv+"'."))
	f.expect(f.request("PATCH", path+"/restart-as-new?deployment="+unknownDp, ""), 400, message("", "The given deployment was not found when trying to restart as new the invocation '"+unknownInv+"'."))
	f.expect(f.request("PATCH", path+"/resume?deployment=foo", ""), 400, message("", "The query parameter 'deployment' is invalid. Reason: bad format"))
	f.expect(f.request("PATCH", path+"/restart-as-new?from=x", ""), 400, "Failed to deserialize query string: from: invalid digit found in string")
	f.inv.desc.Protocol = 7
	f.expect(f.request("PATCH", path+"/resume?deployment="+first, ""), 400, message("", "The deployment '<dp>' speaks the service protocol versions 5 to 6, but the invocation '"+unknownInv+"' uses version 7."))
	f.inv.desc.Protocol = 0
	f.request("PATCH", path+"/resume?deployment="+second, "")
	if got := f.inv.log[len(f.inv.log)-1]; !strings.HasSuffix(got, " v6") {
		t.Errorf("an invocation without version gets the server's highest: %s", got)
	}
	f.inv.outcome = NotFound
	f.expect(f.request("PATCH", path+"/resume?deployment=latest", ""), 404, message("", "The requested invocation '"+unknownInv+"' does not exist"))
}

func TestBatch(t *testing.T) {
	f := setup(t, nil)
	two := `{"invocation_ids":["` + unknownInv + `","` + unknownInv + `"]}`
	path := "/internal/invocations_batch_operations/"
	f.expect(f.request("POST", path+"kill", two), 200, `{"succeeded":["`+unknownInv+`","`+unknownInv+`"],"failed":[]}`)
	w := f.request("POST", path+"restart-as-new", `{"invocation_ids":["`+unknownInv+`"],"deployment":"Latest"}`)
	if !regexp.MustCompile(`^\{"succeeded":\[\{"old_invocation_id":"` + unknownInv + `","new_invocation_id":"inv_1\w{33}"\}\],"failed":\[\]\}$`).MatchString(w.Body.String()) {
		t.Errorf("%s", w.Body)
	}
	for _, c := range []struct {
		verb    string
		outcome Outcome
		text    string
	}{
		{"cancel", NotFound, "Invocation '%s' not found"}, {"kill", AlreadyCompleted, "Invocation '%s' was already completed"}, {"purge", NotCompleted, "Invocation '%s' is not yet completed"},
		{"restart-as-new", StillRunning, "Invocation '%s' is still running"}, {"resume", DeploymentFixed, "Cannot change deployment ID for invocation '%s'"},
		{"resume", NotStarted, "Invocation '%s' is either inboxed or scheduled, cannot be resumed"}, {"pause", NotRunning, "Invocation '%s' is not running, cannot be paused"},
		{"restart-as-new", NotStarted, "Invocation '%s' cannot be restarted because it's not running yet"}, {"restart-as-new", Unsupported, "Restarting invocation '%s' is not supported"},
	} {
		f.inv.outcome = c.outcome
		f.expect(f.request("POST", path+c.verb, `{"invocation_ids":["`+unknownInv+`"]}`), 200,
			`{"succeeded":[],"failed":[{"invocation_id":"`+unknownInv+`","error":"`+fmt.Sprintf(c.text, unknownInv)+`"}]}`)
	}
	f.expect(f.request("POST", path+"kill", `{"invocation_ids":["bad"]}`), 422, "Failed to deserialize the JSON body into the target type: invocation_ids[0]: bad format")
	f.expect(f.request("POST", path+"kill", `{}`), 422, "Failed to deserialize the JSON body into the target type: missing field `invocation_ids`")
	f.expect(f.request("POST", path+"resume", `{"invocation_ids":[],"deployment":"foo"}`), 400, message("", "The request field 'deployment' is invalid. Reason: bad format"))
	f.expect(f.request("POST", path+"resume", `{"invocation_ids":[]}`), 200, `{"succeeded":[],"failed":[]}`)
	many := `{"invocation_ids":["` + unknownInv + `"` + strings.Repeat(`,"`+unknownInv+`"`, 1000) + `]}`
	f.expect(f.request("POST", path+"kill", many), 400, message("", "Batch size 1001 exceeds maximum allowed size of 1000"))
	f.expect(f.request("POST", path+"nope", `{}`), 404, "")
}

func TestFrame(t *testing.T) {
	f := setup(t, func(c *Config) { c.ServerVersion = "1.2.3" })
	for _, c := range []struct {
		method, path string
		code         int
		want, allow  string
	}{
		{"GET", "/health", 200, "", ""}, {"GET", "/v4/health", 200, "", ""}, {"HEAD", "/health", 200, "", ""},
		{"GET", "/v1/health", 400, "Unsupported Admin API version V1. This server supports versions between V2 and V4.", ""},
		{"GET", "/v0/health", 404, "", ""}, {"GET", "/v5/health", 404, "", ""}, {"GET", "/nope", 404, "", ""}, {"GET", "/v2", 404, "", ""}, {"GET", "/invocations/x/y/z", 404, "", ""},
		{"POST", "/health", 405, "", "GET,HEAD"}, {"PUT", "/deployments", 405, "", "GET,HEAD,POST"}, {"PUT", "/v3/services", 405, "", "GET,HEAD"},
		{"GET", "/invocations/" + unknownInv, 405, "", "DELETE"}, {"PUT", "/internal/invocations_batch_operations/kill", 405, "", "POST"},
		{"GET", "/deployments/dp_nope", 400, "Invalid URL: Cannot parse `deployment` with value `dp_nope`: unrecognized codec version", ""},
		{"GET", "/deployments/x", 400, "Invalid URL: Cannot parse `deployment` with value `x`: bad format", ""},
		{"POST", "/query", 501, message("", "not supported by this server: SQL introspection; use GET /perdure/invocations and /perdure/doctor (perdure invocations list, perdure doctor)"), ""}, {"GET", "/query", 405, "", "POST"}, {"GET", "/subscriptions", 501, message("", "not supported by this server: subscriptions to Kafka"), ""},
		{"GET", "/cluster-health", 200, `{"cluster_name":"localcluster","metadata_cluster_health":{"members":[1]}}`, ""},
		{"GET", "/version", 200, `{"version":"1.7.12","min_admin_api_version":2,"max_admin_api_version":4,"ingress_endpoint":"http://127.0.0.1:8080/","features":{
			"vqueues":false,"invoker_yield":false,"protocol_v7":false,"unique_random_seeds":false,"scoped_state_table_migration":false,"scoped_promise_table_migration":false,
			"scoped_virtual_objects":false,"kafka_scope":false,"vqueues_migration_skip_completed":false,"vqueues_async_refill":false,"vqueue_obsolete_cleanup":false,
			"preflight_invocation_termination_retention":false}}`, ""},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			f := &fixture{t: t, a: f.a}
			w := f.request(c.method, c.path, "")
			f.expect(w, c.code, c.want)
			if got := w.Header().Get("Allow"); got != c.allow {
				t.Errorf("allow is %q, want %q", got, c.allow)
			}
			if got := w.Header().Get("Server"); got != "perdure/1.2.3" {
				t.Errorf("server is %q", got)
			}
		})
	}
	f.a.deps.Cluster = cluster{errors.New("no quorum")}
	f.expect(f.request("GET", "/cluster-health", ""), 503, "no quorum")
}

func TestToken(t *testing.T) {
	f := setup(t, func(c *Config) { c.Token = "secret" })
	want := message("", "this server wants the admin token as Authorization: Bearer <token>")
	for _, headers := range [][]string{nil, {"Authorization: Bearer wrong"}, {"Authorization: Basic secret"}, {"Authorization: secret"}, {"Authorization: Bearer"}} {
		w := f.request("GET", "/version", "", headers...)
		f.expect(w, 401, want)
		if w.Header().Get("WWW-Authenticate") != "Bearer" {
			t.Error("no challenge")
		}
	}
	for _, p := range []string{"/services/health", "/v4/services/health", "/deployments/x/health"} {
		if w := f.request("GET", p, ""); w.Code != 401 {
			t.Errorf("%s is open: %d", p, w.Code)
		}
	}
	for _, p := range []string{"/health", "/v3/health"} {
		f.expect(f.request("GET", p, ""), 200, "")
	}
	if w := f.request("GET", "/version", "", "Authorization: bearer secret"); w.Code != 200 {
		t.Errorf("with token: %d", w.Code)
	}
}

func TestOtherPagesCannotChangeAnything(t *testing.T) {
	f := setup(t, nil)
	if w := f.request("POST", "/deployments", `{`+uri+`}`, "Sec-Fetch-Site: cross-site"); w.Code != 403 || len(f.dis.calls) != 0 {
		t.Errorf("cross-site: %d", w.Code)
	}
	if w := f.request("POST", "/deployments", `{`+uri+`}`, "Sec-Fetch-Site: same-origin"); w.Code != 201 {
		t.Errorf("same origin: %d", w.Code)
	}
}

func TestHosts(t *testing.T) {
	f := setup(t, func(c *Config) { c.Hosts = []string{"localhost"} })
	for host, code := range map[string]int{
		"localhost": 200, "LocalHost:9070": 200, "localhost.": 200, "127.0.0.1:9070": 200, "[::1]:9070": 200, "::1": 200,
		"evil.example": 403, "evil.example:9070": 403, "127.0.0.1.evil.example": 403, "localhost.evil.example": 403, "": 403,
	} {
		r := httptest.NewRequest("GET", "/version", nil)
		r.Host = host
		w := httptest.NewRecorder()
		f.a.Handler().ServeHTTP(w, r)
		if w.Code != code {
			t.Errorf("%q: %d, want %d", host, w.Code, code)
		}
	}
}

func TestLimits(t *testing.T) {
	f := setup(t, func(c *Config) { c.BodyLimit = 64; c.ConcurrentRequests = 1 })
	f.expect(f.request("POST", "/deployments", `{"uri":"http://h/`+strings.Repeat("x", 64)+`"}`), 413, "length limit exceeded")
	f.a.inflight.Add(1)
	w := f.request("GET", "/health", "")
	f.expect(w, 429, "")
	if w.Header().Get("Retry-After") == "" {
		t.Error("no retry-after")
	}
	f.a.inflight.Add(-1)
	f.expect(f.request("GET", "/health", ""), 200, "")
}

// Clients that announce a body and never send it are answered and cut off, also those whose bodies nobody wants.
func TestSilentClientsAreCutOff(t *testing.T) {
	f := setup(t, func(c *Config) { c.Timeout = 25 * time.Millisecond })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := f.a.Server()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() {
		_ = srv.Close()
		<-served
	}()
	for path, code := range map[string]int{"/deployments": 400, "/nope": 404} {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{", path)
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if r.StatusCode != code {
			t.Errorf("%s: %d, want %d", path, r.StatusCode, code)
		}
	}
}

func TestCompression(t *testing.T) {
	f := setup(t, nil)
	f.register(`{` + uri + `}`)
	plain := f.request("GET", "/services", "").Body.String()
	for _, c := range []struct{ accept, encoding string }{
		{"gzip", "gzip"}, {"gzip, br, zstd", "zstd"}, {"zstd;q=0, gzip;q=0.5", "gzip"}, {"br", ""}, {"identity", ""}, {"gzip;q=0", ""}, {"gzip;q=x", ""},
	} {
		w := f.request("GET", "/services", "", "Accept-Encoding: "+c.accept)
		if got := w.Header().Get("Content-Encoding"); got != c.encoding {
			t.Errorf("%s: encoding %q", c.accept, got)
			continue
		}
		if got := inflate(t, w.Body, c.encoding); got != plain {
			t.Errorf("%s: %s", c.accept, got)
		}
	}
	if w := f.request("GET", "/cluster-health", "", "Accept-Encoding: gzip"); w.Header().Get("Content-Encoding") != "" {
		t.Error("a short body is compressed")
	}
}

func inflate(t *testing.T, r io.Reader, encoding string) string {
	t.Helper()
	var err error
	switch encoding {
	case "gzip":
		r, err = gzip.NewReader(r)
	case "zstd":
		var d *zstd.Decoder
		d, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		defer d.Close()
		r = d
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The API's own document must name every public route, and resolve.
func TestOwnDocument(t *testing.T) {
	f := setup(t, nil)
	w := f.request("GET", "/v4/openapi", "")
	var doc struct {
		Paths      map[string]map[string]struct{ OperationID string }
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for path, ops := range doc.Paths {
		for method, op := range ops {
			if op.OperationID == "" || ids[op.OperationID] {
				t.Errorf("%s %s: operation id %q is not unique", method, path, op.OperationID)
			}
			ids[op.OperationID] = true
		}
	}
	for _, p := range []string{"/deployments", "/deployments/{deployment}", "/services/{service}/state", "/invocations/{invocation_id}/restart-as-new"} {
		if doc.Paths[p] == nil {
			t.Errorf("%s is missing", p)
		}
	}
	for _, p := range []string{"/query", "/subscriptions", "/internal/invocations_batch_operations/kill"} {
		if doc.Paths[p] != nil {
			t.Errorf("%s is public", p)
		}
	}
	for _, m := range regexp.MustCompile(`#/components/schemas/(\w+)`).FindAllStringSubmatch(w.Body.String(), -1) {
		if s, _ := doc.Components.Schemas[m[1]].(map[string]any); len(s) == 0 {
			t.Errorf("schema %s is missing or empty", m[1])
		}
	}
}

// Ids and paths of the published interface's document must exist here, unless they are answered 501.
func TestEveryRouteAnswers(t *testing.T) {
	f := setup(t, nil)
	for _, r := range f.a.routes() {
		path := strings.NewReplacer(":deployment", unknownDp, ":invocation_id", unknownInv, ":service", "N", ":handler", "h", ":id", "x", "*", "x").Replace(r.path)
		w := f.request(r.method, path, "{}")
		if w.Code == 404 && w.Body.Len() == 0 || w.Code == 405 && w.Header().Get("Allow") != "" {
			t.Errorf("%s %s is not routed: %d", r.method, path, w.Code)
		}
	}
}

func TestSecretsStayOutOfLogs(t *testing.T) {
	var buf bytes.Buffer
	cfg := DefaultConfig()
	cfg.Token = "canary-token"
	f := setup(t, nil)
	a, err := New(cfg, Deps{Registry: f.reg, Discoverer: f.dis, Invocations: f.inv, Cluster: cluster{}, Log: newLogger(&buf)})
	if err != nil {
		t.Fatal(err)
	}
	f.a = a
	auth := "Authorization: Bearer canary-token"
	if w := f.request("POST", "/deployments", `{`+uri+`,"additional_headers":{"authorization":"canary-header"}}`, auth); w.Code != 201 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	f.dis.err = errors.New("broken")
	f.request("POST", "/deployments", `{"uri":"http://h:7","additional_headers":{"authorization":"canary-header"}}`, auth)
	if buf.Len() == 0 || strings.Contains(buf.String(), "canary") {
		t.Errorf("log:\n%s", buf.String())
	}
}

func TestConfigValidate(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"concurrent": func(c *Config) { c.ConcurrentRequests = -1 }, "body limit": func(c *Config) { c.BodyLimit = 0 }, "interface version": func(c *Config) { c.InterfaceVersion = "" },
		"protocol": func(c *Config) { c.MaxProtocol = 4 }, "timeout": func(c *Config) { c.Timeout = 0 },
	} {
		c := DefaultConfig()
		change(&c)
		if _, err := New(c, Deps{}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzRegisterBody(f *testing.F) {
	f.Add(`{"uri":"http://h:9080","additional_headers":{"a":"b"},"force":true}`)
	f.Add(`{"arn":"arn:aws:lambda:r:1:function:f:1"}`)
	x := setup(f, nil)
	f.Fuzz(func(t *testing.T, body string) {
		x := &fixture{t: t, a: x.a}
		if w := x.request("POST", "/deployments", body, "Content-Type: application/json"); w.Code >= 500 && !strings.Contains(w.Body.String(), "META0015") {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}

func FuzzStateBody(f *testing.F) {
	f.Add(`{"object_key":"k","new_state":{"a":[1,2,255]}}`)
	x := setup(f, nil)
	x.register(`{` + uri + `}`)
	f.Fuzz(func(t *testing.T, body string) {
		y := &fixture{t: t, a: x.a}
		w := y.request("POST", "/services/Counter/state", body, "Content-Type: application/json")
		if w.Code >= 500 && !strings.Contains(w.Body.String(), "bad scope") {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}

func newLogger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
