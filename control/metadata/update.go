package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// ErrKeep is returned by the function of Update to leave the value as it is.
var ErrKeep = errors.New("keep the metadata value")

// Waits between tries of Update.
const (
	firstBackoff = 2 * time.Millisecond
	lastBackoff  = 500 * time.Millisecond
)

// Update changes the value of a key by compare-and-set until it succeeds: next gets the present value (exists is
// false without one) and returns the new bytes, or ErrKeep to leave it, or another error to give up with. It
// returns the value that was written or kept.
//
// Update repeats itself when others change the key meanwhile, when the store is unavailable for a while, and when
// the outcome of a write is not known. In the last case it recognises a write of its own by version and bytes. When
// others have written since, it can not tell, and next is called with a value that may build on its own former
// result: next must notice that what it wants has already happened. For the same reason bytes that claim something
// for one writer must name the writer. Update ends at the latest with ctx; it then says ErrUnknownOutcome if a
// write may have been applied.
func Update(ctx context.Context, s Store, key string, next func(old Value, exists bool) ([]byte, error)) (Value, error) {
	u := updater{store: s, key: key, next: next}
	backoff := firstBackoff
	for {
		v, err := u.try(ctx)
		if err == nil {
			return v, nil
		}
		var conflict *ConflictError
		if !errors.As(err, &conflict) && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrUnknownOutcome) {
			return Value{}, u.failed(err)
		}
		if !pause(ctx, backoff) {
			return Value{}, u.failed(errors.Join(context.Cause(ctx), err))
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

type updater struct {
	store Store
	key   string
	next  func(Value, bool) ([]byte, error)
	sent  []Value // writes whose outcome is not known
}

// try reads, decides and writes once.
func (u *updater) try(ctx context.Context) (Value, error) {
	old, err := u.store.Get(ctx, u.key)
	exists := err == nil
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Value{}, err
	}
	for _, w := range u.sent {
		if exists && w.Version == old.Version && bytes.Equal(w.Data, old.Data) {
			return old, nil
		}
	}
	data, err := u.next(old, exists)
	if errors.Is(err, ErrKeep) {
		return old, nil
	}
	if err != nil {
		return Value{}, &giveUp{err}
	}
	p := Absent
	if exists {
		p = AtVersion(old.Version)
	}
	version, err := u.store.Put(ctx, u.key, data, p)
	if errors.Is(err, ErrUnknownOutcome) {
		u.remember(Value{old.Version + 1, data})
	}
	return Value{version, data}, err
}

// remember keeps a write whose outcome is not known. Without others' writes each try sends the same.
func (u *updater) remember(w Value) {
	for _, s := range u.sent {
		if s.Version == w.Version && bytes.Equal(s.Data, w.Data) {
			return
		}
	}
	u.sent = append(u.sent, Value{w.Version, bytes.Clone(w.Data)})
}

// giveUp keeps an error of next from being taken for one of the store.
type giveUp struct{ cause error }

func (e *giveUp) Error() string { return e.cause.Error() }

func (u *updater) failed(err error) error {
	if g, ok := err.(*giveUp); ok {
		err = g.cause
	}
	if len(u.sent) > 0 && !errors.Is(err, ErrUnknownOutcome) {
		return fmt.Errorf("update metadata key %q: %w: %w", u.key, ErrUnknownOutcome, err)
	}
	return fmt.Errorf("update metadata key %q: %w", u.key, err)
}

// pause waits for about d and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
