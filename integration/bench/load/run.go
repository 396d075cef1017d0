package load

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"perdure/integration/bench/hist"
)

// Config is how to run a load.
type Config struct {
	Addrs    []string // ingresses; worker i starts with Addrs[i % len]
	Conns    int      // closed loop: requests in flight; open loop: the most in flight
	Rate     float64  // requests per second; 0 for a closed loop
	H2C      bool
	Warmup   time.Duration
	Duration time.Duration
	Timeout  time.Duration // of one request
	MaxOps   uint64        // stop after this many operations (0: none)

	// Retry repeats an operation on another ingress until it succeeds or
	// RetryFor has passed. Only sensible with idempotency keys.
	Retry    bool
	RetryFor time.Duration

	// Gen makes the operation with a given sequence number. Check judges its
	// answer. Both are called from many goroutines.
	Gen   func(worker int, seq uint64) Op
	Check func(op *Op, status int, body []byte) error
	// OnSuccess, if set, is told of every success (with the time it took from
	// its intended start).
	OnSuccess func(op *Op, intended, end time.Time)
}

// Result is what a load came to.
type Result struct {
	Elapsed    time.Duration  `json:"elapsed_ns"`
	Ops        uint64         `json:"ops"`        // successes that ended within the window
	Throughput float64        `json:"throughput"` // Ops / Elapsed
	Errors     uint64         `json:"errors"`     // failures and wrong answers, whole run
	Retries    uint64         `json:"retries"`
	AllOps     uint64         `json:"all_ops"` // successes, warm-up and tail included
	Unknown    uint64         `json:"unknown"` // attempts without an answer (may or may not have happened)
	Issued     uint64         `json:"issued"`  // operations begun
	Backlog    uint64         `json:"backlog"` // open loop: arrivals that found no free connection in time
	Latency    *hist.H        `json:"latency"` // from the intended start
	ErrKinds   map[string]int `json:"err_kinds,omitempty"`
	Gap        time.Duration  `json:"gap_ns"` // longest time without any success in the window
	FirstErr   string         `json:"first_err,omitempty"`
}

type workerState struct {
	h        *hist.H
	ops, all uint64
	errs     uint64
	retries  uint64
	unknown  uint64
	kinds    map[string]int
	firstErr string
	_        [64]byte
}

// Run runs a load to its end.
func Run(cfg Config) *Result {
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	if cfg.Conns == 0 {
		cfg.Conns = 1
	}
	start := time.Now()
	begin := start.Add(cfg.Warmup)
	end := begin.Add(cfg.Duration)

	var seq atomic.Uint64
	var stop atomic.Bool
	var pool *H2Pool
	if cfg.H2C {
		pool = NewH2Pool()
		defer pool.tr.CloseIdleConnections()
	}
	mk := func(addr string) Client {
		if pool != nil {
			return pool.Client(addr)
		}
		return NewH1(addr)
	}

	// Successes in 10 ms slots, for the longest gap.
	slots := make([]atomic.Uint32, int(cfg.Duration/(10*time.Millisecond))+2)

	var arrivals chan time.Time
	var missed atomic.Uint64
	if cfg.Rate > 0 {
		arrivals = make(chan time.Time, 1<<16)
		go func() {
			// A thread of its own and nanosleep: the Go timers are too coarse.
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			gap := float64(time.Second) / cfg.Rate
			for i := 0; ; i++ {
				t := start.Add(time.Duration(float64(i) * gap))
				if t.After(end) || cfg.MaxOps > 0 && uint64(i) >= cfg.MaxOps {
					close(arrivals)
					return
				}
				if d := time.Until(t); d > 0 {
					ts := syscall.NsecToTimespec(int64(d))
					syscall.Nanosleep(&ts, nil)
				}
				select {
				case arrivals <- t:
				default:
					missed.Add(1)
				}
			}
		}()
	}

	ws := make([]workerState, cfg.Conns)
	var wg sync.WaitGroup
	for i := range ws {
		wg.Add(1)
		go func() {
			defer wg.Done()
			w := &ws[i]
			w.h = hist.New()
			w.kinds = map[string]int{}
			at := i % len(cfg.Addrs)
			clients := make([]Client, len(cfg.Addrs))
			defer func() {
				for _, c := range clients {
					if c != nil {
						c.Close()
					}
				}
			}()
			for !stop.Load() {
				var intended time.Time
				if arrivals != nil {
					t, ok := <-arrivals
					if !ok {
						return
					}
					intended = t
				} else {
					intended = time.Now()
					if !intended.Before(end) {
						return
					}
				}
				n := seq.Add(1) - 1
				if cfg.MaxOps > 0 && n >= cfg.MaxOps {
					return
				}
				op := cfg.Gen(i, n)
				op.Seq, op.Worker = n, i
				tries := 0
				for {
					if clients[at] == nil {
						clients[at] = mk(cfg.Addrs[at])
					}
					st, body, err := clients[at].Do(&op, cfg.Timeout)
					if err == nil {
						err = cfg.Check(&op, st, body)
						if err != nil && st >= 500 {
							w.unknown++
						}
					} else {
						w.unknown++
					}
					done := time.Now()
					if err == nil {
						w.all++
						if !done.Before(begin) && done.Before(end) {
							w.ops++
							slots[int(done.Sub(begin)/(10*time.Millisecond))].Add(1)
						}
						if !intended.Before(begin) && intended.Before(end) {
							w.h.Record(done.Sub(intended))
						}
						if cfg.OnSuccess != nil {
							cfg.OnSuccess(&op, intended, done)
						}
						break
					}
					k := kind(st, err)
					w.kinds[k]++
					if w.firstErr == "" {
						w.firstErr = err.Error()
					}
					if !cfg.Retry {
						w.errs++
						if st == 0 { // not answered: do not spin on a dead server
							time.Sleep(5 * time.Millisecond)
						}
						break
					}
					if done.Sub(intended) > cfg.RetryFor {
						w.errs++
						break
					}
					w.retries++
					tries++
					at = (at + 1) % len(cfg.Addrs)
					time.Sleep(min(time.Duration(tries)*5*time.Millisecond, 50*time.Millisecond))
				}
			}
		}()
	}
	wg.Wait()

	r := &Result{Elapsed: cfg.Duration, Latency: hist.New(), ErrKinds: map[string]int{}}
	if cfg.MaxOps > 0 && time.Now().Before(end) {
		r.Elapsed = time.Since(begin)
	}
	for i := range ws {
		w := &ws[i]
		r.Ops += w.ops
		r.AllOps += w.all
		r.Errors += w.errs
		r.Retries += w.retries
		r.Unknown += w.unknown
		r.Latency.Merge(w.h)
		for k, n := range w.kinds {
			r.ErrKinds[k] += n
		}
		if r.FirstErr == "" {
			r.FirstErr = w.firstErr
		}
	}
	r.Issued = seq.Load()
	if cfg.MaxOps > 0 {
		r.Issued = min(r.Issued, cfg.MaxOps)
	}
	r.Backlog = missed.Load()
	r.Throughput = float64(r.Ops) / r.Elapsed.Seconds()
	run := 0
	for i := range int(r.Elapsed / (10 * time.Millisecond)) {
		if slots[i].Load() == 0 {
			run++
			if g := time.Duration(run) * 10 * time.Millisecond; g > r.Gap {
				r.Gap = g
			}
		} else {
			run = 0
		}
	}
	return r
}

func kind(status int, err error) string {
	if status != 0 {
		return fmt.Sprintf("http %d", status)
	}
	s := err.Error()
	for _, k := range []string{"refused", "reset", "EOF", "timeout", "broken pipe"} {
		if strings.Contains(s, k) {
			return k
		}
	}
	return "other"
}
