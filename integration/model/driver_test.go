package model

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// roundTripper answers requests without a network.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestDriverIsPatientWithWhoeverWaits: a program may wait for longer than the patience as long as others are answered, and
// when none is any more, the run ends and says so.
func TestDriverIsPatientWithWhoeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const patience, apart, n = 90 * time.Second, 60 * time.Second, 5
		begin := time.Now()
		d := &Driver{Ingress: "http://h", Workers: n, Patience: patience, Witness: NewWitness(), Client: &http.Client{
			Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				// The program k is answered after k times apart, all but the last. Until then its server is down.
				k := int(r.URL.Path[len(r.URL.Path)-1] - '0')
				if k == n-1 || time.Since(begin) < time.Duration(k)*apart {
					return nil, errors.New("connection refused")
				}
				return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader("[]"))}, nil
			}),
		}}
		var ps []*Program
		for k := range n {
			ps = append(ps, &Program{Number: k, Entry: Target{Variant: "V", Service: plain, Handler: string(rune('0' + k))}, Body: &Body{ID: "b"}})
		}
		answers, problems := d.Run(t.Context(), ps)
		if len(answers) != n-1 {
			t.Errorf("%d programs were answered, want %d: %q", len(answers), n-1, problems)
		}
		if len(problems) != 1 || !strings.Contains(problems[0], "program 4: never answered") || !strings.Contains(problems[0], "no program was answered for 1m30s") {
			t.Errorf("problems: %q", problems)
		}
	})
}
