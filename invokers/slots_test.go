package invokers

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
)

// testSlots is a pool of slots whose attempts the test ends.
type testSlots struct {
	*slots
	holding map[byte][]*share // by deployment
	order   []*invocation     // in which slots were granted from the queue
}

func newTestSlots(limit int) *testSlots {
	return &testSlots{slots: &slots{limit: limit, shares: map[ident.DeploymentID]*share{}}, holding: map[byte][]*share{}}
}

// want asks for n slots for a deployment and returns how many were given at once.
func (s *testSlots) want(d byte, n int) (given int) {
	for range n {
		inv := &invocation{pinned: deploymentNo(d)}
		if sh := s.acquire(inv, inv.pinned); sh != nil {
			s.holds(d, sh)
			given++
		}
	}
	return given
}

func (s *testSlots) holds(d byte, sh *share) { s.holding[d] = append(s.holding[d], sh) }

func (s *testSlots) held(d byte) int { return len(s.holding[d]) }

// end releases a slot of a deployment, as Partition.giveBack does.
func (s *testSlots) end(d byte) {
	n := len(s.holding[d]) - 1
	sh := s.holding[d][n]
	s.holding[d] = s.holding[d][:n]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveLocked(sh)
	for {
		inv, sh := s.nextLocked()
		if inv == nil {
			return
		}
		s.holds(inv.pinned[0], sh)
		s.order = append(s.order, inv)
	}
}

func deploymentNo(d byte) ident.DeploymentID { return ident.DeploymentID{0: d} }

// TestSlotsOfHangingDeployments: each deployment whose attempts never end leaves slots for those who come after it.
func TestSlotsOfHangingDeployments(t *testing.T) {
	s := newTestSlots(1000)
	for d, want := range []int{875, 110, 14, 1} {
		if got := s.want(byte(d+1), 5000); got != want {
			t.Errorf("deployment %d, after as many that hang, got %d slots, want %d", d+1, got, want)
		}
	}
}

// TestSlotsOfOneDeployment: small limits are used to the full, big ones to seven eighths.
func TestSlotsOfOneDeployment(t *testing.T) {
	for limit, want := range map[int]int{1: 1, 2: 2, 7: 7, 8: 7, 16: 14, 100: 88, 1000: 875} {
		if got := newTestSlots(limit).want(1, 2*limit); got != want {
			t.Errorf("of %d slots, a deployment alone got %d, want %d", limit, got, want)
		}
	}
}

// TestSlotsBecomeEqual: a deployment that comes when another has all it may have is served at once, and gets the same as the
// other in the end.
func TestSlotsBecomeEqual(t *testing.T) {
	s := newTestSlots(1000)
	s.want(1, 10000)
	if got := s.want(2, 10000); got == 0 {
		t.Fatal("the second deployment got no slot")
	}
	for range 3000 {
		if rand.N(s.held(1)+s.held(2)) < s.held(1) {
			s.end(1)
		} else {
			s.end(2)
		}
	}
	if a, b := s.held(1), s.held(2); a < 450 || b < 450 || a+b > 1000 {
		t.Errorf("the deployments hold %d and %d slots, want 466 each", a, b)
	}
}

// TestSlotsInTurn: with one slot that becomes free after the other, deployments take turns, and each one's invocations come
// in their order.
func TestSlotsInTurn(t *testing.T) {
	s := newTestSlots(3)
	s.want(9, 3)
	invs := map[byte][]*invocation{}
	for _, d := range []byte{1, 1, 1, 1, 2, 3, 2} {
		inv := &invocation{pinned: deploymentNo(d)}
		if s.acquire(inv, inv.pinned) != nil {
			t.Fatal("there was a slot")
		}
		invs[d] = append(invs[d], inv)
	}
	for _, d := range []byte{9, 9, 9, 1, 2, 3, 1} {
		s.end(d)
	}
	want := []*invocation{invs[1][0], invs[2][0], invs[3][0], invs[1][1], invs[2][1], invs[1][2], invs[1][3]}
	for i, inv := range s.order {
		if inv != want[i] {
			t.Errorf("slot %d went to an invocation of deployment %d, want one of %d, in their order", i, inv.pinned[0], want[i].pinned[0])
		}
	}
	if s.queued.Load() != 0 || s.turn.Len() != 0 {
		t.Errorf("%d invocations still wait", s.queued.Load())
	}
}

// TestSlotsAtRandom: the books are right after any sequence of calls, nobody waits who could go on, and nobody is
// forgotten.
func TestSlotsAtRandom(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		s := newTestSlots(1 + r.IntN(40))
		var queued []*invocation
		for range 300 {
			d := byte(1 + r.IntN(5))
			switch r.IntN(5) {
			case 0, 1:
				inv := &invocation{pinned: deploymentNo(d)}
				if sh := s.acquire(inv, inv.pinned); sh != nil {
					s.holds(d, sh)
				} else {
					queued = append(queued, inv)
				}
			case 2, 3:
				if s.held(d) > 0 {
					s.end(d)
				}
			case 4:
				if len(queued) > 0 {
					s.leave(queued[r.IntN(len(queued))]) // may have a slot by now: then nothing happens
				}
			}
			waiting := 0
			for _, inv := range queued {
				if inv.waitsFor != nil {
					waiting++
				}
			}
			held := 0
			for _, shares := range s.holding {
				held += len(shares)
			}
			if s.used != held || s.used > s.limit || int(s.queued.Load()) != waiting {
				t.Fatalf("seed %d: %d slots used, %d held, limit %d; %d queued, %d wait", seed, s.used, held, s.limit, s.queued.Load(), waiting)
			}
			for id, sh := range s.shares {
				if sh.held != s.held(id[0]) || (sh.inTurn != nil) != (sh.waiting.Len() > 0) {
					t.Fatalf("seed %d: deployment %d holds %d slots, the books say %d", seed, id[0], s.held(id[0]), sh.held)
				}
				if sh.waiting.Len() > 0 && s.admitsLocked(sh) && s.used < s.limit {
					t.Fatalf("seed %d: an invocation of deployment %d waits although it could go on", seed, id[0])
				}
			}
		}
	}
}

// TestSharesAreForgotten: deployments that came and went leave nothing behind.
func TestSharesAreForgotten(t *testing.T) {
	s := newTestSlots(10)
	for n := range 10 * maxShares {
		d := ident.DeploymentID{1: byte(n >> 8), 2: byte(n)}
		sh := s.acquire(&invocation{pinned: d}, d)
		s.mu.Lock()
		s.giveLocked(sh)
		s.mu.Unlock()
	}
	if n := len(s.shares); n > maxShares {
		t.Errorf("%d deployments are remembered", n)
	}
}

// TestHangingService: a thousand invocations of a service that hangs do not keep those of another from running, whether new
// or resumed.
func TestHangingService(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var scripts []func(*service)
		for range 875 {
			scripts = append(scripts, func(v *service) { v.replay(); v.canceled() })
		}
		w := newWorld(t, nil, append(scripts, func(v *service) {
			v.accept()
			v.replay()
			v.send(sleepFrame(1), suspendFrame(1))
			v.end(eof)
		}, echo)...)
		other := deployment()
		other.ID, other.CreatedMs = ident.DeploymentID{9}, 2
		other.Address = schema.Address{HTTP: &schema.HTTPAddress{URI: "http://other:9080", Version: schema.HTTP2}}
		other.Services = []schema.ServiceRevision{{Name: "Other", Type: schema.Service, Revision: 1, Handlers: []schema.Handler{{Name: "greet", Type: schema.Shared}}}}
		w.schema.set(deployment(), other)
		numbered := func(n int) ident.InvocationID { return ident.InvocationID{22: byte(n >> 8), 23: byte(n)} }
		for n := range 1000 {
			w.log.invoke(numbered(n), plain(), true)
		}
		w.transport.waitOpened(t, 875)
		target := &invocationpb.Target{Service: "Other", Handler: "greet", ServiceType: uint32(schema.Service), HandlerType: uint32(schema.Shared)}
		id := numbered(5000)
		w.log.invoke(id, target, true)
		w.log.await(id, "suspended")
		w.log.resume(id)
		w.log.await(id, "ended")
		synctest.Wait()
		if n := w.pool.slots.queued.Load(); n != 125 {
			t.Errorf("%d invocations wait, want 125", n)
		}
	})
}
