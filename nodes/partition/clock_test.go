package partition

import (
	"bytes"
	"context"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/invokers"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store"
)

// noon is the true time at which the tests of clocks begin.
var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

const year = 365 * 24 * time.Hour

// clocked is a partition whose leader has a clock that can be set.
type clocked struct {
	t     *testing.T
	clock time.Time
	store *store.Store
	log   *memLog
	epoch cluster.Epoch
	s     *Stepper
	began map[ident.InvocationID]int // attempts
	// wakeUp is when the invocations that sleep want to be woken.
	wakeUp time.Time
}

func newClocked(t *testing.T, clock time.Time) *clocked {
	t.Helper()
	st, err := store.Open(store.Options{Dir: "p", FS: vfs.NewMem(), Range: cluster.KeyRange{End: math.MaxUint64}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &clocked{t: t, store: st, log: &memLog{}, began: map[ident.InvocationID]int{}}
	c.elect(clock)
	t.Cleanup(func() { c.s.Close() })
	return c
}

// elect makes a new leader, whose clock says this.
func (c *clocked) elect(clock time.Time) {
	c.t.Helper()
	if c.s != nil {
		c.s.Close()
	}
	c.clock = clock
	c.epoch++
	p, err := New(Config{
		Range: c.store.Range(), Now: func() time.Time { return c.clock }, Logger: slog.New(slog.DiscardHandler),
		OpenInvoker: func(_ cluster.PartitionID, h invokers.Host) Invoker { return &inline{c: c, host: h} },
	}, c.store)
	if err != nil {
		c.t.Fatal(err)
	}
	c.log.next = int(p.AppliedLSN())
	if c.s, err = p.Steps(Claim{Epoch: c.epoch}, c.log, c.log, nil); err != nil {
		c.t.Fatal(err)
	}
	c.run()
}

// run lets the leader do what can be done now.
func (c *clocked) run() {
	c.t.Helper()
	for n := 1; n > 0 || c.log.next < len(c.log.records); {
		var over bool
		var err error
		if n, _, over, err = c.s.Step(c.t.Context()); over || err != nil {
			c.t.Fatal(over, err)
		}
	}
}

func (c *clocked) at(clock time.Time) {
	c.t.Helper()
	c.clock = clock
	c.run()
}

// submit has an invocation accepted: one that is to begin at a time, or one that sleeps, or a simple one. Its result is kept for
// a second.
func (c *clocked) submit(argument string, at time.Time) ident.InvocationID {
	c.t.Helper()
	req, _ := call(argument, false)
	inv := req.GetInvoke().Invocation
	inv.CompletionRetentionMs, inv.JournalRetentionMs = 1000, 1000
	if !at.IsZero() {
		inv.ExecutionTimeMs = uint64(at.UnixMilli())
	}
	if _, err := c.s.Submit(req); err != nil {
		c.t.Fatal(err)
	}
	c.run()
	return ident.InvocationID(inv.Id)
}

func (c *clocked) exists(id ident.InvocationID) bool {
	c.t.Helper()
	inv, err := c.store.Invocation(id)
	if err != nil {
		c.t.Fatal(err)
	}
	return inv != nil
}

// inline is an invoker whose attempts run where they are started: the argument "sleep" sleeps, others are echoed.
type inline struct {
	Invoker
	c    *clocked
	host invokers.Host
}

func (i *inline) Invoke(id ident.InvocationID, incarnation uint64, _ string, _ ident.DeploymentID, fresh *invokers.Journal) {
	i.c.began[id]++
	j := fresh
	if j == nil {
		var err error
		if j, err = i.host.ReadJournal(id, func(*invocationpb.Target, ident.DeploymentID) int { return 1 << 20 }, nil); err != nil {
			i.c.t.Error(err)
			return
		}
	}
	effects := echo(j)
	switch {
	case len(j.Entries) > 2: // input, sleep, completion
		effects = output([]byte("woke"))
	case strings.Contains(string(j.Entries[0].Raw), "sleep"):
		effects = []*invocationpb.Effect{
			pinnedEffect(),
			commandEffect(protocol.TypeSleep, &protocolpb.SleepCommand{WakeUpTime: uint64(i.c.wakeUp.UnixMilli()), ResultCompletionId: 1}),
			{Kind: &invocationpb.Effect_Suspended_{Suspended: &invocationpb.Effect_Suspended{Awaiting: &invocationpb.Future{Completions: []uint32{1}}}}},
		}
	}
	if err := i.host.Propose(context.Background(), id, incarnation, 1, effects); err != nil {
		i.c.t.Error(err)
	}
}

func (i *inline) Applied(ident.InvocationID, uint64, uint64)                {}
func (i *inline) Notify(ident.InvocationID, uint64, uint32, uint16, []byte) {}
func (i *inline) Close()                                                    {}

// What a leader's wrong clock has decided cannot be undone; but what comes after it is right at once: delays and sleeps
// wait, results are kept for their retention and no longer, rows have the time of day.
func TestWrongClockIsOverWithTheClock(t *testing.T) {
	for name, off := range map[string]time.Duration{"ahead": year, "behind": -year} {
		for how, right := range map[string]func(*clocked, time.Time){"set": (*clocked).at, "another leader": (*clocked).elect} {
			t.Run(name+"/"+how, func(t *testing.T) {
				c := newClocked(t, noon.Add(off))
				c.submit("x", time.Time{})
				right(c, noon)
				kept := c.submit("x", time.Time{}) // for a second
				delayed := c.submit("x", noon.Add(time.Hour))
				c.wakeUp = noon.Add(time.Hour)
				asleep := c.submit("sleep", time.Time{})
				if r := c.log.records[len(c.log.records)-1]; r.CreatedAt != uint64(noon.UnixMilli()) {
					t.Errorf("a record is of %v, the leader's clock says %v", time.UnixMilli(int64(r.CreatedAt)).UTC(), noon)
				}
				if inv, err := c.store.Invocation(delayed); err != nil || inv.CreatedAtMs != uint64(noon.UnixMilli()) {
					t.Errorf("created at %v, %v; want %v", inv.GetCreatedAtMs(), err, noon.UnixMilli())
				}
				c.at(noon.Add(time.Hour - time.Millisecond))
				if c.exists(kept) {
					t.Error("a result that is kept for a second is there after an hour")
				}
				if n, m := c.began[delayed], c.began[asleep]; n != 0 || m != 1 {
					t.Errorf("before their time: %d attempts of what is delayed, want 0; %d of what sleeps, want 1", n, m)
				}
				c.at(noon.Add(time.Hour))
				if n, m := c.began[delayed], c.began[asleep]; n != 1 || m != 2 {
					t.Errorf("at their time: %d attempts of what is delayed, want 1; %d of what sleeps, want 2", n, m)
				}
			})
		}
	}
}

// A leader whose clock is behind the log says so, once each time, and anybody can ask how far.
func TestClockBehindIsTold(t *testing.T) {
	c := newClocked(t, noon)
	var told bytes.Buffer
	c.s.p.log = slog.New(slog.NewTextHandler(&told, nil))
	for _, step := range []struct {
		clock  time.Duration
		behind time.Duration
		told   int
	}{
		{0, 0, 0}, {-5 * time.Second, 5 * time.Second, 0}, {-time.Hour, time.Hour, 1}, {-59 * time.Minute, 59 * time.Minute, 1},
		{time.Minute, 0, 1}, {-time.Minute, 2 * time.Minute, 2},
	} {
		c.at(noon.Add(step.clock))
		c.submit("x", noon.Add(year)) // so that the log has the time
		if got := c.s.p.ClockBehind(); got != step.behind {
			t.Errorf("the clock at %v: behind by %v, want %v", step.clock, got, step.behind)
		}
		if n := strings.Count(told.String(), "the clock of this node is behind"); n != step.told {
			t.Errorf("the clock at %v: told %d times, want %d:\n%s", step.clock, n, step.told, &told)
		}
	}
	c.elect(noon.Add(-time.Minute))
	if got := c.s.p.ClockBehind(); got != 2*time.Minute {
		t.Errorf("the next leader's clock is behind by %v, want 2m", got)
	}
}

// While a leader's clock is behind timers are late. They fire when it is right again, with the same leader.
func TestTimersOfAClockBehind(t *testing.T) {
	c := newClocked(t, noon)
	delayed := c.submit("x", noon.Add(time.Hour))
	c.wakeUp = noon.Add(time.Hour)
	asleep := c.submit("sleep", time.Time{})
	c.at(noon.Add(-year))
	c.at(noon.Add(-year + 2*time.Hour))
	if n, m := c.began[delayed], c.began[asleep]; n != 0 || m != 1 {
		t.Errorf("with the clock a year behind: %d attempts of what is delayed, want 0; %d of what sleeps, want 1", n, m)
	}
	c.at(noon.Add(2 * time.Hour))
	if n, m := c.began[delayed], c.began[asleep]; n != 1 || m != 2 {
		t.Errorf("with the clock right again: %d attempts of what is delayed, want 1; %d of what sleeps, want 2", n, m)
	}
}

// A clock that is set while the leader waits, or on its way to waiting, is noticed at the next tick, in either direction.
func TestClockIsSetAtAnyMoment(t *testing.T) {
	for at := range 12 {
		for _, off := range []time.Duration{-year, year} {
			synctest.Test(t, func(t *testing.T) {
				c := newClocked(t, time.Now().Round(0))
				var shift, calls atomic.Int64 // calls of the clock until it is set
				calls.Store(-1)
				c.s.l.p.cfg.Now = func() time.Time {
					if calls.Add(-1) == 0 {
						shift.Store(int64(off))
					}
					return time.Now().Round(0).Add(time.Duration(shift.Load())) // the time of day only
				}
				due := time.Now().Add(30300 * time.Millisecond) // between two ticks
				id := c.submit("x", due)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- c.s.l.loop(ctx) }()
				time.Sleep(29700 * time.Millisecond)
				synctest.Wait()
				calls.Store(int64(at + 1))
				time.Sleep(10 * time.Second)
				synctest.Wait()
				fired := c.began[id]
				if off > 0 && fired != 1 {
					t.Errorf("the clock was set to the future at call %d, and the timer has not fired", at)
				}
				calls.Store(-1)
				shift.Store(0)
				time.Sleep(2 * c.s.p.cfg.TickInterval) // one to fire, one to read the record: the log of the test wakes nobody
				synctest.Wait()
				if c.began[id] != 1 {
					t.Errorf("the clock was set by %v at call %d, and back: the timer has fired %d times, want once", off, at, c.began[id])
				}
				cancel()
				<-ended
			})
		}
	}
}
