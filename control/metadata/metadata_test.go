package metadata_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"perdure/control/metadata"
	"perdure/control/metadata/metadatatest"
)

func TestMemoryKeepsTheContract(t *testing.T) {
	metadatatest.Run(t, func(*testing.T) metadata.Store { return metadata.NewMemory() })
}

func TestInjectedFaults(t *testing.T) {
	m := metadata.NewMemory()
	ctx := t.Context()
	var effect metadata.Effect
	m.SetFault(func(metadata.Call) metadata.Fault { return metadata.Fault{Effect: effect} })
	write := func() error {
		_, err := m.Put(ctx, "k", []byte("v"), metadata.Any)
		return err
	}
	version := func() uint64 {
		m.SetFault(nil)
		defer m.SetFault(func(metadata.Call) metadata.Fault { return metadata.Fault{Effect: effect} })
		v, _ := m.Get(ctx, "k")
		return v.Version
	}
	effect = metadata.Refuse
	if err := write(); !errors.Is(err, metadata.ErrUnavailable) || version() != 0 {
		t.Errorf("refused: %v, version %d", err, version())
	}
	if _, err := m.Get(ctx, "k"); !errors.Is(err, metadata.ErrUnavailable) {
		t.Errorf("refused read: %v", err)
	}
	effect = metadata.LoseRequest
	if err := write(); !errors.Is(err, metadata.ErrUnknownOutcome) || version() != 0 {
		t.Errorf("lost request: %v, version %d", err, version())
	}
	effect = metadata.LoseResponse
	if err := write(); !errors.Is(err, metadata.ErrUnknownOutcome) || version() != 1 {
		t.Errorf("lost response: %v, version %d", err, version())
	}
	effect = metadata.DeliverLate
	if err := write(); !errors.Is(err, metadata.ErrUnknownOutcome) || version() != 1 {
		t.Errorf("late: %v, version %d", err, version())
	}
	m.DeliverDelayed()
	if version() != 2 {
		t.Errorf("version %d after the delayed write came", version())
	}
}

func TestDelayEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := metadata.NewMemory()
		m.SetFault(func(metadata.Call) metadata.Fault { return metadata.Fault{Delay: time.Hour} })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		_, err := m.Put(ctx, "k", nil, metadata.Any)
		if !errors.Is(err, metadata.ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("put: %v", err)
		}
		if took := time.Since(begin); took != time.Minute {
			t.Errorf("took %s", took)
		}
	})
}

// A write of unknown outcome is made exactly once, whatever happened to it: when it was lost, when it was applied,
// and when it comes late, in between of the tries.
func TestUpdateOfUnknownOutcome(t *testing.T) {
	for name, effect := range map[string]metadata.Effect{"lost": metadata.LoseRequest, "applied": metadata.LoseResponse, "late": metadata.DeliverLate} {
		t.Run(name, func(t *testing.T) {
			m := metadata.NewMemory()
			if _, err := m.Put(t.Context(), "k", []byte("x"), metadata.Any); err != nil {
				t.Fatal(err)
			}
			puts, gets := 0, 0
			m.SetFault(func(c metadata.Call) metadata.Fault {
				switch c.Method {
				case "Put":
					if puts++; puts == 1 {
						return metadata.Fault{Effect: effect}
					}
					m.DeliverDelayed() // after the second try has read, before it writes
				case "Get":
					gets++
				}
				return metadata.Fault{}
			})
			v, err := metadata.Update(t.Context(), m, "k", func(old metadata.Value, _ bool) ([]byte, error) { return append(bytes.Clone(old.Data), 'y'), nil })
			if err != nil || string(v.Data) != "xy" || v.Version != 2 {
				t.Fatalf("updated to %q at %d, %v", v.Data, v.Version, err)
			}
			m.SetFault(nil)
			if now, err := m.Get(t.Context(), "k"); err != nil || string(now.Data) != "xy" || now.Version != 2 {
				t.Errorf("the store has %q at %d, %v", now.Data, now.Version, err)
			}
			if gets < 2 {
				t.Errorf("%d reads: the outcome was never looked up", gets)
			}
		})
	}
}

func TestUpdateOfKeyThatWasDeleted(t *testing.T) {
	m := metadata.NewMemory()
	if _, err := m.Put(t.Context(), "k", nil, metadata.Any); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Delete(t.Context(), "k", metadata.Any); err != nil {
		t.Fatal(err)
	}
	lost := true
	m.SetFault(func(c metadata.Call) metadata.Fault {
		if c.Method == "Put" && lost {
			lost = false
			return metadata.Fault{Effect: metadata.LoseResponse}
		}
		return metadata.Fault{}
	})
	calls := 0
	v, err := metadata.Update(t.Context(), m, "k", func(old metadata.Value, exists bool) ([]byte, error) {
		calls++
		return []byte(fmt.Sprint(exists)), nil
	})
	if err != nil || v.Version != 3 || string(v.Data) != "false" || calls != 1 {
		t.Errorf("updated to %q at %d after %d calls, %v", v.Data, v.Version, calls, err)
	}
}

func TestUpdateGivesUp(t *testing.T) {
	m := metadata.NewMemory()
	stop := errors.New("not like this")
	if _, err := metadata.Update(t.Context(), m, "k", func(metadata.Value, bool) ([]byte, error) { return nil, stop }); !errors.Is(err, stop) {
		t.Errorf("error of the function: %v", err)
	}
	wrapped := fmt.Errorf("inner: %w", metadata.ErrUnavailable)
	calls := 0
	_, err := metadata.Update(t.Context(), m, "k", func(metadata.Value, bool) ([]byte, error) { calls++; return nil, wrapped })
	if !errors.Is(err, wrapped) || calls != 1 {
		t.Errorf("error of the function was taken for one of the store: %v after %d calls", err, calls)
	}
	if v, err := metadata.Update(t.Context(), m, "k", func(metadata.Value, bool) ([]byte, error) { return nil, metadata.ErrKeep }); err != nil || v.Version != 0 {
		t.Errorf("keep: %v, %v", v, err)
	}
	if _, err := m.Get(t.Context(), "k"); !errors.Is(err, metadata.ErrNotFound) {
		t.Errorf("something was written: %v", err)
	}
	if _, err := metadata.Update(t.Context(), m, "k", func(metadata.Value, bool) ([]byte, error) { return make([]byte, metadata.MaxValue+1), nil }); !errors.Is(err, metadata.ErrInvalid) {
		t.Errorf("too large: %v", err)
	}
}

func TestUpdateEndsWithContext(t *testing.T) {
	for effect, want := range map[metadata.Effect]error{metadata.Refuse: metadata.ErrUnavailable, metadata.LoseRequest: metadata.ErrUnknownOutcome} {
		synctest.Test(t, func(t *testing.T) {
			m := metadata.NewMemory()
			m.SetFault(func(c metadata.Call) metadata.Fault {
				if c.Method != "Get" {
					return metadata.Fault{Effect: effect}
				}
				return metadata.Fault{}
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			calls := 0
			_, err := metadata.Update(ctx, m, "k", func(metadata.Value, bool) ([]byte, error) { calls++; return nil, nil })
			if !errors.Is(err, want) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("effect %d: %v", effect, err)
			}
			if calls < 60 || calls > 400 {
				t.Errorf("effect %d: %d tries in a minute", effect, calls)
			}
		})
	}
}

// Random operations on a table agree with a naive model of versions: each write is the predecessor plus one, and
// rebuilding the table from its changes loses nothing.
func TestTableAgainstModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 4))
	type cell struct {
		version uint64
		data    string
		absent  bool
	}
	table, model := metadata.NewTable(), map[string]cell{}
	keys := []string{"a", "b", "c", "d"}
	present := func(k string) uint64 {
		if c := model[k]; !c.absent {
			return c.version
		}
		return 0
	}
	for i := range 5000 {
		var compares []metadata.Compare
		var puts []metadata.Put
		holds := true
		for _, k := range keys {
			if rnd.IntN(3) == 0 {
				p := []metadata.Precondition{metadata.Any, metadata.Absent, metadata.AtVersion(present(k)), metadata.AtVersion(uint64(rnd.IntN(i + 1)))}[rnd.IntN(4)]
				compares = append(compares, metadata.Compare{Key: k, Precondition: p})
				holds = holds && (p == metadata.Any || uint64(p) == present(k))
			}
			if rnd.IntN(3) == 0 {
				p := metadata.Put{Key: k, Delete: rnd.IntN(4) == 0}
				if !p.Delete {
					p.Data = []byte(fmt.Sprint(i))
				}
				puts = append(puts, p)
			}
		}
		result, _, conflict := table.Apply(compares, puts)
		if (conflict == nil) != holds {
			t.Fatalf("step %d: compares %v hold: %v, but %v", i, compares, holds, conflict)
		}
		if holds {
			for j, p := range puts {
				c := model[p.Key]
				if !p.Delete || present(p.Key) != 0 {
					c = cell{c.version + 1, string(p.Data), p.Delete}
				}
				model[p.Key] = c
				if result.Versions[j] != c.version {
					t.Fatalf("step %d: put %v has version %d, want %d", i, p, result.Versions[j], c.version)
				}
			}
		}
		if i%100 == 0 {
			table = metadata.NewTableFrom(table.Clone().Changes())
		}
		for _, k := range keys {
			v, ok := table.Get(k)
			if c := model[k]; v.Version != c.version || ok != (present(k) != 0) || ok && string(v.Data) != c.data {
				t.Fatalf("step %d: %s is %q at %d, %v; want %+v", i, k, v.Data, v.Version, ok, c)
			}
		}
	}
}

func TestCacheIgnoresOldVersions(t *testing.T) {
	c := metadata.NewCache()
	w := c.Watch("")
	defer w.Close()
	c.Install([]metadata.Change{{Key: "k", Version: 3, Data: []byte("new")}})
	c.Install([]metadata.Change{{Key: "k", Version: 2, Data: []byte("old")}, {Key: "k", Version: 3, Data: []byte("other")}})
	if v, _ := w.Get("k"); string(v.Data) != "new" {
		t.Errorf("cached %q at %d", v.Data, v.Version)
	}
	c.Install([]metadata.Change{{Key: "k", Version: 4, Deleted: true}})
	c.Install([]metadata.Change{{Key: "k", Version: 3, Data: []byte("new")}})
	if v, ok := w.Get("k"); ok {
		t.Errorf("a deleted value came back: %q", v.Data)
	}
}

func TestKeysAreDistinct(t *testing.T) {
	keys := []string{
		metadata.NodesKey, metadata.PartitionsKey, metadata.LogKey(1), metadata.LogKey(11), metadata.EpochKey(1),
		metadata.SchemaIndexKey, metadata.DeploymentKey("dp_1"),
	}
	slices.Sort(keys)
	if len(slices.Compact(keys)) != 7 || !strings.HasPrefix(metadata.DeploymentKey("x"), metadata.SchemaPrefix) {
		t.Errorf("keys %v", keys)
	}
}
