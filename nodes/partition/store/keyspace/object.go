package keyspace

import (
	"encoding/binary"

	"perdure/control/cluster"
)

// Object names a virtual object or a workflow.
type Object struct {
	Partition cluster.PartitionKey
	Service   string
	Key       string
}

// appendObject needs a service of at most 65535 bytes; names are checked at registration.
func appendObject(dst []byte, tag byte, o *Object) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, tag), uint64(o.Partition))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(o.Service)))
	dst = append(dst, o.Service...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(o.Key)))
	return append(dst, o.Key...)
}

// ObjectOf reads the object from a key of the tables whose keys begin with one, and returns what follows it.
func ObjectOf(key []byte) (o Object, rest []byte, err error) {
	if len(key) < 11 {
		return o, nil, ErrCorrupt
	}
	o.Partition = cluster.PartitionKey(binary.BigEndian.Uint64(key[1:]))
	n := int(binary.BigEndian.Uint16(key[9:]))
	rest = key[11:]
	if len(rest) < n+4 {
		return o, nil, ErrCorrupt
	}
	o.Service, rest = string(rest[:n]), rest[n:]
	m := uint64(binary.BigEndian.Uint32(rest))
	rest = rest[4:]
	if uint64(len(rest)) < m {
		return o, nil, ErrCorrupt
	}
	o.Key, rest = string(rest[:m]), rest[m:]
	return o, rest, nil
}

// AppendStatePrefix begins all keys of an object's state.
func AppendStatePrefix(dst []byte, o *Object) []byte { return appendObject(dst, TagState, o) }

// AppendState is the key of one value of an object's state.
func AppendState(dst []byte, o *Object, key []byte) []byte {
	return append(appendObject(dst, TagState, o), key...)
}

// AppendLock is the key of an object's lock.
func AppendLock(dst []byte, o *Object) []byte { return appendObject(dst, TagLock, o) }

// AppendInboxPrefix begins all keys of an object's inbox.
func AppendInboxPrefix(dst []byte, o *Object) []byte { return appendObject(dst, TagInbox, o) }

// AppendInbox is the key of one that waits for an object.
func AppendInbox(dst []byte, o *Object, sequence uint64) []byte {
	return binary.BigEndian.AppendUint64(appendObject(dst, TagInbox, o), sequence)
}

// InboxOf reads an inbox key.
func InboxOf(key []byte) (o Object, sequence uint64, err error) {
	o, rest, err := ObjectOf(key)
	if err != nil || len(rest) != 8 {
		return o, 0, ErrCorrupt
	}
	return o, binary.BigEndian.Uint64(rest), nil
}

// AppendPromisePrefix begins all keys of a workflow's promises.
func AppendPromisePrefix(dst []byte, o *Object) []byte { return appendObject(dst, TagPromise, o) }

// AppendPromise is the key of a workflow's promise.
func AppendPromise(dst []byte, o *Object, name string) []byte {
	return append(appendObject(dst, TagPromise, o), name...)
}

// AppendPromiseSinkPrefix begins the keys of a promise's sinks.
func AppendPromiseSinkPrefix(dst []byte, o *Object, name string) []byte {
	dst = binary.BigEndian.AppendUint32(appendObject(dst, TagWaiting, o), uint32(len(name)))
	return append(dst, name...)
}
