package sam

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"perdure/integration/harness"
	"perdure/integration/lambdaemu"
)

// invocation is what operators see of one.
type invocation struct {
	Status      string
	Attempts    int
	NextAttempt string `json:"next_attempt_at"`
	Failure     *struct {
		Code    string `json:"error_code"`
		Message string
	} `json:"last_failure"`
}

func inspect(t *testing.T, s *harness.Server, id string) invocation {
	t.Helper()
	status, b, err := request(t.Context(), "GET", s.Admin()+"/perdure/invocations/"+id, nil)
	if err != nil || status != 200 {
		t.Fatalf("%s: %d %s %v", id, status, b, err)
	}
	var v invocation
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return v
}

func kill(t *testing.T, s *harness.Server, id string) {
	t.Helper()
	if status, b, err := request(t.Context(), "PATCH", s.Admin()+"/invocations/"+id+"/kill", nil); err != nil || status/100 != 2 {
		t.Errorf("kill %s: %d %s %v", id, status, b, err)
	}
}

// onlyHere ends a test that needs what only Perdure shows.
func onlyHere(t *testing.T, why string) {
	t.Helper()
	if serverKind != "perdure" {
		t.Skip(why)
	}
}

// TestOperatorMessages provokes each class of failure of an attempt and reads what an operator is told.
func TestOperatorMessages(t *testing.T) {
	onlyHere(t, "the reference server does not show invocations at this path")
	s := server(t)
	bootstrap := faulty(t)
	arn := deploy(t, lambdaemu.Function{}, "own-failures", bootstrap)
	register(t, s, map[string]any{"arn": arn})
	fault := func(f lambdaemu.Fault) func() {
		return func() {
			emulator.SetFault(func(c lambdaemu.Call) lambdaemu.Fault {
				if c.Function == prefix+"own-failures" {
					return f
				}
				return lambdaemu.Fault{}
			})
		}
	}
	for _, x := range []struct {
		name    string
		prepare func()
		code    string
		says    []string
	}{
		{"throttled by the API", fault(lambdaemu.Fault{Throttle: true, RetryAfter: 2 * time.Second}), "RT0010", []string{"throttled", "Rate Exceeded"}},
		{"internal error", fault(lambdaemu.Fault{Internal: true}), "RT0010", []string{"ServiceException"}},
		{"connection lost before", fault(lambdaemu.Fault{DropBefore: true}), "RT0010", []string{"connection reset", "EOF"}},
		{"connection lost after", fault(lambdaemu.Fault{DropAfter: true}), "RT0010", []string{"connection reset", "EOF"}},
		{"crash", fault(lambdaemu.Fault{Crash: true}), "RT0010", []string{"function error", "Runtime.ExitError", "signal: killed", "see the function's log"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			x.prepare()
			defer emulator.SetFault(nil)
			checkFailure(t, s, send(t, s, "/Faulty/Echo", x.name), x.code, arn, x.says)
		})
	}
	// A function that goes wrong itself is a new version: the service's next invocations go there.
	for _, x := range []struct {
		mode string
		says []string
	}{
		{"error", []string{"function error", "the table is gone"}},
		{"panic", []string{"function error", "the table is gone"}},
		{"exit", []string{"function error", "exit status 137", "see the function's log"}},
		{"hang", []string{"function error", "Task timed out after 1.00 seconds", "raise the function's timeout"}},
		{"garbage", []string{"protocol error", "does it run an SDK endpoint?"}},
	} {
		t.Run(x.mode, func(t *testing.T) {
			bad := deploy(t, lambdaemu.Function{Env: []string{"FAULTY=" + x.mode}}, "own-"+x.mode, bootstrap)
			register(t, s, map[string]any{"arn": bad})
			if x.mode == "hang" { // what answers must not be late on a slow machine
				if err := emulator.SetTimeout(prefix+"own-hang", time.Second); err != nil {
					t.Fatal(err)
				}
			}
			checkFailure(t, s, send(t, s, "/Faulty/Echo", x.mode), "RT0010", bad, x.says)
		})
	}
	t.Run("payload too large", func(t *testing.T) {
		big := deploy(t, lambdaemu.Function{}, "own-big", bootstrap)
		register(t, s, map[string]any{"arn": big})
		id := send(t, s, "/Faulty/Big", 6<<20)
		var v invocation
		eventually(t, func() bool { v = inspect(t, s, id); return v.Status == "paused" },
			func() string { return fmt.Sprintf("it would fail the same way for ever, but is not paused: %+v", v) })
		checkFailure(t, s, id, "RT0003", big, []string{"too large", "Lambda takes 6291456", "use lazy state"})
	})
	t.Run("access lost", func(t *testing.T) {
		lost := deploy(t, lambdaemu.Function{}, "own-lost", bootstrap)
		register(t, s, map[string]any{"arn": lost})
		user := lambdaemu.User{AccessKeyID: "AKNODE", SecretAccessKey: "secret", ARN: nodeRole, Invoke: []string{prefix + "own-*:*"},
			AssumeRole: []string{"arn:aws:iam::" + account + ":role/invoke-*"}}
		defer emulator.AddUser(user)
		without := user
		without.Invoke = nil
		emulator.AddUser(without)
		checkFailure(t, s, send(t, s, "/Faulty/Echo", "x"), "RT0010", lost, []string{"access denied", "needs lambda:InvokeFunction on " + lost})
	})
	t.Run("well again", func(t *testing.T) {
		if got := call[string](t, s, "/Faulty/Echo", "hello"); got != "hello" {
			t.Errorf("got %q", got)
		}
	})
}

// checkFailure waits for a failed attempt of an invocation and compares what is told of it.
func checkFailure(t *testing.T, s *harness.Server, id, code, arn string, says []string) {
	t.Helper()
	var v invocation
	defer kill(t, s, id)
	eventually(t, func() bool { v = inspect(t, s, id); return v.Failure != nil }, func() string { return fmt.Sprintf("no attempt failed: %+v", v) })
	t.Logf("%s %s: %s", v.Status, v.Failure.Code, v.Failure.Message)
	if v.Failure.Code != code {
		t.Errorf("code %s, want %s", v.Failure.Code, code)
	}
	for _, w := range append(says, arn) {
		if !strings.Contains(v.Failure.Message, w) {
			t.Errorf("nothing of %q in %s", w, v.Failure.Message)
		}
	}
}
