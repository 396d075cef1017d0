package node

import (
	"slices"
	"testing"

	"perdure/invokers/transport"
)

// TestAdditionalHeaders: names are sent in lower case, as HTTP/2 wants them, and replace what would be sent otherwise.
func TestAdditionalHeaders(t *testing.T) {
	got := additionalHeaders([]transport.Field{{Name: "user-agent", Value: "p"}, {Name: "x-always", Value: "a"}},
		map[string]string{"X-Key": "k", "User-Agent": "mine"})
	want := []transport.Field{{Name: "x-always", Value: "a"}, {Name: "user-agent", Value: "mine"}, {Name: "x-key", Value: "k"}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
