package store

import (
	"github.com/cockroachdb/pebble/v2/vfs"
	"testing"
)

// TestSnapshotIsOneMoment reads rows as they were, whatever is written later, and lets the store close afterwards.
func TestSnapshotIsOneMoment(t *testing.T) {
	s := openMem(t, vfs.NewMem())
	set := func(k, v string) {
		t.Helper()
		txn := s.NewTxn()
		if err := txn.Set([]byte(k), []byte(v)); err != nil {
			t.Fatal(err)
		}
		if err := txn.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	set("i1", "old")
	snap, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	set("i1", "new")
	set("i2", "new")
	if v, ok, err := snap.Get([]byte("i1")); err != nil || !ok || string(v) != "old" {
		t.Errorf("get: %q %v %v, want the old value", v, ok, err)
	}
	if _, ok, err := snap.Get([]byte("i2")); err != nil || ok {
		t.Errorf("get of a later row: %v %v, want none", ok, err)
	}
	n := 0
	err = snap.Scan([]byte("i"), []byte("j"), func(_, v []byte) (bool, error) {
		n++
		return true, nil
	})
	if err != nil || n != 1 {
		t.Errorf("scan: %d rows, %v, want 1", n, err)
	}
	for range 2 {
		if err := snap.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Snapshot(); err != ErrClosed {
		t.Errorf("snapshot of a closed store: %v, want ErrClosed", err)
	}
}
