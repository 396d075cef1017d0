package schema

import (
	"errors"
	"slices"
	"testing"
	"time"

	"perdure/control/ident"
)

func ptr[T any](v T) *T { return &v }

func id(n byte) ident.DeploymentID { return ident.DeploymentID{15: n} }

func sample() *Deployment {
	return &Deployment{
		ID: id(1), CreatedMs: 10, ProtocolType: BidiStream, MinProtocol: 5, MaxProtocol: 7,
		Address: Address{HTTP: &HTTPAddress{URI: "http://h:1/", Version: HTTP2}},
		Services: []ServiceRevision{{
			Name: "Counter", Type: VirtualObject, Revision: 1,
			Overrides: Overrides{AbortTimeout: ptr(5 * time.Second), JournalRetention: ptr(48 * time.Hour)},
			Handlers: []Handler{
				{Name: "add", Type: Exclusive, Overrides: Overrides{AbortTimeout: ptr(time.Second), Public: ptr(false)}},
				{Name: "get", Type: Shared},
			},
		}},
	}
}

func TestOptionsMergeHandlerThenServiceThenDefaults(t *testing.T) {
	d := DefaultDefaults()
	d.MaxJournalRetention = ptr(36 * time.Hour)
	d.MaxAttempts = 10
	s := New(1, d, []*Deployment{sample()})
	add, err := s.Handler("Counter", "add")
	if err != nil {
		t.Fatal(err)
	}
	if add.Options.AbortTimeout != time.Second || add.Options.Public || add.Options.InactivityTimeout != time.Minute {
		t.Errorf("add: %+v", add.Options)
	}
	get, err := s.Handler("Counter", "get")
	if err != nil {
		t.Fatal(err)
	}
	if get.Options.AbortTimeout != 5*time.Second || !get.Options.Public {
		t.Errorf("get: %+v", get.Options)
	}
	if get.Options.JournalRetention != 36*time.Hour || get.Options.Retry.MaxAttempts != 10 {
		t.Errorf("limits not applied: %+v", get.Options)
	}
	if get.Deployment != id(1) || get.ServiceType != VirtualObject || get.Service != "Counter" {
		t.Errorf("identity of get: %+v", get)
	}
}

// TestEachRetentionHasItsOwnLimit: services and defaults alike stay below the limit of that kind of retention.
func TestEachRetentionHasItsOwnLimit(t *testing.T) {
	const hour = time.Hour
	d := sample()
	d.Services = []ServiceRevision{{
		Name: "W", Type: Workflow, Overrides: Overrides{WorkflowRetention: ptr(100 * hour), IdempotencyRetention: ptr(100 * hour)},
		Handlers: []Handler{{Name: "run", Type: WorkflowRun, Overrides: Overrides{JournalRetention: ptr(100 * hour)}}},
	}}
	limits := Defaults{MaxJournalRetention: ptr(hour), MaxIdempotencyRetention: ptr(2 * hour), MaxWorkflowRetention: ptr(3 * hour), WorkflowRetention: 50 * hour}
	o, err := New(1, limits, []*Deployment{d}).Options(d.ID, "W", "run")
	if err != nil {
		t.Fatal(err)
	}
	if o.JournalRetention != hour || o.IdempotencyRetention != 2*hour || o.WorkflowRetention != 3*hour {
		t.Errorf("limited to %+v", o)
	}
	d.Services[0].Overrides = Overrides{}
	if o, _ = New(1, limits, []*Deployment{d}).Options(d.ID, "W", "run"); o.WorkflowRetention != 3*hour {
		t.Errorf("the default is limited to %+v", o)
	}
	// A limit of 0 is one, too: nothing is kept. Without a limit there is none.
	none := time.Duration(0)
	limits.MaxJournalRetention, limits.MaxIdempotencyRetention, limits.MaxWorkflowRetention = &none, &none, nil
	if o, _ = New(1, limits, []*Deployment{d}).Options(d.ID, "W", "run"); o.JournalRetention != 0 || o.IdempotencyRetention != 0 || o.WorkflowRetention != 50*hour {
		t.Errorf("limited to nothing: %+v", o)
	}
}

// TestNotesSayWhatIsNotTakenAsItIs, and what applies instead.
func TestNotesSayWhatIsNotTakenAsItIs(t *testing.T) {
	const hour = time.Hour
	all := Overrides{InactivityTimeout: ptr(1500 * time.Millisecond), JournalRetention: ptr(9 * hour), IdempotencyRetention: ptr(9 * hour), WorkflowRetention: ptr(9 * hour)}
	at := func(mode ProtocolType, o Overrides) (*ServiceRevision, *Handler) {
		d := sample()
		d.ProtocolType = mode
		d.Services = []ServiceRevision{{Name: "W", Type: Workflow, Overrides: o, Handlers: []Handler{{Name: "x", Type: Shared, Overrides: o}}}}
		s := New(1, Defaults{IdempotencyRetention: 5 * hour, MaxJournalRetention: ptr(hour), MaxIdempotencyRetention: ptr(2 * hour), MaxWorkflowRetention: ptr(3 * hour)}, []*Deployment{d})
		r, err := s.Deployment(d.ID)
		if err != nil {
			t.Fatal(err)
		}
		return &r.Services[0], &r.Services[0].Handlers[0]
	}
	clamped := func(name string) Note {
		return Note{"RT0022", "The configured " + name + " is clamped to the maximum server limit."}
	}
	ignored := func(who string) Note {
		return Note{"RT0021", "The configured inactivity_timeout 1s 500ms will not be applied because the " + who + " is exposed in Request/Response mode."}
	}
	three := []Note{clamped("journal_retention"), clamped("idempotency_retention"), clamped("workflow_completion_retention")}

	rev, h := at(RequestResponse, all)
	if want := append([]Note{ignored("service")}, three...); !slices.Equal(rev.Notes, want) {
		t.Errorf("service: %q", rev.Notes)
	}
	if want := append([]Note{ignored("handler")}, three...); !slices.Equal(h.Notes, want) {
		t.Errorf("handler: %q", h.Notes)
	}
	if a := h.Applied; a.InactivityTimeout != nil || *a.JournalRetention != hour || *a.IdempotencyRetention != 2*hour || *a.WorkflowRetention != 3*hour {
		t.Errorf("applied: %+v", a)
	}
	if *h.Overrides.JournalRetention != 9*hour || *rev.Overrides.InactivityTimeout != 1500*time.Millisecond {
		t.Error("what is stored was changed")
	}
	rev, h = at(BidiStream, all)
	if !slices.Equal(rev.Notes, three) || !slices.Equal(h.Notes, three) || *h.Applied.InactivityTimeout != 1500*time.Millisecond {
		t.Errorf("with streams: %q, %q, %+v", rev.Notes, h.Notes, h.Applied)
	}
	rev, h = at(BidiStream, Overrides{})
	if !slices.Equal(rev.Notes, []Note{clamped("idempotency_retention")}) || h.Notes != nil {
		t.Errorf("defaults: %q, %q", rev.Notes, h.Notes)
	}
	rev, h = at(RequestResponse, Overrides{JournalRetention: ptr(hour), IdempotencyRetention: ptr(time.Duration(0))})
	if rev.Notes != nil || h.Notes != nil || *h.Applied.JournalRetention != hour {
		t.Errorf("within limits: %q, %q, %+v", rev.Notes, h.Notes, h.Applied)
	}
}

func TestRequestResponseHasNoInactivityTimeout(t *testing.T) {
	d := sample()
	d.ProtocolType = RequestResponse
	s := New(1, DefaultDefaults(), []*Deployment{d})
	if o, _ := s.Options(id(1), "Counter", "get"); o.InactivityTimeout != 0 {
		t.Errorf("inactivity timeout is %s", o.InactivityTimeout)
	}
}

func TestLookupErrors(t *testing.T) {
	s := New(1, DefaultDefaults(), []*Deployment{sample()})
	_, err := s.Handler("X", "y")
	var nf *NotFoundError
	if !errors.As(err, &nf) || err.Error() != "service 'X' not found, make sure to register the service before calling it." {
		t.Errorf("unknown service: %v", err)
	}
	_, err = s.Handler("Counter", "y")
	if !errors.As(err, &nf) || err.Error() != "the service 'Counter' exists, but the handler 'y' was not found, check that the handler exists in the latest registered service version." {
		t.Errorf("unknown handler: %v", err)
	}
	_, err = s.Deployment(id(9))
	var dnf *DeploymentNotFoundError
	if !errors.As(err, &dnf) {
		t.Errorf("unknown deployment: %v", err)
	}
}

func TestLatestIsHighestRevisionWhateverTheOrder(t *testing.T) {
	a, b := sample(), sample()
	b.ID, b.CreatedMs, b.Services[0].Revision = id(2), 5, 2
	for _, in := range [][]*Deployment{{a, b}, {b, a}} {
		s := New(1, DefaultDefaults(), in)
		if got := s.Latest("Counter").ID; got != id(2) {
			t.Errorf("latest is %s", got)
		}
		if h, err := s.HandlerAt(id(1), "Counter", "add"); err != nil || h.Revision != 1 {
			t.Errorf("pinned handler: %+v, %v", h, err)
		}
	}
}

func TestRetention(t *testing.T) {
	o := Options{JournalRetention: 3, IdempotencyRetention: 2, WorkflowRetention: 5}
	for _, c := range []struct {
		typ  HandlerType
		key  bool
		want Retention
	}{
		{Shared, false, Retention{3, 3}},
		{Shared, true, Retention{2, 2}},
		{WorkflowRun, false, Retention{5, 3}},
	} {
		h := Handler{Type: c.typ, Options: o}
		if got := h.Retention(c.key); got != c.want {
			t.Errorf("%s key=%v: %+v, want %+v", c.typ, c.key, got, c.want)
		}
	}
}
