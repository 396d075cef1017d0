package admin

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"perdure/control/ident"
)

// fakeDoctor answers with what is set.
type fakeDoctor struct {
	checkup   *Checkup
	diagnosis *Diagnosis
	err       error
	asked     ident.InvocationID
}

func (d *fakeDoctor) Checkup(context.Context) (*Checkup, error) { return d.checkup, d.err }

func (d *fakeDoctor) Diagnose(_ context.Context, id ident.InvocationID) (*Diagnosis, error) {
	d.asked = id
	return d.diagnosis, d.err
}

// TestDoctor serves what the doctor says, and says so when there is no such invocation, or no doctor.
func TestDoctor(t *testing.T) {
	f := setup(t, nil)
	id := ident.NewInvocationID(7, [16]byte{1})
	f.expect(f.request(http.MethodGet, "/perdure/doctor", ""), http.StatusNotImplemented, `{"message":"not supported by this server: the doctor","restate_code":null}`)
	since := time.Date(2026, 11, 23, 5, 1, 0, 0, time.UTC)
	d := &fakeDoctor{
		checkup: &Checkup{Invocations: map[string]int{"suspended": 2}, WaitsFor: map[string]int{"timer": 1}, Partitions: 1, ProblemsTotal: 1, TookMs: 3,
			Problems: []Diagnosis{{Target: "S/h", Problem: "no timer"}}},
		diagnosis: &Diagnosis{ID: id.String(), Target: "S/h", Status: "suspended", Since: &since, Waits: []Wait{{Reason: "timer", Text: "its sleep", Due: &since}}},
	}
	f.a.deps.Doctor = d
	f.expect(f.request(http.MethodGet, "/perdure/doctor", ""), http.StatusOK,
		`{"healthy":false,"invocations":{"suspended":2},"waits_for":{"timer":1},"problems":[{"target":"S/h","problem":"no timer"}],"problems_total":1,"partitions":1,"took_ms":3}`)
	f.expect(f.request(http.MethodGet, "/perdure/doctor/"+id.String(), ""), http.StatusOK,
		`{"id":"`+id.String()+`","target":"S/h","status":"suspended","since":"2026-11-23T05:01:00Z","waits":[{"reason":"timer","text":"its sleep","due":"2026-11-23T05:01:00Z"}]}`)
	if d.asked != id {
		t.Errorf("asked for %s, want %s", d.asked, id)
	}
	d.diagnosis = nil
	if w := f.request(http.MethodGet, "/perdure/doctor/"+id.String(), ""); w.Code != http.StatusNotFound {
		t.Errorf("an unknown invocation: %d %s, want 404", w.Code, w.Body)
	}
	if w := f.request(http.MethodGet, "/perdure/doctor/nonsense", ""); w.Code != http.StatusBadRequest {
		t.Errorf("no id: %d %s, want 400", w.Code, w.Body)
	}
	d.err = errors.New("not here")
	for _, path := range []string{"/perdure/doctor", "/perdure/doctor/" + id.String()} {
		if w := f.request(http.MethodGet, path, ""); w.Code != http.StatusServiceUnavailable {
			t.Errorf("%s when the partition cannot be asked: %d %s, want 503", path, w.Code, w.Body)
		}
	}
}

// waitingDoctor tells that a checkup has begun, and goes on when it is let.
type waitingDoctor struct {
	Doctor
	begun chan struct{}
	let   chan struct{}
}

func (d *waitingDoctor) Checkup(ctx context.Context) (*Checkup, error) {
	d.begun <- struct{}{}
	<-d.let
	return &Checkup{Healthy: true}, ctx.Err()
}

// TestCheckupsAreFew: each reads all invocations, so that many at a time would take the disk and the processors from them.
func TestCheckupsAreFew(t *testing.T) {
	f := setup(t, nil)
	d := &waitingDoctor{begun: make(chan struct{}), let: make(chan struct{})}
	f.a.deps.Doctor = d
	codes := make(chan int, maxCheckups)
	ask := func() { codes <- f.request(http.MethodGet, "/perdure/doctor", "").Code }
	for range maxCheckups {
		go ask()
		<-d.begun
	}
	w := f.request(http.MethodGet, "/perdure/doctor", "")
	f.expect(w, http.StatusTooManyRequests, `{"message":"2 checkups are under way, and each reads all invocations","restate_code":null}`)
	if w.Header().Get("Retry-After") == "" {
		t.Error("there is no Retry-After")
	}
	close(d.let)
	for range maxCheckups {
		if code := <-codes; code != http.StatusOK {
			t.Errorf("a checkup ended with %d, want 200", code)
		}
	}
	go ask()
	<-d.begun
	if code := <-codes; code != http.StatusOK {
		t.Errorf("a checkup after the others: %d, want 200", code)
	}
}
