package store

import (
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// A disk that is full ends the store with an error that says so. Pebble by itself repeats the flush without a pause and
// without an end, and Flush, Close and finally Commit never return.
func TestFullDiskEndsTheStore(t *testing.T) {
	var full atomic.Bool
	var tries atomic.Int64
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if !full.Load() || op.Kind != errorfs.OpFileWrite || !strings.HasSuffix(op.Path, ".sst") {
			return nil
		}
		tries.Add(1)
		return syscall.ENOSPC
	}))
	fatal := make(chan error, 100)
	s, err := Open(Options{
		Dir: "p", FS: fs, Logger: slog.New(slog.DiscardHandler), MemTableSize: 256 << 10,
		OnFatal: func(err error) { fatal <- err },
	})
	if err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	soon := func(what string, f func() error) {
		t.Helper()
		done := make(chan error, 1)
		go func() { done <- f() }()
		select {
		case err := <-done:
			if !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%s: %v, want ErrFailed and the reason", what, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s did not return within a minute", what)
		}
	}
	txn := s.NewTxn()
	if err := errors.Join(txn.Set([]byte("k"), []byte("v")), txn.Commit()); err != nil {
		t.Fatal(err)
	}
	soon("flush", s.Flush)
	soon("commit", func() error {
		for range 100 {
			if err := errors.Join(txn.Set([]byte("k"), make([]byte, 100<<10)), txn.Commit()); err != nil {
				return err
			}
		}
		return nil
	})
	if v, ok, err := s.Get([]byte("k")); err != nil || !ok || string(v) != "v" {
		t.Errorf("reading what was committed: %q %v %v", v, ok, err)
	}
	before, began := tries.Load(), time.Now()
	<-time.After(300 * time.Millisecond)
	n := tries.Load() - before
	if took := time.Since(began); n > took.Milliseconds()/10 { // the wait may be longer
		t.Errorf("the flush was tried %d times in %s", n, took)
	}
	soon("close", s.Close)
	if n := len(fatal); n != 1 {
		t.Errorf("the failure was told %d times, want once", n)
	}
}
