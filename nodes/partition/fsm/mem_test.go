package fsm

import (
	"bytes"
	"sort"

	"perdure/control/cluster"
	"perdure/nodes/partition/store/keyspace"
)

// memTxn is a store of rows in memory. Each value it returns is overwritten by the next Get, as the
// contract of Reader allows.
type memTxn struct {
	rows map[string][]byte
	got  []byte
}

func newMemTxn() *memTxn { return &memTxn{rows: map[string][]byte{}} }

func (t *memTxn) Get(key []byte) ([]byte, bool, error) {
	for i := range t.got {
		t.got[i] = 0xee
	}
	v, ok := t.rows[string(key)]
	t.got = append([]byte{}, v...)
	return t.got, ok, nil
}

func (t *memTxn) GetCommitted(key []byte) ([]byte, bool, error) { return t.Get(key) }

func (t *memTxn) Scan(start, end []byte, fn func(key, value []byte) (bool, error)) error {
	var keys []string
	for k := range t.rows {
		if k >= string(start) && k < string(end) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	for _, k := range keys {
		key, value := []byte(k), bytes.Clone(t.rows[k])
		more, err := fn(key, value)
		for i := range key {
			key[i] = 0xee
		}
		for i := range value {
			value[i] = 0xee
		}
		if err != nil || !more {
			return err
		}
	}
	return nil
}

func (t *memTxn) Set(key, value []byte) error {
	t.rows[string(key)] = append([]byte{}, value...)
	return nil
}

func (t *memTxn) Delete(key []byte) error {
	delete(t.rows, string(key))
	return nil
}

func (t *memTxn) DeleteRange(start, end []byte) error {
	for k := range t.rows {
		if k >= string(start) && k < string(end) {
			delete(t.rows, k)
		}
	}
	return nil
}

func (t *memTxn) SetApplied(lsn cluster.LSN, latestMs uint64) error {
	return t.Set(keyspace.AppendMeta(nil, keyspace.MetaApplied), keyspace.AppendApplied(nil, lsn, latestMs))
}
