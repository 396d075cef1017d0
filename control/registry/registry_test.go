package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"perdure/control/ident"
	"perdure/control/metadata"
	"perdure/control/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func id(n int) ident.DeploymentID { return ident.DeploymentID{14: byte(n >> 8), 15: byte(n)} }

// register adds a deployment at a URL of its own that serves svc.
func register(n int, svc string) func(*schema.Schema) (*schema.Change, error) {
	return func(s *schema.Schema) (*schema.Change, error) {
		m, err := schema.DecodeManifest([]byte(`{"protocolMode":"BIDI_STREAM","minProtocolVersion":5,"maxProtocolVersion":6,
			"services":[{"name":"` + svc + `","ty":"SERVICE","handlers":[{"name":"h"}]}]}`))
		if err != nil {
			return nil, err
		}
		r := schema.Registration{Address: schema.Address{HTTP: &schema.HTTPAddress{URI: fmt.Sprintf("http://h:%d/", n+1)}}}
		return s.Register(r, schema.Discovered{Manifest: m, HTTPVersion: schema.HTTP2}, uint64(n), id(n))
	}
}

func run(t *testing.T, r *Registry) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("run ended with %v", err)
		}
	})
}

func mustUpdate(t *testing.T, r *Registry, f func(*schema.Schema) (*schema.Change, error)) *schema.Change {
	t.Helper()
	c, err := r.Update(context.Background(), f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOtherNodesFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := metadata.NewMemory()
		a, b := New(store, schema.DefaultDefaults(), nil), New(store, schema.DefaultDefaults(), nil)
		run(t, b)
		<-b.Ready()
		c := mustUpdate(t, a, register(1, "A"))
		if c.Outcome != schema.Created || a.Current() != c.Schema || a.Current().Version() != 1 {
			t.Errorf("writer: %+v", c)
		}
		synctest.Wait()
		if d := b.Current().Latest("A"); d == nil || d.ID != id(1) || b.Current().Version() != 1 {
			t.Fatalf("follower is at version %d", b.Current().Version())
		}
		before := b.Current().Latest("A")
		mustUpdate(t, a, register(2, "B"))
		synctest.Wait()
		if b.Current().Latest("A") != before {
			t.Error("an unchanged deployment is not shared between snapshots")
		}
		mustUpdate(t, a, func(s *schema.Schema) (*schema.Change, error) { return s.Delete(id(1)) })
		synctest.Wait()
		if b.Current().Latest("A") != nil || b.Current().Version() != 3 {
			t.Error("the deletion did not arrive")
		}
		if len(b.mu.decoded) != 1 {
			t.Errorf("%d decoded values are kept", len(b.mu.decoded))
		}
		mustUpdate(t, a, func(s *schema.Schema) (*schema.Change, error) {
			no := false
			return s.ModifyService("B", schema.Overrides{Public: &no})
		})
		synctest.Wait()
		if h, err := b.Current().Handler("B", "h"); err != nil || h.Options.Public {
			t.Errorf("the modification did not arrive: %v", err)
		}
	})
}

func TestRestartReadsWhatIsStored(t *testing.T) {
	store := metadata.NewMemory()
	mustUpdate(t, New(store, schema.DefaultDefaults(), nil), register(1, "A"))
	d := schema.DefaultDefaults()
	d.AbortTimeout = 7 * time.Second
	r := New(store, d, nil)
	run(t, r)
	<-r.Ready()
	if h, err := r.Current().Handler("A", "h"); err != nil || h.Options.AbortTimeout != 7*time.Second {
		t.Errorf("%+v, %v", h, err)
	}
}

func TestUnchangedAndRefusedWriteNothing(t *testing.T) {
	store := metadata.NewMemory()
	r := New(store, schema.DefaultDefaults(), nil)
	mustUpdate(t, r, register(1, "A"))
	store.SetFault(func(c metadata.Call) metadata.Fault {
		if c.Method == "Txn" {
			t.Error("there is a write")
		}
		return metadata.Fault{}
	})
	if c := mustUpdate(t, r, register(1, "A")); c.Outcome != schema.Unchanged {
		t.Errorf("%+v", c)
	}
	want := errors.New("no")
	if _, err := r.Update(context.Background(), func(*schema.Schema) (*schema.Change, error) { return nil, want }); !errors.Is(err, want) {
		t.Error(err)
	}
}

func TestConcurrentUpdatesAllCount(t *testing.T) {
	store := metadata.NewMemory()
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		r := New(store, schema.DefaultDefaults(), nil)
		wg.Go(func() {
			if _, err := r.Update(context.Background(), register(i, "A")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r := New(store, schema.DefaultDefaults(), nil)
	s, _, err := r.load(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	revisions := map[uint32]bool{}
	for _, d := range s.Deployments() {
		revisions[d.Services[0].Revision] = true
	}
	if len(revisions) != n || s.Version() != n {
		t.Errorf("revisions %v at version %d", revisions, s.Version())
	}
}

// A write whose answer is lost must be made once, and its outcome must be that of the first try.
func TestUnknownOutcomes(t *testing.T) {
	for _, c := range []struct {
		name   string
		effect metadata.Effect
	}{{"refused", metadata.Refuse}, {"request lost", metadata.LoseRequest}, {"response lost", metadata.LoseResponse}, {"late", metadata.DeliverLate}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := metadata.NewMemory()
				r := New(store, schema.DefaultDefaults(), nil)
				faults := 2
				store.SetFault(func(call metadata.Call) metadata.Fault {
					if call.Method != "Txn" || faults == 0 {
						if call.Method == "List" && faults == 0 {
							store.DeliverDelayed()
						}
						return metadata.Fault{}
					}
					faults--
					return metadata.Fault{Effect: c.effect}
				})
				ch := mustUpdate(t, r, register(1, "A"))
				if ch.Outcome != schema.Created {
					t.Errorf("outcome %d", ch.Outcome)
				}
				store.DeliverDelayed()
				s, _, err := r.load(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if s.Version() != 1 || len(s.Deployments()) != 1 || r.Current().Version() != 1 {
					t.Errorf("version %d with %d deployments", s.Version(), len(s.Deployments()))
				}
				faults = 1
				mustUpdate(t, r, func(s *schema.Schema) (*schema.Change, error) { return s.Delete(id(1)) })
				if r.Current().Latest("A") != nil {
					t.Error("not deleted")
				}
			})
		})
	}
}

func TestUpdateEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := metadata.NewMemory()
		store.SetFault(func(call metadata.Call) metadata.Fault {
			if call.Method == "Txn" {
				return metadata.Fault{Effect: metadata.LoseResponse}
			}
			return metadata.Fault{Effect: metadata.Refuse}
		})
		r := New(store, schema.DefaultDefaults(), nil)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := r.Update(ctx, register(1, "A")); !errors.Is(err, metadata.ErrUnavailable) || errors.Is(err, metadata.ErrUnknownOutcome) {
			t.Errorf("nothing was sent: %v", err)
		}
		listed := 0
		store.SetFault(func(call metadata.Call) metadata.Fault {
			if call.Method == "Txn" {
				return metadata.Fault{Effect: metadata.LoseRequest}
			}
			if listed++; listed > 1 {
				return metadata.Fault{Effect: metadata.Refuse}
			}
			return metadata.Fault{}
		})
		ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := r.Update(ctx, register(1, "A")); !errors.Is(err, metadata.ErrUnknownOutcome) {
			t.Errorf("something was sent: %v", err)
		}
	})
}

// A cache that has the index already and a deployment not yet must not make a snapshot without it.
func TestTornSnapshotsAreNotServed(t *testing.T) {
	store := metadata.NewMemory()
	w := New(store, schema.DefaultDefaults(), nil)
	mustUpdate(t, w, register(1, "A"))
	mustUpdate(t, w, register(2, "B"))
	list, err := store.List(context.Background(), metadata.SchemaPrefix)
	if err != nil {
		t.Fatal(err)
	}
	r := New(store, schema.DefaultDefaults(), nil)
	if _, err := r.assemble(list[1:]); !errors.Is(err, errTorn) { // the first is a deployment, the last the index
		t.Errorf("a missing value went unnoticed: %v", err)
	}
	for i := range list {
		if strings.HasPrefix(list[i].Key, metadata.DeploymentPrefix) {
			list[i].Version++
			break
		}
	}
	if _, err := r.assemble(list); !errors.Is(err, errTorn) {
		t.Errorf("a newer value went unnoticed: %v", err)
	}
}

func TestNewerFormatKeepsWhatIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := metadata.NewMemory()
		r := New(store, schema.DefaultDefaults(), nil)
		mustUpdate(t, r, register(1, "A"))
		run(t, r)
		<-r.Ready()
		if _, err := store.Put(context.Background(), metadata.SchemaIndexKey, []byte(`{"format":2}`), metadata.Any); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if r.Current().Latest("A") == nil {
			t.Error("the schema is gone")
		}
		if _, err := r.Update(context.Background(), register(2, "B")); err == nil {
			t.Error("a newer format is overwritten")
		}
	})
}
