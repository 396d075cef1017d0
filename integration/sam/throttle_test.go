package sam

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"perdure/integration/harness"
	"perdure/integration/lambdaemu"
	"perdure/integration/services"
)

// TestThrottling queues 200 invocations at a function that may run 2 at once, in a server that has 8 slots for attempts and
// fails an invocation at its second counted failure. All must finish, and a service at a URL must not notice.
func TestThrottling(t *testing.T) {
	t.Parallel()
	onlyHere(t, "the reference server counts refused calls as attempts, so invocations fail here")
	const queued, room, slots = 200, 2, 8
	s := harness.Start(t, serverKind, map[string]string{
		"WORKER__INVOKER__CONCURRENT_INVOCATIONS_LIMIT": strconv.Itoa(slots),
		"DEFAULT_RETRY_POLICY__MAX_ATTEMPTS":            "2", "DEFAULT_RETRY_POLICY__ON_MAX_ATTEMPTS": "kill",
	})
	arn := deploy(t, lambdaemu.Function{Concurrency: room, Env: []string{"FAULTY_RETRIES=server"}}, "own-narrow", faulty(t))
	register(t, s, map[string]any{"arn": arn})
	web, err := services.Start("127.0.0.1:0", services.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	register(t, s, map[string]any{"uri": web.URL})
	for range 10 { // connections and code paths are warm on both sides of the comparison
		call[string](t, s, "/Greeter/greet", "Ada")
	}
	before := latencies(t, s, 50)

	// However slow the machine queues them, none runs before all are there: else one could be over before the next begins.
	all := make(chan struct{})
	queue := sync.OnceFunc(func() { close(all) })
	defer queue()
	emulator.SetFault(func(c lambdaemu.Call) lambdaemu.Fault {
		if c.Function == prefix+"own-narrow" && strings.HasPrefix(c.Path, "/invoke/") {
			<-all
		}
		return lambdaemu.Fault{}
	})
	defer emulator.SetFault(nil)
	var ids []string
	for i := range queued {
		ids = append(ids, send(t, s, "/Faulty/Work", i))
	}
	queue()
	began := time.Now()
	ran := func() int { return len(invokes("own-narrow")) - emulator.Stats(prefix+"own-narrow").Throttles }
	var during []time.Duration
	passed := 0 // the most that ran during one call of the other service
	for range 50 {
		done := ran()
		during = append(during, latencies(t, s, 1)...)
		passed = max(passed, ran()-done)
	}
	attach(t, s, ids)
	took := time.Since(began)

	st := emulator.Stats(prefix + "own-narrow")
	t.Logf("200 invocations took %s, throttled %d times by the API, at most %d ran at once; the other service answered in %s before and %s meanwhile (median), %s and %s (worst)",
		took.Round(time.Millisecond), st.Throttles, st.Peak, median(before), median(during), slices.Max(before), slices.Max(during))
	if n := len(invokes("own-narrow")); st.Peak != room || n-st.Throttles != queued {
		t.Errorf("%d calls, %+v: each invocation must have run once", n, st)
	}
	if st.Throttles == 0 {
		t.Error("nothing was throttled, so nothing was tested")
	}
	// Attempts that wait for the throttled function in a slot would hold the others up for seconds, while many of them run. A busy
	// machine slows both down.
	if slowest := slices.Max(during); slowest > time.Second+4*slices.Max(before) && passed > 10 {
		t.Errorf("the other service took up to %s while the function was throttled, %s before; %d throttled invocations ran during one such call", slowest, slices.Max(before), passed)
	}
}

// TestConcurrencyOption: a deployment's own limit is kept, so Lambda need not refuse anything.
func TestConcurrencyOption(t *testing.T) {
	t.Parallel()
	onlyHere(t, "the reference server has no such option")
	s := harness.Start(t, serverKind, nil)
	// None is over before all are there and two run, however slow the machine is.
	running, open := make(chan struct{}, 2), make(chan struct{})
	gate := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		select {
		case running <- struct{}{}:
		default: // enough is known
		}
		<-open
	}))
	defer gate.Close()
	pass := sync.OnceFunc(func() { close(open) })
	defer pass()
	arn := deploy(t, lambdaemu.Function{Concurrency: 10, Timeout: 2 * patience, Env: []string{"FAULTY_GATE=" + gate.URL}}, "own-capped", faulty(t))
	if _, failed, code := cli(t, s, "deployments", "register", "--lambda", arn, "--concurrency", "2"); code != 0 {
		t.Fatal(failed)
	}
	var ids []string
	for i := range 20 {
		ids = append(ids, send(t, s, "/Faulty/Work", i))
	}
	for range 2 {
		select {
		case <-running:
		case <-time.After(patience):
			t.Fatal("no two invocations run at once")
		}
	}
	pass()
	attach(t, s, ids)
	if st := emulator.Stats(prefix + "own-capped"); st.Peak != 2 || st.Throttles != 0 || len(invokes("own-capped")) != 20 {
		t.Errorf("%d calls, %+v", len(invokes("own-capped")), st)
	}
}

// attach waits for the ends of invocations of Work, the first of which got 0, the next 1 and so on.
func attach(t *testing.T, s *harness.Server, ids []string) {
	t.Helper()
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			status, b, err := request(t.Context(), "GET", s.Ingress()+"/restate/invocation/"+id+"/attach", nil)
			if err != nil || status != 200 || strings.TrimSpace(string(b)) != strconv.Itoa(i) {
				t.Errorf("invocation %d: %d %s %v", i, status, b, err)
			}
		})
	}
	wg.Wait()
}

func latencies(t *testing.T, s *harness.Server, n int) []time.Duration {
	t.Helper()
	var all []time.Duration
	for i := range n {
		began := time.Now()
		if got := call[string](t, s, "/Greeter/greet", fmt.Sprint("Ada", i)); got == "" {
			t.Fatal("no greeting")
		}
		all = append(all, time.Since(began))
	}
	return all
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2].Round(10 * time.Microsecond)
}
