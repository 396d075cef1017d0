package metastore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"perdure/control/cluster"
	"perdure/control/metadata"
)

// bubble runs a test with a clock of its own: a server that has no processor for a while is not late there, so nobody is
// elected whom the test does not make a leader. At its end it waits for what raft leaves alone when the target of a hand-over
// does not answer: the transport gives it up.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { <-time.After(time.Minute) })
		f(t)
	})
}

// network connects the servers of a test in memory.
type network struct {
	t          *testing.T
	transports []*raft.InmemTransport
	held       []*holding
	servers    []*Server
}

// holding is a transport that can hold back the answers to heartbeats which have already been given.
type holding struct {
	*raft.InmemTransport
	mu      sync.Mutex
	release chan struct{} // answers wait for it while it is not nil
	waiting chan struct{} // receives for each answer that is held, of which each other server has one at a time
}

func (h *holding) AppendEntries(id raft.ServerID, to raft.ServerAddress, in *raft.AppendEntriesRequest, out *raft.AppendEntriesResponse) error {
	err := h.InmemTransport.AppendEntries(id, to, in, out)
	h.mu.Lock()
	release := h.release
	h.mu.Unlock()
	if heartbeat := len(in.Entries) == 0 && in.PrevLogEntry == 0; release != nil && err == nil && heartbeat {
		select {
		case h.waiting <- struct{}{}:
		default:
		}
		<-release
	}
	return err
}

func (h *holding) hold() (release func()) {
	c := make(chan struct{})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.release = c
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.release = nil
		close(c)
	}
}

// newNetwork starts one server per election timeout; the first leads, all vote.
func newNetwork(t *testing.T, timeouts ...time.Duration) *network {
	n := &network{t: t}
	for i := range timeouts {
		_, tr := raft.NewInmemTransportWithTimeout(raft.ServerAddress(fmt.Sprint("address", i)), 200*time.Millisecond)
		n.transports = append(n.transports, tr)
		n.held = append(n.held, &holding{InmemTransport: tr, waiting: make(chan struct{}, len(timeouts))})
		tr.Connect(tr.LocalAddr(), tr)
	}
	for i := range timeouts {
		n.heal(i)
	}
	for i, timeout := range timeouts {
		s, err := Open(Config{Dir: t.TempDir(), Node: cluster.NodeID(i + 1), Transport: n.held[i], ElectionTimeout: timeout, Logger: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeServer(t, s) })
		n.servers = append(n.servers, s)
	}
	if err := n.servers[0].Bootstrap(); err != nil {
		t.Fatal(err)
	}
	ready(t, n.servers[0])
	for i, s := range n.servers[1:] {
		if err := n.servers[0].AddVoter(t.Context(), s.Identity().ServerID(), n.transports[i+1].LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	// A server that does not know of the last one yet refuses it its vote, for good if it is cut off from the leader now.
	for _, s := range n.servers {
		eventually(t, "not everybody knows all members", func() error {
			if m := s.Members(); len(m) != len(timeouts) {
				return fmt.Errorf("%s knows %v", s.Identity().ServerID(), m)
			}
			return nil
		})
	}
	return n
}

func (n *network) cut(i int) {
	for j, other := range n.transports {
		if i != j {
			n.transports[i].Disconnect(other.LocalAddr())
			other.Disconnect(n.transports[i].LocalAddr())
		}
	}
}

func (n *network) heal(i int) {
	for j, other := range n.transports {
		if i != j {
			n.transports[i].Connect(other.LocalAddr(), other)
			other.Connect(n.transports[i].LocalAddr(), n.transports[i])
		}
	}
}

// eventually repeats f until it succeeds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}

// leaderOf finds a server among some that can be read from.
func (n *network) leaderOf(among ...int) *Server {
	n.t.Helper()
	var leader *Server
	eventually(n.t, "no leader", func() error {
		for _, i := range among {
			if n.servers[i].raft.State() != raft.Leader {
				continue
			}
			ctx, cancel := context.WithTimeout(n.t.Context(), time.Second)
			defer cancel()
			if _, err := n.servers[i].List(ctx, ""); err == nil {
				leader = n.servers[i]
				return nil
			}
		}
		return errors.New("nobody answers")
	})
	return leader
}

const (
	quick = 150 * time.Millisecond
	never = 20 * time.Second // stands for a process that does not notice how time passes
)

func TestFollowersPointToTheLeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork(t, quick, quick, quick)
		leader := n.servers[0]
		mustPut(t, leader, "k", "v")
		for _, s := range n.servers[1:] {
			ready(t, s)
			var not *NotLeaderError
			if _, err := s.Get(t.Context(), "k"); !errors.As(err, &not) || not.Leader != leader.Identity().ServerID() || not.Address != "address0" || !errors.Is(err, metadata.ErrUnavailable) {
				t.Errorf("get from a follower: %v", err)
			}
			if _, err := s.Put(t.Context(), "k", nil, metadata.Any); !errors.As(err, &not) {
				t.Errorf("put to a follower: %v", err)
			}
			w := s.Watch("k")
			defer w.Close()
			eventually(t, "the follower's cache is behind", func() error {
				if v, ok := w.Get("k"); !ok || string(v.Data) != "v" {
					return fmt.Errorf("cached %q, %v", v.Data, ok)
				}
				return nil
			})
		}
		expect(t, leader, "k", "v", 1)
	})
}

// A leader that is cut off can not acknowledge, others take over, and what it has not acknowledged is settled when it is
// back: applied or not, but the same everywhere.
func TestLeaderIsCutOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork(t, quick, quick, quick)
		old := n.servers[0]
		mustPut(t, old, "k", "acknowledged")
		n.cut(0)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if _, err := old.Put(ctx, "k", []byte("never acknowledged"), metadata.Any); !errors.Is(err, metadata.ErrUnknownOutcome) && !errors.Is(err, metadata.ErrUnavailable) {
			t.Errorf("put to a leader that is cut off: %v", err)
		}
		next := n.leaderOf(1, 2)
		expect(t, next, "k", "acknowledged", 1)
		if v := mustPut(t, next, "k", "from the next"); v != 2 {
			t.Errorf("version %d", v)
		}
		if v, err := old.Get(t.Context(), "k"); err == nil {
			t.Errorf("the old leader answered %q", v.Data)
		}
		n.heal(0)
		w := old.Watch("k")
		defer w.Close()
		eventually(t, "the old leader does not learn", func() error {
			if v, _ := w.Get("k"); v.Version != 2 || string(v.Data) != "from the next" {
				return fmt.Errorf("it has %q at version %d", v.Data, v.Version)
			}
			return nil
		})
	})
}

// A leader that does not know yet that it was replaced must not answer reads from its old state, not even when answers to
// heartbeats arrive that were given before it was replaced. raft's VerifyLeader counts those.
func TestLateHeartbeatAnswersProveNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork(t, never, quick, quick)
		old := n.servers[0]
		mustPut(t, old, "k", "old")
		release := n.held[0].hold()
		released := false
		defer func() {
			if !released {
				release()
			}
		}()
		verified := n.servers[0].raft.VerifyLeader() // makes raft send heartbeats at once
		defer func() { _ = verified.Error() }()      // one way or the other, when the answers are let go
		for range 2 {
			select {
			case <-n.held[0].waiting:
			case <-time.After(patience):
				t.Fatal("no heartbeat was held")
			}
		}
		n.cut(0)
		next := n.leaderOf(1, 2)
		mustPut(t, next, "k", "new")
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		type answer struct {
			value metadata.Value
			err   error
		}
		read := make(chan answer, 1)
		go func() {
			v, err := old.Get(ctx, "k")
			read <- answer{v, err}
		}()
		select {
		case a := <-read:
			t.Fatalf("the read ended with nobody to confirm it: %q, %v", a.value.Data, a.err)
		case <-time.After(50 * time.Millisecond):
		}
		released = true
		release()
		if a := <-read; a.err == nil {
			t.Errorf("read %q after %q was acknowledged", a.value.Data, "new")
		}
		n.heal(0)
		eventually(t, "the old leader goes on", func() error {
			if old.raft.State() == raft.Leader {
				return errors.New("it still leads")
			}
			return nil
		})
	})
}

// A closing leader hands on, so that there is a leader before an election timeout has passed.
func TestLeaderHandsOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNetwork(t, never, never, never)
		mustPut(t, n.servers[0], "k", "v")
		closeServer(t, n.servers[0])
		next := n.leaderOf(1, 2)
		expect(t, next, "k", "v", 1)
		if err := next.RemoveServer(t.Context(), n.servers[0].Identity().ServerID()); err != nil {
			t.Fatal(err)
		}
		if m := next.Members(); len(m) != 2 {
			t.Errorf("members %v", m)
		}
		mustPut(t, next, "k", "w")
	})
}

// A new member gets the state from a snapshot when the log does not reach back, and survives a restart with that.
func TestNewMemberGetsASnapshot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		_, a := raft.NewInmemTransport("a")
		_, b := raft.NewInmemTransport("b")
		for _, tr := range []*raft.InmemTransport{a, b} {
			tr.Connect("a", a)
			tr.Connect("b", b)
		}
		first, err := Open(Config{Dir: t.TempDir(), Node: 1, Transport: a, SnapshotThreshold: 10, Logger: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		defer closeServer(t, first)
		if err := first.Bootstrap(); err != nil {
			t.Fatal(err)
		}
		ready(t, first)
		for i := range 40 {
			mustPut(t, first, fmt.Sprint("k", i), "v")
		}
		if err := first.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		second, err := Open(Config{Dir: dir, Node: 2, Transport: b, Logger: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		if err := first.AddVoter(t.Context(), second.Identity().ServerID(), "b"); err != nil {
			t.Fatal(err)
		}
		mustPut(t, first, "last", "v")
		seen := func(s *Server) func() error {
			w := s.Watch("")
			t.Cleanup(w.Close)
			return func() error {
				if n := len(w.Snapshot()); n != 41 {
					return fmt.Errorf("it has %d of 41 keys", n)
				}
				return nil
			}
		}
		eventually(t, "the new member is behind", seen(second))
		storage := second.Identity().Storage
		closeServer(t, second)
		_, b2 := raft.NewInmemTransport("b")
		b2.Connect("a", a)
		b2.Connect("b", b2)
		a.Connect("b", b2)
		second, err = Open(Config{Dir: dir, Node: 2, Transport: b2, ExpectStorage: storage, Logger: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		defer closeServer(t, second)
		eventually(t, "the restarted member is behind", seen(second))
	})
}
