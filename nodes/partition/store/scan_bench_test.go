package store

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"perdure/control/ident"
	"perdure/invokers/invocationpb"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
)

// BenchmarkInvoked is what a leader reads at its start: a hundred invocations that run, among others that do not.
func BenchmarkInvoked(b *testing.B) {
	for _, others := range []int{0, 10_000, 100_000} {
		b.Run(fmt.Sprint("others=", others), func(b *testing.B) {
			s := openMem(b, vfs.NewMem())
			defer s.Close()
			txn := s.NewTxn()
			const running = 100
			for n := range others + running {
				var id ident.InvocationID
				binary.BigEndian.PutUint64(id[:], uint64(n)*0x9e3779b97f4a7c15)
				inv := &storepb.Invocation{
					Status: storepb.Invocation_SUSPENDED, Incarnation: uint64(n), Life: uint64(n), Target: &invocationpb.Target{Service: "Greeter", Handler: "greet", Key: "somebody"},
					Source: &invocationpb.Source{Kind: invocationpb.Source_INGRESS}, Sinks: []*invocationpb.Sink{{RequestId: id[:16]}}, RequestId: id[:16],
					CompletionRetentionMs: 1 << 30, JournalRetentionMs: 1 << 30, DeploymentId: id[:16], ProtocolVersion: 6, Entries: 3, Commands: 2, Awaited: 1, Timers: 1,
					CreatedAtMs: 1 << 40, ModifiedAtMs: 1 << 40, RunningAtMs: 1 << 40, Awaiting: &invocationpb.Future{Completions: []uint32{1}, Signals: []uint32{1}},
				}
				if n < running {
					inv.Status = storepb.Invocation_INVOKED
				}
				v, err := inv.MarshalVT()
				if err != nil {
					b.Fatal(err)
				}
				if err := txn.Set(keyspace.AppendInvocation(nil, &id), v); err != nil {
					b.Fatal(err)
				}
			}
			if err := txn.Commit(); err != nil {
				b.Fatal(err)
			}
			if err := s.Flush(); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				found := 0
				if err := s.Invoked(func(ident.InvocationID, *storepb.Invocation) error { found++; return nil }); err != nil {
					b.Fatal(err)
				}
				if found != running {
					b.Fatalf("%d of %d found", found, running)
				}
			}
		})
	}
}
