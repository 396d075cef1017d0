package loglet

import (
	"errors"
	"sync"
	"testing"
	"time"

	"perdure/control/cluster"
	"perdure/nodes/logserver"
	"perdure/nodes/transport"
)

// holdingNet keeps the calls until the test answers them.
type holdingNet struct {
	mu    sync.Mutex
	calls []heldCall
	hook  func(n int) // before call n (from 0) returns
}

type heldCall struct {
	m    transport.Message
	done transport.ReplyFunc
}

func (h *holdingNet) Call(_ cluster.NodeID, m transport.Message, done transport.ReplyFunc) {
	h.mu.Lock()
	n := len(h.calls)
	h.calls = append(h.calls, heldCall{m, done})
	h.mu.Unlock()
	if h.hook != nil {
		h.hook(n)
	}
}

func (h *holdingNet) answer(n int) {
	h.mu.Lock()
	c := h.calls[n]
	h.mu.Unlock()
	c.done(state(c.m.(*logserver.StoreRequest).Next(), 1, false), nil)
}

type committer func(cluster.Offset, error)

func (f committer) Committed(last cluster.Offset, err error) { f(last, err) }

// newTestDriver makes a driver that never sends anything again by itself: each append is one call.
func newTestDriver(net transport.Caller) *Driver {
	p := Params{ID: 7, Sequencer: dead, Quorum: cluster.NewQuorum([]cluster.NodeID{1}, cluster.ReplicateTo(1), healthyView{})}
	return NewDriver(p, SequencerConfig{StoreTimeout: time.Hour, StallTimeout: time.Hour}, net, SystemClock{}, NewTail(), nil)
}

func within(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(time.Minute):
		t.Fatalf("%s did not happen within a minute", what)
	}
}

// TestAppendTellsNobody: who appends may hold a lock that the one who is told of an earlier commit
// wants. The commit must not be left to the goroutine that appends.
func TestAppendTellsNobody(t *testing.T) {
	net := &holdingNet{}
	d := newTestDriver(net)
	defer d.Stop(ErrSealed)
	var lock sync.Mutex
	entered, told := make(chan struct{}), make(chan struct{})
	first := committer(func(cluster.Offset, error) {
		close(entered)
		lock.Lock()
		defer lock.Unlock()
		close(told)
	})
	if err := d.Append(make([]logserver.Record, 1), first); err != nil {
		t.Fatal(err)
	}
	net.hook = func(int) { // the answer to the first comes while the second is being sent
		go net.answer(0)
		within(t, "telling the commit", entered)
	}
	lock.Lock()
	err := d.Append(make([]logserver.Record, 1), committer(func(cluster.Offset, error) {}))
	lock.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	within(t, "the commit", told)
}

// TestCommitterMayAppend, and order is kept.
func TestCommitterMayAppend(t *testing.T) {
	net := &holdingNet{}
	d := newTestDriver(net)
	defer d.Stop(ErrSealed)
	var lasts []cluster.Offset
	note := committer(func(last cluster.Offset, err error) {
		if err == nil {
			lasts = append(lasts, last)
		}
	})
	again := committer(func(last cluster.Offset, err error) {
		lasts = append(lasts, last)
		if err := d.Append(make([]logserver.Record, 2), note); err != nil {
			t.Errorf("append from a commit: %v", err)
		}
	})
	if err := d.Append(make([]logserver.Record, 1), again); err != nil {
		t.Fatal(err)
	}
	net.answer(0)
	net.answer(1)
	if len(lasts) != 2 || lasts[0] != 1 || lasts[1] != 3 {
		t.Errorf("commits %v, want 1 and 3", lasts)
	}
	if d.Tail().Load() != 4 {
		t.Errorf("tail %d, want 4", d.Tail().Load())
	}
}

func TestStopAnswersWhatIsUnderWay(t *testing.T) {
	net := &holdingNet{}
	d := newTestDriver(net)
	var got error
	if err := d.Append(make([]logserver.Record, 1), committer(func(_ cluster.Offset, err error) { got = err })); err != nil {
		t.Fatal(err)
	}
	if tail := d.Stop(ErrSealed); tail != 1 {
		t.Errorf("stopped at %d, want 1", tail)
	}
	if !errors.Is(got, ErrUnknownOutcome) {
		t.Errorf("append ended with %v, want unknown outcome", got)
	}
	net.answer(0)
	if d.Tail().Load() != 1 {
		t.Error("the tail moved after the stop")
	}
	if err := d.Append(make([]logserver.Record, 1), nil); !errors.Is(err, ErrSealed) {
		t.Errorf("append after stop: %v", err)
	}
}

func TestTailTellsSubscribers(t *testing.T) {
	tail := NewTail()
	var a, b int
	stopA := tail.Subscribe(func() { a++ })
	stopB := tail.Subscribe(func() { b++ })
	tail.Advance(5)
	tail.Advance(3)
	stopA()
	tail.Advance(7)
	stopB()
	tail.Advance(9)
	if a != 1 || b != 2 || tail.Load() != 9 {
		t.Errorf("told %d and %d times, tail %d; want 1, 2, 9", a, b, tail.Load())
	}
}
