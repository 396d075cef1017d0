package partition

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/invokers"
	"perdure/nodes/bifrost"
	"perdure/nodes/partition/store"
	"perdure/nodes/record/recordpb"
)

// A timer may be set to any time that a number can say; one that never comes must not keep the loop busy.
func TestTimerBeyondTimeSleeps(t *testing.T) {
	for _, at := range []uint64{math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64} {
		now := time.Now()
		l := &leader{timers: newTimerQueue(10, func(after store.TimerKey, _ int) ([]store.TimerKey, error) {
			if after.FireAtMs == at {
				return nil, nil
			}
			return []store.TimerKey{{FireAtMs: at, Kind: 1}}, nil
		})}
		wake, err := l.fireTimers(now)
		if err != nil {
			t.Fatal(err)
		}
		if d := wake.Sub(now); d < time.Minute {
			t.Errorf("a timer at %d wakes the loop after %s", at, d)
		}
	}
}

// A request that comes again while its first copy waits for room in the log relies on that one to propose.
// If the first copy gives up, the second must not wait for what nobody proposes.
func TestRepeatedRequestOutlivesTheFirst(t *testing.T) {
	full := &fullLog{waiting: make(chan struct{}, 1)}
	l := &leader{p: &Processor{appender: full}}
	l.prop = newProposer(1, full, func() uint64 { return 1 }, func(error) {})
	req, _ := call("x", true)
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan error, 1)
	go func() { _, err := l.do(ctx, req); first <- err }()
	<-full.waiting
	old := l.waiters.of(requestID(req.Id))
	again, _ := call("x", true)
	again.Id, again.GetInvoke().Invocation.Id = req.Id, req.GetInvoke().Invocation.Id
	second := make(chan error, 1)
	within := within(t)
	go func() { _, err := l.do(within, again); second <- err }()
	superseded(t, l, requestID(req.Id), old)
	cancel()
	if err := <-first; !errors.Is(err, ErrOverloaded) {
		t.Errorf("the first copy got %v, want ErrOverloaded", err)
	}
	var o interface{ Safe() bool }
	if err := <-second; !errors.As(err, &o) {
		t.Errorf("the second copy got %v, want an error that says whether trying again is safe", err)
	}
}

// superseded waits until another copy of the request than old waits.
func superseded(t *testing.T, l *leader, id requestID, old *waiter) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for l.waiters.of(id) == old {
		if time.Now().After(deadline) {
			t.Fatal("the second copy did not register within a minute")
		}
		<-time.After(time.Millisecond)
	}
}

func (w *waiters) of(id requestID) *waiter {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.m[id]
}

// A new leader goes on with a pause that its predecessor accepted.
func TestPauseOutlivesTheLeader(t *testing.T) {
	st, err := store.Open(store.Options{Dir: "p", FS: vfs.NewMem(), Range: cluster.KeyRange{End: math.MaxUint64}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	log := &memLog{}
	var paused []ident.InvocationID
	lead := func(epoch cluster.Epoch) *Stepper {
		t.Helper()
		p, err := New(Config{
			Range: st.Range(), Logger: slog.New(slog.DiscardHandler),
			OpenInvoker: func(cluster.PartitionID, invokers.Host) Invoker { return &pausing{paused: &paused} },
		}, st)
		if err != nil {
			t.Fatal(err)
		}
		log.next = int(p.AppliedLSN())
		s, err := p.Steps(Claim{Epoch: epoch}, log, log, nil)
		if err != nil {
			t.Fatal(err)
		}
		for !s.Leading() {
			stepped(t, s)
		}
		return s
	}
	s := lead(1)
	other, _ := call("x", false)
	req, _ := call("x", false)
	id := ident.InvocationID(req.GetInvoke().Invocation.Id)
	rid := newRequest()
	for _, r := range []*recordpb.Request{other, req, {Id: rid[:], Kind: &recordpb.Request_Pause{Pause: &recordpb.Pause{InvocationId: id[:]}}}} {
		w, err := s.Submit(r)
		if err != nil {
			t.Fatal(err)
		}
		for {
			stepped(t, s)
			if reply, _ := w.Poll(); reply != nil {
				break
			}
		}
	}
	if !slices.Equal(paused, []ident.InvocationID{id}) {
		t.Fatalf("paused %v, want %v", paused, id)
	}
	s.Close()
	lead(2).Close()
	if !slices.Equal(paused, []ident.InvocationID{id, id}) {
		t.Errorf("with its successor %v, want %v once more", paused, id)
	}
}

func stepped(t *testing.T, s *Stepper) {
	t.Helper()
	if _, _, over, err := s.Step(t.Context()); over || err != nil {
		t.Fatal(over, err)
	}
}

// pausing is an invoker that only notes what it is to pause.
type pausing struct {
	Invoker
	known  map[ident.InvocationID]bool
	paused *[]ident.InvocationID
}

func (i *pausing) Invoke(id ident.InvocationID, _ uint64, _ string, _ ident.DeploymentID, _ *invokers.Journal) {
	if i.known == nil {
		i.known = map[ident.InvocationID]bool{}
	}
	i.known[id] = true
}

func (i *pausing) Pause(id ident.InvocationID) {
	if i.known[id] {
		*i.paused = append(*i.paused, id)
	}
}

func (i *pausing) Close() {}

// memLog is a log whose records are committed at once.
type memLog struct {
	records []bifrost.Record
	next    int // index of the record that is read next
}

func (l *memLog) Append(rs []bifrost.Record, done func(cluster.LSN, error)) error {
	l.records = append(l.records, rs...)
	done(cluster.LSN(len(l.records)), nil)
	return nil
}

func (l *memLog) TryNext() (e bifrost.Entry, ok bool, err error) {
	if l.next == len(l.records) {
		return e, false, nil
	}
	l.next++
	lsn := cluster.LSN(l.next)
	return bifrost.Entry{Kind: bifrost.Data, LSN: lsn, To: lsn, Record: l.records[l.next-1]}, true, nil
}

func (l *memLog) WaitCapacity(context.Context) error { return nil }
func (l *memLog) Wait() <-chan struct{}              { return nil }
func (l *memLog) Close()                             {}

// fullLog never has room.
type fullLog struct{ waiting chan struct{} }

func (f *fullLog) Append([]bifrost.Record, func(cluster.LSN, error)) error { return bifrost.ErrFull }
func (f *fullLog) Close()                                                  {}
func (f *fullLog) WaitCapacity(ctx context.Context) error {
	select {
	case f.waiting <- struct{}{}:
	default:
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

// A leader must not take a batch of messages when the batch before went to another one: if that failed, its messages
// would come after later ones of the same outbox, and would be dropped as duplicates.
func TestIngestInStep(t *testing.T) {
	p := newProposer(1, acceptingLog{}, func() uint64 { return 1 }, func(error) {})
	take := func(o Origin) bool {
		t.Helper()
		err := p.ingest(o, []*recordpb.Command{{Kind: &recordpb.Command_Signal{Signal: &recordpb.Signal{}}}}, func(error) {})
		if err != nil && !errors.Is(err, ErrOutOfStep) {
			t.Fatal(err)
		}
		return err == nil
	}
	for i, c := range []struct {
		partition, epoch, conversation, batch uint64
		taken                                 bool
	}{
		{1, 3, 2, 1, false}, // the batch before went elsewhere
		{1, 3, 3, 0, true},
		{1, 3, 3, 1, true},
		{1, 3, 3, 1, false}, // again
		{1, 3, 3, 3, false}, // one is missing
		{1, 3, 2, 0, false}, // late
		{1, 3, 3, 2, true},
		{2, 1, 1, 0, true},  // another partition's
		{1, 2, 9, 0, false}, // of a former leader
		{1, 4, 1, 1, false},
		{1, 4, 1, 0, true},
		{1, 3, 3, 3, false},
		{2, 1, 1, 1, true},
	} {
		o := Origin{Partition: cluster.PartitionID(c.partition), Epoch: cluster.Epoch(c.epoch), Conversation: c.conversation, Batch: c.batch}
		if got := take(o); got != c.taken {
			t.Errorf("%d: %+v taken: %v", i, o, got)
		}
	}
}

// acceptingLog takes everything and answers nothing.
type acceptingLog struct{}

func (acceptingLog) Append([]bifrost.Record, func(cluster.LSN, error)) error { return nil }
func (acceptingLog) Close()                                                  {}
