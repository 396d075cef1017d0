package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// patience bounds every wait of the suite. With the race detector the SDK takes 20 s for its first call on a busy machine.
const patience = 2 * time.Minute

// client talks to one server.
type client struct {
	ingress, admin string
	http           *http.Client
}

// transport closes idle connections before a server does: a request on one that the server is just closing would fail.
var transport = &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 30 * time.Second, DisableCompression: true}

func newClient(ingress, admin string) *client {
	return &client{ingress: strings.TrimRight(ingress, "/"), admin: strings.TrimRight(admin, "/"),
		http: &http.Client{Transport: transport, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

func shared() *client { return newClient(target.ingress, target.admin) }

// answer is a whole response.
type answer struct {
	what   string
	status int
	header http.Header
	body   []byte
}

func (a *answer) String() string {
	return fmt.Sprintf("%s: status %d, headers %v, body %.2000q", a.what, a.status, a.header, a.body)
}

// request is what to send. Path is appended to the base URL verbatim.
type request struct {
	method string
	path   string
	body   string
	header map[string]string
}

// try sends a request and reads the whole answer. It never follows redirects.
func (c *client) try(ctx context.Context, base string, r request) (*answer, error) {
	if r.method == "" {
		r.method = http.MethodPost
	}
	var body io.Reader
	if r.body != "" {
		body = strings.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, base+r.path, body)
	if err != nil {
		return nil, err
	}
	for k, v := range r.header {
		if v == "" {
			req.Header[k] = nil
			continue
		}
		req.Header.Set(k, v)
	}
	if r.body != "" && req.Header["Content-Type"] == nil {
		if _, ok := r.header["Content-Type"]; !ok {
			req.Header.Set("Content-Type", "application/json")
		}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	return &answer{r.method + " " + r.path, resp.StatusCode, resp.Header, b}, nil
}

func (c *client) do(t testing.TB, base string, r request) *answer {
	t.Helper()
	a, err := c.try(t.Context(), base, r)
	if err != nil {
		t.Fatalf("%s %s: %v", r.method, r.path, err)
	}
	return a
}

// in sends a request to the ingress, adm one to the admin API.
func (c *client) in(t testing.TB, r request) *answer  { t.Helper(); return c.do(t, c.ingress, r) }
func (c *client) adm(t testing.TB, r request) *answer { t.Helper(); return c.do(t, c.admin, r) }

// register registers a deployment and returns its id.
func (c *client) register(body map[string]any) (string, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return "", err
	}
	a, err := c.try(context.Background(), c.admin, request{path: "/deployments", body: string(b)})
	if err != nil {
		return "", err
	}
	if _, forced := body["force"]; a.status == 200 && !forced {
		// Nothing was discovered: a test before had its endpoint at this port.
		body = maps.Clone(body)
		body["force"], body["breaking"] = true, true
		return c.register(body)
	}
	if a.status != 200 && a.status != 201 {
		return "", fmt.Errorf("register: %v", a)
	}
	var d struct{ ID string }
	if err := json.Unmarshal(a.body, &d); err != nil || d.ID == "" {
		return "", fmt.Errorf("register: no id in %v (%v)", a, err)
	}
	return d.ID, nil
}

// want describes an answer exactly. JSON is matched structurally, with placeholders (see match); Text and JSON exclude
// each other. A header value may be a placeholder too; "-" demands that the header is absent.
type want struct {
	status int
	json   string
	text   string
	empty  bool
	header map[string]string
}

// check compares an answer with what is wanted and reports every difference at once.
func check(t testing.TB, a *answer, w want) {
	t.Helper()
	var bad []string
	if a.status != w.status {
		bad = append(bad, fmt.Sprintf("status: got %d, want %d", a.status, w.status))
	}
	for k, v := range w.header {
		got := a.header.Values(k)
		switch {
		case v == "-":
			if len(got) > 0 {
				bad = append(bad, fmt.Sprintf("header %s: got %q, want none", k, got))
			}
		case len(got) != 1 || !matchString(got[0], v):
			bad = append(bad, fmt.Sprintf("header %s: got %q, want %q", k, got, v))
		}
	}
	switch {
	case w.json != "":
		if err := matchJSON(a.body, w.json); err != nil {
			bad = append(bad, "body: "+err.Error())
		}
	case w.empty:
		if len(a.body) > 0 {
			bad = append(bad, fmt.Sprintf("body: got %.500q, want none", a.body))
		}
	case w.text != "":
		if !matchString(string(a.body), w.text) {
			bad = append(bad, fmt.Sprintf("body: got %.1000q, want %q", a.body, w.text))
		}
	}
	if len(bad) > 0 {
		t.Errorf("%s\n\t%s\n\tfull answer: %v", a.what, strings.Join(bad, "\n\t"), a)
	}
}

// placeholders stand for a whole string in an expectation.
var placeholders = map[string]*regexp.Regexp{
	"<inv>":      regexp.MustCompile(`^inv_1[0-9a-zA-Z]{33}$`),
	"<dp>":       regexp.MustCompile(`^dp_1[0-9a-zA-Z]{22}$`),
	"<dp-path>":  regexp.MustCompile(`^deployments/dp_1[0-9a-zA-Z]{22}$`),
	"<sign>":     regexp.MustCompile(`^sign_1[0-9a-zA-Z_-]{38}$`),
	"<rfc3339n>": regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$`),
	"<rfc3339o>": regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00$`),
	"<version>":  regexp.MustCompile(`^\d+\.\d+\.\d+`),
	"<string>":   regexp.MustCompile(`(?s)^.*$`),
	"<some>":     regexp.MustCompile(`(?s)^.+$`),
}

// matchString compares with an expectation that may be a placeholder, or contain "…" for any text in between.
func matchString(got, want string) bool {
	if re := placeholders[want]; re != nil {
		return re.MatchString(got)
	}
	parts := strings.Split(want, "…")
	if len(parts) == 1 {
		return got == want
	}
	if !strings.HasPrefix(got, parts[0]) {
		return false
	}
	got = got[len(parts[0]):]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(got, p)
		if i < 0 {
			return false
		}
		got = got[i+len(p):]
	}
	return strings.HasSuffix(got, parts[len(parts)-1])
}

// matchJSON compares JSON texts structurally. In want a string may be a placeholder; "<any>" stands for any value,
// "<int>" for any whole number, and the key "..." in an object allows further keys.
func matchJSON(got []byte, want string) error {
	var g, w any
	if err := json.Unmarshal(got, &g); err != nil {
		return fmt.Errorf("got %.500q, which is not JSON: %v", got, err)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		return fmt.Errorf("bad expectation %q: %v", want, err)
	}
	return match("$", g, w)
}

func match(at string, g, w any) error {
	switch w := w.(type) {
	case string:
		switch w {
		case "<any>":
			return nil
		case "<int>":
			if f, ok := g.(float64); !ok || f != float64(int64(f)) {
				return fmt.Errorf("%s: got %v, want a whole number", at, g)
			}
			return nil
		}
		if s, ok := g.(string); !ok || !matchString(s, w) {
			return fmt.Errorf("%s: got %#v, want %q", at, g, w)
		}
		return nil
	case map[string]any:
		return matchObject(at, g, w)
	case []any:
		ga, ok := g.([]any)
		if !ok || len(ga) != len(w) {
			return fmt.Errorf("%s: got %v, want a list of %d", at, g, len(w))
		}
		for i := range w {
			if err := match(fmt.Sprintf("%s[%d]", at, i), ga[i], w[i]); err != nil {
				return err
			}
		}
		return nil
	default:
		if g != w {
			return fmt.Errorf("%s: got %#v, want %#v", at, g, w)
		}
		return nil
	}
}

func matchObject(at string, g any, w map[string]any) error {
	gm, ok := g.(map[string]any)
	if !ok {
		return fmt.Errorf("%s: got %v, want an object", at, g)
	}
	keys := make([]string, 0, len(w))
	for k := range w {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		if k == "..." {
			continue
		}
		v, ok := gm[k]
		if !ok {
			return fmt.Errorf("%s.%s: missing, want %v", at, k, w[k])
		}
		if err := match(at+"."+k, v, w[k]); err != nil {
			return err
		}
	}
	if _, open := w["..."]; open {
		return nil
	}
	for k := range gm {
		if _, ok := w[k]; !ok {
			return fmt.Errorf("%s.%s: unexpected, is %v", at, k, gm[k])
		}
	}
	return nil
}

// poll calls f until it returns nil, and fails the test with f's last error when patience is over.
func poll(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	every := time.NewTicker(20 * time.Millisecond)
	defer every.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-every.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		case <-t.Context().Done():
			t.Fatalf("%s: test ended: %v", what, err)
		}
	}
}

var unique atomic.Int64

// fresh is a name that no other test of any run uses.
func fresh(t testing.TB) string { return fmt.Sprintf("%s-%d", runID, unique.Add(1)) }

// path joins an endpoint's service and the rest of a path: path("Counter", key, "add") is /GoCounter/<key>/add.
func (e *endpoint) path(service string, rest ...string) string {
	p := "/" + e.prefix + service
	for _, r := range rest {
		p += "/" + url.PathEscape(r)
	}
	return p
}

func toJSON(t testing.TB, v any) string {
	t.Helper()
	if v == nil {
		return ""
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// call posts input as JSON (nil: no body) and decodes the output of a call that must succeed.
func call[O any](t testing.TB, e *endpoint, path string, input any, headers ...string) O {
	t.Helper()
	a := e.in(t, request{path: path, body: toJSON(t, input), header: pairs(headers)})
	return decode[O](t, a, 200)
}

func decode[O any](t testing.TB, a *answer, status int) O {
	t.Helper()
	var out O
	if a.status != status {
		t.Fatalf("want status %d, got %v", status, a)
	}
	if len(bytes.TrimSpace(a.body)) == 0 {
		return out
	}
	if err := json.Unmarshal(a.body, &out); err != nil {
		t.Fatalf("decode %v: %v", a, err)
	}
	return out
}

func pairs(kv []string) map[string]string {
	m := map[string]string{}
	for i := 0; i+1 < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return m
}

// sent is the answer to a one-way call.
type sent struct {
	InvocationID  string `json:"invocationId"`
	ExecutionTime string `json:"executionTime"`
	Status        string `json:"status"`
}

// send posts a one-way call that must be accepted and returns the invocation id.
func (e *endpoint) send(t testing.TB, path string, input any, headers ...string) string {
	t.Helper()
	a := e.in(t, request{path: path + "/send", body: toJSON(t, input), header: pairs(headers)})
	return decode[sent](t, a, 202).InvocationID
}

// later makes a call in the background; the returned function waits for its answer.
func (e *endpoint) later(t testing.TB, path string, input any, headers ...string) func() *answer {
	t.Helper()
	return e.background(t, request{path: path, body: toJSON(t, input), header: pairs(headers)})
}

// background is later for any request to the ingress.
func (e *endpoint) background(t testing.TB, r request) func() *answer {
	t.Helper()
	type result struct {
		a   *answer
		err error
	}
	ch := make(chan result, 1)
	go func() {
		a, err := e.try(t.Context(), e.ingress, r)
		ch <- result{a, err}
	}()
	return func() *answer {
		t.Helper()
		got := <-ch
		if got.err != nil {
			t.Fatalf("%s %s: %v", r.method, r.path, got.err)
		}
		return got.a
	}
}

// attach waits for the result of an invocation by id.
func (e *endpoint) attach(t testing.TB, id string) *answer {
	t.Helper()
	return e.in(t, request{method: "GET", path: "/restate/invocation/" + id + "/attach"})
}

// count, lines and open reach the endpoint's memory through the Probe service, wherever the endpoint runs.
func (e *endpoint) count(t testing.TB, token string) int {
	t.Helper()
	if e.memory != nil {
		return e.memory.Counted(token)
	}
	return call[int](t, e, e.path("Probe", "count"), token)
}

func (e *endpoint) lines(t testing.TB, token string) []string {
	t.Helper()
	if e.memory != nil {
		return e.memory.Lines(token)
	}
	return call[[]string](t, e, e.path("Probe", "lines"), token)
}

func (e *endpoint) open(t testing.TB, token string) {
	t.Helper()
	if e.memory != nil {
		e.memory.Open(token)
		return
	}
	call[any](t, e, e.path("Probe", "open"), token)
}

// awaitLines waits until token has at least n lines and returns them.
func (e *endpoint) awaitLines(t testing.TB, token string, n int) []string {
	t.Helper()
	var l []string
	poll(t, "lines of "+token, func() error {
		if l = e.lines(t, token); len(l) < n {
			return fmt.Errorf("%d of %d lines: %q", len(l), n, l)
		}
		return nil
	})
	return l
}
