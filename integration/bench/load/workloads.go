package load

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Params are the knobs of a workload.
type Params struct {
	Keys  int // counters: number of keys
	N     int // steps, fan-out width, chain depth
	Size  int // bytes of payload or state
	Ms    int // sleep
	Conns int
	RunID string // makes idempotency keys and sink ids unique to a run
	Base  uint64 // first sink id
}

// Workload is one kind of work with its checks.
type Workload struct {
	Name string
	Desc string
	// PerOp is how many invocations one operation makes the server run.
	PerOp func(p Params) float64
	Make  func(p Params) Instance
}

// Instance is a workload being run.
type Instance struct {
	Gen   func(worker int, seq uint64) Op
	Check func(op *Op, status int, body []byte) error
	// Verify is called after the load, with what the load came to.
	Verify func(env *VerifyEnv, r *Result) error
}

// VerifyEnv is what a verification may use.
type VerifyEnv struct {
	Addrs []string
	Stats func() (map[string]any, error) // the endpoint's control port
}

func ok200(op *Op, st int, body []byte) error {
	if st != 200 && st != 202 {
		return fmt.Errorf("status %d: %.200s", st, body)
	}
	return nil
}

func one(Params) float64 { return 1 }

// counter checks that every add returned a value nobody else got, and at the
// end that the counters add up.
type counter struct {
	mu   []sync.Mutex
	seen []map[int64]bool
	dup  []int
}

func newCounter(keys int) *counter {
	c := &counter{mu: make([]sync.Mutex, keys), seen: make([]map[int64]bool, keys), dup: make([]int, keys)}
	for i := range c.seen {
		c.seen[i] = map[int64]bool{}
	}
	return c
}

func (c *counter) check(key int, st int, body []byte) error {
	if st != 200 {
		return fmt.Errorf("status %d: %.200s", st, body)
	}
	n, err := strconv.ParseInt(string(body), 10, 64)
	if err != nil {
		return fmt.Errorf("counter answered %.60q", body)
	}
	c.mu[key].Lock()
	if c.seen[key][n] {
		c.dup[key]++
		err = fmt.Errorf("value %d of key %d came twice", n, key)
	}
	c.seen[key][n] = true
	c.mu[key].Unlock()
	return err
}

// SumCounters reads every counter of the object type and adds them up.
func SumCounters(addrs []string, obj, prefix string, keys int) (int64, error) {
	var mu sync.Mutex
	var sum int64
	var first error
	var wg sync.WaitGroup
	next := make(chan int, keys)
	for i := 0; i < keys; i++ {
		next <- i
	}
	close(next)
	for w := 0; w < 16; w++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := NewH1(addrs[w%len(addrs)])
			defer c.Close()
			for i := range next {
				var st int
				var body []byte
				var err error
				for try := 0; try < 100; try++ {
					st, body, err = c.Do(&Op{Path: "/" + obj + "/" + prefix + strconv.Itoa(i) + "/get"}, 20*time.Second)
					if err == nil && st == 200 {
						break
					}
					time.Sleep(100 * time.Millisecond)
				}
				n := int64(0)
				if err == nil {
					if st != 200 {
						err = fmt.Errorf("get: status %d: %.200s", st, body)
					} else {
						n, err = strconv.ParseInt(string(body), 10, 64)
					}
				}
				mu.Lock()
				sum += n
				if err != nil && first == nil {
					first = err
				}
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	return sum, first
}

// bounded checks that the number of effects lies between the number known to
// have happened and that plus the number whose outcome is not known.
func bounded(what string, effects int64, r *Result) error {
	lo, hi := int64(r.AllOps), int64(r.AllOps+r.Unknown)
	switch {
	case effects < lo:
		return fmt.Errorf("%s: LOST %d effects (%d acknowledged, %d found)", what, lo-effects, lo, effects)
	case effects > hi:
		return fmt.Errorf("%s: DOUBLED %d effects (%d acknowledged, %d unknown, %d found)", what, effects-hi, lo, r.Unknown, effects)
	}
	return nil
}

func num(m map[string]any, k string) int64 {
	f, _ := m[k].(float64)
	return int64(f)
}

func counterWorkload(name, desc string, idem bool, keys func(p Params) int) Workload {
	return Workload{Name: name, Desc: desc, PerOp: one, Make: func(p Params) Instance {
		k := keys(p)
		c := newCounter(k)
		prefix := p.RunID + "-" // so that a second run on the same server starts from nothing
		paths := make([]string, k)
		for i := range paths {
			paths[i] = "/Counter/" + prefix + strconv.Itoa(i) + "/add"
		}
		return Instance{
			Gen: func(_ int, seq uint64) Op {
				op := Op{Path: paths[mix(seq)%uint64(k)], Body: []byte("1")}
				if idem {
					op.Idem = p.RunID + "-" + strconv.FormatUint(seq, 36)
				}
				return op
			},
			Check: func(op *Op, st int, body []byte) error { return c.check(int(mix(op.Seq)%uint64(k)), st, body) },
			Verify: func(env *VerifyEnv, r *Result) error {
				sum, err := SumCounters(env.Addrs, "Counter", prefix, k)
				if err != nil {
					return err
				}
				if idem && r.Errors == 0 && sum != int64(r.AllOps) {
					return fmt.Errorf("counters: %d acknowledged with idempotency keys, %d found", r.AllOps, sum)
				}
				return bounded("counters", sum, r)
			},
		}
	}}
}

// mix spreads sequence numbers over keys.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return x
}

// sinkVerify waits until all sends have arrived, and reports how long after
// the load's end that was.
func sinkVerify(per int) func(env *VerifyEnv, r *Result) error {
	return func(env *VerifyEnv, r *Result) error {
		want := int64(r.AllOps) * int64(per)
		deadline := time.Now().Add(120 * time.Second)
		for {
			s, err := env.Stats()
			if err != nil {
				return err
			}
			got := num(s, "sink_distinct")
			if got >= want {
				if rep := num(s, "sink_repeated"); rep > 0 {
					return fmt.Errorf("sends: %d of %d ran more than once", rep, got)
				}
				return bounded("sends", got/int64(per), r)
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("sends: LOST %d of %d after 2 minutes", want-got, want)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

func body(m map[string]any) []byte { b, _ := json.Marshal(m); return b }

func fixed(name, desc, path string, perOp func(Params) float64, in func(Params) []byte, want func(Params) []byte) Workload {
	return Workload{Name: name, Desc: desc, PerOp: perOp, Make: func(p Params) Instance {
		b, w := in(p), want(p)
		return Instance{
			Gen: func(int, uint64) Op { return Op{Path: path, Body: b} },
			Check: func(op *Op, st int, body []byte) error {
				if st != 200 {
					return fmt.Errorf("status %d: %.200s", st, body)
				}
				if w != nil && !bytes.Equal(body, w) {
					return fmt.Errorf("answered %.60q, want %.60q", body, w)
				}
				return nil
			},
		}
	}}
}

func itoa(n int) []byte { return strconv.AppendInt(nil, int64(n), 10) }

// All are the workloads, by name.
var All = func() map[string]Workload {
	m := map[string]Workload{}
	add := func(w Workload) { m[w.Name] = w }
	add(Workload{Name: "greet", Desc: "stateless echo, request and answer", PerOp: one, Make: func(p Params) Instance {
		pad := bytes.Repeat([]byte{'g'}, p.Size)
		return Instance{
			Gen: func(_ int, seq uint64) Op {
				b := append(strconv.AppendUint(make([]byte, 0, 20+len(pad)), seq, 10), pad...)
				return Op{Path: "/Greeter/greet", Body: b}
			},
			Check: func(op *Op, st int, body []byte) error {
				if st != 200 {
					return fmt.Errorf("status %d: %.200s", st, body)
				}
				if !bytes.Equal(body, op.Body) {
					return fmt.Errorf("echo answered %.60q to %.60q", body, op.Body)
				}
				return nil
			},
		}
	}})
	add(Workload{Name: "greet-idem", Desc: "stateless echo with an idempotency key each", PerOp: one, Make: func(p Params) Instance {
		return Instance{
			Gen: func(_ int, seq uint64) Op {
				return Op{Path: "/Greeter/greet", Body: strconv.AppendUint(nil, seq, 10), Idem: p.RunID + "-" + strconv.FormatUint(seq, 36)}
			},
			Check: func(op *Op, st int, body []byte) error {
				if st != 200 {
					return fmt.Errorf("status %d: %.200s", st, body)
				}
				if !bytes.Equal(body, op.Body) {
					return fmt.Errorf("echo answered %.60q to %.60q", body, op.Body)
				}
				return nil
			},
		}
	}})
	keys := func(p Params) int { return max(p.Keys, 1) }
	add(counterWorkload("counter", "virtual object get+set over many keys", false, keys))
	add(counterWorkload("counter-hot", "virtual object get+set, one key for all", false, func(Params) int { return 1 }))
	add(counterWorkload("counter-idem", "virtual object get+set with an idempotency key each", true, keys))
	add(Workload{Name: "store", Desc: "virtual object with a large state value, read and rewritten", PerOp: one, Make: func(p Params) Instance {
		b := body(map[string]any{"size": p.Size})
		return Instance{
			Gen: func(_ int, seq uint64) Op {
				return Op{Path: "/Store/s" + strconv.FormatUint(mix(seq)%uint64(max(p.Keys, 1)), 10) + "/update", Body: b}
			},
			Check: func(op *Op, st int, body []byte) error {
				if st != 200 || string(body) != "0" && string(body) != strconv.Itoa(p.Size) {
					return fmt.Errorf("status %d: %.100s", st, body)
				}
				return nil
			},
		}
	}})
	add(fixed("steps", "N durable steps one after the other", "/Steps/run", one,
		func(p Params) []byte { return body(map[string]any{"n": p.N, "size": p.Size}) },
		func(p Params) []byte { return itoa(p.N * p.Size) }))
	add(fixed("chain", "a call that calls, N deep", "/Chain/call", func(p Params) float64 { return float64(p.N + 1) },
		func(p Params) []byte { return body(map[string]any{"depth": p.N}) },
		func(p Params) []byte { return itoa(p.N) }))
	add(fixed("fan", "N calls at once, all awaited", "/Fan/call", func(p Params) float64 { return float64(p.N + 1) },
		func(p Params) []byte { return body(map[string]any{"n": p.N}) },
		func(p Params) []byte { return itoa(p.N) }))
	add(fixed("sleep", "durable sleep", "/Sleeper/sleep", one,
		func(p Params) []byte { return body(map[string]any{"ms": p.Ms}) },
		func(Params) []byte { return []byte("ok") }))
	add(fixed("awakeable", "awakeable, resolved by a one-way call", "/Awaker/self", func(Params) float64 { return 2 },
		func(Params) []byte { return nil },
		func(Params) []byte { return []byte("done") }))
	add(Workload{Name: "send", Desc: "one-way call through the ingress; done when all have run", PerOp: one, Make: func(p Params) Instance {
		return Instance{
			Gen: func(_ int, seq uint64) Op {
				return Op{Path: "/Sink/put/send", Body: strconv.AppendUint(nil, p.Base+seq, 10)}
			},
			Check:  ok200,
			Verify: sinkVerify(1),
		}
	}})
	add(Workload{Name: "fan-send", Desc: "one call that sends N one-way calls", PerOp: func(p Params) float64 { return float64(p.N + 1) }, Make: func(p Params) Instance {
		return Instance{
			Gen: func(_ int, seq uint64) Op {
				return Op{Path: "/Fan/send", Body: body(map[string]any{"n": p.N, "id": p.Base + seq*uint64(p.N)})}
			},
			Check:  ok200,
			Verify: sinkVerify(p.N),
		}
	}})
	add(mixed(m))
	return m
}()

// mixed is a bit of everything. What the whole came to is not verified, each answer is.
func mixed(all map[string]Workload) Workload {
	parts := []string{"greet", "greet-idem", "counter", "steps", "chain", "fan-send", "awakeable", "sleep"}
	return Workload{Name: "mixed", Desc: "a mix of " + strings.Join(parts, ", "), PerOp: func(p Params) (n float64) {
		for _, name := range parts {
			n += all[name].PerOp(p) / float64(len(parts))
		}
		return n
	}, Make: func(p Params) Instance {
		ins := make([]Instance, len(parts))
		for i, name := range parts {
			ins[i] = all[name].Make(p)
		}
		of := func(seq uint64) *Instance { return &ins[mix(seq^0x9e3779b9)%uint64(len(ins))] }
		return Instance{
			Gen:   func(worker int, seq uint64) Op { return of(seq).Gen(worker, seq) },
			Check: func(op *Op, status int, body []byte) error { return of(op.Seq).Check(op, status, body) },
		}
	}}
}
