package e2e

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	restate "github.com/restatedev/sdk-go"
	"github.com/restatedev/sdk-go/server"

	"perdure/integration/services"
)

// TestNextDeploymentDrains: invocations in flight finish on the deployment where they began, new ones go to the new one,
// and the old one can be removed as soon as nothing needs it.
func TestNextDeploymentDrains(t *testing.T) {
	t.Parallel()
	prefix := name(t, "Ver")
	c := shared()
	deploy := func() *endpoint {
		mem := services.NewMemory()
		s, err := services.Start(address(t), services.Options{Prefix: prefix, Memory: mem, Suspend: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		id, err := c.register(map[string]any{"uri": s.URL})
		if err != nil {
			t.Fatal(err)
		}
		return &endpoint{client: c, prefix: prefix, id: id, memory: mem}
	}
	remove := func(e *endpoint) *answer {
		return c.adm(t, request{method: "DELETE", path: "/deployments/" + e.id})
	}
	one := deploy()
	token, key := fresh(t), fresh(t)
	running := one.send(t, one.path("Blocker", key, "hold"), token) // in an attempt
	one.awaitLines(t, token, 1)
	waiting := one.send(t, one.path("Awaiter", key, "hold"), nil) // suspended
	awakeable := one.awakeableID(t, key)
	stepped := fresh(t)
	replayed := one.send(t, one.path("Runner", "replayed"), stepped) // has a step behind it and is attempted again
	one.awaitCount(t, stepped, 1)
	check(t, remove(one), want{status: 501, empty: true}) // it is the only one

	two := deploy()
	if two.id == one.id {
		t.Fatalf("both deployments are %s", one.id)
	}
	fresh2 := fresh(t)
	other := two.send(t, two.path("Blocker", fresh(t), "hold"), fresh2)
	two.awaitLines(t, fresh2, 1)
	equal(t, "new invocations at the old deployment", len(one.lines(t, fresh2)), 0)
	check(t, remove(one), want{status: 501, empty: true}) // invocations are pinned to it
	two.open(t, fresh2)
	equal(t, "new invocation", decode[string](t, two.attach(t, other), 200), "done")

	one.open(t, token)
	equal(t, "running", decode[string](t, one.attach(t, running), 200), "done")
	check(t, one.in(t, request{path: "/restate/awakeables/" + awakeable + "/resolve", body: `"it"`}), want{status: 202})
	equal(t, "suspended", decode[services.Outcome](t, one.attach(t, waiting), 200).Failure, (*services.Failure)(nil))
	equal(t, "with a step", decode[services.Executed](t, one.attach(t, replayed), 200).Executions, 1)
	equal(t, "attempts of old invocations at the new deployment", len(two.lines(t, token))+two.count(t, stepped+"/attempt"), 0)

	if differs(t, "drained-delete") {
		return
	}
	check(t, remove(one), want{status: 202, empty: true})
	check(t, c.adm(t, request{method: "GET", path: "/deployments/" + one.id}), want{status: 404})
	equal(t, "a call afterwards", call[string](t, two, two.path("Greeter", "greet"), "Ada"), "Hello, Ada!")
	// What it ended with is still there.
	equal(t, "result", decode[string](t, two.attach(t, running), 200), "done")
}

// changing is a service whose code can be changed under its invocations.
type changing struct {
	name string
	code atomic.Int32 // 0: what invocations begin with; 1: what does not fit their journals
	mem  *services.Memory
}

// start serves it with an endpoint of its own.
func (s *changing) start(t *testing.T, policy ...restate.InvocationRetryPolicyOption) (url string) {
	t.Helper()
	svc := restate.NewService(s.name, restate.WithInactivityTimeout(0), restate.WithInvocationRetryPolicy(policy...)).
		Handler("h", restate.NewServiceHandler(s.handle))
	h, err := server.NewRestate().WithLogger(slog.DiscardHandler, false).Bind(svc).Handler()
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", address(t))
	if err != nil {
		t.Fatal(err)
	}
	var protos http.Protocols
	protos.SetHTTP1(true)
	protos.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: h, Protocols: &protos, ReadHeaderTimeout: patience}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return "http://" + ln.Addr().String()
}

func (s *changing) handle(ctx restate.Context, token string) (string, error) {
	if s.code.Load() == 1 {
		s.mem.Count(misfits(token))
		if err := restate.Sleep(ctx, time.Hour, restate.WithName("nap")); err != nil {
			return "", err
		}
	}
	v, err := restate.Run(ctx, func(restate.RunContext) (string, error) {
		s.mem.Count(token)
		return "first", nil
	}, restate.WithName("step"))
	if err != nil {
		return "", err
	}
	a := restate.Awakeable[string](ctx)
	s.mem.Note(token, a.Id())
	w, err := a.Result()
	return v + " " + w, err
}

// misfits is what counts the attempts of code that does not fit the journal.
func misfits(token string) string { return token + "/misfits" }

// TestNextJournalMismatch: code that changed under an invocation is found out, and told with what was expected and what
// came; the invocation waits as its policy says, and goes on where the code fits.
func TestNextJournalMismatch(t *testing.T) {
	t.Parallel()
	quickly := []restate.InvocationRetryPolicyOption{restate.WithInitialRetryInterval(20 * time.Millisecond), restate.WithMaxRetryInterval(50 * time.Millisecond)}
	for name, policy := range map[string][]restate.InvocationRetryPolicyOption{
		"pause":    append([]restate.InvocationRetryPolicyOption{restate.WithMaxRetryAttempts(2), restate.PauseOnMaxAttempts()}, quickly...),
		"back off": append([]restate.InvocationRetryPolicyOption{restate.WithMaxRetryAttempts(10_000), restate.PauseOnMaxAttempts()}, quickly...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &changing{name: "Changing" + runID + strings.ReplaceAll(name, " ", ""), mem: services.NewMemory()}
			e := &endpoint{client: shared(), memory: s.mem}
			id1, err := e.register(map[string]any{"uri": s.start(t, policy...)})
			if err != nil {
				t.Fatal(err)
			}
			token := fresh(t)
			id := e.send(t, "/"+s.name+"/h", token)
			awakeable := e.awaitLines(t, token, 1)[0]
			e.becomes(t, id, "suspended") // so that no attempt of the old code can see it resolved
			s.code.Store(1)
			check(t, e.in(t, request{path: "/restate/awakeables/" + awakeable + "/resolve", body: `"second"`}), want{status: 202})
			e.mismatch(t, id, token, name, 2)
			equal(t, "executions of the step", e.count(t, token), 1)
			if name == "back off" {
				s.code.Store(0) // the code is put right in place
				check(t, e.attach(t, id), want{status: 200, json: `"first second"`})
				equal(t, "executions of the step", e.count(t, token), 1)
				return
			}
			// The code is put right in another deployment, to which the invocation is moved.
			right := &changing{name: s.name, mem: s.mem}
			id2, err := e.register(map[string]any{"uri": right.start(t, policy...)})
			if err != nil || id2 == id1 {
				t.Fatalf("%s: %v", id2, err)
			}
			check(t, e.end(t, id, "resume"), want{status: 200, empty: true}) // there it fails again
			e.mismatch(t, id, token, name, 4)
			check(t, e.end(t, id, "resume?deployment="+id2), want{status: 200, empty: true})
			check(t, e.attach(t, id), want{status: 200, json: `"first second"`})
			equal(t, "executions of the step", e.count(t, token), 1)
			if target.kind == "perdure" {
				equal(t, "deployment", e.inspect(t, id).Deployment, id2)
			}
		})
	}
}

// mismatch waits until so many attempts have not fitted, the mismatch is reported and the invocation waits as it should.
func (e *endpoint) mismatch(t *testing.T, id, token, policy string, attempts int) {
	t.Helper()
	e.awaitCount(t, misfits(token), attempts)
	if policy == "pause" {
		e.becomes(t, id, "paused")
		equal(t, "attempts that did not fit", e.count(t, misfits(token)), attempts)
	}
	if target.kind != "perdure" { // nothing more can be seen everywhere
		return
	}
	status := map[string]string{"pause": "paused", "back off": "backing-off"}[policy]
	var i info
	poll(t, "a journal mismatch", func() error {
		i = e.inspect(t, id)
		if i.Status != status || i.LastFailure == nil {
			return fmt.Errorf("%+v", i)
		}
		for _, ev := range i.Events {
			if ev.Type == "TransientError" && ev.Failure != nil && ev.Failure.ErrorCode == "RT0016" {
				return nil
			}
		}
		return fmt.Errorf("no event tells of it: %+v", i.Events)
	})
	f := i.LastFailure
	if f.Code != 570 || f.ErrorCode != "RT0016" || !strings.Contains(f.Message, "run") && !strings.Contains(f.Message, "Run") || !strings.Contains(strings.ToLower(f.Message), "sleep") {
		t.Errorf("the failure is %+v, want one that names the expected run and the sleep that came", f)
	}
	if f.Command == nil || f.Command.Index != 1 {
		t.Errorf("the failure is about command %+v, want 1", f.Command)
	}
}
