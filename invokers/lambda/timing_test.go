package lambda

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"perdure/invokers/transport"
)

// A function with room for ten calls of 100 ms, and 300 callers: the limiter must keep it busy with few refusals, and
// must find more room when there is more.
func TestLimiterFindsTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		room, running, refusals, passed := 10, 0, 0, 0
		call := func() outcome {
			mu.Lock()
			running++
			full := running > room
			mu.Unlock()
			time.Sleep(5 * time.Millisecond) // of the bubble
			if !full {
				time.Sleep(95 * time.Millisecond)
			}
			mu.Lock()
			defer mu.Unlock()
			running--
			if full {
				refusals++
				return refused
			}
			passed++
			return succeeded
		}
		l := newLimiter(1000)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 300 {
			wg.Go(func() {
				for ctx.Err() == nil {
					err := l.acquire(ctx, "f")
					var failure *transport.Error
					switch errors.As(err, &failure); {
					case err == nil:
						time.Sleep(l.release(time.Now(), call()))
					case failure.Kind == transport.Throttled:
						time.Sleep(failure.RetryAfter)
					}
				}
			})
		}
		measure := func(d time.Duration) (calls, no int) {
			mu.Lock()
			passed, refusals = 0, 0
			mu.Unlock()
			time.Sleep(d)
			mu.Lock()
			defer mu.Unlock()
			return passed, refusals
		}
		measure(30 * time.Second) // to settle
		calls, no := measure(time.Minute)
		if calls < 60*100*3/4 || no > calls/10 {
			t.Errorf("room for 100/s: %d calls and %d refusals in a minute", calls, no)
		}
		mu.Lock()
		room = 50
		mu.Unlock()
		measure(30 * time.Second)
		calls, no = measure(5 * time.Minute) // in which the limit rises and falls some times
		if calls < 300*500*3/4 || no > calls/10 {
			t.Errorf("room for 500/s: %d calls and %d refusals in five minutes", calls, no)
		}
		cancel()
		wg.Wait()
		if !l.idle() {
			t.Error("permits are held at the end")
		}
	})
}

func TestLimiterWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(2)
		for range 2 {
			if err := l.acquire(t.Context(), "f"); err != nil {
				t.Fatal(err)
			}
		}
		got := make(chan error, 2)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { got <- l.acquire(ctx, "f") }()
		synctest.Wait()
		cancel()
		wantKind(t, <-got, transport.Canceled, "")

		begin := time.Now()
		wantKind(t, l.acquire(t.Context(), "f"), transport.Throttled, "as many calls")
		if d := time.Since(begin); d != permitWait {
			t.Errorf("waited %v", d)
		}

		for range 2 {
			go func() { got <- l.acquire(t.Context(), "f") }()
		}
		synctest.Wait()
		wantKind(t, l.acquire(t.Context(), "f"), transport.Throttled, "") // two wait already
		for range 2 {
			l.release(time.Now(), neutral)
			if err := <-got; err != nil {
				t.Fatal(err)
			}
		}
		l.release(time.Now(), succeeded)
		l.release(time.Now(), succeeded)
		if !l.idle() {
			t.Error("not idle")
		}
	})
}

// Refusals that come together count once, and the advised wait grows while they go on.
func TestLimiterBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(100)
		for range 10 {
			if err := l.acquire(t.Context(), "f"); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 { // 7 still run, and a tenth less once
			l.release(time.Now(), refused)
		}
		if l.limit != 7 {
			t.Errorf("limit %v after three of ten were refused", l.limit)
		}
		for range 7 {
			l.release(time.Now(), neutral)
		}
		var wait time.Duration
		for range 10 {
			time.Sleep(movePause)
			if err := l.acquire(t.Context(), "f"); err != nil {
				t.Fatal(err)
			}
			wait = l.release(time.Now(), refused)
		}
		if wait < retryCap/2 || wait > retryCap*3/2 || l.limit != 1 {
			t.Errorf("wait %v, limit %v after ten refusals", wait, l.limit)
		}
	})
}

// A limit that is too low does not last for as long as the calls that were let through.
func TestLimiterTriesWhileNoCallEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(100)
		for range 3 {
			if err := l.acquire(t.Context(), "f"); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			l.release(time.Now(), refused)
		}
		if l.limit != 1 || l.running != 1 {
			t.Fatalf("limit %v and %d running after two of three were refused", l.limit, l.running)
		}
		for passed, deadline := 0, time.Now().Add(time.Minute); passed < 20; { // the one call goes on
			switch err := l.acquire(t.Context(), "f"); {
			case err == nil:
				passed++
			case time.Now().After(deadline):
				t.Fatalf("%d calls were let through in a minute beside the one that goes on", passed)
			default:
				wantKind(t, err, transport.Throttled, "")
			}
		}
		running := l.running
		l.release(time.Now(), refused)
		if want := float64(running-1) * shrinkTo; l.limit != want {
			t.Errorf("limit %v after a refusal beside %d others, want %v", l.limit, running-1, want)
		}
	})
}

func TestColdStartsAreGuessed(t *testing.T) {
	var e environments
	now := time.Now()
	begin := func(cold bool) {
		t.Helper()
		if e.begin(now) != cold {
			t.Errorf("cold is %v", !cold)
		}
	}
	begin(true)
	begin(true) // two at once need two
	e.end(now, true)
	e.end(now, true)
	begin(false)
	begin(false)
	e.end(now, false) // broke
	e.end(now, true)
	begin(false)
	begin(true)
	e.end(now, true)
	now = now.Add(keptFor + time.Second)
	begin(true)
}

func TestRoleCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		calls := 0
		away := error(nil)
		var wg sync.WaitGroup
		r := &roleCredentials{
			spawn: func(f func(context.Context)) bool {
				wg.Go(func() { f(context.Background()) })
				return true
			},
			assume: func(context.Context) (aws.Credentials, error) {
				mu.Lock()
				defer mu.Unlock()
				calls++
				time.Sleep(time.Second) // of the bubble
				return aws.Credentials{AccessKeyID: string(rune('a' + calls - 1)), SecretAccessKey: "s", CanExpire: true, Expires: time.Now().Add(time.Hour)}, away
			},
		}
		get := func(want string) {
			t.Helper()
			creds, err := r.Retrieve(t.Context())
			if err != nil || creds.AccessKeyID != want {
				t.Fatalf("got %q, %v, want %q", creds.AccessKeyID, err, want)
			}
		}
		var first sync.WaitGroup
		for range 10 { // share one call
			first.Go(func() { get("a") })
		}
		first.Wait()
		time.Sleep(54 * time.Minute)
		get("a")
		synctest.Wait()
		if calls != 1 {
			t.Fatalf("%d calls", calls)
		}
		time.Sleep(2 * time.Minute) // due now: replaced in the background
		begin := time.Now()
		get("a")
		if time.Since(begin) != 0 {
			t.Error("a call waited although its credentials were good")
		}
		wg.Wait()
		get("b")

		away = errors.New("STS is away")
		time.Sleep(56 * time.Minute)
		for range 10 { // fails behind the scenes, once
			get("b")
			wg.Wait()
		}
		if calls != 3 {
			t.Errorf("%d calls, want no more than one failed refresh in a while", calls)
		}
		time.Sleep(refreshAgain)
		get("b")
		wg.Wait()
		if calls != 4 {
			t.Errorf("%d calls, want another refresh", calls)
		}
		time.Sleep(10 * time.Minute) // now they are over
		if _, err := r.Retrieve(t.Context()); !errors.Is(err, away) {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Retrieve(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		wg.Wait()
		away = nil
		get("g")
	})
}

// TestSetMax: a deployment's cap holds at once, and what throttling taught outlives a higher one.
func TestSetMax(t *testing.T) {
	l := newLimiter(1000)
	l.setMax(2)
	for range 2 {
		if err := l.acquire(t.Context(), "f"); err != nil {
			t.Fatal(err)
		}
	}
	if l.running < l.allowedLocked() {
		t.Errorf("%d of %d run: there is room above the cap", l.running, l.allowedLocked())
	}
	l.setMax(1000)
	if got := l.allowedLocked(); got != 1000 {
		t.Errorf("nothing was refused, and the limit is %d", got)
	}
	l.release(time.Now(), refused)
	taught := l.allowedLocked()
	l.setMax(2000)
	if got := l.allowedLocked(); got != taught || taught > 2 {
		t.Errorf("the limit is %d, was %d after a refusal", got, taught)
	}
}
