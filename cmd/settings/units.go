package settings

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strings"
	"time"

	"perdure/nodes/node"
)

// maxDuration is the longest duration that is accepted: what time.Duration can hold.
const maxDuration = time.Duration(math.MaxInt64)

func durationUnit(name string) (time.Duration, bool) {
	switch name {
	case "ns", "nsec", "nanosecond", "nanoseconds":
		return time.Nanosecond, true
	case "us", "µs", "μs", "usec", "microsecond", "microseconds":
		return time.Microsecond, true
	case "ms", "msec", "millis", "millisecond", "milliseconds":
		return time.Millisecond, true
	case "s", "sec", "secs", "second", "seconds":
		return time.Second, true
	case "m", "min", "mins", "minute", "minutes":
		return time.Minute, true
	case "h", "hr", "hrs", "hour", "hours":
		return time.Hour, true
	case "d", "day", "days":
		return 24 * time.Hour, true
	case "w", "wk", "week", "weeks":
		return 7 * 24 * time.Hour, true
	}
	return 0, false
}

const durationHelp = `write a duration such as 500ms, 10s, "1h 30m", "2 days" or PT2H`

// ParseDuration reads a duration in any of three spellings: units in words or letters ("1h 30m", "5 hours", "2days"),
// which includes Go's ("1h30m", "1.5s"), and ISO 8601 ("PT2H", "P1DT12H"). Days have 24 hours. A bare 0 is accepted;
// any other number needs a unit. Negative durations are refused.
func ParseDuration(s string) (time.Duration, error) {
	t := strings.TrimSpace(s)
	var d time.Duration
	var err error
	switch {
	case t == "0":
		return 0, nil
	case t == "":
		err = errors.New("is empty")
	case t[0] == 'P' || t[0] == 'p':
		d, err = parseISO(strings.ToLower(t[1:]))
	default:
		d, err = parseFriendly(strings.ToLower(t))
	}
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration: it %w; %s", s, err, durationHelp)
	}
	return d, nil
}

func parseFriendly(s string) (time.Duration, error) {
	var sum time.Duration
	for s = strings.TrimLeft(s, " ,"); s != ""; s = strings.TrimLeft(s, " ,") {
		number, rest, err := cutNumber(s)
		if err != nil {
			return 0, err
		}
		rest = strings.TrimLeft(rest, " ")
		name := rest[:len(rest)-len(strings.TrimLeft(rest, "abcdefghijklmnopqrstuvwxyzµμ"))]
		unit, ok := durationUnit(name)
		if !ok {
			return 0, fmt.Errorf("has no unit that is known after %s", number.RatString())
		}
		if sum, err = addScaled(sum, number, unit); err != nil {
			return 0, err
		}
		s = rest[len(name):]
	}
	return sum, nil
}

// parseISO reads what follows the P of an ISO 8601 duration, in lower case. Years and months are refused: they have no
// fixed length.
func parseISO(s string) (time.Duration, error) {
	date, clock, hasClock := strings.Cut(s, "t")
	if date == "" && clock == "" {
		return 0, errors.New("has nothing after the P")
	}
	if hasClock && clock == "" {
		return 0, errors.New("has nothing after the T")
	}
	sum, err := parseISOPart(0, date, map[byte]time.Duration{'w': 7 * 24 * time.Hour, 'd': 24 * time.Hour})
	if err != nil {
		return 0, err
	}
	return parseISOPart(sum, clock, map[byte]time.Duration{'h': time.Hour, 'm': time.Minute, 's': time.Second})
}

func parseISOPart(sum time.Duration, s string, units map[byte]time.Duration) (time.Duration, error) {
	for s != "" {
		number, rest, err := cutNumber(s)
		if err != nil {
			return 0, err
		}
		if rest == "" || units[rest[0]] == 0 {
			return 0, fmt.Errorf("has no unit that is known after %s", number.RatString())
		}
		if sum, err = addScaled(sum, number, units[rest[0]]); err != nil {
			return 0, err
		}
		s = rest[1:]
	}
	return sum, nil
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

func addScaled(sum time.Duration, n *big.Rat, unit time.Duration) (time.Duration, error) {
	v := new(big.Rat).Mul(n, new(big.Rat).SetInt64(int64(unit)))
	whole := new(big.Int).Quo(v.Num(), v.Denom())
	if whole.Add(whole, big.NewInt(int64(sum))); !whole.IsInt64() {
		return 0, fmt.Errorf("is longer than %s, the longest possible", FormatDuration(maxDuration.Truncate(24*time.Hour)))
	}
	return time.Duration(whole.Int64()), nil
}

// FormatDuration is the short friendly form, such as 1d, 1h 30m, 500ms or 0s. ParseDuration reads it back.
func FormatDuration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	var parts []string
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}, {time.Microsecond, "us"}, {1, "ns"}} {
		if n := d / u.unit; n != 0 {
			parts = append(parts, fmt.Sprintf("%d%s", n, u.name))
			d -= n * u.unit
		}
	}
	return strings.Join(parts, " ")
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

// ParseBytes reads a size: a number, and a unit that is decimal (kB, MB, GB, TB) or binary (KiB, MiB, GiB, TiB), in any
// case. Without a unit it counts bytes. Fractions of a byte are dropped.
func ParseBytes(s string) (node.Bytes, error) {
	number, rest, err := cutNumber(strings.ToLower(strings.TrimSpace(s)))
	if err != nil {
		return 0, fmt.Errorf("%q is not a size: it %w; %s", s, err, bytesHelp)
	}
	unit, ok := byteUnit(strings.TrimSpace(rest))
	if !ok {
		return 0, fmt.Errorf("%q is not a size: the unit %q is not known; %s", s, strings.TrimSpace(rest), bytesHelp)
	}
	v := number.Mul(number, new(big.Rat).SetInt64(unit))
	whole := new(big.Int).Quo(v.Num(), v.Denom())
	if !whole.IsInt64() {
		return 0, fmt.Errorf("%q is not a size: it is too large; %s", s, bytesHelp)
	}
	return node.Bytes(whole.Int64()), nil
}
