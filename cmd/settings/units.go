package settings

import (
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"perdure/control/duration"
	"perdure/nodes/node"
)

const durationHelp = `write a duration such as 500ms, 10s, "1h 30m", "2 days" or PT2H`

// parseDuration reads the spellings of package duration, and a bare 0.
func parseDuration(s string) (time.Duration, error) {
	t := strings.TrimSpace(s)
	if t == "0" {
		return 0, nil
	}
	d, err := duration.Parse(t)
	if err != nil {
		return 0, fmt.Errorf("is %q, which is no duration (%w); %s", s, err, durationHelp)
	}
	return d, nil
}

// cutNumber takes a decimal number without sign or exponent from the start of s.
func cutNumber(s string) (*big.Rat, string, error) {
	end := len(s) - len(strings.TrimLeft(s, "0123456789."))
	if end == 0 {
		return nil, "", fmt.Errorf("has %q where a number should be", s[:min(len(s), 12)])
	}
	if end > 30 {
		return nil, "", errors.New("has a number that is too long")
	}
	n, ok := new(big.Rat).SetString(s[:end])
	if !ok {
		return nil, "", fmt.Errorf("has %q where a number should be", s[:end])
	}
	return n, s[end:], nil
}

func byteUnit(name string) (int64, bool) {
	const k, ki = 1000, 1024
	switch name {
	case "", "b", "byte", "bytes":
		return 1, true
	case "k", "kb":
		return k, true
	case "m", "mb":
		return k * k, true
	case "g", "gb":
		return k * k * k, true
	case "t", "tb":
		return k * k * k * k, true
	case "ki", "kib":
		return ki, true
	case "mi", "mib":
		return ki * ki, true
	case "gi", "gib":
		return ki * ki * ki, true
	case "ti", "tib":
		return ki * ki * ki * ki, true
	}
	return 0, false
}

const bytesHelp = `write a size such as 32MiB (binary), 1.5GB (decimal) or 65536`

// parseBytes reads a size: a number, and a unit that is decimal (kB, MB, GB, TB) or binary (KiB, MiB, GiB, TiB), in any
// case. Without a unit it counts bytes. Fractions of a byte are dropped.
func parseBytes(s string) (node.Bytes, error) {
	number, rest, err := cutNumber(strings.ToLower(strings.TrimSpace(s)))
	if err != nil {
		return 0, fmt.Errorf("is %q, which is no size: it %w; %s", s, err, bytesHelp)
	}
	unit, ok := byteUnit(strings.TrimSpace(rest))
	if !ok {
		return 0, fmt.Errorf("is %q, which is no size: the unit %q is not known; %s", s, strings.TrimSpace(rest), bytesHelp)
	}
	v := number.Mul(number, new(big.Rat).SetInt64(unit))
	whole := new(big.Int).Quo(v.Num(), v.Denom())
	if !whole.IsInt64() {
		return 0, fmt.Errorf("is %q, which is no size: it is too large; %s", s, bytesHelp)
	}
	return node.Bytes(whole.Int64()), nil
}
