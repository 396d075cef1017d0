package model

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Driver sends programs to a server and collects what they did.
type Driver struct {
	// Ingress is the base URL of the server.
	Ingress string
	// Workers is how many programs run at once.
	Workers int
	// Patience is how long no program at all may be answered, crashes included, and bounds the wait for everything at the
	// end. A single program has no bound of its own: a server that is killed after each answer keeps the others waiting.
	Patience time.Duration
	// Witness is that of the endpoints.
	Witness *Witness
	Client  *http.Client

	answered atomic.Int64
}

// Answered is how many programs have had their answer. Any goroutine may ask.
func (d *Driver) Answered() int { return int(d.answered.Load()) }

// Run runs programs and returns what came out: answers, how every invocation ended, and what the objects of want hold.
// The programs' requests are repeated until they succeed, with an idempotency key.
func (d *Driver) Run(ctx context.Context, programs []*Program) (answers map[int]End, problems []string) {
	ctx, stop := d.whileAnswered(ctx)
	defer stop()
	var mu sync.Mutex // guards what is returned
	answers = map[int]End{}
	todo := make(chan *Program)
	var wg sync.WaitGroup
	for range d.Workers {
		wg.Go(func() {
			for p := range todo {
				e, err := d.program(ctx, p)
				d.answered.Add(1)
				mu.Lock()
				if err != nil {
					problems = append(problems, fmt.Sprintf("program %d: %v", p.Number, err))
				} else {
					answers[p.Number] = e
				}
				mu.Unlock()
			}
		})
	}
	for _, p := range programs {
		todo <- p
	}
	close(todo)
	wg.Wait()
	return answers, problems
}

// whileAnswered is a context that is done once no program was answered for Patience, or twice that. Its stop function must
// be called.
func (d *Driver) whileAnswered(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(d.Patience)
		defer t.Stop()
		for last := d.Answered(); ; {
			select {
			case <-t.C:
			case <-ctx.Done():
				return
			}
			n := d.Answered()
			if n == last {
				cancel(fmt.Errorf("no program was answered for %v", d.Patience))
				return
			}
			last = n
		}
	})
	return ctx, func() { cancel(nil); wg.Wait() }
}

func (d *Driver) program(ctx context.Context, p *Program) (End, error) {
	path := "/" + p.Entry.name() + "/"
	if p.Entry.Key != "" {
		path += p.Entry.Key + "/"
	}
	path += p.Entry.Handler
	if !p.OneWay {
		return d.until(ctx, http.MethodPost, path, p)
	}
	path += "/send"
	if p.DelayMs > 0 {
		path += fmt.Sprintf("?delay=%dms", p.DelayMs)
	}
	var sent struct{ InvocationID string }
	for {
		status, body, err := d.ask(ctx, http.MethodPost, path, p)
		if err == nil && status/100 == 2 {
			if err := json.Unmarshal(body, &sent); err != nil {
				return End{}, err
			}
			break
		}
		if err := again(ctx, status, body, err); err != nil {
			return End{}, err
		}
	}
	return d.until(ctx, http.MethodGet, "/restate/invocation/"+sent.InvocationID+"/attach", nil)
}

// until asks until the invocation has ended.
func (d *Driver) until(ctx context.Context, method, path string, p *Program) (End, error) {
	for {
		status, body, err := d.ask(ctx, method, path, p)
		if e, over := endOf(status, body, err); over {
			return e, nil
		}
		if err := again(ctx, status, body, err); err != nil {
			return End{}, err
		}
	}
}

// endOf is how an invocation ended according to a response; over says that the response tells.
func endOf(status int, body []byte, err error) (e End, over bool) {
	switch {
	case err != nil:
		return e, false
	case status == http.StatusOK:
		return e, json.Unmarshal(body, &e.Trace) == nil
	}
	var f Failure
	if json.Unmarshal(body, &f) != nil || !strings.HasPrefix(f.Message, "failed p") { // only a program fails like this
		return e, false
	}
	f.Code = status
	return End{Failure: &f}, true
}

// again waits before the next try, unless it makes no sense.
func again(ctx context.Context, status int, body []byte, err error) error {
	if err == nil {
		err = fmt.Errorf("status %d: %.300s", status, body)
		if status/100 == 4 && status != http.StatusTooManyRequests {
			return err
		}
	}
	t := time.NewTimer(25 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return errors.Join(errors.New("never answered"), context.Cause(ctx), err)
	}
}

func (d *Driver) ask(ctx context.Context, method, path string, p *Program) (int, []byte, error) {
	var in io.Reader
	if p != nil {
		in = bytes.NewReader(value(&Input{Body: p.Body}))
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, d.Ingress+path, in)
	if err != nil {
		return 0, nil, err
	}
	if p != nil {
		req.Header.Set("Content-Type", "application/json")
		if p.Entry.Service != flow { // its key is what makes it happen once
			req.Header.Set("Idempotency-Key", p.Body.ID)
		}
	}
	resp, err := d.Client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// Settle waits until every invocation that want has has ended, reads the objects, and completes the outcome.
func (d *Driver) Settle(ctx context.Context, want *Outcome, answers map[int]End, problems []string) *Outcome {
	ending, cancel := context.WithTimeout(ctx, d.Patience)
	defer cancel()
	for {
		missing, changed := d.Witness.missing(want.Ends)
		if len(missing) == 0 {
			break
		}
		select {
		case <-changed:
			continue
		case <-ending.Done():
			problems = append(problems, fmt.Sprintf("%d invocations have not ended, such as those of %.300v", len(missing), missing))
		}
		break
	}
	got, unread := d.objects(ctx, want)
	o := d.Witness.outcome()
	o.Objects = got
	maps.Copy(o.Answers, answers)
	o.Problems = append(append(o.Problems, problems...), unread...)
	return o
}

// objects reads all objects that the programs used. What an invocation wrote is there a little later than the endpoint
// saw its end.
func (d *Driver) objects(ctx context.Context, want *Outcome) (got map[string]map[string]string, problems []string) {
	ctx, cancel := context.WithTimeout(ctx, d.Patience)
	defer cancel()
	var mu sync.Mutex // guards what is returned
	got = map[string]map[string]string{}
	todo := make(chan string)
	var wg sync.WaitGroup
	for range d.Workers {
		wg.Go(func() {
			for o := range todo {
				m, err := d.object(ctx, o, want.Objects[o])
				mu.Lock()
				got[o] = m
				if err != nil {
					problems = append(problems, fmt.Sprintf("read object %s: %v", o, err))
				}
				mu.Unlock()
			}
		})
	}
	for o := range want.Objects {
		if o != "" {
			todo <- o
		}
	}
	close(todo)
	wg.Wait()
	return got, problems
}

// object reads an object until it holds what is wanted, or ctx is done.
func (d *Driver) object(ctx context.Context, object string, want map[string]string) (map[string]string, error) {
	var last map[string]string
	for {
		status, body, err := d.ask(ctx, http.MethodPost, "/"+object+"/"+dump, nil)
		if err == nil && status == http.StatusOK {
			var m map[string]string
			if err := json.Unmarshal(body, &m); err != nil {
				return nil, err
			}
			last = m
			if maps.Equal(m, want) {
				return m, nil
			}
		}
		if err := again(ctx, status, body, err); err != nil {
			if last != nil {
				err = nil // the comparison says what is wrong with it
			}
			return last, err
		}
	}
}
