// Package rawproto is a small, hand-written implementation of the service side of the service protocol, versions 5 to 7.
//
// It is for benchmarks: it costs an endpoint so little CPU that what is measured is the server. It speaks only what the
// benchmark services need.
package rawproto

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"perdure/integration/wire"
)

// Handler is the code of one service handler. It must be deterministic, as
// with any SDK, outside of Run.
type Handler func(c *Ctx) ([]byte, error)

// suspended unwinds a handler whose awaited result is not there.
type suspended struct{}

// broken unwinds a handler whose stream is gone.
type broken struct{}

// failed unwinds a handler whose attempt broke (the runtime will retry it).
type failed struct{ err error }

// Ctx is one attempt of one invocation.
type Ctx struct {
	Key   string
	Input []byte

	id      []byte
	ver     int
	partial bool
	state   map[string][]byte

	r *bufio.Reader
	w Writer

	replay []uint16 // types of the commands still to be replayed
	notif  map[uint32]result
	sigs   map[uint32]result
	nextC  uint32
	nextS  uint32
	out    []byte
	eof    bool
}

type result struct {
	val  []byte
	void bool
	fail *Failure
}

// Failure is a terminal error.
type Failure struct {
	Code uint32
	Msg  string
}

func (f *Failure) Error() string { return fmt.Sprintf("%d: %s", f.Code, f.Msg) }

var bufs = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4096) }}

const ctPrefix = "application/vnd.restate.invocation.v"

// Writer is the response of an invocation attempt.
type Writer interface {
	Start(status int, contentType string)
	io.Writer
	Flush() error
}

// Serve handles one POST /invoke/{service}/{handler} request.
func Serve(w Writer, ct string, body io.Reader, h Handler) {
	ver := 0
	if strings.HasPrefix(ct, ctPrefix) {
		fmt.Sscanf(ct[len(ctPrefix):], "%d", &ver)
	}
	if ver < 5 || ver > 7 {
		w.Start(http.StatusUnsupportedMediaType, "")
		return
	}
	br := readers.Get().(*bufio.Reader)
	br.Reset(body)
	ob := bufs.Get().(*[]byte)
	c := &Ctx{ver: ver, r: br, w: w, nextC: 1, nextS: 17, out: (*ob)[:0]}
	defer func() {
		*ob = c.out[:0]
		bufs.Put(ob)
		br.Reset(nil)
		readers.Put(br)
	}()
	if err := c.start(); err != nil {
		w.Start(http.StatusBadRequest, "")
		io.WriteString(w, err.Error())
		return
	}
	w.Start(http.StatusOK, ct)
	if c.run(h) {
		c.flush(false)
	}
}

func (c *Ctx) start() error {
	f, err := wire.ReadFrame(c.r)
	if err != nil {
		return err
	}
	if f.Type != wire.Start {
		return fmt.Errorf("expected StartMessage, got %#x", f.Type)
	}
	known := 0
	err = wire.Fields(f.Body, func(field int, u uint64, b []byte) error {
		switch field {
		case 1:
			c.id = b
		case 3:
			known = int(u)
		case 4:
			var k, v []byte
			if err := wire.Fields(b, func(f2 int, _ uint64, b2 []byte) error {
				if f2 == 1 {
					k = b2
				} else if f2 == 2 {
					v = b2
				}
				return nil
			}); err != nil {
				return err
			}
			if c.state == nil {
				c.state = map[string][]byte{}
			}
			c.state[string(k)] = v
		case 5:
			c.partial = u != 0
		case 6:
			c.Key = string(b)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := 0; i < known; i++ {
		f, err := wire.ReadFrame(c.r)
		if err != nil {
			return fmt.Errorf("journal entry %d of %d: %w", i, known, err)
		}
		switch {
		case f.Type == wire.Input:
			if err := wire.Fields(f.Body, func(field int, _ uint64, b []byte) (err error) {
				if field == 14 {
					c.Input, err = content(b)
				}
				return err
			}); err != nil {
				return err
			}
		case f.Type&wire.Notification != 0:
			if err := c.note(f); err != nil {
				return err
			}
		default:
			c.replay = append(c.replay, f.Type)
		}
	}
	return nil
}

// note files a wire.Notification.
func (c *Ctx) note(f wire.Frame) error {
	var r result
	var cid, sid uint32
	err := wire.Fields(f.Body, func(field int, u uint64, b []byte) (err error) {
		switch field {
		case 1:
			cid = uint32(u)
		case 2:
			sid = uint32(u)
		case 4:
			r.void = true
		case 5:
			r.val, err = content(b)
		case 6:
			r.fail = &Failure{}
			err = wire.Fields(b, func(f2 int, u2 uint64, b2 []byte) error {
				if f2 == 1 {
					r.fail.Code = uint32(u2)
				} else if f2 == 2 {
					r.fail.Msg = string(b2)
				}
				return nil
			})
		case 16:
			r.val = b
		}
		return err
	})
	if err != nil {
		return err
	}
	if f.Type == wire.Signal {
		if sid == 1 { // cancel
			panic(failed{errors.New("cancelled")})
		}
		if c.sigs == nil {
			c.sigs = map[uint32]result{}
		}
		c.sigs[sid] = r
		return nil
	}
	if c.notif == nil {
		c.notif = map[uint32]result{}
	}
	c.notif[cid] = r
	return nil
}

// run runs the handler; it reports whether the peer is still there.
func (c *Ctx) run(h Handler) (ok bool) {
	ok = true
	defer func() {
		switch p := recover().(type) {
		case nil:
		case broken:
			ok = false
		case suspended:
			// The suspension message is in the buffer already.
		case failed:
			var at int
			c.out, at = wire.Begin(c.out, wire.Error)
			c.out = wire.AppendUint(c.out, 1, 500)
			c.out = wire.AppendBytes(c.out, 2, p.err.Error())
			c.out = wire.Finish(c.out, at)
		default:
			panic(p)
		}
	}()
	res, err := h(c)
	if !c.replayed(wire.Output) {
		var at int
		c.out, at = wire.Begin(c.out, wire.Output)
		var f *Failure
		switch {
		case err == nil:
			c.out = wire.AppendValue(c.out, 14, res)
		case errors.As(err, &f):
			var fb []byte
			fb = wire.AppendUint(fb, 1, uint64(f.Code))
			fb = wire.AppendBytes(fb, 2, f.Msg)
			c.out = wire.AppendBytes(c.out, 15, fb)
		default:
			panic(failed{err})
		}
		c.out = wire.Finish(c.out, at)
	}
	c.out = append(c.out, 0, byte(wire.End), 0, 0, 0, 0, 0, 0)
	return
}

func (c *Ctx) flush(more bool) {
	if len(c.out) == 0 {
		return
	}
	_, err := c.w.Write(c.out)
	c.out = c.out[:0]
	if err == nil && more {
		err = c.w.Flush()
	}
	if err != nil && more {
		panic(broken{})
	}
}

// replayed reports whether the next command was in the journal already.
func (c *Ctx) replayed(typ uint16) bool {
	if len(c.replay) == 0 {
		return false
	}
	if c.replay[0] != typ {
		panic(failed{fmt.Errorf("journal mismatch: have %#x, code does %#x", c.replay[0], typ)})
	}
	c.replay = c.replay[1:]
	return true
}

// pull reads one more message from the runtime.
func (c *Ctx) pull() bool {
	if c.eof {
		return false
	}
	f, err := wire.ReadFrame(c.r)
	if err == io.EOF {
		c.eof = true
		return false
	}
	if err != nil {
		panic(broken{})
	}
	switch {
	case f.Type&wire.Notification != 0:
		if err := c.note(f); err != nil {
			panic(failed{err})
		}
	case f.Type == wire.ProposeAck:
		wire.Fields(f.Body, func(field int, u uint64, _ []byte) error {
			if field == 1 {
				if c.notif == nil {
					c.notif = map[uint32]result{}
				}
				c.notif[uint32(u)] = result{void: true}
			}
			return nil
		})
	case f.Type == wire.CommandAck:
	}
	return true
}

// suspend ends the attempt, waiting on one completion or one signal.
func (c *Ctx) suspend(completion, signal uint32) {
	var at int
	c.out, at = wire.Begin(c.out, wire.Suspension)
	packed := func(b []byte, field int, v uint32) []byte {
		return wire.AppendBytes(b, field, binary.AppendUvarint(nil, uint64(v)))
	}
	var ids []byte
	if completion != 0 {
		ids = packed(ids, 1, completion)
	}
	if signal != 0 {
		ids = packed(ids, 2, signal)
	}
	if c.ver >= 7 {
		// Future{waiting_completions = 1, waiting_signals = 2, combinator_type = 5}
		ids = wire.AppendUint(ids, 5, 1)
		c.out = wire.AppendBytes(c.out, 4, ids)
	} else {
		c.out = append(c.out, ids...)
	}
	c.out = wire.Finish(c.out, at)
	panic(suspended{})
}

func (c *Ctx) await(id uint32) ([]byte, error) {
	for {
		if r, ok := c.notif[id]; ok {
			if r.fail != nil {
				return nil, r.fail
			}
			return r.val, nil
		}
		c.flush(true)
		if !c.pull() {
			c.suspend(id, 0)
		}
	}
}

// Get reads a state entry.
func (c *Ctx) Get(key string) ([]byte, bool) {
	v, ok := c.state[key]
	if ok || !c.partial {
		if !c.replayed(wire.GetEagerState) {
			var at int
			c.out, at = wire.Begin(c.out, wire.GetEagerState)
			c.out = wire.AppendBytes(c.out, 1, key)
			if ok {
				c.out = wire.AppendValue(c.out, 14, v)
			} else {
				c.out = wire.AppendBytes(c.out, 13, "")
			}
			c.out = wire.Finish(c.out, at)
		}
		return v, ok
	}
	id := c.nextC
	c.nextC++
	if !c.replayed(wire.GetLazyState) {
		var at int
		c.out, at = wire.Begin(c.out, wire.GetLazyState)
		c.out = wire.AppendBytes(c.out, 1, key)
		c.out = wire.AppendUint(c.out, 11, uint64(id))
		c.out = wire.Finish(c.out, at)
	}
	v, err := c.await(id)
	if err != nil {
		panic(failed{err})
	}
	return v, !c.notif[id].void
}

// Set writes a state entry.
func (c *Ctx) Set(key string, v []byte) {
	if c.state == nil {
		c.state = map[string][]byte{}
	}
	c.state[key] = v
	if c.replayed(wire.SetState) {
		return
	}
	var at int
	c.out, at = wire.Begin(c.out, wire.SetState)
	c.out = wire.AppendBytes(c.out, 1, key)
	c.out = wire.AppendValue(c.out, 3, v)
	c.out = wire.Finish(c.out, at)
}

// Run executes f once and keeps its result in the journal.
func (c *Ctx) Run(name string, f func() ([]byte, error)) ([]byte, error) {
	id := c.nextC
	c.nextC++
	if !c.replayed(wire.Run) {
		var at int
		c.out, at = wire.Begin(c.out, wire.Run)
		c.out = wire.AppendUint(c.out, 11, uint64(id))
		c.out = wire.AppendBytes(c.out, 12, name)
		c.out = wire.Finish(c.out, at)
	}
	if _, ok := c.notif[id]; ok {
		return c.await(id)
	}
	v, err := f()
	if err != nil {
		panic(failed{err})
	}
	var at int
	c.out, at = wire.Begin(c.out, wire.ProposeRun)
	if c.ver >= 7 {
		c.out[at-6] = 0x80 // REQUESTED_ACK: the runtime need not send the value back
	}
	c.out = wire.AppendUint(c.out, 1, uint64(id))
	c.out = wire.AppendBytes(c.out, 14, v)
	c.out = wire.Finish(c.out, at)
	if _, err := c.await(id); err != nil {
		return nil, err
	}
	return v, nil
}

// Sleep waits for d. The wake-up time is fixed by the first attempt.
func (c *Ctx) Sleep(until time.Time) {
	id := c.nextC
	c.nextC++
	if !c.replayed(wire.Sleep) {
		var at int
		c.out, at = wire.Begin(c.out, wire.Sleep)
		c.out = wire.AppendUint(c.out, 1, uint64(until.UnixMilli()))
		c.out = wire.AppendUint(c.out, 11, uint64(id))
		c.out = wire.Finish(c.out, at)
	}
	c.await(id)
}

// Call starts a call and returns a function awaiting its result.
func (c *Ctx) Call(service, key, handler string, in []byte) func() ([]byte, error) {
	idx, id := c.nextC, c.nextC+1
	c.nextC += 2
	if !c.replayed(wire.Call) {
		var at int
		c.out, at = wire.Begin(c.out, wire.Call)
		c.out = wire.AppendBytes(c.out, 1, service)
		c.out = wire.AppendBytes(c.out, 2, handler)
		c.out = wire.AppendBytes(c.out, 3, in)
		if key != "" {
			c.out = wire.AppendBytes(c.out, 5, key)
		}
		c.out = wire.AppendUint(c.out, 10, uint64(idx))
		c.out = wire.AppendUint(c.out, 11, uint64(id))
		c.out = wire.Finish(c.out, at)
	}
	return func() ([]byte, error) { return c.await(id) }
}

// Send starts a one-way call.
func (c *Ctx) Send(service, key, handler string, in []byte) {
	idx := c.nextC
	c.nextC++
	if c.replayed(wire.OneWayCall) {
		return
	}
	var at int
	c.out, at = wire.Begin(c.out, wire.OneWayCall)
	c.out = wire.AppendBytes(c.out, 1, service)
	c.out = wire.AppendBytes(c.out, 2, handler)
	c.out = wire.AppendBytes(c.out, 3, in)
	if key != "" {
		c.out = wire.AppendBytes(c.out, 6, key)
	}
	c.out = wire.AppendUint(c.out, 10, uint64(idx))
	c.out = wire.Finish(c.out, at)
}

// Awakeable makes an awakeable and returns its id and a function awaiting it.
func (c *Ctx) Awakeable() (string, func() ([]byte, error)) {
	sig := c.nextS
	c.nextS++
	raw := binary.BigEndian.AppendUint32(append([]byte(nil), c.id...), sig)
	return "sign_1" + base64.RawURLEncoding.EncodeToString(raw), func() ([]byte, error) {
		for {
			if r, ok := c.sigs[sig]; ok {
				if r.fail != nil {
					return nil, r.fail
				}
				return r.val, nil
			}
			c.flush(true)
			if !c.pull() {
				c.suspend(0, sig)
			}
		}
	}
}

// Resolve completes an awakeable by its id.
func (c *Ctx) Resolve(awakeable string, v []byte) {
	if c.replayed(wire.CompleteAwakeable) {
		return
	}
	var at int
	c.out, at = wire.Begin(c.out, wire.CompleteAwakeable)
	c.out = wire.AppendBytes(c.out, 1, awakeable)
	c.out = wire.AppendValue(c.out, 2, v)
	c.out = wire.Finish(c.out, at)
}

// content is the content of a Value message; it aliases the message.
func content(value []byte) (out []byte, err error) {
	err = wire.Fields(value, func(f int, _ uint64, b []byte) error {
		if f == 1 {
			out = b
		}
		return nil
	})
	return out, err
}
