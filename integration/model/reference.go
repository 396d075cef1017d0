package model

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"
)

// Fault is a mistake of the reference interpreter, to test that it would be noticed.
type Fault int

// The faults. Each strikes at every chance.
const (
	NoFault           Fault = iota
	LosesSends              // a one-way call does not arrive
	DoublesSends            // it arrives twice
	LosesState              // what an invocation set last is gone
	ReordersInbox           // the last that came to an object is next
	ForgetsKeys             // idempotency keys are ignored
	ReleasesLocks           // exclusive handlers overlap
	LastResultCounts        // a second completion replaces the first
	SparesChildren          // a cancelled invocation's calls go on
	RunsWorkflowTwice       // a second run of one key is not refused
	RepeatsSteps            // a step with a result is executed again
	ForgetsFailures         // a failed invocation answers as if it had not
	Faults
)

// Reference runs a program in memory and says what has to come out.
func Reference(p *Program, fault Fault) (*Outcome, error) {
	r := &reference{fault: fault, w: NewWitness(), objects: map[string]map[string]string{}, locks: map[string]*lock{}, keys: map[string]*invocation{},
		flows: map[string]*invocation{}, promises: map[string]*result{}, awakeables: map[string]*result{}}
	root := r.start(&p.Entry, &Input{Body: p.Body}, time.Duration(p.DelayMs)*time.Millisecond)
	err := r.loop()
	for _, inv := range r.invocations {
		inv.stop()
	}
	if err != nil {
		return nil, fmt.Errorf("program %d in the reference: %w", p.Number, err)
	}
	o := r.w.outcome()
	o.Answers[p.Number] = answerOf(root.result)
	maps.Copy(o.Objects, r.objects)
	return o, nil
}

func answerOf(res *result) End {
	if !res.done { // only with a fault
		return End{Failure: &Failure{Message: "no answer"}}
	}
	if res.err != nil {
		return End{Failure: res.err}
	}
	var e End
	if err := json.Unmarshal(res.out, &e.Trace); err != nil {
		panic(fmt.Sprintf("output %s is no trace: %v", res.out, err)) // exec made it
	}
	return e
}

// reference is the world in memory: one goroutine at a time runs, time is virtual.
type reference struct {
	fault       Fault
	w           *Witness
	now         time.Duration
	invocations []*invocation
	objects     map[string]map[string]string
	locks       map[string]*lock
	keys        map[string]*invocation // by target and idempotency key
	flows       map[string]*invocation
	promises    map[string]*result
	awakeables  map[string]*result
}

// lock is that of an object: its holder and who waits.
type lock struct {
	holder *invocation
	queue  []*invocation
}

// result is something that may be known.
type result struct {
	done bool
	out  json.RawMessage
	err  *Failure
	at   time.Duration // of a timer
}

func (r *result) settle(out json.RawMessage, err *Failure) {
	r.done, r.out, r.err = true, out, err
}

// invocation is one execution of a body, a coroutine that yields when it has to wait.
type invocation struct {
	r      *reference
	number int
	to     Target
	in     *Input
	result *result
	at     time.Duration // not before

	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
	ready func() bool // what it waits for

	cancelled bool // and not noticed yet
	calls     []*invocation
	signals   map[string]*result
	wrote     string
}

func (r *reference) start(to *Target, in *Input, delay time.Duration) *invocation {
	inv := &invocation{r: r, number: len(r.invocations), to: *to, in: clone(in), result: &result{}, at: r.now + delay, signals: map[string]*result{}}
	inv.ready = func() bool { return r.now >= inv.at }
	inv.next, inv.stop = iter.Pull(func(yield func(struct{}) bool) {
		inv.yield = yield
		inv.main()
	})
	r.invocations = append(r.invocations, inv)
	if delay == 0 {
		r.enqueue(inv)
	}
	return inv
}

func clone(in *Input) *Input { return &Input{Body: in.Body, Awakeables: maps.Clone(in.Awakeables)} }

// enqueue lets an invocation wait for its object. It does so when it arrives, not when it is first looked at.
func (r *reference) enqueue(inv *invocation) {
	if !inv.to.exclusive() || r.fault == ReleasesLocks {
		return
	}
	l := r.locks[inv.to.object()]
	if l == nil {
		l = &lock{}
		r.locks[inv.to.object()] = l
	}
	if l.holder == nil {
		l.holder = inv
		return
	}
	l.queue = append(l.queue, inv)
	inv.ready = func() bool { return l.holder == inv }
}

func (r *reference) release(inv *invocation) {
	l := r.locks[inv.to.object()]
	if l == nil || l.holder != inv {
		return
	}
	l.holder = nil
	if n := len(l.queue); n > 0 {
		i := 0
		if r.fault == ReordersInbox {
			i = n - 1
		}
		l.holder = l.queue[i]
		l.queue = slices.Delete(l.queue, i, i+1)
	}
}

// loop runs what can run until everything is over.
func (r *reference) loop() error {
	for {
		moved := false
		for i := 0; i < len(r.invocations); i++ { // grows meanwhile
			inv := r.invocations[i]
			if inv.result.done || !inv.ready() && !inv.cancelled {
				continue
			}
			moved = true
			inv.next()
		}
		if moved {
			continue
		}
		if !r.advance() {
			return r.stuck()
		}
	}
}

// advance moves the time to what is due next.
func (r *reference) advance() bool {
	next := time.Duration(-1)
	for _, inv := range r.invocations {
		if t := inv.at; t > r.now && !inv.result.done && (next < 0 || t < next) {
			next = t
		}
	}
	if next < 0 {
		return false
	}
	r.now = next
	return true
}

// stuck complains about invocations that wait for something that will not come.
func (r *reference) stuck() error {
	for _, inv := range r.invocations {
		if !inv.result.done && r.fault == NoFault {
			return fmt.Errorf("body %s waits for ever", inv.in.Body.ID)
		}
	}
	return nil
}

// wait is called by the coroutine. cancelled says that the invocation was cancelled instead.
func (inv *invocation) wait(ready func() bool) (wasCancelled bool) {
	for !ready() {
		if inv.cancelled {
			inv.cancelled = false
			for _, c := range inv.calls {
				if inv.r.fault != SparesChildren {
					c.cancel()
				}
			}
			return true
		}
		inv.ready = ready
		if !inv.yield(struct{}{}) {
			panic(stopped{})
		}
	}
	return false
}

// stopped ends a coroutine that is not wanted any more.
type stopped struct{}

func (inv *invocation) main() {
	defer func() {
		if e := recover(); e != nil {
			if _, ok := e.(stopped); !ok {
				panic(e)
			}
		}
	}()
	if inv.at > 0 && inv.r.now >= inv.at && inv.to.exclusive() && !inv.holds() {
		inv.r.enqueue(inv) // its delay is over
		inv.wait(func() bool { return inv.holds() })
	}
	inv.at = 0
	inv.r.w.began(inv.in.Body.ID, fmt.Sprint(inv.number))
	trace, err := exec(inv, inv.in)
	var f *Failure
	if err != nil {
		f = err.(*Failure) // nothing else fails here
	}
	inv.r.w.ended(inv.in.Body.ID, End{trace, f})
	if inv.r.fault == LosesState && inv.wrote != "" {
		delete(inv.state(), inv.wrote)
	}
	if inv.r.fault == ForgetsFailures {
		f = nil
	}
	inv.result.settle(value(trace), f)
	inv.r.release(inv)
}

func (inv *invocation) holds() bool {
	l := inv.r.locks[inv.to.object()]
	return l != nil && l.holder == inv || inv.r.fault == ReleasesLocks
}

func (inv *invocation) state() map[string]string {
	m := inv.r.objects[inv.to.object()]
	if m == nil {
		m = map[string]string{}
		inv.r.objects[inv.to.object()] = m
	}
	return m
}

var _ host = (*invocation)(nil)

func (inv *invocation) get(key string) (*string, error) {
	if v, ok := inv.state()[key]; ok {
		return &v, nil
	}
	return nil, nil
}

func (inv *invocation) set(key, v string) { inv.state()[key], inv.wrote = v, key }
func (inv *invocation) clear(key string)  { delete(inv.state(), key) }
func (inv *invocation) clearAll()         { clear(inv.state()) }
func (inv *invocation) keys() ([]string, error) {
	return slices.Collect(maps.Keys(inv.state())), nil
}

// pending is a future of an invocation.
type pending struct {
	inv *invocation
	res *result
}

func (p pending) await() (json.RawMessage, error) {
	p.inv.at = p.res.at
	if p.inv.wait(func() bool { return p.known() }) {
		f := cancelled
		return nil, &f
	}
	p.inv.at = 0
	if p.res.err != nil {
		return nil, p.res.err
	}
	return p.res.out, nil
}

func (p pending) known() bool { return p.res.done || p.res.at > 0 && p.inv.r.now >= p.res.at }

func (inv *invocation) run(token string, op *Op) future {
	n := op.N + 1
	if inv.r.fault == RepeatsSteps {
		n++
	}
	for range n {
		inv.r.w.executes(token)
	}
	res := &result{}
	if op.Code != 0 {
		res.settle(nil, &Failure{op.Code, op.Value})
	} else {
		res.settle(value(op.Value), nil)
	}
	return pending{inv, res}
}

func (inv *invocation) timer(d time.Duration) future {
	return pending{inv, &result{at: inv.r.now + max(d, 1)}}
}

// sentTo is a call or one-way call.
type sentTo struct {
	pending
	to *invocation
}

func (s sentTo) attach() future { return pending{s.inv, s.to.result} }
func (s sentTo) cancel()        { s.to.cancel() }
func (s sentTo) signal(name, v string) {
	s.to.signalled(name).settle(value(v), nil)
}

// cancel has the next thing that the invocation waits for end as cancelled.
func (inv *invocation) cancel() {
	if !inv.result.done {
		inv.cancelled = true
	}
}

func (inv *invocation) call(to *Target, in *Input, key string) future {
	s := inv.invoke(to, in, key, 0)
	inv.calls = append(inv.calls, s.to)
	return s
}

func (inv *invocation) invoke(to *Target, in *Input, key string, delay time.Duration) sentTo {
	r := inv.r
	if to.Service == flow && to.Handler == run && r.fault != RunsWorkflowTwice {
		if old := r.flows[to.object()]; old != nil {
			res := &result{}
			res.settle(nil, &Failure{409, "the workflow method was already invoked"})
			return sentTo{pending{inv, res}, old}
		}
	}
	id := to.name() + "/" + to.Key + "/" + key
	old := r.keys[id]
	if key == "" || old == nil || r.fault == ForgetsKeys {
		old = r.start(to, in, delay)
		r.keys[id] = old
	}
	if to.Handler == run {
		r.flows[to.object()] = old
	}
	return sentTo{pending{inv, old.result}, old}
}

func (inv *invocation) send(to *Target, in *Input, key string, delay time.Duration) sent {
	if inv.r.fault == LosesSends {
		return sentTo{to: &invocation{r: inv.r, result: &result{done: true, out: value(Trace{})}, signals: map[string]*result{}}, pending: pending{inv: inv}}
	}
	if inv.r.fault == DoublesSends {
		inv.invoke(to, in, key, delay)
	}
	return inv.invoke(to, in, key, delay)
}

func (inv *invocation) awakeable() (string, future) {
	res := &result{}
	id := fmt.Sprint(len(inv.r.awakeables))
	inv.r.awakeables[id] = res
	return id, pending{inv, res}
}

func (inv *invocation) complete(id, v string, failed bool) {
	inv.settleOnce(inv.r.awakeables[id], v, failed)
}

func (inv *invocation) settleOnce(res *result, v string, failed bool) (first bool) {
	if res.done && inv.r.fault != LastResultCounts {
		return false
	}
	if failed {
		res.settle(nil, &Failure{500, v})
	} else {
		res.settle(value(v), nil)
	}
	return true
}

func (inv *invocation) signalled(name string) *result {
	if inv.signals[name] == nil {
		inv.signals[name] = &result{}
	}
	return inv.signals[name]
}

func (inv *invocation) signal(name string) future { return pending{inv, inv.signalled(name)} }

func (inv *invocation) promised(name string) *result {
	id := inv.to.object() + "/" + name
	if inv.r.promises[id] == nil {
		inv.r.promises[id] = &result{}
	}
	return inv.r.promises[id]
}

func (inv *invocation) promise(name string) future { return pending{inv, inv.promised(name)} }

func (inv *invocation) peek(name string) (*string, error) {
	p := inv.promised(name)
	if !p.done {
		return nil, nil
	}
	if p.err != nil {
		return nil, p.err
	}
	var s string
	if err := json.Unmarshal(p.out, &s); err != nil {
		panic(fmt.Sprintf("promise holds %s: %v", p.out, err)) // settleOnce made it
	}
	return &s, nil
}

func (inv *invocation) completePromise(name, v string, failed bool) error {
	if !inv.settleOnce(inv.promised(name), v, failed) {
		return &Failure{409, "promise was already completed"}
	}
	return nil
}

func (inv *invocation) first(fs []future) (int, error) {
	for _, f := range fs {
		if t := pendingOf(f).res.at; t > 0 {
			inv.at = t
		}
	}
	at := -1
	if inv.wait(func() bool {
		at = slices.IndexFunc(fs, func(f future) bool { return pendingOf(f).known() })
		return at >= 0
	}) {
		f := cancelled
		return 0, &f
	}
	inv.at = 0
	return at, nil
}

func pendingOf(f future) pending {
	if s, ok := f.(sentTo); ok {
		return s.pending
	}
	return f.(pending)
}

func (inv *invocation) crash(string, int) error { return nil }

func (inv *invocation) saw(token string, outcome json.RawMessage) {
	inv.r.w.saw(token, string(outcome))
}
