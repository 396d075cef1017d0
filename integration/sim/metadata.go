package sim

import (
	"errors"
	"time"
)

// The metadata of a cluster as its nodes see it: linearizable registers with versions, which answer late,
// not at all for a while, or with an unknown outcome. The real one is a raft group with tests of its own.

var (
	errMetadataDown    = errors.New("metadata is unavailable, nothing was changed")
	errMetadataUnknown = errors.New("metadata did not answer, the outcome is unknown")
	errConflict        = errors.New("version is not the current one")
)

type register struct {
	value   []byte
	version uint64
}

type metadataStore struct {
	w    *world
	keys map[string]*register
	down bool
}

func (m *metadataStore) at(key string) *register {
	r := m.keys[key]
	if r == nil {
		r = &register{}
		m.keys[key] = r
	}
	return r
}

// ask carries a request to the metadata and its answer back. do runs at the moment of linearization; lost
// says that the request, or its answer, did not arrive.
func (m *metadataStore) ask(n *node, do func(), done func(lost error)) {
	e, life := m.w.engine, n.life
	there := e.between(network, 200*time.Microsecond, 2*time.Millisecond)
	back := e.between(network, 200*time.Microsecond, 2*time.Millisecond)
	if !m.w.quiet && m.w.cfg.has(Delay) && e.chance(network, 0.05) {
		there += e.between(network, 0, time.Second)
	}
	answer := func(d time.Duration, f func()) { e.schedule(d, n, life, function(f)) }
	answerLost := !m.w.quiet && m.w.cfg.has(MetadataDown) && e.chance(network, 0.03)
	e.after(there, func() {
		if m.down || n.cutFromMetadata {
			answer(e.between(network, 0, time.Second), func() { done(errMetadataDown) })
			return
		}
		do()
		if answerLost || m.down {
			answer(e.between(network, 100*time.Millisecond, 3*time.Second), func() { done(errMetadataUnknown) })
			return
		}
		answer(back, func() {
			if n.cutFromMetadata {
				answer(time.Second, func() { done(errMetadataUnknown) })
				return
			}
			done(nil)
		})
	})
}

// get reads a register. done gets its value and version, 0 when it was never written.
func (m *metadataStore) get(n *node, key string, done func(value []byte, version uint64, err error)) {
	var value []byte
	var version uint64
	m.ask(n, func() { r := m.at(key); value, version = r.value, r.version }, func(lost error) {
		if lost != nil {
			done(nil, 0, errMetadataDown)
			return
		}
		done(value, version, nil)
	})
}

// swap writes a register that still has the version. A conflict and errMetadataDown mean that nothing was
// written; errMetadataUnknown that it may have been.
func (m *metadataStore) swap(n *node, key string, value []byte, version uint64, done func(version uint64, err error)) {
	conflict := false
	m.ask(n, func() {
		r := m.at(key)
		if conflict = r.version != version; conflict {
			return
		}
		r.value, r.version = value, version+1
		m.w.trace("metadata", uint64(len(key)), r.version, uint64(n.id))
		m.w.changed(key, r)
	}, func(lost error) {
		switch {
		case lost != nil:
			done(0, lost)
		case conflict:
			done(0, errConflict)
		default:
			done(version+1, nil)
		}
	})
}
