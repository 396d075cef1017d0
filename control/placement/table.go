// Package placement decides where partitions live: the partition table that cuts the key space, the leadership object of a
// partition (its epoch, who claimed it, and which nodes run its processors), and the plan that leads from what is to
// what should be. Everything is a function of its arguments; the controller and the workers carry results out by
// compare-and-set on metadata, so two planners at once are harmless.
package placement

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"

	"perdure/control/cluster"
)

// MaxPartitions is the largest number of partitions.
const MaxPartitions = 65535

// Table is the partition table: the key space cut evenly into a number of contiguous ranges that is fixed when the
// cluster is provisioned.
type Table struct {
	count uint64
	// replication is how many processors each partition should have, and over which domains.
	replication cluster.Replication
}

// NewTable cuts the key space into count partitions, 1 to MaxPartitions.
func NewTable(count int, replication cluster.Replication) (Table, error) {
	if count < 1 || count > MaxPartitions {
		return Table{}, fmt.Errorf("the number of partitions must be 1 to %d, not %d", MaxPartitions, count)
	}
	if err := replication.Validate(); err != nil {
		return Table{}, fmt.Errorf("partition table: %w", err)
	}
	return Table{uint64(count), replication}, nil
}

// Len is the number of partitions; they are numbered from 0.
func (t Table) Len() int { return int(t.count) }

// Replication is the wanted replication of the partition processors.
func (t Table) Replication() cluster.Replication { return t.replication }

// Lookup is the partition of a key: the key as a fraction of the key space, times the number of partitions.
func (t Table) Lookup(key cluster.PartitionKey) cluster.PartitionID {
	partition, _ := bits.Mul64(uint64(key), t.count)
	return cluster.PartitionID(partition)
}

// Range is the keys of a partition. It panics if there is no such partition.
func (t Table) Range(id cluster.PartitionID) cluster.KeyRange {
	if uint64(id) >= t.count {
		panic("placement: no such partition")
	}
	return cluster.KeyRange{Start: t.start(uint64(id)), End: t.start(uint64(id)+1) - 1}
}

// start is the first key k with Lookup(k) >= i, that is i·2^64/count rounded up; 0 (as 2^64) for i = count.
func (t Table) start(i uint64) cluster.PartitionKey {
	if i == t.count {
		return 0
	}
	start, _ := bits.Div64(i, t.count-1, t.count)
	return cluster.PartitionKey(start)
}

// LogOf is the log of a partition.
func LogOf(id cluster.PartitionID) cluster.LogID { return cluster.LogID(id) }

const tableFormat = 1

type tableJSON struct {
	Format      int                 `json:"format"`
	Partitions  int                 `json:"partitions"`
	Replication cluster.Replication `json:"replication"`
}

// Encode is the stored form.
func (t Table) Encode() ([]byte, error) {
	return json.Marshal(tableJSON{tableFormat, t.Len(), t.replication})
}

// DecodeTable reads the stored form.
func DecodeTable(data []byte) (Table, error) {
	var v tableJSON
	if err := decodeStrict(data, &v); err != nil {
		return Table{}, fmt.Errorf("decode partition table: %w", err)
	}
	if v.Format != tableFormat {
		return Table{}, fmt.Errorf("decode partition table: format %d is not known to this version of the server", v.Format)
	}
	t, err := NewTable(v.Partitions, v.Replication)
	if err != nil {
		return Table{}, fmt.Errorf("decode partition table: %w", err)
	}
	return t, nil
}

// decodeStrict refuses unknown fields, because who writes the object back would drop what it did not understand.
func decodeStrict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("data follows the object")
	}
	return nil
}
