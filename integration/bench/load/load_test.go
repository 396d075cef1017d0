package load

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is an ingress that keeps counters and sinks in memory and can be told
// to misbehave.
type fake struct {
	mu     sync.Mutex
	n      map[string]int
	seen   map[string]string // idempotency key -> answer
	sink   map[string]int
	calls  int
	lose   int // acknowledge every lose-th effect without having it
	double int // have every double-th effect twice
	fail   int // answer every fail-th call 500 after having it
	noIdem bool
	wrong  bool // echo something else
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	p := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case p[0] == "Greeter":
		if f.wrong {
			b = append(b, '!')
		}
		w.Write(b)
	case p[0] == "Counter" && p[2] == "get":
		io.WriteString(w, strconv.Itoa(f.n[p[1]]))
	case p[0] == "Counter":
		idem := r.Header.Get("Idempotency-Key")
		if a, ok := f.seen[idem]; ok && idem != "" && !f.noIdem {
			io.WriteString(w, a)
			return
		}
		f.calls++
		before := f.n[p[1]]
		if f.lose == 0 || f.calls%f.lose != 0 {
			f.n[p[1]]++
		}
		if f.double != 0 && f.calls%f.double == 0 {
			f.n[p[1]]++
		}
		a := strconv.Itoa(before + 1)
		f.seen[idem] = a
		if f.fail != 0 && f.calls%f.fail == 0 {
			w.WriteHeader(500)
			return
		}
		io.WriteString(w, a)
	case p[0] == "Sink":
		f.calls++
		if f.lose == 0 || f.calls%f.lose != 0 {
			f.sink[string(b)]++
		}
		if f.double != 0 && f.calls%f.double == 0 {
			f.sink[string(b)]++
		}
		w.WriteHeader(202)
		fmt.Fprint(w, `{"invocationId":"x","status":"Accepted"}`)
	}
}

func (f *fake) stats() (map[string]any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	rep := 0
	for _, n := range f.sink {
		if n > 1 {
			rep++
		}
	}
	return map[string]any{"sink_distinct": float64(len(f.sink)), "sink_repeated": float64(rep)}, nil
}

func start(t *testing.T, f *fake) string {
	f.n, f.seen, f.sink = map[string]int{}, map[string]string{}, map[string]int{}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: f, Protocols: &p}
	go s.Serve(ln)
	t.Cleanup(func() { s.Close() })
	return ln.Addr().String()
}

func drive(t *testing.T, f *fake, workload string, mod func(*Config)) (*Result, error) {
	addr := start(t, f)
	inst := All[workload].Make(Params{Keys: 10, RunID: "t", Base: 1})
	cfg := Config{Addrs: []string{addr}, Conns: 4, Duration: time.Minute, MaxOps: 400, Gen: inst.Gen, Check: inst.Check, Timeout: 30 * time.Second}
	if mod != nil {
		mod(&cfg)
	}
	r := Run(cfg)
	if inst.Verify == nil {
		return r, nil
	}
	return r, inst.Verify(&VerifyEnv{Addrs: []string{addr}, Stats: f.stats}, r)
}

func TestRightServerPasses(t *testing.T) {
	for _, w := range []string{"greet", "counter", "counter-hot", "counter-idem", "send"} {
		for _, h2c := range []bool{false, true} {
			r, err := drive(t, &fake{}, w, func(c *Config) { c.H2C = h2c })
			if err != nil || r.Errors != 0 || r.AllOps != 400 || r.Latency.N() != 400 {
				t.Errorf("%s h2c=%v: %v, %d errors (%s), %d ops, %d latencies", w, h2c, err, r.Errors, r.FirstErr, r.AllOps, r.Latency.N())
			}
			if r.Gap > r.Elapsed {
				t.Errorf("%s h2c=%v: no success for %v in a load of %v", w, h2c, r.Gap, r.Elapsed)
			}
		}
	}
}

func TestLostEffectIsFound(t *testing.T) {
	if _, err := drive(t, &fake{lose: 50}, "counter", nil); err == nil {
		t.Error("lost counter effects were not found")
	}
}

func TestDoubledEffectIsFound(t *testing.T) {
	for _, w := range []string{"counter", "counter-idem", "send"} {
		if _, err := drive(t, &fake{double: 100}, w, nil); err == nil {
			t.Errorf("%s: doubled effects were not found", w)
		}
	}
}

func TestWrongEchoIsAnError(t *testing.T) {
	if r, _ := drive(t, &fake{wrong: true}, "greet", nil); r.Errors != 400 || r.Ops != 0 {
		t.Errorf("%d errors, %d ops", r.Errors, r.Ops)
	}
}

func TestRetriesWithIdempotencyKeysAreExact(t *testing.T) {
	retry := func(c *Config) { c.Retry, c.RetryFor = true, time.Minute }
	r, err := drive(t, &fake{fail: 10}, "counter-idem", retry)
	if err != nil || r.Errors != 0 || r.Retries == 0 {
		t.Errorf("%v, %d errors, %d retries", err, r.Errors, r.Retries)
	}
	if _, err := drive(t, &fake{fail: 10, noIdem: true}, "counter-idem", retry); err == nil {
		t.Error("a server that forgets idempotency keys passed")
	}
}

func TestUnknownOutcomesAreAllowedFor(t *testing.T) {
	r, err := drive(t, &fake{fail: 10}, "counter", nil)
	if err != nil || r.Errors == 0 {
		t.Errorf("%v, %d errors", err, r.Errors)
	}
}

func TestOpenLoopCountsFromTheIntendedStart(t *testing.T) {
	addr := start(t, &fake{})
	r := Run(Config{Addrs: []string{addr}, Conns: 1, Rate: 200, Duration: time.Second,
		Gen: func(_ int, seq uint64) Op {
			if seq == 0 { // a server that hangs at first
				<-time.After(300 * time.Millisecond)
			}
			return Op{Path: "/Greeter/greet", Body: []byte("x")}
		},
		Check: ok200})
	if p := r.Latency.Q(.9); p < 190*time.Millisecond { // 20 of 200 wait for longer than 200 ms
		t.Errorf("p90 %v hides the stall", p)
	}
	if r.AllOps != 201 || r.Latency.N() != 200 { // the last begins when the second is over
		t.Errorf("%d operations at 200/s for 1 s, %d of them measured", r.AllOps, r.Latency.N())
	}
}
