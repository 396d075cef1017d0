package loglet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"perdure/control/cluster"
	"perdure/nodes/logserver"
	"perdure/nodes/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var dead = cluster.GenNodeID{ID: 9, Generation: 1}

// table drives a finder with canned server states and keeps the requests that it has not answered.
type table struct {
	t       *testing.T
	f       *Finder
	now     time.Duration
	pending map[int]Send
}

func newTable(t *testing.T, nodes, copies int, mode FinderMode) *table {
	t.Helper()
	ids := make([]cluster.NodeID, nodes)
	for i := range ids {
		ids[i] = cluster.NodeID(i + 1)
	}
	p := Params{ID: 7, Sequencer: dead, Quorum: cluster.NewQuorum(ids, cluster.ReplicateTo(copies), healthyView{})}
	tb := &table{t: t, f: NewFinder(p, mode, FinderConfig{}), now: 1, pending: map[int]Send{}}
	tb.take(tb.f.Start(tb.now))
	return tb
}

func (tb *table) take(sends []Send) {
	for _, s := range sends {
		tb.pending[s.Node] = s
	}
}

// asks lists what is asked of the servers.
func (tb *table) asks(want ...string) {
	tb.t.Helper()
	var got []string
	for _, s := range tb.pending {
		got = append(got, fmt.Sprintf("%d %T", s.Node, s.Msg))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		tb.t.Fatalf("asks %q, want %q", got, want)
	}
}

func (tb *table) answer(node int, m transport.Message) {
	tb.t.Helper()
	s, ok := tb.pending[node]
	if !ok {
		tb.t.Fatalf("server %d was not asked", node)
	}
	delete(tb.pending, node)
	tb.take(tb.f.Answer(tb.now, &Answer{Send: s, Reply: m}))
}

func (tb *table) pass(d time.Duration) {
	tb.now += d
	tb.take(tb.f.Tick(tb.now))
}

func (tb *table) result(want TailResult) {
	tb.t.Helper()
	if got, ok := tb.f.Done(); !ok || got != want {
		tb.t.Fatalf("result %+v, %v; want %+v", got, ok, want)
	}
}

func (tb *table) unfinished() {
	tb.t.Helper()
	if got, ok := tb.f.Done(); ok {
		tb.t.Fatalf("finished with %+v", got)
	}
}

func state(tail, global cluster.Offset, sealed bool) *logserver.StateReply {
	return &logserver.StateReply{LocalTail: tail, KnownGlobalTail: global, Sealed: sealed}
}

func TestFindOpenTail(t *testing.T) {
	tb := newTable(t, 3, 2, FindTail)
	tb.asks("0 *logserver.InfoRequest", "1 *logserver.InfoRequest", "2 *logserver.InfoRequest")
	tb.answer(0, state(11, 8, false))
	tb.unfinished()
	tb.answer(2, state(11, 8, false))
	tb.result(TailResult{Tail: 11})
}

func TestFindOpenTailByGlobalTail(t *testing.T) {
	tb := newTable(t, 3, 2, FindTail)
	tb.answer(0, state(11, 11, false))
	tb.answer(1, state(6, 5, false)) // lags, but everything is known to be committed
	tb.result(TailResult{Tail: 11})
}

func TestFindTailWaitsForStoresUnderWay(t *testing.T) {
	tb := newTable(t, 3, 2, FindTail)
	tb.answer(0, state(11, 8, false))
	tb.answer(1, state(8, 8, false))
	tb.unfinished()
	tb.answer(0, state(11, 8, false)) // to the wait
	tb.answer(1, state(11, 8, false))
	tb.result(TailResult{Tail: 11})
}

func TestFindTailSealsForADeadSequencer(t *testing.T) {
	tb := newTable(t, 3, 2, FindTail)
	tb.f.SequencerGone()
	tb.answer(0, state(11, 8, false))
	tb.answer(1, state(8, 8, false))
	tb.asks("0 *logserver.SealRequest", "1 *logserver.SealRequest", "2 *logserver.SealRequest")
}

func TestFindTailLosesPatience(t *testing.T) {
	tb := newTable(t, 3, 2, FindTail)
	tb.answer(0, state(11, 8, false))
	tb.answer(1, state(8, 8, false))
	tb.pass(6 * time.Second)
	tb.pass(time.Second)
	if _, seal := tb.pending[0].Msg.(*logserver.SealRequest); !seal {
		t.Fatalf("asks %T after its patience, want a seal", tb.pending[0].Msg)
	}
}

func TestFindTailFinishesASeal(t *testing.T) {
	tb := newTable(t, 3, 2, FindTail)
	tb.answer(0, state(11, 11, true))
	tb.answer(1, state(11, 11, false))
	tb.asks("0 *logserver.SealRequest", "1 *logserver.SealRequest", "2 *logserver.SealRequest")
	tb.answer(0, state(11, 11, true))
	tb.unfinished()
	tb.answer(1, state(11, 11, true))
	tb.result(TailResult{Tail: 11, Sealed: true})
}

func TestSealOnOneServerIsOneMessage(t *testing.T) {
	tb := newTable(t, 1, 1, SealTail)
	tb.answer(0, state(11, 1, true))
	tb.result(TailResult{Tail: 11, Sealed: true})
}

// TestRepairCopiesWhatIsMissing: offsets 8 and 9 are on one server only.
func TestRepairCopiesWhatIsMissing(t *testing.T) {
	tb := newTable(t, 3, 2, SealTail)
	tb.answer(0, state(10, 5, true))
	tb.answer(1, state(8, 5, true))
	tb.answer(0, &logserver.DigestReply{StateReply: *state(10, 5, true), Exists: []logserver.Range{{From: 5, To: 10}}})
	tb.answer(1, &logserver.DigestReply{StateReply: *state(8, 5, true), Exists: []logserver.Range{{From: 5, To: 8}}})
	read, ok := tb.pending[0].Msg.(*logserver.ReadRequest)
	if !ok || read.From != 8 || read.To != 10 {
		t.Fatalf("asks %+v, want a read of [8,10)", tb.pending[0].Msg)
	}
	found := []logserver.Found{{Offset: 8, Record: logserver.Record{Payload: []byte("eight")}}, {Offset: 9, Record: logserver.Record{Payload: []byte("nine")}}}
	tb.answer(0, &logserver.ReadReply{StateReply: *state(10, 5, true), Records: found})
	store, ok := tb.pending[1].Msg.(*logserver.StoreRequest)
	if !ok || !store.Repair || store.First != 8 || len(store.Records) != 2 || store.KnownGlobalTail != 8 || store.Sequencer != dead {
		t.Fatalf("asks %+v, want a repair store of 8 and 9", tb.pending[1].Msg)
	}
	tb.unfinished()
	tb.answer(1, state(10, 8, true))
	tb.result(TailResult{Tail: 10, Sealed: true})
}

// TestFinderDoesNotSpin: the only server has lost committed records without noticing. There is no way on, but that is no reason
// to ask it as fast as it answers.
func TestFinderDoesNotSpin(t *testing.T) {
	tb := newTable(t, 1, 1, SealTail)
	tb.f.Know(20)
	answers := 0
	for range 10 {
		for len(tb.pending) > 0 {
			if answers++; answers > 100 {
				t.Fatalf("%d requests within %v", answers, tb.now)
			}
			tb.answer(0, state(10, 10, true))
		}
		tb.pass(10 * time.Millisecond)
	}
	tb.unfinished()
	if answers < 3 {
		t.Errorf("%d requests within %v, want it to try again", answers, tb.now)
	}
	answers = 0
	for began := tb.now; tb.now < began+time.Minute; tb.pass(10 * time.Millisecond) {
		for len(tb.pending) > 0 {
			answers++
			tb.answer(0, state(10, 10, true))
		}
	}
	if answers < 60 || answers > 150 {
		t.Errorf("%d requests in a minute, want two each second", answers)
	}
}

// TestSlowAnswersCount: a disk on which each write takes longer than the patience with one request must not keep a repair
// from ever ending.
func TestSlowAnswersCount(t *testing.T) {
	tb := newTable(t, 2, 2, SealTail)
	// late lets server n answer only after its request was repeated.
	late := func(n int, m transport.Message) {
		t.Helper()
		first := tb.pending[n]
		for range 4 {
			tb.pass(400 * time.Millisecond)
		}
		if tb.pending[n].Msg == first.Msg {
			t.Fatalf("%T is not repeated", first.Msg)
		}
		delete(tb.pending, n)
		tb.take(tb.f.Answer(tb.now, &Answer{Send: first, Reply: m}))
	}
	late(0, state(10, 5, true))
	late(1, state(9, 5, true))
	late(0, &logserver.DigestReply{StateReply: *state(10, 5, true), Exists: []logserver.Range{{From: 5, To: 10}}})
	late(1, &logserver.DigestReply{StateReply: *state(9, 5, true), Exists: []logserver.Range{{From: 5, To: 9}}})
	late(0, &logserver.ReadReply{StateReply: *state(10, 5, true), Records: []logserver.Found{{Offset: 9}}})
	late(1, state(10, 9, true))
	tb.result(TailResult{Tail: 10, Sealed: true})
}

// TestRepairNeverSkips: the server that has the oldest missing record does not answer.
func TestRepairNeverSkips(t *testing.T) {
	tb := newTable(t, 3, 2, SealTail)
	tb.answer(0, state(10, 5, true))
	tb.answer(1, state(5, 5, true))
	tb.answer(0, &logserver.DigestReply{StateReply: *state(10, 5, true), Exists: []logserver.Range{{From: 7, To: 10}}})
	tb.answer(1, &logserver.DigestReply{StateReply: *state(5, 5, true)})
	for range 5 {
		tb.pass(200 * time.Millisecond)
		for _, s := range tb.pending {
			if store, ok := s.Msg.(*logserver.StoreRequest); ok {
				t.Fatalf("stores %d although 5 is nowhere", store.First)
			}
		}
	}
	tb.pass(2 * time.Second)
	tb.unfinished()
	if _, again := tb.pending[0].Msg.(*logserver.InfoRequest); !again {
		t.Errorf("asks %T, want it to begin again", tb.pending[0].Msg)
	}
}

// TestServerWithDataLossIsNoWitness: with two of three needed, one that lost its data does not count.
func TestServerWithDataLossIsNoWitness(t *testing.T) {
	tb := newTable(t, 3, 2, SealTail)
	lost := state(1, 1, true)
	lost.Status = logserver.StatusDataLoss
	tb.answer(0, lost)
	tb.answer(1, state(10, 5, true))
	tb.unfinished()
	tb.answer(2, state(10, 5, true))
	tb.result(TailResult{Tail: 10, Sealed: true})
}

func TestRunEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := Params{ID: 7, Sequencer: dead, Quorum: cluster.NewQuorum([]cluster.NodeID{1}, cluster.ReplicateTo(1), healthyView{})}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		net := &silent{}
		if err := Run(ctx, net, SystemClock{}, NewFinder(p, SealTail, FinderConfig{})); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("run: %v, want the end of its context", err)
		}
		if net.calls < 30 || net.calls > 130 {
			t.Errorf("%d requests to a silent server in a minute, want about one a second", net.calls)
		}
	})
}

// silent is a network that loses everything.
type silent struct{ calls int }

func (s *silent) Call(cluster.NodeID, transport.Message, transport.ReplyFunc) { s.calls++ }

// TestRefusalsAreNotHurried: a server that answers, but cannot do what it is asked, is asked less and less often.
func TestRefusalsAreNotHurried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := Params{ID: 7, Sequencer: dead, Quorum: cluster.NewQuorum([]cluster.NodeID{1}, cluster.ReplicateTo(1), healthyView{})}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		net := &disabled{}
		if err := Run(ctx, net, SystemClock{}, NewFinder(p, SealTail, FinderConfig{})); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("run: %v, want the end of its context", err)
		}
		if net.calls < 30 || net.calls > 130 {
			t.Errorf("%d requests to a server whose disk has failed in a minute, want about one a second", net.calls)
		}
	})
}

// disabled is a network whose servers have lost their disks.
type disabled struct{ calls int }

func (d *disabled) Call(_ cluster.NodeID, _ transport.Message, reply transport.ReplyFunc) {
	d.calls++
	reply(&logserver.StateReply{Status: logserver.StatusDisabled}, nil)
}

// TestTrimmer needs a write quorum and repeats what failed.
func TestTrimmer(t *testing.T) {
	p := Params{ID: 7, Sequencer: dead, Quorum: cluster.NewQuorum([]cluster.NodeID{1, 2, 3}, cluster.ReplicateTo(2), healthyView{})}
	tr := NewTrimmer(p, 5, 9, FinderConfig{})
	sends := tr.Start(1)
	if len(sends) != 3 {
		t.Fatalf("%d requests, want 3", len(sends))
	}
	tr.Answer(2, &Answer{Send: sends[0], Reply: state(9, 9, false)})
	tr.Answer(2, &Answer{Send: sends[1], Err: transport.ErrUnreachable})
	if tr.Finished() {
		t.Fatal("finished with one of two")
	}
	at, ok := tr.NextTick()
	if !ok {
		t.Fatal("nothing is to be repeated")
	}
	again := tr.Tick(at)
	if len(again) != 1 || again[0].Node != 1 || again[0].Msg.(*logserver.TrimRequest).UpTo != 5 {
		t.Fatalf("repeats %+v, want the trim of server 1", again)
	}
	// The third one is slow: its answer comes when it was asked again, and counts.
	at += time.Minute
	tr.Tick(at)
	tr.Answer(at, &Answer{Send: sends[2], Reply: state(9, 9, false)})
	if !tr.Finished() {
		t.Error("not finished with a write quorum")
	}
}

// A server that is found to have lost its records while a repeated request to it waits for its pause must not
// make ticks due in the past: the finder would spin until the others have answered.
func TestNoTickIsDueForALostServer(t *testing.T) {
	tb := newTable(t, 3, 2, FindTail)
	late := tb.pending[0]
	tb.pass(time.Second) // no answer: a pause begins
	delete(tb.pending, 0)
	tb.take(tb.f.Answer(tb.now, &Answer{Send: late, Reply: &logserver.StateReply{Status: logserver.StatusDataLoss}}))
	tb.pass(100 * time.Millisecond)
	tb.pass(100 * time.Millisecond)
	if at, ok := tb.f.NextTick(); ok && at <= tb.now {
		t.Errorf("a tick is due at %v, now is %v", at, tb.now)
	}
}
