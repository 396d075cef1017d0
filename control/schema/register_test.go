package schema

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"perdure/control/ident"
)

func manifest(t testing.TB, services string) *Manifest {
	t.Helper()
	m, err := DecodeManifest([]byte(`{"protocolMode":"BIDI_STREAM","minProtocolVersion":5,"maxProtocolVersion":6,"services":[` + services + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func found(t testing.TB, services string) Discovered {
	return Discovered{Manifest: manifest(t, services), SDKVersion: "sdk/1", HTTPVersion: HTTP2}
}

func at(uri string) Registration {
	return Registration{Address: Address{HTTP: &HTTPAddress{URI: uri}}}
}

func register(t testing.TB, s *Schema, r Registration, services string, n byte) *Change {
	t.Helper()
	c, err := s.Register(r, found(t, services), uint64(n)*1000, id(n))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const (
	svcA  = `{"name":"A","ty":"SERVICE","handlers":[{"name":"x"},{"name":"y"}]}`
	objA  = `{"name":"A","ty":"VIRTUAL_OBJECT","handlers":[{"name":"x"}]}`
	svcB  = `{"name":"B","ty":"SERVICE","handlers":[]}`
	empty = ``
)

func TestRegister(t *testing.T) {
	s0 := New(4, DefaultDefaults(), nil)
	c := register(t, s0, at("http://h:1/"), svcA+","+svcB, 1)
	if c.Outcome != Created || c.Schema.Version() != 5 || c.Deployment.ID != id(1) || c.Deployment.CreatedMs != 1000 || c.Deployment.SDKVersion != "sdk/1" {
		t.Errorf("created: %+v", c)
	}
	if len(s0.Deployments()) != 0 {
		t.Error("the old snapshot changed")
	}
	s1 := c.Schema
	if c := register(t, s1, at("http://h:1/"), objA, 2); c.Outcome != Unchanged || c.Schema != s1 || c.Deployment.ID != id(1) {
		t.Errorf("unchanged: %+v", c)
	}
	c = register(t, s1, at("http://h:2/"), svcA, 2)
	s2 := c.Schema
	if a, _ := s2.Service("A"); a.Revision != 2 || a.Deployment != id(2) {
		t.Errorf("new revision: %+v", a)
	}
	if b, _ := s2.Service("B"); b.Revision != 1 || b.Deployment != id(1) {
		t.Errorf("B stays where it is: %+v", b)
	}
	r := at("http://h:1/")
	r.Force = true
	c = register(t, s2, r, svcA, 3)
	if c.Outcome != Overwritten || c.Deployment.ID != id(1) || c.Deployment.CreatedMs != 3000 || c.Deployment.Services[0].Revision != 3 {
		t.Errorf("overwritten: %+v", c)
	}
	if _, err := c.Schema.Service("B"); err == nil {
		t.Error("B is not served any more")
	}
	if got := c.Schema.Latest("A").ID; got != id(1) {
		t.Errorf("latest of A is %s", got)
	}
	if _, err := s2.Service("B"); err != nil {
		t.Error("the old snapshot changed")
	}
}

func TestTypeChangeNeedsConsent(t *testing.T) {
	s := register(t, New(0, DefaultDefaults(), nil), at("http://h:1/"), svcA, 1).Schema
	_, err := s.Register(at("http://h:2/"), found(t, objA), 2, id(2))
	var refused *ConflictError
	if !errors.As(err, &refused) || refused.Kind != Conflict || refused.Code != "META0006" {
		t.Fatalf("%v", err)
	}
	for _, consent := range []func(*Registration){func(r *Registration) { r.Breaking = true }, func(r *Registration) { r.Force = true }} {
		r := at("http://h:2/")
		consent(&r)
		if c := register(t, s, r, objA, 2); c.Outcome != Created || c.Deployment.Services[0].Revision != 2 {
			t.Errorf("%+v", c)
		}
	}
}

func TestSameDeployment(t *testing.T) {
	lambda := func(arn string) Registration { return Registration{Address: Address{Lambda: &LambdaAddress{ARN: arn}}} }
	with := func(r Registration, k, v string) Registration { r.Headers = map[string]string{k: v}; return r }
	for _, c := range []struct {
		a, b    Registration
		routing []string
		same    bool
	}{
		{at("http://h:1/p"), at("http://h:1/p"), nil, true},
		{at("http://h:1/p"), at("https://h:1/p?q=1"), nil, true},
		{at("http://h:1/p"), at("http://h:1/p/"), nil, false},
		{at("http://h:1/p"), at("http://h:2/p"), nil, false},
		{with(at("http://h:1/p"), "x", "1"), with(at("http://h:1/p"), "x", "2"), nil, true},
		{with(at("http://h:1/p"), "x", "1"), with(at("http://h:1/p"), "x", "2"), []string{"X"}, false},
		{with(at("http://h:1/p"), "x", "1"), at("http://h:1/p"), []string{"x"}, false},
		{with(at("http://h:1/p"), "x", "1"), with(at("http://h:1/p"), "x", "1"), []string{"x"}, true},
		{lambda("a"), lambda("a"), nil, true}, {lambda("a"), lambda("b"), nil, false}, {lambda("a"), at("http://h:1/p"), nil, false},
	} {
		if got := same(c.a.Address, c.a.Headers, c.b.Address, c.b.Headers, c.routing); got != c.same {
			t.Errorf("%v and %v by %v: %v", c.a.Address, c.b.Address, c.routing, got)
		}
	}
	s := register(t, New(0, DefaultDefaults(), nil), with(at("http://h:1/"), "x", "1"), svcA, 1).Schema
	b := with(at("http://h:1/"), "x", "2")
	b.RoutingHeaders = []string{"x"}
	s = register(t, s, b, svcA, 2).Schema
	if d := s.Find(at("http://h:1/").Address, nil, nil); d.ID != id(2) {
		t.Errorf("of two at one URL the newest counts, got %s", d.ID)
	}
}

func TestUpdate(t *testing.T) {
	s := register(t, New(0, DefaultDefaults(), nil), at("http://h:1/"), svcA, 1).Schema
	u := Update{Address: at("http://h:9/").Address, Headers: map[string]string{"k": "v"}}
	c, err := s.Update(id(1), u, found(t, objA+","+svcB))
	if err != nil {
		t.Fatal(err)
	}
	if d := c.Deployment; d.Address.HTTP.URI != "http://h:9/" || d.Headers["k"] != "v" || d.CreatedMs != 1000 || len(d.Services) != 1 || d.Services[0].Type != Service {
		t.Errorf("%+v", d)
	}
	u.Overwrite = true
	if c, err = s.Update(id(1), u, found(t, `{"name":"A","ty":"SERVICE","handlers":[{"name":"z"}]},`+svcB)); err != nil {
		t.Fatal(err)
	}
	if v := c.Deployment.Services; len(v) != 2 || v[0].Revision != 1 || v[0].Handlers[0].Name != "z" || v[1].Revision != 1 {
		t.Errorf("%+v", v)
	}
	var refused *ConflictError
	if _, err = s.Update(id(1), u, found(t, objA)); !errors.As(err, &refused) || refused.Code != "META0006" {
		t.Errorf("type change: %v", err)
	}
	f := found(t, svcA)
	f.Manifest.MaxProtocolVersion = 5
	if _, err = s.Update(id(1), u, f); !errors.As(err, &refused) || refused.Code != "META0016" ||
		!strings.HasSuffix(err.Error(), "from 5..=6 to 5..=5") {
		t.Errorf("protocol change: %v", err)
	}
	var missing *DeploymentNotFoundError
	if _, err = s.Update(id(7), u, found(t, svcA)); !errors.As(err, &missing) {
		t.Errorf("unknown: %v", err)
	}
}

func TestDeleteGivesServicesBackToTheRevisionBefore(t *testing.T) {
	s := register(t, New(0, DefaultDefaults(), nil), at("http://h:1/"), svcA, 1).Schema
	s = register(t, s, at("http://h:2/"), svcA, 2).Schema
	c, err := s.Delete(id(2))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Schema.Latest("A"); got == nil || got.ID != id(1) || c.Deployment.ID != id(2) {
		t.Errorf("latest %+v", got)
	}
	var missing *DeploymentNotFoundError
	if _, err := c.Schema.Delete(id(2)); !errors.As(err, &missing) {
		t.Errorf("%v", err)
	}
}

func TestModifyService(t *testing.T) {
	wf := `{"name":"W","ty":"WORKFLOW","handlers":[{"name":"run","ty":"WORKFLOW","workflowCompletionRetention":1500},{"name":"s","ingressPrivate":true}]}`
	s := register(t, New(0, DefaultDefaults(), nil), at("http://h:1/"), wf+","+svcA, 1).Schema
	if v, _ := s.Service("W"); v.Options.WorkflowRetention != 1500*time.Millisecond {
		t.Errorf("retention of the workflow is that of its run handler, got %s", v.Options.WorkflowRetention)
	}
	c, err := s.ModifyService("W", Overrides{Public: ptr(false), WorkflowRetention: ptr(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if h, _ := c.Schema.Handler("W", "run"); h.Options.Public || h.Retention(false).Completion != time.Hour {
		t.Errorf("%+v", h.Options)
	}
	if c, err = c.Schema.ModifyService("W", Overrides{Public: ptr(true)}); err != nil {
		t.Fatal(err)
	}
	if h, _ := c.Schema.Handler("W", "run"); !h.Options.Public || h.Retention(false).Completion != time.Hour {
		t.Errorf("what is not mentioned stays: %+v", h.Options)
	}
	if h, _ := c.Schema.Handler("W", "s"); h.Options.Public {
		t.Error("a handler that is private by itself stays private")
	}
	if h, _ := s.Handler("W", "run"); !h.Options.Public || h.Retention(false).Completion != 1500*time.Millisecond {
		t.Error("the old snapshot changed")
	}
	var refused *ConflictError
	if _, err := s.ModifyService("A", Overrides{WorkflowRetention: ptr(time.Hour)}); !errors.As(err, &refused) || err.Error() != "modifying retention time for service type Service is unsupported" {
		t.Errorf("%v", err)
	}
	var missing *NotFoundError
	if _, err := s.ModifyService("N", Overrides{}); !errors.As(err, &missing) {
		t.Errorf("%v", err)
	}
	r := at("http://h:1/")
	r.Force = true
	if h, _ := register(t, c.Schema, r, wf, 2).Schema.Handler("W", "run"); h.Retention(false).Completion != 1500*time.Millisecond {
		t.Error("the next registration ends modifications")
	}
}

func TestRefusedManifests(t *testing.T) {
	h := func(s string) string { return `{"name":"A","ty":"SERVICE","handlers":[` + s + `]}` }
	for _, c := range []struct {
		services string
		kind     Kind
		code     string
		message  string
	}{
		{`{"name":"restateX","ty":"SERVICE","handlers":[]}`, Invalid, "META0005", "cannot insert/modify service 'restateX' as it contains a reserved name"},
		{`{"name":"OpenAPI","ty":"SERVICE","handlers":[]}`, Invalid, "META0005", "cannot insert/modify service 'OpenAPI' as it contains a reserved name"},
		{h(`{"name":"x","ty":"EXCLUSIVE"}`), Invalid, "", "invalid combination of service type and handler type '(Service, Some(Exclusive))'"},
		{`{"name":"A","ty":"VIRTUAL_OBJECT","handlers":[{"name":"x","ty":"WORKFLOW"}]}`, Invalid, "", "invalid combination of service type and handler type '(VirtualObject, Some(Workflow))'"},
		{`{"name":"A","ty":"WORKFLOW","handlers":[{"name":"x","ty":"EXCLUSIVE"}]}`, Invalid, "", "invalid combination of service type and handler type '(Workflow, Some(Exclusive))'"},
		{`{"name":"A","ty":"WORKFLOW","handlers":[{"name":"x","ty":"WORKFLOW","idempotencyRetention":1}]}`, Invalid, "", "x sets the idempotency_retention, but it's a WORKFLOW handler"},
		{h(`{"name":"x","workflowCompletionRetention":1}`), Invalid, "", "x sets the workflow_completion_retention, but it's not a WORKFLOW handler"},
		{`{"name":"A","ty":"SERVICE","ingressPrivate":true,"handlers":[{"name":"x","ingressPrivate":false}]}`, Invalid, "", "The service A is private, but the x is explicitly set as public. This is not supported. Please make the service public, and hide the individual handlers"},
		{h(`{"name":"x","input":{"contentType":"*/x"}}`), Invalid, "", "the handler 'x' input content-type is not valid: can't parse the content-type '*/x': the wildcard format */subType is not supported"},
		{h(`{"name":"x","input":{"contentType":"application/json","jsonSchema":{"properties":{"a":{"$ref":"http://x/y"}}}}}`), Invalid, "", "the json schema for A/x input is invalid: the schema contains an external reference http://x/y. This is not supported, all schemas uploaded to Restate should be normalized first, bundling the external references."},
		{h(`{"name":"x","output":{"contentType":"application/json","jsonSchema":{"type":"bogus"}}}`), Invalid, "", `the json schema for A/x output is invalid: "bogus" is not a type of JSON schema`},
		{h(`{"name":"x","output":{"contentType":"application/json","jsonSchema":{"anyOf":[true,{"items":{"type":7}}]}}}`), Invalid, "", `the json schema for A/x output is invalid: a type is not named by a string`},
		{h(`{"name":"x","output":{"contentType":"application/json","jsonSchema":3}}`), Invalid, "", `the json schema for A/x output is invalid: 3 is not of types "boolean", "object"`},
	} {
		_, err := New(0, DefaultDefaults(), nil).Register(at("http://h:1/"), found(t, c.services), 1, id(1))
		var refused *ConflictError
		if !errors.As(err, &refused) || refused.Kind != c.kind || refused.Code != c.code || err.Error() != c.message {
			t.Errorf("%s:\n%v", c.services, err)
		}
	}
	for _, c := range []struct{ old, now, code string }{
		{`"BIDI_STREAM"`, `""`, "META0013"}, {`"maxProtocolVersion":6`, `"maxProtocolVersion":4`, "META0013"},
		{`"minProtocolVersion":5,"maxProtocolVersion":6`, `"minProtocolVersion":1,"maxProtocolVersion":4`, "META0012"},
		{`"minProtocolVersion":5,"maxProtocolVersion":6`, `"minProtocolVersion":8,"maxProtocolVersion":9`, "META0012"},
	} {
		m, err := DecodeManifest([]byte(strings.Replace(`{"protocolMode":"BIDI_STREAM","minProtocolVersion":5,"maxProtocolVersion":6,"services":[]}`, c.old, c.now, 1)))
		if err != nil {
			t.Fatal(err)
		}
		var refused *ConflictError
		if _, err := New(0, DefaultDefaults(), nil).Register(at("http://h:1/"), Discovered{Manifest: m}, 1, id(1)); !errors.As(err, &refused) || refused.Code != c.code || refused.Kind != Unsupported {
			t.Errorf("%s: %v", c.now, err)
		}
	}
	r := Registration{Address: Address{Lambda: &LambdaAddress{ARN: "a"}}}
	var refused *ConflictError
	if _, err := New(0, DefaultDefaults(), nil).Register(r, found(t, empty), 1, id(1)); !errors.As(err, &refused) || refused.Code != "META0015" {
		t.Errorf("streaming over Lambda: %v", err)
	}
}

func TestMalformedManifests(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`xx`, "invalid character"}, {`{}`, "protocol version 0"}, {`{} {}`, "more than one"},
		{`{"protocolMode":"FOO","minProtocolVersion":5,"maxProtocolVersion":5,"services":[]}`, "FOO"},
		{`{"protocolMode":"BIDI_STREAM","minProtocolVersion":5,"maxProtocolVersion":5}`, "missing field services"},
		{`{"minProtocolVersion":5,"maxProtocolVersion":5,"services":[{"name":"1A","ty":"SERVICE","handlers":[]}]}`, "doesn't match"},
		{`{"minProtocolVersion":5,"maxProtocolVersion":5,"services":[{"name":"A","ty":"SERVICE","handlers":[{"name":"x-y"}]}]}`, "doesn't match"},
		{`{"minProtocolVersion":5,"maxProtocolVersion":5,"services":[{"name":"_","ty":"SERVICE","handlers":[]}]}`, "doesn't match"},
		{`{"minProtocolVersion":5,"maxProtocolVersion":5,"services":[{"name":"` + strings.Repeat("A", 1025) + `","ty":"SERVICE","handlers":[]}]}`, "is 1025 bytes long, at most 1024 are allowed"},
		{`{"minProtocolVersion":5,"maxProtocolVersion":5,"services":[{"name":"A","ty":"SERVICE","handlers":[{"name":"` + strings.Repeat("a", 1025) + `"}]}]}`, "is 1025 bytes long, at most 1024 are allowed"},
		{`{"minProtocolVersion":5,"maxProtocolVersion":5,"services":[{"name":"A","ty":"X","handlers":[]}]}`, "ty is"},
		{`{"minProtocolVersion":5,"maxProtocolVersion":5,"services":[{"name":"A","ty":"SERVICE","handlers":[],"abortTimeout":-1}]}`, "negative"},
		{`{"minProtocolVersion":5,"maxProtocolVersion":5,"services":[{"name":"A","ty":"SERVICE","handlers":[{"name":"x","retryPolicyOnMaxAttempts":"X"}]}]}`, "PAUSE or KILL"},
		{`{"minProtocolVersion":5,"maxProtocolVersion":5,"lambdaCompression":"gzip","services":[]}`, "zstd"},
	} {
		if strings.HasPrefix(c.in, "{} {}") {
			c.in = `{"minProtocolVersion":5,"maxProtocolVersion":5,"services":[]} {}`
		}
		if _, err := DecodeManifest([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.in, err)
		}
	}
}

func TestManifestOptions(t *testing.T) {
	m := `{"name":"_0A.b-c","ty":"VIRTUAL_OBJECT","documentation":"d","metadata":{"a":"b"},"inactivityTimeout":0,"unknown":1,
		"retryPolicyMaxAttempts":0,"retryPolicyExponentiationFactor":0.5,"retryPolicyOnMaxAttempts":"KILL","retryPolicyMaxInterval":7,"handlers":[
		{"name":"b","enableLazyState":true,"journalRetention":9223372036854775807},{"name":"a","ty":"SHARED","retryPolicyInitialInterval":5,"retryPolicyOnMaxAttempts":"PAUSE"}]},
		` + svcB + `,{"name":"B","ty":"SERVICE","handlers":[{"name":"h"},{"name":"h","ingressPrivate":true}]}`
	d := register(t, New(0, DefaultDefaults(), nil), at("http://h:1/"), m, 1).Deployment
	if len(d.Services) != 2 || d.Services[0].Name != "B" || len(d.Services[0].Handlers) != 1 || d.Services[0].Handlers[0].Options.Public {
		t.Fatalf("the last of two with one name counts: %+v", d.Services)
	}
	v := d.Services[1]
	if *v.Documentation != "d" || v.Metadata["a"] != "b" || v.Handlers[0].Name != "a" || v.Handlers[0].Type != Shared || v.Handlers[1].Type != Exclusive {
		t.Errorf("%+v", v)
	}
	a, b := v.Handlers[0].Options, v.Handlers[1].Options
	if a.InactivityTimeout != 0 || a.Retry != (RetryPolicy{5 * time.Millisecond, 1, 7 * time.Millisecond, 1, Pause}) {
		t.Errorf("a: %+v", a)
	}
	if !b.LazyState || a.LazyState || b.Retry.OnMaxAttempts != Kill || b.JournalRetention < 250*365*24*time.Hour {
		t.Errorf("b: %+v", b)
	}
}

func TestInputRules(t *testing.T) {
	const j = "application/json"
	s := `{"name":"A","ty":"SERVICE","handlers":[
		{"name":"any"},{"name":"none","input":{}},{"name":"bad","input":{"required":true}},
		{"name":"opt","input":{"contentType":"application/*"}},{"name":"req","input":{"required":true,"contentType":"application/json"}},
		{"name":"sch","input":{"required":true,"contentType":"application/json","jsonSchema":{"title":"Foo"}}},
		{"name":"all","input":{"contentType":"*/*","jsonSchema":true}}]}`
	c := register(t, New(0, DefaultDefaults(), nil), at("http://h:1/"), s, 1).Schema
	for _, x := range []struct {
		handler, ct    string
		present, empty bool
		want           string
	}{
		{"any", "", false, true, ""}, {"any", "x", true, false, ""},
		{"none", "", false, true, ""}, {"none", j, true, true, `Expected body and content-type to be empty, but wasn't with content-type 'Some("application/json")'`},
		{"none", "", false, false, "Expected body and content-type to be empty, but wasn't with content-type 'None'"},
		{"bad", j, true, false, "Bad configuration of the input validation rules"}, {"bad", "", false, true, "Bad configuration of the input validation rules"},
		{"opt", "", false, true, ""}, {"opt", "Application/X; q=1", true, false, ""}, {"opt", "text/plain", true, false, "Content-type 'text/plain' does not match 'application/*'"},
		{"opt", "", false, false, "Empty content-type"}, {"opt", "", true, false, "Content-type '' does not match 'application/*'"},
		{"req", "", false, true, "Empty content-type"}, {"req", j, true, true, ""},
		{"sch", j, true, true, "Empty body not allowed"}, {"sch", j + ";charset=utf-8", true, false, ""},
		{"all", "x/y", true, true, "Empty body not allowed"}, {"all", "x/y", true, false, ""}, {"all", "", false, true, ""},
	} {
		h, err := c.Handler("A", x.handler)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := h.CheckInput(x.ct, x.present, x.empty); err != nil {
			got = strings.TrimPrefix(err.Error(), "input validation error: ")
		}
		if got != x.want {
			t.Errorf("%s with %q present=%v empty=%v: %q, want %q", x.handler, x.ct, x.present, x.empty, got, x.want)
		}
	}
}

// A property may have the name of a keyword, and data may look like a schema.
func TestSchemasThatLookWrongAndAreNot(t *testing.T) {
	for _, s := range []string{
		`true`, `{"properties":{"type":true,"$ref":{"type":"string"}}}`, `{"const":{"type":7},"default":{"$ref":"http://x"}}`, `{"x-own":{"type":7}}`,
		`{"$ref":"#/$defs/a","$defs":{"a":{"type":["string","null"]}}}`,
	} {
		register(t, New(0, DefaultDefaults(), nil), at("http://h:1/"), `{"name":"A","ty":"SERVICE","handlers":[{"name":"x","input":{"contentType":"application/json","jsonSchema":`+s+`}}]}`, 1)
	}
}

func TestOpenAPI(t *testing.T) {
	s := `{"name":"O","ty":"VIRTUAL_OBJECT","documentation":"says O","metadata":{"k":"v"},"handlers":[
		{"name":"add","documentation":"adds","input":{"required":true,"contentType":"application/json","jsonSchema":{"$ref":"#/$defs/n","$defs":{"n":{"type":"integer"},"self":{"$ref":"#"}}}},"output":{"contentType":"text/plain"}},
		{"name":"hidden","ingressPrivate":true},{"name":"none","ty":"SHARED","input":{},"output":{}}]},
		{"name":"W","ty":"WORKFLOW","handlers":[{"name":"run","ty":"WORKFLOW"}]}`
	c := register(t, New(0, DefaultDefaults(), nil), at("http://h:1/"), s, 1).Schema
	for _, name := range []string{"O", "W"} {
		v, err := c.Service(name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := json.MarshalIndent(v.OpenAPI("http://i/"), "", " ")
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", "openapi-"+name+".json")
		if *rewrite {
			if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if string(got)+"\n" != string(want) {
			t.Errorf("%s differs from the document; read the difference and run with -rewrite:\n%s", file, got)
		}
	}
}

var rewrite = flag.Bool("rewrite", false, "rewrite the golden documents")

func TestOutputRules(t *testing.T) {
	s := `{"name":"A","ty":"SERVICE","handlers":[{"name":"def"},{"name":"none","output":{}},{"name":"set","output":{"contentType":"text/plain","setContentTypeIfEmpty":true}}]}`
	c := register(t, New(0, DefaultDefaults(), nil), at("http://h:1/"), s, 1).Schema
	for _, x := range []struct{ handler, full, empty string }{{"def", "application/json", ""}, {"none", "", ""}, {"set", "text/plain", "text/plain"}} {
		h, _ := c.Handler("A", x.handler)
		if got := h.Output.ContentTypeFor(false); got != x.full {
			t.Errorf("%s: %q", x.handler, got)
		}
		if got := h.Output.ContentTypeFor(true); got != x.empty {
			t.Errorf("%s, empty: %q", x.handler, got)
		}
	}
}

func TestNormalizeURI(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"http://h:9080", "http://h:9080/"}, {"HTTP://LocalHost:80/X/?q=1#f", "http://localhost/X/?q=1"}, {"https://h:443", "https://h/"},
		{"https://h:80/a%20b", "https://h:80/a%20b"}, {"http://[::1]:9080/p", "http://[::1]:9080/p"}, {"http://[FE80::1]:80", "http://[fe80::1]/"}, {"http://h:", "http://h/"},
	} {
		if got, err := NormalizeURI(c.in); err != nil || got != c.want {
			t.Errorf("%s: %s, %v", c.in, got, err)
		}
	}
	for _, c := range []struct{ in, want string }{
		{"foo", "not absolute"}, {"127.0.0.1:1", "not absolute"}, {"not a uri", "not a URI"}, {"http://h/\xff", "not a URI"}, {"/x", "not absolute"}, {"ftp://x/y", "scheme ftp"}, {"http:x", "scheme"}, {"http://u:p@h/", "user name"}, {"http://:80/", "no host"}, {"http://h\x7f/", "not a URI"}, {"http://h:65536", "not a URI"}, {"http://h:0/", "not a URI"}, {"", "not absolute"},
	} {
		got, err := NormalizeURI(c.in)
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrNotURI) != (c.want == "not a URI") {
			t.Errorf("%q: %q, %v", c.in, got, err)
		}
	}
}

// What would make a request malformed, or end or change the connection that others share, is no header of a deployment.
func TestCheckHeader(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"X-A", "b", ""}, {"authorization", "Bearer x", ""}, {"host", "other.example", ""}, {"TE", "trailers", ""}, {"x-a", "", ""},
		{"a b", "c", "a header cannot have the name 'a b'"}, {"", "c", "the name ''"}, {":path", "/", "the name ':path'"},
		{"a", "secret\r\nd: e", "the value of the header 'a' has characters"},
		{"connection", "close", "the header 'connection' is about a connection"}, {"Keep-Alive", "5", "'Keep-Alive'"},
		{"Transfer-Encoding", "chunked", "'Transfer-Encoding'"}, {"content-length", "3", "'content-length'"}, {"te", "gzip", "'te'"},
		{"host", "", "the name of a host"}, {"Host", "a/b", "the name of a host"}, {"host", "a.example:8080", ""},
		{"upgrade", "websocket", "'upgrade'"}, {"proxy-connection", "close", "'proxy-connection'"}, {"HTTP2-Settings", "x", "'HTTP2-Settings'"},
	} {
		err := CheckHeader(c.name, c.value)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the value is in the error: %v", c.name, err)
		}
	}
}

func TestCheckARN(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"arn:aws:lambda:us-east-1:123:function:f:1", ""}, {"arn:aws-cn:lambda:r:1:function:f:$LATEST", ""},
		{"foo", "8 components"}, {"arn:aws:lambda:us-east-1:123:function:f", "$LATEST"}, {"arn:aws:lambda:us-east-1:123:function:f:", "$LATEST"},
		{"arn:aws:s3:us-east-1:123:function:f:1", "lambda service"}, {"arn:aws:lambda::123:function:f:1", "non-empty"}, {"arn:aws:lambda:us-east-1::function:f:1", "non-empty"},
		{"arn::lambda:us-east-1:1:function:f:1", "non-empty"}, {"arn:aws:lambda:us-east-1:1:function::1", "non-empty"}, {"arn:aws:lambda:us-east-1:1:layer:x:1", "`function`"}, {"x:aws:lambda:us-east-1:1:function:x:1", "`arn`"},
	} {
		err := CheckARN(c.in)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", c.in, err)
		}
	}
}

// What real SDKs announce must be registrable, and survive being stored.
func TestRecordedManifests(t *testing.T) {
	files, err := filepath.Glob("../../invokers/protocol/testdata/vectors/discover-*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recorded manifests: %v", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var v struct {
			Body json.RawMessage `json:"body"`
		}
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		m, err := DecodeManifest(v.Body)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		c, err := New(0, DefaultDefaults(), nil).Register(at("http://h:1/"), Discovered{Manifest: m, HTTPVersion: HTTP2}, 1, id(1))
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		roundTrip(t, c.Deployment)
	}
}

func roundTrip(t testing.TB, d *Deployment) {
	t.Helper()
	b, err := EncodeDeployment(d)
	if err != nil {
		t.Fatal(err)
	}
	again, err := DecodeDeployment(d.ID, b)
	if err != nil {
		t.Fatal(err)
	}
	resolvedAgain, err := New(0, DefaultDefaults(), []*Deployment{again}).Deployment(d.ID)
	if err != nil {
		t.Fatal(err)
	}
	b2, err := EncodeDeployment(resolvedAgain)
	if err != nil {
		t.Fatal(err)
	}
	if string(b) != string(b2) {
		t.Errorf("stored and read again:\n%s\n%s", b, b2)
	}
}

func TestStoredForm(t *testing.T) {
	d := sample()
	d.Headers, d.SDKVersion = map[string]string{"k": "v"}, "sdk/1"
	b, err := EncodeDeployment(d)
	if err != nil {
		t.Fatal(err)
	}
	const golden = `{"format":1,"address":{"http":{"uri":"http://h:1/","version":"HTTP/2.0"}},"protocol_type":"BidiStream","headers":{"k":"v"},` +
		`"created_ms":10,"min_protocol":5,"max_protocol":7,"sdk_version":"sdk/1","services":[{"name":"Counter","type":2,"revision":1,` +
		`"overrides":{"abort_timeout":5000000000,"journal_retention":172800000000000,"retry":{}},"handlers":[{"name":"add","type":2,` +
		`"overrides":{"public":false,"abort_timeout":1000000000,"retry":{}},"input":{},"output":{}},{"name":"get","type":1,"overrides":{"retry":{}},"input":{},"output":{}}]}]}`
	if string(b) != golden {
		t.Errorf("the stored form changed; old values must stay readable:\n%s", b)
	}
	if _, err := DecodeDeployment(id(1), []byte(golden)); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{`{}`, `x`, `{"format":2,"address":{"http":{}}}`, `{"format":1}`, `{"format":1,"address":{"http":{},"lambda":{}}}`} {
		if _, err := DecodeDeployment(id(1), []byte(bad)); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
	x, err := EncodeIndex(map[string]uint64{"dp_b": 1, "dp_a": 7})
	if err != nil || string(x) != `{"format":1,"deployments":{"dp_a":7,"dp_b":1}}` {
		t.Errorf("index %s, %v", x, err)
	}
	if i, err := DecodeIndex(x); err != nil || i.Deployments["dp_a"] != 7 {
		t.Errorf("%v, %v", i, err)
	}
	for _, bad := range []string{`{}`, `x`, `{"format":9}`} {
		if _, err := DecodeIndex([]byte(bad)); err == nil {
			t.Errorf("index %s is accepted", bad)
		}
	}
}

func FuzzDecodeManifest(f *testing.F) {
	f.Add([]byte(`{"protocolMode":"BIDI_STREAM","minProtocolVersion":5,"maxProtocolVersion":6,"services":[` + svcA + `]}`))
	f.Add([]byte(`{"minProtocolVersion":5,"maxProtocolVersion":5,"services":[{"name":"A","ty":"SERVICE","handlers":[{"name":"x","input":{"jsonSchema":{"$ref":"#/a"},"contentType":"a/b"}}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeManifest(b)
		if err != nil {
			return
		}
		c, err := New(0, DefaultDefaults(), nil).Register(at("http://h:1/"), Discovered{Manifest: m}, 1, id(1))
		if err == nil {
			roundTrip(t, c.Deployment)
		}
	})
}

func FuzzDecodeDeployment(f *testing.F) {
	b, err := EncodeDeployment(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := DecodeDeployment(id(1), b)
		if err != nil {
			return
		}
		s := New(1, DefaultDefaults(), []*Deployment{d})
		for _, name := range s.ServiceNames() {
			if s.Latest(name).ID != id(1) {
				t.Fatal("the only deployment is not the latest")
			}
		}
	})
}

func FuzzNormalizeURI(f *testing.F) {
	f.Add("http://h:80/a?b#c")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := NormalizeURI(s)
		if err != nil {
			return
		}
		if again, err := NormalizeURI(n); err != nil || again != n {
			t.Fatalf("%q becomes %q becomes %q, %v", s, n, again, err)
		}
	})
}

func BenchmarkHandlerLookup(b *testing.B) {
	var list []*Deployment
	for i := range 1000 {
		d := sample()
		d.ID = ident.DeploymentID{14: byte(i >> 8), 15: byte(i)}
		d.Services[0].Name = fmt.Sprintf("Svc%d", i%100)
		d.Services[0].Revision = uint32(i)
		list = append(list, d)
	}
	s := New(1, DefaultDefaults(), list)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Handler("Svc42", "add"); err != nil {
			b.Fatal(err)
		}
	}
}

func TestLambdaConcurrency(t *testing.T) {
	found := Discovered{Manifest: &Manifest{ProtocolMode: "REQUEST_RESPONSE", MinProtocolVersion: 5, MaxProtocolVersion: 7}}
	function := Address{Lambda: &LambdaAddress{ARN: "arn:aws:lambda:eu-west-1:1:function:f:1"}}
	for _, c := range []struct {
		value   string
		address Address
		want    int
		ok      bool
	}{
		{"5", function, 5, true}, {"", function, 0, false}, {"0", function, 0, false}, {"-1", function, 0, false}, {"many", function, 0, false},
		{"5", Address{HTTP: &HTTPAddress{URI: "http://h/"}}, 0, false},
	} {
		change, err := New(1, Defaults{}, nil).Register(Registration{Address: c.address, Metadata: map[string]string{LambdaConcurrencyKey: c.value}}, found, 1, ident.DeploymentID{1})
		if (err == nil) != c.ok {
			t.Errorf("%q at %s: %v", c.value, c.address, err)
		}
		if err != nil {
			continue
		}
		if n, err := change.Deployment.LambdaConcurrency(); n != c.want || err != nil {
			t.Errorf("%q: got %d, %v", c.value, n, err)
		}
	}
	if n, err := (&Deployment{Address: function}).LambdaConcurrency(); n != 0 || err != nil {
		t.Errorf("without metadata: %d, %v", n, err)
	}
}
