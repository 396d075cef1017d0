package model

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
	workers = flag.Int("model.workers", 64, "programs at once")
	killed  = flag.Int("model.kills", 12, "how often TestProgramsWithKills kills the server")
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

// bench is a server with the endpoints of all variants.
type bench struct {
	server    *harness.Server
	endpoints []*Endpoint
	driver    *Driver
	other     bool // not Perdure
}

func open(t *testing.T, config map[string]string) *bench {
	t.Helper()
	definition := os.Getenv("PERDURE_E2E_SERVER")
	if definition == "" {
		definition = "perdure"
	}
	w := NewWitness()
	b := &bench{server: harness.Start(t, definition, config), other: definition != "perdure"}
	for _, v := range Variants {
		ep, err := StartEndpoint(v, w)
		if err != nil {
			t.Fatal(err)
		}
		b.endpoints = append(b.endpoints, ep)
		t.Cleanup(func() {
			if err := ep.Close(); err != nil {
				t.Errorf("close endpoint: %v", err)
			}
		})
		register(t, b.server.Admin(), ep.URL)
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: *workers}}
	t.Cleanup(client.CloseIdleConnections)
	b.driver = &Driver{Ingress: b.server.Ingress(), Workers: *workers, Patience: 90 * time.Second, Witness: w, Client: client}
	b.server.WarmUp(t, http.MethodPost, "/"+Variants[0]+objects+"/warm-up/"+dump)
	return b
}

func register(t *testing.T, admin, uri string) {
	t.Helper()
	in, err := json.Marshal(map[string]any{"uri": uri})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(admin+"/deployments", "application/json", bytes.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if msg, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusCreated {
		t.Fatalf("register: %s: %s", resp.Status, msg)
	}
}

// generate makes n programs, or the one asked for, and what they must do.
func generate(t *testing.T, seed uint64, n int) (ps []*Program, want *Outcome) {
	t.Helper()
	want = NewWitness().outcome()
	for i := range n {
		if *only >= 0 && i != *only {
			continue
		}
		ps = append(ps, Generate(seed, i))
		want.merge(outcome(t, seed, i, NoFault))
	}
	return ps, want
}

// report shows the differences and the programs that are needed to understand them.
func report(t *testing.T, seed uint64, want, got *Outcome, exactly bool) {
	t.Helper()
	d := Compare(want, got, exactly)
	for i, line := range d {
		if i == 20 {
			t.Errorf("and %d more", len(d)-i)
			break
		}
		t.Error(line)
	}
	if len(d) > 0 {
		t.Logf("one program alone: -model.seed=%d -model.only=NUMBER (the number is the second part of a body's name)", seed)
		if *only >= 0 {
			t.Logf("the program: %s", value(Generate(seed, *only)))
		}
	}
}

// checkup asks the server's doctor: nothing may be stuck, and at the end, when idle is set, nothing may be left that has
// not ended. What does not stay so is no problem: where a disk or the processors are busy, an answer can be on its way for
// longer than the doctor takes for a moment, and a partition may be starting for up to a minute. Other servers than Perdure have
// none.
func (b *bench) checkup(t *testing.T, idle bool) (well bool) {
	t.Helper()
	begun := time.Now()
	for deadline := begun.Add(time.Minute); ; pause(t.Context(), 100*time.Millisecond) {
		var r struct {
			Healthy     bool
			Invocations map[string]int
			Problems    json.RawMessage
			Unexamined  json.RawMessage
		}
		resp, err := b.driver.Client.Get(b.server.Admin() + "/perdure/doctor")
		if err != nil {
			t.Errorf("ask the doctor: %v", err)
			return false
		}
		err = json.NewDecoder(resp.Body).Decode(&r)
		resp.Body.Close()
		if resp.StatusCode == http.StatusNotFound && b.other {
			return true
		}
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("ask the doctor: %s, %v", resp.Status, err)
			return false
		}
		late := time.Now().After(deadline)
		if !r.Healthy {
			found := fmt.Sprintf("the doctor finds problems: %.2000s, and could not examine partitions: %s", r.Problems, r.Unexamined)
			if late || len(r.Unexamined) == 0 && time.Since(begun) > 20*time.Second {
				t.Error(found)
				return false
			}
			t.Log(found)
			continue
		}
		delete(r.Invocations, "completed")
		if !idle || len(r.Invocations) == 0 {
			return true
		}
		if late {
			t.Errorf("invocations that no program has are left: %v", r.Invocations)
			return false
		}
	}
}

// TestPrograms runs programs against a server that nothing happens to.
func TestPrograms(t *testing.T) {
	t.Parallel()
	s := theSeed(t)
	ps, want := generate(t, s, *programs)
	b := open(t, nil)
	start := time.Now()
	stop := b.watch(t)
	answers, problems := b.driver.Run(t.Context(), ps)
	got := b.driver.Settle(t.Context(), want, answers, problems)
	checkups := stop()
	b.checkup(t, true)
	t.Logf("the doctor saw nothing wrong in %d checkups meanwhile", checkups)
	t.Logf("%d programs, %d invocations, %d steps, %d objects in %.1fs", len(ps), len(got.Ends), len(got.Runs), len(got.Objects), time.Since(start).Seconds())
	report(t, s, want, got, true)
}

// TestProgramsWithKills runs programs while the server, and now and then an endpoint, is killed.
func TestProgramsWithKills(t *testing.T) {
	s := theSeed(t)
	ps, want := generate(t, s, (*programs+2)/3)
	b := open(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	kills := make(chan int, 1)
	go func() { kills <- b.killAgain(ctx, t, s, max(len(ps) / *killed, 1)) }()
	start := time.Now()
	answers, problems := b.driver.Run(t.Context(), ps)
	cancel()
	n := <-kills
	got := b.driver.Settle(t.Context(), want, answers, problems)
	b.checkup(t, true)
	t.Logf("%d programs, %d invocations, %d kills in %.1fs", len(ps), len(got.Ends), n, time.Since(start).Seconds())
	report(t, s, want, got, false)
	if n < 3 && *only < 0 {
		t.Errorf("only %d kills: nothing is proven", n)
	}
}

// watch asks the doctor again and again, until it finds something or stop is called, which says how often it found nothing.
func (b *bench) watch(t *testing.T) (stop func() int) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int, 1)
	go func() {
		n := 0
		for ; ctx.Err() == nil && b.checkup(t, false); n++ {
			pause(ctx, time.Second)
		}
		done <- n
	}()
	return func() int {
		cancel()
		return <-done
	}
}

// killAgain kills the server, and now and then an endpoint, each time that some more programs are over, until ctx is
// done, and leaves all running.
func (b *bench) killAgain(ctx context.Context, t *testing.T, seed uint64, programs int) (kills int) {
	r := rand.New(rand.NewPCG(seed, 1<<40))
	for {
		for next := b.driver.Answered() + programs; b.driver.Answered() < next && ctx.Err() == nil; {
			pause(ctx, 5*time.Millisecond)
		}
		pause(ctx, time.Duration(r.Int64N(int64(50*time.Millisecond))))
		if ctx.Err() != nil {
			return kills
		}
		if r.IntN(3) == 0 {
			ep := b.endpoints[r.IntN(len(b.endpoints))]
			if err := ep.Close(); err != nil {
				t.Errorf("close endpoint: %v", err)
			}
			pause(ctx, time.Duration(r.Int64N(int64(200*time.Millisecond))))
			if err := ep.Restart(); err != nil {
				t.Error(err)
				return kills
			}
		}
		b.server.Kill()
		kills++
		if err := b.server.Restart(); err != nil {
			t.Error(err)
			return kills
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
