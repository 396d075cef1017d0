package loglet

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"perdure/control/cluster"
	"perdure/nodes/logserver"
	"perdure/nodes/transport"
)

// desk drives a sequencer by hand.
type desk struct {
	t       *testing.T
	s       *Sequencer
	now     time.Duration
	sends   []Send
	commits []string
}

func newDesk(t *testing.T, nodes, copies int, cfg SequencerConfig) *desk {
	t.Helper()
	ids := make([]cluster.NodeID, nodes)
	for i := range ids {
		ids[i] = cluster.NodeID(i + 1)
	}
	p := Params{ID: 7, Sequencer: dead, Quorum: cluster.NewQuorum(ids, cluster.ReplicateTo(copies), healthyView{})}
	return &desk{t: t, s: NewSequencer(p, cfg), now: 1}
}

func (d *desk) collect(out *SequencerOutput) {
	d.sends = append(d.sends, out.Sends...)
	for _, c := range out.Commits {
		text := fmt.Sprintf("%v [%d,%d]", c.Token, c.First, c.Last())
		if c.Err != nil {
			text += " failed"
		}
		d.commits = append(d.commits, text)
	}
}

func (d *desk) append(token string, n int) error {
	out := &SequencerOutput{}
	err := d.s.Append(d.now, make([]logserver.Record, n), token, out)
	d.collect(out)
	return err
}

func (d *desk) mustAppend(token string, n int) {
	d.t.Helper()
	if err := d.append(token, n); err != nil {
		d.t.Fatalf("append %s: %v", token, err)
	}
}

// sent takes the stores that were sent to a node and lists their first offsets.
func (d *desk) sent(node int, want ...cluster.Offset) []Send {
	d.t.Helper()
	var mine, rest []Send
	var firsts []cluster.Offset
	for _, s := range d.sends {
		if s.Node != node {
			rest = append(rest, s)
			continue
		}
		mine = append(mine, s)
		firsts = append(firsts, s.Msg.(*logserver.StoreRequest).First)
	}
	d.sends = rest
	if !slices.Equal(firsts, want) {
		d.t.Fatalf("node %d was sent %v, want %v", node, firsts, want)
	}
	return mine
}

func (d *desk) answer(s Send, m transport.Message, err error) {
	out := &SequencerOutput{}
	d.s.Answer(d.now, &Answer{Send: s, Reply: m, Err: err}, out)
	d.collect(out)
}

func (d *desk) pass(t time.Duration) {
	d.now += t
	out := &SequencerOutput{}
	d.s.Tick(d.now, out)
	d.collect(out)
}

func (d *desk) committed(want ...string) {
	d.t.Helper()
	if !slices.Equal(d.commits, want) {
		d.t.Fatalf("commits %q, want %q", d.commits, want)
	}
	d.commits = nil
}

func refusal(s logserver.Status, tail cluster.Offset) *logserver.StateReply {
	return &logserver.StateReply{Status: s, LocalTail: tail, Sealed: s == logserver.StatusSealed}
}

func TestCommitsInOrderOnAWriteQuorum(t *testing.T) {
	d := newDesk(t, 3, 2, SequencerConfig{})
	d.mustAppend("a", 2)
	d.mustAppend("b", 3)
	s0, s1 := d.sent(0, 1, 3), d.sent(1, 1, 3)
	d.sent(2, 1, 3)
	d.answer(s0[0], state(3, 1, false), nil)
	d.committed()
	d.answer(s0[1], state(6, 1, false), nil)
	d.committed()
	d.answer(s1[0], state(3, 1, false), nil)
	d.committed("a [1,2]")
	d.answer(s1[1], state(6, 1, false), nil)
	d.committed("b [3,5]")
	if d.s.GlobalTail() != 6 || d.s.InFlight() != 0 {
		t.Errorf("global tail %d, %d in flight; want 6 and none", d.s.GlobalTail(), d.s.InFlight())
	}
	d.mustAppend("c", 1)
	if kgt := d.sent(0, 6)[0].Msg.(*logserver.StoreRequest).KnownGlobalTail; kgt != 6 {
		t.Errorf("store carries known global tail %d, want 6", kgt)
	}
}

func TestOneAnswerAcknowledgesAllBefore(t *testing.T) {
	d := newDesk(t, 1, 1, SequencerConfig{})
	d.mustAppend("a", 1)
	d.mustAppend("b", 1)
	s := d.sent(0, 1, 2)
	d.answer(s[1], state(3, 1, false), nil)
	d.committed("a [1,1]", "b [2,2]")
	d.answer(s[0], state(3, 1, false), nil)
	d.committed()
}

// TestSealedTailIsNoAcknowledgement: repair has moved the tail of a sealed server, and a straggler
// has the same records. The segment was found sealed below them; nobody would read them.
func TestSealedTailIsNoAcknowledgement(t *testing.T) {
	d := newDesk(t, 3, 2, SequencerConfig{})
	d.mustAppend("a", 3)
	s0, s1 := d.sent(0, 1), d.sent(1, 1)
	d.answer(s0[0], state(4, 1, false), nil)
	d.answer(s1[0], refusal(logserver.StatusSealed, 4), nil)
	d.committed()
	sealed := state(4, 4, true)
	d.answer(d.sent(2, 1)[0], sealed, nil)
	d.committed()
}

func TestSealedOnFMajorityEnds(t *testing.T) {
	d := newDesk(t, 3, 2, SequencerConfig{})
	d.mustAppend("a", 1)
	d.mustAppend("b", 1)
	d.answer(d.sent(0, 1, 2)[0], refusal(logserver.StatusSealed, 1), nil)
	d.committed()
	d.answer(d.sent(1, 1, 2)[0], refusal(logserver.StatusSealed, 1), nil)
	d.committed("a [1,1] failed", "b [2,2] failed")
	if err := d.append("c", 1); !errors.Is(err, ErrSealed) {
		t.Errorf("append: %v, want ErrSealed", err)
	}
	d.answer(d.sent(2, 1, 2)[0], state(3, 1, false), nil)
	d.committed()
}

func TestWriteQuorumLostForEver(t *testing.T) {
	d := newDesk(t, 3, 2, SequencerConfig{})
	d.mustAppend("a", 1)
	d.answer(d.sent(0, 1)[0], refusal(logserver.StatusDisabled, 1), nil)
	d.committed()
	d.answer(d.sent(1, 1)[0], refusal(logserver.StatusDataLoss, 1), nil)
	d.committed("a [1,1] failed")
	if err := d.s.Stopped(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("stopped by %v, want ErrUnavailable", err)
	}
}

func TestResends(t *testing.T) {
	for name, fail := range map[string]func(d *desk, s []Send){
		"unreachable":   func(d *desk, s []Send) { d.answer(s[0], nil, transport.ErrUnreachable) },
		"lost":          func(d *desk, s []Send) { d.answer(s[0], nil, transport.ErrConnectionLost) },
		"out of bounds": func(d *desk, s []Send) { d.answer(s[1], refusal(logserver.StatusOutOfBounds, 1), nil) },
		"overloaded":    func(d *desk, s []Send) { d.answer(s[0], refusal(logserver.StatusOverloaded, 1), nil) },
		"no answer":     func(d *desk, _ []Send) { d.pass(3 * time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, 1, 1, SequencerConfig{})
			d.mustAppend("a", 1)
			d.mustAppend("b", 1)
			old := d.sent(0, 1, 2)
			fail(d, old)
			d.sent(0)
			d.pass(20 * time.Millisecond)
			s := d.sent(0, 1, 2)
			d.answer(old[1], nil, transport.ErrConnectionLost) // of the former attempt: no reason to send again
			d.pass(20 * time.Millisecond)
			d.sent(0)
			d.answer(s[0], state(2, 1, false), nil)
			d.answer(s[1], state(3, 1, false), nil)
			d.committed("a [1,1]", "b [2,2]")
		})
	}
}

// TestReturningServerSkipsWhatIsCommitted and is told so.
func TestReturningServerSkipsWhatIsCommitted(t *testing.T) {
	d := newDesk(t, 3, 2, SequencerConfig{})
	d.mustAppend("a", 5)
	d.answer(d.sent(2, 1)[0], nil, transport.ErrUnreachable)
	d.answer(d.sent(0, 1)[0], state(6, 1, false), nil)
	d.answer(d.sent(1, 1)[0], state(6, 1, false), nil)
	d.committed("a [1,5]")
	d.mustAppend("b", 1)
	d.pass(20 * time.Millisecond)
	if m := d.sent(2, 6)[0].Msg.(*logserver.StoreRequest); m.KnownGlobalTail != 6 {
		t.Errorf("store carries known global tail %d, want 6", m.KnownGlobalTail)
	}
}

func TestWindowAndLimit(t *testing.T) {
	d := newDesk(t, 1, 1, SequencerConfig{Window: 2, MaxInFlight: 10})
	d.mustAppend("big", 50) // one may always go
	if err := d.append("a", 1); !errors.Is(err, ErrFull) {
		t.Fatalf("append: %v, want ErrFull", err)
	}
	d.answer(d.sent(0, 1)[0], state(51, 1, false), nil)
	d.mustAppend("a", 1)
	d.mustAppend("b", 1)
	d.mustAppend("c", 1)
	s := d.sent(0, 51, 52)
	d.answer(s[0], state(52, 1, false), nil)
	d.sent(0, 53)
}

func TestStallEnds(t *testing.T) {
	d := newDesk(t, 1, 1, SequencerConfig{StallTimeout: 10 * time.Second, StoreTimeout: time.Hour})
	d.now = time.Hour // idle before: not a stall
	d.mustAppend("a", 1)
	at, ok := d.s.NextTick()
	if !ok || at != d.now+10*time.Second {
		t.Errorf("next tick at %v, %v; want when the stall ends", at, ok)
	}
	d.pass(9 * time.Second)
	d.committed()
	d.pass(2 * time.Second)
	d.committed("a [1,1] failed")
	if err := d.s.Stopped(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("stopped by %v, want ErrUnavailable", err)
	}
}

// TestOverloadIsNoStall: servers that answer that they take nothing now, for their disk is nearly full, would take no more in
// another segment.
func TestOverloadIsNoStall(t *testing.T) {
	for _, servers := range []int{1, 3} {
		d := newDesk(t, servers, (servers+1)/2, SequencerConfig{StallTimeout: 10 * time.Second})
		d.mustAppend("a", 1)
		busy := func(n int) {
			for i := range n {
				d.answer(d.sent(i, 1)[0], refusal(logserver.StatusOverloaded, 1), nil)
			}
			d.pass(time.Second)
		}
		for range 40 {
			busy((servers + 1) / 2)
		}
		d.committed()
		if err := d.s.Stopped(); err != nil {
			t.Fatalf("%d servers: stopped by %v although a write quorum answers", servers, err)
		}
		for range 20 { // fewer than that answer
			if d.s.Stopped() == nil {
				busy((servers+1)/2 - 1)
			}
		}
		d.committed("a [1,1] failed")
	}
}

func TestOffsetsUsedUp(t *testing.T) {
	d := newDesk(t, 1, 1, SequencerConfig{})
	d.s.next = logserver.MaxOffset - 5
	d.s.servers[0].tail = d.s.next
	d.mustAppend("a", 2)
	if err := d.append("b", 5); !errors.Is(err, ErrFull) {
		t.Errorf("append: %v, want ErrFull until the last batch has ended", err)
	}
	d.answer(d.sent(0, logserver.MaxOffset-5)[0], state(logserver.MaxOffset-3, 1, false), nil)
	d.commits = nil
	if err := d.append("b", 5); !errors.Is(err, ErrUnavailable) || !errors.Is(d.s.Stopped(), ErrUnavailable) {
		t.Errorf("append: %v, stopped by %v; want ErrUnavailable, so that the log continues elsewhere", err, d.s.Stopped())
	}
}

func TestStopIsFinal(t *testing.T) {
	d := newDesk(t, 1, 1, SequencerConfig{})
	d.mustAppend("a", 1)
	s := d.sent(0, 1)
	out := &SequencerOutput{}
	d.s.Stop(ErrSealed, out)
	d.s.Stop(ErrUnavailable, out)
	if len(out.Commits) != 1 || !errors.Is(out.Commits[0].Err, ErrUnknownOutcome) || !errors.Is(out.Commits[0].Err, ErrSealed) {
		t.Fatalf("stop ends %+v, want one of unknown outcome", out.Commits)
	}
	d.answer(s[0], state(2, 1, false), nil)
	d.committed()
	if d.s.GlobalTail() != 1 {
		t.Errorf("global tail %d moved after the stop", d.s.GlobalTail())
	}
	if _, ok := d.s.NextTick(); ok {
		t.Error("a stopped sequencer wants a tick")
	}
}

// A server whose pause after an error is over and that has everything already must not make ticks due all the
// time: the driver would spin until the batch is committed by others.
func TestNoTickIsDueForAServerThatHasEverything(t *testing.T) {
	d := newDesk(t, 3, 2, SequencerConfig{})
	d.mustAppend("a", 1)
	stores := d.sent(0, 1)
	d.answer(stores[0], nil, transport.ErrConnectionLost) // the store has arrived all the same
	d.pass(time.Second)
	again := d.sent(0, 1)
	d.pass(3 * time.Second)                     // no answer: another pause begins
	d.answer(again[0], state(2, 1, false), nil) // now it comes, late
	d.pass(2 * time.Second)
	d.sent(0)
	if at, ok := d.s.NextTick(); ok && at <= d.now {
		t.Errorf("a tick is due at %v, now is %v, and there is nothing to do", at, d.now)
	}
}
