package metastore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"perdure/control/metadata"
)

func newTestBolt(t *testing.T) *raftboltdb.BoltStore {
	t.Helper()
	bolt, err := newBolt(filepath.Join(t.TempDir(), "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bolt.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(createLog(bolt), createStable(bolt, []byte("me"))); err != nil {
		t.Fatal(err)
	}
	return bolt
}

func mustOpenLog(t *testing.T, inner raft.LogStore) *checkedLog {
	t.Helper()
	logs, err := openLog(inner, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	return logs
}

func entry(index uint64, data string) *raft.Log {
	return &raft.Log{Index: index, Term: 3, Type: raft.LogCommand, Data: []byte(data), Extensions: []byte("x")}
}

// Whichever field of a stored entry changes, reading it says so and reports it.
func TestDamagedEntryIsNeverServed(t *testing.T) {
	for name, damage := range map[string]func(*raft.Log){
		"data":       func(l *raft.Log) { l.Data[0] ^= 1 },
		"seal":       func(l *raft.Log) { l.Data[len(l.Data)-1] ^= 1 },
		"cut":        func(l *raft.Log) { l.Data = l.Data[:len(l.Data)-1] },
		"emptied":    func(l *raft.Log) { l.Data = nil },
		"index":      func(l *raft.Log) { l.Index++ },
		"term":       func(l *raft.Log) { l.Term++ },
		"type":       func(l *raft.Log) { l.Type = raft.LogNoop },
		"extensions": func(l *raft.Log) { l.Extensions = nil },
	} {
		inner := raft.NewInmemStore()
		if err := createLog(inner); err != nil {
			t.Fatal(err)
		}
		var reported error
		logs, err := openLog(inner, func(err error) { reported = err })
		if err != nil {
			t.Fatal(err)
		}
		original := entry(1, "hello")
		if err := logs.StoreLog(original); err != nil {
			t.Fatal(err)
		}
		if string(original.Data) != "hello" {
			t.Fatalf("storing changed the caller's entry to %q", original.Data)
		}
		var got raft.Log
		if err := logs.GetLog(1, &got); err != nil || string(got.Data) != "hello" || got.Term != 3 {
			t.Fatalf("read %+v, %v", got, err)
		}
		var stored raft.Log
		if err := inner.GetLog(1, &stored); err != nil {
			t.Fatal(err)
		}
		stored.Data = bytes.Clone(stored.Data)
		damage(&stored)
		broken := stored
		if broken.Index != 1 { // stored under the index of another
			broken.Index = 1
			inner = replacedIndex(t, inner, stored)
		} else if err := inner.StoreLog(&broken); err != nil {
			t.Fatal(err)
		}
		logs.inner = inner
		if err := logs.GetLog(1, &got); !errors.Is(err, ErrDamaged) || !errors.Is(reported, ErrDamaged) {
			t.Errorf("%s: %v, reported %v", name, err, reported)
		}
	}
}

// replacedIndex is a store that has entry l under index 1, whatever the entry says.
func replacedIndex(t *testing.T, inner *raft.InmemStore, l raft.Log) *raft.InmemStore {
	t.Helper()
	var first raft.Log
	if err := inner.GetLog(1, &first); err != nil {
		t.Fatal(err)
	}
	l.Index = 1
	if err := inner.StoreLog(&l); err != nil { // it keeps the pointer
		t.Fatal(err)
	}
	l.Index = 2
	return inner
}

func TestVanishedEntryIsDamage(t *testing.T) {
	bolt := newTestBolt(t)
	logs := mustOpenLog(t, bolt)
	for i := range uint64(5) {
		if err := logs.StoreLog(entry(i+1, "e")); err != nil {
			t.Fatal(err)
		}
	}
	if err := bolt.DeleteRange(5, 5); err != nil { // behind our back
		t.Fatal(err)
	}
	reopened := mustOpenLog(t, bolt)
	if last, _ := reopened.LastIndex(); last != 5 {
		t.Errorf("the log ends at %d, the lost entry is forgotten", last)
	}
	if err := reopened.GetLog(5, new(raft.Log)); !errors.Is(err, ErrDamaged) {
		t.Errorf("read of the lost entry: %v", err)
	}
	if err := bolt.DeleteRange(0, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := openLog(bolt, func(error) {}); !errors.Is(err, ErrDamaged) {
		t.Errorf("open without bounds: %v", err)
	}
}

// failing is a log store that fails to delete when it is told to, as if the process had died before.
type failing struct {
	raft.LogStore
	deletes bool
}

func (f *failing) DeleteRange(first, last uint64) error {
	if f.deletes {
		return errors.New("died")
	}
	return f.LogStore.DeleteRange(first, last)
}

// Random appends, truncations at both ends and restarts, some in the middle of a truncation, agree with a model.
func TestLogAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 8))
	inner := &failing{LogStore: newTestBolt(t)}
	logs := mustOpenLog(t, inner)
	model := map[uint64]string{}
	var first, last uint64
	for step := range 400 {
		switch op := rnd.IntN(10); {
		case op < 5:
			begin := last + 1
			if last == 0 {
				begin = 1 + rnd.Uint64N(50) // after a snapshot from elsewhere
			}
			var batch []*raft.Log
			for i := range 1 + rnd.Uint64N(4) {
				data := fmt.Sprint(step, i)
				batch = append(batch, entry(begin+i, data))
				model[begin+i] = data
				last = begin + i
			}
			if first == 0 {
				first = begin
			}
			if err := logs.StoreLogs(batch); err != nil {
				t.Fatal(err)
			}
		case op < 9 && last != 0:
			from, to := first, first+rnd.Uint64N(last-first+2)
			if op == 8 {
				from, to = to, last+rnd.Uint64N(2)
			}
			if from > last {
				break
			}
			inner.deletes = rnd.IntN(3) == 0
			err := logs.DeleteRange(from, to)
			if inner.deletes {
				if err == nil {
					t.Fatal("a failed deletion was not reported")
				}
				inner.deletes = false
				logs = mustOpenLog(t, inner)
			} else if err != nil {
				t.Fatal(err)
			}
			switch {
			case from <= first && to >= last:
				first, last = 0, 0
			case from <= first:
				first = to + 1
			default:
				last = from - 1
			}
			for i := range model {
				if i < first || i > last {
					delete(model, i)
				}
			}
		default:
			logs = mustOpenLog(t, inner)
		}
		f, _ := logs.FirstIndex()
		l, _ := logs.LastIndex()
		if f != first || l != last {
			t.Fatalf("step %d: log from %d to %d, want %d to %d", step, f, l, first, last)
		}
		for i := max(first, 2) - 2; i <= last+2; i++ {
			var got raft.Log
			err := logs.GetLog(i, &got)
			if want, ok := model[i]; ok != (err == nil) || ok && string(got.Data) != want || !ok && !errors.Is(err, raft.ErrLogNotFound) {
				t.Fatalf("step %d: entry %d is %q, %v; want %q, %v", step, i, got.Data, err, want, ok)
			}
		}
	}
}

// Files that bbolt has written in all sorts of ways pass the check of their structure.
func TestSoundFilesPass(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 9))
	path := filepath.Join(t.TempDir(), "raft.db")
	bolt, err := newBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(createLog(bolt), createStable(bolt, []byte("me"))); err != nil {
		t.Fatal(err)
	}
	next := uint64(1)
	for range 25 {
		logs := mustOpenLog(t, bolt)
		for range rnd.IntN(8) {
			batch := make([]*raft.Log, 1+rnd.IntN(100))
			size := []int{0, 10, 300, 5000, 30000}[rnd.IntN(5)]
			for i := range batch {
				batch[i] = entry(next, string(bytes.Repeat([]byte("x"), rnd.IntN(size+1))))
				next++
			}
			if err := logs.StoreLogs(batch); err != nil {
				t.Fatal(err)
			}
			if rnd.IntN(3) == 0 {
				first, _ := logs.FirstIndex()
				if err := logs.DeleteRange(first, first+rnd.Uint64N(next-first)); err != nil {
					t.Fatal(err)
				}
			}
			if rnd.IntN(5) == 0 {
				from := next - min(next-1, rnd.Uint64N(50)+1)
				if err := logs.DeleteRange(from, next); err != nil {
					t.Fatal(err)
				}
				if last, _ := logs.LastIndex(); last != 0 {
					next = last + 1
				}
			}
		}
		if err := bolt.Close(); err != nil {
			t.Fatal(err)
		}
		if err := verifyBoltFile(path); err != nil {
			t.Fatal(err)
		}
		if bolt, err = newBolt(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := bolt.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestLogHasNoGaps(t *testing.T) {
	logs := mustOpenLog(t, newTestBolt(t))
	for i := range uint64(5) {
		if err := logs.StoreLog(entry(i+1, "e")); err != nil {
			t.Fatal(err)
		}
	}
	if err := logs.StoreLog(entry(7, "e")); err == nil {
		t.Error("an entry was stored after a gap")
	}
	if err := logs.DeleteRange(2, 3); err == nil {
		t.Error("entries were removed from the middle")
	}
}

// dying is a stable store that dies at its n-th write.
type dying struct {
	values map[string][]byte
	left   int
}

func (d *dying) Set(key, value []byte) error {
	if d.left--; d.left < 0 {
		return errors.New("died")
	}
	d.values[string(key)] = bytes.Clone(value)
	return nil
}

func (d *dying) Get(key []byte) ([]byte, error) {
	if v, ok := d.values[string(key)]; ok {
		return v, nil
	}
	return nil, errKeyNotFound
}

func (d *dying) SetUint64([]byte, uint64) error   { return errors.New("not used") }
func (d *dying) GetUint64([]byte) (uint64, error) { return 0, errors.New("not used") }

// Wherever the process dies while it stores a vote, the term and the candidate that are found afterwards belong
// together. The writes are those of raft's persistVote.
func TestVoteIsAtomic(t *testing.T) {
	died := 0
	for dieAt := range 5 {
		disk := &dying{values: map[string][]byte{}, left: 1}
		if err := createStable(disk, []byte("me")); err != nil {
			t.Fatal(err)
		}
		disk.left = dieAt
		stable, err := openStable(disk, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		votes := map[uint64]string{}
	election:
		for term := uint64(1); term <= 3; term++ {
			candidate := fmt.Sprint("candidate of ", term)
			votes[term] = candidate
			for _, write := range []func() error{
				func() error { return stable.SetUint64([]byte("LastVoteTerm"), term) },
				func() error { return stable.Set([]byte("LastVoteCand"), []byte(candidate)) },
			} {
				if write() != nil {
					died++
					break election
				}
				after, err := openStable(disk, func(error) {}) // what a crash right here would leave
				if err != nil {
					t.Fatal(err)
				}
				foundTerm, err := after.GetUint64([]byte("LastVoteTerm"))
				if errors.Is(err, errKeyNotFound) {
					continue
				}
				found, err := after.Get([]byte("LastVoteCand"))
				if err != nil || string(found) != votes[foundTerm] {
					t.Fatalf("after a crash in term %d the vote of term %d is for %q, %v", term, foundTerm, found, err)
				}
			}
		}
	}
	if died == 0 {
		t.Error("no process died")
	}
}

func TestStableValues(t *testing.T) {
	disk := &dying{values: map[string][]byte{}, left: 100}
	if err := createStable(disk, []byte("me")); err != nil {
		t.Fatal(err)
	}
	stable, err := openStable(disk, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stable.GetUint64(keyCurrentTerm); err == nil || err.Error() != "not found" {
		t.Errorf("a missing value is %v, raft expects \"not found\"", err)
	}
	if err := errors.Join(stable.SetUint64(keyCurrentTerm, 9), stable.Set([]byte("k"), []byte("v"))); err != nil {
		t.Fatal(err)
	}
	writes := disk.left
	if err := stable.SetUint64(keyCurrentTerm, 9); err != nil || disk.left != writes {
		t.Errorf("an unchanged value was written again, %v", err)
	}
	if err := stable.Set([]byte("LastVoteCand"), nil); err == nil {
		t.Error("a candidate without a term was accepted")
	}
	reopened, err := openStable(disk, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	term, err := reopened.GetUint64(keyCurrentTerm)
	if v, err2 := reopened.Get([]byte("k")); err != nil || err2 != nil || term != 9 || string(v) != "v" {
		t.Errorf("read term %d, %v, value %q, %v", term, err, v, err2)
	}
	for i := range disk.values[string(keyState)] {
		disk.values[string(keyState)][i] ^= 0x10
		if _, err := openStable(disk, func(error) {}); !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		disk.values[string(keyState)][i] ^= 0x10
	}
	delete(disk.values, string(keyState))
	if _, err := openStable(disk, func(error) {}); !errors.Is(err, ErrDamaged) {
		t.Errorf("all values gone: %v", err)
	}
}

// With the wrapper a heartbeat takes the queue like every message; the bare transport handles it on the side, which is
// how logs come to differ.
func TestHeartbeatsTakeTheQueue(t *testing.T) {
	for _, wrapped := range []bool{true, false} {
		receiver, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, patience, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		sender, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, patience, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		var tr raft.Transport = receiver
		if wrapped {
			if tr, err = newTransport(receiver); err != nil {
				t.Fatal(err)
			}
		}
		aside := make(chan raft.RPC, 1)
		tr.SetHeartbeatHandler(func(rpc raft.RPC) { aside <- rpc })
		sent := make(chan error, 1)
		go func() {
			heartbeat := raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("a"), Addr: []byte("b")}, Term: 7, Leader: []byte("b")}
			sent <- sender.AppendEntries("r", receiver.LocalAddr(), &heartbeat, &raft.AppendEntriesResponse{})
		}()
		var rpc raft.RPC
		queued := false
		select {
		case rpc = <-tr.Consumer():
			queued = true
		case rpc = <-aside:
		case <-time.After(patience):
			t.Fatal("the heartbeat did not arrive")
		}
		rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
		if err := <-sent; err != nil {
			t.Error(err)
		}
		if queued != wrapped {
			t.Errorf("wrapped: %v, queued: %v", wrapped, queued)
		}
		if err := errors.Join(tr.(raft.WithClose).Close(), sender.Close()); err != nil {
			t.Error(err)
		}
	}
}

func TestTransportNeedsPreVote(t *testing.T) {
	type bare struct{ raft.Transport }
	if _, err := newTransport(bare{newLoopback("a")}); err == nil {
		t.Error("a transport without pre-votes was accepted")
	}
}

func TestCommandRoundTrip(t *testing.T) {
	compares := []metadata.Compare{{Key: "a", Precondition: metadata.Any}, {Key: "b", Precondition: metadata.AtVersion(300)}, {Key: "c", Precondition: metadata.Absent}}
	puts := []metadata.Put{{Key: "a", Data: []byte("x")}, {Key: "b", Delete: true}, {Key: "c", Data: bytes.Repeat([]byte("y"), 1000)}}
	c, p, err := decodeTxn(encodeTxn(compares, puts))
	if err != nil || fmt.Sprint(c) != fmt.Sprint(compares) || fmt.Sprint(p) != fmt.Sprint(puts) {
		t.Errorf("read back %v, %v, %v", c, p, err)
	}
}

// The bytes of released versions must stay readable for ever.
func TestGolden(t *testing.T) {
	command := encodeTxn([]metadata.Compare{{Key: "k", Precondition: 300}}, []metadata.Put{{Key: "k", Data: []byte("v")}, {Key: "d", Delete: true}})
	if got, want := fmt.Sprintf("%x", command), "010101016bac0202016b000176016401"+"00"; got != want {
		t.Errorf("command %s, want %s", got, want)
	}
	state := encodeSnapshot([]metadata.Change{{Key: "d", Version: 2, Deleted: true}, {Key: "k", Version: 300, Data: []byte("v")}})
	if got, want := fmt.Sprintf("%x", state), "50444d53010201640201"+"00016bac02000176"; got[:len(got)-8] != want {
		t.Errorf("snapshot %s, want %s and a checksum", got, want)
	}
	values := encodeStable(map[string][]byte{"b": []byte("2"), "a": []byte("1")})
	if got, want := fmt.Sprintf("%x", values), "010201610131016201"+"32"; got[:len(got)-8] != want {
		t.Errorf("values %s, want %s and a checksum", got, want)
	}
}

func TestSnapshotRefusals(t *testing.T) {
	sound := encodeSnapshot([]metadata.Change{{Key: "k", Version: 3, Data: []byte("v")}})
	f := newFSM(metadata.NewCache(), func(error) {})
	if err := f.Restore(io.NopCloser(bytes.NewReader(sound))); err != nil {
		t.Fatal(err)
	}
	for i := range sound {
		damaged := bytes.Clone(sound)
		damaged[i] ^= 4
		if err := f.Restore(io.NopCloser(bytes.NewReader(damaged))); err == nil {
			t.Errorf("restored with byte %d changed", i)
		}
	}
	if v, ok, err := f.get("k"); !ok || err != nil || v.Version != 3 || string(v.Data) != "v" {
		t.Errorf("a refused snapshot changed the state to %v, %v, %v", v, ok, err)
	}
}

func FuzzVerifyBolt(f *testing.F) {
	path := filepath.Join(f.TempDir(), "raft.db")
	bolt, err := newBolt(path)
	if err != nil {
		f.Fatal(err)
	}
	if err := errors.Join(createLog(bolt), createStable(bolt, []byte("me")), bolt.Close()); err != nil {
		f.Fatal(err)
	}
	sound, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	sound = bytes.TrimRight(sound, "\x00")
	sound = append(sound, make([]byte, 4096)...)
	if err := verifyBolt(bytes.NewReader(sound), int64(len(sound))); err != nil {
		f.Fatal(err)
	}
	f.Add(uint(0), []byte{})
	f.Add(uint(3*os.Getpagesize()), []byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, at uint, change []byte) {
		file := bytes.Clone(sound)
		copy(file[at%uint(len(file)):], change)
		_ = verifyBolt(bytes.NewReader(file), int64(len(file))) // must return
	})
}

func FuzzDecodeTxn(f *testing.F) {
	f.Add(encodeTxn([]metadata.Compare{{Key: "k", Precondition: 300}}, []metadata.Put{{Key: "k", Data: []byte("v")}, {Key: "d", Delete: true}}))
	f.Add([]byte{1, 1, 255, 255, 255, 255, 15, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		compares, puts, err := decodeTxn(data)
		if err != nil {
			return
		}
		c, p, err := decodeTxn(encodeTxn(compares, puts))
		if err != nil || fmt.Sprint(c) != fmt.Sprint(compares) || fmt.Sprint(p) != fmt.Sprint(puts) {
			t.Fatalf("%v, %v read back as %v, %v, %v", compares, puts, c, p, err)
		}
	})
}

func FuzzDecodeSnapshot(f *testing.F) {
	f.Add(encodeSnapshot([]metadata.Change{{Key: "d", Version: 2, Deleted: true}, {Key: "k", Version: 300, Data: []byte("v")}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		changes, err := decodeSnapshot(data)
		if err != nil {
			return
		}
		again, err := decodeSnapshot(encodeSnapshot(changes))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(changes) {
			t.Fatalf("%v reads back as %v, %v", changes, again, err)
		}
	})
}

func FuzzDecodeStable(f *testing.F) {
	f.Add(encodeStable(map[string][]byte{"b": []byte("2"), "a": []byte("1")}))
	f.Fuzz(func(t *testing.T, data []byte) {
		values, err := decodeStable(data)
		if err != nil {
			return
		}
		again, err := decodeStable(encodeStable(values))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(values) {
			t.Fatalf("%v reads back as %v, %v", values, again, err)
		}
	})
}
