package sim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"time"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/nodes/partition"
	"perdure/nodes/partition/store"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/record/recordpb"
)

// clients ask for invocations, and ask again with the same id until they have an answer, as the ingress does
// for its callers when an outcome is unknown.
type clients struct {
	c        *core
	open     []*request
	done     []*request
	ids      map[ident.InvocationID]bool // of all requests
	answered uint64
	count    uint64
}

type request struct {
	id       ident.InvocationID
	key      string // of the counter, empty for a proxy
	part     *partitionWorld
	target   *invocationpb.Target
	argument []byte
	request  [16]byte
	keep     uint64 // retention in ms
	wait     bool   // for the output, else for being accepted

	at      *processor // where it is pending
	term    *partition.Stepper
	pending *partition.Pending
	since   time.Duration
	output  []byte
	failed  bool // it was told a failure
}

func newClients(c *core) *clients { return &clients{c: c, ids: map[ident.InvocationID]bool{}} }

func (cl *clients) begin() {
	for range 2 {
		cl.next()
	}
	cl.tick()
}

// next is one client's next request.
func (cl *clients) next() {
	w := cl.c.w
	w.after(w.exponential(workload, w.cfg.appendMean), func() {
		if w.quiet {
			return
		}
		if len(cl.open) < 60 {
			cl.ask()
		}
		cl.next()
	})
}

func (cl *clients) ask() {
	w, s := cl.c.w, cl.c.services
	rng := w.rng[workload]
	r := &request{wait: rng.IntN(5) > 0, keep: retention}
	if rng.IntN(2) == 0 {
		r.key = "k" + strconv.Itoa(rng.IntN(4))
		r.target = counterTarget(r.key)
	} else {
		r.target, r.argument = proxyTarget, s.program()
	}
	r.id = s.newID(r.target, workload)
	r.part = cl.c.partitions[cl.c.lookup(r.id.PartitionKey())]
	cl.ids[r.id] = true
	cl.count++
	binary.BigEndian.PutUint64(r.request[:], cl.count)
	cl.open = append(cl.open, r)
	cl.send(r)
}

// send gives a request to the leader that it knows of; one that can not be given is tried again by tick.
func (cl *clients) send(r *request) {
	pr := r.part.leader
	r.pending = nil
	if pr == nil || !pr.alive() || !pr.leading {
		return
	}
	inv := &invocationpb.Invocation{Id: r.id[:], Target: r.target, Argument: r.argument, CompletionRetentionMs: r.keep, JournalRetentionMs: r.keep}
	p, err := pr.step.Submit(&recordpb.Request{Id: r.request[:], Kind: &recordpb.Request_Invoke_{Invoke: &recordpb.Request_Invoke{Invocation: inv, WaitOutput: r.wait}}})
	if err != nil {
		return
	}
	r.at, r.term, r.pending, r.since = pr, pr.step, p, cl.c.w.now
	pr.wake()
}

// tick repeats what has no answer.
func (cl *clients) tick() {
	w := cl.c.w
	w.after(w.between(workload, 200*time.Millisecond, 600*time.Millisecond), func() {
		for _, r := range cl.open {
			if r.pending == nil || r.at.dead || r.at.step != r.term || w.now-r.since > 10*time.Second {
				cl.send(r)
			}
		}
		cl.tick()
	})
}

// poll takes the answers that a leader has.
func (cl *clients) poll(pr *processor) {
	kept := cl.open[:0]
	for _, r := range cl.open {
		if r.pending == nil || r.at != pr {
			kept = append(kept, r)
			continue
		}
		reply, lost := r.pending.Poll()
		switch {
		case lost:
			r.pending = nil
		case reply != nil:
			cl.answer(r, reply)
			continue
		}
		kept = append(kept, r)
	}
	clear(cl.open[len(kept):])
	cl.open = kept
}

// answer checks what a client is told.
func (cl *clients) answer(r *request, reply *recordpb.Reply) {
	cl.answered++
	cl.done = append(cl.done, r)
	if !r.wait {
		if reply.Status != recordpb.Reply_ACCEPTED && reply.Status != recordpb.Reply_PREVIOUSLY_ACCEPTED {
			violated("idempotency", "invocation %s: a submission is answered with %s", r.id, reply.Status)
		}
		return
	}
	f := reply.GetResult().GetFailure()
	if reply.Status != recordpb.Reply_OK || f != nil && !cl.c.operators.mayFail(r.id) {
		violated("idempotency", "invocation %s: answered with %s %v", r.id, reply.Status, f)
	}
	if f != nil {
		r.failed = true
		return
	}
	r.output = bytes.Clone(reply.GetResult().GetSuccess())
	if r.key != "" {
		cl.c.services.given(r.key, r.id, r.output)
	}
	cl.c.w.trace("answer", uint64(r.part.id), cl.answered, uint64(len(r.output)))
}

// given checks that a counter has given each number once.
func (s *services) given(key string, id ident.InvocationID, output []byte) {
	n, err := strconv.ParseUint(string(output), 10, 64)
	if err != nil {
		violated("exactly once", "counter %s answers %q", key, output)
	}
	m := s.adds[key]
	if m == nil {
		m = map[uint64]ident.InvocationID{}
		s.adds[key] = m
	}
	if other, ok := m[n]; ok && other != id {
		violated("virtual object", "counter %s gives %d to %s and to %s", key, n, other, id)
	}
	m[n] = id
}

// asked reports whether a client has asked for an invocation.
func (cl *clients) asked(id ident.InvocationID) bool { return cl.ids[id] }

func (cl *clients) unsettled() string {
	if len(cl.open) > 0 {
		return fmt.Sprintf("%d requests have no answer, the first is %s of partition %d", len(cl.open), cl.open[0].id, cl.open[0].part.id)
	}
	return ""
}

// final checks the end: what was promised has happened, once, and every answer is still the same.
func (c *core) final() {
	for _, r := range c.clients.done {
		if c.operators.purged[r.id] == nil {
			c.kept(r)
		}
	}
	c.operators.settle()
	c.compareReplicas()
}

// kept checks what is kept of a request that was answered.
func (c *core) kept(r *request) {
	out, err := r.part.leader.store.Output(r.id)
	if err != nil {
		violated("idempotency", "invocation %s: output: %v", r.id, err)
	}
	failed := out.Result.GetFailure() != nil && c.operators.mayFail(r.id)
	if failed || out.Result == nil && c.operators.terminated[r.id] {
		// What is terminated before it began leaves nothing, and lives again if somebody asks again.
		if out.State == store.OutputReady && r.wait && !r.failed {
			violated("idempotency", "invocation %s was answered with %q and has failed", r.id, r.output)
		}
		return
	}
	c.services.whole(r, r.part.leader)
	if r.wait && !r.failed && !bytes.Equal(out.Result.GetSuccess(), r.output) {
		violated("idempotency", "invocation %s was answered with %q and has %q", r.id, r.output, out.Result.GetSuccess())
	}
	if r.key != "" && !r.wait {
		c.services.given(r.key, r.id, out.Result.GetSuccess())
	}
}

// counter is the number that an object has.
func (c *core) counter(key string) (n uint64) {
	p := c.partitions[c.lookup(ident.KeyPartition(key))]
	o := keyspace.Object{Partition: ident.KeyPartition(key), Service: "Counter", Key: key}
	err := p.leader.store.State(o, func(_, value []byte) error {
		n = binary.BigEndian.Uint64(value)
		return nil
	})
	if err != nil {
		violated("exactly once", "state of %s: %v", key, err)
	}
	return n
}

// compareReplicas lets every replica apply everything, and compares their rows.
func (c *core) compareReplicas() {
	limit := c.w.now + time.Minute
	tails := make([]cluster.LSN, len(c.partitions))
	for c.w.now < limit {
		behind := false
		for _, p := range c.partitions {
			tails[p.id] = c.w.oracle.logs[p.id].tail
		}
		c.w.now += time.Millisecond
		for _, n := range c.w.nodes {
			for _, wk := range n.workers {
				if wk.proc.proc.AppliedLSN()+1 < tails[wk.proc.p.id] {
					behind = true
				}
			}
		}
		if !behind {
			break
		}
		stop := c.w.now + 50*time.Millisecond
		for c.w.step(stop) {
		}
	}
	for _, p := range c.partitions {
		byLSN := map[cluster.LSN][16]byte{}
		for _, n := range c.w.nodes {
			for _, wk := range n.workers {
				if wk.proc.p != p {
					continue
				}
				h, err := wk.proc.store.StateHash()
				if err != nil {
					violated("apply", "state hash: %v", err)
				}
				at := wk.proc.proc.AppliedLSN()
				if old, ok := byLSN[at]; ok && old != h {
					violated("determinism", "partition %d: two replicas at %d differ", p.id, at)
				}
				byLSN[at] = h
			}
		}
	}
}
