package endpoint

import (
	"bytes"
	"encoding/json"
	"strconv"
)

// in is the input of the handlers that take more than plain bytes.
type in struct {
	N     int    `json:"n,omitempty"`
	Size  int    `json:"size,omitempty"`
	Depth int    `json:"depth,omitempty"`
	Ms    int64  `json:"ms,omitempty"`
	Until int64  `json:"until,omitempty"` // Unix milliseconds
	Name  string `json:"name,omitempty"`
	ID    uint64 `json:"id,omitempty"`
}

func parse(b []byte) (v in, err error) {
	if len(b) > 0 {
		err = json.Unmarshal(b, &v)
	}
	return
}

func fill(n int) []byte { return bytes.Repeat([]byte{'x'}, n) }

func num(b []byte) int64 {
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return 0 // no value yet
	}
	return n
}

func enc(n int64) []byte { return strconv.AppendInt(nil, n, 10) }
