package endpoint

import (
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"perdure/integration/bench/hist"
)

// stats is what the endpoint saw. Attempts may rightly exceed invocations
// after a crash; the harness judges that.
type stats struct {
	active   atomic.Int64 // attempts open now in Sleeper and Awaker
	attempts sync.Map     // handler -> *atomic.Int64

	mu       sync.Mutex
	sink     map[uint64]int // id -> times Sink.put ran
	done     map[uint64]int // id -> times Gated.put ran to its end
	lastSink time.Time
	lastDone time.Time
	started  map[string]bool // sleepers seen
	fired    int
	late     *hist.H
	lastFire time.Time
	awk      map[string]string // name -> awakeable id
}

// gate holds Gated.put handlers while it is closed.
type gate struct {
	mu sync.Mutex
	ch chan struct{} // guarded by mu; nil when open
}

func (s *stats) reset() {
	s.mu.Lock()
	s.sink = map[uint64]int{}
	s.done = map[uint64]int{}
	s.started = map[string]bool{}
	s.fired = 0
	s.late = hist.New()
	s.awk = map[string]string{}
	s.lastSink, s.lastDone, s.lastFire = time.Time{}, time.Time{}, time.Time{}
	s.mu.Unlock()
	s.attempts.Range(func(k, _ any) bool { s.attempts.Delete(k); return true })
}

func (s *stats) attempt(name string) {
	v, ok := s.attempts.Load(name)
	if !ok {
		v, _ = s.attempts.LoadOrStore(name, new(atomic.Int64))
	}
	v.(*atomic.Int64).Add(1)
}

func (s *stats) sinkSaw(in []byte) {
	id, _ := strconv.ParseUint(string(in), 10, 64)
	s.mu.Lock()
	s.sink[id]++
	s.lastSink = time.Now()
	s.mu.Unlock()
}

func (s *stats) gatedDone(in []byte) {
	id, _ := strconv.ParseUint(string(in), 10, 64)
	s.mu.Lock()
	s.done[id]++
	s.lastDone = time.Now()
	s.mu.Unlock()
}

func (s *stats) sleeperStarted(name string) {
	s.mu.Lock()
	s.started[name] = true
	s.mu.Unlock()
}

func (s *stats) sleeperFired(due time.Time) {
	now := time.Now()
	s.mu.Lock()
	s.fired++
	s.late.Record(now.Sub(due))
	s.lastFire = now
	s.mu.Unlock()
}

// wait blocks until the gate is open or ctxDone closes; it reports whether the gate opened.
func (g *gate) wait(ctxDone <-chan struct{}) bool {
	g.mu.Lock()
	ch := g.ch
	g.mu.Unlock()
	if ch == nil {
		return true
	}
	select {
	case <-ch:
		return true
	case <-ctxDone:
		return false
	}
}

// Control serves what the harness asks: /stats, /reset, /awakeables and /gate?closed=.
func (e *Endpoint) Control() http.Handler {
	stats, gate := &e.stats, &e.gate
	mux := http.NewServeMux()
	mux.HandleFunc("/stats", func(w http.ResponseWriter, r *http.Request) {
		out := map[string]any{"active": stats.active.Load()}
		at := map[string]int64{}
		stats.attempts.Range(func(k, v any) bool { at[k.(string)] = v.(*atomic.Int64).Load(); return true })
		out["attempts"] = at
		ms := func(t time.Time) int64 {
			if t.IsZero() {
				return 0
			}
			return t.UnixMicro()
		}
		twice := func(m map[uint64]int) (n int) {
			for _, c := range m {
				if c > 1 {
					n++
				}
			}
			return
		}
		stats.mu.Lock()
		out["sink_distinct"], out["sink_repeated"], out["sink_last_us"] = len(stats.sink), twice(stats.sink), ms(stats.lastSink)
		out["done_distinct"], out["done_repeated"], out["done_last_us"] = len(stats.done), twice(stats.done), ms(stats.lastDone)
		out["sleepers_started"], out["fired"], out["fired_last_us"] = len(stats.started), stats.fired, ms(stats.lastFire)
		out["late"] = stats.late.Summary()
		out["awakeables"] = len(stats.awk)
		stats.mu.Unlock()
		json.NewEncoder(w).Encode(out)
	})
	mux.HandleFunc("/reset", func(w http.ResponseWriter, r *http.Request) { stats.reset() })
	mux.HandleFunc("/awakeables", func(w http.ResponseWriter, r *http.Request) {
		stats.mu.Lock()
		defer stats.mu.Unlock()
		json.NewEncoder(w).Encode(stats.awk)
	})
	mux.HandleFunc("/gate", func(w http.ResponseWriter, r *http.Request) {
		gate.mu.Lock()
		defer gate.mu.Unlock()
		if r.URL.Query().Get("closed") == "true" {
			if gate.ch == nil {
				gate.ch = make(chan struct{})
			}
		} else if gate.ch != nil {
			close(gate.ch)
			gate.ch = nil
		}
	})
	return mux
}
