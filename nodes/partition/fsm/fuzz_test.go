package fsm

import (
	"testing"

	"perdure/nodes/record"
)

// FuzzApply applies whatever can be decoded to a machine that has run a random log. Bad content of a command is
// dropped: it must neither fail apply nor leave rows that contradict each other.
func FuzzApply(f *testing.F) {
	p := newProgram(1)
	w := newWorld(f)
	for range 200 {
		c, now := p.next()
		w.now = now
		p.see(w.apply(c))
		if b, err := record.Encode(c); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := record.Decode(payload)
		if err != nil {
			return
		}
		w := newWorld(t)
		p := newProgram(2)
		for range 20 {
			c, now := p.next()
			w.now = now
			p.see(w.apply(c))
		}
		w.apply(c) // fails the test on an error
		c.Dedup = nil
		w.apply(c)
		if bad := readTables(w.txn).check(&w.m.counters.row); len(bad) > 0 {
			t.Fatalf("the rows contradict each other: %q", bad)
		}
	})
}
