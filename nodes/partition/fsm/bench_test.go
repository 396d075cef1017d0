package fsm

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"perdure/control/cluster"
	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/nodes/partition/store"
	"perdure/nodes/record/recordpb"
)

func openStore(tb testing.TB, fs vfs.FS) *store.Store {
	tb.Helper()
	s, err := store.Open(store.Options{Dir: "p", FS: fs, Logger: slog.New(slog.DiscardHandler), Range: everything})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// loop applies commands in batches, as the processor does.
type loop struct {
	tb    testing.TB
	m     *Machine
	txn   *store.Txn
	out   Actions
	lsn   cluster.LSN
	now   uint64
	batch int
	n     int
}

func newLoop(tb testing.TB, s *store.Store, batch int) *loop {
	m, err := New(0, everything, s)
	if err != nil {
		tb.Fatal(err)
	}
	lsn, err := s.AppliedLSN()
	if err != nil {
		tb.Fatal(err)
	}
	return &loop{tb: tb, m: m, txn: s.NewTxn(), lsn: lsn, batch: batch, now: 1_000_000}
}

func (l *loop) apply(c *recordpb.Command) {
	l.lsn++
	l.now++
	if err := l.m.Apply(l.txn, l.lsn, l.now, c, &l.out); err != nil {
		l.tb.Fatal(err)
	}
	if l.n++; l.n == l.batch {
		l.commit()
	}
}

func (l *loop) commit() {
	if l.n == 0 {
		return
	}
	l.n = 0
	if err := l.m.Finish(l.txn, l.lsn); err != nil {
		l.tb.Fatal(err)
	}
	if err := l.txn.Commit(); err != nil {
		l.tb.Fatal(err)
	}
	l.out.Reset()
}

func numbered(t *invocationpb.Target, n uint64) *invocationpb.Invocation {
	var r ident.Random
	binary.BigEndian.PutUint64(r.ULID[8:], n)
	r.Bucket = n
	id := ident.Invocation(ident.Target{Service: t.Service, Handler: t.Handler, Key: t.Key, Keyed: keyed(t)}, r)
	rid := make([]byte, 16)
	binary.BigEndian.PutUint64(rid, n)
	const day = 24 * 3600 * 1000
	return &invocationpb.Invocation{
		Id: id[:], Target: t, Argument: []byte(`{"name":"somebody"}`), RequestId: rid, Sink: &invocationpb.Sink{RequestId: rid},
		Headers: []*invocationpb.Header{
			{Key: "x-restate-ingress-path", Value: "/Greeter/greet"}, {Key: "user-agent", Value: "bench/1"},
			{Key: "content-type", Value: "application/json"}, {Key: "content-length", Value: "19"},
		},
		Source:         &invocationpb.Source{Kind: invocationpb.Source_INGRESS},
		IdempotencyKey: ptr("01M83D0FEG8E1EXF118XSF8EQJ"), CompletionRetentionMs: day, JournalRetentionMs: day,
	}
}

// cpuTime is the CPU time of the process in ns. Unlike the wall clock it says something on a busy machine; it
// includes Pebble's flushes and compactions.
func cpuTime() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkCall is a simple call: Invoke, and one command of pinned deployment, Output and End. The time
// is per command, with its share of the batch.
func BenchmarkCall(b *testing.B) {
	state := entry(protocol.TypeSetState, &protocolpb.SetStateCommand{Key: []byte("count"), Value: &protocolpb.Value{Content: []byte("12345")}})
	get, _, _, _, _ := stateEffects()
	cases := []struct {
		name    string
		target  func(n uint64) *invocationpb.Target
		effects []*invocationpb.Effect
	}{
		{"service", func(uint64) *invocationpb.Target { return service("Greeter") }, []*invocationpb.Effect{pinned(6), output(`"hello somebody"`), end()}},
		{"object-lazy", func(n uint64) *invocationpb.Target { return objectTarget(fmt.Sprint(n%1000), schema.Exclusive) }, []*invocationpb.Effect{pinned(6), get(1, "count"), state, output(`"hello somebody"`), end()}},
		{"object", func(n uint64) *invocationpb.Target { return objectTarget(fmt.Sprint(n%1000), schema.Exclusive) }, []*invocationpb.Effect{pinned(6), state, output(`"hello somebody"`), end()}},
	}
	for _, c := range cases {
		for _, batch := range []int{1, 8, 32} {
			b.Run(fmt.Sprintf("%s/batch=%d", c.name, batch), func(b *testing.B) {
				s := openStore(b, vfs.NewMem())
				defer s.Close()
				l := newLoop(b, s, batch)
				const inFlight = 16
				cmds := make([]*recordpb.Command, 2*b.N)
				type started struct {
					id  []byte
					lsn uint64
				}
				var run []started
				var n uint64
				next := func(i int) *recordpb.Command {
					if len(run) < inFlight && i%2 == 0 || len(run) == 0 {
						n++
						x := numbered(c.target(n), n)
						run = append(run, started{x.Id, uint64(i + 1)})
						return &recordpb.Command{
							Dedup: &recordpb.Dedup{Producer: &recordpb.Dedup_Self{Self: true}, Epoch: 1, Sequence: uint64(i)},
							Kind:  &recordpb.Command_Invoke{Invoke: x},
						}
					}
					r := run[0]
					run = run[1:]
					return &recordpb.Command{
						Dedup: &recordpb.Dedup{Producer: &recordpb.Dedup_Self{Self: true}, Epoch: 1, Sequence: uint64(i)},
						Kind: &recordpb.Command_InvokerEffects{InvokerEffects: &recordpb.InvokerEffects{
							InvocationId: r.id, Incarnation: r.lsn, Sequence: 1, Effects: c.effects,
						}},
					}
				}
				for i := range cmds[:b.N] {
					cmds[i] = next(i)
				}
				b.ReportAllocs()
				b.ResetTimer()
				before := cpuTime()
				for _, cmd := range cmds[:b.N] {
					l.apply(cmd)
				}
				l.commit()
				b.StopTimer()
				b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
				if l.m.Dropped() > 0 {
					b.Fatalf("%d commands were dropped", l.m.Dropped())
				}
			})
		}
	}
}
