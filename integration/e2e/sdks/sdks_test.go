package sdks

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"perdure/integration/harness"
	"perdure/invokers/identity"
)

// modes are the ways in which each program is tested: options of the server, and of the program.
var modes = []struct {
	name            string
	config          map[string]string
	requestResponse bool
}{
	{name: "default"},
	{name: "request-response", requestResponse: true},
	{name: "suspending", config: map[string]string{"WORKER__INVOKER__INACTIVITY_TIMEOUT": "0s"}},
	{name: "suspending-soon", config: map[string]string{"WORKER__INVOKER__INACTIVITY_TIMEOUT": "1ms"}},
	{name: "lazy", config: map[string]string{"WORKER__INVOKER__DISABLE_EAGER_STATE": "true"}},
	{name: "v7", config: map[string]string{v7: "true"}},
	{name: "v7-lazy-suspending", config: map[string]string{v7: "true", "WORKER__INVOKER__INACTIVITY_TIMEOUT": "0s", "WORKER__INVOKER__DISABLE_EAGER_STATE": "true"}},
	{name: "v7-request-response", config: map[string]string{v7: "true"}, requestResponse: true},
}

const v7 = "EXPERIMENTAL_ENABLE_PROTOCOL_V7"

// site is a server with one program registered.
type site struct {
	l       *language
	kind    string // the name of the server's definition
	version int    // of the service protocol
	server  *harness.Server
	end     *endpoint
	http    *http.Client
}

// eachLanguage runs f for every chosen language, one after the other: each has processes that want the machine.
func eachLanguage(t *testing.T, f func(t *testing.T, l *language)) {
	for _, l := range chosen(t) {
		t.Run(l.name, func(t *testing.T) {
			l.ready(t)
			f(t, l)
		})
	}
}

// open starts a server with the given options and the program with the given environment, and registers the program.
func open(t *testing.T, l *language, config map[string]string, env ...string) *site {
	t.Helper()
	kind := os.Getenv("PERDURE_E2E_SERVER")
	if kind == "" {
		kind = "perdure"
	}
	s := &site{l: l, kind: kind, version: 6, server: harness.Start(t, kind, config), http: &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	t.Cleanup(s.http.CloseIdleConnections)
	if config[v7] != "" && l.v7 {
		s.version = 7
	}
	s.end = l.serve(t, env...)
	poll(t, "register", func() error {
		status, body, err := s.post(s.server.Admin()+"/deployments", fmt.Sprintf(`{"uri":%q,"force":true}`, s.end.url()))
		if err != nil || status/100 != 2 {
			return fmt.Errorf("status %d, %s, %v", status, body, err)
		}
		return nil
	})
	return s
}

// post sends body as JSON, nothing if it is "". Headers are given as name, value.
func (s *site) post(url, body string, headers ...string) (int, string, error) {
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return s.do(req)
}

func (s *site) do(req *http.Request) (int, string, error) {
	resp, err := s.http.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// call calls a handler and wants this answer.
func (s *site) call(t *testing.T, path, body, want string, headers ...string) {
	t.Helper()
	status, got, err := s.post(s.server.Ingress()+path, body, headers...)
	if err != nil || status != 200 || !same(got, want) {
		t.Errorf("%s %.100s: status %d, %.500s, %v; want %.500s", path, body, status, got, err, want)
	}
}

// fails calls a handler and wants this failure.
func (s *site) fails(t *testing.T, path, body string, code int, message string) {
	t.Helper()
	status, got, err := s.post(s.server.Ingress()+path, body)
	var f struct{ Message string }
	if json.Unmarshal([]byte(got), &f); err != nil || status != code || !strings.Contains(f.Message, message) {
		t.Errorf("%s %.100s: status %d, %.500s, %v; want %d %q", path, body, status, got, err, code, message)
	}
}

// get reads a URL and wants this answer.
func (s *site) get(t *testing.T, url, want string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	status, got, err := s.do(req)
	if err != nil || status != 200 || !same(got, want) {
		t.Errorf("%s: status %d, %.500s, %v; want %.500s", url, status, got, err, want)
	}
}

// send sends to a handler and returns the id of the invocation.
func (s *site) send(t *testing.T, path, body string, headers ...string) string {
	t.Helper()
	status, got, err := s.post(s.server.Ingress()+path+"/send", body, headers...)
	var a struct{ InvocationID string }
	if err != nil || status != 202 || json.Unmarshal([]byte(got), &a) != nil || a.InvocationID == "" {
		t.Fatalf("send %s: status %d, %s, %v", path, status, got, err)
	}
	return a.InvocationID
}

// output waits for an invocation and wants this output.
func (s *site) output(t *testing.T, id, want string) {
	t.Helper()
	s.get(t, s.server.Ingress()+"/restate/invocation/"+id+"/attach", want)
}

// boxed waits until a handler has put its id into the box and returns it.
func (s *site) boxed(t *testing.T, box string) (id string) {
	t.Helper()
	poll(t, "an id in the box", func() error {
		_, got, err := s.post(s.server.Ingress()+"/Obj/"+box+"/read", `"id"`)
		if err == nil {
			err = json.Unmarshal([]byte(got), &id)
		}
		if err == nil && id == "none" {
			err = errors.New("the box is empty")
		}
		return err
	})
	return id
}

// same compares two JSON texts by meaning: SDKs differ in white space and escapes.
func same(a, b string) bool {
	if a == b {
		return true
	}
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && reflect.DeepEqual(x, y)
}

// fresh is a name that nobody has used.
func fresh() string {
	var b [8]byte
	rand.Read(b[:])
	return "k" + hex.EncodeToString(b[:])
}

func quote(s string) string { return fmt.Sprintf("%q", s) }

func TestCases(t *testing.T) {
	eachLanguage(t, func(t *testing.T, l *language) {
		for _, m := range modes {
			if m.requestResponse && !l.requestResponse || m.config[v7] != "" && !l.v7 {
				continue
			}
			t.Run(m.name, func(t *testing.T) {
				var env []string
				if m.requestResponse {
					env = append(env, "MODE=rr")
				}
				s := open(t, l, m.config, env...)
				t.Run("cases", func(t *testing.T) {
					for _, c := range cases {
						t.Run(c.name, func(t *testing.T) {
							t.Parallel()
							c.f(t, s)
						})
					}
				})
			})
		}
	})
}

// cases are what every SDK must do in every mode.
var cases = []struct {
	name string
	f    func(t *testing.T, s *site)
}{
	{"calls", func(t *testing.T, s *site) {
		s.call(t, "/Svc/greet", `"Ada"`, `"Hello, Ada!"`)
		s.call(t, "/Svc/nothing", "", "")
		s.call(t, "/Svc/header", "", `"b"`, "x-a", "b")
		s.call(t, "/Svc/forward", "", `"b"`)
		s.call(t, "/Svc/gather", "20", "380")
		key := fresh()
		s.call(t, "/Svc/calls", quote(key), "[1,111]")
		s.call(t, "/Svc/generic", quote(key), "116")
	}},
	{"large", func(t *testing.T, s *site) {
		text := quote(strings.Repeat("x", 1<<20))
		s.call(t, "/Svc/echo", text, text)
		key := fresh()
		s.call(t, "/Obj/"+key+"/put", `{"name":"big","value":`+text+`}`, "")
		s.call(t, "/Obj/"+key+"/read", `"big"`, text)
	}},
	{"failures", func(t *testing.T, s *site) {
		s.fails(t, "/Svc/fail", `{"code":418,"message":"teapot"}`, 418, "teapot")
		s.call(t, "/Svc/retry", quote(fresh()), "3")
	}},
	{"steps", func(t *testing.T, s *site) {
		s.call(t, "/Svc/run", quote(fresh()), "3")
		s.call(t, "/Svc/exhaust", quote(fresh()), `"500 after 3"`)
		s.call(t, "/Svc/runTerminal", quote(fresh()), `"418 teapot after 1"`)
		s.call(t, "/Svc/steps", "100", "4950")
		s.call(t, "/Svc/random", quote(fresh()), "true")
	}},
	{"sleeps", func(t *testing.T, s *site) {
		s.call(t, "/Svc/sleep", "20", `"slept"`)
		s.call(t, "/Svc/race", "20", `"sleep"`)
		s.call(t, "/Svc/order", "[1500,20,700]", "[20,700,1500]")
	}},
	{"awakeables", func(t *testing.T, s *site) {
		for _, c := range []struct{ path, body, want string }{{"/resolve", `"it"`, `"it"`}, {"/reject", "no", `"500 no"`}} {
			box := fresh()
			id := s.send(t, "/Svc/awake", quote(box))
			header := "application/json"
			if c.path == "/reject" {
				header = "text/plain"
			}
			status, got, err := s.post(s.server.Ingress()+"/restate/awakeables/"+s.boxed(t, box)+c.path, c.body, "Content-Type", header)
			if err != nil || status != 202 {
				t.Errorf("%s: status %d, %s, %v", c.path, status, got, err)
			}
			s.output(t, id, c.want)
		}
		for path, want := range map[string]string{"/Svc/resolve": `"it"`, "/Svc/reject": `"500 it"`} {
			box := fresh()
			id := s.send(t, "/Svc/awake", quote(box))
			s.call(t, path, `{"id":`+quote(s.boxed(t, box))+`,"value":"it"}`, "")
			s.output(t, id, want)
		}
	}},
	{"signals", func(t *testing.T, s *site) {
		if !s.l.signals {
			t.Skip("the SDK has no named signals")
		}
		for value, want := range map[string]string{"it": `"it"`, "reject": `"500 no"`} {
			box := fresh()
			id := s.send(t, "/Svc/waitSignal", quote(box))
			if got := s.boxed(t, box); got != id {
				t.Errorf("the handler's id is %s, the invocation's %s", got, id)
			}
			s.call(t, "/Svc/sendSignal", `{"id":`+quote(id)+`,"value":`+quote(value)+`}`, "")
			s.output(t, id, want)
		}
	}},
	{"delayed", func(t *testing.T, s *site) {
		key := fresh()
		began := time.Now()
		status, id, err := s.post(s.server.Ingress()+"/Svc/later", `{"key":`+quote(key)+`,"ms":300}`)
		if err != nil || status != 200 {
			t.Fatalf("status %d, %s, %v", status, id, err)
		}
		s.output(t, strings.Trim(id, `"`), `{"old":0,"new":1}`)
		if d := time.Since(began); d < 300*time.Millisecond {
			t.Errorf("it was there after %v", d)
		}
	}},
	{"cancellation", func(t *testing.T, s *site) {
		key := fresh()
		s.call(t, "/Svc/cancelOther", quote(key), "409")
		s.call(t, "/Obj/"+key+"/get", "", "7")
		key = fresh()
		id := s.send(t, "/Svc/block", quote(key))
		req, err := http.NewRequest(http.MethodPatch, s.server.Admin()+"/invocations/"+id+"/cancel", nil)
		if err != nil {
			t.Fatal(err)
		}
		if status, got, err := s.do(req); err != nil || status != 202 {
			t.Errorf("cancel: status %d, %s, %v", status, got, err)
		}
		req, err = http.NewRequest(http.MethodGet, s.server.Ingress()+"/restate/invocation/"+id+"/attach", nil)
		if err != nil {
			t.Fatal(err)
		}
		if status, got, err := s.do(req); err != nil || status != 409 {
			t.Errorf("attach: status %d, %s, %v", status, got, err)
		}
		s.call(t, "/Obj/"+key+"/get", "", "7")
	}},
	{"attach", func(t *testing.T, s *site) {
		id := s.send(t, "/Svc/sleep", "300")
		s.call(t, "/Svc/attach", quote(id), `"slept"`)
		s.get(t, s.server.Ingress()+"/restate/invocation/"+id+"/output", `"slept"`)
		s.call(t, "/Svc/attach", quote(id), `"slept"`)
	}},
	{"idempotency", func(t *testing.T, s *site) {
		s.call(t, "/Svc/idempotent", quote(fresh()), "[1,1]")
		token := fresh()
		for range 2 {
			s.call(t, "/Svc/once", quote(token), "1", "Idempotency-Key", token)
		}
		if s.l.v7 && s.kind == "perdure" { // others tell it only together with scopes
			want := `""`
			if s.version >= 7 {
				want = quote(token)
			}
			s.call(t, "/Svc/idempotencyKey", "", want, "Idempotency-Key", token)
		}
	}},
	{"state", func(t *testing.T, s *site) {
		o := "/Obj/" + fresh()
		s.call(t, o+"/get", "", "0")
		s.call(t, o+"/keys", "", "[]")
		s.call(t, o+"/add", "2", `{"old":0,"new":2}`)
		s.call(t, o+"/add", "3", `{"old":2,"new":5}`)
		s.call(t, o+"/get", "", "5")
		s.call(t, o+"/put", `{"name":"a","value":"x"}`, "")
		s.call(t, o+"/put", `{"name":"é \"q\"","value":""}`, "")
		s.call(t, o+"/keys", "", `["a","n","é \"q\""]`)
		s.call(t, o+"/read", `"é \"q\""`, `""`)
		s.call(t, o+"/clear", `"a"`, "")
		s.call(t, o+"/read", `"a"`, `"none"`)
		s.call(t, o+"/keys", "", `["n","é \"q\""]`)
		s.call(t, o+"/clearAll", "", "")
		s.call(t, o+"/keys", "", "[]")
		s.call(t, o+"/get", "", "0")
		s.call(t, o+"/within", "", `["none","2"]`)
	}},
	{"exclusive", func(t *testing.T, s *site) {
		o := "/Obj/" + fresh()
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if status, got, err := s.post(s.server.Ingress()+o+"/slowAdd", "1"); err != nil || status != 200 {
					t.Errorf("status %d, %s, %v", status, got, err)
				}
			})
		}
		all.Wait()
		s.call(t, o+"/get", "", "10")
	}},
	{"workflow", func(t *testing.T, s *site) {
		key := fresh()
		f := "/Flow/" + key
		s.call(t, f+"/status", "", `"none"`)
		id := s.send(t, f+"/run", `"in"`)
		poll(t, "the workflow waits", func() error {
			if _, got, err := s.post(s.server.Ingress()+f+"/status", ""); err != nil || got != `"waiting"` {
				return fmt.Errorf("status is %s, %v", got, err)
			}
			return nil
		})
		s.call(t, f+"/peek", "", `"none"`)
		s.call(t, f+"/resolve", `"v"`, "")
		s.call(t, f+"/peek", "", `"v"`)
		s.output(t, id, `"in:v"`)
		s.get(t, s.server.Ingress()+"/restate/workflow"+f+"/attach", `"in:v"`)
		s.call(t, f+"/status", "", `"done"`)
		if again := s.send(t, f+"/run", `"in"`); again != id {
			t.Errorf("sent again it is %s, not %s", again, id)
		}
		f = "/Flow/" + fresh()
		s.call(t, f+"/reject", `"no"`, "")
		s.fails(t, f+"/run", `"in"`, 500, "no")
		s.call(t, "/Svc/workflow", quote(fresh()), `"in:called"`)
	}},
}

// TestKill kills the program and the server in the middle of invocations. Each must come to its end, with each step counted once.
func TestKill(t *testing.T) {
	eachLanguage(t, func(t *testing.T, l *language) {
		for _, m := range modes {
			if m.requestResponse && !l.requestResponse || m.config[v7] != "" && !l.v7 {
				continue
			}
			t.Run(m.name, func(t *testing.T) {
				var env []string
				if m.requestResponse {
					env = append(env, "MODE=rr")
				}
				s := open(t, l, m.config, env...)
				const invocations, steps = 8, 25
				var keys, ids []string
				for range invocations {
					key := fresh()
					keys = append(keys, key)
					ids = append(ids, s.send(t, "/Svc/long", fmt.Sprintf(`{"key":%q,"n":%d}`, key, steps)))
				}
				reaches := func(n int) {
					t.Helper()
					poll(t, fmt.Sprintf("step %d", n), func() error {
						_, got, err := s.post(s.server.Ingress()+"/Obj/"+keys[0]+"/get", "")
						var at int
						if err == nil {
							err = json.Unmarshal([]byte(got), &at)
						}
						if err == nil && at < n {
							err = fmt.Errorf("at %d", at)
						}
						return err
					})
				}
				reaches(4)
				s.end.kill()
				s.end.start(t)
				reaches(10)
				s.server.Kill()
				if err := s.server.Restart(); err != nil {
					t.Fatal(err)
				}
				reaches(16)
				s.server.Kill()
				s.end.kill()
				s.end.start(t)
				if err := s.server.Restart(); err != nil {
					t.Fatal(err)
				}
				for i := range ids {
					s.output(t, ids[i], fmt.Sprint(steps))
					s.call(t, "/Obj/"+keys[i]+"/get", "", fmt.Sprint(steps))
				}
			})
		}
	})
}

// TestIdentity: a program that knows the server's key answers the server and nobody else.
func TestIdentity(t *testing.T) {
	eachLanguage(t, func(t *testing.T, l *language) {
		newKey := func() (file, public string) {
			_, key, err := ed25519.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			der, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				t.Fatal(err)
			}
			text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
			signer, err := identity.New(text, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			file = filepath.Join(t.TempDir(), "key.pem")
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
			return file, signer.KeyID()
		}
		file, public := newKey()
		s := open(t, l, map[string]string{"WORKER__INVOKER__REQUEST_IDENTITY_PRIVATE_KEY_PEM_FILE": file}, "IDENTITY_KEY="+public)
		s.call(t, "/Svc/greet", `"Ada"`, `"Hello, Ada!"`)
		s.call(t, "/Svc/gather", "5", "20")

		_, other := newKey()
		stranger := l.serve(t, "IDENTITY_KEY="+other)
		status, body, err := s.post(s.server.Admin()+"/deployments", fmt.Sprintf(`{"uri":%q,"force":true}`, stranger.url()))
		if err != nil || status/100 == 2 || !strings.Contains(body, "401") {
			t.Errorf("a program that knows another key was registered: status %d, %s, %v", status, body, err)
		}
	})
}
