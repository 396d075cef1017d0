package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fake behaves like a server with the chaos services, in memory, and can be told to break each promise.
type fake struct {
	mu       sync.Mutex
	balances map[string]int
	sinks    map[string][]string
	answers  map[string]string // by idempotency key
	results  map[string]string // by invocation id
	ledger   *Ledger
	n        int
	enough   func() // called when the load has done enough

	loseAdd    bool // acknowledge some additions without having them
	doubleAdd  bool // have some additions twice
	losePut    bool // lose some one-way calls
	doublePut  bool // have some one-way calls twice
	forgetKeys bool // run an operation again when it is repeated
	breakAfter bool // have the effect of some operations and break the connection
	redraw     bool // let code observe two results of one step
	stick      bool // never end some accepted one-way calls
	invent     bool // deliver a one-way call that nobody sent
	failSome   bool // answer some operations with a terminal failure
	sameTwice  bool // give one balance to two callers
}

func (f *fake) every(n int) bool { return f.n%n == 0 }

func (f *fake) add(key, op string) string {
	step := op
	v := f.ledger.execute(step)
	f.ledger.observe(step, v)
	if f.redraw && f.every(20) {
		f.ledger.observe(step, f.ledger.execute(step))
	}
	told := f.balances[key] + 1
	if !f.loseAdd || !f.every(20) {
		f.balances[key]++
	}
	if f.doubleAdd && f.every(20) {
		f.balances[key]++
	}
	if f.sameTwice && f.every(20) && told > 1 {
		told--
	}
	b, err := json.Marshal(Answer{told, v})
	if err != nil {
		panic(err)
	}
	return string(b)
}

func (f *fake) put(key, op string) string {
	if f.losePut && f.every(20) {
		return "0"
	}
	f.sinks[key] = append(f.sinks[key], op)
	if f.doublePut && f.every(20) {
		f.sinks[key] = append(f.sinks[key], op)
	}
	if f.invent && f.every(20) {
		f.sinks[key] = append(f.sinks[key], "invented")
	}
	return fmt.Sprint(len(f.sinks[key]))
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in []byte
	if r.Body != nil {
		var err error
		if in, err = io.ReadAll(r.Body); err != nil {
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case p[0] == "restate": // restate/invocation/{id}/attach
		answer, ok := f.results[p[2]]
		if !ok {
			http.Error(w, `{"code":404}`, http.StatusNotFound)
			return
		}
		io.WriteString(w, answer)
		return
	case p[0] == "Account" && p[2] == "get":
		fmt.Fprint(w, f.balances[p[1]])
		return
	case p[0] == "Sink" && p[2] == "list":
		json.NewEncoder(w).Encode(f.sinks[p[1]])
		return
	}
	if f.n++; f.n == 600 {
		f.enough()
	}
	if f.failSome && f.every(50) {
		http.Error(w, `{"code":409,"message":"killed"}`, http.StatusConflict)
		return
	}
	var req Request
	if err := json.Unmarshal(in, &req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	idem := r.Header.Get("Idempotency-Key")
	answer, known := f.answers[idem]
	if idem == "" || !known || f.forgetKeys && f.every(5) {
		switch p[0] {
		case "Account":
			answer = f.add(p[1], req.Op)
		case "Sink":
			answer = f.put(p[1], req.Op)
		case "Transfer":
			f.put(req.Key, req.Op+"/now")
			answer = f.add(req.Key, req.Op+"/call")
			f.put(req.Key, req.Op+"/later")
		}
		if idem != "" {
			f.answers[idem] = answer
		}
		if f.breakAfter && f.every(10) {
			panic(http.ErrAbortHandler)
		}
	}
	if p[len(p)-1] == "send" {
		id := "inv_" + req.Op
		if !f.stick || !f.every(20) {
			f.results[id] = answer
		}
		w.Header().Set("x-restate-id", id)
		w.WriteHeader(http.StatusAccepted)
		return
	}
	io.WriteString(w, answer)
}

// RoundTrip implements http.RoundTripper: a request takes a millisecond.
func (f *fake) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	time.Sleep(time.Millisecond)
	defer func() {
		if broken := recover(); broken == http.ErrAbortHandler {
			resp, err = nil, io.ErrUnexpectedEOF
		} else if broken != nil {
			panic(broken)
		}
	}()
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	return w.Result(), nil
}

// drive runs a load against a fake and returns the broken promises that were found. The time is that of a bubble, so that a
// patience that is short enough for what never ends is long enough for everything else.
func drive(t *testing.T, f *fake) (found []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f.balances, f.sinks, f.answers, f.results, f.ledger = map[string]int{}, map[string][]string{}, map[string]string{}, map[string]string{}, NewLedger()
		l := &Load{Ingress: "http://fake", Seed: 1, Workers: 4, Keys: 3, Patience: 2 * time.Second, transport: f}
		var ctx context.Context
		ctx, f.enough = context.WithCancel(t.Context())
		h := l.Run(ctx, f.ledger)
		l.Settle(h)
		if h.Ops() < 400 {
			t.Fatalf("only %d operations ran", h.Ops())
		}
		found = Check(h)
	})
	return found
}

func TestAnHonestServerPasses(t *testing.T) {
	for name, f := range map[string]*fake{"calm": {}, "with broken connections": {breakAfter: true}} {
		t.Run(name, func(t *testing.T) {
			for _, bad := range drive(t, f) {
				t.Error(bad)
			}
		})
	}
}

// TestEveryBrokenPromiseIsFound: a check that cannot fail proves nothing.
func TestEveryBrokenPromiseIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		f    *fake
		says string
	}{
		"lost addition":      {&fake{loseAdd: true}, "additions lost"},
		"doubled addition":   {&fake{doubleAdd: true}, "additions too many"},
		"lost one-way call":  {&fake{losePut: true}, "arrived 0 times"},
		"doubled call":       {&fake{doublePut: true}, "arrived 2 times"},
		"invented call":      {&fake{invent: true}, "nobody was told"},
		"forgotten key":      {&fake{forgetKeys: true, breakAfter: true}, "additions too many"},
		"different answer":   {&fake{forgetKeys: true}, "at first and"},
		"two results":        {&fake{redraw: true}, "more than one result"},
		"never ends":         {&fake{stick: true}, "never ended"},
		"failed operation":   {&fake{failSome: true}, "no success"},
		"one balance, twice": {&fake{sameTwice: true}, "was given to both"},
	} {
		t.Run(name, func(t *testing.T) {
			found := drive(t, c.f)
			for _, bad := range found {
				if strings.Contains(bad, c.says) {
					return
				}
			}
			t.Errorf("nothing with %q among %d problems: %.500q", c.says, len(found), found)
		})
	}
}
