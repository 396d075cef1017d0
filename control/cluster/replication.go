package cluster

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxCopies bounds the copies of a replication property, MaxNodeSet the members of a node set.
const (
	MaxCopies  = 64
	MaxNodeSet = 128
)

// Replication is a replication property: how many copies of a record there are and over how many failure domains
// of each wider scope they are spread. {zone:2,node:3} is three copies on three nodes in at least two zones. The
// zero value is not a valid property. Values are comparable.
type Replication struct {
	copies [scopeCount]uint8 // 0: the scope is not constrained; the node scope always is
}

// ReplicateTo is the property {node:copies}. It panics outside of 1 to MaxCopies: the caller checks input.
func ReplicateTo(copies int) Replication {
	if copies < 1 || copies > MaxCopies {
		panic("cluster: copies out of range")
	}
	var r Replication
	r.copies[NodeScope] = uint8(copies)
	return r
}

// ParseReplication reads "3" or "{zone:2,node:3}" (spaces and '=' instead of ':' are fine). Without a node scope
// there are as many copies as the widest demand says.
func ParseReplication(s string) (Replication, error) {
	bad := func(why string) (Replication, error) {
		return Replication{}, fmt.Errorf("replication property %q: %s; write a number of copies or e.g. {zone:2,node:3}", s, why)
	}
	text := strings.TrimSpace(s)
	if !strings.HasPrefix(text, "{") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > MaxCopies {
			return bad(fmt.Sprintf("the number of copies must be 1 to %d", MaxCopies))
		}
		return ReplicateTo(n), nil
	}
	if !strings.HasSuffix(text, "}") {
		return bad("the closing brace is missing")
	}
	var r Replication
	for _, part := range strings.Split(text[1:len(text)-1], ",") {
		name, value, ok := strings.Cut(part, ":")
		if !ok {
			name, value, ok = strings.Cut(part, "=")
		}
		if !ok {
			return bad("each part must be scope:copies")
		}
		scope, known := parseScope(strings.TrimSpace(name))
		if !known {
			return bad(fmt.Sprintf("%q is not one of node, zone, region", strings.TrimSpace(name)))
		}
		n, err := strconv.Atoi(strings.TrimSpace(value))
		if err != nil || n < 1 || n > MaxCopies {
			return bad(fmt.Sprintf("the copies of a scope must be 1 to %d", MaxCopies))
		}
		if r.copies[scope] != 0 {
			return bad(fmt.Sprintf("%s occurs twice", scope))
		}
		r.copies[scope] = uint8(n)
	}
	if r.copies[NodeScope] == 0 {
		r.copies[NodeScope] = max(r.copies[ZoneScope], r.copies[RegionScope])
	}
	if err := r.Validate(); err != nil {
		return bad(err.Error())
	}
	return r, nil
}

// Validate reports why r can not be used.
func (r Replication) Validate() error {
	if r.copies[NodeScope] == 0 {
		return fmt.Errorf("replication property is empty")
	}
	narrower := NodeScope
	for s := ZoneScope; s < scopeCount; s++ {
		if r.copies[s] == 0 {
			continue
		}
		if r.copies[s] > r.copies[narrower] {
			return fmt.Errorf("%d %ss need at least as many copies in the narrower scope %s", r.copies[s], s, narrower)
		}
		narrower = s
	}
	return nil
}

// IsZero reports whether r is the (invalid) zero value.
func (r Replication) IsZero() bool { return r == Replication{} }

// Copies is the number of distinct domains of scope s that a record must reach; 0 when s is not constrained.
func (r Replication) Copies(s Scope) int { return int(r.copies[s]) }

// NodeCopies is the number of copies in all.
func (r Replication) NodeCopies() int { return int(r.copies[NodeScope]) }

// WidestScope is the widest constrained scope, the one that copies are spread over first.
func (r Replication) WidestScope() Scope {
	for s := scopeCount - 1; s > NodeScope; s-- {
		if r.copies[s] != 0 {
			return s
		}
	}
	return NodeScope
}

// String is the canonical form, widest scope first, e.g. {zone:2,node:3}.
func (r Replication) String() string {
	b := []byte{'{'}
	for s := int(scopeCount) - 1; s >= 0; s-- {
		if r.copies[s] == 0 {
			continue
		}
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(b, scopeNames[s]...)
		b = append(b, ':')
		b = strconv.AppendUint(b, uint64(r.copies[s]), 10)
	}
	return string(append(b, '}'))
}

// MarshalText writes the canonical form; the zero value is refused.
func (r Replication) MarshalText() ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return []byte(r.String()), nil
}

// UnmarshalText reads what ParseReplication reads.
func (r *Replication) UnmarshalText(text []byte) (err error) {
	*r, err = ParseReplication(string(text))
	return err
}
