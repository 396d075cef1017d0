// Package duration reads and prints durations as the HTTP interfaces do: input in the "friendly" form (1h 30m, 5 hours,
// 500ms, 2 days 01:02:03) or in that of ISO 8601 (PT2H, P1DT1.5S); output in the short friendly form (1d 12h, 500ms, 0s).
// A day has 24 hours and a week 7 days; months and years have no fixed length and are refused. The package is pure.
package duration

import (
	"errors"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// Parse errors. The texts reach callers.
var (
	ErrEmpty     = errors.New("an empty string is not a valid duration, give for example 1h 30m or PT90M")
	ErrNegative  = errors.New("negative signed durations cannot be converted to an unsigned duration")
	ErrCalendar  = errors.New("please use units of days or smaller")
	ErrNoInteger = errors.New("expected duration to start with a unit value (a decimal integer) after an optional sign, but no integer was found")
	ErrNoUnit    = errors.New("expected to find unit designator suffix (e.g., hours or secs) after parsing integer")
	ErrUnit      = errors.New("unknown unit of time, use days, hours, minutes, seconds, ms, us or ns")
	ErrOrder     = errors.New("units must be given from larger to smaller, each at most once")
	ErrRange     = errors.New("the duration is too long")
	ErrTrailing  = errors.New("unexpected text after the duration")
)

const day = 24 * time.Hour

// Parse reads a duration that is not negative and at most some 292 years.
func Parse(s string) (time.Duration, error) {
	p := parser{rest: s}
	switch s {
	case "":
		return 0, ErrEmpty
	case "0":
		return 0, nil // the only number that needs no unit
	}
	neg := p.sign()
	var err error
	if p.rest != "" && p.rest[0]|0x20 == 'p' {
		err = p.iso()
	} else {
		err = p.friendly(&neg)
	}
	switch {
	case err != nil:
		return 0, err
	case neg && p.total != 0:
		return 0, ErrNegative
	}
	return p.total, nil
}

type parser struct {
	rest  string
	total time.Duration
}

func (p *parser) sign() (neg bool) {
	if p.rest[0] == '-' || p.rest[0] == '+' {
		neg = p.rest[0] == '-'
		p.rest = p.rest[1:]
	}
	return neg
}

// number is an integer with an optional fraction in billionths.
type number struct {
	whole    uint64
	fraction uint64
	hasFrac  bool
}

func (p *parser) number() (n number, err error) {
	i := 0
	for ; i < len(p.rest) && '0' <= p.rest[i] && p.rest[i] <= '9'; i++ {
		hi, lo := bits.Mul64(n.whole, 10)
		sum, carry := bits.Add64(lo, uint64(p.rest[i]-'0'), 0)
		if hi != 0 || carry != 0 {
			return n, ErrRange
		}
		n.whole = sum
	}
	if i == 0 {
		return n, ErrNoInteger
	}
	p.rest = p.rest[i:]
	if p.rest == "" || (p.rest[0] != '.' && p.rest[0] != ',') || len(p.rest) < 2 || p.rest[1] < '0' || p.rest[1] > '9' {
		return n, nil
	}
	n.hasFrac = true
	scale := uint64(100_000_000)
	for i = 1; i < len(p.rest) && '0' <= p.rest[i] && p.rest[i] <= '9'; i++ {
		n.fraction += uint64(p.rest[i]-'0') * scale // digits past the ninth count nothing
		scale /= 10
	}
	p.rest = p.rest[i:]
	return n, nil
}

// add counts n units.
func (p *parser) add(n number, unit time.Duration) error {
	hi, lo := bits.Mul64(n.whole, uint64(unit))
	// fraction < 1e9 and unit <= 7 days = 6.048e14 ns: the product fits 128 bits, the quotient 64.
	fhi, flo := bits.Mul64(n.fraction, uint64(unit))
	frac, _ := bits.Div64(fhi, flo, 1_000_000_000)
	sum, carry := bits.Add64(lo, frac, 0)
	if hi != 0 || carry != 0 || sum > math.MaxInt64 || time.Duration(sum) > math.MaxInt64-p.total {
		return ErrRange
	}
	p.total += time.Duration(sum)
	return nil
}

// iso reads what follows the sign of PnWnDTnHnMnS.
func (p *parser) iso() error {
	p.rest = p.rest[1:]
	last := 8 * day
	inTime, any := false, false
	for p.rest != "" {
		if p.rest[0]|0x20 == 't' && !inTime {
			inTime, any = true, false
			p.rest = p.rest[1:]
			continue
		}
		n, err := p.number()
		if err != nil {
			return err
		}
		if p.rest == "" {
			return ErrNoUnit
		}
		unit, err := isoUnit(p.rest[0]|0x20, inTime)
		if err != nil {
			return err
		}
		p.rest = p.rest[1:]
		if unit >= last {
			return ErrOrder
		}
		if n.hasFrac && p.rest != "" {
			return ErrTrailing // only the smallest unit may have a fraction
		}
		if err := p.add(n, unit); err != nil {
			return err
		}
		last, any = unit, true
	}
	if !any {
		return ErrNoInteger
	}
	return nil
}

func isoUnit(c byte, inTime bool) (time.Duration, error) {
	switch {
	case inTime && c == 'h':
		return time.Hour, nil
	case inTime && c == 'm':
		return time.Minute, nil
	case inTime && c == 's':
		return time.Second, nil
	case !inTime && c == 'd':
		return day, nil
	case !inTime && c == 'w':
		return 7 * day, nil
	case !inTime && (c == 'm' || c == 'y'):
		return 0, ErrCalendar
	}
	return 0, ErrUnit
}

// friendly reads "n unit[,] n unit ..." with an optional HH:MM:SS at the end, and an optional "ago".
func (p *parser) friendly(neg *bool) error {
	last := 8 * day
	for first := true; ; first = false {
		n, err := p.number()
		if err != nil {
			return err
		}
		if !n.hasFrac && strings.HasPrefix(p.rest, ":") {
			if !first && last < day {
				return ErrOrder
			}
			if err := p.clock(n.whole); err != nil {
				return err
			}
			return p.end(neg)
		}
		p.space()
		unit, err := p.unit()
		if err != nil {
			return err
		}
		if unit >= last {
			return ErrOrder
		}
		last = unit
		if err := p.add(n, unit); err != nil {
			return err
		}
		if rest, comma := strings.CutPrefix(p.rest, ","); comma {
			if !strings.HasPrefix(rest, " ") && !strings.HasPrefix(rest, "\t") {
				return ErrTrailing // a comma separates only with a space
			}
			p.rest = rest
		}
		p.space()
		if p.rest == "" || p.rest[0] < '0' || p.rest[0] > '9' {
			return p.end(neg)
		}
		if n.hasFrac {
			return ErrTrailing // only the smallest unit may have a fraction
		}
	}
}

// clock reads what follows the hours of HH:MM:SS[.fraction].
func (p *parser) clock(hours uint64) error {
	if err := p.add(number{whole: hours}, time.Hour); err != nil {
		return err
	}
	for _, unit := range []time.Duration{time.Minute, time.Second} {
		if !strings.HasPrefix(p.rest, ":") {
			return ErrNoUnit
		}
		p.rest = p.rest[1:]
		n, err := p.number()
		if err != nil {
			return err
		}
		if n.whole > 59 || n.hasFrac && unit != time.Second {
			return ErrRange
		}
		if err := p.add(n, unit); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) end(neg *bool) error {
	p.space()
	if rest, ok := strings.CutPrefix(p.rest, "ago"); ok {
		*neg, p.rest = true, rest
	}
	if p.rest != "" {
		return ErrTrailing
	}
	return nil
}

func (p *parser) space() {
	for p.rest != "" && (p.rest[0] == ' ' || p.rest[0] == '\t') {
		p.rest = p.rest[1:]
	}
}

func (p *parser) unit() (time.Duration, error) {
	i := 0
	for i < len(p.rest) && ('a' <= p.rest[i] && p.rest[i] <= 'z' || p.rest[i] >= 0x80) {
		i++
	}
	name := p.rest[:i]
	if i == 0 {
		return 0, ErrNoUnit
	}
	p.rest = p.rest[i:]
	switch name {
	case "y", "yr", "yrs", "year", "years", "mo", "mos", "month", "months":
		return 0, ErrCalendar
	case "w", "wk", "wks", "week", "weeks":
		return 7 * day, nil
	case "d", "day", "days":
		return day, nil
	case "h", "hr", "hrs", "hour", "hours":
		return time.Hour, nil
	case "m", "min", "mins", "minute", "minutes":
		return time.Minute, nil
	case "s", "sec", "secs", "second", "seconds":
		return time.Second, nil
	case "ms", "msec", "msecs", "milli", "millis", "millisecond", "milliseconds":
		return time.Millisecond, nil
	case "us", "µs", "μs", "usec", "usecs", "micro", "micros", "microsecond", "microseconds":
		return time.Microsecond, nil
	case "ns", "nsec", "nsecs", "nano", "nanos", "nanosecond", "nanoseconds":
		return time.Nanosecond, nil
	}
	return 0, ErrUnit
}

var units = [...]struct {
	unit time.Duration
	name string
}{
	{day, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"},
	{time.Millisecond, "ms"}, {time.Microsecond, "µs"}, {time.Nanosecond, "ns"},
}

// Format prints d in the short friendly form; negative ones with a leading minus. Parse(Format(d)) is d for d >= 0.
func Format(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	b := make([]byte, 0, 32)
	n := uint64(d)
	if d < 0 {
		b = append(b, '-')
		n = -n
	}
	for _, u := range units {
		q := n / uint64(u.unit)
		if q == 0 {
			continue
		}
		n -= q * uint64(u.unit)
		if len(b) > 1 {
			b = append(b, ' ')
		}
		b = append(strconv.AppendUint(b, q, 10), u.name...)
	}
	return string(b)
}
