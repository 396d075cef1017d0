package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"perdure/integration/harness"
)

var (
	duration = flag.Duration("chaos.for", 9*time.Second, "how long the load runs")
	seed     = flag.Uint64("chaos.seed", 0, "seed of the load and of the kills (0: a new one)")
	workers  = flag.Int("chaos.workers", 16, "operations in flight")
)

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	harness.Cleanup()
	if code == 0 {
		if err := goleak.Find(goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func register(t *testing.T, admin, uri string) {
	t.Helper()
	b, err := json.Marshal(map[string]any{"uri": uri})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(admin+"/deployments", "application/json", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if msg, _ := io.ReadAll(resp.Body); resp.StatusCode != 201 {
		t.Fatalf("register: %s: %s", resp.Status, msg)
	}
}

// TestKills runs the load while the server and the endpoint are killed again and again. The server is the one that
// PERDURE_E2E_SERVER names, by default a Perdure built from this module.
func TestKills(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("seed %d (repeat with -chaos.seed=%d)", *seed, *seed)
	definition := os.Getenv("PERDURE_E2E_SERVER")
	if definition == "" {
		definition = "perdure"
	}
	s := harness.Start(t, definition, nil)
	ledger := NewLedger()
	ep, err := StartEndpoint(ledger)
	if err != nil {
		t.Fatal(err)
	}
	defer ep.Close()
	register(t, s.Admin(), ep.URL)

	l := &Load{Ingress: s.Ingress(), Seed: *seed, Workers: *workers, Keys: 8, Patience: 60 * time.Second}
	s.WarmUp(t, http.MethodGet, "/Account/warm-up/get")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	histories := make(chan *History, 1)
	go func() { histories <- l.Run(ctx, ledger) }()
	servers, endpoints := killAgain(t, l, s, ep)
	cancel()
	h := <-histories
	t.Logf("%d operations done; server killed %d times, endpoint %d times; %d steps executed more than once", h.Ops(), servers, endpoints, ledger.Repeated())
	l.Settle(h)
	for _, bad := range Check(h) {
		t.Error(bad)
	}
}

// between is how many operations succeed at least between two kills of the server, however slow the machine is.
const between = 20

// killAgain kills the server, and now and then the endpoint, for as long as the load is to run and at least three times, and
// leaves both running.
func killAgain(t *testing.T, l *Load, s *harness.Server, ep *Endpoint) (servers, endpoints int) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(*seed, 1<<32))
	wait := func(d time.Duration) { pause(t.Context(), d) }
	for began := time.Now(); servers < 3 || time.Since(began) < *duration; servers++ {
		enough, deadline := l.Done()+between, time.Now().Add(l.Patience)
		wait(800*time.Millisecond + time.Duration(rnd.Int64N(int64(1500*time.Millisecond))))
		for ; l.Done() < enough; wait(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d operations in %s since the server was started", l.Done()-enough+between, l.Patience)
			}
		}
		if rnd.IntN(4) == 0 {
			if err := ep.Close(); err != nil {
				t.Errorf("close endpoint: %v", err)
			}
			wait(time.Duration(rnd.Int64N(int64(300 * time.Millisecond))))
			if err := ep.Restart(); err != nil {
				t.Fatal(err)
			}
			endpoints++
		}
		s.Kill()
		wait(time.Duration(rnd.Int64N(int64(200 * time.Millisecond))))
		if err := s.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	return servers, endpoints
}
