package store

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"perdure/control/cluster"
)

func openMem(t testing.TB, fs vfs.FS) *Store {
	t.Helper()
	s, err := Open(Options{Dir: "p", FS: fs, Logger: slog.New(slog.DiscardHandler), Range: cluster.KeyRange{End: 1<<64 - 1}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFormatIsTheNewestOfThePinnedRelease(t *testing.T) {
	if formatVersion != pebble.FormatNewest {
		t.Fatalf("pebble's newest format is %d and this store writes %d: decide about the upgrade", pebble.FormatNewest, formatVersion)
	}
}

func TestCommitIsVisibleAndCloseIsDurable(t *testing.T) {
	fs := vfs.NewMem()
	s := openMem(t, fs)
	txn := s.NewTxn()
	if err := errors.Join(txn.Set([]byte("k"), []byte("v")), txn.SetApplied(7, 0)); err != nil {
		t.Fatal(err)
	}
	if v, ok, err := txn.Get([]byte("k")); err != nil || !ok || string(v) != "v" {
		t.Fatalf("the transaction reads %q %v %v of its own write", v, ok, err)
	}
	if _, ok, _ := s.Get([]byte("k")); ok {
		t.Fatal("an uncommitted row is visible")
	}
	if err := txn.Commit(); err != nil {
		t.Fatal(err)
	}
	if lsn, err := s.AppliedLSN(); err != nil || lsn != 7 {
		t.Fatalf("applied LSN %d, %v", lsn, err)
	}
	if lsn, err := s.DurableLSN(); err != nil || lsn != 0 {
		t.Fatalf("durable LSN %d, %v before a flush", lsn, err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AppliedLSN(); !errors.Is(err, ErrClosed) {
		t.Fatalf("a closed store answers %v", err)
	}
	s = openMem(t, fs)
	defer s.Close()
	if lsn, err := s.DurableLSN(); err != nil || lsn != 7 {
		t.Fatalf("durable LSN %d, %v after a clean stop", lsn, err)
	}
}
