package cluster

import "testing"

func FuzzParseLocation(f *testing.F) {
	for _, s := range []string{"", "eu-west-1", "eu-west-1.a", "region.zone.x", "..", "a.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLocation(s)
		if err != nil {
			return
		}
		if back, err := ParseLocation(l.String()); err != nil || back != l {
			t.Fatalf("%q is read as %q, which is read as %q (%v)", s, l, back, err)
		}
	})
}

func FuzzParseRoles(f *testing.F) {
	f.Add("worker", "admin")
	f.Add("log-server", "log-server")
	f.Add("", "x")
	f.Fuzz(func(t *testing.T, a, b string) {
		r, err := ParseRoles([]string{a, b})
		if err != nil {
			return
		}
		if back, err := ParseRoles(r.Names()); err != nil || back != r {
			t.Fatalf("%q and %q are read as %v, which is read as %v (%v)", a, b, r, back, err)
		}
	})
}
