package sim

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/zeebo/xxh3"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store"
	"perdure/nodes/partition/store/storepb"
)

// services are the scripted handlers, and what is known of all that they ever did.
//
// There are two. Counter is an object: its handler reads a number, perhaps sleeps, and writes the number plus
// one. Proxy is a plain service whose argument is a program: run something that gives another value each time,
// sleep, call a counter, send to a counter, now or later, or one of these as it happens.
//
// With Diverging the code of a handler is changed now and then while invocations are under way, and what happens to be
// done in a program differs from attempt to attempt. An attempt that meets another command in its journal ends, as those of
// the SDKs do; after some of them the invocation is paused, or fails. In the end the old code is back.
type services struct {
	w *world
	// entries is the content of every journal position that an attempt has seen, commands by the place of the
	// command among the commands, notifications by completion id.
	entries map[place]uint64
	// adds are the counters' answers, by key: each number must be given once.
	adds map[string]map[uint64]ident.InvocationID
	// counterOf is the key of each counter that was called.
	counterOf map[ident.InvocationID]string
	// naps are the sleeps, delays those that were called for later, with the moments at which that was first asked for.
	naps    map[nap]time.Duration
	delays  map[ident.InvocationID]delay
	changed int // how many changes of the code are in force
}

type place struct {
	id         ident.InvocationID
	life       uint64 // an id may live again
	completion bool
	number     uint32
}

// nap is a sleep until a time in ms since 1970.
type nap struct {
	place
	until uint64
}

// delay is an invocation that is not to begin before a time in ms since 1970.
type delay struct {
	until uint64
	since time.Duration
}

// awake checks that an invocation that waits until a time, since a moment, may go on: a leader of its partition has
// written something by whose time, which is its clock's, the time has come. With right clocks that is never too early.
func (s *services) awake(what string, id ident.InvocationID, until uint64, since time.Duration) {
	c := s.w.core
	p := c.partitions[c.lookup(id.PartitionKey())]
	if now := p.latest(since); now < until {
		violated("timers", "invocation %s: %s until %d is over, by the clocks of its leaders it was not later than %d since it began", id, what, until, now)
	}
}

func newServices(w *world) *services {
	return &services{w: w, entries: map[place]uint64{}, adds: map[string]map[uint64]ident.InvocationID{}, counterOf: map[ident.InvocationID]string{},
		naps: map[nap]time.Duration{}, delays: map[ident.InvocationID]delay{}}
}

// change puts other code in the place of the handlers for a while.
func (s *services) change(d time.Duration) {
	s.changed++
	s.w.after(d, func() { s.changed-- })
}

// keepsCallee says whether what a handler calls is kept when it has ended. It has to be if it may fail: else nobody could
// tell whether it did.
func (s *services) keepsCallee(id ident.InvocationID) bool {
	return s.w.cfg.has(Operators) || givesUp(id)
}

// givesUp says whether an invocation fails that has met other commands in its journal too often; else it is paused.
func givesUp(id ident.InvocationID) bool { return id[22]%8 == 0 }

// saw checks that a journal position has the content that it had before.
func (s *services) saw(p place, typ uint16, raw []byte) {
	h := xxh3.Hash(raw) ^ uint64(typ)<<48
	if old, ok := s.entries[p]; !ok {
		s.entries[p] = h
	} else if old != h {
		violated("journal", "invocation %s: entry %d (completion %v) has changed", p.id, p.number, p.completion)
	}
}

var (
	counterTarget = func(key string) *invocationpb.Target {
		return &invocationpb.Target{Service: "Counter", Handler: "add", Key: key, ServiceType: uint32(schema.VirtualObject), HandlerType: uint32(schema.Exclusive)}
	}
	proxyTarget = &invocationpb.Target{Service: "Proxy", Handler: "run", ServiceType: uint32(schema.Service), HandlerType: uint32(schema.Shared)}
)

// newID makes the id of an invocation.
func (s *services) newID(t *invocationpb.Target, from stream) ident.InvocationID {
	var r ident.Random
	binary.BigEndian.PutUint64(r.ULID[:], s.w.rng[from].Uint64())
	binary.BigEndian.PutUint64(r.ULID[8:], s.w.rng[from].Uint64())
	r.Bucket = s.w.rng[from].Uint64()
	return ident.Invocation(ident.Target{Service: t.Service, Handler: t.Handler, Key: t.Key, Keyed: t.Key != ""}, r)
}

// A program is a list of steps of two bytes: what, and which counter or how long.
const (
	stepRun   = 'r'
	stepSleep = 's'
	stepCall  = 'c'
	stepSend  = 'n'
	stepLater = 'l'
	stepAny   = 'x' // a sleep, a call, or a send: what, is decided anew each time
)

func (s *services) program() []byte {
	steps := "rscnl"
	if s.w.cfg.has(Diverging) {
		steps = "rscnlx"
	}
	var b []byte
	for range 1 + s.w.rng[workload].IntN(4) {
		b = append(b, steps[s.w.rng[workload].IntN(len(steps))], byte('0'+s.w.rng[workload].IntN(4)))
	}
	return b
}

// invoker is a leader's invoker: attempts of the scripted services.
type invoker struct {
	pr       *processor
	host     invokers.Host
	attempts map[ident.InvocationID]*attempt
	closed   bool
}

func newInvoker(pr *processor, h invokers.Host) *invoker {
	return &invoker{pr: pr, host: h, attempts: map[ident.InvocationID]*attempt{}}
}

// attempt is one incarnation of an invocation as its leader runs it; it may fail and be repeated.
type attempt struct {
	v           *invoker
	id          ident.InvocationID
	incarnation uint64
	try         int // increased by each failure: what an older try still does is dropped
	over        bool
	running     bool // a try is under way
	ending      bool // its last effect is proposed
	mismatches  int

	sequence, applied uint64 // of proposals

	// What the try knows.
	target      *invocationpb.Target
	input       []byte
	life        uint64
	commands    []invokers.Entry
	completions map[uint32][]byte
	streams     bool // waits for completions before it suspends
	awaiting    uint32
	canceled    bool
	diverges    int // the command in the journal that the try meets with another one; 0: none
}

// mayAct is the fence: nothing leaves a leader before its own announcement was applied, or after a later one.
func (v *invoker) mayAct(what string) {
	pr := v.pr
	if pr.dead || v.closed {
		violated("fence", "%s by a leader of partition %d that has ended", what, pr.p.id)
	}
	if pr.fence == 0 || pr.proc.AppliedLSN() < pr.fence {
		violated("fence", "%s by epoch %d of partition %d before its announcement was applied", what, pr.epoch, pr.p.id)
	}
}

// Invoke implements partition.Invoker.
func (v *invoker) Invoke(id ident.InvocationID, incarnation uint64, _ string, _ ident.DeploymentID, fresh *invokers.Journal) {
	v.mayAct("invoke")
	if old := v.attempts[id]; old != nil {
		old.over = true
	}
	a := &attempt{v: v, id: id, incarnation: incarnation}
	v.attempts[id] = a
	a.begin(fresh)
}

// begin starts a try.
func (a *attempt) begin(fresh *invokers.Journal) {
	w := a.v.pr.n.w
	try := a.try
	a.running = true
	a.v.pr.n.after(w.between(workload, 500*time.Microsecond, 10*time.Millisecond), func() {
		if a.over || a.v.closed || a.try != try {
			return
		}
		a.streams = w.rng[workload].IntN(2) == 0
		j := fresh
		if j == nil {
			var err error
			if j, err = a.v.host.ReadJournal(a.id, nil, nil); err != nil {
				a.over = true // it does not run any more; the log says so in a moment
				return
			}
		}
		a.load(j)
		a.proceed()
	})
}

// load takes a journal and checks it against what was seen before.
func (a *attempt) load(j *invokers.Journal) {
	s := a.v.pr.c.services
	a.target, a.commands, a.completions, a.life = j.Target, nil, map[uint32][]byte{}, j.CreatedAtMs
	a.canceled, a.diverges = false, 0
	if d, ok := s.delays[a.id]; ok {
		s.awake("a delay", a.id, d.until, d.since)
	}
	for i, e := range j.Entries {
		switch {
		case i == 0:
			var m protocolpb.InputCommand
			if err := m.UnmarshalVT(e.Raw); err != nil {
				violated("journal", "invocation %s: input: %v", a.id, err)
			}
			a.input = m.Value.GetContent()
		case protocol.IsNotification(e.Type):
			a.notified(e.Type, e.Raw)
		default:
			s.saw(place{a.id, a.life, false, uint32(len(a.commands))}, e.Type, e.Raw)
			a.commands = append(a.commands, e)
		}
	}
	w := a.v.pr.n.w
	if n := len(a.commands); n > 0 && !w.quiet && s.changed > 0 && w.chance(workload, 0.7) {
		a.diverges = 1 + w.rng[workload].IntN(n)
	}
}

func (a *attempt) notified(typ uint16, raw []byte) {
	n := protocol.IdentifyNotification(raw)
	if n.Kind == protocol.BySignalIndex && n.Number == protocol.SignalCancel {
		if !a.v.pr.c.operators.terminated[a.id] {
			violated("operators", "invocation %s is canceled, and nobody has asked for it", a.id)
		}
		a.canceled = true
	}
	if n.Kind != protocol.ByCompletion {
		return
	}
	if old, ok := a.completions[n.Number]; ok && !bytes.Equal(old, raw) {
		violated("journal", "invocation %s: completion %d has two results", a.id, n.Number)
	} else if ok {
		violated("journal", "invocation %s: completion %d is in the journal twice", a.id, n.Number)
	}
	a.v.pr.c.services.saw(place{a.id, a.life, true, n.Number}, typ, raw)
	a.completions[n.Number] = raw
}

// Notify implements partition.Invoker.
func (v *invoker) Notify(id ident.InvocationID, incarnation uint64, _ uint32, typ uint16, raw []byte) {
	v.mayAct("notify")
	a := v.attempts[id]
	if a == nil || a.over || a.incarnation != incarnation || !a.running || a.completions == nil {
		return
	}
	if n := protocol.IdentifyNotification(raw); n.Kind == protocol.ByCompletion {
		if _, ok := a.completions[n.Number]; ok {
			return // it was in the journal that the try began with
		}
	}
	a.notified(typ, raw)
	if a.awaiting != 0 {
		try := a.try
		v.pr.n.after(v.pr.n.w.between(workload, 100*time.Microsecond, 2*time.Millisecond), func() {
			if !a.over && !v.closed && a.try == try {
				a.proceed()
			}
		})
	}
}

// Applied implements partition.Invoker.
func (v *invoker) Applied(id ident.InvocationID, incarnation, sequence uint64) {
	if a := v.attempts[id]; a != nil && a.incarnation == incarnation {
		a.applied = max(a.applied, sequence)
		a.retry()
	}
}

// retry begins the next try once everything of the failed one is applied, so that its journal is whole.
func (a *attempt) retry() {
	if a.over || a.ending || a.running || a.applied < a.sequence {
		return
	}
	a.begin(nil)
}

// Abort implements partition.Invoker.
func (v *invoker) Abort(id ident.InvocationID) {
	v.mayAct("abort")
	if a := v.attempts[id]; a != nil {
		a.over = true
		delete(v.attempts, id)
	}
}

// Pause implements partition.Invoker.
func (v *invoker) Pause(id ident.InvocationID) {
	v.mayAct("pause")
	if a := v.attempts[id]; a != nil && !a.over && !a.ending {
		a.pause(nil)
	}
}

// RetryNow implements partition.Invoker.
func (v *invoker) RetryNow(id ident.InvocationID) {
	v.mayAct("retry")
	if a := v.attempts[id]; a != nil {
		a.retry()
	}
}

// Status implements partition.Invoker.
func (v *invoker) Status(func(invokers.Status) bool) {}

// Close implements partition.Invoker.
func (v *invoker) Close() { v.closed = true }

func (a *attempt) propose(effects ...*invocationpb.Effect) bool {
	a.sequence++
	if a.v.host.Propose(context.Background(), a.id, a.incarnation, a.sequence, effects) != nil {
		a.over = true // the leader is over, or has no room: the next leader goes on
		return false
	}
	return true
}

// fail ends the try, as an endpoint does that dies, or that answers with an error.
func (a *attempt) fail() {
	if a.v.pr.n.w.chance(workload, 0.5) {
		a.failed(&invocationpb.Effect{Kind: &invocationpb.Effect_AttemptFailed_{AttemptFailed: &invocationpb.Effect_AttemptFailed{Code: 500, Message: "scripted failure"}}})
	} else {
		a.failed()
	}
}

// failed ends the try with what is told of it, and begins another one after a while.
func (a *attempt) failed(tell ...*invocationpb.Effect) {
	w := a.v.pr.n.w
	a.try++
	a.running, a.awaiting = false, 0
	if len(tell) > 0 {
		a.propose(tell...)
	}
	try := a.try
	a.v.pr.n.after(w.between(workload, 10*time.Millisecond, 300*time.Millisecond), func() {
		if !a.over && !a.v.closed && a.try == try {
			a.retry()
		}
	})
}

// pause ends the try, and the invocation waits for somebody who resumes it.
func (a *attempt) pause(last *invocationpb.Effect_AttemptFailed) {
	a.last(nil, &invocationpb.Effect{Kind: &invocationpb.Effect_Paused_{Paused: &invocationpb.Effect_Paused{LastFailure: last}}})
}

// last proposes effects behind which no other attempt of the incarnation comes.
func (a *attempt) last(effects []*invocationpb.Effect, end *invocationpb.Effect) {
	a.try++
	a.running, a.awaiting, a.ending = false, 0, true
	a.propose(append(effects, end)...)
}

// mismatched ends a try whose handler did something else than what is in the journal. Nothing of it but the failure is
// told; after three of them the invocation is paused, or fails.
func (a *attempt) mismatched(s *script) {
	w := a.v.pr.n.w
	if len(s.effects) > 0 {
		violated("journal", "invocation %s: a try that met another command in its journal had gone on", a.id)
	}
	w.trace("mismatch", uint64(a.v.pr.p.id), uint64(s.at), uint64(a.mismatches))
	w.mismatches++
	a.mismatches++
	f := mismatch()
	switch {
	case a.mismatches <= 3:
		a.failed(&invocationpb.Effect{Kind: &invocationpb.Effect_AttemptFailed_{AttemptFailed: f}})
	case givesUp(a.id):
		a.v.pr.c.operators.gaveUp[a.id] = true
		a.last(nil, &invocationpb.Effect{Kind: &invocationpb.Effect_Failed_{Failed: &invocationpb.Effect_Failed{Failure: &invocationpb.Failure{Code: f.Code, Message: f.Message}}}})
	default:
		a.pause(f)
	}
}

type encodes interface{ MarshalVT() ([]byte, error) }

func encoded(m encodes) []byte {
	raw, err := m.MarshalVT()
	if err != nil {
		panic(err) // a message of our own making can be encoded
	}
	return raw
}

// script is one walk through a handler: what the journal has is skipped, what it lacks is proposed.
type script struct {
	a       *attempt
	at      int // commands passed
	effects []*invocationpb.Effect
	// mismatch says that the journal has another command than what the handler did; it goes no further then.
	mismatch bool
	failure  *protocolpb.Failure // what the handler ends with instead of an output
}

// command passes a command; it is new when the journal does not have it yet.
func (s *script) command(typ uint16, m encodes, callee *invocationpb.Effect_Callee) (fresh bool) {
	a := s.a
	if s.mismatch {
		return false
	}
	s.at++
	if s.at <= len(a.commands) {
		if s.at == a.diverges {
			s.mismatch = true
			return false
		}
		if e := a.commands[s.at-1]; e.Type != typ {
			violated("journal", "invocation %s: command %d is a %s, the handler does a %s", a.id, s.at, protocol.Name(e.Type), protocol.Name(typ))
		}
		return false
	}
	raw := encoded(m)
	a.commands = append(a.commands, invokers.Entry{Type: typ, Raw: raw})
	s.effects = append(s.effects, &invocationpb.Effect{Kind: &invocationpb.Effect_Command_{Command: &invocationpb.Effect_Command{Type: uint32(typ), Raw: raw, Callee: callee}}})
	return true
}

// result is what completes a command; ok is false while it is not there.
func (s *script) result(completion uint32) (m *protocolpb.Notification, ok bool) {
	raw, ok := s.a.completions[completion]
	if !ok {
		return nil, false
	}
	m = &protocolpb.Notification{}
	if err := m.UnmarshalVT(raw); err != nil {
		violated("journal", "invocation %s: completion %d: %v", s.a.id, completion, err)
	}
	return m, true
}

// proceed runs the handler from its beginning as far as it gets.
func (a *attempt) proceed() {
	w := a.v.pr.n.w
	if !w.quiet && w.cfg.has(Faulty) && w.chance(workload, 0.05) {
		a.fail()
		return
	}
	a.awaiting = 0
	s := &script{a: a}
	var missing uint32
	var output string
	if a.target.Key != "" {
		output, missing = s.counter()
	} else {
		output, missing = s.proxy()
	}
	a.diverges = 0 // it goes on with what it was replayed into
	if s.mismatch {
		a.mismatched(s)
		return
	}
	if missing != 0 && a.canceled {
		s.cancel(missing)
		missing = 0
	}
	if missing == 0 {
		s.output(output)
		a.last(s.effects, &invocationpb.Effect{Kind: &invocationpb.Effect_End_{End: &invocationpb.Effect_End{}}})
		return
	}
	a.awaiting = missing
	if a.streams {
		if len(s.effects) > 0 && !a.propose(s.effects...) {
			return
		}
		try := a.try
		a.v.pr.n.after(w.between(workload, 5*time.Millisecond, 500*time.Millisecond), func() {
			if !a.over && !a.v.closed && a.try == try && a.awaiting == missing {
				a.suspend(nil)
			}
		})
		return
	}
	a.suspend(s.effects)
}

func (a *attempt) suspend(effects []*invocationpb.Effect) {
	a.last(effects, &invocationpb.Effect{Kind: &invocationpb.Effect_Suspended_{Suspended: &invocationpb.Effect_Suspended{
		Awaiting: &invocationpb.Future{Completions: []uint32{a.awaiting}, Signals: []uint32{protocol.SignalCancel}},
	}}})
}

// output is the last command of a handler.
func (s *script) output(value string) {
	m := &protocolpb.OutputCommand{Result: &protocolpb.OutputCommand_Value{Value: &protocolpb.Value{Content: []byte(value)}}}
	if s.failure != nil {
		m.Result = &protocolpb.OutputCommand_Failure{Failure: s.failure}
	}
	s.command(protocol.TypeOutput, m, nil)
}

// cancel ends a handler that waits for something, and cancels the call that it waits for.
func (s *script) cancel(missing uint32) {
	if m, ok := s.result(missing + 1); ok && m.GetInvocationId() != "" {
		s.command(protocol.TypeSendSignal, &protocolpb.SendSignalCommand{TargetInvocationId: m.GetInvocationId(),
			SignalId: &protocolpb.SendSignalCommand_Idx{Idx: protocol.SignalCancel}, Result: &protocolpb.SendSignalCommand_Void{Void: &protocolpb.Void{}}}, nil)
	}
	s.failure = failureCanceled
}

// counter adds one to the object's number; a sleep between reading and writing gives others a chance to
// come in between, if they can.
func (s *script) counter() (output string, missing uint32) {
	a := s.a
	s.command(protocol.TypeGetLazyState, &protocolpb.GetLazyStateCommand{Key: []byte("n"), ResultCompletionId: 1}, nil)
	m, ok := s.result(1)
	if s.mismatch || !ok {
		return "", 1
	}
	n := uint64(0)
	if v := m.GetValue(); v != nil {
		n = binary.BigEndian.Uint64(v.Content)
	}
	if a.id[23]%4 == 0 {
		s.sleep(2, 20*time.Millisecond)
		if _, ok := s.result(2); s.mismatch || !ok {
			return "", 2
		}
	}
	n++
	s.command(protocol.TypeSetState, &protocolpb.SetStateCommand{Key: []byte("n"), Value: &protocolpb.Value{Content: binary.BigEndian.AppendUint64(nil, n)}}, nil)
	return strconv.FormatUint(n, 10), 0
}

func (s *script) sleep(completion uint32, d time.Duration) {
	a := s.a
	s.command(protocol.TypeSleep, &protocolpb.SleepCommand{WakeUpTime: uint64(a.v.pr.n.wall().Add(d).UnixMilli()), ResultCompletionId: completion}, nil)
	if s.mismatch {
		return
	}
	var c protocolpb.SleepCommand
	if err := c.UnmarshalVT(a.commands[s.at-1].Raw); err != nil { // that of an earlier try, if there was one
		violated("journal", "invocation %s: command %d: %v", a.id, s.at, err)
	}
	services, n := a.v.pr.c.services, nap{place{a.id, a.life, true, completion}, c.WakeUpTime}
	since, known := services.naps[n]
	if !known {
		since = services.w.now
		services.naps[n] = since
	}
	if _, over := s.result(completion); over {
		services.awake("a sleep", a.id, n.until, since)
	}
}

// proxy runs the program of the argument.
func (s *script) proxy() (output string, missing uint32) {
	a, services := s.a, s.a.v.pr.c.services
	rng := a.v.pr.n.w.rng[workload]
	var out bytes.Buffer
	for i := 0; i+1 < len(a.input); i += 2 {
		c := uint32(10 + i*2)
		arg, step := a.input[i+1], a.input[i]
		if step == stepAny {
			step = s.any()
		}
		switch step {
		case stepRun:
			if s.command(protocol.TypeRun, &protocolpb.RunCommand{ResultCompletionId: c}, nil) || !s.mismatch && a.completions[c] == nil {
				// The body runs, and gives something else each time.
				value := binary.BigEndian.AppendUint64(nil, rng.Uint64())
				s.effects = append(s.effects, &invocationpb.Effect{Kind: &invocationpb.Effect_Run{Run: &invocationpb.Effect_RunCompletion{
					CompletionId: c, Result: &invocationpb.Result{Kind: &invocationpb.Result_Success{Success: value}},
				}}})
				if w := a.v.pr.n.w; w.cfg.has(Faulty) && w.chance(workload, 0.2) { // an endpoint that repeats itself
					s.effects = append(s.effects, s.effects[len(s.effects)-1])
				}
			}
		case stepSleep:
			s.sleep(c, time.Duration(arg-'0'+1)*150*time.Millisecond)
		case stepCall:
			t := counterTarget("k" + string(arg))
			s.call(protocol.TypeCall, &protocolpb.CallCommand{ServiceName: t.Service, HandlerName: t.Handler, Key: t.Key, InvocationIdNotificationIdx: c + 1, ResultCompletionId: c}, t, services)
		case stepSend, stepLater:
			t := counterTarget("k" + string(arg))
			m := &protocolpb.OneWayCallCommand{ServiceName: t.Service, HandlerName: t.Handler, Key: t.Key, InvocationIdNotificationIdx: c + 1}
			if step == stepLater {
				m.InvokeTime = uint64(a.v.pr.n.wall().Add(700 * time.Millisecond).UnixMilli())
			}
			s.call(protocol.TypeOneWayCall, m, t, services)
			if s.mismatch {
				return "", c
			}
			continue
		}
		m, ok := s.result(c)
		if s.mismatch || !ok {
			return "", c
		}
		if f := m.GetFailure(); f != nil {
			s.stepFailed(i/2, c, f)
			return "", 0
		}
		fmt.Fprintf(&out, "%c%x,", a.input[i], m.GetValue().GetContent())
	}
	return out.String(), 0
}

// any is what a handler that is not deterministic does this time. In the end it was mended, and does what is in its journal.
func (s *script) any() byte {
	w := s.a.v.pr.n.w
	types := [...]uint16{protocol.TypeSleep, protocol.TypeCall, protocol.TypeOneWayCall}
	do := w.rng[workload].IntN(len(types))
	if s.at < len(s.a.commands) && s.a.commands[s.at].Type != types[do] {
		if !w.quiet {
			s.mismatch = true
			return 0
		}
		do = slices.Index(types[:], s.a.commands[s.at].Type)
	}
	return [...]byte{stepSleep, stepCall, stepSend}[do]
}

// stepFailed ends a handler with the failure of what it has called, which somebody must have wanted.
func (s *script) stepFailed(step int, completion uint32, f *protocolpb.Failure) {
	op := s.a.v.pr.c.operators
	callee := ident.InvocationID{}
	if m, ok := s.result(completion + 1); ok {
		var err error
		if callee, err = ident.ParseInvocationID(m.GetInvocationId()); err != nil {
			violated("journal", "invocation %s: callee of step %d: %v", s.a.id, step, err)
		}
	}
	if !op.mayFail(callee) {
		violated("exactly once", "invocation %s: step %d failed: %s", s.a.id, step, f.Message)
	}
	op.gaveUp[s.a.id] = true
	s.failure = f
}

func (s *script) call(typ uint16, m encodes, t *invocationpb.Target, services *services) {
	id := services.newID(t, workload)
	callee := &invocationpb.Effect_Callee{InvocationId: id[:], Target: t}
	if services.keepsCallee(id) {
		callee.CompletionRetentionMs, callee.JournalRetentionMs = retention, retention
	}
	if s.command(typ, m, callee) {
		services.counterOf[id] = t.Key
		if later, ok := m.(*protocolpb.OneWayCallCommand); ok && later.InvokeTime > 0 {
			services.delays[id] = delay{until: later.InvokeTime, since: services.w.now}
		}
		s.a.v.pr.c.operators.know(s.a.id, id)
	}
}

// retention is longer than a run, in ms.
const retention = 3_600_000

// running says which invocation of the partition has not ended, or which message was not delivered, in the rows
// of its leader.
func (p *partitionWorld) running() (found string) {
	err := p.leader.store.Invocations(func(id ident.InvocationID, inv *storepb.Invocation) error {
		if inv.Status != storepb.Invocation_COMPLETED && found == "" {
			found = "invocation " + id.String() + " of partition " + strconv.Itoa(int(p.id)) + " is " + inv.Status.String()
		}
		return nil
	})
	if err != nil {
		violated("apply", "scan: %v", err)
	}
	if found == "" {
		ms, _, err := p.leader.store.Outbox(0, 1, 1)
		if err != nil {
			violated("apply", "outbox: %v", err)
		}
		if len(ms) > 0 {
			found = "the outbox of partition " + strconv.Itoa(int(p.id)) + " has message " + strconv.FormatUint(ms[0].Index, 10)
		}
	}
	return found
}

// whole checks the journal of an invocation that has ended: each command of its handler is there once, and
// each completion.
func (s *services) whole(r *request, p *processor) {
	want := 2 // input and output
	if r.key != "" {
		want += 2 + b2i(r.id[23]%4 == 0)
	} else {
		want += len(r.argument) / 2
	}
	commands, completions := 0, map[uint32]bool{}
	err := p.store.Entries(r.id, func(e store.JournalEntry) error {
		if !protocol.IsNotification(e.Type) {
			commands++
			return nil
		}
		n := protocol.IdentifyNotification(e.Raw)
		if n.Kind != protocol.ByCompletion {
			return nil
		}
		if completions[n.Number] {
			violated("journal", "invocation %s: completion %d is in the journal twice", r.id, n.Number)
		}
		completions[n.Number] = true
		return nil
	})
	if err != nil {
		violated("journal", "invocation %s: %v", r.id, err)
	}
	if commands != want {
		violated("journal", "invocation %s has %d commands in its journal, its handler did %d", r.id, commands, want)
	}
}
