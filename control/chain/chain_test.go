package chain

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"perdure/control/cluster"
)

func params(generation cluster.Generation) Params {
	return Params{
		Sequencer:   cluster.GenNodeID{ID: 1, Generation: generation},
		Replication: cluster.ReplicateTo(2),
		NodeSet:     []cluster.NodeID{1, 2, 3},
	}
}

func newChain(t testing.TB) Chain {
	t.Helper()
	c, err := New(7, params(1))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func mustExtend(t testing.TB, c Chain, base cluster.LSN) Chain {
	t.Helper()
	next, err := c.Extend(c.LastIndex(), base, params(2))
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func mustSeal(t testing.TB, c Chain, s Seal) Chain {
	t.Helper()
	next, err := c.Seal(c.LastIndex(), s)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func TestExtend(t *testing.T) {
	old := newChain(t)
	c := mustExtend(t, old, 10)
	if c.Len() != 2 || c.LastIndex() != 1 || c.Last().Base != 10 || old.Len() != 1 {
		t.Errorf("extended to %+v, the old one is %+v", c, old)
	}
	if tail, ok := c.Tail(0); !ok || tail != 10 {
		t.Errorf("tail of the first segment is %d, %v", tail, ok)
	}
	var mismatch *MismatchError
	if _, err := c.Extend(0, 10, params(2)); !errors.As(err, &mismatch) || mismatch.Actual != 1 {
		t.Errorf("extending another last segment: %v", err)
	}
	if _, err := c.Extend(1, 9, params(2)); !errors.Is(err, ErrTailMismatch) {
		t.Errorf("extending below the base: %v", err)
	}
	if _, err := c.Extend(1, cluster.MaxLSN, params(2)); !errors.Is(err, ErrExhausted) {
		t.Errorf("extending at the last LSN: %v", err)
	}
}

func TestEmptySegmentIsReplaced(t *testing.T) {
	c := mustExtend(t, newChain(t), 1)
	if c.Len() != 1 || c.LastIndex() != 1 || c.Last().Base != 1 {
		t.Errorf("replaced by %+v", c)
	}
	c = mustExtend(t, mustExtend(t, c, 5), 5)
	if c.Len() != 2 || c.LastIndex() != 3 || c.Last().Base != 5 {
		t.Errorf("replaced by %+v", c)
	}
	if _, ok := c.FindLoglet(2); ok {
		t.Error("the replaced segment is still there")
	}
	if at, ok := c.FindLoglet(3); !ok || at != 1 {
		t.Errorf("segment 3 is at %d, %v", at, ok)
	}
}

func TestSealMarker(t *testing.T) {
	c := mustSeal(t, newChain(t), Seal{Tail: 20, AtMillis: 5})
	if s, ok := c.Sealed(); !ok || s.Tail != 20 || c.LastIndex() != 0 {
		t.Errorf("sealed: %+v, %v", s, ok)
	}
	again := mustSeal(t, c, Seal{Tail: 20, AtMillis: 6})
	if !reflect.DeepEqual(again, c) {
		t.Error("sealing again changed the marker")
	}
	if _, err := c.Seal(0, Seal{Tail: 21}); !errors.Is(err, ErrTailMismatch) {
		t.Errorf("another tail: %v", err)
	}
	if _, err := c.Extend(0, 21, params(2)); !errors.Is(err, ErrTailMismatch) {
		t.Errorf("extending at another tail: %v", err)
	}
	open := mustExtend(t, c, 20)
	if _, ok := open.Sealed(); ok || open.Len() != 2 {
		t.Errorf("the marker was not replaced: %+v", open)
	}
	forever := mustSeal(t, c, Seal{Tail: 20, Permanent: true})
	if _, err := forever.Extend(0, 20, params(2)); !errors.Is(err, ErrPermanentlySealed) {
		t.Errorf("extending a permanently sealed chain: %v", err)
	}
	if s, _ := mustSeal(t, forever, Seal{Tail: 20}).Sealed(); !s.Permanent {
		t.Error("a permanent seal was weakened")
	}
	empty := mustExtend(t, mustSeal(t, mustExtend(t, newChain(t), 9), Seal{Tail: 9}), 9)
	if empty.Len() != 2 || empty.LastIndex() != 2 {
		t.Errorf("extending a sealed empty segment: %+v", empty)
	}
}

func TestFindSegment(t *testing.T) {
	c := mustExtend(t, mustExtend(t, newChain(t), 10), 20)
	c, dropped := c.TrimPrefix(9)
	if len(dropped) != 1 || dropped[0].Index() != 0 || c.TrimPoint() != 9 {
		t.Fatalf("dropped %+v", dropped)
	}
	sealed := mustSeal(t, c, Seal{Tail: 30})
	for _, tc := range []struct {
		chain Chain
		lsn   cluster.LSN
		want  Place
		index cluster.SegmentIndex
		tail  cluster.LSN
	}{
		{c, 0, Trimmed, 1, 20}, {c, 9, Trimmed, 1, 20}, {c, 10, InSegment, 1, 20}, {c, 19, InSegment, 1, 20},
		{c, 20, InSegment, 2, cluster.MaxLSN}, {c, 1000, InSegment, 2, cluster.MaxLSN},
		{sealed, 19, InSegment, 1, 20}, {sealed, 29, InSegment, 2, 30}, {sealed, 30, BeyondTail, 2, 30},
	} {
		f := tc.chain.FindSegment(tc.lsn)
		if f.Place != tc.want || f.Segment.Index() != tc.index || f.Tail != tc.tail || tc.chain.Segment(f.Position).Index() != tc.index {
			t.Errorf("lsn %d: %+v, want place %d in %d up to %d", tc.lsn, f, tc.want, tc.index, tc.tail)
		}
	}
}

func TestOffsets(t *testing.T) {
	s := mustExtend(t, newChain(t), 10).Last()
	if s.Offset(10) != 1 || s.LSN(1) != 10 || s.Offset(s.LSN(77)) != 77 {
		t.Errorf("offset %d, lsn %d", s.Offset(10), s.LSN(1))
	}
	if s.Offset(cluster.MaxLSN) != 1<<32-1 {
		t.Errorf("offset of the last LSN is %d", s.Offset(cluster.MaxLSN))
	}
}

func TestBadParams(t *testing.T) {
	for name, change := range map[string]func(*Params){
		"no sequencer":      func(p *Params) { p.Sequencer = cluster.GenNodeID{} },
		"no generation":     func(p *Params) { p.Sequencer.Generation = 0 },
		"no replication":    func(p *Params) { p.Replication = cluster.Replication{} },
		"too few nodes":     func(p *Params) { p.NodeSet = p.NodeSet[:1] },
		"no nodes":          func(p *Params) { p.NodeSet = nil },
		"a node twice":      func(p *Params) { p.NodeSet = []cluster.NodeID{1, 2, 1} },
		"invalid node":      func(p *Params) { p.NodeSet = []cluster.NodeID{0, 1} },
		"too large a group": func(p *Params) { p.NodeSet = make([]cluster.NodeID, 129) },
	} {
		p := params(1)
		change(&p)
		if _, err := New(1, p); !errors.Is(err, ErrBadParams) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := newChain(t).Extend(0, 5, p); !errors.Is(err, ErrBadParams) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := newChain(t)
	p := params(2)
	c, err := c.Extend(0, 5, p)
	if err != nil {
		t.Fatal(err)
	}
	p.NodeSet[0] = 9
	if c.Uses(9) {
		t.Error("the chain shares the caller's node set")
	}
}

// Random changes, asked for with right and wrong conditions, keep the invariants: tails that were once recorded
// stay, indexes are never reused, only whole segments below the trim point disappear.
func TestRandomChanges(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 3))
	for range 300 {
		c := newChain(t)
		tails := map[cluster.SegmentIndex]cluster.LSN{}
		highest := cluster.SegmentIndex(0)
		var trimmed cluster.LSN
		for range 60 {
			old, oldBytes := c, encode(t, c)
			expect := c.LastIndex() + cluster.SegmentIndex(rnd.IntN(8)/7)
			at := c.Last().Base + cluster.LSN(rnd.IntN(4)) - cluster.LSN(rnd.IntN(9)/8)
			var err error
			var next Chain
			switch rnd.IntN(4) {
			case 0:
				next, err = c.Seal(expect, Seal{Tail: at, Permanent: rnd.IntN(100) == 0})
			case 1:
				var dropped []Segment
				point := cluster.LSN(rnd.Uint64N(uint64(c.Last().Base) + 5))
				next, dropped = c.TrimPrefix(point)
				for i, s := range dropped {
					if tail, ok := old.Tail(i); !ok || tail-1 > point {
						t.Fatalf("trim to %d dropped segment %d with tail %d", point, s.Index(), tail)
					}
					trimmed = max(trimmed, s.Base)
				}
				if next.Len() > 1 && next.Segment(1).Base-1 <= point {
					t.Fatalf("trim to %d kept a segment up to %d", point, next.Segment(1).Base)
				}
			default:
				if s, ok := c.Sealed(); ok && rnd.IntN(4) > 0 {
					at = s.Tail
				}
				next, err = c.Extend(expect, at, params(2))
				if err == nil {
					if next.LastIndex() <= highest {
						t.Fatalf("index %d was given out after %d", next.LastIndex(), highest)
					}
					highest = next.LastIndex()
				}
			}
			if err != nil && !reflect.DeepEqual(next, old) {
				t.Fatalf("a refused change returned another chain: %v", err)
			}
			if !bytes.Equal(encode(t, old), oldBytes) {
				t.Fatal("a change touched the old chain")
			}
			if err == nil && expect != old.LastIndex() && !reflect.DeepEqual(next, old) && next.LastIndex() != old.LastIndex() {
				t.Fatal("a change for another last segment was made")
			}
			c = next
			if err := c.Validate(); err != nil {
				t.Fatalf("after %+v: %v", old, err)
			}
			for i := range c.Len() {
				tail, ok := c.Tail(i)
				recorded, known := tails[c.Segment(i).Index()]
				if known && (!ok || tail != recorded) {
					t.Fatalf("tail of segment %d was %d, is %d, %v", c.Segment(i).Index(), recorded, tail, ok)
				}
				if ok {
					tails[c.Segment(i).Index()] = tail
				}
				if c.Segment(i).Base <= trimmed {
					t.Fatalf("segment at %d came back after trimming beyond", c.Segment(i).Base)
				}
			}
			for lsn := cluster.LSN(0); lsn < c.Last().Base+3; lsn++ {
				f := c.FindSegment(lsn)
				inside := f.Segment.Base <= lsn && lsn < f.Tail
				if (f.Place == InSegment) != inside {
					t.Fatalf("lsn %d of %+v: %+v", lsn, c, f)
				}
			}
		}
	}
}

func encode(t testing.TB, c Chain) []byte {
	t.Helper()
	data, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

const golden = `{"format":1,"log":7,"segments":[{"index":0,"base":1,"sequencer":[1,1],"replication":"{node:2}","nodes":[1,2,3]},{"index":2,"base":18446744073709551000,"sequencer":[1,2],"replication":"{node:2}","nodes":[1,2,3]}],"seal":{"tail":18446744073709551001,"permanent":true,"by":[3,4],"at_millis":5}}`

func TestGolden(t *testing.T) {
	c := mustExtend(t, mustExtend(t, newChain(t), 1), 18446744073709551000)
	c = mustSeal(t, c, Seal{Tail: 18446744073709551001, Permanent: true, By: cluster.GenNodeID{ID: 3, Generation: 4}, AtMillis: 5})
	got := string(encode(t, c))
	want := strings.Replace(golden, `"index":0,"base":1,"sequencer":[1,1]`, `"index":1,"base":1,"sequencer":[1,2]`, 1)
	if got != want {
		t.Errorf("encoding changed:\n got %s\nwant %s", got, want)
	}
	back, err := Decode([]byte(golden))
	if err != nil {
		t.Fatal(err)
	}
	if string(encode(t, back)) != golden {
		t.Errorf("read as %+v", back)
	}
	for _, bad := range []string{
		strings.Replace(golden, `"format":1`, `"format":2`, 1),
		strings.Replace(golden, `"log":7`, `"log":7,"color":1`, 1),
		strings.Replace(golden, `"index":2`, `"index":0`, 1),
		strings.Replace(golden, `"base":1,`, `"base":0,`, 1),
		strings.Replace(golden, `"tail":18446744073709551001`, `"tail":1`, 1),
		strings.Replace(golden, `[1,2,3]`, `[]`, 1),
		golden + "1", `{"format":1,"log":7,"segments":[]}`, "",
	} {
		if c, err := Decode([]byte(bad)); err == nil {
			t.Errorf("accepted %s as %+v", bad, c)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(golden))
	f.Add(encode(f, newChain(f)))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Decode(data)
		if err != nil {
			return
		}
		first := encode(t, c)
		back, err := Decode(first)
		if err != nil {
			t.Fatalf("own encoding is refused: %v", err)
		}
		if !bytes.Equal(first, encode(t, back)) {
			t.Fatal("encoding is not stable")
		}
	})
}
