package fsm

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
	"perdure/nodes/record/recordpb"
)

// newStep is a step on rows in memory, for the tests of parts without a machine.
func newStep() (*step, *memTxn) {
	txn := newMemTxn()
	return &step{txn: txn, lsn: 7, now: 1_000_000, out: new(Actions)}, txn
}

// countingTxn counts the writes.
type countingTxn struct {
	*memTxn
	sets, deletes, ranges int
}

func (t *countingTxn) Set(key, value []byte) error {
	t.sets++
	return t.memTxn.Set(key, value)
}

func (t *countingTxn) Delete(key []byte) error {
	t.deletes++
	return t.memTxn.Delete(key)
}

func (t *countingTxn) DeleteRange(start, end []byte) error {
	t.ranges++
	return t.memTxn.DeleteRange(start, end)
}

// A prefix goes whole and alone, by a range tombstone when it has many rows.
func TestDeletePrefix(t *testing.T) {
	for _, n := range []int{0, 1, rangeDeleteFrom - 1, rangeDeleteFrom, rangeDeleteFrom + 1} {
		s, rows := newStep()
		txn := &countingTxn{memTxn: rows}
		s.txn = txn
		rows.rows["a"], rows.rows["c"] = nil, nil
		for i := range n {
			rows.rows[fmt.Sprintf("b%03d", i)] = nil
		}
		if err := s.deletePrefix([]byte("b")); err != nil {
			t.Fatal(err)
		}
		want := [2]int{n, 0}
		if n >= rangeDeleteFrom {
			want = [2]int{0, 1}
		}
		if got := [2]int{txn.deletes, txn.ranges}; len(rows.rows) != 2 || got != want {
			t.Errorf("%d rows: %d are left, %v tombstones of rows and ranges, want %v", n, len(rows.rows), got, want)
		}
	}
}

// A row that is written says nothing of the one written before it, and what is read is what was written.
func TestWrittenRowsAreReadBack(t *testing.T) {
	s, txn := newStep()
	for _, version := range []string{strings.Repeat("long", 100), "1", ""} {
		key := keyspace.AppendMeta(nil, keyspace.MetaBarrier)
		if err := s.write(key, &storepb.Barrier{MinVersion: version}); err != nil {
			t.Fatal(err)
		}
		var got, committed storepb.Barrier
		if ok, err := read(txn, key, &got); !ok || err != nil || got.MinVersion != version {
			t.Fatalf("read %q, %v, %v; want %q", got.MinVersion, ok, err, version)
		}
		if ok, err := s.readCommitted(key, &committed); !ok || err != nil || committed.MinVersion != version {
			t.Fatalf("read %q, %v, %v; want %q", committed.MinVersion, ok, err, version)
		}
	}
	if ok, err := s.readCommitted([]byte("none"), new(storepb.Barrier)); ok || err != nil {
		t.Fatalf("a row that is not there: %v, %v", ok, err)
	}
	txn.rows["bad"] = []byte{0xff}
	if _, err := s.readCommitted([]byte("bad"), new(storepb.Barrier)); !errors.Is(err, keyspace.ErrCorrupt) {
		t.Fatalf("a damaged row: %v", err)
	}
}

// Only a request id of the right length is somebody who waits.
func TestRepliesGoToWhoWaits(t *testing.T) {
	var out Actions
	for _, id := range [][]byte{nil, requestID(1)[:15], append(requestID(1), 0)} {
		out.replyStatus(id, recordpb.Reply_OK)
		out.reply(id, &recordpb.Reply{})
	}
	if len(out.List) != 0 {
		t.Fatalf("%+v", out.List)
	}
	out.replyStatus(requestID(2), recordpb.Reply_NOT_FOUND)
	if len(out.List) != 1 || string(out.List[0].RequestID[:]) != string(requestID(2)) || out.List[0].Reply.Status != recordpb.Reply_NOT_FOUND {
		t.Fatalf("%+v", out.List)
	}
}
