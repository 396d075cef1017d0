package fsm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
)

// modelJournal is the journal of an invocation in the model.
type modelJournal struct {
	entries []string
	output  string   // of the last Output entry
	notes   []string // all events so far
}

// Whatever is appended, noted and dropped, in whatever batches and with restarts between: the entries are there in their order, of
// the events the newest ones, the status row counts both, and nothing else is left.
func TestJournalIsWhatTheRowCounts(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	s, txn := newStep()
	rs := newRows(s)
	j := &journal{s, &rs}
	var model [3]modelJournal
	for i := range 2500 {
		s.now++
		n := rng.IntN(len(model))
		m := &model[n]
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d, step %d, invocation %d: %s", seed, i, n, fmt.Sprintf(format, args...))
		}
		check := func(err error) {
			t.Helper()
			if err != nil {
				fail("%v", err)
			}
		}
		r, err := rs.of(idFor(service("A"), n))
		check(err)
		if r.inv == nil {
			r.inv = &storepb.Invocation{Status: storepb.Invocation_INVOKED}
			_, err := j.append(r, protocol.TypeInput, nil)
			check(err)
			*m = modelJournal{entries: []string{""}}
		}
		switch k := rng.IntN(100); {
		case k < 30:
			typ, raw := uint16(protocol.TypeRun), fmt.Sprint("entry ", i)
			if rng.IntN(3) == 0 {
				typ, m.output = protocol.TypeOutput, raw
			}
			index, err := j.append(r, typ, []byte(raw))
			check(err)
			if int(index) != len(m.entries) {
				fail("the index is %d, want %d", index, len(m.entries))
			}
			if typ == protocol.TypeOutput {
				r.inv.Output, r.output = index+1, []byte(raw)
			}
			m.entries = append(m.entries, raw)
		case k < 80:
			before, dirty := r.inv.ModifiedAtMs, r.dirty
			text := fmt.Sprint("event ", i)
			check(j.note(r, &storepb.Event{Kind: &storepb.Event_TransientError{TransientError: &invocationpb.Effect_AttemptFailed{Message: text}}}))
			if !r.dirty || !dirty && r.inv.ModifiedAtMs != before {
				fail("an event changed the time of the last progress from %d to %d; it is to be written: %v", before, r.inv.ModifiedAtMs, r.dirty)
			}
			m.notes = append(m.notes, text)
		case k < 82:
			if rng.IntN(4) > 0 {
				break
			}
			check(j.drop(r))
			if rng.IntN(2) == 0 {
				r.inv = nil
			}
			*m = modelJournal{}
		case k < 90:
			check(rs.flush())
			if rng.IntN(2) == 0 {
				rs = newRows(s)
			}
			continue // r is of before
		}
		if r.inv == nil {
			continue
		}
		if last, err := j.lastNote(r); err != nil || (last != nil) != (len(m.notes) > 0) || last != nil && last.GetTransientError().Message != m.notes[len(m.notes)-1] {
			fail("the last event is %v, %v; there were %d", last, err, len(m.notes))
		}
		if (r.inv.Output > 0) != (m.output != "") {
			fail("entry %d is the output, want %q", int(r.inv.Output)-1, m.output)
		}
		if r.inv.Output > 0 {
			if raw, err := j.output(r); err != nil || string(raw) != m.output {
				fail("the output is %q, %v; want %q", raw, err, m.output)
			}
		}
		if rng.IntN(4) > 0 {
			continue
		}
		var entries, notes []string
		check(j.each(r, func(e keyspace.Entry) { entries = append(entries, string(e.Raw)) }))
		prefix := keyspace.AppendEventPrefix(nil, &r.id)
		check(txn.Scan(prefix, keyspace.PrefixEnd(nil, prefix), func(_, value []byte) (bool, error) {
			var e storepb.Event
			err := e.UnmarshalVT(value)
			notes = append(notes, e.GetTransientError().GetMessage())
			return true, err
		}))
		if !slices.Equal(entries, m.entries) || int(r.inv.Entries) != len(entries) {
			fail("the entries are %q, the row counts %d; want %q", entries, r.inv.Entries, m.entries)
		}
		if !slices.Equal(notes, m.notes[max(0, len(m.notes)-maxEvents):]) || int(r.inv.Events) != len(m.notes) {
			fail("the events are %q, the row counts %d; want the last of %q", notes, r.inv.Events, m.notes)
		}
	}
}
