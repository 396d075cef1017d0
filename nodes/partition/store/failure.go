package store

import (
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// failure is the first error of the database's background work. Pebble repeats a flush that failed at once and
// for ever, and when enough waits to be flushed writers wait for ever, too; so the first one ends the store.
type failure struct {
	happened chan struct{} // closed with the first error
	tell     func(error)   // may be nil
	once     sync.Once
	err      error // set before happened is closed
}

func (f *failure) init(tell func(error)) { f.happened, f.tell = make(chan struct{}), tell }

// failurePause is how long a database whose background work fails is held up each time, so that it does not use up
// the processor until it is closed.
const failurePause = 50 * time.Millisecond

// set is called by Pebble, which holds its lock: reads and commits go on meanwhile. Damaged files are told by
// DataCorruption and are no reason to stop what needs other files.
func (f *failure) set(err error) {
	if !pebble.IsCorruptionError(err) {
		f.once.Do(func() {
			f.err = fmt.Errorf("%w: %w", ErrFailed, err)
			close(f.happened)
			if f.tell != nil {
				f.tell(f.err)
			}
		})
	}
	time.Sleep(failurePause)
}

// get is the error that ended the store, nil while it works.
func (f *failure) get() error {
	select {
	case <-f.happened:
		return f.err
	default:
		return nil
	}
}
