package sam

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"perdure/integration/lambdaemu"
)

// TestBootstraps: each is one static file that a function can have, and starts fast enough to be one.
func TestBootstraps(t *testing.T) {
	const limit = 20_000_000
	first := sample(t, "greeter")
	pattern := filepath.Join(filepath.Dir(filepath.Dir(first)), "*", "bootstrap")
	if *allArchitectures {
		pattern = filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(first))), "a*64", "*", "bootstrap")
	}
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[bool]int{false: 3, true: 6}[*allArchitectures]; len(files) != want {
		t.Errorf("%d bootstraps, want %d: %v", len(files), want, files)
	}
	for _, f := range files {
		fi, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() >= limit || fi.Mode()&0o111 != 0o111 {
			t.Errorf("%s: %d bytes, mode %s", f, fi.Size(), fi.Mode())
		}
	}
}

// TestSamples registers the samples as the README says, first as a dry run, and uses them.
func TestSamples(t *testing.T) {
	t.Parallel()
	s := server(t)
	for _, name := range []string{"greeter", "counter", "reminder"} {
		arn := deploy(t, lambdaemu.Function{}, name, sample(t, name))
		service := strings.ToUpper(name[:1]) + name[1:]
		args := []string{"deployments", "register", "--lambda", arn, "--assume-role-arn", invokeRole}
		out, failed, code := cli(t, s, append(args, "--dry-run")...)
		if code != 0 || !strings.Contains(out, "would be registered") || !strings.Contains(out, service) {
			t.Errorf("dry run: %d %s %s", code, out, failed)
		}
		if status, b, err := request(t.Context(), "GET", s.Admin()+"/services/"+service, nil); err != nil || status != 404 {
			t.Errorf("after the dry run: %d %s %v", status, b, err)
		}
		out, failed, code = cli(t, s, args...)
		if code != 0 || !strings.Contains(out, "Registered deployment dp_") {
			t.Fatalf("register: %d %s %s", code, out, failed)
		}
	}
	if n := emulator.Sessions(); n == 0 {
		t.Error("the role was not assumed")
	}
	t.Run("greeter", func(t *testing.T) {
		for visits := 1; visits <= 3; visits++ {
			type greeting struct {
				Message string
				Visits  int
			}
			if got := call[greeting](t, s, "/Greeter/Greet", "Ada"); got != (greeting{"Hello, Ada!", visits}) {
				t.Errorf("got %+v, want visit %d", got, visits)
			}
		}
		if n := len(invokes("greeter")); n != 6 {
			t.Errorf("greeter was called %d times for 3 greetings, want 6: up to the call of Counter and after it", n)
		}
		status, b, err := request(t.Context(), "POST", s.Ingress()+"/Greeter/Greet", "")
		if err != nil || status != 400 || !strings.Contains(string(b), "tell me your name") {
			t.Errorf("no name: %d %s %v", status, b, err)
		}
		if n := call[int](t, s, "/Counter/Ada/Get", nil); n != 3 {
			t.Errorf("count %d", n)
		}
	})
	t.Run("reminder", func(t *testing.T) {
		type reminded struct {
			Text              string
			OrderedAt, SentAt time.Time
		}
		const nap = 3 * time.Second
		got := call[reminded](t, s, "/Reminder/tea/Run", map[string]any{"text": "tea", "afterSeconds": int(nap / time.Second)})
		if d := got.SentAt.Sub(got.OrderedAt); got.Text != "tea" || d < nap || d > nap+10*time.Second {
			t.Errorf("got %+v, %s apart", got, d)
		}
		checkSleeper(t, invokes("reminder"), nap)
		if status := call[string](t, s, "/Reminder/tea/Status", nil); status != "reminded" {
			t.Errorf("status %q", status)
		}
	})
	t.Run("reminder in an hour", func(t *testing.T) {
		before := len(invokes("reminder"))
		id := send(t, s, "/Reminder/cake/Run", map[string]any{"text": "cake", "afterSeconds": 3600})
		defer kill(t, s, id)
		asleep := func() bool {
			return len(invokes("reminder")) >= before+2 && emulator.Stats(prefix+"reminder").Running == 0
		}
		eventually(t, asleep, func() string { return "its function is running" })
		if status := call[string](t, s, "/Reminder/cake/Status", nil); status != "waiting" {
			t.Errorf("status %q", status)
		}
	})
}

// checkSleeper: run, sleep and run are four calls (each step ends one, the sleep another), one after the other, and the third
// begins when the nap is over.
func checkSleeper(t *testing.T, got []lambdaemu.Call, nap time.Duration) {
	t.Helper()
	slices.SortFunc(got, func(a, b lambdaemu.Call) int { return a.Began.Compare(b.Began) })
	var spans []string
	for _, c := range got {
		spans = append(spans, fmt.Sprintf("%s+%s", c.Began.Sub(got[0].Began).Round(time.Millisecond), c.Took.Round(time.Millisecond)))
	}
	if len(got) != 4 {
		t.Fatalf("%d calls for run, sleep and run, want 4: %v", len(got), spans)
	}
	for i := range got[1:] {
		if got[i+1].Began.Before(got[i].Began.Add(got[i].Took)) {
			t.Errorf("two calls at once: %v", spans)
		}
	}
	if slept := got[2].Began.Sub(got[1].Began); slept < nap-time.Millisecond { // the alarm's time is cut to whole milliseconds
		t.Errorf("woken %s after the call that went to sleep began: %v", slept, spans)
	}
}
