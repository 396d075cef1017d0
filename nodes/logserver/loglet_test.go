package logserver

import (
	"fmt"
	"slices"
	"testing"

	"perdure/control/cluster"
)

var (
	owner    = cluster.GenNodeID{ID: 1, Generation: 5}
	stranger = cluster.GenNodeID{ID: 2, Generation: 1}
)

// script drives one Loglet and notes its answers as "token:status".
type script struct {
	t      *testing.T
	l      *Loglet
	out    Output
	writes []*Write
}

func newScript(t *testing.T, m Meta) *script { return &script{t: t, l: NewLoglet(77, m)} }

func (s *script) collect() {
	s.writes = append(s.writes, s.out.Writes...)
	s.out.Writes = nil
}

func (s *script) store(tok string, from cluster.GenNodeID, first, n int, kgt cluster.Offset) {
	s.l.Store(tok, from, &StoreRequest{Header: Header{77, kgt}, Sequencer: owner, First: cluster.Offset(first), Records: make([]Record, n)}, &s.out)
	s.collect()
}

func (s *script) repair(tok string, first, n int, kgt cluster.Offset) {
	s.l.Store(tok, stranger, &StoreRequest{Header: Header{77, kgt}, Sequencer: owner, First: cluster.Offset(first), Records: make([]Record, n), Repair: true}, &s.out)
	s.collect()
}

func (s *script) seal(tok string) {
	s.l.Seal(tok, &SealRequest{}, &s.out)
	s.collect()
}

func (s *script) durable() {
	s.l.Durable(&s.out)
	s.writes = s.writes[1:]
	s.collect()
}

// expect compares the answers since the last call.
func (s *script) expect(want ...string) {
	s.t.Helper()
	var got []string
	for _, r := range s.out.Replies {
		got = append(got, fmt.Sprintf("%v:%v", r.Token, r.State.Status))
	}
	s.out.Replies = nil
	if !slices.Equal(got, want) {
		s.t.Errorf("answers %q, want %q", got, want)
	}
}

func TestStoreRules(t *testing.T) {
	fresh := Meta{}
	filled := Meta{Sequencer: owner, LocalTail: 11, GlobalTail: 11}
	for _, c := range []struct {
		name   string
		meta   Meta
		before func(*script)
		from   cluster.GenNodeID
		first  int
		n      int
		kgt    cluster.Offset
		repair bool
		want   string // "" when the answer has to wait
		writes int
	}{
		{name: "first batch", meta: fresh, from: owner, first: 1, n: 3, writes: 1},
		{name: "offset zero", meta: fresh, from: owner, first: 0, n: 3, want: "malformed"},
		{name: "no records", meta: fresh, from: owner, first: 1, n: 0, want: "malformed"},
		{name: "offsets used up", meta: fresh, from: owner, first: int(MaxOffset), n: 1, want: "malformed"},
		{name: "hole", meta: filled, from: owner, first: 13, n: 1, want: "out of bounds"},
		{name: "hole below known global tail", meta: filled, from: owner, first: 13, n: 1, kgt: 13, writes: 1},
		{name: "known global tail within batch", meta: filled, from: owner, first: 13, n: 3, kgt: 14, writes: 1},
		{name: "next batch", meta: filled, from: owner, first: 11, n: 1, writes: 1},
		{name: "duplicate", meta: filled, from: owner, first: 5, n: 3, want: "ok"},
		{name: "stranger fills behind", meta: filled, from: stranger, first: 5, n: 3, want: "sequencer mismatch"},
		{name: "stranger goes on", meta: filled, from: stranger, first: 11, n: 1, writes: 1},
		{name: "repair behind", meta: filled, from: stranger, first: 5, n: 3, repair: true, writes: 1},
		{name: "repair beyond", meta: filled, from: stranger, first: 15, n: 3, repair: true, want: "out of bounds"},
		{name: "repair beyond with known global tail", meta: filled, from: stranger, first: 15, n: 3, kgt: 15, repair: true, writes: 1},
		{name: "other sequencer", meta: Meta{Sequencer: stranger, LocalTail: 11}, from: owner, first: 11, n: 1, want: "sequencer mismatch"},
		{name: "sealed", meta: Meta{Sequencer: owner, LocalTail: 11, Sealed: true}, from: owner, first: 11, n: 1, want: "sealed"},
		{name: "sealed duplicate", meta: Meta{Sequencer: owner, LocalTail: 11, Sealed: true}, from: owner, first: 10, n: 1, want: "sealed"},
		{name: "repair of sealed", meta: Meta{Sequencer: owner, LocalTail: 11, Sealed: true}, from: stranger, first: 11, n: 1, repair: true, writes: 1},
		{name: "repair of trimmed", meta: Meta{Sequencer: owner, LocalTail: 11, TrimPoint: 8}, from: stranger, first: 5, n: 2, repair: true, want: "ok"},
		{name: "lost data", meta: Meta{Sequencer: owner, LocalTail: 11, DataLoss: true}, from: owner, first: 11, n: 1, want: "data loss"},
		{name: "disk failed", meta: filled, before: func(s *script) { s.l.Failed(&s.out) }, from: owner, first: 11, n: 1, want: "disabled"},
		{name: "while sealing", meta: filled, before: func(s *script) { s.seal("seal") }, from: owner, first: 11, n: 1},
		{name: "repair while sealing", meta: filled, before: func(s *script) { s.seal("seal") }, from: stranger, first: 11, n: 1, repair: true, want: "sealing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScript(t, c.meta)
			if c.before != nil {
				c.before(s)
			}
			s.out.Replies, s.writes = nil, nil
			if c.repair {
				s.repair("x", c.first, c.n, c.kgt)
			} else {
				s.store("x", c.from, c.first, c.n, c.kgt)
			}
			if c.want == "" {
				s.expect()
			} else {
				s.expect("x:" + c.want)
			}
			if len(s.writes) != c.writes {
				t.Errorf("%d writes, want %d", len(s.writes), c.writes)
			}
		})
	}
}

func TestAnswerOnlyWhenDurable(t *testing.T) {
	s := newScript(t, Meta{})
	s.store("a", owner, 1, 2, 0)
	s.store("b", owner, 3, 2, 0)
	s.store("b again", owner, 3, 2, 0)
	s.expect()
	if s.l.State(StatusOK).LocalTail != 1 {
		t.Error("local tail moved before the write was durable")
	}
	s.durable()
	s.expect("a:ok")
	s.durable()
	s.expect("b:ok", "b again:ok")
	if got := s.l.State(StatusOK).LocalTail; got != 5 {
		t.Errorf("local tail %d, want 5", got)
	}
}

func TestFirstWriteNamesTheSequencer(t *testing.T) {
	s := newScript(t, Meta{})
	s.store("a", owner, 1, 1, 0)
	s.store("b", owner, 2, 1, 0)
	if s.writes[0].Sequencer != owner || !s.writes[1].Sequencer.IsZero() {
		t.Errorf("writes name sequencers %v and %v, want %v and none", s.writes[0].Sequencer, s.writes[1].Sequencer, owner)
	}
}

func TestHoleIsRememberedWithItsReason(t *testing.T) {
	s := newScript(t, Meta{Sequencer: owner, LocalTail: 3})
	s.store("a", owner, 10, 1, 10)
	if s.writes[0].GlobalTail != 10 {
		t.Errorf("write over a hole remembers known global tail %d, want 10", s.writes[0].GlobalTail)
	}
}

// TestGlobalTailIsNoted: after a restart of all servers, repair begins at the global tail that is on disk.
func TestGlobalTailIsNoted(t *testing.T) {
	s := newScript(t, Meta{})
	const batch = 100
	onDisk := cluster.Offset(1)
	noted := 0
	for first := 1; first < 20*noteEvery; first += batch {
		s.store("x", owner, first, batch, cluster.Offset(first))
		if g := s.writes[0].GlobalTail; g != 0 {
			if g < onDisk || int(g) > first {
				t.Fatalf("known global tail %d is noted after %d, with %d", g, onDisk, first)
			}
			onDisk = g
			noted++
		}
		if lag := first - int(onDisk); lag > noteEvery+batch {
			t.Fatalf("the known global tail on disk is %d, %d behind", onDisk, lag)
		}
		s.durable()
	}
	if noted > 20 {
		t.Errorf("it was noted %d times in 20 times %d records", noted, noteEvery)
	}
}

func TestSealComesAfterWhatWasAccepted(t *testing.T) {
	s := newScript(t, Meta{})
	s.store("a", owner, 1, 2, 0)
	s.seal("seal")
	s.seal("seal too")
	s.store("late", owner, 3, 1, 0)
	s.expect()
	s.durable()
	s.expect("a:ok")
	s.durable()
	s.expect("seal:ok", "seal too:ok", "late:sealed")
	if st := s.l.State(StatusOK); st.LocalTail != 3 || !st.Sealed {
		t.Errorf("state %+v, want local tail 3 and sealed", st)
	}
	s.seal("again")
	s.expect("again:ok")
	if len(s.writes) != 0 {
		t.Error("a second seal writes")
	}
}

func TestWaitTail(t *testing.T) {
	s := newScript(t, Meta{})
	wait := func(tok string, tail, kgt cluster.Offset) {
		s.l.WaitTail(tok, &WaitTailRequest{Header: Header{77, kgt}, Tail: tail}, &s.out)
	}
	wait("now", 1, 0)
	s.expect("now:ok")
	wait("local", 3, 0)
	wait("global", 20, 0)
	wait("never", 99, 0)
	s.store("a", owner, 1, 2, 0)
	s.expect()
	s.durable()
	s.expect("a:ok", "local:ok")
	s.l.Info("info", &InfoRequest{Header{77, 20}}, &s.out)
	s.expect("global:ok", "info:ok")
	s.seal("seal")
	s.durable()
	s.expect("seal:ok", "never:ok")
}

func TestTrim(t *testing.T) {
	s := newScript(t, Meta{Sequencer: owner, LocalTail: 11, GlobalTail: 11})
	trim := func(tok string, upTo, kgt cluster.Offset) {
		s.l.Trim(tok, &TrimRequest{Header: Header{77, kgt}, UpTo: upTo}, &s.out)
		s.collect()
	}
	trim("tail", 11, 0)
	s.expect("tail:out of bounds")
	trim("five", 5, 0)
	if got := s.l.TrimPoint(); got != 5 {
		t.Errorf("trim point %d is not visible at once, want 5", got)
	}
	rng, _ := s.l.Readable(Header{}, 1, 100, &s.out)
	if rng != (Range{6, 11}) {
		t.Errorf("readable %v after trim, want [6,11)", rng)
	}
	s.expect()
	s.durable()
	s.expect("five:ok")
	trim("less", 3, 0)
	s.expect("less:ok")
	if len(s.writes) != 0 {
		t.Error("a lower trim writes")
	}
	trim("beyond", 20, 30) // this server lags behind what is committed
	if got := s.l.TrimPoint(); got != 10 {
		t.Errorf("trim point %d, want 10: the local tail must not be forgotten", got)
	}
	if w := s.writes[0]; w.Kind != WriteTrim || w.TrimPoint != 10 || w.GlobalTail != 30 {
		t.Errorf("write %+v, want trim to 10 with known global tail 30", w)
	}
}

func TestFailureAnswersEverybody(t *testing.T) {
	s := newScript(t, Meta{})
	s.store("a", owner, 1, 2, 0)
	s.store("a again", owner, 1, 2, 0)
	s.seal("seal")
	s.store("parked", owner, 3, 1, 0)
	s.l.WaitTail("wait", &WaitTailRequest{Tail: 9}, &s.out)
	s.l.Failed(&s.out)
	s.expect("a:disabled", "seal:disabled", "a again:disabled", "parked:disabled", "wait:disabled")
	if !s.l.Idle() {
		t.Error("something is left under way")
	}
	s.seal("seal 2")
	s.expect("seal 2:disabled")
	s.l.WaitTail("wait 2", &WaitTailRequest{Tail: 9}, &s.out)
	s.expect("wait 2:disabled")
	s.l.WaitTail("wait for one", &WaitTailRequest{Tail: 1}, &s.out)
	s.expect("wait for one:ok")
	if st := s.l.State(StatusOK); st.LocalTail != 1 || st.Sealed {
		t.Errorf("state %+v after failure, want an empty open loglet", st)
	}
}

func TestRecoveredTails(t *testing.T) {
	for _, c := range []struct {
		m             Meta
		local, global cluster.Offset
	}{
		{Meta{}, 1, 1},
		{Meta{LocalTail: 8}, 8, 1},
		{Meta{LocalTail: 8, GlobalTail: 4}, 8, 4},
		{Meta{LocalTail: 8, TrimPoint: 7}, 8, 8},
		{Meta{TrimPoint: 7}, 8, 8},
	} {
		st := NewLoglet(1, c.m).State(StatusOK)
		if st.LocalTail != c.local || st.KnownGlobalTail != c.global {
			t.Errorf("from %+v: local tail %d, global %d, want %d, %d", c.m, st.LocalTail, st.KnownGlobalTail, c.local, c.global)
		}
	}
}

func TestWaitingIsBounded(t *testing.T) {
	s := newScript(t, Meta{})
	for range maxParked {
		s.l.WaitTail("waits", &WaitTailRequest{Tail: 2}, &s.out)
	}
	s.expect()
	s.l.WaitTail("too many", &WaitTailRequest{Tail: 2}, &s.out)
	s.expect("too many:overloaded")
	s.store("a", owner, 1, 1, 0)
	s.durable()
	if n := len(s.out.Replies); n != maxParked+1 {
		t.Errorf("%d answers when the tail has come, want %d", n, maxParked+1)
	}
}
