package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"perdure/integration/scripted"
)

// name makes an identifier that may be a service's name.
func name(t testing.TB, start string) string {
	t.Helper()
	return start + strings.ReplaceAll(fresh(t), "-", "_")
}

func (c *client) post(t testing.TB, path string, body any) *answer {
	t.Helper()
	return c.adm(t, request{path: path, body: toJSON(t, body)})
}

// sorted orders the list of objects under key by their names, so that an order which means nothing does not matter.
func sorted(t testing.TB, a *answer, keys ...string) *answer {
	t.Helper()
	var v any
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("%v: %v", a, err)
	}
	sortNames(v, keys)
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	c := *a
	c.body = b
	return &c
}

func sortNames(v any, keys []string) {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			sortNames(x, keys)
		}
	case map[string]any:
		for k, x := range v {
			sortNames(x, keys)
			l, ok := x.([]any)
			if !ok || !contains(keys, k) {
				continue
			}
			sort.Slice(l, func(i, j int) bool {
				return fmt.Sprint(l[i].(map[string]any)["name"]) < fmt.Sprint(l[j].(map[string]any)["name"])
			})
		}
	}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

const defaultRetry = `{"initial_interval":"500ms","exponentiation_factor":2.0,"max_attempts":70,"max_interval":"1m","on_max_attempts":"Pause"}`

// threeServices is a manifest with one service of each type, options on the first, and what the admin API says of them.
func threeServices(prefix string) (manifest string, describe func(deployment string, revision int) map[string]string) {
	svc := scripted.Service{Name: prefix + "S", Handlers: []scripted.Handler{{Name: "h", Extra: map[string]any{
		"documentation": "says h", "metadata": map[string]string{"hk": "hv"},
		"input": map[string]any{"required": true, "contentType": "application/json"}, "output": map[string]any{"contentType": "text/plain"},
		"inactivityTimeout": 1500, "abortTimeout": 2500, "journalRetention": 3_600_000, "idempotencyRetention": 5_400_000, "ingressPrivate": true,
		"retryPolicyInitialInterval": 50, "retryPolicyMaxInterval": 500, "retryPolicyMaxAttempts": 3, "retryPolicyExponentiationFactor": 1.5, "retryPolicyOnMaxAttempts": "KILL"}}},
		Extra: map[string]any{"documentation": "says S", "metadata": map[string]string{"k": "v"}, "inactivityTimeout": 30_000, "abortTimeout": 60_000,
			"journalRetention": 0, "idempotencyRetention": 7_200_000, "retryPolicyInitialInterval": 100, "retryPolicyMaxInterval": 1000,
			"retryPolicyMaxAttempts": 5, "retryPolicyExponentiationFactor": 3.0, "retryPolicyOnMaxAttempts": "KILL"}}
	obj := scripted.Service{Name: prefix + "O", Type: "VIRTUAL_OBJECT", Handlers: []scripted.Handler{{Name: "excl", Type: "EXCLUSIVE"}, {Name: "none"},
		{Name: "shared", Type: "SHARED", Extra: map[string]any{"enableLazyState": true}}}, Extra: map[string]any{"enableLazyState": false}}
	wf := scripted.Service{Name: prefix + "W", Type: "WORKFLOW", Handlers: []scripted.Handler{{Name: "run", Type: "WORKFLOW",
		Extra: map[string]any{"workflowCompletionRetention": 60_000}}, {Name: "other", Type: "SHARED"}}, Extra: map[string]any{"ingressPrivate": true}}
	manifest = scripted.Manifest("BIDI_STREAM", nil, svc, obj, wf)

	describe = func(dp string, rev int) map[string]string {
		plain := func(n, ty string) string {
			return fmt.Sprintf(`{"name":%q,"ty":%q,"public":true,"input_description":"*/*","output_description":"application/json","retry_policy":{"max_attempts":null}}`, n, ty)
		}
		return map[string]string{
			"S": fmt.Sprintf(`{"name":"%sS","ty":"Service","handlers":[{"name":"h","documentation":"says h","metadata":{"hk":"hv"},"idempotency_retention":"1h 30m",
				"journal_retention":"1h","inactivity_timeout":"1s 500ms","abort_timeout":"2s 500ms","public":false,"input_description":"application/json",
				"output_description":"text/plain","retry_policy":{"initial_interval":"50ms","exponentiation_factor":1.5,"max_attempts":3,"max_interval":"500ms","on_max_attempts":"Kill"}}],
				"documentation":"says S","metadata":{"k":"v"},"deployment_id":%q,"revision":%d,"public":true,"idempotency_retention":"2h","journal_retention":"0s",
				"inactivity_timeout":"30s","abort_timeout":"1m","enable_lazy_state":false,
				"retry_policy":{"initial_interval":"100ms","exponentiation_factor":3.0,"max_attempts":5,"max_interval":"1s","on_max_attempts":"Kill"}}`, prefix, dp, rev),
			"O": fmt.Sprintf(`{"name":"%sO","ty":"VirtualObject","handlers":[%s,%s,%s],"deployment_id":%q,"revision":%d,"public":true,
				"idempotency_retention":"1d","journal_retention":"1d","inactivity_timeout":"`+inactivity()+`","abort_timeout":"10m","enable_lazy_state":false,"retry_policy":%s}`,
				prefix, plain("excl", "Exclusive"), plain("none", "Exclusive"), strings.Replace(plain("shared", "Shared"), `"public"`, `"enable_lazy_state":true,"public"`, 1), dp, rev, defaultRetry),
			"W": fmt.Sprintf(`{"name":"%sW","ty":"Workflow","handlers":[%s,%s],"deployment_id":%q,"revision":%d,"public":false,"workflow_completion_retention":"1m",
				"idempotency_retention":"1d","journal_retention":"1d","inactivity_timeout":"`+inactivity()+`","abort_timeout":"10m","enable_lazy_state":false,"retry_policy":%s}`,
				prefix, strings.Replace(plain("other", "Shared"), `"public":true`, `"public":false`, 1), strings.Replace(plain("run", "Workflow"), `"public":true`, `"public":false`, 1), dp, rev, defaultRetry),
		}
	}
	return manifest, describe
}

func TestRegisterAndDescribe(t *testing.T) {
	t.Parallel()
	c, s, p := shared(), startScripted(t, false), name(t, "Desc")
	manifest, describe := threeServices(p)
	s.Discover(scripted.Discovery{Body: manifest, Header: http.Header{"X-Restate-Server": {"scripted/1"}}})
	body := map[string]any{"uri": s.URL, "additional_headers": map[string]string{"x-extra": "1"}, "metadata": map[string]string{"who": "test"}}

	registered := func(id string, rev int) string {
		d := describe(id, rev)
		return fmt.Sprintf(`{"id":%q,"services":[%s,%s,%s],"min_protocol_version":5,"max_protocol_version":7,"sdk_version":"scripted/1"}`, id, d["O"], d["S"], d["W"])
	}
	// A dry run says what would be and changes nothing.
	dry := map[string]any{"uri": s.URL, "dry_run": true}
	a := sorted(t, c.post(t, "/deployments", dry), "services", "handlers")
	check(t, a, want{status: 201, json: registered(idOf(t, a), 1), header: map[string]string{"content-type": "application/json", "location": "<dp-path>"}})
	check(t, c.adm(t, request{method: "GET", path: "/deployments/" + idOf(t, a)}), want{status: 404})
	check(t, c.adm(t, request{method: "GET", path: "/services/" + p + "S"}), want{status: 404})

	a = sorted(t, c.post(t, "/deployments", body), "services", "handlers")
	id := idOf(t, a)
	check(t, a, want{status: 201, json: registered(id, 1), header: map[string]string{"content-type": "application/json", "location": "deployments/" + id}})
	discoveries := len(s.Discoveries())
	req := s.Discoveries()[discoveries-1]
	equal(t, "discovery path", req.Method+" "+req.URL.Path, "GET /discover")
	equal(t, "discovery header", req.Header.Get("x-extra"), "1")
	equal(t, "discovery protocol", req.ProtoMajor, 2)
	accept := "application/vnd.restate.endpointmanifest.v%d+json"
	equal(t, "accept", req.Header.Get("accept"), strings.Join([]string{fmt.Sprintf(accept, 1), fmt.Sprintf(accept, 2), fmt.Sprintf(accept, 3), fmt.Sprintf(accept, 4)}, ", "))

	// Once more: unchanged, and nobody is asked.
	a = sorted(t, c.post(t, "/deployments", map[string]any{"uri": s.URL}), "services", "handlers")
	check(t, a, want{status: 200, json: registered(id, 1), header: map[string]string{"location": "deployments/" + id}})
	equal(t, "discoveries", len(s.Discoveries()), discoveries)

	detail := func(rev int, more string) string {
		d := describe(id, rev)
		return fmt.Sprintf(`{"id":%q,"uri":"%s/","protocol_type":"BidiStream","http_version":"HTTP/2.0",%s"created_at":"<rfc3339n>",
			"min_protocol_version":5,"max_protocol_version":7,"sdk_version":"scripted/1","services":[%s,%s,%s]}`, id, s.URL, more, d["O"], d["S"], d["W"])
	}
	extras := `"additional_headers":{"x-extra":"1"},"metadata":{"who":"test"},`
	get := func(path string) *answer {
		return sorted(t, c.adm(t, request{method: "GET", path: path}), "services", "handlers", "deployments")
	}
	check(t, get("/deployments/"+id), want{status: 200, json: detail(1, extras), header: jsonType})
	for _, v := range []string{"", "/v2", "/v3", "/v4"} {
		for svc, d := range describe(id, 1) {
			check(t, get(v+"/services/"+p+svc), want{status: 200, json: d, header: jsonType})
		}
	}
	handlers := get("/services/" + p + "O/handlers")
	check(t, handlers, want{status: 200, header: jsonType})
	equal(t, "handlers", len(decode[struct{ Handlers []any }](t, handlers, 200).Handlers), 3)
	check(t, get("/services/"+p+"O/handlers/shared"), want{status: 200, header: jsonType, json: `{"name":"shared","ty":"Shared","enable_lazy_state":true,"public":true,
		"input_description":"*/*","output_description":"application/json","retry_policy":{"max_attempts":null}}`})
	found := false
	for _, d := range decode[struct{ Deployments []json.RawMessage }](t, get("/deployments"), 200).Deployments {
		if strings.Contains(string(d), id) {
			found = true
			if err := matchJSON(d, fmt.Sprintf(`{"id":%q,"uri":"%s/","protocol_type":"BidiStream","http_version":"HTTP/2.0",%s"created_at":"<rfc3339n>","min_protocol_version":5,
				"max_protocol_version":7,"sdk_version":"scripted/1","services":[{"name":"%sO","revision":1},{"name":"%sS","revision":1},{"name":"%sW","revision":1}]}`, id, s.URL, extras, p, p, p)); err != nil {
				t.Errorf("in the list: %v", err)
			}
		}
	}
	if !found {
		t.Errorf("deployment %s is not in the list", id)
	}
	listed := 0
	for _, svc := range decode[struct{ Services []struct{ Name string } }](t, get("/services"), 200).Services {
		if strings.HasPrefix(svc.Name, p) {
			listed++
		}
	}
	equal(t, "services in the list", listed, 3)

	// Force replaces in place.
	a = sorted(t, c.post(t, "/deployments", map[string]any{"uri": s.URL, "force": true}), "services", "handlers")
	check(t, a, want{status: 200, json: registered(id, 2), header: map[string]string{"location": "deployments/" + id}})
	check(t, get("/deployments/"+id), want{status: 200, json: detail(2, ""), header: jsonType})
}

func idOf(t testing.TB, a *answer) string {
	t.Helper()
	var d struct{ ID string }
	if err := json.Unmarshal(a.body, &d); err != nil || !placeholders["<dp>"].MatchString(d.ID) {
		t.Fatalf("no deployment id in %v", a)
	}
	return d.ID
}

func TestRegisterOlderAdminVersion(t *testing.T) {
	t.Parallel()
	c, s := shared(), startScripted(t, false)
	s.Discover(scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: name(t, "V2"), Handlers: []scripted.Handler{{Name: "h"}}})})
	a := c.post(t, "/v2/deployments", map[string]any{"uri": s.URL})
	check(t, a, want{status: 201})
	id := idOf(t, a)
	// Version 2 forces by default, and answers 201 to an overwrite too.
	check(t, c.post(t, "/v2/deployments", map[string]any{"uri": s.URL}), want{status: 201, header: map[string]string{"location": "deployments/" + id}})
	check(t, c.post(t, "/v2/deployments", map[string]any{"uri": s.URL, "force": false}), want{status: 409, json: adminError("Conflict: deployment " + id + " already exists"), header: jsonType})
	check(t, c.adm(t, request{method: "PUT", path: "/v3/deployments/" + id, body: "{}"}), want{status: 405, json: adminError("PUT deployment is deprecated, use PATCH instead"), header: jsonType})
	check(t, c.adm(t, request{method: "PUT", path: "/v2/deployments/" + id, body: "{}"}), want{status: 200})
}

func TestRegisterRefusesBadRequests(t *testing.T) {
	t.Parallel()
	c := shared()
	text := map[string]string{"content-type": "text/plain; charset=utf-8"}
	absolute := func(uri string) string {
		return adminError("The request field 'uri' is invalid. Reason: The provided uri " + uri + " is not absolute, only absolute URIs can be used.")
	}
	for name, tc := range map[string]struct {
		body, contentType string
		want              want
	}{
		"truncated":         {"{", "", want{status: 400, text: "Failed to parse the request body as JSON: …", header: text}},
		"empty":             {"", "application/json", want{status: 400, text: "Failed to parse the request body as JSON: …", header: text}},
		"list":              {"[]", "", want{status: 422, text: "Failed to deserialize the JSON body into the target type: …", header: text}},
		"neither":           {"{}", "", want{status: 422, text: "Failed to deserialize the JSON body into the target type: …", header: text}},
		"not a uri":         {`{"uri":"not a uri"}`, "", want{status: 422, text: "Failed to deserialize the JSON body into the target type: …", header: text}},
		"content type":      {`{"uri":"http://127.0.0.1:1"}`, "text/plain", want{status: 415, text: "Expected request with `Content-Type: application/json`", header: text}},
		"no scheme":         {`{"uri":"127.0.0.1:1"}`, "", want{status: 400, json: absolute("127.0.0.1:1"), header: jsonType}},
		"path only":         {`{"uri":"/x"}`, "", want{status: 400, json: absolute("/x"), header: jsonType}},
		"arn":               {`{"arn":"nope"}`, "", want{status: 400, json: adminError("The request field 'arn' is invalid. Reason: A qualified ARN must have 8 components delimited by `:`"), header: jsonType}},
		"arn, no qualifier": {`{"arn":"arn:aws:lambda:eu-central-1:123456789012:function:f"}`, "", want{status: 400, json: adminError("The request field 'arn' is invalid. Reason: A qualified ARN needs a version or alias suffix. If you want to use the unpublished version, provide $LATEST and make sure your shell doesn't treat it as a variable"), header: jsonType}},
	} {
		t.Run(name, func(t *testing.T) {
			r := request{path: "/deployments", body: tc.body}
			if tc.contentType != "" {
				r.header = map[string]string{"Content-Type": tc.contentType}
			}
			check(t, c.adm(t, r), tc.want)
		})
	}
}

// metaError is an admin error with a code; discovery errors carry it twice in the message.
func metaError(code, message string) string {
	b, _ := json.Marshal(map[string]any{"message": "[" + code + "] " + message, "restate_code": code})
	return string(b)
}

func TestRegisterFailsToDiscover(t *testing.T) {
	t.Parallel()
	c := shared()
	const closed = "http://127.0.0.1:1" // nobody is given such a port by chance
	t.Run("unreachable", func(t *testing.T) {
		check(t, c.post(t, "/deployments", map[string]any{"uri": closed}), want{status: 500, json: metaError("META0003", "[META0003] …"+closed+"…"), header: jsonType})
	})
	t.Run("http1 where h2c is asked", func(t *testing.T) {
		s := startScripted(t, true)
		s.Discover(scripted.Discovery{Body: scripted.Manifest("REQUEST_RESPONSE", nil)})
		check(t, c.post(t, "/deployments", map[string]any{"uri": s.URL}), want{status: 500, json: metaError("META0014", "[META0014] …"), header: jsonType})
		check(t, c.post(t, "/deployments", map[string]any{"uri": s.URL, "use_http_11": true}), want{status: 201})
	})
	svc := scripted.Service{Name: "Whatever", Handlers: []scripted.Handler{{Name: "h"}}}
	for name, tc := range map[string]struct {
		d    scripted.Discovery
		want want
	}{
		"404":               {scripted.Discovery{Status: 404, Body: "nope"}, want{status: 500, json: metaError("META0003", "[META0003] …404…")}},
		"401":               {scripted.Discovery{Status: 401}, want{status: 500, json: metaError("META0003", "[META0003] …401…")}},
		"no manifest":       {scripted.Discovery{ContentType: "text/html", Body: "<html>"}, want{status: 500, json: metaError("META0013", "[META0013] …")}},
		"with charset":      {scripted.Discovery{ContentType: scripted.ManifestType + "; charset=utf-8", Body: scripted.Manifest("BIDI_STREAM", nil)}, want{status: 500, json: metaError("META0013", "[META0013] …")}},
		"not JSON":          {scripted.Discovery{Body: "nonsense"}, want{status: 500, json: `{"message":"…","restate_code":"<any>"}`}},
		"no mode":           {scripted.Discovery{Body: scripted.Manifest("", map[string]any{"protocolMode": nil}, svc)}, want{status: 500, json: metaError("META0013", "[META0013] …")}},
		"too old":           {scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", map[string]any{"minProtocolVersion": 1, "maxProtocolVersion": 4}, svc)}, want{status: 500, json: metaError("META0012", "[META0012] …")}},
		"too new":           {scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", map[string]any{"minProtocolVersion": 8, "maxProtocolVersion": 9}, svc)}, want{status: 500, json: metaError("META0012", "[META0012] …")}},
		"reserved name":     {scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: "ReStateX", Handlers: svc.Handlers})}, want{status: 400, json: metaError("META0005", "cannot insert/modify service 'ReStateX' as it contains a reserved name")}},
		"reserved openapi":  {scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: "OpenAPI", Handlers: svc.Handlers})}, want{status: 400, json: metaError("META0005", "cannot insert/modify service 'OpenAPI' as it contains a reserved name")}},
		"bad service name":  {scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: "a/b", Handlers: svc.Handlers})}, want{status: 500}},
		"exclusive service": {scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: "S", Handlers: []scripted.Handler{{Name: "h", Type: "EXCLUSIVE"}}})}, want{status: 400}},
		"workflow retention on no workflow": {scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: "S", Handlers: []scripted.Handler{
			{Name: "h", Extra: map[string]any{"workflowCompletionRetention": 1}}}})}, want{status: 400}},
		"private service, public handler": {scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: "S", Extra: map[string]any{"ingressPrivate": true},
			Handlers: []scripted.Handler{{Name: "h", Extra: map[string]any{"ingressPrivate": false}}}})}, want{status: 400}},
		"bad schema": {scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: "S", Handlers: []scripted.Handler{
			{Name: "h", Extra: map[string]any{"input": map[string]any{"contentType": "application/json", "jsonSchema": map[string]any{"type": 7}}}}}})}, want{status: 400}},
	} {
		t.Run(name, func(t *testing.T) {
			s := startScripted(t, false)
			s.Discover(tc.d)
			tc.want.header = jsonType
			a := c.post(t, "/deployments", map[string]any{"uri": s.URL, "dry_run": true})
			check(t, a, tc.want)
			if tc.want.json == "" {
				if err := matchJSON(a.body, `{"message":"<some>","restate_code":"<any>"}`); err != nil {
					t.Errorf("%v: %v", a, err)
				}
			}
		})
	}
	t.Run("a retryable status is retried", func(t *testing.T) {
		s := startScripted(t, false)
		s.Discover(scripted.Discovery{Status: 503})
		poll(t, "a discovery that is quick enough", func() error {
			before, begin := len(s.Discoveries()), time.Now()
			check(t, c.post(t, "/deployments", map[string]any{"uri": s.URL}), want{status: 500, json: metaError("META0003", "[META0003] …503…")})
			n, d := len(s.Discoveries())-before, time.Since(begin)
			if n < 5 && d > 5*time.Second { // after which no further request is begun
				return fmt.Errorf("%d requests in %v", n, d)
			}
			equal(t, "requests", n, 5)
			return nil
		})
	})
}

func TestRegisterTypeChange(t *testing.T) {
	t.Parallel()
	c, one, two, svc := shared(), startScripted(t, false), startScripted(t, false), name(t, "Change")
	h := []scripted.Handler{{Name: "a"}, {Name: "b"}}
	one.Discover(scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: svc, Handlers: h})})
	check(t, c.post(t, "/deployments", map[string]any{"uri": one.URL}), want{status: 201})
	two.Discover(scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: svc, Type: "VIRTUAL_OBJECT", Handlers: h})})
	check(t, c.post(t, "/deployments", map[string]any{"uri": two.URL}), want{status: 409, json: metaError("META0006", "…"+svc+"…"), header: jsonType})
	check(t, c.post(t, "/deployments", map[string]any{"uri": two.URL, "breaking": true, "dry_run": true}), want{status: 201})
	check(t, c.post(t, "/deployments", map[string]any{"uri": two.URL, "breaking": true}), want{status: 201})
	got := decode[struct {
		Ty       string
		Revision int
	}](t, c.adm(t, request{method: "GET", path: "/services/" + svc}), 200)
	if got.Ty != "VirtualObject" || got.Revision != 2 {
		t.Errorf("after a breaking change: %+v", got)
	}
	// Fewer handlers are no breaking change.
	three := startScripted(t, false)
	three.Discover(scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: svc, Type: "VIRTUAL_OBJECT", Handlers: h[:1]})})
	check(t, c.post(t, "/deployments", map[string]any{"uri": three.URL}), want{status: 201})
	check(t, c.adm(t, request{method: "GET", path: "/services/" + svc + "/handlers/b"}), want{status: 404, json: adminError("The requested handler 'b' on service '" + svc + "' does not exist")})
}

// TestNewDeploymentServesNewInvocations: in flight work stays where it began.
func TestNewDeploymentServesNewInvocations(t *testing.T) {
	t.Parallel()
	c, svc := shared(), name(t, "Moved")
	serve := func(version string, gate chan struct{}, in chan<- string) *scripted.Endpoint {
		s := startScripted(t, false)
		s.Discover(scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: svc, Handlers: []scripted.Handler{{Name: "h"}}})})
		s.Handle(svc, "h", func(a *scripted.Attempt) {
			if gate != nil {
				in <- version
				select {
				case <-gate:
				case <-a.Done.Done():
					return
				}
			}
			a.Send(scripted.Output(version), scripted.End())
		})
		if _, err := c.register(map[string]any{"uri": s.URL}); err != nil {
			t.Fatal(err)
		}
		return s
	}
	gate, in := make(chan struct{}), make(chan string, 1)
	serve("one", gate, in)
	e := &endpoint{client: c}
	first := e.later(t, "/"+svc+"/h", nil)
	<-in
	two := serve("two", nil, nil)
	check(t, c.in(t, request{path: "/" + svc + "/h"}), want{status: 200, text: "two"})
	close(gate)
	check(t, first(), want{status: 200, text: "one"})

	// Without the newest deployment the one before serves again.
	a := c.post(t, "/deployments", map[string]any{"uri": two.URL})
	id := idOf(t, a)
	check(t, c.adm(t, request{method: "DELETE", path: "/deployments/" + id}), want{status: 501, empty: true})
	check(t, c.adm(t, request{method: "DELETE", path: "/deployments/" + id + "?force=true"}), want{status: 202, empty: true})
	check(t, c.adm(t, request{method: "GET", path: "/deployments/" + id}), want{status: 404, json: adminError("The requested deployment '" + id + "' does not exist"), header: jsonType})
	poll(t, "the old deployment serves", func() error {
		if a := c.in(t, request{path: "/" + svc + "/h"}); string(a.body) != "one" {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
}

func TestPatchDeployment(t *testing.T) {
	t.Parallel()
	c, one, two, svc := shared(), startScripted(t, false), startScripted(t, false), name(t, "Patched")
	for v, s := range map[string]*scripted.Endpoint{"one": one, "two": two} {
		s.Discover(scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: svc, Handlers: []scripted.Handler{{Name: "h"}}})})
		s.Handle(svc, "h", func(a *scripted.Attempt) {
			a.Send(scripted.Output(v+a.Request.Header.Get("x-more")), scripted.End())
		})
	}
	id, err := c.register(map[string]any{"uri": one.URL})
	if err != nil {
		t.Fatal(err)
	}
	patch := func(id, body string) *answer {
		return c.adm(t, request{method: "PATCH", path: "/deployments/" + id, body: body})
	}
	a := patch(id, "{}")
	check(t, a, want{status: 200, header: jsonType})
	equal(t, "id", idOf(t, a), id)
	equal(t, "discoveries for nothing to change", len(one.Discoveries()), 1)
	a = patch(id, fmt.Sprintf(`{"uri":%q,"additional_headers":{"x-more":"!"}}`, two.URL))
	check(t, a, want{status: 200, json: fmt.Sprintf(`{"id":%q,"uri":"%s/","additional_headers":{"x-more":"!"},"...":""}`, id, two.URL), header: jsonType})
	poll(t, "the new address serves", func() error {
		if a := c.in(t, request{path: "/" + svc + "/h"}); string(a.body) != "two!" {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
	const none = "dp_11111111111111111111111"
	check(t, patch(none, "{}"), want{status: 404, json: adminError("The requested deployment '" + none + "' does not exist"), header: jsonType})
}

func TestAdminErrors(t *testing.T) {
	t.Parallel()
	c := shared()
	text := map[string]string{"content-type": "text/plain; charset=utf-8"}
	const none = "dp_11111111111111111111111"
	badURL := func(id, reason string) string {
		return "Invalid URL: Cannot parse `deployment` with value `" + id + "`: " + reason
	}
	for name, tc := range map[string]struct {
		method, path string
		want         want
	}{
		"health":                      {"GET", "/health", want{status: 200, empty: true}},
		"health v3":                   {"GET", "/v3/health", want{status: 200, empty: true}},
		"v1":                          {"GET", "/v1/health", want{status: 400, text: "Unsupported Admin API version V1. This server supports versions between V2 and V4.", header: text}},
		"v5":                          {"GET", "/v5/health", want{status: 404, empty: true}},
		"nothing":                     {"GET", "/nope", want{status: 404, empty: true}},
		"method":                      {"POST", "/health", want{status: 405, empty: true, header: map[string]string{"allow": "GET,HEAD"}}},
		"method of services":          {"PUT", "/services", want{status: 405, empty: true, header: map[string]string{"allow": "GET,HEAD"}}},
		"unknown deployment":          {"GET", "/deployments/" + none, want{status: 404, json: adminError("The requested deployment '" + none + "' does not exist"), header: jsonType}},
		"bad deployment":              {"GET", "/deployments/dp_nope", want{status: 400, text: badURL("dp_nope", "unrecognized codec version"), header: text}},
		"short deployment":            {"GET", "/deployments/dp_1a", want{status: 400, text: badURL("dp_1a", "bad length"), header: text}},
		"other id":                    {"GET", "/deployments/x", want{status: 400, text: badURL("x", "bad format"), header: text}},
		"delete unknown deployment":   {"DELETE", "/deployments/" + none + "?force=true", want{status: 404, json: adminError("not found in the schema registry: deployment with id '" + none + "'"), header: jsonType}},
		"delete without force":        {"DELETE", "/deployments/" + none, want{status: 501, empty: true}},
		"delete with bad query":       {"DELETE", "/deployments/" + none + "?force=maybe", want{status: 400, text: "Failed to deserialize query string: …", header: text}},
		"delete bad deployment":       {"DELETE", "/deployments/x?force=true", want{status: 400, text: badURL("x", "bad format"), header: text}},
		"unknown service":             {"GET", "/services/NoSuch", want{status: 404, json: adminError("The requested service 'NoSuch' does not exist"), header: jsonType}},
		"handlers of unknown service": {"GET", "/services/NoSuch/handlers", want{status: 404, json: adminError("The requested service 'NoSuch' does not exist"), header: jsonType}},
		"handler of unknown service":  {"GET", "/services/NoSuch/handlers/x", want{status: 404, json: adminError("The requested handler 'x' on service 'NoSuch' does not exist"), header: jsonType}},
	} {
		t.Run(name, func(t *testing.T) { check(t, c.adm(t, request{method: tc.method, path: tc.path}), tc.want) })
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	c := shared()
	check(t, c.adm(t, request{method: "GET", path: "/version"}), want{status: 200, header: jsonType,
		json: `{"version":"<version>","min_admin_api_version":2,"max_admin_api_version":4,"ingress_endpoint":"` + c.ingress + `/","features":"<any>"}`})
	check(t, c.adm(t, request{method: "GET", path: "/cluster-health"}), want{status: 200, header: jsonType,
		json: `{"cluster_name":"localcluster","metadata_cluster_health":{"members":[1]}}`})
}

func TestPatchService(t *testing.T) {
	t.Parallel()
	c, s, p := shared(), startScripted(t, false), name(t, "Mod")
	manifest := scripted.Manifest("BIDI_STREAM", nil,
		scripted.Service{Name: p + "S", Handlers: []scripted.Handler{{Name: "open"}, {Name: "closed", Extra: map[string]any{"ingressPrivate": true}}}},
		scripted.Service{Name: p + "O", Type: "VIRTUAL_OBJECT", Handlers: []scripted.Handler{{Name: "h"}}},
		scripted.Service{Name: p + "W", Type: "WORKFLOW", Handlers: []scripted.Handler{{Name: "run", Type: "WORKFLOW"}}})
	s.Discover(scripted.Discovery{Body: manifest})
	for _, h := range []string{"open", "closed"} {
		s.Handle(p+"S", h, func(a *scripted.Attempt) { a.Send(scripted.Output("ok"), scripted.End()) })
	}
	if _, err := c.register(map[string]any{"uri": s.URL}); err != nil {
		t.Fatal(err)
	}
	patch := func(svc, body string) *answer {
		return c.adm(t, request{method: "PATCH", path: "/services/" + svc, body: body})
	}
	text := map[string]string{"content-type": "text/plain; charset=utf-8"}
	is := func(fields string) want {
		return want{status: 200, json: `{` + fields + `,"...":""}`, header: jsonType}
	}
	check(t, patch(p+"S", "{}"), is(`"public":true,"idempotency_retention":"1d","journal_retention":"1d","inactivity_timeout":"`+inactivity()+`","abort_timeout":"10m","revision":1`))
	check(t, patch(p+"S", `{"unknown":1,"public":null}`), is(`"public":true`))
	check(t, patch(p+"S", `{"public":false}`), is(`"public":false`))
	poll(t, "the service is private", func() error {
		if a := c.in(t, request{path: "/" + p + "S/open"}); a.status != 400 {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
	check(t, c.in(t, request{path: "/" + p + "S/open"}), want{status: 400, json: ingressError(400, "the invoked service is not public"), header: fromIngress})
	check(t, c.adm(t, request{method: "GET", path: "/services/" + p + "S/handlers/open"}), is(`"public":false`))
	check(t, patch(p+"S", `{"public":true,"idempotency_retention":"2h","journal_retention":"PT1H","inactivity_timeout":"5m","abort_timeout":"1h 30m"}`),
		is(`"public":true,"idempotency_retention":"2h","journal_retention":"1h","inactivity_timeout":"5m","abort_timeout":"1h 30m","revision":1`))
	check(t, c.adm(t, request{method: "GET", path: "/services/" + p + "S"}), is(`"public":true,"idempotency_retention":"2h","journal_retention":"1h"`))
	poll(t, "the service is public", func() error {
		if a := c.in(t, request{path: "/" + p + "S/open"}); a.status != 200 {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
	check(t, c.in(t, request{path: "/" + p + "S/closed"}), want{status: 400, json: ingressError(400, "the invoked service is not public")})
	check(t, patch(p+"O", `{"idempotency_retention":"2h"}`), is(`"idempotency_retention":"2h"`))
	check(t, patch(p+"O", `{"workflow_completion_retention":"2h"}`), want{status: 400, json: adminError("modifying retention time for service type VirtualObject is unsupported"), header: jsonType})
	check(t, patch(p+"W", `{"workflow_completion_retention":"2h"}`), is(`"workflow_completion_retention":"2h"`))
	check(t, patch("NoSuch", `{}`), want{status: 404, json: adminError("The requested service 'NoSuch' does not exist"), header: jsonType})
	check(t, patch("NoSuch", `{"public":true}`), want{status: 404, json: adminError("not found in the schema registry: service with name 'NoSuch'"), header: jsonType})
	check(t, patch(p+"S", `{"idempotency_retention":"bogus"}`), want{status: 422, text: "Failed to deserialize the JSON body into the target type: idempotency_retention: …", header: text})
	check(t, patch(p+"S", `{"public":"x"}`), want{status: 422, text: "Failed to deserialize the JSON body into the target type: public: …", header: text})
	// The next registration brings back what the manifest says.
	check(t, c.post(t, "/deployments", map[string]any{"uri": s.URL, "force": true}), want{status: 200})
	check(t, c.adm(t, request{method: "GET", path: "/services/" + p + "S"}), is(`"public":true,"idempotency_retention":"1d","journal_retention":"1d","revision":2`))
}

// TestPatchedRetentionApplies: what an operator sets is what the next invocation gets.
func TestPatchedRetentionApplies(t *testing.T) {
	t.Parallel()
	c, s, svc := shared(), startScripted(t, false), name(t, "Kept")
	s.Discover(scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: svc, Handlers: []scripted.Handler{{Name: "h"}}})})
	s.Handle(svc, "h", func(a *scripted.Attempt) { a.Send(scripted.Output("ok"), scripted.End()) })
	if _, err := c.register(map[string]any{"uri": s.URL}); err != nil {
		t.Fatal(err)
	}
	check(t, c.adm(t, request{method: "PATCH", path: "/services/" + svc, body: `{"idempotency_retention":"0s","journal_retention":"0s"}`}), want{status: 200})
	poll(t, "nothing is kept", func() error {
		a := c.in(t, request{path: "/" + svc + "/h"})
		id := a.header.Get("x-restate-id")
		if o := c.in(t, request{method: "GET", path: "/restate/invocation/" + id + "/output"}); o.status != 404 {
			return fmt.Errorf("%v", o)
		}
		return nil
	})
}

// TestConcurrentRegistrations: one address is one deployment, however many register it at once.
func TestConcurrentRegistrations(t *testing.T) {
	t.Parallel()
	c, s := shared(), startScripted(t, false)
	s.Discover(scripted.Discovery{Body: scripted.Manifest("BIDI_STREAM", nil, scripted.Service{Name: name(t, "Once"), Handlers: []scripted.Handler{{Name: "h"}}})})
	register := request{path: "/deployments", body: toJSON(t, map[string]any{"uri": s.URL})}
	var wg sync.WaitGroup
	answers := make([]*answer, 6)
	for i := range answers {
		wg.Go(func() {
			a, err := c.try(t.Context(), c.admin, register)
			if err != nil {
				t.Error(err)
			}
			answers[i] = a
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	created := 0
	for _, a := range answers {
		equal(t, "id", idOf(t, a), idOf(t, answers[0]))
		if a.status == 201 {
			created++
		} else {
			check(t, a, want{status: 200})
		}
	}
	equal(t, "created", created, 1)
}
