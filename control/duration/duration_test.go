package duration

import (
	"errors"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in   string
		want time.Duration
	}{
		{"5 hours", 5 * time.Hour}, {"1h 30m", 90 * time.Minute}, {"1h30m", 90 * time.Minute}, {"500ms", 500 * time.Millisecond},
		{"3 days", 72 * time.Hour}, {"2w", 14 * day}, {"2 weeks", 14 * day}, {"1.5h", 90 * time.Minute},
		{"1 hour, 30 minutes", 90 * time.Minute}, {"+1s", time.Second}, {"01:02:03", time.Hour + 2*time.Minute + 3*time.Second},
		{"1d 01:02:03.5", day + time.Hour + 2*time.Minute + 3500*time.Millisecond}, {"500us", 500 * time.Microsecond},
		{"100µs", 100 * time.Microsecond}, {"7ns", 7}, {"0s", 0}, {"-0s", 0}, {"0", 0}, {"1000ms", time.Second},
		{"PT2H", 2 * time.Hour}, {"P1D", day}, {"P1W", 7 * day}, {"PT1.5S", 1500 * time.Millisecond}, {"pt1h", time.Hour},
		{"P1DT1H", 25 * time.Hour}, {"PT0.5H", 30 * time.Minute}, {"PT86400S", day}, {"P1W2DT3H4M5,25S", 9*day + 3*time.Hour + 4*time.Minute + 5250*time.Millisecond},
		{"106751d", 106751 * day}, {"999999h", 999999 * time.Hour},
	} {
		if got, err := Parse(c.in); err != nil || got != c.want {
			t.Errorf("%q: %s, %v, want %s", c.in, got, err, c.want)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct {
		in   string
		want error
	}{
		{"", ErrEmpty}, {"-1s", ErrNegative}, {"-PT1S", ErrNegative}, {"1h ago", ErrNegative}, {"1month", ErrCalendar}, {"1y", ErrCalendar},
		{"P1M", ErrCalendar}, {"P1Y", ErrCalendar}, {"1", ErrNoUnit}, {"1S", ErrNoUnit}, {"bogus", ErrNoInteger}, {" 1s", ErrNoInteger},
		{"1m 1h", ErrOrder}, {"1h 1h", ErrOrder}, {"1d 1h 01:02:03", ErrOrder}, {"1x", ErrUnit}, {"PT1D", ErrUnit}, {"P1H", ErrUnit},
		{"P", ErrNoInteger}, {"PT", ErrNoInteger}, {"P1DT", ErrNoInteger}, {"PT1", ErrNoUnit}, {"-", ErrNoInteger}, {"1s x", ErrTrailing},
		{"1.5h 3m", ErrTrailing}, {"PT1.5H3M", ErrTrailing}, {"106752d", ErrRange}, {"99999999999999999999s", ErrRange}, {"PT1H1H", ErrOrder},
		{"1h,30m", ErrTrailing}, {"1h,", ErrTrailing}, {"-0", ErrNoUnit}, {"00", ErrNoUnit}, {"0.0", ErrNoUnit}, {"01:60:00", ErrRange}, {"01:02", ErrNoUnit},
	} {
		if got, err := Parse(c.in); !errors.Is(err, c.want) {
			t.Errorf("%q: %s, %v, want %v", c.in, got, err, c.want)
		}
	}
}

func TestFormat(t *testing.T) {
	for _, c := range []struct {
		in   time.Duration
		want string
	}{
		{day, "1d"}, {2 * time.Hour, "2h"}, {90 * time.Minute, "1h 30m"}, {5 * time.Minute, "5m"}, {500 * time.Millisecond, "500ms"},
		{0, "0s"}, {36 * time.Hour, "1d 12h"}, {1500 * time.Millisecond, "1s 500ms"}, {1234567 * time.Millisecond, "20m 34s 567ms"},
		{100 * time.Microsecond, "100µs"}, {400 * day, "400d"}, {-90 * time.Second, "-1m 30s"}, {-1 << 63, "-106751d 23h 47m 16s 854ms 775µs 808ns"},
	} {
		if got := Format(c.in); got != c.want {
			t.Errorf("%d: %q, want %q", c.in, got, c.want)
		}
	}
}

// Whatever is accepted must survive printing, and nothing may panic or be negative.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"1h 30m", "PT2H", "P1DT1.5S", "1d 01:02:03", "-1s", "1h ago", "1,5h", "5 hours, 3 mins"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := Parse(s)
		if err != nil {
			return
		}
		if d < 0 {
			t.Fatalf("%q is negative: %d", s, d)
		}
		if again, err := Parse(Format(d)); err != nil || again != d {
			t.Fatalf("%q: %d printed as %q reads as %d, %v", s, d, Format(d), again, err)
		}
	})
}
