// Package metadatatest is the contract of metadata.Store as tests. Every implementation runs it, so that code tested
// on the twin in memory works on the replicated store.
package metadatatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"perdure/control/metadata"
)

// Run checks the stores that open makes; each call of open must give an empty one.
func Run(t *testing.T, open func(t *testing.T) metadata.Store) {
	for name, test := range map[string]func(*testing.T, metadata.Store){
		"Preconditions":      preconditions,
		"Deletion":           deletion,
		"Transactions":       transactions,
		"List":               list,
		"Limits":             limits,
		"Ownership":          ownership,
		"CancelledContext":   cancelledContext,
		"ConcurrentCounting": concurrentCounting,
		"ConcurrentUpdate":   concurrentUpdate,
		"Watch":              watch,
		"WatchIsMonotone":    watchIsMonotone,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// patience bounds every wait of the suite.
const patience = 20 * time.Second

func put(t *testing.T, s metadata.Store, key, data string, p metadata.Precondition) uint64 {
	t.Helper()
	v, err := s.Put(t.Context(), key, []byte(data), p)
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return v
}

func expect(t *testing.T, s metadata.Store, key, data string, version uint64) {
	t.Helper()
	v, err := s.Get(t.Context(), key)
	if err != nil || string(v.Data) != data || v.Version != version {
		t.Fatalf("get %s: %q at %d, %v; want %q at %d", key, v.Data, v.Version, err, data, version)
	}
}

func expectConflict(t *testing.T, err error, key string, actual uint64) {
	t.Helper()
	var c *metadata.ConflictError
	if !errors.As(err, &c) || c.Key != key || c.Actual != actual {
		t.Fatalf("got %v, want a conflict on %s at version %d", err, key, actual)
	}
}

func preconditions(t *testing.T, s metadata.Store) {
	ctx := t.Context()
	if v, err := s.Get(ctx, "k"); !errors.Is(err, metadata.ErrNotFound) || v.Version != 0 {
		t.Fatalf("get of a missing key: %v, %v", v, err)
	}
	_, err := s.Put(ctx, "k", []byte("x"), metadata.AtVersion(1))
	expectConflict(t, err, "k", 0)
	if v := put(t, s, "k", "a", metadata.Absent); v != 1 {
		t.Fatalf("first version is %d", v)
	}
	_, err = s.Put(ctx, "k", []byte("x"), metadata.Absent)
	expectConflict(t, err, "k", 1)
	_, err = s.Put(ctx, "k", []byte("x"), metadata.AtVersion(2))
	expectConflict(t, err, "k", 1)
	expect(t, s, "k", "a", 1)
	if v := put(t, s, "k", "b", metadata.AtVersion(1)); v != 2 {
		t.Fatalf("second version is %d", v)
	}
	if v := put(t, s, "k", "b", metadata.Any); v != 3 {
		t.Fatalf("third version is %d: also the same bytes are a new version", v)
	}
	expect(t, s, "k", "b", 3)
	put(t, s, "empty", "", metadata.Absent)
	expect(t, s, "empty", "", 1)
}

func deletion(t *testing.T, s metadata.Store) {
	ctx := t.Context()
	_, err := s.Delete(ctx, "k", metadata.AtVersion(1))
	expectConflict(t, err, "k", 0)
	put(t, s, "k", "a", metadata.Absent)
	_, err = s.Delete(ctx, "k", metadata.AtVersion(5))
	expectConflict(t, err, "k", 1)
	if v, err := s.Delete(ctx, "k", metadata.AtVersion(1)); err != nil || v != 2 {
		t.Fatalf("delete: version %d, %v", v, err)
	}
	if v, err := s.Get(ctx, "k"); !errors.Is(err, metadata.ErrNotFound) || v.Version != 2 {
		t.Fatalf("get after deletion: %v, %v; want the version of the deletion", v, err)
	}
	if v, err := s.Delete(ctx, "k", metadata.Any); err != nil || v != 2 {
		t.Fatalf("deleting nothing: version %d, %v", v, err)
	}
	_, err = s.Put(ctx, "k", []byte("x"), metadata.AtVersion(2))
	expectConflict(t, err, "k", 0)
	if v := put(t, s, "k", "again", metadata.Absent); v != 3 {
		t.Fatalf("version after deletion is %d: versions must go on", v)
	}
}

func transactions(t *testing.T, s metadata.Store) {
	ctx := t.Context()
	put(t, s, "a", "1", metadata.Absent)
	compares := []metadata.Compare{{Key: "a", Precondition: metadata.AtVersion(1)}, {Key: "b", Precondition: metadata.Absent}}
	r, err := s.Txn(ctx, compares, []metadata.Put{{Key: "b", Data: []byte("2")}, {Key: "a", Delete: true}, {Key: "c", Data: []byte("3")}, {Key: "none", Delete: true}})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(r.Versions) != "[1 2 1 0]" {
		t.Fatalf("versions %v", r.Versions)
	}
	expect(t, s, "b", "2", 1)
	if _, err := s.Get(ctx, "a"); !errors.Is(err, metadata.ErrNotFound) {
		t.Fatalf("a was not deleted: %v", err)
	}
	_, err = s.Txn(ctx, []metadata.Compare{{Key: "c", Precondition: metadata.AtVersion(1)}, {Key: "b", Precondition: metadata.AtVersion(7)}}, []metadata.Put{{Key: "c", Data: []byte("x")}, {Key: "d", Data: []byte("x")}})
	expectConflict(t, err, "b", 1)
	expect(t, s, "c", "3", 1)
	if _, err := s.Get(ctx, "d"); !errors.Is(err, metadata.ErrNotFound) {
		t.Fatalf("a refused transaction wrote: %v", err)
	}
	if _, err := s.Txn(ctx, []metadata.Compare{{Key: "b", Precondition: metadata.AtVersion(1)}}, nil); err != nil {
		t.Fatalf("a transaction of compares only: %v", err)
	}
}

func list(t *testing.T, s metadata.Store) {
	for _, k := range []string{"log/2", "log/10", "log/1", "logs", "lo", "z"} {
		put(t, s, k, "of "+k, metadata.Absent)
	}
	if _, err := s.Delete(t.Context(), "log/1", metadata.Any); err != nil {
		t.Fatal(err)
	}
	for prefix, want := range map[string]string{"log/": "log/10 log/2", "": "lo log/10 log/2 logs z", "q": ""} {
		kvs, err := s.List(t.Context(), prefix)
		if err != nil {
			t.Fatal(err)
		}
		var keys []string
		for _, kv := range kvs {
			keys = append(keys, kv.Key)
			if string(kv.Data) != "of "+kv.Key || kv.Version != 1 {
				t.Errorf("%s is %q at %d", kv.Key, kv.Data, kv.Version)
			}
		}
		if got := strings.Join(keys, " "); got != want {
			t.Errorf("list %q: %q, want %q", prefix, got, want)
		}
	}
}

func limits(t *testing.T, s metadata.Store) {
	ctx := t.Context()
	big := bytes.Repeat([]byte("x"), metadata.MaxValue)
	put(t, s, strings.Repeat("k", metadata.MaxKey), string(big), metadata.Absent)
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, metadata.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := s.Put(ctx, "k", append(big, 'x'), metadata.Any)
	refused("large value", err)
	_, err = s.Put(ctx, strings.Repeat("k", metadata.MaxKey+1), nil, metadata.Any)
	refused("long key", err)
	_, err = s.Put(ctx, "", nil, metadata.Any)
	refused("empty key", err)
	_, err = s.Get(ctx, "")
	refused("empty key", err)
	_, err = s.Txn(ctx, nil, []metadata.Put{{Key: "a", Data: big}, {Key: "b", Data: big}, {Key: "c"}})
	refused("large transaction", err)
	_, err = s.Txn(ctx, nil, []metadata.Put{{Key: "a"}, {Key: "a"}})
	refused("key written twice", err)
	_, err = s.Txn(ctx, []metadata.Compare{{Key: "a"}, {Key: "a"}}, nil)
	refused("key compared twice", err)
	_, err = s.Txn(ctx, nil, make([]metadata.Put, metadata.MaxTxnKeys+1))
	refused("many keys", err)
	if kvs, err := s.List(ctx, ""); err != nil || len(kvs) != 1 {
		t.Errorf("refused writes left %d keys, %v", len(kvs), err)
	}
}

func ownership(t *testing.T, s metadata.Store) {
	data := []byte("before")
	if _, err := s.Put(t.Context(), "k", data, metadata.Any); err != nil {
		t.Fatal(err)
	}
	copy(data, "AFTER!")
	expect(t, s, "k", "before", 1)
}

func cancelledContext(t *testing.T, s metadata.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Get(ctx, "k"); !errors.Is(err, context.Canceled) {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Put(ctx, "k", nil, metadata.Any); !errors.Is(err, context.Canceled) {
		t.Errorf("put: %v", err)
	}
	if _, err := s.List(ctx, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("list: %v", err)
	}
	if _, err := s.Get(t.Context(), "k"); !errors.Is(err, metadata.ErrNotFound) {
		t.Errorf("a call with a cancelled context wrote: %v", err)
	}
}

// Several writers count with compare-and-set; every success must be one step, and a read after an acknowledged
// write must see at least that write.
func concurrentCounting(t *testing.T, s metadata.Store) {
	const writers, steps = 4, 10
	put(t, s, "n", "0", metadata.Absent)
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < steps; {
				old, err := s.Get(t.Context(), "n")
				if err != nil {
					t.Errorf("get: %v", err)
					return
				}
				n, _ := strconv.Atoi(string(old.Data))
				if uint64(n)+1 != old.Version {
					t.Errorf("count %d at version %d", n, old.Version)
					return
				}
				version, err := s.Put(t.Context(), "n", []byte(strconv.Itoa(n+1)), metadata.AtVersion(old.Version))
				if conflict := (*metadata.ConflictError)(nil); errors.As(err, &conflict) {
					continue
				}
				if err != nil {
					t.Errorf("put: %v", err)
					return
				}
				if now, err := s.Get(t.Context(), "n"); err != nil || now.Version < version {
					t.Errorf("read version %d after writing %d, %v", now.Version, version, err)
					return
				}
				done++
			}
		})
	}
	wg.Wait()
	expect(t, s, "n", strconv.Itoa(writers*steps), writers*steps+1)
}

func concurrentUpdate(t *testing.T, s metadata.Store) {
	const writers, steps = 4, 5
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range steps {
				_, err := metadata.Update(t.Context(), s, "n", func(old metadata.Value, exists bool) ([]byte, error) {
					if !exists {
						return []byte("1"), nil
					}
					n, err := strconv.Atoi(string(old.Data))
					return []byte(strconv.Itoa(n + 1)), err
				})
				if err != nil {
					t.Errorf("update: %v", err)
				}
			}
		})
	}
	wg.Wait()
	expect(t, s, "n", strconv.Itoa(writers*steps), writers*steps)
}

func await(t *testing.T, w *metadata.Watch, what string, done func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for !done() {
		select {
		case <-w.C():
		case <-deadline.C:
			t.Fatalf("waited in vain until %s; cached: %v", what, w.Snapshot())
		}
	}
}

func watch(t *testing.T, s metadata.Store) {
	put(t, s, "log/1", "a", metadata.Any)
	w := s.Watch("log/")
	defer w.Close()
	select {
	case <-w.C():
	default:
		t.Error("a new watch has nothing to look at")
	}
	await(t, w, "log/1 is cached", func() bool { _, ok := w.Get("log/1"); return ok })
	put(t, s, "log/1", "b", metadata.Any)
	put(t, s, "other", "b", metadata.Any)
	await(t, w, "log/1 is at version 2", func() bool { v, ok := w.Get("log/1"); return ok && v.Version == 2 })
	if _, ok := w.Get("other"); ok {
		t.Error("the watch shows a key outside of its prefix")
	}
	if _, err := s.Delete(t.Context(), "log/1", metadata.Any); err != nil {
		t.Fatal(err)
	}
	await(t, w, "log/1 is gone", func() bool { return len(w.Snapshot()) == 0 })
	w.Close()
	w.Close()
}

func watchIsMonotone(t *testing.T, s metadata.Store) {
	const writes = 20
	w := s.Watch("k")
	defer w.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for range writes {
			if _, err := s.Put(t.Context(), "k", []byte("v"), metadata.Any); err != nil {
				t.Errorf("put: %v", err)
			}
		}
	})
	var last uint64
	await(t, w, "all writes are seen", func() bool {
		v, _ := w.Get("k")
		if v.Version < last {
			t.Fatalf("the cache went back from version %d to %d", last, v.Version)
		}
		last = v.Version
		return last == writes
	})
}
