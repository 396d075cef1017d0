package invokers

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/invokers/transport"
)

// seeds returns the seeds to run: one of the environment (INVOKERS_SEED) or some new ones. They are printed
// with each failure.
func seeds(t *testing.T, n int) []uint64 {
	if s := os.Getenv("INVOKERS_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return []uint64{v}
	}
	out := make([]uint64, n)
	for i := range out {
		out[i] = rand.Uint64()
	}
	return out
}

// TestRandom lets many invocations run against a service that does random things, over a log that stands
// still at random, with aborts, pauses, manual retries and resumes. Whatever happens:
//   - the journal that an attempt is given is the one in the log, and holds all that earlier attempts of the
//     incarnation proposed;
//   - no more attempts are open than there are slots;
//   - the proposals of an incarnation are numbered without a gap;
//   - in the end every invocation that was not killed has ended with all of its steps, each exactly once.
func TestRandom(t *testing.T) {
	for _, seed := range seeds(t, 12) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { (&chaos{t: t, r: rand.New(rand.NewPCG(seed, 1))}).run() })
		})
	}
}

type chaos struct {
	t *testing.T
	w *world

	mu   sync.Mutex
	r    *rand.Rand
	calm bool // no more faults
}

const (
	chaosInvocations = 8
	chaosSlots       = 4
	chaosSteps       = 6
)

func (c *chaos) chance(percent int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.r.IntN(100) < percent
}

func (c *chaos) fault(percent int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.calm && c.r.IntN(100) < percent
}

func (c *chaos) number(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.r.IntN(n)
}

func (c *chaos) run() {
	c.w = newWorld(c.t, func(cfg *Config, d *Deps) {
		cfg.ConcurrencyLimit, cfg.AnnounceV7 = chaosSlots, c.r.IntN(2) == 0
		d.Transport = openFunc(c.openExchange)
	})
	d := deployment()
	d.Services[0].Overrides.Retry.MaxAttempts = ptrTo(uint64(3))
	c.w.schema.set(d)
	for n := range chaosInvocations {
		c.w.log.invoke(invocationID(byte(n)), plain(), c.chance(50))
	}
	for range 200 {
		c.disturb()
		c.checkSlots()
		elapse(time.Duration(c.number(400)) * time.Millisecond)
	}
	c.mu.Lock()
	c.calm = true
	c.mu.Unlock()
	c.w.log.hold(false)
	for range 500 {
		if c.settle() {
			break
		}
		elapse(time.Minute)
	}
	c.check()
}

// disturb does something that an operator or the log could do.
func (c *chaos) disturb() {
	id := invocationID(byte(c.number(chaosInvocations)))
	switch c.number(8) {
	case 0:
		c.w.log.hold(true)
	case 1, 2:
		c.w.log.hold(false)
	case 3:
		c.later(func() { c.w.partition.Pause(id) })
	case 4:
		c.later(func() { c.w.partition.RetryNow(id) })
	case 5:
		c.resumeStopped(id)
	case 6:
		if c.number(10) == 0 {
			c.later(func() {
				if c.w.log.rows[id].state == "invoked" {
					c.w.log.rows[id].state = "killed"
					c.w.partition.Abort(id)
				}
			})
		}
	case 7: // a signal
		c.later(func() {
			if r := c.w.log.rows[id]; r.state == "invoked" {
				c.w.log.append(r, protocol.TypeSignal, protocol.SignalIndex(uint32(len(r.Entries)), nil))
			}
		})
	}
}

// later runs f in the log's loop without waiting: the loop may stand still.
func (c *chaos) later(f func()) {
	c.w.log.mu.Lock()
	c.w.log.queue = append(c.w.log.queue, f)
	c.w.log.cond.Broadcast()
	c.w.log.mu.Unlock()
}

func (c *chaos) resumeStopped(id ident.InvocationID) {
	c.later(func() {
		if r := c.w.log.rows[id]; r.state == "suspended" || r.state == "paused" {
			r.state = "invoked"
			r.Incarnation++
			c.w.partition.Invoke(id, r.Incarnation, r.Target.Service, r.Deployment, nil)
		}
	})
}

func (c *chaos) settle() bool {
	done := true
	for n := range chaosInvocations {
		id := invocationID(byte(n))
		switch r := c.w.log.row(id); r.state {
		case "suspended", "paused":
			c.resumeStopped(id)
			done = false
		case "invoked":
			done = false
		}
	}
	return done
}

// openExchange is the service.
func (c *chaos) openExchange(o openArgs) (transport.Stream, error) {
	if c.fault(10) {
		kinds := []transport.Kind{transport.Connect, transport.Reset, transport.NotProcessed}
		return nil, &transport.Error{Kind: kinds[c.number(3)], Err: fmt.Errorf("chaos")}
	}
	m := c.w.transport
	m.mu.Lock()
	m.scripts = append(m.scripts, c.serve)
	m.mu.Unlock()
	return m.Open(o.ctx, o.ep, o.req)
}

func (c *chaos) serve(v *service) {
	if c.fault(5) {
		v.respond(503)
		return
	}
	v.accept()
	start, entries := v.replayOrCancel()
	if start == nil {
		return
	}
	id, _ := ident.InvocationIDFromBytes(start.Id)
	steps := c.checkReplay(id, entries)
	for ; steps < chaosSteps; steps++ {
		if c.fault(15) {
			c.fail(v)
			return
		}
		v.send(stepFrame(id, steps), proposeFrame(uint32(steps)+1, "r"))
		if c.fault(10) {
			v.send(sleepFrame(1000), suspendFrame7(v, 1000))
			v.end(eof)
			return
		}
		if c.chance(50) && !c.awaitRun(v, uint32(steps)+1) {
			if v.s.isCanceled() {
				return
			}
			v.send(suspendFrame7(v, uint32(steps)+1)) // half-closed: the service is asked to suspend
			v.end(eof)
			return
		}
		elapse(time.Duration(c.number(50)) * time.Millisecond)
	}
	v.send(output("x"), endFrame)
	v.end(eof)
}

// stepFrame is the nth step of an invocation: a run whose name tells them apart.
func stepFrame(id ident.InvocationID, n int) []byte {
	return frame(protocol.TypeRun, &protocolpb.RunCommand{ResultCompletionId: uint32(n) + 1, Name: stepName(id, n)})
}

func stepName(id ident.InvocationID, n int) string { return fmt.Sprintf("%d/%d", id[0], n) }

// suspendFrame7 suspends in the layout of the attempt's version.
func suspendFrame7(v *service, completion uint32) []byte {
	if bytes.HasSuffix([]byte(v.s.request.Header[0].Value), []byte("v7")) {
		return frame(protocol.TypeSuspension, &protocolpb.Suspension{AwaitingOn: &protocolpb.Future{WaitingCompletions: []uint32{completion}}})
	}
	return suspendFrame(completion)
}

func (c *chaos) fail(v *service) {
	switch c.number(5) {
	case 0:
		v.end(&transport.Error{Kind: transport.Reset, Err: fmt.Errorf("chaos")})
	case 1:
		v.end(eof)
	case 2:
		v.send(errorFrame(&protocolpb.Error{Code: 500, Message: fmt.Sprint(c.number(3))}))
		v.end(eof)
	case 3:
		v.send(errorFrame(&protocolpb.Error{Code: 500, NextRetryDelay: ptrTo(uint64(c.number(3000)))}))
		v.end(eof)
	case 4:
		v.send(protocol.AppendFrame(nil, protocol.TypeOutput, nil), output("never"))
		v.end(eof)
	}
}

// awaitRun waits for the completion of a run; false at the end of the request.
func (c *chaos) awaitRun(v *service, completion uint32) bool {
	for {
		f, ok := v.next()
		if !ok {
			return false
		}
		if f.Type == protocol.TypeRunCompletion && protocol.IdentifyNotification(f.Payload).Number == completion {
			return true
		}
	}
}

// checkReplay compares a replay with the log and with what was proposed, and counts its steps.
func (c *chaos) checkReplay(id ident.InvocationID, entries []protocol.Frame) (steps int) {
	l := c.w.log
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.rows[id]
	if len(entries) > len(r.Entries) {
		c.t.Errorf("%d entries were replayed of %d", len(entries), len(r.Entries))
		return 0
	}
	for i, e := range entries {
		if e.Type != r.Entries[i].Type || !bytes.Equal(e.Payload, r.Entries[i].Raw) {
			c.t.Errorf("entry %d of %d differs from the log", i, id[0])
		}
		if e.Type == protocol.TypeRun {
			steps++
		}
	}
	proposed := 0
	for _, p := range l.proposed {
		if p.id == id && p.incarnation == r.Incarnation && r.state == "invoked" {
			for _, e := range p.effects {
				if command := e.GetCommand(); command != nil && command.Type == uint32(protocol.TypeRun) {
					proposed++
				}
			}
		}
	}
	if r.state == "invoked" && steps < proposed {
		c.t.Errorf("an attempt of %d was given %d steps, but %d were proposed in its incarnation alone", id[0], steps, proposed)
	}
	return steps
}

func (c *chaos) checkSlots() {
	open := 0
	c.w.partition.Status(func(s Status) bool {
		if s.InFlight {
			open++
		}
		return true
	})
	if open > chaosSlots {
		c.t.Errorf("%d attempts are open with %d slots", open, chaosSlots)
	}
}

func (c *chaos) check() {
	l := c.w.log
	l.mu.Lock()
	defer l.mu.Unlock()
	next := map[[2]uint64]uint64{}
	for _, p := range l.proposed {
		k := [2]uint64{binary.BigEndian.Uint64(p.id[:8]), p.incarnation}
		if next[k]++; p.sequence != next[k] {
			c.t.Errorf("proposal %d of invocation %d comes as number %d", p.sequence, p.id[0], next[k])
		}
	}
	for id, r := range l.rows {
		if r.state != "ended" && r.state != "killed" {
			c.t.Errorf("invocation %d is %s at the end", id[0], r.state)
		}
		n := 0
		for _, e := range r.Entries {
			if e.Type != protocol.TypeRun {
				continue
			}
			if got := protocol.CommandName(e.Raw); got != stepName(id, n) {
				c.t.Errorf("step %d of invocation %d is %s", n, id[0], got)
			}
			n++
		}
		if r.state == "ended" && n != chaosSteps {
			c.t.Errorf("invocation %d ended after %d steps", id[0], n)
		}
	}
}

// replayOrCancel reads Start and the journal; nil if the exchange is canceled before.
func (v *service) replayOrCancel() (*protocolpb.Start, []protocol.Frame) {
	f, ok := v.next()
	if !ok {
		return nil, nil
	}
	start := startOf(v.t, f)
	var entries []protocol.Frame
	for range start.KnownEntries {
		e, ok := v.next()
		if !ok {
			return nil, nil
		}
		entries = append(entries, e)
	}
	return start, entries
}

func (s *memStream) isCanceled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.canceled
}

// FuzzReceive feeds an attempt with whatever a service could send. It must come to an end, and everything that
// it proposes must be fit for the log.
func FuzzReceive(f *testing.F) {
	for _, x := range loadVectors(f) {
		var b []byte
		for _, s := range x.steps(f) {
			if !s.fromServer {
				b = append(b, s.raw...)
			}
		}
		f.Add(b, x.ProtocolVersion == 7, uint16(len(b)/2))
	}
	f.Fuzz(func(t *testing.T, b []byte, seven bool, cut uint16) {
		schemas := &testSchema{}
		schemas.set(deployment())
		cfg := DefaultConfig("c")
		cfg.AnnounceV7 = seven
		version := uint32(6)
		if seven {
			version = 7
		}
		n := min(int(cut), len(b))
		tr := &pieces{version: version, b: [][]byte{b[:n], b[n:]}}
		pool, err := NewPool(cfg, Deps{Schema: schemas, Transport: tr})
		if err != nil {
			t.Fatal(err)
		}
		h := &collectingHost{t: t, over: make(chan struct{})}
		p := pool.Open(0, h)
		h.p = p
		p.Invoke(invocationID(1), 1, "Svc", ident.DeploymentID{}, &Journal{
			ID: invocationID(1), Incarnation: 1, Target: object("add", "k"), Entries: []Entry{{Type: protocol.TypeInput, Raw: []byte{0x72, 0}}},
		})
		<-h.over
		p.Close()
		if used := pool.memory.used.Load(); used != 0 {
			t.Fatalf("%d bytes are still reserved", used)
		}
	})
}

// pieces answers with byte slices, one for each Read.
type pieces struct {
	version uint32
	b       [][]byte
}

func (p *pieces) Open(o context.Context, _ transport.Endpoint, _ transport.Request) (transport.Stream, error) {
	return &pieceStream{version: p.version, b: append([][]byte(nil), p.b...)}, nil
}

type pieceStream struct {
	cannedStream
	version uint32
	b       [][]byte
}

func (s *pieceStream) Response() (transport.Response, error) {
	return transport.Response{Status: 200, Header: []transport.Field{{Name: "content-type", Value: contentType(s.version)}}}, nil
}

func (s *pieceStream) Buffered() int { return 0 }

func (s *pieceStream) Read(p []byte) (int, error) {
	for len(s.b) > 0 && len(s.b[0]) == 0 {
		s.b = s.b[1:]
	}
	if len(s.b) == 0 {
		return 0, eof
	}
	n := copy(p, s.b[0])
	s.b[0] = s.b[0][n:]
	return n, nil
}

// collectingHost checks what is proposed; the first effect that ends an attempt ends the test.
type collectingHost struct {
	t    *testing.T
	p    *Partition
	over chan struct{}
	once sync.Once
}

func (h *collectingHost) ReadJournal(ident.InvocationID, EagerLimit, func(int) bool) (*Journal, error) {
	return nil, fmt.Errorf("not asked for")
}

func (h *collectingHost) Propose(_ context.Context, id ident.InvocationID, incarnation, sequence uint64, effects []*invocationpb.Effect) error {
	for _, e := range effects {
		if c := e.GetCommand(); c != nil {
			if err := protocol.CheckCommand(uint16(c.Type), c.Raw); err != nil {
				h.t.Errorf("proposed a command that cannot be applied: %v", err)
			}
			if call := uint16(c.Type) == protocol.TypeCall || uint16(c.Type) == protocol.TypeOneWayCall; call != (c.Callee != nil) {
				h.t.Errorf("%s with callee %v", protocol.Name(uint16(c.Type)), c.Callee)
			}
		}
	}
	switch kindOf(effects[len(effects)-1]) {
	case "end", "failed", "paused", "suspended", "attempt failed":
		h.once.Do(func() { close(h.over) })
		h.p.Abort(id)
	}
	h.p.Applied(id, incarnation, sequence)
	return nil
}
