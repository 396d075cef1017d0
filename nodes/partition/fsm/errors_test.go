package fsm

import (
	"errors"
	"math/rand/v2"
	"testing"

	"perdure/control/cluster"
	"perdure/nodes/record/recordpb"
)

var errDisk = errors.New("disk")

// failingTxn fails from its n-th operation on.
type failingTxn struct {
	*memTxn
	left   int
	failed bool
}

func (t *failingTxn) fails() bool {
	if t.left--; t.left < 0 {
		t.failed = true
	}
	return t.failed
}

func (t *failingTxn) Get(key []byte) ([]byte, bool, error) {
	if t.fails() {
		return nil, false, errDisk
	}
	return t.memTxn.Get(key)
}

func (t *failingTxn) GetCommitted(key []byte) ([]byte, bool, error) {
	if t.fails() {
		return nil, false, errDisk
	}
	return t.memTxn.GetCommitted(key)
}

func (t *failingTxn) Scan(start, end []byte, fn func(key, value []byte) (bool, error)) error {
	if t.fails() {
		return errDisk
	}
	return t.memTxn.Scan(start, end, fn)
}

func (t *failingTxn) Set(key, value []byte) error {
	if t.fails() {
		return errDisk
	}
	return t.memTxn.Set(key, value)
}

func (t *failingTxn) Delete(key []byte) error {
	if t.fails() {
		return errDisk
	}
	return t.memTxn.Delete(key)
}

func (t *failingTxn) DeleteRange(start, end []byte) error {
	if t.fails() {
		return errDisk
	}
	return t.memTxn.DeleteRange(start, end)
}

func (t *failingTxn) SetApplied(lsn cluster.LSN, latestMs uint64) error {
	if t.fails() {
		return errDisk
	}
	return t.memTxn.SetApplied(lsn, latestMs)
}

// No error of the store is swallowed: the command or the batch during which it happens fails with it.
func TestErrorsOfTheStoreComeThrough(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	type record struct {
		cmd *recordpb.Command
		at  uint64
	}
	var log []record
	w, p := newWorld(t), newProgram(seed)
	for range 250 {
		c, at := p.next()
		w.now = at
		p.see(w.apply(c))
		log = append(log, record{c, at})
	}
	for n := 0; ; n += 1 + n/60 {
		txn := &failingTxn{memTxn: newMemTxn(), left: n}
		m, err := New(3, everything, txn.memTxn)
		if err != nil {
			t.Fatal(err)
		}
		var out Actions
		for i, r := range log {
			err := m.Apply(txn, cluster.LSN(i+1), r.at, r.cmd, &out)
			if err == nil {
				err = m.Finish(txn, cluster.LSN(i+1))
			}
			if txn.failed != (err != nil) || err != nil && !errors.Is(err, errDisk) {
				t.Fatalf("seed %d: operation %d failed: %v; command %d (%T) says %v", seed, n, txn.failed, i, r.cmd.Kind, err)
			}
			if err != nil {
				break
			}
			out.Reset()
		}
		if !txn.failed {
			return
		}
	}
}
