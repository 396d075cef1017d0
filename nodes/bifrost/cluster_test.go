package bifrost

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"perdure/control/chain"
	"perdure/control/cluster"
	"perdure/nodes/loglet"
	"perdure/nodes/transport"
)

// testCluster is several nodes on an in-process network, each with a disk that survives crashes.
type testCluster struct {
	t      testing.TB
	rng    *rand.Rand
	net    *transport.Mem
	chains Chains
	copies int
	ids    []cluster.NodeID
	disks  map[cluster.NodeID]*vfs.MemFS
	gens   map[cluster.NodeID]cluster.Generation
	nodes  map[cluster.NodeID]*testNode
}

func newCluster(t testing.TB, nodes, copies int) *testCluster {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := &testCluster{
		t: t, rng: rand.New(rand.NewPCG(seed, 4)), net: transport.NewMem(rand.New(rand.NewPCG(seed, 5))), chains: NewMemoryChains(), copies: copies,
		disks: map[cluster.NodeID]*vfs.MemFS{}, gens: map[cluster.NodeID]cluster.Generation{}, nodes: map[cluster.NodeID]*testNode{},
	}
	for i := range nodes {
		id := cluster.NodeID(i + 1)
		c.ids = append(c.ids, id)
		c.disks[id] = vfs.NewCrashableMem()
		c.start(id)
	}
	t.Cleanup(func() {
		c.net.Heal()
		for _, id := range c.ids {
			if c.nodes[id] != nil {
				c.nodes[id].stop(t)
			}
		}
		c.net.Close()
	})
	return c
}

// start begins a new life of a node.
func (c *testCluster) start(id cluster.NodeID) *testNode {
	c.t.Helper()
	c.gens[id]++
	e := c.net.Join(cluster.GenNodeID{ID: id, Generation: c.gens[id]})
	n := startNode(c.t, e, c.chains, c.disks[id], "log", func(cfg *Config) {
		cfg.Place = func(cluster.LogID, []cluster.NodeID) (cluster.Replication, []cluster.NodeID, error) {
			return cluster.ReplicateTo(c.copies), c.ids, nil
		}
		cfg.ReadTimeout = 100 * time.Millisecond
		cfg.TailPoll = 50 * time.Millisecond
		cfg.Sequencer = loglet.SequencerConfig{StoreTimeout: 100 * time.Millisecond, RetryMax: 50 * time.Millisecond}
		cfg.Finder = loglet.FinderConfig{AnswerTimeout: 50 * time.Millisecond, RetryMin: 5 * time.Millisecond, RetryMax: 50 * time.Millisecond, Patience: 300 * time.Millisecond}
	})
	c.nodes[id] = n
	return n
}

// crash ends a node's life without any order; a part of what was not synced survives.
func (c *testCluster) crash(id cluster.NodeID) {
	c.t.Helper()
	n := c.nodes[id]
	c.nodes[id] = nil
	c.net.Leave(id)   // nobody hears of it any more,
	n.Bifrost.Close() // nor do its own clients: what it makes durable from here on counts for nothing
	c.disks[id] = c.disks[id].CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: c.rng})
	n.server.Close()
	_ = n.store.Close() // its disk is not read any more
}

func (c *testCluster) others(id cluster.NodeID) (others []cluster.NodeID) {
	for _, o := range c.ids {
		if o != id {
			others = append(others, o)
		}
	}
	return others
}

func TestFailOver(t *testing.T) {
	for _, size := range []struct{ nodes, copies int }{{1, 1}, {2, 1}, {3, 2}, {4, 2}, {5, 3}} {
		t.Run(fmt.Sprintf("%d nodes %d copies", size.nodes, size.copies), func(t *testing.T) {
			c := newCluster(t, size.nodes, size.copies)
			a := c.nodes[1].Appender(1, AppenderOptions{})
			var want []string
			for i := range 20 {
				want = append(want, fmt.Sprint("first life ", i))
				mustAppend(t, a, want[i])
			}
			last := cluster.NodeID(size.nodes)
			c.crash(1)
			if last == 1 || size.copies == 1 {
				c.start(1) // its records exist nowhere else
			}
			b := c.nodes[last].Appender(1, AppenderOptions{})
			for i := range 20 {
				want = append(want, fmt.Sprint("second life ", i))
				mustAppend(t, b, want[20+i])
			}
			r := c.nodes[last].Reader(1, 1)
			for i, w := range want {
				if e := readNext(t, r); e.LSN != cluster.LSN(i+1) || string(e.Record.Payload) != w {
					t.Fatalf("entry %d is %d %q, want %q", i, e.LSN, e.Record.Payload, w)
				}
			}
		})
	}
}

// TestSealAllLeavesOthersAlone: a log that was continued elsewhere while its old node is about to seal it stays writable.
func TestSealAllLeavesOthersAlone(t *testing.T) {
	c := newCluster(t, 3, 2)
	mustAppend(t, c.nodes[1].Appender(1, AppenderOptions{}), "a")
	old := c.nodes[1].log(1)
	if err := old.lock(deadline(t)); err != nil {
		t.Fatal(err)
	}
	sealed := make(chan error, 1)
	go func() { sealed <- c.nodes[1].SealAll(deadline(t)) }()
	for yields := 0; yields < 1000; yields++ { // until it waits for the change that is under way
		if !c.nodes[1].refusesWrites() {
			yields = 0
		}
		runtime.Gosched()
	}
	if err := c.nodes[2].SealAndExtend(deadline(t), 1); err != nil {
		t.Fatal(err)
	}
	b := c.nodes[2].Appender(1, AppenderOptions{})
	mustAppend(t, b, "b")
	before, _, err := c.chains.Get(deadline(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	old.unlock()
	if err := <-sealed; err != nil {
		t.Fatal(err)
	}
	mustAppend(t, b, "c")
	if after, _, err := c.chains.Get(deadline(t), 1); err != nil || after.LastIndex() != before.LastIndex() {
		t.Errorf("the other node had to continue the log in segment %d after %d, %v", after.LastIndex(), before.LastIndex(), err)
	}
}

func TestReaderOnAnotherNode(t *testing.T) {
	c := newCluster(t, 3, 2)
	r := c.nodes[3].Reader(1, 1) // before the log exists
	a := c.nodes[1].Appender(1, AppenderOptions{})
	for i := range 30 {
		mustAppend(t, a, fmt.Sprint(i))
		if e := readNext(t, r); string(e.Record.Payload) != fmt.Sprint(i) {
			t.Fatalf("entry %d is %q", i, e.Record.Payload)
		}
		if i%10 == 9 {
			if err := c.nodes[1].SealAndExtend(deadline(t), 1); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestOneServerDown(t *testing.T) {
	c := newCluster(t, 3, 2)
	a := c.nodes[1].Appender(1, AppenderOptions{})
	mustAppend(t, a, "all are up")
	c.crash(3)
	mustAppend(t, a, "without the third")
	c.start(3)
	c.crash(2)
	mustAppend(t, a, "without the second")
	r := c.nodes[3].Reader(1, 1)
	for _, w := range []string{"all are up", "without the third", "without the second"} {
		if e := readNext(t, r); string(e.Record.Payload) != w {
			t.Fatalf("read %q, want %q", e.Record.Payload, w)
		}
	}
}

// TestLeaderCutOff has the leader on the small side of a partition: the other side goes on, and what
// the old leader could not commit is never read.
func TestLeaderCutOff(t *testing.T) {
	c := newCluster(t, 3, 2)
	old := c.nodes[1].Appender(1, AppenderOptions{})
	mustAppend(t, old, "before")
	c.net.Partition([]cluster.NodeID{1}, c.others(1))
	var answered atomic.Bool
	if err := old.Append([]Record{{Payload: []byte("cut off")}}, func(_ cluster.LSN, err error) { answered.Store(err == nil) }); err != nil {
		t.Fatal(err)
	}
	heir := c.nodes[2].Appender(1, AppenderOptions{})
	mustAppend(t, heir, "after")
	if answered.Load() {
		t.Error("the cut off leader got an append acknowledged")
	}
	r := c.nodes[3].Reader(1, 1)
	for _, w := range []string{"before", "after"} {
		if e := readNext(t, r); string(e.Record.Payload) != w {
			t.Fatalf("read %q, want %q", e.Record.Payload, w)
		}
	}
	old.Close()
}

// TestUnavailableThenBack takes too many servers away and gives them back.
func TestUnavailableThenBack(t *testing.T) {
	c := newCluster(t, 3, 2)
	a := c.nodes[1].Appender(1, AppenderOptions{})
	mustAppend(t, a, "one")
	c.net.Partition([]cluster.NodeID{1}, c.others(1))
	done := make(chan error, 1)
	if err := a.Append([]Record{{Payload: []byte("two")}}, func(_ cluster.LSN, err error) { done <- err }); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := c.nodes[1].SealAndExtend(ctx, 1); err == nil {
		t.Error("the log was extended without an f-majority")
	}
	select {
	case err := <-done:
		t.Fatalf("append without write quorum was answered: %v", err)
	default:
	}
	c.net.Heal()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("append was not answered after the network had healed")
	}
}

func TestTrimOnManySegments(t *testing.T) {
	c := newCluster(t, 3, 2)
	n := c.nodes[1]
	a := n.Appender(1, AppenderOptions{})
	for seg := range 4 {
		for i := range 10 {
			mustAppend(t, a, fmt.Sprint(seg*10+i))
		}
		if err := n.SealAndExtend(deadline(t), 1); err != nil {
			t.Fatal(err)
		}
	}
	// In the midst of the third segment.
	if err := n.Trim(deadline(t), 1, 25); err != nil {
		t.Fatal(err)
	}
	if p, err := n.TrimPoint(deadline(t), 1); p != 25 || err != nil {
		t.Errorf("trim point %d, %v; want 25", p, err)
	}
	if ch, _, _ := c.chains.Get(deadline(t), 1); ch.First().Base != 21 {
		t.Errorf("chain begins at %d, want 21", ch.First().Base)
	}
	for _, node := range c.nodes {
		r := node.Reader(1, 1)
		next := cluster.LSN(1)
		for next <= 25 {
			// Whole segments are gone for everybody; within one, a server outside of the write
			// quorum may still have what the others have trimmed.
			e := readNext(t, r)
			if e.LSN != next || (e.Kind == TrimGap && e.To > 25) || (e.Kind == Data && (next <= 20 || string(e.Record.Payload) != fmt.Sprint(next-1))) {
				t.Fatalf("entry %v [%d,%d] %q, want trim gap from %d to at most 25", e.Kind, e.LSN, e.To, e.Record.Payload, next)
			}
			next = e.To + 1
		}
		for ; next <= 40; next++ {
			if e := readNext(t, r); e.Kind != Data || e.LSN != next || string(e.Record.Payload) != fmt.Sprint(next-1) {
				t.Fatalf("entry %v %d %q, want record %d", e.Kind, e.LSN, e.Record.Payload, next)
			}
		}
		r.Close()
	}
	// Above everything: clipped to what is committed.
	if err := n.Trim(deadline(t), 1, 1<<40); err != nil {
		t.Fatal(err)
	}
	if got := mustAppend(t, a, "goes on"); got != 41 {
		t.Errorf("append after trim of everything went to %d, want 41", got)
	}
}

// flakyChains answers changes with an unknown outcome now and then, having made them or not.
type flakyChains struct {
	Chains
	mu  sync.Mutex
	rng *rand.Rand
}

func (f *flakyChains) CompareAndSwap(ctx context.Context, log cluster.LogID, c chain.Chain, version uint64) (uint64, error) {
	f.mu.Lock()
	dice := f.rng.IntN(4)
	f.mu.Unlock()
	switch dice {
	case 0:
		return 0, ErrCASUnknown
	case 1:
		if _, err := f.Chains.CompareAndSwap(ctx, log, c, version); err != nil && !errors.Is(err, ErrConflict) {
			return 0, err
		}
		return 0, ErrCASUnknown
	}
	return f.Chains.CompareAndSwap(ctx, log, c, version)
}

// TestLogOracle runs writers on all nodes that take the log from one another, with crashes,
// partitions, loss, delays and unknown outcomes of metadata changes. All readers, on all nodes and at
// all times, must see one history: one content per position, strictly growing, and in it each
// acknowledged record at the position that was answered, and the records of each writer in order. It goes on for some seconds,
// and until it has done something, for which it has minutes.
func TestLogOracle(t *testing.T) {
	c := newCluster(t, 3, 2)
	c.chains = &flakyChains{Chains: c.chains, rng: rand.New(rand.NewPCG(c.rng.Uint64(), 6))}
	o := &oracle{t: t, content: map[cluster.LSN]string{}, acked: map[cluster.LSN]string{}}
	for _, id := range c.ids { // from now on with flaky chains
		c.crash(id)
		c.start(id)
	}
	c.net.SetDefault(transport.Faults{Drop: 0.01, Duplicate: 0.02, MaxDelay: 2 * time.Millisecond})
	var readers sync.WaitGroup
	stopReaders := make(chan struct{})
	follow := func(n *testNode, from cluster.LSN) {
		r := n.Reader(1, from)
		readers.Go(func() { o.read(r, stopReaders) })
	}
	for _, id := range c.ids {
		follow(c.nodes[id], 1)
	}
	writer, serial, took := cluster.NodeID(1), 0, 0
	started := time.Now()
	for time.Since(started) < 4*time.Second || !c.wentOn(1, 5) || !o.acknowledged() {
		if time.Since(started) > 5*time.Minute {
			t.Fatal("the test did nothing")
		}
		// The next leader takes the log.
		took++
		writer = c.ids[c.rng.IntN(len(c.ids))]
		a := c.nodes[writer].Appender(1, AppenderOptions{})
		var pending sync.WaitGroup
		for range 1 + c.rng.IntN(40) {
			serial++
			text := fmt.Sprintf("%d:%d", took, serial)
			pending.Add(1)
			err := a.Append([]Record{{Payload: []byte(text)}}, func(lsn cluster.LSN, err error) {
				if err == nil {
					o.ack(lsn, text)
				}
				pending.Done()
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		switch c.rng.IntN(6) {
		case 0: // in the midst of it
			a.Close()
		case 1:
			c.crash(writer)
			follow(c.start(writer), 1)
		case 2:
			other := c.ids[c.rng.IntN(len(c.ids))]
			c.net.Partition([]cluster.NodeID{other}, c.others(other))
			waitFor(&pending, time.Duration(c.rng.IntN(200))*time.Millisecond)
			c.net.Heal()
			c.net.SetDefault(transport.Faults{Drop: 0.01, Duplicate: 0.02, MaxDelay: 2 * time.Millisecond})
		default:
			waitFor(&pending, time.Second)
		}
		a.Close()
		pending.Wait() // each append was answered
	}
	c.net.Heal()
	a := c.nodes[1].Appender(1, AppenderOptions{})
	end := mustAppend(t, a, fmt.Sprintf("%d:%d", took+1, serial+1)) // which may be twice in the log, too
	for _, id := range c.ids {
		r := c.nodes[id].Reader(1, 1)
		o.readTo(r, end)
		r.Close()
	}
	close(stopReaders)
	readers.Wait()
	ch, _, err := c.chains.Get(deadline(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for lsn, text := range o.acked {
		if o.content[lsn] != text {
			t.Errorf("position %d was acknowledged as %q and holds %q", lsn, text, o.content[lsn])
		}
	}
	t.Logf("%d leaders, %d segments, %d records, %d of them acknowledged", took, ch.LastIndex()+1, end, len(o.acked))
}

// wentOn reports whether a log has come to its segment n.
func (c *testCluster) wentOn(log cluster.LogID, n int) bool {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ch, _, err := c.chains.Get(ctx, log)
	if err != nil {
		c.t.Fatal(err)
	}
	return !ch.IsZero() && int(ch.LastIndex()) >= n
}

func waitFor(wg *sync.WaitGroup, d time.Duration) {
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(d):
	}
}

// oracle is the one history.
type oracle struct {
	t       testing.TB
	mu      sync.Mutex
	content map[cluster.LSN]string
	acked   map[cluster.LSN]string
}

func (o *oracle) ack(lsn cluster.LSN, text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if old, ok := o.acked[lsn]; ok && old != text {
		o.t.Errorf("position %d was acknowledged as %q and as %q", lsn, old, text)
	}
	o.acked[lsn] = text
}

func (o *oracle) acknowledged() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.acked) > 0
}

func (o *oracle) saw(e Entry) {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := string(e.Record.Payload)
	if old, ok := o.content[e.LSN]; ok && old != text {
		o.t.Errorf("position %d is %q and %q", e.LSN, old, text)
	}
	o.content[e.LSN] = text
}

// read follows the log until the reader is closed with its node, or stop.
func (o *oracle) read(r *Reader, stop chan struct{}) {
	defer r.Close()
	next := cluster.LSN(1)
	for {
		e, ok, err := r.TryNext()
		switch {
		case errors.Is(err, ErrClosed):
			return
		case err != nil:
			o.t.Errorf("read: %v", err)
			return
		case ok:
			if e.Kind != Data || e.LSN != next {
				o.t.Errorf("got %v %d after %d", e.Kind, e.LSN, next-1)
				return
			}
			o.saw(e)
			next++
			continue
		}
		select {
		case <-r.Wait():
		case <-stop:
			return
		}
	}
}

// readTo reads the whole log up to end; each leader's records must be in order the first time they appear.
func (o *oracle) readTo(r *Reader, end cluster.LSN) {
	o.t.Helper()
	seen, highest := map[string]bool{}, map[int]int{}
	for {
		e := readNext(o.t, r)
		o.saw(e)
		if e.LSN == end {
			return
		}
		var leader, serial int
		if _, err := fmt.Sscanf(string(e.Record.Payload), "%d:%d", &leader, &serial); err != nil {
			o.t.Fatalf("position %d holds %q", e.LSN, e.Record.Payload)
		}
		text := string(e.Record.Payload)
		if !seen[text] && serial < highest[leader] {
			o.t.Errorf("position %d: record %d of leader %d comes after %d", e.LSN, serial, leader, highest[leader])
		}
		seen[text] = true
		highest[leader] = max(highest[leader], serial)
	}
}
