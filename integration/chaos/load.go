package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Load is a load to run and to account for.
type Load struct {
	// Ingress is the base URL of the server under test.
	Ingress string
	// Seed decides which operations run on which keys; timing still varies.
	Seed uint64
	// Workers is how many operations are in flight, Keys over how many objects they spread.
	Workers, Keys int
	// Patience bounds how long one operation, and each wait at the end, may take across crashes.
	Patience time.Duration

	client    *http.Client
	transport http.RoundTripper // of client; nil is one for Workers connections
	done      atomic.Int64
}

// Done is how many operations have succeeded so far. Any goroutine may ask.
func (l *Load) Done() int { return int(l.done.Load()) }

// kind of operation.
type kind int

const (
	add      kind = iota // Account/add by a call
	move                 // Transfer/move by a call
	sendAdd              // Account/add by a one-way call
	sendPut              // Sink/put by a one-way call
	blindAdd             // Account/add without idempotency key: a lost answer leaves the outcome open
	kinds
)

// op is one operation and what its client was told.
type op struct {
	kind kind
	name string
	key  string
	// answer is the body of the first success, invocation the id that came with it.
	answer     []byte
	invocation string
	// unknown is set for a blindAdd whose connection broke, failed for an operation that got no success in time.
	unknown bool
	failed  string
}

// History is what happened: the operations, and what the server held at the end.
type History struct {
	ops []*op
	// again are answers to the same questions asked at the end.
	again map[*op][]byte
	// balances and sinks are the objects' final state by key.
	balances map[string]int
	sinks    map[string][]string
	ledger   *Ledger
	problems []string
}

// Ops is how many operations succeeded.
func (h *History) Ops() int {
	n := 0
	for _, o := range h.ops {
		if o.failed == "" && !o.unknown {
			n++
		}
	}
	return n
}

// Run runs the load until ctx is done. Operations that are in flight by then are completed.
func (l *Load) Run(ctx context.Context, ledger *Ledger) *History {
	if l.transport == nil {
		l.transport = &http.Transport{MaxIdleConnsPerHost: l.Workers}
	}
	l.client = &http.Client{Timeout: 10 * time.Second, Transport: l.transport}
	h := &History{ledger: ledger, again: map[*op][]byte{}, balances: map[string]int{}, sinks: map[string][]string{}}
	var mu sync.Mutex
	var seq atomic.Int64
	var wg sync.WaitGroup
	for w := range l.Workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(l.Seed, uint64(w)))
			for ctx.Err() == nil {
				o := &op{kind: kind(rnd.IntN(int(kinds))), name: fmt.Sprintf("%x-%d", l.Seed, seq.Add(1)), key: "k" + strconv.Itoa(rnd.IntN(l.Keys))}
				if o.kind == blindAdd {
					o.key = "blind-" + o.key // accounts of their own, because their balance is known within bounds only
				}
				l.perform(o)
				mu.Lock()
				h.ops = append(h.ops, o)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return h
}

func (o *op) path() string {
	switch o.kind {
	case move:
		return "/Transfer/move"
	case sendPut:
		return "/Sink/" + o.key + "/put/send"
	case sendAdd:
		return "/Account/" + o.key + "/add/send"
	default:
		return "/Account/" + o.key + "/add"
	}
}

// ask sends the operation's request once and returns the body of a success.
func (l *Load) ask(o *op) (body []byte, invocation string, status int, err error) {
	in, err := json.Marshal(Request{Op: o.name, Key: o.key})
	if err != nil {
		return nil, "", 0, err
	}
	req, err := http.NewRequest(http.MethodPost, l.Ingress+o.path(), bytes.NewReader(in))
	if err != nil {
		return nil, "", 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	if o.kind != blindAdd {
		req.Header.Set("Idempotency-Key", o.name)
	}
	return l.do(req)
}

func (l *Load) do(req *http.Request) (body []byte, invocation string, status int, err error) {
	resp, err := l.client.Do(req)
	if err != nil {
		return nil, "", 0, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err != nil {
		return nil, "", 0, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, "", resp.StatusCode, fmt.Errorf("status %d: %.300s", resp.StatusCode, body)
	}
	return body, resp.Header.Get("x-restate-id"), resp.StatusCode, nil
}

// perform repeats an operation until it succeeds: its idempotency key makes that safe. A blindAdd is tried once.
func (l *Load) perform(o *op) {
	deadline := time.Now().Add(l.Patience)
	for try := 0; ; try++ {
		body, id, status, err := l.ask(o)
		if err == nil {
			o.answer, o.invocation = body, id
			l.done.Add(1)
			return
		}
		if o.kind == blindAdd {
			// Refused before it began is no effect; anything else may or may not have happened.
			o.unknown = true
			pause(context.Background(), 20*time.Millisecond)
			return
		}
		if status >= 400 && status < 500 && status != http.StatusTooManyRequests || time.Now().After(deadline) {
			o.failed = err.Error()
			return
		}
		pause(context.Background(), min(time.Duration(try+1)*10*time.Millisecond, 200*time.Millisecond))
	}
}

// Settle waits until everything accepted has ended and reads what the server holds. The server must not be killed any
// more.
func (l *Load) Settle(h *History) {
	var mu sync.Mutex
	problem := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		h.problems = append(h.problems, fmt.Sprintf(format, args...))
	}
	todo := make(chan *op)
	var wg sync.WaitGroup
	for range l.Workers {
		wg.Go(func() {
			for o := range todo {
				body, err := l.result(o)
				if err != nil {
					problem("%s (%s, %s): never ended: %v", o.name, o.path(), o.invocation, err)
					continue
				}
				mu.Lock()
				h.again[o] = body
				mu.Unlock()
			}
		})
	}
	for _, o := range h.ops {
		if o.failed == "" && o.kind != blindAdd {
			todo <- o
		}
	}
	close(todo)
	wg.Wait()
	l.readObjects(h, problem)
}

// result is the outcome of an accepted operation: for a one-way call that of its invocation, else the same call again.
func (l *Load) result(o *op) ([]byte, error) {
	deadline := time.Now().Add(l.Patience)
	for {
		var body []byte
		var err error
		if o.kind == sendAdd || o.kind == sendPut {
			var req *http.Request
			if req, err = http.NewRequest(http.MethodGet, l.Ingress+"/restate/invocation/"+o.invocation+"/attach", nil); err != nil {
				return nil, err
			}
			body, _, _, err = l.do(req)
		} else {
			body, _, _, err = l.ask(o)
		}
		if err == nil || time.Now().After(deadline) {
			return body, err
		}
		pause(context.Background(), 50*time.Millisecond)
	}
}

func (l *Load) readObjects(h *History, problem func(string, ...any)) {
	wantSinks := expected(h).sinks
	for i := range l.Keys {
		key := "k" + strconv.Itoa(i)
		for _, k := range []string{key, "blind-" + key} {
			n := 0
			if err := l.read("/Account/"+k+"/get", &n); err != nil {
				problem("read account %s: %v", k, err)
			}
			h.balances[k] = n
		}
		// One-way calls arrive later; stop waiting when all are there.
		deadline := time.Now().Add(l.Patience)
		for {
			var list []string
			if err := l.read("/Sink/"+key+"/list", &list); err != nil {
				problem("read sink %s: %v", key, err)
				break
			}
			h.sinks[key] = list
			if len(list) >= len(wantSinks[key]) || time.Now().After(deadline) {
				break
			}
			pause(context.Background(), 50*time.Millisecond)
		}
	}
}

func (l *Load) read(path string, into any) error {
	deadline := time.Now().Add(l.Patience)
	for {
		req, err := http.NewRequest(http.MethodGet, l.Ingress+path, nil)
		if err != nil {
			return err
		}
		body, _, _, err := l.do(req)
		if err == nil {
			return json.Unmarshal(body, into)
		}
		if time.Now().After(deadline) {
			return err
		}
		pause(context.Background(), 50*time.Millisecond)
	}
}
