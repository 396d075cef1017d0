package logstore

import (
	"log/slog"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"perdure/control/cluster"
	"perdure/nodes/logserver"
)

// BenchmarkOpen opens and closes a small store on a real directory.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		s, err := Open(Config{Dir: dir, FS: vfs.Default, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWrite writes records of 300 bytes with an fsync for each group, 64 writes under way.
func BenchmarkWrite(b *testing.B) {
	s, err := Open(Config{Dir: b.TempDir(), FS: vfs.Default, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	permits := make(chan struct{}, 64)
	o := ackOwner(func(_ *logserver.Write, err error) {
		if err != nil {
			b.Error(err)
		}
		<-permits
	})
	payload := make([]byte, 300)
	next := cluster.Offset(0)
	b.ReportAllocs()
	for b.Loop() {
		permits <- struct{}{}
		next++
		w := &logserver.Write{Loglet: 1, Kind: logserver.WriteRecords, First: next, Records: []logserver.Record{{Payload: payload}}, Owner: o}
		if err := s.Enqueue(w); err != nil {
			b.Fatal(err)
		}
	}
	for range cap(permits) {
		permits <- struct{}{}
	}
}
