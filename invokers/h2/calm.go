package h2

import "time"

// calm is a token bucket for frames that cost work and bring nothing: PING, SETTINGS, PRIORITY, unknown types,
// empty DATA, WINDOW_UPDATE of more than was sent. Neither HTTP/2 nor the library limits them. An honest peer sends a few per
// second at most, or some per exchange; a hostile one can keep a core busy with them. The clock is
// read only when such a frame arrives. The connection's reader owns it.
type calm struct {
	tokens  float64
	last    time.Time
	streams uint32 // opened when tokens were last given for them
}

const (
	calmBurst     = 2000 // frames without progress in a row
	calmPerSecond = 200  // and at this rate for ever
)

func newCalm(now time.Time) calm { return calm{tokens: calmBurst, last: now} }

// take spends a token; false means that the peer floods.
func (c *calm) take(now time.Time) bool {
	c.tokens = min(calmBurst, c.tokens+calmPerSecond*now.Sub(c.last).Seconds())
	c.last = now
	c.tokens--
	return c.tokens >= 0
}

// progress gives back a few tokens for a frame that did bring something, because an honest peer sends control
// frames in proportion to the work: an update of the window, a ping to measure the bandwidth.
func (c *calm) progress() {
	c.tokens = min(calmBurst, c.tokens+4)
}

// opened gives tokens for the exchanges that were opened since the last call, of n in all.
func (c *calm) opened(n uint32) bool {
	c.tokens = min(calmBurst, c.tokens+8*float64(n-c.streams))
	c.streams = n
	return c.tokens >= 0
}
