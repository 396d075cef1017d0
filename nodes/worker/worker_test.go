package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/placement"
	"perdure/control/schema"
	"perdure/invokers"
	"perdure/invokers/invocationpb"
	"perdure/nodes/bifrost"
	"perdure/nodes/logserver"
	"perdure/nodes/logstore"
	"perdure/nodes/partition"
	"perdure/nodes/partition/store"
	"perdure/nodes/record/recordpb"
	"perdure/nodes/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is a node's log and what a worker needs beside it.
type host struct {
	t      *testing.T
	dir    string
	gen    cluster.Generation
	chains *bifrost.MemoryChains
	epoch  atomic.Uint64
	claim  func() error // before each claim; nil: none fails

	bifrost *bifrost.Bifrost
	close   []func()
}

func (h *host) start(partitions int) *Worker {
	h.t.Helper()
	h.gen++
	self := cluster.GenNodeID{ID: 1, Generation: h.gen}
	logger := slog.New(slog.DiscardHandler)
	ls, err := logstore.Open(logstore.Config{Dir: filepath.Join(h.dir, "log"), Logger: logger})
	if err != nil {
		h.t.Fatal(err)
	}
	srv := logserver.New(logserver.Config{Store: ls, Logger: logger})
	net := transport.NewNode(self, nil)
	b, err := bifrost.New(bifrost.Config{Self: self, Net: net, Chains: h.chains, Logger: logger})
	if err != nil {
		h.t.Fatal(err)
	}
	net.Handle(transport.LogServer, srv.Handle)
	net.Handle(transport.Sequencer, b.Handle)
	h.bifrost = b
	table, err := placement.NewTable(partitions, cluster.ReplicateTo(1))
	if err != nil {
		h.t.Fatal(err)
	}
	w := Start(Config{
		Dir: filepath.Join(h.dir, "partitions"), Table: table, Bifrost: b, Logger: logger,
		Claim: func(context.Context, cluster.PartitionID) (partition.Claim, error) {
			if h.claim != nil {
				if err := h.claim(); err != nil {
					return partition.Claim{}, err
				}
			}
			return partition.Claim{Epoch: cluster.Epoch(h.epoch.Add(1)), Node: self}, nil
		},
		Store:     store.Options{Logger: logger},
		Processor: partition.Config{Logger: logger, OpenInvoker: func(cluster.PartitionID, invokers.Host) partition.Invoker { return idle{} }},
	})
	h.close = []func(){func() { ls.Close() }, srv.Close, b.Close, w.Close}
	return w
}

func (h *host) stop() {
	for i := len(h.close) - 1; i >= 0; i-- {
		h.close[i]()
	}
	h.close = nil
}

func newHost(t *testing.T) *host {
	return &host{t: t, dir: t.TempDir(), chains: bifrost.NewMemoryChains()}
}

// idle is an invoker that never gets anything done.
type idle struct{ partition.Invoker }

func (idle) Invoke(ident.InvocationID, uint64, string, ident.DeploymentID, *invokers.Journal) {}
func (idle) Notify(ident.InvocationID, uint64, uint32, uint16, []byte)                        {}
func (idle) Applied(ident.InvocationID, uint64, uint64)                                       {}
func (idle) Abort(ident.InvocationID)                                                         {}
func (idle) Pause(ident.InvocationID)                                                         {}
func (idle) RetryNow(ident.InvocationID)                                                      {}
func (idle) Close()                                                                           {}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func ready(t *testing.T, w *Worker) {
	t.Helper()
	select {
	case <-w.Ready():
	case <-time.After(time.Minute):
		t.Fatalf("not ready within a minute: %+v", w.Statuses())
	}
}

var sent atomic.Uint64

func send(t *testing.T, w *Worker) error {
	t.Helper()
	n := sent.Add(1)
	id := ident.Invocation(ident.Target{Service: "Svc", Handler: "h"}, ident.Random{ULID: [16]byte{byte(n), byte(n >> 8)}, Bucket: n})
	rid := [16]byte{1, byte(n), byte(n >> 8)}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := w.Do(ctx, id.PartitionKey(), &recordpb.Request{Id: rid[:], Kind: &recordpb.Request_Invoke_{Invoke: &recordpb.Request_Invoke{Invocation: &invocationpb.Invocation{
		Id: id[:], Target: &invocationpb.Target{Service: "Svc", Handler: "h", ServiceType: uint32(schema.Service), HandlerType: uint32(schema.Shared)}, Source: &invocationpb.Source{},
	}}}})
	if err == nil && r.Status != recordpb.Reply_ACCEPTED {
		return fmt.Errorf("answered %s", r.Status)
	}
	return err
}

// A partition whose epoch cannot be claimed, or whose store cannot be opened, is tried again until it can.
func TestPartitionsAreStartedAgain(t *testing.T) {
	h := newHost(t)
	var failures atomic.Int64
	h.claim = func() error {
		if failures.Add(1) <= 3 {
			return errors.New("the metadata store is away")
		}
		return nil
	}
	w := h.start(2)
	defer h.stop()
	ready(t, w)
	restarts := 0
	for _, s := range w.Statuses() {
		restarts += s.Restarts
		if !s.Leading || s.Epoch == 0 || s.Parked {
			t.Errorf("status %+v", s)
		}
	}
	if restarts != 3 {
		t.Errorf("%d restarts, want 3", restarts)
	}
	if err := send(t, w); err != nil {
		t.Error(err)
	}
}

func TestNothingIsServedAfterClose(t *testing.T) {
	h := newHost(t)
	w := h.start(1)
	ready(t, w)
	if err := send(t, w); err != nil {
		t.Fatal(err)
	}
	h.stop()
	if err := send(t, w); !errors.Is(err, partition.ErrNotLeader) {
		t.Errorf("request after Close: %v", err)
	}
	if err := w.Ingest(0, partition.Origin{}, nil, nil); !errors.Is(err, partition.ErrNotLeader) {
		t.Errorf("message after Close: %v", err)
	}
}

// A store that has applied what its log does not have must neither lead nor write.
func TestAheadOfLogIsParked(t *testing.T) {
	h := newHost(t)
	w := h.start(1)
	ready(t, w)
	for range 5 {
		if err := send(t, w); err != nil {
			t.Fatal(err)
		}
	}
	h.stop() // flushes the store
	// The log is lost, and its chain with it.
	if err := os.RemoveAll(filepath.Join(h.dir, "log")); err != nil {
		t.Fatal(err)
	}
	h.chains = bifrost.NewMemoryChains()
	w = h.start(1)
	defer h.stop()
	ready(t, w) // the node serves what it can
	await(t, "the partition is parked", func() bool { return w.Statuses()[0].Parked })
	s := w.Statuses()[0]
	if s.Leading || s.LastError == "" {
		t.Errorf("status %+v", s)
	}
	if err := send(t, w); !errors.Is(err, partition.ErrNotLeader) {
		t.Errorf("request to a parked partition: %v", err)
	}
}
