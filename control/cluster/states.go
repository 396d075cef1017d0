package cluster

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Roles is a set of what a node runs.
type Roles uint8

// The roles.
const (
	Worker         Roles = 1 << iota // partition processors
	LogServer                        // stores log records
	MetadataServer                   // may be a member of the metadata raft group
	Admin                            // admin API and cluster controller
	Ingress                          // HTTP ingress
	AllRoles       = Worker | LogServer | MetadataServer | Admin | Ingress
)

var roleNames = [...]string{"worker", "log-server", "metadata-server", "admin", "http-ingress"}

// Has reports whether all of want are in r.
func (r Roles) Has(want Roles) bool { return r&want == want }

// Names lists the roles in a fixed order.
func (r Roles) Names() []string {
	names := []string{}
	for i, n := range roleNames {
		if r&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return names
}

func (r Roles) String() string { return strings.Join(r.Names(), ",") }

// ParseRoles reads role names as they stand in the configuration.
func ParseRoles(names []string) (Roles, error) {
	var r Roles
next:
	for _, name := range names {
		for i, n := range roleNames {
			if n == name {
				r |= 1 << i
				continue next
			}
		}
		return 0, fmt.Errorf("unknown role %q; the roles are %s", name, strings.Join(roleNames[:], ", "))
	}
	return r, nil
}

// MarshalJSON writes a list of names.
func (r Roles) MarshalJSON() ([]byte, error) { return json.Marshal(r.Names()) }

// UnmarshalJSON reads a list of names.
func (r *Roles) UnmarshalJSON(data []byte) error {
	var names []string
	if err := json.Unmarshal(data, &names); err != nil {
		return err
	}
	parsed, err := ParseRoles(names)
	if err != nil {
		return err
	}
	*r = parsed
	return nil
}

// StorageState is the standing of a node's log store. It decides whether the node may be in new node sets, is
// written to and read from, and whether its "I have nothing there" proves anything.
type StorageState uint8

// The storage states.
//
//	                new node sets  written  read  authoritative
//	provisioning    no             no       yes   yes            no marker yet, was never in a node set
//	read-write      yes            yes      yes   yes            normal
//	read-only       no             yes      yes   yes            draining: existing node sets only
//	gone            no             no       yes   yes            given up by the operator
//	data-loss       no             no       yes   no             lost its disk: only what it has counts
//	disabled        no             no       no    (not counted)  out of every node set, may be removed
const (
	StorageProvisioning StorageState = iota
	StorageReadWrite
	StorageReadOnly
	StorageGone
	StorageDataLoss
	StorageDisabled
	storageStates
)

var storageNames = [storageStates]string{"provisioning", "read-write", "read-only", "gone", "data-loss", "disabled"}

func (s StorageState) String() string { return nameOf(storageNames[:], uint8(s)) }

// Selectable reports whether new node sets may contain the node.
func (s StorageState) Selectable() bool { return s == StorageReadWrite }

// Writable reports whether a sequencer may send records to the node.
func (s StorageState) Writable() bool { return s == StorageReadWrite || s == StorageReadOnly }

// Readable reports whether the node's records may be read.
func (s StorageState) Readable() bool { return s != StorageDisabled }

// Authoritative reports whether the node's answer that it does not have a record is believed.
func (s StorageState) Authoritative() bool { return s != StorageDataLoss && s != StorageDisabled }

// Actor is who changes a state.
type Actor uint8

// The actors.
const (
	ByNode     Actor = iota // the node whose state it is
	ByOperator              // a person or a tool on the admin API
)

// CheckTransition says why by may not move a log store from s to next; nil when it may. The node itself finishes
// its provisioning and declares its loss of data; the rest is the operator's. Nothing leads back to provisioning,
// out of disabled, or from data-loss to a state whose silence is believed. Whether a node is out of every node
// set, which disabling needs, is for the caller to know.
func (s StorageState) CheckTransition(next StorageState, by Actor) error {
	if s >= storageStates || next >= storageStates {
		return fmt.Errorf("unknown storage state %d", max(uint8(s), uint8(next)))
	}
	allowed := false
	switch {
	case s == next:
		allowed = true
	case s == StorageDisabled:
		return fmt.Errorf("storage state disabled is final: remove the node and add one with a new name")
	case next == StorageProvisioning:
		return fmt.Errorf("storage state %s can not go back to provisioning: add a node with a new name instead", s)
	case next == StorageDataLoss:
		allowed = true // the operator may know of a lost disk before its node can say so
	case s == StorageProvisioning:
		allowed = next == StorageReadWrite && by == ByNode || next == StorageDisabled && by == ByOperator
	case by == ByNode:
	case s == StorageDataLoss:
		allowed = next == StorageDisabled
	case next == StorageDisabled:
		if s == StorageReadWrite {
			return fmt.Errorf("a read-write log store must be drained first: set it to read-only and wait until no log segment uses it")
		}
		allowed = true
	default: // between read-write, read-only and gone
		allowed = true
	}
	if !allowed {
		return fmt.Errorf("storage state can not change from %s to %s by the %s", s, next, by)
	}
	return nil
}

func (a Actor) String() string {
	if a == ByNode {
		return "node itself"
	}
	return "operator"
}

// WorkerState is the standing of a node's partition processors.
type WorkerState uint8

// The worker states: provisioning until first ready, active, draining (keeps what it has, gets nothing new),
// disabled (in no replica set, may be removed).
const (
	WorkerProvisioning WorkerState = iota
	WorkerActive
	WorkerDraining
	WorkerDisabled
	workerStates
)

var workerNames = [workerStates]string{"provisioning", "active", "draining", "disabled"}

func (s WorkerState) String() string { return nameOf(workerNames[:], uint8(s)) }

// Selectable reports whether new replica sets may contain the worker.
func (s WorkerState) Selectable() bool { return s == WorkerActive }

// CheckTransition says why a worker may not go from s to next. A node activates itself once; after that its
// operator drains, re-activates or disables it. Disabled workers have no state that others rely on and may
// become active again.
func (s WorkerState) CheckTransition(next WorkerState, by Actor) error {
	switch {
	case s >= workerStates || next >= workerStates:
		return fmt.Errorf("unknown worker state %d", max(uint8(s), uint8(next)))
	case s == next:
		return nil
	case next == WorkerProvisioning:
		return fmt.Errorf("worker state %s can not go back to provisioning", s)
	case by == ByNode && !(s == WorkerProvisioning && next == WorkerActive):
		return fmt.Errorf("worker state can not change from %s to %s by the node itself", s, next)
	case s == WorkerActive && next == WorkerDisabled:
		return fmt.Errorf("an active worker must be drained first: set it to draining and wait until no partition uses it")
	}
	return nil
}

// MetadataState is the standing of a node in the metadata raft group.
type MetadataState uint8

// The metadata states: provisioning waits to be added, a member votes, a standby does not.
const (
	MetadataProvisioning MetadataState = iota
	MetadataMember
	MetadataStandby
	metadataStates
)

var metadataNames = [metadataStates]string{"provisioning", "member", "standby"}

func (s MetadataState) String() string { return nameOf(metadataNames[:], uint8(s)) }

// CheckTransition says why a metadata server may not go from s to next.
func (s MetadataState) CheckTransition(next MetadataState) error {
	switch {
	case s >= metadataStates || next >= metadataStates:
		return fmt.Errorf("unknown metadata server state %d", max(uint8(s), uint8(next)))
	case s != next && next == MetadataProvisioning:
		return fmt.Errorf("metadata server state %s can not go back to provisioning", s)
	}
	return nil
}

// MarshalText writes the state's name.
func (s StorageState) MarshalText() ([]byte, error) { return marshalName(storageNames[:], uint8(s)) }

// UnmarshalText reads the state's name.
func (s *StorageState) UnmarshalText(text []byte) error {
	return unmarshalName(storageNames[:], text, (*uint8)(s))
}

// MarshalText writes the state's name.
func (s WorkerState) MarshalText() ([]byte, error) { return marshalName(workerNames[:], uint8(s)) }

// UnmarshalText reads the state's name.
func (s *WorkerState) UnmarshalText(text []byte) error {
	return unmarshalName(workerNames[:], text, (*uint8)(s))
}

// MarshalText writes the state's name.
func (s MetadataState) MarshalText() ([]byte, error) { return marshalName(metadataNames[:], uint8(s)) }

// UnmarshalText reads the state's name.
func (s *MetadataState) UnmarshalText(text []byte) error {
	return unmarshalName(metadataNames[:], text, (*uint8)(s))
}

func nameOf(names []string, v uint8) string {
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("unknown(%d)", v)
}

func marshalName(names []string, v uint8) ([]byte, error) {
	if int(v) >= len(names) {
		return nil, fmt.Errorf("value %d has no name", v)
	}
	return []byte(names[v]), nil
}

func unmarshalName(names []string, text []byte, v *uint8) error {
	for i, n := range names {
		if n == string(text) {
			*v = uint8(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not one of %s", text, strings.Join(names, ", "))
}
