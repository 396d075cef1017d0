package metadata

import (
	"bytes"
	"maps"
	"slices"
	"strings"
)

// Table is the state of a store: versioned values and how operations change them. It is deterministic and has
// neither locks nor limits; stores guard it and apply operations in the agreed order.
type Table struct {
	entries map[string]entry
}

// entry is a value or, if absent, the version at which it was deleted.
type entry struct {
	version uint64
	absent  bool
	data    []byte
}

// Change is what an operation did to one key.
type Change struct {
	Key     string
	Version uint64
	Deleted bool
	Data    []byte
}

// NewTable is an empty table.
func NewTable() *Table { return &Table{entries: map[string]entry{}} }

// Get is the value of a key. ok is false without one; Value.Version is then the version of its deletion, or 0.
func (t *Table) Get(key string) (v Value, ok bool) {
	e, known := t.entries[key]
	return Value{Version: e.version, Data: e.data}, known && !e.absent
}

// List is the keys under prefix with their values, ascending.
func (t *Table) List(prefix string) []KeyValue {
	var list []KeyValue
	for key, e := range t.entries {
		if !e.absent && strings.HasPrefix(key, prefix) {
			list = append(list, KeyValue{key, Value{e.version, e.data}})
		}
	}
	slices.SortFunc(list, func(a, b KeyValue) int { return strings.Compare(a.Key, b.Key) })
	return list
}

// Apply makes the puts if all compares hold. The table keeps the puts' data, which must not change any more. The
// changes are in the order of the puts.
func (t *Table) Apply(compares []Compare, puts []Put) (Result, []Change, *ConflictError) {
	for _, c := range compares {
		if c.Precondition == Any {
			continue
		}
		actual := uint64(0)
		if v, ok := t.Get(c.Key); ok {
			actual = v.Version
		}
		if actual != uint64(c.Precondition) {
			return Result{}, nil, &ConflictError{Key: c.Key, Actual: actual}
		}
	}
	result := Result{Versions: make([]uint64, len(puts))}
	var changes []Change
	for i, p := range puts {
		e, known := t.entries[p.Key]
		result.Versions[i] = e.version
		if p.Delete && (!known || e.absent) {
			continue
		}
		e = entry{version: e.version + 1, absent: p.Delete, data: p.Data}
		t.entries[p.Key] = e
		result.Versions[i] = e.version
		changes = append(changes, Change{p.Key, e.version, e.absent, e.data})
	}
	return result, changes, nil
}

// Changes lists every key that ever was, deleted ones included, ascending: all that is needed to make the table
// anew.
func (t *Table) Changes() []Change {
	list := make([]Change, 0, len(t.entries))
	for key, e := range t.entries {
		list = append(list, Change{key, e.version, e.absent, e.data})
	}
	slices.SortFunc(list, func(a, b Change) int { return strings.Compare(a.Key, b.Key) })
	return list
}

// NewTableFrom is the table that Changes was taken of.
func NewTableFrom(changes []Change) *Table {
	t := NewTable()
	for _, c := range changes {
		t.entries[c.Key] = entry{c.Version, c.Deleted, c.Data}
	}
	return t
}

// Clone is a copy that shares the values' bytes.
func (t *Table) Clone() *Table { return &Table{maps.Clone(t.entries)} }

// copyPuts takes the caller's data into the store's possession.
func copyPuts(puts []Put) []Put {
	puts = slices.Clone(puts)
	for i := range puts {
		puts[i].Data = bytes.Clone(puts[i].Data)
	}
	return puts
}
