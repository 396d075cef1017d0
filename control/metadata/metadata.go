// Package metadata is how all parts of the server see what the cluster agrees on: a small versioned key-value store with
// compare-and-set, linearizable reads, and a cache that tells about changes.
//
// The version of a key is 1 at its first write and grows by exactly one with each further write or deletion, for ever: a
// deleted key keeps its version, so a value is identified by (key, version) for all time and nobody mistakes a
// key that was made anew for the old one. What is cached never goes back to an older version.
//
// The contract of Store is checked by package metadatatest on every implementation: Memory here, for tests, and the
// replicated store in control/metastore.
package metadata

import (
	"context"
	"errors"
	"fmt"
	"math"
)

// Limits of keys, values and transactions. Each write is one entry of the replicated log and is held in memory
// several times on its way, so entries are kept small.
const (
	MaxKey     = 512        // bytes of a key
	MaxValue   = 512 << 10  // bytes of a value
	MaxTxn     = 1024 << 10 // bytes of all keys and values of a transaction
	MaxTxnKeys = 4096       // compares and puts of a transaction, together
)

// The errors that callers decide on. Other errors (a closed or damaged store, a cancelled context before anything was
// sent) mean that nothing was done and that trying again on this store will not help.
var (
	// ErrNotFound is returned by Get for a key without a value.
	ErrNotFound = errors.New("key not found")
	// ErrUnavailable means that nothing was done and that the same call may be made again later.
	ErrUnavailable = errors.New("metadata store is not available")
	// ErrUnknownOutcome means that a write may have been applied, or may yet be applied. Read the key to find out;
	// Update does.
	ErrUnknownOutcome = errors.New("outcome of the metadata write is not known")
	// ErrInvalid means that the call itself is not acceptable: too large, or a key twice in a transaction.
	ErrInvalid = errors.New("invalid metadata operation")
	// ErrClosed means that the store was closed.
	ErrClosed = errors.New("metadata store is closed")
)

// ConflictError refuses a write whose precondition does not hold. Nothing was changed.
type ConflictError struct {
	Key string
	// Actual is the version of the key's value, 0 if it has none.
	Actual uint64
}

func (e *ConflictError) Error() string {
	if e.Actual == 0 {
		return fmt.Sprintf("metadata key %q does not exist", e.Key)
	}
	return fmt.Sprintf("metadata key %q is at version %d", e.Key, e.Actual)
}

// Value is the bytes of a key and their version. The bytes are shared: nobody may change them.
type Value struct {
	Version uint64
	Data    []byte
}

// KeyValue is a key with its value.
type KeyValue struct {
	Key string
	Value
}

// Precondition is what must hold of a key for a write to happen. The zero value is Absent.
type Precondition uint64

// The preconditions without a version.
const (
	Absent Precondition = 0              // the key has no value
	Any    Precondition = math.MaxUint64 // no condition
)

// AtVersion holds when the key's value has version v.
func AtVersion(v uint64) Precondition { return Precondition(v) }

// Compare is a condition of a transaction.
type Compare struct {
	Key string
	Precondition
}

// Put is a write of a transaction.
type Put struct {
	Key  string
	Data []byte
	// Delete removes the value; deleting a key without a value does nothing.
	Delete bool
}

// Result is the outcome of a transaction that was applied.
type Result struct {
	// Versions has the new version of each put, in their order; for a deletion of nothing the version that the
	// key had.
	Versions []uint64
}

// Store is the metadata store. All methods may be called concurrently. A context that ends while a write is under
// way gives ErrUnknownOutcome. Data that is passed in is copied.
type Store interface {
	// Get is a linearizable read: it sees every write that was acknowledged, to anybody, before it was called.
	// ErrNotFound comes with the version that the key had when its value was deleted, or 0.
	Get(ctx context.Context, key string) (Value, error)
	// Put writes a value if p holds and returns its version, or a *ConflictError.
	Put(ctx context.Context, key string, data []byte, p Precondition) (uint64, error)
	// Delete removes a value if p holds and returns the version of the deletion.
	Delete(ctx context.Context, key string, p Precondition) (uint64, error)
	// Txn makes all puts if all compares hold, atomically; else it changes nothing and returns a *ConflictError for
	// the first compare that failed. No key may occur twice in the compares, nor in the puts.
	Txn(ctx context.Context, compares []Compare, puts []Put) (Result, error)
	// List is a linearizable read of all keys that begin with prefix, in ascending order.
	List(ctx context.Context, prefix string) ([]KeyValue, error)
	// Watch follows the keys that begin with prefix in the local cache. The caller closes it.
	Watch(prefix string) *Watch
}

// CheckOperation returns an ErrInvalid when an operation is too large or malformed. Stores call it first.
func CheckOperation(compares []Compare, puts []Put) error {
	if len(compares)+len(puts) > MaxTxnKeys {
		return fmt.Errorf("%w: more than %d keys in a transaction", ErrInvalid, MaxTxnKeys)
	}
	size := 0
	compared := make(map[string]bool, len(compares))
	for _, c := range compares {
		if err := CheckKey(c.Key); err != nil {
			return err
		}
		if compared[c.Key] {
			return fmt.Errorf("%w: key %q is compared twice", ErrInvalid, c.Key)
		}
		compared[c.Key] = true
		size += len(c.Key)
	}
	written := make(map[string]bool, len(puts))
	for _, p := range puts {
		if err := CheckKey(p.Key); err != nil {
			return err
		}
		switch {
		case written[p.Key]:
			return fmt.Errorf("%w: key %q is written twice", ErrInvalid, p.Key)
		case len(p.Data) > MaxValue:
			return fmt.Errorf("%w: value of %q has %d bytes, the limit is %d", ErrInvalid, p.Key, len(p.Data), MaxValue)
		case p.Delete && len(p.Data) > 0:
			return fmt.Errorf("%w: deletion of %q has data", ErrInvalid, p.Key)
		}
		written[p.Key] = true
		size += len(p.Key) + len(p.Data)
	}
	if size > MaxTxn {
		return fmt.Errorf("%w: the transaction has %d bytes, the limit is %d", ErrInvalid, size, MaxTxn)
	}
	return nil
}

// CheckKey returns an ErrInvalid for keys that are empty or too long.
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKey {
		return fmt.Errorf("%w: a key has 1 to %d bytes, not %d", ErrInvalid, MaxKey, len(key))
	}
	return nil
}
