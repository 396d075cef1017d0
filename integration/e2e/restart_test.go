package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"perdure/integration/harness"
	"perdure/integration/services"
)

// ownServer starts a server for one test, which may then kill and restart it.
func ownServer(t *testing.T, config map[string]string) (*harness.Server, *endpoint) {
	t.Helper()
	if target.server == nil {
		t.Skip("the server under test was started by somebody else, so it cannot be restarted from here")
	}
	config, err := inMode(config)
	if err != nil {
		t.Fatal(err)
	}
	s := harness.Start(t, target.kind, config)
	c := newClient(s.Ingress(), s.Admin())
	if err := settle(c); err != nil {
		t.Fatal(err)
	}
	mem := services.NewMemory()
	sv, err := services.Start("127.0.0.1:0", services.Options{Prefix: "Own", Memory: mem})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sv.Close() })
	id, err := c.register(map[string]any{"uri": sv.URL})
	if err != nil {
		t.Fatal(err)
	}
	return s, &endpoint{client: c, prefix: "Own", id: id, memory: mem}
}

// TestRestart: nothing that was accepted is lost by a crash or by a polite stop, and nothing happens twice.
func TestRestart(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(*harness.Server){
		"kill": (*harness.Server).Kill,
		"stop": func(s *harness.Server) {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			s.Stop(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, e := ownServer(t, nil)
			restarts(t, s, e, func() {
				stop(s)
				if pid := s.Pid(); pid != 0 {
					t.Fatalf("the server still runs as %d", pid)
				}
				if err := s.Restart(); err != nil {
					t.Fatal(err)
				}
				if err := settle(e.client); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func restarts(t *testing.T, s *harness.Server, e *endpoint, restart func()) {
	key, ik, gate := fresh(t), fresh(t), fresh(t)
	add := request{path: e.path("Counter", key, "add"), body: "5", header: map[string]string{"Idempotency-Key": ik}}
	first := e.in(t, add)
	check(t, first, want{status: 200, json: `{"old":0,"new":5}`})

	awaitKey := fresh(t)
	awaiting := e.send(t, e.path("Awaiter", awaitKey, "hold"), nil)
	awakeable := e.awakeableID(t, awaitKey)
	sleeping := e.send(t, e.path("Sleeper", "sleep"), 1500)
	delayed := decode[sent](t, e.in(t, request{path: e.path("Greeter", "greet") + "/send?delay=1500ms", body: `"late"`}), 202).InvocationID
	far := decode[sent](t, e.in(t, request{path: e.path("Greeter", "greet") + "/send?delay=1h", body: `"never"`}), 202).InvocationID
	holding := e.send(t, e.path("Fifo", key, "holdPush"), gate)
	e.awaitLines(t, gate, 1)
	var queued []string
	for i := range 5 {
		queued = append(queued, e.send(t, e.path("Fifo", key, "push"), fmt.Sprint(i)))
	}
	treeToken := fresh(t)
	tree := e.send(t, e.path("Blocker", key, "tree"), treeToken)
	e.awaitLines(t, treeToken+"/called", 1)

	restart()

	// The deployment and its services are still there.
	check(t, e.adm(t, request{method: "GET", path: "/deployments/" + e.id}), want{status: 200})
	check(t, e.in(t, add), want{status: 200, json: `{"old":0,"new":5}`, header: map[string]string{"x-restate-id": first.header.Get("x-restate-id"), "idempotency-expires": "<rfc3339o>"}})
	equal(t, "count", call[int](t, e, e.path("Counter", key, "get"), nil), 5)

	check(t, e.in(t, request{path: "/restate/awakeables/" + awakeable + "/resolve", body: `"it"`}), want{status: 202})
	equal(t, "awakeable", decode[services.Outcome](t, e.attach(t, awaiting), 200), services.Outcome{Output: json.RawMessage(`"it"`)})

	// The invocation that held the key runs again, and the queue behind it keeps its order.
	e.awaitLines(t, gate, 2)
	equal(t, "list while held", call[[]string](t, e, e.path("Fifo", key, "list"), nil), []string{})
	e.open(t, gate)
	equal(t, "holder", decode[int](t, e.attach(t, holding), 200), 1)
	for i, id := range queued {
		equal(t, "position", decode[int](t, e.attach(t, id), 200), i+2)
	}
	equal(t, "list", call[[]string](t, e, e.path("Fifo", key, "list"), nil), []string{gate, "0", "1", "2", "3", "4"})

	equal(t, "sleep", decode[string](t, e.attach(t, sleeping), 200), "slept")
	equal(t, "delayed send", decode[string](t, e.attach(t, delayed), 200), "Hello, late!")
	check(t, e.in(t, request{method: "GET", path: "/restate/invocation/" + far + "/output"}), want{status: 470})

	// The tree lives and can be cancelled as before. Its child's step may run a second time: the server may have died
	// between the execution, which the test waited for, and the record of it.
	check(t, e.end(t, tree, "cancel"), want{status: 202})
	check(t, e.attach(t, tree), want{status: 409})
	var lines []string
	poll(t, "the child cleans up", func() error {
		if lines = e.lines(t, treeToken+"/called"); lines[len(lines)-1] != "cleanup" {
			return fmt.Errorf("its steps are %q", lines)
		}
		return nil
	})
	if n := len(lines); n > 3 || lines[n-2] != "enter" {
		t.Errorf("steps of the child: %q", lines)
	}
}

// TestServerOptions: options of the server apply where the deployment says nothing.
func TestServerOptions(t *testing.T) {
	t.Parallel()
	_, e := ownServer(t, map[string]string{"WORKER__INVOKER__INACTIVITY_TIMEOUT": "0s", "WORKER__INVOKER__DISABLE_EAGER_STATE": "true",
		"DEFAULT_RETRY_POLICY__INITIAL_INTERVAL": "20ms", "DEFAULT_RETRY_POLICY__MAX_INTERVAL": "100ms", "DEFAULT_RETRY_POLICY__MAX_ATTEMPTS": "3",
		"DEFAULT_RETRY_POLICY__ON_MAX_ATTEMPTS": "kill"})
	got := decode[struct {
		RetryPolicy json.RawMessage `json:"retry_policy"`
	}](t, e.adm(t, request{method: "GET", path: "/services/OwnGreeter"}), 200)
	if err := matchJSON(got.RetryPolicy, `{"initial_interval":"20ms","exponentiation_factor":2.0,"max_attempts":3,"max_interval":"100ms","on_max_attempts":"Kill"}`); err != nil {
		t.Error(err)
	}
	key := fresh(t)
	equal(t, "add", call[services.Added](t, e, e.path("Counter", key, "add"), 2), services.Added{Old: 0, New: 2})
	equal(t, "add", call[services.Added](t, e, e.path("Counter", key, "add"), 2), services.Added{Old: 2, New: 4})
	equal(t, "sleep", call[string](t, e, e.path("Sleeper", "sleep"), 100), "slept")
	equal(t, "chain", call[int](t, e, e.path("Caller", "chain"), 3), 3)
	token := fresh(t)
	equal(t, "step", call[services.Executed](t, e, e.path("Runner", "replayed"), token), services.Executed{Value: "v-" + token, Executions: 1})
}
