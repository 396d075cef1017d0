package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// kind is what matters of a node for quorums.
type kind struct {
	location Location
	state    StorageState
}

type fixedView map[NodeID]kind

func (v fixedView) Storage(id NodeID) (StorageState, Location) { return v[id].state, v[id].location }

func mustReplication(t testing.TB, s string) Replication {
	t.Helper()
	r, err := ParseReplication(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The checkers are compared with the definitions, on every subset of every mix (up to renaming of nodes and zones) of up
// to seven nodes in three domains, and the property that everything rests on is checked: what an f-majority of
// authoritative nodes leaves out is no write quorum.
func TestQuorumsAgainstBruteForce(t *testing.T) {
	zones := []Location{{"r1", "a"}, {"r1", "b"}, {"r2", "a"}}
	states := []StorageState{StorageReadWrite, StorageDataLoss, StorageDisabled}
	var kinds []kind
	for _, z := range zones {
		for _, s := range states {
			kinds = append(kinds, kind{z, s})
		}
	}
	properties := append(replications(t, 1, 7, 0, 0), replications(t, 2, 3, len(zones), 2)...)
	for n := 1; n <= 7; n++ {
		forMultisets(kinds, n, func(mix []kind) {
			if !mirrored(mix) {
				checkMix(t, mix, properties)
			}
		})
	}
}

// mirrored reports whether a mix is one that is checked already with the names of the two zones of r1 swapped.
func mirrored(mix []kind) bool {
	var a, b [storageStates]int
	for _, k := range mix {
		switch k.location {
		case Location{"r1", "a"}:
			a[k.state]++
		case Location{"r1", "b"}:
			b[k.state]++
		}
	}
	return slices.Compare(a[:], b[:]) < 0
}

// replications are the properties of least to most copies, in up to so many zones and regions at least.
func replications(t *testing.T, least, most, zones, regions int) (rs []Replication) {
	for n := least; n <= most; n++ {
		for z := range min(n, zones) + 1 {
			for g := range min(n, regions) + 1 {
				if z > 0 && g > z {
					continue // refused: each region has a zone of its own
				}
				s := fmt.Sprintf("{node:%d", n)
				if z > 0 {
					s += fmt.Sprintf(",zone:%d", z)
				}
				if g > 0 {
					s += fmt.Sprintf(",region:%d", g)
				}
				rs = append(rs, mustReplication(t, s+"}"))
			}
		}
	}
	return rs
}

// The other states behave like read-write or as authoritative nodes; unknown locations are the conservative case.
func TestQuorumsWithAllStatesAndUnknownLocations(t *testing.T) {
	var kinds []kind
	for _, l := range []Location{{"r1", "a"}, {"r2", "b"}, {}, {Region: "r1"}} {
		for s := StorageProvisioning; s < storageStates; s++ {
			kinds = append(kinds, kind{l, s})
		}
	}
	properties := []Replication{ReplicateTo(2), mustReplication(t, "{zone:2,node:2}"), mustReplication(t, "{region:2,node:3}")}
	for n := 1; n <= 3; n++ {
		forMultisets(kinds, n, func(mix []kind) { checkMix(t, mix, properties) })
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	mix := make([]kind, 7)
	for range 2000 {
		for i := range mix {
			mix[i] = kinds[rnd.IntN(len(kinds))]
		}
		checkMix(t, mix, properties)
	}
}

// forMultisets calls f with each multiset of n kinds; f must not keep the slice.
func forMultisets(kinds []kind, n int, f func([]kind)) {
	mix := make([]kind, 0, n)
	var rec func(from int)
	rec = func(from int) {
		if len(mix) == n {
			f(mix)
			return
		}
		for i := from; i < len(kinds); i++ {
			mix = append(mix, kinds[i])
			rec(i)
			mix = mix[:len(mix)-1]
		}
	}
	rec(0)
}

func checkMix(t *testing.T, mix []kind, properties []Replication) {
	t.Helper()
	view := fixedView{}
	set := make([]NodeID, len(mix))
	for i, k := range mix {
		set[i] = NodeID(i + 1)
		view[set[i]] = k
	}
	full := uint64(1)<<len(mix) - 1
	for _, r := range properties {
		q := NewQuorum(set, r, view)
		ref := newReference(mix, r)
		for x := uint64(0); x <= full; x++ {
			m := Members{lo: x}
			if got, want := q.WriteQuorum(m), ref.writeQuorum(x); got != want {
				t.Fatalf("write quorum of %b in %v with %s: %v, by definition %v", x, mix, r, got, want)
			}
			majority := q.FMajority(m)
			if want := ref.majority(x); majority != want {
				t.Fatalf("f-majority of %b in %v with %s: %s, by definition %s", x, mix, r, majority, want)
			}
			if majority == MajoritySuccess && q.WriteQuorum(Members{lo: full &^ (x & ref.authoritative)}) {
				t.Fatalf("%b is an f-majority in %v with %s, yet a write quorum avoids its authoritative nodes", x, mix, r)
			}
			if majority.Passed() && q.WriteQuorum(Members{lo: full &^ x}) {
				t.Fatalf("%b passed in %v with %s, yet a write quorum avoids it", x, mix, r)
			}
		}
	}
}

// reference decides by the definitions, with bit sets of nodes per domain and no shortcuts for nodes.
type reference struct {
	counted, authoritative uint64
	scopes                 []referenceScope
}

type referenceScope struct {
	copies  int
	write   []uint64 // domains that count for a write quorum
	majored []uint64 // domains that count for an f-majority
}

func newReference(mix []kind, r Replication) reference {
	var ref reference
	for i, k := range mix {
		if k.state == StorageDisabled {
			continue
		}
		ref.counted |= 1 << i
		if k.state != StorageDataLoss {
			ref.authoritative |= 1 << i
		}
	}
	for s := NodeScope; s <= RegionScope; s++ {
		if r.Copies(s) == 0 {
			continue
		}
		scope := referenceScope{copies: r.Copies(s)}
		by := map[string]uint64{}
		for i, k := range mix {
			if ref.counted>>i&1 == 0 {
				continue
			}
			var name string
			switch {
			case s == NodeScope:
				name = fmt.Sprint("node", i)
			case s == ZoneScope && k.location.Zone != "":
				name = k.location.Region + "." + k.location.Zone
			case s == RegionScope && k.location.Region != "":
				name = k.location.Region
			default:
				scope.majored = append(scope.majored, 1<<i)
				continue
			}
			by[name] |= 1 << i
		}
		for _, d := range by {
			scope.write = append(scope.write, d)
			scope.majored = append(scope.majored, d)
		}
		ref.scopes = append(ref.scopes, scope)
	}
	return ref
}

func (ref reference) writeQuorum(x uint64) bool {
	for _, s := range ref.scopes {
		n := 0
		for _, d := range s.write {
			if d&x != 0 {
				n++
			}
		}
		if n < s.copies {
			return false
		}
	}
	return true
}

func (ref reference) fMajority(x uint64) bool {
	for _, s := range ref.scopes {
		outside := 0
		for _, d := range s.majored {
			if d&^x != 0 {
				outside++
			}
		}
		if outside < len(s.majored) && outside < s.copies {
			return true
		}
	}
	return false
}

func (ref reference) majority(x uint64) Majority {
	switch {
	case ref.fMajority(x & ref.authoritative):
		return MajoritySuccess
	case ref.fMajority(x):
		return MajorityWithRisk
	case x&ref.authoritative == ref.authoritative:
		return MajorityBestEffort
	}
	return MajorityNone
}

// A process whose view of the nodes is old must not pass a set as f-majority that leaves out a write quorum of
// the truth.
func TestOldViewIsConservative(t *testing.T) {
	truth := []kind{{Location{"r", "a"}, StorageReadWrite}, {Location{"r", "a"}, StorageReadWrite}, {Location{"r", "b"}, StorageReadWrite}, {Location{"r", "c"}, StorageReadWrite}, {Location{"r", "c"}, StorageReadWrite}}
	set := []NodeID{1, 2, 3, 4, 5}
	r := mustReplication(t, "{zone:2,node:3}")
	now := fixedView{}
	for i, k := range truth {
		now[set[i]] = k
	}
	current := NewQuorum(set, r, now)
	for unknown := range uint64(1 << 5) {
		old := fixedView{}
		for i, id := range set {
			if unknown>>i&1 == 0 {
				old[id] = truth[i]
			}
		}
		q := NewQuorum(set, r, old)
		for x := range uint64(1 << 5) {
			if q.FMajority(Members{lo: x}).Passed() && current.WriteQuorum(Members{lo: 31 &^ x}) {
				t.Fatalf("without knowledge of %05b, %05b passed but a write quorum avoids it", unknown, x)
			}
			if q.WriteQuorum(Members{lo: x}) && !current.WriteQuorum(Members{lo: x}) {
				t.Fatalf("without knowledge of %05b, %05b counts as a write quorum", unknown, x)
			}
		}
	}
}

func TestMembers(t *testing.T) {
	var m Members
	for _, i := range []int{0, 63, 64, 127} {
		m.Add(i)
		if !m.Has(i) {
			t.Errorf("position %d was not added", i)
		}
	}
	for _, i := range []int{-1, 128, 1000} {
		m.Add(i)
		if m.Has(i) {
			t.Errorf("position %d outside of a node set was added", i)
		}
	}
	if m.Len() != 4 {
		t.Errorf("len = %d, want 4", m.Len())
	}
	m.Remove(64)
	m.Remove(0)
	if m.Has(64) || m.Has(0) || m.Len() != 2 {
		t.Errorf("remove left %v", m)
	}
}

func BenchmarkWriteQuorum(b *testing.B) {
	view := fixedView{}
	set := []NodeID{1, 2, 3, 4, 5, 6}
	for i, id := range set {
		view[id] = kind{Location{"r", string(rune('a' + i%3))}, StorageReadWrite}
	}
	q := NewQuorum(set, mustReplication(b, "{zone:2,node:3}"), view)
	b.ReportAllocs()
	for b.Loop() {
		var m Members
		m.Add(0)
		m.Add(1)
		m.Add(4)
		if !q.WriteQuorum(m) {
			b.Fatal("no quorum")
		}
	}
}
