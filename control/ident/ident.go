// Package ident derives and prints the identifiers that callers, SDKs and operators see: invocation, deployment and awakeable
// ids, partition keys and random seeds. The forms are those of the published interfaces and are pinned by vectors that an
// implementation of them gave. The package is pure: random bits and times are passed in.
package ident

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"

	"perdure/control/cluster"
)

// Parse errors. The texts are those that clients of the interface know.
var (
	ErrBadFormat = errors.New("bad format")
	ErrCodec     = errors.New("unrecognized codec version")
	ErrLength    = errors.New("bad length")
	ErrType      = errors.New("id doesn't match the expected type")
	ErrDigits    = errors.New("base62 decode error")
)

// MaxName bounds, in bytes, the names that callers choose: keys of objects and workflows, idempotency keys, keys of
// state, names of promises and signals. Rows are found by them, so a longer one is refused wherever one comes from.
const MaxName = 64 << 10

// InvocationID is the 24 raw bytes of an invocation's id: partition key (big endian), then 16 bytes
// that are either a hash of the idempotency or workflow key or a ULID.
type InvocationID [24]byte

// NewInvocationID composes an id from its parts.
func NewInvocationID(k cluster.PartitionKey, uuid [16]byte) (id InvocationID) {
	binary.BigEndian.PutUint64(id[:8], uint64(k))
	copy(id[8:], uuid[:])
	return id
}

// InvocationIDFromBytes reads the raw form.
func InvocationIDFromBytes(b []byte) (id InvocationID, err error) {
	if len(b) != len(id) {
		return id, ErrBadFormat
	}
	copy(id[:], b)
	return id, nil
}

// PartitionKey is the first half of the id; it says which partition owns the invocation.
func (id InvocationID) PartitionKey() cluster.PartitionKey {
	return cluster.PartitionKey(binary.BigEndian.Uint64(id[:8]))
}

// UUID is the second half of the id.
func (id InvocationID) UUID() (u [16]byte) { copy(u[:], id[8:]); return u }

// IsZero reports whether id names no invocation.
func (id InvocationID) IsZero() bool { return id == InvocationID{} }

const invocationLen = 5 + 11 + 22

// String is the printable id, inv_1 followed by 33 base62 digits.
func (id InvocationID) String() string {
	b := make([]byte, 0, invocationLen)
	b = append(b, "inv_1"...)
	b = appendU64(b, binary.LittleEndian.Uint64(id[:8]))
	b = appendU128(b, binary.LittleEndian.Uint64(id[16:]), binary.LittleEndian.Uint64(id[8:16]))
	return string(b)
}

// ParseInvocationID reads the printable form.
func ParseInvocationID(s string) (id InvocationID, err error) {
	body, err := body(s, "inv", 33)
	if err != nil {
		return id, err
	}
	hi, k, err := parse62(body[:11])
	if err != nil || hi != 0 {
		return id, ErrDigits
	}
	uhi, ulo, err := parse62(body[11:])
	if err != nil {
		return id, err
	}
	binary.LittleEndian.PutUint64(id[:8], k)
	binary.LittleEndian.PutUint64(id[8:16], ulo)
	binary.LittleEndian.PutUint64(id[16:], uhi)
	return id, nil
}

// DeploymentID is the ULID of a registered deployment.
type DeploymentID [16]byte

// IsZero reports whether id names no deployment.
func (id DeploymentID) IsZero() bool { return id == DeploymentID{} }

// String is the printable id, dp_1 followed by 22 base62 digits.
func (id DeploymentID) String() string {
	b := make([]byte, 0, 26)
	b = append(b, "dp_1"...)
	return string(appendU128(b, binary.LittleEndian.Uint64(id[8:]), binary.LittleEndian.Uint64(id[:8])))
}

// ParseDeploymentID reads the printable form.
func ParseDeploymentID(s string) (id DeploymentID, err error) {
	body, err := body(s, "dp", 22)
	if err != nil {
		return id, err
	}
	hi, lo, err := parse62(body)
	if err != nil {
		return id, err
	}
	binary.LittleEndian.PutUint64(id[:8], lo)
	binary.LittleEndian.PutUint64(id[8:], hi)
	return id, nil
}

// prefixes are those of all ids that anybody may pass where another one is wanted.
var prefixes = []string{"inv", "dp", "sub", "snap", "mut", "sign", "prom"}

// body checks prefix, codec version and length and returns what follows them.
func body(s, prefix string, n int) (string, error) {
	p, rest, ok := strings.Cut(s, "_")
	if !ok || rest == "" || !slices.Contains(prefixes, p) {
		return "", ErrBadFormat
	}
	switch {
	case rest[0] != '1':
		return "", ErrCodec
	case p != prefix:
		return "", ErrType
	case len(rest) != n+1:
		return "", ErrLength
	}
	return rest[1:], nil
}

// Awakeable names a signal of an invocation: what ctx.awakeable() hands out.
type Awakeable struct {
	Invocation InvocationID
	// Signal is the signal's index, 17 and up. For ids of the old form (prom_1) it is an entry index.
	Signal uint32
	// Old says that the id had the form of protocols up to V3; no invocation of V5 and later has such.
	Old bool
}

// String is the printable id, sign_1 followed by base64url.
func (a Awakeable) String() string {
	var raw [28]byte
	copy(raw[:], a.Invocation[:])
	binary.BigEndian.PutUint32(raw[24:], a.Signal)
	p := "sign_1"
	if a.Old {
		p = "prom_1"
	}
	return p + base64.RawURLEncoding.EncodeToString(raw[:])
}

// ParseAwakeable reads the printable form, with or without base64 padding.
func ParseAwakeable(s string) (a Awakeable, err error) {
	p, rest, ok := strings.Cut(s, "_")
	if !ok || (p != "sign" && p != "prom") || rest == "" {
		return a, ErrBadFormat
	}
	if rest[0] != '1' {
		return a, ErrCodec
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(rest[1:], "="))
	if err != nil || len(raw) != 28 {
		return a, ErrBadFormat
	}
	copy(a.Invocation[:], raw)
	a.Signal = binary.BigEndian.Uint32(raw[24:])
	a.Old = p == "prom"
	return a, nil
}

// Buckets is the number of shards of a plain service; its invocations are spread over that many
// partition keys. It is part of every id: changing it breaks idempotency.
const Buckets = 512

// KeyPartition is the partition key of an object or workflow key.
func KeyPartition(key string) cluster.PartitionKey {
	return cluster.PartitionKey(hashStrings(key))
}

// BucketPartition is the partition key of a plain service's bucket, 0 to Buckets-1.
func BucketPartition(service string, bucket uint64) cluster.PartitionKey {
	b := make([]byte, 0, 64)
	b = append(append(b, service...), 0xff)
	b = append(append(b, "unscoped/service"...), 0xff)
	b = binary.LittleEndian.AppendUint64(b, bucket)
	return cluster.PartitionKey(xxh3.Hash(b))
}

// IdempotencyBucket is the bucket of a plain service's idempotency key.
func IdempotencyBucket(idempotencyKey string) uint64 { return hashStrings(idempotencyKey) % Buckets }

func hashStrings(ss ...string) uint64 {
	b := make([]byte, 0, 64)
	for _, s := range ss {
		b = append(append(b, s...), 0xff)
	}
	return xxh3.Hash(b)
}

// Target is what an invocation id is derived from.
type Target struct {
	Service, Handler string
	// Key is the object or workflow key; Keyed says whether the service has keys at all.
	Key   string
	Keyed bool
	// WorkflowRun says that the handler is the run handler of a workflow.
	WorkflowRun bool
	// IdempotencyKey as the caller gave it; nil when there is none. Ignored for WorkflowRun.
	IdempotencyKey *string
}

// Random supplies the bits of ids that are not derived: 16 bytes of a ULID, and a bucket.
type Random struct {
	ULID   [16]byte
	Bucket uint64
}

// Invocation derives the id of an invocation of t; r is used where the target does not determine it.
func Invocation(t Target, r Random) InvocationID {
	var key cluster.PartitionKey
	switch {
	case t.Keyed:
		key = KeyPartition(t.Key)
	case t.IdempotencyKey != nil:
		key = BucketPartition(t.Service, IdempotencyBucket(*t.IdempotencyKey))
	default:
		key = BucketPartition(t.Service, r.Bucket%Buckets)
	}
	var uuid [16]byte
	switch {
	case t.WorkflowRun:
		uuid = digest("wf,", t.Service, ",", t.Key)
	case t.IdempotencyKey != nil && t.Keyed:
		uuid = digest("ik,", t.Service, ",", t.Key, ",", t.Handler, ",", *t.IdempotencyKey)
	case t.IdempotencyKey != nil:
		uuid = digest("ik,", t.Service, ",", t.Handler, ",", *t.IdempotencyKey)
	default:
		uuid = r.ULID
	}
	return NewInvocationID(key, uuid)
}

func digest(parts ...string) (u [16]byte) {
	b := make([]byte, 0, 128)
	for _, p := range parts {
		b = append(b, p...)
	}
	sum := sha256.Sum256(b)
	copy(u[:], sum[:16])
	return u
}

// RandomSeed is the seed that an SDK's deterministic randomness starts from: SipHash-1-3 with a zero
// key over the length-prefixed id bytes.
func RandomSeed(id InvocationID) uint64 {
	var b [32]byte
	binary.LittleEndian.PutUint64(b[:8], uint64(len(id)))
	copy(b[8:], id[:])
	return siphash13(b[:])
}

// siphash13 is SipHash with one compression and three finalisation rounds and a zero key
// (Aumasson, Bernstein: SipHash, a fast short-input PRF). len(b) must be a multiple of 8.
func siphash13(b []byte) uint64 {
	v0, v1, v2, v3 := uint64(0x736f6d6570736575), uint64(0x646f72616e646f6d), uint64(0x6c7967656e657261), uint64(0x7465646279746573)
	round := func() {
		v0 += v1
		v1 = bits.RotateLeft64(v1, 13) ^ v0
		v0 = bits.RotateLeft64(v0, 32)
		v2 += v3
		v3 = bits.RotateLeft64(v3, 16) ^ v2
		v0 += v3
		v3 = bits.RotateLeft64(v3, 21) ^ v0
		v2 += v1
		v1 = bits.RotateLeft64(v1, 17) ^ v2
		v2 = bits.RotateLeft64(v2, 32)
	}
	block := func(m uint64) {
		v3 ^= m
		round()
		v0 ^= m
	}
	n := len(b)
	for ; len(b) >= 8; b = b[8:] {
		block(binary.LittleEndian.Uint64(b))
	}
	block(uint64(n) << 56)
	v2 ^= 0xff
	round()
	round()
	round()
	return v0 ^ v1 ^ v2 ^ v3
}

const digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

func appendU64(dst []byte, v uint64) []byte {
	var buf [11]byte
	for i := len(buf) - 1; i >= 0; i-- {
		buf[i] = digits[v%62]
		v /= 62
	}
	return append(dst, buf[:]...)
}

func appendU128(dst []byte, hi, lo uint64) []byte {
	var buf [22]byte
	for i := len(buf) - 1; i >= 0; i-- {
		var r uint64
		hi, r = hi/62, hi%62
		lo, r = bits.Div64(r, lo, 62)
		buf[i] = digits[r]
	}
	return append(dst, buf[:]...)
}

func parse62(s string) (hi, lo uint64, err error) {
	for i := 0; i < len(s); i++ {
		d := strings.IndexByte(digits, s[i])
		if d < 0 {
			return 0, 0, ErrDigits
		}
		h1, l1 := bits.Mul64(lo, 62)
		h2, l2 := bits.Mul64(hi, 62)
		if h2 != 0 {
			return 0, 0, ErrDigits
		}
		var c uint64
		lo, c = bits.Add64(l1, uint64(d), 0)
		hi, c = bits.Add64(l2, h1, c)
		if c != 0 {
			return 0, 0, ErrDigits
		}
	}
	return hi, lo, nil
}
