package bifrost

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"perdure/control/cluster"
	"perdure/nodes/loglet"
	"perdure/nodes/logserver"
	"perdure/nodes/logstore"
	"perdure/nodes/transport"
)

func TestAppendAndRead(t *testing.T) {
	n := single(t, t.TempDir())
	a := n.Appender(7, AppenderOptions{})
	r := n.Reader(7, 1)
	for i := range 100 {
		lsn := mustAppend(t, a, fmt.Sprint("record ", i))
		e := readNext(t, r)
		if e.Kind != Data || e.LSN != lsn || e.To != lsn || string(e.Record.Payload) != fmt.Sprint("record ", i) {
			t.Fatalf("append %d went to %d, read %v %d %q", i, lsn, e.Kind, e.LSN, e.Record.Payload)
		}
	}
}

func TestRecordsKeepTheirFields(t *testing.T) {
	n := single(t, t.TempDir())
	a := n.Appender(7, AppenderOptions{})
	first, second := n.Reader(7, 1), n.Reader(7, 1)
	decoded := new(int)
	done := make(chan error, 1)
	rec := Record{Key: 5, Keyed: true, CreatedAt: 99, Payload: []byte("p"), Decoded: decoded}
	if err := a.Append([]Record{rec}, func(_ cluster.LSN, err error) { done <- err }); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if e := readNext(t, first); e.Record.Decoded != any(decoded) || e.Record.Key != 5 || !e.Record.Keyed || e.Record.CreatedAt != 99 {
		t.Errorf("from the cache: %+v", e.Record)
	}
	n.cache.release(cluster.NewLogletID(7, 0), 2)
	if e := readNext(t, second); e.Record.Decoded != nil || e.Record.Key != 5 || !e.Record.Keyed || e.Record.CreatedAt != 99 || string(e.Record.Payload) != "p" {
		t.Errorf("from the store: %+v", e.Record)
	}
}

// TestRestartLoop kills a node many times, each life appends some and reads everything.
func TestRestartLoop(t *testing.T) {
	chains := NewMemoryChains()
	fs := vfs.NewCrashableMem()
	var want []string
	for life := range 20 {
		self := cluster.GenNodeID{ID: 1, Generation: cluster.Generation(life + 1)}
		n := startNode(t, transport.NewNode(self, nil), chains, fs, "log", nil)
		a := n.Appender(1, AppenderOptions{})
		for i := range 10 {
			text := fmt.Sprintf("life %d record %d", life, i)
			want = append(want, text)
			mustAppend(t, a, text)
		}
		r := n.Reader(1, 1)
		for i, w := range want {
			if e := readNext(t, r); e.LSN != cluster.LSN(i+1) || string(e.Record.Payload) != w {
				t.Fatalf("life %d: entry %d is %d %q, want %q", life, i, e.LSN, e.Record.Payload, w)
			}
		}
		if life%3 == 0 {
			if err := n.SealAll(deadline(t)); err != nil {
				t.Errorf("seal all: %v", err)
			}
		}
		after := fs.CrashClone(vfs.CrashCloneCfg{})
		n.stop(t)
		fs = after
	}
}

// TestReadBeforeFirstAppend: a follower that starts on a log of a dead sequencer reads what is
// committed, without anybody appending.
func TestReadBeforeFirstAppend(t *testing.T) {
	chains, fs := NewMemoryChains(), vfs.NewMem()
	n := startNode(t, transport.NewNode(cluster.GenNodeID{ID: 1, Generation: 1}, nil), chains, fs, "log", nil)
	mustAppend(t, n.Appender(1, AppenderOptions{}), "a", "b", "c")
	n.stop(t)
	n = startNode(t, transport.NewNode(cluster.GenNodeID{ID: 1, Generation: 2}, nil), chains, fs, "log", nil)
	defer n.stop(t)
	r := n.Reader(1, 2)
	for i, w := range []string{"b", "c"} {
		if e := readNext(t, r); e.LSN != cluster.LSN(i+2) || string(e.Record.Payload) != w {
			t.Fatalf("entry %d %q, want %q", e.LSN, e.Record.Payload, w)
		}
	}
	if tail, sealed, err := n.FindTail(deadline(t), 1); tail != 4 || sealed || err != nil {
		t.Errorf("tail %d, sealed %v, %v; want 4, open", tail, sealed, err)
	}
}

func TestFindTailOfUnknownLog(t *testing.T) {
	n := single(t, t.TempDir())
	if _, _, err := n.FindTail(deadline(t), 3); !errors.Is(err, ErrNoLog) {
		t.Errorf("error %v, want ErrNoLog", err)
	}
	if err := n.EnsureLog(deadline(t), 3); err != nil {
		t.Fatal(err)
	}
	if err := n.EnsureLog(deadline(t), 3); err != nil {
		t.Fatal(err)
	}
	if tail, sealed, err := n.FindTail(deadline(t), 3); tail != 1 || sealed || err != nil {
		t.Errorf("tail %d, sealed %v, %v; want 1, open", tail, sealed, err)
	}
}

// TestSealedTailGoesIntoTheChain: who finds a segment sealed writes its end down.
func TestSealedTailGoesIntoTheChain(t *testing.T) {
	n := single(t, t.TempDir())
	mustAppend(t, n.Appender(1, AppenderOptions{}), "a", "b")
	if err := n.SealAll(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if tail, sealed, err := n.FindTail(deadline(t), 1); tail != 3 || !sealed || err != nil {
		t.Errorf("tail %d, sealed %v, %v; want 3, sealed", tail, sealed, err)
	}
	c, _, err := n.cfg.Chains.Get(deadline(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	if s, ok := c.Sealed(); !ok || s.Tail != 3 {
		t.Errorf("chain has seal %+v, %v; want one at 3", s, ok)
	}
}

// TestAppendAcrossSegments seals the segment while appends run: none is lost, all stay in order.
func TestAppendAcrossSegments(t *testing.T) {
	n := single(t, t.TempDir())
	a := n.Appender(1, AppenderOptions{})
	var mu sync.Mutex
	acked := map[int]cluster.LSN{}
	var pending sync.WaitGroup
	const records = 2000
	for i := range records {
		pending.Add(1)
		err := a.Append([]Record{{CreatedAt: uint64(i), Payload: []byte("x")}}, func(lsn cluster.LSN, err error) {
			if err != nil {
				t.Errorf("append %d: %v", i, err)
			}
			mu.Lock()
			acked[i] = lsn
			mu.Unlock()
			pending.Done()
		})
		if err != nil {
			t.Fatal(err)
		}
		if i%200 == 100 {
			if err := n.SealAndExtend(deadline(t), 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	pending.Wait()
	c, _, err := n.cfg.Chains.Get(deadline(t), 1)
	if err != nil || c.LastIndex() < 9 {
		t.Fatalf("last segment %d, %v; want at least 10 segments", c.LastIndex(), err)
	}
	r := n.Reader(1, 1)
	at := map[uint64][]cluster.LSN{}
	for next, highest := cluster.LSN(1), -1; len(at) < records; next++ {
		e := readNext(t, r)
		if e.LSN != next {
			t.Fatalf("read %d after %d", e.LSN, next-1)
		}
		i := e.Record.CreatedAt
		if at[i] == nil && int(i) != highest+1 {
			t.Fatalf("record %d appears after %d", i, highest)
		}
		highest = max(highest, int(i))
		at[i] = append(at[i], e.LSN)
	}
	for i, lsn := range acked {
		found := false
		for _, l := range at[uint64(i)] {
			found = found || l == lsn
		}
		if !found {
			t.Errorf("record %d was acknowledged at %d, it is at %v", i, lsn, at[uint64(i)])
		}
	}
}

func TestBudget(t *testing.T) {
	n := single(t, t.TempDir())
	gate := newGate(n.cfg.Net)
	n.cfg.Net = gate
	a := n.Appender(1, AppenderOptions{MaxBytes: 1000})
	big := []Record{{Payload: make([]byte, 2000)}}
	var answers atomic.Int32
	done := func(cluster.LSN, error) { answers.Add(1) }
	if err := a.Append(big, done); err != nil {
		t.Fatalf("one append of any size must go: %v", err)
	}
	if err := a.Append(big, done); !errors.Is(err, ErrFull) {
		t.Fatalf("second append: %v, want ErrFull", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- a.WaitCapacity(deadline(t)) }()
	gate.open()
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	if err := a.Append(big, done); err != nil {
		t.Errorf("append after capacity: %v", err)
	}
	a.Close()
	if err := a.Append(big, done); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v, want ErrClosed", err)
	}
	if got := answers.Load(); got != 2 {
		t.Errorf("%d answers to 2 appends", got)
	}
}

// TestCapacityIsForAnySize: after WaitCapacity an append is taken, also a big one.
func TestCapacityIsForAnySize(t *testing.T) {
	n := single(t, t.TempDir())
	n.cfg.Net = newGate(n.cfg.Net) // nothing is committed
	a := n.Appender(1, AppenderOptions{MaxBytes: 10_000})
	defer a.Close()
	for _, size := range []int{3_000, 9_000} {
		if err := a.WaitCapacity(deadline(t)); err != nil {
			t.Fatal(err)
		}
		if err := a.Append([]Record{{Payload: make([]byte, size)}}, func(cluster.LSN, error) {}); err != nil {
			t.Errorf("append of %d bytes where there is capacity: %v", size, err)
		}
	}
	if err := a.Append([]Record{{}}, func(cluster.LSN, error) {}); !errors.Is(err, ErrFull) {
		t.Errorf("append beyond the budget: %v, want ErrFull", err)
	}
}

// gate holds all calls back until it is opened.
type gate struct {
	net  transport.Caller
	mu   sync.Mutex
	held []func()
	free bool
}

func newGate(net transport.Caller) *gate { return &gate{net: net} }

func (g *gate) Call(to cluster.NodeID, m transport.Message, done transport.ReplyFunc) {
	g.mu.Lock()
	if !g.free {
		g.held = append(g.held, func() { g.net.Call(to, m, done) })
		g.mu.Unlock()
		return
	}
	g.mu.Unlock()
	g.net.Call(to, m, done)
}

func (g *gate) open() {
	g.mu.Lock()
	held := g.held
	g.held, g.free = nil, true
	g.mu.Unlock()
	for _, f := range held {
		f()
	}
}

// TestCloseAnswersEveryAppend: with the disk never answering, Close answers; what was under way is
// unknown, what was only queued was not written.
func TestCloseAnswersEveryAppend(t *testing.T) {
	n := single(t, t.TempDir())
	mustAppend(t, n.Appender(1, AppenderOptions{}), "makes the log writable")
	gate := newGate(n.cfg.Net)
	a := n.Appender(1, AppenderOptions{Window: 1})
	mustAppend(t, a, "makes the appender ready")
	a.lockAtRest()
	a.driver = loglet.NewDriver(a.driver.Params(), loglet.SequencerConfig{StallTimeout: time.Hour}, gate, loglet.SystemClock{}, loglet.NewTail(), nil)
	stuck := a.driver
	a.mu.Unlock()
	var unknown, not int
	for range 5 {
		err := a.Append([]Record{{Payload: []byte("x")}}, func(_ cluster.LSN, err error) {
			switch {
			case errors.Is(err, ErrUnknownOutcome):
				unknown++
			case errors.Is(err, ErrNotWritten):
				not++
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	a.Close()
	a.Close()
	stuck.Stop(ErrClosed)
	if unknown != 1 || not != 4 {
		t.Errorf("%d unknown and %d not written, want 1 and 4", unknown, not)
	}
}

// lockAtRest takes the appender's lock when nobody hands batches to the sequencer: an append may be answered while who has
// handed it over is still on the way back, and would take what is queued until then all at once.
func (a *Appender) lockAtRest() {
	for a.mu.Lock(); a.pumping; a.mu.Lock() {
		a.mu.Unlock()
		runtime.Gosched()
	}
}

// TestSequencerFullOfAFormerAppender: a leader that was started again finds the sequencer full of what its predecessor
// left on the way to a slow disk. It waits for that, and not by asking all the time.
func TestSequencerFullOfAFormerAppender(t *testing.T) {
	gate := &gate{}
	clock := &countingClock{}
	self := cluster.GenNodeID{ID: 1, Generation: 1}
	n := startNode(t, transport.NewNode(self, nil), NewMemoryChains(), vfs.Default, t.TempDir(), func(c *Config) {
		gate.net, c.Net, c.Clock, c.Sequencer.MaxInFlight = c.Net, gate, clock, 2
	})
	defer n.stop(t)
	former := n.Appender(1, AppenderOptions{})
	if err := former.Append(make([]Record, 2), func(cluster.LSN, error) {}); err != nil {
		t.Fatal(err)
	}
	<-gate.called()
	former.Close()
	a := n.Appender(1, AppenderOptions{})
	done := make(chan error, 1)
	if err := a.Append(make([]Record, 2), func(_ cluster.LSN, err error) { done <- err }); err != nil {
		t.Fatal(err)
	}
	before, began := clock.asked.Load(), time.Now()
	<-time.After(200 * time.Millisecond)
	asked := clock.asked.Load() - before
	if took := time.Since(began); asked > took.Milliseconds() { // the wait may be longer
		t.Errorf("the sequencer was asked about %d times in %s", asked, took)
	}
	gate.open()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("append behind those of the former appender: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the append was not answered within a minute")
	}
}

// countingClock counts how often a sequencer steps.
type countingClock struct {
	loglet.SystemClock
	asked atomic.Int64
}

func (c *countingClock) Now() time.Time {
	c.asked.Add(1)
	return c.SystemClock.Now()
}

// called yields once a call is held.
func (g *gate) called() <-chan struct{} {
	c := make(chan struct{})
	go func() {
		defer close(c)
		for {
			g.mu.Lock()
			n := len(g.held)
			g.mu.Unlock()
			if n > 0 {
				return
			}
			<-time.After(time.Millisecond)
		}
	}()
	return c
}

func TestCloseOfBifrostEndsHandles(t *testing.T) {
	n := single(t, t.TempDir())
	a := n.Appender(1, AppenderOptions{})
	mustAppend(t, a, "x")
	r := n.Reader(1, 2)
	n.Bifrost.Close()
	if err := a.Append([]Record{{}}, func(cluster.LSN, error) {}); !errors.Is(err, ErrClosed) {
		t.Errorf("append: %v, want ErrClosed", err)
	}
	<-r.Wait()
	if _, _, err := r.TryNext(); !errors.Is(err, ErrClosed) {
		t.Errorf("read: %v, want ErrClosed", err)
	}
	if _, _, err := n.Reader(1, 1).TryNext(); !errors.Is(err, ErrClosed) {
		t.Errorf("read with a new reader: %v, want ErrClosed", err)
	}
	if _, _, err := n.FindTail(deadline(t), 1); err == nil {
		t.Error("find tail works after close")
	}
}

// TestFailedDisk: with the log store failed nothing is acknowledged, and Close still ends.
func TestFailedDisk(t *testing.T) {
	self := cluster.GenNodeID{ID: 1, Generation: 1}
	net := transport.NewNode(self, nil)
	store := &failingStore{}
	server := logserver.New(logserver.Config{Store: store, Logger: slog.New(slog.DiscardHandler)})
	defer server.Close()
	net.Handle(transport.LogServer, server.Handle)
	b, err := New(Config{Self: self, Net: net, Chains: NewMemoryChains(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	a := b.Appender(1, AppenderOptions{})
	answer := make(chan error, 1)
	if err := a.Append([]Record{{}}, func(_ cluster.LSN, err error) { answer <- err }); err != nil {
		t.Fatal(err)
	}
	<-store.asked()
	b.Close()
	if err := <-answer; err == nil {
		t.Error("append on a failed disk was acknowledged")
	}
}

// failingStore takes no write.
type failingStore struct {
	once sync.Once
	ask  chan struct{}
}

func (s *failingStore) asked() chan struct{} {
	s.once.Do(func() { s.ask = make(chan struct{}, 1) })
	return s.ask
}

func (s *failingStore) Enqueue(*logserver.Write) error {
	select {
	case s.asked() <- struct{}{}:
	default:
	}
	return logstore.ErrFailed
}
func (*failingStore) Backlogged() bool                              { return false }
func (*failingStore) Load(cluster.LogletID) (logserver.Meta, error) { return logserver.Meta{}, nil }
func (*failingStore) Read(_ cluster.LogletID, from, _ cluster.Offset, _ int) ([]logserver.Found, cluster.Offset, error) {
	return nil, from, nil
}
func (*failingStore) Digest(_ cluster.LogletID, _, _ cluster.Offset) ([]logserver.Range, error) {
	return nil, nil
}

// TestCorruptRecordIsAnError reads a log whose stored record was damaged.
func TestCorruptRecordIsAnError(t *testing.T) {
	n := single(t, t.TempDir())
	mustAppend(t, n.Appender(1, AppenderOptions{}), "a", "b")
	n.Bifrost.cache.release(cluster.NewLogletID(1, 0), 3)
	gate := &corrupting{net: n.cfg.Net}
	n.cfg.Net = gate
	r := n.Reader(1, 1)
	limit := time.After(time.Minute)
	for {
		_, ok, err := r.TryNext()
		if errors.Is(err, ErrRead) {
			break
		}
		if ok || err != nil {
			t.Fatalf("entry %v, error %v; want ErrRead", ok, err)
		}
		select {
		case <-r.Wait():
		case <-limit:
			t.Fatal("no error within a minute")
		}
	}
	gate.heal.Store(true) // e.g. repaired: the reader goes on where it was
	if e := readNext(t, r); e.LSN != 1 || string(e.Record.Payload) != "a" {
		t.Errorf("after the repair: %d %q", e.LSN, e.Record.Payload)
	}
}

// corrupting answers reads as a log server does whose record does not match its checksum.
type corrupting struct {
	net  transport.Caller
	heal atomic.Bool
}

func (c *corrupting) Call(to cluster.NodeID, m transport.Message, done transport.ReplyFunc) {
	if _, read := m.(*logserver.ReadRequest); read && !c.heal.Load() {
		done(&logserver.ReadReply{StateReply: logserver.StateReply{Status: logserver.StatusError, Reason: "checksum"}}, nil)
		return
	}
	c.net.Call(to, m, done)
}

// TestStartOf24Logs measures what a start costs: seal, find tail and extend of all logs at once.
func TestStartOf24Logs(t *testing.T) {
	chains, dir := NewMemoryChains(), t.TempDir()
	for life := range 3 {
		self := cluster.GenNodeID{ID: 1, Generation: cluster.Generation(life + 1)}
		n := startNode(t, transport.NewNode(self, nil), chains, vfs.Default, dir, nil)
		began := time.Now()
		var done sync.WaitGroup
		for id := range cluster.LogID(24) {
			a := n.Appender(id, AppenderOptions{})
			done.Add(1)
			err := a.Append([]Record{{Payload: []byte("announce")}}, func(_ cluster.LSN, err error) {
				if err != nil {
					t.Errorf("first append of log %d: %v", id, err)
				}
				done.Done()
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		done.Wait()
		t.Logf("life %d: 24 logs writable after %v", life, time.Since(began))
		n.stop(t)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newRecordCache(1000)
	rec := func() []Record { return []Record{{Payload: make([]byte, 28)}} } // 100 bytes each
	for o := cluster.Offset(1); o <= 50; o++ {
		c.put(1, o, rec())
		c.put(2, o, rec())
	}
	if c.bytes > 1000 || c.live > 10 {
		t.Errorf("%d bytes in %d batches, want at most 1000", c.bytes, c.live)
	}
	if c.get(1, 50) == nil || c.get(1, 1) != nil || c.get(1, 51) != nil {
		t.Error("the newest batch is not cached, or an old or future one is")
	}
	c.release(1, 51)
	c.release(2, 51)
	if c.bytes != 0 || c.live != 0 || len(c.loglets) != 0 {
		t.Errorf("after release of all: %d bytes, %d batches", c.bytes, c.live)
	}
	for o := cluster.Offset(51); o <= 10000; o++ {
		c.put(1, o, rec())
		c.release(1, o+1)
	}
	if len(c.age) > 200 {
		t.Errorf("%d dropped batches are remembered", len(c.age))
	}
	c.put(3, 1, make([]Record, 5))
	if got := c.get(3, 4); len(got) != 2 {
		t.Errorf("%d records from the midst of a batch, want 2", len(got))
	}
}

// TestTrimGap: on one node a trim shows as one gap, also to readers that the record cache would serve.
func TestTrimGap(t *testing.T) {
	n := single(t, t.TempDir())
	a := n.Appender(1, AppenderOptions{})
	for i := range 10 {
		mustAppend(t, a, fmt.Sprint(i))
	}
	if err := n.Trim(deadline(t), 1, 6); err != nil {
		t.Fatal(err)
	}
	r := n.Reader(1, 3)
	if e := readNext(t, r); e.Kind != TrimGap || e.LSN != 3 || e.To != 6 {
		t.Errorf("entry %v [%d,%d], want trim gap [3,6]", e.Kind, e.LSN, e.To)
	}
	if e := readNext(t, r); e.Kind != Data || e.LSN != 7 || string(e.Record.Payload) != "6" {
		t.Errorf("entry %v %d %q, want record 7", e.Kind, e.LSN, e.Record.Payload)
	}
	if p, err := n.TrimPoint(deadline(t), 1); p != 6 || err != nil {
		t.Errorf("trim point %d, %v; want 6", p, err)
	}
}

func TestFilteredReader(t *testing.T) {
	n := single(t, t.TempDir())
	a := n.Appender(1, AppenderOptions{})
	done := make(chan error, 1)
	records := make([]Record, 8)
	for i := range records {
		records[i] = Record{Key: uint64(i), Keyed: i != 1, Payload: []byte("x")}
	}
	if err := a.Append(records, func(_ cluster.LSN, err error) { done <- err }); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r := n.FilteredReader(1, 1, cluster.KeyRange{Start: 4, End: 5})
	var got []string
	for len(got) < 5 {
		e := readNext(t, r)
		got = append(got, fmt.Sprintf("%v %d-%d", e.Kind, e.LSN, e.To))
	}
	want := []string{"filtered gap 1-1", "data 2-2", "filtered gap 3-4", "data 5-5", "data 6-6"}
	if !slices.Equal(got, want) {
		t.Errorf("read %q, want %q", got, want)
	}
}
