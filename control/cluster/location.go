package cluster

import (
	"fmt"
	"strings"
)

// Scope is the width of a failure domain. A wider scope contains narrower ones: a region has zones, a zone has
// nodes.
type Scope uint8

// The scopes, narrowest first.
const (
	NodeScope Scope = iota
	ZoneScope
	RegionScope
	scopeCount
)

var scopeNames = [scopeCount]string{"node", "zone", "region"}

func (s Scope) String() string {
	if s < scopeCount {
		return scopeNames[s]
	}
	return fmt.Sprintf("scope(%d)", uint8(s))
}

func parseScope(name string) (Scope, bool) {
	for s, n := range scopeNames {
		if n == name {
			return Scope(s), true
		}
	}
	return 0, false
}

// Location says where a node runs, written "region.zone" or "region"; the zero value is "not known". Two zones
// of one name in different regions are different failure domains.
type Location struct {
	Region string
	Zone   string
}

// ParseLocation reads "", "region" or "region.zone". A label consists of letters, digits, '-' and '_'.
func ParseLocation(s string) (Location, error) {
	if s == "" {
		return Location{}, nil
	}
	region, zone, dotted := strings.Cut(s, ".")
	if !isLabel(region) || (dotted && !isLabel(zone)) {
		return Location{}, fmt.Errorf("location %q is not of the form \"region.zone\" with labels of letters, digits, '-' and '_'", s)
	}
	return Location{Region: region, Zone: zone}, nil
}

func isLabel(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return s != ""
}

func (l Location) String() string {
	if l.Zone == "" {
		return l.Region
	}
	return l.Region + "." + l.Zone
}

// IsZero reports whether nothing is known about the location.
func (l Location) IsZero() bool { return l == Location{} }

// Domain is the location cut to scope s: the identity of the failure domain of that scope. ok is false when the
// location is not defined that precisely. A node is a domain of its own, so NodeScope has no location.
func (l Location) Domain(s Scope) (domain Location, ok bool) {
	switch s {
	case ZoneScope:
		return l, l.Zone != ""
	case RegionScope:
		return Location{Region: l.Region}, l.Region != ""
	default:
		return Location{}, false
	}
}

// MarshalText writes the printed form.
func (l Location) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads the printed form.
func (l *Location) UnmarshalText(text []byte) (err error) {
	*l, err = ParseLocation(string(text))
	return err
}
