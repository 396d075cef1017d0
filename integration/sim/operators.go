package sim

import (
	"encoding/binary"
	"strconv"
	"time"

	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition"
	"perdure/nodes/partition/store"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// operators cancel, kill, pause, resume and purge invocations that they know of. They ask once: what is lost with a
// leader is lost, but for the resumptions in the end, without which what is paused would never go on.
type operators struct {
	c     *core
	asked []*order
	count uint64
	// called are the invocations that handlers have called last, calls who called whom.
	called []ident.InvocationID
	calls  map[ident.InvocationID][]ident.InvocationID
	// terminated are those that may end with a failure because somebody has cancelled or killed them, or what called them.
	terminated map[ident.InvocationID]bool
	// gaveUp are those that may end with a failure of their own: they met other commands in their journal too often, or what
	// they called has failed. They may, no more: the failure can be lost with the leader that wrote it, and the next one's
	// attempt goes on, calls others, and ends well. What they call goes on in any case.
	gaveUp map[ident.InvocationID]bool
	killed map[ident.InvocationID]bool // callees that an operator was told are dead
	purged map[ident.InvocationID]*account
}

// order is one request of an operator.
type order struct {
	verb    string
	id      ident.InvocationID
	part    *partitionWorld
	at      *processor
	pending *partition.Pending
	callee  bool // nobody else asks for this invocation
}

func newOperators(c *core) *operators {
	return &operators{c: c, calls: map[ident.InvocationID][]ident.InvocationID{},
		terminated: map[ident.InvocationID]bool{}, gaveUp: map[ident.InvocationID]bool{}, killed: map[ident.InvocationID]bool{}, purged: map[ident.InvocationID]*account{}}
}

func (op *operators) begin() {
	w := op.c.w
	w.after(w.exponential(workload, w.cfg.appendMean), func() {
		if w.quiet {
			return
		}
		op.something()
		op.begin()
	})
}

// something is one deed of an operator.
func (op *operators) something() {
	rng := op.c.w.rng[workload]
	if done := op.c.clients.done; len(done) > 0 && rng.IntN(6) == 0 {
		op.purge(done[rng.IntN(len(done))])
		return
	}
	id, callee := op.pick()
	if id == (ident.InvocationID{}) {
		return
	}
	verb := [...]string{"cancel", "kill", "kill", "pause", "pause", "pause", "resume"}[rng.IntN(7)]
	if verb == "cancel" || verb == "kill" {
		op.terminate(id)
	}
	op.order(verb, id, callee)
}

// pick chooses an invocation that may still be under way.
func (op *operators) pick() (id ident.InvocationID, callee bool) {
	rng, open := op.c.w.rng[workload], op.c.clients.open
	switch {
	case len(op.called) > 0 && rng.IntN(2) == 0:
		return op.called[rng.IntN(len(op.called))], true
	case len(open) > 0:
		return open[rng.IntN(len(open))].id, false
	}
	return id, false
}

// terminate allows an invocation, and what it has called, to end with a failure.
func (op *operators) terminate(id ident.InvocationID) {
	op.terminated[id] = true
	for _, callee := range op.calls[id] {
		op.terminate(callee)
	}
}

// mayFail reports whether an invocation may end with a failure.
func (op *operators) mayFail(id ident.InvocationID) bool { return op.terminated[id] || op.gaveUp[id] }

// know remembers a callee to do something with.
func (op *operators) know(caller, callee ident.InvocationID) {
	if len(op.called) == 4 {
		op.called = op.called[1:]
	}
	op.called = append(op.called, callee)
	op.calls[caller] = append(op.calls[caller], callee)
	if op.terminated[caller] {
		op.terminate(callee)
	}
}

func (op *operators) order(verb string, id ident.InvocationID, callee bool) {
	p := op.c.partitions[op.c.lookup(id.PartitionKey())]
	pr := p.leader
	if pr == nil || !pr.alive() || !pr.leading {
		return
	}
	op.count++
	req := &recordpb.Request{Id: binary.BigEndian.AppendUint64([]byte("operator"), op.count)}
	switch verb {
	case "cancel":
		req.Kind = &recordpb.Request_Terminate{Terminate: &recordpb.Terminate{InvocationId: id[:], Mode: recordpb.Terminate_CANCEL}}
	case "kill":
		req.Kind = &recordpb.Request_Terminate{Terminate: &recordpb.Terminate{InvocationId: id[:], Mode: recordpb.Terminate_KILL}}
	case "pause":
		req.Kind = &recordpb.Request_Pause{Pause: &recordpb.Pause{InvocationId: id[:]}}
	case "resume":
		req.Kind = &recordpb.Request_Resume{Resume: &recordpb.Resume{InvocationId: id[:]}}
	case "purge":
		req.Kind = &recordpb.Request_Purge{Purge: &recordpb.Purge{InvocationId: id[:]}}
	}
	pending, err := pr.step.Submit(req)
	if err != nil {
		return
	}
	op.c.w.orders++
	op.c.w.trace(verb, uint64(p.id), op.count, 0)
	op.asked = append(op.asked, &order{verb, id, p, pr, pending, callee})
	pr.wake()
}

// purge removes what is kept of an invocation that has ended, and keeps the account of what it did.
func (op *operators) purge(r *request) {
	pr := r.part.leader
	if op.purged[r.id] != nil || pr == nil || !pr.alive() || !pr.leading {
		return
	}
	inv, err := pr.store.Invocation(r.id)
	if err != nil {
		violated("apply", "invocation %s: %v", r.id, err)
	}
	if inv.GetStatus() != storepb.Invocation_COMPLETED {
		if r.wait && !op.terminated[r.id] {
			violated("idempotency", "invocation %s was answered and is %s", r.id, inv.GetStatus())
		}
		return
	}
	a := newAccount()
	a.add(r.id, inv, pr.store)
	op.purged[r.id] = a
	op.order("purge", r.id, false)
}

// poll takes the answers that a leader has.
func (op *operators) poll(pr *processor) {
	kept := op.asked[:0]
	for _, o := range op.asked {
		if o.at != pr {
			if !o.at.dead {
				kept = append(kept, o)
			}
			continue
		}
		reply, lost := o.pending.Poll()
		switch {
		case lost:
		case reply != nil:
			op.answer(o, reply)
		default:
			kept = append(kept, o)
		}
	}
	clear(op.asked[len(kept):])
	op.asked = kept
}

// answers are what an operator can be told.
var answers = map[string][]recordpb.Reply_Status{
	"cancel": {recordpb.Reply_OK, recordpb.Reply_ACCEPTED, recordpb.Reply_NOT_FOUND, recordpb.Reply_ALREADY_COMPLETED},
	"kill":   {recordpb.Reply_OK, recordpb.Reply_NOT_FOUND, recordpb.Reply_ALREADY_COMPLETED},
	"pause":  {recordpb.Reply_OK, recordpb.Reply_ACCEPTED, recordpb.Reply_NOT_FOUND, recordpb.Reply_NOT_RUNNING},
	"resume": {recordpb.Reply_OK, recordpb.Reply_NOT_FOUND, recordpb.Reply_ALREADY_COMPLETED, recordpb.Reply_NOT_STARTED},
	"purge":  {recordpb.Reply_OK, recordpb.Reply_NOT_FOUND},
}

func (op *operators) answer(o *order, reply *recordpb.Reply) {
	known := false
	for _, s := range answers[o.verb] {
		known = known || s == reply.Status
	}
	if !known {
		violated("operators", "to %s invocation %s is answered with %s", o.verb, o.id, reply.Status)
	}
	inv, err := o.at.store.Invocation(o.id)
	if err != nil {
		violated("apply", "invocation %s: %v", o.id, err)
	}
	switch {
	case o.verb == "kill" && o.callee && reply.Status == recordpb.Reply_OK:
		op.killed[o.id] = true
		stillDead(o.id, inv)
	case o.verb == "purge" && inv != nil:
		violated("operators", "invocation %s was purged and is %s", o.id, inv.Status)
	}
}

// stillDead checks that nothing came after a kill. Who is killed before it began leaves nothing.
func stillDead(id ident.InvocationID, inv *storepb.Invocation) {
	if inv != nil && (inv.Status != storepb.Invocation_COMPLETED || inv.Failure == nil) {
		violated("operators", "invocation %s was killed and is %s, its failure is %v", id, inv.Status, inv.Failure)
	}
}

// mend resumes what is paused, once there are no more faults.
func (op *operators) mend() {
	op.c.w.after(time.Second, func() {
		for _, p := range op.c.partitions {
			if pr := p.leader; pr != nil && pr.alive() && pr.leading {
				op.resumeAll(pr)
			}
		}
		op.mend()
	})
}

func (op *operators) resumeAll(pr *processor) {
	var ids []ident.InvocationID
	err := pr.store.Invocations(func(id ident.InvocationID, inv *storepb.Invocation) error {
		if inv.Status == storepb.Invocation_PAUSED {
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		violated("apply", "scan: %v", err)
	}
	for _, id := range ids {
		op.order("resume", id, false)
	}
}

// account is what invocations have done by their journals.
type account struct {
	sets    map[string]int             // how often each counter was written
	callees map[ident.InvocationID]int // who was called, and how often
	counts  map[ident.InvocationID]bool
}

func newAccount() *account {
	return &account{sets: map[string]int{}, callees: map[ident.InvocationID]int{}, counts: map[ident.InvocationID]bool{}}
}

// add takes the journal of one invocation.
func (a *account) add(id ident.InvocationID, inv *storepb.Invocation, st *store.Store) {
	sets := 0
	err := st.Entries(id, func(e store.JournalEntry) error {
		switch e.Type {
		case protocol.TypeSetState:
			sets++
		case protocol.TypeCallInvocationIDCompletion:
			callee, err := calleeOf(e.Raw)
			if err != nil {
				return err
			}
			a.callees[callee]++
		}
		return nil
	})
	if err != nil {
		violated("journal", "invocation %s: %v", id, err)
	}
	if inv.Target.Key == "" {
		return
	}
	if ended := b2i(inv.Failure == nil); sets != ended {
		violated("exactly once", "invocation %s of counter %s has written %d times, its result is %v", id, inv.Target.Key, sets, inv.Failure)
	}
	a.sets[inv.Target.Key] += sets
	a.counts[id] = true
}

// calleeOf reads the notification that answers a call with the id of what was called.
func calleeOf(raw []byte) (ident.InvocationID, error) {
	var m protocolpb.Notification
	if err := m.UnmarshalVT(raw); err != nil {
		return ident.InvocationID{}, err
	}
	return ident.ParseInvocationID(m.GetInvocationId())
}

func (a *account) merge(b *account) {
	for k, n := range b.sets {
		a.sets[k] += n
	}
	for id, n := range b.callees {
		a.callees[id] += n
	}
	for id := range b.counts {
		a.counts[id] = true
	}
}

// settle checks the end: each invocation that runs somewhere was asked for by a client or by the journal of one other
// invocation, each that was asked for has run, and each counter is what they have written.
func (op *operators) settle() {
	c, sum := op.c, newAccount()
	for _, p := range c.partitions {
		err := p.leader.store.Invocations(func(id ident.InvocationID, inv *storepb.Invocation) error {
			if op.purged[id] != nil {
				return nil // its account was made when it was purged
			}
			if op.killed[id] {
				stillDead(id, inv)
			}
			sum.add(id, inv, p.leader.store)
			return nil
		})
		if err != nil {
			violated("apply", "scan: %v", err)
		}
	}
	for _, a := range op.purged {
		sum.merge(a)
	}
	for _, r := range c.clients.done {
		if r.key != "" {
			sum.callees[r.id]++
		}
	}
	for id := range sum.counts {
		if n := sum.callees[id]; n != 1 {
			violated("exactly once", "invocation %s runs, it was asked for %d times", id, n)
		}
	}
	for id, n := range sum.callees {
		if n != 1 {
			violated("exactly once", "invocation %s was asked for %d times", id, n)
		}
		if !sum.counts[id] && !op.terminated[id] {
			if !c.services.keepsCallee(id) && !c.clients.asked(id) {
				sum.sets[c.services.counterOf[id]]++ // nothing is kept of it, and it can not fail
				continue
			}
			violated("exactly once", "invocation %s was asked for and is nowhere", id)
		}
	}
	for i := range 4 {
		key := "k" + strconv.Itoa(i)
		if n, want := c.counter(key), sum.sets[key]; n != uint64(want) {
			violated("exactly once", "counter %s is %d, it was added to %d times", key, n, want)
		}
	}
}

var failureCanceled = &protocolpb.Failure{Code: 409, Message: "canceled"}

// mismatch is the effect of an attempt that ended because the handler did something else than what is in the journal.
func mismatch() *invocationpb.Effect_AttemptFailed {
	return &invocationpb.Effect_AttemptFailed{Code: protocol.CodeJournalMismatch, Message: "the journal has another command", DocCode: "RT0016"}
}
