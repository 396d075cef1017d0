package bifrost

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"perdure/control/cluster"
	"perdure/nodes/logserver"
	"perdure/nodes/logstore"
	"perdure/nodes/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testNode is one life of a node: log store, log server and bifrost on a router.
type testNode struct {
	self   cluster.GenNodeID
	store  *logstore.Store
	server *logserver.Server
	*Bifrost
}

// router is what a node's components hang on.
type router interface {
	transport.Caller
	Self() cluster.GenNodeID
	Handle(transport.Service, transport.Handler)
}

// startNode starts the components of a node on a directory.
func startNode(t testing.TB, net router, chains Chains, fs vfs.FS, dir string, change func(*Config)) *testNode {
	t.Helper()
	logger := slog.New(slog.DiscardHandler)
	store, err := logstore.Open(logstore.Config{Dir: dir, FS: fs, Logger: logger})
	if err != nil {
		t.Fatalf("open log store: %v", err)
	}
	n := &testNode{self: net.Self(), store: store, server: logserver.New(logserver.Config{Store: store, Logger: logger})}
	cfg := Config{Self: net.Self(), Net: net, Chains: chains, Logger: logger}
	if change != nil {
		change(&cfg)
	}
	if n.Bifrost, err = New(cfg); err != nil {
		t.Fatalf("make bifrost: %v", err)
	}
	net.Handle(transport.LogServer, n.server.Handle)
	net.Handle(transport.Sequencer, n.Bifrost.Handle)
	return n
}

// stop ends a life in order.
func (n *testNode) stop(t testing.TB) {
	t.Helper()
	n.Bifrost.Close()
	n.server.Close()
	if err := n.store.Close(); err != nil {
		t.Errorf("close log store: %v", err)
	}
}

// single starts a node alone, for the whole test.
func single(t testing.TB, dir string) *testNode {
	t.Helper()
	self := cluster.GenNodeID{ID: 1, Generation: 1}
	n := startNode(t, transport.NewNode(self, nil), NewMemoryChains(), vfs.Default, dir, nil)
	t.Cleanup(func() { n.stop(t) })
	return n
}

func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// appendWait appends and waits for the answer.
func appendWait(t testing.TB, a *Appender, payloads ...string) (cluster.LSN, error) {
	t.Helper()
	records := make([]Record, len(payloads))
	for i, p := range payloads {
		records[i] = Record{Payload: []byte(p)}
	}
	type result struct {
		lsn cluster.LSN
		err error
	}
	done := make(chan result, 1)
	if err := a.Append(records, func(lsn cluster.LSN, err error) { done <- result{lsn, err} }); err != nil {
		return 0, err
	}
	select {
	case r := <-done:
		return r.lsn, r.err
	case <-time.After(time.Minute):
		t.Fatal("append was not answered within a minute")
		return 0, nil
	}
}

func mustAppend(t testing.TB, a *Appender, payloads ...string) cluster.LSN {
	t.Helper()
	lsn, err := appendWait(t, a, payloads...)
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	return lsn
}

// readNext waits for the next entry.
func readNext(t testing.TB, r *Reader) Entry {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		e, ok, err := r.TryNext()
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		if ok {
			return e
		}
		select {
		case <-r.Wait():
		case <-limit:
			t.Fatalf("no entry within a minute: %s", r.describe())
		}
	}
}

// describe says where a reader stands.
func (r *Reader) describe() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := fmt.Sprintf("next %d, segment %s [%d,%d) of %s, fetch %+v, closed %v", r.next, r.seg.id, r.seg.base, r.seg.end, r.seg.sequencer, r.fetch, r.closed)
	if r.tail != nil {
		s += fmt.Sprintf(", watched tail %d", r.tail.Load())
	}
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	s += fmt.Sprintf("; log version %d, segments %d, last %s [%d,%d) of %s", r.log.version, len(r.log.segments), r.log.segments[len(r.log.segments)-1].id,
		r.log.segments[len(r.log.segments)-1].base, r.log.segments[len(r.log.segments)-1].end, r.log.segments[len(r.log.segments)-1].sequencer)
	for id, o := range r.log.open {
		s += fmt.Sprintf("; open %s tail %d followed %v shared %v", id, o.tail.Load(), o.stop != nil, o.tail == r.tail)
	}
	if r.log.driver != nil {
		s += fmt.Sprintf("; sequencer here of %s, stopped %v", r.log.driver.Params().ID, r.log.driver.Stopped())
	}
	return s
}
