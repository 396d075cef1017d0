package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"testing"
)

// The hex strings are a step as a published SDK sends it.
func TestKnownFrames(t *testing.T) {
	run := AppendBytes(AppendUint(nil, 11, 1), 12, "se")
	propose := AppendBytes(AppendUint(nil, 1, 1), 14, "42")
	for want, f := range map[string]Frame{
		"041100000000000658016202" + "7365":      {Type: Run, Body: run},
		"000500000000000608017202" + "3432":      {Type: ProposeRun, Body: propose},
		"801100000000000808012a040a023432":       {Type: RunCompletion, Body: AppendValue(AppendUint(nil, 1, 1), 5, []byte("42"))},
		"0401000000000006" + "72040a02" + "3432": {Type: Output, Body: AppendValue(nil, 14, []byte("42"))},
		"0401000000000002" + "7200":              {Type: Output, Body: AppendValue(nil, 14, nil)},
		"0005800000000006080172023432":           {Type: ProposeRun, Flags: RequestedAck, Body: propose},
		"0003000000000000":                       {Type: End},
	} {
		got := f.Append(nil)
		if hex.EncodeToString(got) != want {
			t.Errorf("got %x, want %s", got, want)
		}
		back, err := ReadFrame(bytes.NewReader(got))
		if err != nil || back.Type != f.Type || back.Flags != f.Flags || !bytes.Equal(back.Body, f.Body) {
			t.Errorf("read back %v (%v), want %v", back, err, f)
		}
	}
	if c := Content(AppendValue(nil, 14, nil), 14); c == nil || len(c) != 0 {
		t.Errorf("content of an empty value: %v, want present and empty", c)
	}
	if c := Content(propose, 5); c != nil {
		t.Errorf("content of an absent value: %v, want nil", c)
	}
}

func TestReadFrameEnds(t *testing.T) {
	whole := Frame{Type: Run, Body: []byte("abc")}.Append(nil)
	for n := range len(whole) {
		_, err := ReadFrame(bytes.NewReader(whole[:n]))
		if want := map[bool]error{true: io.EOF, false: io.ErrUnexpectedEOF}[n == 0]; err != want {
			t.Errorf("%d of %d bytes: %v, want %v", n, len(whole), err, want)
		}
	}
	if _, err := ReadFrame(bytes.NewReader(AppendHeader(nil, Run, 0, 1<<32-1))); !errors.Is(err, ErrTooLong) {
		t.Errorf("frame of 4 GiB: %v", err)
	}
}

func TestBeginFinish(t *testing.T) {
	b, at := Begin([]byte("xx"), Output)
	b = Finish(AppendValue(b, 14, []byte("v")), at)
	if want := (Frame{Type: Output, Body: AppendValue(nil, 14, []byte("v"))}).Append([]byte("xx")); !bytes.Equal(b, want) {
		t.Errorf("got %x, want %x", b, want)
	}
}

func FuzzFields(f *testing.F) {
	f.Add(AppendValue(AppendBytes(AppendUint(nil, 1, 300), 12, "name"), 14, []byte("v")))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Fuzz(func(t *testing.T, msg []byte) {
		total := 0
		err := Fields(msg, func(_ int, _ uint64, b []byte) error { total += len(b); return nil })
		if total > len(msg) {
			t.Errorf("fields of %d bytes in a message of %d", total, len(msg))
		}
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("unexpected error %v", err)
		}
		ReadFrame(bytes.NewReader(msg))
	})
}
