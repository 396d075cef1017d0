package chain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"perdure/control/cluster"
)

// format is the version of the stored form, which is JSON so that people can read and, in an emergency, repair it:
//
//	{"format":1,"log":7,
//	 "segments":[{"index":0,"base":1,"sequencer":[1,3],"replication":"{node:1}","nodes":[1]}, …],
//	 "seal":{"tail":42,"permanent":false,"by":[1,4],"at_millis":1700000000000}}
const format = 1

type chainJSON struct {
	Format   int           `json:"format"`
	Log      cluster.LogID `json:"log"`
	Segments []segmentJSON `json:"segments"`
	Seal     *sealJSON     `json:"seal,omitempty"`
}

type segmentJSON struct {
	Index       cluster.SegmentIndex `json:"index"`
	Base        cluster.LSN          `json:"base"`
	Sequencer   nodeJSON             `json:"sequencer"`
	Replication cluster.Replication  `json:"replication"`
	Nodes       []cluster.NodeID     `json:"nodes"`
}

type sealJSON struct {
	Tail      cluster.LSN `json:"tail"`
	Permanent bool        `json:"permanent"`
	By        nodeJSON    `json:"by"`
	AtMillis  int64       `json:"at_millis"`
}

// nodeJSON is a node id and its generation.
type nodeJSON [2]uint32

func toNode(g cluster.GenNodeID) nodeJSON { return nodeJSON{uint32(g.ID), uint32(g.Generation)} }

func (n nodeJSON) id() cluster.GenNodeID {
	return cluster.GenNodeID{ID: cluster.NodeID(n[0]), Generation: cluster.Generation(n[1])}
}

// Encode is the stored form of the chain.
func (c Chain) Encode() ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("encode chain of log %d: %w", c.log, err)
	}
	v := chainJSON{Format: format, Log: c.log, Segments: make([]segmentJSON, len(c.segments))}
	for i, s := range c.segments {
		v.Segments[i] = segmentJSON{s.Index(), s.Base, toNode(s.Sequencer), s.Replication, s.NodeSet}
	}
	if s := c.seal; s != nil {
		v.Seal = &sealJSON{s.Tail, s.Permanent, toNode(s.By), s.AtMillis}
	}
	return json.Marshal(v)
}

// Decode reads the stored form. Unknown formats and fields are refused, because a node that wrote the chain back
// would drop what it did not understand.
func Decode(data []byte) (Chain, error) {
	var v chainJSON
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return Chain{}, fmt.Errorf("decode chain: %w", err)
	}
	if d.More() {
		return Chain{}, errors.New("decode chain: data follows the object")
	}
	if v.Format != format {
		return Chain{}, fmt.Errorf("decode chain: format %d is not known to this version of the server", v.Format)
	}
	c := Chain{log: v.Log, segments: make([]Segment, len(v.Segments))}
	for i, s := range v.Segments {
		c.segments[i] = Segment{
			Loglet: cluster.NewLogletID(v.Log, s.Index),
			Base:   s.Base,
			Params: Params{s.Sequencer.id(), s.Replication, s.Nodes},
		}
	}
	if s := v.Seal; s != nil {
		c.seal = &Seal{s.Tail, s.Permanent, s.By.id(), s.AtMillis}
	}
	if err := c.Validate(); err != nil {
		return Chain{}, fmt.Errorf("decode chain of log %d: %w", v.Log, err)
	}
	return c, nil
}
