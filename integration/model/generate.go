package model

import (
	"fmt"
	"math/rand/v2"
)

// Variants are the deployments that programs are spread over, by the prefix of their services.
var Variants = []string{"Bidi", "Once", "Susp", "Lazy"}

// SharedKeys is how many objects of each variant all programs add to.
const SharedKeys = 4

// Generate makes a program. It depends on its arguments only.
func Generate(seed uint64, number int) *Program {
	g := &generator{r: rand.New(rand.NewPCG(seed, uint64(number))), name: fmt.Sprintf("p%x-%d", seed, number), left: 9}
	p := &Program{Number: number, Entry: Target{Variant: g.variant(), Service: plain, Handler: work}}
	if g.one(3) {
		p.Entry.Service, p.Entry.Key = objects, g.fresh()
	}
	p.OneWay = g.one(3)
	if p.OneWay && g.one(2) {
		p.DelayMs = 1 + g.r.IntN(40)
	}
	p.Body = g.body(&p.Entry, 0)
	return p
}

type generator struct {
	r     *rand.Rand
	name  string
	left  int // invocations that the program may still have
	count int // of names given out
}

func (g *generator) one(in int) bool { return g.r.IntN(in) == 0 }

func (g *generator) variant() string { return Variants[g.r.IntN(len(Variants))] }

// fresh is a name that nothing else has.
func (g *generator) fresh() string {
	g.count++
	return fmt.Sprintf("%s-%d", g.name, g.count)
}

func (g *generator) value() string { return fmt.Sprintf("v%d", g.r.IntN(1000)) }

func (g *generator) stateKey() string { return string(rune('a' + g.r.IntN(4))) }

// writer builds a body.
type writer struct {
	*generator
	to    *Target
	depth int
	body  *Body
	// owned are objects that only this body calls; settled says that all calls of one so far are over.
	owned []ownedObject
	open  []int // futures to wait for, or not
	must  []int // futures to wait for
	// cleared: the SDK lists a key that was cleared in the same invocation, so keys are not asked for any more.
	cleared bool
}

type ownedObject struct {
	to      Target
	settled bool
}

func (g *generator) body(to *Target, depth int) *Body {
	w := &writer{generator: g, to: to, depth: depth, body: &Body{ID: g.fresh()}}
	for range 1 + g.r.IntN(5) {
		w.step()
	}
	for _, f := range w.open {
		if !g.one(12) { // a few are never waited for
			w.add(Op{Do: opAwait, Of: []int{f}})
		}
	}
	for _, f := range w.must {
		w.add(Op{Do: opAwait, Of: []int{f}})
	}
	switch {
	case depth > 0 && g.one(8):
		w.add(Op{Do: opFail, Code: 400 + g.r.IntN(20), Value: "failed " + w.body.ID})
	case g.one(10):
		w.add(Op{Do: opCrash, N: 1 + g.r.IntN(2)})
	}
	return w.body
}

func (w *writer) add(op Op) int {
	w.body.Ops = append(w.body.Ops, op)
	return len(w.body.Ops) - 1
}

func (w *writer) token(i int) string { return fmt.Sprintf("%s.%d", w.body.ID, i) }

// writes reports whether the body may change state.
func (w *writer) writes() bool {
	return w.to.exclusive() || w.to.Service == flow && w.to.Handler == run
}

func (w *writer) spend(n int) bool {
	if w.depth >= 3 || w.left < n {
		return false
	}
	w.left -= n
	return true
}

// step adds an operation, or a group of operations that belong together.
func (w *writer) step() {
	switch n := w.r.IntN(21); {
	case n < 4 && w.writes():
		w.stateOps()
	case n < 6:
		w.runStep()
	case n < 7:
		w.add(Op{Do: opSleep, Ms: w.r.IntN(15)})
	case n < 10:
		w.callOwned()
	case n < 12:
		w.callPlain()
	case n < 13:
		w.addShared()
	case n < 14:
		w.awakeable()
	case n < 15:
		w.signal()
	case n < 16:
		w.workflow()
	case n < 18:
		w.cancelling()
	case n < 19:
		w.idempotent()
	case n < 20:
		w.burst()
	default:
		w.race()
	}
}

func (w *writer) stateOps() {
	for range 1 + w.r.IntN(3) {
		op := Op{Name: w.stateKey()}
		switch w.r.IntN(8) {
		case 0, 1:
			op.Do, op.Value = opSet, w.value()
		case 2, 3:
			op.Do = opGet
		case 4:
			op.Do, op.Value = opAppend, w.value()
		case 5:
			op.Do, w.cleared = opClear, true
		case 6:
			if w.cleared {
				continue
			}
			op = Op{Do: opKeys}
		default:
			if !w.one(3) {
				op.Do, op.Value = opSet, w.value()
			} else {
				op, w.cleared = Op{Do: opClearAll}, true
			}
		}
		w.add(op)
	}
}

func (w *writer) runStep() {
	op := Op{Do: opRun, Value: w.value()}
	if w.one(3) {
		op.N = 1 + w.r.IntN(2)
	}
	if w.one(5) {
		op.Code, op.Value = 500+w.r.IntN(5), "step failed"
	}
	if w.one(4) {
		op.Do, op.N = opRunAsync, 0
		w.must = append(w.must, w.add(op)) // a step that nobody waits for may be left out
		return
	}
	w.add(op)
}

// callOwned calls an object that nobody else calls. Calls of one caller arrive in their order.
func (w *writer) callOwned() {
	if !w.spend(1) {
		return
	}
	if len(w.owned) == 0 || len(w.owned) < 2 && w.one(3) {
		w.owned = append(w.owned, ownedObject{Target{Variant: w.variant(), Service: objects, Handler: work, Key: w.fresh()}, true})
	}
	o := &w.owned[w.r.IntN(len(w.owned))]
	to := o.to
	switch w.r.IntN(4) {
	case 0:
		o.settled = false
		w.open = append(w.open, w.add(Op{Do: opStart, To: &to, Body: w.generator.body(&to, w.depth+1)}))
	case 1:
		o.settled = false
		w.add(Op{Do: opSend, To: &to, Body: w.generator.body(&to, w.depth+1)})
	case 2:
		if o.settled { // a shared handler sees what is there
			to.Handler = look
			b := &Body{ID: w.fresh(), Ops: []Op{{Do: opGet, Name: w.stateKey()}, {Do: opKeys}, {Do: opRun, Value: w.value()}}}
			w.add(Op{Do: opCall, To: &to, Body: b})
			return
		}
		fallthrough
	default:
		w.add(Op{Do: opCall, To: &to, Body: w.generator.body(&to, w.depth+1)})
		o.settled = true
	}
}

func (w *writer) callPlain() {
	if !w.spend(1) {
		return
	}
	to := &Target{Variant: w.variant(), Service: plain, Handler: work}
	b := w.generator.body(to, w.depth+1)
	switch w.r.IntN(4) {
	case 0:
		w.open = append(w.open, w.add(Op{Do: opStart, To: to, Body: b}))
	case 1:
		w.attachSometimes(w.add(Op{Do: opSend, To: to, Body: b}))
	case 2:
		w.attachSometimes(w.add(Op{Do: opDelayed, To: to, Body: b, Ms: 1 + w.r.IntN(40)}))
	default:
		w.add(Op{Do: opCall, To: to, Body: b})
	}
}

func (w *writer) attachSometimes(call int) {
	if w.one(2) {
		w.add(Op{Do: opAttach, Of: []int{call}})
	}
}

// addShared adds to an object that all programs add to. Nobody looks at it before the end.
func (w *writer) addShared() {
	if !w.spend(1) {
		return
	}
	to := &Target{Variant: w.variant(), Service: objects, Handler: work, Key: fmt.Sprintf("shared-%d", w.r.IntN(SharedKeys))}
	b := &Body{ID: w.fresh(), Ops: []Op{{Do: opAdd, Name: "total", N: 1 + w.r.IntN(9)}}}
	if w.one(3) {
		b.Ops = append(b.Ops, Op{Do: opSleep, Ms: w.r.IntN(3)}, Op{Do: opAdd, Name: "total", N: 1})
	}
	switch w.r.IntN(3) {
	case 0:
		w.add(Op{Do: opCall, To: to, Body: b})
	case 1:
		w.add(Op{Do: opSend, To: to, Body: b})
	default:
		w.add(Op{Do: opDelayed, To: to, Body: b, Ms: w.r.IntN(30)})
	}
}

// awakeable makes an awakeable and has another invocation complete it; only the first completion counts.
func (w *writer) awakeable() {
	if !w.spend(1) {
		return
	}
	a := w.add(Op{Do: opAwakeable})
	to := &Target{Variant: w.variant(), Service: plain, Handler: work}
	b := &Body{ID: w.fresh()}
	if w.one(2) {
		b.Ops = append(b.Ops, Op{Do: opSleep, Ms: w.r.IntN(10)})
	}
	for range 1 + w.r.IntN(2) {
		op := Op{Do: opResolve, Name: w.token(a), Value: w.value()}
		if w.one(3) {
			op.Do, op.Value = opReject, "rejected"
		}
		b.Ops = append(b.Ops, op)
	}
	if w.one(4) {
		w.add(Op{Do: opDelayed, To: to, Body: b, Ms: w.r.IntN(20)})
	} else {
		w.add(Op{Do: opSend, To: to, Body: b})
	}
	if w.one(2) {
		w.add(Op{Do: opAwait, Of: []int{a}})
	} else {
		w.open = append(w.open, a)
	}
}

// signal sends signals to an invocation that waits for them.
func (w *writer) signal() {
	if !w.spend(1) {
		return
	}
	to := &Target{Variant: w.variant(), Service: plain, Handler: work}
	b := &Body{ID: w.fresh(), Ops: []Op{{Do: opSignal, Name: "go"}, {Do: opAwait, Of: []int{0}}, {Do: opRun, Value: w.value()}}}
	call := w.add(Op{Do: opSend, To: to, Body: b})
	if w.one(2) {
		w.add(Op{Do: opSleep, Ms: w.r.IntN(10)})
	}
	w.add(Op{Do: opSendSig, Of: []int{call}, Name: "go", Value: w.value()})
	w.attachSometimes(call)
}

// workflow runs a workflow that waits for a promise, and completes it with shared handlers.
func (w *writer) workflow() {
	if !w.spend(4) {
		return
	}
	to := Target{Variant: w.variant(), Service: flow, Handler: run, Key: w.fresh()}
	shared := to
	shared.Handler = look
	ask := func(ops ...Op) { w.add(Op{Do: opCall, To: &shared, Body: &Body{ID: w.fresh(), Ops: ops}}) }
	b := &Body{ID: w.fresh(), Ops: []Op{{Do: opSet, Name: "a", Value: w.value()}}}
	if w.one(2) {
		b.Ops = append(b.Ops, Op{Do: opRun, Value: w.value()})
	}
	b.Ops = append(b.Ops, Op{Do: opPromise, Name: "p"}, Op{Do: opSet, Name: "b", Value: w.value()})
	if w.one(3) {
		b.Ops = append(b.Ops, Op{Do: opComplete, Name: "q", Value: w.value()})
	}
	if w.one(2) {
		ask(Op{Do: opPeek, Name: "p"})
	}
	call := w.add(Op{Do: opSend, To: &to, Body: b})
	if w.one(3) { // the key has run already
		w.add(Op{Do: opCall, To: &to, Body: &Body{ID: w.fresh(), Ops: []Op{{Do: opSet, Name: "c", Value: "never"}}}})
	}
	settle := Op{Do: opComplete, Name: "p", Value: w.value()}
	if w.one(4) {
		settle.Do, settle.Value = opRejectProm, "rejected"
	}
	ask(settle)
	if w.one(2) {
		ask(Op{Do: opComplete, Name: "p", Value: "too late"}, Op{Do: opPromise, Name: "p"})
	} else {
		ask(Op{Do: opPeek, Name: "p"})
	}
	w.add(Op{Do: opAttach, Of: []int{call}})
	ask(Op{Do: opGet, Name: "b"}, Op{Do: opKeys})
}

// cancelling starts something that blocks and cancels it, with what it waits for.
func (w *writer) cancelling() {
	if !w.spend(2) {
		return
	}
	to := &Target{Variant: w.variant(), Service: plain, Handler: work}
	if w.one(2) {
		to.Service, to.Key = objects, w.fresh()
	}
	b := w.blocked(to, 2)
	do := opStart
	if w.one(2) {
		do = opSend
	}
	call := w.add(Op{Do: do, To: to, Body: b})
	if to.Service == objects && w.one(2) { // waits for the lock until the other is cancelled
		w.open = append(w.open, w.add(Op{Do: opStart, To: to, Body: &Body{ID: w.fresh(), Ops: []Op{{Do: opGet, Name: "a"}, {Do: opSet, Name: "a", Value: w.value()}}}}))
	}
	if w.one(2) {
		w.add(Op{Do: opSleep, Ms: w.r.IntN(10)})
	}
	w.add(Op{Do: opCancel, Of: []int{call}})
	if do == opStart {
		w.add(Op{Do: opAwait, Of: []int{call}})
	} else {
		w.add(Op{Do: opAttach, Of: []int{call}})
	}
}

// blocked is a body that does nothing that can be cancelled before it blocks.
func (w *writer) blocked(to *Target, depth int) *Body {
	b := &Body{ID: w.fresh()}
	if to.Service == objects {
		b.Ops = append(b.Ops, Op{Do: opSet, Name: "a", Value: w.value()})
	}
	op := Op{Do: opBlock, Rethrow: w.one(2)}
	if depth > 1 && w.one(2) {
		op.To = &Target{Variant: w.variant(), Service: plain, Handler: work}
		op.Body = w.blocked(op.To, depth-1)
	}
	if w.one(2) {
		op.Then = append(op.Then, Op{Do: opRun, Value: w.value()})
	}
	if to.Service == objects {
		op.Then = append(op.Then, Op{Do: opAppend, Name: "a", Value: "cleaned"})
	}
	b.Ops = append(b.Ops, op)
	return b
}

// burst sends to an object faster than it works, then looks at the order in which it worked.
func (w *writer) burst() {
	n := 3 + w.r.IntN(3)
	if !w.spend(n) {
		return
	}
	to := &Target{Variant: w.variant(), Service: objects, Handler: work, Key: w.fresh()}
	for range n {
		b := &Body{ID: w.fresh()}
		if w.one(2) {
			b.Ops = append(b.Ops, Op{Do: opSleep, Ms: w.r.IntN(5)})
		}
		b.Ops = append(b.Ops, Op{Do: opAppend, Name: "order", Value: b.ID})
		if w.one(3) {
			w.open = append(w.open, w.add(Op{Do: opStart, To: to, Body: b}))
		} else {
			w.add(Op{Do: opSend, To: to, Body: b})
		}
	}
	w.add(Op{Do: opCall, To: to, Body: &Body{ID: w.fresh(), Ops: []Op{{Do: opGet, Name: "order"}}}})
}

// idempotent makes a call twice with one idempotency key: the second is the first.
func (w *writer) idempotent() {
	if !w.spend(1) {
		return
	}
	to := &Target{Variant: w.variant(), Service: plain, Handler: work}
	if w.one(2) {
		to.Service, to.Key = objects, w.fresh()
	}
	b := &Body{ID: w.fresh(), Ops: []Op{{Do: opRun, Value: w.value()}}}
	if to.Service == objects {
		b.Ops = append(b.Ops, Op{Do: opAppend, Name: "a", Value: w.value()})
	}
	key := w.fresh()
	w.open = append(w.open, w.add(Op{Do: opStart, To: to, Body: b, Key: key}))
	if w.one(2) {
		w.add(Op{Do: opSleep, Ms: w.r.IntN(20)})
	}
	w.add(Op{Do: opCall, To: to, Body: b, Key: key})
}

// race waits for the first of several of which only one can end.
func (w *writer) race() {
	never := w.add(Op{Do: opAwakeable})
	var happens int
	if w.one(2) && w.spend(1) {
		to := &Target{Variant: w.variant(), Service: plain, Handler: work}
		happens = w.add(Op{Do: opStart, To: to, Body: w.generator.body(to, w.depth+1)})
	} else {
		happens = w.add(Op{Do: opTimer, Ms: w.r.IntN(15)})
	}
	of := []int{never, happens}
	if w.one(2) {
		of[0], of[1] = of[1], of[0]
	}
	w.add(Op{Do: opFirst, Of: of})
	w.open = append(w.open, happens)
}
