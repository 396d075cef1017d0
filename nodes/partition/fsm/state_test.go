package fsm

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"perdure/nodes/partition/store/keyspace"
	"perdure/nodes/partition/store/storepb"
)

// Whatever is set, removed and replaced: what is read is what was put there last, of this object alone, and a version says whether
// the state is still the one that somebody has seen.
func TestStatesKeepWhatWasPutThere(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	s, txn := newStep()
	st := &states{s}
	objects := [3]keyspace.Object{{Partition: 1, Service: "A", Key: "k"}, {Partition: 1, Service: "A", Key: "kk"}, {Partition: 2, Service: "B"}}
	model := [3]map[string]string{{}, {}, {}}
	key := func() string { return []string{"", "a", "aa", "b", "\x00", "k"}[rng.IntN(6)] }
	value := func() string { return []string{"", "1", "2"}[rng.IntN(3)] }
	versionOf := map[string]string{} // by content
	contentOf := map[string]string{} // by version
	for i := range 2000 {
		o, m := &objects[i%3], model[i%3]
		check := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, i, err)
			}
		}
		switch n := rng.IntN(20); {
		case n < 8:
			k, v := key(), value()
			check(st.set(o, []byte(k), []byte(v)))
			m[k] = v
		case n < 12:
			k := key()
			check(st.remove(o, []byte(k)))
			delete(m, k)
		case n < 13:
			check(st.clear(o))
			clear(m)
		case n < 14 && rng.IntN(4) == 0:
			many := 2 * rng.IntN(rangeDeleteFrom)
			for j := range many {
				k := fmt.Sprint("many ", j)
				check(st.set(o, []byte(k), nil))
				m[k] = ""
			}
		default:
			p, takes := &storepb.StatePatch{}, true
			if n < 18 { // made for the state of this object, or for another that may be the same
				seen := rng.IntN(3)
				v, err := st.version(&objects[seen])
				check(err)
				p.Version, takes = &v, maps.Equal(m, model[seen])
			}
			want := map[string]string{}
			for range rng.IntN(4) {
				k, v := key(), value()
				p.State = append(p.State, &storepb.StateEntry{Key: []byte(k), Value: []byte(v)})
				want[k] = v
			}
			before := s.dropped
			check(st.patch(o, p))
			if got := s.dropped == before; got != takes {
				t.Fatalf("seed %d, step %d: a patch was taken: %v, want %v", seed, i, got, takes)
			}
			if takes {
				clear(m)
				maps.Copy(m, want)
			}
		}
		k := key()
		v, ok, err := st.get(o, []byte(k))
		if want, known := m[k]; err != nil || ok != known || string(v) != want {
			t.Fatalf("seed %d, step %d: %q is %q, %v, %v; want %q, %v", seed, i, k, v, ok, err, want, known)
		}
		keys, err := st.keys(o)
		want := slices.Sorted(maps.Keys(m))
		if err != nil || !slices.EqualFunc(keys, want, func(a []byte, b string) bool { return bytes.Equal(a, []byte(b)) }) {
			t.Fatalf("seed %d, step %d: keys %q, %v; want %q", seed, i, keys, err, want)
		}
		version, err := st.version(o)
		check(err)
		content := fmt.Sprintf("%q", m) // with sorted keys
		if known, ok := versionOf[content]; ok && known != version {
			t.Fatalf("seed %d, step %d: the same state has two versions: %s", seed, i, content)
		}
		if known, ok := contentOf[version]; ok && known != content {
			t.Fatalf("seed %d, step %d: %s and %s have the same version", seed, i, known, content)
		}
		versionOf[content], contentOf[version] = version, content
		if rows := len(model[0]) + len(model[1]) + len(model[2]); len(txn.rows) != rows {
			t.Fatalf("seed %d, step %d: %d rows, want %d", seed, i, len(txn.rows), rows)
		}
	}
}
